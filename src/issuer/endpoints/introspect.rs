//! Token introspection (RFC 7662).
//!
//! Sends the request and classifies the response: errors that the token
//! causes, and errors of the server. The `token` room decides whether an
//! active token is accepted, and for how long a response is cached.

use super::introspection_token::IntrospectionToken;
use core::sync::atomic::Ordering::Relaxed;
use std::borrow::Cow;

use http::header::AUTHORIZATION;
use http::{HeaderValue, StatusCode};
use serde_json::{Map, Value};
use url::Url;

use super::grant::{Grant, GrantError, TokenRequest};
use crate::base::scopes::Scopes;
use crate::base::secret::Secret;
use crate::base::strict_json;
use crate::issuer::calls::call_context::CallContext;
use crate::issuer::calls::call_purpose::{Input, Purpose};
use crate::issuer::calls::client_auth::Form;
use crate::issuer::calls::concurrency::ConcurrencyPermit;
use crate::issuer::calls::http_client::{CallError, Post, Response};
use crate::issuer::calls::unavailable::Unavailable;
use crate::issuer::keys::signing_key::SigningFailed;
use crate::issuer::settings::{Client, IntrospectionAuthorization, SignedAnswer};
use crate::observe::metrics::Endpoint;

/// An introspection response.
#[derive(Clone, Debug, PartialEq)]
pub enum IntrospectionResponse {
    /// `active` is `true`. Other members are unchecked.
    Active(Map<String, Value>),
    /// `active` is `false`, or the server does not support this type of token.
    Inactive,
    /// A signed token or response, not verified yet.
    Signed(Secret<String>),
}

/// The requested format of an introspection response.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum AcceptedFormat {
    /// A JSON object (RFC 7662 §2.2).
    Json,
    /// A signed access token in place of the opaque token ("phantom token").
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
    fn from(response: SignedAnswer) -> Self {
        match response {
            SignedAnswer::AccessToken => Self::Jwt,
            SignedAnswer::Response => Self::SignedResponse,
        }
    }
}

impl CallContext {
    /// Introspects `token`. Runs on the control runtime.
    pub(in crate::issuer) async fn introspect(
        &self,
        token: &Secret<String>,
        accept: AcceptedFormat,
    ) -> Result<IntrospectionResponse, Unavailable> {
        let metadata = self.provider_cache.metadata().await;
        let client = self.settings.client.as_ref();
        let Some(url) = &metadata.endpoints.introspection else {
            if let Some(suppressed) = self.http_client.may_warn() {
                tracing::error!(issuer = %self.settings.name, suppressed, "No introspection endpoint is known, and reference tokens are refused with 503: the metadata names none or could not be fetched, and `endpoints.introspection` is not set.");
            }
            return Err(self.provider_cache.unavailable());
        };
        let Some(client) = client else {
            if let Some(suppressed) = self.http_client.may_warn() {
                tracing::error!(issuer = %self.settings.name, suppressed, "No client credentials are configured for introspection; reference tokens are refused with 503.");
            }
            return Err(self.provider_cache.unavailable());
        };
        let slot = self.http_client.slot(Purpose::Introspection)?;
        let mut form = Form::default();
        form.add("token", token.expose());
        form.add("token_type_hint", "access_token");
        let (purpose, accepts) = (Purpose::Introspection, accept.media_type());
        let input = Input::new(purpose, &client.id, accepts, form.as_str());
        let pass = self.circuits.admit(purpose, input, self.clock.uptime());
        let pass = pass.map_err(Unavailable::after)?;
        let classified = match self.send(&slot, url, client, form, accept).await {
            Ok(response) => {
                self.introspector.refuses_client.store(refuses_client(response.status), Relaxed);
                classify(&response, accept)
            }
            Err(CallError::Unavailable) => Classified::Unavailable("no response".into()),
            Err(CallError::Unexpected) => {
                Classified::Unexpected("the response is too large".into())
            }
            Err(CallError::NotSent) => return Err(Unavailable::RETRY_SOON),
        };
        match classified {
            Classified::Response(response) => {
                pass.record_success();
                self.provider_cache.record_response();
                Ok(response)
            }
            Classified::Inactive => {
                pass.record_refusal();
                Ok(IntrospectionResponse::Inactive)
            }
            Classified::Unexpected(why) => {
                // A client may have provoked it, or the gateway's client lacks permission: the log line lets the
                // operator decide.
                if let Some(suppressed) = self.http_client.may_warn() {
                    tracing::warn!(issuer = %self.settings.name, error = %why, suppressed, "The issuer refused an introspection request; the token was not accepted.");
                }
                pass.record_unexpected_response(self.clock.uptime());
                Err(Unavailable::RETRY_SOON)
            }
            Classified::Unavailable(why) => {
                if let Some(suppressed) = self.http_client.may_warn() {
                    tracing::warn!(issuer = %self.settings.name, error = %why, suppressed, "Could not introspect a token; its request is refused unless a cached result may stand in.");
                }
                pass.record_unavailable(self.clock.uptime());
                Err(Unavailable::RETRY_SOON)
            }
        }
    }

