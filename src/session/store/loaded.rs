//! A loaded session: its data and what is derived from them once for all of its requests.

use crate::base::lock::IgnorePoison;
use crate::token::received::{bearer, payload, received_principal};
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use std::borrow::Cow;
use std::sync::{Arc, Mutex, OnceLock};

use http::HeaderValue;
use serde_json::{Map, Value};

use super::refresh_origin::RefreshOrigin;
use super::state::SessionState;
use crate::base::clock::Timestamp;
use crate::base::scopes::Scopes;
use crate::session::logout::ended_sessions::{EndReason, EndedSessions, SessionName};
use crate::session::settings::{Forward, Settings};
use crate::token::{IdentityFields, Principal};

/// A session loaded for use, and the values derived from it.
pub(crate) struct LoadedSession {
    pub(crate) state: SessionState,
    /// The `Authorization` field for the upstream: `Bearer …`.
    pub(crate) bearer: Option<HeaderValue>,
    /// The session's alias for limits and the log: cannot be used to open it.
    pub(crate) name: Arc<str>,
    /// The claims of the ID token, empty without one. It came from the token endpoint, over TLS,
    /// and has been sealed since ("OpenID Connect Core" §3.1.3.7, item 6).
    pub(crate) person: OnceLock<Map<String, Value>>,
    received: OnceLock<Arc<Principal>>,
    /// The latest principal whose issuer reported no subject, and the same with the subject of the ID token.
    named: Mutex<Option<[Arc<Principal>; 2]>>,
    /// The names that the issuer uses for the session and its subject.
    names: OnceLock<Vec<SessionName>>,
    /// The text of the cookie that holds this session, once it was written.
    sealed: OnceLock<Box<str>>,
    /// The same session with a later time of last use.
    touched: Mutex<Option<Arc<Self>>>,
    /// The generation of [`EndedSessions`] at which the session had not ended.
    live_generation: AtomicU64,
    /// The time at which these tokens were first written to a browser, in nanoseconds; 0 before that.
    delivered_at: Arc<AtomicU64>,
    /// The refresh that produced these tokens; published to other instances.
    origin: OnceLock<RefreshOrigin>,
    /// Whether a log line has reported that the tokens do not fit into cookies.
    too_large_reported: AtomicBool,
    /// Whether the access token has been verified.
    verified: AtomicBool,
}

impl LoadedSession {
    pub(crate) fn new(state: SessionState, forward: Forward) -> Self {
        let token = match forward {
            Forward::AccessToken => Some(&state.access_token),
            Forward::IdToken => state.id_token.as_ref(),
            Forward::None => None,
        };
        Self {
            bearer: token.and_then(bearer),
            name: state.id.alias().into(),
            state,
            person: OnceLock::new(),
            received: OnceLock::new(),
            named: Mutex::default(),
            names: OnceLock::new(),
            sealed: OnceLock::new(),
            touched: Mutex::default(),
            live_generation: AtomicU64::new(0),
            delivered_at: Arc::default(),
            origin: OnceLock::new(),
            too_large_reported: AtomicBool::new(false),
            verified: AtomicBool::new(false),
        }
    }

    /// Records that these tokens do not fit into cookies; returns whether that is reported for the first time.
    pub(crate) fn report_too_large(&self) -> bool {
        !self.too_large_reported.swap(true, Ordering::Relaxed)
    }

