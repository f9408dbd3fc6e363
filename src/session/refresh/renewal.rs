//! The refresh of a session for one request, and what becomes of the request if there are no new tokens.

use core::time::Duration;
use std::sync::Arc;

use super::decision::RefreshNeed;
use super::refresh_results::{RefreshOutcome, RefreshUrgency};
use super::refresher::MAX_REFRESHES_BEHIND;
use super::token_freshness::Freshness;
use crate::base::clock::Timestamp;
use crate::observe::metrics::{LogoutKind, RefreshResult};
use crate::session::Sessions;
use crate::session::authenticate::{RETRY_AFTER, ResumedSession, SessionError, SessionErrorReason};
use crate::session::store::loaded_session::LoadedSession;
use crate::session::store::storage::StoredSession;
use crate::token::TokenError;

impl Sessions {
    /// Refreshes a session whose access token is about to expire, or is not valid any more.
    pub(in crate::session) async fn renew(
        &self,
        loaded: Arc<LoadedSession>,
        held: StoredSession,
        mut freshness: Freshness,
        max_staleness: Option<Duration>,
    ) -> Result<ResumedSession, SessionError> {
        let unavailable = |retry_after| SessionErrorReason::Unavailable { retry_after };
        let started = self.clock.now();
        let (latest, missing) = loop {
            let (latest, missing) =
                self.latest_of(&loaded, held, freshness.need(), started).await?;
            if !Arc::ptr_eq(&latest, &loaded) {
                break (latest, missing);
            }
            if self.clock.now() >= loaded.forward_ends() {
                // Without an ID token the upstream could take the request for one without a user.
                return Err(missing.with(Vec::new()));
            }
            // No new tokens: a valid access token continues to serve.
            freshness = match freshness {
                Freshness::Serves(principal) => {
                    return Ok(ResumedSession { loaded, principal, renewed: false });
                }
                Freshness::Unknown if self.clock.now() < loaded.state.ends => {
                    match self.verify_held(&loaded, max_staleness).await {
                        Ok(principal) => {
                            return Ok(ResumedSession { loaded, principal, renewed: false });
                        }
                        Err(TokenError::Unavailable { retry_after }) => {
                            return Err(unavailable(retry_after).with(Vec::new()));
                        }
                        Err(error) => Freshness::of(error),
                    }
                }
                Freshness::Unknown => Freshness::Lost(RefreshNeed::Ended),
                Freshness::Lost(_) => return Err(missing.with(Vec::new())),
            };
        };
        if !self.storage.fits(&latest, held) {
            return self.serve_old_tokens(loaded, &latest, held, max_staleness).await;
        }
        // Tokens that have just been issued serve this request, even if they end at once.
        if self.clock.now() >= latest.state.ends && latest.state.received < started {
            let cookies = self.write(&latest, held).await;
            return Err(missing.with(cookies));
        }
        self.take_up(latest, held, max_staleness).await
    }

    /// Takes up the tokens that a refresh has brought: verifies them, or ends the session.
    pub(in crate::session) async fn take_up(
        &self,
        latest: Arc<LoadedSession>,
        held: StoredSession,
        max_staleness: Option<Duration>,
    ) -> Result<ResumedSession, SessionError> {
        let unavailable = |retry_after| SessionErrorReason::Unavailable { retry_after };
        match self.verify(&latest, max_staleness).await {
            // The new token reveals a subject whose tokens are revoked; only the issuer knew the subject of the
            // previous one.
            Ok(principal) if latest.is_over_as(&principal, &self.retained.ended) => {
                self.end(&latest, LogoutKind::Revoked).await;
                Err(self.over(held))
            }
            Ok(_) if self.clock.now() >= latest.forward_ends() && latest.state.is_id_token_owed => {
                let cookies = self.write(&latest, held).await;
                Err(unavailable(RETRY_AFTER).with(cookies))
            }
            Ok(_) if self.clock.now() >= latest.forward_ends() => {
                // The refresh returned no ID token to forward.
                self.expire(&latest).await;
                Err(self.over(held))
            }
            Ok(principal) => Ok(ResumedSession { loaded: latest, principal, renewed: true }),
            Err(TokenError::Unavailable { retry_after }) => {
                // The tokens are new all the same: their cookie must not be lost.
                let cookies = self.write(&latest, held).await;
                Err(unavailable(retry_after).with(cookies))
            }
            Err(error) => {
                let session = &*self.settings.name;
                tracing::warn!(session, %error, "Refused the access token of a refresh; the session ends.");
                self.end(&latest, LogoutKind::Revoked).await;
                Err(self.over(held))
            }
        }
    }

    /// Returns the latest state of a session: itself if there can be no other now; and the reason why there is no later
    /// one. The request needs it since `started`.
    async fn latest_of(
        &self,
        loaded: &Arc<LoadedSession>,
        held: StoredSession,
        need: RefreshNeed,
        started: Timestamp,
    ) -> Result<(Arc<LoadedSession>, SessionErrorReason), SessionError> {
        let before = loaded.state.jitter(self.settings.refresh_before);
        let patience =
            if need == RefreshNeed::Serves { RefreshUrgency::Low } else { RefreshUrgency::High };
        let mut latest = Arc::clone(loaded);
        // A late request may be more than one refresh behind.
        for _ in 0..MAX_REFRESHES_BEHIND {
            // A refused access token does not mean that its successor is refused.
            let need = if Arc::ptr_eq(&latest, loaded) { need } else { RefreshNeed::Serves };
            match self.refresher.redeem(&latest, need, patience).await {
                RefreshOutcome::Renewed(next) => latest = next,
                RefreshOutcome::Over => return Err(self.over(held)),
                // The browser's cookies may be valid, and later than the ones presented: they stay.
                RefreshOutcome::Doubtful => {
                    return Err(SessionErrorReason::Expired.with(Vec::new()));
                }
                RefreshOutcome::Unavailable => break,
                RefreshOutcome::StoreUnavailable => {
                    return Ok((latest, SessionErrorReason::StoreUnavailable));
                }
            }
            // No tokens can be newer than those issued for this request.
            if latest.state.received >= started || !latest.state.is_due(before, self.clock.now()) {
                break;
            }
        }
        Ok((latest, SessionErrorReason::Unavailable { retry_after: RETRY_AFTER }))
    }

    /// Serves a session whose new tokens, in `latest`, do not fit into cookies, with the tokens that its browser holds,
    /// while they are valid; then the session ends.
    pub(in crate::session) async fn serve_old_tokens(
        &self,
        loaded: Arc<LoadedSession>,
        latest: &Arc<LoadedSession>,
        held: StoredSession,
        max_staleness: Option<Duration>,
    ) -> Result<ResumedSession, SessionError> {
        if latest.report_too_large() {
            let session = &*self.settings.name;
            tracing::error!(
                session,
                "The tokens of a refresh do not fit into cookies; the session ends with its old ones. \
                 Write `tokens: server`, or have fewer claims in them."
            );
            self.metrics.refreshed(RefreshResult::TooLarge);
        }
        if self.clock.now() < loaded.state.ends.min(loaded.forward_ends())
            && let Ok(principal) = self.verify(&loaded, max_staleness).await
        {
            return Ok(ResumedSession { loaded, principal, renewed: false });
        }
        self.end(latest, LogoutKind::Expired).await;
        Err(SessionErrorReason::TooLarge.with(self.clear(held)))
    }
}
