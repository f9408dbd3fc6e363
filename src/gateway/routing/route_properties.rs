//! The part of a route that exchanges use and keep until their responses have ended.

use std::sync::Arc;

use crate::config::route::Cors;
use crate::gateway::response::problem::AuthChallenges;
use crate::limit::RouteLimits;
use crate::observe::metrics::RouteMetrics;

/// The part of a route that exchanges use and keep until their responses have ended.
#[derive(Debug)]
pub struct RouteProperties {
    /// The route's name in the configuration; a metric label.
    pub(in crate::gateway) id: Arc<str>,
    /// The name of the upstream that requests are forwarded to, if any.
    pub(in crate::gateway) upstream: Option<Arc<str>>,
    pub(in crate::gateway) cors: Option<Cors>,
    /// The authentication methods, for a 401.
    pub(in crate::gateway) challenges: AuthChallenges,
    /// Limits by address, by route or global apply before any cryptography, all others after authorization.
    pub(in crate::gateway) limits: RouteLimits,
    /// Whether the route is disabled: its policies are not applied then.
    pub(in crate::gateway) is_disabled: bool,
    /// Whether it serves the paths of a session: login, logout, status.
    pub(in crate::gateway) serves_a_session: bool,
    pub(in crate::gateway) security_headers: bool,
    pub(in crate::gateway) access_log: bool,
    pub(in crate::gateway) metrics: Arc<RouteMetrics>,
}
