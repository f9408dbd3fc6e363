//! Asking an issuer about a token that only it understands (RFC 7662).
//!
//! This file asks and sorts the answers: what the token's holder is to blame
//! for, and what is our trouble with the server. Whether an active token is
//! good enough, and for how long an answer holds, is `token`'s business.

use super::own_token::OwnToken;
use std::borrow::Cow;

use http::header::AUTHORIZATION;
use http::{HeaderValue, StatusCode};
use serde_json::{Map, Value};
use url::Url;

use super::calls::Inner;
use super::client_auth::{Form, authenticate};
use super::concurrency::ConcurrencyPermit;
use super::grant::{Grant, GrantError, TokenRequest};
use super::http_client::{CallError, Post, Response};
use super::json;
use super::purpose::{Input, Purpose};
use super::settings::{Client, IntrospectionAuthorization, SignedAnswer};
use super::signing_key::SigningFailed;
use super::unavailable::Unavailable;
use crate::base::scopes::Scopes;
use crate::base::secret::Secret;
use crate::observe::metrics::Endpoint;

/// What an issuer says about a token.
#[derive(Clone, Debug, PartialEq)]
pub enum IntrospectionResponse {
    /// `active` is `true`. Nothing else of it has been checked.
    Active(Map<String, Value>),
    /// `active` is `false`, or the server does not know this type of token.
    Inactive,
    /// The answer is a signed token, not verified yet.
    Signed(Secret<String>),
}

/// What kind of answer is asked for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum AcceptedFormat {
    /// A JSON object (RFC 7662 §2.2).
    Json,
    /// A signed access token in place of the reference token ("phantom token").
    Jwt,
    /// A signed introspection response (RFC 9701).
    SignedResponse,
}

impl AcceptedFormat {
    const fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Jwt => "application/jwt",
            Self::SignedResponse => "application/token-introspection+jwt",
        }
    }
}

impl From<SignedAnswer> for AcceptedFormat {
    fn from(answer: SignedAnswer) -> Self {
        match answer {
            SignedAnswer::AccessToken => Self::Jwt,
            SignedAnswer::Response => Self::SignedResponse,
        }
    }
}

impl Inner {
    /// Asks about `token`. Runs on the control runtime.
    pub(super) async fn introspect(
        &self,
        token: &Secret<String>,
        accept: AcceptedFormat,
    ) -> Result<IntrospectionResponse, Unavailable> {
        let metadata = self.published.metadata().await;
        let client = self.settings.client.as_ref();
        let Some(url) = &metadata.endpoints.introspection else {
            tracing::error!(issuer = %self.settings.name, "No introspection endpoint is known: its metadata names none, or did not come, and `endpoints.introspection` is not set.");
            return Err(self.published.unavailable());
        };
        let Some(client) = client else {
            tracing::error!(issuer = %self.settings.name, "There is no client to ask about tokens as.");
            return Err(self.published.unavailable());
        };
        let slot = self.calls.slot(Purpose::Introspection)?;
        let mut form = Form::default();
        form.add("token", token.expose());
        form.add("token_type_hint", "access_token");
        let (purpose, accepts) = (Purpose::Introspection, accept.media_type());
        let input = Input::new(purpose, &client.id, accepts, form.as_str());
        let pass = self.circuits.admit(purpose, input, self.clock.uptime());
        let pass = pass.map_err(Unavailable::after)?;
        let verdict = match self.ask(&slot, url, client, form, accept).await {
            Ok(reply) => sort(&reply, accept),
            Err(CallError::Away) => Classified::Away("no answer".into()),
            Err(CallError::Odd) => Classified::Odd("an answer that is too large".into()),
            Err(CallError::NotAsked) => return Err(Unavailable::RETRY_SOON),
        };
        match verdict {
            Classified::Answer(answer) => {
                pass.succeeded();
                self.published.answered();
                Ok(answer)
            }
            Classified::Inactive => {
                pass.refused();
                Ok(IntrospectionResponse::Inactive)
            }
            Classified::Odd(why) => {
                // A client may have brought it about, or we with our standing there: who reads it will know.
                if let Some(suppressed) = self.calls.may_warn() {
                    tracing::warn!(issuer = %self.settings.name, %why, suppressed, "Introspection was refused.");
                }
                pass.answered_oddly(self.clock.uptime());
                Err(Unavailable::RETRY_SOON)
            }
            Classified::Away(why) => {
                if let Some(suppressed) = self.calls.may_warn() {
                    tracing::warn!(issuer = %self.settings.name, %why, suppressed, "Introspection failed.");
                }
                pass.was_away(self.clock.uptime());
                Err(Unavailable::RETRY_SOON)
            }
        }
    }

