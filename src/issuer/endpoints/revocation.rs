//! Token revocation (RFC 7009), and the common form of calls that need nothing between their permit and
//! their response.

use http::StatusCode;
use url::Url;

use super::token_response::SERVERS;
use crate::base::secret::Secret;
use crate::issuer::calls::call_context::CallContext;
use crate::issuer::calls::call_purpose::{Input, Purpose};
use crate::issuer::calls::client_auth::Form;
use crate::issuer::calls::http_client::{CallError, Post, Response};
use crate::issuer::calls::unavailable::Unavailable;
use crate::issuer::settings::Client;
use crate::observe::metrics::Endpoint;

/// The type of a revoked token (RFC 7009 §2.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TokenHint {
    /// `access_token`.
    AccessToken,
    /// `refresh_token`.
    RefreshToken,
}

/// The outcome of a call after which there is nothing left to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RevocationOutcome {
    /// The issuer has revoked the token.
    Revoked,
    /// The token is left to end by itself: the issuer has no endpoint for it, or has refused for good.
    Left,
}

impl TokenHint {
    const fn name(self) -> &'static str {
        match self {
            Self::AccessToken => "access_token",
            Self::RefreshToken => "refresh_token",
        }
    }
}

impl CallContext {
    /// Revokes a token. Runs on the control runtime.
    pub(in crate::issuer) async fn revoke(
        &self,
        token: &Secret<String>,
        hint: TokenHint,
        client: &Client,
    ) -> Result<RevocationOutcome, Unavailable> {
        let metadata = self.provider_cache.metadata().await;
        let Some(url) = &metadata.endpoints.revocation else {
            // Without the endpoint there is nothing to do, once it is known that there is none.
            let is_known = self.provider_cache.is_discovered();
            return if is_known {
                Ok(RevocationOutcome::Left)
            } else {
                Err(Unavailable::RETRY_SOON)
            };
        };
        let mut form = Form::default();
        form.add("token", token.expose());
        form.add("token_type_hint", hint.name());
        let input = Input::new(Purpose::Revocation, &client.id, ACCEPT, form.as_str());
        let post = self.form_of(client, Endpoint::Revocation, url, form)?;
        let response = self.exchange(Purpose::Revocation, input, post, |response| {
            // 200 by the RFC (RFC 7009 §2.2); some servers send 202 or 204.
            if response.status.is_success() {
                Some(None)
            } else {
                final_refusal(response).map(Some)
            }
        });
        let issuer = &self.settings.name;
        match response.await {
            Ok(None) => Ok(RevocationOutcome::Revoked),
            Ok(Some(error)) => {
                let is_over = OVER.contains(&&*error);
                if let (false, Some(suppressed)) = (is_over, self.http_client.may_warn()) {
                    tracing::warn!(%issuer, error, suppressed, "The issuer refused to revoke a token; the token ends by itself.");
                }
                Ok(RevocationOutcome::Left)
            }
            Err((error, why)) => {
                if let (Some(why), Some(suppressed)) = (why, self.http_client.may_warn()) {
                    tracing::warn!(%issuer, error = why, suppressed, "Could not revoke a token at the issuer; it may stay valid there.");
                }
                Err(error)
            }
        }
    }

    /// Returns the request that posts `form` to `endpoint`, which is at `url`, as `client`.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if the client's assertion cannot be signed.
    pub(in crate::issuer) fn form_of<'a>(
        &self,
        client: &'a Client,
        endpoint: Endpoint,
        url: &'a Url,
        mut form: Form,
    ) -> Result<Post<'a>, Unavailable> {
        let authorization = self
            .authenticate(client, &mut form, url, self.clock.now())
            .map_err(|_| Unavailable::RETRY_SOON)?;
        Ok(Post {
            endpoint,
            url,
            accept: ACCEPT,
            form: form.finish(),
            auth: &client.auth,
            authorization,
            limit: self.settings.timeout,
        })
    }

    /// Makes one call with a permit of its own and through the circuit breaker of its `purpose`; `read` extracts the
    /// result from the response.
    ///
    /// # Errors
    ///
    /// [`Unavailable`], with a description of the response if there was one.
    pub(in crate::issuer) async fn exchange<T>(
        &self,
        purpose: Purpose,
        input: Input,
        post: Post<'_>,
        read: impl FnOnce(&Response) -> Option<T>,
    ) -> Result<T, (Unavailable, Option<String>)> {
        let slot = self.http_client.slot(purpose).map_err(|busy| (busy, None))?;
        let pass = self.circuits.admit(purpose, input, self.clock.uptime());
        let pass = pass.map_err(|wait| (Unavailable::after(wait), None))?;
        let now = || self.clock.uptime();
        let response = match self.http_client.post(&slot, post).await {
            Ok(response) => response,
            Err(why) => {
                match why {
                    CallError::Unavailable => pass.record_unavailable(now()),
                    CallError::Unexpected => pass.record_unexpected_response(now()),
                    CallError::NotSent => {}
                }
                return Err((Unavailable::RETRY_SOON, None));
            }
        };
        match read(&response) {
            Some(answer) => {
                pass.record_success();
                return Ok(answer);
            }
            None if response.is_unavailable() => pass.record_unavailable(now()),
            None => pass.record_unexpected_response(now()),
        }
        Err((Unavailable::RETRY_SOON, Some(response.refusal())))
    }
}

