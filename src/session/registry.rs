//! Session state that outlives a reload: counts, ended sessions, sessions on
//! the server, and recent refresh results.

use core::ops::Deref;
use core::time::Duration;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use tokio::runtime::Handle;

use super::cookies::seal::SealingKeys;
use super::login::code_redemptions::CodeRedemptions;
use super::login::deferred_forms::DeferredForms;
use super::login::issuer_observations::IssuerObservations;
use super::login::unseen_sessions::UnseenSessions;
use super::logout::ended_sessions::{EndReason, EndedSessions, SessionName};
use super::logout::pending_revocations::RevocationJournal;
use super::logout::session_watch::SessionWatchers;
use super::logout::token_revocation::RepeatedRevocations;
use super::logout::unseen_logouts::UnseenLogouts;
use super::refresh::refresh_events::{self, MalformedEvent};
use super::refresh::refresh_results::RefreshResults;
use super::settings::{self, Settings, TokenStorage};
use super::store::redis::SharedSessions;
use super::store::server_side::{MemoryStore as Visits, Store};
use crate::base::clock::{Clock, Timestamp};
use crate::base::in_flight::InFlightCalls;
use crate::base::weak_map::WeakMap;
use crate::disk::{Directory, OpenError};
use crate::issuer::tenant_template::{is_expansion, placeholder};
use crate::password::LoginThrottles;
use crate::redis::Redis;
use crate::token::revocation::event::RevocationListener;
use crate::token::{Principal, Revocation, RevocationEvent, RevocationList, RevocationTarget};

/// The retained state of all sessions; one per process.
#[derive(Debug)]
pub struct SessionRegistry {
    revocations: RevocationList,
    retained: Arc<WeakMap<Key, RetainedSessions>>,
    /// Data learned from the logins of one client.
    observations: WeakMap<ClientKey, IssuerObservations>,
    throttles: Arc<LoginThrottles>,
    redis: ArcSwapOption<Redis>,
    under_way: InFlightCalls,
    pending_revocations: RevocationJournal,
}

impl SessionRegistry {
    /// Returns an empty registry. Ended sessions are published to `revocations`, and received from there.
    /// Failed logins are counted in `throttles`.
    pub fn new(revocations: RevocationList, throttles: Arc<LoginThrottles>) -> Self {
        let redis = ArcSwapOption::empty();
        let (retained, observations, under_way, pending_revocations) = Default::default();
        Self {
            revocations,
            retained,
            observations,
            throttles,
            redis,
            under_way,
            pending_revocations,
        }
    }

    /// Waits until no call is under way whose loss would end a session, but no longer than `timeout`.
    /// Returns the number of calls left.
    pub async fn drain(&self, timeout: Duration) -> usize {
        self.under_way.all_ended(timeout).await
    }

    /// Keeps in `directory` the revocations that are yet to be sent to issuers, and loads those of earlier processes.
    ///
    /// # Errors
    ///
    /// `OpenError` if the journal cannot be read.
    pub(crate) fn persist_in(&self, directory: &Directory, clock: Clock) -> Result<(), OpenError> {
        self.pending_revocations.persist_in(directory, clock)
    }

    /// Returns the journal of revocations that are yet to be sent to issuers.
    pub(super) fn pending_revocations(&self) -> RevocationJournal {
        self.pending_revocations.clone()
    }

    /// Returns the counter of calls whose loss would end a session.
    pub(super) fn under_way(&self) -> InFlightCalls {
        self.under_way.clone()
    }

    /// Shares sessions created from now on with other instances, in `redis`.
    pub fn share(&self, redis: Option<Arc<Redis>>) {
        self.redis.store(redis);
    }

    /// Returns the Redis in which sessions are shared.
    pub(super) fn redis(&self) -> Option<Arc<Redis>> {
        self.redis.load_full()
    }

    /// Returns the receiver of refreshes at other instances.
    pub fn renewals(&self) -> RefreshEvents {
        RefreshEvents::of(Arc::clone(&self.retained))
    }

