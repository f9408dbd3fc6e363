//! Exchange of HTTP Basic credentials for a token (RFC 7617, RFC 6749 §4.3).
//!
//! An API client that has only a user name and a password gets, for every
//! request, the access token that the issuer grants for its credentials. The
//! token is cached under a keyed hash of the credentials, which are not stored.
//! Refused credentials are cached for a moment, in a cache of their own, so
//! that a stream of them evicts no valid ones.

use core::fmt;
use core::net::IpAddr;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use std::sync::Arc;

use aws_lc_rs::hmac;
use http::HeaderValue;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::runtime::Handle;

use crate::base::clock::{Clock, Timestamp};
use crate::base::random::random;
use crate::base::scopes::Scopes;
use crate::base::secret::Secret;
use crate::base::single_flight::{Role, SingleFlight};
use crate::issuer::{Client, Grant, GrantError, Issuer, Tokens};
use crate::observe::metrics::{
    AuthLabel, AuthResult, CacheResult, Gauge, Metrics, TokenCache, TokenCacheMetrics,
};
use crate::password::{
    Credentials, Failures, LoginAttempt, LoginThrottle, LoginThrottles, TooMany, folded, network,
    pad_response_time,
};
use crate::token::lifetime::{ends_at, is_due};
use crate::token::received_tokens::{bearer, payload, received_principal};
use crate::token::revocation::event::RevocationListener;
use crate::token::{Principal, RevocationEvent, RevocationList, TokenError, TokenHolder, Verifier};

/// Exchanges Basic credentials at one issuer, as one client. Survives a reload
/// that changes neither; the gateway registers it by the issuer's fingerprint.
#[derive(Clone)]
pub struct BasicExchange(Arc<ExchangeState>);

struct ExchangeState {
    issuer: Arc<Issuer>,
    client: Client,
    verifier: Option<Arc<Verifier>>,
    clock: Clock,
    throttle: LoginThrottle,
    key: hmac::Key,
    /// Tokens of accepted credentials.
    exchanges: Cache<Digest, Arc<ExchangedTokens>>,
    /// The expiry of the cached token of each user name, by a keyed hash of the name.
    cached_until: Cache<Digest, Timestamp>,
    /// Refused credentials, and when they were refused.
    refused: Cache<Digest, Timestamp>,
    flight: SingleFlight<Digest, Result<Arc<ExchangedTokens>, BasicError>>,
    metrics: Arc<TokenCacheMetrics>,
    entries: Arc<Gauge>,
}

/// The principal and token for accepted credentials.
#[derive(Clone, Debug)]
pub struct ExchangedCredentials {
    /// The owner of the credentials.
    pub principal: Arc<Principal>,
    /// The `Authorization` field for the upstream: never the credentials themselves.
    pub bearer: HeaderValue,
}

/// The reason why credentials brought no token.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BasicError {
    /// The issuer refused them: 401 `Basic realm="northgate", charset="UTF-8"`.
    #[error("the credentials were refused")]
    Invalid,
    /// The user name or the address has failed too often: 429.
    #[error("too many credentials were refused")]
    Limited {
        /// Seconds until the next attempt is allowed, at least 1.
        retry_after: u64,
    },
    /// The issuer is unavailable: 503.
    #[error("the issuer is unavailable")]
    Unavailable,
    /// The token that the issuer granted is not accepted: 503, for the credentials are right.
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl BasicError {
    /// Returns the label of the error in metrics.
    pub const fn result(self) -> AuthResult {
        match self {
            Self::Invalid | Self::Limited { .. } => AuthResult::Credentials,
            Self::Unavailable => AuthResult::Unavailable,
            Self::Token(error) => error.result(),
        }
    }
}

