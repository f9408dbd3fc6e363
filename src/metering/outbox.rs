//! What is not exported yet, on disk: usage that is no event yet, and batches that a destination lacks.
//!
//! Each process has a file of its own, and a lock that shows that it lives. A process takes over the files of those that
//! have ended; what they had not made into events becomes a batch whose id is theirs, so that taking it over twice
//! exports it once.

use std::collections::VecDeque;
use std::fs::File;
use std::io;

use serde::{Deserialize, Serialize};

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
    /// The number of the next batch.
    next: u64,
    /// Usage that is less than nothing, until it is made up for.
    carried: Vec<Record>,
    pub(super) batches: VecDeque<Batch>,
}

/// The content of a file.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Content {
    version: u64,
    next: u64,
    pending: Vec<Record>,
    batches: VecDeque<Batch>,
}

impl Outbox {
    /// Creates the outbox of this process in `directory`.
    ///
    /// # Errors
    ///
    /// If the lock cannot be created: nothing could be written either.
    pub(super) fn open(directory: Directory) -> io::Result<Self> {
        let instance = format!("{:016x}", u64::from_be_bytes(random()));
        let lock = directory.lock(&lock_of(&instance))?;
        let lock = lock.ok_or(io::ErrorKind::WouldBlock)?;
        let (carried, batches) = (Vec::new(), VecDeque::new());
        Ok(Self { directory, instance, _lock: lock, next: 0, carried, batches })
    }

    /// Takes over the files of processes that have ended; returns whether there were any. `pending` is the usage of this
    /// process that is no event yet, which the file must not lose meanwhile.
    ///
    /// # Errors
    ///
    /// If a file cannot be read or the directory not be listed; files before it are taken over. A damaged file, or one of
    /// a newer version, is put aside.
    pub(super) fn take_over(&mut self, pending: Vec<Record>, now: Timestamp) -> io::Result<bool> {
        let mut taken = Vec::new();
        for name in self.directory.names(PREFIX, SUFFIX)? {
            let instance = &name[PREFIX.len()..name.len() - SUFFIX.len()];
            if instance == self.instance {
                continue;
            }
            let Some(lock) = self.directory.lock(&lock_of(instance))? else { continue };
            let Some(bytes) = self.directory.read(&name)? else { continue };
            match serde_json::from_slice::<Content>(&bytes) {
                Ok(content) if content.version == VERSION => {
                    self.adopt(instance, content, now);
                    taken.push((name.clone(), lock_of(instance), lock));
                }
                _ => {
                    let aside = self.directory.put_aside(&name)?;
                    tracing::error!(aside = %aside.display(), "Usage of an earlier process is damaged or of a newer version; it was put aside and is not exported.");
                }
            }
        }
        if taken.is_empty() {
            return Ok(false);
        }
        // On disk here before it is removed there.
        self.save(pending)?;
        for (name, lock_name, _lock) in taken {
            self.directory.remove(&name)?;
            self.directory.remove(&lock_name)?;
        }
        Ok(true)
    }

    fn adopt(&mut self, instance: &str, content: Content, now: Timestamp) {
        let (used, owed): (Vec<_>, Vec<_>) =
            content.pending.into_iter().partition(|record| record.units > 0);
        let rest = Batch::new(format!("{instance}-{}", content.next), now, used);
        for batch in content.batches.into_iter().chain([rest]) {
            let is_known = self.batches.iter().any(|known| known.id == batch.id);
            if !is_known && !batch.records.is_empty() {
                self.batches.push_back(batch);
            }
        }
        merge(&mut self.carried, owed);
    }

    /// Makes a batch of usage.
    pub(super) fn collect(&mut self, records: Vec<Record>, now: Timestamp) {
        merge(&mut self.carried, records);
        let used = self.carried.extract_if(.., |record| record.units > 0).collect::<Vec<_>>();
        // What was given back in a window that ended long ago is not used any more.
        let oldest = now.as_secs().saturating_sub(MAX_CARRIED_SECONDS);
        self.carried
            .retain(|record| record.units < 0 && record.window_end.is_none_or(|end| end > oldest));
        if !used.is_empty() {
            self.batches.push_back(Batch::new(
                format!("{}-{}", self.instance, self.next),
                now,
                used,
            ));
            self.next += 1;
        }
    }

