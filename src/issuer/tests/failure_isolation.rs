//! Isolation of callers: failures of one input do not affect calls with others.

use core::num::NonZeroUsize;
use core::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::runtime::Handle;

use super::super::{
    AcceptedFormat, Client, ClientAuth, Grant, GrantError, IntrospectionResponse, Issuer,
    RevocationOutcome, Settings, TokenHint,
};
use super::mock_issuer::{
    Answer as Says, Asked, INTROSPECT, METADATA, REVOKE, Server, TOKEN, eventually,
};
use crate::base::clock::{Clock, Timestamp};
use crate::base::scopes::Scopes;
use crate::base::secret::Secret;
use crate::observe::metrics::Metrics;

/// Malformed responses, and refusals that no grant causes.
fn odd_answers() -> Vec<Says> {
    let token = |extra: serde_json::Value| {
        let mut body = json!({ "access_token": "a", "token_type": "Bearer" });
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        Says::json(body)
    };
    vec![
        token(json!({ "expires_in": -1 })),
        token(json!({ "token_type": "mac" })),
        token(json!({ "token_type": "DPoP" })),
        token(json!({ "access_token": null })),
        token(json!({ "scope": 7 })),
        Says::text("text/html", "<html>".into()),
        Says::text(
            "application/json",
            "{\"access_token\":\"a\",\"token_type\":\"Bearer\",\"sub\":\"a\nb\"}".into(),
        ),
        Says::text("application/json", "x".repeat(2 << 20)),
        Says::status(500),
        Says::status(501),
        Says::status(302),
        Says::status(204),
        Says::error(400, "invalid_client"),
        Says::error(400, "invalid_scope"),
        Says::error(429, "slow_down"),
        Says::error(404, "not_found"),
    ]
}

#[tokio::test]
async fn odd_responses_to_some_inputs_block_no_other_input() {
    for (number, odd) in odd_answers().into_iter().enumerate() {
        let server = Server::start().await;
        let answer = odd.clone();
        server.hears(TOKEN, move |asked: &Asked| {
            let of = |name| asked.field(name).unwrap_or_default();
            let input = [of("username"), of("code"), of("refresh_token")].concat();
            if input.starts_with("good") { good() } else { answer.clone() }
        });
        let issuer = issuer(server.settings());

        for bad in 0..12 {
            let bad = format!("bad-{bad}");
            for result in [password(&issuer, &bad, "p").await, code(&issuer, &bad).await] {
                assert_eq!(result.err(), Some(GrantError::Unavailable), "{number}");
            }
            // Some of these say that a refresh token is of no use any more.
            assert!(refresh(&issuer, &bad).await.is_err(), "{number}");
        }

        assert!(password(&issuer, "good", "p").await.is_ok(), "{number}");
        assert!(code(&issuer, "good").await.is_ok(), "{number}");
        assert!(refresh(&issuer, "good").await.is_ok(), "{number}");
    }
}

#[tokio::test]
async fn an_odd_response_is_remembered_for_exactly_its_input() {
    let server = Server::start().await;
    server.hears(TOKEN, |asked: &Asked| {
        let odd = asked.field("password").as_deref() == Some("odd");
        if odd { Says::status(500) } else { good() }
    });
    let issuer = issuer(server.settings());

    for _ in 0..20 {
        assert!(password(&issuer, "alice", "odd").await.is_err());
    }

    assert_eq!(server.count(TOKEN), 5);
    assert!(password(&issuer, "alice", "right").await.is_ok(), "a guess locks out no user");
    assert_eq!(password(&issuer, "alice", "odd").await.err(), Some(GrantError::NotAsked));
    assert_eq!(server.count(TOKEN), 6);
}

#[tokio::test]
async fn an_outage_for_one_purpose_does_not_affect_other_purposes() {
    let server = Server::start().await;
    server.hears(TOKEN, |asked: &Asked| {
        let login = asked.field("grant_type").as_deref() != Some("refresh_token");
        if login { Says::status(503) } else { good() }
    });
    server.says(INTROSPECT, Says::status(502));
    server.says(REVOKE, Says::status(200));
    let issuer = issuer(server.settings());

    for number in 0..20 {
        let name = format!("name-{number}");
        assert!(password(&issuer, &name, "p").await.is_err());
        assert!(code(&issuer, &name).await.is_err());
        assert!(introspect(&issuer, &name).await.is_err());
    }

    assert_eq!(server.count(TOKEN), 10, "each circuit has opened after five");
    assert_eq!(server.count(INTROSPECT), 5);
    assert!(refresh(&issuer, "r").await.is_ok());
    let given_back = issuer.revoke(&"r".into(), TokenHint::RefreshToken, &client()).await;
    assert_eq!(given_back, Ok(RevocationOutcome::Revoked));
}

#[tokio::test]
async fn an_outage_stops_revocations_and_pushes_as_well() {
    let server = Server::start().await;
    let mut metadata = server.metadata();
    metadata["pushed_authorization_request_endpoint"] = json!(server.at("/push").as_str());
    server.says(METADATA, Says::json(metadata));
    server.says(REVOKE, Says::status(503));
    server.says("/push", Says::status(504));
    let issuer = issuer(server.settings());

    for number in 0..20 {
        let name = Secret::from(format!("t-{number}"));
        assert!(issuer.revoke(&name, TokenHint::RefreshToken, &client()).await.is_err());
        let request = vec![("state".into(), number.to_string())];
        assert!(issuer.push(request, &client()).await.is_err());
    }

    assert_eq!((server.count(REVOKE), server.count("/push")), (5, 5));
}

