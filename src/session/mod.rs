//! Floor 4: grants the gateway performs for its clients.
//!
//! A browser logs in once and holds a *session*: its tokens stay with the
//! gateway, sealed into cookies or kept on the server, and every request goes
//! on as `Authorization: Bearer`. An API client that only has HTTP Basic
//! credentials gets the same by the password grant. Neither ever sees a token
//! expire.
//!
//! Read [`authenticate`] first: that is what happens on every request.

pub mod authenticate;
pub mod basic_credentials;
pub mod basic_exchange;
mod cookies;
mod login;
mod logout;
mod refresh;
pub mod registry;
pub mod settings;
mod store;

mod endpoints;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
mod pages;
mod response;
mod status;

use self::cookies::cookie;
use self::cookies::csrf;
use self::cookies::origin;
use self::cookies::seal;
use self::login::login_throttle;
use self::refresh::refresher;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method};
use tokio::runtime::Handle;
use url::form_urlencoded;

pub use self::cookies::csrf::HEADER as CSRF_HEADER;
pub use self::cookies::deferred_cookies::DeferredCookies;
pub use self::logout::session_watch::SessionWatch;
pub use self::refresh::events::{MalformedEvent, RefreshEvents};
pub use authenticate::{Reason, SessionError, SessionHandle, SessionUser};
pub use basic_credentials::{Credentials, Malformed};
pub use basic_exchange::{BasicError, BasicExchange, ExchangeCache};
pub use registry::SessionRegistry;
pub use settings::{
    Cookie, Csrf, Failures, Flow, Forward, OnUnauthenticated, Paths, ReturnTo, SameSite, Settings,
    Store, TokenStorage,
};

use self::cookies::origin::OwnOrigin;
use self::login::login_transaction::PendingCookie;
use self::logout::token_revocation::TokenRevoker;
use self::pages::Pages;
use self::refresh::refresher::TokenRefresher;
use self::store::loaded::LoadedSession;
use self::store::redis::SharedSessions;
use self::store::storage::{PresentedCookies, SessionStorage, StoredSession, sealed_for};
use crate::base::clock::Clock;
use crate::issuer::Issuer;
use crate::observe::metrics::{Metrics, SessionMetrics};
use crate::token::Verifier;
use crate::token::jwt::id_token::RelyingParty;

/// One kind of session: its cookies, its paths, and the grants behind them.
#[derive(Debug)]
pub struct Sessions {
    settings: Settings,
    issuer: Arc<Issuer>,
    verifier: Option<Arc<Verifier>>,
    clock: Clock,
    metrics: Arc<SessionMetrics>,
    control: Handle,
    home: OwnOrigin,
    keeping: Arc<SessionStorage>,
    csrf: cookie::Cookie,
    pending: PendingCookie,
    /// How what the issuer tells this client is judged.
    told: RelyingParty,
    ring: Arc<seal::KeyRing>,
    pages: Pages,
    memory: Arc<registry::RetainedState>,
    failures: login_throttle::LoginThrottle,
    redeemer: Arc<TokenRefresher>,
    revoker: Arc<TokenRevoker>,
    /// Says what Redis has lost, as long as this session is there.
    _retelling: Option<refresher::Republisher>,
}

impl Sessions {
    /// The session that `settings` describe, with what `registry` remembers of it.
    ///
    /// Calls to `issuer` run on `control`. Access tokens are verified by
    /// `verifier`; without one they are taken as they were received from the
    /// issuer, which only sealed cookies and sessions on the server can prove.
    pub fn new(
        settings: Settings,
        issuer: Arc<Issuer>,
        verifier: Option<Arc<Verifier>>,
        clock: Clock,
        metrics: &Metrics,
        control: Handle,
        registry: &SessionRegistry,
    ) -> Self {
        let memory = registry.memory(&settings, &issuer.settings().issuer, &control);
        let failures =
            registry.failures(settings.login_failures, &issuer.settings().issuer, &clock);
        let metrics = metrics.session(&settings.name);
        let ring = memory.ring(&settings);
        let seal = sealed_for(&settings, &issuer.settings().issuer);
        let sharing = SharedSessions::new(
            registry.redis(),
            &settings,
            Arc::clone(&ring),
            clock.clone(),
            &seal,
            issuer.settings().timeout,
            issuer.settings().timeout + issuer.settings().extended_timeout(),
        );
        let sharing = sharing.map(Arc::new);
        let store = memory.store(&settings, sharing.as_ref(), &control);
        let revoker = Arc::new(TokenRevoker {
            issuer: Arc::clone(&issuer),
            client: settings.client.clone(),
            verifier: verifier.clone(),
            enabled: settings.revoke_on_logout,
            control: control.clone(),
            under_way: registry.under_way(),
            owed: core::sync::atomic::AtomicUsize::default(),
        });
        let redeemer = Arc::new(TokenRefresher {
            issuer: Arc::clone(&issuer),
            client: settings.client.clone(),
            resource: settings.resource.clone(),
            forward: settings.forward,
            clock: clock.clone(),
            metrics: Arc::clone(&metrics),
            endings: Arc::clone(&memory.endings),
            redeemed: Arc::clone(&memory.redeemed),
            lives: Arc::clone(&memory.lives),
            store: store.clone(),
            sharing,
            revoker: Arc::clone(&revoker),
        });
        let retelling = redeemer.tell_again_what_is_lost(&control);
        let origins = settings.return_to.iter().filter_map(|place| match place {
            ReturnTo::Origin(origin) => Some(&**origin),
            ReturnTo::SameOrigin | ReturnTo::Path { .. } => None,
        });
        Self {
            home: OwnOrigin::new(&settings.public_url, settings.cookie.secure),
            keeping: Arc::new(SessionStorage::new(&settings, seal, Arc::clone(&ring), store)),
            csrf: cookie::Cookie::readable(&settings.cookie, &format!("{}.csrf", settings.name)),
            pending: PendingCookie::new(&settings, &issuer.settings().issuer, Arc::clone(&ring)),
            told: RelyingParty::new(&settings.client.id, verifier.as_deref()),
            pages: Pages::new(settings.style.as_deref(), origins),
            settings,
            issuer,
            verifier,
            clock,
            metrics,
            control,
            ring,
            memory,
            failures,
            redeemer,
            revoker,
            _retelling: retelling,
        }
    }

