//! What other gateways of the fleet have renewed: streams here may go on for as long.
//!
//! Each refresh is told in a stream in Redis, by the script that says what came
//! of it. Whoever has no stream of that visit open passes it over.

use std::sync::Arc;

use crate::base::clock::Timestamp;
use crate::base::weak_map::WeakMap;
use crate::session::registry::{Key, RetainedState};
use crate::store::Redis;

/// Hears of refreshes at other gateways.
#[derive(Clone, Debug)]
pub struct RefreshEvents(Arc<WeakMap<Key, RetainedState>>);

/// This is no entry about a refresh.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("it tells of no refresh")]
pub struct MalformedEvent;

impl RefreshEvents {
    pub(in crate::session) const fn of(memories: Arc<WeakMap<Key, RetainedState>>) -> Self {
        Self(memories)
    }

    /// The stream in which refreshes are told.
    pub fn key(redis: &Redis) -> String {
        redis.key("fleet", "renewed")
    }

    /// Heeds an entry of that stream.
    ///
    /// # Errors
    ///
    /// [`MalformedEvent`] if it is none that a gateway writes.
    pub fn apply(&self, fields: &[Vec<u8>]) -> Result<(), MalformedEvent> {
        let (visit, ends) = read(fields).ok_or(MalformedEvent)?;
        for memory in self.0.values() {
            memory.lives.renew(visit, ends);
            memory.redeemed.hear(visit, ends);
        }
        Ok(())
    }
}

/// The fields of an entry: the visit called `name` has an access token that is good until `ends`.
pub(crate) fn fields(name: &str, ends: Timestamp) -> [Vec<u8>; 4] {
    let ends = ends.as_nanos().to_string();
    [VISIT.to_vec(), name.into(), UNTIL.to_vec(), ends.into_bytes()]
}

fn read(fields: &[Vec<u8>]) -> Option<(&str, Timestamp)> {
    let [visit, name, until, ends] = fields else { return None };
    let known = visit == VISIT && until == UNTIL && ends.iter().all(u8::is_ascii_digit);
    let ends = core::str::from_utf8(ends).ok()?.parse().ok()?;
    let name = core::str::from_utf8(name).ok()?;
    known.then_some((name, Timestamp::from_nanos(ends)))
}

const VISIT: &[u8] = b"visit";
const UNTIL: &[u8] = b"until";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_not_exactly_an_entry_is_none() {
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
        fn what_was_written_is_read(name in "\\PC*", ends: u64) {
            let ends = Timestamp::from_nanos(ends);
            let written = fields(&name, ends);
            prop_assert_eq!(read(&written), Some((&*name, ends)));
        }

        #[test]
        fn any_bytes_are_survived(
            fields in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..6),
        ) {
            let _ = read(&fields);
        }
    }
}
