//! Sessions that have ended although their cookies would still open.
//!
//! A sealed cookie cannot be taken back. So the gateway records which sessions
//! were ended before their time, for as long as such a cookie could be valid:
//! by logout, by a new login in the same browser, by the issuer (back-channel
//! logout names a session or a subject there). A generation counts the entries,
//! so that a request whose session was checked recently pays one atomic load.
//!
//! An end recorded here is published as a revocation: [`RevocationList`]
//! notifies streams, the caches of other sessions, and other instances.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::sync::Arc;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::base::clock::Timestamp;
use crate::disk::WriteFailed;
use crate::token::revocation::publication::NotLasting;
use crate::token::{Principal, Revocation, RevocationList, RevocationTarget, TokenHolder};

/// The sessions that have ended before their time; bounded.
pub(crate) struct EndedSessions {
    generation: AtomicU64,
    /// By the session's alias.
    by_alias: Cache<Arc<str>, EndReason>,
    /// By the issuer's name: sessions that began no later than that moment have ended.
    at_issuer: Cache<(Tenant, SessionName), Timestamp>,
    revocations: RevocationList,
}

/// The reason why a session ended before its time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum EndReason {
    /// Ended by its user, its issuer or its age: the cookies are to be cleared.
    Over,
    /// Replaced by another login: the browser's cookies are those of the new session.
    Replaced,
}

/// The name that an issuer uses for the sessions it ends.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum SessionName {
    /// `sid`: one session at the issuer.
    Session(Arc<str>),
    /// `sub`: all sessions of one subject.
    Subject(Arc<str>),
    /// `sub` without `sid`: the sessions of one subject that have no `sid`.
    Sessionless(Arc<str>),
}

/// The tenant whose sessions an issuer ends, where one issuer has several.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Tenant {
    /// All of them, or the only one.
    All,
    /// The one with this `iss`.
    Named(Arc<str>),
    /// Any, for sessions without an ID token that would name theirs: they end with each.
    Unknown,
}

impl SessionName {
    /// Whether it is a `sid`.
    pub(crate) const fn is_sid(&self) -> bool {
        matches!(self, Self::Session(_))
    }

    /// Returns all names that cover a session whose tokens have these `sid` and `sub`.
    pub(crate) fn all(
        sids: impl IntoIterator<Item = Arc<str>>,
        subjects: impl IntoIterator<Item = Arc<str>>,
    ) -> Vec<Self> {
        let mut names: Vec<_> = sids.into_iter().map(Self::Session).collect();
        let has_sid = !names.is_empty();
        for subject in subjects {
            if !has_sid {
                names.push(Self::Sessionless(Arc::clone(&subject)));
            }
            names.push(Self::Subject(subject));
        }
        names
    }
}

impl EndedSessions {
    /// Returns an empty record that publishes new entries to `revocations`.
    pub(crate) fn new(revocations: RevocationList) -> Self {
        let generation = AtomicU64::new(0);
        Self { generation, by_alias: bounded(), at_issuer: bounded(), revocations }
    }

    /// Ends one session and publishes that. Returns whether it had not ended before.
    pub(crate) fn end(&self, name: &Arc<str>, reason: EndReason) -> bool {
        let is_new = self.record(name, reason);
        if is_new {
            let what = match reason {
                EndReason::Over => RevocationTarget::GatewaySession,
                EndReason::Replaced => RevocationTarget::Replaced,
            };
            self.revocations
                .revoke(Revocation { issuer: None, what: what(Arc::clone(name)) }, None);
        }
        is_new
    }

    /// Publishes a revocation to all listeners, including this record; returns the number of entries it ended.
    pub(crate) fn revoke(&self, revocation: Revocation) -> usize {
        self.revocations.revoke(revocation, None)
    }

    /// Publishes a revocation of everything issued before `at`.
    pub(crate) fn revoke_before(&self, revocation: Revocation, at: Timestamp) -> usize {
        self.revocations.revoke_before(revocation, at, None)
    }

    /// Accepts the logout token `id` for `by`; returns `false` if it was used before.
    pub(crate) fn accept_logout_token(&self, by: &Arc<str>, id: &Arc<str>) -> bool {
        self.revocations.record_logout_token(by, id)
    }

    /// Lets the logout token `id` be used again, because it had no effect.
    pub(crate) fn restore_logout_token(&self, by: &Arc<str>, id: &Arc<str>) {
        self.revocations.restore_logout_token(by, id);
    }

    /// Records that the session `name` has ended, which this instance has not loaded. It is published once its tokens
    /// could be read; until then the record is kept over a restart.
    pub(crate) fn record_pending(&self, name: &Arc<str>) {
        let what = RevocationTarget::GatewaySession(Arc::clone(name));
        self.revocations.persist(Revocation { issuer: None, what });
        self.record(name, EndReason::Over);
    }

