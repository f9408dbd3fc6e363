//! What was ended, over a restart: the journals behind [`Revocations`](super::Revocations).
//!
//! Three kinds of records. What was revoked, as a [`News`]. Visits that are over
//! although it could not be verified that they ever were one, apart from the rest:
//! strangers could make up many of them, and then displace each other alone. And
//! tokens that may be heeded once.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::openid::HEEDED_AGAIN;
use super::revoked::{News, Revocation, What};
use crate::base::clock::{Clock, Timestamp};
use crate::disk::journal::{Heard, Kind};
use crate::disk::{Directory, Journal, NotKept, OpenError, Record};

/// Where it is kept.
#[derive(Debug)]
pub(super) struct Journals {
    ended: Journal,
    unverified: Journal,
}

impl Journals {
    /// Opens them; `heard` is told of what is in them, and of what another process adds.
    pub(super) fn open(
        directory: &Directory,
        clock: &Clock,
        heard: impl Fn(&[Record]) + Clone + Send + 'static,
    ) -> Result<Self, OpenError> {
        let open = |kind| {
            let told: Heard = Box::new(heard.clone());
            let (journal, records) = Journal::open(directory.clone(), kind, clock.clone(), told)?;
            heard(&records);
            Ok(journal)
        };
        Ok(Self { ended: open(ENDED)?, unverified: open(UNVERIFIED)? })
    }

    pub(super) fn append(&self, ended: &Ended) {
        let journal = match ended {
            Ended::Visit { .. } => &self.unverified,
            Ended::Revoked(_) | Ended::Heeded { .. } => &self.ended,
        };
        // The caller that answers waits for all of it.
        let _ = journal.append(ended.record());
    }

    /// Waits until all that was appended is on disk.
    pub(super) async fn wait(&self) -> Result<(), NotKept> {
        self.ended.wait_for_all().await?;
        self.unverified.wait_for_all().await
    }
}

/// Something that was ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Ended {
    /// What was revoked.
    Revoked(News),
    /// A visit by its name, that may never have been one.
    Visit { name: Arc<str>, at: Timestamp, until: Timestamp },
    /// A token that was heeded, by its `jti`, by whom.
    Heeded { by: Arc<str>, id: Arc<str>, at: Timestamp },
}

impl Ended {
    /// As a line of a journal.
    pub(super) fn record(&self) -> Record {
        match self {
            Self::Revoked(News { revocation, at, until, .. }) => {
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
                let issuer = revocation.issuer.as_ref().map(|issuer| (ISSUER, issuer.to_string()));
                Record::new([Some((kind, name)), issuer].into_iter().flatten(), *at, *until)
            }
            Self::Visit { name, at, until } => Record::new([(UNVERIFIED_VISIT, name)], *at, *until),
            Self::Heeded { by, id, at } => {
                Record::new([(HEEDED, id), (BY, by)], *at, at.plus(HEEDED_AGAIN))
            }
        }
    }

    /// What a line of a journal says; `None` for one that is of no kind known here.
    pub(super) fn read(record: &Record) -> Option<Self> {
        let (at, until) = (record.at, record.until);
        let fields: Vec<_> = record.fields().collect();
        let (first, second) = match &*fields {
            [first] => (first, None),
            [first, second] => (first, Some((&*second.0, &second.1))),
            _ => return None,
        };
        let name = || Arc::<str>::from(&*first.1);
        let what = match (&*first.0, second) {
            (HEEDED, Some((BY, by))) => {
                return Some(Self::Heeded { by: (&**by).into(), id: name(), at });
            }
            (UNVERIFIED_VISIT, None) => return Some(Self::Visit { name: name(), at, until }),
            (ID, _) => What::Id(name()),
            (SESSION, _) => What::Session(name()),
            (LOGGED_OUT, _) => What::LoggedOut(name()),
            (SUBJECT, _) => What::Subject(name()),
            (SESSIONLESS, _) => What::Sessionless(name()),
            (VISIT, _) => What::Visit(name()),
            (REPLACED, _) => What::Replaced(name()),
            (TOKEN, _) => What::Token(URL_SAFE_NO_PAD.decode(&first.1).ok()?.try_into().ok()?),
            _ => return None,
        };
        let issuer = match second {
            Some((ISSUER, issuer)) => Some((&**issuer).into()),
            Some(_) => return None,
            None => None,
        };
        let revocation = Revocation { issuer, what };
        Some(Self::Revoked(News { revocation, at, until, learned: false }))
    }
}

