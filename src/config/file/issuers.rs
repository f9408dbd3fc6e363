//! `issuers.<name>`

use core::time::Duration;

use serde::Deserialize;
use url::Url;

use super::{Secret, Value};
use crate::config::set::{List, ListOrNone, Many, Set};
use crate::config::units::{Of, Scope, Text, Word, Wrong, one_of};
use crate::issuer::{Algorithm, Discovery, IntrospectionAuthorization, Resource, SignedAnswer};
use crate::limit::Rate;

/// One authorization server.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Issuer {
    /// The exact `iss` of its tokens; https, except on loopback. Required.
    pub(crate) issuer: Set<String>,
    /// Where its metadata is: `auto`, `off` or a URL. Default auto.
    pub(crate) discovery: Value<Discovery>,
    /// Values of `aud` that are accepted. Required if a route uses `jwt` or `bearer`.
    pub(crate) audience: Set<Many<String>>,
    /// Algorithms that may sign. Default RS256, PS256, ES256, ES384, `EdDSA`.
    pub(crate) algorithms: Set<List<Of<Algorithm>>>,
    /// The secret of `HS*` tokens. Default none.
    pub(crate) hmac_secret: Set<Secret>,
    /// Accepted `typ`; a token without counts as JWT. Default at+jwt, JWT.
    pub(crate) token_types: Set<List<String>>,
    /// How far clocks may differ, up to 5m. Default 30s.
    pub(crate) leeway: Value<Duration>,
    /// Claims that a JWT must have; iss and exp always. Default iss, exp, aud, sub.
    pub(crate) required_claims: Set<ListOrNone<String>>,
    /// How old a token may be by its `iat`; 0s is off. Default 0s.
    pub(crate) max_token_age: Value<Duration>,
    /// Where the signing keys are. Default: from discovery.
    pub(crate) jwks_uri: Value<Url>,
    /// The signing keys themselves, as a file.
    pub(crate) jwks_file: Set<String>,
    /// How long they are good; 1m to 24h. Default 10m.
    pub(crate) jwks_refresh: Value<Duration>,
    /// The least time between two fetches for an unknown `kid`. Default 30s.
    pub(crate) jwks_min_interval: Value<Duration>,
    /// Where the scopes are in a token. Default scope.
    pub(crate) scope_claim: Set<String>,
    /// One or many places where the client's name is; the first that is there counts. Default `client_id`, then azp.
    pub(crate) client_claim: Set<Many<String>>,
    /// The gateway's own client there. Required for introspection, basic and sessions.
    pub(crate) client: Set<Client>,
    /// Endpoints that override discovery, one by one.
    pub(crate) endpoints: Set<Endpoints>,
    /// How reference tokens are asked about.
    pub(crate) introspection: Set<Introspection>,
    /// How Basic credentials are exchanged.
    pub(crate) password_grant: Set<PasswordGrant>,
    /// Verdicts on signed tokens.
    pub(crate) jwt_cache: Set<JwtCache>,
    /// How long each call may take. Default 3s.
    pub(crate) timeout: Value<Duration>,
    /// Calls at once; 503 above. Default 64.
    pub(crate) max_concurrent: Set<u64>,
    /// PEM authorities trusted besides the system's.
    pub(crate) ca_file: Set<String>,
    /// While it is away: `deny`, or `stale` for tokens seen active. Default deny.
    pub(crate) on_unavailable: Value<OnUnavailable>,
    /// How long `stale` lasts, up to 10m. Default 0s.
    pub(crate) stale_for: Value<Duration>,
    /// Introspects valid JWTs too: `off` or `introspection`. Default off.
    pub(crate) revocation_check: Value<RevocationCheck>,
}

/// `client`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Client {
    /// `client_id`. Required.
    pub(crate) id: Set<String>,
    /// The client's secret. Required for `client_secret_basic` and `client_secret_post`.
    pub(crate) secret: Set<Secret>,
    /// How it proves who it is. Default `client_secret_basic`.
    pub(crate) auth: Value<ClientAuth>,
    /// A PEM private key, for `private_key_jwt` and `tls_client_auth`.
    pub(crate) key: Set<String>,
    /// The PEM chain that goes with it, for `tls_client_auth`.
    pub(crate) cert: Set<String>,
}

