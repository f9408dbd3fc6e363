//! Grants: what the gateway redeems at the token endpoint (RFC 6749).

use super::token_response::Tokens;
use core::time::Duration;

use super::calls::Inner;
use super::client_auth::{Form, authenticate};
use super::concurrency::ConcurrencyPermit;
use super::http_client::{CallError, Post};
use super::purpose::{Input, Purpose};
use super::resource_indicator::ResourceIndicator;
use super::settings::Client;
use super::token_response::{GrantOutcome, parse};

use crate::base::scopes::Scopes;
use crate::base::secret::Secret;
use crate::observe::metrics::Endpoint;

/// What is redeemed for tokens.
#[derive(Clone, Copy, Debug)]
pub enum Grant<'a> {
    /// A person's name and password (RFC 6749 §4.3).
    Password {
        /// As the person typed it.
        username: &'a str,
        /// As the person typed it.
        password: &'a Secret<String>,
        /// What is asked for; empty leaves the server's default.
        scopes: &'a Scopes,
        /// Where the token is to be used (RFC 8707).
        resource: Option<&'a ResourceIndicator>,
    },
    /// A refresh token (RFC 6749 §6).
    Refresh {
        /// As it was received.
        refresh_token: &'a Secret<String>,
        /// Where the new access token is to be used (RFC 8707).
        resource: Option<&'a ResourceIndicator>,
    },
    /// The client itself (RFC 6749 §4.4).
    ClientCredentials {
        /// What is asked for; empty leaves the server's default.
        scopes: &'a Scopes,
        /// Where the token is to be used (RFC 8707).
        resource: Option<&'a ResourceIndicator>,
    },
    /// An authorization code (RFC 6749 §4.1.3) with its PKCE verifier (RFC 7636 §4.5).
    Code {
        /// As it came back from the login.
        code: &'a Secret<String>,
        /// Exactly as it was sent to the authorization endpoint.
        redirect_uri: &'a str,
        /// What the challenge was made of.
        verifier: &'a Secret<String>,
        /// Where the token is to be used (RFC 8707).
        resource: Option<&'a ResourceIndicator>,
    },
}

/// A grant on its way: what goes over the wire, and how its answer is to be taken.
pub(super) struct TokenRequest {
    form: Form,
    purpose: Purpose,
    /// On whose word it is redeemed, where that is not all of the form: with a code goes a verifier that is
    /// another one each time.
    caller: Option<Secret<String>>,
    /// How long the call may take.
    limit: Duration,
}

impl TokenRequest {
    pub(super) fn new(grant: &Grant<'_>, limit: Duration) -> Self {
        let caller = match grant {
            Grant::Password { username, .. } => Some(Secret::from(*username)),
            Grant::Code { code, .. } => Some((*code).clone()),
            Grant::Refresh { .. } | Grant::ClientCredentials { .. } => None,
        };
        Self { form: grant.form(), purpose: grant.purpose(), caller, limit }
    }
}

/// Why a grant brought no tokens.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum GrantError {
    /// The server says `invalid_grant` (RFC 6749 §5.2): wrong credentials, or a code or refresh token that is used up.
    #[error("the authorization server refused the credentials, code or refresh token")]
    InvalidGrant,
    /// Everything that is not the user's fault, a wrong client secret of our own included. Answered with 503.
    #[error("the authorization server cannot be asked")]
    Unavailable,
}

