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

use super::endings::Endings;
use super::opened::Opened;
use crate::base::clock::Timestamp;

/// The visits that streams follow.
#[derive(Default)]
pub(super) struct Lives {
    count: AtomicUsize,
    followed: Mutex<HashMap<Arc<str>, Followed>>,
}

struct Followed {
    opened: Arc<Opened>,
    life: Arc<Life>,
    streams: usize,
}

/// Until when a visit's access token is good, in nanoseconds: later with every refresh, and zero once it is over.
struct Life(AtomicU64);

/// A stream's view of its visit, for as long as the stream is open.
pub struct Following {
    lives: Arc<Lives>,
    name: Arc<str>,
    life: Arc<Life>,
}

impl Following {
    /// Until when the visit is good as far as is known now; `None` if it is over.
    pub fn ends(&self) -> Option<Timestamp> {
        match self.life.0.load(Relaxed) {
            OVER => None,
            ends => Some(Timestamp::from_nanos(ends)),
        }
    }
}

impl Drop for Following {
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

impl Lives {
    /// Follows the visit `opened`, whose access token is good until `ends`.
    pub(super) fn follow(
        self: &Arc<Self>,
        opened: &Arc<Opened>,
        ends: Timestamp,
        endings: &Endings,
    ) -> Following {
        let name = Arc::clone(&opened.name);
        let life = {
            let mut followed = self.followed();
            let visit = followed.entry(Arc::clone(&name)).or_insert_with(|| Followed {
                opened: Arc::clone(opened),
                life: Arc::new(Life(AtomicU64::new(OVER + 1))),
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
        Following { lives: Arc::clone(self), name, life }
    }

    /// The visit called `name` has an access token that is good until `ends`.
    pub(super) fn renew(&self, name: &str, ends: Timestamp) {
        if self.count.load(Relaxed) > 0
            && let Some(visit) = self.followed().get(name)
        {
            visit.life.renew(ends);
        }
    }

    /// The visit called `name` is over.
    pub(super) fn end(&self, name: &str) {
        if let Some(visit) = self.followed().get(name) {
            visit.life.end();
        }
    }

    /// Every visit is over that `endings` say is.
    pub(super) fn end_over(&self, endings: &Endings) {
        for visit in self.followed().values() {
            if visit.opened.ending(endings).is_some() {
                visit.life.end();
            }
        }
    }

    fn followed(&self) -> MutexGuard<'_, HashMap<Arc<str>, Followed>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Life {
    /// What is over stays over.
    fn renew(&self, ends: Timestamp) {
        let later = |now: u64| (now != OVER && now < ends.as_nanos()).then_some(ends.as_nanos());
        // Nothing to change is no failure.
        let _ = self.0.fetch_update(Relaxed, Relaxed, later);
    }

    fn end(&self) {
        self.0.store(OVER, Relaxed);
    }
}

impl fmt::Debug for Lives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lives").field(&self.count.load(Relaxed)).finish()
    }
}

impl fmt::Debug for Following {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Following").field(&self.ends()).finish()
    }
}

const OVER: u64 = 0;