    /// Returns the retained state of the session that `settings` describe.
    pub(super) fn retained(
        &self,
        settings: &Settings,
        issuer: &Arc<str>,
        control: &Handle,
    ) -> Arc<RetainedSessions> {
        self.revocations.retain_at_least(settings.absolute_timeout);
        let key = key(settings, issuer);
        let (_, name, identifier, client) = key.clone();
        let logins = || {
            let of_client = (name, identifier, client);
            self.observations.get_or_insert_with(of_client, IssuerObservations::new)
        };
        self.retained.get_or_insert_with(key, || {
            let ending = Arc::new(EndedState {
                issuer: Arc::clone(&settings.issuer),
                identifier: Arc::clone(issuer),
                results: Arc::new(RefreshResults::new(control.clone(), self.under_way.clone())),
                ended: Arc::new(EndedSessions::new(self.revocations.clone())),
                watchers: Arc::default(),
                logins: logins(),
                repeats: Arc::default(),
                unseen_logouts: Arc::default(),
                forms: DeferredForms::new(),
                codes: CodeRedemptions::new(control.clone(), self.under_way.clone()),
                sessions: OnceLock::new(),
            });
            let listener: Arc<dyn RevocationListener> = Arc::clone(&ending) as _;
            self.revocations.subscribe_with_backlog(&listener);
            let by = [&*settings.name, &*settings.issuer, &*settings.client.id].join("\0").into();
            RetainedSessions {
                ring: OnceLock::new(),
                by,
                unseen_sessions: UnseenSessions::new(),
                ending,
            }
        })
    }

    /// Returns the counts of failed logins.
    pub(super) fn throttles(&self) -> &LoginThrottles {
        &self.throttles
    }
}

/// The state of one session that is retained while a configuration uses it.
#[derive(Debug)]
pub(super) struct RetainedSessions {
    ring: OnceLock<Arc<SealingKeys>>,
    /// The namespace of used logout tokens: session, issuer and client.
    pub(super) by: Arc<str>,
    /// Sessions whose browsers do not show them when their next login ends.
    pub(super) unseen_sessions: UnseenSessions,
    pub(super) ending: Arc<EndedState>,
}

/// The part of the state that revocations apply to.
#[derive(Debug)]
pub(super) struct EndedState {
    issuer: Arc<str>,
    /// The `iss` of its tokens; with tenants a template.
    identifier: Arc<str>,
    pub(super) results: Arc<RefreshResults>,
    pub(super) ended: Arc<EndedSessions>,
    pub(super) watchers: Arc<SessionWatchers>,
    /// Data about the issuer learned from the logins of all sessions of this client.
    pub(super) logins: Arc<IssuerObservations>,
    /// Revocations at the issuer that are to be repeated.
    pub(super) repeats: Arc<RepeatedRevocations>,
    /// Logouts of sessions that only Redis has, until it responds.
    pub(super) unseen_logouts: Arc<UnseenLogouts>,
    /// Forms whose users have to log in again.
    pub(super) forms: DeferredForms,
    /// Authorization codes that are being redeemed, or were a moment ago.
    pub(super) codes: CodeRedemptions,
    sessions: OnceLock<Arc<Visits>>,
}

impl Deref for RetainedSessions {
    type Target = EndedState;

    fn deref(&self) -> &EndedState {
        &self.ending
    }
}

impl EndedState {
    /// Ends, at all instances, the sessions that the issuer names by `what` and that began before `at`, and revokes their
    /// tokens: within the `namespace` in which those names are unique. Returns the number of what has ended.
    pub(super) fn revoke(
        &self,
        namespace: &Arc<str>,
        what: RevocationTarget,
        at: Timestamp,
    ) -> usize {
        let revoke = |issuer: &Arc<str>, what| {
            self.ended.revoke_before(Revocation { issuer: Some(Arc::clone(issuer)), what }, at)
        };
        if *namespace != self.issuer {
            return revoke(namespace, what);
        }
        // The configuration may rename an issuer: cookies, which are bound to its `iss`, outlive that.
        revoke(namespace, what.clone()) + revoke(&self.identifier, what)
    }

    /// Returns the tenant whose sessions are meant by a revocation for `issuer`; `None` means all of them.
    fn tenant<'a>(&self, issuer: Option<&'a Arc<str>>) -> Option<&'a Arc<str>> {
        let has_tenants = placeholder(&self.identifier).is_some();
        issuer
            .filter(|issuer| has_tenants && **issuer != self.issuer && **issuer != self.identifier)
    }

    /// Records the end of one session, which counts as no removed cache entry.
    fn note(&self, name: &Arc<str>, ending: EndReason) -> usize {
        self.ended.record(name, ending);
        self.watchers.end(name);
        0
    }
}

