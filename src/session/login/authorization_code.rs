//! Login at the issuer (`flow: code`): redirect to the issuer and callback.
//!
//! Authorization code with PKCE (RFC 7636), `state`, `nonce` and `iss` (RFC 9207), pushed if the issuer supports that
//! (RFC 9126). A callback must belong to a login begun in the same browser. A callback that does not leads to an error
//! page only as a last resort: a user with a session continues, any other user is redirected to the issuer again, at
//! most twice.

use core::time::Duration;
use std::borrow::Cow;

use http::header::SET_COOKIE;
use http::request::Parts;
use http::{HeaderValue, Request, Response};
use url::form_urlencoded;

use super::login_cookies::PendingLogins;
use super::login_transaction::{LoginIntent, LoginTransaction, restarts};
use super::password_login::NewSession;
use super::redeem_code::RedemptionError;
use super::return_to::ReturnTarget;
use crate::base::body::Body;
use crate::base::secret::Secret;
use crate::observe::metrics::LoginResult;
use crate::session::Sessions;
use crate::session::authenticate::{RETRY_AFTER, ResumedSession};
use crate::session::logout::ended_sessions::EndReason;
use crate::session::pages::Problem;
use crate::session::response::{retry_after, see_other, with_cookies};
use crate::session::settings::SameSite;

impl Sessions {
    /// Redirects a browser to the issuer.
    pub(crate) async fn redirect_to_issuer(&self, request: &Parts) -> Response<Body> {
        let now = self.clock.now();
        let target = self.requested_target(request.uri.query());
        let mut rounds = self.logins.completed(&request.headers, now);
        let step_up = self.requested_step_up(request);
        let mut refreshed = Vec::new();
        let mut has_session = false;
        if rounds > 0
            && let Ok((ResumedSession { loaded, principal, .. }, cookies)) =
                self.load(request).await
        {
            (has_session, refreshed) = (true, cookies);
            let since = loaded.state.since;
            if !step_up.as_ref().is_some_and(|level| level.was_met_in_vain(&principal, since)) {
                // The last login has led to a session: its user, or another route, wants another one.
                rounds = 0;
            }
        }
        if rounds >= MAX_ROUNDS {
            if has_session {
                let target = target.as_ref().map(ReturnTarget::as_str);
                let response = self.login_failed(LoginResult::Error, Problem::StepUp, target);
                let forget = self.logins.forget_completed(&request.headers);
                return with_cookies(with_cookies(response, refreshed), forget);
            }
            return self.stop_loop(request, target.as_ref()).await;
        }
        let target = target.map(|target| target.as_str().into());
        let pending = self.logins.read(&request.headers, now);
        let replaces = self.unseen_session(request).await;
        let intent = LoginIntent { restarts: 0, rounds, target, step_up, replaces };
        with_cookies(self.begin_login(&pending, intent).await, refreshed)
    }

    /// Handles the redirect from the issuer back to the gateway (RFC 6749 §4.1.2).
    pub(crate) async fn handle_callback(&self, request: Request<Body>) -> Response<Body> {
        let (head, _) = request.into_parts();
        let Some(callback) = CallbackParameters::read(head.uri.query().unwrap_or_default()) else {
            return self.login_failed(LoginResult::Mismatch, Problem::Mismatch, None);
        };
        let now = self.clock.now();
        let mut pending = self.logins.read(&head.headers, now);
        let state = callback.state.as_deref().unwrap_or_default();
        let Some(login) = pending.finish(state, now) else {
            return self.handle_unknown_callback(&head, &callback, &pending).await;
        };
        let restart = match self.finish(&head, &callback, &login).await {
            Ok(response) => return with_cookies(response, self.logins.clear_finished(&pending)),
            Err(CallbackError::Failed(result, problem)) => {
                let target = login.intent.target.as_deref();
                let response = self.login_failed(result, problem, target);
                return with_cookies(response, self.logins.clear_finished(&pending));
            }
            Err(CallbackError::Late) => {
                // The login stays pending: the same request, repeated, finds the outcome.
                let target = login.intent.target.as_deref();
                return self.login_failed(LoginResult::Error, Problem::Unavailable, target);
            }
            Err(CallbackError::Transient) => login.intent.restarts < MAX_TRANSIENT_RESTARTS,
            Err(CallbackError::Refused) => {
                // The callback was loaded twice, and the first request has logged in. A session from before this login
                // does not count.
                if let Ok((resumed, cookies)) = self.load(&head).await
                    && login.has_led_to(&resumed)
                {
                    let response = with_cookies(self.redirect_after_login(&login), cookies);
                    return with_cookies(response, self.logins.clear_finished(&pending));
                }
                self.metrics.login(LoginResult::Rejected);
                // The code may have expired while the user was away, or another instance has redeemed it. Any other
                // code would be refused again: the user gets an error page, and the log a line, at once.
                let may_be_used = self.refresher.sharing.is_some();
                let may_be_late = now.since(login.began()) >= FRESH_CODE;
                login.intent.restarts == 0 && (may_be_used || may_be_late)
            }
        };
        if restart {
            let cookies = self.logins.clear_finished(&pending);
            let response = self.begin_login(&pending, login.intent.restarted()).await;
            return with_missing_cookies(response, cookies);
        }
        let (problem, target) = (Problem::Refused, login.intent.target.as_deref());
        let problem = if callback.error.is_some() { Problem::Declined } else { problem };
        let response = self.problem_page(problem, target);
        with_cookies(response, self.logins.clear_finished(&pending))
    }