    /// What the operator decided.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Removes our cookies from what a service sees; the rest stays byte for byte.
    pub fn strip_cookies(&self, headers: &mut HeaderMap) {
        let (keeping, csrf, pending) = (&self.keeping, &self.csrf, self.pending.cookie());
        cookie::strip(headers, |name| keeping.owns(name) || csrf.owns(name) || pending.owns(name));
    }

    /// The challenge of a 401 (RFC 9110 §15.5.2): where the form is.
    pub fn challenge(&self) -> HeaderValue {
        let challenge = format!("Cookie form-action=\"{}\"", self.settings.paths.login);
        HeaderValue::from_str(&challenge).unwrap_or(HeaderValue::from_static("Cookie"))
    }

    /// Where a request without a session is led, if it is one of a person who
    /// goes somewhere: `Location` for a 302. `None`: it gets a 401.
    pub fn login_location(&self, request: &Parts) -> Option<HeaderValue> {
        let led = match self.settings.on_unauthenticated {
            OnUnauthenticated::Refuse => false,
            OnUnauthenticated::Redirect => true,
            OnUnauthenticated::Auto => is_navigation(request),
        };
        let path = request.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        // Only reading can be repeated after the login.
        let return_to = match request.method {
            Method::GET | Method::HEAD => path,
            _ => &self.settings.after_login,
        };
        let return_to: String = form_urlencoded::byte_serialize(return_to.as_bytes()).collect();
        let location = format!("{}?return_to={return_to}", self.settings.paths.login);
        led.then(|| HeaderValue::from_str(&location).ok()).flatten()
    }

    /// What a request brings of our cookies.
    fn bring<'a>(&self, headers: &'a HeaderMap) -> PresentedCookies<'a> {
        let brought = self.keeping.find(headers);
        match self.settings.csrf {
            Csrf::Token => brought.with_csrf(self.csrf.find(headers).held()),
            Csrf::Strict | Csrf::Off => brought,
        }
    }

    /// Clears what the browser holds, and nothing else.
    fn clear(&self, held: StoredSession) -> Vec<HeaderValue> {
        let mut cookies = self.keeping.clear(held);
        if self.settings.csrf == Csrf::Token {
            cookies.extend(self.csrf.clear(held.csrf()));
        }
        cookies
    }

    /// The token that pages of `loaded_session` repeat in a header when [`Csrf::Token`] is on.
    fn csrf_token(&self, opened: &LoadedSession) -> String {
        self.ring.mac(&self.csrf_data(opened))
    }

    fn is_own_token(&self, request: &Parts, opened: &LoadedSession) -> bool {
        csrf::is_free(request)
            || self
                .csrf
                .find(&request.headers)
                .plain()
                .is_some_and(|token| self.ring.marked(&self.csrf_data(opened), token.as_bytes()))
    }

    fn csrf_data(&self, opened: &LoadedSession) -> Vec<u8> {
        format!("csrf\0{}\0{}", self.settings.name, opened.name).into_bytes()
    }
}

/// Whether a person goes somewhere, rather than a script fetching something.
fn is_navigation(request: &Parts) -> bool {
    let reads = matches!(request.method, Method::GET | Method::HEAD);
    let mode = origin::only(&request.headers, &SEC_FETCH_MODE);
    reads
        && match mode {
            Ok(Some(mode)) => mode == "navigate",
            Ok(None) => response::wants_html(&request.headers),
            Err(_) => false,
        }
}

const SEC_FETCH_MODE: http::HeaderName = http::HeaderName::from_static("sec-fetch-mode");
