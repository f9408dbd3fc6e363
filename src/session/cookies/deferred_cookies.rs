//! `Set-Cookie` fields, decided when the response is sent.
//!
//! A slow upstream may take minutes to respond. Meanwhile other requests of the same browser refresh again, log out,
//! log in again. Cookies decided when the request arrived would restore refresh tokens that were redeemed since, which
//! an issuer takes for stolen, or replace the next session by one that has ended.

use core::fmt;
use core::time::Duration;
use std::sync::Arc;

use http::HeaderValue;

use crate::session::logout::ended_sessions::EndedSessions;
use crate::session::refresh::refresher::TokenRefresher;
use crate::session::store::loaded_session::LoadedSession;
use crate::session::store::storage::{SessionStorage, StoredSession};

/// A session whose cookies have changed and will be written with the response.
#[derive(Clone)]
pub struct DeferredCookies {
    pub(crate) session: Arc<str>,
    pub(crate) storage: Arc<SessionStorage>,
    pub(crate) refresher: Arc<TokenRefresher>,
    pub(crate) ended: Arc<EndedSessions>,
    pub(crate) loaded: Arc<LoadedSession>,
    pub(crate) held: StoredSession,
    /// The interval at which a session's last use is recorded; `None` if this request does not count as use.
    pub(crate) every: Option<Duration>,
}

impl DeferredCookies {
    /// Returns the `Set-Cookie` fields for the latest tokens: none if the session has ended or
    /// the browser has later cookies from another instance.
    pub async fn set_cookies(&self) -> Vec<HeaderValue> {
        let Some(latest) = self.refresher.latest(&self.loaded).await else { return Vec::new() };
        if latest.end_reason(&self.ended).is_some() {
            return Vec::new();
        }
        let now = self.refresher.clock.now();
        let latest = match self.every {
            Some(every) => self.storage.seen(latest, now, every),
            None => latest,
        };
        self.refresher.mark_delivered(&latest, now);
        self.storage.cookies_of(&latest, self.held).unwrap_or_else(|error| {
            let session = &*self.session;
            tracing::error!(session, %error, "Could not store a refreshed session in cookies; the browser keeps the old ones.");
            Vec::new()
        })
    }
}

impl fmt::Debug for DeferredCookies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeferredCookies").field("session", &self.session).finish_non_exhaustive()
    }
}
