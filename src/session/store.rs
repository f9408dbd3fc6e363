//! Sessions kept on the server: the browser holds nothing but a visit's id.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;

use moka::Expiry;
use moka::ops::compute::Op;
use moka::sync::Cache;

use super::endings::Endings;
use super::opened::Opened;
use super::visit::Id;

/// Where visits are kept. Every method may have to ask another machine.
#[derive(Debug)]
pub(super) enum Store {
    /// This process.
    Memory(Memory),
}

impl Store {
    /// A store in this process.
    pub(super) fn memory() -> Self {
        Self::Memory(Memory::new())
    }

    /// Visits are over after `idle` without a request.
    pub(super) fn forget_after(&self, idle: Duration) {
        match self {
            Self::Memory(memory) => memory.life.set(idle),
        }
    }

    /// The visit called `id`, if it is there.
    #[expect(clippy::unused_async, reason = "stores on other machines have to be asked")]
    pub(super) async fn find(&self, id: Id) -> Option<Arc<Opened>> {
        match self {
            Self::Memory(memory) => memory.visits.get(&id),
        }
    }

    /// Keeps a new visit.
    #[expect(clippy::unused_async, reason = "stores on other machines have to be asked")]
    pub(super) async fn keep(&self, opened: Arc<Opened>) {
        match self {
            Self::Memory(memory) => memory.visits.insert(opened.visit.id, opened),
        }
    }

    /// Puts a later state of a visit in the place of an earlier one; one that is gone stays gone.
    #[expect(clippy::unused_async, reason = "stores on other machines have to be asked")]
    pub(super) async fn renew(&self, later: &Arc<Opened>) {
        match self {
            Self::Memory(memory) => {
                memory.visits.entry(later.visit.id).and_compute_with(|entry| match entry {
                    // Touching must not bring back tokens that a refresh has replaced.
                    Some(earlier) if earlier.value().visit.received <= later.visit.received => {
                        Op::Put(Arc::clone(later))
                    }
                    _ => Op::Nop,
                });
            }
        }
    }

    /// Forgets a visit.
    #[expect(clippy::unused_async, reason = "stores on other machines have to be asked")]
    pub(super) async fn remove(&self, id: Id) {
        match self {
            Self::Memory(memory) => memory.visits.invalidate(&id),
        }
    }

    /// Forgets the visits in this process that `endings` say are over; returns how many. Those on
    /// another machine are found over when they are asked for.
    pub(super) fn forget_over(&self, endings: &Endings) -> usize {
        let Self::Memory(Memory { visits, .. }) = self;
        let mut forgotten = 0;
        for (id, opened) in visits {
            if opened.ending(endings).is_some() {
                visits.invalidate(&*id);
                forgotten += 1;
            }
        }
        forgotten
    }
}

/// Visits in this process; bounded, and gone with it.
pub(super) struct Memory {
    visits: Cache<Id, Arc<Opened>>,
    life: Life,
}

impl Memory {
    fn new() -> Self {
        let life = Life::default();
        let visits = Cache::builder().max_capacity(MAX_VISITS).expire_after(life.clone()).build();
        Self { visits, life }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("visits", &self.visits.entry_count()).finish_non_exhaustive()
    }
}

/// When the memory of a visit is given back. What is idle is refused by its own times before that.
#[derive(Clone, Default)]
struct Life(Arc<AtomicU64>);

impl Life {
    fn set(&self, idle: Duration) {
        self.0.store(idle.as_secs().saturating_add(60), Relaxed);
    }

    fn left(&self) -> Duration {
        Duration::from_secs(self.0.load(Relaxed))
    }
}

impl Expiry<Id, Arc<Opened>> for Life {
    fn expire_after_create(&self, _: &Id, _: &Arc<Opened>, _: Instant) -> Option<Duration> {
        Some(self.left())
    }

    fn expire_after_read(
        &self,
        _: &Id,
        _: &Arc<Opened>,
        _: Instant,
        _: Option<Duration>,
        _: Instant,
    ) -> Option<Duration> {
        Some(self.left())
    }

    fn expire_after_update(
        &self,
        _: &Id,
        _: &Arc<Opened>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(self.left())
    }
}

/// Visits at once, each some kilobytes.
const MAX_VISITS: u64 = 200_000;
