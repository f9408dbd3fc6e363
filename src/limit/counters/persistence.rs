//! Saved quotas: counters that survive a restart, in one small file that is replaced atomically.
//!
//! A monthly quota must not start again because a machine was restarted.
//! The file holds what is in memory: keys as hashes, with the key of the
//! hash. It does not contain the identity of clients, but a reader
//! could verify a guess, so it is readable by the gateway's account only (mode 0600).
//!
//! Two processes that run side by side during a handover do not see each other's
//! counters: requests that the old one admits while
//! it drains are missing in the new one's quotas. One of them at a time writes the file.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

use super::counter::Counter;
use crate::disk::{Directory, directory};
use crate::limit::algorithms::rate::{Rate, Unit};
use crate::limit::key::HashSeed;

/// The counters of one limit; times are in nanoseconds since the Unix epoch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(in crate::limit) struct SavedCounters {
    /// The key of the hash; without it the keys are meaningless.
    pub(in crate::limit) seed: HashSeed,
    /// The counter of all keys beyond the bound.
    pub(in crate::limit) overflow: Counter,
    /// Which keys that counter has counted, as a set of bits.
    pub(in crate::limit) members: Vec<u64>,
    /// The counters by key.
    pub(in crate::limit) counters: Vec<(u64, Counter)>,
}

impl SavedCounters {
    /// Whether a counter has not recovered at `now`.
    pub(in crate::limit) fn is_live(&self, now: u64) -> bool {
        self.overflow.until > now || self.counters.iter().any(|(_, counter)| counter.until > now)
    }
}

/// An error while saving or loading quotas.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file exists, but cannot be read; it was set aside.
    #[error("the saved quotas cannot be read; moved to {}", .aside.display())]
    Read {
        /// The path of the file now.
        aside: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file is damaged; it was set aside.
    #[error("the saved quotas are damaged; moved to {}", .0.display())]
    Damaged(PathBuf),
    /// The file was written by a newer version; it was set aside.
    #[error("the saved quotas are of a newer version; moved to {}", .0.display())]
    Newer(PathBuf),
    /// The file cannot be read or is damaged, and could not be set aside.
    #[error(
        "the saved quotas are unreadable, damaged or of a newer version, and cannot be put aside"
    )]
    Aside(#[source] io::Error),
    /// An earlier file could not be set aside.
    #[error("the file of saved quotas could not be put aside at the start, and is not overwritten")]
    Blocked,
    /// The file cannot be written.
    #[error("the quotas cannot be saved")]
    Write(#[source] io::Error),
}

/// Reads the file written by [`save`], by the limits' ids; empty if there is none.
pub(in crate::limit) fn load(dir: &Path) -> Result<HashMap<String, SavedCounters>, StateError> {
    let dir = Directory::at(dir);
    // The next save would overwrite the file, and an operator may want to examine it.
    let aside = |reason: fn(PathBuf) -> StateError| match dir.put_aside(FILE) {
        Ok(aside) => reason(aside),
        Err(error) => StateError::Aside(error),
    };
    match dir.read(FILE) {
        Ok(None) => Ok(HashMap::new()),
        Ok(Some(bytes)) if is_newer(&bytes) => Err(aside(StateError::Newer)),
        Ok(Some(bytes)) => decode(&bytes).ok_or_else(|| aside(StateError::Damaged)),
        Err(source) => Err(match dir.put_aside(FILE) {
            Ok(aside) => StateError::Read { aside, source },
            Err(error) => StateError::Aside(error),
        }),
    }
}

/// Whether the first line is that of a format which this version does not know.
fn is_newer(bytes: &[u8]) -> bool {
    let line = bytes.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
    line.starts_with(NAME) && line.ends_with(b"\n") && line != MAGIC && line != MAGIC_1
}

/// Writes the counters of all limits, by their ids.
pub(in crate::limit) fn save(
    dir: &Path,
    limits: &HashMap<String, SavedCounters>,
) -> Result<(), StateError> {
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
        number(&mut bytes, saved.members.len() as u64);
        saved.members.iter().for_each(|word| number(&mut bytes, *word));
        number(&mut bytes, saved.counters.len() as u64);
        for (key, counter) in &saved.counters {
            number(&mut bytes, *key);
            number(&mut bytes, counter.until);
            number(&mut bytes, counter.used);
        }
    }
    bytes.extend(digest(&SHA256, &bytes).as_ref());
    bytes
}

