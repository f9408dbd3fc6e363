//! What was ended, over a restart: the journals behind [`RevocationList`](crate::token::Revocations).
//!
//! Two kinds of records: what was revoked, as a [`RevocationFeed`], and tokens that may be heeded once.

use std::sync::Arc;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::fields::Reading;
use super::list::RevocationFeed;
use crate::base::clock::{Clock, Timestamp};
use crate::disk::journal::{Kind, RecordListener};
use crate::disk::{Directory, Journal, OpenError, Record, WriteFailed};
use crate::token::jwt::id_token::REPLAY_WINDOW;

/// Where it is kept.
#[derive(Debug)]
pub(crate) struct Ends(Journal);

impl Ends {
    /// Opens it; `heard` is told of what is in it, and of what another process adds.
    pub(crate) fn open(
        directory: &Directory,
        clock: &Clock,
        heard: impl Fn(&[Record]) + Clone + Send + 'static,
    ) -> Result<Self, OpenError> {
        let told: RecordListener = Box::new(heard.clone());
        let (journal, records) = Journal::open(directory.clone(), ENDED, clock.clone(), told)?;
        heard(&records);
        Ok(Self(journal))
    }

    pub(crate) fn append(&self, ended: &EndedRecord) {
        // The caller that answers waits for all of it.
        let _ = self.0.append(ended.record());
    }

    /// Waits until all that was appended is on disk.
    pub(crate) async fn wait(&self) -> Result<(), WriteFailed> {
        self.0.wait_for_all().await
    }
}

/// Something that was ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum EndedRecord {
    /// What was revoked.
    Revoked(RevocationFeed),
    /// A token that was heeded, by its `jti`, by whom.
    Heeded { by: Arc<str>, id: Arc<str>, at: Timestamp },
}

impl EndedRecord {
    /// As a line of a journal.
    pub(crate) fn record(&self) -> Record {
        match self {
            Self::Revoked(RevocationFeed { revocation, at, until, .. }) => {
                Record::new(revocation.fields(), *at, *until)
            }
            Self::Heeded { by, id, at } => {
                Record::new([(USED_LOGOUT_TOKEN, id), (BY, by)], *at, at.plus(REPLAY_WINDOW))
            }
        }
    }

    /// What a line of a journal says; `None` for one that is of no kind known here.
    pub(crate) fn read(record: &Record) -> Option<Self> {
        let (at, until) = (record.at, record.until);
        let fields: Vec<_> = record.fields().collect();
        if let [(heeded, id), (by, name)] = &*fields
            && (&**heeded, &**by) == (USED_LOGOUT_TOKEN, BY)
        {
            return Some(Self::Heeded { by: (&**name).into(), id: (&**id).into(), at });
        }
        let mut reading = Reading::default();
        for (name, value) in &fields {
            reading.take(name, value).ok()?;
        }
        let revocation = reading.revocation().ok()?;
        Some(Self::Revoked(RevocationFeed { revocation, at, until, learned: false }))
    }
}

/// Tokens that were heeded, each once, as long as it could come again.
#[derive(Debug)]
pub(crate) struct UsedLogoutTokens(Cache<(Arc<str>, Arc<str>), ()>);

impl UsedLogoutTokens {
    pub(crate) fn new() -> Self {
        let cache = Cache::builder()
            .max_capacity(MAX_LOGOUT_TOKENS)
            // A token that is not remembered could be heeded twice: the newest must be admitted.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(REPLAY_WINDOW);
        Self(cache.build())
    }

    /// Whether this is the first token of that name.
    pub(crate) fn is_new(&self, by: &Arc<str>, id: &Arc<str>) -> bool {
        self.0.entry((Arc::clone(by), Arc::clone(id))).or_insert(()).is_fresh()
    }

    /// It may be heeded again.
    pub(crate) fn forget(&self, by: &Arc<str>, id: &Arc<str>) {
        self.0.invalidate(&(Arc::clone(by), Arc::clone(id)));
    }
}

const ENDED: Kind = Kind { name: "ended", most: 400_000 };
const MAX_LOGOUT_TOKENS: u64 = if cfg!(test) { 1_000 } else { 100_000 };

const USED_LOGOUT_TOKEN: &str = "heeded";
const BY: &str = "by";

#[cfg(test)]
mod tests {
    use proptest::option;
    use proptest::prelude::*;

    use super::*;
    use crate::token::revocation::list::{Revocation, RevocationTarget};

    #[test]
    fn a_full_memory_of_heeded_tokens_remembers_the_newest() {
        let (heeded, by) = (UsedLogoutTokens::new(), Arc::from("web"));
        let name = |number: u64| Arc::from(number.to_string());
        for number in 0..MAX_LOGOUT_TOKENS {
            assert!(heeded.is_new(&by, &name(number)));
        }
        // Those that come again and again are no reason to forget others.
        for number in (0..MAX_LOGOUT_TOKENS).chain(0..MAX_LOGOUT_TOKENS) {
            heeded.is_new(&by, &name(number));
        }
        heeded.0.run_pending_tasks();

        for number in MAX_LOGOUT_TOKENS..MAX_LOGOUT_TOKENS + 500 {
            heeded.is_new(&by, &name(number));
            heeded.0.run_pending_tasks();
            assert!(!heeded.is_new(&by, &name(number)), "{number}");
        }
    }

    fn name() -> impl Strategy<Value = Arc<str>> {
        ".+".prop_map(Arc::from)
    }

    fn ended() -> impl Strategy<Value = EndedRecord> {
        let what = prop_oneof![
            name().prop_map(RevocationTarget::Id),
            name().prop_map(RevocationTarget::Session),
            name().prop_map(RevocationTarget::LoggedOut),
            name().prop_map(RevocationTarget::Subject),
            name().prop_map(RevocationTarget::Sessionless),
            any::<[u8; 32]>().prop_map(RevocationTarget::Token),
            name().prop_map(RevocationTarget::Visit),
            name().prop_map(RevocationTarget::Replaced),
        ];
        let time = || any::<u64>().prop_map(Timestamp::from_nanos);
        prop_oneof![
            (what, option::of(name()), time(), time()).prop_map(|(what, issuer, at, until)| {
                let revocation = Revocation { issuer, what };
                EndedRecord::Revoked(RevocationFeed { revocation, at, until, learned: false })
            }),
            (name(), name(), time()).prop_map(|(by, id, at)| EndedRecord::Heeded { by, id, at }),
        ]
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(ended in ended()) {
            prop_assert_eq!(EndedRecord::read(&ended.record()), Some(ended));
        }

        #[test]
        fn whatever_a_record_holds_is_survived(
            fields in prop::collection::vec(
                (prop::sample::select(vec!["jti", "sub", "sha256", "heeded", "issuer", "by", ""]), ".*"),
                0..4,
            ),
        ) {
            let _ = EndedRecord::read(&Record::new(fields, Timestamp::MAX, Timestamp::MAX));
        }
    }
}