    /// Begins a login, and redirects to the issuer.
    async fn begin_login(&self, pending: &PendingLogins, intent: LoginIntent) -> Response<Body> {
        let mut login = LoginTransaction::begin(intent, self.clock.now());
        let client = &self.settings.client;
        let request_parameters = self.request_parameters(&login);
        let target = login.intent.target.clone();
        let target = target.as_deref();
        let Ok(request_parameters) = self.issuer.signed_if_required(request_parameters, client)
        else {
            return self.login_failed(LoginResult::Error, Problem::Unavailable, target);
        };
        let pushed = self.issuer.push(request_parameters.clone(), client).await;
        let metadata = self.issuer.metadata();
        // A server that accepts other requests too would accept one that the user has made up; but its ID token would
        // lack the `nonce`, which the user does not know.
        let is_pushed = matches!(pushed, Ok(Some(_)));
        login.is_protected = metadata.requires_signed_request
            || (is_pushed && (metadata.requires_par || self.wants_id_token()));
        let Some(mut url) = metadata.endpoints.authorization.clone() else {
            let issuer = &*self.issuer.settings().name;
            tracing::error!(
                issuer,
                "No authorization endpoint is known for this issuer; logins fail."
            );
            return self.login_failed(LoginResult::Error, Problem::Unavailable, target);
        };
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("client_id", &client.id);
            match pushed {
                Ok(Some(name)) => {
                    query.append_pair("request_uri", &name);
                }
                Err(_) if metadata.requires_par => {
                    drop(query);
                    return self.login_failed(LoginResult::Error, Problem::Unavailable, target);
                }
                Ok(None) | Err(_) => {
                    query.extend_pairs(&request_parameters);
                }
            }
        }
        let Ok(location) = HeaderValue::from_str(url.as_str()) else {
            return self.login_failed(LoginResult::Error, Problem::Unavailable, target);
        };
        with_cookies(see_other(location), self.logins.add(pending, &login))
    }

    /// The parameters of the authorization request, without `client_id` (RFC 6749 §4.1.1).
    fn request_parameters(&self, login: &LoginTransaction) -> Vec<(Cow<'static, str>, String)> {
        let settings = &self.settings;
        let target = login.intent.target.as_deref();
        let mut state = login.state();
        if let Some(target) = target.and_then(|target| self.logins.seal_into_state(target)) {
            state.push('.');
            state.push_str(&target);
        }
        let mut request_parameters = vec![
            ("response_type".into(), "code".to_owned()),
            ("redirect_uri".into(), self.redirect_uri()),
            ("scope".into(), settings.scopes.to_string()),
            ("state".into(), state),
            ("code_challenge".into(), login.challenge()),
            ("code_challenge_method".into(), "S256".to_owned()),
        ];
        if self.wants_id_token() {
            request_parameters.push(("nonce".into(), login.nonce()));
        }
        if let Some(resource) = &settings.resource {
            request_parameters.push(("resource".into(), resource.as_str().to_owned()));
        }
        // After `login_required` the user has to be asked, whatever is configured.
        let level = login.intent.step_up.as_ref().map(|step_up| &step_up.level);
        if let Some(level) = level {
            if !level.acr.is_empty() {
                request_parameters.push(("acr_values".into(), level.acr_values()));
            }
            // A step-up asks for no older login than any other does.
            if let Some(max_age) = level.max_age.into_iter().chain(settings.max_age()).min() {
                request_parameters.push(("max_age".into(), max_age.as_secs().to_string()));
            }
        }
        let own = settings.prompt.iter().map(|prompt| ("prompt", &**prompt));
        let more = settings.authorize_parameters.iter().map(|(name, value)| (&**name, &**value));
        let more = own.chain(more);
        let asks = |(name, value): &(&str, &str)| {
            let asks_none = *name == "prompt" && *value == "none";
            // A step-up asks the user, in its own terms.
            let is_replaced = level.is_some() && matches!(*name, "acr_values" | "max_age");
            !is_replaced && !(asks_none && (login.intent.restarts > 0 || level.is_some()))
        };
        request_parameters.extend(
            more.filter(asks).map(|(name, value)| (name.to_owned().into(), value.to_owned())),
        );
        request_parameters
    }

    /// Redeems the code and begins a session.
    async fn finish(
        &self,
        head: &Parts,
        callback: &CallbackParameters<'_>,
        login: &LoginTransaction,
    ) -> Result<Response<Body>, CallbackError> {
        match &callback.iss {
            Some(iss) if self.issuer.settings().is_named(iss) => {}
            None if !self.issuer.metadata().sends_iss => {}
            // A response of another issuer, or one without the `iss` that this issuer announces (RFC 9207 §2.4).
            received => {
                let session = &*self.settings.name;
                let expected = &*self.issuer.settings().issuer;
                // Safe to log: it came with the `state` of a login of this browser.
                let received: String =
                    received.iter().flat_map(|iss| iss.chars()).take(MAX_ISS_CHARS).collect();
                tracing::warn!(
                    session,
                    expected,
                    received,
                    "Refused a callback by its `iss`; the login failed. The issuer announces `iss` in callbacks, or calls itself otherwise there."
                );
                return Err(CallbackError::Failed(LoginResult::Mismatch, Problem::ForeignIssuer));
            }
        }
        let code = match (&callback.code, &callback.error) {
            (Some(code), None) => Secret::from(&**code),
            (_, Some(error)) => return Err(self.declined(error)),
            (None, None) => {
                return Err(CallbackError::Failed(LoginResult::Mismatch, Problem::Mismatch));
            }
        };
        let redeemed = self.redeem(code, login).await?;
        let mut state = redeemed.state.clone();
        let begun = match self.identify(&mut state, login).await {
            Ok(person) => self.begin(state, person, &head.headers, login.intent.replaces).await,
            Err(problem) => Err(problem),
        };
        let NewSession { loaded, principal, cookies } = begun.map_err(|problem| {
            // Another request with the same code may have begun the session.
            if redeemed.give_up() {
                self.revoker.discard(redeemed.state.clone());
            }
            CallbackError::Failed(LoginResult::Error, problem)
        })?;
        if !redeemed.begin() {
            // Another request, which has failed, revokes the tokens.
            self.retained.ended.end(&loaded.name, EndReason::Over);
            self.forget(loaded.state.id).await;
            return Err(CallbackError::Transient);
        }
        let subject = principal.qualified_subject();
        let response = match &login.intent.step_up {
            None => self.redirect_after_login(login),
            Some(step_up) if step_up.is_met_by(&principal, self.clock.now()) => {
                match self.release_form(&head.headers, step_up, subject.as_ref(), &loaded.name) {
                    Some((target, form)) => with_cookies(self.redirect_to(&target), form),
                    None => self.redirect_after_login(login),
                }
            }
            // The user has logged in, but not as the route demands: another login would change nothing.
            Some(step_up) => {
                let (session, unmet) = (&*self.settings.name, step_up.lacking(&principal));
                tracing::warn!(
                    session,
                    unmet,
                    "A login is weaker or older than its route demands; its user gets an error page."
                );
                self.problem_page(Problem::StepUp, login.intent.target.as_deref())
            }
        };
        let forms = self.carry_forms_over(&head.headers, subject.as_ref(), &loaded.name);
        let response = with_cookies(with_cookies(response, cookies), forms);
        let rounds = login.intent.rounds.saturating_add(1);
        Ok(with_cookies(response, self.logins.note_completed(rounds, self.clock.now())))
    }

    /// Reports an error response of the issuer (RFC 6749 §4.1.2.1).
    fn declined(&self, error: &str) -> CallbackError {
        if error == "access_denied" {
            return CallbackError::Failed(LoginResult::Denied, Problem::Denied);
        }
        if TRANSIENT_ERRORS.contains(&error) {
            let session = &*self.settings.name;
            tracing::info!(
                session,
                error,
                "The issuer reported a temporary error for a login; the login starts again, or its user gets an error page."
            );
            return CallbackError::Transient;
        }
        let plain = error.len() <= 64 && error.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        let (session, error) = (&*self.settings.name, if plain { error } else { "?" });
        tracing::warn!(session, error, "The issuer declined a login; its user gets an error page.");
        CallbackError::Failed(LoginResult::Error, Problem::Declined)
    }

    /// Handles a callback that belongs to no pending login of this browser.
    async fn handle_unknown_callback(
        &self,
        head: &Parts,
        callback: &CallbackParameters<'_>,
        pending: &PendingLogins,
    ) -> Response<Body> {
        let state = callback.state.as_deref().and_then(restarts);
        let target = state.and_then(|(_, sealed)| self.sealed_target(sealed));
        let outdated = self.logins.clear_finished(pending);
        if let Ok((_, cookies)) = self.load(head).await {
            let after = || ReturnTarget::trusted(&self.settings.after_login);
            let response = self.redirect_to(&target.unwrap_or_else(after));
            return with_cookies(with_cookies(response, cookies), outdated);
        }
        self.metrics.login(LoginResult::Mismatch);
        let max = match &callback.error {
            None => MAX_RESTARTS,
            Some(error) if TRANSIENT_ERRORS.contains(&&**error) => MAX_TRANSIENT_RESTARTS,
            Some(_) => 0,
        };
        let target = target.as_ref().map(ReturnTarget::as_str);
        match state {
            Some((count, _)) if count < max => {
                let target = target.map(Into::into);
                let intent = LoginIntent { restarts: count + 1, target, ..LoginIntent::default() };
                let response = self.begin_login(pending, intent).await;
                with_missing_cookies(response, outdated)
            }
            _ => with_cookies(self.problem_page(Problem::Mismatch, target), outdated),
        }
    }

    /// Stops a browser that logs in repeatedly without getting a session, with a page that names the reason.
    async fn stop_loop(&self, request: &Parts, target: Option<&ReturnTarget>) -> Response<Body> {
        let presented = self.presented_cookies(&request.headers);
        let problem = if presented.is_empty() {
            Problem::LoopWithoutCookie
        } else {
            match self.storage.open(&presented).await {
                Ok(Some(_)) => Problem::LoopEnded,
                Ok(None) => Problem::LoopForeignCookie,
                Err(_) => Problem::StoreUnavailable,
            }
        };
        let session = &*self.settings.name;
        let error = problem.message();
        tracing::warn!(
            session,
            error,
            "Stopped a login loop: two logins in a row led to no session; the user gets an error page."
        );
        let response =
            self.login_failed(LoginResult::Error, problem, target.map(ReturnTarget::as_str));
        // The link on the page begins a new login.
        let forget = self.logins.forget_completed(&request.headers);
        with_cookies(with_cookies(response, self.clear(presented.held())), forget)
    }

    fn redirect_after_login(&self, login: &LoginTransaction) -> Response<Body> {
        let after = login.intent.target.as_deref().unwrap_or(&self.settings.after_login);
        self.redirect_to(&ReturnTarget::trusted(after))
    }

    fn redirect_to(&self, target: &ReturnTarget) -> Response<Body> {
        if self.settings.cookie.same_site == SameSite::Strict {
            // A redirect would still count as cross-site, and browsers would not send the new cookie with it.
            return self.pages.continue_to(target.as_str());
        }
        see_other(target.location())
    }

    fn login_failed(
        &self,
        result: LoginResult,
        problem: Problem,
        target: Option<&str>,
    ) -> Response<Body> {
        self.metrics.login(result);
        self.problem_page(problem, target)
    }

    /// The page for a failed login; its link to try again leads to `target`.
    fn problem_page(&self, problem: Problem, target: Option<&str>) -> Response<Body> {
        let again = target.and_then(|target| {
            let url = self.login_url(&ReturnTarget::trusted(target), None)?;
            url.to_str().ok().map(str::to_owned)
        });
        let login = again.as_deref().unwrap_or(&self.settings.paths.login);
        let response = self.pages.problem(problem, login);
        match problem {
            Problem::Unavailable | Problem::StoreUnavailable => {
                retry_after(response, u64::from(RETRY_AFTER))
            }
            _ => response,
        }
    }

    /// The redirect URI, exactly as registered at the issuer.
    pub(crate) fn redirect_uri(&self) -> String {
        let mut url = self.settings.public_url.clone();
        url.set_path(&self.settings.paths.callback);
        url.into()
    }
}

