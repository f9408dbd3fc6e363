//! What is known of each browser: who is logged in there, and which requests wait for that person.
//!
//! A browser is known by a random cookie. A request that waits can only be
//! continued from the browser it began in, with the random name that its page's
//! form carries: no other site can post that form (CSRF), and no other browser
//! can finish it.

use core::time::Duration;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderValue};

use super::bounded::Bounded;
use super::error::OAuthError;
use super::issue::random;
use super::path;
use super::reply::Reply;
use super::request::AuthorizationRequest;
use super::store::LoginFacts;
use crate::base::clock::Timestamp;
use crate::base::scopes::Scopes;

/// A person's login in one browser.
#[derive(Clone, Debug)]
pub(super) struct Login {
    /// Who it is.
    pub(super) person: Arc<str>,
    /// When it was, and what tokens call it.
    pub(super) facts: LoginFacts,
    /// What was agreed to during it, by client.
    consents: HashMap<Arc<str>, Scopes>,
}

impl Login {
    /// Whether the person has agreed to all of this already.
    pub(super) fn has_consented(&self, client: &str, scopes: &Scopes) -> bool {
        self.consents.get(client).is_some_and(|agreed| scopes.is_subset(agreed))
    }
}

/// A request that waits for a person.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) request: AuthorizationRequest,
    /// Whether the person has logged in because of it.
    pub(super) logged_in: bool,
    begun: Timestamp,
}

/// Every browser, by its cookie.
#[derive(Debug)]
pub(super) struct Browsers(Mutex<Bounded<String, Browser>>);

#[derive(Debug, Default)]
struct Browser {
    login: Option<Login>,
    /// By the random name that a page's form carries; the oldest first.
    pending: VecDeque<(String, Pending)>,
}

impl Browsers {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Bounded::new(MOST_BROWSERS)))
    }

    /// The browser that sent `headers`, if it is known.
    pub(super) fn find(&self, headers: &HeaderMap) -> Option<String> {
        let cookies = headers.get_all(COOKIE).iter().filter_map(|field| field.to_str().ok());
        let mut pairs =
            cookies.flat_map(|field| field.split("; ")).filter_map(|c| c.split_once('='));
        let (_, id) = pairs.find(|(name, _)| *name == COOKIE_NAME)?;
        self.browsers().find(&id.to_owned()).map(|_| id.to_owned())
    }

    /// Keeps a request waiting in `browser`, or in a new one; answers the browser and the form's name for the request.
    pub(super) fn begin(
        &self,
        browser: Option<String>,
        request: AuthorizationRequest,
        now: Timestamp,
    ) -> Result<(String, String), OAuthError> {
        let (id, name) = (browser.map_or_else(random, Ok)?, random()?);
        let mut browsers = self.browsers();
        if browsers.find(&id).is_none() {
            browsers.insert(id.clone(), Browser::default());
        }
        if let Some(browser) = browsers.find(&id) {
            if browser.pending.len() == MOST_PENDING {
                browser.pending.pop_front();
            }
            let pending = Pending { request, logged_in: false, begun: now };
            browser.pending.push_back((name.clone(), pending));
        }
        Ok((id, name))
    }

    /// The request that waits under `name`, for ten minutes at most.
    pub(super) fn pending(&self, browser: &str, name: &str, now: Timestamp) -> Option<Pending> {
        let mut browsers = self.browsers();
        let browser = browsers.find(&browser.to_owned())?;
        let (_, pending) = browser.pending.iter().find(|(have, _)| have == name)?;
        (now.since(pending.begun) < PATIENCE).then(|| pending.clone())
    }

    /// The request under `name` has its answer.
    pub(super) fn finish(&self, browser: &str, name: &str) {
        if let Some(browser) = self.browsers().find(&browser.to_owned()) {
            browser.pending.retain(|(have, _)| have != name);
        }
    }

    /// Who is logged in, for eight hours at most.
    pub(super) fn login(&self, browser: &str, now: Timestamp) -> Option<Login> {
        let mut browsers = self.browsers();
        let login = browsers.find(&browser.to_owned())?.login.as_ref()?;
        (now.since(login.facts.at) < LOGIN_LIFETIME).then(|| login.clone())
    }

    /// A person has proved who they are, answering the request under `name`.
    ///
    /// The browser gets a new cookie, so that one planted before is worth nothing.
    pub(super) fn log_in(
        &self,
        browser: &str,
        name: &str,
        person: &Arc<str>,
        now: Timestamp,
    ) -> Result<String, OAuthError> {
        let (id, sid) = (random()?, random()?);
        let mut browsers = self.browsers();
        let mut known = browsers.remove(&browser.to_owned()).unwrap_or_default();
        known.login = Some(Login {
            person: Arc::clone(person),
            facts: LoginFacts { sid: sid.into(), at: now },
            consents: HashMap::new(),
        });
        if let Some((_, pending)) = known.pending.iter_mut().find(|(have, _)| have == name) {
            pending.logged_in = true;
        }
        browsers.insert(id.clone(), known);
        Ok(id)
    }

    /// The person has agreed that `client` may have `scopes`.
    pub(super) fn consented(&self, browser: &str, client: &Arc<str>, scopes: &Scopes) {
        let mut browsers = self.browsers();
        if let Some(login) = browsers.find(&browser.to_owned()).and_then(|b| b.login.as_mut()) {
            let agreed = login.consents.entry(Arc::clone(client)).or_default();
            *agreed = agreed.iter().chain(scopes.iter()).collect();
        }
    }

    /// Forgets the browser, and says who was logged in there.
    pub(super) fn log_out(&self, browser: &str) -> Option<Login> {
        self.browsers().remove(&browser.to_owned())?.login
    }

    fn browsers(&self) -> MutexGuard<'_, Bounded<String, Browser>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The same answer, with the cookie that makes the browser known.
pub(super) fn remembering(mut reply: Reply, browser: &str) -> Reply {
    let cookie =
        format!("{COOKIE_NAME}={browser}; Path={}; HttpOnly; SameSite=Lax", path::AUTHORIZE);
    if let Ok(cookie) = HeaderValue::try_from(cookie) {
        reply.headers_mut().append(SET_COOKIE, cookie);
    }
    reply
}

const COOKIE_NAME: &str = "development_browser";
/// Requests that may wait in one browser: one for each of a few tabs.
const MOST_PENDING: usize = 5;
const MOST_BROWSERS: usize = 10_000;
/// How long a request waits.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long a login lasts.
const LOGIN_LIFETIME: Duration = Duration::from_secs(8 * 3600);
