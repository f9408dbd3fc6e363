//! Tests of the JWK set cache, with an issuer that rotates, fails, stalls and lies.

use core::time::Duration;
use std::sync::Arc;

use futures_util::future::join_all;
use serde_json::json;
use tokio::runtime::Handle;

use super::super::*;
use super::mock_issuer::{
    Answer, INTROSPECT, JWKS, METADATA, REVOKE, Server, TOKEN, eventually, signing_key,
};
use crate::base::clock::Timestamp;
use crate::base::strict_json;

#[tokio::test]
async fn metadata_and_keys_are_discovered() {
    let server = Server::start().await;
    server.publishes(&[&signing_key("a")]);

    let issuer = issuer(server.settings());
    assert!(!issuer.has_responded());
    arrived(&issuer).await;

    assert!(issuer.has_responded());
    assert!(issuer.keys().unwrap().knows(Some("a")));
    assert_eq!(issuer.metadata().endpoints.token, Some(server.at("/token")));
}

#[tokio::test]
async fn metadata_may_begin_with_a_byte_order_mark() {
    let server = Server::start().await;
    let body = format!("\u{feff}{}", server.metadata());
    server.says(METADATA, Answer::text("application/json", body));

    let issuer = issuer(server.settings());
    arrived(&issuer).await;

    assert_eq!(issuer.metadata().endpoints.token, Some(server.at("/token")));
}

#[tokio::test]
async fn a_client_assertion_is_addressed_as_the_server_demands() {
    let server = Server::start().await;
    let client = Client {
        id: "web".into(),
        auth: ClientAuth::SecretJwt("a secret of more than thirty-two bytes".into()),
    };
    let (token, revoke) = (server.at(TOKEN).to_string(), server.at(REVOKE).to_string());
    let introspect = server.at(INTROSPECT).to_string();
    for (assertion_audience, expected) in [
        (AssertionAudience::Issuer, [&server.url; 3]),
        (AssertionAudience::TokenEndpoint, [&token; 3]),
        (AssertionAudience::Endpoint, [&token, &revoke, &introspect]),
    ] {
        let settings =
            Settings { assertion_audience, client: Some(client.clone()), ..server.settings() };
        let issuer = issuer(settings);
        arrived(&issuer).await;

        let secret = Secret::from("r");
        let grant = Grant::Refresh { refresh_token: &secret, resource: None };
        let _ = issuer.grant(grant, &client).await;
        let _ = issuer.revoke(&secret, TokenHint::RefreshToken, &client).await;
        let _ = issuer.introspect(&secret, AcceptedFormat::Json).await;

        for (path, expected) in [TOKEN, REVOKE, INTROSPECT].into_iter().zip(expected) {
            let assertion = server.last(path).field("client_assertion").unwrap();
            let claims = assertion.split('.').nth(1).unwrap();
            let claims = strict_json::base64url(claims).unwrap();
            let claims = strict_json::parse_object(&claims).unwrap();
            assert_eq!(claims["aud"], **expected, "{path} {assertion_audience:?}");
        }
    }
}

#[tokio::test]
async fn openid_discovery_is_the_fallback() {
    let server = Server::start().await;
    server.says(METADATA, Answer::status(404));
    server.says("/.well-known/openid-configuration", Answer::json(server.metadata()));

    let issuer = issuer(server.settings());
    arrived(&issuer).await;

    assert_eq!(server.count(METADATA), 1);
}

#[tokio::test]
async fn members_missing_in_one_document_come_from_the_other() {
    let server = Server::start().await;
    let openid = json!({
        "issuer": server.url, "token_endpoint": server.at("/another").as_str(),
        "end_session_endpoint": server.at("/end").as_str(), "backchannel_logout_supported": true,
    });
    server.says("/.well-known/openid-configuration", Answer::json(openid));

    let issuer = issuer(server.settings());
    arrived(&issuer).await;

    let metadata = issuer.metadata();
    assert_eq!(metadata.endpoints.end_session, Some(server.at("/end")));
    assert_eq!(metadata.endpoints.token, Some(server.at("/token")), "the first word counts");
    assert!(metadata.supports_backchannel_logout);
}