impl BasicExchange {
    /// Returns an exchange at `issuer` as `client`, by the issuer's `password_grant`.
    /// Tokens are verified by `verifier`; without one they are trusted as received.
    /// Failures count together with those of other login methods of `throttles` at the same issuer.
    pub fn new(
        issuer: Arc<Issuer>,
        client: Client,
        verifier: Option<Arc<Verifier>>,
        clock: Clock,
        metrics: &Metrics,
        control: Handle,
        throttles: &LoginThrottles,
    ) -> Self {
        let (count, window) = issuer.settings().password_grant.failures;
        let allowed = Failures { count, window };
        let throttle = throttles.throttle(allowed, &issuer.settings().issuer, &clock);
        let metrics = metrics.token_cache(TokenCache::Basic);
        let refused = Cache::builder()
            .max_capacity(MAX_REFUSED)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(REFUSAL_RETENTION);
        let exchanges = Cache::builder()
            .max_capacity(MAX_EXCHANGES)
            // Admit the newest: one that is not cached would log in at the issuer with every request.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(issuer.settings().password_grant.cache);
        let cached_until = Cache::builder()
            .max_capacity(MAX_EXCHANGES)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(issuer.settings().password_grant.cache);
        Self(Arc::new(ExchangeState {
            entries: metrics.entries(),
            metrics,
            throttle,
            key: hmac::Key::new(hmac::HMAC_SHA256, &random::<32>()),
            exchanges: exchanges.build(),
            cached_until: cached_until.build(),
            refused: refused.build(),
            flight: SingleFlight::new(control),
            issuer,
            client,
            verifier,
            clock,
        }))
    }

    /// Returns the principal of `credentials`, and their token.
    ///
    /// `max_staleness` is the accepted age of a cached introspection response.
    /// An exchange that has begun is finished even if this future is dropped.
    ///
    /// # Errors
    ///
    /// See [`BasicError`].
    pub async fn principal(
        &self,
        credentials: &Credentials,
        address: IpAddr,
        max_staleness: Option<Duration>,
    ) -> Result<ExchangedCredentials, BasicError> {
        let inner = &*self.0;
        let began = inner.clock.uptime();
        let digest = inner.digest(credentials);
        let (mut exchange, hit) = self.exchange(digest, credentials, address).await?;
        let mut verified = inner.verify(&exchange, max_staleness).await;
        // It was valid when it was cached: it has ended although `expires_in` had not passed, was revoked, or its key
        // was removed. Its refresh token may get another, or the credentials.
        if let Err(error) = verified
            && hit
            && !matches!(error, TokenError::Unavailable { .. })
            && !exchange.is_unusable(inner.clock.now())
        {
            exchange = self.exchange_anew(digest, credentials, address, &exchange, error).await?;
            verified = inner.verify(&exchange, max_staleness).await;
        }
        let took = inner.clock.uptime().saturating_sub(began);
        inner.metrics.verified(AuthLabel::Basic, hit, took);
        Ok(verified.inspect_err(|error| inner.record_unusable(&exchange, *error))?)
    }

    /// Removes cached tokens that `revocations` revoke from now on.
    pub fn subscribe_to(&self, revocations: &RevocationList) {
        let listener: Arc<dyn RevocationListener> = Arc::clone(&self.0) as _;
        revocations.subscribe(Arc::downgrade(&listener), TokenHolder::Gateway);
    }

    /// Returns the token of the credentials, cached or new, and whether it was cached.
    async fn exchange(
        &self,
        digest: Digest,
        credentials: &Credentials,
        address: IpAddr,
    ) -> Result<(Arc<ExchangedTokens>, bool), BasicError> {
        let inner = &*self.0;
        // Before the caches: a cached response reveals whether a password is right as well as the issuer's.
        inner.throttle.admit(&credentials.user, address).await?;
        if let Some(answer) = inner.cached_result(&digest) {
            inner.metrics.looked_up(CacheResult::Hit);
            let exchange = answer?;
            inner.recognized(&exchange, &credentials.user, address);
            return Ok((exchange, true));
        }
        let cached = inner.exchanges.get(&digest).filter(|cached| inner.clock.now() < cached.until);
        let answer = if let Some(answer) = inner.flight.follow(&digest) {
            inner.metrics.looked_up(CacheResult::Shared);
            answer.await.unwrap_or(Err(BasicError::Unavailable))
        } else {
            self.call(digest, credentials, address, cached.as_ref()).await
        };
        match (answer, cached) {
            // About to expire is not expired: while the issuer is unavailable the token still serves. Not if a guess would
            // get no permit: serving would reveal that the password is right.
            (Err(BasicError::Unavailable), Some(cached)) if inner.clock.now() < cached.ends => {
                Ok((cached, true))
            }
            (answer, _) => answer.map(|exchange| (exchange, false)),
        }
    }

