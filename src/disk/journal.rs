//! A write-ahead journal: records that must be on disk before a response is sent.
//!
//! Records are appended by a thread of the journal's own, all pending ones
//! with one `fsync`; a worker never blocks on the disk, but waits for the
//! notification. Records that could not be written stay pending: the waiting caller gets an
//! error, and they are written as soon as the disk accepts writes again.
//!
//! Each process writes a file of its own under a lock. A starting process
//! takes over the files of processes that have ended. While one of them still
//! drains, the new process follows its file.

use core::fmt;
use core::time::Duration;
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::timeout;

use super::directory::Directory;
use super::record::Record;
use super::writer::Writer;
use crate::base::clock::Clock;

/// An open journal. Clones share it; when the last is dropped, pending records are written
/// and the thread ends.
#[derive(Clone)]
pub struct Journal(Arc<Inner>);

struct Inner {
    desk: Arc<WriterHandle>,
    progress: watch::Receiver<Progress>,
}

/// The name and the size of a journal.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// The prefix of its files.
    pub name: &'static str,
    /// The maximum number of records; beyond it the oldest are dropped.
    pub most: usize,
}

/// The number of a record in the order of appending.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[must_use = "the record may be lost until it was waited for"]
pub struct RecordNumber(u64);

/// The record is not on disk: the next process will not have it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`server.state_dir`: the record could not be written")]
pub struct WriteFailed;

/// An error of opening a journal.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// An existing journal cannot be read: without it, ended sessions and tokens would be valid again.
    #[error("cannot read the journal in {}", path.display())]
    Read {
        /// The file, or the directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The system refuses the thread.
    #[error("cannot start the journal's thread")]
    Thread(#[source] io::Error),
}

/// A callback for records that another process has written.
pub type RecordListener = Box<dyn Fn(&[Record]) + Send>;

impl Journal {
    /// Opens the journal of this `kind` in `directory`, and returns the live records of earlier processes.
    ///
    /// Records that a still running process appends later are passed to `heard`. A directory that cannot be
    /// written is no error here: then all appended records stay pending.
    ///
    /// # Errors
    ///
    /// [`OpenError`].
    pub fn open(
        directory: Directory,
        kind: Kind,
        clock: Clock,
        heard: RecordListener,
    ) -> Result<(Self, Vec<Record>), OpenError> {
        let desk = Arc::new(WriterHandle::default());
        let (told, progress) = watch::channel(Progress::default());
        let (writer, records) = Writer::open(directory, kind, clock, heard)?;
        let at_desk = Arc::clone(&desk);
        let thread = std::thread::Builder::new().name(format!("journal-{}", kind.name));
        let work = move || writer.run(&at_desk, &told);
        thread.spawn(work).map_err(OpenError::Thread)?;
        Ok((Self(Arc::new(Inner { desk, progress })), records))
    }

    /// Queues `record` for the writer's thread. The record is on disk after [`wait`](Self::wait) for its number.
    pub fn append(&self, record: Record) -> RecordNumber {
        let mut queue = self.0.desk.queue();
        if queue.records.len() < MAX_QUEUED_RECORDS {
            queue.records.push_back(record);
        } else {
            queue.is_lossy = true;
        }
        queue.appended += 1;
        self.0.desk.bell.notify_one();
        RecordNumber(queue.appended)
    }

    /// Waits until all records appended so far are on disk.
    ///
    /// # Errors
    ///
    /// [`WriteFailed`] if any of them could not be written.
    pub async fn wait_for_all(&self) -> Result<(), WriteFailed> {
        let place = RecordNumber(self.0.desk.queue().appended);
        self.wait(place).await
    }

    /// Waits until the record `place`, and all before it, are on disk.
    ///
    /// # Errors
    ///
    /// [`WriteFailed`] if they could not be written, or writing takes too long.
    pub async fn wait(&self, RecordNumber(place): RecordNumber) -> Result<(), WriteFailed> {
        let mut progress = self.0.progress.clone();
        let done = progress.wait_for(|now| place <= now.kept.max(now.failed));
        match timeout(WRITE_TIMEOUT, done).await {
            Ok(Ok(now)) if now.has_kept(place) => Ok(()),
            _ => Err(WriteFailed),
        }
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("progress", &*self.0.progress.borrow()).finish()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.desk.queue().is_closed = true;
        self.desk.bell.notify_one();
    }
}

/// The progress of writing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// All records up to this one are on disk.
    pub(super) kept: u64,
    /// Writing was attempted up to this record; those that are not kept failed.
    pub(super) failed: u64,
    /// Some of the records behind the first number and up to the second were dropped, because the queue was full.
    lost: (u64, u64),
}

impl Progress {
    /// Records that all up to this number were written, except dropped ones.
    pub(super) fn written(&mut self, up_to: u64, is_whole: bool) {
        if !is_whole {
            let (from, to) = self.lost;
            self.lost = (if self.kept > to { self.kept } else { from }, up_to);
        }
        self.kept = up_to;
    }

    fn has_kept(&self, place: u64) -> bool {
        let (from, to) = self.lost;
        place <= self.kept && !(from < place && place <= to)
    }
}

/// The queue to the writer's thread.
#[derive(Default)]
pub(super) struct WriterHandle {
    queue: Mutex<Queue>,
    bell: Condvar,
}

#[derive(Default)]
struct Queue {
    records: VecDeque<Record>,
    appended: u64,
    /// Whether a record was dropped.
    is_lossy: bool,
    is_closed: bool,
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
                None => self.bell.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(time_limit) => {
                    waited = true;
                    let (queue, _) = self
                        .bell
                        .wait_timeout(queue, time_limit)
                        .unwrap_or_else(PoisonError::into_inner);
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

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The maximum number of queued records; some 20 MiB.
pub(super) const MAX_QUEUED_RECORDS: usize = 100_000;
/// The time limit of a write.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
