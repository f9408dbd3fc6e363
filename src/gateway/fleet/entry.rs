//! What gateways of one Redis tell each other, as the fields of an entry there.
//!
//! An operator can read it (`XRANGE northgate:fleet:revoked - +`), so it holds
//! nothing that opens anything: a token is its SHA-256, a visit the name that
//! limits and the log know it by. What is read was written by others: whatever
//! is not exactly an entry is [`Malformed`].

use core::str;

use crate::base::clock::Timestamp;
use crate::token::{Malformed as NoRevocation, News, Reading};

/// Something that was revoked, and who says so.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(in crate::gateway) struct Revoked {
    /// The gateway that says so.
    pub(super) from: Box<str>,
    /// What it says.
    pub(super) news: News,
}

/// This is no entry that we know how to read.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("it is no entry of this version's")]
pub(in crate::gateway) struct Malformed;

impl From<NoRevocation> for Malformed {
    fn from(_: NoRevocation) -> Self {
        Self
    }
}

impl Revoked {
    /// As fields, each name before its value.
    pub(in crate::gateway) fn fields(&self) -> Vec<(&'static str, String)> {
        let News { revocation, at, until, learned: _ } = &self.news;
        let mut fields: Vec<_> = revocation.fields().collect();
        fields.push((AT, at.as_nanos().to_string()));
        fields.push((UNTIL, until.as_nanos().to_string()));
        fields.push((FROM, self.from.to_string()));
        fields
    }

    /// Reads what [`Revoked::fields`] wrote.
    ///
    /// # Errors
    ///
    /// [`Malformed`] for anything else.
    pub(in crate::gateway) fn read<T: AsRef<[u8]>>(fields: &[T]) -> Result<Self, Malformed> {
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
        let (at, until) = (at.ok_or(Malformed)?, until.ok_or(Malformed)?);
        let news = News { revocation, at, until, learned: true };
        Ok(Self { from: from.ok_or(Malformed)?, news })
    }
}

/// Names and values; none of them empty.
fn pairs<T: AsRef<[u8]>>(fields: &[T]) -> Result<Vec<(&str, &str)>, Malformed> {
    let text = |bytes| match str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() => Ok(text),
        _ => Err(Malformed),
    };
    let (pairs, rest) = fields.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(Malformed);
    }
    pairs.iter().map(|[name, value]| Ok((text(name.as_ref())?, text(value.as_ref())?))).collect()
}

/// Each field comes once.
fn set<T>(place: &mut Option<T>, value: T) -> Result<(), Malformed> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Malformed),
    }
}

fn time(text: &str) -> Result<Timestamp, Malformed> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let nanos = text.parse().ok().filter(|_| digits).ok_or(Malformed)?;
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
    use crate::token::{Revocation, What};

    #[test]
    fn an_entry_can_be_read_by_people() {
        let what = What::Subject("alice".into());
        let issuer = Some(Arc::from("main"));
        let (at, until) = (Timestamp::from_secs(1), Timestamp::from_secs(2));
        let news = News { revocation: Revocation { issuer, what }, at, until, learned: false };

        let fields = Revoked { from: "a".into(), news }.fields();

        let said: Vec<_> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(said.join(" "), "sub=alice issuer=main at=1000000000 until=2000000000 from=a");
    }

    #[test]
    fn what_is_not_exactly_an_entry_is_none() {
        let good = ["sub", "alice", "at", "1", "until", "2", "from", "a"];
        assert!(Revoked::read(&good).is_ok());
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
            assert_eq!(Revoked::read(bad), Err(Malformed), "{bad:?}");
        }
        let not_text: [&[u8]; 8] = [b"sub", b"\xff", b"at", b"1", b"until", b"2", b"from", b"a"];
        assert_eq!(Revoked::read(&not_text), Err(Malformed));
    }

    fn what() -> impl Strategy<Value = What> {
        let name = || "\\PC+".prop_map(Arc::<str>::from);
        prop_oneof![
            name().prop_map(What::Id),
            name().prop_map(What::Session),
            name().prop_map(What::LoggedOut),
            name().prop_map(What::Subject),
            name().prop_map(What::Sessionless),
            any::<[u8; 32]>().prop_map(What::Token),
            name().prop_map(What::Visit),
            name().prop_map(What::Replaced),
        ]
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            what in what(),
            issuer in option::of("\\PC+"),
            times: [u64; 2],
            from in "[a-z0-9]+",
        ) {
            let [at, until] = times.map(Timestamp::from_nanos);
            let revocation = Revocation { issuer: issuer.map(Arc::from), what };
            let news = News { revocation, at, until, learned: true };
            let told = Revoked { from: from.into(), news };
            let fields = told.fields();
            let fields: Vec<&[u8]> =
                fields.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]).collect();

            prop_assert_eq!(Revoked::read(&fields), Ok(told));
        }

        #[test]
        fn any_bytes_are_survived(
            fields in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..40),
                    prop::sample::select(vec!["jti", "sha256", "at", "until", "from", "visit", "1"])
                        .prop_map(|text| text.as_bytes().to_vec()),
                ],
                0..12,
            ),
        ) {
            let _ = Revoked::read(&fields);
        }
    }
}