#[tokio::test]
async fn members_of_a_temporarily_unavailable_document_stay_known() {
    let server = Server::start().await;
    server.publishes(&[&signing_key("a")]);
    let openid = json!({
        "issuer": server.url, "end_session_endpoint": server.at("/end").as_str(),
        "authorization_response_iss_parameter_supported": true,
    });
    server.says("/.well-known/openid-configuration", Answer::json(openid));
    let issuer = issuer(server.settings());
    arrived(&issuer).await;

    server.says("/.well-known/openid-configuration", Answer::status(503));
    clock_of(&issuer).advance(Duration::from_secs(60 * 60));
    let _ = issuer.keys_for(Some("new"), &[]).await;

    assert_eq!(server.count("/.well-known/openid-configuration"), 2);
    let metadata = issuer.metadata();
    assert_eq!(metadata.endpoints.end_session, Some(server.at("/end")));
    assert!(metadata.sends_iss, "a mix-up would pass meanwhile");
}

#[tokio::test]
async fn a_document_unavailable_at_startup_is_tried_again_soon() {
    let server = Server::start().await;
    server.publishes(&[&signing_key("a")]);
    server.says("/.well-known/openid-configuration", Answer::status(503));
    let issuer = issuer(server.settings());
    arrived(&issuer).await;
    assert_eq!(issuer.metadata().endpoints.end_session, None);

    let openid =
        json!({ "issuer": server.url, "end_session_endpoint": server.at("/end").as_str() });
    server.says("/.well-known/openid-configuration", Answer::json(openid));
    clock_of(&issuer).advance(Duration::from_secs(60));
    let _ = issuer.keys_for(Some("new"), &[]).await;

    assert_eq!(issuer.metadata().endpoints.end_session, Some(server.at("/end")));
}

#[tokio::test]
async fn a_document_of_another_issuer_adds_nothing() {
    let server = Server::start().await;
    let other = json!({ "issuer": "https://evil.example", "end_session_endpoint": server.at("/end").as_str() });
    server.says("/.well-known/openid-configuration", Answer::json(other));

    let issuer = issuer(server.settings());
    arrived(&issuer).await;

    assert_eq!(issuer.metadata().endpoints.end_session, None);
}

#[tokio::test]
async fn a_rotation_is_noticed_with_the_first_token_of_the_new_key() {
    let server = Server::start().await;
    let (old, new) = (signing_key("old"), signing_key("new"));
    server.publishes(&[&old]);
    let issuer = issuer(server.settings());
    arrived(&issuer).await;
    let before =
        Arc::clone(issuer.keys().unwrap().select(Some("old"), old.algorithm(), |_| true).unwrap());

    server.publishes(&[&old, &new]);
    let keys = issuer.keys_for(Some("new"), &[]).await.unwrap();

    assert!(keys.select(Some("new"), new.algorithm(), |_| true).is_ok());
    assert!(!before.is_retired(), "a key that stayed keeps its verdicts");

    clock_of(&issuer).advance(Duration::from_secs(30));
    server.publishes(&[&new]);
    issuer.keys_for(Some("newer"), &[]).await.unwrap();

    assert!(before.is_retired(), "a key that left takes its verdicts along");
}

#[tokio::test]
async fn a_successor_has_what_its_predecessor_fetched_from_the_same_url() {
    let server = Server::start().await;
    server.publishes(&[&signing_key("a")]);
    let before = Arc::new(issuer(server.settings()));
    arrived(&before).await;
    for path in [METADATA, JWKS] {
        server.says(path, Answer::status(503));
    }
    let after = |settings| {
        let (clock, metrics) = (clock_of(&before).clone(), Metrics::new(&[1.0]));
        let predecessors = [Arc::clone(&before)];
        Issuer::succeeding(&predecessors, settings, clock, &metrics, Handle::current()).unwrap()
    };

    let slower = after(Settings { timeout: Duration::from_secs(9), ..server.settings() });
    let mut elsewhere = server.settings();
    elsewhere.endpoints.jwks = Some(server.at("/other"));
    let elsewhere = after(elsewhere);
    let other = after(Settings { name: "other".into(), ..server.settings() });

    assert!(slower.has_responded() && slower.keys().unwrap().knows(Some("a")));
    assert_eq!(slower.metadata().endpoints.token, Some(server.at("/token")));
    assert!(elsewhere.keys().is_none() && !elsewhere.has_responded());
    assert!(other.keys().is_none());
}