impl LoginTransaction {
    /// Whether a session may be that of this login: no earlier one, and none that lacks the login's purpose.
    fn has_led_to(&self, ResumedSession { loaded, principal, .. }: &ResumedSession) -> bool {
        let since = loaded.state.since;
        let step_up = self.intent.step_up.as_ref();
        since >= self.began() && step_up.is_none_or(|step_up| step_up.is_met_by(principal, since))
    }
}

/// The reason why a callback does not log in.
enum CallbackError {
    /// The issuer refused the code (`invalid_grant`).
    Refused,
    /// The issuer reported a temporary error, or must ask the user; or the session has ended since.
    Transient,
    /// The issuer has not responded yet.
    Late,
    /// The login failed; the user sees an error page.
    Failed(LoginResult, Problem),
}

impl From<RedemptionError> for CallbackError {
    fn from(error: RedemptionError) -> Self {
        match error {
            RedemptionError::Refused => Self::Refused,
            RedemptionError::Unavailable => Self::Failed(LoginResult::Error, Problem::Unavailable),
            RedemptionError::Late => Self::Late,
            RedemptionError::Over => Self::Transient,
        }
    }
}

/// The parameters of an authorization response (RFC 6749 §4.1.2, RFC 9207).
#[derive(Default)]
struct CallbackParameters<'a> {
    code: Option<Cow<'a, str>>,
    state: Option<Cow<'a, str>>,
    iss: Option<Cow<'a, str>>,
    error: Option<Cow<'a, str>>,
}

