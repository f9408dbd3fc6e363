//! Telling a front end who is logged in and until when, and refreshing on its wish.

use http::header::WWW_AUTHENTICATE;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use serde_json::{Map, Value, json};

use super::authenticate::{Reason, ResumedSession, SessionError};
use super::pages::Problem;
use super::refresh::decision::RefreshNeed;
use super::refresh::refresher::{RefreshOutcome, RefreshUrgency};
use super::response::{json, problem, retry_after, with_cookies};
use super::store::loaded::LoadedSession;
use super::{Csrf, Sessions};
use crate::base::body::Body;
use crate::base::clock::Timestamp;
use crate::token::Principal;

impl Sessions {
    /// Who is logged in. Asking does not keep a session from being idle.
    pub(super) async fn status(&self, request: Request<Body>) -> Response<Body> {
        let (head, _) = request.into_parts();
        match self.load(&head).await {
            Ok((ResumedSession { opened, principal, .. }, cookies)) => {
                with_cookies(self.described(&opened, &principal), cookies)
            }
            Err(error) => self.refusal(error),
        }
    }

    /// Refreshes now, however long the access token would still live.
    pub(super) async fn refresh(&self, request: Request<Body>) -> Response<Body> {
        let (head, _) = request.into_parts();
        if self.is_elsewhere(&head) {
            return self.refusal(Reason::Csrf.with(Vec::new()));
        }
        match self.refreshed(&head).await {
            Ok(response) => response,
            Err(error) => self.refusal(error),
        }
    }

    async fn refreshed(&self, request: &Parts) -> Result<Response<Body>, SessionError> {
        let (resumed, cookies) = self.load(request).await?;
        let held = self.bring(&request.headers).held();
        if resumed.renewed {
            return Ok(with_cookies(self.described(&resumed.opened, &resumed.principal), cookies));
        }
        match self.redeemer.redeem(&resumed.opened, RefreshNeed::Serves, RefreshUrgency::Much).await
        {
            RefreshOutcome::Renewed(opened) if !self.keeping.fits(&opened) => {
                let left = self.outgrown(resumed.opened, &opened, held, None).await?;
                Ok(self.described(&left.opened, &left.principal))
            }
            RefreshOutcome::Renewed(opened) => {
                let cookies = self.write(&opened, held).await;
                match self.verify(&opened, None).await {
                    Ok(principal) => Ok(with_cookies(self.described(&opened, &principal), cookies)),
                    Err(_) => Err(UNAVAILABLE.with(cookies)),
                }
            }
            RefreshOutcome::Over => Err(Reason::Expired.with(self.clear(held))),
            RefreshOutcome::Doubtful => Err(Reason::Expired.with(Vec::new())),
            RefreshOutcome::Unavailable => Err(UNAVAILABLE.with(Vec::new())),
        }
    }

    /// The visit that `request` brings, good for use, with the cookies that its renewal makes.
    pub(super) async fn load(
        &self,
        request: &Parts,
    ) -> Result<(ResumedSession, Vec<HeaderValue>), SessionError> {
        let brought = self.bring(&request.headers);
        if brought.is_empty() {
            return Err(Reason::Missing.with(Vec::new()));
        }
        let held = brought.held();
        let opened = self.open(request, &brought).await?;
        let resumed = self.resume(opened, held, None).await?;
        let cookies =
            if resumed.renewed { self.write(&resumed.opened, held).await } else { Vec::new() };
        Ok((resumed, cookies))
    }

    /// Who is logged in, and when what ends. Times are seconds since 1970; an absent one is not known.
    pub(super) fn described(
        &self,
        opened: &LoadedSession,
        principal: &Principal,
    ) -> Response<Body> {
        let visit = &opened.visit;
        let (idle, absolute) = (self.settings.idle_timeout, self.settings.absolute_timeout);
        let mut told = Map::new();
        told.insert("logged_in".into(), true.into());
        told.insert("subject".into(), json!(principal.subject));
        for claim in DISCLOSED_CLAIMS {
            let value = opened.person().get(claim).or_else(|| principal.claims.get(claim));
            if let Some(value) = value.filter(|value| value.is_string() || value.is_boolean()) {
                told.insert(claim.into(), value.clone());
            }
        }
        told.insert("scope".into(), principal.scopes.to_string().into());
        for (name, time) in [
            ("logged_in_at", visit.since),
            ("idle_ends_at", visit.over_at(idle, absolute)),
            ("ends_at", visit.since.plus(absolute)),
            ("access_token_ends_at", visit.ends.min(principal.expires)),
        ] {
            if time < Timestamp::MAX {
                told.insert(name.into(), time.as_secs().into());
            }
        }
        if self.settings.csrf == Csrf::Token {
            told.insert("csrf_token".into(), self.csrf_token(opened).into());
        }
        json(StatusCode::OK, &Value::Object(told))
    }

    /// Nobody is logged in, and where to change that.
    pub(super) fn refusal(
        &self,
        SessionError { reason, set_cookies }: SessionError,
    ) -> Response<Body> {
        let login = &*self.settings.paths.login;
        let members = json!({ "logged_in": false, "login": login });
        let response = match reason {
            Reason::Missing | Reason::Expired => {
                let title = "Nobody is logged in.";
                let status = StatusCode::UNAUTHORIZED;
                let mut response = problem(status, "unauthenticated", title, members);
                response.headers_mut().insert(WWW_AUTHENTICATE, self.challenge());
                response
            }
            Reason::Csrf => {
                let title = "The request may come from another site.";
                problem(StatusCode::FORBIDDEN, "csrf", title, json!({}))
            }
            Reason::TooLarge => {
                let status = StatusCode::BAD_GATEWAY;
                problem(status, "session-too-large", Problem::TooLarge.words(), members)
            }
            Reason::Unavailable { retry_after: seconds } => {
                let title = "The authorization server cannot be asked.";
                let status = StatusCode::SERVICE_UNAVAILABLE;
                let response = problem(status, "issuer-unavailable", title, json!({}));
                retry_after(response, u64::from(seconds))
            }
        };
        with_cookies(response, set_cookies)
    }
}

/// What of an ID token a front end is told, besides `sub`.
const DISCLOSED_CLAIMS: [&str; 5] = ["name", "preferred_username", "username", "email", "picture"];
const UNAVAILABLE: Reason = Reason::Unavailable { retry_after: super::authenticate::RETRY_AFTER };
