//! `sessions.<name>`

use core::time::Duration;

use serde::Deserialize;
use url::Url;

use super::issuers::Client;
use super::value::{Secret, Value};
use crate::config::de::field::{Field, List, ListOrNone, Map};
use crate::config::de::units::{Keyword, Scalar, Scope};
use crate::issuer::ResourceIndicator;
use crate::limit::Rate;
use crate::session::{
    Csrf, Flow, ForwardedSessionToken, Identity, OnUnauthenticated, SameSite, Store, TokenStorage,
};

/// One kind of browser session.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Session {
    /// The issuer that authenticates users. Required.
    pub(crate) issuer: Field<String>,
    /// The gateway's client registration. Default: the issuer's.
    pub(crate) client: Field<Client>,
    /// `password`, or `code`. Required.
    pub(crate) flow: Value<Flow>,
    /// Public scheme and host that browsers use. Required.
    pub(crate) public_url: Value<Url>,
    /// Requested scopes; `offline_access` for refresh. Default openid.
    pub(crate) scopes: Field<ListOrNone<Scalar<Scope>>>,
    /// Resource indicator of the tokens (RFC 8707). Default none.
    pub(crate) resource: Value<ResourceIndicator>,
    /// `prompt` of the authorization request. Default consent with `offline_access`, else none.
    pub(crate) prompt: Field<String>,
    /// Further parameters of the authorization request, such as `access_type: offline`. Default none.
    pub(crate) authorize_parameters: Field<Map<String>>,
    /// The token that identifies the user: `auto`, `id_token` or `access_token`. Default auto.
    pub(crate) identity: Value<Identity>,
    /// Reads claims from the userinfo endpoint at the login. Default false.
    pub(crate) userinfo: Field<bool>,
    /// The paths that the gateway serves itself.
    pub(crate) paths: Field<Paths>,
    /// Storage of tokens: `sealed_cookies`, `plain_cookies` or `server`. Default `sealed_cookies`.
    pub(crate) tokens: Value<TokenStorage>,
    /// Session store with `tokens: server`, and required then: `memory` or `redis`.
    pub(crate) store: Value<Store>,
    /// Secrets of 32 bytes in base64, from `northgate keygen`: the first encrypts, all decrypt. Default: a random one.
    pub(crate) keys: Field<List<Secret>>,
    /// Cookie attributes.
    pub(crate) cookie: Field<Cookie>,
    /// Timeout of an unused session. Default 30m.
    pub(crate) idle_timeout: Value<Duration>,
    /// Maximum lifetime of a session. Default 12h.
    pub(crate) absolute_timeout: Value<Duration>,
    /// Failed logins per address before 429; a user name has 20 times as many. Default 5/min.
    pub(crate) login_failures: Value<Rate>,
    /// Names of limits on its own paths, besides those of `defaults` by address and global.
    pub(crate) limits: Field<ListOrNone<String>>,
    /// Refreshes an access token that expires sooner than this. Default 60s.
    pub(crate) refresh_before: Value<Duration>,
    /// CSRF protection: `strict`, `token` or `off`. Default strict.
    pub(crate) csrf: Value<Csrf>,
    /// Response to a request without a session: `auto`, `redirect` or `401`. Default auto.
    pub(crate) on_unauthenticated: Value<OnUnauthenticated>,
    /// Redirect target after login. Default /.
    pub(crate) after_login: Field<String>,
    /// Redirect target after logout. Default /.
    pub(crate) after_logout: Field<String>,
    /// Paths and origins that `return_to` may name. Default: the same origin.
    pub(crate) return_to: Field<ListOrNone<String>>,
    /// Revokes both tokens at logout. Default true.
    pub(crate) revoke_on_logout: Field<bool>,
    /// Redirects to the issuer's end-session endpoint. Default true.
    pub(crate) end_session: Field<bool>,
    /// Token that the upstream receives: `access_token`, `id_token` or `none`. Default `access_token`.
    pub(crate) forward: Value<ForwardedSessionToken>,
    /// A style sheet in place of the login pages' own. Default none.
    pub(crate) style: Field<String>,
}

/// `paths`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Paths {
    /// The common beginning of those that are not set. Default /auth.
    pub(crate) base: Field<String>,
    /// Default /auth/login.
    pub(crate) login: Field<String>,
    /// Default /auth/callback.
    pub(crate) callback: Field<String>,
    /// Default /auth/logout.
    pub(crate) logout: Field<String>,
    /// Default /auth/session.
    pub(crate) status: Field<String>,
    /// Default /auth/refresh.
    pub(crate) refresh: Field<String>,
    /// Default /auth/back-channel-logout.
    pub(crate) back_channel_logout: Field<String>,
}

/// `cookie`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Cookie {
    /// Prefix of the cookie's name. Default `__Host-`.
    pub(crate) prefix: Field<String>,
    /// `lax`, `strict` or `none`. Default lax.
    pub(crate) same_site: Value<SameSite>,
    /// Over TLS only. Default true.
    pub(crate) secure: Field<bool>,
    /// `Domain` attribute: also sent to the hosts below. Default none.
    pub(crate) domain: Field<String>,
    /// `Path` attribute. Default /.
    pub(crate) path: Field<String>,
}

impl Keyword for Flow {
    const WANTED: &'static str = "password or code";
    const WORDS: &'static [(&'static str, Self)] =
        &[("password", Self::Password), ("code", Self::Code)];
}

impl Keyword for Identity {
    const WANTED: &'static str = "auto, id_token or access_token";
    const WORDS: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("id_token", Self::IdToken), ("access_token", Self::AccessToken)];
}

impl Keyword for TokenStorage {
    const WANTED: &'static str = "sealed_cookies, plain_cookies or server";
    const WORDS: &'static [(&'static str, Self)] = &[
        ("sealed_cookies", Self::SealedCookies),
        ("plain_cookies", Self::PlainCookies),
        ("server", Self::Server(Store::Memory)),
    ];
}

impl Keyword for Store {
    const WANTED: &'static str = "memory or redis";
    const WORDS: &'static [(&'static str, Self)] =
        &[("memory", Self::Memory), ("redis", Self::Redis)];
}

impl Keyword for SameSite {
    const WANTED: &'static str = "lax, strict or none";
    const WORDS: &'static [(&'static str, Self)] =
        &[("lax", Self::Lax), ("strict", Self::Strict), ("none", Self::None)];
}

impl Keyword for Csrf {
    const WANTED: &'static str = "strict, token or off";
    const WORDS: &'static [(&'static str, Self)] =
        &[("strict", Self::Strict), ("token", Self::Token), ("off", Self::Off)];
}

impl Keyword for OnUnauthenticated {
    const WANTED: &'static str = "auto, redirect or 401";
    const WORDS: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("redirect", Self::Redirect), ("401", Self::Refuse)];
}

impl Keyword for ForwardedSessionToken {
    const WANTED: &'static str = "access_token, id_token or none";
    const WORDS: &'static [(&'static str, Self)] =
        &[("access_token", Self::AccessToken), ("id_token", Self::IdToken), ("none", Self::None)];
}
