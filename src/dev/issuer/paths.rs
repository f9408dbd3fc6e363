//! The paths of the endpoints.
//!
//! Every endpoint that reads the browser's cookie is below `/authorize`: cookies
//! know no ports, so on `localhost` a cookie for `/` would reach the gateway too.

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
