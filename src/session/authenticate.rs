//! Authentication of a request by its session cookies.
//!
//! In this order: cross-site requests are refused before cookies are opened;
//! the session is loaded; ended, idle and old sessions are refused; tokens
//! about to expire are refreshed; the access token is verified like any other;
//! and changed cookies are written with the response, whatever its status.

use core::time::Duration;
use std::sync::Arc;

use http::HeaderValue;
use http::request::Parts;

use super::Sessions;
use super::cookies::csrf;
use super::cookies::deferred_cookies::DeferredCookies;
use super::logout::ended_sessions::EndReason;
use super::logout::session_watch::SessionWatch;
use super::refresh::decision::RefreshNeed;
use super::refresh::token_freshness::Freshness;
use super::registry::RetainedSessions;
use super::settings::Csrf;
use super::store::loaded_session::LoadedSession;
use super::store::state::SessionState;
use super::store::storage::{PresentedCookies, StoredSession};
use crate::base::clock::Timestamp;
use crate::observe::metrics::{AuthResult, LogoutKind};
use crate::token::lifetime::is_due;
use crate::token::{Principal, TokenError};

/// An authenticated request.
#[derive(Clone, Debug)]
pub struct SessionUser {
    /// The principal.
    pub principal: Arc<Principal>,
    /// The `Authorization` field for the upstream, if one is sent.
    pub forward: Option<HeaderValue>,
    /// The cookies to write with the response, whatever its status.
    pub renewal: Option<DeferredCookies>,
    /// The session's alias, for limits and the log. Cannot be used to open it.
    pub session: Arc<str>,
    /// The expiry of the access token. A refresh gives a later one.
    pub expires: Timestamp,
    /// The session, for streams that outlive the request.
    pub handle: SessionHandle,
}

/// The session that a request belongs to.
#[derive(Clone, Debug)]
pub struct SessionHandle {
    loaded: Arc<LoadedSession>,
    retained: Arc<RetainedSessions>,
    /// The time at which the session ends without further use.
    over_at: Timestamp,
    /// The time at which it ends in any case.
    too_old_at: Timestamp,
}

impl SessionHandle {
    /// Whether the session relies on the ID token of its login: its access token is opaque to the gateway.
    pub fn is_opaque(&self) -> bool {
        self.loaded.state.is_opaque
    }

    /// Follows the session for as long as a stream is open; its access token expires at `ends`.
    pub fn follow(&self, ends: Timestamp) -> SessionWatch {
        let ends = ends.min(self.loaded.state.ends).min(self.over_at);
        self.retained.watchers.follow(&self.loaded, ends, self.too_old_at, &self.retained.ended)
    }
}

/// The failure to authenticate a request by its cookies.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{reason}")]
pub struct SessionError {
    /// The reason.
    pub reason: SessionErrorReason,
    /// `Set-Cookie` fields for the response, whatever its status.
    pub set_cookies: Vec<HeaderValue>,
}

/// The reason why a request is not authenticated.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SessionErrorReason {
    /// No cookie, or none that opens: 401, or a redirect to the login.
    #[error("there is no session")]
    Missing,
    /// Another site's page may have sent the request: 403.
    #[error("the request may come from another site")]
    Csrf,
    /// The session has ended: 401, or a redirect to the login.
    #[error("the session has ended")]
    Expired,
    /// A refresh returned tokens that do not fit into cookies, and the ones before have expired: 502.
    #[error("the session's tokens do not fit into cookies any more")]
    TooLarge,
    /// The issuer is unavailable; the session stays: 503.
    #[error("the session's issuer is unavailable")]
    Unavailable {
        /// Seconds after which to try again, at least 1.
        retry_after: u32,
    },
    /// Redis is unavailable, in which the session is, or the lock on its refresh token; the session stays: 503.
    #[error("the store of sessions is unavailable")]
    StoreUnavailable,
}

impl SessionErrorReason {
    /// Returns the label of the reason in metrics.
    pub const fn result(self) -> AuthResult {
        match self {
            Self::Missing => AuthResult::Missing,
            Self::Csrf => AuthResult::Csrf,
            Self::Expired => AuthResult::SessionExpired,
            Self::TooLarge | Self::Unavailable { .. } | Self::StoreUnavailable => {
                AuthResult::Unavailable
            }
        }
    }