#[tokio::test]
async fn fifty_tokens_with_one_new_key_cause_one_fetch_and_all_find_it() {
    let server = Server::start().await;
    let issuer = issuer(server.settings());
    arrived(&issuer).await;
    let new = signing_key("new");
    let jwks = json!({ "keys": [new.public_jwk()] });
    server.says(JWKS, Answer::json(jwks).after(Duration::from_millis(50)));

    let found = join_all((0..50).map(|_| issuer.keys_for(Some("new"), &[]))).await;

    assert!(found.iter().all(|keys| keys.as_ref().unwrap().knows(Some("new"))));
    assert_eq!(server.count(JWKS), 2);
}

#[tokio::test]
async fn a_flood_of_unknown_kids_causes_one_fetch_per_interval() {
    let server = Server::start().await;
    server.publishes(&[&signing_key("a")]);
    let issuer = issuer(server.settings());
    arrived(&issuer).await;

    for flood in 1..=3 {
        for kid in 0..100 {
            let keys = issuer.keys_for(Some(&format!("forged-{flood}-{kid}")), &[]).await.unwrap();
            assert!(keys.knows(Some("a")));
        }
        assert_eq!(server.count(JWKS), 1 + flood);
        clock_of(&issuer).advance(Duration::from_secs(29));
        issuer.keys_for(Some("too early"), &[]).await.unwrap();
        assert_eq!(server.count(JWKS), 1 + flood);
        clock_of(&issuer).advance(Duration::from_secs(1));
    }
}

#[tokio::test]
async fn an_old_token_without_kid_does_not_delay_the_key_of_a_new_one() {
    let server = Server::start().await;
    server.publishes(&[&signing_key("a")]);
    let issuer = issuer(server.settings());
    arrived(&issuer).await;
    for _ in 0..2 {
        issuer.keys_for(None, b"old").await.unwrap();
        clock_of(&issuer).advance(Duration::from_secs(30));
    }
    server.publishes(&[&signing_key("b")]);

    let same = issuer.keys_for(None, b"old").await.unwrap();
    let fetched = issuer.keys_for(None, b"new").await.unwrap();

    assert!(!same.knows(Some("b")), "the same token is worth a fetch later still");
    assert!(fetched.knows(Some("b")));
}

#[tokio::test]
async fn one_unknown_kid_does_not_cause_constant_fetching() {
    let server = Server::start().await;
    let issuer = issuer(server.settings());
    arrived(&issuer).await;

    for _ in 0..20 {
        issuer.keys_for(Some("forged"), &[]).await.unwrap();
        clock_of(&issuer).advance(Duration::from_secs(30));
    }

    // At 0, 30, 90, 210 and 450 seconds, and not every 30.
    assert_eq!(server.count(JWKS), 1 + 5);
}

#[tokio::test]
async fn old_keys_survive_an_outage_and_unknown_kids_are_unavailable_then() {
    let server = Server::start().await;
    server.publishes(&[&signing_key("a")]);
    let issuer = issuer(server.settings());
    arrived(&issuer).await;

    for answer in [
        Answer::status(500),
        Answer::text("text/html", "<html>down for maintenance</html>".into()),
        Answer::json(json!({ "keys": "none" })),
        Answer::text("application/json", String::new()),
    ] {
        server.says(JWKS, answer.clone());
        clock_of(&issuer).advance(Duration::from_secs(30));

        assert!(issuer.keys_for(Some("b"), &[]).await.is_err(), "{answer:?}");
        assert!(issuer.keys_for(Some("c"), &[]).await.is_err(), "still unknown");
        assert!(issuer.keys().unwrap().knows(Some("a")), "{answer:?}");
    }
}

