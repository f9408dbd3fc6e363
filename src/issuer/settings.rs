//! The settings of one authorization server, already validated.

use core::fmt;
use core::hash::{Hash, Hasher};
use core::num::NonZeroUsize;
use core::time::Duration;
use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use aws_lc_rs::digest;
use url::Url;

use super::keys::signing_key::SigningKey;
use super::resource_indicator::ResourceIndicator;
use super::tenant_template::expand;
use crate::base::scopes::Scopes;
use crate::base::secret::Secret;

/// The settings of one authorization server. Equal settings mean the same server called in the
/// same way, so a reload preserves its keys, caches and connections.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// The server's name in the configuration; a metric label.
    pub name: Arc<str>,
    /// The `iss` of its tokens, compared byte for byte (RFC 7519 §4.1.1): a name, and an address only for discovery.
    /// With [`Settings::tenants`] a template, such as `https://login.microsoftonline.com/{tenantid}/v2.0`.
    pub issuer: Arc<str>,
    /// The tenants whose tokens are accepted, for an `issuer` with a placeholder in braces. Default none.
    pub tenants: Box<[Box<str>]>,
    /// The source of its metadata. Default [`Discovery::Auto`].
    pub discovery: Discovery,
    /// Endpoints that override the metadata's, one by one. Default none.
    pub endpoints: Endpoints,
    /// The text of a JWK set that replaces fetching one.
    pub jwks: Option<Arc<str>>,
    /// The secret of `HS*` tokens. With it the issuer has no other key.
    pub hmac_secret: Option<Secret<Vec<u8>>>,
    /// The lifetime of a fetched JWK set; refreshed at 80 % of it, or of what
    /// `Cache-Control` says, between one minute and a day. Default 10 minutes.
    pub jwks_refresh: Duration,
    /// The minimum time between two fetches for an unknown `kid`. Default 30 s.
    pub jwks_min_interval: Duration,
    /// The gateway's own client at the server.
    pub client: Option<Client>,
    /// The `aud` of client assertions. Default [`AssertionAudience::Issuer`].
    pub assertion_audience: AssertionAudience,
    /// Introspection of opaque tokens (RFC 7662).
    pub introspection: Introspection,
    /// The parameters of the password grant for Basic credentials.
    pub password_grant: PasswordGrant,
    /// The timeout of each call, connecting included. Default 3 s.
    pub timeout: Duration,
    /// Calls at once; more are refused with 503. Default 64.
    pub max_concurrent: NonZeroUsize,
    /// The HTTP proxy that all calls go through. Default none; the environment is never asked.
    pub proxy: Option<Url>,
    /// PEM certificates of authorities trusted besides the system's.
    pub ca: Option<Arc<[u8]>>,
    /// The treatment of tokens while the server is unavailable. Default [`OnUnavailable::Deny`].
    pub on_unavailable: OnUnavailable,
    /// The directory of the last good JWK set for the next start.
    pub state_dir: Option<PathBuf>,
}

impl Hash for Settings {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            name,
            issuer,
            tenants,
            discovery,
            endpoints,
            jwks,
            hmac_secret,
            jwks_refresh,
            jwks_min_interval,
            client,
            assertion_audience,
            introspection,
            password_grant,
            timeout,
            max_concurrent,
            proxy,
            ca,
            on_unavailable,
            state_dir,
        } = self;
        (name, issuer, tenants).hash(state);
        (discovery, endpoints, jwks, jwks_refresh, jwks_min_interval).hash(state);
        hmac_secret.as_ref().map(Secret::expose).hash(state);
        (client, assertion_audience, introspection, password_grant).hash(state);
        (timeout, max_concurrent).hash(state);
        (proxy, ca, on_unavailable, state_dir).hash(state);
    }
}

impl Settings {
    /// Returns the settings of the server with the identifier `issuer`, with every default.
    pub fn new(name: &str, issuer: &str) -> Self {
        Self {
            name: name.into(),
            issuer: issuer.into(),
            tenants: Box::default(),
            discovery: Discovery::Auto,
            endpoints: Endpoints::default(),
            jwks: None,
            hmac_secret: None,
            jwks_refresh: Duration::from_secs(600),
            jwks_min_interval: Duration::from_secs(30),
            client: None,
            assertion_audience: AssertionAudience::Issuer,
            introspection: Introspection::default(),
            password_grant: PasswordGrant::default(),
            timeout: Duration::from_secs(3),
            max_concurrent: const { NonZeroUsize::new(64).unwrap() },
            proxy: None,
            ca: None,
            on_unavailable: OnUnavailable::Deny,
            state_dir: None,
        }
    }

