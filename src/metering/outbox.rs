//! Usage on disk that is not exported yet: usage that is not part of a batch, and batches that a destination has not
//! received.
//!
//! Each process has a file of its own, one per batch besides, and a lock that shows that it lives. The file is replaced
//! while usage changes; it is small, however long a destination is away: it has the number of the first batch that each
//! destination lacks. A process takes over the files of those that have ended; what they had not made into events becomes
//! a batch whose id is theirs, so that taking it over twice exports it once.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::fs::File;
use std::io;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::batch_files::BatchFiles;
use super::event::{Batch, Record, merge};
use crate::base::clock::Timestamp;
use crate::base::random::random;
use crate::disk::Directory;

/// The outbox of this process.
#[derive(Debug)]
pub(super) struct Outbox {
    directory: Directory,
    /// The name of this process's file.
    instance: String,
    /// The lock of this process's file, for as long as it lives.
    _lock: File,
    /// The number of the next batch of this process, for its id.
    next: u64,
    /// Usage that is less than nothing, until it is made up for.
    carried: Vec<Record>,
    /// The batches that a destination lacks, by the numbers of their files.
    waiting: BTreeMap<u64, Waiting>,
    /// The number of the next batch's file.
    next_file: u64,
    /// The first file that may not be on disk.
    unsaved_from: u64,
    /// Files of batches that every destination has.
    exported: Vec<u64>,
    /// The number of the first file that each destination lacks.
    lacking: BTreeMap<&'static str, u64>,
    files: BatchFiles,
    /// The processes whose usage is this one's by now, until their files are removed.
    taken: Vec<Taken>,
    /// The ids of the batches of processes whose files are not removed yet, and of those that wait.
    known: HashSet<String>,
}

/// A process that has ended, and the lock by which no other process takes it over.
#[derive(Debug)]
struct Taken {
    instance: String,
    files: BatchFiles,
    _lock: File,
}

/// A batch that a destination lacks.
#[derive(Debug)]
struct Waiting {
    id: String,
    events: usize,
    /// The destinations that had it when it was taken over.
    done: Vec<String>,
    /// Whether another process collected it, and may have begun to export it.
    is_adopted: bool,
    /// The batch, and what is carried after it, until they are on disk.
    unsaved: Option<(Batch, Vec<Record>)>,
}

/// A batch for a destination that lacks it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    /// The number of its file.
    pub(super) number: u64,
    /// The number of its events.
    pub(super) events: usize,
    /// Whether another process may have begun to export it.
    pub(super) is_adopted: bool,
}

/// The content of a process's file.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Content {
    version: u64,
    next: u64,
    pending: Vec<Record>,
    /// The number of the first file that each destination lacks.
    #[serde(default)]
    lacking: BTreeMap<String, u64>,
    /// The batches, in files of version 1.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    batches: VecDeque<Batch>,
}

impl Outbox {
    /// Creates the outbox of this process in `directory`, for `destinations` by name.
    ///
    /// # Errors
    ///
    /// If the lock cannot be created: nothing could be written either.
    pub(super) fn open(
        directory: Directory,
        destinations: impl IntoIterator<Item = &'static str>,
    ) -> io::Result<Self> {
        let instance = format!("{:016x}", u64::from_be_bytes(random()));
        let lock = directory.lock(&lock_of(&instance))?;
        let lock = lock.ok_or(io::ErrorKind::WouldBlock)?;
        Ok(Self {
            files: BatchFiles::new(directory.clone(), &instance),
            directory,
            instance,
            _lock: lock,
            next: 0,
            carried: Vec::new(),
            waiting: BTreeMap::new(),
            next_file: 0,
            unsaved_from: 0,
            exported: Vec::new(),
            lacking: destinations.into_iter().map(|name| (name, 0)).collect(),
            taken: Vec::new(),
            known: HashSet::new(),
        })
    }

    /// Takes over the files of processes that have ended; returns whether there were any. `pending` is the usage of this
    /// process that is no event yet, which the file must not lose meanwhile.
    ///
    /// # Errors
    ///
    /// If a file cannot be read, written or removed, or the directory not be listed. The files of other processes are taken
    /// over all the same, and each once, however often this is repeated. A damaged file, or one of a newer version, is put aside.
    pub(super) fn take_over(&mut self, pending: Vec<Record>, now: Timestamp) -> io::Result<bool> {
        self.known.extend(self.waiting.values().map(|one| one.id.clone()));
        let mut failed = None;
        for instance in self.other_instances()? {
            if let Err(error) = self.take(&instance, now) {
                let named = format!("{}: {error}", file_of(&instance));
                failed.get_or_insert(io::Error::new(error.kind(), named));
            }
        }
        let any = !self.taken.is_empty();
        if any {
            // On disk here before it is removed there.
            self.save(pending)?;
        }
        while let Some(Taken { instance, files, .. }) = self.taken.last() {
            self.directory.remove_if_exists(&file_of(instance))?;
            for number in files.numbers()? {
                files.remove(number)?;
            }
            self.directory.remove_if_exists(&lock_of(instance))?;
            self.taken.pop();
        }
        if failed.is_none() {
            self.known.clear();
        }
        failed.map_or(Ok(any), Err)
    }

