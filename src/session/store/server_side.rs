//! Sessions stored on the server: the browser holds only a session id.
//!
//! In process memory, and with `store: redis` in Redis for every instance.
//! While Redis is unavailable this instance serves the sessions that it has in
//! memory, and writes the changes when Redis is reachable again.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures_util::future::BoxFuture;
use moka::Expiry;
use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::runtime::Handle;

use super::loaded_session::LoadedSession;
use super::lookup::SharedLookup;
use super::redis::SharedSessions;
use super::state::Id;
use crate::base::lock::IgnorePoison;
use crate::redis::Unavailable;
use crate::session::logout::ended_sessions::EndedSessions;

/// The storage of sessions on the server.
#[derive(Debug)]
pub(crate) struct Store {
    memory: Arc<MemoryStore>,
    shared: Option<SharedStore>,
}

impl Store {
    /// Returns a store in `memory`, shared with other instances through Redis, if `sharing` is given; its background
    /// tasks run on `control`.
    pub(crate) fn new(
        memory: Arc<MemoryStore>,
        sharing: Option<Arc<SharedSessions>>,
        control: Handle,
    ) -> Self {
        let shared =
            sharing.map(|sharing| SharedStore { sharing, pending_writes: Arc::default(), control });
        Self { memory, shared }
    }

    /// Returns the session `id`, or `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if the session is not in memory, and Redis does not respond.
    pub(crate) async fn find(&self, id: Id) -> Result<Option<Arc<LoadedSession>>, Unavailable> {
        let known = self.memory.sessions.get(&id);
        let Some(SharedStore { sharing, .. }) = &self.shared else { return Ok(known) };
        match sharing.find(id).await {
            Ok(SharedLookup::Sealed(text)) => {
                if let Some(known) = known.as_ref().filter(|known| known.text() == Some(&*text)) {
                    return Ok(Some(Arc::clone(known)));
                }
                let Some(found) = sharing.open(id, text) else { return Ok(known) };
                // The state in memory may be later, and about to be written.
                if let Some(known) = known.filter(|known| later(known, &found)) {
                    return Ok(Some(known));
                }
                let found = Arc::new(found);
                self.memory.sessions.insert(id, Arc::clone(&found));
                Ok(Some(found))
            }
            Ok(SharedLookup::Ended) => {
                self.memory.sessions.invalidate(&id);
                Ok(None)
            }
            Ok(SharedLookup::NotFound) => {
                // Redis has lost it: a session that has ended leaves a record there.
                if let Some(known) = &known {
                    self.write(id, Some(known)).await;
                }
                Ok(known)
            }
            // Another instance may have used it meanwhile: only Redis knows whether it has ended.
            Err(Unavailable) => match known {
                Some(known) if !sharing.is_idle(&known) => Ok(Some(known)),
                _ => Err(Unavailable),
            },
        }
    }

    /// Whether Redis has the session `id` and it does not open here, or whether that cannot be known now.
    pub(crate) async fn is_sealed_elsewhere(&self, id: Id) -> bool {
        let Some(SharedStore { sharing, .. }) = &self.shared else { return false };
        match sharing.find(id).await {
            Ok(SharedLookup::Sealed(text)) => sharing.open(id, text).is_none(),
            Ok(SharedLookup::Ended | SharedLookup::NotFound) => false,
            Err(Unavailable) => true,
        }
    }

    /// Whether other instances store the same sessions.
    pub(crate) const fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// Stores a new session.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if other instances could not find it; it is not stored then.
    pub(crate) async fn keep(&self, loaded: Arc<LoadedSession>) -> Result<(), Unavailable> {
        if let Some(shared) = &self.shared {
            shared.sharing.keep_new(&loaded).await?;
        }
        self.memory.sessions.insert(loaded.state.id, loaded);
        Ok(())
    }

    /// Writes the sessions that have not ended to Redis again, which may have lost them.
    pub(crate) async fn republish(&self, ended: &EndedSessions) -> Result<(), Unavailable> {
        let Some(SharedStore { sharing, .. }) = &self.shared else { return Ok(()) };
        for (_, loaded) in &self.memory.sessions {
            if loaded.end_reason(ended).is_none() {
                sharing.keep(&loaded).await?;
            }
        }
        Ok(())
    }

    /// Ends the session `id`, which cannot be read now, in the background, and passes it to `revoke_tokens`. Returns
    /// `false` if too many writes are pending.
    pub(crate) fn end_unseen(
        &self,
        id: Id,
        revoke_tokens: impl FnOnce(Option<LoadedSession>) -> BoxFuture<'static, ()> + Send + 'static,
    ) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.sharing.end_unseen(id, revoke_tokens))
    }

    /// Replaces a session by its later state; one that was removed stays removed.
    pub(crate) async fn renew(&self, later: &Arc<LoadedSession>) {
        let id = later.state.id;
        self.memory.sessions.entry(id).and_compute_with(|entry| match entry {
            // A later time of last use must not restore tokens that a refresh has replaced.
            Some(earlier) if earlier.value().state.received <= later.state.received => {
                Op::Put(Arc::clone(later))
            }
            _ => Op::Nop,
        });
        self.write(id, Some(later)).await;
    }

    /// Removes a session.
    pub(crate) async fn remove(&self, id: Id) {
        self.memory.sessions.invalidate(&id);
        self.write(id, None).await;
    }

    /// Writes a state to Redis, now or when Redis is reachable again.
    async fn write(&self, id: Id, state: Option<&Arc<LoadedSession>>) {
        let Some(shared) = &self.shared else { return };
        if write_state(&shared.sharing, id, state).await.is_err() {
            shared.defer(id, state.cloned());
        }
    }
}