#[tokio::test]
async fn one_name_or_code_opens_no_circuit_if_only_it_meets_an_outage() {
    let server = Server::start().await;
    server.hears(TOKEN, |asked: &Asked| {
        let slow = asked.field("username").as_deref() == Some("alice")
            || asked.field("code").as_deref() == Some("made-up");
        if slow { Says::status(504) } else { good() }
    });
    let issuer = issuer(server.settings());

    for number in 0..20 {
        assert!(password(&issuer, "alice", &number.to_string()).await.is_err());
        assert!(code_with(&issuer, "made-up", &number.to_string()).await.is_err());
    }

    assert!(password(&issuer, "bob", "p").await.is_ok());
    assert!(code(&issuer, "good").await.is_ok());
}

#[tokio::test]
async fn hanging_logins_starve_neither_refreshes_nor_introspection() {
    for max in [1, 2, 8, 64] {
        let server = Server::start().await;
        server.hears(TOKEN, |asked: &Asked| {
            let login = asked.field("grant_type").as_deref() != Some("refresh_token");
            good().after(if login { Duration::from_secs(600) } else { Duration::ZERO })
        });
        server.says(INTROSPECT, Says::json(json!({ "active": false })));
        let max = NonZeroUsize::new(max).unwrap();
        let settings = Settings {
            max_concurrent: max,
            timeout: Duration::from_secs(600),
            ..server.settings()
        };
        let issuer = std::sync::Arc::new(issuer(settings));
        let _ = issuer.inner.provider_cache.metadata().await;

        // Strangers send made-up names and codes, more than there are permits.
        let logins: Vec<_> = (0..100)
            .map(|number| {
                let issuer = std::sync::Arc::clone(&issuer);
                Handle::current().spawn(async move {
                    let name = format!("n-{number}");
                    if number % 2 == 0 {
                        password(&issuer, &name, "p").await
                    } else {
                        code(&issuer, &name).await
                    }
                })
            })
            .collect();
        eventually("the permits to be taken", || {
            logins.iter().filter(|login| login.is_finished()).count() + server.count(TOKEN) == 100
        })
        .await;
        assert_eq!(password(&issuer, "late", "p").await.err(), Some(GrantError::NotAsked));

        assert!(refresh(&issuer, "r").await.is_ok(), "{max}");
        assert_eq!(introspect(&issuer, "t").await, Ok(IntrospectionResponse::Inactive), "{max}");
        for login in logins {
            login.abort();
        }
    }
}

#[tokio::test]
async fn a_flood_of_failures_writes_few_lines() {
    let server = Server::start().await;
    server.says(TOKEN, Says::status(500));
    let issuer = issuer(server.settings());

    let names: Vec<_> = (0..200).map(|number| format!("n-{number}")).collect();
    for names in names.chunks(10) {
        join_all(names.iter().map(|name| password(&issuer, name, "p"))).await;
    }

    let suppressed = issuer.inner.http_client.may_warn();
    assert_eq!(suppressed, None, "the rest is only counted");
}

fn good() -> Says {
    Says::json(json!({ "access_token": "a", "token_type": "Bearer", "expires_in": 60 }))
}

async fn password(issuer: &Issuer, username: &str, password: &str) -> Result<(), GrantError> {
    let (password, scopes) = (Secret::from(password), Scopes::default());
    let grant = Grant::Password { username, password: &password, scopes: &scopes, resource: None };
    issuer.grant(grant, &client()).await.map(|_| ())
}

async fn code(issuer: &Issuer, code: &str) -> Result<(), GrantError> {
    code_with(issuer, code, "v").await
}

async fn code_with(issuer: &Issuer, code: &str, verifier: &str) -> Result<(), GrantError> {
    let (code, verifier) = (Secret::from(code), Secret::from(verifier));
    let redirect_uri = "https://a.example/cb";
    let grant = Grant::Code { code: &code, redirect_uri, verifier: &verifier, resource: None };
    issuer.grant(grant, &client()).await.map(|_| ())
}

async fn refresh(issuer: &Issuer, token: &str) -> Result<(), GrantError> {
    let refresh_token = Secret::from(token);
    let grant = Grant::Refresh { refresh_token: &refresh_token, resource: None };
    issuer.grant(grant, &client()).await.map(|_| ())
}

async fn introspect(
    issuer: &Issuer,
    token: &str,
) -> Result<IntrospectionResponse, crate::issuer::Unavailable> {
    issuer.introspect(&Secret::from(token), AcceptedFormat::Json).await
}

fn client() -> Client {
    Client { id: "web".into(), auth: ClientAuth::Post("s3cret".into()) }
}

fn issuer(settings: Settings) -> Issuer {
    let settings = Settings { client: Some(client()), ..settings };
    let (clock, metrics) =
        (Clock::manual(Timestamp::from_secs(1_700_000_000)), Metrics::new(&[1.0]));
    Issuer::new(settings, clock, &metrics, Handle::current()).unwrap()
}
