//! What an operator says about one authorization server, checked.

use core::fmt;
use core::hash::{Hash, Hasher};
use core::num::NonZeroUsize;
use core::time::Duration;
use std::path::PathBuf;
use std::sync::Arc;

use aws_lc_rs::digest;
use url::Url;

use super::resource_indicator::ResourceIndicator;
use super::signing_key::SigningKey;
use crate::base::scopes::Scopes;
use crate::base::secret::Secret;

/// One authorization server. Equal settings mean the same server asked in the
/// same way, so a reload keeps its keys, caches and connections.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// Its name in the configuration; a metric label.
    pub name: Arc<str>,
    /// What its tokens say in `iss`, compared byte for byte (RFC 7519 §4.1.1).
    pub issuer: Arc<str>,
    /// Where its metadata is found. Default [`Discovery::Auto`].
    pub discovery: Discovery,
    /// Endpoints that override the metadata's, one by one. Default none.
    pub endpoints: Endpoints,
    /// The text of a JWK set that replaces fetching one.
    pub jwks: Option<Arc<str>>,
    /// The secret of `HS*` tokens. With it the issuer has no other key.
    pub hmac_secret: Option<Secret<Vec<u8>>>,
    /// How long fetched keys are good; renewed at 80 % of it, or of what
    /// `Cache-Control` says, between one minute and a day. Default 10 minutes.
    pub jwks_refresh: Duration,
    /// The least time between two fetches for an unknown `kid`. Default 30 s.
    pub jwks_min_interval: Duration,
    /// The gateway's own client there.
    pub client: Option<Client>,
    /// How reference tokens are asked about (RFC 7662).
    pub introspection: Introspection,
    /// What the password grant asks for when Basic credentials are exchanged.
    pub password_grant: PasswordGrant,
    /// How long each call may take, connecting included. Default 3 s.
    pub timeout: Duration,
    /// Calls at once; more are refused with 503. Default 64.
    pub max_concurrent: NonZeroUsize,
    /// PEM certificates of authorities trusted besides the system's.
    pub ca: Option<Arc<[u8]>>,
    /// What holds while the server cannot be asked. Default [`OnUnavailable::Deny`].
    pub on_unavailable: OnUnavailable,
    /// Where the last good signing keys are kept for the next start.
    pub state_dir: Option<PathBuf>,
}

impl Hash for Settings {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            name,
            issuer,
            discovery,
            endpoints,
            jwks,
            hmac_secret,
            jwks_refresh,
            jwks_min_interval,
            client,
            introspection,
            password_grant,
            timeout,
            max_concurrent,
            ca,
            on_unavailable,
            state_dir,
        } = self;
        (name, issuer, discovery, endpoints, jwks, jwks_refresh, jwks_min_interval).hash(state);
        hmac_secret.as_ref().map(Secret::expose).hash(state);
        (client, introspection, password_grant, timeout, max_concurrent).hash(state);
        (ca, on_unavailable, state_dir).hash(state);
    }
}

impl Settings {
    /// The server that calls itself `issuer`, with every default of the reference.
    pub fn new(name: &str, issuer: &str) -> Self {
        Self {
            name: name.into(),
            issuer: issuer.into(),
            discovery: Discovery::Auto,
            endpoints: Endpoints::default(),
            jwks: None,
            hmac_secret: None,
            jwks_refresh: Duration::from_secs(600),
            jwks_min_interval: Duration::from_secs(30),
            client: None,
            introspection: Introspection::default(),
            password_grant: PasswordGrant::default(),
            timeout: Duration::from_secs(3),
            max_concurrent: const { NonZeroUsize::new(64).unwrap() },
            ca: None,
            on_unavailable: OnUnavailable::Deny,
            state_dir: None,
        }
    }

    /// How long a call may take whose answer must not be lost: three times as long as others.
    pub fn extended_timeout(&self) -> Duration {
        self.timeout.saturating_mul(3)
    }

    /// SHA-256 of all of it, secrets included: what an answer depends on.
    pub fn fingerprint(&self) -> [u8; 32] {
        fingerprint(self)
    }
}

