//! Endings: visits that are over although their cookies would still open.
//!
//! A sealed cookie cannot be taken back. So the gateway remembers which visits
//! were ended before their time, as long as such a cookie could live: by
//! logout, by a new login in their place, by the issuer (back-channel logout
//! names a session or a person there). A generation counts the endings, so
//! that a request whose visit was looked at lately pays one atomic load.
//!
//! An ending that begins here is a revocation like any other: streams, other
//! sessions' caches and other gateways are told by [`Revocations`].

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::sync::Arc;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::base::clock::Timestamp;
use crate::disk::WriteFailed;
use crate::session::store::loaded::LoadedSession;
use crate::token::{Principal, Revocation, RevocationList, RevocationTarget};

/// Which visits are over; bounded.
pub(crate) struct EndedSessions {
    generation: AtomicU64,
    /// By the name that opens nothing.
    visits: Cache<Arc<str>, EndReason>,
    /// Visits that began at the issuer's session, or for the person, not after that moment.
    at_issuer: Cache<SessionName, Timestamp>,
    revocations: RevocationList,
}

/// Why a visit is over before its time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum EndReason {
    /// Its person, its issuer or its age ended it: the cookies are to go.
    Over,
    /// Another login took its place: the browser's cookies are the new visit's.
    Replaced,
}

/// What an issuer calls whom it logs out.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum SessionName {
    /// `sid`: one session at the issuer.
    Session(Arc<str>),
    /// `sub`: everything of one person.
    Subject(Arc<str>),
    /// `sub` without `sid`: what of one person belongs to no session at the issuer.
    Sessionless(Arc<str>),
}

impl SessionName {
    /// All that an issuer may call one that it calls so.
    pub(crate) fn all(session: Option<Arc<str>>, subject: Option<Arc<str>>) -> Vec<Self> {
        let sessionless = subject.clone().filter(|_| session.is_none()).map(Self::Sessionless);
        let names = [session.map(Self::Session), subject.map(Self::Subject), sessionless];
        names.into_iter().flatten().collect()
    }
}

impl EndedSessions {
    /// Nothing is over yet; what will be is told to `revocations`.
    pub(crate) fn new(revocations: RevocationList) -> Self {
        let generation = AtomicU64::new(0);
        Self { generation, visits: bounded(), at_issuer: bounded(), revocations }
    }

    /// Ends one visit, and tells everybody. Whether it was not over already.
    pub(crate) fn end(&self, opened: &LoadedSession, ending: EndReason) -> bool {
        let name = &opened.name;
        let fresh = self.record(name, ending);
        if fresh {
            let what = match ending {
                EndReason::Over => RevocationTarget::Visit,
                EndReason::Replaced => RevocationTarget::Replaced,
            };
            self.revocations
                .revoke(Revocation { issuer: None, what: what(Arc::clone(name)) }, None);
        }
        fresh
    }

    /// Tells all who listen, this memory too; says how much has ended by it.
    pub(crate) fn revoke(&self, revocation: Revocation) -> usize {
        self.revocations.revoke(revocation, None)
    }

    /// The same of what is from before `at`.
    pub(crate) fn revoke_before(&self, revocation: Revocation, at: Timestamp) -> usize {
        self.revocations.revoke_before(revocation, at, None)
    }

    /// Whether this is the first time that the logout token `id` comes to `by`.
    pub(crate) fn heed(&self, by: &Arc<str>, id: &Arc<str>) -> bool {
        self.revocations.apply_local(by, id)
    }

    /// Nothing came of the logout token `id`: it may come again.
    pub(crate) fn heed_again(&self, by: &Arc<str>, id: &Arc<str>) {
        self.revocations.restore(by, id);
    }

    /// The visit called `name`, which is not known here, is over; it is told when its tokens are in hand. Until then the
    /// next process has to know it.
    pub(crate) fn owe(&self, name: &Arc<str>) {
        let what = RevocationTarget::Visit(Arc::clone(name));
        self.revocations.keep_for_later(Revocation { issuer: None, what });
        self.record(name, EndReason::Over);
    }

    /// One visit is over, as everybody knows. Whether it was not over already.
    pub(crate) fn record(&self, name: &Arc<str>, ending: EndReason) -> bool {
        let fresh = self.visits.entry(Arc::clone(name)).or_insert(ending).is_fresh();
        if fresh {
            self.generation.fetch_add(1, Ordering::Release);
        }
        fresh
    }

    /// Every visit of `named` is over that began until `at`.
    pub(crate) fn note_at_issuer(&self, named: SessionName, at: Timestamp) {
        self.at_issuer.entry(named).and_upsert_with(|known| match known {
            Some(known) => (*known.value()).max(at),
            None => at,
        });
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Waits until all that has ended so far stays so over a restart.
    pub(crate) async fn kept(&self) -> Result<(), WriteFailed> {
        self.revocations.kept().await
    }

    /// How many endings there have been: as long as it stays, no more visits are over.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether, and why, the visit `name` is over, that began at `since`, with what its issuer calls it.
    pub(crate) fn find<'a>(
        &self,
        name: &str,
        since: Timestamp,
        names: impl IntoIterator<Item = &'a SessionName>,
    ) -> Option<EndReason> {
        self.visits.get(name).or_else(|| {
            let over = |named| self.at_issuer.get(named).is_some_and(|until| since <= until);
            names.into_iter().any(over).then_some(EndReason::Over)
        })
    }

