//! Logging in at the issuer (`flow: code`): the browser goes there with a
//! question and comes back with an answer that fits no other.
//!
//! Authorization code with PKCE (RFC 7636), `state`, `nonce` and `iss`
//! (RFC 9207), pushed when the issuer takes that (RFC 9126). Everything that
//! comes back must belong to a login begun in this browser; an answer that
//! does not is never an error page if the person can be helped: whoever is
//! logged in just goes on, and everybody else is led there again, twice at most.

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
    /// Leads a browser to the issuer.
    pub(crate) async fn redirect_to_issuer(&self, request: &Parts) -> Response<Body> {
        let query = request.uri.query().unwrap_or_default().as_bytes();
        let wish = form_urlencoded::parse(query)
            .find_map(|(name, value)| (name == "return_to").then_some(value));
        let target = wish.and_then(|wish| ReturnTarget::parse(&wish, &self.settings.return_to));
        let (pending, held) = self.pending.read(&request.headers);
        self.depart(pending, held, target.as_ref().map(ReturnTarget::as_str), 0).await
    }

    /// Takes a browser back that comes from the issuer.
    pub(crate) async fn handle_callback(&self, request: Request<Body>) -> Response<Body> {
        let (head, _) = request.into_parts();
        let Some(answer) = CallbackParameters::read(head.uri.query().unwrap_or_default()) else {
            return self.lost(LoginResult::Mismatch, Problem::Mismatch);
        };
        let (mut pending, held) = self.pending.read(&head.headers);
        let state = answer.state.as_deref().unwrap_or_default();
        let Some(login) = pending.finish(state, self.clock.now()) else {
            return self.stale(&head, &answer, pending, held).await;
        };
        let response = match self.finish(&head, &answer, &login).await {
            Ok(response) => response,
            Err(CallbackError::Lost(result, problem)) => self.lost(result, problem),
            // The code was good for nothing: too old, or the way back was taken twice.
            Err(CallbackError::Refused) => match self.load(&head).await {
                Ok((_, cookies)) => with_cookies(self.go_on(&login), cookies),
                Err(_) if login.restarts < MAX_RESTARTS => {
                    self.metrics.login(LoginResult::Rejected);
                    let (target, count) = (login.target.as_deref(), login.restarts + 1);
                    return self.depart(pending, held, target, count).await;
                }
                Err(_) => self.lost(LoginResult::Rejected, Problem::Mismatch),
            },
        };
        with_cookies(response, self.pending.write(&pending, held))
    }

    /// Begins a login that leads to `target`.
    async fn depart(
        &self,
        mut pending: LoginTransactions,
        held: cookie::CookieParts,
        target: Option<&str>,
        restarts: u8,
    ) -> Response<Body> {
        let login = pending.begin(target, restarts, self.clock.now());
        let question = self.question(login);
        let client = &self.settings.client;
        let pushed = self.issuer.push(question.clone(), client).await;
        let metadata = self.issuer.metadata();
        let Some(mut url) = metadata.endpoints.authorization.clone() else {
            let issuer = &*self.issuer.settings().name;
            tracing::error!(issuer, "No authorization endpoint is known: nobody can log in there.");
            return self.lost(LoginResult::Error, Problem::Unavailable);
        };
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("client_id", &client.id);
            match pushed {
                Ok(Some(name)) => {
                    query.append_pair("request_uri", &name);
                }
                Err(_) if metadata.wants_pushed_requests => {
                    drop(query);
                    return self.lost(LoginResult::Error, Problem::Unavailable);
                }
                Ok(None) | Err(_) => {
                    query.extend_pairs(&question);
                }
            }
        }
        let Ok(location) = HeaderValue::from_str(url.as_str()) else {
            return self.lost(LoginResult::Error, Problem::Unavailable);
        };
        let cookies = self.pending.write(&pending, held);
        with_cookies(see_other(location), cookies)
    }

    /// What the issuer is asked, `client_id` aside (RFC 6749 §4.1.1).
    fn question(&self, login: &LoginTransaction) -> Vec<(&'static str, String)> {
        let settings = &self.settings;
        let mut question = vec![
            ("response_type", "code".to_owned()),
            ("redirect_uri", self.redirect_uri()),
            ("scope", settings.scopes.to_string()),
            ("state", login.state()),
            ("code_challenge", login.challenge()),
            ("code_challenge_method", "S256".to_owned()),
        ];
        if self.wants_id_token() {
            question.push(("nonce", login.nonce()));
        }
        if let Some(resource) = &settings.resource {
            question.push(("resource", resource.as_str().to_owned()));
        }
        if let Some(prompt) = &settings.prompt {
            question.push(("prompt", prompt.to_string()));
        }
        question
    }

    /// Redeems the code and begins a visit.
    async fn finish(
        &self,
        head: &Parts,
        answer: &CallbackParameters<'_>,
        login: &LoginTransaction,
    ) -> Result<Response<Body>, CallbackError> {
        let issuer = &self.issuer.settings().issuer;
        match &answer.iss {
            Some(iss) if *iss == **issuer => {}
            None if !self.issuer.metadata().names_itself => {}
            // An answer of another issuer, or one that hides whose it is (RFC 9207 §2.4).
            _ => return Err(CallbackError::Lost(LoginResult::Mismatch, Problem::Mismatch)),
        }
        let code = match (&answer.code, &answer.error) {
            (Some(code), None) => Secret::from(&**code),
            (_, Some(error)) => return Err(self.declined(error)),
            (None, None) => {
                return Err(CallbackError::Lost(LoginResult::Mismatch, Problem::Mismatch));
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
                return Err(CallbackError::Lost(LoginResult::Error, Problem::Unavailable));
            }
        };
        if self.wants_id_token() {
            let now = self.clock.now();
            let token = tokens.id_token.as_ref();
            self.told.check_login(&self.issuer, token, &login.nonce(), now).await.map_err(
                |error| {
                    let session = &*self.settings.name;
                    tracing::error!(session, %error, "A login brought an ID token that is not accepted.");
                    CallbackError::Lost(LoginResult::Error, match error {
                        TokenError::Unavailable { .. } => Problem::Unavailable,
                        _ => Problem::Unusable,
                    })
                },
            )?;
        }
        let begun = self.begin(tokens, &head.headers).await;
        let begun = begun.map_err(|problem| CallbackError::Lost(LoginResult::Error, problem))?;
        Ok(with_cookies(self.go_on(login), begun.cookies))
    }

    /// The issuer, or the person there, said no.
    fn declined(&self, error: &str) -> CallbackError {
        if error == "access_denied" {
            return CallbackError::Lost(LoginResult::Denied, Problem::Denied);
        }
        let plain = error.len() <= 64 && error.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        let (session, error) = (&*self.settings.name, if plain { error } else { "?" });
        tracing::warn!(session, error, "The issuer declined a login.");
        CallbackError::Lost(LoginResult::Error, Problem::Declined)
    }

    /// An answer to nothing that was asked from this browser, or to what was answered before.
    async fn stale(
        &self,
        head: &Parts,
        answer: &CallbackParameters<'_>,
        pending: LoginTransactions,
        held: cookie::CookieParts,
    ) -> Response<Body> {
        if let Ok((_, cookies)) = self.load(head).await {
            let response = self.lead_to(&ReturnTarget::trusted(&self.settings.after_login));
            return with_cookies(response, cookies);
        }
        self.metrics.login(LoginResult::Mismatch);
        match answer.state.as_deref().and_then(restarts) {
            Some(count) if count < MAX_RESTARTS && answer.error.is_none() => {
                self.depart(pending, held, None, count + 1).await
            }
            _ => self.pages.problem(Problem::Mismatch, &self.settings.paths.login),
        }
    }

    fn go_on(&self, login: &LoginTransaction) -> Response<Body> {
        let after = login.target.as_deref().unwrap_or(&self.settings.after_login);
        self.lead_to(&ReturnTarget::trusted(after))
    }

    fn lead_to(&self, target: &ReturnTarget) -> Response<Body> {
        if self.settings.cookie.same_site == SameSite::Strict {
            // A redirect would still count as the issuer's, and the new cookie would stay behind.
            return self.pages.go_on(target.as_str());
        }
        see_other(target.location())
    }

    fn lost(&self, result: LoginResult, problem: Problem) -> Response<Body> {
        self.metrics.login(result);
        let response = self.pages.problem(problem, &self.settings.paths.login);
        match problem {
            Problem::Unavailable => retry_after(response, u64::from(RETRY_AFTER)),
            _ => response,
        }
    }

    /// Where the issuer sends browsers back to, exactly as it is registered there.
    fn redirect_uri(&self) -> String {
        let mut url = self.settings.public_url.clone();
        url.set_path(&self.settings.paths.callback);
        url.into()
    }

    fn wants_id_token(&self) -> bool {
        self.settings.scopes.contains("openid")
    }
}

/// Why a browser that came back is not logged in.
enum CallbackError {
    /// The issuer calls the code invalid.
    Refused,
    /// It cannot be helped.
    Lost(LoginResult, Problem),
}

/// What the issuer sends a browser back with (RFC 6749 §4.1.2, RFC 9207).
#[derive(Default)]
struct CallbackParameters<'a> {
    code: Option<Cow<'a, str>>,
    state: Option<Cow<'a, str>>,
    iss: Option<Cow<'a, str>>,
    error: Option<Cow<'a, str>>,
}

impl<'a> CallbackParameters<'a> {
    /// Reads a query; `None` if something comes twice.
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

/// How often a login is begun anew before the person is asked.
const MAX_RESTARTS: u8 = 2;