    pub(super) const fn with(self, set_cookies: Vec<HeaderValue>) -> SessionError {
        SessionError { reason: self, set_cookies }
    }
}

impl Sessions {
    /// Authenticates `request` by its cookies.
    ///
    /// `max_staleness` is the accepted age of a cached introspection response.
    /// A refresh that has begun is finished even if this future is dropped.
    ///
    /// # Errors
    ///
    /// [`SessionError`], with cookies that the response must set as well.
    pub async fn authenticate(
        &self,
        request: &Parts,
        max_staleness: Option<Duration>,
    ) -> Result<SessionUser, SessionError> {
        let presented = self.presented_cookies(&request.headers);
        if presented.is_empty() {
            return Err(SessionErrorReason::Missing.with(Vec::new()));
        }
        let loaded = self.open(request, &presented).await?;
        let held = presented.held();
        let (now, every) = (self.clock.now(), self.touch_every());
        let before = loaded.state.seen;
        // Before a refresh, so that every instance writes its one result into the cookie.
        let loaded = if now < self.over_at(&loaded) {
            self.storage.seen(loaded, now, every)
        } else {
            loaded
        };
        let ResumedSession { loaded, principal, renewed } =
            self.resume(loaded, held, max_staleness).await?;
        let renewal = if renewed || loaded.state.seen != before {
            self.storage.keep(&loaded).await;
            Some(self.renewal(&loaded, held, Some(every)))
        } else {
            None
        };
        let expires = principal.expires.min(loaded.state.ends);
        let over_at = self.over_at(&loaded);
        self.retained.watchers.renew(&loaded.name, expires.min(over_at));
        let forward_ends = loaded.forward_ends();
        Ok(SessionUser {
            forward: loaded.bearer.clone().filter(|_| now < forward_ends),
            session: Arc::clone(&loaded.name),
            expires,
            principal,
            renewal,
            handle: SessionHandle {
                too_old_at: loaded.state.since.plus(self.settings.absolute_timeout),
                retained: Arc::clone(&self.retained),
                loaded,
                over_at,
            },
        })
    }

    /// Loads the session of a request, unless another site's page may have sent it.
    pub(super) async fn open(
        &self,
        request: &Parts,
        presented: &PresentedCookies<'_>,
    ) -> Result<Arc<LoadedSession>, SessionError> {
        self.open_under(self.settings.csrf, request, presented).await
    }

    /// Loads the session of a request under another CSRF rule.
    pub(super) async fn open_under(
        &self,
        rule: Csrf,
        request: &Parts,
        presented: &PresentedCookies<'_>,
    ) -> Result<Arc<LoadedSession>, SessionError> {
        let foreign = |_| SessionErrorReason::Csrf.with(Vec::new());
        csrf::check(rule, &self.own_origin, &self.csrf, request).map_err(foreign)?;
        let unavailable = |_| SessionErrorReason::StoreUnavailable.with(Vec::new());
        let Some(loaded) = self.storage.open(presented).await.map_err(unavailable)? else {
            // An old cookie of a replaced session: by now the browser has the new one's. With sessions in Redis, the
            // event that it was replaced may be on its way.
            let mut ids = self.storage.ids(presented).into_iter();
            let replaced = self.storage.is_shared()
                || ids.any(|id| self.retained.ended.is_replaced(&id.alias()));
            // A cookie that another instance has sealed with a newer key is valid there.
            let stays = replaced
                || !self.settings.keys.is_empty() && self.storage.is_of_unknown_key(presented);
            let cookies = if stays { Vec::new() } else { self.clear(presented.held()) };
            return Err(SessionErrorReason::Missing.with(cookies));
        };
        if rule == Csrf::Token && !self.is_own_token(request, &loaded) {
            return Err(SessionErrorReason::Csrf.with(Vec::new()));
        }
        Ok(loaded)
    }

