//! The end session endpoint: a client asks to log the user out (OpenID Connect RP-Initiated Logout 1.0).

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use url::Url;

use super::browser_sessions::Login;
use super::clients::Client;
use super::error::OAuthError;
use super::form::{Form, Parameters, Query};
use super::jwt::Jwt;
use super::{DevIssuer, pages, response};

/// Logs the user out at once if the client presents an ID token of this login; otherwise asks for confirmation.
pub(super) async fn start(
    State(issuer): State<Arc<DevIssuer>>,
    headers: HeaderMap,
    Query(query): Query,
) -> Result<Response, OAuthError> {
    log_out(&issuer, &headers, &query, None)
}

/// Logs the user out after the confirmation form, which names the login's `sid`, or for a client that posts its request.
pub(super) async fn confirm(
    State(issuer): State<Arc<DevIssuer>>,
    headers: HeaderMap,
    Form(form): Form,
) -> Result<Response, OAuthError> {
    log_out(&issuer, &headers, &form, form.one("confirmed"))
}

fn log_out(
    issuer: &DevIssuer,
    headers: &HeaderMap,
    parameters: &Parameters,
    confirmed_sid: Option<&str>,
) -> Result<Response, OAuthError> {
    let Ok(request) = LogoutRequest::validate(issuer, parameters) else {
        return Ok(pages::refusal("The client that sent you here may not send you on from here."));
    };
    let cookie = issuer.browser_sessions.find(headers);
    let login = cookie.as_ref().and_then(|c| issuer.browser_sessions.login(c, issuer.clock.now()));
    if let (Some(cookie), Some(login)) = (cookie, login) {
        let confirmed = confirmed_sid == Some(&*login.facts.sid);
        if !confirmed && !request.is_of_login(&login) {
            let fields = LogoutRequest::fields(parameters);
            return Ok(pages::confirm_logout(&fields, &login.facts.sid));
        }
        issuer.browser_sessions.log_out(&cookie);
        issuer.end_login(&login.facts.sid)?;
    }
    Ok(match request.location {
        Some(location) => response::see_other(&location),
        None => pages::logged_out(),
    })
}

/// A valid logout request.
struct LogoutRequest {
    /// The `sid` of the ID token that the client presents.
    sid: Option<String>,
    /// The redirect after the logout.
    location: Option<String>,
}

/// The client has not registered the `post_logout_redirect_uri`.
struct NotRegistered;

impl LogoutRequest {
    fn validate(issuer: &DevIssuer, parameters: &Parameters) -> Result<Self, NotRegistered> {
        // An expired ID token is still a hint, as long as this issuer signed it.
        let hint = parameters.one("id_token_hint").and_then(Jwt::parse);
        let hint = hint.filter(|hint| {
            hint.text("iss") == Some(&issuer.url) && hint.is_signed_with(&issuer.keys.published())
        });
        let client_id =
            parameters.one("client_id").or(hint.as_ref().and_then(|hint| hint.text("aud")));
        let client = client_id.and_then(|id| issuer.clients.find(id));
        let location = match parameters.one("post_logout_redirect_uri") {
            Some(uri) => {
                let location = location(client.as_deref(), uri, parameters.one("state"));
                Some(location.ok_or(NotRegistered)?)
            }
            None => None,
        };
        Ok(Self { sid: hint.and_then(|hint| hint.text("sid").map(str::to_owned)), location })
    }

    /// Whether the client's ID token belongs to `login`.
    fn is_of_login(&self, login: &Login) -> bool {
        self.sid.as_deref() == Some(&*login.facts.sid)
    }

    /// Returns the parameters that the confirmation form repeats.
    fn fields(parameters: &Parameters) -> Vec<(&'static str, &str)> {
        ["id_token_hint", "client_id", "post_logout_redirect_uri", "state"]
            .into_iter()
            .filter_map(|name| Some((name, parameters.one(name)?)))
            .collect()
    }
}

/// Returns the registered redirect URI with `state`.
fn location(client: Option<&Client>, uri: &str, state: Option<&str>) -> Option<String> {
    client?.post_logout_redirect_uris.iter().find(|registered| *registered == uri)?;
    let mut uri = Url::parse(uri).ok()?;
    if let Some(state) = state {
        uri.query_pairs_mut().append_pair("state", state);
    }
    Some(uri.into())
}