    /// Makes the usage of another process this one's, if that one has ended and was not taken before.
    fn take(&mut self, instance: &str, now: Timestamp) -> io::Result<()> {
        if self.taken.iter().any(|taken| taken.instance == instance) {
            return Ok(());
        }
        let Some(lock) = self.directory.lock(&lock_of(instance))? else { return Ok(()) };
        let files = BatchFiles::new(self.directory.clone(), instance);
        // Batches without a file of the process: it was killed after its first one.
        let content = self.read(instance)?.unwrap_or_default();
        self.adopt(instance, content, &files, now)?;
        self.taken.push(Taken { instance: instance.to_owned(), files, _lock: lock });
        Ok(())
    }

    /// Returns the other processes that have files.
    fn other_instances(&self) -> io::Result<BTreeSet<String>> {
        let names = self.directory.names(PREFIX, "")?;
        let of_file =
            |name: &str| Some(name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.to_owned());
        let of_any = |name: &String| {
            of_file(name).or_else(|| BatchFiles::instance_of(name).map(str::to_owned))
        };
        Ok(names.iter().filter_map(of_any).filter(|instance| *instance != self.instance).collect())
    }

    /// Reads the file of another process; `None` if there is none, or it was put aside.
    fn read(&self, instance: &str) -> io::Result<Option<Content>> {
        let name = file_of(instance);
        let Some(bytes) = self.directory.read(&name)? else { return Ok(None) };
        match serde_json::from_slice::<Content>(&bytes) {
            Ok(content) if (1..=VERSION).contains(&content.version) => Ok(Some(content)),
            _ => {
                let aside = self.directory.put_aside(&name)?;
                tracing::error!(moved_to = %aside.display(), "Usage of an earlier process is damaged or of a newer version; it was put aside and is not exported.");
                Ok(None)
            }
        }
    }

    fn adopt(
        &mut self,
        instance: &str,
        mut content: Content,
        files: &BatchFiles,
        now: Timestamp,
    ) -> io::Result<()> {
        for batch in core::mem::take(&mut content.batches) {
            self.adopt_batch(batch)?;
        }
        for number in files.numbers()? {
            let Some(mut stored) = files.read(number)? else { continue };
            // The process was killed between the batch and its file, which still has the batch's usage as pending.
            if number_of(&stored.batch.id, instance).is_some_and(|own| own >= content.next) {
                content.pending = stored.carried;
            }
            let done = content.lacking.iter().filter(|(_, first)| number < **first);
            stored.batch.done.extend(done.map(|(name, _)| name.clone()));
            self.adopt_batch(stored.batch)?;
        }
        let (used, owed): (Vec<_>, Vec<_>) =
            content.pending.into_iter().partition(|record| record.units > 0);
        let rest = Batch::new(format!("{instance}-{}", content.next), now, used);
        self.adopt_batch(rest)?;
        merge(&mut self.carried, owed);
        Ok(())
    }

    /// Writes a batch of another process to a file of this one.
    fn adopt_batch(&mut self, batch: Batch) -> io::Result<()> {
        let is_done = |name: &&'static str| batch.done.iter().any(|done| done == name);
        if batch.records.is_empty() || self.lacking.keys().all(is_done) {
            return Ok(());
        }
        if self.known.insert(batch.id.clone()) {
            let written = self.files.write(self.next_file, &batch, &[]);
            let waiting = Waiting { is_adopted: true, ..Waiting::of(&batch) };
            let unsaved = written.is_err().then(|| (batch, Vec::new()));
            self.waiting.insert(self.next_file, Waiting { unsaved, ..waiting });
            self.next_file += 1;
            written?;
        }
        Ok(())
    }

    /// Makes a batch of usage.
    pub(super) fn collect(&mut self, records: Vec<Record>, now: Timestamp) {
        merge(&mut self.carried, records);
        let used = self.carried.extract_if(.., |record| record.units > 0).collect::<Vec<_>>();
        // Units returned to a window that ended long ago offset nothing any more.
        let oldest = now.as_secs().saturating_sub(MAX_CARRIED_SECONDS);
        self.carried
            .retain(|record| record.units < 0 && record.window_end.is_none_or(|end| end > oldest));
        if !used.is_empty() {
            let batch = Batch::new(format!("{}-{}", self.instance, self.next), now, used);
            let waiting = Waiting::of(&batch);
            let unsaved = Some((batch, self.carried.clone()));
            self.waiting.insert(self.next_file, Waiting { unsaved, ..waiting });
            self.next += 1;
            self.next_file += 1;
        }
    }