/// Where an issuer's metadata is found.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Discovery {
    /// At the well-known places under the issuer: RFC 8414 §3, then OpenID Connect Discovery §4.
    Auto,
    /// Nowhere: every endpoint in use is configured.
    Off,
    /// At this address.
    At(Url),
}

/// An authorization server's endpoints.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Endpoints {
    /// Where people log in (RFC 6749 §3.1).
    pub authorization: Option<Url>,
    /// Where grants are redeemed (RFC 6749 §3.2).
    pub token: Option<Url>,
    /// Where reference tokens are asked about (RFC 7662).
    pub introspection: Option<Url>,
    /// Where tokens are given back (RFC 7009).
    pub revocation: Option<Url>,
    /// Where the server's own session is ended (OpenID Connect RP-Initiated Logout).
    pub end_session: Option<Url>,
    /// Where requests are left before the login (RFC 9126).
    pub pushed_authorization: Option<Url>,
    /// The signing keys (RFC 7517).
    pub jwks: Option<Url>,
}

impl Endpoints {
    /// Whether nothing is left to be found out.
    pub(super) const fn are_all_known(&self) -> bool {
        let Self {
            authorization,
            token,
            introspection,
            revocation,
            end_session,
            pushed_authorization,
            jwks,
        } = self;
        authorization.is_some()
            && token.is_some()
            && introspection.is_some()
            && revocation.is_some()
            && end_session.is_some()
            && pushed_authorization.is_some()
            && jwks.is_some()
    }
}

/// Who the gateway is to an authorization server.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Client {
    /// `client_id` (RFC 6749 §2.2).
    pub id: Arc<str>,
    /// How it proves who it is.
    pub auth: ClientAuth,
}

/// How a client proves who it is (OpenID Connect Core §9, RFC 8705 §2).
#[derive(Clone)]
pub enum ClientAuth {
    /// `client_secret_basic`: the secret in the `Authorization` field, form-encoded first (RFC 6749 §2.3.1).
    Basic(Secret<String>),
    /// `client_secret_post`: the secret in the form.
    Post(Secret<String>),
    /// `private_key_jwt`: a short-lived assertion signed with this key (RFC 7523 §2.2).
    PrivateKeyJwt(Arc<SigningKey>),
    /// `tls_client_auth`: a certificate in the handshake (RFC 8705 §2.1), as PEM.
    TlsClientAuth {
        /// The certificate chain, the client's own first.
        certificate: Arc<[u8]>,
        /// Its private key.
        key: Secret<Vec<u8>>,
    },
    /// `none`: a public client, which only names itself.
    None,
}

impl ClientAuth {
    /// The method's registered name.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Basic(_) => "client_secret_basic",
            Self::Post(_) => "client_secret_post",
            Self::PrivateKeyJwt(_) => "private_key_jwt",
            Self::TlsClientAuth { .. } => "tls_client_auth",
            Self::None => "none",
        }
    }
}

/// How reference tokens are asked about (RFC 7662).
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Introspection {
    /// How the gateway proves itself there. Default [`IntrospectionAuthorization::Client`].
    pub authorization: IntrospectionAuthorization,
    /// How long an active answer is good, never beyond its `exp`; zero asks every time. Default 30 s.
    pub cache: Duration,
    /// How long `active: false` is remembered. Default 5 s.
    pub negative_cache: Duration,
    /// Answers kept. Default 100 000.
    pub max_entries: u64,
    /// Whether an active answer without `aud` is good where an audience is wanted. Default no.
    pub accept_without_audience: bool,
    /// How a signed answer is asked for, where one is wanted. Default [`SignedAnswer::AccessToken`].
    pub signed_answer: SignedAnswer,
}

impl Default for Introspection {
    fn default() -> Self {
        Self {
            authorization: IntrospectionAuthorization::Client,
            cache: Duration::from_secs(30),
            negative_cache: Duration::from_secs(5),
            max_entries: 100_000,
            accept_without_audience: false,
            signed_answer: SignedAnswer::AccessToken,
        }
    }
}

