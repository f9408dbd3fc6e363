//! A journal: what must be on disk before an answer goes out.
//!
//! Records are appended by a thread of the journal's own, all that wait
//! together with one `fsync`; a worker never waits for a disk, only for the word
//! that it is done. What could not be written is owed: the caller that waits for it is
//! told, and it is written as soon as the disk takes it.
//!
//! Each process writes a file of its own, which it holds under a lock. One that
//! starts takes over the files of those that have ended. While one of them still
//! drains beside it, the new one follows what that writes.

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

/// A journal that is written. Clones are the same; when the last is dropped, what was appended is written
/// and the thread ends.
#[derive(Clone)]
pub struct Journal(Arc<Inner>);

struct Inner {
    desk: Arc<WriterHandle>,
    progress: watch::Receiver<Progress>,
}

/// What is kept in a journal, and how much of it.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// How the names of its files begin.
    pub name: &'static str,
    /// Records that it holds; if there are more, the oldest make room.
    pub most: usize,
}

/// How many records were appended up to one of them.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[must_use = "until it was waited for, it may be lost"]
pub struct RecordNumber(u64);

/// It is not on disk: the next process will not know it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("it could not be written to `server.state_dir`")]
pub struct WriteFailed;

/// Why there is no journal.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// What was kept cannot be read: without it, what was ended would live again.
    #[error("what was kept in {} cannot be read", path.display())]
    Read {
        /// The file, or the directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The system gives no thread.
    #[error("no thread to write the journal with")]
    Thread(#[source] io::Error),
}

/// Who is told of what another process has written meanwhile.
pub type RecordListener = Box<dyn Fn(&[Record]) + Send>;

impl Journal {
    /// Opens the journal of this `kind` in `directory`, and gives what the processes before have kept and has not ended.
    ///
    /// What a process that still runs writes from now on is told to `heard`. A directory that cannot be
    /// written is no error here: then all that is appended is owed.
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

    /// Hands `record` to the thread that writes. It is on disk when its place [was waited for](Self::wait).
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

    /// Waits until all that was appended so far is on disk.
    ///
    /// # Errors
    ///
    /// [`WriteFailed`] if something of it could not be written.
    pub async fn wait_for_all(&self) -> Result<(), WriteFailed> {
        let place = RecordNumber(self.0.desk.queue().appended);
        self.wait(place).await
    }

    /// Waits until the record at `place`, and all before it, is on disk.
    ///
    /// # Errors
    ///
    /// [`WriteFailed`] if that could not be written, or takes too long.
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

/// How far the records have come that were appended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// All up to this one are on disk.
    pub(super) kept: u64,
    /// It was tried to write them up to this one; those that are not kept failed.
    pub(super) failed: u64,
    /// Behind the first and up to the second, some are lost: there was no room for them.
    lost: (u64, u64),
}

impl Progress {
    /// All that was appended up to this place was written, but for what there was no room for.
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

/// Where records are handed over.
#[derive(Default)]
pub(super) struct WriterHandle {
    queue: Mutex<Queue>,
    bell: Condvar,
}

#[derive(Default)]
struct Queue {
    records: VecDeque<Record>,
    appended: u64,
    /// Whether there was no room for a record.
    is_lossy: bool,
    is_closed: bool,
}

/// What was taken from the desk at once.
pub(super) struct Batch {
    pub(super) records: VecDeque<Record>,
    /// How many were appended up to the last of them.
    pub(super) up_to: u64,
    /// Whether some are missing, for lack of room.
    pub(super) is_lossy: bool,
    /// Whether no more will come.
    pub(super) is_last: bool,
}

impl WriterHandle {
    /// Takes all that is there; waits for something, but no longer than `patience`, if there is nothing.
    pub(super) fn take(&self, patience: Option<Duration>) -> Batch {
        let mut queue = self.queue();
        let mut waited = false;
        while queue.records.is_empty() && !queue.is_lossy && !queue.is_closed && !waited {
            queue = match patience {
                None => self.bell.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(patience) => {
                    waited = true;
                    let (queue, _) = self
                        .bell
                        .wait_timeout(queue, patience)
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

/// Records that wait for the disk at once; some 20 MiB.
pub(super) const MAX_QUEUED_RECORDS: usize = 100_000;
/// How long a disk may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
