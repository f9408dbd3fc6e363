//! Browser sessions at the issuer: the login in each browser, and the authorization requests that wait for its user.
//!
//! A browser is identified by a random cookie. A pending request can only be
//! continued in the browser it began in, and only with the random id that its
//! page's form carries: a page of another origin cannot post that form (CSRF),
//! and another browser cannot finish the request.

use core::time::Duration;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::response::Response;
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderValue};

use super::authorization_request::AuthorizationRequest;
use super::bounded_map::BoundedMap;
use super::error::OAuthError;
use super::paths;
use super::random::random;
use super::store::LoginFacts;
use crate::base::clock::Timestamp;
use crate::base::lock::IgnorePoison;
use crate::base::scopes::Scopes;

/// A user's login in one browser.
#[derive(Clone, Debug)]
pub(super) struct Login {
    /// The user name.
    pub(super) user: Arc<str>,
    /// The time of the login and its `sid`.
    pub(super) facts: LoginFacts,
    /// The scopes that the user has consented to during this login, by client.
    consents: HashMap<Arc<str>, Scopes>,
}

impl Login {
    /// Whether the user has already consented to all of `scopes`.
    pub(super) fn has_consented(&self, client: &str, scopes: &Scopes) -> bool {
        self.consents.get(client).is_some_and(|consented| scopes.is_subset(consented))
    }
}

/// An authorization request that waits for the user.
#[derive(Clone, Debug)]
pub(super) struct PendingAuthorization {
    pub(super) request: AuthorizationRequest,
    /// Whether the user has logged in because of this request.
    pub(super) logged_in: bool,
    started: Timestamp,
}

/// All browser sessions, by their cookies.
#[derive(Debug)]
pub(super) struct BrowserSessions(Mutex<BoundedMap<String, BrowserSession>>);

#[derive(Debug, Default)]
struct BrowserSession {
    login: Option<Login>,
    /// By request id, the oldest first.
    pending: VecDeque<(String, PendingAuthorization)>,
}

impl BrowserSessions {
    pub(super) fn new() -> Self {
        Self(Mutex::new(BoundedMap::new(MAX_BROWSERS)))
    }

    /// Returns the session cookie in `headers`, if it is a known one.
    pub(super) fn find(&self, headers: &HeaderMap) -> Option<String> {
        let cookies = headers.get_all(COOKIE).iter().filter_map(|field| field.to_str().ok());
        let mut pairs =
            cookies.flat_map(|field| field.split("; ")).filter_map(|c| c.split_once('='));
        let (_, cookie) = pairs.find(|(name, _)| *name == COOKIE_NAME)?;
        self.sessions().get_mut(&cookie.to_owned()).map(|_| cookie.to_owned())
    }

    /// Stores a pending request in the session `cookie` or in a new one; returns the cookie and the request id.
    pub(super) fn start(
        &self,
        cookie: Option<String>,
        request: AuthorizationRequest,
        now: Timestamp,
    ) -> Result<(String, String), OAuthError> {
        let (cookie, request_id) = (cookie.map_or_else(random, Ok)?, random()?);
        let mut sessions = self.sessions();
        if sessions.get_mut(&cookie).is_none() {
            sessions.insert(cookie.clone(), BrowserSession::default());
        }
        if let Some(session) = sessions.get_mut(&cookie) {
            if session.pending.len() == MAX_PENDING_PER_BROWSER {
                session.pending.pop_front();
            }
            let pending = PendingAuthorization { request, logged_in: false, started: now };
            session.pending.push_back((request_id.clone(), pending));
        }
        Ok((cookie, request_id))
    }

    /// Returns the pending request, for ten minutes after it began.
    pub(super) fn pending(
        &self,
        cookie: &str,
        request_id: &str,
        now: Timestamp,
    ) -> Option<PendingAuthorization> {
        let mut sessions = self.sessions();
        let session = sessions.get_mut(&cookie.to_owned())?;
        let (_, pending) = session.pending.iter().find(|(id, _)| id == request_id)?;
        (now.since(pending.started) < REQUEST_TIMEOUT).then(|| pending.clone())
    }

    /// Removes a pending request whose client has its response.
    pub(super) fn finish(&self, cookie: &str, request_id: &str) {
        if let Some(session) = self.sessions().get_mut(&cookie.to_owned()) {
            session.pending.retain(|(id, _)| id != request_id);
        }
    }

    /// Returns the login in the session, for eight hours after it was made.
    pub(super) fn login(&self, cookie: &str, now: Timestamp) -> Option<Login> {
        let mut sessions = self.sessions();
        let login = sessions.get_mut(&cookie.to_owned())?.login.as_ref()?;
        (now.since(login.facts.at) < LOGIN_LIFETIME).then(|| login.clone())
    }

    /// Stores the login of `user`, made for the pending request, and returns the new cookie.
    ///
    /// The old cookie becomes invalid, so that one planted before is worthless (session fixation).
    pub(super) fn log_in(
        &self,
        cookie: &str,
        request_id: &str,
        user: &Arc<str>,
        now: Timestamp,
    ) -> Result<String, OAuthError> {
        let (new_cookie, sid) = (random()?, random()?);
        let mut sessions = self.sessions();
        let mut session = sessions.remove(&cookie.to_owned()).unwrap_or_default();
        session.login = Some(Login {
            user: Arc::clone(user),
            facts: LoginFacts { sid: sid.into(), at: now },
            consents: HashMap::new(),
        });
        if let Some((_, pending)) = session.pending.iter_mut().find(|(id, _)| id == request_id) {
            pending.logged_in = true;
        }
        sessions.insert(new_cookie.clone(), session);
        Ok(new_cookie)
    }

    /// Records that the user has consented to `scopes` for `client`.
    pub(super) fn record_consent(&self, cookie: &str, client: &Arc<str>, scopes: &Scopes) {
        let mut sessions = self.sessions();
        if let Some(login) = sessions.get_mut(&cookie.to_owned()).and_then(|s| s.login.as_mut()) {
            let consented = login.consents.entry(Arc::clone(client)).or_default();
            *consented = consented.iter().chain(scopes.iter()).collect();
        }
    }

    /// Removes the session.
    pub(super) fn log_out(&self, cookie: &str) {
        self.sessions().remove(&cookie.to_owned());
    }

    fn sessions(&self) -> MutexGuard<'_, BoundedMap<String, BrowserSession>> {
        self.0.lock().ignore_poison()
    }
}

/// Adds the `Set-Cookie` field of the session to `response`.
pub(super) fn set_cookie(mut response: Response, cookie: &str) -> Response {
    let field =
        format!("{COOKIE_NAME}={cookie}; Path={}; HttpOnly; SameSite=Lax", paths::AUTHORIZE);
    if let Ok(field) = HeaderValue::try_from(field) {
        response.headers_mut().append(SET_COOKIE, field);
    }
    response
}

const COOKIE_NAME: &str = "development_browser";
/// Pending requests in one browser: one for each of a few tabs.
const MAX_PENDING_PER_BROWSER: usize = 5;
const MAX_BROWSERS: usize = 10_000;
/// How long a request may wait for the user.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a login lasts.
const LOGIN_LIFETIME: Duration = Duration::from_secs(8 * 3600);