    /// Replaces a cached token that is not valid any more.
    async fn exchange_anew(
        &self,
        digest: Digest,
        credentials: &Credentials,
        address: IpAddr,
        refused: &Arc<ExchangedTokens>,
        error: TokenError,
    ) -> Result<Arc<ExchangedTokens>, BasicError> {
        let inner = &*self.0;
        // Another request may have replaced it meanwhile.
        if inner.exchanges.get(&digest).is_some_and(|known| Arc::ptr_eq(&known, refused)) {
            inner.exchanges.invalidate(&digest);
        }
        // A revoked token's refresh token is likely revoked as well; one that has merely ended is renewed.
        let renewable = refused.refresh_token.is_some() && inner.clock.now() < refused.until;
        let ended = matches!(error, TokenError::Expired | TokenError::Inactive);
        if renewable && ended && inner.cached_result(&digest).is_none() {
            return self.call(digest, credentials, address, Some(refused)).await;
        }
        self.exchange(digest, credentials, address).await.map(|(exchange, _)| exchange)
    }

    /// Starts an exchange, once the login throttle admits it.
    async fn call(
        &self,
        digest: Digest,
        credentials: &Credentials,
        address: IpAddr,
        cached: Option<&Arc<ExchangedTokens>>,
    ) -> Result<Arc<ExchangedTokens>, BasicError> {
        let inner = &*self.0;
        // Counted here and not in the task: of simultaneous requests each sees the permits of those before.
        let attempt = inner.throttle.begin(&credentials.user, address).await?;
        // Another request may have got the result meanwhile.
        if let Some(answer) = inner.cached_result(&digest) {
            inner.metrics.looked_up(CacheResult::Hit);
            return answer;
        }
        let call = || {
            let (exchange, cached) = (self.clone(), cached.cloned());
            TokenCall { exchange, digest, credentials: credentials.clone(), attempt, cached }.run()
        };
        let joined = inner.flight.run(digest, call).await;
        let (answer, joined) = joined.map_err(|_| BasicError::Unavailable)?;
        inner.metrics.looked_up(match joined {
            Role::Leader => CacheResult::Miss,
            Role::Shared => CacheResult::Shared,
        });
        answer
    }
}

impl ExchangeState {
    fn digest(&self, Credentials { user, password }: &Credentials) -> Digest {
        // Neither has control characters, so that the separators are unambiguous.
        self.sign(&[user.as_bytes(), b"\0", password.expose().as_bytes()])
    }

    /// The keyed hash of a user name in any spelling; no credentials begin with a control character.
    fn name(&self, user: &str) -> Digest {
        self.sign(&[b"\0\0", folded(user).as_bytes()])
    }