    /// Returns the identifiers of its tokens: `issuer`, or its expansion for each tenant.
    pub(crate) fn identifiers(&self) -> impl Iterator<Item = Cow<'_, str>> {
        let plain = self.tenants.is_empty().then_some(Cow::Borrowed(&*self.issuer));
        let expanded = self.tenants.iter().map(|tenant| Cow::Owned(expand(&self.issuer, tenant)));
        plain.into_iter().chain(expanded)
    }

    /// Returns the identifier by which it is addressed: of several tenants, that of the first.
    pub fn identifier(&self) -> Cow<'_, str> {
        self.identifiers().next().unwrap_or(Cow::Borrowed(&self.issuer))
    }

    /// Whether a token with this `iss` is one of its own.
    pub fn is_named(&self, iss: &str) -> bool {
        if self.tenants.is_empty() {
            return *self.issuer == *iss;
        }
        self.identifiers().any(|identifier| *identifier == *iss)
    }

    /// Whether signed tokens are verified by the keys of the issuer with the settings `other`, from the same source.
    pub(crate) fn has_keys_of(&self, other: &Self) -> bool {
        let given = |settings: &Self| {
            let hmac_secret = settings.hmac_secret.as_ref().map(|it| it.expose().clone());
            (hmac_secret, settings.jwks.clone(), settings.endpoints.jwks.clone())
        };
        let is_given =
            self.hmac_secret.is_some() || self.jwks.is_some() || self.endpoints.jwks.is_some();
        given(self) == given(other)
            && (is_given
                || (self.identifier(), &self.discovery) == (other.identifier(), &other.discovery))
    }

    /// Whether the JWK set of the server with the settings `other` is that of this one: it comes from the same place in the
    /// same way.
    pub(super) fn shares_jwks_with(&self, other: &Self) -> bool {
        let source = |settings: &Self| {
            let Self { issuer, discovery, endpoints, proxy, ca, .. } = settings.clone();
            let identifier = settings.identifier().into_owned();
            (issuer, identifier, discovery, endpoints.jwks, proxy, ca)
        };
        source(self) == source(other)
    }

    /// Whether the metadata of the server with the settings `other` are, as read, those of this one as well.
    pub(super) fn shares_metadata_with(&self, other: &Self) -> bool {
        self.shares_jwks_with(other)
            && self.endpoints == other.endpoints
            && self.uses_mutual_tls() == other.uses_mutual_tls()
    }

    /// Whether the gateway's client presents a certificate.
    pub(super) fn uses_mutual_tls(&self) -> bool {
        let auth = self.client.as_ref().map(|client| &client.auth);
        matches!(auth, Some(ClientAuth::TlsClientAuth { .. }))
    }

    /// Returns the settings that decide about introspection responses and for how long they are cached: all but those
    /// about how calls are made, the JWK set and other grants.
    pub(crate) fn of_introspection(&self) -> Self {
        let plain = Self::new(&self.name, &self.issuer);
        let client = self.client.as_ref();
        Self {
            client: client
                .map(|client| Client { id: Arc::clone(&client.id), auth: ClientAuth::None }),
            jwks_refresh: plain.jwks_refresh,
            jwks_min_interval: plain.jwks_min_interval,
            assertion_audience: plain.assertion_audience,
            password_grant: plain.password_grant,
            timeout: plain.timeout,
            max_concurrent: plain.max_concurrent,
            state_dir: plain.state_dir,
            ..self.clone()
        }
    }

    /// Returns the timeout of a call whose response must not be lost: three times `timeout`.
    pub fn extended_timeout(&self) -> Duration {
        self.timeout.saturating_mul(3)
    }

    /// Returns the SHA-256 of all settings, secrets included: the key of everything cached under them.
    pub fn fingerprint(&self) -> [u8; 32] {
        fingerprint(self)
    }
}