    /// Writes the outbox, with usage that is no event yet.
    ///
    /// # Errors
    ///
    /// If the file cannot be written; the previous one remains.
    pub(super) fn save(&self, mut pending: Vec<Record>) -> io::Result<()> {
        merge(&mut pending, self.carried.clone());
        let content =
            Content { version: VERSION, next: self.next, pending, batches: self.batches.clone() };
        let bytes = serde_json::to_vec(&content)?;
        self.directory.replace(&format!("{PREFIX}{}{SUFFIX}", self.instance), &bytes)
    }
}

fn lock_of(instance: &str) -> String {
    format!("{PREFIX}{instance}.lock")
}

const PREFIX: &str = "usage-";
const SUFFIX: &str = ".json";
const VERSION: u64 = 1;
/// Two months: the longest window, and some time.
const MAX_CARRIED_SECONDS: u64 = 62 * 86_400;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_killed_process_bills_everything_once_whenever_it_was_killed() {
        let dir = tempfile::tempdir().unwrap();
        let directory = || Directory::at(dir.path());
        let now = Timestamp::from_secs(1_000);
        let mut first = Outbox::open(directory()).unwrap();
        first.save(vec![record(3)]).unwrap();
        first.collect(vec![record(5)], now);
        // Killed before the batch was on disk: 3 of 5 were.
        drop(first);

        let mut second = Outbox::open(directory()).unwrap();
        assert!(second.take_over(Vec::new(), now).unwrap());
        assert_eq!(units(&second), 3);
        second.collect(vec![record(4)], now);
        second.save(Vec::new()).unwrap();
        let exported: Vec<_> = second.batches.iter().flat_map(Batch::events).collect();
        // Killed after the export, before the batches were removed.
        drop(second);

        let mut third = Outbox::open(directory()).unwrap();
        assert!(third.take_over(Vec::new(), now).unwrap());
        let again: Vec<_> = third.batches.iter().flat_map(Batch::events).collect();
        assert_eq!(exported, again, "under the same ids");
        assert!(!third.take_over(Vec::new(), now).unwrap());
    }

    #[test]
    fn the_file_of_a_living_process_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::from_secs(1_000);
        let living = Outbox::open(Directory::at(dir.path())).unwrap();
        living.save(vec![record(3)]).unwrap();

        let mut other = Outbox::open(Directory::at(dir.path())).unwrap();

        assert!(!other.take_over(Vec::new(), now).unwrap());
        assert!(other.batches.is_empty());
    }

    #[test]
    fn a_process_that_is_killed_after_it_took_over_another_loses_no_usage_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let directory = || Directory::at(dir.path());
        let now = Timestamp::from_secs(1_000);
        let first = Outbox::open(directory()).unwrap();
        first.save(vec![record(3)]).unwrap();
        let mut second = Outbox::open(directory()).unwrap();
        second.save(vec![record(5)]).unwrap();
        drop(first);

        assert!(second.take_over(vec![record(5)], now).unwrap());
        drop(second);
        let mut third = Outbox::open(directory()).unwrap();
        assert!(third.take_over(Vec::new(), now).unwrap());

        assert_eq!(units(&third), 8);
    }

    #[test]
    fn a_damaged_file_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::at(dir.path());
        directory.replace("usage-0.json", b"{").unwrap();
        directory
            .replace("usage-1.json", br#"{"version":2,"next":0,"pending":[],"batches":[]}"#)
            .unwrap();

        let mut outbox = Outbox::open(directory).unwrap();

        assert!(!outbox.take_over(Vec::new(), Timestamp::from_secs(1)).unwrap());
        for name in ["usage-0.json.damaged", "usage-1.json.damaged"] {
            assert!(dir.path().join(name).exists(), "{name}");
        }
    }

    #[test]
    fn what_is_given_back_later_is_made_up_for() {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::from_secs(1_000);
        let mut outbox = Outbox::open(Directory::at(dir.path())).unwrap();
        outbox.collect(vec![record(-1)], now);
        assert!(outbox.batches.is_empty());
        outbox.collect(vec![record(5)], now);

        assert_eq!(units(&outbox), 4);
    }

    fn units(outbox: &Outbox) -> i64 {
        outbox.batches.iter().flat_map(|batch| &batch.records).map(|record| record.units).sum()
    }

    fn record(units: i64) -> Record {
        let key = json!({ "client": "app" }).as_object().cloned().unwrap_or_default();
        Record { limit: "daily".into(), key, plan: None, window_end: Some(2_000), units }
    }
}
