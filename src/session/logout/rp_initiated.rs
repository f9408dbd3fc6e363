//! Logout by the user: at the gateway at once, and at the issuer if it offers that.

use core::net::IpAddr;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use serde_json::json;
use url::Url;

use super::deferred_logout::end_unseen;
use super::ended_sessions::EndReason;
use crate::base::body::Body;
use crate::base::clock::Timestamp;
use crate::observe::metrics::LogoutKind;
use crate::session::authenticate::{RETRY_AFTER, SessionError, SessionErrorReason};
use crate::session::cookies::origin::RequestOrigin;
use crate::session::login::return_to::ReturnTarget;
use crate::session::response::{json, lead_to, problem, retry_after, with_cookies};
use crate::session::settings::Csrf;
use crate::session::store::loaded_session::LoadedSession;
use crate::session::store::state::Id;
use crate::session::store::storage::PresentedCookies;
use crate::session::{Flow, Sessions};

impl Sessions {
    /// Ends the session of `request`, which came from `address`. Without a session the response is the same.
    pub(crate) async fn log_out(
        self: &Arc<Self>,
        request: Request<Body>,
        address: IpAddr,
    ) -> Response<Body> {
        let (head, _) = request.into_parts();
        // Before any cookie is read: another site's page must not even cause them to be cleared.
        if self.is_cross_site_request(&head) {
            return self.refusal(SessionErrorReason::Csrf.with(Vec::new()));
        }
        let headers = head.headers.clone();
        // A page that navigates away cancels its requests.
        let this = Arc::clone(self);
        let ended = self.run_to_end(async move { this.end_presented(&head, address).await });
        let LoggedOut { next, cookies } = match ended.await {
            Ok(logged_out) => logged_out,
            Err(LogoutError::Refused(error)) => return self.refusal(error),
            Err(LogoutError::NotSaved) => {
                // The cookies stay: a second request ends the session for good.
                let title = "You are logged out, but a restart of the gateway would undo that. Please try again.";
                let status = StatusCode::SERVICE_UNAVAILABLE;
                return retry_after(problem(status, "not-kept", title, json!({})), 1);
            }
            Err(LogoutError::Pending(pending)) => return pending.response(),
            Err(LogoutError::SealedElsewhere) => {
                let title = "The session could not be ended: this gateway does not have its key.";
                return pending_logout(title, false);
            }
        };
        let after = || ReturnTarget::trusted(&self.settings.after_logout).location();
        let named = || {
            let next = next.as_ref().and_then(|url| url.to_str().ok());
            json(StatusCode::OK, &json!({ "logged_in": false, "end_session": next }))
        };
        let response = lead_to(&headers, next.clone().unwrap_or_else(after), named);
        with_cookies(response, cookies)
    }

    /// Ends the sessions that a request presents.
    async fn end_presented(&self, head: &Parts, address: IpAddr) -> Result<LoggedOut, LogoutError> {
        let presented = self.presented_cookies(&head.headers);
        let mut next = None;
        if !presented.is_empty() {
            // The logout page has no script to repeat a token: the same origin is proof enough.
            let rule = match self.settings.csrf {
                Csrf::Token
                    if self.own_origin.request_origin(head) == RequestOrigin::SameOrigin =>
                {
                    Csrf::Strict
                }
                rule => rule,
            };
            match self.open_under(rule, head, &presented).await {
                Ok(loaded) => {
                    next =
                        self.log_out_of(&loaded).await.and_then(|latest| self.end_session(&latest));
                    // A cookie of an earlier `Domain` or `Path` stays in the browser: the session in it would go on.
                    let all = self.storage.open_all(&presented).await.unwrap_or_default();
                    for other in all.iter().filter(|other| other.name != loaded.name) {
                        self.log_out_of(other).await;
                    }
                }
                Err(error) if error.reason == SessionErrorReason::Csrf => {
                    return Err(LogoutError::Refused(error));
                }
                Err(error) if error.reason == SessionErrorReason::StoreUnavailable => {
                    let pending = self.log_out_later(&presented, address).await;
                    return Err(LogoutError::Pending(pending));
                }
                Err(_) if self.is_sealed_elsewhere(&presented).await => {
                    return Err(LogoutError::SealedElsewhere);
                }
                // A session that does not open has ended already.
                Err(_) => {}
            }
        }
        if !presented.is_empty() && self.retained.ended.lasting().await.is_err() {
            return Err(LogoutError::NotSaved);
        }
        let mut cookies = self.clear(presented.held());
        // A login that follows is no sign that the one before failed.
        cookies.extend(self.logins.forget_completed(&head.headers));
        Ok(LoggedOut { next, cookies })
    }

    /// Ends a session and its tokens, and returns its latest state; `None` if the cookie is an old copy.
    async fn log_out_of(&self, loaded: &Arc<LoadedSession>) -> Option<Arc<LoadedSession>> {
        // The presented copy has been idle for too long: the session may continue in a later one.
        if self.is_left_behind(loaded).await {
            return None;
        }
        // First the end, then the lookup of its successor: a refresh does it in the opposite order, so that one of the
        // two sees the other.
        let is_new = self.retained.ended.end(&loaded.name, EndReason::Over);
        // An old cookie ends the newest tokens as well.
        let latest = self.refresher.close(loaded).await;
        if self.retained.ended.end(&latest.name, EndReason::Over) || is_new {
            self.metrics.logout(LogoutKind::User);
        }
        self.storage.forget(latest.state.id).await;
        let (revoker, state) = (Arc::clone(&self.revoker), latest.state.clone());
        if self.control.spawn(async move { revoker.revoke(&state).await }).await.is_err() {
            tracing::error!("Revoking tokens at the issuer panicked; the session has ended.");
        }
        Some(latest)
    }

