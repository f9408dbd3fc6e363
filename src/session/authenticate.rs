//! From cookies to a principal: what happens on every request of a session.
//!
//! In this order: another site's requests are refused before anything is
//! read; the cookie is opened; ended, idle and old visits are refused; tokens
//! that are about to end are renewed; the access token is verified like any
//! other; and what has changed goes out as a new cookie, whatever the answer
//! will be.

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
use super::refresh::refresher::{MAX_REFRESHES_BEHIND, RefreshOutcome, RefreshUrgency};
use super::registry::RetainedState;
use super::settings::Csrf;
use super::store::loaded::LoadedSession;
use super::store::state::{SessionState, is_due};
use super::store::storage::{PresentedCookies, StoredSession};
use crate::base::clock::Timestamp;
use crate::observe::metrics::{AuthResult, LogoutKind, RefreshResult};
use crate::token::{Principal, TokenError};

/// A request of somebody who is logged in.
#[derive(Clone, Debug)]
pub struct SessionUser {
    /// Who it is.
    pub principal: Arc<Principal>,
    /// The `Authorization` field for the service, if it is to get one.
    pub forward: Option<HeaderValue>,
    /// What goes out as new cookies with the answer, whichever answer it is.
    pub renewal: Option<DeferredCookies>,
    /// The session's name, for limits and the log. It opens nothing.
    pub session: Arc<str>,
    /// When the access token ends. A refresh gives a later one.
    pub expires: Timestamp,
    /// The visit, for streams that outlive the request.
    pub visit: SessionHandle,
}

/// The visit that a request belongs to.
#[derive(Clone, Debug)]
pub struct SessionHandle {
    opened: Arc<LoadedSession>,
    memory: Arc<RetainedState>,
}

impl SessionHandle {
    /// Follows the visit as long as a stream of it is open; its access token is good until `ends`.
    pub fn follow(&self, ends: Timestamp) -> SessionWatch {
        let ends = ends.min(self.opened.visit.ends);
        self.memory.lives.follow(&self.opened, ends, &self.memory.endings)
    }
}

/// A request of nobody who is logged in.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{reason}")]
pub struct SessionError {
    /// Why.
    pub reason: Reason,
    /// `Set-Cookie` fields for the answer, whichever answer it is.
    pub set_cookies: Vec<HeaderValue>,
}

/// Why nobody is logged in.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Reason {
    /// No cookie came, or none that opens: 401, or the login.
    #[error("there is no session")]
    Missing,
    /// Another site's page may have sent it: 403.
    #[error("the request may come from another site")]
    Csrf,
    /// The session is over: 401, or the login.
    #[error("the session has ended")]
    Expired,
    /// A refresh brought tokens that fit into no cookies, and those of before have ended: 502.
    #[error("the session's tokens do not fit into cookies any more")]
    TooLarge,
    /// The issuer cannot be asked, and nothing is over: 503.
    #[error("the session's issuer cannot be asked")]
    Unavailable {
        /// Seconds after which it is worth asking again, at least 1.
        retry_after: u32,
    },
}

impl Reason {
    /// What metrics call it.
    pub const fn result(self) -> AuthResult {
        match self {
            Self::Missing => AuthResult::Missing,
            Self::Csrf => AuthResult::Csrf,
            Self::Expired => AuthResult::SessionExpired,
            Self::TooLarge | Self::Unavailable { .. } => AuthResult::Unavailable,
        }
    }

    pub(super) const fn with(self, set_cookies: Vec<HeaderValue>) -> SessionError {
        SessionError { reason: self, set_cookies }
    }
}