#[tokio::test]
async fn a_set_without_a_usable_key_does_not_replace_a_good_one_at_once() {
    let server = Server::start().await;
    server.publishes(&[&signing_key("a")]);
    let issuer = issuer(server.settings());
    arrived(&issuer).await;
    let secret = json!({ "kty": "oct", "k": "AAAA" });

    for set in [json!({ "keys": [] }), json!({ "keys": [secret, null] }), json!({ "keys": [] })] {
        server.says(JWKS, Answer::json(set.clone()));
        clock_of(&issuer).advance(Duration::from_secs(30));

        assert!(
            issuer.keys_for(Some("b"), &[]).await.is_err(),
            "{set}: it is not known whether b exists"
        );
        assert!(issuer.keys().unwrap().knows(Some("a")), "{set}");
    }
    // After as long as a set is fresh the issuer means it.
    clock_of(&issuer).advance(Duration::from_secs(600));
    assert!(issuer.keys_for(Some("b"), &[]).await.is_ok());
    assert!(issuer.keys().unwrap().is_empty());
}

#[tokio::test]
async fn a_good_set_between_two_useless_ones_begins_the_wait_anew() {
    let server = Server::start().await;
    let key = signing_key("a");
    server.publishes(&[&key]);
    let issuer = issuer(server.settings());
    arrived(&issuer).await;
    let empty = json!({ "keys": [] });

    for _ in 0..3 {
        server.says(JWKS, Answer::json(empty.clone()));
        clock_of(&issuer).advance(Duration::from_secs(500));
        assert!(issuer.keys_for(Some("b"), &[]).await.is_err());
        server.publishes(&[&key]);
        clock_of(&issuer).advance(Duration::from_secs(30));
        assert!(issuer.keys_for(Some("b"), &[]).await.is_ok());
        assert!(issuer.keys().unwrap().knows(Some("a")));
    }
}

#[tokio::test]
async fn a_failed_attempt_is_repeated_soon() {
    let server = Server::start().await;
    server.says(JWKS, Answer::status(503));
    let issuer = issuer(server.settings());
    eventually("the first attempt", || server.count(JWKS) == 1).await;
    let failed = eventually_unavailable(&issuer).await;
    assert_eq!(failed.retry_after, 1);

    server.publishes(&[&signing_key("a")]);
    clock_of(&issuer).advance(Duration::from_secs(1));
    issuer.inner.provider_cache.refresh_now();
    arrived(&issuer).await;

    assert!(issuer.keys_for(Some("a"), &[]).await.is_ok());
}

#[tokio::test]
async fn keys_are_refreshed_before_they_are_stale() {
    let server = Server::start().await;
    let (old, new) = (signing_key("old"), signing_key("new"));
    server.publishes(&[&old]);
    let issuer = issuer(server.settings());
    arrived(&issuer).await;
    server.publishes(&[&new]);

    clock_of(&issuer).advance(Duration::from_secs(479));
    issuer.inner.provider_cache.refresh_now();
    tokio::task::yield_now().await;
    assert_eq!(server.count(JWKS), 1);
    clock_of(&issuer).advance(Duration::from_secs(1));
    issuer.inner.provider_cache.refresh_now();

    eventually("the renewal", || issuer.keys().unwrap().knows(Some("new"))).await;
}

#[tokio::test]
async fn the_first_requests_wait_for_the_first_keys_and_no_longer_than_one_call() {
    let server = Server::start().await;
    let key = signing_key("a");
    let jwks = json!({ "keys": [key.public_jwk()] });
    server.says(JWKS, Answer::json(jwks).after(Duration::from_millis(50)));
    let issuer = issuer(server.settings());

    let (first, second) =
        tokio::join!(issuer.keys_for(Some("a"), &[]), issuer.keys_for(Some("a"), &[]));

    assert!(first.unwrap().knows(Some("a")) && second.unwrap().knows(Some("a")));
    assert_eq!(server.count(JWKS), 1);
}

#[tokio::test]
async fn a_stalling_issuer_costs_one_timeout_and_then_nothing() {
    let server = Server::start().await;
    server.says(METADATA, Answer::status(200).after(Duration::from_secs(60)));
    let settings = Settings { timeout: Duration::from_millis(50), ..server.settings() };
    let issuer = issuer(settings);

    assert!(issuer.keys_for(Some("a"), &[]).await.is_err());
    eventually("the attempt to end", || server.count("/.well-known/openid-configuration") == 1)
        .await;
    eventually_unavailable(&issuer).await;

    let before = server.count(METADATA);
    for _ in 0..100 {
        assert!(issuer.keys_for(Some("a"), &[]).await.is_err());
    }
    assert_eq!(server.count(METADATA), before);
}

