//! Checks each issuer for the settings that routes and sessions require of it.

use std::sync::Arc;

use super::Check;
use crate::config::auth::ForwardToken;
use crate::config::de::field::Spanned;
use crate::config::fault::Code;
use crate::config::file::File;
use crate::config::file::issuers::{self as file, RevocationCheck};
use crate::config::route::Route;
use crate::issuer::{Discovery, IntrospectionAuthorization};
use crate::session::{Flow, Identity};

impl Check<'_> {
    /// Checks every issuer against the routes that use it.
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
                    "write the `aud` of its tokens for this gateway",
                );
            }
            if used.introspection && keys.client.is_absent() {
                let message = format!(
                    "issuer `{}` has no `client`, which introspection of tokens needs",
                    name.value
                );
                self.fault(Code::C105, name.at, message, "write client: { id: …, secret: … }");
            }
            self.endpoints_without_discovery(keys, &used);
            self.peculiarities(keys, &used);
        }
    }

    fn endpoints_without_discovery(&mut self, keys: &Spanned<file::Issuer>, used: &Used) {
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
        let proves_with_a_token = keys
            .introspection
            .get()
            .and_then(|own| own.authorization.get())
            .is_some_and(|at| at.value.0 == IntrospectionAuthorization::Bearer);
        let missing = [
            ((used.jwt || used.signed_answers) && keyless, "`jwks_uri` or `jwks_file`"),
            (introspects && own.introspection.is_absent(), "`endpoints.introspection`"),
            (
                (used.grants || (introspects && proves_with_a_token)) && own.token.is_absent(),
                "`endpoints.token`",
            ),
            (used.authorization && own.authorization.is_absent(), "`endpoints.authorization`"),
            (used.userinfo && own.userinfo.is_absent(), "`endpoints.userinfo`"),
        ];
        for (missing, what) in missing {
            if missing {
                let message = format!("without discovery, {what} is required");
                let help = format!("write {what}, or `discovery: auto`");
                self.fault(Code::C106, off.at, message, help);
            }
        }
    }
}

/// The features of an issuer that routes and sessions use.
pub(super) struct Used {
    /// Signed tokens are verified.
    pub(super) jwt: bool,
    /// Opaque tokens are introspected.
    pub(super) introspection: bool,
    /// Routes that take its tokens require scopes.
    pub(super) scopes: bool,
    /// Routes that take its tokens name clients.
    pub(super) clients: bool,
    grants: bool,
    /// Users log in at its authorization endpoint.
    authorization: bool,
    userinfo: bool,
    signed_answers: bool,
}

impl Used {
    fn by(issuer: &str, routes: &[Route], file: &File) -> Self {
        let mut used = Self {
            jwt: false,
            introspection: false,
            scopes: false,
            clients: false,
            grants: false,
            authorization: false,
            userinfo: false,
            signed_answers: false,
        };
        let among = |names: &[Arc<str>]| names.iter().any(|name| &**name == issuer);
        let sessions = || file.sessions.get().into_iter().flat_map(|map| map.value.iter());
        // Routes whose rules compare claims of this issuer's access tokens.
        let is_own_session = |name: &str| {
            sessions().any(|(key, session)| {
                key.value == name
                    && session.issuer.get().is_some_and(|at| at.value == issuer)
                    && session.identity.get().is_none_or(|at| at.value.0 != Identity::IdToken)
            })
        };
        let methods = routes.iter().flat_map(|route| route.auth.methods());
        for auth_method in methods {
            let signed = auth_method.forward_token == ForwardToken::Signed;
            let requires_scopes =
                !auth_method.scopes.is_empty() || !auth_method.any_scope.is_empty();
            let credential = &auth_method.credential;
            used.jwt |= among(credential.jwt_issuers());
            if among(credential.jwt_issuers())
                || credential.password_issuer().is_some_and(|name| &**name == issuer)
                || credential.session().is_some_and(|name| is_own_session(name))
            {
                used.scopes |= requires_scopes;
                used.clients |= !auth_method.clients.is_empty();
            }
            if among(credential.introspecting_issuers()) {
                used.introspection = true;
                used.signed_answers |= signed && credential.jwt_issuers().is_empty();
            }
            used.grants |= credential.password_issuer().is_some_and(|name| &**name == issuer);
        }
        for (_, session) in sessions() {
            if session.issuer.get().is_some_and(|at| at.value == issuer) {
                used.grants = true;
                used.authorization |= session.flow.get().is_some_and(|at| at.value.0 == Flow::Code);
                used.userinfo |= session.userinfo.or(false);
            }
        }
        used
    }
}
