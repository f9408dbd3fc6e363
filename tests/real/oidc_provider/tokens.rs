//! Tokens of a server that shares no code with us.

use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};

use super::super::support::eventually;
use super::{World, base64url};

#[tokio::test]
async fn fifty_requests_with_one_token_cost_one_introspection() {
    let Some(world) = World::start("introspection", &[]).await else { return };
    let token = world.machine_token("https://api.test/opaque").await;

    let answers = join_all((0..50).map(|_| world.bearer("/opaque", &token))).await;

    assert!(answers.iter().all(|answer| answer.status() == StatusCode::OK));
    assert_eq!(world.provider.count("/token/introspection").await, 1);
}

#[tokio::test]
async fn a_signed_and_an_opaque_token_reach_the_upstream() {
    let Some(world) = World::start("tokens", &[]).await else { return };

    for (path, resource) in [
        ("/jwt", "https://api.test/jwt"),
        ("/jwt", "https://api.test/es256"),
        ("/opaque", "https://api.test/opaque"),
    ] {
        let token = world.machine_token(resource).await;
        let answer = world.bearer(path, &token).await;
        assert_eq!(answer.status(), StatusCode::OK, "{resource}");
        let seen: Value = answer.json().await.expect("JSON");
        assert_eq!(seen["headers"]["x-auth-client"], "machine", "{resource}");
        assert_eq!(seen["headers"]["authorization"], format!("Bearer {token}"), "{resource}");
    }
}

#[tokio::test]
async fn a_token_for_another_audience_is_refused() {
    let Some(world) = World::start("audience", &[]).await else { return };

    let narrow =
        world.bearer("/jwt-only", &world.machine_token("https://api.test/es256").await).await;
    let spoiled = world.machine_token("https://api.test/jwt").await.replace('.', ".e");
    let spoiled = world.bearer("/jwt", &spoiled).await;
    let unknown = world.bearer("/opaque", "no-such-token").await;

    for answer in [narrow, spoiled, unknown] {
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        let challenge = answer.headers()["www-authenticate"].to_str().expect("text").to_owned();
        assert!(challenge.contains(r#"error="invalid_token""#), "{challenge}");
    }
}

#[tokio::test]
async fn a_revoked_token_ends_within_the_caches_bound() {
    let Some(world) = World::start("revocation", &[]).await else { return };
    let token = world.machine_token("https://api.test/opaque").await;
    assert_eq!(world.bearer("/opaque", &token).await.status(), StatusCode::OK);

    world.provider.post("/token/revocation", "machine", &[("token", &token)]).await;

    eventually(Duration::from_secs(5), async || {
        match world.bearer("/opaque", &token).await.status() {
            StatusCode::UNAUTHORIZED => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
}

#[tokio::test]
async fn a_key_rotation_causes_no_401() {
    let Some(mut world) = World::start("key rotation", &[]).await else { return };
    let old = world.machine_token("https://api.test/jwt").await;
    assert_eq!(world.bearer("/jwt", &old).await.status(), StatusCode::OK);

    // The server makes new keys at every start.
    world.provider.restart();
    let new = world.machine_token("https://api.test/jwt").await;

    assert_eq!(world.bearer("/jwt", &new).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_flood_of_unknown_keys_causes_one_fetch() {
    let Some(world) = World::start("unknown keys", &[]).await else { return };
    let token = world.machine_token("https://api.test/jwt").await;
    assert_eq!(world.bearer("/jwt", &token).await.status(), StatusCode::OK);
    let before = world.provider.count("/jwks").await;
    let (_, rest) = token.split_once('.').expect("a JWT");

    let forged = (0..50).map(|number| {
        let header = json!({ "alg": "RS256", "typ": "at+jwt", "kid": format!("forged-{number}") });
        let token = format!("{}.{rest}", base64url(&header.to_string()));
        let world = &world;
        async move { world.bearer("/jwt", &token).await.status() }
    });
    let answers = join_all(forged).await;

    assert!(answers.iter().all(|status| *status == StatusCode::UNAUTHORIZED), "{answers:?}");
    let fetched = world.provider.count("/jwks").await - before;
    assert!(fetched <= 1, "{fetched} fetches");
}

#[tokio::test]
async fn an_unavailable_server_causes_503_and_cached_tokens_serve() {
    let Some(mut world) = World::start("absence", &[]).await else { return };
    let (jwt, opaque) = (
        world.machine_token("https://api.test/jwt").await,
        world.machine_token("https://api.test/opaque").await,
    );
    let never_seen = world.machine_token("https://api.test/opaque").await;
    assert_eq!(world.bearer("/jwt", &jwt).await.status(), StatusCode::OK);
    assert_eq!(world.bearer("/cached", &opaque).await.status(), StatusCode::OK);

    world.provider.stop();

    assert_eq!(world.bearer("/jwt", &jwt).await.status(), StatusCode::OK);
    assert_eq!(world.bearer("/cached", &opaque).await.status(), StatusCode::OK);
    let answer = world.bearer("/cached", &never_seen).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers().contains_key("retry-after"));
}

#[tokio::test]
async fn basic_credentials_become_a_token_once() {
    let Some(world) = World::start("Basic", &[]).await else { return };
    let asked = world.provider.count("/token").await;

    let with = |password| world.http.get(world.at("/basic")).basic_auth("alice", Some(password));
    let answers = join_all((0..20).map(|_| with("wonderland").send())).await;
    let wrong = with("wonderlamp").send().await.expect("an answer");

    for answer in answers {
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
        let seen: Value = answer.json().await.expect("JSON");
        let bearer = seen["headers"]["authorization"].as_str().expect("a token");
        assert!(bearer.starts_with("Bearer ey"), "the service sees no token");
        assert_eq!(seen["headers"]["x-auth-subject"], "alice");
    }
    assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(world.provider.count("/token").await - asked, 2);
}
