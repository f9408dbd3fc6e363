//! Grants that the gateway redeems at the token endpoint (RFC 6749).

use super::token_response::Tokens;
use core::time::Duration;

use super::token_response::{GrantOutcome, parse};
use crate::issuer::calls::call_context::CallContext;
use crate::issuer::calls::call_purpose::{Input, Purpose};
use crate::issuer::calls::client_auth::Form;
use crate::issuer::calls::concurrency::ConcurrencyPermit;
use crate::issuer::calls::http_client::{CallError, Post};
use crate::issuer::resource_indicator::ResourceIndicator;
use crate::issuer::settings::Client;

use crate::base::scopes::Scopes;
use crate::base::secret::Secret;
use crate::observe::metrics::Endpoint;

/// An authorization grant.
#[derive(Clone, Copy, Debug)]
pub enum Grant<'a> {
    /// A user's name and password (RFC 6749 §4.3).
    Password {
        /// As typed by the user.
        username: &'a str,
        /// As typed by the user.
        password: &'a Secret<String>,
        /// The requested scopes; empty leaves the server's default.
        scopes: &'a Scopes,
        /// The resource that the token is for (RFC 8707).
        resource: Option<&'a ResourceIndicator>,
    },
    /// A refresh token (RFC 6749 §6).
    Refresh {
        /// The refresh token as received.
        refresh_token: &'a Secret<String>,
        /// The resource that the new access token is for (RFC 8707).
        resource: Option<&'a ResourceIndicator>,
    },
    /// The client's own credentials (RFC 6749 §4.4).
    ClientCredentials {
        /// The requested scopes; empty leaves the server's default.
        scopes: &'a Scopes,
        /// The resource that the token is for (RFC 8707).
        resource: Option<&'a ResourceIndicator>,
    },
    /// An authorization code (RFC 6749 §4.1.3) with its PKCE verifier (RFC 7636 §4.5).
    Code {
        /// The code of the callback.
        code: &'a Secret<String>,
        /// Exactly as in the authorization request.
        redirect_uri: &'a str,
        /// The verifier of the code challenge.
        verifier: &'a Secret<String>,
        /// The resource that the token is for (RFC 8707).
        resource: Option<&'a ResourceIndicator>,
    },
}

/// A token request, prepared to be sent.
pub(in crate::issuer) struct TokenRequest {
    form: Form,
    purpose: Purpose,
    /// Identifies the caller for the circuit breaker, if the whole form does not: with a code goes a different
    /// verifier each time.
    caller: Option<Secret<String>>,
    /// The timeout of the call.
    limit: Duration,
}

impl TokenRequest {
    pub(in crate::issuer) fn new(grant: &Grant<'_>, limit: Duration) -> Self {
        let caller = match grant {
            Grant::Password { username, .. } => Some(Secret::from(*username)),
            Grant::Code { code, .. } => Some((*code).clone()),
            Grant::Refresh { .. } | Grant::ClientCredentials { .. } => None,
        };
        Self { form: grant.form(), purpose: grant.purpose(), caller, limit }
    }
}

