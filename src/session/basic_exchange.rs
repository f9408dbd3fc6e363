//! HTTP Basic credentials exchanged for a token (RFC 7617, RFC 6749 §4.3).
//!
//! An API client that has only a user name and a password gets, for every
//! request, the access token that its credentials are good for. The token is
//! kept under a keyed hash of the credentials, which themselves are kept
//! nowhere. Wrong ones are remembered for a moment, apart from the good, so
//! that a stream of bad credentials pushes no good ones out.

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

use super::basic_credentials::Credentials;
use super::cookies::seal::random;
use super::login::login_throttle::{
    LoginAttempt, LoginThrottle, TooMany, network, pad_response_time,
};
use super::login::user_name::folded;
use super::registry::SessionRegistry;
use super::settings;
use super::store::loaded::{bearer, payload, received_principal};
use super::store::state::is_due;
use crate::base::clock::{Clock, Timestamp};
use crate::base::scopes::Scopes;
use crate::base::secret::Secret;
use crate::base::single_flight::{Role, SingleFlight};
use crate::issuer::{Client, Grant, GrantError, Issuer, Tokens};
use crate::observe::metrics::{
    AuthMethod, AuthResult, CacheResult, Gauge, Metrics, TokenCache, TokenCacheMetrics,
};
use crate::token::revocation::list::RevocationListener;
use crate::token::{Principal, RevocationFeed, RevocationList, TokenError, Verifier};

/// Exchanges Basic credentials at one issuer, as one client. Outlives a reload
/// that changes neither; the gateway keeps it by the issuer's fingerprint.
#[derive(Clone)]
pub struct BasicExchange(Arc<ExchangeState>);

struct ExchangeState {
    issuer: Arc<Issuer>,
    client: Client,
    verifier: Option<Arc<Verifier>>,
    clock: Clock,
    failures: LoginThrottle,
    key: hmac::Key,
    /// Good credentials.
    exchanges: Cache<Digest, Arc<ExchangedTokens>>,
    /// Until when memory tells right credentials of a name from wrong ones, by a keyed hash of the name.
    told_apart: Cache<Digest, Timestamp>,
    /// Bad credentials, and when they were refused.
    refused: Cache<Digest, Timestamp>,
    flight: SingleFlight<Digest, Result<Arc<ExchangedTokens>, BasicError>>,
    metrics: Arc<TokenCacheMetrics>,
    entries: Arc<Gauge>,
}

/// What good credentials are worth.
#[derive(Clone, Debug)]
pub struct ExchangeCache {
    /// Who they belong to.
    pub principal: Arc<Principal>,
    /// The `Authorization` field for the service: never the credentials themselves.
    pub bearer: HeaderValue,
}

/// Why credentials brought no token.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BasicError {
    /// The issuer refused them: 401 `Basic realm="northgate", charset="UTF-8"`.
    #[error("the credentials were refused")]
    Invalid,
    /// The user name or the address has failed too often: 429.
    #[error("too many credentials were refused")]
    Limited {
        /// Seconds until the next ones are heard, at least 1.
        retry_after: u64,
    },
    /// The issuer cannot be asked: 503.
    #[error("the issuer cannot be asked")]
    Unavailable,
    /// The issuer gave a token that is not accepted here.
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl BasicError {
    /// What metrics call it; nothing for what a limit decides.
    pub const fn result(self) -> AuthResult {
        match self {
            Self::Invalid | Self::Limited { .. } => AuthResult::Credentials,
            Self::Unavailable => AuthResult::Unavailable,
            Self::Token(error) => error.result(),
        }
    }
}