/// The source of an issuer's metadata.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Discovery {
    /// The well-known URLs under the issuer: RFC 8414 §3, then OpenID Connect Discovery §4.
    Auto,
    /// None: every endpoint in use is configured.
    Off,
    /// This URL.
    At(Url),
}

/// An authorization server's endpoints.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Endpoints {
    /// The authorization endpoint (RFC 6749 §3.1).
    pub authorization: Option<Url>,
    /// The token endpoint (RFC 6749 §3.2).
    pub token: Option<Url>,
    /// The introspection endpoint (RFC 7662).
    pub introspection: Option<Url>,
    /// The revocation endpoint (RFC 7009).
    pub revocation: Option<Url>,
    /// The end-session endpoint (OpenID Connect RP-Initiated Logout).
    pub end_session: Option<Url>,
    /// The pushed authorization request endpoint (RFC 9126).
    pub pushed_authorization: Option<Url>,
    /// The userinfo endpoint (OpenID Connect Core §5.3).
    pub userinfo: Option<Url>,
    /// The JWK set (RFC 7517).
    pub jwks: Option<Url>,
}

impl Endpoints {
    /// Whether all endpoints are known.
    pub(super) const fn are_all_known(&self) -> bool {
        let Self {
            authorization,
            token,
            introspection,
            revocation,
            end_session,
            pushed_authorization,
            userinfo,
            jwks,
        } = self;
        authorization.is_some()
            && token.is_some()
            && introspection.is_some()
            && revocation.is_some()
            && end_session.is_some()
            && pushed_authorization.is_some()
            && userinfo.is_some()
            && jwks.is_some()
    }
}

/// The gateway as a client of an authorization server.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Client {
    /// `client_id` (RFC 6749 §2.2).
    pub id: Arc<str>,
    /// The method of client authentication.
    pub auth: ClientAuth,
}

/// A method of client authentication (OpenID Connect Core §9, RFC 8705 §2).
#[derive(Clone)]
pub enum ClientAuth {
    /// `client_secret_basic`: the secret in the `Authorization` field, form-encoded first (RFC 6749 §2.3.1).
    Basic(Secret<String>),
    /// `client_secret_post`: the secret in the form.
    Post(Secret<String>),
    /// `client_secret_jwt`: a short-lived assertion with the secret as its HMAC key (OpenID Connect Core §9).
    SecretJwt(Secret<String>),
    /// `private_key_jwt`: a short-lived assertion signed with this key (RFC 7523 §2.2).
    PrivateKeyJwt(Arc<SigningKey>),
    /// `tls_client_auth`: a certificate in the handshake (RFC 8705 §2.1), as PEM.
    TlsClientAuth {
        /// The certificate chain, the client's own first.
        certificate: Arc<[u8]>,
        /// Its private key.
        key: Secret<Vec<u8>>,
    },
    /// `none`: a public client, which only sends its id.
    None,
}

impl ClientAuth {
    /// Returns the method's registered name.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Basic(_) => "client_secret_basic",
            Self::Post(_) => "client_secret_post",
            Self::SecretJwt(_) => "client_secret_jwt",
            Self::PrivateKeyJwt(_) => "private_key_jwt",
            Self::TlsClientAuth { .. } => "tls_client_auth",
            Self::None => "none",
        }
    }
}

/// The `aud` of client assertions (RFC 7523 §3, OpenID Connect Core §9).
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum AssertionAudience {
    /// The issuer's identifier: no other server can use an assertion that it has received.
    #[default]
    Issuer,
    /// The token endpoint's URL, at every endpoint (Hydra).
    TokenEndpoint,
    /// The URL of the endpoint that is called (Okta).
    Endpoint,
}

/// Introspection of opaque tokens (RFC 7662).
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Introspection {
    /// The authorization of the gateway there. Default [`IntrospectionAuthorization::Client`].
    pub authorization: IntrospectionAuthorization,
    /// The lifetime of a cached active response, never beyond its `exp`; zero introspects every time. Default 30 s.
    pub cache: Duration,
    /// The lifetime of a cached inactive response. Default 5 s.
    pub negative_cache: Duration,
    /// Cached responses. Default 100 000.
    pub max_entries: u64,
    /// Whether an active response without `aud` is accepted although an audience is required. Default no.
    pub accept_without_audience: bool,
    /// The format of a signed response, if one is required. Default [`SignedAnswer::AccessToken`].
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

/// The authorization of the gateway at an introspection endpoint (RFC 7662 §2.1).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum IntrospectionAuthorization {
    /// With its client's own authentication.
    Client,
    /// With an access token from the client-credentials grant.
    Bearer,
}

