//! The programs that may ask for tokens, and what each may ask for.

use core::time::Duration;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};

use serde_json::Value;

use super::keys::Algorithm;
use crate::base::scopes::Scopes;
use crate::base::secret::Secret;

/// A program that may ask for tokens (RFC 6749 §2).
#[derive(Clone, Debug)]
pub struct Client {
    /// Its `client_id`.
    pub id: Arc<str>,
    /// How it is called on the consent page.
    pub name: String,
    /// How it proves who it is.
    pub authentication: Authentication,
    /// The grants it may use.
    pub grants: Vec<GrantType>,
    /// Where people may be sent back to after a login, compared byte for byte.
    pub redirect_uris: Vec<String>,
    /// Where people may be sent back to after a logout, compared byte for byte.
    pub post_logout_redirect_uris: Vec<String>,
    /// Where it wants to be told that a login has ended (OpenID Connect Back-Channel Logout); `None` is nowhere.
    pub backchannel_logout_uri: Option<String>,
    /// The scopes it may ask for.
    pub scopes: Scopes,
    /// What kind of access token it is given, unless the resource wants another.
    pub tokens: TokenFormat,
    /// What its tokens are signed with; `None` is the issuer's first algorithm.
    pub algorithm: Option<Algorithm>,
    /// How long its access tokens live; `None` is as the issuer's options say.
    pub access_lifetime: Option<Duration>,
    /// Whether a refresh token is replaced when it is used (RFC 9700 §4.14.2). Default true.
    pub rotates_refresh_tokens: bool,
    /// Whether it may ask about other clients' tokens (RFC 7662). Default false.
    pub introspects: bool,
}

impl Client {
    /// A client with a secret, sent as HTTP Basic credentials. It may do nothing yet.
    pub fn confidential(id: &str, secret: &str) -> Self {
        Self::authenticating(id, Authentication::Basic(secret.into()))
    }

    /// A client without a secret, such as a program on somebody's phone. It may do nothing yet.
    pub fn public(id: &str) -> Self {
        Self::authenticating(id, Authentication::None)
    }

    /// A client that proves itself in the given way. It may do nothing yet.
    pub fn authenticating(id: &str, authentication: Authentication) -> Self {
        Self {
            id: id.into(),
            name: id.to_owned(),
            authentication,
            grants: Vec::new(),
            redirect_uris: Vec::new(),
            post_logout_redirect_uris: Vec::new(),
            backchannel_logout_uri: None,
            scopes: Scopes::default(),
            tokens: TokenFormat::Signed,
            algorithm: None,
            access_lifetime: None,
            rotates_refresh_tokens: true,
            introspects: false,
        }
    }

