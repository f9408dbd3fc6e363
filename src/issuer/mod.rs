//! Floor 2: everything said to an authorization server.
//!
//! An *issuer* is an OAuth 2.0 authorization server (RFC 8414). This room
//! finds its endpoints, keeps its signing keys, asks it about reference
//! tokens and performs grants there. What a token *means* is decided one
//! floor up, in `token`.

pub mod algorithm;
mod calls;
mod circuit_breaker;
mod client_auth;
mod concurrency;
mod freshness;
pub mod grant;
mod http_client;
pub mod introspect;
#[cfg(test)]
mod isolation;
pub mod json;
pub mod jwk;
pub mod jwks;
mod jwks_cache;
mod jwks_storage;
mod key_strength;
pub mod metadata;
mod own_token;
mod par;
mod purpose;
mod resource_indicator;
mod revocation;
pub mod settings;
pub mod signing_key;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod token_response;
mod unavailable;
mod unusable_key;
#[cfg(test)]
mod wire;

use self::calls::Inner;
use core::fmt;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;

pub use self::grant::{Grant, GrantError};
pub use self::token_response::Tokens;
pub use algorithm::Algorithm;
pub use introspect::{AcceptedFormat, IntrospectionResponse};
pub use jwk::Key;
pub use jwks::{Jwks, KeySelectionError};
pub use metadata::Metadata;
pub use resource_indicator::{NotAResource, ResourceIndicator};
pub use revocation::TokenHint;
pub use settings::{
    Client, ClientAuth, Discovery, Endpoints, Introspection, IntrospectionAuthorization,
    OnUnavailable, PasswordGrant, Settings, SignedAnswer,
};
pub use unavailable::Unavailable;

use self::own_token::Introspector;
use circuit_breaker::CircuitBreakers;
use grant::TokenRequest;
use http_client::IssuerClient;
use jwks_cache::ProviderCache;

use crate::base::clock::Clock;
use crate::base::secret::Secret;
use crate::observe::metrics::Metrics;
use crate::tls::TlsError;

/// One authorization server. Dropping it stops whatever runs for it in the background.
///
/// Calls run on the control runtime and end there even if whoever awaits them goes away.
pub struct Issuer {
    inner: Arc<Inner>,
    keeper: AbortHandle,
    control: Handle,
}

impl Issuer {
    /// Starts finding the server's endpoints and keys on `control`, and waits for nothing.
    ///
    /// # Errors
    ///
    /// [`TlsError`] if the configured authorities or client certificate cannot be used.
    pub fn new(
        settings: Settings,
        clock: Clock,
        metrics: &Metrics,
        control: Handle,
    ) -> Result<Self, TlsError> {
        let settings = Arc::new(settings);
        let metrics = metrics.issuer(&settings.name);
        let calls = Arc::new(IssuerClient::new(&settings, clock.clone(), Arc::clone(&metrics))?);
        let published = Arc::new(ProviderCache::new(
            Arc::clone(&settings),
            Arc::clone(&calls),
            clock.clone(),
            metrics,
            control.clone(),
        ));
        let keeper = control.spawn(Arc::clone(&published).run()).abort_handle();
        let inner = Arc::new(Inner {
            settings,
            clock,
            calls,
            published,
            introspector: Introspector::default(),
            circuits: CircuitBreakers::new(),
        });
        Ok(Self { inner, keeper, control })
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.inner.settings.name
    }

    /// What the operator says about it.
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// What it says about itself, as far as that is known; configured endpoints always are.
    pub fn metadata(&self) -> Arc<Metadata> {
        self.inner.published.known_metadata()
    }

    /// Whether it has answered at least once, or need not be asked anything: for `/readyz`.
    pub fn has_responded(&self) -> bool {
        self.inner.published.has_answered()
    }

    /// Its signing keys; `None` until the first have arrived.
    pub fn keys(&self) -> Option<Arc<Jwks>> {
        self.inner.published.keys()
    }

    /// Its signing keys, asked for because those at hand lack `kid`.
    ///
    /// Everybody who asks at the same time waits for one fetch. Another one is
    /// made only after [`Settings::jwks_min_interval`], and for the same `kid`
    /// later still: until then the keys at hand are returned as they are.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if the server cannot be asked: nobody can say then
    /// whether the key is unknown.
    pub async fn keys_for(&self, kid: Option<&str>) -> Result<Arc<Jwks>, Unavailable> {
        self.inner.published.keys_for(kid).await
    }

    /// Asks about a token that only this server understands (RFC 7662).
    ///
    /// Neither kept nor shared: that is for whoever judges the answer.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] for every trouble that is not the token's: no endpoint or
    /// client, no answer, one that makes no sense, or our own client refused.
    pub async fn introspect(
        &self,
        token: &Secret<String>,
        accept: AcceptedFormat,
    ) -> Result<IntrospectionResponse, Unavailable> {
        let token = token.clone();
        self.call(|inner| async move { inner.introspect(&token, accept).await })
            .await
            .unwrap_or(Err(Unavailable::RETRY_SOON))
    }

    /// Redeems `grant` as `client_auth` at the token endpoint.
    ///
    /// # Errors
    ///
    /// See [`GrantError`].
    pub async fn grant(&self, grant: Grant<'_>, client: &Client) -> Result<Tokens, GrantError> {
        self.redeem(TokenRequest::new(&grant, self.inner.settings.timeout), client).await
    }

    /// The same, but for what is spent by being sent: the answer, if it comes late, is the only one
    /// there will ever be, so it is waited for [`Settings::extended_timeout`].
    ///
    /// # Errors
    ///
    /// See [`GrantError`].
    pub async fn grant_with_extended_timeout(
        &self,
        grant: Grant<'_>,
        client: &Client,
    ) -> Result<Tokens, GrantError> {
        self.redeem(TokenRequest::new(&grant, self.inner.settings.extended_timeout()), client).await
    }

    async fn redeem(&self, redeem: TokenRequest, client: &Client) -> Result<Tokens, GrantError> {
        let client = client.clone();
        self.call(|inner| async move { inner.request_tokens(redeem, &client).await })
            .await
            .unwrap_or(Err(GrantError::Unavailable))
    }

    /// Gives a token back (RFC 7009). A server without the endpoint counts as done.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if the server did not confirm it.
    pub async fn revoke(
        &self,
        token: &Secret<String>,
        hint: TokenHint,
        client: &Client,
    ) -> Result<(), Unavailable> {
        let (token, client) = (token.clone(), client.clone());
        self.call(|inner| async move { inner.revoke(&token, hint, &client).await })
            .await
            .unwrap_or(Err(Unavailable::RETRY_SOON))
    }

    /// Leaves an authorization request with the server before the browser goes
    /// there (RFC 9126): its `request_uri`, or `None` if the server takes none.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if the server did not take it.
    pub async fn push(
        &self,
        request: Vec<(&'static str, String)>,
        client: &Client,
    ) -> Result<Option<String>, Unavailable> {
        let client = client.clone();
        self.call(|inner| async move { inner.push(request, &client).await })
            .await
            .unwrap_or(Err(Unavailable::RETRY_SOON))
    }

    /// Runs a call on the control runtime, where it goes on if nobody waits any
    /// more; `None` if it panicked or the runtime is gone.
    async fn call<F>(&self, call: impl FnOnce(Arc<Inner>) -> F) -> Option<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.control.spawn(call(Arc::clone(&self.inner))).await.ok()
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Issuer").field(&self.inner.settings.name).finish()
    }
}