impl<'a> CallbackParameters<'a> {
    /// Reads a query; `None` if a parameter occurs twice.
    fn read(query: &'a str) -> Option<Self> {
        let mut returned = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let part = match &*name {
                "code" => &mut returned.code,
                "state" => &mut returned.state,
                "iss" => &mut returned.iss,
                // Some servers write all that they know.
                "error" if value.is_empty() => continue,
                "error" => &mut returned.error,
                _ => continue,
            };
            if part.replace(value).is_some() {
                return None;
            }
        }
        Some(returned)
    }
}

/// Returns the response with those `cookies` whose names it does not set already.
fn with_missing_cookies(response: Response<Body>, cookies: Vec<HeaderValue>) -> Response<Body> {
    let name = |field: &HeaderValue| {
        let bytes = field.as_bytes();
        bytes[..bytes.iter().position(|byte| *byte == b'=').unwrap_or(bytes.len())].to_vec()
    };
    let set: Vec<_> = response.headers().get_all(SET_COOKIE).iter().map(name).collect();
    let missing = cookies.into_iter().filter(|field| !set.contains(&name(field))).collect();
    with_cookies(response, missing)
}

/// Error codes after which a second attempt may succeed, since the issuer may ask the user then, or is available again
/// (RFC 6749 §4.1.2.1, "OpenID Connect Core" §3.1.2.6).
const TRANSIENT_ERRORS: [&str; 5] = [
    "temporarily_unavailable",
    "login_required",
    "interaction_required",
    "consent_required",
    "account_selection_required",
];
/// The number of restarts of a login whose callback is stale, before the user sees an error page.
const MAX_RESTARTS: u8 = 2;
/// The number of restarts after a transient error.
const MAX_TRANSIENT_RESTARTS: u8 = 1;
/// The number of completed logins without a session after which the user sees an error page.
const MAX_ROUNDS: u8 = 2;
/// Characters of a callback's `iss` in the log.
const MAX_ISS_CHARS: usize = 200;
/// A code that arrives within this time after the login has begun is taken for fresh. Servers keep codes for a minute
/// at the least.
const FRESH_CODE: Duration = Duration::from_secs(60);