    /// Records a published end of one session. Returns whether it had not ended before.
    pub(crate) fn record(&self, name: &Arc<str>, reason: EndReason) -> bool {
        let is_new = self.by_alias.entry(Arc::clone(name)).or_insert(reason).is_fresh();
        if is_new {
            self.generation.fetch_add(1, Ordering::Release);
        }
        is_new
    }

    /// Records that every session of `named` which began until `at` has ended: of one `tenant`, by its `iss`, or of all.
    pub(crate) fn record_at_issuer(
        &self,
        named: SessionName,
        tenant: Option<&Arc<str>>,
        at: Timestamp,
    ) {
        let tenants = match tenant {
            Some(iss) => vec![Tenant::Named(Arc::clone(iss)), Tenant::Unknown],
            None => vec![Tenant::All],
        };
        for tenant in tenants {
            self.at_issuer.entry((tenant, named.clone())).and_upsert_with(|known| match known {
                Some(known) => (*known.value()).max(at),
                None => at,
            });
        }
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Waits until the end of this process undoes no entry so far.
    pub(crate) async fn lasting(&self) -> Result<(), NotLasting> {
        self.revocations.lasting().await
    }

    /// Whether entries are kept over a restart.
    pub(crate) fn is_kept(&self) -> bool {
        self.revocations.is_kept()
    }

    /// Waits until all entries so far are saved on disk.
    pub(crate) async fn saved(&self) -> Result<(), WriteFailed> {
        self.revocations.kept().await
    }

    /// Returns the number of entries: while it is unchanged, no further session has ended.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Returns why the session `name` has ended that began at `since` and has these names at the issuer, or `None`. `iss` is
    /// that of its ID token, if it has one.
    pub(crate) fn find<'a>(
        &self,
        name: &str,
        since: Timestamp,
        names: impl IntoIterator<Item = &'a SessionName>,
        iss: Option<&Arc<str>>,
    ) -> Option<EndReason> {
        self.by_alias.get(name).or_else(|| {
            let own = iss.map_or(Tenant::Unknown, |iss| Tenant::Named(Arc::clone(iss)));
            let over = |named: &SessionName| {
                [&Tenant::All, &own].into_iter().any(|tenant| {
                    let until = self.at_issuer.get(&(tenant.clone(), named.clone()));
                    until.is_some_and(|until| since <= until)
                })
            };
            names.into_iter().any(over).then_some(EndReason::Over)
        })
    }

    /// Whether another login has replaced the session `name`.
    pub(crate) fn is_replaced(&self, name: &str) -> bool {
        self.by_alias.get(name) == Some(EndReason::Replaced)
    }

    /// Whether the access token of a session, which the gateway has not verified, has been revoked.
    pub(crate) fn is_revoked(&self, principal: &Principal) -> bool {
        self.revocations.is_revoked(principal, TokenHolder::Gateway)
    }

    /// Whether a session that began at `since` has ended by the claims of its verified access token. With `has_sid` another
    /// one of its tokens has a `sid`; `iss` as for [`EndedSessions::find`].
    pub(crate) fn matches(
        &self,
        principal: &Principal,
        since: Timestamp,
        has_sid: bool,
        iss: Option<&Arc<str>>,
    ) -> bool {
        let Principal { session, subject, .. } = principal;
        let mut names = SessionName::all(session.clone(), subject.clone());
        names.retain(|name| !(has_sid && matches!(name, SessionName::Sessionless(_))));
        self.find("", since, &names, iss).is_some()
    }
}

impl fmt::Debug for EndedSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndedSessions")
            .field("generation", &self.generation())
            .finish_non_exhaustive()
    }
}

pub(crate) fn bounded<K, V>() -> Cache<K, V>
where
    K: core::hash::Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Cache::builder()
        .max_capacity(MAX_ENDED_SESSIONS)
        .eviction_policy(EvictionPolicy::lru())
        .time_to_live(RETENTION)
        .build()
}

