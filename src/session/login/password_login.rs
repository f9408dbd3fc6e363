//! Logging in with a user name and a password (`flow: password`).
//!
//! The gateway takes them by a form or as JSON, and redeems them by the
//! password grant (RFC 6749 §4.3), which RFC 9700 §2.4 leaves to first parties.
//! Whoever fails learns nothing but that: the words are the same whether the
//! name exists or not, and the time is rounded.

use core::net::IpAddr;
use std::sync::Arc;

use http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::json;
use url::form_urlencoded;

use super::login_throttle::{TooMany, pad_response_time};
use super::return_to::ReturnTarget;
use crate::base::body::{Body, ReadError};
use crate::issuer::{Grant, GrantError, Tokens};
use crate::observe::metrics::LoginResult;
use crate::session::basic_credentials::Credentials;
use crate::session::cookies::origin::{RequestOrigin, only};
use crate::session::logout::ended_sessions::EndReason;
use crate::session::pages::{Login, Problem};
use crate::session::response::{problem, retry_after, see_other, wants_html, with_cookies};
use crate::session::settings::{Csrf, ReturnTo};
use crate::session::store::loaded::LoadedSession;
use crate::session::store::state::SessionState;
use crate::session::store::storage::StorageError;
use crate::session::{Sessions, authenticate};
use crate::token::{Principal, TokenError};

