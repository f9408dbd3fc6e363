//! Refreshes at other instances, which extend the streams of their sessions here.
//!
//! The script that publishes a refresh adds it to a stream in Redis. An
//! instance without an open stream of that session ignores the entry.

use crate::base::clock::Timestamp;
use crate::redis::Redis;

/// The entry does not describe a refresh.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("malformed refresh event")]
pub struct MalformedEvent;

/// Returns the key of the stream of refreshes.
pub(crate) fn stream_key(redis: &Redis) -> String {
    redis.key("fleet", "renewed")
}

/// Returns the fields of an entry: the access token of the session `name` is valid until `ends`.
pub(crate) fn fields(name: &str, ends: Timestamp) -> [Vec<u8>; 4] {
    let ends = ends.as_nanos().to_string();
    [SESSION.to_vec(), name.into(), UNTIL.to_vec(), ends.into_bytes()]
}

/// Reads the session and the expiry of its access token from an entry; `None` if the entry is malformed.
pub(crate) fn read(fields: &[Vec<u8>]) -> Option<(&str, Timestamp)> {
    let [label, name, until, ends] = fields else { return None };
    let known = label == SESSION && until == UNTIL && ends.iter().all(u8::is_ascii_digit);
    let ends = core::str::from_utf8(ends).ok()?.parse().ok()?;
    let name = core::str::from_utf8(name).ok()?;
    known.then_some((name, Timestamp::from_nanos(ends)))
}

const SESSION: &[u8] = b"visit";
const UNTIL: &[u8] = b"until";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn malformed_entries_are_rejected() {
        let entry =
            |fields: &[&str]| fields.iter().map(|f| f.as_bytes().to_vec()).collect::<Vec<_>>();
        assert!(read(&entry(&["visit", "v", "until", "1"])).is_some());
        for bad in [
            &["visit", "v", "until", "+1"][..],
            &["visit", "v", "until", ""],
            &["visit", "v", "at", "1"],
            &["visit", "v"],
            &["visit", "v", "until", "1", "more", "1"],
        ] {
            assert_eq!(read(&entry(bad)), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn an_encoded_entry_decodes(name in "\\PC*", ends: u64) {
            let ends = Timestamp::from_nanos(ends);
            let written = fields(&name, ends);
            prop_assert_eq!(read(&written), Some((&*name, ends)));
        }

        #[test]
        fn any_bytes_decode_or_are_rejected(
            fields in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..6),
        ) {
            let _ = read(&fields);
        }
    }
}
