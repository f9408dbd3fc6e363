//! The parts that every call to an authorization server needs.

use std::sync::Arc;

use http::HeaderValue;
use url::Url;

use super::circuit_breaker::CircuitBreakers;
use super::client_auth::{Form, authenticate};
use super::http_client::IssuerClient;
use super::introspection_token::Introspector;
use super::jwks_cache::ProviderCache;
use super::settings::{AssertionAudience, Client, Settings};
use super::signing_key::SigningFailed;
use crate::base::clock::{Clock, Timestamp};

/// The parts that calls need; each holds them while it runs.
pub(super) struct CallContext {
    pub(super) settings: Arc<Settings>,
    pub(super) clock: Clock,
    pub(super) http_client: Arc<IssuerClient>,
    pub(super) provider_cache: Arc<ProviderCache>,
    pub(super) introspector: Introspector,
    pub(super) circuits: CircuitBreakers,
}

impl CallContext {
    /// Adds the client's authentication at `endpoint` to `form`, signed as this server announces, and returns the value of
    /// `Authorization` if the method needs one.
    pub(super) fn authenticate(
        &self,
        client: &Client,
        form: &mut Form,
        endpoint: &Url,
        now: Timestamp,
    ) -> Result<Option<HeaderValue>, SigningFailed> {
        let metadata = self.provider_cache.known_metadata();
        let announced = &metadata.assertion_algorithms;
        let audience = match self.settings.assertion_audience {
            AssertionAudience::Issuer => self.settings.identifier(),
            AssertionAudience::TokenEndpoint => {
                metadata.endpoints.token.as_ref().unwrap_or(endpoint).as_str().into()
            }
            AssertionAudience::Endpoint => endpoint.as_str().into(),
        };
        authenticate(client, form, &audience, announced, now)
    }
}
