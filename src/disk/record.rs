//! One record of a journal, as a line: expiry, time, key, and a checksum.
//!
//! Lines, because a damaged one affects no other. The checksum is not
//! cryptographic: it detects lines damaged by a crash or a disk.

use core::fmt::Write as _;
use std::collections::HashSet;

use aws_lc_rs::digest;
use url::form_urlencoded;

use crate::base::clock::Timestamp;

/// One record.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Record {
    /// The fields, encoded. Records of one key replace each other.
    key: Box<str>,
    /// When the event happened.
    pub at: Timestamp,
    /// When the record expires.
    pub until: Timestamp,
}

/// The parsed content of a journal.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct ParsedRecord {
    /// The valid lines, in order.
    pub records: Vec<Record>,
    /// The number of damaged lines.
    pub damaged: usize,
    /// The length of all complete lines in bytes; the rest was being written when the process ended.
    pub length: usize,
}

impl Record {
    /// Creates a record of `fields`, names with values.
    pub fn new<N: AsRef<str>, V: AsRef<str>>(
        fields: impl IntoIterator<Item = (N, V)>,
        at: Timestamp,
        until: Timestamp,
    ) -> Self {
        let key = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        Self { key: key.into(), at, until }
    }

    /// Returns the names with their values.
    pub fn fields(&self) -> impl Iterator<Item = (String, String)> + '_ {
        let fields = form_urlencoded::parse(self.key.as_bytes());
        fields.map(|(name, value)| (name.into_owned(), value.into_owned()))
    }

    /// Returns the key that records of one event share.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns the record that withdraws this one from the journal, whichever of them is read first.
    pub fn withdrawal(&self, at: Timestamp) -> Self {
        Self::new([(WITHDRAWN, checksum(self.key.as_bytes()))], at, self.until)
    }

    /// Whether this record only withdraws another one.
    pub fn is_withdrawal(&self) -> bool {
        self.key.starts_with(WITHDRAWN)
    }

    /// Appends the line of this record.
    pub fn write(&self, out: &mut Vec<u8>) {
        let Self { key, at, until } = self;
        let line = format!("{} {} {key}", until.as_nanos(), at.as_nanos());
        let mut text = checksum(line.as_bytes());
        text.push(' ');
        text.push_str(&line);
        text.push('\n');
        out.extend_from_slice(text.as_bytes());
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let line = core::str::from_utf8(line).ok()?;
        let (summed, line) = line.split_once(' ')?;
        if summed != checksum(line.as_bytes()) {
            return None;
        }
        let mut parts = line.splitn(3, ' ');
        let mut time = || Some(Timestamp::from_nanos(parts.next()?.parse().ok()?));
        let (until, at) = (time()?, time()?);
        let key = parts.next()?;
        Some(Self { key: key.into(), at, until })
    }
}

/// The records that others withdraw.
#[derive(Debug)]
pub struct Withdrawals(HashSet<String>);

impl Withdrawals {
    /// Returns what `records` withdraw.
    pub fn of<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let withdrawals = records.into_iter().filter(|record| record.is_withdrawal());
        Self(withdrawals.flat_map(Record::fields).map(|(_, key)| key).collect())
    }

    /// Whether `record` is withdrawn.
    pub fn contain(&self, record: &Record) -> bool {
        !self.0.is_empty() && self.0.contains(&checksum(record.key.as_bytes()))
    }
}

/// Parses the lines of a journal; any bytes are accepted.
pub fn read(bytes: &[u8]) -> ParsedRecord {
    let mut read = ParsedRecord::default();
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let Some(line) = line.strip_suffix(b"\n") else { break };
        read.length += line.len() + 1;
        match Record::parse(line) {
            Some(record) => read.records.push(record),
            None => read.damaged += 1,
        }
    }
    read
}

fn checksum(line: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, line);
    let mut text = String::with_capacity(2 * CHECKSUM_BYTES);
    for byte in &digest.as_ref()[..CHECKSUM_BYTES] {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

const CHECKSUM_BYTES: usize = 8;
/// No other record has a field of this name.
const WITHDRAWN: &str = "withdrawn";

/// The name and the size of a journal.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// The prefix of its files.
    pub name: &'static str,
    /// The name in the log.
    pub title: &'static str,
    /// The maximum number of records; beyond it the oldest are dropped.
    pub max_records: usize,
    /// The consequence of lost records, for the log.
    pub loss: &'static str,
}

/// A callback for records that another process has written.
pub type RecordListener = Box<dyn Fn(&[Record]) + Send>;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> impl Strategy<Value = Record> {
        (prop::collection::vec((".*", ".*"), 0..4), any::<[u64; 2]>()).prop_map(
            |(fields, times)| {
                let [at, until] = times.map(Timestamp::from_nanos);
                Record::new(fields, at, until)
            },
        )
    }

    fn lines(records: &[Record]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for record in records {
            record.write(&mut bytes);
        }
        bytes
    }

    #[test]
    fn a_record_is_readable_text() {
        let record = Record::new([("sub", "alice b"), ("issuer", "main")], at(1), at(2));
        let text = String::from_utf8(lines(&[record])).unwrap();

        assert!(text.ends_with(" 2 1 sub=alice+b&issuer=main\n"), "{text}");
    }

    proptest! {
        #[test]
        fn written_records_are_parsed_again(records in prop::collection::vec(record(), 0..8)) {
            let bytes = lines(&records);
            let read = read(&bytes);

            prop_assert_eq!(&read.records, &records);
            prop_assert_eq!((read.damaged, read.length), (0, bytes.len()));
        }

        #[test]
        fn encoded_fields_of_a_record_decode(fields in prop::collection::vec((".*", ".*"), 0..4)) {
            let record = Record::new(fields.clone(), at(1), at(2));

            prop_assert_eq!(record.fields().collect::<Vec<_>>(), fields);
        }

        #[test]
        fn a_torn_end_damages_no_complete_line(
            records in prop::collection::vec(record(), 1..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let bytes = lines(&records);
            let cut = cut.index(bytes.len());
            let whole = bytes[..cut].split(|byte| *byte == b'\n').count() - 1;
            let read = read(&bytes[..cut]);

            prop_assert_eq!(&read.records[..], &records[..whole]);
            prop_assert_eq!(read.damaged, 0);
        }

        #[test]
        fn a_changed_byte_damages_only_its_own_line(
            records in prop::collection::vec(record(), 1..8),
            at in any::<prop::sample::Index>(),
            by in 1_u8..,
        ) {
            let mut bytes = lines(&records);
            let at = at.index(bytes.len());
            bytes[at] ^= by;
            let read = read(&bytes);

            // A byte that becomes or was the end of a line damages one or two.
            prop_assert!(read.records.len() + 2 >= records.len());
            prop_assert!(read.records.iter().all(|record| records.contains(record)));
            prop_assert!(read.records.len() < records.len());
        }

        #[test]
        fn any_bytes_are_parsed_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let read = read(&bytes);

            prop_assert!(read.records.is_empty() && read.length <= bytes.len());
        }
    }

    fn at(nanos: u64) -> Timestamp {
        Timestamp::from_nanos(nanos)
    }
}