    /// Writes new batches, and usage that is no event yet, and removes batches that every destination has.
    ///
    /// # Errors
    ///
    /// If a file cannot be written; the previous one remains.
    pub(super) fn save(&mut self, mut pending: Vec<Record>) -> io::Result<()> {
        for (number, waiting) in self.waiting.range(self.unsaved_from..) {
            if let Some((batch, carried)) = &waiting.unsaved {
                self.files.write(*number, batch, carried)?;
            }
        }
        merge(&mut pending, self.carried.clone());
        let lacking = self.lacking.iter().map(|(name, first)| ((*name).to_owned(), *first));
        let content = Content {
            version: VERSION,
            next: self.next,
            pending,
            lacking: lacking.collect(),
            batches: VecDeque::new(),
        };
        self.directory.replace(&file_of(&self.instance), &serde_json::to_vec(&content)?)?;
        // Exported only from here on: a process that takes over makes no other batch of the same usage.
        for (_, waiting) in self.waiting.range_mut(self.unsaved_from..) {
            waiting.unsaved = None;
        }
        self.unsaved_from = self.next_file;
        while let Some(number) = self.exported.last() {
            self.files.remove(*number)?;
            self.exported.pop();
        }
        Ok(())
    }

    /// Returns the files of this process's batches.
    pub(super) const fn files(&self) -> &BatchFiles {
        &self.files
    }

    /// Returns the oldest batches on disk that `destination` lacks: one, and more up to `max_events`.
    pub(super) fn due(&self, destination: &str, max_events: usize) -> Vec<Due> {
        let mut events = 0;
        let within = |due: &Due| {
            let is_first = events == 0;
            events += due.events;
            is_first || events <= max_events
        };
        let on_disk = |waiting: &Waiting| waiting.unsaved.is_none();
        self.lacked(destination)
            .take_while(|(_, one)| on_disk(one))
            .map(Due::from)
            .take_while(within)
            .collect()
    }

    /// Records that `destination` has the batch of the file `number`, and all before it. Returns the number of the batch's
    /// events if no destination lacks it any more.
    pub(super) fn exported(&mut self, destination: &'static str, number: u64) -> Option<usize> {
        self.lacking.insert(destination, number + 1);
        let waiting = self.waiting.get(&number)?;
        let lacks = |(name, first): (&&'static str, &u64)| *first <= number && !waiting.has(name);
        if self.lacking.iter().any(lacks) {
            return None;
        }
        let events = waiting.events;
        self.waiting.remove(&number);
        self.exported.push(number);
        Some(events)
    }

    /// Returns the number of batches that a destination lacks.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Returns the numbers of waiting batches and events, and of the batches that each destination lacks.
    pub(super) fn status(&self) -> Map<String, Value> {
        let events: usize = self.waiting.values().map(|waiting| waiting.events).sum();
        let lacked =
            self.lacking.keys().map(|name| ((*name).to_owned(), self.lacked(name).count().into()));
        Map::from_iter([
            ("waiting_batches".to_owned(), self.waiting().into()),
            ("waiting_events".to_owned(), events.into()),
            ("destinations".to_owned(), Value::Object(lacked.collect())),
        ])
    }

    fn lacked(&self, destination: &str) -> impl Iterator<Item = (&u64, &Waiting)> {
        let first = self.lacking.get(destination).copied().unwrap_or_default();
        self.waiting.range(first..).filter(move |(_, waiting)| !waiting.has(destination))
    }
}

impl Waiting {
    fn of(batch: &Batch) -> Self {
        Self {
            id: batch.id.clone(),
            events: batch.records.len(),
            done: batch.done.clone(),
            is_adopted: false,
            unsaved: None,
        }
    }

    /// Whether `destination` had the batch when it was taken over.
    fn has(&self, destination: &str) -> bool {
        self.done.iter().any(|done| done == destination)
    }
}

impl From<(&u64, &Waiting)> for Due {
    fn from((number, waiting): (&u64, &Waiting)) -> Self {
        Self { number: *number, events: waiting.events, is_adopted: waiting.is_adopted }
    }
}

/// Returns the number of a batch that `instance` collected.
fn number_of(id: &str, instance: &str) -> Option<u64> {
    id.strip_prefix(instance)?.strip_prefix('-')?.parse().ok()
}

fn file_of(instance: &str) -> String {
    format!("{PREFIX}{instance}{SUFFIX}")
}

fn lock_of(instance: &str) -> String {
    format!("{PREFIX}{instance}.lock")
}

const PREFIX: &str = "usage-";
const SUFFIX: &str = ".json";
/// Version 1 had the batches in the same file.
const VERSION: u64 = 2;
/// Two months: the longest window, and some time.
const MAX_CARRIED_SECONDS: u64 = 62 * 86_400;

#[cfg(test)]
mod tests;