    /// Whether another site's page sent the request, unless `csrf` is off.
    pub(crate) fn is_cross_site_request(&self, head: &Parts) -> bool {
        self.settings.csrf != Csrf::Off
            && self.own_origin.request_origin(head) == RequestOrigin::CrossOrigin
    }

    /// Logs out of a session that only Redis has, while Redis is unavailable: the session ends, and its tokens are
    /// revoked, when Redis is reachable again. Until then the cookie stays. With a state directory a restarted gateway
    /// knows the end of the session and publishes it.
    async fn log_out_later(
        &self,
        presented: &PresentedCookies<'_>,
        address: IpAddr,
    ) -> PendingLogout {
        // A request may have several ids, such as one of an earlier `Domain`: Redis alone knows which of them belong to
        // sessions.
        let ids = self.storage.ids(presented);
        let mut pending = 0;
        for id in &ids {
            pending += usize::from(self.end_later(*id, address).await);
        }
        let is_pending = pending > 0 && pending == ids.len();
        let ended = &self.retained.ended;
        PendingLogout { is_pending, is_saved: ended.is_kept() && ended.saved().await.is_ok() }
    }

    /// Whether the session is one that another instance can open and end, and this one cannot: the operator has not given it
    /// the key yet.
    async fn is_sealed_elsewhere(&self, presented: &PresentedCookies<'_>) -> bool {
        !self.settings.keys.is_empty() && self.storage.is_sealed_elsewhere(presented).await
    }

    /// Ends the session `id` when Redis is reachable again; returns `false` if too many are pending.
    async fn end_later(&self, id: Id, address: IpAddr) -> bool {
        let (name, ended): (Arc<str>, _) = (id.alias().into(), &self.retained.ended);
        if ended.find(&name, Timestamp::MAX, [], None).is_some() {
            return true;
        }
        // Before anything is kept: strangers can make up ids.
        let Some(permit) = self.retained.unseen_logouts.admit(Some(address)) else { return false };
        let entry = self.revoker.keep_unseen(id).await;
        let is_pending = end_unseen(&self.storage, &self.revoker, ended, id, entry.clone(), permit);
        if is_pending {
            self.metrics.logout(LogoutKind::User);
            ended.record_pending(&name);
        } else {
            self.revoker.done(entry).await;
        }
        is_pending
    }

    /// Returns the endpoint at which the issuer ends its own session with a browser (OpenID Connect RP-Initiated Logout §2),
    /// if logouts lead there; a password grant has no session there.
    pub(crate) fn end_session_endpoint(&self) -> Option<Url> {
        if !self.settings.end_session || self.settings.flow == Flow::Password {
            return None;
        }
        self.issuer.metadata().endpoints.end_session.clone()
    }

    /// Returns the URL at which the issuer ends the session of `loaded` with this browser.
    fn end_session(&self, loaded: &LoadedSession) -> Option<HeaderValue> {
        let mut url = self.end_session_endpoint()?;
        let after = self.settings.public_url.join(&self.settings.after_logout).ok()?;
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("client_id", &self.settings.client.id);
            query.append_pair("post_logout_redirect_uri", after.as_str());
        }
        // Servers and proxies refuse long request targets; without the hint the issuer asks the user.
        if let Some(token) = &loaded.state.id_token
            && url.as_str().len() + "&id_token_hint=".len() + token.expose().len() <= MAX_URL
        {
            url.query_pairs_mut().append_pair("id_token_hint", token.expose());
        }
        HeaderValue::from_str(url.as_str()).ok()
    }
}

/// The end of the sessions that a request presented.
struct LoggedOut {
    /// The URL of the logout at the issuer.
    next: Option<HeaderValue>,
    /// The `Set-Cookie` fields of the response.
    cookies: Vec<HeaderValue>,
}

/// The reason why a request is not answered as a logout.
enum LogoutError {
    /// Another site's page may have sent the request.
    Refused(SessionError),
    /// The sessions have ended, but a restart would undo that.
    NotSaved,
    /// The store of the sessions cannot be reached.
    Pending(PendingLogout),
    /// Another instance can open the session, and this one cannot.
    SealedElsewhere,
}

/// The logout of sessions whose store cannot be reached.
struct PendingLogout {
    /// Whether all of them end as soon as it can be.
    is_pending: bool,
    /// Whether that survives a restart.
    is_saved: bool,
}

impl PendingLogout {
    fn response(&self) -> Response<Body> {
        let title = if self.is_pending && !self.is_saved {
            "The session has not ended everywhere yet, and a restart of the gateway would undo the logout. Please try again."
        } else if self.is_pending {
            "The session has not ended everywhere yet: it ends as soon as its store can be reached."
        } else {
            "The session could not be ended: its store cannot be reached."
        };
        pending_logout(title, self.is_pending)
    }
}

/// Responds to a logout that has not ended the session, whose cookies stay; `is_pending` is whether it will end without
/// another request.
fn pending_logout(title: &str, is_pending: bool) -> Response<Body> {
    let status = StatusCode::SERVICE_UNAVAILABLE;
    let response = problem(status, "logout-pending", title, json!({ "pending": is_pending }));
    retry_after(response, u64::from(RETRY_AFTER))
}

/// Bytes of a URL that every server takes.
const MAX_URL: usize = 4096;
