//! Grants: what the gateway redeems at the token endpoint (RFC 6749), and what
//! it gives back at the revocation endpoint (RFC 7009).

use core::time::Duration;

use http::StatusCode;
use serde_json::{Map, Value};

use super::call::{Post, Reply, Slot, plain};
use super::client::{Form, authenticate};
use super::json;
use super::resource::Resource;
use super::settings::Client;
use super::{Inner, Unavailable};

use crate::base::clock::Timestamp;
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
        resource: Option<&'a Resource>,
    },
    /// A refresh token (RFC 6749 §6).
    Refresh {
        /// As it was received.
        refresh_token: &'a Secret<String>,
        /// Where the new access token is to be used (RFC 8707).
        resource: Option<&'a Resource>,
    },
    /// The client itself (RFC 6749 §4.4).
    ClientCredentials {
        /// What is asked for; empty leaves the server's default.
        scopes: &'a Scopes,
        /// Where the token is to be used (RFC 8707).
        resource: Option<&'a Resource>,
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
        resource: Option<&'a Resource>,
    },
}

/// A grant on its way: what goes over the wire, and how its answer is to be taken.
pub(super) struct Redeem {
    form: Form,
    /// A person has typed it in: what a server does not like about it is theirs.
    typed: bool,
    /// How long the call may take.
    limit: Duration,
}

impl Redeem {
    pub(super) fn new(grant: &Grant<'_>, limit: Duration) -> Self {
        Self { form: grant.form(), typed: grant.is_typed(), limit }
    }
}

/// What the token endpoint answered (RFC 6749 §5.1).
#[derive(Clone, Debug)]
pub struct Tokens {
    /// The access token.
    pub access_token: Secret<String>,
    /// The refresh token, if one came. An answer without it leaves the old one good.
    pub refresh_token: Option<Secret<String>>,
    /// The ID token, if one came (OpenID Connect Core §3.1.3.3).
    pub id_token: Option<Secret<String>>,
    /// How long the access token lives from [`Tokens::received`]; at least 1 s, if the server says so.
    pub expires_in: Option<Duration>,
    /// How long the refresh token lives from [`Tokens::received`], if the server says so.
    pub refresh_expires_in: Option<Duration>,
    /// The scopes granted, if the server names them.
    pub scope: Option<String>,
    /// When the answer was asked for: a lifetime counts from the earliest moment it can have begun.
    pub received: Timestamp,
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

impl Grant<'_> {
    /// Whether it is redeemed on the word of somebody who types it in.
    const fn is_typed(&self) -> bool {
        matches!(self, Self::Password { .. })
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
    pub(super) async fn redeem(
        &self,
        redeem: Redeem,
        client: &Client,
    ) -> Result<Tokens, GrantError> {
        // First what may take a while: a place is held no longer than a call takes.
        let _ = self.published.metadata().await;
        let slot = self.calls.slot().map_err(|_| GrantError::Unavailable)?;
        self.redeem_within(&slot, redeem, client).await
    }

    /// The same in a place that somebody holds already: whoever needs a token of our own to make a call has one,
    /// and must not compete with itself for a second.
    pub(super) async fn redeem_within(
        &self,
        slot: &Slot<'_>,
        redeem: Redeem,
        client: &Client,
    ) -> Result<Tokens, GrantError> {
        let metadata = self.published.metadata().await;
        let Some(url) = &metadata.endpoints.token else {
            tracing::error!(issuer = %self.settings.name, "No token endpoint is known.");
            return Err(GrantError::Unavailable);
        };
        let Redeem { mut form, typed, limit } = redeem;
        let received = self.clock.now();
        let authorization = authenticate(client, &mut form, &self.settings.issuer, received)
            .map_err(|_| GrantError::Unavailable)?;
        let pass = self.token_circuit.admit(self.clock.uptime());
        let pass = pass.map_err(|_| GrantError::Unavailable)?;
        let post = Post {
            endpoint: Endpoint::Token,
            url,
            accept: "application/json",
            form: form.finish(),
            auth: &client.auth,
            authorization,
            limit,
        };
        let Ok(reply) = self.calls.post(slot, post).await else {
            pass.failed(self.clock.uptime());
            return Err(GrantError::Unavailable);
        };
        let verdict = judge(&reply, typed, received);
        match &verdict {
            Verdict::Granted(_) => pass.succeeded(),
            // What a person can bring about by what they type is no failure of the server's.
            Verdict::Refused(_) | Verdict::Provoked(_) => pass.answered(),
            Verdict::Broken(_) => pass.failed(self.clock.uptime()),
        }
        let (issuer, client) = (&*self.settings.name, &*client.id);
        match verdict {
            Verdict::Granted(tokens) => {
                self.published.answered();
                Ok(*tokens)
            }
            Verdict::Refused(None) => Err(GrantError::InvalidGrant),
            Verdict::Refused(Some(error)) => {
                // It may be the client or the request after all, and nobody else would ever be told.
                tracing::warn!(
                    issuer,
                    client,
                    error,
                    "A password was refused, in words of the server's own."
                );
                Err(GrantError::InvalidGrant)
            }
            Verdict::Provoked(error) | Verdict::Broken(error) => {
                tracing::warn!(issuer, client, error, "A grant failed.");
                Err(GrantError::Unavailable)
            }
        }
    }

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
        let authorization =
            authenticate(client, &mut form, &self.settings.issuer, self.clock.now())
                .map_err(|_| Unavailable::SOON)?;
        let post = Post {
            endpoint: Endpoint::Revocation,
            url,
            accept: "application/json",
            form: form.finish(),
            auth: &client.auth,
            authorization,
            limit: self.settings.timeout,
        };
        let reply = self.calls.post(&self.calls.slot()?, post).await?;
        // By the book it is 200 (RFC 7009 §2.2); some say 202 or 204.
        if reply.status.is_success() {
            return Ok(());
        }
        let error = reply.error_code();
        if error.as_deref() == Some("unsupported_token_type") {
            // Tokens of this kind end by themselves there (RFC 7009 §2.2.1): nothing is left to be done.
            return Ok(());
        }
        let error = reply.refusal();
        tracing::warn!(issuer = %self.settings.name, error, "A token could not be revoked.");
        Err(Unavailable::SOON)
    }
}