#[tokio::test]
async fn metadata_of_another_issuer_is_refused() {
    let server = Server::start().await;
    let mut lie = server.metadata();
    lie["issuer"] = "https://evil.example.com".into();
    server.says(METADATA, Answer::json(lie));

    let issuer = issuer(server.settings());
    eventually("the attempt", || server.count("/.well-known/openid-configuration") == 1).await;

    assert!(issuer.keys_for(Some("a"), &[]).await.is_err());
    assert_eq!(server.count(JWKS), 0, "nor are its keys fetched");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let server = Server::start().await;
    let elsewhere = Server::start().await;
    elsewhere.publishes(&[&signing_key("evil")]);
    let to = elsewhere.at(JWKS);
    server.says(JWKS, Answer::status(302).with("location", to.as_str()));

    let issuer = issuer(server.settings());
    eventually("the attempt", || server.count(JWKS) == 1).await;

    assert!(issuer.keys_for(Some("evil"), &[]).await.is_err());
    assert_eq!(elsewhere.count(JWKS), 0);
}

#[tokio::test]
async fn an_endless_response_is_cut_off() {
    let server = Server::start().await;
    let keys = format!(r#"{{"keys":[],"more":"{}"}}"#, "x".repeat(2 << 20));
    server.says(JWKS, Answer::text("application/json", keys));

    let issuer = issuer(server.settings());
    eventually("the attempt", || server.count(JWKS) == 1).await;

    assert!(issuer.keys_for(Some("a"), &[]).await.is_err());
}

#[tokio::test]
async fn configured_keys_need_no_issuer() {
    let key = signing_key("a");
    let jwks = json!({ "keys": [key.public_jwk()] }).to_string();
    let settings = Settings {
        discovery: Discovery::Off,
        jwks: Some(jwks.into()),
        ..Settings::new("main", "https://auth.example.com")
    };

    let issuer = issuer(settings);

    assert!(issuer.has_responded());
    assert!(issuer.keys().unwrap().knows(Some("a")));
    assert!(!issuer.keys_for(Some("b"), &[]).await.unwrap().knows(Some("b")));
}

#[tokio::test]
async fn saved_keys_are_used_until_the_issuer_is_available() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start().await;
    server.publishes(&[&signing_key("a")]);
    let settings = Settings { state_dir: Some(directory.path().into()), ..server.settings() };
    let first = issuer(settings.clone());
    arrived(&first).await;
    let saved = directory.path().join("keys-main.json");
    eventually("the keys to be on disk", || saved.exists()).await;
    drop((first, server));

    let second = issuer(settings);

    assert!(second.keys().unwrap().knows(Some("a")));
    assert!(!second.has_responded(), "they are no answer");
}

#[tokio::test]
async fn a_configured_jwks_url_does_not_depend_on_discovery() {
    let server = Server::start().await;
    server.says(METADATA, Answer::status(500));
    server.publishes(&[&signing_key("a")]);
    let mut settings = server.settings();
    settings.endpoints.jwks = Some(server.at(JWKS));

    let issuer = issuer(settings);
    arrived(&issuer).await;

    let keys = issuer.keys_for(Some("forged"), &[]).await.expect("this issuer is well");
    assert!(keys.knows(Some("a")) && !keys.knows(Some("forged")));
}

#[tokio::test]
async fn dropping_the_issuer_stops_fetching() {
    let server = Server::start().await;
    let issuer = issuer(server.settings());
    arrived(&issuer).await;
    let provider_cache = Arc::downgrade(&issuer.inner.provider_cache);

    drop(issuer);

    eventually("the background to end", || provider_cache.strong_count() == 0).await;
}

fn issuer(settings: Settings) -> Issuer {
    let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
    Issuer::new(settings, clock, &Metrics::new(&[1.0]), Handle::current()).unwrap()
}

fn clock_of(issuer: &Issuer) -> &Clock {
    issuer.inner.provider_cache.clock()
}

async fn arrived(issuer: &Issuer) {
    eventually("the keys", || issuer.keys().is_some()).await;
}

async fn eventually_unavailable(issuer: &Issuer) -> Unavailable {
    loop {
        if let Err(unavailable) = issuer.keys_for(Some("a"), &[]).await {
            return unavailable;
        }
    }
}