    async fn ask(
        &self,
        slot: &ConcurrencyPermit<'_>,
        url: &Url,
        client: &Client,
        mut form: Form,
        accept: AcceptedFormat,
    ) -> Result<Response, CallError> {
        let post = |form: Form, authorization| Post {
            endpoint: Endpoint::Introspection,
            url,
            accept: accept.media_type(),
            form: form.finish(),
            auth: &client.auth,
            authorization,
            limit: self.settings.timeout,
        };
        if self.settings.introspection.authorization == IntrospectionAuthorization::Client {
            let (issuer, now) = (&self.settings.issuer, self.clock.now());
            let authorization = authenticate(client, &mut form, issuer, now)
                .map_err(|SigningFailed| CallError::NotAsked)?;
            return self.calls.post(slot, post(form, authorization)).await;
        }
        let own = self.own_token(slot, client).await?;
        let reply = self.calls.post(slot, post(form.clone(), Some(bearer(&own)?))).await?;
        if reply.status != StatusCode::UNAUTHORIZED {
            return Ok(reply);
        }
        // Our token may have been revoked before its time: once more, with a new one.
        self.introspector.own.lock().await.take_if(|kept| kept.token == own);
        let own = self.own_token(slot, client).await?;
        self.calls.post(slot, post(form, Some(bearer(&own)?))).await
    }

    /// The gateway's own access token, renewed before it ends. Whoever asks meanwhile waits.
    async fn own_token(
        &self,
        slot: &ConcurrencyPermit<'_>,
        client: &Client,
    ) -> Result<Secret<String>, CallError> {
        let mut own = self.introspector.own.lock().await;
        if let Some(own) = &*own
            && self.clock.now() < own.renew_at
        {
            return Ok(own.token.clone());
        }
        let scopes = Scopes::default();
        let grant = Grant::ClientCredentials { scopes: &scopes, resource: None };
        let tokens = self
            .request_tokens_within(slot, TokenRequest::new(&grant, self.settings.timeout), client)
            .await;
        let tokens = tokens.map_err(|error| {
            if error == GrantError::InvalidGrant {
                tracing::error!(issuer = %self.settings.name, "The client-credentials grant was refused.");
            }
            // It has a circuit of its own, and the token that was to be asked about has no part in it.
            CallError::NotAsked
        })?;
        let lifetime = tokens.expires_in.unwrap_or(DEFAULT_TOKEN_LIFETIME);
        let renew_at = tokens.received.plus(lifetime * 4 / 5);
        let token = tokens.access_token.clone();
        *own = Some(OwnToken { token: token.clone(), renew_at });
        Ok(token)
    }
}

