//! A loaded session: its data and what is derived from them once for all of its requests.

use crate::base::lock::IgnorePoison;
use crate::token::jwt::claim_types::date;
use crate::token::lifetime::is_due;
use crate::token::received_tokens::{bearer, payload, received_principal};
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use std::sync::{Arc, Mutex, OnceLock};

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use serde_json::{Map, Value};

use super::refresh_origin::RefreshOrigin;
use super::state::{ABOUT_THE_LOGIN, AUTH_TIME, SessionState};
use crate::base::clock::Timestamp;
use crate::base::scopes::Scopes;
use crate::session::logout::ended_sessions::{EndReason, EndedSessions, SessionName};
use crate::session::settings::{ForwardedSessionToken, Settings};
use crate::token::{IdentityFields, Principal, Verifier};

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
    /// The latest principal of the access token, and the same with the claims that only the ID token has.
    named: ArcSwapOption<[Arc<Principal>; 2]>,
    /// The expiry of the forwarded token, if that is the ID token.
    forward_ends: Timestamp,
    /// The names that the issuer uses for the session and its subject.
    names: OnceLock<Vec<SessionName>>,
    /// The `iss` of the ID token: of several tenants, that of the user's.
    iss: OnceLock<Option<Arc<str>>>,
    /// The text of the cookie that holds this session, once it was written.
    sealed: OnceLock<Box<str>>,
    /// The same session with a later time of last use.
    touched: Mutex<Option<Arc<Self>>>,
    /// The generation of [`EndedSessions`] at which the session had not ended.
    live_generation: AtomicU64,
    /// The same for the claims of its verified access token.
    live_as_generation: AtomicU64,
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
    pub(crate) fn new(state: SessionState, forward: ForwardedSessionToken) -> Self {
        let token = match forward {
            ForwardedSessionToken::AccessToken => Some(&state.access_token),
            ForwardedSessionToken::IdToken => state.id_token.as_ref(),
            ForwardedSessionToken::None => None,
        };
        let forward_ends = match (forward, token) {
            (ForwardedSessionToken::IdToken, Some(token)) => payload(token)
                .and_then(|claims| date(&claims, "exp").ok().flatten())
                .unwrap_or(Timestamp::MAX),
            _ => Timestamp::MAX,
        };
        Self {
            forward_ends,
            bearer: token.and_then(bearer),
            name: state.id.alias().into(),
            state,
            person: OnceLock::new(),
            received: OnceLock::new(),
            named: ArcSwapOption::empty(),
            names: OnceLock::new(),
            iss: OnceLock::new(),
            sealed: OnceLock::new(),
            touched: Mutex::default(),
            live_generation: AtomicU64::new(0),
            live_as_generation: AtomicU64::new(0),
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
        // These tokens come from a single redemption of one refresh token.
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

    /// Returns the claims of the ID token, and those that only the userinfo endpoint had.
    pub(crate) fn person(&self) -> &Map<String, Value> {
        self.person.get_or_init(|| {
            let mut claims = self.state.id_token.as_ref().and_then(payload).unwrap_or_default();
            let more =
                self.state.userinfo.as_deref().and_then(|text| serde_json::from_str(text).ok());
            let more: Map<String, Value> = more.unwrap_or_default();
            for (name, value) in more {
                if name != AUTH_TIME {
                    claims.entry(name).or_insert(value);
                } else if value.is_null() {
                    claims.remove(AUTH_TIME);
                } else {
                    claims.insert(name, value);
                }
            }
            claims
        })
    }

    /// Returns the expiry of the forwarded ID token, if that is earlier than the session's own end.
    pub(crate) const fn forward_ends(&self) -> Timestamp {
        self.forward_ends
    }

    /// Whether the forwarded ID token expires in less than `before`, and a refresh may bring another: the last one may
    /// have brought none. One whose key could not be fetched is asked for again after [`OWED_RETRY_DELAY`].
    pub(crate) fn is_forward_due(&self, before: Duration, now: Timestamp) -> bool {
        let SessionState { received, is_id_token_owed, .. } = self.state;
        let may_bring = received < self.forward_ends
            || is_id_token_owed && now.since(received) >= OWED_RETRY_DELAY;
        self.forward_ends < Timestamp::MAX
            && may_bring
            && is_due(received, self.forward_ends, before, now)
    }

    /// Returns the principal as reported by the token endpoint, for access tokens
    /// that only the issuer's resource servers can read.
    pub(crate) fn received_principal(
        &self,
        settings: &Settings,
        verifier: Option<&Verifier>,
    ) -> Arc<Principal> {
        let principal = self.received.get_or_init(|| {
            let Settings { issuer, client, scopes, .. } = settings;
            let SessionState { received, ends, scope, .. } = &self.state;
            let scopes =
                scope.as_ref().map_or_else(|| scopes.clone(), |s| Scopes::parse_granted(s, scopes));
            let person = self.person().clone();
            let token = &self.state.access_token;
            let client = &client.id;
            let mut principal =
                received_principal(token, issuer, client, scopes, person, *received, *ends);
            if let Some(verifier) = verifier {
                verifier.name_within(&mut principal);
            }
            Arc::new(principal)
        });
        Arc::clone(principal)
    }

    /// Returns `principal`, that of the access token, with the claims of the person that only the ID token or userinfo
    /// has, such as `email`, and with its subject if the access token has none: an introspection response need not have a
    /// `sub` (RFC 7662 §2.2). Claims about the ID token itself stay out; those about the login are the ID token's where it has
    /// them.
    pub(crate) fn named(&self, principal: Arc<Principal>) -> Arc<Principal> {
        let person = self.person();
        if person.is_empty() {
            return principal;
        }
        if let Some(kept) = &*self.named.load()
            && Arc::ptr_eq(&kept[0], &principal)
        {
            return Arc::clone(&kept[1]);
        }
        let sub = person.get("sub").and_then(Value::as_str);
        // Perhaps another person. Some servers identify one user differently in each token, which cannot be
        // distinguished here.
        let is_same = match (&principal.subject, sub) {
            (Some(subject), Some(sub)) => **subject == *sub,
            _ => true,
        };
        let mut named = Principal {
            subject: principal.subject.clone().or_else(|| sub.map(Arc::from)),
            identity: IdentityFields::default(),
            ..(*principal).clone()
        };
        for (name, value) in person {
            let is_missing =
                is_same && !ABOUT_THE_TOKEN.contains(&&**name) && !named.claims.contains_key(name);
            // The login is that of the ID token, whatever the access token calls its user or has to say of it.
            if is_missing || ABOUT_THE_LOGIN.contains(&&**name) {
                named.claims.insert(name.clone(), value.clone());
            }
        }
        let named = Arc::new(named);
        self.named.store(Some(Arc::new([principal, Arc::clone(&named)])));
        named
    }

    /// The names that the issuer uses for this session and its subject: those of the ID token, and those of the access
    /// token, which comes from the same source and may have others.
    fn names(&self) -> &[SessionName] {
        self.names.get_or_init(|| {
            let access = payload(&self.state.access_token).unwrap_or_default();
            let both = [self.person(), &access];
            let texts = |claim: &str| {
                let texts = both.iter().filter_map(|known| known.get(claim)?.as_str());
                texts.map(Arc::from).collect::<Vec<_>>()
            };
            SessionName::all(texts("sid"), texts("sub"))
        })
    }

    fn iss(&self) -> Option<&Arc<str>> {
        let read =
            || self.state.id_token.as_ref().and_then(payload)?.get("iss")?.as_str().map(Arc::from);
        self.iss.get_or_init(read).as_ref()
    }

    /// Whether both sessions belong to one session at the issuer, by its `sid`.
    pub(crate) fn shares_a_sid(&self, other: &Self) -> bool {
        let mut sids = self.names().iter().filter(|name| name.is_sid());
        sids.any(|sid| other.names().contains(sid))
    }

    /// Returns why the session was ended before its time, or `None`.
    pub(crate) fn end_reason(&self, ended: &EndedSessions) -> Option<EndReason> {
        let generation = ended.generation() + 1;
        if self.live_generation.load(Ordering::Relaxed) == generation {
            return None;
        }
        let reason = ended.find(&self.name, self.state.since, self.names(), self.iss());
        if reason.is_none() {
            self.live_generation.store(generation, Ordering::Relaxed);
        }
        reason
    }

    /// Whether the session has ended by the claims of its verified access token, which may name more than the session does:
    /// those of an introspection response.
    pub(crate) fn is_over_as(&self, principal: &Principal, ended: &EndedSessions) -> bool {
        let generation = ended.generation() + 1;
        if generation == 1 || self.live_as_generation.load(Ordering::Relaxed) == generation {
            return false;
        }
        let has_sid = self.names().iter().any(SessionName::is_sid);
        let is_over = ended.matches(principal, self.state.since, has_sid, self.iss());
        if !is_over {
            self.live_as_generation.store(generation, Ordering::Relaxed);
        }
        is_over
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
    pub(crate) fn touch(
        &self,
        now: Timestamp,
        every: Duration,
        forward: ForwardedSessionToken,
    ) -> Arc<Self> {
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

/// The time after which a session whose forwarded ID token has ended is refreshed again for one that can be verified.
const OWED_RETRY_DELAY: Duration = Duration::from_secs(5);
/// Claims that say something about the token that has them, and not about the person.
const ABOUT_THE_TOKEN: [&str; 16] = [
    "iss",
    "aud",
    "azp",
    "exp",
    "nbf",
    "iat",
    "jti",
    "nonce",
    "at_hash",
    "c_hash",
    "s_hash",
    "typ",
    "scope",
    "scp",
    "client_id",
    "cnf",
];

impl fmt::Debug for LoadedSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").finish_non_exhaustive()
    }
}
