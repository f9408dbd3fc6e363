//! Floor 4: browser sessions.
//!
//! A browser logs in once and has a *session*: the gateway keeps its tokens,
//! sealed into cookies or on the server, and forwards every request with
//! `Authorization: Bearer`. Expired tokens are refreshed by the
//! gateway; clients never see them.
//!
//! Read [`authenticate`] first: it runs on every request.

pub mod authenticate;
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
pub mod navigation;
mod pages;
mod response;
mod run_to_end;
mod status;

use self::cookies::cookie;
use self::cookies::csrf;
use self::cookies::origin;
use self::cookies::seal;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method};
use tokio::runtime::Handle;
use url::form_urlencoded;

pub(crate) use self::cookies::cookie::strip as strip_cookies;
pub use self::cookies::csrf::HEADER as CSRF_HEADER;
pub(crate) use self::cookies::csrf::token_cookie_may_be_used;
pub use self::cookies::deferred_cookies::DeferredCookies;
pub use self::login::step_up::ResumedForm;
pub use self::logout::session_watch::SessionWatch;
pub use self::refresh::refresh_events::MalformedEvent;
pub use self::registry::RefreshEvents;
pub use authenticate::{SessionError, SessionErrorReason, SessionHandle, SessionUser};
pub use registry::SessionRegistry;
pub use settings::{
    Cookie, Csrf, Flow, ForwardedSessionToken, Identity, OnUnauthenticated, Paths, ReturnTo,
    SameSite, Settings, Store, TokenStorage,
};

use self::cookies::origin::OwnOrigin;
use self::login::login_cookies::LoginCookies;
use self::login::return_to::{self, ReturnTarget};
use self::login::session_hosts::{SessionHosts, as_written};
use self::logout::deferred_logout::take_over_pending;
use self::logout::pending_revocations::PendingRevocations;
use self::logout::token_revocation::TokenRevoker;
use self::pages::Pages;
use self::refresh::refresher::TokenRefresher;
use self::store::loaded_session::LoadedSession;
use self::store::redis::SharedSessions;
use self::store::storage::{
    PresentedCookies, SessionStorage, StoredSession, session_associated_data,
};
use crate::base::abort_on_drop::AbortOnDrop;
use crate::base::clock::Clock;
use crate::issuer::Issuer;
use crate::observe::metrics::{Metrics, SessionMetrics};
use crate::password::LoginThrottle;
use crate::token::Verifier;
use crate::token::jwt::id_token::RelyingParty;

/// The sessions of one `sessions.<name>`: cookies, paths, storage and grants.
#[derive(Debug)]
pub struct Sessions {
    settings: Settings,
    issuer: Arc<Issuer>,
    verifier: Option<Arc<Verifier>>,
    clock: Clock,
    metrics: Arc<SessionMetrics>,
    control: Handle,
    own_origin: OwnOrigin,
    storage: Arc<SessionStorage>,
    csrf: cookie::Cookie,
    logins: LoginCookies,
    session_hosts: SessionHosts,
    /// Verifies ID and logout tokens issued to this client.
    relying_party: Arc<RelyingParty>,
    ring: Arc<seal::SealingKeys>,
    pages: Pages,
    retained: Arc<registry::RetainedSessions>,
    throttle: LoginThrottle,
    refresher: Arc<TokenRefresher>,
    revoker: Arc<TokenRevoker>,
    /// Publishes sessions again after Redis has lost them; stops when dropped.
    _republisher: Option<AbortOnDrop>,
    /// Goes on with revocations that others have left; stops when dropped.
    _successor: Option<AbortOnDrop>,
}