/// Decodes the output of [`encode`]; `None` if it is invalid.
fn decode(bytes: &[u8]) -> Option<HashMap<String, SavedCounters>> {
    let (content, sum) = bytes.split_last_chunk::<SHA256_OUTPUT_LEN>()?;
    if digest(&SHA256, content).as_ref() != sum {
        return None;
    }
    let (content, version) = match content.strip_prefix(MAGIC) {
        Some(content) => (content, 2),
        None => (content.strip_prefix(MAGIC_1)?, 1),
    };
    let mut rest = Input(content);
    let limits = (0..rest.number()?).map(|_| rest.limit(version)).collect::<Option<_>>()?;
    rest.0.is_empty().then_some(limits)
}

/// Converts a limit of the first format, whose id had the number: `daily: 10000/day …`. Rolling counters did not say
/// at which rate they were charged.
fn converted(id: &str, counters: &mut [(u64, Counter)]) -> Option<String> {
    let (name, rest) = id.split_once(": ")?;
    let (count, rest) = rest.split_once('/')?;
    if rest.split(' ').nth(1) == Some("rolling") {
        let unit = Unit::ALL.into_iter().find(|unit| rest.starts_with(&unit.to_string()))?;
        let interval = Rate::new(count.parse().ok()?, unit).ok()?.interval().as_nanos();
        let used = u64::try_from(interval).ok()?;
        for (_, counter) in counters.iter_mut() {
            counter.used = used;
        }
    }
    Some(format!("{name}: {rest}"))
}

/// The bytes that remain to be decoded.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn limit(&mut self, version: u8) -> Option<(String, SavedCounters)> {
        let length = usize::try_from(self.number()?).ok()?;
        let (id, rest) = self.0.split_at_checked(length)?;
        let (seed, rest) = rest.split_first_chunk()?;
        self.0 = rest;
        let id = String::from_utf8(id.to_vec()).ok()?;
        let overflow = self.counter()?;
        let members = match version {
            // Which keys had used the shared counter was not saved: any may have.
            1 => vec![u64::MAX],
            _ => (0..self.number()?).map(|_| self.number()).collect::<Option<_>>()?,
        };
        let counters = (0..self.number()?).map(|_| Some((self.number()?, self.counter()?)));
        let mut counters = counters.collect::<Option<Vec<_>>>()?;
        let id = if version == 1 { converted(&id, &mut counters)? } else { id };
        Some((id, SavedCounters { seed: HashSeed(*seed), overflow, members, counters }))
    }

    fn counter(&mut self) -> Option<Counter> {
        Some(Counter { until: self.number()?, used: self.number()? })
    }

    fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }
}

