//! Warns of sessions at well-known authorization servers whose users cannot log in, and of requirements on a login, or
//! on its access token, that are never met or not enforced.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Check;
use super::known_issuers::Address;
use crate::base::scopes::Scopes;
use crate::config::Issuer;
use crate::config::auth::AuthMethod;
use crate::config::de::field::Spanned;
use crate::config::fault::{Code, Position};
use crate::config::file::issuers as issuer_file;
use crate::config::file::{File, sessions as file};
use crate::config::route::Route;
use crate::issuer::Discovery;
use crate::session::{Flow, Identity, Settings};
use crate::token::Audience;

impl Check<'_> {
    /// Warns of what the issuer of each session does not do, and of requirements of routes that it never meets.
    pub(super) fn session_issuers(
        &mut self,
        file: &File,
        issuers: &BTreeMap<Arc<str>, Issuer>,
        sessions: &BTreeMap<Arc<str>, Settings>,
        routes: &[Route],
    ) {
        for (name, keys) in file.sessions.get().into_iter().flat_map(|map| map.value.iter()) {
            let Some(session) = sessions.get(name.value.as_str()) else { continue };
            let Some(issuer) = issuers.get(&session.issuer) else { continue };
            let methods = || {
                let methods = routes.iter().flat_map(|route| {
                    route.auth.methods().iter().map(move |auth_method| (&*route.id, auth_method))
                });
                methods.filter(|(_, auth_method)| {
                    auth_method.credential.session().is_some_and(|used| **used == *name.value)
                })
            };
            self.wishes(keys, session.scopes.contains("openid"), || {
                methods().map(|(_, auth_method)| auth_method)
            });
            let map = file.issuers.get();
            let written = map.and_then(|map| {
                map.value.iter().find(|(key, _)| key.value == *session.issuer).map(|(_, keys)| keys)
            });
            let address = Address::of(&issuer.settings.issuer);
            if let (Flow::Code, Some(written)) = (session.flow, written) {
                self.tenants_of_session(name, written, issuer, address.as_ref());
                self.foreign_audience(keys, session, issuer);
                if let Some(address) = &address {
                    self.logins_at(keys, written, address);
                    self.logouts_at(keys, written, address);
                }
            }
            let is_opaque = match session.identity_source() {
                Identity::IdToken => true,
                Identity::Auto => address.as_ref().is_some_and(Address::has_opaque_access_tokens),
                Identity::AccessToken => false,
            };
            if is_opaque && session.flow == Flow::Code {
                if !address.as_ref().is_some_and(Address::names_granted_scopes) {
                    self.unproven_scopes(name, session, methods());
                }
                self.claims_of_access_tokens(name, methods());
                for (route, _) in
                    methods().filter(|(_, auth_method)| !auth_method.audience.is_empty())
                {
                    let message = format!(
                        "route `{route}` takes no session of `{}`, whose access tokens are opaque: they have no audience",
                        name.value
                    );
                    let help =
                        "remove the rule, or have the issuer issue access tokens for the gateway";
                    self.fault(Code::C110, name.at, message, help);
                }
            }
        }
    }

    /// Warns of a route that demands scopes of sessions whose access tokens are opaque: the gateway knows them from the token
    /// response, or from a request that no user can have edited.
    fn unproven_scopes<'w>(
        &mut self,
        name: &Spanned<String>,
        session: &Settings,
        methods: impl Iterator<Item = (&'w str, &'w AuthMethod)>,
    ) {
        let proven = Scopes::parse(if session.scopes.contains("openid") { "openid" } else { "" });
        let lacks = |auth_method: &AuthMethod| {
            let any = &auth_method.any_scope;
            !auth_method.scopes.is_subset(&proven) || (!any.is_empty() && !any.intersects(&proven))
        };
        for (route, _) in methods.filter(|(_, auth_method)| lacks(auth_method)).take(1) {
            let message = format!(
                "route `{route}` demands scopes of sessions of `{}`, whose access tokens are opaque: a token response without `scope` proves none, unless the issuer takes pushed requests",
                name.value
            );
            let help = "have the issuer return `scope` with every token response, take pushed requests (RFC 9126), or issue access tokens for the gateway";
            self.fault(Code::C110, name.at, message, help);
        }
    }

    /// Warns of rules for claims that access tokens have and ID tokens have not, where access tokens are opaque.
    fn claims_of_access_tokens<'w>(
        &mut self,
        name: &Spanned<String>,
        methods: impl Iterator<Item = (&'w str, &'w AuthMethod)>,
    ) {
        for (route, auth_method) in methods {
            let first = |path: &str| path.split('.').next().unwrap_or_default().to_owned();
            let mut claims = auth_method.claims.iter().map(|rule| first(&rule.path));
            let Some(claim) = claims.find(|claim| ACCESS_TOKEN_CLAIMS.contains(&&**claim)) else {
                continue;
            };
            let message = format!(
                "route `{route}` compares `{claim}` of sessions of `{}`, whose access tokens are opaque: their claims are those of ID tokens, which rarely have it",
                name.value
            );
            let help = format!(
                "have the issuer put `{claim}` into ID tokens, or issue access tokens for the gateway"
            );
            self.fault(Code::C110, name.at, message, help);
        }
    }

    /// Warns of parameters that ask for a certain login where no route verifies it: a user can take them out of the
    /// address. Without an ID token `max_age` is refused, since nothing would verify it.
    fn wishes<'w, W: Iterator<Item = &'w AuthMethod>>(
        &mut self,
        keys: &file::Session,
        has_id_token: bool,
        methods: impl Fn() -> W,
    ) {
        for (name, value) in
            keys.authorize_parameters.get().into_iter().flat_map(|map| map.value.iter())
        {
            let claim = match name.value.as_str() {
                "max_age" => {
                    if value.value.parse::<u64>().is_err() {
                        let message = format!("{} is not a number of seconds", value.shown());
                        self.fault(Code::C103, value.at, message, "write max_age: \"300\"");
                    }
                    if !has_id_token {
                        let message = "the time of the login is in the ID token, and without the scope `openid` there is none";
                        self.fault(Code::C106, name.at, message, "write the scope openid as well");
                    }
                    continue;
                }
                "acr_values" => None,
                "hd" => Some("hd"),
                "organization" => Some("org_id"),
                _ => continue,
            };
            let demands = |auth_method: &AuthMethod| match claim {
                None => {
                    let level = auth_method.level.as_ref();
                    level.is_some_and(|level| !level.acr.is_empty())
                        || demands_claim(auth_method, "acr")
                }
                Some(claim) => demands_claim(auth_method, claim),
            };
            if methods().any(demands) {
                continue;
            }
            let message = format!(
                "`{}` is not enforced: users can remove it from the authorization request, and no route verifies it",
                name.value
            );
            let help = match claim {
                None => "write auth.acr in the routes that need it".to_owned(),
                Some(claim) => format!("write claims: {{ {claim}: … }} in the routes that need it"),
            };
            self.fault(Code::C110, name.at, message, help);
        }
    }

    /// Warns of a session for several tenants whose users are all led to the first.
    fn tenants_of_session(
        &mut self,
        name: &Spanned<String>,
        written: &issuer_file::Issuer,
        issuer: &Issuer,
        address: Option<&Address<'_>>,
    ) {
        let has_own = written.endpoints.get().is_some_and(|own| !own.authorization.is_absent());
        if issuer.settings.tenants.len() < 2
            || issuer.settings.discovery != Discovery::Auto
            || has_own
        {
            return;
        }
        let message = format!(
            "users of `{}` log in at the first of the issuer's tenants, where users of the other tenants have no account",
            name.value
        );
        let help = match address.filter(|address| address.is_entra()) {
            Some(address) => format!(
                "write discovery: https://{}/organizations/v2.0/.well-known/openid-configuration at the issuer",
                address.host
            ),
            None => "write `discovery` at the issuer: the metadata of all tenants".to_owned(),
        };
        self.fault(Code::C110, name.at, message, help);
    }

    /// Warns of a session that requests access tokens for an audience which the gateway does not accept: it would refuse
    /// each of its logins.
    fn foreign_audience(&mut self, keys: &file::Session, session: &Settings, issuer: &Issuer) {
        let accepted = &issuer.rules.audience;
        if *accepted == Audience::Any || session.identity_source() == Identity::IdToken {
            return;
        }
        for (audience, at) in requested_audiences(keys, session) {
            if audience.is_empty() || accepted.lists(audience) {
                continue;
            }
            let message = format!(
                "the session requests access tokens for `{audience}`, which is no `audience` of the issuer: no login succeeds"
            );
            let help = "write it under `audience` of the issuer, or identity: id_token if its tokens are for other services";
            self.fault(Code::C110, at, message, help);
        }
    }

    /// Warns of a logout that a known server refuses.
    fn logouts_at(
        &mut self,
        keys: &file::Session,
        written: &issuer_file::Issuer,
        address: &Address<'_>,
    ) {
        let is_written = written.endpoints.get().is_some_and(|own| !own.end_session.is_absent());
        if !address.is_cognito() || is_written || !keys.end_session.or(true) {
            return;
        }
        if let Some(at) = keys.issuer.get() {
            let message = "Cognito ends a login at an address with `logout_uri` alone, which its metadata do not say: users see an error after a logout";
            let help = "write endpoints: { end_session: \"https://<domain>/logout?logout_uri=<where users come back to>\" } at the issuer, or end_session: false";
            self.fault(Code::C110, at.at, message, help);
        }
    }

    /// Warns of what a known server does not do at a login.
    fn logins_at(
        &mut self,
        keys: &file::Session,
        written: &issuer_file::Issuer,
        address: &Address<'_>,
    ) {
        let scopes = keys.scopes.get().into_iter().flat_map(|list| &list.value.items);
        for at in scopes {
            let scope = at.value.0.0.as_str();
            let (message, help) = match (address.host, scope) {
                (_, "offline_access") if address.is_cognito() => (
                    "Cognito knows no scope `offline_access`, and refuses the login",
                    "remove it: Cognito issues refresh tokens without",
                ),
                ("accounts.google.com", "offline_access") => (
                    "Google knows no scope `offline_access`, and refuses the login",
                    "remove it, and write authorize_parameters: { access_type: offline, prompt: consent }",
                ),
                ("appleid.apple.com", "email" | "name") => (
                    "with this scope Apple posts the response of a login, which the gateway does not take",
                    "remove it",
                ),
                _ => continue,
            };
            self.fault(Code::C110, at.at, message, help);
        }
        if let Some(product) = address.product_without_logins()
            && written.endpoints.get().is_none_or(|own| own.authorization.is_absent())
            && let Some(at) = keys.issuer.get()
        {
            let message =
                format!("{product} has no authorization endpoint: users cannot log in there");
            let help = "name an issuer where people log in";
            self.fault(Code::C110, at.at, message, help);
        }
        if address.host == "github.com"
            && written.endpoints.get().is_none_or(|own| own.authorization.is_absent())
            && let Some(at) = written.issuer.get()
        {
            let message = "GitHub publishes no metadata: users cannot log in there";
            let help = "write discovery: off, and endpoints: { authorization: https://github.com/login/oauth/authorize, token: https://github.com/login/oauth/access_token, userinfo: https://api.github.com/user }";
            self.fault(Code::C110, at.at, message, help);
        }
    }
}

/// Returns the audience that a session requests by parameters of its own, with the position of the parameter.
fn requested_audiences<'f>(
    keys: &'f file::Session,
    session: &'f Settings,
) -> impl Iterator<Item = (&'f str, Position)> {
    let parameters = keys.authorize_parameters.get().into_iter().flat_map(|map| map.value.iter());
    let own = parameters
        .filter(|(name, _)| matches!(name.value.as_str(), "audience" | "resource"))
        .map(|(_, value)| (value.value.as_str(), value.at));
    let resource = session.resource.as_ref().zip(keys.resource.get());
    own.chain(resource.map(|(resource, at)| (resource.as_str(), at.at)))
}

/// Claims with a user's permissions that servers put into access tokens alone: Auth0's, Entra ID's and Okta's, Keycloak's,
/// and those of RFC 9396; and the audience, which is the client in ID tokens.
const ACCESS_TOKEN_CLAIMS: [&str; 6] =
    ["permissions", "scp", "realm_access", "resource_access", "authorization_details", "aud"];

fn demands_claim(auth_method: &AuthMethod, claim: &str) -> bool {
    auth_method.claims.iter().any(|rule| *rule.path == *claim)
}
