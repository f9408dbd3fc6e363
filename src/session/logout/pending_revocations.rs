//! Pending revocations: revocations that are yet to be sent to an issuer, stored beyond the end of the process.
//!
//! An entry is sealed under the session's key ring, so that its storage cannot use it, and is removed when the
//! revocation was sent. The journal in `server.state_dir` holds it; without that directory a hash in Redis does, where
//! another instance takes over the entries of one that is gone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::base::clock::{Clock, Timestamp};
use crate::base::digest::sha256;
use crate::base::lock::IgnorePoison;
use crate::disk::record::{Kind, RecordListener, Withdrawals};
use crate::disk::{Directory, Journal, OpenError, Record};
use crate::session::cookies::seal::{SealingKeys, associated_data};
use crate::session::store::shared_revocations::SharedRevocations;
use crate::session::store::state::{Id, SessionState};

/// A pending revocation.
#[derive(Debug)]
pub(crate) enum PendingRevocation {
    /// The access and the refresh token of this state are to be revoked.
    Tokens(Box<SessionState>),
    /// The session of this id, which only Redis has, is to be ended, and its tokens revoked.
    Session(Id),
}

/// An entry, which names itself and not its content.
#[derive(Clone, Debug)]
pub(crate) enum PendingEntry {
    /// In the journal.
    Disk(Record),
    /// In Redis, by its field.
    Redis(String),
}

/// The pending revocations of one `sessions.<name>`.
#[derive(Debug)]
pub(crate) struct PendingRevocations {
    /// Digest of session, issuer and client: a token is never sent to another issuer.
    owner: String,
    ring: Arc<SealingKeys>,
    associated_data: Box<[u8]>,
    journal: RevocationJournal,
    shared: Option<SharedRevocations>,
    clock: Clock,
}

impl PendingRevocations {
    /// Returns the pending revocations of the session whose cookies are sealed with the associated data `seal`.
    ///
    /// `ring` must be the operator's: a later process does not have a random one.
    pub(crate) fn new(
        seal: &[u8],
        ring: Arc<SealingKeys>,
        journal: RevocationJournal,
        shared: Option<SharedRevocations>,
        clock: Clock,
    ) -> Self {
        let owner = URL_SAFE_NO_PAD.encode(sha256(&[b"revocations\0", seal]));
        let associated_data = associated_data(&[seal, b"pending revocation"]);
        Self { owner, ring, associated_data, journal, shared, clock }
    }

    /// Keeps a revocation until `until`; `None` if nothing outlives this process, or does not respond.
    pub(crate) async fn add(
        &self,
        revocation: &PendingRevocation,
        until: Timestamp,
    ) -> Option<PendingEntry> {
        let sealed = self.ring.seal(&self.associated_data, &revocation.to_bytes());
        if self.journal.is_open() {
            let record = self.journal.add(&self.owner, &sealed, self.clock.now(), until).await?;
            return Some(PendingEntry::Disk(record));
        }
        let field = self.shared.as_ref()?.add(&sealed, until).await.ok()?;
        Some(PendingEntry::Redis(field))
    }

    /// Removes an entry that is done with.
    pub(crate) async fn remove(&self, entry: PendingEntry) {
        match (entry, &self.shared) {
            (PendingEntry::Disk(record), _) => self.journal.remove(&record, self.clock.now()),
            // If that fails, the revocation is sent once more (RFC 7009 §2.2: with the same result).
            (PendingEntry::Redis(field), Some(shared)) => {
                let _ = shared.remove(&field).await;
            }
            (PendingEntry::Redis(_), None) => {}
        }
    }

    /// Gives back an entry that cannot be done now: [`PendingRevocations::take`] returns it again. Entries in Redis
    /// stay with this instance while it runs.
    pub(crate) fn give_back(&self, entry: &PendingEntry) {
        if let PendingEntry::Disk(record) = entry {
            self.journal.give_back(record);
        }
    }

    /// Whether an entry is still to be done: another process that drains beside this one may have done it.
    pub(crate) fn is_open(&self, entry: &PendingEntry) -> bool {
        match entry {
            PendingEntry::Disk(record) => self.journal.has(record),
            PendingEntry::Redis(_) => true,
        }
    }