/// How the gateway proves itself to an introspection endpoint (RFC 7662 §2.1).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum IntrospectionAuthorization {
    /// With its client's own authentication.
    Client,
    /// With an access token got by the client-credentials grant.
    Bearer,
}

/// The signed answers that issuers give about a reference token.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum SignedAnswer {
    /// `application/jwt`: an access token of the same meaning, the "phantom token".
    AccessToken,
    /// `application/token-introspection+jwt`: the answer itself, signed for whoever asked (RFC 9701).
    Response,
}

/// What the password grant asks for when Basic credentials are exchanged.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct PasswordGrant {
    /// `scope`. Default none.
    pub scopes: Scopes,
    /// `resource_indicator` (RFC 8707). Default none.
    pub resource: Option<ResourceIndicator>,
    /// How long the exchanged token is kept, never beyond its life. Default 5 minutes.
    pub cache: Duration,
    /// Failed exchanges per user name and per address, in this much time. Default 10 in a minute.
    pub failures: (u32, Duration),
}

impl Default for PasswordGrant {
    fn default() -> Self {
        Self {
            scopes: Scopes::default(),
            resource: None,
            cache: Duration::from_secs(300),
            failures: (10, Duration::from_secs(60)),
        }
    }
}

/// What holds while an authorization server cannot be asked about a token.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum OnUnavailable {
    /// The request is refused with 503.
    Deny,
    /// A token seen active stays good for this much longer, never beyond its `exp`.
    Stale(Duration),
}

/// SHA-256 over what [`Hash`] feeds it: equal settings, equal fingerprints, in one process.
pub(crate) fn fingerprint(settings: &impl Hash) -> [u8; 32] {
    struct Sha256(digest::Context);
    impl Hasher for Sha256 {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            0 // Never asked for: the whole digest is taken below.
        }
    }
    let mut hasher = Sha256(digest::Context::new(&digest::SHA256));
    settings.hash(&mut hasher);
    let mut sum = [0; 32];
    sum.copy_from_slice(hasher.0.finish().as_ref());
    sum
}

impl fmt::Debug for ClientAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl PartialEq for ClientAuth {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Basic(a), Self::Basic(b)) | (Self::Post(a), Self::Post(b)) => a == b,
            (Self::PrivateKeyJwt(a), Self::PrivateKeyJwt(b)) => a == b,
            (
                Self::TlsClientAuth { certificate, key },
                Self::TlsClientAuth { certificate: other_certificate, key: other_key },
            ) => certificate == other_certificate && key == other_key,
            (Self::None, Self::None) => true,
            _ => false,
        }
    }
}

impl Eq for ClientAuth {}

impl Hash for ClientAuth {
    fn hash<H: Hasher>(&self, state: &mut H) {
        core::mem::discriminant(self).hash(state);
        match self {
            Self::Basic(secret) | Self::Post(secret) => secret.expose().hash(state),
            Self::PrivateKeyJwt(key) => key.hash(state),
            Self::TlsClientAuth { certificate, key } => {
                certificate.hash(state);
                key.expose().hash(state);
            }
            Self::None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_that_matters_changes_the_fingerprint() {
        let plain = Settings::new("main", "https://auth.example.com");
        let with_client = |secret: &str| Settings {
            client: Some(Client {
                id: "gateway".into(),
                auth: ClientAuth::Basic(Secret::from(secret)),
            }),
            ..plain.clone()
        };

        assert_eq!(plain.fingerprint(), plain.clone().fingerprint());
        assert_ne!(plain.fingerprint(), with_client("a").fingerprint());
        assert_ne!(with_client("a").fingerprint(), with_client("b").fingerprint());
        assert_ne!(with_client("a"), with_client("b"));
    }

    #[test]
    fn a_client_never_shows_its_secret() {
        let client =
            Client { id: "gateway".into(), auth: ClientAuth::Post(Secret::from("s3cret")) };

        assert!(!format!("{client:?}").contains("s3cret"));
    }
}