impl Sessions {
    /// Finds out who sent `request`, by its cookies.
    ///
    /// `max_staleness` is how old a kept verdict on a reference token may be.
    /// A refresh that has begun is finished even if this future is dropped.
    ///
    /// # Errors
    ///
    /// [`SessionError`], with cookies that the answer must set as well.
    pub async fn authenticate(
        &self,
        request: &Parts,
        max_staleness: Option<Duration>,
    ) -> Result<SessionUser, SessionError> {
        let brought = self.bring(&request.headers);
        if brought.is_empty() {
            return Err(Reason::Missing.with(Vec::new()));
        }
        let opened = self.open(request, &brought).await?;
        let held = brought.held();
        let (now, every) = (self.clock.now(), self.touch_every());
        let before = opened.visit.seen;
        // Before a refresh, so that its one result is what every gateway writes into the cookie.
        let opened = if now < self.over_at(&opened) {
            self.keeping.seen(opened, now, every)
        } else {
            opened
        };
        let ResumedSession { opened, principal, renewed } =
            self.resume(opened, held, max_staleness).await?;
        let renewal = if renewed || opened.visit.seen != before {
            self.keeping.keep(&opened).await;
            Some(self.renewal(&opened, held, Some(every)))
        } else {
            None
        };
        let expires = principal.expires.min(opened.visit.ends);
        self.memory.lives.renew(&opened.name, expires);
        Ok(SessionUser {
            forward: opened.bearer.clone(),
            session: Arc::clone(&opened.name),
            expires,
            principal,
            renewal,
            visit: SessionHandle { opened, memory: Arc::clone(&self.memory) },
        })
    }

    /// The visit that a request brings, unless another site's page may have sent it.
    pub(super) async fn open(
        &self,
        request: &Parts,
        brought: &PresentedCookies<'_>,
    ) -> Result<Arc<LoadedSession>, SessionError> {
        self.open_under(self.settings.csrf, request, brought).await
    }

    /// The same, under another rule for requests of other sites.
    pub(super) async fn open_under(
        &self,
        rule: Csrf,
        request: &Parts,
        brought: &PresentedCookies<'_>,
    ) -> Result<Arc<LoadedSession>, SessionError> {
        let foreign = |_| Reason::Csrf.with(Vec::new());
        csrf::check(rule, &self.home, &self.csrf, request).map_err(foreign)?;
        let unavailable = |_| Reason::Unavailable { retry_after: RETRY_AFTER }.with(Vec::new());
        let Some(opened) = self.keeping.open(brought).await.map_err(unavailable)? else {
            // An earlier visit's name, on a straggler: by now the browser's cookie is the new one's. Where gateways
            // keep visits together, word that it was replaced may be on its way.
            let name = self.keeping.name_of(brought);
            let replaced = self.keeping.is_shared()
                || name.is_some_and(|name| self.memory.endings.is_replaced(&name));
            let cookies = if replaced { Vec::new() } else { self.clear(brought.held()) };
            return Err(Reason::Missing.with(cookies));
        };
        if rule == Csrf::Token && !self.is_own_token(request, &opened) {
            return Err(Reason::Csrf.with(Vec::new()));
        }
        Ok(opened)
    }

    /// Takes a visit up again: refuses what is over, renews what is about to end, verifies.
    pub(super) async fn resume(
        &self,
        opened: Arc<LoadedSession>,
        held: StoredSession,
        max_staleness: Option<Duration>,
    ) -> Result<ResumedSession, SessionError> {
        let now = self.clock.now();
        match opened.ending(&self.memory.endings) {
            None => {}
            Some(EndReason::Over) => {
                // If its issuer or an operator ended it, this is the first that is seen of its tokens.
                self.end(&opened, LogoutKind::Revoked).await;
                return Err(self.over(held));
            }
            // The browser's cookies are the new visit's by now: they stay.
            Some(EndReason::Replaced) => return Err(Reason::Expired.with(Vec::new())),
        }
        if now >= self.over_at(&opened) {
            self.expire(&opened).await;
            return Err(self.over(held));
        }
        let before = opened.visit.jitter(self.settings.refresh_before);
        let redeemable = opened.visit.refresh_token_if_valid(now).is_some();
        let mut standing = if now < opened.visit.ends {
            Freshness::Unknown
        } else {
            Freshness::Lost(RefreshNeed::Ended)
        };
        if now < opened.visit.ends && !(redeemable && opened.visit.is_due(before, now)) {
            match self.verify_held(&opened, max_staleness).await {
                Ok(principal) if opened.is_over_as(&principal, &self.memory.endings) => {
                    self.end(&opened, LogoutKind::Revoked).await;
                    return Err(self.over(held));
                }
                Ok(principal) => {
                    let begin = principal.issued.unwrap_or(opened.visit.received);
                    if !redeemable || !is_due(begin, principal.expires, before, now) {
                        return Ok(ResumedSession { opened, principal, renewed: false });
                    }
                    standing = Freshness::Serves(principal);
                }
                Err(TokenError::Unavailable { retry_after }) => {
                    return Err(Reason::Unavailable { retry_after }.with(Vec::new()));
                }
                // Expired by its own word, revoked, signed with a key that is gone: the refresh token decides.
                Err(error) => standing = Freshness::of(error),
            }
        }
        if !redeemable {
            self.expire(&opened).await;
            return Err(self.over(held));
        }
        self.renew(opened, held, standing, max_staleness).await
    }