    /// Takes up to `max` entries that processes before this one, or instances that are gone, have left.
    pub(crate) async fn take(&self, max: usize) -> Vec<(PendingEntry, PendingRevocation)> {
        let mut taken: Vec<_> = self
            .journal
            .take(&self.owner, max, self.clock.now())
            .into_iter()
            .map(|(record, sealed)| (PendingEntry::Disk(record), sealed))
            .collect();
        if let Some(shared) = &self.shared {
            // Without a response there is another attempt in a moment.
            let left = shared.take(max.saturating_sub(taken.len())).await;
            let left = left.unwrap_or_default().into_iter();
            taken.extend(left.map(|(field, sealed)| (PendingEntry::Redis(field), sealed)));
        }
        let open = |(entry, sealed): (PendingEntry, String)| {
            let plain = self.ring.open(&self.associated_data, sealed.as_bytes())?;
            Some((entry, PendingRevocation::from_bytes(&plain)?))
        };
        let number = taken.len();
        let opened: Vec<_> = taken.into_iter().filter_map(open).collect();
        if opened.len() < number {
            tracing::warn!(
                unreadable = number - opened.len(),
                "Could not open pending revocations, which were sealed under a removed key; their tokens expire by themselves."
            );
        }
        opened
    }
}

impl PendingRevocation {
    fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let (kind, content) = match self {
            Self::Tokens(state) => {
                // Only the two tokens are needed.
                let state = SessionState {
                    id_token: None,
                    scope: None,
                    userinfo: None,
                    subject: None,
                    ..SessionState::clone(state)
                };
                (TOKENS, state.to_bytes())
            }
            Self::Session(id) => (SESSION, Zeroizing::new(id.to_text().into_bytes())),
        };
        let mut bytes = Zeroizing::new(Vec::with_capacity(1 + content.len()));
        bytes.push(kind);
        bytes.extend_from_slice(&content);
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first()? {
            (&TOKENS, state) => Some(Self::Tokens(Box::new(SessionState::from_bytes(state)?))),
            (&SESSION, id) => Some(Self::Session(Id::from_text(core::str::from_utf8(id).ok()?)?)),
            _ => None,
        }
    }
}

/// The journal of pending revocations, one per process; without a state directory it holds none.
#[derive(Clone, Debug, Default)]
pub(crate) struct RevocationJournal(Arc<JournalState>);

#[derive(Debug, Default)]
struct JournalState {
    journal: OnceLock<Journal>,
    /// The records that are not done with, and whether this process has taken them on.
    open: Mutex<HashMap<Record, bool>>,
}

impl RevocationJournal {
    /// Keeps revocations in `directory` from now on, and loads those of earlier processes.
    ///
    /// # Errors
    ///
    /// `OpenError` if the journal cannot be read.
    pub(crate) fn persist_in(&self, directory: &Directory, clock: Clock) -> Result<(), OpenError> {
        let state = Arc::downgrade(&self.0);
        let listener: RecordListener = Box::new(move |records| {
            if let Some(state) = state.upgrade() {
                state.apply(records);
            }
        });
        let (journal, records) = Journal::open(directory.clone(), REVOCATIONS, clock, listener)?;
        self.0.apply(&records);
        // Only a test opens it twice.
        let _ = self.0.journal.set(journal);
        Ok(())
    }

    fn is_open(&self) -> bool {
        self.0.journal.get().is_some()
    }

    /// Adds a record and waits until it is on disk. A record that is not on disk yet is written when the disk takes it.
    async fn add(
        &self,
        owner: &str,
        sealed: &str,
        at: Timestamp,
        until: Timestamp,
    ) -> Option<Record> {
        let journal = self.0.journal.get()?;
        let record = Record::new([(OWNER, owner), (SEALED, sealed)], at, until);
        self.0.open.lock().ignore_poison().insert(record.clone(), true);
        let number = journal.append(record.clone());
        if let Err(error) = journal.wait(number).await {
            tracing::warn!(%error, "Could not keep a pending revocation; a restart would lose it.");
        }
        Some(record)
    }

    fn remove(&self, record: &Record, now: Timestamp) {
        let was_open = self.0.open.lock().ignore_poison().remove(record).is_some();
        if let Some(journal) = self.0.journal.get().filter(|_| was_open) {
            // If that is lost, the next process sends the revocation once more.
            let _ = journal.append(record.withdrawal(now));
        }
    }

    fn give_back(&self, record: &Record) {
        if let Some(is_taken) = self.0.open.lock().ignore_poison().get_mut(record) {
            *is_taken = false;
        }
    }

    fn has(&self, record: &Record) -> bool {
        self.0.open.lock().ignore_poison().contains_key(record)
    }

    /// Takes on up to `max` records of `owner` that this process has not taken on; returns their sealed texts.
    fn take(&self, owner: &str, max: usize, now: Timestamp) -> Vec<(Record, String)> {
        let mut open = self.0.open.lock().ignore_poison();
        open.retain(|record, _| now < record.until);
        let left = open.iter_mut().filter(|(_, is_taken)| !**is_taken);
        let of_owner = left.filter_map(|(record, is_taken)| {
            let sealed = sealed_of(record, owner)?;
            *is_taken = true;
            Some((record.clone(), sealed))
        });
        of_owner.take(max).collect()
    }
}