impl Grant<'_> {
    const fn purpose(&self) -> Purpose {
        match self {
            Self::Password { .. } => Purpose::Password,
            Self::Code { .. } => Purpose::Code,
            Self::Refresh { .. } => Purpose::Refresh,
            Self::ClientCredentials { .. } => Purpose::ClientCredentials,
        }
    }

    /// The grant as the token endpoint reads it.
    pub(super) fn form(&self) -> Form {
        let mut form = Form::default();
        match *self {
            Self::Password { username, password, .. } => {
                form.add("grant_type", "password");
                form.add("username", username);
                form.add("password", password.expose());
            }
            Self::Refresh { refresh_token, .. } => {
                form.add("grant_type", "refresh_token");
                form.add("refresh_token", refresh_token.expose());
            }
            Self::ClientCredentials { .. } => form.add("grant_type", "client_credentials"),
            Self::Code { code, redirect_uri, verifier, .. } => {
                form.add("grant_type", "authorization_code");
                form.add("code", code.expose());
                form.add("redirect_uri", redirect_uri);
                form.add("code_verifier", verifier.expose());
            }
        }
        if let Self::Password { scopes, .. } | Self::ClientCredentials { scopes, .. } = self
            && !scopes.is_empty()
        {
            form.add("scope", &scopes.to_string());
        }
        let (Self::Password { resource, .. }
        | Self::Refresh { resource, .. }
        | Self::ClientCredentials { resource, .. }
        | Self::Code { resource, .. }) = self;
        if let Some(resource) = resource {
            form.add("resource", resource.as_str());
        }
        form
    }
}

impl Inner {
    /// Redeems a grant. Runs on the control runtime.
    pub(super) async fn request_tokens(
        &self,
        redeem: TokenRequest,
        client: &Client,
    ) -> Result<Tokens, GrantError> {
        // First what may take a while: a place is held no longer than a call takes.
        let _ = self.published.metadata().await;
        let slot = self.calls.slot(redeem.purpose).map_err(|_| GrantError::Unavailable)?;
        self.request_tokens_within(&slot, redeem, client).await
    }

    /// The same in a place that somebody holds already: whoever needs a token of our own to make a call has one,
    /// and must not compete with itself for a second.
    pub(super) async fn request_tokens_within(
        &self,
        slot: &ConcurrencyPermit<'_>,
        redeem: TokenRequest,
        client: &Client,
    ) -> Result<Tokens, GrantError> {
        let metadata = self.published.metadata().await;
        let Some(url) = &metadata.endpoints.token else {
            tracing::error!(issuer = %self.settings.name, "No token endpoint is known.");
            return Err(GrantError::Unavailable);
        };
        let TokenRequest { mut form, purpose, caller, limit } = redeem;
        let mut input = Input::new(purpose, &client.id, ACCEPT, form.as_str());
        if let Some(caller) = caller {
            input = input.of_caller(purpose, caller.expose());
        }
        let received = self.clock.now();
        let authorization = authenticate(client, &mut form, &self.settings.issuer, received)
            .map_err(|_| GrantError::Unavailable)?;
        let pass = self.circuits.admit(purpose, input, self.clock.uptime());
        let pass = pass.map_err(|_| GrantError::Unavailable)?;
        let post = Post {
            endpoint: Endpoint::Token,
            url,
            accept: ACCEPT,
            form: form.finish(),
            auth: &client.auth,
            authorization,
            limit,
        };
        let reply = match self.calls.post(slot, post).await {
            Ok(reply) => reply,
            Err(why) => {
                match why {
                    CallError::Away => pass.was_away(self.clock.uptime()),
                    CallError::Odd => pass.answered_oddly(self.clock.uptime()),
                    CallError::NotAsked => {}
                }
                return Err(GrantError::Unavailable);
            }
        };
        // A person has typed a password in: what a server does not like about it is theirs.
        let verdict = parse(&reply, purpose == Purpose::Password, received);
        match &verdict {
            GrantOutcome::Granted(_) => pass.succeeded(),
            GrantOutcome::Refused(_) => pass.refused(),
            GrantOutcome::Odd(_) => pass.answered_oddly(self.clock.uptime()),
            GrantOutcome::Away(_) => pass.was_away(self.clock.uptime()),
        }
        let (issuer, client) = (&*self.settings.name, &*client.id);
        match verdict {
            GrantOutcome::Granted(tokens) => {
                self.published.answered();
                Ok(*tokens)
            }
            GrantOutcome::Refused(None) => Err(GrantError::InvalidGrant),
            GrantOutcome::Refused(Some(error)) => {
                // It may be the client or the request after all, and no other line would ever say so.
                if let Some(suppressed) = self.calls.may_warn() {
                    tracing::warn!(
                        issuer,
                        client,
                        error,
                        suppressed,
                        "A password was refused, in words of the server's own."
                    );
                }
                Err(GrantError::InvalidGrant)
            }
            GrantOutcome::Odd(error) | GrantOutcome::Away(error) => {
                if let Some(suppressed) = self.calls.may_warn() {
                    tracing::warn!(issuer, client, error, suppressed, "A grant failed.");
                }
                Err(GrantError::Unavailable)
            }
        }
    }
}

