//! A person's way: the client's request, a login, consent, and back with a code (RFC 6749 §4.1).
//!
//! Whatever happened so far, [`next`] decides what comes next. Answers to a
//! form are redirects with GET, so that a password is never sent on.

use std::sync::Arc;

use http::{Method, StatusCode};

use super::browser::{Login, Pending, remembering};
use super::clients::Client;
use super::error::{Code, OAuthError};
use super::issue::random;
use super::pages;
use super::reply::{self, Reply};
use super::request::{AuthorizationRequest, Back, Refused};
use super::store::{Code as CodeFacts, Grant};
use super::{Call, DevIssuer, path};
use crate::base::scopes::Scopes;

/// A client sent somebody here.
pub(super) fn begin(issuer: &DevIssuer, call: &Call) -> Result<Reply, OAuthError> {
    let query = match call.head.method {
        Method::POST => &call.body,
        _ => call.head.uri.query().unwrap_or_default().as_bytes(),
    };
    let request = match AuthorizationRequest::check(issuer, query) {
        Ok(request) => request,
        Err(Refused::Person(why)) => return Ok(pages::refusal(why)),
        Err(Refused::Client(back, error)) => return Ok(refuse(issuer, &back, error)),
    };
    let known = issuer.browsers.find(&call.head.headers);
    let now = issuer.clock.now();
    let (browser, name) = issuer.browsers.begin(known, request.clone(), now)?;
    let page = Page { issuer, browser: &browser, name: &name };
    let reply = match issuer.browsers.pending(&browser, &name, now) {
        Some(pending) => page.next(&pending)?,
        None => pages::refusal(STALE),
    };
    Ok(remembering(reply, &browser))
}

/// The login form comes back.
pub(super) fn log_in(issuer: &DevIssuer, call: &Call) -> Result<Reply, OAuthError> {
    let form = call.form()?;
    let name = form.one("request").unwrap_or_default();
    let Some((browser, pending)) = waiting(issuer, call, name) else {
        return Ok(pages::refusal(STALE));
    };
    let username = form.one("username").unwrap_or_default();
    let password = form.one("password").unwrap_or_default();
    match issuer.people.authenticate(username, password) {
        Some(person) => {
            let now = issuer.clock.now();
            let browser = issuer.browsers.log_in(&browser, name, &person.name, now)?;
            Ok(remembering(
                reply::see_other(&format!("{}?request={name}", path::CONSENT)),
                &browser,
            ))
        }
        None => Ok(pages::login(issuer, &pending.request, name, Some(username))),
    }
}

/// A login was enough, or the consent page is to be shown.
pub(super) fn go_on(issuer: &DevIssuer, call: &Call) -> Result<Reply, OAuthError> {
    let query = super::form::Form::parse(call.head.uri.query().unwrap_or_default().as_bytes())?;
    let name = query.one("request").unwrap_or_default();
    match waiting(issuer, call, name) {
        Some((browser, pending)) => Page { issuer, browser: &browser, name }.next(&pending),
        None => Ok(pages::refusal(STALE)),
    }
}

/// The consent form comes back: the person may have granted less than was asked for, never more.
pub(super) fn consent(issuer: &DevIssuer, call: &Call) -> Result<Reply, OAuthError> {
    let form = call.form()?;
    let name = form.one("request").unwrap_or_default();
    let Some((browser, Pending { request, logged_in, .. })) = waiting(issuer, call, name) else {
        return Ok(pages::refusal(STALE));
    };
    let page = Page { issuer, browser: &browser, name };
    let Some(login) = page.login(&request, logged_in) else {
        return Ok(pages::login(issuer, &request, name, None));
    };
    // The client as it is now: it may have been replaced while the page was open.
    let client = issuer.clients.find(&request.client.id);
    let Some(client) = client.filter(|client| request.scopes.is_subset(&client.scopes)) else {
        return Ok(pages::refusal("The client that sent you here is no longer known."));
    };
    let granted: Scopes = request
        .scopes
        .iter()
        .filter(|scope| *scope == "openid" || form.one(&pages::box_of(scope)).is_some())
        .collect();
    issuer.browsers.finish(&browser, name);
    if form.one("decision") != Some("allow") || granted.is_empty() {
        let error = OAuthError::new(Code::AccessDenied, "The person did not agree.");
        return Ok(refuse(issuer, &request.back, error));
    }
    issuer.browsers.consented(&browser, &client.id, &granted);
    grant(issuer, &client, &request, &login, granted)
}

