//! The thread behind a journal: appends, syncs, and compacts the file.

use core::time::Duration;
use std::collections::{HashMap, VecDeque};
use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use tokio::sync::watch;
use tokio::time::Instant;

use super::directory::OpenError;
use super::directory::{Directory, JOURNAL, random_name};
use super::record::{self, Record};
use super::record::{Kind, RecordListener, Withdrawals};
use super::write_queue::{MAX_QUEUED_RECORDS, Progress, WriterHandle};
use crate::base::clock::Clock;

/// The writer of one journal.
pub(super) struct Writer {
    directory: Directory,
    kind: Kind,
    clock: Clock,
    listener: RecordListener,
    /// The name of this process's file.
    name: String,
    /// This process's file, if it can be appended to.
    file: Option<File>,
    /// The length of the file, now and after the last compaction.
    length: u64,
    small: u64,
    /// The records that are not on disk yet.
    pending: VecDeque<Record>,
    /// Whether pending records were dropped for lack of room.
    is_lossy: bool,
    /// The time of the last failed write, until one succeeds.
    failed: Option<Instant>,
    /// Whether the failure was logged.
    has_failed: bool,
    /// The files of other processes that may still write.
    others: Vec<PeerJournal>,
}

/// The journal of another process.
struct PeerJournal {
    name: String,
    file: File,
    /// The number of bytes read so far.
    read: u64,
}

impl Writer {
    /// Takes over the records of earlier processes.
    pub(super) fn open(
        directory: Directory,
        kind: Kind,
        clock: Clock,
        listener: RecordListener,
    ) -> Result<(Self, Vec<Record>), OpenError> {
        let name = format!("{}-{}{JOURNAL}", kind.name, random_name());
        let mut writer = Self {
            directory,
            kind,
            clock,
            listener,
            name,
            file: None,
            length: 0,
            small: 0,
            pending: VecDeque::new(),
            is_lossy: false,
            failed: None,
            has_failed: false,
            others: Vec::new(),
        };
        let mut all = Vec::new();
        let mut ended = Vec::new();
        let directory = writer.directory.clone();
        let failed = |path: PathBuf, source| OpenError::Read { path, source };
        let prefix = format!("{}-", kind.name);
        let names = directory.names(&prefix, JOURNAL);
        let names = names.map_err(|error| failed(directory.path().into(), error))?;
        for name in names {
            let failed = |error| failed(directory.path().join(&name), error);
            let Some(file) = directory.open(&name).map_err(failed)? else { continue };
            let mut other = PeerJournal { name: name.clone(), file, read: 0 };
            // The lock is checked before reading: a process that has ended writes no more.
            let is_over = other.is_over();
            let (records, damaged) = other.read_on().map_err(failed)?;
            if damaged > 0 {
                writer.warn_damaged(&other.name, damaged);
            }
            all.extend(records);
            if is_over {
                ended.push((other, damaged));
            } else {
                writer.others.push(other);
            }
        }
        let live = writer.live_records(all);
        match writer.rewrite(&live) {
            Ok(()) => writer.take_over(ended),
            Err(error) => {
                tracing::error!(journal = kind.title, directory = %directory.path().display(), %error, loss = kind.loss, "Could not write a journal to `server.state_dir`; its records from now on will not survive a restart.");
                writer.has_failed = true;
                // The old files stay, and are taken over by a process that can write.
            }
        }
        Ok((writer, live))
    }

    /// Writes until the last handle of the journal is dropped.
    pub(super) fn run(mut self, queue: &WriterHandle, progress_sender: &watch::Sender<Progress>) {
        loop {
            let is_waiting = !self.pending.is_empty() || !self.others.is_empty();
            let batch = queue.take(is_waiting.then_some(RETRY_INTERVAL));
            self.follow();
            self.is_lossy |= batch.is_lossy;
            self.retry_later(batch.records);
            let written = self.write_or_wait();
            // Dropped records are lost to the next process: their waiters get an error.
            let is_whole = !self.is_lossy;
            progress_sender.send_modify(|progress| match &written {
                Ok(()) => progress.written(batch.up_to, is_whole),
                Err(_) => progress.failed = batch.up_to,
            });
            if written.is_ok() {
                self.is_lossy = false;
            }
            self.warn(written, is_whole);
            if batch.is_last {
                return;
            }
        }
    }

    fn retry_later(&mut self, records: VecDeque<Record>) {
        if self.pending.len() + records.len() > MAX_QUEUED_RECORDS {
            let now = self.clock.now();
            self.pending.retain(|record| now < record.until);
        }
        let room = MAX_QUEUED_RECORDS.saturating_sub(self.pending.len());
        self.is_lossy |= records.len() > room;
        self.pending.extend(records.into_iter().take(room));
    }

