//! Login with a user name and a password (`flow: password`).
//!
//! The gateway reads them from a form or from JSON, and uses the password
//! grant (RFC 6749 §4.3), which RFC 9700 §2.4 leaves to first parties. A failed
//! login reveals nothing else: its text is the same whether the name exists or
//! not, and its response time is padded.

use core::net::IpAddr;
use std::sync::Arc;

use http::header::{CONTENT_TYPE, COOKIE, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::login_identity::Person;
use super::return_to::ReturnTarget;
use crate::base::body::{Body, ReadError};
use crate::base::media_type::essence;
use crate::issuer::{Grant, GrantError};
use crate::observe::metrics::LoginResult;
use crate::password::{Credentials, TooMany, pad_response_time};
use crate::session::cookies::origin::{RequestOrigin, single_value};
use crate::session::logout::ended_sessions::EndReason;
use crate::session::logout::token_revocation::TokenRevoker;
use crate::session::pages::{Login, Problem};
use crate::session::response::{lead_to, problem, retry_after, wants_html, with_cookies};
use crate::session::settings::{Csrf, Identity, ReturnTo};
use crate::session::store::loaded_session::LoadedSession;
use crate::session::store::state::{Id, SessionState, subject_of};
use crate::session::store::storage::{PresentedCookies, StorageError};
use crate::session::{Sessions, authenticate};
use crate::token::{Principal, TokenError};

impl Sessions {
    /// Returns the login page.
    pub(crate) fn login_page(
        &self,
        request: &Request<Body>,
        address: IpAddr,
        secure: bool,
    ) -> Response<Body> {
        if !secure && !address.is_loopback() {
            return https_required();
        }
        let target = self.requested_target(request.uri().query());
        self.pages.login(&Login {
            action: &self.settings.paths.login,
            return_to: target.map(|target| self.return_to(&target)).as_deref(),
            user: "",
            problem: None,
        })
    }

    /// Handles a submitted login, a form or JSON.
    pub(crate) async fn handle_login(
        &self,
        request: Request<Body>,
        address: IpAddr,
        secure: bool,
    ) -> Response<Body> {
        if !secure && !address.is_loopback() {
            return https_required();
        }
        let (head, body) = request.into_parts();
        if self.is_cross_site_login(&head) {
            let title = "Another site may not log you in.";
            return problem(StatusCode::FORBIDDEN, "csrf", title, json!({}));
        }
        let submitted = match read(&head, body).await {
            Ok(submitted) => submitted,
            Err(why) => return why.response(),
        };
        // A page of the operator's own may post to the URL that the gateway has redirected it to.
        let target = match submitted.return_to.as_deref() {
            Some(requested) => self.target(requested),
            None => self.requested_target(head.uri.query()),
        };
        let responder =
            LoginResponse { session: self, head: &head, user: &submitted.username, target };
        let Ok(credentials) = Credentials::new(&submitted.username, &submitted.password) else {
            return responder.refused(Problem::Malformed);
        };
        let began = self.clock.uptime();
        let result = self.password_grant(credentials, address).await;
        match result {
            Ok(granted) => match self.begin_by_password(granted, &head.headers).await {
                Ok(new_session) => responder.granted(new_session),
                Err(problem) => {
                    self.metrics.login(LoginResult::Error);
                    responder.refused(problem)
                }
            },
            Err(LoginError::TooMany(TooMany { retry_after: seconds })) => {
                self.metrics.login(LoginResult::Limited);
                retry_after(responder.refused(Problem::TooMany), seconds)
            }
            Err(LoginError::Credentials) => {
                self.metrics.login(LoginResult::Rejected);
                pad_response_time(self.clock.uptime().saturating_sub(began)).await;
                responder.refused(Problem::Credentials)
            }
            Err(LoginError::Unavailable) => {
                self.metrics.login(LoginResult::Error);
                let response = responder.refused(Problem::Unavailable);
                retry_after(response, u64::from(authenticate::RETRY_AFTER))
            }
        }
    }

    async fn password_grant(
        &self,
        credentials: Credentials,
        address: IpAddr,
    ) -> Result<GrantedSession, LoginError> {
        let attempt = self.throttle.begin(&credentials.user, address).await?;
        let issuer = Arc::clone(&self.issuer);
        let settings = &self.settings;
        let (client, scopes, resource) =
            (settings.client.clone(), settings.scopes.clone(), settings.resource.clone());
        let (clock, revoker) = (self.clock.clone(), Arc::clone(&self.revoker));
        let call = self.control.spawn(async move {
            let grant = Grant::Password {
                username: &credentials.user,
                password: &credentials.password,
                scopes: &scopes,
                resource: resource.as_ref(),
            };
            // Counted in the task, which a client cannot cancel by closing the connection.
            match issuer.grant(grant, &client).await {
                Ok(tokens) => {
                    attempt.passed();
                    Ok(GrantedSession::new(SessionState::begin(tokens, clock.now()), revoker))
                }
                Err(GrantError::InvalidGrant) => {
                    attempt.failed();
                    Err(LoginError::Credentials)
                }
                Err(GrantError::Unavailable) => {
                    attempt.undecided();
                    Err(LoginError::Unavailable)
                }
                // No guess: nothing has looked at the password.
                Err(GrantError::NotAsked) => Err(LoginError::Unavailable),
            }
        });
        call.await.unwrap_or(Err(LoginError::Unavailable))
    }

    async fn begin_by_password(
        &self,
        granted: GrantedSession,
        headers: &HeaderMap,
    ) -> Result<NewSession, Problem> {
        let mut state = granted.state.clone();
        state.id_token = state.id_token.take().map(|token| self.relying_party.opened(token));
        // With an error the guard revokes the tokens.
        self.check_id_token(&state, None).await?;
        let new_session = self.begin(state, Person::default(), headers, None).await?;
        granted.take();
        Ok(new_session)
    }

    /// Begins a new session in `state`, and ends the one that the browser had before, which may be `unseen`. If that fails,
    /// its tokens are left to the caller.
    pub(in crate::session) async fn begin(
        &self,
        state: SessionState,
        person: Person,
        headers: &HeaderMap,
        unseen: Option<Id>,
    ) -> Result<NewSession, Problem> {
        let presented = self.presented_cookies(headers);
        let has_identity = person.is_verified;
        let is_scope_unknown = state.scope.is_none() && person.default_scope.is_some();
        let scope = state.scope.clone().or_else(|| person.default_scope.map(str::to_owned));
        let state = SessionState {
            home: self.refresher.me(),
            is_opaque: has_identity && self.is_opaque(&state.access_token),
            userinfo: person.userinfo,
            scope,
            ..state
        };
        let loaded = Arc::new(LoadedSession::new(state, self.settings.forward));
        let (loaded, principal) = self.verified(loaded, has_identity).await?;
        let session = &*self.settings.name;
        if loaded.state.is_opaque {
            tracing::info!(
                session,
                is_scope_unknown,
                "A session began with the identity of its ID token alone: the gateway cannot read its access token."
            );
        }
        let sids = self.retained.logins.record(&loaded, &principal);
        if let Some(sharing) = self.refresher.sharing.clone() {
            self.control.spawn(async move {
                for sid in sids {
                    // Without this record, a logout token for the `sid` is accepted as one for an unknown session.
                    let _ = sharing.note_login(&sid).await;
                }
            });
        }
        let mut cookies = self.store(&loaded, &presented, headers).await?;
        self.end_earlier(&loaded, &presented, unseen).await?;
        if self.settings.csrf == Csrf::Token {
            cookies.extend(self.csrf.set_plain(&self.csrf_token(&loaded)));
        }
        self.metrics.login(LoginResult::Ok);
        Ok(NewSession { loaded, principal, cookies })
    }

    /// Verifies the access token of a new session. Where `has_identity`, the ID token may identify the user in its place.
    async fn verified(
        &self,
        mut loaded: Arc<LoadedSession>,
        has_identity: bool,
    ) -> Result<(Arc<LoadedSession>, Arc<Principal>), Problem> {
        let session = &*self.settings.name;
        if !loaded.state.is_opaque && self.is_unverifiable(&loaded.state.access_token) {
            // The user can influence which token a login returns, by removing `resource` and `audience` from the
            // authorization request.
            tracing::warn!(
                session,
                "Rejected the access token of a login; the login failed: it is not a JWT of the issuer, and the gateway cannot introspect tokens there. If access tokens are for other resource servers, write `identity: id_token`."
            );
            return Err(Problem::Unusable);
        }
        let mut verified = self.verify(&loaded, None).await;
        // The token is for another service after all; the ID token has identified the user.
        if let Err(error) = &verified
            && has_identity
            && self.settings.identity_source() == Identity::Auto
            && self.is_for_another_service(&loaded.state.access_token, *error)
        {
            tracing::info!(session, %error, "The access token of a login is not for this gateway; the ID token alone identifies its user.");
            let state = SessionState { is_opaque: true, ..loaded.state.clone() };
            loaded = Arc::new(LoadedSession::new(state, self.settings.forward));
            verified = self.verify(&loaded, None).await;
        }
        let principal = verified.map_err(|error| {
            tracing::error!(session, %error, "Rejected the access token of a login; the login failed.");
            match error {
                TokenError::Unavailable { .. } => Problem::Unavailable,
                _ => Problem::Unusable,
            }
        })?;
        if !loaded.state.is_opaque
            && subject_of(&loaded.state.access_token).is_none()
            && let Some(Value::String(subject)) = principal.claims.get("sub")
        {
            let state = SessionState { subject: Some(subject.clone()), ..loaded.state.clone() };
            loaded = Arc::new(LoadedSession::new(state, self.settings.forward));
        }
        Ok((loaded, principal))
    }

    /// Stores a new session; returns its cookies.
    async fn store(
        &self,
        loaded: &Arc<LoadedSession>,
        presented: &PresentedCookies<'_>,
        headers: &HeaderMap,
    ) -> Result<Vec<HeaderValue>, Problem> {
        let session = &*self.settings.name;
        // Cookies of pending logins expire by themselves.
        let mut others = headers.clone();
        self.strip_cookies(&mut others);
        let others = others.get_all(COOKIE).iter().map(|field| field.len() + 2).sum();
        let cookies = self.storage.begin(loaded, presented.held().beside(others)).await;
        cookies.map_err(|error| match error {
            StorageError::TooLarge(error) => {
                tracing::error!(session, %error, "The session of a login does not fit into cookies; use `tokens: server`, or fewer claims.");
                Problem::TooLarge
            }
            StorageError::Unavailable(error) => {
                tracing::warn!(session, %error, "Could not store the session of a login; the login failed.");
                Problem::StoreUnavailable
            }
        })
    }

    /// Ends the sessions that the browser had before, persistently.
    async fn end_earlier(
        &self,
        loaded: &LoadedSession,
        presented: &PresentedCookies<'_>,
        unseen: Option<Id>,
    ) -> Result<(), Problem> {
        // An earlier session that cannot be loaded now expires by its own times.
        let earlier = self.storage.open_all(presented).await.unwrap_or_default();
        if !earlier.is_empty() || unseen.is_some() {
            for earlier in &earlier {
                self.replace(earlier, loaded).await;
            }
            if let Some(unseen) = unseen {
                self.replace_unseen(unseen, loaded).await;
            }
            if let Err(error) = self.retained.ended.saved().await {
                let session = &*self.settings.name;
                tracing::error!(session, %error, "Could not save the end of the previous session; the login was refused.");
                self.forget(loaded.state.id).await;
                return Err(Problem::StoreUnavailable);
            }
        }
        Ok(())
    }

    /// Ends the session that a browser had before `loaded`, and revokes its tokens.
    pub(super) async fn replace(&self, earlier: &Arc<LoadedSession>, loaded: &LoadedSession) {
        // The response to another request with the same authorization code has set that session.
        if earlier.name == loaded.name || self.is_left_behind(earlier).await {
            return;
        }
        let latest = self.refresher.latest(earlier).await;
        let is_new = self.retained.ended.end(&earlier.name, EndReason::Replaced);
        // The tokens are revoked once, and not if the authorization server issued the same tokens again, or others for
        // the same session: servers that end their session with its refresh token would end the new one too.
        let shares = |latest: &LoadedSession| {
            latest.state.shares_a_token(&loaded.state) || latest.shares_a_sid(loaded)
        };
        if let Some(latest) = latest.filter(|latest| is_new && !shares(latest)) {
            self.revoke_tokens(&latest);
        }
        self.forget(earlier.state.id).await;
    }

    /// Revokes the tokens of `loaded` here and at the authorization server, in the background.
    pub(in crate::session) fn revoke_tokens(&self, loaded: &Arc<LoadedSession>) {
        let (revoker, loaded) = (Arc::clone(&self.revoker), Arc::clone(loaded));
        self.control.spawn(async move { revoker.revoke(&loaded.state).await });
    }

    /// Whether another site's page made the browser send this login (login CSRF).
    fn is_cross_site_login(&self, head: &Parts) -> bool {
        if self.own_origin.request_origin(head) < RequestOrigin::CrossOrigin {
            return false;
        }
        // Pages of origins that logins may lead to may also submit a login.
        let origin = single_value(&head.headers, &http::header::ORIGIN).ok().flatten();
        !self
            .settings
            .return_to
            .iter()
            .any(|destination| matches!(destination, ReturnTo::Origin(listed) if Some(&**listed) == origin))
    }
}

/// The session that a password has begun. Its tokens are revoked on drop: the user agent has disconnected, or the login
/// has failed.
struct GrantedSession {
    state: SessionState,
    revoker: Arc<TokenRevoker>,
    is_taken: bool,
}

impl GrantedSession {
    const fn new(state: SessionState, revoker: Arc<TokenRevoker>) -> Self {
        Self { state, revoker, is_taken: false }
    }

    /// Leaves the tokens to the session that has begun.
    fn take(mut self) {
        self.is_taken = true;
    }
}

impl Drop for GrantedSession {
    fn drop(&mut self) {
        if !self.is_taken {
            self.revoker.discard(self.state.clone());
        }
    }
}

/// A session that has just begun.
pub(crate) struct NewSession {
    pub(crate) loaded: Arc<LoadedSession>,
    pub(crate) principal: Arc<Principal>,
    pub(crate) cookies: Vec<HeaderValue>,
}

/// The response to a login, as a page or as JSON.
struct LoginResponse<'a> {
    session: &'a Sessions,
    head: &'a Parts,
    user: &'a str,
    target: Option<ReturnTarget>,
}

