//! `issuers`

use core::num::NonZeroUsize;
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;

use url::Url;

use super::auth::scopes;
use super::serving::is_private;
use super::{A_YEAR, Check};
use crate::base::secret::Secret;
use crate::config::Issuer;
use crate::config::auth::{Auth, Credential};
use crate::config::fault::Code;
use crate::config::file::issuers::{
    self as file, ClientAuth as Proof, OnUnavailable as Away, RevocationCheck,
};
use crate::config::file::{File, Value};
use crate::config::route::Route;
use crate::config::set::{At, List, Set};
use crate::config::units::Wrong;
use crate::issuer::sign::SigningKey;
use crate::issuer::{
    Algorithm, Client, ClientAuth, Discovery, Endpoints, Introspection, OnUnavailable,
    PasswordGrant, Settings,
};
use crate::limit::Rate;
use crate::token::{Audience, Rules};

impl Check<'_> {
    pub(super) fn issuers(&mut self, file: &File) -> BTreeMap<Arc<str>, Issuer> {
        self.names(&file.issuers);
        let Some(issuers) = file.issuers.get() else { return BTreeMap::new() };
        issuers
            .iter()
            .filter_map(|(name, keys)| {
                Some((Arc::from(name.value.as_str()), self.issuer(name, keys)?))
            })
            .collect()
    }

    fn issuer(&mut self, name: &At<String>, keys: &At<file::Issuer>) -> Option<Issuer> {
        let help = "write the `iss` of its tokens, such as https://auth.example.com";
        let url = self.required(&keys.issuer, name.at, "issuer", help);
        if let Some(url) = url {
            self.issuer_url(url);
        }
        let seconds = Duration::from_secs;
        let hmac_secret = self.hmac_secret(keys);
        let mut settings = Settings::new(&name.value, url.map_or("", |url| &url.value));
        settings.discovery = keys.discovery.get().map_or(Discovery::Auto, |at| at.value.0.clone());
        if let (Discovery::At(url), Some(at)) = (&settings.discovery, keys.discovery.get()) {
            self.private(url, at);
        }
        settings.endpoints = self.endpoints(keys);
        settings.jwks = self.jwks_file(keys);
        settings.hmac_secret = hmac_secret;
        settings.jwks_refresh = self.jwks_refresh(&keys.jwks_refresh);
        settings.jwks_min_interval = self.time(&keys.jwks_min_interval, seconds(30), A_YEAR);
        settings.client = keys.client.get().and_then(|client| self.client(client));
        settings.introspection = self.introspection(keys);
        settings.password_grant = self.password_grant(&keys.password_grant);
        settings.timeout = self.time(&keys.timeout, seconds(3), seconds(300));
        let most = self.number(&keys.max_concurrent, 1..=100_000, 64) as usize;
        settings.max_concurrent = NonZeroUsize::new(most).unwrap_or(NonZeroUsize::MIN);
        settings.ca = self.authorities(&keys.ca_file);
        settings.on_unavailable = self.on_unavailable(keys);
        let rules = self.rules(keys);
        url.map(|_| Issuer { settings, rules })
    }

    fn issuer_url(&mut self, at: &At<String>) {
        match Url::parse(&at.value) {
            Ok(url) if url.query().is_some() || url.fragment().is_some() => {
                self.wrong(
                    at,
                    Wrong::new(
                        "is not an issuer",
                        "an issuer has neither `?` nor `#` (RFC 8414 §2)",
                    ),
                );
            }
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {
                self.private(&url, at)
            }
            _ => self.wrong(
                at,
                Wrong::new("is not an issuer", "write a URL such as https://auth.example.com"),
            ),
        }
    }

    /// Refuses what others on the way could read or forge.
    fn private<T>(&mut self, url: &Url, at: &At<T>) {
        if !is_private(url) {
            let message = "keys and secrets would travel over http, where anybody on the way can read and change them";
            self.fault(Code::C109, at.at, message, "write https://; http is for loopback alone");
        }
    }

    fn hmac_secret(&mut self, keys: &At<file::Issuer>) -> Option<Secret<Vec<u8>>> {
        let symmetric = |algorithm: &Algorithm| {
            matches!(algorithm, Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512)
        };
        let algorithms = keys.algorithms.get();
        let hs = algorithms.and_then(|list| list.items.iter().find(|at| symmetric(&at.value.0)));
        if keys.hmac_secret.is_absent() {
            if let Some(at) = hs {
                let message = format!(
                    "`{}` with public keys: whoever knows them could sign",
                    at.value.0.name()
                );
                self.fault(Code::C109, at.at, message, "take it out, or set `hmac_secret`");
            }
            return None;
        }
        let at = keys.hmac_secret.get()?;
        let published = [
            keys.jwks_uri.get().map(|at| at.key_at),
            keys.jwks_file.get().map(|at| at.key_at),
            keys.endpoints.get().and_then(|endpoints| endpoints.jwks.get()).map(|at| at.key_at),
        ];
        for place in published.into_iter().flatten() {
            let message = "an issuer has either a shared secret or published keys";
            self.fault(Code::C109, place, message, "take it out, or `hmac_secret`");
        }
        let only_hs =
            algorithms.is_some_and(|list| list.items.iter().all(|at| symmetric(&at.value.0)));
        if !only_hs && !keys.algorithms.is_bad() {
            let message = "with `hmac_secret`, only HS256, HS384 and HS512 can sign";
            self.fault(Code::C106, at.key_at, message, "write algorithms: [HS256]");
        }
        let secret = self.secret(at)?;
        if secret.expose().len() < 32 {
            self.fault(
                Code::C103,
                at.at,
                "this secret can be guessed: it has less than 32 bytes",
                "write 32 random bytes or more (RFC 7518 §3.2)",
            );
        }
        Some(Secret::new(secret.expose().clone().into_bytes()))
    }

    fn endpoints(&mut self, keys: &At<file::Issuer>) -> Endpoints {
        if let (Some(uri), Some(_)) = (keys.jwks_uri.get(), keys.jwks_file.get()) {
            let message = "the signing keys are in two places";
            self.fault(Code::C106, uri.key_at, message, "keep one of jwks_uri and jwks_file");
        }
        let absent = file::Endpoints::default();
        let own = keys.endpoints.get().map_or(&absent, |at| &at.value);
        if let (Some(uri), false) = (keys.jwks_uri.get(), own.jwks.is_absent()) {
            self.fault(
                Code::C106,
                uri.key_at,
                "the signing keys are in two places",
                "keep one of jwks_uri and endpoints.jwks",
            );
        }
        let mut url = |set: &Value<Url>| {
            let at = set.get()?;
            self.private(&at.value.0, at);
            Some(at.value.0.clone())
        };
        Endpoints {
            authorization: url(&own.authorization),
            token: url(&own.token),
            introspection: url(&own.introspection),
            revocation: url(&own.revocation),
            end_session: url(&own.end_session),
            pushed_authorization: None,
            jwks: url(&own.jwks).or_else(|| url(&keys.jwks_uri)),
        }
    }

    fn jwks_file(&mut self, keys: &At<file::Issuer>) -> Option<Arc<str>> {
        let path = keys.jwks_file.get()?;
        let text = String::from_utf8(self.file(path)?).unwrap_or_default();
        let set = serde_json::from_str::<serde_json::Value>(&text).ok();
        if set.is_none_or(|set| !set["keys"].is_array()) {
            let message = format!("{} is not a JWK set", path.shown());
            self.fault(
                Code::C108,
                path.at,
                message,
                "write {\"keys\": [ … ]} into it (RFC 7517 §5)",
            );
            return None;
        }
        Some(text.into())
    }

    fn jwks_refresh(&mut self, set: &Value<Duration>) -> Duration {
        let default = Duration::from_secs(600);
        let Some(at) = set.get() else { return default };
        if (Duration::from_secs(60)..=Duration::from_secs(86_400)).contains(&at.value.0) {
            return at.value.0;
        }
        self.fault(Code::C103, at.at, "this is out of range", "write 1m to 24h");
        default
    }

    /// Who the gateway is to an authorization server.
    pub(super) fn client(&mut self, keys: &At<file::Client>) -> Option<Client> {
        let help = "write the `client_id` that the server knows";
        let id = self.required(&keys.id, keys.at, "id", help);
        let proof = keys.auth.get().map(|at| at.value.0).unwrap_or_default();
        if keys.auth.is_bad() {
            return None;
        }
        let auth = match proof {
            Proof::Basic | Proof::Post => {
                let help = "write secret: { file: path }, or auth: none for a public client";
                let secret = self
                    .required(&keys.secret, keys.at, "secret", help)
                    .and_then(|at| self.secret(at));
                secret.map(if proof == Proof::Basic { ClientAuth::Basic } else { ClientAuth::Post })
            }
            Proof::None => Some(ClientAuth::None),
            Proof::PrivateKeyJwt => self.signing_key(keys),
            Proof::TlsClientAuth => self.client_certificate(keys),
        };
        let useless = [
            (&keys.key, matches!(proof, Proof::PrivateKeyJwt | Proof::TlsClientAuth), "key"),
            (&keys.cert, proof == Proof::TlsClientAuth, "cert"),
        ];
        for (set, used, name) in useless {
            if let (Some(at), false) = (set.get(), used) {
                self.fault(
                    Code::C106,
                    at.key_at,
                    format!("`{name}` means nothing with this `auth`"),
                    "take it out",
                );
            }
        }
        if let (Some(at), false) = (keys.secret.get(), matches!(proof, Proof::Basic | Proof::Post))
        {
            self.fault(
                Code::C106,
                at.key_at,
                "`secret` means nothing with this `auth`",
                "take it out",
            );
        }
        Some(Client { id: id?.value.as_str().into(), auth: auth? })
    }

    fn signing_key(&mut self, keys: &At<file::Client>) -> Option<ClientAuth> {
        let Some(path) = keys.key.get() else {
            if keys.key.is_absent() {
                self.fault(
                    Code::C106,
                    keys.at,
                    "`private_key_jwt` needs `key`",
                    "write key: path of a PEM private key",
                );
            }
            return None;
        };
        let pem = self.file(path)?;
        match SigningKey::from_pem(&pem) {
            Ok(key) => Some(ClientAuth::PrivateKeyJwt(Arc::new(key))),
            Err(error) => {
                self.fault(
                    Code::C108,
                    path.at,
                    format!("{}: {error}", path.shown()),
                    "write a PEM private key into it",
                );
                None
            }
        }
    }

    fn client_certificate(&mut self, keys: &At<file::Client>) -> Option<ClientAuth> {
        let (Some(cert), Some(key)) = (keys.cert.get(), keys.key.get()) else {
            if keys.cert.is_absent() || keys.key.is_absent() {
                let message = "`tls_client_auth` needs `cert` and `key`";
                self.fault(
                    Code::C106,
                    keys.at,
                    message,
                    "write the paths of a PEM chain and its PEM key",
                );
            }
            return None;
        };
        let (_, certificate, key) = self.identity(cert, key)?;
        Some(ClientAuth::TlsClientAuth { certificate: certificate.into(), key: Secret::new(key) })
    }

    fn introspection(&mut self, keys: &At<file::Issuer>) -> Introspection {
        let default = Introspection::default();
        let Some(own) = keys.introspection.get() else { return default };
        let cache = self.time_or_zero(&own.cache, default.cache, A_YEAR);
        if let Some(at) = own.cache.get().filter(|_| cache > Duration::from_secs(300)) {
            let message = "a revoked token stays good that long";
            self.fault(Code::C110, at.at, message, "write 5m or less");
        }
        if let Some(at) = own.accept_without_audience.get().filter(|at| at.value) {
            let message = "tokens meant for other services will be accepted";
            self.fault(Code::C110, at.key_at, message, "have the issuer say `aud` in its answers");
        }
        if let Some(at) = own.authorization.get().filter(|_| keys.client.is_absent()) {
            let message = "there is no `client`, as whom the gateway could prove itself";
            self.fault(Code::C106, at.key_at, message, "write client: { id: …, secret: … }");
        }
        Introspection {
            authorization: own.authorization.get().map_or(default.authorization, |at| at.value.0),
            cache,
            negative_cache: self.time(&own.negative_cache, default.negative_cache, A_YEAR),
            max_entries: self.number(&own.max_entries, 1..=100_000_000, default.max_entries),
            accept_without_audience: own.accept_without_audience.or(false),
        }
    }

    fn password_grant(&mut self, set: &Set<file::PasswordGrant>) -> PasswordGrant {
        let default = PasswordGrant::default();
        let Some(keys) = set.get() else { return default };
        PasswordGrant {
            scopes: scopes(&keys.scopes),
            resource: keys.resource.get().map(|at| at.value.0.clone()),
            cache: self.time(&keys.cache, default.cache, A_YEAR),
            failures: self.failures(&keys.failures).unwrap_or(default.failures),
        }
    }

    /// So many failures in so long a time.
    pub(super) fn failures(&mut self, set: &Value<Rate>) -> Option<(u32, Duration)> {
        let at = set.get()?;
        let rate = at.value.0;
        let Ok(count) = u32::try_from(rate.count()) else {
            self.fault(
                Code::C103,
                at.at,
                "this many failures are no limit",
                "write a rate such as 10/min",
            );
            return None;
        };
        Some((count, Duration::from_secs(rate.unit().secs())))
    }

    fn on_unavailable(&mut self, keys: &At<file::Issuer>) -> OnUnavailable {
        let stale_for =
            self.time_or_zero(&keys.stale_for, Duration::ZERO, Duration::from_secs(600));
        match keys.on_unavailable.get() {
            Some(at) if at.value.0 == Away::Stale => {
                if stale_for.is_zero() && !keys.stale_for.is_bad() {
                    let message = "`stale` without `stale_for` keeps nothing";
                    self.fault(
                        Code::C106,
                        at.at,
                        message,
                        "write stale_for: 5m, or on_unavailable: deny",
                    );
                }
                OnUnavailable::Stale(stale_for)
            }
            _ => {
                if let Some(at) = keys.stale_for.get().filter(|_| !stale_for.is_zero()) {
                    let message = "`stale_for` means nothing without on_unavailable: stale";
                    self.fault(Code::C106, at.key_at, message, "take it out");
                }
                OnUnavailable::Deny
            }
        }
    }

    fn rules(&mut self, keys: &At<file::Issuer>) -> Rules {
        let mut rules = Rules::new(self.audience(keys));
        if let Some(list) = keys.algorithms.get() {
            rules.algorithms = list.items.iter().map(|at| at.value.0).collect();
            if list.items.is_empty() && !list.incomplete {
                self.fault(
                    Code::C103,
                    list.at,
                    "no token could be accepted",
                    "write at least one algorithm",
                );
            }
        }
        if let Some(list) = keys.token_types.get() {
            rules.token_types = self.token_types(list);
        }
        rules.leeway = self.time_or_zero(&keys.leeway, rules.leeway, Duration::from_secs(300));
        if let Some(at) = keys.leeway.get().filter(|_| rules.leeway > Duration::from_secs(60)) {
            let message = "tokens will be accepted more than a minute after their end";
            self.fault(Code::C110, at.at, message, "keep the machines' clocks right instead");
        }
        if let Some(list) = keys.required_claims.get() {
            rules.required_claims = self.required_claims(list);
        }
        rules.max_token_age = Some(self.time_or_zero(&keys.max_token_age, Duration::ZERO, A_YEAR))
            .filter(|age| !age.is_zero());
        if let Some(at) = keys.scope_claim.get() {
            rules.scope_claim = at.value.as_str().into();
        }
        if let Some(at) = keys.client_claim.get() {
            rules.client_claim = vec![at.value.as_str().into()];
        }
        if let Some(cache) = keys.jwt_cache.get() {
            rules.jwt_cache_max_entries =
                self.number(&cache.max_entries, 0..=100_000_000, rules.jwt_cache_max_entries);
        }
        if let Some(at) =
            keys.revocation_check.get().filter(|at| at.value.0 == RevocationCheck::Introspection)
        {
            rules.revocation_check = true;
            if keys.client.is_absent() {
                let message = "there is no `client`, as whom the gateway could ask";
                self.fault(Code::C106, at.key_at, message, "write client: { id: …, secret: … }");
            }
        }
        rules
    }

    /// Without `audience`, nothing is said here: only routes that verify JWTs need it.
    fn audience(&mut self, keys: &At<file::Issuer>) -> Audience {
        let Some(audience) = keys.audience.get() else { return Audience::Any };
        if let Some(any) = audience.items.iter().find(|at| at.value == "any") {
            let message = "tokens that this issuer made for other services would be accepted";
            self.fault(
                Code::C109,
                any.at,
                message,
                "write what its tokens for this gateway say in `aud`",
            );
        }
        if audience.items.is_empty() && !audience.incomplete {
            self.fault(
                Code::C105,
                audience.at,
                "`audience` is empty",
                "write what tokens say in `aud`",
            );
        }
        Audience::OneOf(audience.items.iter().map(|at| Arc::from(at.value.as_str())).collect())
    }

    fn token_types(&mut self, list: &At<List<String>>) -> Vec<Box<str>> {
        if list.items.is_empty() && !list.incomplete {
            self.fault(Code::C103, list.at, "no token could be accepted", "write at+jwt, or JWT");
        }
        let mut types = Vec::new();
        for at in &list.items {
            let lower = at.value.to_ascii_lowercase();
            let bare = lower.strip_prefix("application/").unwrap_or(&lower);
            if ["dpop+jwt", "logout+jwt", "secevent+jwt", "token-introspection+jwt"].contains(&bare)
            {
                let message = format!("{} is no access token (RFC 8725 §3.11)", at.shown());
                self.fault(Code::C109, at.at, message, "take it out");
            }
            types.push(Box::from(bare));
        }
        types
    }

    fn required_claims(&mut self, list: &At<List<String>>) -> Vec<Box<str>> {
        let mut claims: Vec<Box<str>> =
            list.items.iter().map(|at| at.value.as_str().into()).collect();
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

    /// Holds every issuer against what routes ask of it.
    pub(super) fn needs(&mut self, file: &File, routes: &[Route]) {
        let Some(issuers) = file.issuers.get() else { return };
        for (name, keys) in issuers.iter() {
            let used = Used::by(&name.value, routes, file);
            if used.jwt && keys.audience.is_absent() {
                let message = format!(
                    "issuer `{}` has no `audience`: any token of this issuer would be accepted",
                    name.value
                );
                self.fault(
                    Code::C105,
                    name.at,
                    message,
                    "write what its tokens for this gateway say in `aud`",
                );
            }
            if used.introspection && keys.client.is_absent() {
                let message = format!(
                    "issuer `{}` has no `client`, as whom tokens could be introspected",
                    name.value
                );
                self.fault(Code::C105, name.at, message, "write client: { id: …, secret: … }");
            }
            self.endpoints_without_discovery(keys, &used);
        }
    }

    fn endpoints_without_discovery(&mut self, keys: &At<file::Issuer>, used: &Used) {
        let Some(off) = keys.discovery.get().filter(|at| at.value.0 == Discovery::Off) else {
            return;
        };
        let absent = file::Endpoints::default();
        let own = keys.endpoints.get().map_or(&absent, |at| &at.value);
        let keyless = keys.jwks_uri.is_absent()
            && keys.jwks_file.is_absent()
            && own.jwks.is_absent()
            && keys.hmac_secret.is_absent();
        let introspects = used.introspection
            || keys
                .revocation_check
                .get()
                .is_some_and(|at| at.value.0 == RevocationCheck::Introspection);
        let missing = [
            (used.jwt && keyless, "`jwks_uri` or `jwks_file`"),
            (introspects && own.introspection.is_absent(), "`endpoints.introspection`"),
            (used.grants && own.token.is_absent(), "`endpoints.token`"),
        ];
        for (missing, what) in missing {
            if missing {
                let message = format!("without discovery, somebody must say {what}");
                self.fault(Code::C106, off.at, message, "write it, or discovery: auto");
            }
        }
    }
}

/// What routes and sessions ask of an issuer.
struct Used {
    jwt: bool,
    introspection: bool,
    grants: bool,
}

impl Used {
    fn by(issuer: &str, routes: &[Route], file: &File) -> Self {
        let mut used = Self { jwt: false, introspection: false, grants: false };
        let among = |names: &[Arc<str>]| names.iter().any(|name| &**name == issuer);
        let ways = routes.iter().flat_map(|route| match &route.auth {
            Auth::None => &[][..],
            Auth::Ways { ways, .. } => ways,
        });
        for way in ways {
            match &way.credential {
                Credential::Jwt(names) => used.jwt |= among(names),
                Credential::Introspection(names) => used.introspection |= among(names),
                Credential::Bearer(names) => {
                    used.jwt |= among(names);
                    used.introspection |= among(names);
                }
                Credential::Basic(name) => used.grants |= &**name == issuer,
                Credential::Session(_) => {}
            }
        }
        let mut sessions = file.sessions.get().into_iter().flat_map(|map| map.value.iter());
        used.grants |=
            sessions.any(|(_, session)| session.issuer.get().is_some_and(|at| at.value == issuer));
        used
    }
}
