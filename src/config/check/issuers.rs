//! Checks `issuers`.

use core::num::NonZeroUsize;
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;

use url::Url;

use super::auth::scopes;
use super::server::is_private;
use super::{Check, MAX_DURATION};
use crate::config::Issuer;
use crate::config::de::field::{Field, Spanned};
use crate::config::fault::Code;
use crate::config::file::File;
use crate::config::file::issuers::{self as file, OnUnavailable as Away};
use crate::config::file::value::Value;
use crate::issuer::{
    Algorithm, Discovery, Endpoints, Introspection, Jwks, OnUnavailable, PasswordGrant, Settings,
};
use crate::limit::Rate;
use crate::token::{Audience, ValidationRules};

impl Check<'_> {
    pub(super) fn issuers(&mut self, file: &File) -> BTreeMap<Arc<str>, Issuer> {
        self.names(&file.issuers);
        let Some(issuers) = file.issuers.get() else { return BTreeMap::new() };
        let issuers = issuers.iter().filter_map(|(name, keys)| {
            Some((Arc::from(name.value.as_str()), self.issuer(name, keys)?))
        });
        let mut issuers: BTreeMap<Arc<str>, Issuer> = issuers.collect();
        set_namespaces(&mut issuers);
        issuers
    }

    fn issuer(&mut self, name: &Spanned<String>, keys: &Spanned<file::Issuer>) -> Option<Issuer> {
        let help = "write the `iss` of its tokens, such as https://auth.example.com";
        let url = self.required(&keys.issuer, name.at, "issuer", help);
        let seconds = Duration::from_secs;
        let hmac_secret = self.hmac_secret(keys);
        let mut settings = Settings::new(&name.value, url.map_or("", |url| &url.value));
        settings.tenants = url.map(|at| self.tenants(at, keys)).unwrap_or_default();
        settings.discovery = keys.discovery.get().map_or(Discovery::Auto, |at| at.value.0.clone());
        if let Some(at) = url {
            self.issuer_name(at, keys, &mut settings);
        }
        if let (Discovery::At(url), Some(at)) = (&settings.discovery, keys.discovery.get()) {
            self.private(url, at);
        }
        settings.endpoints = self.endpoints(keys);
        settings.jwks = self.jwks_file(keys);
        settings.hmac_secret = hmac_secret;
        settings.jwks_refresh = self.jwks_refresh(&keys.jwks_refresh);
        settings.jwks_min_interval = self.time(&keys.jwks_min_interval, seconds(30), MAX_DURATION);
        settings.client = keys.client.get().and_then(|client| self.client(client));
        settings.assertion_audience =
            keys.assertion_audience.get().map_or(settings.assertion_audience, |at| at.value.0);
        settings.introspection = self.introspection(keys);
        settings.password_grant = self.password_grant(&keys.password_grant);
        settings.timeout = self.time(&keys.timeout, seconds(3), seconds(300));
        let max = self.number(&keys.max_concurrent, 1..=100_000, 64) as usize;
        settings.max_concurrent = NonZeroUsize::new(max).unwrap_or(NonZeroUsize::MIN);
        settings.proxy = self.proxy(&keys.proxy);
        settings.ca = self.authorities(&keys.ca_file);
        settings.on_unavailable = self.on_unavailable(keys);
        let rules = self.rules(keys);
        let hmac_secret_encoding =
            keys.hmac_secret_encoding.get().map(|at| at.value.0).unwrap_or_default();
        url.map(|_| Issuer { settings, rules, hmac_secret_encoding })
    }

    /// Refuses a URL over which others on the network could read or change secrets.
    fn private<T>(&mut self, url: &Url, at: &Spanned<T>) {
        if !is_private(url) {
            let message = "keys and secrets would travel over http, where others on the network can read and change them";
            self.fault(Code::C109, at.at, message, "write https://; http is for loopback alone");
        }
    }

    fn endpoints(&mut self, keys: &Spanned<file::Issuer>) -> Endpoints {
        if let (Some(uri), Some(_)) = (keys.jwks_uri.get(), keys.jwks_file.get()) {
            let message = "the signing keys are given twice";
            self.fault(Code::C106, uri.key_at, message, "keep one of jwks_uri and jwks_file");
        }
        let absent = file::Endpoints::default();
        let own = keys.endpoints.get().map_or(&absent, |at| &at.value);
        if let (Some(uri), false) = (keys.jwks_uri.get(), own.jwks.is_absent()) {
            self.fault(
                Code::C106,
                uri.key_at,
                "the signing keys are given twice",
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
            userinfo: url(&own.userinfo),
            jwks: url(&own.jwks).or_else(|| url(&keys.jwks_uri)),
        }
    }

    fn jwks_file(&mut self, keys: &Spanned<file::Issuer>) -> Option<Arc<str>> {
        let path = keys.jwks_file.get()?;
        let text = String::from_utf8(self.file(path)?).unwrap_or_default();
        let (message, help) = match Jwks::parse(text.as_bytes(), |_, _| {}) {
            Ok(jwks) if !jwks.is_empty() => {
                self.algorithms_of_file(keys, path, &jwks);
                return Some(text.into());
            }
            Ok(_) => (
                format!("{} holds no key that verifies a signature", path.shown()),
                "write the issuer's public keys into it, as its `jwks_uri` publishes them",
            ),
            Err(_) => (
                format!("{} is not a JWK set", path.shown()),
                "write {\"keys\": [ … ]} into it (RFC 7517 §5)",
            ),
        };
        self.fault(Code::C108, path.at, message, help);
        None
    }

    /// Warns of algorithms that no key of the file verifies.
    fn algorithms_of_file(
        &mut self,
        keys: &Spanned<file::Issuer>,
        path: &Spanned<String>,
        jwks: &Jwks,
    ) {
        let (at, accepted) = match keys.algorithms.get() {
            Some(list) => (list.at, list.items.iter().map(|at| at.value.0).collect()),
            None => (path.at, ValidationRules::new(Audience::Any).algorithms),
        };
        if keys.algorithms.is_bad() || jwks.algorithms().any(|usable| accepted.contains(&usable)) {
            return;
        }
        let names = |list: Vec<Algorithm>| {
            list.iter().map(|algorithm| algorithm.name()).collect::<Vec<_>>().join(", ")
        };
        let message = format!("no key of {} verifies {}", path.shown(), names(accepted));
        let help = format!("write algorithms: [{}]", names(jwks.algorithms().collect()));
        self.fault(Code::C110, at, message, help);
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

    fn proxy(&mut self, set: &Value<Url>) -> Option<Url> {
        let at = set.get()?;
        let url = &at.value.0;
        if matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && matches!(url.path(), "" | "/")
        {
            return Some(url.clone());
        }
        let help = "write its address, such as http://proxy.internal:3128";
        self.fault(Code::C103, at.at, "this is not the address of an HTTP proxy", help);
        None
    }

    fn introspection(&mut self, keys: &Spanned<file::Issuer>) -> Introspection {
        let default = Introspection::default();
        let Some(own) = keys.introspection.get() else { return default };
        let cache = self.time_or_zero(&own.cache, default.cache, MAX_DURATION);
        if let Some(at) = own.cache.get().filter(|_| cache > Duration::from_secs(300)) {
            let message = "a revoked token stays valid for that long";
            self.fault(Code::C110, at.at, message, "write 5m or less");
        }
        if let Some(at) = own.accept_without_audience.get().filter(|at| at.value) {
            let message = "tokens for other resource servers will be accepted";
            self.fault(
                Code::C110,
                at.key_at,
                message,
                "have the issuer send `aud` in introspection responses",
            );
        }
        if let Some(at) = own.authorization.get().filter(|_| keys.client.is_absent()) {
            let message = "there is no `client`, which authentication of the gateway needs";
            self.fault(Code::C106, at.key_at, message, "write client: { id: …, secret: … }");
        }
        Introspection {
            authorization: own.authorization.get().map_or(default.authorization, |at| at.value.0),
            cache,
            negative_cache: self.time(&own.negative_cache, default.negative_cache, MAX_DURATION),
            max_entries: self.number(&own.max_entries, 1..=100_000_000, default.max_entries),
            accept_without_audience: own.accept_without_audience.or(false),
            signed_answer: own.signed_answer.get().map_or(default.signed_answer, |at| at.value.0),
        }
    }

    fn password_grant(&mut self, set: &Field<file::PasswordGrant>) -> PasswordGrant {
        let default = PasswordGrant::default();
        let Some(keys) = set.get() else { return default };
        PasswordGrant {
            scopes: scopes(&keys.scopes),
            resource: keys.resource.get().map(|at| at.value.0.clone()),
            cache: self.time(&keys.cache, default.cache, MAX_DURATION),
            failures: self.failures(&keys.failures).unwrap_or(default.failures),
        }
    }

    /// Returns a number of failures and its period.
    pub(super) fn failures(&mut self, set: &Value<Rate>) -> Option<(u32, Duration)> {
        let at = set.get()?;
        let rate = at.value.0;
        let Ok(count) = u32::try_from(rate.count()) else {
            self.fault(
                Code::C103,
                at.at,
                "this limit on failures is too high",
                "write a rate such as 10/min",
            );
            return None;
        };
        Some((count, Duration::from_secs(rate.unit().secs())))
    }

    fn on_unavailable(&mut self, keys: &Spanned<file::Issuer>) -> OnUnavailable {
        let stale_for =
            self.time_or_zero(&keys.stale_for, Duration::ZERO, Duration::from_secs(600));
        match keys.on_unavailable.get() {
            Some(at) if at.value.0 == Away::Stale => {
                if stale_for.is_zero() && !keys.stale_for.is_bad() {
                    let message = "`stale` has no effect without `stale_for`";
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
                    let message = "`stale_for` has no effect without on_unavailable: stale";
                    self.fault(Code::C106, at.key_at, message, "remove it");
                }
                OnUnavailable::Deny
            }
        }
    }
}

/// Lets `iss` distinguish users of issuers whose configured name does not: those with tenants, and those that share it.
fn set_namespaces(issuers: &mut BTreeMap<Arc<str>, Issuer>) {
    let shares_iss = |name: &Arc<str>, iss: &str| {
        issuers.iter().any(|(other, issuer)| other != name && issuer.settings.is_named(iss))
    };
    let is_ambiguous = |(name, Issuer { settings, .. }): (&Arc<str>, &Issuer)| {
        let ambiguous = !settings.tenants.is_empty() || shares_iss(name, &settings.issuer);
        ambiguous.then(|| Arc::clone(name))
    };
    let ambiguous: Vec<_> = issuers.iter().filter_map(is_ambiguous).collect();
    for name in ambiguous {
        if let Some(Issuer { settings, rules, .. }) = issuers.get_mut(&name) {
            rules.namespace = Some(Arc::clone(&settings.issuer));
        }
    }
}
