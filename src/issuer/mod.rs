//! Floor 2: the client side of an authorization server.
//!
//! An *issuer* is an OAuth 2.0 authorization server (RFC 8414). This room
//! discovers its endpoints, caches its JWK set, introspects opaque tokens and
//! performs grants there. The `token` room, one floor up, decides what a token
//! *means*.
//!
//! | Module | Content |
//! |---|---|
//! | `settings` | settings of an issuer |
//! | `endpoints` | one file for each endpoint: its request and the parsing of its response |
//! | `keys` | JWK sets, their cache, and signing keys |
//! | `calls` | what every call needs: authentication, concurrency, circuit breaking |

mod calls;
pub mod endpoints;
pub mod keys;
mod resource_indicator;
pub mod settings;
pub(crate) mod tenant_template;
#[cfg(test)]
pub(crate) mod tests;

use self::calls::call_context::CallContext;
use core::fmt;
use core::sync::atomic::Ordering::Relaxed;
use std::borrow::Cow;
use std::sync::Arc;

use tokio::runtime::Handle;

pub use self::endpoints::grant::{Grant, GrantError};
pub use self::endpoints::token_response::Tokens;
pub use calls::unavailable::Unavailable;
pub use endpoints::introspect::{AcceptedFormat, IntrospectionResponse};
pub use endpoints::metadata::Metadata;
pub use endpoints::revocation::{RevocationOutcome, TokenHint};
pub use endpoints::userinfo::UserinfoResponse;
pub use keys::algorithm::Algorithm;
pub use keys::jwk::Key;
pub use keys::jwks::{Jwks, KeySelectionError};
pub use resource_indicator::{NotAResource, ResourceIndicator};
pub use settings::{
    AssertionAudience, Client, ClientAuth, Discovery, Endpoints, Introspection,
    IntrospectionAuthorization, OnUnavailable, PasswordGrant, Settings, SignedAnswer,
};

use self::endpoints::introspection_token::Introspector;
use calls::circuit_breaker::CircuitBreakers;
use calls::http_client::IssuerClient;
use endpoints::grant::TokenRequest;
use keys::jwks_cache::ProviderCache;

use crate::base::abort_on_drop::AbortOnDrop;
use crate::base::clock::Clock;
use crate::base::secret::Secret;
use crate::observe::metrics::Metrics;
use crate::tls::TlsError;

/// One authorization server. Dropping it stops its background tasks.
///
/// Calls run on the control runtime, to their end even if the caller goes away.
pub struct Issuer {
    inner: Arc<CallContext>,
    _refresh_task: AbortOnDrop,
    control: Handle,
}

impl Issuer {
    /// Starts discovery and the fetching of keys on `control`, without waiting.
    ///
    /// # Errors
    ///
    /// `TlsError` if the configured authorities or client certificate cannot be used.
    pub fn new(
        settings: Settings,
        clock: Clock,
        metrics: &Metrics,
        control: Handle,
    ) -> Result<Self, TlsError> {
        Self::succeeding(&[], settings, clock, metrics, control)
    }

    /// As [`Issuer::new`], for other settings than those of `predecessors` of the same name: has their JWK set and metadata until
    /// its own fetches succeed, if these come from the same URL.
    ///
    /// # Errors
    ///
    /// As [`Issuer::new`].
    pub fn succeeding(
        predecessors: &[Arc<Self>],
        settings: Settings,
        clock: Clock,
        metrics: &Metrics,
        control: Handle,
    ) -> Result<Self, TlsError> {
        let predecessors: Vec<_> = predecessors
            .iter()
            .filter(|predecessor| *predecessor.name() == settings.name)
            .map(|predecessor| &*predecessor.inner.provider_cache)
            .collect();
        let settings = Arc::new(settings);
        let metrics = metrics.issuer(&settings.name);
        let http_client =
            Arc::new(IssuerClient::new(&settings, clock.clone(), Arc::clone(&metrics))?);
        let provider_cache = Arc::new(ProviderCache::new(
            Arc::clone(&settings),
            &predecessors,
            Arc::clone(&http_client),
            clock.clone(),
            metrics,
            control.clone(),
        ));
        let refresh_task = control.spawn(Arc::clone(&provider_cache).run()).abort_handle();
        let refresh_task = AbortOnDrop(refresh_task);
        let inner = Arc::new(CallContext {
            settings,
            clock,
            http_client,
            provider_cache,
            introspector: Introspector::default(),
            circuits: CircuitBreakers::new(),
        });
        Ok(Self { inner, _refresh_task: refresh_task, control })
    }

