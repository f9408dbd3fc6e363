//! Sessions kept on the server: the browser holds nothing but a visit's id.
//!
//! In this process, and with `store: redis` for every gateway of the fleet.
//! While Redis is away this process goes on with the visits that it knows,
//! and says what has changed when Redis is back.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures_util::future::BoxFuture;
use moka::Expiry;
use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::runtime::Handle;

use super::loaded::LoadedSession;
use super::redis::{SharedLookup, SharedSessions};
use super::state::Id;
use crate::session::logout::ended_sessions::EndedSessions;
use crate::store::Unavailable;

/// Where visits are kept.
#[derive(Debug)]
pub(crate) struct Store {
    memory: Arc<MemoryStore>,
    shared: Option<SharedStore>,
}

impl Store {
    /// A store in `memory`, shared with the fleet if there is a `redis_session_store`, whose upkeep runs on `control`.
    pub(crate) fn new(
        memory: Arc<MemoryStore>,
        sharing: Option<Arc<SharedSessions>>,
        control: Handle,
    ) -> Self {
        let shared = sharing.map(|sharing| SharedStore { sharing, owed: Arc::default(), control });
        Self { memory, shared }
    }

    /// The visit called `id`, if it is there.
    ///
    /// # Errors
    ///
    /// [`Away`] if this process does not know it, and nobody else can be asked.
    pub(crate) async fn find(&self, id: Id) -> Result<Option<Arc<LoadedSession>>, Unavailable> {
        let known = self.memory.visits.get(&id);
        let Some(SharedStore { sharing, .. }) = &self.shared else { return Ok(known) };
        match sharing.find(id).await {
            Ok(SharedLookup::Sealed(text)) => {
                if let Some(known) = known.as_ref().filter(|known| known.text() == Some(&*text)) {
                    return Ok(Some(Arc::clone(known)));
                }
                let Some(found) = sharing.open(id, text) else { return Ok(known) };
                // What is known here may be later, and on its way there.
                if let Some(known) = known.filter(|known| later(known, &found)) {
                    return Ok(Some(known));
                }
                let found = Arc::new(found);
                self.memory.visits.insert(id, Arc::clone(&found));
                Ok(Some(found))
            }
            Ok(SharedLookup::Over) => {
                self.memory.visits.invalidate(&id);
                Ok(None)
            }
            Ok(SharedLookup::Nothing) => {
                // Redis has lost it: what is over leaves a trace there.
                if let Some(known) = &known {
                    self.say(id, Some(known)).await;
                }
                Ok(known)
            }
            // It may have been used at another gateway meanwhile: only the store can tell that it is over.
            Err(Unavailable) => match known {
                Some(known) if !sharing.is_idle(&known) => Ok(Some(known)),
                _ => Err(Unavailable),
            },
        }
    }

    /// Whether other gateways keep the same visits.
    pub(crate) const fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// Keeps a new visit.
    ///
    /// # Errors
    ///
    /// [`Away`] if other gateways could not find it; it is not kept then.
    pub(crate) async fn keep(&self, opened: Arc<LoadedSession>) -> Result<(), Unavailable> {
        if let Some(shared) = &self.shared {
            shared.sharing.keep_new(&opened).await?;
        }
        self.memory.visits.insert(opened.visit.id, opened);
        Ok(())
    }

    /// Says once more which visits there are that are not over by `ended_sessions`: Redis may have lost them.
    pub(crate) async fn say_again(&self, endings: &EndedSessions) -> Result<(), Unavailable> {
        let Some(SharedStore { sharing, .. }) = &self.shared else { return Ok(()) };
        for (_, opened) in &self.memory.visits {
            if opened.ending(endings).is_none() {
                sharing.keep(&opened).await?;
            }
        }
        Ok(())
    }