    /// Prepares a session for use: refuses ended ones, refreshes tokens about to expire, verifies the access token.
    pub(super) async fn resume(
        &self,
        loaded: Arc<LoadedSession>,
        held: StoredSession,
        max_staleness: Option<Duration>,
    ) -> Result<ResumedSession, SessionError> {
        let now = self.clock.now();
        match loaded.end_reason(&self.retained.ended) {
            None => {}
            Some(EndReason::Over) => {
                // If its issuer or an operator ended it, this is the first sight of its tokens.
                self.end(&loaded, LogoutKind::Revoked).await;
                return Err(self.over(held));
            }
            // The browser's cookies are those of the new session: they stay.
            Some(EndReason::Replaced) => return Err(SessionErrorReason::Expired.with(Vec::new())),
        }
        if now >= self.over_at(&loaded) {
            self.expire(&loaded).await;
            return Err(self.over(held));
        }
        let before = loaded.state.jitter(self.settings.refresh_before);
        let redeemable = loaded.state.refresh_token_if_valid(now).is_some();
        let has_due_forward = loaded.is_forward_due(before, now);
        if now >= loaded.forward_ends() && !(redeemable && has_due_forward) {
            if redeemable && loaded.state.is_id_token_owed {
                return Err(
                    SessionErrorReason::Unavailable { retry_after: RETRY_AFTER }.with(Vec::new())
                );
            }
            // An ID token identifies the user to the upstream, and a new one comes only with a login.
            self.expire(&loaded).await;
            return Err(self.over(held));
        }
        let mut freshness = if now < loaded.state.ends {
            Freshness::Unknown
        } else {
            Freshness::Lost(RefreshNeed::Ended)
        };
        let is_due_now = loaded.state.is_due(before, now) || has_due_forward;
        if now < loaded.state.ends && !(redeemable && is_due_now) {
            match self.verify_held(&loaded, max_staleness).await {
                Ok(principal) if loaded.is_over_as(&principal, &self.retained.ended) => {
                    self.end(&loaded, LogoutKind::Revoked).await;
                    return Err(self.over(held));
                }
                Ok(principal) => {
                    // If the issuer's clock is behind, `iat` was past at the receipt: the lifetime begins with the
                    // receipt.
                    let received = loaded.state.received;
                    let begin = principal.issued.map_or(received, |issued| issued.max(received));
                    if !redeemable || !is_due(begin, principal.expires, before, now) {
                        return Ok(ResumedSession { loaded, principal, renewed: false });
                    }
                    freshness = Freshness::Serves(principal);
                }
                Err(TokenError::Unavailable { retry_after }) => {
                    return Err(SessionErrorReason::Unavailable { retry_after }.with(Vec::new()));
                }
                // Expired by its own `exp`, revoked, signed with a removed key: the refresh token decides.
                Err(error) => freshness = Freshness::of(error),
            }
        }
        if !redeemable {
            self.expire(&loaded).await;
            return Err(self.over(held));
        }
        self.renew(loaded, held, freshness, max_staleness).await
    }

    /// Verifies the access token like any other, or trusts it as received.
    pub(super) async fn verify(
        &self,
        loaded: &LoadedSession,
        max_staleness: Option<Duration>,
    ) -> Result<Arc<Principal>, TokenError> {
        match self.verify_strictly(loaded, max_staleness).await {
            // The issuer has just issued it: its key is newer than the cached JWK set, and tokens with invented
            // key ids may keep that from being fetched for a while.
            Err(TokenError::UnknownKey)
                if self.clock.now().since(loaded.state.received) < KEY_WAIT_TIMEOUT =>
            {
                Err(TokenError::Unavailable { retry_after: RETRY_AFTER })
            }
            verified => verified,
        }
    }

    /// Verifies a token that came with a request. One whose key was known and has been removed is of no use
    /// any more: the refresh token brings another.
    pub(super) async fn verify_held(
        &self,
        loaded: &LoadedSession,
        max_staleness: Option<Duration>,
    ) -> Result<Arc<Principal>, TokenError> {
        let SessionState { received, since, .. } = loaded.state;
        // A login is only complete when its token is verified.
        if loaded.was_verified() || received <= since {
            self.verify_strictly(loaded, max_staleness).await
        } else {
            self.verify(loaded, max_staleness).await
        }
    }