/// `endpoints`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Endpoints {
    /// Where grants are redeemed.
    pub(crate) token: Value<Url>,
    /// Where people log in.
    pub(crate) authorization: Value<Url>,
    /// Where reference tokens are asked about.
    pub(crate) introspection: Value<Url>,
    /// Where tokens are given back.
    pub(crate) revocation: Value<Url>,
    /// Where the server's own session ends.
    pub(crate) end_session: Value<Url>,
    /// The signing keys.
    pub(crate) jwks: Value<Url>,
}

/// `introspection`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Introspection {
    /// How the gateway proves itself there: `client` or `bearer`. Default client.
    pub(crate) authorization: Value<IntrospectionAuthorization>,
    /// How long an active answer is good; 0s asks every time. Default 30s.
    pub(crate) cache: Value<Duration>,
    /// How long `active: false` is remembered. Default 5s.
    pub(crate) negative_cache: Value<Duration>,
    /// Answers kept. Default 100000.
    pub(crate) max_entries: Set<u64>,
    /// Accepts an active answer without `aud` where an audience is set. Default false.
    pub(crate) accept_without_audience: Set<bool>,
    /// What routes with `forward_token: jwt` ask for: `application/jwt`, or RFC 9701's
    /// `application/token-introspection+jwt`. Default application/jwt.
    pub(crate) signed_answer: Value<SignedAnswer>,
}

/// `password_grant`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PasswordGrant {
    /// Scopes asked for. Default none.
    pub(crate) scopes: Set<ListOrNone<Of<Scope>>>,
    /// The service the token is for (RFC 8707). Default none.
    pub(crate) resource: Value<Resource>,
    /// How long an exchanged token is kept. Default 5m.
    pub(crate) cache: Value<Duration>,
    /// Failed exchanges per user name and per address before 429. Default 10/min.
    pub(crate) failures: Value<Rate>,
}

/// `jwt_cache`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct JwtCache {
    /// Verdicts kept; 0 is off. Default 50000.
    pub(crate) max_entries: Set<u64>,
}

impl Text for Discovery {
    const WANTED: &'static str = "auto, off or a URL";

    fn parse(text: &str) -> Result<Self, Wrong> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            url => Url::parse(url)
                .ok()
                .filter(|url| matches!(url.scheme(), "http" | "https"))
                .map(Self::At)
                .ok_or_else(|| {
                    Wrong::new("says nothing about discovery", "write auto, off or a URL")
                }),
        }
    }
}

impl Text for Algorithm {
    const WANTED: &'static str = "an algorithm such as ES256";

    fn parse(text: &str) -> Result<Self, Wrong> {
        if text.eq_ignore_ascii_case("none") {
            return Err(Wrong::new(
                "is no signature",
                "a token that nobody signed is never accepted",
            ));
        }
        one_of(text, &Self::ALL.map(|algorithm| (algorithm.name(), algorithm)))
    }
}

/// How a client proves who it is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum ClientAuth {
    #[default]
    Basic,
    Post,
    PrivateKeyJwt,
    Certificate,
    None,
}

impl Word for ClientAuth {
    const WANTED: &'static str = "a way to authenticate such as client_secret_basic";
    const WORDS: &'static [(&'static str, Self)] = &[
        ("client_secret_basic", Self::Basic),
        ("client_secret_post", Self::Post),
        ("private_key_jwt", Self::PrivateKeyJwt),
        ("tls_client_auth", Self::Certificate),
        ("none", Self::None),
    ];
}

impl Word for IntrospectionAuthorization {
    const WANTED: &'static str = "client or bearer";
    const WORDS: &'static [(&'static str, Self)] =
        &[("client", Self::Client), ("bearer", Self::Bearer)];
}

impl Word for SignedAnswer {
    const WANTED: &'static str = "application/jwt or application/token-introspection+jwt";
    const WORDS: &'static [(&'static str, Self)] = &[
        ("application/jwt", Self::AccessToken),
        ("application/token-introspection+jwt", Self::Response),
    ];
}

/// What holds while the server is away; how long is another key.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum OnUnavailable {
    #[default]
    Deny,
    Stale,
}

impl Word for OnUnavailable {
    const WANTED: &'static str = "deny or stale";
    const WORDS: &'static [(&'static str, Self)] = &[("deny", Self::Deny), ("stale", Self::Stale)];
}

/// Whether signed tokens are introspected too.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum RevocationCheck {
    #[default]
    Off,
    Introspection,
}

impl Word for RevocationCheck {
    const WANTED: &'static str = "off or introspection";
    const WORDS: &'static [(&'static str, Self)] =
        &[("off", Self::Off), ("introspection", Self::Introspection)];
}