impl Sessions {
    /// The form.
    pub(crate) fn login_page(
        &self,
        request: &Request<Body>,
        address: IpAddr,
        secure: bool,
    ) -> Response<Body> {
        if !secure && !address.is_loopback() {
            return in_the_open();
        }
        let wish = form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes())
            .find_map(|(name, value)| (name == "return_to").then_some(value));
        let target = wish.and_then(|wish| ReturnTarget::parse(&wish, &self.settings.return_to));
        self.pages.login(&Login {
            action: &self.settings.paths.login,
            return_to: target.as_ref().map(ReturnTarget::as_str),
            user: "",
            problem: None,
        })
    }

    /// What the form, or a program, sends.
    pub(crate) async fn handle_login(
        &self,
        request: Request<Body>,
        address: IpAddr,
        secure: bool,
    ) -> Response<Body> {
        if !secure && !address.is_loopback() {
            return in_the_open();
        }
        let (head, body) = request.into_parts();
        if self.is_foreign(&head) {
            let title = "Another site may not log you in.";
            return problem(StatusCode::FORBIDDEN, "csrf", title, json!({}));
        }
        let sent = match read(&head, body).await {
            Ok(sent) => sent,
            Err(why) => return why.answer(),
        };
        let target = sent.return_to.as_deref();
        let target = target.and_then(|wish| ReturnTarget::parse(wish, &self.settings.return_to));
        let answer = LoginResponse { session: self, head: &head, user: &sent.username, target };
        let Ok(credentials) = Credentials::new(&sent.username, &sent.password) else {
            return answer.refused(Problem::Malformed);
        };
        let began = self.clock.uptime();
        let result = self.password_grant(credentials, address).await;
        match result {
            Ok(tokens) => match self.begin(tokens, &head.headers).await {
                Ok(begun) => answer.granted(begun),
                Err(problem) => {
                    self.metrics.login(LoginResult::Error);
                    answer.refused(problem)
                }
            },
            Err(LoginError::TooMany(TooMany { retry_after: seconds })) => {
                self.metrics.login(LoginResult::Limited);
                retry_after(answer.refused(Problem::TooMany), seconds)
            }
            Err(LoginError::Credentials) => {
                self.metrics.login(LoginResult::Rejected);
                pad_response_time(self.clock.uptime().saturating_sub(began)).await;
                answer.refused(Problem::Credentials)
            }
            Err(LoginError::Unavailable) => {
                self.metrics.login(LoginResult::Error);
                let response = answer.refused(Problem::Unavailable);
                retry_after(response, u64::from(authenticate::RETRY_AFTER))
            }
        }
    }

    async fn password_grant(
        &self,
        credentials: Credentials,
        address: IpAddr,
    ) -> Result<Tokens, LoginError> {
        let attempt = self.failures.begin(&credentials.user, address).await?;
        let issuer = Arc::clone(&self.issuer);
        let settings = &self.settings;
        let (client, scopes, resource) =
            (settings.client.clone(), settings.scopes.clone(), settings.resource.clone());
        let call = self.control.spawn(async move {
            let grant = Grant::Password {
                username: &credentials.user,
                password: &credentials.password,
                scopes: &scopes,
                resource: resource.as_ref(),
            };
            // Counted here, where a client that hangs up cannot stop it.
            match issuer.grant(grant, &client).await {
                Ok(tokens) => {
                    attempt.passed();
                    Ok(tokens)
                }
                Err(GrantError::InvalidGrant) => {
                    attempt.failed();
                    Err(LoginError::Credentials)
                }
                Err(GrantError::Unavailable) => {
                    attempt.undecided();
                    Err(LoginError::Unavailable)
                }
            }
        });
        call.await.unwrap_or(Err(LoginError::Unavailable))
    }

    /// Begins a visit with `tokens`: always a new one, and whatever was there before is over.
    pub(in crate::session) async fn begin(
        &self,
        tokens: Tokens,
        headers: &HeaderMap,
    ) -> Result<NewSession, Problem> {
        let brought = self.bring(headers);
        let now = self.clock.now();
        let visit = SessionState { home: self.redeemer.me(), ..SessionState::begin(tokens, now) };
        let opened = Arc::new(LoadedSession::new(visit, self.settings.forward));
        let session = &*self.settings.name;
        let principal = self.verify(&opened, None).await.map_err(|error| {
            tracing::error!(session, %error, "A login brought a token that is not accepted here.");
            self.give_back(&opened);
            match error {
                TokenError::Unavailable { .. } => Problem::Unavailable,
                _ => Problem::Unusable,
            }
        })?;
        let named = self.memory.logins.note(&opened, &principal);
        if let Some(sharing) = self.redeemer.sharing.clone() {
            self.control.spawn(async move {
                for sid in named {
                    // Where it cannot be said, a logout token for it is heeded and answered as one for no session.
                    let _ = sharing.note_login(&sid).await;
                }
            });
        }
        let cookies = self.keeping.begin(&opened, brought.held()).await;
        let mut cookies = cookies.map_err(|error| {
            self.give_back(&opened);
            match error {
                StorageError::TooLarge(error) => {
                    tracing::error!(session, %error, "A login needs `tokens: server`, or fewer claims.");
                    Problem::TooLarge
                }
                StorageError::Away(error) => {
                    tracing::warn!(session, %error, "A login failed: its session could not be kept.");
                    Problem::Unavailable
                }
            }
        })?;
        // One that cannot be asked for now is left to its own times.
        if let Ok(Some(earlier)) = self.keeping.open(&brought).await {
            self.replace(&earlier, &opened).await;
            if let Err(error) = self.memory.endings.kept().await {
                tracing::error!(session, %error, "A login was refused: the one before it would live again.");
                self.keeping.forget(opened.visit.id).await;
                self.give_back(&opened);
                return Err(Problem::Unavailable);
            }
        }
        if self.settings.csrf == Csrf::Token {
            cookies.extend(self.csrf.set_plain(&self.csrf_token(&opened)));
        }
        self.metrics.login(LoginResult::Ok);
        Ok(NewSession { opened, principal, cookies })
    }

    /// Ends the session that a browser had before it began the one in `loaded_session`, and revokes its tokens.
    async fn replace(&self, earlier: &Arc<LoadedSession>, opened: &LoadedSession) {
        if self.is_left_behind(earlier).await {
            return;
        }
        let latest = self.redeemer.latest(earlier).await;
        let fresh = self.memory.endings.end(earlier, EndReason::Replaced);
        self.keeping.forget(earlier.visit.id).await;
        // Revoked once, and never where the authorization server gave the same tokens again.
        if let Some(latest) =
            latest.filter(|latest| fresh && !latest.visit.shares_a_token(&opened.visit))
        {
            self.give_back(&latest);
        }
    }

    /// Revokes the tokens of `loaded_session` at the authorization server, in the background.
    fn give_back(&self, opened: &Arc<LoadedSession>) {
        let (revoker, opened) = (Arc::clone(&self.revoker), Arc::clone(opened));
        self.control.spawn(async move { revoker.revoke(&opened.visit).await });
    }

    /// Whether another site's page made the browser send this login (login CSRF).
    fn is_foreign(&self, head: &Parts) -> bool {
        if self.home.whence(head) < RequestOrigin::Elsewhere {
            return false;
        }
        // A page that logins may lead to may also begin one.
        let origin = only(&head.headers, &http::header::ORIGIN).ok().flatten();
        !self
            .settings
            .return_to
            .iter()
            .any(|place| matches!(place, ReturnTo::Origin(listed) if Some(&**listed) == origin))
    }
}

