//! Quotas that survive a restart: one small file, replaced whole.
//!
//! Ten thousand a month must not begin again because a machine was patched.
//! What is written is what is in memory, keys as hashes and the key of the
//! hash with them: nobody reads from the file who the clients are, though who
//! has it can test a guess. So it is for the gateway's own eyes (mode 0600).
//!
//! Two processes that run side by side for a moment, when a restart hands over
//! the sockets, do not see each other's counts: what the old one admits while
//! it drains is missing in the new one's quotas.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

use super::counter_table::Counter;
use super::key::HashSeed;
use crate::disk::{Directory, directory};

/// One limit's counts; times are in nanoseconds since the Unix epoch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct SavedCounters {
    /// Without it the keys mean nothing.
    pub(super) seed: HashSeed,
    /// The count of all keys that had no room.
    pub(super) overflow: Counter,
    /// The counts by key.
    pub(super) cells: Vec<(u64, Counter)>,
}

/// Why quotas were not saved, or not found again.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file is there and cannot be read.
    #[error("the saved quotas cannot be read")]
    Read(#[source] io::Error),
    /// The file is not what was written, or another version wrote it.
    #[error("the saved quotas are damaged, or of another version; they are kept in {}", .0.display())]
    Damaged(PathBuf),
    /// The same, and it cannot be put aside.
    #[error("the saved quotas are damaged, or of another version, and cannot be put aside")]
    Aside(#[source] io::Error),
    /// The file cannot be written.
    #[error("the quotas cannot be saved")]
    Write(#[source] io::Error),
}

/// Reads what [`save`] has written, by the limits' ids; nothing if nothing was saved.
pub(super) fn load(dir: &Path) -> Result<HashMap<String, SavedCounters>, StateError> {
    let dir = Directory::at(dir);
    let read = dir.read(FILE).inspect_err(|_| {
        // The next save would take its place. If it cannot be put aside either, that is told with the rest.
        let _ = dir.put_aside(FILE);
    });
    let Some(bytes) = read.map_err(StateError::Read)? else { return Ok(HashMap::new()) };
    decode(&bytes).ok_or_else(|| {
        // The next save would write over it, and an operator may want to look at it.
        match dir.put_aside(FILE) {
            Ok(aside) => StateError::Damaged(aside),
            Err(error) => StateError::Aside(error),
        }
    })
}

/// Writes the counts of all limits, by their ids.
pub(super) fn save(dir: &Path, limits: &HashMap<String, SavedCounters>) -> Result<(), StateError> {
    Directory::at(dir).replace(FILE, &encode(limits)).map_err(StateError::Write)
}

fn encode(limits: &HashMap<String, SavedCounters>) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    let number = |bytes: &mut Vec<u8>, number: u64| bytes.extend(number.to_le_bytes());
    number(&mut bytes, limits.len() as u64);
    for (id, saved) in limits {
        number(&mut bytes, id.len() as u64);
        bytes.extend(id.as_bytes());
        bytes.extend(saved.seed.0);
        number(&mut bytes, saved.overflow.until);
        number(&mut bytes, saved.overflow.used);
        number(&mut bytes, saved.cells.len() as u64);
        for (key, cell) in &saved.cells {
            number(&mut bytes, *key);
            number(&mut bytes, cell.until);
            number(&mut bytes, cell.used);
        }
    }
    bytes.extend(digest(&SHA256, &bytes).as_ref());
    bytes
}

/// `None` if these are not the bytes that [`encode`] has made.
fn decode(bytes: &[u8]) -> Option<HashMap<String, SavedCounters>> {
    let (content, sum) = bytes.split_last_chunk::<SHA256_OUTPUT_LEN>()?;
    if digest(&SHA256, content).as_ref() != sum {
        return None;
    }
    let mut rest = Input(content.strip_prefix(MAGIC)?);
    let limits = (0..rest.number()?).map(|_| rest.limit()).collect::<Option<_>>()?;
    rest.0.is_empty().then_some(limits)
}

/// What is still to be read.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn limit(&mut self) -> Option<(String, SavedCounters)> {
        let length = usize::try_from(self.number()?).ok()?;
        let (id, rest) = self.0.split_at_checked(length)?;
        let (seed, rest) = rest.split_first_chunk()?;
        self.0 = rest;
        let id = String::from_utf8(id.to_vec()).ok()?;
        let overflow = self.cell()?;
        let cells = (0..self.number()?).map(|_| Some((self.number()?, self.cell()?)));
        Some((
            id,
            SavedCounters { seed: HashSeed(*seed), overflow, cells: cells.collect::<Option<_>>()? },
        ))
    }

    fn cell(&mut self) -> Option<Counter> {
        Some(Counter { until: self.number()?, used: self.number()? })
    }

    fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }
}

