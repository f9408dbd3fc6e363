//! The parts that every call to an authorization server needs.

use std::sync::Arc;

use http::HeaderValue;
use url::Url;

use super::circuit_breaker::CircuitBreakers;
use super::client_auth::{Form, authenticate};
use super::http_client::IssuerClient;
use crate::base::clock::{Clock, Timestamp};
use crate::issuer::endpoints::introspection_token::Introspector;
use crate::issuer::keys::jwks_cache::ProviderCache;
use crate::issuer::keys::signing_key::SigningFailed;
use crate::issuer::settings::{AssertionAudience, Client, Settings};

/// The parts that calls need; each holds them while it runs.
pub(in crate::issuer) struct CallContext {
    pub(in crate::issuer) settings: Arc<Settings>,
    pub(in crate::issuer) clock: Clock,
    pub(in crate::issuer) http_client: Arc<IssuerClient>,
    pub(in crate::issuer) provider_cache: Arc<ProviderCache>,
    pub(in crate::issuer) introspector: Introspector,
    pub(in crate::issuer) circuits: CircuitBreakers,
}

impl CallContext {
    /// Adds the client's authentication at `endpoint` to `form`, signed as this server announces, and returns the value of
    /// `Authorization` if the method needs one.
    pub(in crate::issuer) fn authenticate(
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