    /// Returns its name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.inner.settings.name
    }

    /// Returns its settings.
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// Returns its metadata as far as known; configured endpoints always are.
    pub fn metadata(&self) -> Arc<Metadata> {
        self.inner.provider_cache.known_metadata()
    }

    /// Whether tokens may be introspected: not if the server has no such endpoint, or the gateway no client there. As long
    /// as its metadata is unknown, they may be.
    pub fn may_introspect(&self) -> bool {
        let CallContext { settings, provider_cache, .. } = &*self.inner;
        let has_endpoint = self.metadata().endpoints.introspection.is_some();
        settings.client.is_some() && (has_endpoint || !provider_cache.is_discovered())
    }

    /// Whether the introspection endpoint, when it last responded, refused the gateway's client whatever the token.
    pub(crate) fn refuses_introspection(&self) -> bool {
        self.inner.introspector.refuses_client.load(Relaxed)
    }

    /// Whether it has responded at least once, or no call is needed: for `/readyz`.
    pub fn has_responded(&self) -> bool {
        self.inner.provider_cache.has_responded()
    }

    /// Returns its JWK set; `None` until the first has arrived.
    pub fn keys(&self) -> Option<Arc<Jwks>> {
        self.inner.provider_cache.keys()
    }

    /// Returns its JWK set, fetched again if the one at hand lacks `kid`, or without `kid` the key of a token that has this
    /// `signature`.
    ///
    /// Concurrent callers wait for one fetch. Another one is
    /// made only after [`Settings::jwks_min_interval`], and for the same `kid` or token
    /// later still: until then the set at hand is returned unchanged.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if the server does not respond: it is not known then
    /// whether the key exists.
    pub async fn keys_for(
        &self,
        kid: Option<&str>,
        signature: &[u8],
    ) -> Result<Arc<Jwks>, Unavailable> {
        self.inner.provider_cache.keys_for(kid, signature).await
    }

    /// Introspects a token (RFC 7662).
    ///
    /// Neither cached nor shared: that is up to the caller.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] for every failure that is not the token's: no endpoint or
    /// client, no response, a malformed one, or the gateway's own client refused.
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

    /// Redeems `grant` as `client` at the token endpoint.
    ///
    /// # Errors
    ///
    /// See [`GrantError`].
    pub async fn grant(&self, grant: Grant<'_>, client: &Client) -> Result<Tokens, GrantError> {
        self.request_tokens(TokenRequest::new(&grant, self.inner.settings.timeout), client).await
    }

    /// Redeems `grant` with [`Settings::extended_timeout`]: for single-use grants, whose response must
    /// not be lost because it comes late.
    ///
    /// # Errors
    ///
    /// See [`GrantError`].
    pub async fn grant_with_extended_timeout(
        &self,
        grant: Grant<'_>,
        client: &Client,
    ) -> Result<Tokens, GrantError> {
        self.request_tokens(
            TokenRequest::new(&grant, self.inner.settings.extended_timeout()),
            client,
        )
        .await
    }

    async fn request_tokens(
        &self,
        request_tokens: TokenRequest,
        client: &Client,
    ) -> Result<Tokens, GrantError> {
        let client = client.clone();
        self.call(|inner| async move { inner.request_tokens(request_tokens, &client).await })
            .await
            .unwrap_or(Err(GrantError::Unavailable))
    }

    /// Revokes a token (RFC 7009). Succeeds if the server has no such endpoint.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if the server did not confirm it.
    pub async fn revoke(
        &self,
        token: &Secret<String>,
        hint: TokenHint,
        client: &Client,
    ) -> Result<RevocationOutcome, Unavailable> {
        let (token, client) = (token.clone(), client.clone());
        self.call(|inner| async move { inner.revoke(&token, hint, &client).await })
            .await
            .unwrap_or(Err(Unavailable::RETRY_SOON))
    }

    /// Returns an authorization request as the server wants it: one signed object (RFC 9101) if it accepts no other.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if it must be signed, and the client has neither key nor secret.
    pub fn signed_if_required(
        &self,
        request: Vec<(Cow<'static, str>, String)>,
        client: &Client,
    ) -> Result<Vec<(Cow<'static, str>, String)>, Unavailable> {
        let (metadata, settings) = (self.metadata(), &self.inner.settings);
        if !metadata.requires_signed_request {
            return Ok(request);
        }
        let now = self.inner.clock.now();
        let announced = &metadata.request_algorithms;
        calls::client_auth::request_object(client, &request, &settings.identifier(), announced, now).map_err(|_| {
            tracing::error!(issuer = %settings.name, "This authorization server takes only signed requests, and the client has nothing to sign with: configure `private_key_jwt` or a secret.");
            Unavailable::RETRY_SOON
        })
    }

    /// Pushes an authorization request (RFC 9126): returns its `request_uri`, or `None` if
    /// the server does not support that.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if the server did not accept it.
    pub async fn push(
        &self,
        request: Vec<(Cow<'static, str>, String)>,
        client: &Client,
    ) -> Result<Option<String>, Unavailable> {
        let client = client.clone();
        self.call(|inner| async move { inner.push(request, &client).await })
            .await
            .unwrap_or(Err(Unavailable::RETRY_SOON))
    }

    /// Fetches the claims of the user that `access_token` was issued for (OpenID Connect Core §5.3); signed ones are not
    /// verified.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if the server has no such endpoint, or did not return claims.
    pub async fn userinfo(
        &self,
        access_token: &Secret<String>,
    ) -> Result<UserinfoResponse, Unavailable> {
        let token = access_token.clone();
        self.call(|inner| async move { inner.userinfo(&token).await })
            .await
            .unwrap_or(Err(Unavailable::RETRY_SOON))
    }

    /// Runs a call on the control runtime, to its end even if the caller goes away;
    /// `None` if it panicked or the runtime is gone.
    async fn call<F>(&self, call: impl FnOnce(Arc<CallContext>) -> F) -> Option<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.control.spawn(call(Arc::clone(&self.inner))).await.ok()
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Issuer").field(&self.inner.settings.name).finish()
    }
}