    /// Records that the access token was verified.
    pub(crate) fn note_verified(&self) {
        if !self.was_verified() {
            self.verified.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the access token has been verified.
    pub(crate) fn was_verified(&self) -> bool {
        self.verified.load(Ordering::Relaxed)
    }

    /// Records that these tokens are written to a browser; returns whether that is the first time.
    pub(crate) fn set_delivered(&self, now: Timestamp) -> bool {
        let relaxed = Ordering::Relaxed;
        self.delivered_at.compare_exchange(0, now.as_nanos(), relaxed, relaxed).is_ok()
    }

    /// Records the refresh that produced these tokens.
    pub(crate) fn set_origin(&self, origin: RefreshOrigin) {
        // One refresh token produced them, once.
        let _ = self.origin.set(origin);
    }

    /// Returns the refresh that produced these tokens, if it was published to other instances.
    pub(crate) fn origin(&self) -> Option<&RefreshOrigin> {
        self.origin.get()
    }

    /// Returns the time at which these tokens were first written to a browser.
    pub(crate) fn delivered_at(&self) -> Option<Timestamp> {
        let delivered_at = self.delivered_at.load(Ordering::Relaxed);
        (delivered_at > 0).then(|| Timestamp::from_nanos(delivered_at))
    }

    /// Returns the claims of the ID token.
    pub(crate) fn person(&self) -> &Map<String, Value> {
        self.person
            .get_or_init(|| self.state.id_token.as_ref().and_then(payload).unwrap_or_default())
    }

    /// Returns the principal as reported by the token endpoint, for access tokens
    /// that only the issuer's resource servers can read.
    pub(crate) fn received_principal(&self, settings: &Settings) -> Arc<Principal> {
        let principal = self.received.get_or_init(|| {
            let Settings { issuer, client, scopes, .. } = settings;
            let SessionState { received, ends, scope, .. } = &self.state;
            let scopes = scope.as_ref().map_or_else(|| scopes.clone(), |s| Scopes::parse(s));
            let person = self.person().clone();
            let token = &self.state.access_token;
            let client = &client.id;
            Arc::new(received_principal(token, issuer, client, scopes, person, *received, *ends))
        });
        Arc::clone(principal)
    }

    /// Returns `principal` with the subject of the ID token if it has none: an
    /// introspection response need not have a `sub` (RFC 7662 §2.2).
    pub(crate) fn named(&self, principal: Arc<Principal>) -> Arc<Principal> {
        if principal.subject.is_some() {
            return principal;
        }
        let Some(sub @ Value::String(name)) = self.person().get("sub") else { return principal };
        let mut kept = self.named.lock().ignore_poison();
        if let Some([unnamed, named]) = &*kept
            && Arc::ptr_eq(unnamed, &principal)
        {
            return Arc::clone(named);
        }
        let mut named = Principal {
            subject: Some(name.as_str().into()),
            identity: IdentityFields::default(),
            ..(*principal).clone()
        };
        named.claims.insert("sub".to_owned(), sub.clone());
        let named = Arc::new(named);
        *kept = Some([principal, Arc::clone(&named)]);
        named
    }

    /// The names that the issuer uses for this session and its subject.
    fn names(&self) -> &[SessionName] {
        self.names.get_or_init(|| {
            // Without an ID token a signed access token has the same claims, from the same source.
            let access = || payload(&self.state.access_token).unwrap_or_default();
            let person = self.person();
            let known =
                if person.is_empty() { Cow::Owned(access()) } else { Cow::Borrowed(person) };
            let text = |claim| Some(Arc::from(known.get(claim)?.as_str()?));
            SessionName::all(text("sid"), text("sub"))
        })
    }

    /// Returns why the session was ended before its time, or `None`.
    pub(crate) fn end_reason(&self, ended: &EndedSessions) -> Option<EndReason> {
        let generation = ended.generation() + 1;
        if self.live_generation.load(Ordering::Relaxed) == generation {
            return None;
        }
        let reason = ended.find(&self.name, self.state.since, self.names());
        if reason.is_none() {
            self.live_generation.store(generation, Ordering::Relaxed);
        }
        reason
    }

    /// Whether the session has ended by the claims of its verified access token, which may name more than the session does.
    pub(crate) fn is_over_as(&self, principal: &Principal, ended: &EndedSessions) -> bool {
        self.names().is_empty() && ended.matches(principal, self.state.since)
    }

    /// Returns the text of the cookie that holds this session, sealed by `seal` the first time.
    ///
    /// All parallel requests share one text: a browser that mixed the parts of two would hold neither.
    pub(crate) fn sealed(&self, seal: impl FnOnce(&SessionState) -> String) -> &str {
        self.sealed.get_or_init(|| seal(&self.state).into())
    }

    /// Returns the text under which this session is stored, if it is known.
    pub(crate) fn text(&self) -> Option<&str> {
        self.sealed.get().map(|text| &**text)
    }

    /// Returns the session with `now` as its last use; requests close to each other share one value.
    pub(crate) fn touch(&self, now: Timestamp, every: Duration, forward: Forward) -> Arc<Self> {
        let mut touched = self.touched.lock().ignore_poison();
        if let Some(touched) = &*touched
            && now.since(touched.state.seen) < every
        {
            return Arc::clone(touched);
        }
        let state = SessionState { seen: now, ..self.state.clone() };
        let (delivered_at, origin) = (Arc::clone(&self.delivered_at), self.origin.clone());
        let verified = AtomicBool::new(self.was_verified());
        let later = Self { delivered_at, origin, verified, ..Self::new(state, forward) };
        Arc::clone(touched.insert(Arc::new(later)))
    }
}

impl fmt::Debug for LoadedSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").finish_non_exhaustive()
    }
}
