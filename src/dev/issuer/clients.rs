//! The registered clients.

use core::time::Duration;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, RwLock};

use serde_json::Value;

use super::keys::Algorithm;
use crate::base::lock::IgnorePoison;
use crate::base::scopes::Scopes;
use crate::base::secret::Secret;

/// A registered client (RFC 6749 §2).
#[derive(Clone, Debug)]
pub struct Client {
    /// The `client_id`.
    pub id: Arc<str>,
    /// The name on the consent page.
    pub name: String,
    /// The authentication method.
    pub authentication: Authentication,
    /// The grant types it may use.
    pub grants: Vec<GrantType>,
    /// The redirect URIs, compared byte for byte.
    pub redirect_uris: Vec<String>,
    /// The redirect URIs after a logout, compared byte for byte.
    pub post_logout_redirect_uris: Vec<String>,
    /// The URI that receives logout tokens (OpenID Connect Back-Channel Logout).
    pub backchannel_logout_uri: Option<String>,
    /// The scopes it may request.
    pub scopes: Scopes,
    /// The format of its access tokens, unless the resource has another.
    pub tokens: TokenFormat,
    /// The algorithm of its tokens; `None`: the issuer's first algorithm.
    pub algorithm: Option<Algorithm>,
    /// The lifetime of its access tokens; `None`: the issuer's default.
    pub access_lifetime: Option<Duration>,
    /// Whether a refresh token is replaced when it is redeemed (RFC 9700 §4.14.2). Default: true.
    pub rotates_refresh_tokens: bool,
    /// Whether it may introspect other clients' tokens (RFC 7662). Default: false.
    pub introspects: bool,
}

impl Client {
    /// Creates a client with a secret, sent as HTTP Basic credentials. It has no grant types and no scopes.
    pub fn confidential(id: &str, secret: &str) -> Self {
        Self::authenticating(id, Authentication::Basic(secret.into()))
    }

    /// Creates a public client, such as a mobile application. It has no grant types and no scopes.
    pub fn public(id: &str) -> Self {
        Self::authenticating(id, Authentication::None)
    }

    /// Creates a client with the given authentication method. It has no grant types and no scopes.
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

    /// Sets the name on the consent page.
    #[must_use]
    pub fn called(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    /// Sets the grant types.
    #[must_use]
    pub fn grants(self, grants: &[GrantType]) -> Self {
        Self { grants: grants.to_vec(), ..self }
    }

    /// Sets the scopes, separated by spaces.
    #[must_use]
    pub fn scopes(self, scopes: &str) -> Self {
        Self { scopes: Scopes::parse(scopes), ..self }
    }

    /// Adds a redirect URI.
    #[must_use]
    pub fn redirects_to(mut self, uri: &str) -> Self {
        self.redirect_uris.push(uri.to_owned());
        self
    }

    /// Adds a redirect URI after a logout.
    #[must_use]
    pub fn returns_to_after_logout(mut self, uri: &str) -> Self {
        self.post_logout_redirect_uris.push(uri.to_owned());
        self
    }

    /// Selects reference tokens.
    #[must_use]
    pub fn reference_tokens(self) -> Self {
        Self { tokens: TokenFormat::Reference, ..self }
    }

    /// Sets the lifetime of access tokens.
    #[must_use]
    pub fn access_lifetime(self, lifetime: Duration) -> Self {
        Self { access_lifetime: Some(lifetime), ..self }
    }

    /// Allows the introspection of other clients' tokens.
    #[must_use]
    pub fn introspects(self) -> Self {
        Self { introspects: true, ..self }
    }

    /// Whether the client may use `grant`.
    pub(super) fn may_use(&self, grant: GrantType) -> bool {
        self.grants.contains(&grant)
    }
}

/// A client authentication method (RFC 7591 §2, `token_endpoint_auth_method`).
#[derive(Clone, Debug)]
pub enum Authentication {
    /// `client_secret_basic`: HTTP Basic credentials, form-encoded (RFC 6749 §2.3.1).
    Basic(Secret<String>),
    /// `client_secret_post`: in the form.
    Post(Secret<String>),
    /// `private_key_jwt`: a JWT signed with a key of this JWK Set (RFC 7523).
    PrivateKeyJwt(Value),
    /// `none`: a public client sends its `client_id` only.
    None,
}

impl Authentication {
    /// Returns the registered name of the method.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Basic(_) => "client_secret_basic",
            Self::Post(_) => "client_secret_post",
            Self::PrivateKeyJwt(_) => "private_key_jwt",
            Self::None => "none",
        }
    }
}

/// A grant type (RFC 6749 §1.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GrantType {
    /// `authorization_code`: the user logs in at the issuer's own page.
    AuthorizationCode,
    /// `password`: the client sends the user's password. Ruled out by RFC 9700 §2.4, except between first parties.
    Password,
    /// `client_credentials`: the client acts on its own behalf.
    ClientCredentials,
    /// `refresh_token`: a new access token for an existing grant.
    RefreshToken,
}

impl GrantType {
    /// All grant types.
    pub const ALL: [Self; 4] =
        [Self::AuthorizationCode, Self::Password, Self::ClientCredentials, Self::RefreshToken];

    /// Returns the `grant_type` value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AuthorizationCode => "authorization_code",
            Self::Password => "password",
            Self::ClientCredentials => "client_credentials",
            Self::RefreshToken => "refresh_token",
        }
    }

    /// Returns the grant type of a `grant_type` value.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|grant| grant.name() == name)
    }
}

/// The format of an access token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TokenFormat {
    /// A JWT that a resource server can verify by itself (RFC 9068).
    Signed,
    /// A random reference; only introspection returns its claims.
    Reference,
}

/// All clients: the pre-registered ones, and dynamically registered ones up to a bound.
#[derive(Debug)]
pub(super) struct Clients(RwLock<ClientMap>);

#[derive(Debug)]
struct ClientMap {
    by_id: HashMap<Arc<str>, Arc<Client>>,
    /// The dynamically registered clients, the oldest first.
    registered: VecDeque<Arc<str>>,
}

impl Clients {
    pub(super) fn new(clients: Vec<Client>) -> Self {
        let by_id = clients.into_iter().map(|c| (Arc::clone(&c.id), Arc::new(c))).collect();
        Self(RwLock::new(ClientMap { by_id, registered: VecDeque::new() }))
    }

    pub(super) fn find(&self, id: &str) -> Option<Arc<Client>> {
        self.0.read().ignore_poison().by_id.get(id).cloned()
    }

    /// Returns all clients in order of their ids.
    pub(super) fn all(&self) -> Vec<Arc<Client>> {
        let known = self.0.read().ignore_poison();
        let mut all: Vec<_> = known.by_id.values().cloned().collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// Adds a client; the oldest registered one is evicted when there are too many.
    pub(super) fn register(&self, client: Client) -> Arc<Client> {
        let client = Arc::new(client);
        let mut known = self.0.write().ignore_poison();
        if known.registered.len() == MAX_REGISTERED
            && let Some(oldest) = known.registered.pop_front()
        {
            known.by_id.remove(&oldest);
        }
        known.registered.push_back(Arc::clone(&client.id));
        known.by_id.insert(Arc::clone(&client.id), Arc::clone(&client));
        client
    }
}

const MAX_REGISTERED: usize = 1_000;