/// The part of a store in Redis.
struct SharedStore {
    sharing: Arc<SharedSessions>,
    pending_writes: Arc<Mutex<PendingWrites>>,
    control: Handle,
}

/// States to be written when Redis is reachable: sessions, and `None` for ended ones.
#[derive(Default)]
struct PendingWrites {
    states: HashMap<Id, Option<Arc<LoadedSession>>>,
    /// Whether a task is about to write them.
    scheduled: bool,
}

impl SharedStore {
    fn defer(&self, id: Id, state: Option<Arc<LoadedSession>>) {
        let mut pending_writes = lock(&self.pending_writes);
        if pending_writes.states.len() >= MAX_PENDING_WRITES
            && !pending_writes.states.contains_key(&id)
        {
            tracing::error!(
                max_pending = MAX_PENDING_WRITES,
                "Too many writes to Redis are pending; other instances will not see the change of a session."
            );
            return;
        }
        match pending_writes.states.get(&id) {
            // An ended session stays ended.
            Some(None) => return,
            _ => pending_writes.states.insert(id, state),
        };
        if !pending_writes.scheduled {
            pending_writes.scheduled = true;
            let (sharing, pending_writes) =
                (Arc::clone(&self.sharing), Arc::clone(&self.pending_writes));
            self.control.spawn(write_pending(sharing, pending_writes));
        }
    }
}

/// Writes all pending states as soon as Redis is reachable.
async fn write_pending(sharing: Arc<SharedSessions>, pending_writes: Arc<Mutex<PendingWrites>>) {
    loop {
        sharing.wait_to_retry().await;
        while let Some((id, state)) = next(&pending_writes) {
            if write_state(&sharing, id, state.as_ref()).await.is_err() {
                // A state that was written since then is later.
                lock(&pending_writes).states.entry(id).or_insert(state);
                break;
            }
        }
        let mut pending_writes = lock(&pending_writes);
        if pending_writes.states.is_empty() {
            pending_writes.scheduled = false;
            return;
        }
    }
}

fn next(pending_writes: &Mutex<PendingWrites>) -> Option<(Id, Option<Arc<LoadedSession>>)> {
    let mut pending_writes = lock(pending_writes);
    let id = *pending_writes.states.keys().next()?;
    pending_writes.states.remove_entry(&id)
}

async fn write_state(
    sharing: &SharedSessions,
    id: Id,
    state: Option<&Arc<LoadedSession>>,
) -> Result<(), Unavailable> {
    match state {
        Some(loaded) => sharing.keep(loaded).await,
        None => sharing.end(id).await,
    }
}

fn later(one: &LoadedSession, other: &LoadedSession) -> bool {
    let times = |loaded: &LoadedSession| (loaded.state.received, loaded.state.seen);
    times(one) > times(other)
}

fn lock(pending_writes: &Mutex<PendingWrites>) -> std::sync::MutexGuard<'_, PendingWrites> {
    pending_writes.lock().ignore_poison()
}

impl fmt::Debug for SharedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("sharing", &self.sharing).finish_non_exhaustive()
    }
}

/// Sessions in process memory; bounded, lost when the process ends.
pub(crate) struct MemoryStore {
    sessions: Cache<Id, Arc<LoadedSession>>,
    life: EntryLife,
}

impl MemoryStore {
    /// Returns an empty store.
    pub(crate) fn new() -> Self {
        let life = EntryLife::default();
        let sessions = Cache::builder()
            .max_capacity(MAX_SESSIONS)
            // A new session must always be stored: the longest idle ones make room.
            .eviction_policy(EvictionPolicy::lru())
            .expire_after(life.clone());
        Self { sessions: sessions.build(), life }
    }

    /// Sets the time after which idle sessions are removed.
    pub(crate) fn forget_after(&self, idle: Duration) {
        self.life.set(idle);
    }

    /// Removes the sessions that have ended and returns their number. Sessions that only
    /// Redis has are found to have ended when they are loaded.
    pub(crate) fn forget_over(&self, ended: &EndedSessions) -> usize {
        let mut forgotten = 0;
        for (id, loaded) in &self.sessions {
            if loaded.end_reason(ended).is_some() {
                self.sessions.invalidate(&*id);
                forgotten += 1;
            }
        }
        forgotten
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("sessions", &self.sessions.entry_count())
            .finish_non_exhaustive()
    }
}

/// The expiry of sessions in memory. Idle ones are refused by their own times before that.
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

/// Sessions in memory at once, each some kilobytes.
const MAX_SESSIONS: u64 = if cfg!(test) { 200 } else { 200_000 };
/// States to be written while Redis is unavailable.
const MAX_PENDING_WRITES: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::tests::mock_issuer::access_token_alone;
    use crate::session::settings::ForwardedSessionToken;
    use crate::session::store::state::SessionState;

    #[test]
    fn a_full_store_evicts_the_longest_idle_session() {
        let memory = MemoryStore::new();
        memory.forget_after(Duration::from_secs(1_800));
        let begin = || {
            let loaded = loaded();
            memory.sessions.insert(loaded.state.id, Arc::clone(&loaded));
            loaded.state.id
        };
        let first: Vec<_> = (0..MAX_SESSIONS).map(|_| begin()).collect();
        memory.sessions.run_pending_tasks();
        for id in first.iter().cycle().take(first.len() * 5) {
            memory.sessions.get(id);
        }

        for number in 0..MAX_SESSIONS {
            let id = begin();
            memory.sessions.run_pending_tasks();
            assert!(memory.sessions.get(&id).is_some(), "{number}");
        }
    }

    fn loaded() -> Arc<LoadedSession> {
        let now = crate::base::clock::Timestamp::from_secs(1_700_000_000);
        Arc::new(LoadedSession::new(
            SessionState::begin(access_token_alone(now), now),
            ForwardedSessionToken::None,
        ))
    }
}
