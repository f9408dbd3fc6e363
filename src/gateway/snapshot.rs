//! The snapshot of a configuration, from which requests are served, and its routes.

use core::time::Duration;
use std::sync::Arc;

use super::policy::authenticate::Authenticate;
use super::policy::authorize::Authorize;
use super::routing::action::Action;
use super::routing::route::Router;
use super::routing::route_properties::RouteProperties;
use super::stage_context::{HasStageContext, StageContext};
use crate::config::route::{Coding, Cors};
use crate::config::server::Server;
use crate::limit::Limiter;
use crate::revocation_sync::RevocationSync;
use crate::token::IssuerVerifier;
use crate::upstream::Upstream;

/// Everything needed to serve requests, compiled from one configuration. Immutable; replaced as a whole.
#[derive(Debug)]
pub struct Snapshot {
    pub(super) router: Router<Route>,
    /// The part that exchanges and stages use, whatever the route.
    pub(super) context: StageContext,
    /// The authorization servers that routes use.
    pub(super) issuer_verifiers: Vec<Arc<IssuerVerifier>>,
    pub(super) upstreams: Vec<Arc<Upstream>>,
    /// The limits of the configuration.
    pub(super) limiters: Vec<Arc<Limiter>>,
    /// The exchange of revocations with the other instances on the same Redis.
    pub(super) revocation_sync: Option<Arc<RevocationSync>>,
    /// Whether a route matches header fields that the gateway sets itself.
    pub(super) matches_gateway_fields: bool,
    /// Whether a route may ask the user of a session to log in again, and keep a form meanwhile.
    pub(super) defers_forms: bool,
    /// The hash of the configuration that this was compiled from.
    pub hash: String,
}

/// One compiled route: its stages in the order in which `Snapshot::handle` runs them.
#[derive(Debug)]
pub struct Route {
    /// The part that exchanges keep until their responses have ended.
    pub(super) properties: Arc<RouteProperties>,
    pub(super) authenticate: Authenticate,
    pub(super) authorize: Authorize,
    pub(super) action: Action,
    /// The limit on the bytes of request content; `None` is unlimited.
    pub(super) max_body_size: Option<u64>,
    /// Content codings of compressed responses, the preferred one first.
    pub(super) compress: Vec<Coding>,
}

impl Snapshot {
    /// Returns the server settings: the limits that hold for every request.
    pub const fn server(&self) -> &Server {
        &self.context.server
    }

    /// Whether revocations are published to other instances.
    pub const fn is_shared(&self) -> bool {
        self.revocation_sync.is_some()
    }

    /// Waits up to `timeout` for the revocations that other instances published through Redis.
    pub async fn receive_revocations(&self, timeout: Duration) {
        if let Some(sync) = &self.revocation_sync
            && !sync.wait_for_initial_sync(timeout).await
        {
            tracing::warn!(
                "Could not receive the revocations of other instances: Redis did not respond in time; their revocations are not enforced yet."
            );
        }
    }

    /// Waits up to `timeout` until pending revocations are published to other instances.
    pub async fn publish_revocations(&self, timeout: Duration) {
        if let Some(sync) = &self.revocation_sync {
            sync.flush(timeout).await;
        }
    }
}

impl HasStageContext for Snapshot {
    fn context(&self) -> &StageContext {
        &self.context
    }
}

impl Route {
    /// Returns the CORS policy by which pages may send requests that the route serves.
    pub(super) fn grants(&self) -> Option<&Cors> {
        self.properties.cors.as_ref().filter(|_| !self.properties.is_disabled)
    }
}