impl JournalState {
    /// Applies records of other processes that share the directory.
    fn apply(&self, records: &[Record]) {
        let mut open = self.open.lock().ignore_poison();
        for record in records.iter().filter(|record| !record.is_withdrawal()) {
            open.entry(record.clone()).or_insert(false);
        }
        let withdrawn = Withdrawals::of(records);
        open.retain(|record, _| !withdrawn.contain(record));
    }
}

/// Returns the sealed text of a record of `owner`; `None` for other records.
fn sealed_of(record: &Record, owner: &str) -> Option<String> {
    let mut fields = record.fields();
    fields.next().filter(|(name, value)| name == OWNER && value == owner)?;
    fields.next().filter(|(name, _)| name == SEALED).map(|(_, sealed)| sealed)
}

const REVOCATIONS: Kind = Kind {
    name: "revocations",
    title: "issuer_revocations",
    max_records: 10_000,
    loss: "tokens of sessions that ended stay valid at the issuer",
};
const OWNER: &str = "session";
const SEALED: &str = "sealed";

const TOKENS: u8 = b't';
const SESSION: u8 = b's';

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::secret::Secret;
    use crate::issuer::Tokens;
    use crate::issuer::tests::mock_issuer::access_token_alone;

    const NOON: Timestamp = Timestamp::from_secs(1_700_049_600);

    #[tokio::test]
    async fn a_later_process_takes_each_pending_revocation_once() {
        let directory = tempfile::tempdir().unwrap();
        let before = pending_in(&directory, 7);
        let state = state();
        before.add(&PendingRevocation::Tokens(Box::new(state.clone())), later()).await.unwrap();
        let done = before.add(&PendingRevocation::Session(state.id), later()).await.unwrap();
        before.remove(done).await;
        before.journal.0.journal.get().unwrap().wait_for_all().await.unwrap();
        assert_eq!(before.take(10).await.len(), 0, "its own are under way");
        drop(before);

        let after = pending_in(&directory, 7);

        let taken = after.take(10).await;
        let [(entry, PendingRevocation::Tokens(taken))] = &taken[..] else { panic!("{taken:?}") };
        assert_eq!(taken.access_token, state.access_token);
        assert_eq!(taken.refresh_token, state.refresh_token);
        assert_eq!(taken.id_token, None, "it is not revoked");
        assert!(after.is_open(entry));
        assert_eq!(after.take(10).await.len(), 0);
        after.remove(entry.clone()).await;
        after.journal.0.journal.get().unwrap().wait_for_all().await.unwrap();
        drop(after);
        assert_eq!(pending_in(&directory, 7).take(10).await.len(), 0);
    }

    #[tokio::test]
    async fn a_pending_revocation_is_sealed_and_opens_with_the_key_of_its_session_alone() {
        let directory = tempfile::tempdir().unwrap();
        let before = pending_in(&directory, 7);
        before.add(&PendingRevocation::Tokens(Box::new(state())), later()).await.unwrap();
        drop(before);
        for file in std::fs::read_dir(directory.path()).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            assert!(!text.contains("access") && !text.contains("refresh"), "{text}");
        }

        assert_eq!(pending_in(&directory, 8).take(10).await.len(), 0, "a key that was removed");
        let other = with_seal(&directory, 7, b"of another client");
        assert_eq!(other.take(10).await.len(), 0);
        drop(other);
        assert_eq!(pending_in(&directory, 7).take(10).await.len(), 1);
    }

    #[tokio::test]
    async fn a_pending_revocation_ends_with_its_tokens() {
        let directory = tempfile::tempdir().unwrap();
        let before = pending_in(&directory, 7);
        before.add(&PendingRevocation::Tokens(Box::new(state())), NOON).await.unwrap();
        drop(before);

        assert_eq!(pending_in(&directory, 7).take(10).await.len(), 0);
    }

    fn pending_in(directory: &tempfile::TempDir, key: u8) -> PendingRevocations {
        with_seal(directory, key, b"web")
    }

    fn with_seal(directory: &tempfile::TempDir, key: u8, seal: &[u8]) -> PendingRevocations {
        let (clock, journal) = (Clock::manual(NOON), RevocationJournal::default());
        journal.persist_in(&Directory::at(directory.path()), clock.clone()).unwrap();
        let ring = Arc::new(SealingKeys::new(&[Secret::new([key; 32])]));
        PendingRevocations::new(seal, ring, journal, None, clock)
    }

    fn later() -> Timestamp {
        NOON.plus_secs(600)
    }

    fn state() -> SessionState {
        let tokens = Tokens {
            refresh_token: Some("refresh".into()),
            id_token: Some("identity".into()),
            ..access_token_alone(NOON)
        };
        SessionState::begin(tokens, NOON)
    }
}
