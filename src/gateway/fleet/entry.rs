//! What gateways of one Redis tell each other, as the fields of an entry there.
//!
//! An operator can read it (`XRANGE northgate:fleet:revoked - +`), so it holds
//! nothing that opens anything: a token is its SHA-256, a visit the name that
//! limits and the log know it by. What is read was written by others: whatever
//! is not exactly an entry is [`Malformed`].

use core::str;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::base::clock::Timestamp;
use crate::token::{News, Revocation, What};

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

impl Revoked {
    /// As fields, each name before its value.
    pub(in crate::gateway) fn fields(&self) -> Vec<(&'static str, String)> {
        let News { revocation, at, until, learned: _ } = &self.news;
        let (kind, name) = match &revocation.what {
            What::Id(name) => (ID, name.to_string()),
            What::Session(name) => (SESSION, name.to_string()),
            What::LoggedOut(name) => (LOGGED_OUT, name.to_string()),
            What::Subject(name) => (SUBJECT, name.to_string()),
            What::Sessionless(name) => (SESSIONLESS, name.to_string()),
            What::Token(digest) => (TOKEN, URL_SAFE_NO_PAD.encode(digest)),
            What::Visit(name) => (VISIT, name.to_string()),
            What::Replaced(name) => (REPLACED, name.to_string()),
        };
        let mut fields = vec![(kind, name)];
        fields.extend(revocation.issuer.as_ref().map(|issuer| (ISSUER, issuer.to_string())));
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
        let (mut what, mut issuer, mut at, mut until, mut from) = (None, None, None, None, None);
        for (name, value) in pairs(fields)? {
            match name {
                ID => set(&mut what, What::Id(value.into()))?,
                SESSION => set(&mut what, What::Session(value.into()))?,
                LOGGED_OUT => set(&mut what, What::LoggedOut(value.into()))?,
                SUBJECT => set(&mut what, What::Subject(value.into()))?,
                SESSIONLESS => set(&mut what, What::Sessionless(value.into()))?,
                TOKEN => set(&mut what, What::Token(digest(value)?))?,
                VISIT => set(&mut what, What::Visit(value.into()))?,
                REPLACED => set(&mut what, What::Replaced(value.into()))?,
                ISSUER => set(&mut issuer, Arc::from(value))?,
                AT => set(&mut at, time(value)?)?,
                UNTIL => set(&mut until, time(value)?)?,
                FROM => set(&mut from, Box::from(value))?,
                // What it means may be that less is revoked: better not half understood.
                _ => return Err(Malformed),
            }
        }
        let revocation = Revocation { issuer, what: what.ok_or(Malformed)? };
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

/// Each field comes once, and what is revoked is named in one way.
fn set<T>(place: &mut Option<T>, value: T) -> Result<(), Malformed> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Malformed),
    }
}

fn digest(text: &str) -> Result<[u8; 32], Malformed> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| Malformed)?;
    bytes.try_into().map_err(|_| Malformed)
}

fn time(text: &str) -> Result<Timestamp, Malformed> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let nanos = text.parse().ok().filter(|_| digits).ok_or(Malformed)?;
    Ok(Timestamp::from_nanos(nanos))
}

const ID: &str = "jti";
const SESSION: &str = "sid";
const LOGGED_OUT: &str = "logged_out_sid";
const SUBJECT: &str = "sub";
const SESSIONLESS: &str = "sub_without_sid";
const TOKEN: &str = "sha256";
const VISIT: &str = "visit";
const REPLACED: &str = "replaced";
const ISSUER: &str = "issuer";
const AT: &str = "at";
const UNTIL: &str = "until";
const FROM: &str = "from";

#[cfg(test)]
mod tests {
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

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
