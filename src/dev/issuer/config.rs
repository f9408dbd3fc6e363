//! The configuration of a development issuer. `northgate dev` and most tests use the default.

use core::time::Duration;

use super::clients::{Client, GrantType, TokenFormat};
use super::keys::Algorithm;
use super::users::User;

/// Clients, users, resources, algorithms and lifetimes.
#[derive(Clone, Debug)]
pub struct DevIssuerConfig {
    /// The issuer identifier, the `iss` of its tokens, without a slash at the end. Default: `http://` and the address it listens on.
    pub issuer: Option<String>,
    /// The pre-registered clients.
    pub clients: Vec<Client>,
    /// The users who can log in.
    pub users: Vec<User>,
    /// The resources its tokens may be for; the first is the default.
    pub resources: Vec<Resource>,
    /// The signature algorithms, at least one; the first is the default.
    pub algorithms: Vec<Algorithm>,
    /// The lifetime of access tokens. Default: 10 minutes.
    pub access_lifetime: Duration,
    /// The lifetime of refresh tokens. Default: 8 hours.
    pub refresh_lifetime: Duration,
    /// The lifetime of ID tokens. Default: 10 minutes.
    pub id_lifetime: Duration,
    /// How long a retired signing key stays published. Default: 1 hour.
    pub keys_published_for: Duration,
}

/// A resource server, or a group of them (RFC 8707).
#[derive(Clone, Debug)]
pub struct Resource {
    /// The `resource` parameter and the `aud` claim.
    pub uri: String,
    /// The format of its access tokens; `None`: the client's format.
    pub tokens: Option<TokenFormat>,
}

impl Resource {
    /// Creates a resource that takes the client's format.
    pub fn new(uri: &str) -> Self {
        Self { uri: uri.to_owned(), tokens: None }
    }
}

impl Default for DevIssuerConfig {
    fn default() -> Self {
        Self {
            issuer: None,
            clients: vec![gateway(), web(), api(), partner()],
            users: vec![
                User::new("alice", "wonderland", "Alice Liddell").in_group("customers"),
                User::new("bob", "builder", "Bob Builder").in_group("customers").in_group("staff"),
            ],
            resources: vec![Resource::new(API)],
            algorithms: Algorithm::ALL.to_vec(),
            access_lifetime: Duration::from_secs(600),
            refresh_lifetime: Duration::from_secs(8 * 3600),
            id_lifetime: Duration::from_secs(600),
            keys_published_for: Duration::from_secs(3600),
        }
    }
}

/// The gateway itself: introspects tokens, and exchanges Basic credentials.
fn gateway() -> Client {
    Client::confidential("gateway", "gateway-secret")
        .called("The gateway")
        .grants(&[GrantType::ClientCredentials, GrantType::Password, GrantType::RefreshToken])
        .scopes(ALL_SCOPES)
        .introspects()
}

/// The gateway's browser sessions. Its tokens have a short lifetime, so that a refresh can be seen.
fn web() -> Client {
    Client::confidential("gateway-web", "gateway-web-secret")
        .called("The shop")
        .grants(&[GrantType::AuthorizationCode, GrantType::Password, GrantType::RefreshToken])
        .scopes(ALL_SCOPES)
        .redirects_to("https://localhost:8443/auth/callback")
        .returns_to_after_logout("https://localhost:8443/")
        .access_lifetime(Duration::from_secs(300))
}

/// A program that reads orders with signed tokens.
fn api() -> Client {
    Client::confidential("api", "api-secret")
        .called("A program that reads orders")
        .grants(&[GrantType::ClientCredentials])
        .scopes("orders:read orders:write")
}

/// A program that uses reference tokens.
fn partner() -> Client {
    Client::confidential("partner", "partner-secret")
        .called("A partner's program")
        .grants(&[GrantType::ClientCredentials])
        .scopes("partners:read")
        .reference_tokens()
}

/// The audience of the sample services: `audience` in `gateway.yaml`.
pub const API: &str = "https://api.localhost";

const ALL_SCOPES: &str =
    "openid profile email offline_access orders:read orders:write partners:read";
