//! A visit opened for use: what every request of it needs, made once.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use std::borrow::Cow;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use serde_json::{Map, Value};

use super::redis::RefreshOrigin;
use super::state::SessionState;
use crate::base::clock::Timestamp;
use crate::base::scopes::Scopes;
use crate::base::secret::Secret;
use crate::session::logout::ended_sessions::{EndReason, EndedSessions, SessionName};
use crate::session::settings::{Forward, Settings};
use crate::token::{IdentityFields, Principal, TokenDigests, TokenFormat};

/// A visit, and what is derived from it.
pub(crate) struct LoadedSession {
    pub(crate) visit: SessionState,
    /// `Bearer …` for the service.
    pub(crate) bearer: Option<HeaderValue>,
    /// The visit's name for limits and the log: opens nothing.
    pub(crate) name: Arc<str>,
    /// What the ID token says, empty without one. It came from the token endpoint, over TLS,
    /// and has been under seal since ("OpenID Connect Core" §3.1.3.7, item 6).
    pub(crate) person: OnceLock<Map<String, Value>>,
    received: OnceLock<Arc<Principal>>,
    /// The latest principal that an issuer left unnamed, and the same with its name.
    named: Mutex<Option<[Arc<Principal>; 2]>>,
    /// What its issuer calls the visit and its person.
    names: OnceLock<Vec<SessionName>>,
    /// The text of the cookie that holds this visit, once it was written.
    sealed: OnceLock<Box<str>>,
    /// The same visit, seen a little later.
    touched: Mutex<Option<Arc<Self>>>,
    /// The generation of endings at which the visit was not over.
    living: AtomicU64,
    /// When a browser was first given these tokens, in nanoseconds; 0 before that.
    told: Arc<AtomicU64>,
    /// Of what these tokens came, for other gateways.
    origin: OnceLock<RefreshOrigin>,
    /// Whether it was said that they fit into no cookies.
    outgrown: AtomicBool,
    /// Whether the access token was verified once.
    verified: AtomicBool,
}

impl LoadedSession {
    pub(crate) fn new(visit: SessionState, forward: Forward) -> Self {
        let token = match forward {
            Forward::AccessToken => Some(&visit.access_token),
            Forward::IdToken => visit.id_token.as_ref(),
            Forward::None => None,
        };
        Self {
            bearer: token.and_then(bearer),
            name: visit.id.alias().into(),
            visit,
            person: OnceLock::new(),
            received: OnceLock::new(),
            named: Mutex::default(),
            names: OnceLock::new(),
            sealed: OnceLock::new(),
            touched: Mutex::default(),
            living: AtomicU64::new(0),
            told: Arc::default(),
            origin: OnceLock::new(),
            outgrown: AtomicBool::new(false),
            verified: AtomicBool::new(false),
        }
    }

    /// These tokens fit into no cookies. Whether that is news.
    pub(crate) fn outgrows(&self) -> bool {
        !self.outgrown.swap(true, Ordering::Relaxed)
    }

