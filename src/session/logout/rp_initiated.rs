//! Logging out: at once here, at the issuer as far as it can be told.

use std::sync::Arc;

use futures_util::FutureExt;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use serde_json::json;

use super::ended_sessions::EndReason;
use crate::base::body::Body;
use crate::base::clock::Timestamp;
use crate::observe::metrics::LogoutKind;
use crate::session::authenticate::{RETRY_AFTER, Reason};
use crate::session::cookies::origin::RequestOrigin;
use crate::session::login::return_to::ReturnTarget;
use crate::session::response::{json, problem, retry_after, see_other, wants_html, with_cookies};
use crate::session::settings::Csrf;
use crate::session::store::loaded::LoadedSession;
use crate::session::store::storage::PresentedCookies;
use crate::session::{Flow, Sessions};
use crate::token::{Revocation, RevocationTarget};

impl Sessions {
    /// Ends the visit that `request` brings. Without one there is nothing to end, which is as good.
    pub(crate) async fn log_out(&self, request: Request<Body>) -> Response<Body> {
        let (head, _) = request.into_parts();
        // Before any cookie is looked at: another site's page must not even have them cleared.
        if self.is_elsewhere(&head) {
            return self.refusal(Reason::Csrf.with(Vec::new()));
        }
        let brought = self.bring(&head.headers);
        let mut next = None;
        if !brought.is_empty() {
            // The page that asks has no script to repeat a token with: that it is ours is enough.
            let rule = match self.settings.csrf {
                Csrf::Token if self.home.whence(&head) == RequestOrigin::Here => Csrf::Strict,
                rule => rule,
            };
            match self.open_under(rule, &head, &brought).await {
                // An old copy, that has been idle for too long: the session may live on in a later one.
                Ok(opened) if self.is_left_behind(&opened).await => {}
                Ok(opened) => {
                    // First the end, then a look at what came of it: a refresh does it the other way round,
                    // and one of the two finds the other.
                    let fresh = self.memory.endings.end(&opened, EndReason::Over);
                    // A straggler's cookie stands for the newest tokens, too.
                    let latest = self.redeemer.close(&opened).await;
                    if self.memory.endings.end(&latest, EndReason::Over) || fresh {
                        self.metrics.logout(LogoutKind::User);
                    }
                    self.keeping.forget(latest.visit.id).await;
                    next = self.end_session(&latest);
                    let revoker = Arc::clone(&self.revoker);
                    let call =
                        self.control.spawn(async move { revoker.revoke(&latest.visit).await });
                    if call.await.is_err() {
                        tracing::error!("Revoking tokens ended in a panic.");
                    }
                }
                Err(error) if error.reason == Reason::Csrf => return self.refusal(error),
                Err(error) if matches!(error.reason, Reason::Unavailable { .. }) => {
                    return self.log_out_later(&brought).await;
                }
                // What does not open is over already.
                Err(_) => {}
            }
        }
        if !brought.is_empty() && self.memory.endings.kept().await.is_err() {
            // The cookies stay: a second request ends it for good.
            let title =
                "You are logged out, but a restart of the gateway would undo it. Please try again.";
            let response = problem(StatusCode::SERVICE_UNAVAILABLE, "not-kept", title, json!({}));
            return retry_after(response, 1);
        }
        let cookies = self.clear(brought.held());
        let response = if wants_html(&head.headers) {
            let after = ReturnTarget::trusted(&self.settings.after_logout);
            see_other(next.unwrap_or_else(|| after.location()))
        } else {
            let next = next.as_ref().and_then(|url| url.to_str().ok());
            json(StatusCode::OK, &json!({ "logged_in": false, "end_session": next }))
        };
        with_cookies(response, cookies)
    }

    /// Whether another site's page sent the request, as far as it says, unless the operator does not mind.
    pub(crate) fn is_elsewhere(&self, head: &Parts) -> bool {
        self.settings.csrf != Csrf::Off && self.home.whence(head) == RequestOrigin::Elsewhere
    }

    /// Answers a logout of a visit that only other gateways know, while they cannot be asked: it ends when
    /// Redis is back, here and there, and its tokens are given back then. Until then the cookie stays. A process that
    /// comes after this one knows it, where something is kept over a restart, and tells the others.
    async fn log_out_later(&self, brought: &PresentedCookies<'_>) -> Response<Body> {
        let endings = &self.memory.endings;
        let is_owed = self.keeping.name_of(brought).is_some_and(|name| {
            let name: Arc<str> = name.into();
            if endings.find(&name, Timestamp::MAX, []).is_some() {
                return true;
            }
            let (revoker, endings) = (Arc::clone(&self.revoker), Arc::clone(endings));
            let visit =
                Revocation { issuer: None, what: RevocationTarget::Visit(Arc::clone(&name)) };
            // Other gateways are told when its tokens are in hand: one that ended it first would not give them back.
            let is_owed = self.keeping.end_unseen(brought, move |opened| {
                async move {
                    endings.revoke(visit);
                    if let Some(opened) = opened {
                        revoker.revoke(&opened.visit).await;
                    }
                }
                .boxed()
            });
            if is_owed {
                self.metrics.logout(LogoutKind::User);
                self.memory.endings.owe(&name);
            }
            is_owed
        });
        let is_kept = self.memory.endings.kept().await.is_ok();
        let title = if is_owed && !is_kept {
            "The session is not over everywhere yet, and a restart of the gateway would undo it. Please try again."
        } else if is_owed {
            "The session is not over everywhere yet: it ends as soon as its store can be reached."
        } else {
            "The session could not be ended: its store cannot be reached."
        };
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let response = problem(status, "logout-pending", title, json!({ "pending": is_owed }));
        retry_after(response, u64::from(RETRY_AFTER))
    }

    /// Where the issuer ends its own session with this browser
    /// (OpenID Connect RP-Initiated Logout §2); a password grant has none there.
    fn end_session(&self, opened: &LoadedSession) -> Option<HeaderValue> {
        if !self.settings.end_session || self.settings.flow == Flow::Password {
            return None;
        }
        let mut url = self.issuer.metadata().endpoints.end_session.clone()?;
        let after = self.settings.public_url.join(&self.settings.after_logout).ok()?;
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("client_id", &self.settings.client.id);
            query.append_pair("post_logout_redirect_uri", after.as_str());
            if let Some(token) = &opened.visit.id_token {
                query.append_pair("id_token_hint", token.expose());
            }
        }
        HeaderValue::from_str(url.as_str()).ok()
    }
}