    /// Renews a visit whose access token is about to end, or is good for nothing more.
    async fn renew(
        &self,
        opened: Arc<LoadedSession>,
        held: StoredSession,
        mut standing: Freshness,
        max_staleness: Option<Duration>,
    ) -> Result<ResumedSession, SessionError> {
        let unavailable = |retry_after| Reason::Unavailable { retry_after };
        let latest = loop {
            let latest = self.latest_of(&opened, held, standing.need()).await?;
            if !Arc::ptr_eq(&latest, &opened) {
                break latest;
            }
            // There are no new tokens: a good one goes on serving.
            standing = match standing {
                Freshness::Serves(principal) => {
                    return Ok(ResumedSession { opened, principal, renewed: false });
                }
                Freshness::Unknown if self.clock.now() < opened.visit.ends => {
                    match self.verify_held(&opened, max_staleness).await {
                        Ok(principal) => {
                            return Ok(ResumedSession { opened, principal, renewed: false });
                        }
                        Err(TokenError::Unavailable { retry_after }) => {
                            return Err(unavailable(retry_after).with(Vec::new()));
                        }
                        Err(error) => Freshness::of(error),
                    }
                }
                Freshness::Unknown => Freshness::Lost(RefreshNeed::Ended),
                Freshness::Lost(_) => return Err(unavailable(RETRY_AFTER).with(Vec::new())),
            };
        };
        if !self.keeping.fits(&latest) {
            return self.outgrown(opened, &latest, held, max_staleness).await;
        }
        if self.clock.now() >= latest.visit.ends {
            let cookies = self.write(&latest, held).await;
            return Err(unavailable(RETRY_AFTER).with(cookies));
        }
        match self.verify(&latest, max_staleness).await {
            Ok(principal) => Ok(ResumedSession { opened: latest, principal, renewed: true }),
            Err(TokenError::Unavailable { retry_after }) => {
                // The tokens are new all the same: their cookie must not be lost.
                let cookies = self.write(&latest, held).await;
                Err(unavailable(retry_after).with(cookies))
            }
            Err(error) => {
                let session = &*self.settings.name;
                tracing::warn!(session, %error, "A refreshed token was refused; the session ends.");
                self.end(&latest, LogoutKind::Revoked).await;
                Err(self.over(held))
            }
        }
    }