/// The reason why a grant returned no tokens.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum GrantError {
    /// `invalid_grant` (RFC 6749 §5.2), or the same in other words: wrong credentials, or an invalid, expired or used
    /// code or refresh token.
    #[error("the authorization server refused the credentials, code or refresh token")]
    InvalidGrant,
    /// Everything that is not the user's fault, including a wrong client secret of the gateway. 503.
    #[error("the authorization server is unavailable")]
    Unavailable,
    /// Nothing was sent: the server is known to be unavailable, or too many calls are under way. It has not seen the
    /// credentials, code or refresh token. 503.
    #[error("the authorization server was not asked")]
    NotAsked,
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

    /// Encodes the grant for the token endpoint.
    pub(in crate::issuer) fn form(&self) -> Form {
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

impl CallContext {
    /// Redeems a grant. Runs on the control runtime.
    pub(in crate::issuer) async fn request_tokens(
        &self,
        request: TokenRequest,
        client: &Client,
    ) -> Result<Tokens, GrantError> {
        // First what may take a while: a permit is held no longer than a call takes.
        let _ = self.provider_cache.metadata().await;
        let slot = self.http_client.slot(request.purpose).map_err(|_| GrantError::NotAsked)?;
        self.request_tokens_within(&slot, request, client).await
    }

    /// Redeems a grant under a permit of the caller: an introspection that needs an own token first holds one,
    /// and must not compete with itself for a second.
    pub(in crate::issuer) async fn request_tokens_within(
        &self,
        slot: &ConcurrencyPermit<'_>,
        request: TokenRequest,
        client: &Client,
    ) -> Result<Tokens, GrantError> {
        let metadata = self.provider_cache.metadata().await;
        let Some(url) = &metadata.endpoints.token else {
            tracing::error!(issuer = %self.settings.name, "No token endpoint is known; grants at this issuer fail.");
            return Err(GrantError::NotAsked);
        };
        let TokenRequest { mut form, purpose, caller, limit } = request;
        let mut input = Input::new(purpose, &client.id, ACCEPT, form.as_str());
        if let Some(caller) = &caller {
            input = input.of_caller(purpose, caller.expose());
        }
        let code = caller.filter(|_| purpose == Purpose::Code);
        let received = self.clock.now();
        let authorization = self
            .authenticate(client, &mut form, url, received)
            .map_err(|_| GrantError::NotAsked)?;
        let pass = self.circuits.admit(purpose, input, self.clock.uptime());
        let pass = pass.map_err(|_| GrantError::NotAsked)?;
        let post = Post {
            endpoint: Endpoint::Token,
            url,
            accept: ACCEPT,
            form: form.finish(),
            auth: &client.auth,
            authorization,
            limit,
        };
        let response = match self.http_client.post(slot, post).await {
            Ok(response) => response,
            Err(CallError::NotSent) => return Err(GrantError::NotAsked),
            Err(CallError::Unavailable) => {
                pass.record_unavailable(self.clock.uptime());
                return Err(GrantError::Unavailable);
            }
            Err(CallError::Unexpected) => {
                pass.record_unexpected_response(self.clock.uptime());
                return Err(GrantError::Unavailable);
            }
        };
        let outcome = parse(&response, purpose, received);
        match &outcome {
            GrantOutcome::Granted(_) => pass.record_success(),
            GrantOutcome::Refused(_) => pass.record_refusal(),
            GrantOutcome::Unexpected(_) => pass.record_unexpected_response(self.clock.uptime()),
            GrantOutcome::Unavailable(_) => pass.record_unavailable(self.clock.uptime()),
        }
        let failed = match outcome {
            GrantOutcome::Granted(tokens) => {
                self.provider_cache.record_response();
                return Ok(*tokens);
            }
            failed => failed,
        };
        if let Some((error, consequence)) = explain(&failed, purpose)
            && let Some(suppressed) = self.http_client.may_warn()
        {
            let is_code = matches!(failed, GrantOutcome::Refused(_)) && purpose == Purpose::Code;
            let description =
                is_code.then(|| response.description_without(code.as_ref())).flatten();
            let (issuer, client) = (&*self.settings.name, &*client.id);
            tracing::warn!(issuer, client, error, description, suppressed, "{consequence}");
        }
        Err(match failed {
            GrantOutcome::Refused(_) => GrantError::InvalidGrant,
            _ => GrantError::Unavailable,
        })
    }
}

/// Returns the error of a grant without tokens and its consequence, for the log; `None` for a usual refusal.
fn explain(failed: &GrantOutcome, purpose: Purpose) -> Option<(&str, &'static str)> {
    match failed {
        // A code that has just arrived is refused for what the operator has to mend.
        GrantOutcome::Refused(error) if purpose == Purpose::Code => Some((
            error.as_deref().unwrap_or("invalid_grant"),
            "The issuer refused the code of a login. Usual causes: another `redirect_uri` is registered there, the code was redeemed before, or it has expired.",
        )),
        GrantOutcome::Refused(Some(error)) if purpose == Purpose::Refresh => Some((
            error,
            "The issuer refused a refresh token with another error than `invalid_grant`; its user has to log in again.",
        )),
        // The client or the request may be at fault after all, and no other line would report that.
        GrantOutcome::Refused(Some(error)) => Some((
            error,
            "The issuer refused a password with an unusual error code; it was counted as a wrong password.",
        )),
        GrantOutcome::Unexpected(error) | GrantOutcome::Unavailable(error) => Some((
            error,
            "Could not redeem a grant; the login, the refresh or the exchange of credentials fails.",
        )),
        GrantOutcome::Granted(_) | GrantOutcome::Refused(None) => None,
    }
}

const ACCEPT: &str = "application/json";

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::runtime::Handle;

    use super::*;
    use crate::base::clock::Clock;
    use crate::base::clock::Timestamp;
    use crate::issuer::tests::mock_issuer::{Answer, Server, TOKEN};
    use crate::issuer::{ClientAuth, Issuer};
    use crate::observe::metrics::Metrics;

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    #[tokio::test]
    async fn each_grant_is_encoded_by_its_rfc() {
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
    async fn a_dead_refresh_token_is_recognized_in_any_words() {
        let server = Server::start().await;
        for (status, error, expected) in [
            (400, "interaction_required", GrantError::InvalidGrant),
            (400, "login_required", GrantError::InvalidGrant),
            (400, "invalid_request", GrantError::InvalidGrant),
            (403, "access_denied", GrantError::InvalidGrant),
            (401, "invalid_token", GrantError::InvalidGrant),
            (401, "invalid_request", GrantError::InvalidGrant),
            (401, "unauthorized", GrantError::InvalidGrant),
            (401, "refresh_token_expired", GrantError::InvalidGrant),
            (401, "Unauthorized", GrantError::Unavailable),
            (401, "slow_down", GrantError::Unavailable),
            (200, "bad_refresh_token", GrantError::InvalidGrant),
            (200, "server_error", GrantError::Unavailable),
            (200, "invalid_client", GrantError::Unavailable),
            (408, "invalid_grant", GrantError::Unavailable),
            (400, "temporarily_unavailable", GrantError::Unavailable),
            (400, "invalid_grant", GrantError::InvalidGrant),
            (401, "invalid_grant", GrantError::InvalidGrant),
            (403, "invalid_grant", GrantError::InvalidGrant),
            (500, "invalid_grant", GrantError::Unavailable),
            (400, "invalid_client", GrantError::Unavailable),
            (401, "invalid_client", GrantError::Unavailable),
            (400, "invalid_scope", GrantError::InvalidGrant),
            (429, "slow_down", GrantError::Unavailable),
            (429, "access_denied", GrantError::Unavailable),
            (503, "temporarily_unavailable", GrantError::Unavailable),
            (200, "invalid_grant", GrantError::InvalidGrant),
        ] {
            server.says(TOKEN, Answer::error(status, error));
            let issuer = issuer(&server);

            assert_eq!(refresh(&issuer).await.unwrap_err(), expected, "{status} {error}");
        }
    }

    #[tokio::test]
    async fn a_wrong_client_secret_or_the_answer_of_a_proxy_ends_no_session() {
        let server = Server::start().await;
        let without_error =
            |status, body: &str| Answer { body: body.into(), ..Answer::status(status) };
        for says in [
            // Keycloak, Auth0 and GitHub about a wrong client secret.
            Answer::error(401, "unauthorized_client"),
            Answer::error(401, "access_denied"),
            Answer::error(200, "incorrect_client_credentials"),
            Answer::error(400, "unauthorized_client"),
            Answer::error(400, "unsupported_grant_type"),
            // Proxies and firewalls in front of a server that is away.
            Answer::error(403, "Forbidden"),
            Answer::error(404, "not_found"),
            without_error(403, r#"{"message":"Forbidden"}"#),
            without_error(404, ""),
            without_error(404, r#"{"message":"no Route matched with those values"}"#),
            without_error(405, ""),
            without_error(413, ""),
        ] {
            let what = format!("{says:?}");
            server.says(TOKEN, says);

            let refused = refresh(&issuer(&server)).await.unwrap_err();

            assert_eq!(refused, GrantError::Unavailable, "{what}");
        }
    }

    #[tokio::test]
    async fn any_refusal_of_a_password_is_the_users_fault() {
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

            for call in 0..6 {
                let expected = match expected {
                    // Remembered for this input by now.
                    GrantError::Unavailable if call == 5 => GrantError::NotAsked,
                    expected => expected,
                };
                assert_eq!(log_in(&issuer).await.unwrap_err(), expected, "{what}");
            }
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
    async fn a_grant_continues_without_its_caller() {
        let server = Server::start().await;
        let tokens = json!({ "access_token": "a", "token_type": "Bearer" });
        server.says(TOKEN, Answer::json(tokens));
        let issuer = issuer(&server);

        let mut asking = Box::pin(refresh(&issuer));
        let waiting = core::future::poll_fn(|context| {
            assert!(asking.as_mut().poll(context).is_pending());
            core::task::Poll::Ready(())
        });
        waiting.await;
        drop(asking);

        crate::issuer::tests::mock_issuer::eventually("the grant", || server.count(TOKEN) == 1)
            .await;
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
