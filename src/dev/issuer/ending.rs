//! The end of a login: what it gave ends, and the clients it was used with are told
//! (OpenID Connect Back-Channel Logout 1.0).

use core::time::Duration;

use serde_json::json;

use super::DevIssuer;
use super::clients::Client;
use super::error::OAuthError;
use super::issue::{object, random};

impl DevIssuer {
    /// Ends the login that tokens call `sid`.
    ///
    /// Grants that were to outlive it (`offline_access`) do (§2.7 there); the
    /// others end. Clients that want to be told are, without waiting for them.
    pub(super) fn end_login(&self, sid: &str) -> Result<(), OAuthError> {
        for (client, subject) in self.store.used_in(sid) {
            let Some(client) = self.clients.find(&client) else { continue };
            let Some(uri) = client.backchannel_logout_uri.clone() else { continue };
            let token = self.logout_token(&client, sid, &subject)?;
            self.control.spawn(tell(uri, token));
        }
        self.store.end(|grant| {
            let given_in_it = grant.login.as_ref().is_some_and(|login| *login.sid == *sid);
            given_in_it && !grant.scopes.contains("offline_access")
        });
        Ok(())
    }

    /// A signed word that a login has ended (§2.4 there).
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
            "exp": now.plus_secs(LIFETIME).as_secs(),
            "jti": random()?,
            "sid": sid,
            "events": { "http://schemas.openid.net/event/backchannel-logout": {} },
        }));
        self.sign("logout+jwt", client, &claims)
    }
}

/// Tells one client. Should it not listen, its session ends with its tokens.
async fn tell(uri: String, token: String) {
    let form = [("logout_token", token)];
    let request = match reqwest::Client::builder().no_proxy().build() {
        Ok(http) => http.post(&uri).form(&form).timeout(PATIENCE),
        Err(error) => {
            tracing::warn!(%error, "No client could be made to tell of a logout.");
            return;
        }
    };
    match request.send().await.and_then(reqwest::Response::error_for_status) {
        Ok(_) => tracing::debug!(uri, "A client was told of a logout."),
        Err(error) => tracing::warn!(uri, %error, "A client could not be told of a logout."),
    }
}

/// Seconds a logout token lives: two minutes at most (§4 there).
const LIFETIME: u64 = 120;
const PATIENCE: Duration = Duration::from_secs(5);