    async fn send(
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
            let authorization = self
                .authenticate(client, &mut form, url, self.clock.now())
                .map_err(|SigningFailed| CallError::NotSent)?;
            return self.http_client.post(slot, post(form, authorization)).await;
        }
        let own = self.own_token(slot, client).await?;
        let response = self.http_client.post(slot, post(form.clone(), Some(bearer(&own)?))).await?;
        if response.status != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        // The gateway's own token may have been revoked before its expiry: try once more with a new one.
        self.introspector.own.lock().await.take_if(|current| current.token == own);
        let own = self.own_token(slot, client).await?;
        self.http_client.post(slot, post(form, Some(bearer(&own)?))).await
    }

    /// Returns the gateway's own access token, renewed before it expires. Concurrent callers wait for one request, also if
    /// it fails.
    async fn own_token(
        &self,
        slot: &ConcurrencyPermit<'_>,
        client: &Client,
    ) -> Result<Secret<String>, CallError> {
        let failures = &self.introspector.failures;
        let before = failures.load(Relaxed);
        let mut own = self.introspector.own.lock().await;
        if let Some(own) = &*own
            && self.clock.now() < own.renew_at
        {
            return Ok(own.token.clone());
        }
        if failures.load(Relaxed) != before {
            return Err(CallError::NotSent);
        }
        let scopes = Scopes::default();
        let grant = Grant::ClientCredentials { scopes: &scopes, resource: None };
        let tokens = self
            .request_tokens_within(slot, TokenRequest::new(&grant, self.settings.timeout), client)
            .await;
        let tokens = tokens.map_err(|error| {
            failures.fetch_add(1, Relaxed);
            if error == GrantError::InvalidGrant {
                tracing::error!(issuer = %self.settings.name, "The issuer refused the client-credentials grant; introspection fails.");
            }
            // That grant has a circuit breaker of its own; the introspected token has no part in its failure.
            CallError::NotSent
        })?;
        let lifetime = tokens.expires_in.unwrap_or(DEFAULT_TOKEN_LIFETIME);
        let renew_at = tokens.received.plus(lifetime * 4 / 5);
        let token = tokens.access_token.clone();
        *own = Some(IntrospectionToken { token: token.clone(), renew_at });
        Ok(token)
    }
}

/// Reads the dates of an active token as some servers write them: as text, and 0 as the end of one that never ends
/// (Doorkeeper).
fn read_dates(body: &mut Map<String, Value>) {
    for name in ["exp", "iat", "nbf"] {
        if let Some(Value::String(text)) = body.get(name)
            && let Ok(seconds) = text.parse::<u64>()
        {
            body.insert(name.to_owned(), seconds.into());
        }
    }
    if body.get("exp").and_then(Value::as_u64) == Some(0) {
        body.remove("exp");
    }
}

