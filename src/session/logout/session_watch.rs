//! Streams that outlive their request follow the session that opened them.
//!
//! A WebSocket may outlive the access token that was valid when it was opened:
//! another request of the session refreshes that token, and a logout ends it.
//! Only sessions with open streams are watched; without any, a request pays
//! one atomic load for all of this.

use core::fmt;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::ended_sessions::EndedSessions;
use crate::base::clock::Timestamp;
use crate::base::lock::IgnorePoison;
use crate::session::store::loaded_session::LoadedSession;

/// The sessions that streams follow.
#[derive(Default)]
pub(crate) struct SessionWatchers {
    count: AtomicUsize,
    followed: Mutex<HashMap<Arc<str>, WatchedSessions>>,
}

struct WatchedSessions {
    loaded: Arc<LoadedSession>,
    expiry: Arc<WatchedSession>,
    /// The time at which the session ends, however often its tokens are refreshed.
    too_old_at: Timestamp,
    streams: usize,
}

/// The expiry of a session's access token, in nanoseconds: later with every refresh, and zero once the session has ended.
struct WatchedSession(AtomicU64);

/// A stream's view of its session, for as long as the stream is open.
pub struct SessionWatch {
    watchers: Arc<SessionWatchers>,
    name: Arc<str>,
    expiry: Arc<WatchedSession>,
}

impl SessionWatch {
    /// Returns the latest known expiry of the session's access token; `None` if the session has ended.
    pub fn ends(&self) -> Option<Timestamp> {
        match self.expiry.0.load(Relaxed) {
            ENDED => None,
            ends => Some(Timestamp::from_nanos(ends)),
        }
    }
}

impl Drop for SessionWatch {
    fn drop(&mut self) {
        let mut followed = self.watchers.followed();
        if let Some(watched) = followed.get_mut(&self.name) {
            watched.streams -= 1;
            if watched.streams == 0 {
                followed.remove(&self.name);
            }
        }
        self.watchers.count.store(followed.len(), Relaxed);
    }
}

impl SessionWatchers {
    /// Follows a session whose access token expires at `ends`, and which ends at `too_old_at` in any case.
    pub(crate) fn follow(
        self: &Arc<Self>,
        loaded: &Arc<LoadedSession>,
        ends: Timestamp,
        too_old_at: Timestamp,
        ended: &EndedSessions,
    ) -> SessionWatch {
        let name = Arc::clone(&loaded.name);
        let expiry = {
            let mut followed = self.followed();
            let watched = followed.entry(Arc::clone(&name)).or_insert_with(|| WatchedSessions {
                loaded: Arc::clone(loaded),
                expiry: Arc::new(WatchedSession(AtomicU64::new(ENDED + 1))),
                too_old_at,
                streams: 0,
            });
            watched.streams += 1;
            let expiry = Arc::clone(&watched.expiry);
            self.count.store(followed.len(), Relaxed);
            expiry
        };
        expiry.renew(ends);
        // After registration: a concurrent end of the session either finds the entry or is found here.
        if loaded.end_reason(ended).is_some() {
            expiry.end();
        }
        SessionWatch { watchers: Arc::clone(self), name, expiry }
    }

    /// Applies a refresh: the access token of the session `name` is valid until `ends`.
    pub(crate) fn renew(&self, name: &str, ends: Timestamp) {
        if self.count.load(Relaxed) > 0
            && let Some(watched) = self.followed().get(name)
        {
            watched.expiry.renew(ends.min(watched.too_old_at));
        }
    }

    /// Ends the streams of the session `name`.
    pub(crate) fn end(&self, name: &str) {
        if let Some(watched) = self.followed().get(name) {
            watched.expiry.end();
        }
    }

    /// Ends the streams of all sessions that have ended.
    pub(crate) fn end_over(&self, ended: &EndedSessions) {
        for watched in self.followed().values() {
            if watched.loaded.end_reason(ended).is_some() {
                watched.expiry.end();
            }
        }
    }

    fn followed(&self) -> MutexGuard<'_, HashMap<Arc<str>, WatchedSessions>> {
        self.followed.lock().ignore_poison()
    }
}

impl WatchedSession {
    /// Extends the expiry, unless the session has ended.
    fn renew(&self, ends: Timestamp) {
        let later = |now: u64| (now != ENDED && now < ends.as_nanos()).then_some(ends.as_nanos());
        // An unchanged value is no failure.
        let _ = self.0.fetch_update(Relaxed, Relaxed, later);
    }

    fn end(&self) {
        self.0.store(ENDED, Relaxed);
    }
}

impl fmt::Debug for SessionWatchers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lives").field(&self.count.load(Relaxed)).finish()
    }
}

impl fmt::Debug for SessionWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Following").field(&self.ends()).finish()
    }
}

const ENDED: u64 = 0;