    /// Writes pending records, unless the last failure was a moment ago.
    fn write_or_wait(&mut self) -> io::Result<()> {
        if self.failed.is_some_and(|at| at.elapsed() < MIN_WRITE_INTERVAL) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let written = self.write();
        self.failed = written.is_err().then(Instant::now);
        written
    }

    /// Writes pending records.
    fn write(&mut self) -> io::Result<()> {
        if self.pending.is_empty() && self.file.is_some() {
            return Ok(());
        }
        if let Some(moved) = self.moved_records()? {
            let kept = moved.into_iter().chain(self.read_back()?);
            let live = self.live_records(kept.chain(self.pending.iter().cloned()));
            self.rewrite(&live)?;
            self.pending.clear();
            return Ok(());
        }
        if self.file.is_none() {
            let kept = self.read_back()?;
            let live = self.live_records(kept.into_iter().chain(self.pending.iter().cloned()));
            self.rewrite(&live)?;
            self.pending.clear();
            return Ok(());
        }
        self.append()?;
        self.pending.clear();
        if self.length > (self.small * 2).max(COMPACTION_THRESHOLD_BYTES) {
            self.compact();
        }
        Ok(())
    }

    fn append(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut bytes = Vec::new();
        for record in &self.pending {
            record.write(&mut bytes);
        }
        let written = file.write_all(&bytes).and_then(|()| file.sync_data());
        if written.is_ok() {
            self.length += bytes.len() as u64;
        } else {
            // After a failed sync the state of the file is unknown: a new one is written. A partial line is
            // truncated, or the next process would find damage.
            let _ = file.set_len(self.length);
            self.file = None;
        }
        written
    }

    /// Rewrites the file without expired records. If that fails, the old file stays in use.
    fn compact(&mut self) {
        let made = self.read_back().and_then(|kept| {
            let live = self.live_records(kept);
            self.rewrite(&live)
        });
        if let Err(error) = made {
            tracing::warn!(journal = self.kind.title, %error, "Could not compact the journal; the larger file stays in use.");
            self.small = self.length;
        }
    }

    /// Reads this process's file.
    fn read_back(&self) -> io::Result<Vec<Record>> {
        let bytes = self.directory.read(&self.name)?.unwrap_or_default();
        let read = record::read(&bytes);
        if read.damaged > 0 {
            self.warn_damaged(&self.name, read.damaged);
            self.directory.put_aside(&self.name)?;
        }
        Ok(read.records)
    }

