//! Login at the issuer (`flow: code`): redirect to the issuer and callback.
//!
//! Authorization code with PKCE (RFC 7636), `state`, `nonce` and `iss`
//! (RFC 9207), pushed if the issuer supports that (RFC 9126). A callback must
//! belong to a login begun in the same browser. One that does not leads to an
//! error page only as a last resort: a user with a session continues, any
//! other user is redirected to the issuer again, at most twice.

use std::borrow::Cow;

use http::request::Parts;
use http::{HeaderValue, Request, Response};
use url::form_urlencoded;

use super::login_transaction::{LoginTransaction, LoginTransactions, restarts};
use super::return_to::ReturnTarget;
use crate::base::body::Body;
use crate::base::secret::Secret;
use crate::issuer::{Grant, GrantError};
use crate::observe::metrics::LoginResult;
use crate::session::Sessions;
use crate::session::authenticate::RETRY_AFTER;
use crate::session::cookies::cookie;
use crate::session::pages::Problem;
use crate::session::response::{retry_after, see_other, with_cookies};
use crate::session::settings::SameSite;
use crate::token::TokenError;

impl Sessions {
    /// Redirects a browser to the issuer.
    pub(crate) async fn redirect_to_issuer(&self, request: &Parts) -> Response<Body> {
        let query = request.uri.query().unwrap_or_default().as_bytes();
        let requested = form_urlencoded::parse(query)
            .find_map(|(name, value)| (name == "return_to").then_some(value));
        let target = requested
            .and_then(|requested| ReturnTarget::parse(&requested, &self.settings.return_to));
        let (pending, held) = self.pending.read(&request.headers);
        self.begin_login(pending, held, target.as_ref().map(ReturnTarget::as_str), 0).await
    }

    /// Handles the redirect from the issuer back to the gateway (RFC 6749 §4.1.2).
    pub(crate) async fn handle_callback(&self, request: Request<Body>) -> Response<Body> {
        let (head, _) = request.into_parts();
        let Some(callback) = CallbackParameters::read(head.uri.query().unwrap_or_default()) else {
            return self.login_failed(LoginResult::Mismatch, Problem::Mismatch);
        };
        let (mut pending, held) = self.pending.read(&head.headers);
        let state = callback.state.as_deref().unwrap_or_default();
        let Some(login) = pending.finish(state, self.clock.now()) else {
            return self.handle_unknown_callback(&head, &callback, pending, held).await;
        };
        let response = match self.finish(&head, &callback, &login).await {
            Ok(response) => response,
            Err(CallbackError::Failed(result, problem)) => self.login_failed(result, problem),
            // The code was invalid: expired, or the callback was loaded twice.
            Err(CallbackError::Refused) => match self.load(&head).await {
                Ok((_, cookies)) => with_cookies(self.redirect_after_login(&login), cookies),
                Err(_) if login.restarts < MAX_RESTARTS => {
                    self.metrics.login(LoginResult::Rejected);
                    let (target, count) = (login.target.as_deref(), login.restarts + 1);
                    return self.begin_login(pending, held, target, count).await;
                }
                Err(_) => self.login_failed(LoginResult::Rejected, Problem::Mismatch),
            },
        };
        with_cookies(response, self.pending.write(&pending, held))
    }