const MAX_ENDED_SESSIONS: u64 = 200_000;
/// Longer than any configurable lifetime of a session.
const RETENTION: Duration = Duration::from_secs(366 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Clock;
    use crate::issuer::tests::mock_issuer::access_token_alone;
    use crate::session::settings::ForwardedSessionToken;
    use crate::session::store::loaded_session::LoadedSession;
    use crate::session::store::state::SessionState;
    use crate::token::RevocationEvent;
    use crate::token::revocation::event::RevocationListener;

    const NOON: Timestamp = Timestamp::from_secs(1_700_049_600);

    #[test]
    fn a_session_ends_once_and_for_its_first_reason() {
        let (ended, revocations) = ended();
        let mut events = revocations.listen();
        let one = loaded(NOON);

        assert!(ended.end(&one.name, EndReason::Replaced));
        assert!(!ended.end(&one.name, EndReason::Over));

        assert_eq!(ended.find(&one.name, NOON, [], None), Some(EndReason::Replaced));
        assert_eq!(ended.find("other", NOON, [], None), None);
        let what = RevocationTarget::Replaced(Arc::clone(&one.name));
        assert_eq!(events.try_recv().unwrap().revocation.what, what);
        assert!(events.try_recv().is_err(), "published once");
    }

    #[test]
    fn an_issuer_ends_earlier_sessions_but_not_the_next_login() {
        let (ended, _) = ended();
        let alice = SessionName::Subject("alice".into());
        ended.record_at_issuer(alice.clone(), None, NOON);
        // A late event with an earlier time changes nothing.
        ended.record_at_issuer(alice.clone(), None, NOON.minus(Duration::from_secs(60)));

        let find = |since| ended.find("one", since, [&alice], None);
        assert_eq!(find(NOON), Some(EndReason::Over));
        assert_eq!(find(NOON.plus_secs(1)), None);
        let sid = SessionName::Session("alice".into());
        assert_eq!(ended.find("one", NOON, [&sid], None), None);
    }

    #[test]
    fn a_tenant_ends_its_own_sessions_and_those_whose_tenant_is_unknown() {
        let (ended, _) = ended();
        let alice = SessionName::Subject("alice".into());
        let [one, other] = ["https://auth.example/t1", "https://auth.example/t2"].map(Arc::from);
        ended.record_at_issuer(alice.clone(), Some(&one), NOON);

        let find = |iss| ended.find("a", NOON, [&alice], iss);
        assert_eq!(find(Some(&one)), Some(EndReason::Over));
        assert_eq!(find(None), Some(EndReason::Over));
        assert_eq!(find(Some(&other)), None);
        ended.record_at_issuer(alice.clone(), None, NOON);
        assert_eq!(find(Some(&other)), Some(EndReason::Over), "the issuer as a whole");
    }

    #[test]
    fn sessionless_ends_only_sessions_without_sid() {
        let (ended, _) = ended();
        let alice = || Some(Arc::from("alice"));
        ended.record_at_issuer(SessionName::Sessionless("alice".into()), None, NOON);

        let find = |names: Vec<SessionName>| ended.find("one", NOON, &names, None);
        assert_eq!(find(SessionName::all(None, alice())), Some(EndReason::Over));
        assert_eq!(find(SessionName::all(Some("s1".into()), alice())), None);
        assert_eq!(find(SessionName::all(None, Some("bob".into()))), None);
    }

    #[test]
    fn sessions_ended_by_an_earlier_process_are_known_from_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let directory = crate::disk::Directory::at(directory.path());
        let (before, revocations) = ended();
        revocations.persist_in(&directory).unwrap();
        let (named, owed) = (loaded(NOON), loaded(NOON));
        assert!(before.end(&named.name, EndReason::Replaced));
        before.record_pending(&owed.name);
        assert_eq!(revocations.active().len(), 1, "a pending end is published later");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(before.saved()).unwrap();

        let (after, revocations) = ended();
        revocations.persist_in(&directory).unwrap();
        let listening = Arc::new(Hearing(after));
        let listener: Arc<dyn RevocationListener> = Arc::clone(&listening) as _;
        revocations.subscribe_with_backlog(&listener);

        assert_eq!(listening.0.find(&named.name, NOON, [], None), Some(EndReason::Replaced));
        assert_eq!(listening.0.find(&owed.name, NOON, [], None), Some(EndReason::Over));
        assert_eq!(revocations.active().len(), 2, "other instances learn of both");
    }

    /// Applies revocations as the state of a session does.
    struct Hearing(EndedSessions);

    impl RevocationListener for Hearing {
        fn forget(&self, events: &RevocationEvent, _: &dyn Fn(&Principal) -> bool) -> usize {
            match &events.revocation.what {
                RevocationTarget::GatewaySession(name) => {
                    usize::from(self.0.record(name, EndReason::Over))
                }
                RevocationTarget::Replaced(name) => {
                    usize::from(self.0.record(name, EndReason::Replaced))
                }
                _ => 0,
            }
        }
    }

    #[test]
    fn every_entry_changes_the_generation() {
        let (ended, _) = ended();
        let before = ended.generation();
        ended.end(&loaded(NOON).name, EndReason::Over);
        let between = ended.generation();
        ended.record_at_issuer(SessionName::Session("a".into()), None, NOON);

        assert!(before < between && between < ended.generation());
    }

    fn loaded(since: Timestamp) -> LoadedSession {
        let tokens = access_token_alone(NOON);
        LoadedSession::new(
            SessionState { since, ..SessionState::begin(tokens, NOON) },
            ForwardedSessionToken::None,
        )
    }

    fn ended() -> (EndedSessions, RevocationList) {
        let revocations = RevocationList::new(Clock::manual(NOON));
        (EndedSessions::new(revocations.clone()), revocations)
    }
}