const FILE: &str = directory::COUNTS;
/// The first line; another layout gets another number.
const MAGIC: &[u8] = b"northgate quotas 1\n";

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn finds_again_what_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), HashMap::new());

        save(dir.path(), &some()).unwrap();
        assert_eq!(load(dir.path()).unwrap(), some());
        save(dir.path(), &HashMap::new()).unwrap();
        assert_eq!(load(dir.path()).unwrap(), HashMap::new());
    }

    #[test]
    fn leaves_one_file_that_nobody_else_reads() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &some()).unwrap();
        save(dir.path(), &some()).unwrap();

        let files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(Result::unwrap).collect();
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn says_that_it_could_not_save_and_leaves_nothing_half_written() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        assert!(matches!(save(&gone, &some()), Err(StateError::Write(_))));

        // A directory in the file's place is never replaced by a file.
        fs::create_dir(dir.path().join(FILE)).unwrap();
        assert!(matches!(save(dir.path(), &some()), Err(StateError::Write(_))));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(matches!(load(dir.path()), Err(StateError::Read(_))));
    }

    #[test]
    fn puts_aside_what_is_damaged_and_says_where() {
        let dir = tempfile::tempdir().unwrap();
        // The order of the limits in a file is chance.
        let whole = encode(&some());
        Directory::at(dir.path()).replace(FILE, &whole[..50]).unwrap();

        let Err(StateError::Damaged(aside)) = load(dir.path()) else { panic!("it is torn") };

        assert_eq!(fs::read(aside).unwrap(), whole[..50]);
        assert_eq!(load(dir.path()).unwrap(), HashMap::new());
        save(dir.path(), &some()).unwrap();
        assert_eq!(load(dir.path()).unwrap(), some());
    }

    proptest! {
        #[test]
        fn notices_a_single_changed_byte(at in any::<prop::sample::Index>(), by in 1_u8..) {
            let mut bytes = encode(&some());
            let at = at.index(bytes.len());
            bytes[at] = bytes[at].wrapping_add(by);

            prop_assert_eq!(decode(&bytes), None);
        }

        #[test]
        fn survives_any_bytes_with_a_matching_sum(content in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(content);
            bytes.extend(digest(&SHA256, &bytes).as_ref());

            prop_assert!(decode(&bytes).is_none_or(|limits| limits.len() < 10));
        }

        #[test]
        fn notices_that_the_end_is_missing(length in any::<prop::sample::Index>()) {
            let bytes = encode(&some());

            prop_assert_eq!(decode(&bytes[..length.index(bytes.len())]), None);
        }
    }

    fn some() -> HashMap<String, SavedCounters> {
        let cell = |n| Counter { until: n * 1_000, used: n };
        let saved = |n| SavedCounters {
            seed: HashSeed([n as u8; 16]),
            overflow: cell(n),
            cells: (0..n).map(|key| (key, cell(key))).collect(),
        };
        HashMap::from([("none".into(), saved(0)), ("daily".into(), saved(20))])
    }
}
