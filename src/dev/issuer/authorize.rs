//! The authorization endpoint (RFC 6749 §4.1): the client's request, the login, the consent, and the redirect with a code.
//!
//! Whatever has happened so far, [`Interaction::next`] decides the next step.
//! Forms are answered by redirects with `GET`, so that a password is never sent on.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, Uri};

use super::authorization_request::{AuthorizationRequest, InvalidRequest, RedirectBack};
use super::browser_sessions::{Login, PendingAuthorization, set_cookie};
use super::clients::Client;
use super::error::{ErrorCode, OAuthError};
use super::form::{Form, Parameters, Query};
use super::random::random;
use super::store::{AuthorizationCode, Grant};
use super::{DevIssuer, pages, paths, response};
use crate::base::scopes::Scopes;

/// Starts an authorization whose parameters are in the query.
pub(super) async fn start(
    State(issuer): State<Arc<DevIssuer>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, OAuthError> {
    start_with(&issuer, &headers, uri.query().unwrap_or_default().as_bytes())
}

/// Starts an authorization whose parameters are in the content (OpenID Connect Core §3.1.2.1).
pub(super) async fn start_by_form(
    State(issuer): State<Arc<DevIssuer>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, OAuthError> {
    start_with(&issuer, &headers, &body)
}

fn start_with(
    issuer: &DevIssuer,
    headers: &HeaderMap,
    parameters: &[u8],
) -> Result<Response, OAuthError> {
    let request = match read_request(issuer, parameters) {
        Ok(request) => request,
        Err(InvalidRequest::NoRedirect(problem)) => return Ok(pages::refusal(problem)),
        Err(InvalidRequest::Redirect(back, error)) => {
            return Ok(redirect_error(issuer, &back, error));
        }
    };
    let known = issuer.browser_sessions.find(headers);
    let now = issuer.clock.now();
    let (cookie, request_id) = issuer.browser_sessions.start(known, request, now)?;
    let interaction = Interaction { issuer, cookie: &cookie, request_id: &request_id };
    let response = match issuer.browser_sessions.pending(&cookie, &request_id, now) {
        Some(pending) => interaction.next(&pending)?,
        None => pages::refusal(STALE_PAGE),
    };
    Ok(set_cookie(response, &cookie))
}

/// Reads what a browser presents: a request, or the URI of one that the client has pushed.
fn read_request(issuer: &DevIssuer, query: &[u8]) -> Result<AuthorizationRequest, InvalidRequest> {
    let (form, repeated) = Parameters::parse_leniently(query);
    let client =
        form.one("client_id").ok_or(InvalidRequest::NoRedirect("The request names no client."))?;
    let client = issuer
        .clients
        .find(client)
        .ok_or(InvalidRequest::NoRedirect("The client that sent you here is unknown."))?;
    if let Some(uri) = form.one("request_uri").filter(|uri| uri.starts_with("urn:")) {
        let pushed = issuer.pushed_requests.take(uri, &client.id, issuer.clock.now());
        return pushed
            .ok_or(InvalidRequest::NoRedirect("The client's request is unknown, or too old."));
    }
    match repeated {
        None => AuthorizationRequest::validate(&issuer.config, client, &form),
        Some(error) => {
            Err(InvalidRequest::Redirect(RedirectBack::validate(&client, &form)?, error))
        }
    }
}

/// Handles the login form.
pub(super) async fn log_in(
    State(issuer): State<Arc<DevIssuer>>,
    headers: HeaderMap,
    Form(form): Form,
) -> Result<Response, OAuthError> {
    let request_id = form.one("request").unwrap_or_default();
    let Some((cookie, pending)) = pending(&issuer, &headers, request_id) else {
        return Ok(pages::refusal(STALE_PAGE));
    };
    let username = form.one("username").unwrap_or_default();
    let password = form.one("password").unwrap_or_default();
    let Some(user) = issuer.users.authenticate(username, password) else {
        return Ok(pages::login(&issuer, &pending.request, request_id, Some(username)));
    };
    let now = issuer.clock.now();
    let cookie = issuer.browser_sessions.log_in(&cookie, request_id, &user.name, now)?;
    let location = format!("{}?request={request_id}", paths::CONSENT);
    Ok(set_cookie(response::see_other(&location), &cookie))
}

/// Resumes an authorization after the login: redirects to the client, or shows the consent form.
pub(super) async fn resume(
    State(issuer): State<Arc<DevIssuer>>,
    headers: HeaderMap,
    Query(query): Query,
) -> Result<Response, OAuthError> {
    let request_id = query.one("request").unwrap_or_default();
    match pending(&issuer, &headers, request_id) {
        Some((cookie, pending)) => {
            Interaction { issuer: &issuer, cookie: &cookie, request_id }.next(&pending)
        }
        None => Ok(pages::refusal(STALE_PAGE)),
    }
}

/// Handles the consent form. The user may grant fewer scopes than the client asked for; a form
/// that names another scope is refused, since no page of this issuer contains it.
pub(super) async fn consent(
    State(issuer): State<Arc<DevIssuer>>,
    headers: HeaderMap,
    Form(form): Form,
) -> Result<Response, OAuthError> {
    let issuer = &*issuer;
    let request_id = form.one("request").unwrap_or_default();
    let Some((cookie, pending)) = pending(issuer, &headers, request_id) else {
        return Ok(pages::refusal(STALE_PAGE));
    };
    let PendingAuthorization { request, logged_in, .. } = pending;
    let interaction = Interaction { issuer, cookie: &cookie, request_id };
    let Some(login) = interaction.login(&request, logged_in) else {
        return Ok(pages::login(issuer, &request, request_id, None));
    };
    // The client as it is now: it may have been replaced while the page was open.
    let client = issuer.clients.find(&request.client.id);
    let Some(client) = client.filter(|client| request.scopes.is_subset(&client.scopes)) else {
        return Ok(pages::refusal("The client that sent you here is no longer known."));
    };
    let granted = match granted_scopes(&request, &form) {
        Ok(granted) => granted,
        Err(NotRequested(scope)) => {
            tracing::warn!(
                client = &*client.id,
                scope,
                "A consent form named a scope that the client did not ask for; nothing was granted."
            );
            return Ok(pages::refusal("The form allows more than the client asked for."));
        }
    };
    issuer.browser_sessions.finish(&cookie, request_id);
    if form.one("decision") != Some("allow") || granted.is_empty() {
        let error = OAuthError::new(ErrorCode::AccessDenied, "The user did not consent.");
        return Ok(redirect_error(issuer, &request.back, error));
    }
    issuer.browser_sessions.record_consent(&cookie, &client.id, &granted);
    redirect_code(issuer, &client, &request, &login, granted)
}

/// A consent form named this scope, and the client did not ask for it.
struct NotRequested(String);

/// Returns the requested scopes whose boxes are checked; `openid` has none and is always granted.
fn granted_scopes(
    request: &AuthorizationRequest,
    form: &Parameters,
) -> Result<Scopes, NotRequested> {
    let mut checked = form.names().filter_map(pages::scope_of_box);
    if let Some(scope) = checked.find(|scope| !request.scopes.contains(scope)) {
        return Err(NotRequested(scope.to_owned()));
    }
    let is_granted =
        |scope: &&str| *scope == "openid" || form.one(&pages::box_of_scope(scope)).is_some();
    Ok(request.scopes.iter().filter(is_granted).collect())
}

/// One pending request in one browser.
struct Interaction<'a> {
    issuer: &'a DevIssuer,
    cookie: &'a str,
    request_id: &'a str,
}

impl Interaction<'_> {
    /// Returns the login page, the consent page or the redirect to the client: the first that is needed.
    fn next(&self, pending: &PendingAuthorization) -> Result<Response, OAuthError> {
        let PendingAuthorization { request, logged_in, .. } = pending;
        let ask = |code, description, page: &dyn Fn() -> Response| {
            if !request.prompt.none {
                return page();
            }
            self.issuer.browser_sessions.finish(self.cookie, self.request_id);
            redirect_error(self.issuer, &request.back, OAuthError::new(code, description))
        };
        let Some(login) = self.login(request, *logged_in) else {
            let page = || pages::login(self.issuer, request, self.request_id, None);
            return Ok(ask(ErrorCode::LoginRequired, "No user is logged in.", &page));
        };
        let consented = login.has_consented(&request.client.id, &request.scopes);
        if request.prompt.consent || !consented {
            let page = || pages::consent(request, self.request_id, &login.user);
            return Ok(ask(ErrorCode::ConsentRequired, "The user has not consented yet.", &page));
        }
        self.issuer.browser_sessions.finish(self.cookie, self.request_id);
        redirect_code(self.issuer, &request.client, request, &login, request.scopes.clone())
    }

    /// Returns the login, if it satisfies `prompt` and `max_age`; one made for this request always does.
    fn login(&self, request: &AuthorizationRequest, logged_in: bool) -> Option<Login> {
        let now = self.issuer.clock.now();
        let login = self.issuer.browser_sessions.login(self.cookie, now)?;
        let recent = request.max_age.is_none_or(|max| now.since(login.facts.at) <= max);
        (logged_in || (recent && !request.prompt.login)).then_some(login)
    }
}