    /// Ends the visit `id`, which cannot be asked for now, as soon as it can; what it holds goes to `give_back`
    /// then. `false` if that cannot be promised.
    pub(crate) fn end_unseen(
        &self,
        id: Id,
        give_back: impl FnOnce(Option<LoadedSession>) -> BoxFuture<'static, ()> + Send + 'static,
    ) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.sharing.end_unseen(id, give_back))
    }

    /// Puts a later state of a visit in the place of an earlier one; one that is gone stays gone.
    pub(crate) async fn renew(&self, later: &Arc<LoadedSession>) {
        let id = later.visit.id;
        self.memory.visits.entry(id).and_compute_with(|entry| match entry {
            // Touching must not bring back tokens that a refresh has replaced.
            Some(earlier) if earlier.value().visit.received <= later.visit.received => {
                Op::Put(Arc::clone(later))
            }
            _ => Op::Nop,
        });
        self.say(id, Some(later)).await;
    }

    /// Forgets a visit.
    pub(crate) async fn remove(&self, id: Id) {
        self.memory.visits.invalidate(&id);
        self.say(id, None).await;
    }

    /// Tells the fleet, now or when Redis is back.
    async fn say(&self, id: Id, state: Option<&Arc<LoadedSession>>) {
        let Some(shared) = &self.shared else { return };
        if tell(&shared.sharing, id, state).await.is_err() {
            shared.owe(id, state.cloned());
        }
    }
}

/// The fleet's side of a store.
struct SharedStore {
    sharing: Arc<SharedSessions>,
    owed: Arc<Mutex<PendingWrites>>,
    control: Handle,
}

/// What could not be said: visits, and `None` for those that are over.
#[derive(Default)]
struct PendingWrites {
    states: HashMap<Id, Option<Arc<LoadedSession>>>,
    /// Whether somebody is about to say it.
    pending: bool,
}

impl SharedStore {
    fn owe(&self, id: Id, state: Option<Arc<LoadedSession>>) {
        let mut owed = lock(&self.owed);
        if owed.states.len() >= MAX_PENDING_WRITES && !owed.states.contains_key(&id) {
            tracing::error!(
                most = MAX_PENDING_WRITES,
                "Redis is away for too long: a session is not shared any more."
            );
            return;
        }
        match owed.states.get(&id) {
            // Over stays over.
            Some(None) => return,
            _ => owed.states.insert(id, state),
        };
        if !owed.pending {
            owed.pending = true;
            let (sharing, owed) = (Arc::clone(&self.sharing), Arc::clone(&self.owed));
            self.control.spawn(settle(sharing, owed));
        }
    }
}

/// Says all that is owed, as soon as there is somebody to hear it.
async fn settle(sharing: Arc<SharedSessions>, owed: Arc<Mutex<PendingWrites>>) {
    loop {
        sharing.wait_to_retry().await;
        while let Some((id, state)) = next(&owed) {
            if tell(&sharing, id, state.as_ref()).await.is_err() {
                // What has been said since then is later.
                lock(&owed).states.entry(id).or_insert(state);
                break;
            }
        }
        let mut owed = lock(&owed);
        if owed.states.is_empty() {
            owed.pending = false;
            return;
        }
    }
}

fn next(owed: &Mutex<PendingWrites>) -> Option<(Id, Option<Arc<LoadedSession>>)> {
    let mut owed = lock(owed);
    let id = *owed.states.keys().next()?;
    owed.states.remove_entry(&id)
}

async fn tell(
    sharing: &SharedSessions,
    id: Id,
    state: Option<&Arc<LoadedSession>>,
) -> Result<(), Unavailable> {
    match state {
        Some(opened) => sharing.keep(opened).await,
        None => sharing.end(id).await,
    }
}

fn later(one: &LoadedSession, other: &LoadedSession) -> bool {
    let times = |opened: &LoadedSession| (opened.visit.received, opened.visit.seen);
    times(one) > times(other)
}

fn lock(owed: &Mutex<PendingWrites>) -> std::sync::MutexGuard<'_, PendingWrites> {
    owed.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for SharedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("sharing", &self.sharing).finish_non_exhaustive()
    }
}