    /// Called `name` on the consent page.
    #[must_use]
    pub fn called(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    /// May use these grants.
    #[must_use]
    pub fn grants(self, grants: &[GrantType]) -> Self {
        Self { grants: grants.to_vec(), ..self }
    }

    /// May ask for these scopes, separated by spaces.
    #[must_use]
    pub fn scopes(self, scopes: &str) -> Self {
        Self { scopes: Scopes::parse(scopes), ..self }
    }

    /// People may be sent back to `uri` after a login.
    #[must_use]
    pub fn redirects_to(mut self, uri: &str) -> Self {
        self.redirect_uris.push(uri.to_owned());
        self
    }

    /// People may be sent back to `uri` after a logout.
    #[must_use]
    pub fn returns_to_after_logout(mut self, uri: &str) -> Self {
        self.post_logout_redirect_uris.push(uri.to_owned());
        self
    }

    /// Wants to be told at `uri` that a login has ended.
    #[must_use]
    pub fn told_of_logouts_at(self, uri: &str) -> Self {
        Self { backchannel_logout_uri: Some(uri.to_owned()), ..self }
    }

    /// Is given reference tokens.
    #[must_use]
    pub fn reference_tokens(self) -> Self {
        Self { tokens: TokenFormat::Reference, ..self }
    }

    /// Has its tokens signed with `algorithm`.
    #[must_use]
    pub fn signed_with(self, algorithm: Algorithm) -> Self {
        Self { algorithm: Some(algorithm), ..self }
    }

    /// Is given access tokens that live so long.
    #[must_use]
    pub fn access_lifetime(self, lifetime: Duration) -> Self {
        Self { access_lifetime: Some(lifetime), ..self }
    }

    /// Keeps its refresh token when it uses it.
    #[must_use]
    pub fn keeps_refresh_tokens(self) -> Self {
        Self { rotates_refresh_tokens: false, ..self }
    }

    /// May ask about other clients' tokens.
    #[must_use]
    pub fn introspects(self) -> Self {
        Self { introspects: true, ..self }
    }

    /// Whether it may use `grant`.
    pub(super) fn may_use(&self, grant: GrantType) -> bool {
        self.grants.contains(&grant)
    }
}

/// How a client proves who it is (RFC 7591 §2, `token_endpoint_auth_method`).
#[derive(Clone, Debug)]
pub enum Authentication {
    /// `client_secret_basic`: HTTP Basic credentials, form-encoded (RFC 6749 §2.3.1).
    Basic(Secret<String>),
    /// `client_secret_post`: in the form.
    Post(Secret<String>),
    /// `private_key_jwt`: a JWT signed with a key of this JWK Set (RFC 7523).
    PrivateKeyJwt(Value),
    /// `none`: a public client only names itself.
    None,
}

impl Authentication {
    /// The registered name of the method.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Basic(_) => "client_secret_basic",
            Self::Post(_) => "client_secret_post",
            Self::PrivateKeyJwt(_) => "private_key_jwt",
            Self::None => "none",
        }
    }
}

/// A way to come by an access token (RFC 6749 §1.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GrantType {
    /// `authorization_code`: a person logs in at the issuer's own page.
    AuthorizationCode,
    /// `password`: a person gave the client their password. Ruled out by RFC 9700 §2.4; for first parties.
    Password,
    /// `client_credentials`: the client acts for itself.
    ClientCredentials,
    /// `refresh_token`: a new access token for an old grant.
    RefreshToken,
}

impl GrantType {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::AuthorizationCode, Self::Password, Self::ClientCredentials, Self::RefreshToken];

    /// The `grant_type` value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AuthorizationCode => "authorization_code",
            Self::Password => "password",
            Self::ClientCredentials => "client_credentials",
            Self::RefreshToken => "refresh_token",
        }
    }

    /// The grant that a `grant_type` value names.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|grant| grant.name() == name)
    }
}

/// The two kinds of access tokens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TokenFormat {
    /// A JWT that a service can verify by itself (RFC 9068).
    Signed,
    /// A random name for what only this issuer knows; it is asked about by introspection.
    Reference,
}

/// The clients known, by id: those of the options for ever, registered ones up to a bound.
#[derive(Debug)]
pub(super) struct Clients(RwLock<Known>);

#[derive(Debug)]
struct Known {
    by_id: HashMap<Arc<str>, Arc<Client>>,
    /// Registered ones, the oldest first.
    registered: VecDeque<Arc<str>>,
}

impl Clients {
    pub(super) fn new(clients: Vec<Client>) -> Self {
        let by_id = clients.into_iter().map(|c| (Arc::clone(&c.id), Arc::new(c))).collect();
        Self(RwLock::new(Known { by_id, registered: VecDeque::new() }))
    }

    pub(super) fn find(&self, id: &str) -> Option<Arc<Client>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).by_id.get(id).cloned()
    }

    /// Everyone, in order of their names.
    pub(super) fn all(&self) -> Vec<Arc<Client>> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = known.by_id.values().cloned().collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// Adds a client; the oldest registered one makes room.
    pub(super) fn register(&self, client: Client) -> Arc<Client> {
        let client = Arc::new(client);
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if known.registered.len() == MOST_REGISTERED
            && let Some(oldest) = known.registered.pop_front()
        {
            known.by_id.remove(&oldest);
        }
        known.registered.push_back(Arc::clone(&client.id));
        known.by_id.insert(Arc::clone(&client.id), Arc::clone(&client));
        client
    }
}

const MOST_REGISTERED: usize = 1_000;