    fn sign(&self, parts: &[&[u8]]) -> Digest {
        let mut data = hmac::Context::with_key(&self.key);
        for part in parts {
            data.update(part);
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(data.sign().as_ref());
        digest
    }

    /// Caches the token of the credentials of `user`.
    fn keep(&self, digest: Digest, user: &str, exchange: Arc<ExchangedTokens>) {
        let until = exchange.until.min(exchange.ends);
        self.cached_until.entry(self.name(user)).and_upsert_with(|known| match known {
            Some(known) => until.max(known.into_value()),
            None => until,
        });
        self.exchanges.insert(digest, exchange);
        self.entries.set(i64::try_from(self.exchanges.entry_count()).unwrap_or(i64::MAX));
    }

    /// Whether a valid token of `user` is cached, so that a failure with other credentials shows that they are wrong.
    fn has_cached_token(&self, user: &str) -> bool {
        self.cached_until.get(&self.name(user)).is_some_and(|until| self.clock.now() < until)
    }

    /// Returns the cached result for the credentials: their token, unless it is about to expire, or that they were refused.
    fn cached_result(&self, digest: &Digest) -> Option<Result<Arc<ExchangedTokens>, BasicError>> {
        let now = self.clock.now();
        let cached = self.exchanges.get(digest).filter(|exchange| now < exchange.until);
        if let Some(exchange) = cached.filter(|exchange| !exchange.is_due(now)) {
            return Some(Ok(exchange));
        }
        let refused = self.refused.get(digest).is_some_and(|at| now.since(at) < REFUSAL_RETENTION);
        refused.then_some(Err(BasicError::Invalid))
    }

    /// Records that the credentials of `exchange` came from `address`; once while the address stays the same.
    fn recognized(&self, exchange: &ExchangedTokens, user: &str, address: IpAddr) {
        let network = network(address);
        if exchange.used_from.swap(network, Relaxed) != network {
            self.throttle.recognized(user, address);
        }
    }

    /// Records that a token is not accepted although it was just granted: another would not be either, and is
    /// not requested for a while.
    fn record_unusable(&self, exchange: &ExchangedTokens, error: TokenError) {
        let now = self.clock.now();
        if matches!(error, TokenError::Unavailable { .. }) || exchange.is_unusable(now) {
            return;
        }
        exchange.unusable_until.store(now.plus(UNUSABLE_RETENTION).as_nanos(), Relaxed);
        let issuer = &*self.issuer.settings().name;
        tracing::warn!(issuer, %error, "Rejected the access token that the issuer granted for Basic credentials; requests with these credentials get 503.");
    }

    async fn verify(
        &self,
        exchange: &ExchangedTokens,
        max_staleness: Option<Duration>,
    ) -> Result<ExchangedCredentials, TokenError> {
        let principal = match &self.verifier {
            Some(verifier) => {
                let token = exchange.access_token.expose();
                match verifier.verify(token, self.clock.now(), max_staleness).await {
                    // It may be younger than the revocation of its subject without `iat`.
                    Err(TokenError::Revoked) if verifier.received(token, exchange.began) => {
                        verifier.verify(token, self.clock.now(), max_staleness).await?
                    }
                    verified => verified?,
                }
            }
            None => Arc::clone(&exchange.received),
        };
        Ok(ExchangedCredentials { principal, bearer: exchange.bearer.clone() })
    }
}

impl RevocationListener for ExchangeState {
    fn forget(&self, events: &RevocationEvent, revoked: &dyn Fn(&Principal) -> bool) -> usize {
        if events.revocation.is_of_gateway_session() {
            return 0;
        }
        let mut forgotten = 0;
        for (digest, exchange) in &self.exchanges {
            if revoked(&exchange.received) {
                self.exchanges.invalidate(&*digest);
                forgotten += 1;
            }
        }
        forgotten
    }
}

/// An exchange under way on the control runtime.
struct TokenCall {
    exchange: BasicExchange,
    digest: Digest,
    credentials: Credentials,
    attempt: LoginAttempt,
    cached: Option<Arc<ExchangedTokens>>,
}

impl TokenCall {
    async fn run(self) -> Result<Arc<ExchangedTokens>, BasicError> {
        let inner = &*self.exchange.0;
        let digest = self.digest;
        // Another call may have ended since this caller looked.
        if let Some(answer) = inner.cached_result(&digest) {
            return answer;
        }
        let renewed = match &self.cached {
            Some(cached) => inner.refresh(cached).await,
            None => Err(GrantError::InvalidGrant),
        };
        let exchange = match renewed {
            Ok(renewed) => renewed,
            Err(GrantError::Unavailable | GrantError::NotAsked) => {
                return Err(BasicError::Unavailable);
            }
            Err(GrantError::InvalidGrant) => {
                Self::redeem(inner, digest, &self.credentials, self.attempt, self.cached.is_some())
                    .await?
            }
        };
        let exchange = Arc::new(exchange);
        inner.keep(digest, &self.credentials.user, Arc::clone(&exchange));
        Ok(exchange)
    }

    /// Tries the credentials at the issuer, and counts a failure if they are refused, or if a cached token shows that
    /// they are wrong although the issuer is unavailable. `are_known` credentials were accepted a while ago.
    async fn redeem(
        inner: &ExchangeState,
        digest: Digest,
        credentials: &Credentials,
        attempt: LoginAttempt,
        are_known: bool,
    ) -> Result<ExchangedTokens, BasicError> {
        let settings = &inner.issuer.settings().password_grant;
        let grant = Grant::Password {
            username: &credentials.user,
            password: &credentials.password,
            scopes: &settings.scopes,
            resource: settings.resource.as_ref(),
        };
        let began = inner.clock.uptime();
        match inner.issuer.grant(grant, &inner.client).await {
            Ok(tokens) => {
                attempt.passed();
                inner.received(tokens, None)
            }
            Err(GrantError::InvalidGrant) => {
                inner.exchanges.invalidate(&digest);
                inner.refused.insert(digest, inner.clock.now());
                attempt.failed();
                pad_response_time(inner.clock.uptime().saturating_sub(began)).await;
                Err(BasicError::Invalid)
            }
            Err(error @ (GrantError::Unavailable | GrantError::NotAsked)) => {
                // With cached credentials, a guess that is not counted would be free while the issuer is unavailable.
                match (are_known, inner.has_cached_token(&credentials.user)) {
                    (true, _) => {}
                    (false, true) => attempt.failed(),
                    // No guess: nothing has looked at the password, and no cache reveals anything.
                    (false, false) if error == GrantError::NotAsked => {}
                    (false, false) => attempt.undecided(),
                }
                Err(BasicError::Unavailable)
            }
        }
    }
}

impl ExchangeState {
    /// Refreshes a cached token. The time of the last check of the credentials stays.
    async fn refresh(&self, cached: &ExchangedTokens) -> Result<ExchangedTokens, GrantError> {
        let Some(refresh_token) = &cached.refresh_token else {
            return Err(GrantError::InvalidGrant);
        };
        let resource = self.issuer.settings().password_grant.resource.as_ref();
        let tokens = self.issuer.grant(Grant::Refresh { refresh_token, resource }, &self.client);
        self.received(tokens.await?, Some(cached)).map_err(|_| GrantError::Unavailable)
    }

