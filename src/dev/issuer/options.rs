//! What a development issuer is started with. The default is what `northgate dev` and most tests use.

use core::time::Duration;

use super::clients::{Client, GrantType, TokenFormat};
use super::keys::Algorithm;
use super::people::Person;

/// Whom the issuer knows, and how long what it gives lives.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its own name, the `iss` of its tokens, without a slash at the end. Default `http://` and the address it listens on.
    pub issuer: Option<String>,
    /// The clients known from the start.
    pub clients: Vec<Client>,
    /// The people who can log in.
    pub people: Vec<Person>,
    /// Where its tokens may be used; the first is meant when none is asked for.
    pub resources: Vec<Resource>,
    /// What it can sign with; the first is used for clients without a wish. At least one.
    pub algorithms: Vec<Algorithm>,
    /// How long access tokens live. Default 10 minutes.
    pub access_lifetime: Duration,
    /// How long refresh tokens live. Default 8 hours.
    pub refresh_lifetime: Duration,
    /// How long ID tokens live. Default 10 minutes.
    pub id_lifetime: Duration,
    /// How long an old signing key stays published. Default 1 hour.
    pub keys_published_for: Duration,
}

/// A service, or a group of them, as tokens name it (RFC 8707).
#[derive(Clone, Debug)]
pub struct Resource {
    /// The `resource` parameter and the `aud` claim.
    pub uri: String,
    /// What kind of tokens it takes; `None` leaves it to the client.
    pub tokens: Option<TokenFormat>,
}

impl Resource {
    /// A resource that takes what the client takes.
    pub fn new(uri: &str) -> Self {
        Self { uri: uri.to_owned(), tokens: None }
    }
}

impl Options {
    /// Knows this client, too; one of the same id is replaced.
    #[must_use]
    pub fn with_client(mut self, client: Client) -> Self {
        self.clients.retain(|have| have.id != client.id);
        self.clients.push(client);
        self
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            issuer: None,
            clients: vec![gateway(), web(), api(), partner()],
            people: vec![
                Person::new("alice", "wonderland", "Alice Liddell").in_group("customers"),
                Person::new("bob", "builder", "Bob Builder")
                    .in_group("customers")
                    .in_group("staff"),
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

/// The gateway itself: asks about tokens, and exchanges Basic credentials.
fn gateway() -> Client {
    Client::confidential("gateway", "gateway-secret")
        .called("The gateway")
        .grants(&[GrantType::ClientCredentials, GrantType::Password, GrantType::RefreshToken])
        .scopes(EVERY_SCOPE)
        .introspects()
}

/// The gateway's browser sessions. Its tokens live shortly, so that a refresh can be seen.
fn web() -> Client {
    Client::confidential("gateway-web", "gateway-web-secret")
        .called("The shop")
        .grants(&[GrantType::AuthorizationCode, GrantType::Password, GrantType::RefreshToken])
        .scopes(EVERY_SCOPE)
        .redirects_to("https://localhost:8443/auth/callback")
        .returns_to_after_logout("https://localhost:8443/")
        .access_lifetime(Duration::from_secs(300))
}

/// A machine that reads orders with signed tokens.
fn api() -> Client {
    Client::confidential("api", "api-secret")
        .called("A program that reads orders")
        .grants(&[GrantType::ClientCredentials])
        .scopes("orders:read orders:write")
}

/// A machine that comes with reference tokens.
fn partner() -> Client {
    Client::confidential("partner", "partner-secret")
        .called("A partner's program")
        .grants(&[GrantType::ClientCredentials])
        .scopes("partners:read")
        .reference_tokens()
}

/// The audience of the sample services: `audience` in `gateway.yaml`.
pub const API: &str = "https://api.localhost";

const EVERY_SCOPE: &str =
    "openid profile email offline_access orders:read orders:write partners:read";