const ACCEPT: &str = "application/json";

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::runtime::Handle;

    use super::super::testing::{Answer, Server, TOKEN};
    use super::super::{ClientAuth, Issuer};
    use super::*;
    use crate::base::clock::Clock;
    use crate::base::clock::Timestamp;
    use crate::observe::metrics::Metrics;

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    #[tokio::test]
    async fn each_grant_is_written_as_its_rfc_says() {
        let resource = ResourceIndicator::parse("urn:api").unwrap();
        let scopes = Scopes::parse("b a");
        let secret = Secret::from("s&x=y");
        let resource = Some(&resource);

        for (grant, form) in [
            (
                Grant::Password {
                    username: "al ice",
                    password: &secret,
                    scopes: &scopes,
                    resource,
                },
                "grant_type=password&username=al+ice&password=s%26x%3Dy&scope=a+b&resource=urn%3Aapi",
            ),
            (
                Grant::Refresh { refresh_token: &secret, resource: None },
                "grant_type=refresh_token&refresh_token=s%26x%3Dy",
            ),
            (
                Grant::ClientCredentials { scopes: &Scopes::default(), resource },
                "grant_type=client_credentials&resource=urn%3Aapi",
            ),
            (
                Grant::Code {
                    code: &secret,
                    redirect_uri: "https://a.example/cb",
                    verifier: &secret,
                    resource: None,
                },
                "grant_type=authorization_code&code=s%26x%3Dy\
                 &redirect_uri=https%3A%2F%2Fa.example%2Fcb&code_verifier=s%26x%3Dy",
            ),
        ] {
            assert_eq!(grant.form().finish(), form);
        }
    }

    #[tokio::test]
    async fn tokens_are_read_with_their_lifetimes() {
        let server = Server::start().await;
        server.says(
            TOKEN,
            Answer::json(json!({
                "access_token": "a", "token_type": "bearer", "expires_in": 60, "refresh_token": "r",
                "refresh_expires_in": "3600", "id_token": "i", "scope": "openid",
            })),
        );

        let tokens = refresh(&issuer(&server)).await.unwrap();

        assert_eq!(tokens.access_token, "a".into());
        assert_eq!(tokens.refresh_token, Some("r".into()));
        assert_eq!(tokens.id_token, Some("i".into()));
        assert_eq!(tokens.expires_in, Some(Duration::from_secs(60)));
        assert_eq!(tokens.refresh_expires_in, Some(Duration::from_secs(3_600)));
        assert_eq!(tokens.scope.as_deref(), Some("openid"));
        assert_eq!(tokens.received, NOW);
    }

    #[tokio::test]
    async fn only_invalid_grant_is_the_users_fault() {
        let server = Server::start().await;
        for (status, error, expected) in [
            (400, "invalid_grant", GrantError::InvalidGrant),
            (401, "invalid_grant", GrantError::InvalidGrant),
            (403, "invalid_grant", GrantError::InvalidGrant),
            (500, "invalid_grant", GrantError::Unavailable),
            (400, "invalid_client", GrantError::Unavailable),
            (401, "invalid_client", GrantError::Unavailable),
            (400, "unauthorized_client", GrantError::Unavailable),
            (400, "unsupported_grant_type", GrantError::Unavailable),
            (400, "invalid_scope", GrantError::Unavailable),
            (429, "slow_down", GrantError::Unavailable),
            (503, "temporarily_unavailable", GrantError::Unavailable),
            (200, "invalid_grant", GrantError::Unavailable),
        ] {
            server.says(TOKEN, Answer::error(status, error));
            let issuer = issuer(&server);

            assert_eq!(refresh(&issuer).await.unwrap_err(), expected, "{status} {error}");
        }
    }

    #[tokio::test]
    async fn what_a_server_does_not_like_about_a_password_is_the_users_fault_in_whatever_words() {
        let server = Server::start().await;
        for (says, expected) in [
            (Answer::error(400, "invalid_request"), GrantError::InvalidGrant),
            (Answer::error(400, "access_denied"), GrantError::InvalidGrant),
            (Answer::error(401, "invalid_request"), GrantError::InvalidGrant),
            (Answer::error(401, "unauthorized"), GrantError::InvalidGrant),
            (Answer::error(400, "bad_credentials"), GrantError::InvalidGrant),
            (Answer::error(403, "account_locked"), GrantError::InvalidGrant),
            (Answer::error(400, "temporarily_unavailable"), GrantError::Unavailable),
            (Answer::error(404, "not_found"), GrantError::Unavailable),
            (Answer::error(429, "too_many_attempts"), GrantError::Unavailable),
            (Answer { body: String::new(), ..Answer::status(403) }, GrantError::InvalidGrant),
            (Answer { body: String::new(), ..Answer::status(400) }, GrantError::Unavailable),
            (Answer { body: String::new(), ..Answer::status(401) }, GrantError::Unavailable),
            (Answer { body: String::new(), ..Answer::status(404) }, GrantError::Unavailable),
            (Answer::error(400, "invalid_client"), GrantError::Unavailable),
            (Answer::error(403, "unauthorized_client"), GrantError::Unavailable),
            (Answer::error(400, "invalid_scope"), GrantError::Unavailable),
            (Answer::error(500, "invalid_request"), GrantError::Unavailable),
        ] {
            let what = format!("{says:?}");
            server.says(TOKEN, says);
            let issuer = issuer(&server);

            for _ in 0..6 {
                assert_eq!(log_in(&issuer).await.unwrap_err(), expected, "{what}");
            }
            // Said about a refresh token it would log out people for a mistake of the operator's.
            assert_eq!(refresh(&issuer).await.unwrap_err(), GrantError::Unavailable, "{what}");
        }
    }

    #[tokio::test]
    async fn wrong_passwords_do_not_open_the_circuit() {
        let server = Server::start().await;
        server.says(TOKEN, Answer::error(400, "invalid_grant"));
        let issuer = issuer(&server);

        for _ in 0..20 {
            assert_eq!(refresh(&issuer).await.unwrap_err(), GrantError::InvalidGrant);
        }
        assert_eq!(server.count(TOKEN), 20);
    }

    #[tokio::test]
    async fn a_grant_goes_on_when_nobody_waits_for_it_any_more() {
        let server = Server::start().await;
        let answer = json!({ "access_token": "a", "token_type": "Bearer" });
        server.says(TOKEN, Answer::json(answer));
        let issuer = issuer(&server);

        let mut asking = Box::pin(refresh(&issuer));
        let waiting = core::future::poll_fn(|context| {
            assert!(asking.as_mut().poll(context).is_pending());
            core::task::Poll::Ready(())
        });
        waiting.await;
        drop(asking);

        super::super::testing::eventually("the grant", || server.count(TOKEN) == 1).await;
    }

    async fn refresh(issuer: &Issuer) -> Result<Tokens, GrantError> {
        let refresh_token = Secret::from("r");
        issuer
            .grant(Grant::Refresh { refresh_token: &refresh_token, resource: None }, &client())
            .await
    }

    async fn log_in(issuer: &Issuer) -> Result<Tokens, GrantError> {
        let (password, scopes) = (Secret::from("p"), Scopes::default());
        let (username, password) = ("alice", &password);
        let grant = Grant::Password { username, password, scopes: &scopes, resource: None };
        issuer.grant(grant, &client()).await
    }

    fn client() -> Client {
        Client { id: "web".into(), auth: ClientAuth::Post("s3cret".into()) }
    }

    fn issuer(server: &Server) -> Issuer {
        let metrics = Metrics::new(&[1.0]);
        Issuer::new(server.settings(), Clock::manual(NOW), &metrics, Handle::current()).unwrap()
    }
}
