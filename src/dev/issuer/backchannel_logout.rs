//! The end of a login: its grants end, and its clients are notified (OpenID Connect Back-Channel Logout 1.0).

use core::time::Duration;

use serde_json::json;

use super::DevIssuer;
use super::clients::Client;
use super::error::OAuthError;
use super::random::random;
use super::token_factory::object;

impl DevIssuer {
    /// Ends the login with this `sid`.
    ///
    /// Grants with `offline_access` outlive it (§2.7 there); its other grants
    /// end. Clients with a back-channel logout URI are notified in the background.
    pub(super) fn end_login(&self, sid: &str) -> Result<(), OAuthError> {
        for (client, subject) in self.store.clients_of_login(sid) {
            let Some(client) = self.clients.find(&client) else { continue };
            let Some(uri) = client.backchannel_logout_uri.clone() else { continue };
            let token = self.logout_token(&client, sid, &subject)?;
            self.control.spawn(notify(uri, token));
        }
        self.store.end_grants(|grant| {
            let of_login = grant.login.as_ref().is_some_and(|login| *login.sid == *sid);
            of_login && !grant.scopes.contains("offline_access")
        });
        Ok(())
    }

    /// Signs a logout token (§2.4 there).
    pub(super) fn logout_token(
        &self,
        client: &Client,
        sid: &str,
        subject: &str,
    ) -> Result<String, OAuthError> {
        let now = self.clock.now();
        let claims = object(json!({
            "iss": self.url,
            "sub": subject,
            "aud": client.id,
            "iat": now.as_secs(),
            "exp": now.plus_secs(TOKEN_LIFETIME_SECS).as_secs(),
            "jti": random()?,
            "sid": sid,
            "events": { "http://schemas.openid.net/event/backchannel-logout": {} },
        }));
        self.sign("logout+jwt", client, &claims)
    }
}

/// Sends the logout token to one client. If that fails, the client's session ends with its tokens.
async fn notify(uri: String, token: String) {
    let form = [("logout_token", token)];
    let request = match reqwest::Client::builder().no_proxy().build() {
        Ok(http) => http.post(&uri).form(&form).timeout(REQUEST_TIMEOUT),
        Err(error) => {
            tracing::warn!(uri, %error, "Could not create an HTTP client; a client was not notified of a logout.");
            return;
        }
    };
    match request.send().await.and_then(reqwest::Response::error_for_status) {
        Ok(_) => tracing::debug!(uri, "A client was notified of a logout."),
        Err(error) => tracing::warn!(uri, %error, "Could not notify a client of a logout."),
    }
}

/// The lifetime of a logout token: two minutes at most (§4 there).
const TOKEN_LIFETIME_SECS: u64 = 120;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
