//! What the gateway gives back at the revocation endpoint (RFC 7009), and the one way in which calls are made
//! that need nothing between their place and their answer.

use url::Url;

use super::calls::Inner;
use super::client_auth::{Form, authenticate};
use super::http_client::{CallError, Post, Response};
use super::purpose::{Input, Purpose};
use super::settings::Client;
use super::unavailable::Unavailable;
use crate::base::secret::Secret;
use crate::observe::metrics::Endpoint;

/// What kind of token is given back (RFC 7009 §2.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TokenHint {
    /// `access_token`.
    AccessToken,
    /// `refresh_token`.
    RefreshToken,
}

impl TokenHint {
    const fn name(self) -> &'static str {
        match self {
            Self::AccessToken => "access_token",
            Self::RefreshToken => "refresh_token",
        }
    }
}

impl Inner {
    /// Gives a token back. Runs on the control runtime.
    pub(super) async fn revoke(
        &self,
        token: &Secret<String>,
        hint: TokenHint,
        client: &Client,
    ) -> Result<(), Unavailable> {
        let metadata = self.published.metadata().await;
        // A server without the endpoint offers nothing to be done.
        let Some(url) = &metadata.endpoints.revocation else { return Ok(()) };
        let mut form = Form::default();
        form.add("token", token.expose());
        form.add("token_type_hint", hint.name());
        let input = Input::new(Purpose::Revocation, &client.id, ACCEPT, form.as_str());
        let post = self.form_of(client, Endpoint::Revocation, url, form)?;
        let reply = self.exchange(Purpose::Revocation, input, post, |reply| {
            // By the book it is 200 (RFC 7009 §2.2); some say 202 or 204. Tokens of a kind that is not
            // supported end by themselves there (§2.2.1): nothing is left to be done.
            let ends_itself = reply.error_code().as_deref() == Some("unsupported_token_type");
            (reply.status.is_success() || ends_itself).then_some(())
        });
        reply.await.map_err(|(error, why)| {
            if let (Some(why), Some(suppressed)) = (why, self.calls.may_warn()) {
                tracing::warn!(issuer = %self.settings.name, error = why, suppressed, "A token could not be revoked.");
            }
            error
        })
    }

    /// Makes the call that puts `form` to `endpoint`, which is at `url`, as `client_auth`.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if the client's assertion cannot be signed.
    pub(super) fn form_of<'a>(
        &self,
        client: &'a Client,
        endpoint: Endpoint,
        url: &'a Url,
        mut form: Form,
    ) -> Result<Post<'a>, Unavailable> {
        let authorization =
            authenticate(client, &mut form, &self.settings.issuer, self.clock.now())
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

    /// Makes one call of its own place and through the circuit of its `purpose`; `read` takes out of the answer
    /// what was asked for.
    ///
    /// # Errors
    ///
    /// [`Unavailable`], with the server's words if it said something else.
    pub(super) async fn exchange<T>(
        &self,
        purpose: Purpose,
        input: Input,
        post: Post<'_>,
        read: impl FnOnce(&Response) -> Option<T>,
    ) -> Result<T, (Unavailable, Option<String>)> {
        let slot = self.calls.slot(purpose).map_err(|busy| (busy, None))?;
        let pass = self.circuits.admit(purpose, input, self.clock.uptime());
        let pass = pass.map_err(|wait| (Unavailable::after(wait), None))?;
        let now = || self.clock.uptime();
        let reply = match self.calls.post(&slot, post).await {
            Ok(reply) => reply,
            Err(why) => {
                match why {
                    CallError::Away => pass.was_away(now()),
                    CallError::Odd => pass.answered_oddly(now()),
                    CallError::NotAsked => {}
                }
                return Err((Unavailable::RETRY_SOON, None));
            }
        };
        match read(&reply) {
            Some(answer) => {
                pass.succeeded();
                return Ok(answer);
            }
            None if reply.says_away() => pass.was_away(now()),
            None => pass.answered_oddly(now()),
        }
        Err((Unavailable::RETRY_SOON, Some(reply.refusal())))
    }
}

const ACCEPT: &str = "application/json";

#[cfg(test)]
mod tests {
    use tokio::runtime::Handle;

    use super::super::testing::{Answer, METADATA, REVOKE, Server};
    use super::super::{ClientAuth, Issuer};
    use super::*;
    use crate::base::clock::{Clock, Timestamp};
    use crate::observe::metrics::Metrics;

    #[tokio::test]
    async fn a_token_is_given_back_with_its_kind() {
        let server = Server::start().await;
        server.says(REVOKE, Answer::status(200));
        let issuer = issuer(&server);

        issuer.revoke(&"r".into(), TokenHint::RefreshToken, &client()).await.unwrap();

        assert_eq!(server.last(REVOKE).field("token").as_deref(), Some("r"));
        assert_eq!(server.last(REVOKE).field("token_type_hint").as_deref(), Some("refresh_token"));
        for status in [202, 204] {
            server.says(REVOKE, Answer { body: String::new(), ..Answer::status(status) });
            assert_eq!(issuer.revoke(&"r".into(), TokenHint::AccessToken, &client()).await, Ok(()));
        }
        server.says(REVOKE, Answer::status(503));
        assert!(issuer.revoke(&"r".into(), TokenHint::AccessToken, &client()).await.is_err());
        // It revokes no tokens of that kind: they end by themselves.
        server.says(REVOKE, Answer::error(400, "unsupported_token_type"));
        assert_eq!(issuer.revoke(&"r".into(), TokenHint::AccessToken, &client()).await, Ok(()));
    }

    #[tokio::test]
    async fn a_server_without_revocation_has_nothing_to_do() {
        let server = Server::start().await;
        let mut metadata = server.metadata();
        metadata.as_object_mut().unwrap().remove("revocation_endpoint");
        server.says(METADATA, Answer::json(metadata));

        let issuer = issuer(&server);

        assert_eq!(issuer.revoke(&"r".into(), TokenHint::RefreshToken, &client()).await, Ok(()));
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