    /// The latest visit that comes of `loaded_session`: itself if there can be no other now.
    async fn latest_of(
        &self,
        opened: &Arc<LoadedSession>,
        held: StoredSession,
        need: RefreshNeed,
    ) -> Result<Arc<LoadedSession>, SessionError> {
        let before = opened.visit.jitter(self.settings.refresh_before);
        let patience =
            if need == RefreshNeed::Serves { RefreshUrgency::Little } else { RefreshUrgency::Much };
        let mut latest = Arc::clone(opened);
        // A straggler may be more than one refresh behind.
        for _ in 0..MAX_REFRESHES_BEHIND {
            // What came of it is not good for nothing because it was.
            let need = if Arc::ptr_eq(&latest, opened) { need } else { RefreshNeed::Serves };
            match self.redeemer.redeem(&latest, need, patience).await {
                RefreshOutcome::Renewed(next) => latest = next,
                RefreshOutcome::Over => return Err(self.over(held)),
                // The browser's cookies may be good, and later ones than we have seen: they stay.
                RefreshOutcome::Doubtful => return Err(Reason::Expired.with(Vec::new())),
                RefreshOutcome::Unavailable => break,
            }
            if !latest.visit.is_due(before, self.clock.now()) {
                break;
            }
        }
        Ok(latest)
    }

    /// Serves a visit whose new tokens, in `latest`, fit into no cookies with those that its browser holds, as long as
    /// they are good; then it is over.
    pub(super) async fn outgrown(
        &self,
        opened: Arc<LoadedSession>,
        latest: &Arc<LoadedSession>,
        held: StoredSession,
        max_staleness: Option<Duration>,
    ) -> Result<ResumedSession, SessionError> {
        if latest.outgrows() {
            let session = &*self.settings.name;
            tracing::error!(
                session,
                "A refresh brought tokens that do not fit into cookies: the session ends with its old ones. \
                 Write `tokens: server`, or have fewer claims in them."
            );
            self.metrics.refreshed(RefreshResult::TooLarge);
        }
        if self.clock.now() < opened.visit.ends
            && let Ok(principal) = self.verify(&opened, max_staleness).await
        {
            return Ok(ResumedSession { opened, principal, renewed: false });
        }
        self.end(latest, LogoutKind::Expired).await;
        Err(Reason::TooLarge.with(self.clear(held)))
    }

    /// Verifies the access token like any other, or takes it as it was received.
    pub(super) async fn verify(
        &self,
        opened: &LoadedSession,
        max_staleness: Option<Duration>,
    ) -> Result<Arc<Principal>, TokenError> {
        match self.verify_strictly(opened, max_staleness).await {
            // Its issuer has just given it to us: not the token is wrong, its key is newer than our set,
            // which others with made-up names of keys may keep from being fetched for a while.
            Err(TokenError::UnknownKey)
                if self.clock.now().since(opened.visit.received) < KEY_WAIT_TIMEOUT =>
            {
                Err(TokenError::Unavailable { retry_after: RETRY_AFTER })
            }
            verified => verified,
        }
    }

    /// The same for a token that came with a request. One whose key was known and is gone is of no use
    /// any more: the refresh token brings another.
    async fn verify_held(
        &self,
        opened: &LoadedSession,
        max_staleness: Option<Duration>,
    ) -> Result<Arc<Principal>, TokenError> {
        let SessionState { received, since, .. } = opened.visit;
        // A login is only complete when its token is verified.
        if opened.was_verified() || received <= since {
            self.verify_strictly(opened, max_staleness).await
        } else {
            self.verify(opened, max_staleness).await
        }
    }

    async fn verify_strictly(
        &self,
        opened: &LoadedSession,
        max_staleness: Option<Duration>,
    ) -> Result<Arc<Principal>, TokenError> {
        let Some(verifier) = &self.verifier else {
            return Ok(opened.received_principal(&self.settings));
        };
        let (token, now) = (opened.visit.access_token.expose(), self.clock.now());
        let mut verified = verifier.verify(token, now, max_staleness).await;
        // It may be younger than the revocation of its subject, and not say so: by our clock it is known.
        if verified.as_ref().is_err_and(|error| *error == TokenError::Revoked)
            && verifier.received(token, opened.visit.received)
        {
            verified = verifier.verify(token, now, max_staleness).await;
        }
        let principal = verified?;
        opened.note_verified();
        Ok(opened.named(principal))
    }

