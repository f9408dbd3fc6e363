//! The queue between a journal and its writer's thread, and the progress of writing.

use crate::base::lock::IgnorePoison;
use core::time::Duration;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};

use super::record::Record;

/// The progress of writing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// All records up to this one are on disk.
    pub(super) synced: u64,
    /// Writing was attempted up to this record; those that are not synced failed.
    pub(super) failed: u64,
    /// Some of the records after the first number and up to the second were dropped, because the queue was full.
    lost: (u64, u64),
}

impl Progress {
    /// Records that all up to this number were written, except dropped ones.
    pub(super) fn written(&mut self, up_to: u64, is_whole: bool) {
        if !is_whole {
            let (from, to) = self.lost;
            self.lost = (if self.synced > to { self.synced } else { from }, up_to);
        }
        self.synced = up_to;
    }

    pub(super) fn is_synced(&self, number: u64) -> bool {
        let (from, to) = self.lost;
        number <= self.synced && !(from < number && number <= to)
    }
}

/// The queue to the writer's thread.
#[derive(Default)]
pub(super) struct WriterHandle {
    pub(super) queue: Mutex<Queue>,
    pub(super) bell: Condvar,
}

#[derive(Default)]
pub(super) struct Queue {
    pub(super) records: VecDeque<Record>,
    pub(super) appended: u64,
    /// Whether a record was dropped.
    pub(super) is_lossy: bool,
    pub(super) is_closed: bool,
}

/// The records taken from the queue at once.
pub(super) struct Batch {
    pub(super) records: VecDeque<Record>,
    /// The number of the last record.
    pub(super) up_to: u64,
    /// Whether some were dropped.
    pub(super) is_lossy: bool,
    /// Whether the queue is closed.
    pub(super) is_last: bool,
}

impl WriterHandle {
    /// Takes all queued records; if there are none, waits for one, `time_limit` at most.
    pub(super) fn take(&self, time_limit: Option<Duration>) -> Batch {
        let mut queue = self.queue();
        let mut waited = false;
        while queue.records.is_empty() && !queue.is_lossy && !queue.is_closed && !waited {
            queue = match time_limit {
                None => self.bell.wait(queue).ignore_poison(),
                Some(time_limit) => {
                    waited = true;
                    let (queue, _) = self.bell.wait_timeout(queue, time_limit).ignore_poison();
                    queue
                }
            };
        }
        Batch {
            records: core::mem::take(&mut queue.records),
            up_to: queue.appended,
            is_lossy: core::mem::take(&mut queue.is_lossy),
            is_last: queue.is_closed,
        }
    }

    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().ignore_poison()
    }
}

/// The maximum number of queued records; some 20 MiB.
pub(super) const MAX_QUEUED_RECORDS: usize = 100_000;