    fn received(
        &self,
        tokens: Tokens,
        renews: Option<&ExchangedTokens>,
    ) -> Result<ExchangedTokens, BasicError> {
        let settings = &self.issuer.settings().password_grant;
        let received = tokens.received;
        let ends = ends_at(&tokens);
        let bearer = bearer(&tokens.access_token).ok_or(BasicError::Unavailable)?;
        let issuer = &self.issuer.settings().name;
        let scopes = tokens.scope.as_ref().map_or(settings.scopes.clone(), |s| Scopes::parse(s));
        // Without an ID token a signed access token has the same claims, from the same source.
        let claims_source = tokens.id_token.as_ref().unwrap_or(&tokens.access_token);
        let person = payload(claims_source).unwrap_or_default();
        let mut principal = received_principal(
            &tokens.access_token,
            issuer,
            &self.client.id,
            scopes,
            person,
            received,
            ends,
        );
        if let Some(verifier) = &self.verifier {
            verifier.name_within(&mut principal);
        }
        Ok(ExchangedTokens {
            bearer,
            received: Arc::new(principal),
            began: received,
            ends,
            until: renews.map_or_else(|| received.plus(settings.cache), |cached| cached.until),
            refresh_token: tokens
                .refresh_token
                .or_else(|| renews.and_then(|cached| cached.refresh_token.clone())),
            access_token: tokens.access_token,
            used_from: AtomicU64::new(0),
            unusable_until: AtomicU64::new(0),
        })
    }
}

/// A token granted for credentials.
struct ExchangedTokens {
    bearer: HeaderValue,
    /// The principal as reported by the token endpoint, for tokens that are not verified.
    received: Arc<Principal>,
    began: Timestamp,
    ends: Timestamp,
    /// The time at which the credentials are to be tried again.
    until: Timestamp,
    access_token: Secret<String>,
    refresh_token: Option<Secret<String>>,
    /// The network of the last request; 0 before that.
    used_from: AtomicU64,
    /// The time until which the token counts as one that the verifier refuses, in nanoseconds.
    unusable_until: AtomicU64,
}

impl ExchangedTokens {
    fn is_unusable(&self, now: Timestamp) -> bool {
        now.as_nanos() < self.unusable_until.load(Relaxed)
    }

    fn is_due(&self, now: Timestamp) -> bool {
        is_due(self.began, self.ends, EXPIRY_MARGIN, now)
    }
}

impl From<TooMany> for BasicError {
    fn from(TooMany { retry_after }: TooMany) -> Self {
        Self::Limited { retry_after }
    }
}

impl fmt::Debug for BasicExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BasicExchange").finish_non_exhaustive()
    }
}

type Digest = [u8; 32];

/// A token that expires in less than this is exchanged again.
const EXPIRY_MARGIN: Duration = Duration::from_secs(10);
/// The time for which no other token is requested in place of one that is not accepted.
const UNUSABLE_RETENTION: Duration = Duration::from_secs(10);
/// The time for which wrong credentials are refused without calling the issuer.
const REFUSAL_RETENTION: Duration = Duration::from_secs(5);
const MAX_EXCHANGES: u64 = 50_000;
const MAX_REFUSED: u64 = 10_000;