/// Returns the error code of a response after which the same request would fail again (RFC 7009 §2.2.1): not one about
/// the gateway's client or the state of the server, which an operator mends.
fn final_refusal(response: &Response) -> Option<String> {
    let error = response.error_code()?;
    let is_final = response.status == StatusCode::BAD_REQUEST && !SERVERS.contains(&&*error);
    (is_final || error == "unsupported_token_type").then_some(error)
}

/// Error codes for a token with which nothing is left to do: its type expires by itself (RFC 7009 §2.2.1), or it ended
/// together with the other token of its session.
const OVER: [&str; 2] = ["unsupported_token_type", "invalid_token"];

const ACCEPT: &str = "application/json";

#[cfg(test)]
mod tests {
    use tokio::runtime::Handle;

    use super::*;
    use crate::base::clock::{Clock, Timestamp};
    use crate::issuer::tests::mock_issuer::{Answer, METADATA, REVOKE, Server};
    use crate::issuer::{ClientAuth, Issuer};
    use crate::observe::metrics::Metrics;

    #[tokio::test]
    async fn a_token_is_revoked_with_its_type() {
        let server = Server::start().await;
        server.says(REVOKE, Answer::status(200));
        let issuer = issuer(&server);

        issuer.revoke(&"r".into(), TokenHint::RefreshToken, &client()).await.unwrap();

        assert_eq!(server.last(REVOKE).field("token").as_deref(), Some("r"));
        assert_eq!(server.last(REVOKE).field("token_type_hint").as_deref(), Some("refresh_token"));
        for status in [202, 204] {
            server.says(REVOKE, Answer { body: String::new(), ..Answer::status(status) });
            let revoked = issuer.revoke(&"r".into(), TokenHint::AccessToken, &client()).await;
            assert_eq!(revoked, Ok(RevocationOutcome::Revoked));
        }
        server.says(REVOKE, Answer::status(503));
        assert!(issuer.revoke(&"r".into(), TokenHint::AccessToken, &client()).await.is_err());
    }

    #[tokio::test]
    async fn only_a_refusal_that_may_end_is_an_error() {
        let server = Server::start().await;
        for (status, error, is_final) in [
            (400, "unsupported_token_type", true),
            (400, "invalid_token", true),
            (400, "invalid_request", true),
            (400, "invalid_client", false),
            (400, "unauthorized_client", false),
            (401, "invalid_client", false),
            (403, "access_denied", false),
            (503, "invalid_request", false),
        ] {
            server.says(REVOKE, Answer::error(status, error));
            let issuer = issuer(&server);

            let revoked = issuer.revoke(&"r".into(), TokenHint::AccessToken, &client()).await;

            assert_eq!(revoked.is_ok(), is_final, "{status} {error}");
        }
    }

    #[tokio::test]
    async fn without_a_revocation_endpoint_revocation_succeeds() {
        let server = Server::start().await;
        let mut metadata = server.metadata();
        metadata.as_object_mut().unwrap().remove("revocation_endpoint");
        server.says(METADATA, Answer::json(metadata));

        let issuer = issuer(&server);

        let revoked = issuer.revoke(&"r".into(), TokenHint::RefreshToken, &client()).await;
        assert_eq!(revoked, Ok(RevocationOutcome::Left));
        assert_eq!(server.count(REVOKE), 0);
    }

    fn client() -> Client {
        Client { id: "web".into(), auth: ClientAuth::Post("s3cret".into()) }
    }

    fn issuer(server: &Server) -> Issuer {
        let (clock, metrics) =
            (Clock::manual(Timestamp::from_secs(1_700_000_000)), Metrics::new(&[1.0]));
        Issuer::new(server.settings(), clock, &metrics, Handle::current()).unwrap()
    }
}
