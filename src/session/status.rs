//! The status of a session for front ends, and refresh on request.

use http::header::WWW_AUTHENTICATE;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use serde_json::{Map, Value, json};

use super::authenticate::{ResumedSession, SessionError, SessionErrorReason};
use super::pages::Problem;
use super::refresh::decision::RefreshNeed;
use super::refresh::refresh_results::{RefreshOutcome, RefreshUrgency};
use super::response::{json, problem, retry_after, with_cookies};
use super::store::loaded_session::LoadedSession;
use super::{Csrf, Sessions};
use crate::base::body::Body;
use crate::base::clock::Timestamp;
use crate::token::Principal;

impl Sessions {
    /// Returns who is logged in. Does not count as use of the session.
    pub(super) async fn status(&self, request: Request<Body>) -> Response<Body> {
        let (head, _) = request.into_parts();
        match self.load(&head).await {
            Ok((ResumedSession { loaded, principal, .. }, cookies)) => {
                with_cookies(self.described(&loaded, &principal), cookies)
            }
            Err(error) => self.refusal(error),
        }
    }

    /// Refreshes now, whatever the remaining lifetime of the access token.
    pub(super) async fn refresh(&self, request: Request<Body>) -> Response<Body> {
        let (head, _) = request.into_parts();
        if self.is_cross_site_request(&head) {
            return self.refusal(SessionErrorReason::Csrf.with(Vec::new()));
        }
        match self.refreshed(&head).await {
            Ok(response) => response,
            Err(error) => self.refusal(error),
        }
    }

    async fn refreshed(&self, request: &Parts) -> Result<Response<Body>, SessionError> {
        let (resumed, cookies) = self.load(request).await?;
        let held = self.presented_cookies(&request.headers).held();
        if resumed.renewed {
            return Ok(with_cookies(self.described(&resumed.loaded, &resumed.principal), cookies));
        }
        match self
            .refresher
            .redeem(&resumed.loaded, RefreshNeed::Serves, RefreshUrgency::High)
            .await
        {
            RefreshOutcome::Renewed(loaded) if !self.storage.fits(&loaded, held) => {
                let left = self.serve_old_tokens(resumed.loaded, &loaded, held, None).await?;
                Ok(self.described(&left.loaded, &left.principal))
            }
            RefreshOutcome::Renewed(loaded) => {
                let ResumedSession { loaded, principal, .. } =
                    self.take_up(loaded, held, None).await?;
                let cookies = self.write(&loaded, held).await;
                Ok(with_cookies(self.described(&loaded, &principal), cookies))
            }
            RefreshOutcome::Over => Err(SessionErrorReason::Expired.with(self.clear(held))),
            RefreshOutcome::Doubtful => Err(SessionErrorReason::Expired.with(Vec::new())),
            RefreshOutcome::Unavailable => Err(UNAVAILABLE.with(Vec::new())),
            RefreshOutcome::StoreUnavailable => {
                Err(SessionErrorReason::StoreUnavailable.with(Vec::new()))
            }
        }
    }

    /// Loads the session of `request`, prepared for use, with the cookies that a refresh makes.
    pub(super) async fn load(
        &self,
        request: &Parts,
    ) -> Result<(ResumedSession, Vec<HeaderValue>), SessionError> {
        let presented = self.presented_cookies(&request.headers);
        if presented.is_empty() {
            return Err(SessionErrorReason::Missing.with(Vec::new()));
        }
        let held = presented.held();
        let loaded = self.open(request, &presented).await?;
        let resumed = self.resume(loaded, held, None).await?;
        let cookies =
            if resumed.renewed { self.write(&resumed.loaded, held).await } else { Vec::new() };
        Ok((resumed, cookies))
    }

    /// Describes a session: subject, claims, and times in seconds since 1970; unknown times are absent.
    pub(super) fn described(
        &self,
        loaded: &LoadedSession,
        principal: &Principal,
    ) -> Response<Body> {
        let state = &loaded.state;
        let (idle, absolute) = (self.settings.idle_timeout, self.settings.absolute_timeout);
        let mut session = Map::new();
        session.insert("logged_in".into(), true.into());
        session.insert("subject".into(), json!(principal.subject));
        for claim in DISCLOSED_CLAIMS {
            let value = loaded.person().get(claim).or_else(|| principal.claims.get(claim));
            if let Some(value) = value.filter(|value| value.is_string() || value.is_boolean()) {
                session.insert(claim.into(), value.clone());
            }
        }
        session.insert("scope".into(), principal.scopes.to_string().into());
        for (name, time) in [
            ("logged_in_at", state.since),
            ("idle_ends_at", state.over_at(idle, absolute)),
            ("ends_at", state.since.plus(absolute)),
            ("access_token_ends_at", state.ends.min(principal.expires)),
        ] {
            if time < Timestamp::MAX {
                session.insert(name.into(), time.as_secs().into());
            }
        }
        if self.settings.csrf == Csrf::Token {
            session.insert("csrf_token".into(), self.csrf_token(loaded).into());
        }
        json(StatusCode::OK, &Value::Object(session))
    }

    /// Returns the response to a request without a session.
    pub(super) fn refusal(
        &self,
        SessionError { reason, set_cookies }: SessionError,
    ) -> Response<Body> {
        let login = &*self.settings.paths.login;
        let members = json!({ "logged_in": false, "login": login });
        let response = match reason {
            SessionErrorReason::Missing | SessionErrorReason::Expired => {
                let title = "Not logged in.";
                let status = StatusCode::UNAUTHORIZED;
                let mut response = problem(status, "unauthenticated", title, members);
                response.headers_mut().insert(WWW_AUTHENTICATE, self.challenge());
                response
            }
            SessionErrorReason::Csrf => {
                let title = "The request may come from another site.";
                problem(StatusCode::FORBIDDEN, "csrf", title, json!({}))
            }
            SessionErrorReason::TooLarge => {
                let status = StatusCode::BAD_GATEWAY;
                problem(status, "session-too-large", Problem::TooLarge.message(), members)
            }
            SessionErrorReason::Unavailable { retry_after: seconds } => {
                let title = "The authorization server is unavailable.";
                let status = StatusCode::SERVICE_UNAVAILABLE;
                let response = problem(status, "issuer-unavailable", title, json!({}));
                retry_after(response, u64::from(seconds))
            }
            SessionErrorReason::StoreUnavailable => {
                let title = "The store of sessions is unavailable.";
                let status = StatusCode::SERVICE_UNAVAILABLE;
                let response = problem(status, "store-unavailable", title, json!({}));
                retry_after(response, u64::from(super::authenticate::RETRY_AFTER))
            }
        };
        with_cookies(response, set_cookies)
    }
}

/// The claims of an ID token that a front end receives, besides `sub`.
const DISCLOSED_CLAIMS: [&str; 5] = ["name", "preferred_username", "username", "email", "picture"];
const UNAVAILABLE: SessionErrorReason =
    SessionErrorReason::Unavailable { retry_after: super::authenticate::RETRY_AFTER };