    /// Ends a visit here, at once, and tells the issuer in the background.
    pub(super) async fn end(&self, opened: &Arc<LoadedSession>, kind: LogoutKind) {
        if self.memory.endings.end(opened, EndReason::Over) {
            self.metrics.logout(kind);
            let (revoker, opened) = (Arc::clone(&self.revoker), Arc::clone(opened));
            self.control.spawn(async move { revoker.revoke(&opened.visit).await });
        }
        self.keeping.forget(opened.visit.id).await;
        self.redeemer.end_everywhere(opened).await;
    }

    /// Ends a visit whose time has passed by its cookie, unless that is an old copy of one that may live on.
    async fn expire(&self, opened: &Arc<LoadedSession>) {
        if self.is_last(opened).await {
            self.end(opened, LogoutKind::Expired).await;
        }
    }

    /// Whether the visit has been idle for too long by its cookie, but may live on in a later one.
    pub(super) async fn is_left_behind(&self, opened: &Arc<LoadedSession>) -> bool {
        self.clock.now() >= self.over_at(opened) && !self.is_last(opened).await
    }

    /// Whether nothing of the visit can live on: it is too old, or this is the latest state of it.
    async fn is_last(&self, opened: &Arc<LoadedSession>) -> bool {
        let too_old = opened.visit.since.plus(self.settings.absolute_timeout);
        if self.clock.now() >= too_old {
            return true;
        }
        self.keeping.is_latest(opened, self.redeemer.sharing.is_some())
            && self.redeemer.latest(opened).await.is_none_or(|latest| Arc::ptr_eq(&latest, opened))
    }

    /// Keeps `loaded_session`, and gives the cookies that hold it from now on.
    pub(super) async fn write(
        &self,
        opened: &Arc<LoadedSession>,
        held: StoredSession,
    ) -> Vec<HeaderValue> {
        self.keeping.keep(opened).await;
        self.renewal(opened, held, None).set_cookies().await
    }

    fn renewal(
        &self,
        opened: &Arc<LoadedSession>,
        held: StoredSession,
        every: Option<Duration>,
    ) -> DeferredCookies {
        DeferredCookies {
            session: Arc::clone(&self.settings.name),
            keeping: Arc::clone(&self.keeping),
            redeemer: Arc::clone(&self.redeemer),
            endings: Arc::clone(&self.memory.endings),
            opened: Arc::clone(opened),
            held,
            every,
        }
    }

    fn over(&self, held: StoredSession) -> SessionError {
        Reason::Expired.with(self.clear(held))
    }

    /// When a visit ends if nobody comes.
    fn over_at(&self, opened: &LoadedSession) -> Timestamp {
        opened.visit.over_at(self.settings.idle_timeout, self.settings.absolute_timeout)
    }

    /// How often a visit notes that it was seen: often enough for its idle timeout.
    fn touch_every(&self) -> Duration {
        (self.settings.idle_timeout / 10).min(Duration::from_secs(60))
    }
}

/// What the access token of a visit that is to be renewed is still good for.
enum Freshness {
    /// It is good for this principal.
    Serves(Arc<Principal>),
    /// Its time is not over; it has not been verified.
    Unknown,
    /// It is good for nothing.
    Lost(RefreshNeed),
}

impl Freshness {
    /// That of a token that was refused with `error`.
    fn of(error: TokenError) -> Self {
        Self::Lost(if error == TokenError::Expired {
            RefreshNeed::Ended
        } else {
            RefreshNeed::Refused
        })
    }

    /// How much new tokens are needed.
    const fn need(&self) -> RefreshNeed {
        match self {
            Self::Serves(_) | Self::Unknown => RefreshNeed::Serves,
            Self::Lost(need) => *need,
        }
    }
}

/// A visit taken up again.
#[derive(Debug)]
pub(super) struct ResumedSession {
    pub(super) opened: Arc<LoadedSession>,
    pub(super) principal: Arc<Principal>,
    /// Whether the tokens are new.
    pub(super) renewed: bool,
}

/// How long the key of a token that was just received may take to become known.
const KEY_WAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// Seconds after which an issuer may be back.
pub(super) const RETRY_AFTER: u32 = 1;