/// Visits in this process; bounded, and gone with it.
pub(crate) struct MemoryStore {
    visits: Cache<Id, Arc<LoadedSession>>,
    life: EntryLife,
}

impl MemoryStore {
    /// None yet.
    pub(crate) fn new() -> Self {
        let life = EntryLife::default();
        let visits = Cache::builder()
            .max_capacity(MAX_SESSIONS)
            // Whoever logs in must be logged in then: those who were idle for the longest make room.
            .eviction_policy(EvictionPolicy::lru())
            .expire_after(life.clone());
        Self { visits: visits.build(), life }
    }

    /// Visits are over after `idle` without a request.
    pub(crate) fn forget_after(&self, idle: Duration) {
        self.life.set(idle);
    }

    /// Forgets the visits that `ended_sessions` say are over; returns how many. Those on
    /// another machine are found over when they are asked for.
    pub(crate) fn forget_over(&self, endings: &EndedSessions) -> usize {
        let mut forgotten = 0;
        for (id, opened) in &self.visits {
            if opened.ending(endings).is_some() {
                self.visits.invalidate(&*id);
                forgotten += 1;
            }
        }
        forgotten
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("visits", &self.visits.entry_count()).finish_non_exhaustive()
    }
}

/// When the memory of a visit is given back. What is idle is refused by its own times before that.
#[derive(Clone, Default)]
struct EntryLife(Arc<AtomicU64>);

impl EntryLife {
    fn set(&self, idle: Duration) {
        self.0.store(idle.as_secs().saturating_add(60), Relaxed);
    }

    fn left(&self) -> Duration {
        Duration::from_secs(self.0.load(Relaxed))
    }
}

impl Expiry<Id, Arc<LoadedSession>> for EntryLife {
    fn expire_after_create(&self, _: &Id, _: &Arc<LoadedSession>, _: Instant) -> Option<Duration> {
        Some(self.left())
    }

    fn expire_after_read(
        &self,
        _: &Id,
        _: &Arc<LoadedSession>,
        _: Instant,
        _: Option<Duration>,
        _: Instant,
    ) -> Option<Duration> {
        Some(self.left())
    }

    fn expire_after_update(
        &self,
        _: &Id,
        _: &Arc<LoadedSession>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(self.left())
    }
}

/// Visits at once, each some kilobytes.
const MAX_SESSIONS: u64 = if cfg!(test) { 200 } else { 200_000 };
/// Visits that are remembered for Redis while it is away.
const MAX_PENDING_WRITES: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::Tokens;
    use crate::session::settings::Forward;
    use crate::session::store::state::SessionState;

    #[test]
    fn a_full_memory_keeps_who_logs_in_last() {
        let memory = MemoryStore::new();
        memory.forget_after(Duration::from_secs(1_800));
        let begin = || {
            let opened = opened();
            memory.visits.insert(opened.visit.id, Arc::clone(&opened));
            opened.visit.id
        };
        let first: Vec<_> = (0..MAX_SESSIONS).map(|_| begin()).collect();
        memory.visits.run_pending_tasks();
        for id in first.iter().cycle().take(first.len() * 5) {
            memory.visits.get(id);
        }

        for number in 0..MAX_SESSIONS {
            let id = begin();
            memory.visits.run_pending_tasks();
            assert!(memory.visits.get(&id).is_some(), "{number}");
        }
    }

    fn opened() -> Arc<LoadedSession> {
        let now = crate::base::clock::Timestamp::from_secs(1_700_000_000);
        let tokens = Tokens {
            access_token: "a".into(),
            refresh_token: None,
            id_token: None,
            expires_in: None,
            refresh_expires_in: None,
            scope: None,
            received: now,
        };
        Arc::new(LoadedSession::new(SessionState::begin(tokens, now), Forward::None))
    }
}
