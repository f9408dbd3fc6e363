//! `issuers.<name>`

use core::time::Duration;

use serde::Deserialize;
use url::Url;

use super::{Secret, Value};
use crate::config::de::field::{Field, List, ListOrNone, OneOrMany};
use crate::config::de::units::{FromScalar, InvalidValue, Keyword, Scalar, Scope, expected_one_of};
use crate::issuer::{
    Algorithm, Discovery, IntrospectionAuthorization, ResourceIndicator, SignedAnswer,
};
use crate::limit::Rate;

/// One authorization server.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Issuer {
    /// The exact `iss` of its tokens; https, except on loopback. Required.
    pub(crate) issuer: Field<String>,
    /// Where its metadata is: `auto`, `off` or a URL. Default auto.
    pub(crate) discovery: Value<Discovery>,
    /// Values of `aud` that are accepted. Required if a route uses `jwt` or `bearer`.
    pub(crate) audience: Field<OneOrMany<String>>,
    /// Algorithms that may sign. Default RS256, PS256, ES256, ES384, `EdDSA`.
    pub(crate) algorithms: Field<List<Scalar<Algorithm>>>,
    /// The secret of `HS*` tokens. Default none.
    pub(crate) hmac_secret: Field<Secret>,
    /// Accepted `typ`; a token without counts as JWT. Default at+jwt, JWT.
    pub(crate) token_types: Field<List<String>>,
    /// How far clocks may differ, up to 5m. Default 30s.
    pub(crate) leeway: Value<Duration>,
    /// Claims that a JWT must have; iss and exp always. Default iss, exp, aud, sub.
    pub(crate) required_claims: Field<ListOrNone<String>>,
    /// How old a token may be by its `iat`; 0s is off. Default 0s.
    pub(crate) max_token_age: Value<Duration>,
    /// Where the signing keys are. Default: from discovery.
    pub(crate) jwks_uri: Value<Url>,
    /// The signing keys themselves, as a file.
    pub(crate) jwks_file: Field<String>,
    /// How long they are good; 1m to 24h. Default 10m.
    pub(crate) jwks_refresh: Value<Duration>,
    /// The least time between two fetches for an unknown `kid`. Default 30s.
    pub(crate) jwks_min_interval: Value<Duration>,
    /// Where the scopes are in a token. Default scope.
    pub(crate) scope_claim: Field<String>,
    /// One or many places where the client's name is; the first that is there counts. Default `client_id`, then azp.
    pub(crate) client_claim: Field<OneOrMany<String>>,
    /// The gateway's own client there. Required for introspection, basic and sessions.
    pub(crate) client: Field<Client>,
    /// Endpoints that override discovery, one by one.
    pub(crate) endpoints: Field<Endpoints>,
    /// How reference tokens are asked about.
    pub(crate) introspection: Field<Introspection>,
    /// How Basic credentials are exchanged.
    pub(crate) password_grant: Field<PasswordGrant>,
    /// Verdicts on signed tokens.
    pub(crate) jwt_cache: Field<JwtCache>,
    /// How long each call may take. Default 3s.
    pub(crate) timeout: Value<Duration>,
    /// Calls at once; 503 above. Default 64.
    pub(crate) max_concurrent: Field<u64>,
    /// PEM authorities trusted besides the system's.
    pub(crate) ca_file: Field<String>,
    /// While it is away: `deny`, or `stale` for tokens seen active. Default deny.
    pub(crate) on_unavailable: Value<OnUnavailable>,
    /// How long `stale` lasts, up to 10m. Default 0s.
    pub(crate) stale_for: Value<Duration>,
    /// Introspects valid JWTs too: `off` or `introspection`. Default off.
    pub(crate) revocation_check: Value<RevocationCheck>,
}

/// `client_auth`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Client {
    /// `client_id`. Required.
    pub(crate) id: Field<String>,
    /// The client's secret. Required for `client_secret_basic` and `client_secret_post`.
    pub(crate) secret: Field<Secret>,
    /// How it proves who it is. Default `client_secret_basic`.
    pub(crate) auth: Value<ClientAuth>,
    /// A PEM private key, for `private_key_jwt` and `tls_client_auth`.
    pub(crate) key: Field<String>,
    /// The PEM chain that goes with it, for `tls_client_auth`.
    pub(crate) cert: Field<String>,
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
    /// How the gateway proves itself there: `client_auth` or `bearer`. Default client.
    pub(crate) authorization: Value<IntrospectionAuthorization>,
    /// How long an active answer is good; 0s asks every time. Default 30s.
    pub(crate) cache: Value<Duration>,
    /// How long `active: false` is remembered. Default 5s.
    pub(crate) negative_cache: Value<Duration>,
    /// Answers kept. Default 100000.
    pub(crate) max_entries: Field<u64>,
    /// Accepts an active answer without `aud` where an audience is set. Default false.
    pub(crate) accept_without_audience: Field<bool>,
    /// What routes with `forward_token: jwt` ask for: `application/jwt`, or RFC 9701's
    /// `application/token-introspection+jwt`. Default application/jwt.
    pub(crate) signed_answer: Value<SignedAnswer>,
}

/// `password_grant`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PasswordGrant {
    /// Scopes asked for. Default none.
    pub(crate) scopes: Field<ListOrNone<Scalar<Scope>>>,
    /// The service the token is for (RFC 8707). Default none.
    pub(crate) resource: Value<ResourceIndicator>,
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
    pub(crate) max_entries: Field<u64>,
}

impl FromScalar for Discovery {
    const WANTED: &'static str = "auto, off or a URL";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            url => Url::parse(url)
                .ok()
                .filter(|url| matches!(url.scheme(), "http" | "https"))
                .map(Self::At)
                .ok_or_else(|| {
                    InvalidValue::new("says nothing about discovery", "write auto, off or a URL")
                }),
        }
    }
}

impl FromScalar for Algorithm {
    const WANTED: &'static str = "an algorithm such as ES256";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        if text.eq_ignore_ascii_case("none") {
            return Err(InvalidValue::new(
                "is no signature",
                "a token that nobody signed is never accepted",
            ));
        }
        expected_one_of(text, &Self::ALL.map(|algorithm| (algorithm.name(), algorithm)))
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

impl Keyword for ClientAuth {
    const WANTED: &'static str = "a way to authenticate such as client_secret_basic";
    const WORDS: &'static [(&'static str, Self)] = &[
        ("client_secret_basic", Self::Basic),
        ("client_secret_post", Self::Post),
        ("private_key_jwt", Self::PrivateKeyJwt),
        ("tls_client_auth", Self::Certificate),
        ("none", Self::None),
    ];
}

impl Keyword for IntrospectionAuthorization {
    const WANTED: &'static str = "client or bearer";
    const WORDS: &'static [(&'static str, Self)] =
        &[("client", Self::Client), ("bearer", Self::Bearer)];
}

impl Keyword for SignedAnswer {
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

impl Keyword for OnUnavailable {
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

impl Keyword for RevocationCheck {
    const WANTED: &'static str = "off or introspection";
    const WORDS: &'static [(&'static str, Self)] =
        &[("off", Self::Off), ("introspection", Self::Introspection)];
}
