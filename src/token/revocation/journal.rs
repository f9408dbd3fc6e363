//! The journal behind [`RevocationList`](crate::token::RevocationList), which survives a restart.
//!
//! Two kinds of records: revocations, as [`RevocationEvent`], and used logout tokens.

use core::time::Duration;
use std::sync::Arc;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::event::RevocationEvent;
use super::fields::Reading;
use crate::base::clock::{Clock, Timestamp};
use crate::disk::record::{Kind, RecordListener};
use crate::disk::{Directory, Journal, OpenError, Record, WriteFailed};
use crate::token::validation::MAX_AGE;

/// The journal of ended tokens and sessions.
#[derive(Debug)]
pub(crate) struct Ends(Journal);

impl Ends {
    /// Opens the journal; `on_records` receives its records, and those that another process adds.
    pub(crate) fn open(
        directory: &Directory,
        clock: &Clock,
        on_records: impl Fn(&[Record]) + Clone + Send + 'static,
    ) -> Result<Self, OpenError> {
        let listener: RecordListener = Box::new(on_records.clone());
        let (journal, records) = Journal::open(directory.clone(), ENDED, clock.clone(), listener)?;
        on_records(&records);
        Ok(Self(journal))
    }

    pub(crate) fn append(&self, ended: &EndedRecord) {
        // The caller waits for all of them before it responds.
        let _ = self.0.append(ended.record());
    }

    /// Waits until all appended records are on disk.
    pub(crate) async fn wait(&self) -> Result<(), WriteFailed> {
        self.0.wait_for_all().await
    }
}

/// A record of the journal.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum EndedRecord {
    /// A revocation.
    Revoked(RevocationEvent),
    /// A logout token that was used, by its `jti` and by the session that accepted it.
    LogoutTokenUsed { by: Arc<str>, id: Arc<str>, at: Timestamp },
}

impl EndedRecord {
    /// Encodes the record as a line of the journal.
    pub(crate) fn record(&self) -> Record {
        match self {
            Self::Revoked(RevocationEvent { revocation, at, until, .. }) => {
                Record::new(revocation.fields(), *at, *until)
            }
            Self::LogoutTokenUsed { by, id, at } => {
                Record::new([(USED_LOGOUT_TOKEN, id), (BY, by)], *at, at.plus(REPLAY_WINDOW))
            }
        }
    }

    /// Decodes a line of the journal; `None` for an unknown kind.
    pub(crate) fn read(record: &Record) -> Option<Self> {
        let (at, until) = (record.at, record.until);
        let fields: Vec<_> = record.fields().collect();
        if let [(used, id), (by, name)] = &*fields
            && (&**used, &**by) == (USED_LOGOUT_TOKEN, BY)
        {
            return Some(Self::LogoutTokenUsed { by: (&**name).into(), id: (&**id).into(), at });
        }
        let mut reading = Reading::default();
        for (name, value) in &fields {
            reading.take(name, value).ok()?;
        }
        let revocation = reading.revocation().ok()?;
        Some(Self::Revoked(RevocationEvent { revocation, at, until, learned: false }))
    }
}

/// Used logout tokens, for as long as each could be replayed.
#[derive(Debug)]
pub(crate) struct UsedLogoutTokens(Cache<(Arc<str>, Arc<str>), ()>);

impl UsedLogoutTokens {
    pub(crate) fn new() -> Self {
        let cache = Cache::builder()
            .max_capacity(MAX_LOGOUT_TOKENS)
            // A token that is not stored could be used twice: the newest must be admitted.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(REPLAY_WINDOW);
        Self(cache.build())
    }

    /// Records a token; returns whether it was new.
    pub(crate) fn is_new(&self, by: &Arc<str>, id: &Arc<str>) -> bool {
        self.0.entry((Arc::clone(by), Arc::clone(id))).or_insert(()).is_fresh()
    }

    /// Removes a token, which may be used again.
    pub(crate) fn remove(&self, by: &Arc<str>, id: &Arc<str>) {
        self.0.invalidate(&(Arc::clone(by), Arc::clone(id)));
    }
}

const ENDED: Kind = Kind {
    name: "ended",
    title: "revocations",
    max_records: 400_000,
    loss: "tokens and sessions that were revoked may be valid again",
};
const MAX_LOGOUT_TOKENS: u64 = if cfg!(test) { 1_000 } else { 100_000 };

const USED_LOGOUT_TOKEN: &str = "heeded";
const BY: &str = "by";

/// The time for which a logout token could be replayed, with the largest configurable clock skew.
pub(crate) const REPLAY_WINDOW: Duration = MAX_AGE.saturating_add(Duration::from_secs(20 * 60));

#[cfg(test)]
mod tests {
    use proptest::option;
    use proptest::prelude::*;

    use super::*;
    use crate::token::revocation::event::{Revocation, RevocationTarget};

    #[test]
    fn a_full_cache_of_used_logout_tokens_stores_the_newest() {
        let (heeded, by) = (UsedLogoutTokens::new(), Arc::from("web"));
        let name = |number: u64| Arc::from(number.to_string());
        for number in 0..MAX_LOGOUT_TOKENS {
            assert!(heeded.is_new(&by, &name(number)));
        }
        // Repeated tokens must not evict others.
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
            any::<[u8; 32]>().prop_map(RevocationTarget::Withdrawn),
            name().prop_map(RevocationTarget::GatewaySession),
            name().prop_map(RevocationTarget::Replaced),
            any::<u64>().prop_map(RevocationTarget::ClockAhead),
        ];
        let time = || any::<u64>().prop_map(Timestamp::from_nanos);
        prop_oneof![
            (what, option::of(name()), time(), time()).prop_map(|(what, issuer, at, until)| {
                let revocation = Revocation { issuer, what };
                EndedRecord::Revoked(RevocationEvent { revocation, at, until, learned: false })
            }),
            (name(), name(), time()).prop_map(|(by, id, at)| EndedRecord::LogoutTokenUsed {
                by,
                id,
                at
            }),
        ]
    }

    proptest! {
        #[test]
        fn an_encoded_record_decodes(ended in ended()) {
            prop_assert_eq!(EndedRecord::read(&ended.record()), Some(ended));
        }

        #[test]
        fn any_record_decodes_or_is_rejected(
            fields in prop::collection::vec(
                (prop::sample::select(vec!["jti", "sub", "sha256", "heeded", "issuer", "by", ""]), ".*"),
                0..4,
            ),
        ) {
            let _ = EndedRecord::read(&Record::new(fields, Timestamp::MAX, Timestamp::MAX));
        }
    }
}
