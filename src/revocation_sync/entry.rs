//! An entry of the revocation stream in Redis.
//!
//! An operator can read it (`XRANGE northgate:fleet:revoked - +`), so it holds no secrets: a token is its SHA-256, a
//! session the identifier that limits and the log use. Entries are written by other instances: everything that is not
//! exactly an entry is [`MalformedEntry`].

use core::str;

use crate::base::clock::Timestamp;
use crate::token::{MalformedRevocation, Reading, RevocationEvent};

/// A revocation, and the instance that published it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct RevocationEntry {
    /// The instance that published it.
    pub(super) from: Box<str>,
    /// The revocation.
    pub(super) event: RevocationEvent,
}

/// The error of a stream entry that this version cannot read.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("malformed revocation entry")]
pub(crate) struct MalformedEntry;

impl From<MalformedRevocation> for MalformedEntry {
    fn from(_: MalformedRevocation) -> Self {
        Self
    }
}

impl RevocationEntry {
    /// Returns the fields, each name before its value.
    pub(crate) fn fields(&self) -> Vec<(&'static str, String)> {
        let RevocationEvent { revocation, at, until, learned: _ } = &self.event;
        let mut fields: Vec<_> = revocation.fields().collect();
        fields.push((AT, at.as_nanos().to_string()));
        fields.push((UNTIL, until.as_nanos().to_string()));
        fields.push((FROM, self.from.to_string()));
        fields
    }

    /// Parses the fields that [`RevocationEntry::fields`] returns.
    ///
    /// # Errors
    ///
    /// [`MalformedEntry`] for anything else.
    pub(crate) fn read<T: AsRef<[u8]>>(fields: &[T]) -> Result<Self, MalformedEntry> {
        let (mut reading, mut at, mut until, mut from) = (Reading::default(), None, None, None);
        for (name, value) in pairs(fields)? {
            match name {
                AT => set(&mut at, time(value)?)?,
                UNTIL => set(&mut until, time(value)?)?,
                FROM => set(&mut from, Box::from(value))?,
                _ => reading.take(name, value)?,
            }
        }
        let revocation = reading.revocation()?;
        let (at, until) = (at.ok_or(MalformedEntry)?, until.ok_or(MalformedEntry)?);
        let event = RevocationEvent { revocation, at, until, learned: true };
        Ok(Self { from: from.ok_or(MalformedEntry)?, event })
    }
}

/// Pairs names with values; none of them may be empty.
fn pairs<T: AsRef<[u8]>>(fields: &[T]) -> Result<Vec<(&str, &str)>, MalformedEntry> {
    let text = |bytes| match str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() => Ok(text),
        _ => Err(MalformedEntry),
    };
    let (pairs, rest) = fields.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(MalformedEntry);
    }
    pairs.iter().map(|[name, value]| Ok((text(name.as_ref())?, text(value.as_ref())?))).collect()
}

/// Sets a field, which must not be repeated.
fn set<T>(slot: &mut Option<T>, value: T) -> Result<(), MalformedEntry> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(MalformedEntry),
    }
}

fn time(text: &str) -> Result<Timestamp, MalformedEntry> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let nanos = text.parse().ok().filter(|_| digits).ok_or(MalformedEntry)?;
    Ok(Timestamp::from_nanos(nanos))
}

const AT: &str = "at";
const UNTIL: &str = "until";
const FROM: &str = "from";

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::option;
    use proptest::prelude::*;

    use super::*;
    use crate::token::{Revocation, RevocationTarget};

    #[test]
    fn an_entry_is_readable_text() {
        let what = RevocationTarget::Subject("alice".into());
        let issuer = Some(Arc::from("main"));
        let (at, until) = (Timestamp::from_secs(1), Timestamp::from_secs(2));
        let event =
            RevocationEvent { revocation: Revocation { issuer, what }, at, until, learned: false };

        let fields = RevocationEntry { from: "a".into(), event }.fields();

        let text: Vec<_> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(text.join(" "), "sub=alice issuer=main at=1000000000 until=2000000000 from=a");
    }

    #[test]
    fn malformed_entries_are_refused() {
        let good = ["sub", "alice", "at", "1", "until", "2", "from", "a"];
        assert!(RevocationEntry::read(&good).is_ok());
        for bad in [
            &good[..6],
            &good[2..],
            &good[..7],
            &[&good[..], &["sub", "bob"]].concat(),
            &[&good[..], &["jti", "t1"]].concat(),
            &[&good[..], &["except", "carol"]].concat(),
            &["sub", "", "at", "1", "until", "2", "from", "a"],
            &["sub", "alice", "at", "+1", "until", "2", "from", "a"],
            &["sub", "alice", "at", "1", "until", "99999999999999999999", "from", "a"],
            &["sha256", "AAAA", "at", "1", "until", "2", "from", "a"],
        ] {
            assert_eq!(RevocationEntry::read(bad), Err(MalformedEntry), "{bad:?}");
        }
        let not_text: [&[u8]; 8] = [b"sub", b"\xff", b"at", b"1", b"until", b"2", b"from", b"a"];
        assert_eq!(RevocationEntry::read(&not_text), Err(MalformedEntry));
    }

    fn what() -> impl Strategy<Value = RevocationTarget> {
        let name = || "\\PC+".prop_map(Arc::<str>::from);
        prop_oneof![
            name().prop_map(RevocationTarget::Id),
            name().prop_map(RevocationTarget::Session),
            name().prop_map(RevocationTarget::LoggedOut),
            name().prop_map(RevocationTarget::Subject),
            name().prop_map(RevocationTarget::Sessionless),
            any::<[u8; 32]>().prop_map(RevocationTarget::Token),
            any::<[u8; 32]>().prop_map(RevocationTarget::Withdrawn),
            name().prop_map(RevocationTarget::GatewaySession),
            name().prop_map(RevocationTarget::Replaced),
            any::<u64>().prop_map(RevocationTarget::ClockAhead),
        ]
    }

    proptest! {
        #[test]
        fn a_formatted_entry_is_parsed_to_itself(
            what in what(),
            issuer in option::of("\\PC+"),
            times: [u64; 2],
            from in "[a-z0-9]+",
        ) {
            let [at, until] = times.map(Timestamp::from_nanos);
            let revocation = Revocation { issuer: issuer.map(Arc::from), what };
            let event = RevocationEvent { revocation, at, until, learned: true };
            let entry = RevocationEntry { from: from.into(), event };
            let fields = entry.fields();
            let fields: Vec<&[u8]> =
                fields.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]).collect();

            prop_assert_eq!(RevocationEntry::read(&fields), Ok(entry));
        }

        #[test]
        fn parsing_arbitrary_bytes_never_panics(
            fields in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..40),
                    prop::sample::select(vec!["jti", "sha256", "at", "until", "from", "visit", "1"])
                        .prop_map(|text| text.as_bytes().to_vec()),
                ],
                0..12,
            ),
        ) {
            let _ = RevocationEntry::read(&fields);
        }
    }
}
