//! Warns of settings of introspection that nothing uses (C110).

use core::time::Duration;

use super::Check;
use super::unsatisfiable_rules::issuer;
use crate::config::auth::{AuthMethod, ForwardToken};
use crate::config::de::field::Spanned;
use crate::config::fault::Code;
use crate::config::file::File;
use crate::config::file::issuers::{Issuer, RevocationCheck};
use crate::config::file::value::Value;
use crate::config::route::Route;
use crate::issuer::Introspection;

impl Check<'_> {
    /// Warns of a `max_staleness` that bounds none of the verifications of `methods`.
    pub(super) fn unused_staleness(
        &mut self,
        file: &File,
        set: &Value<Duration>,
        methods: &[AuthMethod],
    ) {
        let Some(at) = set.get().filter(|_| !methods.is_empty()) else { return };
        let introspected = |auth_method: &&AuthMethod| !is_never_introspected(file, auth_method);
        let mut introspected = methods.iter().filter(introspected).peekable();
        if introspected.peek().is_none() {
            let message =
                "`max_staleness` has no effect here: no issuer is asked about signed tokens";
            let help = "write revocation_check: introspection into the issuer, or remove it";
            self.fault(Code::C110, at.key_at, message, help);
            return;
        }
        let oldest = introspected.map(|auth_method| oldest_verification(file, auth_method));
        if oldest.max().is_some_and(|oldest| at.value.0 > oldest) {
            let message =
                "`max_staleness` has no effect here: `introspection.cache` is shorter already";
            self.fault(Code::C110, at.key_at, message, "remove it, or write a shorter time");
        }
    }

    /// Warns of keys of an issuer about introspection that its routes do not use. `obtains` says whether the gateway itself
    /// obtains its tokens.
    pub(super) fn unused_introspection(
        &mut self,
        name: &str,
        keys: &Spanned<Issuer>,
        routes: &[Route],
        obtains: bool,
    ) {
        let methods = || routes.iter().flat_map(|route| route.auth.methods());
        let presents = |auth_method: &AuthMethod| {
            auth_method.credential.token_issuers().iter().any(|issuer| **issuer == *name)
        };
        let verifies = |auth_method: &AuthMethod| {
            auth_method.credential.jwt_issuers().iter().any(|issuer| **issuer == *name)
        };
        let wants_signed = |auth_method: &AuthMethod| {
            auth_method.forward_token == ForwardToken::Signed && presents(auth_method)
        };
        if let Some(at) = keys.revocation_check.get()
            && checks_revocation(keys)
            && !obtains
            && methods().any(presents)
            && !methods().any(verifies)
        {
            let why = "here: every token of this issuer is introspected anyway";
            self.means_nothing(at.key_at, "revocation_check", why);
        }
        if let Some(at) = keys.introspection.get().and_then(|own| own.signed_answer.get())
            && methods().any(presents)
            && !methods().any(wants_signed)
        {
            let why = "without a route that has forward_token: jwt";
            self.means_nothing(at.key_at, "signed_answer", why);
        }
    }
}

/// Whether the issuer is also asked about signed tokens.
fn checks_revocation(keys: &Issuer) -> bool {
    keys.revocation_check.get().is_some_and(|at| at.value.0 == RevocationCheck::Introspection)
}

/// Whether no issuer is asked about the tokens of a method.
fn is_never_introspected(file: &File, auth_method: &AuthMethod) -> bool {
    let credential = &auth_method.credential;
    credential.takes_tokens()
        && credential.introspecting_issuers().is_empty()
        && !credential.names().iter().any(|name| issuer(file, name).is_some_and(checks_revocation))
}

/// Returns the age up to which the verifications of a method are used without `max_staleness`: unlimited if other caches
/// than that of introspection have a part in it.
fn oldest_verification(file: &File, auth_method: &AuthMethod) -> Duration {
    let issuers = auth_method.credential.token_issuers().iter();
    let oldest = issuers.filter_map(|name| issuer(file, name)).map(|keys| {
        let cache = keys.introspection.get().and_then(|own| own.cache.get());
        let cache = cache.map_or(Introspection::default().cache, |at| at.value.0);
        let stale_for = keys.stale_for.get().map_or(Duration::ZERO, |at| at.value.0);
        cache.saturating_add(stale_for)
    });
    oldest.max().unwrap_or(Duration::MAX)
}