    /// Whether another login took the place of the visit `name`.
    pub(crate) fn is_replaced(&self, name: &str) -> bool {
        self.visits.get(name) == Some(EndReason::Replaced)
    }

    /// Whether a visit that began at `since` is over by what its verified token calls it.
    pub(crate) fn matches(&self, principal: &Principal, since: Timestamp) -> bool {
        let Principal { session, subject, .. } = principal;
        let names = SessionName::all(session.clone(), subject.clone());
        self.generation() > 0 && self.find("", since, &names).is_some()
    }
}

impl fmt::Debug for EndedSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endings").field("generation", &self.generation()).finish_non_exhaustive()
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
/// Longer than any session can be told to last.
const RETENTION: Duration = Duration::from_secs(366 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Clock;
    use crate::issuer::Tokens;
    use crate::session::settings::Forward;
    use crate::session::store::state::SessionState;
    use crate::token::RevocationFeed;
    use crate::token::revocation::list::RevocationListener;

    const NOON: Timestamp = Timestamp::from_secs(1_700_049_600);

    #[test]
    fn a_visit_ends_once_and_for_its_first_reason() {
        let (endings, revocations) = endings();
        let mut news = revocations.listen();
        let one = opened(NOON);

        assert!(endings.end(&one, EndReason::Replaced));
        assert!(!endings.end(&one, EndReason::Over));

        assert_eq!(endings.find(&one.name, NOON, []), Some(EndReason::Replaced));
        assert_eq!(endings.find("other", NOON, []), None);
        let what = RevocationTarget::Replaced(Arc::clone(&one.name));
        assert_eq!(news.try_recv().unwrap().revocation.what, what);
        assert!(news.try_recv().is_err(), "it is told once");
    }

    #[test]
    fn an_issuer_ends_what_had_begun_but_not_the_next_login() {
        let (endings, _) = endings();
        let alice = SessionName::Subject("alice".into());
        endings.note_at_issuer(alice.clone(), NOON);
        // News that come late take nothing back.
        endings.note_at_issuer(alice.clone(), NOON.minus(Duration::from_secs(60)));

        let find = |since| endings.find("one", since, [&alice]);
        assert_eq!(find(NOON), Some(EndReason::Over));
        assert_eq!(find(NOON.plus_secs(1)), None);
        assert_eq!(endings.find("one", NOON, [&SessionName::Session("alice".into())]), None);
    }

    #[test]
    fn whom_an_issuer_gives_no_session_is_ended_by_name_and_others_are_not() {
        let (endings, _) = endings();
        let alice = || Some(Arc::from("alice"));
        endings.note_at_issuer(SessionName::Sessionless("alice".into()), NOON);

        let find = |names: Vec<SessionName>| endings.find("one", NOON, &names);
        assert_eq!(find(SessionName::all(None, alice())), Some(EndReason::Over));
        assert_eq!(find(SessionName::all(Some("s1".into()), alice())), None);
        assert_eq!(find(SessionName::all(None, Some("bob".into()))), None);
    }

    #[test]
    fn what_a_process_before_has_ended_is_over_from_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let directory = crate::disk::Directory::at(directory.path());
        let (before, revocations) = endings();
        revocations.persist_in(&directory).unwrap();
        let (named, owed) = (opened(NOON), opened(NOON));
        assert!(before.end(&named, EndReason::Replaced));
        before.owe(&owed.name);
        assert_eq!(revocations.active().len(), 1, "what is owed is told later");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(before.kept()).unwrap();

        let (after, revocations) = endings();
        revocations.persist_in(&directory).unwrap();
        let listening = Arc::new(Hearing(after));
        let told: Arc<dyn RevocationListener> = Arc::clone(&listening) as _;
        revocations.tell_all(&told);

        assert_eq!(listening.0.find(&named.name, NOON, []), Some(EndReason::Replaced));
        assert_eq!(listening.0.find(&owed.name, NOON, []), Some(EndReason::Over));
        assert_eq!(revocations.active().len(), 2, "gateways are told of both");
    }

    /// As a session's memory hears of what has ended.
    struct Hearing(EndedSessions);

    impl RevocationListener for Hearing {
        fn forget(&self, news: &RevocationFeed, _: &dyn Fn(&Principal) -> bool) -> usize {
            match &news.revocation.what {
                RevocationTarget::Visit(name) => usize::from(self.0.record(name, EndReason::Over)),
                RevocationTarget::Replaced(name) => {
                    usize::from(self.0.record(name, EndReason::Replaced))
                }
                _ => 0,
            }
        }
    }

    #[test]
    fn every_ending_is_noticed_by_the_generation() {
        let (endings, _) = endings();
        let before = endings.generation();
        endings.end(&opened(NOON), EndReason::Over);
        let between = endings.generation();
        endings.note_at_issuer(SessionName::Session("a".into()), NOON);

        assert!(before < between && between < endings.generation());
    }

    fn opened(since: Timestamp) -> LoadedSession {
        let tokens = Tokens {
            access_token: "access".into(),
            refresh_token: None,
            id_token: None,
            expires_in: None,
            refresh_expires_in: None,
            scope: None,
            received: NOON,
        };
        LoadedSession::new(
            SessionState { since, ..SessionState::begin(tokens, NOON) },
            Forward::None,
        )
    }

    fn endings() -> (EndedSessions, RevocationList) {
        let revocations = RevocationList::new(Clock::manual(NOON));
        (EndedSessions::new(revocations.clone()), revocations)
    }
}