impl Sessions {
    /// Returns the sessions that `settings` describe, with the state that `registry` retains of them.
    ///
    /// Calls to `issuer` run on `control`. Access tokens are verified by
    /// `verifier`; without one the gateway trusts them as received from the
    /// issuer, because sealed cookies and server-side storage prove their origin.
    pub fn new(
        settings: Settings,
        issuer: Arc<Issuer>,
        verifier: Option<Arc<Verifier>>,
        clock: Clock,
        metrics: &Metrics,
        control: Handle,
        registry: &SessionRegistry,
    ) -> Self {
        let retained = registry.retained(&settings, &issuer.settings().issuer, &control);
        let throttles = registry.throttles();
        let throttle =
            throttles.throttle(settings.login_failures, &issuer.settings().issuer, &clock);
        let metrics = metrics.session(&settings.name);
        let ring = retained.ring(&settings);
        let seal = session_associated_data(&settings, &issuer.settings().issuer);
        let sharing = SharedSessions::new(
            registry.redis(),
            &settings,
            Arc::clone(&ring),
            clock.clone(),
            &seal,
            issuer.settings(),
        );
        let sharing = sharing.map(Arc::new);
        let store = retained.store(&settings, sharing.as_ref(), &control);
        // A random key opens nothing in a later process.
        let kept = (!settings.keys.is_empty()).then(|| {
            let shared = sharing.as_ref().map(|sharing| sharing.pending_revocations());
            let journal = registry.pending_revocations();
            PendingRevocations::new(&seal, Arc::clone(&ring), journal, shared, clock.clone())
        });
        let revoker = Arc::new(TokenRevoker {
            issuer: Arc::clone(&issuer),
            client: settings.client.clone(),
            verifier: verifier.clone(),
            enabled: settings.revoke_on_logout,
            control: control.clone(),
            clock: clock.clone(),
            under_way: registry.under_way(),
            repeats: Arc::clone(&retained.repeats),
            kept,
        });
        retained.repeats.continue_with(&revoker);
        let relying_party = RelyingParty::new(&settings.client.id, verifier.as_deref());
        let relying_party = Arc::new(relying_party);
        let refresher = Arc::new(TokenRefresher {
            issuer: Arc::clone(&issuer),
            relying_party: Arc::clone(&relying_party),
            client: settings.client.clone(),
            resource: settings.resource.clone(),
            forward: settings.forward,
            clock: clock.clone(),
            metrics: Arc::clone(&metrics),
            ended: Arc::clone(&retained.ended),
            results: Arc::clone(&retained.results),
            watchers: Arc::clone(&retained.watchers),
            store: store.clone(),
            sharing,
            revoker: Arc::clone(&revoker),
        });
        let republisher = refresher.republish_after_outage(&control);
        let storage = SessionStorage::new(&settings, seal, Arc::clone(&ring), store);
        let storage = Arc::new(storage);
        let successor = revoker.kept.is_some().then(|| {
            take_over_pending(
                &storage,
                &revoker,
                &retained.ended,
                &retained.unseen_logouts,
                &control,
            )
        });
        let origins = settings.return_to.iter().filter_map(|destination| match destination {
            ReturnTo::Origin(origin) => Some(&**origin),
            ReturnTo::SameOrigin | ReturnTo::Path { .. } => None,
        });
        Self {
            own_origin: OwnOrigin::new(&settings.public_url, settings.cookie.secure),
            storage,
            csrf: cookie::Cookie::readable(&settings.cookie, &format!("{}.csrf", settings.name)),
            logins: LoginCookies::new(&settings, &issuer.settings().issuer, Arc::clone(&ring)),
            session_hosts: SessionHosts::new(&settings),
            relying_party,
            pages: Pages::new(settings.style.as_deref(), origins),
            settings,
            issuer,
            verifier,
            clock,
            metrics,
            control,
            ring,
            retained,
            throttle,
            refresher,
            revoker,
            _republisher: republisher,
            _successor: successor,
        }
    }

    /// Returns the settings.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Removes this session's cookies from what an upstream receives; the rest stays byte for byte.
    pub fn strip_cookies(&self, headers: &mut HeaderMap) {
        let (storage, csrf, logins) = (&self.storage, &self.csrf, &self.logins);
        cookie::strip(headers, |name| storage.owns(name) || csrf.owns(name) || logins.owns(name));
    }

