//! Lives: what a stream must know of the visit that opened it.
//!
//! A WebSocket outlives the request it began with, and may outlive the token
//! that was good for it: another request of the visit renews that token, and a
//! logout ends it. So a stream follows its visit's *life*. Only visits with
//! open streams have one; without any, a request pays one load for all of this.

use core::fmt;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ended_sessions::EndedSessions;
use crate::base::clock::Timestamp;
use crate::session::store::loaded::LoadedSession;

/// The visits that streams follow.
#[derive(Default)]
pub(crate) struct SessionWatchers {
    count: AtomicUsize,
    followed: Mutex<HashMap<Arc<str>, WatchedSessions>>,
}

struct WatchedSessions {
    opened: Arc<LoadedSession>,
    life: Arc<WatchedSession>,
    streams: usize,
}

/// Until when a visit's access token is good, in nanoseconds: later with every refresh, and zero once it is over.
struct WatchedSession(AtomicU64);

/// A stream's view of its visit, for as long as the stream is open.
pub struct SessionWatch {
    lives: Arc<SessionWatchers>,
    name: Arc<str>,
    life: Arc<WatchedSession>,
}

impl SessionWatch {
    /// Until when the visit is good as far as is known now; `None` if it is over.
    pub fn ends(&self) -> Option<Timestamp> {
        match self.life.0.load(Relaxed) {
            ENDED => None,
            ends => Some(Timestamp::from_nanos(ends)),
        }
    }
}

impl Drop for SessionWatch {
    fn drop(&mut self) {
        let mut followed = self.lives.followed();
        if let Some(visit) = followed.get_mut(&self.name) {
            visit.streams -= 1;
            if visit.streams == 0 {
                followed.remove(&self.name);
            }
        }
        self.lives.count.store(followed.len(), Relaxed);
    }
}

impl SessionWatchers {
    /// Follows the visit `loaded_session`, whose access token is good until `ends`.
    pub(crate) fn follow(
        self: &Arc<Self>,
        opened: &Arc<LoadedSession>,
        ends: Timestamp,
        endings: &EndedSessions,
    ) -> SessionWatch {
        let name = Arc::clone(&opened.name);
        let life = {
            let mut followed = self.followed();
            let visit = followed.entry(Arc::clone(&name)).or_insert_with(|| WatchedSessions {
                opened: Arc::clone(opened),
                life: Arc::new(WatchedSession(AtomicU64::new(ENDED + 1))),
                streams: 0,
            });
            visit.streams += 1;
            let life = Arc::clone(&visit.life);
            self.count.store(followed.len(), Relaxed);
            life
        };
        life.renew(ends);
        // After it is followed: an ending either finds it there or is found here.
        if opened.ending(endings).is_some() {
            life.end();
        }
        SessionWatch { lives: Arc::clone(self), name, life }
    }

    /// The visit called `name` has an access token that is good until `ends`.
    pub(crate) fn renew(&self, name: &str, ends: Timestamp) {
        if self.count.load(Relaxed) > 0
            && let Some(visit) = self.followed().get(name)
        {
            visit.life.renew(ends);
        }
    }

    /// The visit called `name` is over.
    pub(crate) fn end(&self, name: &str) {
        if let Some(visit) = self.followed().get(name) {
            visit.life.end();
        }
    }

    /// Every visit is over that `ended_sessions` say is.
    pub(crate) fn end_over(&self, endings: &EndedSessions) {
        for visit in self.followed().values() {
            if visit.opened.ending(endings).is_some() {
                visit.life.end();
            }
        }
    }

    fn followed(&self) -> MutexGuard<'_, HashMap<Arc<str>, WatchedSessions>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WatchedSession {
    /// What is over stays over.
    fn renew(&self, ends: Timestamp) {
        let later = |now: u64| (now != ENDED && now < ends.as_nanos()).then_some(ends.as_nanos());
        // Nothing to change is no failure.
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
