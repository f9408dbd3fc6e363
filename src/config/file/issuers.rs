//! `issuers.<name>`

use core::time::Duration;

use serde::Deserialize;
use url::Url;

use super::value::{Secret, Value};
use crate::config::de::field::{Field, List, ListOrNone, OneOrMany};
use crate::config::de::units::{
    FromScalar, InvalidValue, Keyword, Scalar, Scope, Size, expected_one_of,
};
use crate::issuer::{
    Algorithm, AssertionAudience, Discovery, IntrospectionAuthorization, ResourceIndicator,
    SignedAnswer,
};
use crate::limit::Rate;
use crate::token::{ContentEncryption, KeyManagement};

/// One authorization server.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Issuer {
    /// Exact `iss` of its tokens: a name, and an address only for discovery. Required.
    pub(crate) issuer: Field<String>,
    /// Tenants whose tokens are accepted, for an `issuer` with a placeholder such as `{tenantid}`. Default none.
    pub(crate) tenants: Field<OneOrMany<String>>,
    /// Source of its metadata: `auto`, `off` or a URL. Default auto.
    pub(crate) discovery: Value<Discovery>,
    /// Accepted values of `aud`. Required if a route uses `jwt` or `bearer`.
    pub(crate) audience: Field<OneOrMany<String>>,
    /// Claims that take the place of `aud` in tokens without it; the first that is present counts. Default none.
    pub(crate) audience_claim: Field<OneOrMany<String>>,
    /// Accepted signature algorithms. Default RS256, PS256, ES256, ES384, `EdDSA`.
    pub(crate) algorithms: Field<List<Scalar<Algorithm>>>,
    /// The secret of `HS*` tokens. Default none.
    pub(crate) hmac_secret: Field<Secret>,
    /// How the secret is written: `text` or `base64`. Default text.
    pub(crate) hmac_secret_encoding: Value<SecretEncoding>,
    /// Accepted `typ`; a token without counts as JWT. Default at+jwt, JWT.
    pub(crate) token_types: Field<List<String>>,
    /// Tolerated clock difference, up to 5m. Default 30s.
    pub(crate) leeway: Value<Duration>,
    /// Claims that a JWT must have; `iss` and `exp` always. Default iss, exp, aud, sub.
    pub(crate) required_claims: Field<ListOrNone<String>>,
    /// Maximum age of a token by its `iat`; 0s is off. Default 0s.
    pub(crate) max_token_age: Value<Duration>,
    /// URL of the JWK set. Default: from discovery.
    pub(crate) jwks_uri: Value<Url>,
    /// File with the JWK set, in place of a URL.
    pub(crate) jwks_file: Field<String>,
    /// How often the JWK set is refreshed; 1m to 24h. Default 10m.
    pub(crate) jwks_refresh: Value<Duration>,
    /// Minimum time between two fetches for an unknown `kid`. Default 30s.
    pub(crate) jwks_min_interval: Value<Duration>,
    /// Paths of the claim with the scopes; the first that is present counts. Default scope.
    pub(crate) scope_claim: Field<OneOrMany<String>>,
    /// Maximum size of a signed token. Default 16KiB.
    pub(crate) max_token_size: Value<Size>,
    /// Paths of the claim with the client id; the first that is present counts. Default `client_id`, then azp.
    pub(crate) client_claim: Field<OneOrMany<String>>,
    /// The gateway's client registration. Required for introspection, basic and sessions.
    pub(crate) client: Field<Client>,
    /// The `aud` of client assertions: `issuer`, `token_endpoint`, or `endpoint` for the one called. Default issuer.
    pub(crate) assertion_audience: Value<AssertionAudience>,
    /// Endpoints that override discovery, one by one.
    pub(crate) endpoints: Field<Endpoints>,
    /// Introspection of opaque tokens.
    pub(crate) introspection: Field<Introspection>,
    /// Exchange of Basic credentials.
    pub(crate) password_grant: Field<PasswordGrant>,
    /// Cache of verified JWTs.
    pub(crate) jwt_cache: Field<JwtCache>,
    /// The keys that open encrypted tokens (RFC 7516). Default none.
    pub(crate) decryption: Field<Decryption>,
    /// Timeout of each call. Default 3s.
    pub(crate) timeout: Value<Duration>,
    /// Maximum number of concurrent calls; 503 above. Default 64.
    pub(crate) max_concurrent: Field<u64>,
    /// HTTP proxy that all calls go through. Default none.
    pub(crate) proxy: Value<Url>,
    /// PEM authorities trusted besides the system's.
    pub(crate) ca_file: Field<String>,
    /// Behaviour while the issuer is unavailable: `deny`, or `stale` for tokens seen active. Default deny.
    pub(crate) on_unavailable: Value<OnUnavailable>,
    /// Maximum age of a stale result, up to 10m. Default 0s.
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
    /// The client's secret. Required for `client_secret_basic`, `client_secret_post` and `client_secret_jwt`.
    pub(crate) secret: Field<Secret>,
    /// Client authentication method. Default `client_secret_basic`.
    pub(crate) auth: Value<ClientAuth>,
    /// A PEM private key, for `private_key_jwt` and `tls_client_auth`.
    pub(crate) key: Field<String>,
    /// The `kid` that the server knows the key by, for `private_key_jwt`. Default none.
    pub(crate) kid: Field<String>,
    /// The PEM chain of the key, for `tls_client_auth`; for `private_key_jwt` the certificate that names the key.
    pub(crate) cert: Field<String>,
}