    /// Returns the challenge of a 401 (RFC 9110 §15.5.2), which names the login page.
    pub fn challenge(&self) -> HeaderValue {
        let challenge = format!("Cookie form-action=\"{}\"", self.settings.paths.login);
        HeaderValue::from_str(&challenge).unwrap_or(HeaderValue::from_static("Cookie"))
    }

    /// Returns the way to the login page for a request without a session, or `None` if it gets a plain 401: by default
    /// only navigations are redirected, and htmx gets the target of its navigation in a field.
    pub fn login_redirect(&self, request: &Parts) -> Option<LoginRedirect> {
        if let Some(location) = self.login_location(request) {
            return Some(LoginRedirect::Location(location));
        }
        if self.settings.on_unauthenticated == OnUnauthenticated::Refuse {
            return None;
        }
        let page = navigation::htmx_page(request)?;
        self.login_url(&self.page_of(request, page.as_deref()), None).map(LoginRedirect::Htmx)
    }

    /// Returns the `Location` of a 302 to the login page for a request without a
    /// session, or `None` if it is not redirected.
    fn login_location(&self, request: &Parts) -> Option<HeaderValue> {
        let redirect = match self.settings.on_unauthenticated {
            OnUnauthenticated::Refuse => false,
            OnUnauthenticated::Redirect => true,
            OnUnauthenticated::Auto => is_navigation(request),
        };
        if !redirect {
            return None;
        }
        // Only safe requests can be repeated after the login.
        let reads = matches!(request.method, Method::GET | Method::HEAD);
        let page = reads
            .then(|| request.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str));
        self.login_url(&self.page_of(request, page), None)
    }

    /// Returns the URL of a login that leads to `target`.
    fn login_url(&self, target: &ReturnTarget, more: Option<&str>) -> Option<HeaderValue> {
        let return_to: String =
            form_urlencoded::byte_serialize(self.return_to(target).as_bytes()).collect();
        let more = more.unwrap_or_default();
        let location = format!("{}?return_to={return_to}{more}", self.settings.paths.login);
        HeaderValue::from_str(&location).ok()
    }

    /// Returns the target that leads back to the page at `path`, with its query, of the host that `request` names; without
    /// such a page to `after_login`.
    fn page_of(&self, request: &Parts, path: Option<&str>) -> ReturnTarget {
        let page = path.map(as_written).and_then(|path| {
            let plain = ReturnTarget::parse(&path, &self.settings.return_to);
            plain.filter(|_| self.session_hosts.needs_no_host(request)).or_else(|| {
                let url = self.session_hosts.url(request, &path)?;
                (url.len() <= return_to::MAX_LEN).then(|| ReturnTarget::trusted(&url))
            })
        });
        page.unwrap_or_else(|| ReturnTarget::trusted(&self.settings.after_login))
    }

    /// Returns the value of the parameter `return_to` that asks for `target`: sealed, if strangers may not ask for it.
    fn return_to(&self, target: &ReturnTarget) -> String {
        let text = target.as_str();
        let is_plain =
            target.is_path() || ReturnTarget::parse(text, &self.settings.return_to).is_some();
        if is_plain { text.to_owned() } else { self.logins.seal_target(text) }
    }

    /// Returns the target that the query of a request asks for.
    fn requested_target(&self, query: Option<&str>) -> Option<ReturnTarget> {
        let requested = form_urlencoded::parse(query.unwrap_or_default().as_bytes())
            .find_map(|(name, value)| (name == "return_to").then_some(value))?;
        self.target(&requested)
    }

    /// Returns the target of a parameter `return_to`.
    fn target(&self, requested: &str) -> Option<ReturnTarget> {
        let path = self.path_of_own_url(requested);
        ReturnTarget::parse(path.as_deref().unwrap_or(requested), &self.settings.return_to)
            .or_else(|| ReturnTarget::parse(requested, &self.settings.return_to))
            .or_else(|| self.sealed_target(requested))
    }

    /// Returns what follows the origin in a URL of this origin, as pages write their own (`location.href`).
    fn path_of_own_url(&self, url: &str) -> Option<String> {
        let origin = self.settings.public_url.origin().ascii_serialization();
        let path = url.strip_prefix(&origin)?;
        match path.as_bytes().first() {
            Some(b'/') => Some(path.to_owned()),
            None | Some(b'?' | b'#') => Some(format!("/{path}")),
            // A longer host or port, which begins like this one.
            Some(_) => None,
        }
    }

    /// Returns the target that `sealed` holds. Any browser may present it: it leads no further than any link, or to a page
    /// of the session's own hosts.
    fn sealed_target(&self, sealed: &str) -> Option<ReturnTarget> {
        let target = self.logins.open_target(sealed)?;
        ReturnTarget::parse(&target, &self.settings.return_to).or_else(|| {
            self.session_hosts.contains(&target).then(|| ReturnTarget::trusted(&target))
        })
    }

    /// Reads this session's cookies from a request.
    fn presented_cookies<'a>(&self, headers: &'a HeaderMap) -> PresentedCookies<'a> {
        let presented = self.storage.find(headers);
        match self.settings.csrf {
            Csrf::Token => presented.with_csrf(self.csrf.find(headers).held()),
            Csrf::Strict | Csrf::Off => presented,
        }
    }

    /// Returns `Set-Cookie` fields that clear the presented cookies.
    fn clear(&self, held: StoredSession) -> Vec<HeaderValue> {
        let mut cookies = self.storage.clear(held);
        if self.settings.csrf == Csrf::Token {
            cookies.extend(self.csrf.clear(held.csrf()));
        }
        cookies
    }

    /// Returns the CSRF token of a session, which pages repeat in a header field when [`Csrf::Token`] is on.
    fn csrf_token(&self, loaded: &LoadedSession) -> String {
        self.ring.mac(&self.csrf_data(loaded))
    }

    fn is_own_token(&self, request: &Parts, loaded: &LoadedSession) -> bool {
        if csrf::is_exempt(request) {
            return true;
        }
        let is_own = |token: &str| self.ring.verify_mac(&self.csrf_data(loaded), token.as_bytes());
        match origin::single_value(&request.headers, &csrf::HEADER).ok().flatten() {
            // The field repeats the value of a cookie; it must be one that the gateway issued.
            Some(token) => is_own(token),
            None => self.csrf.find(&request.headers).plain_values().any(is_own),
        }
    }

    fn csrf_data(&self, loaded: &LoadedSession) -> Vec<u8> {
        format!("csrf\0{}\0{}", self.settings.name, loaded.name).into_bytes()
    }
}

/// The way in which a user agent is led to a login page.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LoginRedirect {
    /// By a redirect to this URL.
    Location(HeaderValue),
    /// By `HX-Redirect`, beside the 401: htmx would put the page of a redirect into the current one.
    Htmx(HeaderValue),
    /// By its script: the 401 names the URL.
    Named(HeaderValue),
}

impl LoginRedirect {
    /// Returns the URL of the login.
    pub const fn url(&self) -> &HeaderValue {
        let (Self::Location(url) | Self::Htmx(url) | Self::Named(url)) = self;
        url
    }
}

/// Whether the user agent navigates, rather than a script fetching a resource.
fn is_navigation(request: &Parts) -> bool {
    let reads = matches!(request.method, Method::GET | Method::HEAD);
    reads && is_shown(&request.headers)
}

/// Whether a person will see the response: the user agent navigates, and no script reads it.
fn is_shown(headers: &HeaderMap) -> bool {
    match origin::single_value(headers, &navigation::SEC_FETCH_MODE) {
        Ok(Some(mode)) => mode == "navigate",
        Ok(None) => response::wants_html(headers) && !navigation::is_script(headers),
        Err(_) => false,
    }
}
