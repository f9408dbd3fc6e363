//! The state of the development issuer, which every endpoint works on.

use tokio::runtime::Handle;

use super::browser_sessions::BrowserSessions;
use super::clients::Clients;
use super::config::DevIssuerConfig;
use super::keys::KeyRing;
use super::pushed_requests::PushedRequests;
use super::store::Store;
use super::users::Users;
use crate::base::clock::Clock;
use crate::base::scopes::Scopes;

/// The state of the issuer, shared by all its connections.
#[derive(Debug)]
pub struct DevIssuer {
    pub(super) url: String,
    pub(super) config: DevIssuerConfig,
    pub(super) clock: Clock,
    pub(super) keys: KeyRing,
    pub(super) clients: Clients,
    pub(super) browser_sessions: BrowserSessions,
    pub(super) pushed_requests: PushedRequests,
    pub(super) users: Users,
    pub(super) store: Store,
    pub(super) control: Handle,
}

impl DevIssuer {
    /// Returns every scope that a client is registered for.
    pub(super) fn scopes(&self) -> Vec<String> {
        let clients = self.clients.all();
        let scopes: Scopes = clients.iter().flat_map(|client| client.scopes.iter()).collect();
        scopes.iter().map(str::to_owned).collect()
    }
}