/// Returns the cookie of the browser that sent `headers` and its pending request.
fn pending(
    issuer: &DevIssuer,
    headers: &HeaderMap,
    request_id: &str,
) -> Option<(String, PendingAuthorization)> {
    let cookie = issuer.browser_sessions.find(headers)?;
    let pending = issuer.browser_sessions.pending(&cookie, request_id, issuer.clock.now())?;
    Some((cookie, pending))
}

/// Redirects to the client with a code for `scopes` (RFC 6749 §4.1.2).
fn redirect_code(
    issuer: &DevIssuer,
    client: &Client,
    request: &AuthorizationRequest,
    login: &Login,
    scopes: Scopes,
) -> Result<Response, OAuthError> {
    let code = random()?;
    let id = issuer.store.add_grant(Grant {
        client: Arc::clone(&client.id),
        subject: Arc::clone(&login.user),
        login: Some(login.facts.clone()),
        scopes,
        audience: request.audience.clone(),
    });
    let facts = AuthorizationCode {
        redirect_uri: request.back.redirect_uri.clone(),
        challenge: request.challenge.clone(),
        nonce: request.nonce.clone(),
        expires: issuer.clock.now().plus_secs(CODE_LIFETIME_SECS),
    };
    issuer.store.add_code(&code, id, facts);
    Ok(redirect(issuer, &request.back, &[("code", &code)]))
}

/// Redirects to the client with an error (RFC 6749 §4.1.2.1).
fn redirect_error(issuer: &DevIssuer, back: &RedirectBack, error: OAuthError) -> Response {
    let parameters = [("error", error.code.name()), ("error_description", error.description)];
    redirect(issuer, back, &parameters)
}

fn redirect(issuer: &DevIssuer, back: &RedirectBack, parameters: &[(&str, &str)]) -> Response {
    match back.location(&issuer.url, parameters) {
        Some(location) => response::see_other(&location),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

const STALE_PAGE: &str = "This page is too old, or it was opened in another browser. Go back to where you came from, and begin again.";
/// The lifetime of a code (RFC 6749 §4.1.2 allows ten minutes at most).
const CODE_LIFETIME_SECS: u64 = 300;
