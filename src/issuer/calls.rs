//! The parts that every call to an authorization server needs.

use std::sync::Arc;

use super::circuit_breaker::CircuitBreakers;
use super::http_client::IssuerClient;
use super::jwks_cache::ProviderCache;
use super::own_token::Introspector;
use super::settings::Settings;
use crate::base::clock::Clock;

/// The parts that calls need; each holds them while it runs.
pub(super) struct Inner {
    pub(super) settings: Arc<Settings>,
    pub(super) clock: Clock,
    pub(super) http_client: Arc<IssuerClient>,
    pub(super) provider_cache: Arc<ProviderCache>,
    pub(super) introspector: Introspector,
    pub(super) circuits: CircuitBreakers,
}
