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

use super::directory::OpenError;
use super::record::{Kind, RecordListener};
use super::write_queue::MAX_QUEUED_RECORDS;
use super::write_queue::Progress;
use super::write_queue::WriterHandle;
use core::fmt;
use core::time::Duration;
use std::sync::Arc;

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
    queue_handle: Arc<WriterHandle>,
    progress: watch::Receiver<Progress>,
}

/// The number of a record in the order of appending.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[must_use = "the record may be lost until it was waited for"]
pub struct RecordNumber(u64);

/// The record is not on disk: the next process will not have it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`server.state_dir`: the record could not be written")]
pub struct WriteFailed;

impl Journal {
    /// Opens the journal of this `kind` in `directory`, and returns the live records of earlier processes.
    ///
    /// Records that a still running process appends later are passed to `listener`. A directory that cannot be
    /// written is no error here: then all appended records stay pending.
    ///
    /// # Errors
    ///
    /// [`OpenError`].
    pub fn open(
        directory: Directory,
        kind: Kind,
        clock: Clock,
        listener: RecordListener,
    ) -> Result<(Self, Vec<Record>), OpenError> {
        let queue_handle = Arc::new(WriterHandle::default());
        let (progress_sender, progress) = watch::channel(Progress::default());
        let (writer, records) = Writer::open(directory, kind, clock, listener)?;
        let writer_queue = Arc::clone(&queue_handle);
        let thread = std::thread::Builder::new().name(format!("journal-{}", kind.name));
        let work = move || writer.run(&writer_queue, &progress_sender);
        thread.spawn(work).map_err(OpenError::Thread)?;
        Ok((Self(Arc::new(Inner { queue_handle, progress })), records))
    }

    /// Queues `record` for the writer's thread. The record is on disk after [`wait`](Self::wait) for its number.
    pub fn append(&self, record: Record) -> RecordNumber {
        let mut queue = self.0.queue_handle.queue();
        if queue.records.len() < MAX_QUEUED_RECORDS {
            queue.records.push_back(record);
        } else {
            queue.is_lossy = true;
        }
        queue.appended += 1;
        self.0.queue_handle.bell.notify_one();
        RecordNumber(queue.appended)
    }

    /// Waits until all records appended so far are on disk.
    ///
    /// # Errors
    ///
    /// [`WriteFailed`] if any of them could not be written.
    pub async fn wait_for_all(&self) -> Result<(), WriteFailed> {
        let last = RecordNumber(self.0.queue_handle.queue().appended);
        self.wait(last).await
    }

    /// Waits until the record `number`, and all before it, are on disk.
    ///
    /// # Errors
    ///
    /// [`WriteFailed`] if they could not be written, or writing takes too long.
    pub async fn wait(&self, RecordNumber(number): RecordNumber) -> Result<(), WriteFailed> {
        let mut progress = self.0.progress.clone();
        let done = progress.wait_for(|now| number <= now.synced.max(now.failed));
        match timeout(WRITE_TIMEOUT, done).await {
            Ok(Ok(now)) if now.is_synced(number) => Ok(()),
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
        self.queue_handle.queue().is_closed = true;
        self.queue_handle.bell.notify_one();
    }
}

/// The time limit of a write.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