/// `endpoints`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Endpoints {
    /// Token endpoint.
    pub(crate) token: Value<Url>,
    /// Authorization endpoint.
    pub(crate) authorization: Value<Url>,
    /// Introspection endpoint.
    pub(crate) introspection: Value<Url>,
    /// Revocation endpoint.
    pub(crate) revocation: Value<Url>,
    /// End-session endpoint.
    pub(crate) end_session: Value<Url>,
    /// Userinfo endpoint (OpenID Connect Core §5.3).
    pub(crate) userinfo: Value<Url>,
    /// JWK set.
    pub(crate) jwks: Value<Url>,
}

/// `introspection`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Introspection {
    /// Authentication of the gateway there: `client` or `bearer`. Default client.
    pub(crate) authorization: Value<IntrospectionAuthorization>,
    /// Lifetime of an active result; 0s introspects every time. Default 30s.
    pub(crate) cache: Value<Duration>,
    /// Lifetime of `active: false`. Default 5s.
    pub(crate) negative_cache: Value<Duration>,
    /// Maximum number of cached results. Default 100000.
    pub(crate) max_entries: Field<u64>,
    /// Accepts an active response without `aud` where an audience is set. Default false.
    pub(crate) accept_without_audience: Field<bool>,
    /// Media type that routes with `forward_token: jwt` request: `application/jwt`, or RFC 9701's
    /// `application/token-introspection+jwt`. Default application/jwt.
    pub(crate) signed_answer: Value<SignedAnswer>,
}

/// `password_grant`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PasswordGrant {
    /// Requested scopes. Default none.
    pub(crate) scopes: Field<ListOrNone<Scalar<Scope>>>,
    /// Resource indicator of the token (RFC 8707). Default none.
    pub(crate) resource: Value<ResourceIndicator>,
    /// Lifetime of a cached exchange. Default 5m.
    pub(crate) cache: Value<Duration>,
    /// Failed exchanges per user name and per address before 429. Default 10/min.
    pub(crate) failures: Value<Rate>,
}

/// `jwt_cache`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct JwtCache {
    /// Maximum number of cached tokens; 0 is off. Default 50000.
    pub(crate) max_entries: Field<u64>,
}

/// `decryption`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Decryption {
    /// Files with private keys: PEM, a JWK or a JWK set. Required.
    pub(crate) keys: Field<OneOrMany<String>>,
    /// Accepted key management algorithms. Required.
    pub(crate) algorithms: Field<List<Scalar<KeyManagement>>>,
    /// Accepted content encryption algorithms. Default all four.
    pub(crate) content_algorithms: Field<List<Scalar<ContentEncryption>>>,
}

impl FromScalar for KeyManagement {
    const WANTED: &'static str = "an algorithm such as RSA-OAEP-256";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        if text == "RSA1_5" || text.starts_with("PBES2") {
            return Err(InvalidValue::new(
                "is not a safe key management algorithm",
                "write RSA-OAEP-256 or ECDH-ES+A256KW",
            ));
        }
        expected_one_of(text, &Self::ALL)
    }
}

impl FromScalar for ContentEncryption {
    const WANTED: &'static str = "an algorithm such as A256GCM";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        expected_one_of(text, &Self::ALL)
    }
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
                    InvalidValue::new("is not a discovery mode", "write auto, off or a URL")
                }),
        }
    }
}

impl FromScalar for Algorithm {
    const WANTED: &'static str = "an algorithm such as ES256";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        if text.eq_ignore_ascii_case("none") {
            return Err(InvalidValue::new(
                "is not a signature algorithm",
                "an unsigned token is never accepted",
            ));
        }
        expected_one_of(text, &Self::ALL.map(|algorithm| (algorithm.name(), algorithm)))
    }
}

/// How a binary secret is written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum SecretEncoding {
    #[default]
    Text,
    Base64,
}

impl Keyword for SecretEncoding {
    const WANTED: &'static str = "text or base64";
    const WORDS: &'static [(&'static str, Self)] =
        &[("text", Self::Text), ("base64", Self::Base64)];
}

/// The client authentication methods.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum ClientAuth {
    #[default]
    Basic,
    Post,
    SecretJwt,
    PrivateKeyJwt,
    Certificate,
    None,
}

impl Keyword for ClientAuth {
    const WANTED: &'static str = "a way to authenticate such as client_secret_basic";
    const WORDS: &'static [(&'static str, Self)] = &[
        ("client_secret_basic", Self::Basic),
        ("client_secret_post", Self::Post),
        ("client_secret_jwt", Self::SecretJwt),
        ("private_key_jwt", Self::PrivateKeyJwt),
        ("tls_client_auth", Self::Certificate),
        ("none", Self::None),
    ];
}

impl Keyword for AssertionAudience {
    const WANTED: &'static str = "issuer, token_endpoint or endpoint";
    const WORDS: &'static [(&'static str, Self)] = &[
        ("issuer", Self::Issuer),
        ("token_endpoint", Self::TokenEndpoint),
        ("endpoint", Self::Endpoint),
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

/// Behaviour while the issuer is unavailable; the duration is another key.
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

/// Whether JWTs are introspected too.
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