    /// The access token was verified.
    pub(crate) fn note_verified(&self) {
        if !self.was_verified() {
            self.verified.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the access token was verified once.
    pub(crate) fn was_verified(&self) -> bool {
        self.verified.load(Ordering::Relaxed)
    }

    /// A browser is given these tokens. Whether that is the first time.
    pub(crate) fn tell(&self, now: Timestamp) -> bool {
        let relaxed = Ordering::Relaxed;
        self.told.compare_exchange(0, now.as_nanos(), relaxed, relaxed).is_ok()
    }

    /// These tokens came of others.
    pub(crate) fn comes_of(&self, origin: RefreshOrigin) {
        // They came of one refresh token, once.
        let _ = self.origin.set(origin);
    }

    /// Of what these tokens came, if other gateways were told.
    pub(crate) fn origin(&self) -> Option<&RefreshOrigin> {
        self.origin.get()
    }

    /// When a browser was first given these tokens, if one was.
    pub(crate) fn told(&self) -> Option<Timestamp> {
        let told = self.told.load(Ordering::Relaxed);
        (told > 0).then(|| Timestamp::from_nanos(told))
    }

    /// What the ID token says about the person.
    pub(crate) fn person(&self) -> &Map<String, Value> {
        self.person
            .get_or_init(|| self.visit.id_token.as_ref().and_then(payload).unwrap_or_default())
    }

    /// Who logged in, taken from what the token endpoint said, for access tokens
    /// that nobody but their issuer's services can read.
    pub(crate) fn received_principal(&self, settings: &Settings) -> Arc<Principal> {
        let principal = self.received.get_or_init(|| {
            let Settings { issuer, client, scopes, .. } = settings;
            let SessionState { received, ends, scope, .. } = &self.visit;
            let scopes = scope.as_ref().map_or_else(|| scopes.clone(), |s| Scopes::parse(s));
            let person = self.person().clone();
            let token = &self.visit.access_token;
            let client = &client.id;
            Arc::new(received_principal(token, issuer, client, scopes, person, *received, *ends))
        });
        Arc::clone(principal)
    }

    /// `principal` with the person's name, where the issuer only says it in the ID token: an
    /// introspection answer need not have a `sub` (RFC 7662 §2.2).
    pub(crate) fn named(&self, principal: Arc<Principal>) -> Arc<Principal> {
        if principal.subject.is_some() {
            return principal;
        }
        let Some(sub @ Value::String(name)) = self.person().get("sub") else { return principal };
        let mut kept = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some([unnamed, named]) = &*kept
            && Arc::ptr_eq(unnamed, &principal)
        {
            return Arc::clone(named);
        }
        let mut named = Principal {
            subject: Some(name.as_str().into()),
            told: IdentityFields::default(),
            ..(*principal).clone()
        };
        named.claims.insert("sub".to_owned(), sub.clone());
        let named = Arc::new(named);
        *kept = Some([principal, Arc::clone(&named)]);
        named
    }

    /// What the issuer calls this visit and its person.
    fn names(&self) -> &[SessionName] {
        self.names.get_or_init(|| {
            // Without an ID token a signed access token says it as well, and came the same way.
            let access = || payload(&self.visit.access_token).unwrap_or_default();
            let person = self.person();
            let known =
                if person.is_empty() { Cow::Owned(access()) } else { Cow::Borrowed(person) };
            let text = |claim| Some(Arc::from(known.get(claim)?.as_str()?));
            SessionName::all(text("sid"), text("sub"))
        })
    }

    /// Whether, and why, the visit was ended before its time.
    pub(crate) fn ending(&self, endings: &EndedSessions) -> Option<EndReason> {
        let generation = endings.generation() + 1;
        if self.living.load(Ordering::Relaxed) == generation {
            return None;
        }
        let ending = endings.find(&self.name, self.visit.since, self.names());
        if ending.is_none() {
            self.living.store(generation, Ordering::Relaxed);
        }
        ending
    }

    /// Whether the visit is over by what its verified access token calls it, which may be more than it says itself.
    pub(crate) fn is_over_as(&self, principal: &Principal, endings: &EndedSessions) -> bool {
        self.names().is_empty() && endings.matches(principal, self.visit.since)
    }

    /// The text of the cookie that holds this visit, sealed by `seal` at first.
    ///
    /// One text for all parallel requests: browsers that mix the parts of two would hold neither.
    pub(crate) fn sealed(&self, seal: impl FnOnce(&SessionState) -> String) -> &str {
        self.sealed.get_or_init(|| seal(&self.visit).into())
    }

    /// The text by which this visit is kept, if it is known.
    pub(crate) fn text(&self) -> Option<&str> {
        self.sealed.get().map(|text| &**text)
    }

    /// The same visit seen `now`; the same one for all requests that come close to each other.
    pub(crate) fn touch(&self, now: Timestamp, every: Duration, forward: Forward) -> Arc<Self> {
        let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(touched) = &*touched
            && now.since(touched.visit.seen) < every
        {
            return Arc::clone(touched);
        }
        let visit = SessionState { seen: now, ..self.visit.clone() };
        let (told, origin) = (Arc::clone(&self.told), self.origin.clone());
        let verified = AtomicBool::new(self.was_verified());
        let later = Self { told, origin, verified, ..Self::new(visit, forward) };
        Arc::clone(touched.insert(Arc::new(later)))
    }
}

impl fmt::Debug for LoadedSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").finish_non_exhaustive()
    }
}

/// The principal of a token that was received, not verified; `person` is what its ID token says.
pub(crate) fn received_principal(
    token: &Secret<String>,
    issuer: &Arc<str>,
    client: &Arc<str>,
    scopes: Scopes,
    person: Map<String, Value>,
    received: Timestamp,
    expires: Timestamp,
) -> Principal {
    let text = |claim| Some(Arc::from(person.get(claim)?.as_str()?));
    let names = TokenDigests::of_reference(token.expose());
    let mut principal = Principal {
        form: TokenFormat::Reference,
        issuer: Arc::clone(issuer),
        subject: text("sub"),
        client: Some(Arc::clone(client)),
        session: text("sid"),
        id: None,
        // The ID token's is this client; the access token's is not known.
        audience: Box::default(),
        expires,
        issued: Some(received),
        confirmation: None,
        claims: person,
        digest: names.whole,
        unsigned_digest: names.unsigned,
        signed: None,
        scopes: Arc::new(scopes),
        told: IdentityFields::default(),
    };
    principal.claims.insert("client_id".into(), Value::from(&**client));
    principal.claims.insert("scope".into(), Value::from(principal.scopes.to_string()));
    principal
}

/// The field that carries `token`; `None` if it could not be one (RFC 6750 §2.1).
pub(crate) fn bearer(token: &Secret<String>) -> Option<HeaderValue> {
    let mut field = HeaderValue::try_from(format!("Bearer {}", token.expose())).ok()?;
    field.set_sensitive(true);
    Some(field)
}

/// The claims of a JWT, unverified: only for tokens whose way here is trusted.
pub(crate) fn payload(token: &Secret<String>) -> Option<Map<String, Value>> {
    let payload = token.expose().split('.').nth(1)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}
