//! New cookies, written when the answer goes out.
//!
//! Between a request and its answer a slow service may take minutes. Meanwhile
//! other requests of the same browser refresh again, log out, log in anew. A
//! `Set-Cookie` made up when the request came would bring back tokens that
//! were redeemed since, which an issuer takes for stolen, or a session that
//! is over, in the place of the next one. So it is made up at the last moment.

use core::fmt;
use core::time::Duration;
use std::sync::Arc;

use http::HeaderValue;

use crate::session::logout::ended_sessions::EndedSessions;
use crate::session::refresh::refresher::TokenRefresher;
use crate::session::store::loaded::LoadedSession;
use crate::session::store::storage::{SessionStorage, StoredSession};

/// A visit whose cookies have changed, and will be written with the answer.
#[derive(Clone)]
pub struct DeferredCookies {
    pub(crate) session: Arc<str>,
    pub(crate) keeping: Arc<SessionStorage>,
    pub(crate) redeemer: Arc<TokenRefresher>,
    pub(crate) endings: Arc<EndedSessions>,
    pub(crate) opened: Arc<LoadedSession>,
    pub(crate) held: StoredSession,
    /// How often the visit notes that it was seen; `None` if this request is no use of it.
    pub(crate) every: Option<Duration>,
}

impl DeferredCookies {
    /// The `Set-Cookie` fields, as of now: of the latest tokens, and none if the visit is over or
    /// the browser has later ones from another gateway.
    pub async fn set_cookies(&self) -> Vec<HeaderValue> {
        let Some(latest) = self.redeemer.latest(&self.opened).await else { return Vec::new() };
        if latest.ending(&self.endings).is_some() {
            return Vec::new();
        }
        let now = self.redeemer.clock.now();
        let latest = match self.every {
            Some(every) => self.keeping.seen(latest, now, every),
            None => latest,
        };
        self.redeemer.give(&latest, now);
        self.keeping.cookies_of(&latest, self.held).unwrap_or_else(|error| {
            let session = &*self.session;
            tracing::error!(session, %error, "A refreshed session cannot be kept.");
            Vec::new()
        })
    }
}

impl fmt::Debug for DeferredCookies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewal").field("session", &self.session).finish_non_exhaustive()
    }
}