/// Whether the status says that the endpoint is not for the gateway's client, or not there.
const fn refuses_client(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND)
}

enum Classified {
    Response(IntrospectionResponse),
    /// The server does not support tokens of this type: no failure of its own.
    Inactive,
    /// An error that a client can provoke, or a malformed response: it reveals nothing about
    /// other tokens.
    Unexpected(Cow<'static, str>),
    /// The server is unavailable.
    Unavailable(Cow<'static, str>),
}

fn classify(response: &Response, accept: AcceptedFormat) -> Classified {
    match response.status {
        StatusCode::OK => {}
        // Some servers with signed responses send none for an inactive token.
        StatusCode::NO_CONTENT if accept != AcceptedFormat::Json => {
            return Classified::Response(IntrospectionResponse::Inactive);
        }
        StatusCode::BAD_REQUEST => {
            return match response.error_code().as_deref() {
                Some("unsupported_token_type") => Classified::Inactive,
                _ => Classified::Unexpected(response.refusal().into()),
            };
        }
        _ if response.is_unavailable() => {
            return Classified::Unavailable(response.refusal().into());
        }
        _ => return Classified::Unexpected(response.refusal().into()),
    }
    let media_type = response.media_type();
    if accept != AcceptedFormat::Json && media_type.as_deref() == Some(accept.media_type()) {
        let Ok(text) = core::str::from_utf8(&response.body) else {
            return Classified::Unexpected("the signed response is not text".into());
        };
        return Classified::Response(IntrospectionResponse::Signed(text.trim().into()));
    }
    let Ok(mut body) = strict_json::parse_object(&response.body) else {
        return Classified::Unexpected("the response is not a JSON object".into());
    };
    match body.remove("active") {
        Some(Value::Bool(true)) => {
            // Some servers write `null` for absent members. The server says that, not the token's holder.
            body.retain(|_, value| !value.is_null());
            read_dates(&mut body);
            Classified::Response(IntrospectionResponse::Active(body))
        }
        Some(Value::Bool(false)) => Classified::Response(IntrospectionResponse::Inactive),
        _ => Classified::Unexpected(
            "the response does not report whether the token is active".into(),
        ),
    }
}

/// `Bearer` credentials with a token that the server itself issued.
fn bearer(token: &Secret<String>) -> Result<HeaderValue, CallError> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose())).map_err(|_| {
        tracing::error!(field = %AUTHORIZATION, "Could not introspect a token: the gateway's own access token is not a valid field value.");
        CallError::NotSent
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// The assumed lifetime of an own token without `expires_in`.
const DEFAULT_TOKEN_LIFETIME: core::time::Duration = core::time::Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use core::num::NonZeroUsize;
    use core::time::Duration;

    use serde_json::json;
    use tokio::runtime::Handle;

    use super::*;
    use crate::base::clock::Clock;
    use crate::base::clock::Timestamp;
    use crate::issuer::ClientAuth;
    use crate::issuer::tests::mock_issuer::{Answer as Says, INTROSPECT, Server, TOKEN};
    use crate::issuer::{Issuer, Settings};
    use crate::observe::metrics::Metrics;

    #[tokio::test]
    async fn the_request_follows_the_rfc_and_the_response_is_returned() {
        let server = Server::start().await;
        server.says(INTROSPECT, Says::json(json!({ "active": true, "sub": "alice" })));
        let (issuer, _) = issuer(server.settings());

        let response = ask(&issuer, "to ken&x=y").await.unwrap();

        let IntrospectionResponse::Active(claims) = response else { panic!("{response:?}") };
        assert_eq!(claims.get("sub"), Some(&json!("alice")));
        let asked = server.last(INTROSPECT);
        assert_eq!(asked.field("token").as_deref(), Some("to ken&x=y"));
        assert_eq!(asked.field("token_type_hint").as_deref(), Some("access_token"));
        assert_eq!(asked.headers["content-type"], "application/x-www-form-urlencoded");
        assert_eq!(asked.headers["accept"], "application/json");
        assert_eq!(asked.headers["authorization"], "Basic Z2F0ZXdheTpzM2NyZXQ=");
    }

    #[tokio::test]
    async fn only_an_unsupported_token_type_is_the_tokens_fault() {
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
    async fn a_failing_server_is_not_called_for_a_while() {
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
    async fn a_server_that_refuses_the_gateway_is_not_called_repeatedly() {
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
    async fn an_odd_response_is_remembered_for_its_token_alone() {
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
    async fn an_unavailable_server_is_not_called_for_a_while_for_any_token() {
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
    async fn calls_above_the_limit_are_refused_and_do_not_open_the_circuit() {
        let server = Server::start().await;
        let slow = Says::json(json!({ "active": false })).after(Duration::from_millis(50));
        server.says(INTROSPECT, slow);
        let settings =
            Settings { max_concurrent: NonZeroUsize::new(2).unwrap(), ..server.settings() };
        let (issuer, _) = issuer(settings);
        let _ = issuer.inner.provider_cache.metadata().await;

        let responses = futures_util::future::join_all((0..20).map(|_| ask(&issuer, "t"))).await;

        assert_eq!(responses.iter().filter(|response| response.is_ok()).count(), 2);
        assert_eq!(server.count(INTROSPECT), 2);
        assert_eq!(ask(&issuer, "t").await, Ok(IntrospectionResponse::Inactive));
    }

    #[tokio::test]
    async fn an_own_token_is_sent_and_renewed_in_time() {
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
    async fn an_own_token_needs_no_second_permit() {
        let server = Server::start().await;
        let own = json!({ "access_token": "own", "token_type": "Bearer", "expires_in": 100 });
        server.says(TOKEN, Says::json(own).after(Duration::from_millis(20)));
        server.says(INTROSPECT, Says::json(json!({ "active": false })));
        let max = NonZeroUsize::new(3).unwrap();
        let mut settings = Settings { max_concurrent: max, ..server.settings() };
        settings.introspection.authorization = IntrospectionAuthorization::Bearer;
        let (issuer, _) = issuer(settings);
        let _ = issuer.inner.provider_cache.metadata().await;

        let responses = futures_util::future::join_all((0..3).map(|_| ask(&issuer, "t"))).await;

        assert_eq!(responses, vec![Ok(IntrospectionResponse::Inactive); 3]);
        assert_eq!(server.count(TOKEN), 1);
    }

    #[tokio::test]
    async fn callers_that_wait_for_an_own_token_share_its_failure() {
        let server = Server::start().await;
        server.says(TOKEN, Says::status(500).after(Duration::from_millis(20)));
        let mut settings = server.settings();
        settings.introspection.authorization = IntrospectionAuthorization::Bearer;
        let (issuer, _) = issuer(settings);
        let _ = issuer.inner.provider_cache.metadata().await;

        let responses = futures_util::future::join_all((0..8).map(|_| ask(&issuer, "t"))).await;

        assert!(responses.iter().all(Result::is_err));
        assert_eq!(server.count(TOKEN), 1);
        assert!(ask(&issuer, "later").await.is_err());
        assert_eq!(server.count(TOKEN), 2);
    }

    #[tokio::test]
    async fn a_signed_response_is_returned_unread_only_if_requested() {
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
    async fn without_a_client_or_an_endpoint_no_call_is_made() {
        let server = Server::start().await;
        let mut metadata = server.metadata();
        metadata.as_object_mut().unwrap().remove("introspection_endpoint");
        server.says(crate::issuer::tests::mock_issuer::METADATA, Says::json(metadata));
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
