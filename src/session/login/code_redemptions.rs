//! The redemptions of authorization codes: one call per code, however often its callback is requested.
//!
//! Users reload a slow page. An issuer accepts a code once, and may treat a second use as theft (RFC 6749 §4.1.2). So
//! requests with one code share one call (on the control runtime: no disconnect cancels it), and its session is
//! retained for a while: the response of the first request may have reached no browser. Tokens with which no request
//! has begun a session by then are revoked.

use core::fmt;
use std::sync::{Arc, OnceLock};

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::runtime::Handle;

use crate::base::digest::sha256;
use crate::base::in_flight::InFlightCalls;
use crate::base::secret::Secret;
use crate::base::single_flight::SingleFlight;
use crate::issuer::GrantError;
use crate::session::store::state::{GRACE, SessionState};

/// The session that the tokens for one code are for, which all requests with the code share.
#[derive(Debug)]
pub(crate) struct RedeemedCode {
    pub(crate) state: SessionState,
    /// Whether a request has begun the session (`true`), or its tokens are revoked (`false`): the first one decides.
    is_begun: OnceLock<bool>,
}

impl RedeemedCode {
    pub(super) const fn new(state: SessionState) -> Self {
        Self { state, is_begun: OnceLock::new() }
    }

    /// Begins the session; returns `false` if it was given up.
    pub(crate) fn begin(&self) -> bool {
        *self.is_begun.get_or_init(|| true)
    }

    /// Gives the session up; returns whether the caller must revoke its tokens: if no request has begun the session, or
    /// given it up before.
    pub(crate) fn give_up(&self) -> bool {
        self.is_begun.set(false).is_ok()
    }

    /// Whether it was given up.
    pub(super) fn is_given_up(&self) -> bool {
        self.is_begun.get() == Some(&false)
    }
}

/// The redemptions under way, and the sessions of recent ones. Survive a reload.
pub(crate) struct CodeRedemptions {
    flight: SingleFlight<RedemptionKey, Result<Arc<RedeemedCode>, GrantError>>,
    recent: Cache<RedemptionKey, Arc<RedeemedCode>>,
    under_way: InFlightCalls,
}

impl CodeRedemptions {
    /// Returns an empty set; calls run on `control`, and are counted in `under_way`.
    pub(crate) fn new(control: Handle, under_way: InFlightCalls) -> Self {
        let recent = Cache::builder().max_capacity(MAX_RECENT).time_to_live(GRACE);
        // The newest is the one that is needed: none is refused admission.
        let recent = recent.eviction_policy(EvictionPolicy::lru()).build();
        Self { flight: SingleFlight::new(control), recent, under_way }
    }

    /// Returns the session that `redeem` begins, or that of an earlier or concurrent request with the same `key`. Failures
    /// are shared by concurrent requests only.
    ///
    /// # Errors
    ///
    /// The errors of `redeem`; [`GrantError::Unavailable`] if it panicked.
    pub(crate) async fn run<F>(
        &self,
        key: RedemptionKey,
        redeem: impl FnOnce() -> F,
    ) -> Result<Arc<RedeemedCode>, GrantError>
    where
        F: Future<Output = Result<Arc<RedeemedCode>, GrantError>> + Send + 'static,
    {
        let call = || {
            // A shutdown waits for the session, although requests may not.
            let (recent, under_way) = (self.recent.clone(), self.under_way.begin());
            let redeem = redeem();
            async move {
                let _under_way = under_way;
                // Another call may have completed since the check.
                if let Some(redeemed) = recent.get(&key) {
                    return Ok(redeemed);
                }
                let redeemed = redeem.await?;
                recent.insert(key, Arc::clone(&redeemed));
                Ok(redeemed)
            }
        };
        match self.recent.get(&key) {
            Some(redeemed) => Ok(redeemed),
            None => {
                self.flight.run(key, call).await.map_or(Err(GrantError::Unavailable), |(r, _)| r)
            }
        }
    }
}

impl fmt::Debug for CodeRedemptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CodeRedemptions")
            .field("under_way", &self.under_way)
            .finish_non_exhaustive()
    }
}

/// The digest of a code and of its login's verifier: a stolen code shares nothing with the login that it was issued to.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct RedemptionKey([u8; 32]);

impl RedemptionKey {
    pub(crate) fn new(code: &Secret<String>, verifier: &Secret<String>) -> Self {
        Self(sha256(&[verifier.expose().as_bytes(), b".", code.expose().as_bytes()]))
    }
}

/// Sessions of recent redemptions, each about the size of its tokens.
const MAX_RECENT: u64 = 10_000;
