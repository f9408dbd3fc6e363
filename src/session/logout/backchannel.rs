//! OpenID Connect Back-Channel Logout 1.0: the issuer reports that a user has
//! logged out there. The user's browser takes no part.

use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use serde_json::json;
use url::form_urlencoded;

use crate::base::body::Body;
use crate::base::media_type::essence;
use crate::base::secret::Secret;
use crate::redis::Unavailable;
use crate::session::Sessions;
use crate::session::cookies::origin::single_value;
use crate::session::registry::RetainedSessions;
use crate::session::response::{json, uncached};
use crate::token::jwt::id_token::Logout;
use crate::token::{RevocationTarget, TokenError};

impl Sessions {
    /// Handles a logout token. The sessions it names have ended at all instances when the response is sent.
    pub(crate) async fn handle(self: &Arc<Self>, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let accepted = match read(&head, body).await {
            None => Err(LogoutTokenError::Form),
            Some(token) => {
                // A sender that leaves after its token was marked as used could not send it again.
                let this = Arc::clone(self);
                self.run_to_end(async move { this.accept(&token).await }).await
            }
        };
        let refused = match accepted {
            Ok(()) => return uncached(StatusCode::OK, Body::empty()),
            Err(refused) => refused,
        };
        let session = &*self.settings.name;
        match &refused {
            // Not logged: strangers can send these.
            LogoutTokenError::Form | LogoutTokenError::Token(TokenError::Malformed) => {}
            error => {
                tracing::warn!(session, %error, "Refused a logout token with an error response.");
            }
        }
        let body = json!({ "error": refused.code(), "error_description": refused.to_string() });
        json(refused.status(), &body)
    }

    async fn accept(&self, token: &Secret<String>) -> Result<(), LogoutTokenError> {
        let logout =
            self.relying_party.check_logout(&self.issuer, token.expose(), self.clock.now());
        let Logout { session, subject, namespace, at, id } = logout.await?;
        let RetainedSessions { by, ending, .. } = &*self.retained;
        let ended_sessions = &ending.ended;
        if !ended_sessions.accept_logout_token(by, &id) {
            return Err(LogoutTokenError::Replayed);
        }
        let now = self.clock.now();
        let at = ending.logins.latest_local_time(at, now);
        let named_by = if session.is_some() { "sid" } else { "sub" };
        let known = match &session {
            Some(session) => self.knows_login(session).await,
            None => Ok(true),
        };
        // An unknown `sid` may mean a session whose tokens have no `sid`: that one is found by `sub`.
        let unknown = match (&subject, known) {
            (_, Ok(true)) | (Some(_), _) => None,
            (None, Ok(false)) => Some(LogoutTokenError::Unknown),
            (None, Err(Unavailable)) => Some(LogoutTokenError::LookupFailed),
        };
        let ended = match (session, subject) {
            (Some(session), subject) => {
                let sessionless =
                    subject.filter(|_| known != Ok(true)).map(RevocationTarget::Sessionless);
                // An issuer does not use a `sid` again: a clock that differs must not save a session from its logout.
                ending.revoke(&namespace, RevocationTarget::LoggedOut(session), now)
                    + sessionless.map_or(0, |what| ending.revoke(&namespace, what, at))
            }
            (None, subject) => subject
                .map(RevocationTarget::Subject)
                .map_or(0, |what| ending.revoke(&namespace, what, at)),
        };
        if ended_sessions.lasting().await.is_err() {
            // The issuer may send the token again.
            ended_sessions.restore_logout_token(by, &id);
            return Err(LogoutTokenError::NotSaved);
        }
        if let Some(unknown) = unknown {
            // Sessions with this `sid` have ended; whether there are any is unknown.
            ended_sessions.restore_logout_token(by, &id);
            return Err(unknown);
        }
        let session = &*self.settings.name;
        tracing::info!(session, named_by, ended, "Ended sessions by back-channel logout.");
        Ok(())
    }

    /// Whether a recent login had this `sid`: one of any session of the client, here or at another instance.
    async fn knows_login(&self, sid: &str) -> Result<bool, Unavailable> {
        if self.retained.logins.contains(sid) {
            return Ok(true);
        }
        match &self.refresher.sharing {
            Some(sharing) => sharing.knows_login(sid).await,
            None => Ok(false),
        }
    }
}

/// The reason why a logout token is refused.
#[derive(Debug, thiserror::Error)]
enum LogoutTokenError {
    #[error("send logout_token, once, in a form")]
    Form,
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(
        "no session here has this sid, and without sub the token names no other; sessions with this sid have ended"
    )]
    Unknown,
    #[error("cannot look up the sid; send the token again")]
    LookupFailed,
    #[error("logout token already used (jti replay)")]
    Replayed,
    #[error("cannot save the logout; send the token again")]
    NotSaved,
}

impl LogoutTokenError {
    const fn code(&self) -> &'static str {
        match self {
            Self::Token(TokenError::Unavailable { .. }) | Self::NotSaved | Self::LookupFailed => {
                "temporarily_unavailable"
            }
            Self::Form | Self::Token(_) | Self::Unknown | Self::Replayed => "invalid_request",
        }
    }

    /// The status of the response to a refused logout token (Back-Channel Logout §2.8).
    const fn status(&self) -> StatusCode {
        match self {
            Self::NotSaved | Self::LookupFailed => StatusCode::SERVICE_UNAVAILABLE,
            Self::Form | Self::Token(_) | Self::Unknown | Self::Replayed => StatusCode::BAD_REQUEST,
        }
    }
}

/// Reads the single `logout_token` of a form; other fields are ignored (Back-Channel Logout §2.5).
async fn read(head: &Parts, body: Body) -> Option<Secret<String>> {
    let kind = single_value(&head.headers, &CONTENT_TYPE).ok().flatten()?;
    if !essence(kind).eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return None;
    }
    let body = body.collect(MAX_BODY).await.ok()?;
    let mut tokens = form_urlencoded::parse(&body)
        .filter_map(|(name, value)| (name == "logout_token").then_some(value));
    let token = tokens.next()?.into_owned();
    tokens.next().is_none().then(|| token.into())
}

/// Bytes of a logout request.
const MAX_BODY: usize = 32 * 1024;