    async fn verify_strictly(
        &self,
        loaded: &LoadedSession,
        max_staleness: Option<Duration>,
    ) -> Result<Arc<Principal>, TokenError> {
        let verifier = match &self.verifier {
            Some(verifier) if !loaded.state.is_opaque => verifier,
            _ => {
                let principal = loaded.received_principal(&self.settings, self.verifier.as_deref());
                let is_revoked = self.retained.ended.is_revoked(&principal);
                return if is_revoked { Err(TokenError::Revoked) } else { Ok(principal) };
            }
        };
        let (token, now) = (loaded.state.access_token.expose(), self.clock.now());
        if !loaded.was_verified() {
            // Before the first check, which would count a token of a clock that is ahead as one from before the revocation.
            verifier.received(token, loaded.state.received);
        }
        let mut verified = verifier.verify(token, now, max_staleness).await;
        // It may be younger than the revocation of its subject without `iat`: the gateway's clock decides.
        if verified.as_ref().is_err_and(|error| *error == TokenError::Revoked)
            && verifier.received(token, loaded.state.received)
        {
            verified = verifier.verify(token, now, max_staleness).await;
        }
        let principal = verified?;
        if loaded.state.is_of_another(&principal.claims) {
            return Err(TokenError::Subject);
        }
        loaded.note_verified();
        Ok(loaded.named(principal))
    }

    /// Ends a session at once, and revokes its tokens at the issuer in the background.
    pub(super) async fn end(&self, loaded: &Arc<LoadedSession>, kind: LogoutKind) {
        if self.retained.ended.end(&loaded.name, EndReason::Over) {
            self.metrics.logout(kind);
            self.revoke_tokens(loaded);
        }
        let (storage, refresher) = (Arc::clone(&self.storage), Arc::clone(&self.refresher));
        let loaded = Arc::clone(loaded);
        let told = async move {
            storage.forget(loaded.state.id).await;
            refresher.end_everywhere(&loaded).await;
        };
        self.run_to_end(told).await;
    }

    /// Ends a session that is too old by its cookie, unless that is an old copy and the session may live on.
    pub(super) async fn expire(&self, loaded: &Arc<LoadedSession>) {
        if self.is_last(loaded).await {
            self.end(loaded, LogoutKind::Expired).await;
        }
    }

    /// Whether the session has been idle for too long by its cookie, but may live on in a later one.
    pub(super) async fn is_left_behind(&self, loaded: &Arc<LoadedSession>) -> bool {
        self.clock.now() >= self.over_at(loaded) && !self.is_last(loaded).await
    }

    /// Whether the session cannot live on: it is too old, or this is its latest state.
    async fn is_last(&self, loaded: &Arc<LoadedSession>) -> bool {
        let too_old = loaded.state.since.plus(self.settings.absolute_timeout);
        if self.clock.now() >= too_old {
            return true;
        }
        self.storage.is_latest(loaded, self.refresher.sharing.is_some())
            && self.refresher.latest(loaded).await.is_none_or(|latest| Arc::ptr_eq(&latest, loaded))
    }

    /// Stores a session and returns the cookies that hold it.
    pub(super) async fn write(
        &self,
        loaded: &Arc<LoadedSession>,
        held: StoredSession,
    ) -> Vec<HeaderValue> {
        self.storage.keep(loaded).await;
        self.renewal(loaded, held, None).set_cookies().await
    }

    fn renewal(
        &self,
        loaded: &Arc<LoadedSession>,
        held: StoredSession,
        every: Option<Duration>,
    ) -> DeferredCookies {
        DeferredCookies {
            session: Arc::clone(&self.settings.name),
            storage: Arc::clone(&self.storage),
            refresher: Arc::clone(&self.refresher),
            ended: Arc::clone(&self.retained.ended),
            loaded: Arc::clone(loaded),
            held,
            every,
        }
    }

    pub(super) fn over(&self, held: StoredSession) -> SessionError {
        SessionErrorReason::Expired.with(self.clear(held))
    }

    /// Returns when a session ends without further use.
    fn over_at(&self, loaded: &LoadedSession) -> Timestamp {
        loaded.state.over_at(self.settings.idle_timeout, self.settings.absolute_timeout)
    }

    /// The interval at which the last use is recorded: short enough for the idle timeout.
    fn touch_every(&self) -> Duration {
        (self.settings.idle_timeout / 10).min(Duration::from_secs(60))
    }
}

/// A session prepared for use.
#[derive(Debug)]
pub(super) struct ResumedSession {
    pub(super) loaded: Arc<LoadedSession>,
    pub(super) principal: Arc<Principal>,
    /// Whether the tokens are new.
    pub(super) renewed: bool,
}

/// The time to wait for the key of a token that was just received.
const KEY_WAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// Seconds after which to try an unavailable issuer again.
pub(super) const RETRY_AFTER: u32 = 1;
