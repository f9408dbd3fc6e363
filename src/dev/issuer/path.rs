//! Where the endpoints are.
//!
//! Everything that reads the login cookie is below `/authorize`, because
//! cookies know no ports: on `localhost`, one for `/` would reach the gateway too.

use super::traffic::Endpoint;

pub(super) const HOME: &str = "/";
pub(super) const STYLE: &str = "/style.css";
pub(super) const ROTATE: &str = "/rotate";
pub(super) const OAUTH_METADATA: &str = "/.well-known/oauth-authorization-server";
pub(super) const OPENID_METADATA: &str = "/.well-known/openid-configuration";
pub(super) const JWKS: &str = "/jwks";
pub(super) const AUTHORIZE: &str = "/authorize";
pub(super) const LOGIN: &str = "/authorize/login";
pub(super) const CONSENT: &str = "/authorize/consent";
pub(super) const END_SESSION: &str = "/authorize/logout";
pub(super) const PUSH: &str = "/par";
pub(super) const TOKEN: &str = "/token";
pub(super) const INTROSPECT: &str = "/introspect";
pub(super) const REVOKE: &str = "/revoke";
pub(super) const REGISTER: &str = "/register";
pub(super) const USERINFO: &str = "/userinfo";

/// What a path is counted as.
pub(super) fn endpoint(path: &str) -> Option<Endpoint> {
    Some(match path {
        OAUTH_METADATA | OPENID_METADATA => Endpoint::Discovery,
        JWKS => Endpoint::Jwks,
        AUTHORIZE | LOGIN | CONSENT => Endpoint::Authorization,
        END_SESSION => Endpoint::EndSession,
        PUSH => Endpoint::PushedAuthorization,
        TOKEN => Endpoint::Token,
        INTROSPECT => Endpoint::Introspection,
        REVOKE => Endpoint::Revocation,
        REGISTER => Endpoint::Registration,
        USERINFO => Endpoint::UserInfo,
        HOME | STYLE | ROTATE => Endpoint::Home,
        _ => return None,
    })
}

/// What `Allow` says about a path.
pub(super) fn methods(path: &str) -> &'static str {
    match path {
        PUSH | TOKEN | INTROSPECT | REVOKE | LOGIN | ROTATE => "POST",
        AUTHORIZE | CONSENT | END_SESSION | REGISTER | USERINFO => "GET, POST",
        _ => "GET",
    }
}
