//! Batches on disk, one file each: written once, read for each export, and removed when every destination has the batch.

use std::io;

use serde::{Deserialize, Serialize};

use super::event::{Batch, Record};
use crate::disk::Directory;

/// The files of the batches of one process.
#[derive(Clone, Debug)]
pub(super) struct BatchFiles {
    directory: Directory,
    instance: String,
}

/// The content of a file.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct StoredBatch {
    version: u64,
    pub(super) batch: Batch,
    /// Usage below zero that was left when the batch was collected.
    pub(super) carried: Vec<Record>,
}

impl BatchFiles {
    /// Returns the files of the process `instance`.
    pub(super) fn new(directory: Directory, instance: &str) -> Self {
        Self { directory, instance: instance.to_owned() }
    }

    /// Returns the process that the file `name` belongs to, if it is the file of a batch.
    pub(super) fn instance_of(name: &str) -> Option<&str> {
        Some(name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.rsplit_once('-')?.0)
    }

    /// Returns the numbers of all files, in ascending order.
    ///
    /// # Errors
    ///
    /// If the directory cannot be listed.
    pub(super) fn numbers(&self) -> io::Result<Vec<u64>> {
        let prefix = format!("{PREFIX}{}-", self.instance);
        let names = self.directory.names(&prefix, SUFFIX)?;
        let number = |name: &String| name.strip_prefix(&prefix)?.strip_suffix(SUFFIX)?.parse().ok();
        Ok(names.iter().filter_map(number).collect())
    }

    /// Writes the file `number`, durably.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub(super) fn write(&self, number: u64, batch: &Batch, carried: &[Record]) -> io::Result<()> {
        let (batch, carried) = (batch.clone(), carried.to_vec());
        let content = serde_json::to_vec(&StoredBatch { version: VERSION, batch, carried })?;
        self.directory.replace(&self.name(number), &content)
    }

    /// Reads the file `number`; `None` if it does not exist, or is damaged or of a newer version and was put aside.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or cannot be put aside.
    pub(super) fn read(&self, number: u64) -> io::Result<Option<StoredBatch>> {
        let name = self.name(number);
        let Some(bytes) = self.directory.read(&name)? else { return Ok(None) };
        match serde_json::from_slice::<StoredBatch>(&bytes) {
            Ok(stored) if stored.version == VERSION => Ok(Some(stored)),
            _ => {
                let aside = self.directory.put_aside(&name)?;
                tracing::error!(moved_to = %aside.display(), "A batch of usage is damaged or of a newer version; it was put aside and is not exported.");
                Ok(None)
            }
        }
    }

    /// Removes the file `number`, if it exists.
    ///
    /// # Errors
    ///
    /// If the file cannot be removed.
    pub(super) fn remove(&self, number: u64) -> io::Result<()> {
        self.directory.remove_if_exists(&self.name(number))
    }

    /// Returns the name of a file: names are in the order of their numbers.
    fn name(&self, number: u64) -> String {
        format!("{PREFIX}{}-{number:020}{SUFFIX}", self.instance)
    }
}

const PREFIX: &str = "usage-";
const SUFFIX: &str = ".batch";
const VERSION: u64 = 1;