/// What became of a grant.
enum Verdict {
    Granted(Box<Tokens>),
    /// What was redeemed is not good; with the server's words where they are not those of the RFC.
    Refused(Option<String>),
    /// A refusal of something else, which a client may have brought about.
    Provoked(String),
    /// The server, or our standing with it, is in disorder.
    Broken(String),
}

fn judge(reply: &Reply, typed: bool, received: Timestamp) -> Verdict {
    if reply.status == StatusCode::OK {
        return match tokens(&reply.body, received) {
            Ok(tokens) => Verdict::Granted(Box::new(tokens)),
            Err(why @ Unusable::Error(_)) => Verdict::Provoked(why.to_string()),
            Err(why) => Verdict::Broken(why.to_string()),
        };
    }
    let error = reply.error_code();
    if !reply.status.is_client_error() || error.as_deref() == Some("invalid_client") {
        return Verdict::Broken(reply.refusal());
    }
    match (reply.status, error.as_deref()) {
        // With 400 by the book, with 401 or 403 from servers that take the person for a client.
        (_, Some("invalid_grant")) => Verdict::Refused(None),
        // Ours is the same request each time, but for what was typed: whatever the server calls it, that is
        // what it does not like. Authlib says `invalid_request`, Glewlwyd nothing at all. Called the server's
        // trouble, it would be a guess that nobody counts.
        (_, Some("invalid_request" | "access_denied")) | (StatusCode::FORBIDDEN, None) if typed => {
            Verdict::Refused(Some(reply.refusal()))
        }
        _ => Verdict::Provoked(reply.refusal()),
    }
}

/// Reads a token response (RFC 6749 §5.1).
fn tokens(body: &[u8], received: Timestamp) -> Result<Tokens, Unusable> {
    let mut body = json::object(body).map_err(|_| Unusable::NoObject)?;
    if let Some(error) = body.get("error").and_then(Value::as_str).and_then(plain) {
        return Err(Unusable::Error(error));
    }
    let bearer = body.get("token_type").and_then(Value::as_str).ok_or(Unusable::NoType)?;
    if !bearer.eq_ignore_ascii_case("Bearer") {
        return Err(Unusable::Type);
    }
    let text = |body: &mut Map<String, Value>, name| match body.remove(name) {
        Some(Value::String(text)) if !text.is_empty() => Some(text),
        _ => None,
    };
    let expires_in = match body.get("expires_in") {
        None | Some(Value::Null) => None,
        // Kept without end in other gateways' caches: unusable here.
        Some(value) => {
            let lifetime = seconds(value).filter(|lifetime| !lifetime.is_zero());
            Some(lifetime.ok_or(Unusable::Lifetime)?)
        }
    };
    Ok(Tokens {
        access_token: text(&mut body, "access_token").ok_or(Unusable::NoToken)?.into(),
        refresh_token: text(&mut body, "refresh_token").map(Secret::from),
        id_token: text(&mut body, "id_token").map(Secret::from),
        expires_in,
        refresh_expires_in: ["refresh_expires_in", "refresh_token_expires_in"]
            .iter()
            .find_map(|name| seconds(body.get(*name)?))
            .filter(|lifetime| !lifetime.is_zero()),
        scope: scope(body.get("scope"))?,
        received,
    })
}

/// The scopes granted; some servers write them as an array. What cannot be read is not taken for all that was asked for.
fn scope(value: Option<&Value>) -> Result<Option<String>, Unusable> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(list)) => Ok(Some(list.clone())),
        Some(Value::Array(list)) => {
            let list: Option<Vec<_>> = list.iter().map(Value::as_str).collect();
            list.map(|list| Some(list.join(" "))).ok_or(Unusable::Scope)
        }
        Some(_) => Err(Unusable::Scope),
    }
}

