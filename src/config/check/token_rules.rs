//! Checks the validation rules for an issuer's tokens.

use core::time::Duration;
use std::sync::Arc;

use super::{Check, MAX_DURATION};
use crate::base::secret::Secret;
use crate::base::strict_json::base64url;
use crate::config::de::field::{List, ListOrNone, OneOrMany, Spanned};
use crate::config::de::units::Size;
use crate::config::fault::Code;
use crate::config::file::issuers::{self as file, RevocationCheck, SecretEncoding};
use crate::config::file::value::Value;
use crate::issuer::Algorithm;
use crate::token::{Audience, ValidationRules};

impl Check<'_> {
    pub(super) fn rules(&mut self, keys: &Spanned<file::Issuer>) -> ValidationRules {
        let mut rules = ValidationRules::new(self.audience(keys));
        if let Some(list) = keys.algorithms.get() {
            rules.algorithms = list.items.iter().map(|at| at.value.0).collect();
        }
        if let Some(list) = keys.token_types.get() {
            rules.token_types = self.token_types(list);
        }
        rules.leeway = self.time_or_zero(&keys.leeway, rules.leeway, Duration::from_secs(300));
        if let Some(at) = keys.leeway.get().filter(|_| rules.leeway > Duration::from_secs(60)) {
            let message = "tokens will be accepted more than a minute after they expire";
            self.fault(Code::C110, at.at, message, "synchronize the machines' clocks instead");
        }
        if let Some(list) = keys.required_claims.get() {
            rules.required_claims = self.required_claims(list);
        }
        rules.max_token_age =
            Some(self.time_or_zero(&keys.max_token_age, Duration::ZERO, MAX_DURATION))
                .filter(|age| !age.is_zero());
        if let Some(at) = keys.scope_claim.get() {
            rules.scope_claim = self.texts(Some(at));
        }
        if let Some(at) = keys.audience_claim.get() {
            rules.audience_claim = self.audience_claim(keys, at);
        }
        rules.max_token_size = self.max_token_size(&keys.max_token_size, rules.max_token_size);
        if let Some(at) = keys.client_claim.get() {
            rules.client_claim = self.texts(Some(at));
        }
        rules.decryption = self.key_ring(keys);
        if let Some(cache) = keys.jwt_cache.get() {
            rules.jwt_cache_max_entries =
                self.number(&cache.max_entries, 0..=10_000_000, rules.jwt_cache_max_entries);
        }
        if let Some(at) =
            keys.revocation_check.get().filter(|at| at.value.0 == RevocationCheck::Introspection)
        {
            rules.revocation_check = true;
            if keys.client.is_absent() {
                let message = "there is no `client`, which introspection needs";
                self.fault(Code::C106, at.key_at, message, "write client: { id: …, secret: … }");
            }
        }
        rules
    }

    /// Returns the accepted audiences. A missing `audience` is no fault here: only routes that verify JWTs need it.
    fn audience(&mut self, keys: &Spanned<file::Issuer>) -> Audience {
        let Some(audience) = keys.audience.get() else { return Audience::Any };
        if let Some(any) = audience.items.iter().find(|at| at.value == "any") {
            let message = "tokens of this issuer for other resource servers would be accepted";
            self.fault(
                Code::C109,
                any.at,
                message,
                "write the `aud` of its tokens for this gateway",
            );
        }
        Audience::OneOf(self.texts::<Arc<str>>(Some(audience)).into())
    }

    fn audience_claim(
        &mut self,
        keys: &Spanned<file::Issuer>,
        list: &Spanned<OneOrMany<String>>,
    ) -> Vec<Box<str>> {
        if keys.audience.is_absent() {
            let message = "`audience_claim` has no effect without `audience`";
            let help = "write under `audience` the value of that claim in tokens for this gateway";
            self.fault(Code::C106, list.key_at, message, help);
        }
        if let Some(at) =
            list.items.iter().find(|at| matches!(&*at.value, "" | "aud" | "iss" | "exp"))
        {
            let message = format!("{} cannot replace `aud`", at.shown());
            let help = "write the claim that says what a token is for, such as client_id";
            self.fault(Code::C103, at.at, message, help);
        }
        list.items.iter().map(|at| at.value.as_str().into()).collect()
    }

    fn max_token_size(&mut self, set: &Value<Size>, default: usize) -> usize {
        let Some(at) = set.get() else { return default };
        match usize::try_from(at.value.0.0) {
            Ok(size) if (1024..=1 << 20).contains(&size) => size,
            _ => {
                self.fault(Code::C103, at.at, "this is out of range", "write 1KiB to 1MiB");
                default
            }
        }
    }

    fn token_types(&mut self, list: &Spanned<List<String>>) -> Vec<Box<str>> {
        let mut types = Vec::new();
        for at in &list.items {
            let lower = at.value.to_ascii_lowercase();
            let bare = lower.strip_prefix("application/").unwrap_or(&lower);
            if ["dpop+jwt", "logout+jwt", "secevent+jwt", "token-introspection+jwt"].contains(&bare)
            {
                let message =
                    format!("{} is not the type of an access token (RFC 8725 §3.11)", at.shown());
                self.fault(Code::C109, at.at, message, "remove it");
            }
            types.push(Box::from(bare));
        }
        types
    }

    fn required_claims(&mut self, list: &Spanned<ListOrNone<String>>) -> Vec<Box<str>> {
        let mut claims: Vec<Box<str>> = self.texts(Some(list));
        if !claims.iter().any(|claim| &**claim == "aud") && !list.incomplete {
            let message = "a token that says nothing about its audience would be accepted";
            self.fault(Code::C109, list.at, message, "add `aud`");
        }
        for always in ["iss", "exp"] {
            if !claims.iter().any(|claim| &**claim == always) {
                claims.push(always.into());
            }
        }
        claims
    }

    pub(super) fn hmac_secret(&mut self, keys: &Spanned<file::Issuer>) -> Option<Secret<Vec<u8>>> {
        let symmetric = |algorithm: &Algorithm| {
            matches!(algorithm, Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512)
        };
        let algorithms = keys.algorithms.get();
        let hs = algorithms.and_then(|list| list.items.iter().find(|at| symmetric(&at.value.0)));
        if keys.hmac_secret.is_absent() {
            if let Some(at) = keys.hmac_secret_encoding.get() {
                let message = "`hmac_secret_encoding` has no effect without `hmac_secret`";
                self.fault(Code::C106, at.key_at, message, "remove it");
            }
            if let Some(at) = hs {
                let message = format!(
                    "`{}` with public keys: any holder of a public key could sign",
                    at.value.0.name()
                );
                self.fault(Code::C109, at.at, message, "remove it, or set `hmac_secret`");
            }
            return None;
        }
        let at = keys.hmac_secret.get()?;
        let published = [
            keys.jwks_uri.get().map(|at| at.key_at),
            keys.jwks_file.get().map(|at| at.key_at),
            keys.endpoints.get().and_then(|endpoints| endpoints.jwks.get()).map(|at| at.key_at),
        ];
        for position in published.into_iter().flatten() {
            let message = "an issuer has either a shared secret or published keys";
            self.fault(Code::C109, position, message, "remove it, or `hmac_secret`");
        }
        let only_hs =
            algorithms.is_some_and(|list| list.items.iter().all(|at| symmetric(&at.value.0)));
        if !only_hs && !keys.algorithms.is_bad() {
            let message = "with `hmac_secret`, only HS256, HS384 and HS512 can sign";
            self.fault(Code::C106, at.key_at, message, "write algorithms: [HS256]");
        }
        let secret = self.secret(at)?;
        let secret = self.decoded(secret, at, &keys.hmac_secret_encoding)?;
        if secret.expose().len() < 32 {
            self.fault(
                Code::C103,
                at.at,
                "this secret can be guessed: it has less than 32 bytes",
                "write 32 random bytes or more (RFC 7518 §3.2)",
            );
            return Some(secret);
        }
        for at in algorithms.into_iter().flat_map(|list| &list.items) {
            let (needed, length) = (hmac_bytes(at.value.0), secret.expose().len());
            if length < needed {
                let name = at.value.0.name();
                let message =
                    format!("`{name}` needs a secret of {needed} bytes, this one has {length}");
                let help = "remove it, or set a longer secret (RFC 7518 §3.2)";
                self.fault(Code::C106, at.at, message, help);
            }
        }
        Some(secret)
    }

    /// Returns the bytes of a secret that may be written as base64.
    fn decoded<T>(
        &mut self,
        secret: Secret<String>,
        at: &Spanned<T>,
        encoding: &Value<SecretEncoding>,
    ) -> Option<Secret<Vec<u8>>> {
        if encoding.get().is_none_or(|at| at.value.0 == SecretEncoding::Text) {
            return Some(Secret::new(secret.expose().clone().into_bytes()));
        }
        // Either alphabet, with or without padding, in one line or several: what random generators and consoles print.
        let text: String = secret.expose().split_ascii_whitespace().collect();
        let text = text.trim_end_matches('=').replace('+', "-").replace('/', "_");
        let decoded = base64url(&text);
        if decoded.is_err() {
            let message = "this secret is not base64";
            let help = "write it as base64, or hmac_secret_encoding: text";
            self.fault(Code::C103, at.at, message, help);
        }
        decoded.ok().map(Secret::new)
    }
}

/// Returns the bytes that a secret must have for `algorithm` (RFC 7518 §3.2); 0 if that takes no secret.
const fn hmac_bytes(algorithm: Algorithm) -> usize {
    match algorithm {
        Algorithm::Hs256 => 32,
        Algorithm::Hs384 => 48,
        Algorithm::Hs512 => 64,
        _ => 0,
    }
}
