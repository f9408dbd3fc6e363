//! Introspection responses of various servers.

use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::mock_issuer::{Answer, INTROSPECT, Server};
use crate::base::clock::{Clock, Timestamp};
use crate::issuer::{
    AcceptedFormat, Client, ClientAuth, IntrospectionResponse, Issuer, Settings, Unavailable,
};
use crate::observe::metrics::Metrics;

#[tokio::test]
async fn null_members_count_as_absent() {
    let server = Server::start().await;
    let says = json!({ "active": true, "sub": "alice", "aud": null, "exp": null, "x": [null] });
    server.says(INTROSPECT, Answer::json(says));
    let issuer = issuer(&server);

    let response = ask(&issuer, "t").await.unwrap();

    let expected_claims = json!({ "sub": "alice", "x": [null] });
    assert_eq!(
        response,
        IntrospectionResponse::Active(expected_claims.as_object().unwrap().clone())
    );
}

#[tokio::test]
async fn only_true_is_active_and_only_false_is_inactive() {
    let server = Server::start().await;
    let issuer = issuer(&server);

    server.says(INTROSPECT, Answer::json(json!({ "active": false, "sub": "alice" })));
    assert_eq!(ask(&issuer, "t").await, Ok(IntrospectionResponse::Inactive));
    for active in [json!("true"), json!(1), json!(null), json!({})] {
        server.says(INTROSPECT, Answer::json(json!({ "active": active })));
        assert!(ask(&issuer, "t").await.is_err(), "{active}");
    }
    for body in ["", "{}", "[]", "true", "<html>", r#"{"active":true,"active":false}"#] {
        let issuer = self::issuer(&server);
        server.says(INTROSPECT, Answer::text("application/json", body.into()));
        assert!(ask(&issuer, "t").await.is_err(), "{body}");
    }
}

#[tokio::test]
async fn dates_may_be_text_and_an_active_token_does_not_end_at_zero() {
    let server = Server::start().await;
    let issuer = issuer(&server);
    let expected =
        |claims: Value| Ok(IntrospectionResponse::Active(claims.as_object().unwrap().clone()));

    let says = json!({ "active": true, "sub": "alice", "exp": "1800000000", "iat": "0" });
    server.says(INTROSPECT, Answer::json(says));
    let claims = json!({ "sub": "alice", "exp": 1_800_000_000, "iat": 0 });
    assert_eq!(ask(&issuer, "t").await, expected(claims));
    server.says(INTROSPECT, Answer::json(json!({ "active": true, "exp": 0, "nbf": "soon" })));
    assert_eq!(ask(&issuer, "t").await, expected(json!({ "nbf": "soon" })));
}

#[tokio::test]
async fn a_server_that_refuses_the_client_is_known_until_it_no_longer_does() {
    let server = Server::start().await;
    for status in [401, 403, 404] {
        let issuer = issuer(&server);
        server.says(INTROSPECT, Answer::status(503));
        assert!(ask(&issuer, "t").await.is_err());
        assert!(!issuer.refuses_introspection(), "an outage");

        server.says(INTROSPECT, Answer::status(status));
        assert!(ask(&issuer, "u").await.is_err());
        assert!(issuer.refuses_introspection(), "{status}");

        server.says(INTROSPECT, Answer::json(json!({ "active": false })));
        ask(&issuer, "v").await.unwrap();
        assert!(!issuer.refuses_introspection(), "{status}");
    }
}

async fn ask(issuer: &Issuer, token: &str) -> Result<IntrospectionResponse, Unavailable> {
    issuer.introspect(&token.into(), AcceptedFormat::Json).await
}

fn issuer(server: &Server) -> Issuer {
    let client = Client { id: "gateway".into(), auth: ClientAuth::Basic("s3cret".into()) };
    let settings = Settings { client: Some(client), ..server.settings() };
    let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
    Issuer::new(settings, clock, &Metrics::new(&[1.0]), Handle::current()).unwrap()
}