/// Why an answer with status 200 brings no tokens.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("the answer is not a JSON object")]
    NoObject,
    #[error("{0}, with status 200")]
    Error(String),
    #[error("the answer has no `access_token`")]
    NoToken,
    #[error("the answer has no `token_type`")]
    NoType,
    #[error("the answer's `token_type` is not Bearer")]
    Type,
    #[error("the answer's `expires_in` is no number of seconds above 0")]
    Lifetime,
    #[error("the answer's `scope` is neither a text nor an array of texts")]
    Scope,
}

/// A lifetime; some servers write the number as a string.
fn seconds(value: &Value) -> Option<Duration> {
    let seconds = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => f64::from(text.parse::<u32>().ok()?),
        _ => return None,
    };
    (0.0..=MAX_LIFETIME).contains(&seconds).then(|| Duration::from_secs(seconds as u64))
}

/// 136 years: what a server says beyond that is nonsense.
const MAX_LIFETIME: f64 = 4_294_967_295.0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;
    use tokio::runtime::Handle;

    use super::super::testing::{Answer, METADATA, REVOKE, Server, TOKEN};
    use super::super::{ClientAuth, Issuer};
    use super::*;
    use crate::base::clock::Clock;
    use crate::observe::metrics::Metrics;

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    #[tokio::test]
    async fn each_grant_is_written_as_its_rfc_says() {
        let resource = Resource::parse("urn:api").unwrap();
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
            let refuses = matches!(says.status, 400..500) && !what.contains("invalid_client");
            server.says(TOKEN, says);
            let issuer = issuer(&server);

            for _ in 0..6 {
                assert_eq!(log_in(&issuer).await.unwrap_err(), expected, "{what}");
            }
            // Said about a refresh token it would log out people for a mistake of the operator's.
            let circuit = issuer.inner.token_circuit.admit(Duration::ZERO).is_ok();
            assert_eq!(circuit, refuses, "{what}");
            if circuit {
                assert_eq!(refresh(&issuer).await.unwrap_err(), GrantError::Unavailable, "{what}");
            }
        }
    }

    #[test]
    fn an_answer_without_usable_tokens_says_what_is_wrong() {
        for (body, why) in [
            ("<html>", "the answer is not a JSON object"),
            (r#"{"error":"bad_code"}"#, "bad_code, with status 200"),
            (r#"{"token_type":"Bearer"}"#, "the answer has no `access_token`"),
            (r#"{"access_token":"a"}"#, "the answer has no `token_type`"),
            (
                r#"{"access_token":"a","token_type":"Bearer","scope":7}"#,
                "the answer's `scope` is neither a text nor an array of texts",
            ),
        ] {
            assert_eq!(tokens(body.as_bytes(), NOW).unwrap_err().to_string(), why);
        }
    }

    #[test]
    fn scopes_that_are_none_are_not_taken_for_all_that_was_asked_for() {
        let scope = |scope: Value| {
            let body = json!({ "access_token": "a", "token_type": "BEARER", "scope": scope });
            tokens(body.to_string().as_bytes(), NOW).map(|tokens| tokens.scope)
        };

        assert_eq!(scope(json!("b a")).unwrap().as_deref(), Some("b a"));
        assert_eq!(scope(json!(["b", "a"])).unwrap().as_deref(), Some("b a"));
        assert_eq!(scope(json!("")).unwrap().as_deref(), Some(""));
        assert_eq!(scope(json!([])).unwrap().as_deref(), Some(""));
        assert_eq!(scope(json!(null)).unwrap(), None);
        assert!(scope(json!({})).is_err() && scope(json!([1])).is_err());
    }

    #[test]
    fn an_answer_without_usable_tokens_is_refused() {
        for body in [
            json!({ "token_type": "Bearer" }),
            json!({ "access_token": "", "token_type": "Bearer" }),
            json!({ "access_token": 1, "token_type": "Bearer" }),
            json!({ "access_token": "a" }),
            json!({ "access_token": "a", "token_type": "mac" }),
            json!({ "access_token": "a", "token_type": "Bearer", "expires_in": 0 }),
            json!({ "access_token": "a", "token_type": "Bearer", "expires_in": -1 }),
            json!({ "access_token": "a", "token_type": "Bearer", "expires_in": 1e300 }),
            json!({ "access_token": "a", "token_type": "Bearer", "expires_in": "soon" }),
            json!([]),
        ] {
            assert!(tokens(body.to_string().as_bytes(), NOW).is_err(), "{body}");
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

    proptest! {
        #[test]
        fn no_lifetime_is_zero_negative_or_without_end(number in any::<f64>()) {
            let body = json!({ "access_token": "a", "token_type": "Bearer", "expires_in": number });
            let read = tokens(body.to_string().as_bytes(), NOW);
            if let Some(lifetime) = read.ok().and_then(|tokens| tokens.expires_in) {
                prop_assert!(lifetime >= Duration::from_secs(1));
                prop_assert!(lifetime <= Duration::from_secs(u64::from(u32::MAX)));
            }
        }
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
