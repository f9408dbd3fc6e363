//! The issuer says that somebody has logged out there (OpenID Connect
//! Back-Channel Logout 1.0): the person's browser has no part in it.

use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use serde_json::json;
use url::form_urlencoded;

use crate::base::body::Body;
use crate::base::secret::Secret;
use crate::session::Sessions;
use crate::session::cookies::origin::only;
use crate::session::registry::RetainedState;
use crate::session::response::{answer, json};
use crate::store::Unavailable;
use crate::token::jwt::id_token::Logout;
use crate::token::{RevocationTarget, TokenError};

impl Sessions {
    /// Heeds the logout token in `request`. When this answers, what it names has ended everywhere.
    pub(crate) async fn handle(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let refused = match self.accept(&head, body).await {
            Ok(()) => return answer(StatusCode::OK, Body::empty()),
            Err(refused) => refused,
        };
        let session = &*self.settings.name;
        match &refused {
            // Whatever strangers send.
            LogoutTokenError::Form | LogoutTokenError::Token(TokenError::Malformed) => {}
            reason => tracing::warn!(session, %reason, "A logout token was refused."),
        }
        let told = json!({ "error": refused.code(), "error_description": refused.to_string() });
        json(refused.status(), &told)
    }

    async fn accept(&self, head: &Parts, body: Body) -> Result<(), LogoutTokenError> {
        let token = read(head, body).await.ok_or(LogoutTokenError::Form)?;
        let told = self.told.check_logout(&self.issuer, token.expose(), self.clock.now());
        let Logout { session, subject, at, id } = told.await?;
        let RetainedState { by: whose, ending, .. } = &*self.memory;
        let endings = &ending.endings;
        if !endings.heed(whose, &id) {
            return Err(LogoutTokenError::Replayed);
        }
        let at = ending.logins.heard_at(at, self.clock.now());
        let by = if session.is_some() { "sid" } else { "sub" };
        let known = match &session {
            Some(session) => self.knows_login(session).await,
            None => Ok(true),
        };
        // One that no login has brought may mean a session to which the issuer has given none: by `sub` it is found.
        let unmet = match (&subject, known) {
            (_, Ok(true)) | (Some(_), _) => None,
            (None, Ok(false)) => Some(LogoutTokenError::Unknown),
            (None, Err(Unavailable)) => Some(LogoutTokenError::Away),
        };
        let ended = match (session, subject) {
            (Some(session), subject) => {
                let sessionless =
                    subject.filter(|_| known != Ok(true)).map(RevocationTarget::Sessionless);
                ending.revoke(RevocationTarget::LoggedOut(session), at)
                    + sessionless.map_or(0, |what| ending.revoke(what, at))
            }
            (None, subject) => {
                subject.map_or(0, |name| ending.revoke(RevocationTarget::Subject(name), at))
            }
        };
        if endings.kept().await.is_err() {
            // The issuer may say it again.
            endings.heed_again(whose, &id);
            return Err(LogoutTokenError::NotKept);
        }
        if let Some(unmet) = unmet {
            // Whatever is called so has ended; that something is, nobody knows.
            endings.heed_again(whose, &id);
            return Err(unmet);
        }
        let session = &*self.settings.name;
        tracing::info!(session, by, ended, "The issuer told of a logout.");
        Ok(())
    }

    /// Whether a login has brought the session that the issuer calls `sid`: here, or at any gateway of the fleet.
    async fn knows_login(&self, sid: &str) -> Result<bool, Unavailable> {
        if self.memory.logins.know(sid) {
            return Ok(true);
        }
        match &self.redeemer.sharing {
            Some(sharing) => sharing.knows_login(sid).await,
            None => Ok(false),
        }
    }
}

/// Why a logout is not heeded.
#[derive(Debug, thiserror::Error)]
enum LogoutTokenError {
    #[error("send logout_token, once, in a form")]
    Form,
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(
        "no session here has this sid, and without sub the token names no other; whatever has it is over"
    )]
    Unknown,
    #[error("whether a session has this sid cannot be found out; send it again")]
    Away,
    #[error("the token has been heeded before")]
    Replayed,
    #[error("what it ends cannot be kept on disk; send it again")]
    NotKept,
}

impl LogoutTokenError {
    const fn code(&self) -> &'static str {
        match self {
            Self::Token(TokenError::Unavailable { .. }) | Self::NotKept | Self::Away => {
                "temporarily_unavailable"
            }
            Self::Form | Self::Token(_) | Self::Unknown | Self::Replayed => "invalid_request",
        }
    }

    /// One status for whatever is wrong with a token (§2.8 there).
    const fn status(&self) -> StatusCode {
        match self {
            Self::NotKept | Self::Away => StatusCode::SERVICE_UNAVAILABLE,
            Self::Form | Self::Token(_) | Self::Unknown | Self::Replayed => StatusCode::BAD_REQUEST,
        }
    }
}

/// The one `logout_token` of a form; other fields are none of ours (§2.5 there).
async fn read(head: &Parts, body: Body) -> Option<Secret<String>> {
    let kind = only(&head.headers, &CONTENT_TYPE).ok().flatten()?.split(';').next()?.trim();
    if !kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return None;
    }
    let body = body.collect(MAX_BODY).await.ok()?;
    let mut tokens = form_urlencoded::parse(&body)
        .filter_map(|(name, value)| (name == "logout_token").then_some(value));
    let token = tokens.next()?.into_owned();
    tokens.next().is_none().then(|| token.into())
}

const MAX_BODY: usize = 32 * 1024;