impl BasicExchange {
    /// Exchanges at `issuer` as `client`, by the issuer's `password_grant`.
    /// Tokens are verified by `verifier`; without one they are taken as they come.
    /// Failures count together with those of the sessions of `registry` at the same issuer.
    pub fn new(
        issuer: Arc<Issuer>,
        client: Client,
        verifier: Option<Arc<Verifier>>,
        clock: Clock,
        metrics: &Metrics,
        control: Handle,
        kept: &SessionRegistry,
    ) -> Self {
        let (count, window) = issuer.settings().password_grant.failures;
        let allowed = settings::Failures { count, window };
        let failures = kept.failures(allowed, &issuer.settings().issuer, &clock);
        let metrics = metrics.token_cache(TokenCache::Basic);
        let refused = Cache::builder()
            .max_capacity(MAX_REFUSED)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(REFUSAL_RETENTION);
        let exchanges = Cache::builder()
            .max_capacity(MAX_EXCHANGES)
            // A newcomer that is not kept would log in at the issuer with every request.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(issuer.settings().password_grant.cache);
        let told_apart = Cache::builder()
            .max_capacity(MAX_EXCHANGES)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(issuer.settings().password_grant.cache);
        Self(Arc::new(ExchangeState {
            entries: metrics.entries(),
            metrics,
            failures,
            key: hmac::Key::new(hmac::HMAC_SHA256, &random::<32>()),
            exchanges: exchanges.build(),
            told_apart: told_apart.build(),
            refused: refused.build(),
            flight: SingleFlight::new(control),
            issuer,
            client,
            verifier,
            clock,
        }))
    }