/// Tokens that were heeded, each once, as long as it could come again.
#[derive(Debug)]
pub(super) struct Heeded(Cache<(Arc<str>, Arc<str>), ()>);

impl Heeded {
    pub(super) fn new() -> Self {
        let cache = Cache::builder()
            .max_capacity(MOST_HEEDED)
            // A token that is not remembered could be heeded twice: the newest must be admitted.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(HEEDED_AGAIN);
        Self(cache.build())
    }

    /// Whether this is the first token of that name.
    pub(super) fn is_new(&self, by: &Arc<str>, id: &Arc<str>) -> bool {
        self.0.entry((Arc::clone(by), Arc::clone(id))).or_insert(()).is_fresh()
    }

    /// It may be heeded again.
    pub(super) fn forget(&self, by: &Arc<str>, id: &Arc<str>) {
        self.0.invalidate(&(Arc::clone(by), Arc::clone(id)));
    }
}

const ENDED: Kind = Kind { name: "ended", most: 400_000 };
const UNVERIFIED: Kind = Kind { name: "unverified", most: 50_000 };
const MOST_HEEDED: u64 = if cfg!(test) { 1_000 } else { 100_000 };

const ID: &str = "jti";
const SESSION: &str = "sid";
const LOGGED_OUT: &str = "logged_out_sid";
const SUBJECT: &str = "sub";
const SESSIONLESS: &str = "sub_without_sid";
const TOKEN: &str = "sha256";
const VISIT: &str = "visit";
const REPLACED: &str = "replaced";
const ISSUER: &str = "issuer";
const UNVERIFIED_VISIT: &str = "unverified";
const HEEDED: &str = "heeded";
const BY: &str = "by";

#[cfg(test)]
mod tests {
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_memory_of_heeded_tokens_remembers_the_newest() {
        let (heeded, by) = (Heeded::new(), Arc::from("web"));
        let name = |number: u64| Arc::from(number.to_string());
        for number in 0..MOST_HEEDED {
            assert!(heeded.is_new(&by, &name(number)));
        }
        // Those that come again and again are no reason to forget others.
        for number in (0..MOST_HEEDED).chain(0..MOST_HEEDED) {
            heeded.is_new(&by, &name(number));
        }
        heeded.0.run_pending_tasks();

        for number in MOST_HEEDED..MOST_HEEDED + 500 {
            heeded.is_new(&by, &name(number));
            heeded.0.run_pending_tasks();
            assert!(!heeded.is_new(&by, &name(number)), "{number}");
        }
    }

    fn name() -> impl Strategy<Value = Arc<str>> {
        ".+".prop_map(Arc::from)
    }

    fn ended() -> impl Strategy<Value = Ended> {
        let what = prop_oneof![
            name().prop_map(What::Id),
            name().prop_map(What::Session),
            name().prop_map(What::LoggedOut),
            name().prop_map(What::Subject),
            name().prop_map(What::Sessionless),
            any::<[u8; 32]>().prop_map(What::Token),
            name().prop_map(What::Visit),
            name().prop_map(What::Replaced),
        ];
        let time = || any::<u64>().prop_map(Timestamp::from_nanos);
        prop_oneof![
            (what, option::of(name()), time(), time()).prop_map(|(what, issuer, at, until)| {
                let revocation = Revocation { issuer, what };
                Ended::Revoked(News { revocation, at, until, learned: false })
            }),
            (name(), time(), time()).prop_map(|(name, at, until)| Ended::Visit { name, at, until }),
            (name(), name(), time()).prop_map(|(by, id, at)| Ended::Heeded { by, id, at }),
        ]
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(ended in ended()) {
            prop_assert_eq!(Ended::read(&ended.record()), Some(ended));
        }

        #[test]
        fn whatever_a_record_holds_is_survived(
            fields in prop::collection::vec(
                (prop::sample::select(vec!["jti", "sub", "sha256", "heeded", "issuer", "by", ""]), ".*"),
                0..4,
            ),
        ) {
            let _ = Ended::read(&Record::new(fields, Timestamp::MAX, Timestamp::MAX));
        }
    }
}