const FILE: &str = directory::COUNTS;
/// The first line; the number is the version of the format.
const MAGIC: &[u8] = b"northgate quotas 2\n";
const MAGIC_1: &[u8] = b"northgate quotas 1\n";
/// The beginning of the first line of every version.
const NAME: &[u8] = b"northgate quotas ";

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn saved_counters_are_loaded_again() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), HashMap::new());

        save(dir.path(), &some()).unwrap();
        assert_eq!(load(dir.path()).unwrap(), some());
        save(dir.path(), &HashMap::new()).unwrap();
        assert_eq!(load(dir.path()).unwrap(), HashMap::new());
    }

    #[test]
    fn the_file_is_readable_by_the_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &some()).unwrap();
        save(dir.path(), &some()).unwrap();

        let files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(Result::unwrap).collect();
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_failed_save_is_an_error_and_leaves_no_partial_file() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        assert!(matches!(save(&gone, &some()), Err(StateError::Write(_))));

        // A directory in the file's place is never replaced by a file.
        fs::create_dir(dir.path().join(FILE)).unwrap();
        assert!(matches!(save(dir.path(), &some()), Err(StateError::Write(_))));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(matches!(load(dir.path()), Err(StateError::Read { .. })));
    }

    #[test]
    fn a_damaged_file_is_set_aside_under_the_reported_name() {
        let dir = tempfile::tempdir().unwrap();
        // The order of the limits in the file is arbitrary.
        let whole = encode(&some());
        Directory::at(dir.path()).replace(FILE, &whole[..50]).unwrap();

        let Err(StateError::Damaged(aside)) = load(dir.path()) else {
            panic!("the file is truncated")
        };

        assert_eq!(fs::read(aside).unwrap(), whole[..50]);
        assert_eq!(load(dir.path()).unwrap(), HashMap::new());
        save(dir.path(), &some()).unwrap();
        assert_eq!(load(dir.path()).unwrap(), some());
    }

    #[test]
    fn files_that_were_set_aside_are_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let newer =
            [b"northgate quotas 3\n".as_slice(), b"in a form that is not known yet"].concat();
        let mut kept = Vec::new();
        for bytes in [b"damaged".as_slice(), &newer, b"damaged again", &newer[..30]] {
            Directory::at(dir.path()).replace(FILE, bytes).unwrap();
            let aside = match load(dir.path()) {
                Err(StateError::Damaged(aside)) if bytes.starts_with(b"damaged") => aside,
                Err(StateError::Newer(aside)) if bytes.starts_with(NAME) => aside,
                other => panic!("{other:?}"),
            };
            kept.push((aside, bytes.to_vec()));
            save(dir.path(), &some()).unwrap();
        }

        for (aside, bytes) in kept {
            assert_eq!(fs::read(aside).unwrap(), bytes);
        }
        assert_eq!(load(dir.path()).unwrap(), some());
    }

    #[test]
    fn a_file_of_the_first_format_is_converted() {
        let mut bytes = MAGIC_1.to_vec();
        let mut number = |number: u64| bytes.extend(number.to_le_bytes());
        number(1);
        let id = "daily: 10/day rolling by client";
        number(id.len() as u64);
        bytes.extend(id.as_bytes());
        bytes.extend([7; 16]);
        for number in [0_u64, 0, 1, 99, 1_000, 0] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(digest(&SHA256, &bytes.clone()).as_ref());

        let limits = decode(&bytes).unwrap();

        let counters = &limits["daily: day rolling by client"].counters;
        assert_eq!(counters, &[(99, Counter { until: 1_000, used: 8_640_000_000_000 })]);
    }

    proptest! {
        #[test]
        fn a_single_changed_byte_is_detected(at in any::<prop::sample::Index>(), by in 1_u8..) {
            let mut bytes = encode(&some());
            let at = at.index(bytes.len());
            bytes[at] = bytes[at].wrapping_add(by);

            prop_assert_eq!(decode(&bytes), None);
        }

        #[test]
        fn any_bytes_with_a_matching_checksum_are_decoded_or_refused(content in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(content);
            bytes.extend(digest(&SHA256, &bytes).as_ref());

            prop_assert!(decode(&bytes).is_none_or(|limits| limits.len() < 10));
        }

        #[test]
        fn a_missing_end_is_detected(length in any::<prop::sample::Index>()) {
            let bytes = encode(&some());

            prop_assert_eq!(decode(&bytes[..length.index(bytes.len())]), None);
        }
    }

    fn some() -> HashMap<String, SavedCounters> {
        let counter = |n| Counter { until: n * 1_000, used: n };
        let saved = |n| SavedCounters {
            seed: HashSeed([n as u8; 16]),
            overflow: counter(n),
            members: vec![n; 16],
            counters: (0..n).map(|key| (key, counter(key))).collect(),
        };
        HashMap::from([("none".into(), saved(0)), ("daily".into(), saved(20))])
    }
}