    /// Begins a login that leads to `target`, and redirects to the issuer.
    async fn begin_login(
        &self,
        mut pending: LoginTransactions,
        held: cookie::CookieParts,
        target: Option<&str>,
        restarts: u8,
    ) -> Response<Body> {
        let login = pending.begin(target, restarts, self.clock.now());
        let request_parameters = self.request_parameters(login);
        let client = &self.settings.client;
        let pushed = self.issuer.push(request_parameters.clone(), client).await;
        let metadata = self.issuer.metadata();
        let Some(mut url) = metadata.endpoints.authorization.clone() else {
            let issuer = &*self.issuer.settings().name;
            tracing::error!(
                issuer,
                "No authorization endpoint is known for this issuer; logins fail."
            );
            return self.login_failed(LoginResult::Error, Problem::Unavailable);
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
                    return self.login_failed(LoginResult::Error, Problem::Unavailable);
                }
                Ok(None) | Err(_) => {
                    query.extend_pairs(&request_parameters);
                }
            }
        }
        let Ok(location) = HeaderValue::from_str(url.as_str()) else {
            return self.login_failed(LoginResult::Error, Problem::Unavailable);
        };
        let cookies = self.pending.write(&pending, held);
        with_cookies(see_other(location), cookies)
    }

    /// The parameters of the authorization request, without `client_id` (RFC 6749 §4.1.1).
    fn request_parameters(&self, login: &LoginTransaction) -> Vec<(&'static str, String)> {
        let settings = &self.settings;
        let mut request_parameters = vec![
            ("response_type", "code".to_owned()),
            ("redirect_uri", self.redirect_uri()),
            ("scope", settings.scopes.to_string()),
            ("state", login.state()),
            ("code_challenge", login.challenge()),
            ("code_challenge_method", "S256".to_owned()),
        ];
        if self.wants_id_token() {
            request_parameters.push(("nonce", login.nonce()));
        }
        if let Some(resource) = &settings.resource {
            request_parameters.push(("resource", resource.as_str().to_owned()));
        }
        if let Some(prompt) = &settings.prompt {
            request_parameters.push(("prompt", prompt.to_string()));
        }
        request_parameters
    }

    /// Redeems the code and begins a session.
    async fn finish(
        &self,
        head: &Parts,
        callback: &CallbackParameters<'_>,
        login: &LoginTransaction,
    ) -> Result<Response<Body>, CallbackError> {
        let issuer = &self.issuer.settings().issuer;
        match &callback.iss {
            Some(iss) if *iss == **issuer => {}
            None if !self.issuer.metadata().sends_iss => {}
            // A response of another issuer, or one without the `iss` that this issuer announces (RFC 9207 §2.4).
            _ => return Err(CallbackError::Failed(LoginResult::Mismatch, Problem::Mismatch)),
        }
        let code = match (&callback.code, &callback.error) {
            (Some(code), None) => Secret::from(&**code),
            (_, Some(error)) => return Err(self.declined(error)),
            (None, None) => {
                return Err(CallbackError::Failed(LoginResult::Mismatch, Problem::Mismatch));
            }
        };
        let grant = Grant::Code {
            code: &code,
            redirect_uri: &self.redirect_uri(),
            verifier: &login.verifier(),
            resource: self.settings.resource.as_ref(),
        };
        let tokens = match self.issuer.grant(grant, &self.settings.client).await {
            Ok(tokens) => tokens,
            Err(GrantError::InvalidGrant) => return Err(CallbackError::Refused),
            Err(GrantError::Unavailable) => {
                return Err(CallbackError::Failed(LoginResult::Error, Problem::Unavailable));
            }
        };
        if self.wants_id_token() {
            let now = self.clock.now();
            let token = tokens.id_token.as_ref();
            self.relying_party.check_login(&self.issuer, token, &login.nonce(), now).await.map_err(
                |error| {
                    let session = &*self.settings.name;
                    tracing::error!(session, %error, "Rejected the ID token of a login; the login failed.");
                    CallbackError::Failed(LoginResult::Error, match error {
                        TokenError::Unavailable { .. } => Problem::Unavailable,
                        _ => Problem::Unusable,
                    })
                },
            )?;
        }
        let new_session = self.begin(tokens, &head.headers).await;
        let new_session =
            new_session.map_err(|problem| CallbackError::Failed(LoginResult::Error, problem))?;
        Ok(with_cookies(self.redirect_after_login(login), new_session.cookies))
    }

    /// Reports an error response of the issuer (RFC 6749 §4.1.2.1).
    fn declined(&self, error: &str) -> CallbackError {
        if error == "access_denied" {
            return CallbackError::Failed(LoginResult::Denied, Problem::Denied);
        }
        let plain = error.len() <= 64 && error.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        let (session, error) = (&*self.settings.name, if plain { error } else { "?" });
        tracing::warn!(session, error, "The issuer declined a login.");
        CallbackError::Failed(LoginResult::Error, Problem::Declined)
    }

    /// Handles a callback that belongs to no pending login of this browser.
    async fn handle_unknown_callback(
        &self,
        head: &Parts,
        callback: &CallbackParameters<'_>,
        pending: LoginTransactions,
        held: cookie::CookieParts,
    ) -> Response<Body> {
        if let Ok((_, cookies)) = self.load(head).await {
            let response = self.redirect_to(&ReturnTarget::trusted(&self.settings.after_login));
            return with_cookies(response, cookies);
        }
        self.metrics.login(LoginResult::Mismatch);
        match callback.state.as_deref().and_then(restarts) {
            Some(count) if count < MAX_RESTARTS && callback.error.is_none() => {
                self.begin_login(pending, held, None, count + 1).await
            }
            _ => self.pages.problem(Problem::Mismatch, &self.settings.paths.login),
        }
    }

    fn redirect_after_login(&self, login: &LoginTransaction) -> Response<Body> {
        let after = login.target.as_deref().unwrap_or(&self.settings.after_login);
        self.redirect_to(&ReturnTarget::trusted(after))
    }

    fn redirect_to(&self, target: &ReturnTarget) -> Response<Body> {
        if self.settings.cookie.same_site == SameSite::Strict {
            // A redirect would still count as cross-site, and browsers would not send the new cookie with it.
            return self.pages.continue_to(target.as_str());
        }
        see_other(target.location())
    }

    fn login_failed(&self, result: LoginResult, problem: Problem) -> Response<Body> {
        self.metrics.login(result);
        let response = self.pages.problem(problem, &self.settings.paths.login);
        match problem {
            Problem::Unavailable => retry_after(response, u64::from(RETRY_AFTER)),
            _ => response,
        }
    }

    /// The redirect URI, exactly as registered at the issuer.
    fn redirect_uri(&self) -> String {
        let mut url = self.settings.public_url.clone();
        url.set_path(&self.settings.paths.callback);
        url.into()
    }

    fn wants_id_token(&self) -> bool {
        self.settings.scopes.contains("openid")
    }
}

/// The reason why a callback does not log in.
enum CallbackError {
    /// The issuer refused the code (`invalid_grant`).
    Refused,
    /// The login failed; the user sees an error page.
    Failed(LoginResult, Problem),
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

/// The number of restarts of a login before the user sees an error page.
const MAX_RESTARTS: u8 = 2;