/// The formats of signed introspection responses.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum SignedAnswer {
    /// `application/jwt`: an access token of the same meaning, the "phantom token".
    AccessToken,
    /// `application/token-introspection+jwt`: the response itself, signed for this client (RFC 9701).
    Response,
}

/// The parameters of the password grant for Basic credentials.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct PasswordGrant {
    /// `scope`. Default none.
    pub scopes: Scopes,
    /// `resource` (RFC 8707). Default none.
    pub resource: Option<ResourceIndicator>,
    /// The lifetime of a cached token, never beyond its own. Default 5 minutes.
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

/// The treatment of tokens while an authorization server is unavailable.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum OnUnavailable {
    /// The request is refused with 503.
    Deny,
    /// A token seen active stays valid for this much longer, never beyond its `exp`.
    Stale(Duration),
}

/// SHA-256 over what [`Hash`] writes: equal settings have equal fingerprints in one process.
pub(crate) fn fingerprint(settings: &impl Hash) -> [u8; 32] {
    struct Sha256(digest::Context);
    impl Hasher for Sha256 {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            0 // Unused: the whole digest is taken below.
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
            (Self::Basic(a), Self::Basic(b))
            | (Self::Post(a), Self::Post(b))
            | (Self::SecretJwt(a), Self::SecretJwt(b)) => a == b,
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
            Self::Basic(secret) | Self::Post(secret) | Self::SecretJwt(secret) => {
                secret.expose().hash(state);
            }
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
    fn every_setting_changes_the_fingerprint() {
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
    fn a_jwk_set_is_shared_by_settings_that_fetch_it_alike() {
        let plain = Settings::new("main", "https://auth.example.com");
        let with = |change: &dyn Fn(&mut Settings)| {
            let mut settings = plain.clone();
            change(&mut settings);
            settings
        };
        let url = || Some(Url::parse("https://elsewhere.example.com/").unwrap());

        for (shares_jwks, shares_metadata, other) in [
            (true, true, with(&|other| other.timeout = Duration::from_secs(9))),
            (true, true, with(&|other| other.state_dir = Some("/state".into()))),
            (true, false, with(&|other| other.endpoints.token = url())),
            (false, false, with(&|other| other.endpoints.jwks = url())),
            (false, false, with(&|other| other.issuer = "https://other.example.com".into())),
            (false, false, with(&|other| other.discovery = Discovery::Off)),
            (false, false, with(&|other| other.proxy = url())),
            (false, false, with(&|other| other.ca = Some([0].into()))),
        ] {
            assert_eq!(other.shares_jwks_with(&plain), shares_jwks, "{other:?}");
            assert_eq!(other.shares_metadata_with(&plain), shares_metadata, "{other:?}");
        }
    }

    #[test]
    fn a_template_names_its_tenants_and_nothing_else() {
        let mut settings = Settings::new("entra", "https://login.example.com/{tenantid}/v2.0");
        settings.tenants = ["a", "b"].map(Box::from).into();

        assert!(settings.is_named("https://login.example.com/a/v2.0"));
        assert!(settings.is_named("https://login.example.com/b/v2.0"));
        for other in [
            "https://login.example.com/c/v2.0",
            "https://login.example.com/{tenantid}/v2.0",
            "https://login.example.com/a/v2.0/",
            "https://login.example.com/a/b/v2.0",
            "https://login.example.com//v2.0",
        ] {
            assert!(!settings.is_named(other), "{other}");
        }
        assert_eq!(settings.identifier(), "https://login.example.com/a/v2.0");
    }

    #[test]
    fn debug_output_of_a_client_hides_its_secret() {
        let client =
            Client { id: "gateway".into(), auth: ClientAuth::Post(Secret::from("s3cret")) };

        assert!(!format!("{client:?}").contains("s3cret"));
    }
}
