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

use super::Session;
use super::csrf;
use super::endings::Ending;
use super::keeping::{Brought, Held};
use super::opened::Opened;
use super::refresh::{HOPS, Outcome, Patience};
use super::settings::Csrf;
use super::visit::is_due;
use crate::base::clock::Timestamp;
use crate::observe::metrics::{AuthResult, LogoutKind};
use crate::token::{Principal, TokenError};

/// A request of somebody who is logged in.
#[derive(Clone, Debug)]
pub struct Signed {
    /// Who it is.
    pub principal: Arc<Principal>,
    /// The `Authorization` field for the service, if it is to get one.
    pub forward: Option<HeaderValue>,
    /// `Set-Cookie` fields for the answer, whichever answer it is.
    pub set_cookies: Vec<HeaderValue>,
    /// The session's name, for limits and the log. It opens nothing.
    pub session: Arc<str>,
    /// When the access token ends. A refresh gives a later one.
    pub expires: Timestamp,
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
            Self::Unavailable { .. } => AuthResult::Unavailable,
        }
    }

    pub(super) const fn with(self, set_cookies: Vec<HeaderValue>) -> SessionError {
        SessionError { reason: self, set_cookies }
    }
}

impl Session {
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
    ) -> Result<Signed, SessionError> {
        let brought = self.keeping.find(&request.headers);
        if brought.is_empty() {
            return Err(Reason::Missing.with(Vec::new()));
        }
        let opened = self.open(request, &brought).await?;
        let held = brought.held();
        let (now, every) = (self.clock.now(), self.touch_every());
        // Before a refresh, so that its one result is what every gateway writes into the cookie.
        let touched = self.keeping.remembers()
            && now.since(opened.visit.seen) >= every
            && now < self.over_at(&opened);
        let opened = if touched { opened.touch(now, every, self.settings.forward) } else { opened };
        let Resumed { opened, principal, renewed } =
            self.resume(opened, held, max_staleness).await?;
        let set_cookies =
            if renewed || touched { self.write(&opened, held).await } else { Vec::new() };
        Ok(Signed {
            forward: opened.bearer.clone(),
            session: Arc::clone(&opened.name),
            expires: principal.expires.min(opened.visit.ends),
            principal,
            set_cookies,
        })
    }

    /// The visit that a request brings, unless another site's page may have sent it.
    pub(super) async fn open(
        &self,
        request: &Parts,
        brought: &Brought<'_>,
    ) -> Result<Arc<Opened>, SessionError> {
        let foreign = |_| Reason::Csrf.with(Vec::new());
        csrf::check(self.settings.csrf, &self.home, &self.csrf, request).map_err(foreign)?;
        let unavailable = |_| Reason::Unavailable { retry_after: RETRY_AFTER }.with(Vec::new());
        let Some(opened) = self.keeping.open(brought).await.map_err(unavailable)? else {
            return Err(Reason::Missing.with(self.clear(brought.held())));
        };
        if self.settings.csrf == Csrf::Token && !self.is_own_token(request, &opened) {
            return Err(Reason::Csrf.with(Vec::new()));
        }
        Ok(opened)
    }

    /// Takes a visit up again: refuses what is over, renews what is about to end, verifies.
    pub(super) async fn resume(
        &self,
        opened: Arc<Opened>,
        held: Held,
        max_staleness: Option<Duration>,
    ) -> Result<Resumed, SessionError> {
        let now = self.clock.now();
        match opened.ending(&self.memory.endings) {
            None => {}
            Some(Ending::Over) => return Err(self.over(held)),
            // The browser's cookies are the new visit's by now: they stay.
            Some(Ending::Replaced) => return Err(Reason::Expired.with(Vec::new())),
        }
        if now >= self.over_at(&opened) {
            self.end(&opened, LogoutKind::Expired).await;
            return Err(self.over(held));
        }
        let before = self.settings.refresh_before;
        let redeemable = opened.visit.redeemable(now).is_some();
        let mut serves = None;
        if now < opened.visit.ends && !(redeemable && opened.visit.is_due(before, now)) {
            match self.verify(&opened, max_staleness).await {
                Ok(principal) => {
                    let begin = principal.issued.unwrap_or(opened.visit.received);
                    if !redeemable || !is_due(begin, principal.expires, before, now) {
                        return Ok(Resumed { opened, principal, renewed: false });
                    }
                    serves = Some(principal);
                }
                Err(TokenError::Unavailable { retry_after }) => {
                    return Err(Reason::Unavailable { retry_after }.with(Vec::new()));
                }
                // Expired by its own word, revoked, signed with a key that is gone: the refresh token decides.
                Err(_) => {}
            }
        }
        if !redeemable {
            self.end(&opened, LogoutKind::Expired).await;
            return Err(self.over(held));
        }
        self.renew(opened, held, serves, max_staleness).await
    }

    /// Renews a visit whose access token is about to end; `serves` is what it is still good for.
    async fn renew(
        &self,
        opened: Arc<Opened>,
        held: Held,
        serves: Option<Arc<Principal>>,
        max_staleness: Option<Duration>,
    ) -> Result<Resumed, SessionError> {
        let good = |opened: &Opened| self.clock.now() < opened.visit.ends;
        let patience =
            if serves.is_some() || good(&opened) { Patience::Little } else { Patience::Much };
        let mut latest = Arc::clone(&opened);
        // A straggler may be more than one refresh behind.
        for _ in 0..HOPS {
            match self.redeemer.redeem(&latest, patience).await {
                Outcome::Renewed(next) => latest = next,
                Outcome::Over => return Err(self.over(held)),
                // The browser's cookies may be good, and later ones than we have seen: they stay.
                Outcome::Doubtful => return Err(Reason::Expired.with(Vec::new())),
                Outcome::Unavailable => break,
            }
            if !latest.visit.is_due(self.settings.refresh_before, self.clock.now()) {
                break;
            }
        }
        let renewed = !Arc::ptr_eq(&latest, &opened);
        if let (Some(principal), false) = (serves, renewed) {
            return Ok(Resumed { opened, principal, renewed });
        }
        let unavailable = |retry_after| Reason::Unavailable { retry_after };
        if !good(&latest) {
            let cookies = if renewed { self.write(&latest, held).await } else { Vec::new() };
            return Err(unavailable(RETRY_AFTER).with(cookies));
        }
        match self.verify(&latest, max_staleness).await {
            Ok(principal) => Ok(Resumed { opened: latest, principal, renewed }),
            Err(TokenError::Unavailable { retry_after }) => {
                // The tokens are new all the same: their cookie must not be lost.
                let cookies = if renewed { self.write(&latest, held).await } else { Vec::new() };
                Err(unavailable(retry_after).with(cookies))
            }
            // It is not good any more, and nobody could be asked for another.
            Err(_) if !renewed => Err(unavailable(RETRY_AFTER).with(Vec::new())),
            Err(error) => {
                let session = &*self.settings.name;
                tracing::warn!(session, %error, "A refreshed token was refused; the session ends.");
                self.end(&latest, LogoutKind::Revoked).await;
                Err(self.over(held))
            }
        }
    }

    /// Verifies the access token like any other, or takes it as it was received.
    pub(super) async fn verify(
        &self,
        opened: &Opened,
        max_staleness: Option<Duration>,
    ) -> Result<Arc<Principal>, TokenError> {
        match &self.verifier {
            Some(verifier) => {
                let token = opened.visit.access_token.expose();
                verifier.verify(token, self.clock.now(), max_staleness).await
            }
            None => Ok(opened.received_principal(&self.settings)),
        }
    }

    /// Ends a visit here, at once, and tells the issuer in the background.
    pub(super) async fn end(&self, opened: &Arc<Opened>, kind: LogoutKind) {
        if self.memory.endings.end(&opened.name, Ending::Over) {
            self.metrics.logout(kind);
            let (revoker, opened) = (Arc::clone(&self.revoker), Arc::clone(opened));
            self.control.spawn(async move { revoker.revoke(&opened.visit).await });
        }
        self.keeping.forget(opened.visit.id).await;
    }

    /// The cookies that hold `opened` from now on.
    pub(super) async fn write(&self, opened: &Arc<Opened>, held: Held) -> Vec<HeaderValue> {
        self.keeping.renew(opened, held).await.unwrap_or_else(|error| {
            let session = &*self.settings.name;
            tracing::error!(session, %error, "A refreshed session cannot be kept.");
            Vec::new()
        })
    }

    fn over(&self, held: Held) -> SessionError {
        Reason::Expired.with(self.clear(held))
    }

    /// When a visit ends if nobody comes.
    fn over_at(&self, opened: &Opened) -> Timestamp {
        opened.visit.over_at(self.settings.idle_timeout, self.settings.absolute_timeout)
    }

    /// How often a visit notes that it was seen: often enough for its idle timeout.
    fn touch_every(&self) -> Duration {
        (self.settings.idle_timeout / 10).min(Duration::from_secs(60))
    }
}

/// A visit taken up again.
#[derive(Debug)]
pub(super) struct Resumed {
    pub(super) opened: Arc<Opened>,
    pub(super) principal: Arc<Principal>,
    /// Whether the tokens are new.
    pub(super) renewed: bool,
}

/// Seconds after which an issuer may be back.
pub(super) const RETRY_AFTER: u32 = 1;