/// A visit that has just begun.
pub(crate) struct NewSession {
    pub(crate) opened: Arc<LoadedSession>,
    pub(crate) principal: Arc<Principal>,
    pub(crate) cookies: Vec<HeaderValue>,
}

/// What is answered to a login, as a page or as JSON.
struct LoginResponse<'a> {
    session: &'a Sessions,
    head: &'a Parts,
    user: &'a str,
    target: Option<ReturnTarget>,
}

impl LoginResponse<'_> {
    fn granted(&self, NewSession { opened, principal, cookies }: NewSession) -> Response<Body> {
        let response = if wants_html(&self.head.headers) {
            let after = &self.session.settings.after_login;
            let target = self.target.clone().unwrap_or_else(|| ReturnTarget::trusted(after));
            see_other(target.location())
        } else {
            self.session.described(&opened, &principal)
        };
        with_cookies(response, cookies)
    }

    fn refused(&self, why: Problem) -> Response<Body> {
        let session = self.session;
        let login = &*session.settings.paths.login;
        let mut response = if wants_html(&self.head.headers) {
            session.pages.login(&Login {
                action: login,
                return_to: self.target.as_ref().map(ReturnTarget::as_str),
                user: self.user,
                problem: Some(why),
            })
        } else {
            problem(why.status(), why.name(), why.words(), json!({ "login": login }))
        };
        if response.status() == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, session.challenge());
        }
        response
    }
}

/// Why a password grant brought no tokens.
enum LoginError {
    Credentials,
    TooMany(TooMany),
    Unavailable,
}

impl From<TooMany> for LoginError {
    fn from(error: TooMany) -> Self {
        Self::TooMany(error)
    }
}

/// What is posted, as a form or as JSON.
#[derive(Deserialize)]
struct SubmittedLogin {
    username: String,
    password: String,
    #[serde(default)]
    return_to: Option<String>,
}

async fn read(head: &Parts, body: Body) -> Result<SubmittedLogin, FormError> {
    let kind = only(&head.headers, &CONTENT_TYPE).ok().flatten().unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let is = |name: &str| kind.eq_ignore_ascii_case(name);
    let json = is("application/json");
    if !json && !is("application/x-www-form-urlencoded") {
        return Err(FormError::MediaType);
    }
    let body = body.collect(MAX_BODY).await.map_err(|error| match error {
        ReadError::TooLarge => FormError::TooLarge,
        ReadError::Broken(_) => FormError::Malformed,
    })?;
    let sent = if json { serde_json::from_slice(&body).ok() } else { read_form(&body) };
    sent.ok_or(FormError::Malformed)
}

/// Why what was posted is no login.
#[derive(Clone, Copy)]
enum FormError {
    MediaType,
    TooLarge,
    Malformed,
}

impl FormError {
    fn answer(self) -> Response<Body> {
        let (status, name, title) = match self {
            Self::MediaType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "media-type", "Send a form or JSON.")
            }
            Self::TooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "The body is too large.")
            }
            Self::Malformed => {
                (StatusCode::BAD_REQUEST, "bad-request", "A user name and a password are needed.")
            }
        };
        problem(status, name, title, json!({}))
    }
}

/// Reads a form; `None` if a field comes twice or one is missing.
fn read_form(body: &[u8]) -> Option<SubmittedLogin> {
    let (mut username, mut password, mut return_to) = (None, None, None);
    for (name, value) in form_urlencoded::parse(body) {
        let field = match &*name {
            "username" => &mut username,
            "password" => &mut password,
            "return_to" => &mut return_to,
            _ => continue,
        };
        if field.replace(value.into_owned()).is_some() {
            return None;
        }
    }
    Some(SubmittedLogin { username: username?, password: password?, return_to })
}

/// A password is not taken where others can read it.
fn in_the_open() -> Response<Body> {
    let title = "Logging in needs HTTPS.";
    problem(StatusCode::FORBIDDEN, "insecure", title, json!({}))
}

const MAX_BODY: usize = 16 * 1024;