impl RevocationListener for EndedState {
    fn forget(&self, events: &RevocationEvent, _: &dyn Fn(&Principal) -> bool) -> usize {
        let is_own =
            |issuer: &Arc<str>| *issuer == self.issuer || is_expansion(&self.identifier, issuer);
        if !events.revocation.issuer.as_ref().is_none_or(is_own) {
            return 0;
        }
        let named = match &events.revocation.what {
            RevocationTarget::GatewaySession(name) => return self.note(name, EndReason::Over),
            RevocationTarget::Replaced(name) => return self.note(name, EndReason::Replaced),
            RevocationTarget::Session(sid) | RevocationTarget::LoggedOut(sid) => {
                SessionName::Session(Arc::clone(sid))
            }
            RevocationTarget::Subject(subject) => SessionName::Subject(Arc::clone(subject)),
            RevocationTarget::Sessionless(subject) => SessionName::Sessionless(Arc::clone(subject)),
            // Sessions are dated by the gateway's own clock.
            RevocationTarget::ClockAhead(_)
            // Not from sessions.
            | RevocationTarget::Withdrawn(_)
            // Only the access token is revoked: the next request detects it and refreshes the session.
            | RevocationTarget::Id(_)
            | RevocationTarget::Token(_) => return 0,
        };
        let tenant = self.tenant(events.revocation.issuer.as_ref());
        self.ended.record_at_issuer(named, tenant, events.at);
        self.watchers.end_over(&self.ended);
        let kept = self.sessions.get().map_or(0, |sessions| sessions.forget_over(&self.ended));
        kept + self.results.forget_over(&self.ended)
    }
}

impl RetainedSessions {
    /// Returns the keys: the operator's, or a random one that lives as long as this state.
    pub(super) fn ring(&self, settings: &Settings) -> Arc<SealingKeys> {
        if settings.keys.is_empty() {
            Arc::clone(self.ring.get_or_init(|| Arc::new(SealingKeys::new(&[]))))
        } else {
            Arc::new(SealingKeys::new(&settings.keys))
        }
    }

    /// Returns the server-side store, if sessions are stored on the server; with `store: redis`, shared by `sharing`.
    pub(super) fn store(
        &self,
        settings: &Settings,
        sharing: Option<&Arc<SharedSessions>>,
        control: &Handle,
    ) -> Option<Arc<Store>> {
        let TokenStorage::Server(store) = settings.tokens else { return None };
        let sessions = self.sessions.get_or_init(|| Arc::new(Visits::new()));
        sessions.forget_after(settings.idle_timeout);
        let sharing = sharing.filter(|_| store == settings::Store::Redis);
        Some(Arc::new(Store::new(Arc::clone(sessions), sharing.cloned(), control.clone())))
    }
}

/// Session, the issuer's name and identifier, and client: a change of one of these makes another session, so that
/// tokens are never sent to another issuer.
pub(super) type Key = (Arc<str>, Arc<str>, Arc<str>, Arc<str>);

/// The issuer's name and identifier, and client.
type ClientKey = (Arc<str>, Arc<str>, Arc<str>);

fn key(settings: &Settings, identifier: &Arc<str>) -> Key {
    let Settings { name, issuer, client, .. } = settings;
    (Arc::clone(name), Arc::clone(issuer), Arc::clone(identifier), Arc::clone(&client.id))
}

/// Applies refreshes of other instances.
#[derive(Clone, Debug)]
pub struct RefreshEvents(Arc<WeakMap<Key, RetainedSessions>>);

impl RefreshEvents {
    pub(in crate::session) const fn of(retained: Arc<WeakMap<Key, RetainedSessions>>) -> Self {
        Self(retained)
    }

    /// Returns the key of the stream of refreshes.
    pub fn key(redis: &Redis) -> String {
        refresh_events::stream_key(redis)
    }

    /// Applies an entry of that stream.
    ///
    /// # Errors
    ///
    /// [`MalformedEvent`] if the entry is not one that the gateway writes.
    pub fn apply(&self, fields: &[Vec<u8>]) -> Result<(), MalformedEvent> {
        let (name, ends) = refresh_events::read(fields).ok_or(MalformedEvent)?;
        for retained in self.0.values() {
            retained.watchers.renew(name, ends);
            retained.results.apply_event(name, ends);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::*;
    use crate::issuer::{Client, ClientAuth};
    use crate::session::settings::Flow;

    const NOON: Timestamp = Timestamp::from_secs(1_700_049_600);

    #[tokio::test]
    async fn a_tenants_logout_leaves_the_sessions_of_other_tenants() {
        let revocations = RevocationList::new(Clock::manual(NOON));
        let registry = SessionRegistry::new(revocations, Arc::default());
        let client = Client { id: "web".into(), auth: ClientAuth::None };
        let home = Url::parse("https://www.example.com").unwrap();
        let settings = Settings::new("web", "main", client, Flow::Code, home);
        let template = Arc::from("https://auth.example/{tenant}");
        let retained = registry.retained(&settings, &template, &Handle::current());
        let [one, other] = ["https://auth.example/t1", "https://auth.example/t2"].map(Arc::from);
        let alice = SessionName::Subject("alice".into());
        let end = |namespace| {
            retained.revoke(namespace, RevocationTarget::Subject("alice".into()), NOON);
            [&one, &other].map(|iss| retained.ended.find("a", NOON, [&alice], Some(iss)).is_some())
        };

        assert_eq!(end(&one), [true, false]);
        assert_eq!(end(&"main".into()), [true, true], "the issuer as a whole");
    }
}