impl LoginResponse<'_> {
    fn granted(&self, NewSession { loaded, principal, cookies }: NewSession) -> Response<Body> {
        let after = &self.session.settings.after_login;
        let target = self.target.clone().unwrap_or_else(|| ReturnTarget::trusted(after));
        let described = || self.session.described(&loaded, &principal);
        let response = lead_to(&self.head.headers, target.location(), described);
        with_cookies(response, cookies)
    }

    fn refused(&self, why: Problem) -> Response<Body> {
        let session = self.session;
        let login = &*session.settings.paths.login;
        let mut response = if wants_html(&self.head.headers) {
            session.pages.login(&Login {
                action: login,
                return_to: self.target.as_ref().map(|target| session.return_to(target)).as_deref(),
                user: self.user,
                problem: Some(why),
            })
        } else {
            problem(why.status(), why.name(), why.message(), json!({ "login": login }))
        };
        if response.status() == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, session.challenge());
        }
        response
    }
}

/// The reason why a password grant returned no tokens.
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

/// The content of a login, from a form or from JSON.
#[derive(Deserialize)]
struct SubmittedLogin {
    username: String,
    password: String,
    #[serde(default)]
    return_to: Option<String>,
}

async fn read(head: &Parts, body: Body) -> Result<SubmittedLogin, FormError> {
    let kind = single_value(&head.headers, &CONTENT_TYPE).ok().flatten().unwrap_or_default();
    let kind = essence(kind);
    let is = |name: &str| kind.eq_ignore_ascii_case(name);
    let json = is("application/json");
    if !json && !is("application/x-www-form-urlencoded") {
        return Err(FormError::MediaType);
    }
    let body = body.collect(MAX_BODY).await.map_err(|error| match error {
        ReadError::TooLarge => FormError::TooLarge,
        ReadError::Broken(_) => FormError::Malformed,
    })?;
    let submitted = if json { serde_json::from_slice(&body).ok() } else { read_form(&body) };
    submitted.ok_or(FormError::Malformed)
}

/// The reason why the content is not a login.
#[derive(Clone, Copy)]
enum FormError {
    MediaType,
    TooLarge,
    Malformed,
}

impl FormError {
    fn response(self) -> Response<Body> {
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

/// Reads a form; `None` if a field occurs twice or one is missing.
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

/// Refuses a login over plain HTTP, where others could read the password.
fn https_required() -> Response<Body> {
    let title = "Logging in needs HTTPS.";
    problem(StatusCode::FORBIDDEN, "insecure", title, json!({}))
}

/// Bytes of a submitted login.
const MAX_BODY: usize = 16 * 1024;