enum Classified {
    Answer(IntrospectionResponse),
    /// The server does not know tokens of this type: no failure of its own.
    Inactive,
    /// What a client can bring about by what it sends, or what makes no sense: it says nothing about
    /// other tokens.
    Odd(Cow<'static, str>),
    /// The server is away.
    Away(Cow<'static, str>),
}

fn sort(reply: &Response, accept: AcceptedFormat) -> Classified {
    match reply.status {
        StatusCode::OK => {}
        // Some servers that sign their answers have none about a token that is not active.
        StatusCode::NO_CONTENT if accept != AcceptedFormat::Json => {
            return Classified::Answer(IntrospectionResponse::Inactive);
        }
        StatusCode::BAD_REQUEST => {
            return match reply.error_code().as_deref() {
                Some("unsupported_token_type") => Classified::Inactive,
                _ => Classified::Odd(reply.refusal().into()),
            };
        }
        _ if reply.says_away() => return Classified::Away(reply.refusal().into()),
        _ => return Classified::Odd(reply.refusal().into()),
    }
    let media_type = reply.media_type();
    if accept != AcceptedFormat::Json && media_type.as_deref() == Some(accept.media_type()) {
        let Ok(text) = core::str::from_utf8(&reply.body) else {
            return Classified::Odd("the signed answer is not text".into());
        };
        return Classified::Answer(IntrospectionResponse::Signed(text.trim().into()));
    }
    let Ok(mut body) = json::parse_object(&reply.body) else {
        return Classified::Odd("the answer is not a JSON object".into());
    };
    match body.remove("active") {
        Some(Value::Bool(true)) => {
            // As some servers write what they do not know. It is they who say it, not the token's holder.
            body.retain(|_, value| !value.is_null());
            Classified::Answer(IntrospectionResponse::Active(body))
        }
        Some(Value::Bool(false)) => Classified::Answer(IntrospectionResponse::Inactive),
        _ => Classified::Odd("the answer does not say whether the token is active".into()),
    }
}

/// `Bearer` with a token that the server itself made.
fn bearer(token: &Secret<String>) -> Result<HeaderValue, CallError> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose())).map_err(|_| {
        tracing::error!(field = %AUTHORIZATION, "The access token cannot be sent.");
        CallError::NotAsked
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// How long a token of our own is used if its server does not say how long it lives.
const DEFAULT_TOKEN_LIFETIME: core::time::Duration = core::time::Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use core::num::NonZeroUsize;
    use core::time::Duration;

    use serde_json::json;
    use tokio::runtime::Handle;

    use super::super::testing::{Answer as Says, INTROSPECT, Server, TOKEN};
    use super::super::{Issuer, Settings};
    use super::*;
    use crate::base::clock::Clock;
    use crate::base::clock::Timestamp;
    use crate::issuer::ClientAuth;
    use crate::observe::metrics::Metrics;

    #[tokio::test]
    async fn asks_as_the_rfc_says_and_hands_on_what_it_hears() {
        let server = Server::start().await;
        server.says(INTROSPECT, Says::json(json!({ "active": true, "sub": "alice" })));
        let (issuer, _) = issuer(server.settings());

        let answer = ask(&issuer, "to ken&x=y").await.unwrap();

        let IntrospectionResponse::Active(claims) = answer else { panic!("{answer:?}") };
        assert_eq!(claims.get("sub"), Some(&json!("alice")));
        let asked = server.last(INTROSPECT);
        assert_eq!(asked.field("token").as_deref(), Some("to ken&x=y"));
        assert_eq!(asked.field("token_type_hint").as_deref(), Some("access_token"));
        assert_eq!(asked.headers["content-type"], "application/x-www-form-urlencoded");
        assert_eq!(asked.headers["accept"], "application/json");
        assert_eq!(asked.headers["authorization"], "Basic Z2F0ZXdheTpzM2NyZXQ=");
    }

    #[tokio::test]
    async fn what_a_server_says_to_be_null_it_does_not_say() {
        let server = Server::start().await;
        let says = json!({ "active": true, "sub": "alice", "aud": null, "exp": null, "x": [null] });
        server.says(INTROSPECT, Says::json(says));
        let (issuer, _) = issuer(server.settings());

        let answer = ask(&issuer, "t").await.unwrap();

        let said = json!({ "sub": "alice", "x": [null] });
        assert_eq!(answer, IntrospectionResponse::Active(said.as_object().unwrap().clone()));
    }

    #[tokio::test]
    async fn only_true_is_active_and_only_false_is_not() {
        let server = Server::start().await;
        let (issuer, _) = issuer(server.settings());

        server.says(INTROSPECT, Says::json(json!({ "active": false, "sub": "alice" })));
        assert_eq!(ask(&issuer, "t").await, Ok(IntrospectionResponse::Inactive));
        for active in [json!("true"), json!(1), json!(null), json!({})] {
            server.says(INTROSPECT, Says::json(json!({ "active": active })));
            assert!(ask(&issuer, "t").await.is_err(), "{active}");
        }
        for body in ["", "{}", "[]", "true", "<html>", r#"{"active":true,"active":false}"#] {
            let (issuer, _) = self::issuer(server.settings());
            server.says(INTROSPECT, Says::text("application/json", body.into()));
            assert!(ask(&issuer, "t").await.is_err(), "{body}");
        }
    }

    #[tokio::test]
    async fn an_unsupported_token_is_the_tokens_fault_and_all_else_is_not() {
        let server = Server::start().await;
        let (issuer, _) = issuer(server.settings());

        server.says(INTROSPECT, Says::error(400, "unsupported_token_type"));
        assert_eq!(ask(&issuer, "t").await, Ok(IntrospectionResponse::Inactive));
        for status in [400, 401, 403, 404, 429, 500, 503, 204, 302] {
            let (issuer, _) = self::issuer(server.settings());
            server.says(INTROSPECT, Says::error(status, "invalid_request"));
            assert!(ask(&issuer, "t").await.is_err(), "{status}");
        }
    }

    #[tokio::test]
    async fn a_server_in_trouble_is_left_alone_for_a_while() {
        let server = Server::start().await;
        server.says(INTROSPECT, Says::status(500));
        let (issuer, clock) = issuer(server.settings());

        for _ in 0..20 {
            assert!(ask(&issuer, "t").await.is_err());
        }
        assert_eq!(server.count(INTROSPECT), 5);

        server.says(INTROSPECT, Says::json(json!({ "active": false })));
        clock.advance(Duration::from_secs(1));
        assert_eq!(ask(&issuer, "t").await, Ok(IntrospectionResponse::Inactive));
    }

    #[tokio::test]
    async fn a_server_that_refuses_us_is_not_asked_on_and_on_with_whatever_status_it_says_so() {
        for status in [400, 401] {
            let server = Server::start().await;
            server.says(INTROSPECT, Says::error(status, "invalid_client"));
            let (issuer, _) = issuer(server.settings());

            for _ in 0..20 {
                assert!(ask(&issuer, "t").await.is_err());
            }
            assert_eq!(server.count(INTROSPECT), 5, "{status}");
        }
    }

    #[tokio::test]
    async fn a_client_cannot_open_the_circuit() {
        let server = Server::start().await;
        let (issuer, _) = issuer(server.settings());

        for (asked, status) in
            [400, 401, 403, 404, 413, 414, 422, 429, 431, 500].into_iter().enumerate()
        {
            server.says(INTROSPECT, Says::error(status, "invalid_request"));
            for number in 0..6 {
                assert!(ask(&issuer, &format!("{status}-{number}")).await.is_err());
            }
            assert_eq!(server.count(INTROSPECT), 6 * (asked + 1), "{status}");
        }
        let odd = ["", "{}", "<html>", "{\"active\":true,\"sub\":\"a\nb\"}", "{\"active\":1}"];
        for (number, body) in odd.into_iter().cycle().take(30).enumerate() {
            server.says(INTROSPECT, Says::text("application/json", body.into()));
            assert!(ask(&issuer, &format!("odd-{number}")).await.is_err(), "{body}");
        }

        server.says(INTROSPECT, Says::json(json!({ "active": false })));
        assert_eq!(ask(&issuer, "t").await, Ok(IntrospectionResponse::Inactive));
    }

    #[tokio::test]
    async fn an_odd_answer_is_remembered_for_its_token_alone() {
        let server = Server::start().await;
        server.hears(INTROSPECT, |asked| match asked.field("token").as_deref() {
            Some("odd") => Says::status(500),
            _ => Says::json(json!({ "active": false })),
        });
        let (issuer, clock) = issuer(server.settings());

        for _ in 0..20 {
            assert!(ask(&issuer, "odd").await.is_err());
        }
        assert_eq!(server.count(INTROSPECT), 5);
        for number in 0..20 {
            assert_eq!(
                ask(&issuer, &format!("t-{number}")).await,
                Ok(IntrospectionResponse::Inactive)
            );
        }
        assert!(ask(&issuer, "odd").await.is_err());
        assert_eq!(server.count(INTROSPECT), 25, "answers to others are no answer to this one");

        clock.advance(Duration::from_secs(1));
        assert!(ask(&issuer, "odd").await.is_err());
        assert_eq!(server.count(INTROSPECT), 26, "after a while it is asked about again");
    }

    #[tokio::test]
    async fn a_server_that_is_away_is_left_alone_for_a_while_whatever_it_is_asked_about() {
        for status in [502, 503, 504] {
            let server = Server::start().await;
            server.says(INTROSPECT, Says::status(status));
            let (issuer, clock) = issuer(server.settings());

            for number in 0..20 {
                assert!(ask(&issuer, &format!("t-{number}")).await.is_err());
            }
            assert_eq!(server.count(INTROSPECT), 5, "{status}");

            server.says(INTROSPECT, Says::json(json!({ "active": false })));
            clock.advance(Duration::from_secs(1));
            assert_eq!(ask(&issuer, "t").await, Ok(IntrospectionResponse::Inactive));
        }
    }

    #[tokio::test]
    async fn more_calls_than_allowed_at_once_are_refused_and_do_not_open_the_circuit() {
        let server = Server::start().await;
        let slow = Says::json(json!({ "active": false })).after(Duration::from_millis(50));
        server.says(INTROSPECT, slow);
        let settings =
            Settings { max_concurrent: NonZeroUsize::new(2).unwrap(), ..server.settings() };
        let (issuer, _) = issuer(settings);
        let _ = issuer.inner.published.metadata().await;

        let answers = futures_util::future::join_all((0..20).map(|_| ask(&issuer, "t"))).await;

        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 2);
        assert_eq!(server.count(INTROSPECT), 2);
        assert_eq!(ask(&issuer, "t").await, Ok(IntrospectionResponse::Inactive));
    }

    #[tokio::test]
    async fn proves_itself_with_a_token_of_its_own_and_renews_it_in_time() {
        let server = Server::start().await;
        let made = core::sync::atomic::AtomicU32::new(0);
        server.hears(TOKEN, move |_| {
            let number = made.fetch_add(1, core::sync::atomic::Ordering::SeqCst);
            Says::json(json!({
                "access_token": format!("own-{number}"), "token_type": "Bearer", "expires_in": 100,
            }))
        });
        server.says(INTROSPECT, Says::json(json!({ "active": false })));
        let mut settings = server.settings();
        settings.introspection.authorization = IntrospectionAuthorization::Bearer;
        let (issuer, clock) = issuer(settings);

        ask(&issuer, "a").await.unwrap();
        ask(&issuer, "b").await.unwrap();
        assert_eq!(server.last(TOKEN).field("grant_type").as_deref(), Some("client_credentials"));
        assert_eq!(server.last(INTROSPECT).headers["authorization"], "Bearer own-0");
        assert_eq!(server.count(TOKEN), 1);

        clock.advance(Duration::from_secs(80));
        ask(&issuer, "c").await.unwrap();
        assert_eq!(server.last(INTROSPECT).headers["authorization"], "Bearer own-1");

        server.hears(INTROSPECT, |asked| {
            let revoked = asked.headers["authorization"] == "Bearer own-1";
            if revoked { Says::status(401) } else { Says::json(json!({ "active": false })) }
        });
        assert_eq!(
            ask(&issuer, "d").await,
            Ok(IntrospectionResponse::Inactive),
            "once more, with a new one"
        );
        assert_eq!(server.last(INTROSPECT).headers["authorization"], "Bearer own-2");
    }

    #[tokio::test]
    async fn a_token_of_its_own_needs_no_second_place_among_the_calls_at_once() {
        let server = Server::start().await;
        let own = json!({ "access_token": "own", "token_type": "Bearer", "expires_in": 100 });
        server.says(TOKEN, Says::json(own).after(Duration::from_millis(20)));
        server.says(INTROSPECT, Says::json(json!({ "active": false })));
        let most = NonZeroUsize::new(3).unwrap();
        let mut settings = Settings { max_concurrent: most, ..server.settings() };
        settings.introspection.authorization = IntrospectionAuthorization::Bearer;
        let (issuer, _) = issuer(settings);
        let _ = issuer.inner.published.metadata().await;

        let answers = futures_util::future::join_all((0..3).map(|_| ask(&issuer, "t"))).await;

        assert_eq!(answers, vec![Ok(IntrospectionResponse::Inactive); 3]);
        assert_eq!(server.count(TOKEN), 1);
    }

    #[tokio::test]
    async fn a_signed_answer_is_handed_on_unread_only_if_asked_for() {
        let server = Server::start().await;
        let (issuer, _) = issuer(server.settings());
        server.says(INTROSPECT, Says::text("application/jwt; charset=utf-8", "a.b.c".into()));

        let token = Secret::from("t");
        let signed = issuer.introspect(&token, AcceptedFormat::Jwt).await;
        assert_eq!(signed, Ok(IntrospectionResponse::Signed("a.b.c".into())));
        assert_eq!(server.last(INTROSPECT).headers["accept"], "application/jwt");
        assert!(issuer.introspect(&token, AcceptedFormat::Json).await.is_err());
        assert!(issuer.introspect(&token, AcceptedFormat::SignedResponse).await.is_err());

        server.says(INTROSPECT, Says::json(json!({ "active": false })));
        assert_eq!(
            issuer.introspect(&token, AcceptedFormat::Jwt).await,
            Ok(IntrospectionResponse::Inactive)
        );
    }

    #[tokio::test]
    async fn without_a_client_or_an_endpoint_nobody_is_asked() {
        let server = Server::start().await;
        let mut metadata = server.metadata();
        metadata.as_object_mut().unwrap().remove("introspection_endpoint");
        server.says(super::super::testing::METADATA, Says::json(metadata));
        let (issuer, _) = issuer(server.settings());

        assert!(ask(&issuer, "t").await.is_err());
        assert_eq!(server.count(INTROSPECT), 0);
    }

    async fn ask(issuer: &Issuer, token: &str) -> Result<IntrospectionResponse, Unavailable> {
        issuer.introspect(&Secret::from(token), AcceptedFormat::Json).await
    }

    fn issuer(settings: Settings) -> (Issuer, Clock) {
        let client =
            Client { id: "gateway".into(), auth: ClientAuth::Basic(Secret::from("s3cret")) };
        let settings = Settings { client: Some(client), ..settings };
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let metrics = Metrics::new(&[1.0]);
        let issuer = Issuer::new(settings, clock.clone(), &metrics, Handle::current()).unwrap();
        (issuer, clock)
    }
}