    /// Whom `basic_credentials` belong to, and the token they are good for.
    ///
    /// `max_staleness` is how old a kept verdict on a reference token may be.
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
    ) -> Result<ExchangeCache, BasicError> {
        let inner = &*self.0;
        let began = inner.clock.uptime();
        let digest = inner.digest(credentials);
        let (exchange, hit) = self.exchange(digest, credentials, address).await?;
        let exchanged = match inner.verify(&exchange, max_staleness).await {
            // It was good when it was kept: revoked, or its key is gone. The credentials may get another.
            Err(error) if hit && !matches!(error, TokenError::Unavailable { .. }) => {
                inner.exchanges.invalidate(&digest);
                let (exchange, _) = self.exchange(digest, credentials, address).await?;
                inner.verify(&exchange, max_staleness).await
            }
            verified => verified,
        };
        let took = inner.clock.uptime().saturating_sub(began);
        inner.metrics.verified(AuthMethod::Basic, hit, took);
        Ok(exchanged?)
    }

    /// Forgets what `revocations` end from now on.
    pub fn heed(&self, revocations: &RevocationList) {
        let told: Arc<dyn RevocationListener> = Arc::clone(&self.0) as _;
        revocations.subscribe(Arc::downgrade(&told));
    }

    /// The token kept for the credentials, or a new one; and whether it was kept.
    async fn exchange(
        &self,
        digest: Digest,
        credentials: &Credentials,
        address: IpAddr,
    ) -> Result<(Arc<ExchangedTokens>, bool), BasicError> {
        let inner = &*self.0;
        // Before anything that is remembered: an answer from memory tells right from wrong as well as the issuer's.
        inner.failures.admit(&credentials.user, address).await?;
        if let Some(answer) = inner.remembered(&digest) {
            inner.metrics.looked_up(CacheResult::Hit);
            let exchange = answer?;
            inner.recognized(&exchange, &credentials.user, address);
            return Ok((exchange, true));
        }
        let kept = inner.exchanges.get(&digest).filter(|kept| inner.clock.now() < kept.until);
        let answer = if let Some(answer) = inner.flight.follow(&digest) {
            inner.metrics.looked_up(CacheResult::Shared);
            answer.await.unwrap_or(Err(BasicError::Unavailable))
        } else {
            self.call(digest, credentials, address, kept.as_ref()).await
        };
        match (answer, kept) {
            // About to end is not ended: while the issuer is away it still serves. Where a guess would get no
            // place, it does not: it would tell right from wrong.
            (Err(BasicError::Unavailable), Some(kept)) if inner.clock.now() < kept.ends => {
                Ok((kept, true))
            }
            (answer, _) => answer.map(|exchange| (exchange, false)),
        }
    }

    /// Starts a call, once there is a place for it.
    async fn call(
        &self,
        digest: Digest,
        credentials: &Credentials,
        address: IpAddr,
        kept: Option<&Arc<ExchangedTokens>>,
    ) -> Result<Arc<ExchangedTokens>, BasicError> {
        let inner = &*self.0;
        // Taken here and not where the call runs: of requests that come together each sees the places of those before.
        let attempt = inner.failures.begin(&credentials.user, address).await?;
        // While the place was waited for, others may have got the answer.
        if let Some(answer) = inner.remembered(&digest) {
            inner.metrics.looked_up(CacheResult::Hit);
            return answer;
        }
        let call = || {
            let (exchange, kept) = (self.clone(), kept.cloned());
            TokenCall { exchange, digest, credentials: credentials.clone(), attempt, kept }.make()
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

    /// What a name is called in any spelling; no credentials begin with a control character.
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

    /// Keeps what the credentials of `user` are good for.
    fn keep(&self, digest: Digest, user: &str, exchange: Arc<ExchangedTokens>) {
        let until = exchange.until.min(exchange.ends);
        self.told_apart.entry(self.name(user)).and_upsert_with(|known| match known {
            Some(known) => until.max(known.into_value()),
            None => until,
        });
        self.exchanges.insert(digest, exchange);
        self.entries.set(i64::try_from(self.exchanges.entry_count()).unwrap_or(i64::MAX));
    }

    /// Whether memory answers right credentials of `user`, so that no answer to others says that they are wrong.
    fn tells_apart(&self, user: &str) -> bool {
        self.told_apart.get(&self.name(user)).is_some_and(|until| self.clock.now() < until)
    }

    /// What is known of the credentials: their token, unless it is about to end, or that they were refused lately.
    fn remembered(&self, digest: &Digest) -> Option<Result<Arc<ExchangedTokens>, BasicError>> {
        let now = self.clock.now();
        let kept = self.exchanges.get(digest).filter(|exchange| now < exchange.until);
        if let Some(exchange) = kept.filter(|exchange| !exchange.is_due(now)) {
            return Some(Ok(exchange));
        }
        let refused = self.refused.get(digest).is_some_and(|at| now.since(at) < REFUSAL_RETENTION);
        refused.then_some(Err(BasicError::Invalid))
    }

    /// The credentials of `exchange` came from `address`: noted once for each address in a row.
    fn recognized(&self, exchange: &ExchangedTokens, user: &str, address: IpAddr) {
        let network = network(address);
        if exchange.used_from.swap(network, Relaxed) != network {
            self.failures.recognized(user, address);
        }
    }

    async fn verify(
        &self,
        exchange: &ExchangedTokens,
        max_staleness: Option<Duration>,
    ) -> Result<ExchangeCache, TokenError> {
        let principal = match &self.verifier {
            Some(verifier) => {
                let token = exchange.access_token.expose();
                match verifier.verify(token, self.clock.now(), max_staleness).await {
                    // It may be younger than the revocation of its subject, and not say so.
                    Err(TokenError::Revoked) if verifier.received(token, exchange.began) => {
                        verifier.verify(token, self.clock.now(), max_staleness).await?
                    }
                    verified => verified?,
                }
            }
            None => Arc::clone(&exchange.received),
        };
        Ok(ExchangeCache { principal, bearer: exchange.bearer.clone() })
    }
}

impl RevocationListener for ExchangeState {
    fn forget(&self, news: &RevocationFeed, revoked: &dyn Fn(&Principal) -> bool) -> usize {
        if news.revocation.is_of_a_visit() {
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

/// One exchange under way on the control runtime.
struct TokenCall {
    exchange: BasicExchange,
    digest: Digest,
    credentials: Credentials,
    attempt: LoginAttempt,
    kept: Option<Arc<ExchangedTokens>>,
}

impl TokenCall {
    async fn make(self) -> Result<Arc<ExchangedTokens>, BasicError> {
        let inner = &*self.exchange.0;
        let digest = self.digest;
        let renewed = match &self.kept {
            Some(kept) => inner.refresh(kept).await,
            None => Err(GrantError::InvalidGrant),
        };
        let exchange = match renewed {
            Ok(renewed) => renewed,
            Err(GrantError::Unavailable) => return Err(BasicError::Unavailable),
            Err(GrantError::InvalidGrant) => {
                Self::redeem(inner, digest, &self.credentials, self.attempt, self.kept.is_some())
                    .await?
            }
        };
        let exchange = Arc::new(exchange);
        inner.keep(digest, &self.credentials.user, Arc::clone(&exchange));
        Ok(exchange)
    }

    /// Tries the credentials at the issuer, and counts it if they are refused, or if it comes out that they are wrong
    /// although the issuer does not answer. Those that `are_known` were right a while ago.
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
            Err(GrantError::Unavailable) => {
                // Where memory would have answered the right ones, a guess that is not counted could be made without
                // end for as long as the issuer is away.
                match (are_known, inner.tells_apart(&credentials.user)) {
                    (true, _) => {}
                    (false, true) => attempt.failed(),
                    (false, false) => attempt.undecided(),
                }
                Err(BasicError::Unavailable)
            }
        }
    }
}

impl ExchangeState {
    /// Renews a kept token. It stays bound to when the credentials were last tried.
    async fn refresh(&self, kept: &ExchangedTokens) -> Result<ExchangedTokens, GrantError> {
        let Some(refresh_token) = &kept.refresh_token else { return Err(GrantError::InvalidGrant) };
        let resource = self.issuer.settings().password_grant.resource.as_ref();
        let tokens = self.issuer.grant(Grant::Refresh { refresh_token, resource }, &self.client);
        self.received(tokens.await?, Some(kept)).map_err(|_| GrantError::Unavailable)
    }

    fn received(
        &self,
        tokens: Tokens,
        renews: Option<&ExchangedTokens>,
    ) -> Result<ExchangedTokens, BasicError> {
        let settings = &self.issuer.settings().password_grant;
        let received = tokens.received;
        let ends = tokens.expires_in.map_or(Timestamp::MAX, |life| received.plus(life));
        let bearer = bearer(&tokens.access_token).ok_or(BasicError::Unavailable)?;
        let issuer = &self.issuer.settings().name;
        let scopes = tokens.scope.as_ref().map_or(settings.scopes.clone(), |s| Scopes::parse(s));
        // Without an ID token a signed access token says it as well, and came the same way.
        let said = tokens.id_token.as_ref().unwrap_or(&tokens.access_token);
        let person = payload(said).unwrap_or_default();
        let principal = received_principal(
            &tokens.access_token,
            issuer,
            &self.client.id,
            scopes,
            person,
            received,
            ends,
        );
        Ok(ExchangedTokens {
            bearer,
            received: Arc::new(principal),
            began: received,
            ends,
            until: renews.map_or_else(|| received.plus(settings.cache), |kept| kept.until),
            refresh_token: tokens
                .refresh_token
                .or_else(|| renews.and_then(|kept| kept.refresh_token.clone())),
            access_token: tokens.access_token,
            used_from: AtomicU64::new(0),
        })
    }
}

/// A token got for credentials.
struct ExchangedTokens {
    bearer: HeaderValue,
    /// Who it is by the issuer's answer, for tokens that are not verified.
    received: Arc<Principal>,
    began: Timestamp,
    ends: Timestamp,
    /// When the credentials are to be tried again.
    until: Timestamp,
    access_token: Secret<String>,
    refresh_token: Option<Secret<String>>,
    /// The network that it was last asked for from; 0 before that.
    used_from: AtomicU64,
}

impl ExchangedTokens {
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

/// A token with less life than this is exchanged anew.
const EXPIRY_MARGIN: Duration = Duration::from_secs(10);
/// How long wrong credentials are refused without asking the issuer.
const REFUSAL_RETENTION: Duration = Duration::from_secs(5);
const MAX_EXCHANGES: u64 = 50_000;
const MAX_REFUSED: u64 = 10_000;