/// One browser's page for one request.
struct Page<'a> {
    issuer: &'a DevIssuer,
    browser: &'a str,
    name: &'a str,
}

impl Page<'_> {
    /// Login, consent, or the way back: whatever is missing.
    fn next(&self, Pending { request, logged_in, .. }: &Pending) -> Result<Reply, OAuthError> {
        let ask = |code, description, page: &dyn Fn() -> Reply| {
            if !request.prompt.none {
                return page();
            }
            self.issuer.browsers.finish(self.browser, self.name);
            refuse(self.issuer, &request.back, OAuthError::new(code, description))
        };
        let Some(login) = self.login(request, *logged_in) else {
            let page = || pages::login(self.issuer, request, self.name, None);
            return Ok(ask(Code::LoginRequired, "Nobody is logged in.", &page));
        };
        let agreed = login.has_consented(&request.client.id, &request.scopes);
        if request.prompt.consent || !agreed {
            let page = || pages::consent(request, self.name, &login.person);
            return Ok(ask(Code::ConsentRequired, "The person has not agreed yet.", &page));
        }
        self.issuer.browsers.finish(self.browser, self.name);
        grant(self.issuer, &request.client, request, &login, request.scopes.clone())
    }

    /// The login, if it is good enough for the request; one made because of the request always is.
    fn login(&self, request: &AuthorizationRequest, logged_in: bool) -> Option<Login> {
        let now = self.issuer.clock.now();
        let login = self.issuer.browsers.login(self.browser, now)?;
        let recent = request.max_age.is_none_or(|most| now.since(login.facts.at) <= most);
        (logged_in || (recent && !request.prompt.login)).then_some(login)
    }
}

/// The request that waits under `name` in the browser that is calling.
fn waiting(issuer: &DevIssuer, call: &Call, name: &str) -> Option<(String, Pending)> {
    let browser = issuer.browsers.find(&call.head.headers)?;
    let pending = issuer.browsers.pending(&browser, name, issuer.clock.now())?;
    Some((browser, pending))
}

/// Back to the client with a code for what was granted.
fn grant(
    issuer: &DevIssuer,
    client: &Client,
    request: &AuthorizationRequest,
    login: &Login,
    scopes: Scopes,
) -> Result<Reply, OAuthError> {
    let code = random()?;
    let id = issuer.store.open(Grant {
        client: Arc::clone(&client.id),
        subject: Arc::clone(&login.person),
        login: Some(login.facts.clone()),
        scopes,
        audience: request.audience.clone(),
    });
    let facts = CodeFacts {
        redirect_uri: request.back.redirect_uri.clone(),
        challenge: request.challenge.clone(),
        nonce: request.nonce.clone(),
        expires: issuer.clock.now().plus_secs(CODE_LIFETIME),
    };
    issuer.store.add_code(&code, id, facts);
    Ok(back(issuer, &request.back, &[("code", &code)]))
}

/// Back to the client without one (RFC 6749 §4.1.2.1).
fn refuse(issuer: &DevIssuer, to: &Back, error: OAuthError) -> Reply {
    back(issuer, to, &[("error", error.code.name()), ("error_description", error.description)])
}

fn back(issuer: &DevIssuer, to: &Back, answer: &[(&str, &str)]) -> Reply {
    match to.with(issuer, answer) {
        Some(location) => reply::see_other(&location),
        None => reply::empty(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

const STALE: &str = "This page is too old, or it was opened in another browser. Go back to where you came from, and begin again.";
/// Seconds a code lives (RFC 6749 §4.1.2 allows ten minutes at most).
const CODE_LIFETIME: u64 = 300;