    /// Reads this process's file if it was deleted, or moved away with its directory; `None` if it is in its place. It could
    /// still be written, but no later process would find it.
    fn moved_records(&self) -> io::Result<Option<Vec<Record>>> {
        let Some(mut file) = self.file.as_ref().filter(|it| !self.directory.holds(&self.name, it))
        else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut bytes)?;
        Ok(Some(record::read(&bytes).records))
    }

    /// Returns the unexpired records that are not withdrawn, one per key; the latest, if there are too many.
    fn live_records(&self, records: impl IntoIterator<Item = Record>) -> Vec<Record> {
        let now = self.clock.now();
        let records: Vec<_> = records.into_iter().collect();
        let withdrawn = Withdrawals::of(&records);
        let mut indices: HashMap<Box<str>, usize> = HashMap::new();
        let mut live: Vec<Record> = Vec::new();
        let stands = |record: &Record| now < record.until && !withdrawn.contain(record);
        for record in records.into_iter().filter(stands) {
            if let Some(index) = indices.get(record.key()) {
                let kept = &mut live[*index];
                kept.at = kept.at.max(record.at);
                kept.until = kept.until.max(record.until);
            } else {
                indices.insert(record.key().into(), live.len());
                live.push(record);
            }
        }
        let mut too_many = live.len().saturating_sub(self.kind.max_records);
        // First those that withdraw others: a record that comes back is done once more, and one that is dropped never is.
        live.retain(|record| {
            let is_dropped = too_many > 0 && record.is_withdrawal();
            too_many -= usize::from(is_dropped);
            !is_dropped
        });
        if too_many > 0 {
            tracing::error!(
                journal = self.kind.title,
                max_records = self.kind.max_records,
                loss = self.kind.loss,
                "Too many records in the journal; the oldest were dropped."
            );
            live.drain(..too_many);
        }
        live
    }

    /// Replaces this process's file by one with `records`.
    fn rewrite(&mut self, records: &[Record]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for record in records {
            record.write(&mut bytes);
        }
        let (mut file, new) = self.directory.create(&self.name)?;
        let written = file
            .write_all(&bytes)
            .and_then(|()| file.sync_all())
            .and_then(|()| self.directory.put(&new, &self.name));
        if let Err(error) = written {
            // No process reads the temporary file, and the next start sweeps it.
            let _ = std::fs::remove_file(new);
            return Err(error);
        }
        self.length = bytes.len() as u64;
        self.small = self.length;
        self.file = Some(file);
        Ok(())
    }

    /// Removes the files of processes that have ended, after this process's file has all their records.
    fn take_over(&self, ended: Vec<(PeerJournal, usize)>) {
        for (other, damaged) in ended {
            self.take_away(&other.name, damaged);
        }
    }

    /// Removes the file of a process that has ended, or sets it aside if damaged. Returns whether it is gone.
    fn take_away(&self, name: &str, damaged: usize) -> bool {
        let taken = if damaged > 0 {
            self.directory.put_aside(name).map(|_| ())
        } else {
            self.directory.remove(name)
        };
        match taken {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(journal = self.kind.title, file = name, %error, "Could not remove an old journal; it will be read again at the next start.");
                false
            }
            // Another process may have removed the file first.
            _ => true,
        }
    }

    /// Reads the records of processes that still run beside this one.
    fn follow(&mut self) {
        let mut others = core::mem::take(&mut self.others);
        others.retain_mut(|other| {
            let is_over = other.is_over();
            let name = other.name.clone();
            let (records, damaged) = match other.read_later(&self.directory) {
                Ok(read) => read,
                Err(error) => {
                    tracing::error!(journal = self.kind.title, file = name, %error, "Could not read the journal of another process; its new records are not known here.");
                    return true;
                }
            };
            if damaged > 0 {
                self.warn_damaged(&name, damaged);
            }
            let records = self.live_records(records);
            if !records.is_empty() {
                (self.listener)(&records);
                self.retry_later(records.into());
            }
            // The file is removed when all its records are in this process's file.
            !(is_over && self.write_or_wait().is_ok() && self.take_away(&name, damaged))
        });
        self.others = others;
    }

    fn warn_damaged(&self, name: &str, lines: usize) {
        let path = self.directory.path().join(name);
        tracing::error!(journal = self.kind.title, path = %path.display(), lines, loss = self.kind.loss, "A journal is damaged; the records of the damaged lines are lost, and the file was set aside.");
    }

    fn warn(&mut self, written: io::Result<()>, is_whole: bool) {
        let directory = self.directory.path().display();
        match written {
            Err(error) if !self.has_failed => {
                tracing::error!(%directory, journal = self.kind.title, %error, "Could not write a journal to `server.state_dir`; its records are pending, and requests that must wait for them get 503.");
                self.has_failed = true;
            }
            Ok(()) if self.has_failed => {
                tracing::info!(%directory, journal = self.kind.title, "`server.state_dir` is writable again; the pending records of the journal were written.");
                self.has_failed = false;
            }
            Err(_) | Ok(()) => {}
        }
        if !is_whole {
            tracing::error!(
                journal = self.kind.title,
                max_records = MAX_QUEUED_RECORDS,
                loss = self.kind.loss,
                "Too many records wait for `server.state_dir`; the latest were dropped and will not survive a restart."
            );
        }
    }
}

impl PeerJournal {
    /// Whether the writing process has ended.
    fn is_over(&self) -> bool {
        // On file systems without locks, processes do not run side by side.
        !matches!(self.file.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// Reads the records appended since the last call, and the number of damaged lines.
    fn read_on(&mut self) -> io::Result<(Vec<Record>, usize)> {
        let mut bytes = Vec::new();
        self.file.seek(SeekFrom::Start(self.read))?;
        self.file.read_to_end(&mut bytes)?;
        let read = record::read(&bytes);
        self.read += read.length as u64;
        Ok((read.records, read.damaged))
    }

    /// Reads the same from a file that may have been compacted meanwhile.
    fn read_later(&mut self, directory: &Directory) -> io::Result<(Vec<Record>, usize)> {
        let (mut records, mut damaged) = self.read_on()?;
        if self.file.metadata()?.nlink() == 0
            && let Some(file) = directory.open(&self.name)?
        {
            (self.file, self.read) = (file, 0);
            let (more, more_damaged) = self.read_on()?;
            records.extend(more);
            damaged += more_damaged;
        }
        Ok((records, damaged))
    }
}

/// The interval between attempts to write pending records, and between reads of other processes' files.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// The minimum time between attempts on a disk that fails.
const MIN_WRITE_INTERVAL: Duration = Duration::from_millis(50);
/// The size below which a file is not compacted.
const COMPACTION_THRESHOLD_BYTES: u64 = if cfg!(test) { 4 << 10 } else { 1 << 20 };
