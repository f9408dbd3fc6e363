//! The parts that every call to an authorization server needs.

use std::sync::Arc;

use http::HeaderValue;

use super::circuit_breaker::CircuitBreakers;
use super::client_auth::{Form, authenticate};
use super::http_client::IssuerClient;
use super::introspection_token::Introspector;
use super::jwks_cache::ProviderCache;
use super::settings::{Client, Settings};
use super::signing_key::SigningFailed;
use crate::base::clock::{Clock, Timestamp};

/// The parts that calls need; each holds them while it runs.
pub(super) struct Inner {
    pub(super) settings: Arc<Settings>,
    pub(super) clock: Clock,
    pub(super) http_client: Arc<IssuerClient>,
    pub(super) provider_cache: Arc<ProviderCache>,
    pub(super) introspector: Introspector,
    pub(super) circuits: CircuitBreakers,
}

impl Inner {
    /// Adds the client's authentication to `form`, signed as this server announces, and returns the value of
    /// `Authorization` if the method needs one.
    pub(super) fn authenticate(
        &self,
        client: &Client,
        form: &mut Form,
        now: Timestamp,
    ) -> Result<Option<HeaderValue>, SigningFailed> {
        let metadata = self.provider_cache.known_metadata();
        let announced = &metadata.assertion_algorithms;
        authenticate(client, form, &self.settings.identifier(), announced, now)
    }
}
