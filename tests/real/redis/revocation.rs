//! Revocation: a token or session that ends at one instance ends at all instances that share its Redis.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use northgate::dev::issuer::Mint;
use reqwest::Response;
use serde_json::Value;

use super::super::gateway::Gateway;
use super::super::support::eventually;
use super::{Fleet, Redis, SEALED, SERVER, cookies_of};

#[tokio::test]
async fn a_logout_at_one_instance_ends_cookie_and_token_at_the_other() {
    for tokens in [SEALED, SERVER] {
        let Some(fleet) = Fleet::with_tokens_of(LONG, "logout", tokens).await else { return };
        let cookie = fleet.log_in(0).await;
        let seen: Value = fleet.get(1, "/app", &cookie).await.json().await.expect("JSON");
        let bearer = seen["headers"]["authorization"].as_str().expect("a token").to_owned();
        let token = bearer.strip_prefix("Bearer ").expect("a bearer token");
        assert_eq!(fleet.with_token(1, "/api", token).await.status(), StatusCode::OK);

        assert_eq!(fleet.post(0, "/auth/logout", &cookie).await.status(), StatusCode::OK);

        fleet.refuses_soon(async || fleet.get(1, "/app", &cookie).await).await;
        fleet.refuses_soon(async || fleet.with_token(1, "/api", token).await).await;
        // Redis holds nothing that would open a session.
        let held = fleet.redis.everything();
        assert!(held.contains("fleet:revoked") && !held.contains(token), "{held}");
    }
}

#[tokio::test]
async fn an_operators_revocation_applies_to_all_instances_and_their_streams() {
    let Some(fleet) = Fleet::start("operator", SEALED).await else { return };
    for by in ["jti", "sid", "token", "sub"] {
        let (token, other) = (fleet.alices_token(by), fleet.bobs_token());
        let mut stream = fleet.with_token(1, "/feed", &token).await;
        let mut others = fleet.with_token(1, "/feed", &other).await;
        for stream in [&mut stream, &mut others] {
            assert!(stream.chunk().await.is_ok_and(|tick| tick.is_some()), "{by}");
        }
        let named = if by == "token" { token.clone() } else { claim(&token, by) };

        fleet.revoke(0, by, &named).await;

        fleet.refuses_soon(async || fleet.with_token(1, "/api", &token).await).await;
        eventually(SOON, async || match stream.chunk().await {
            Err(_) => Ok(()),
            Ok(_) => Err(format!("the stream of what was revoked by {by} goes on")),
        })
        .await;
        assert!(others.chunk().await.is_ok_and(|tick| tick.is_some()), "{by}");
        assert_eq!(fleet.with_token(1, "/api", &other).await.status(), StatusCode::OK, "{by}");
    }
    assert!(fleet.gateways[1].log().contains("token-revoked"));
}

#[tokio::test]
async fn a_back_channel_logout_at_one_instance_ends_the_session_at_the_other() {
    for tokens in [SEALED, SERVER] {
        let Some(fleet) = Fleet::with_tokens_of(LONG, "back channel", tokens).await else { return };
        let (cookie, other) = (fleet.log_in(0).await, fleet.log_in(0).await);
        let seen: Value = fleet.get(1, "/app", &cookie).await.json().await.expect("JSON");
        let token = seen["headers"]["authorization"].as_str().expect("a token").to_owned();
        let mut stream = fleet.get(1, "/events", &cookie).await;
        let told = fleet.issuer.logout_token("gateway-web", &claim(&token, "sid"), "alice");

        let url = format!("{}/auth/back-channel", fleet.gateways[0].url);
        let form = [("logout_token", told.expect("a logout token"))];
        let heeded = fleet.http.post(url).form(&form).send().await.expect("an answer");

        assert_eq!(heeded.status(), StatusCode::OK, "{tokens}");
        fleet.refuses_soon(async || fleet.get(1, "/app", &cookie).await).await;
        eventually(SOON, async || match stream.chunk().await {
            Err(_) => Ok(()),
            Ok(_) => Err("the stream goes on".to_owned()),
        })
        .await;
        assert_eq!(fleet.get(1, "/app", &other).await.status(), StatusCode::OK, "{tokens}");
    }
}

#[tokio::test]
async fn a_sid_of_one_session_is_known_to_another_session_of_the_client_at_another_instance() {
    let Some(mut fleet) = Fleet::with_tokens_of(LONG, "sid", SEALED).await else { return };
    let text = fleet.text.replace("  web:\n", "  shop:\n").replace("session: web", "session: shop");
    let text = text.replace("[BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=]", OTHER_KEY);
    fleet.gateways[1] = Gateway::start(&text).await;
    fleet.is_there_again().await;
    let cookie = fleet.log_in(0).await;
    let seen: Value = fleet.get(0, "/app", &cookie).await.json().await.expect("JSON");
    let token = seen["headers"]["authorization"].as_str().expect("a token").to_owned();
    // Without a subject the session is all that it names.
    let logout = fleet.issuer.logout_token("gateway-web", &claim(&token, "sid"), "");
    let form = [("logout_token", logout.expect("a logout token"))];

    let url = format!("{}/auth/back-channel", fleet.gateways[1].url);
    // The login is published behind its response.
    eventually(SOON, async || {
        let answer = fleet.http.post(&url).form(&form).send().await.expect("an answer");
        let status = answer.status();
        if status == StatusCode::OK {
            Ok(())
        } else {
            Err(format!("{status}: {:?}", answer.text().await))
        }
    })
    .await;

    fleet.refuses_soon(async || fleet.get(0, "/app", &cookie).await).await;
}

#[tokio::test]
async fn revocations_during_an_outage_of_redis_are_published_afterwards() {
    let Some(mut fleet) = Fleet::start("revocation and absence", SEALED).await else { return };
    let (before, during) = (fleet.alices_token("before"), fleet.alices_token("during"));
    fleet.revoke(0, "jti", "before").await;
    fleet.refuses_soon(async || fleet.with_token(1, "/api", &before).await).await;

    fleet.redis.stop();
    fleet.revoke(0, "jti", "during").await;
    fleet.revoke(0, "jti", "another").await;
    assert_eq!(fleet.with_token(1, "/api", &during).await.status(), StatusCode::OK);
    // Redis is empty after its restart.
    fleet.redis.start();

    eventually(Duration::from_secs(10), async || {
        match fleet.with_token(1, "/api", &during).await.status() {
            StatusCode::UNAUTHORIZED => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
    assert_eq!(fleet.gateways[0].log().matches("Could not publish a revocation").count(), 1);
    // A new instance knows all of them, from its first request on, and waits a little for that.
    let _: String = fleet.redis.ask(&["CLIENT", "PAUSE", "900"]);
    let late = Gateway::start(&fleet.text).await;
    for token in [&before, &during] {
        let answer = fleet.http.get(format!("{}/api", late.url)).bearer_auth(token).send().await;
        assert_eq!(answer.expect("an answer").status(), StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test]
async fn without_a_state_directory_nothing_ends_for_good_while_redis_is_silent() {
    let Some(mut fleet) = Fleet::with_tokens_of(LONG, "not lasting", SEALED).await else { return };
    let (cookie, token) = (fleet.log_in(0).await, fleet.bobs_token());
    fleet.redis.fall_silent();

    for _ in 0..2 {
        let logout = fleet.post(0, "/auth/logout", &cookie).await;
        assert_eq!(logout.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(cookies_of(&logout), "", "a second request has to find the session");
    }
    let done = fleet.revoke(0, "sub", &claim(&token, "sub")).await;
    assert!(done["lasts"].as_str().is_some_and(|lasts| lasts.contains("Redis")), "{done}");
    fleet.redis.speak_again();

    eventually(SOON, async || match fleet.post(0, "/auth/logout", &cookie).await.status() {
        StatusCode::OK => Ok(()),
        status => Err(status.to_string()),
    })
    .await;
    fleet.gateways[0].kill();
    fleet.refuses_soon(async || fleet.get(1, "/app", &cookie).await).await;
    fleet.refuses_soon(async || fleet.with_token(1, "/api", &token).await).await;
}

#[tokio::test]
async fn a_restart_preserves_logouts() {
    for tokens in [SEALED, SERVER] {
        let Some(mut fleet) = Fleet::with_tokens_of(LONG, "restart", tokens).await else { return };
        let cookie = fleet.log_in(0).await;
        assert_eq!(fleet.post(0, "/auth/logout", &cookie).await.status(), StatusCode::OK);
        fleet.refuses_soon(async || fleet.get(1, "/app", &cookie).await).await;

        for gateway in [0, 1] {
            fleet.gateways[gateway] = Gateway::start(&fleet.text).await;
        }

        for gateway in [0, 1] {
            let after = fleet.get(gateway, "/app", &cookie).await;
            assert_eq!(after.status(), StatusCode::UNAUTHORIZED, "{tokens}");
        }
    }
}

#[tokio::test]
async fn a_new_login_at_another_instance_is_not_ended_by_the_old_cookie() {
    let Some(fleet) = Fleet::with_tokens_of(LONG, "replaced", SEALED).await else { return };
    let old = fleet.log_in(0).await;
    let url = &fleet.gateways[0].url;
    let form = [("username", "alice"), ("password", "wonderland")];
    let login = fleet.http.post(format!("{url}/auth/login")).header("origin", url).form(&form);
    let login = login.header("cookie", &old).header("accept", "application/json");
    let new = super::cookies_of(&login.send().await.expect("an answer"));

    // The old session has ended there as well, and the browser's new cookie is not cleared.
    fleet.refuses_soon(async || fleet.get(1, "/app", &old).await).await;
    let straggler = fleet.get(1, "/app", &old).await;

    assert_eq!(super::cookies_of(&straggler), "");
    assert_eq!(fleet.get(1, "/app", &new).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn malformed_entries_in_redis_are_ignored() {
    let Some(fleet) = Fleet::start("nonsense", SEALED).await else { return };
    let stream = "northgate:fleet:revoked";
    for nonsense in [&["a", "b"][..], &["jti", "t1", "at", "yesterday"], &["jti", ""]] {
        let _: String = fleet.redis.ask(&[&["XADD", stream, "*"], nonsense].concat());
    }
    let ended = ["jti", "ended", "at", "1", "until", "2", "from", "elsewhere"];
    let _: String = fleet.redis.ask(&[&["XADD", stream, "*"][..], &ended].concat());
    // A malformed entry in the stream of refreshes.
    let _: String = fleet.redis.ask(&["SET", "northgate:fleet:renewed", "nonsense"]);
    let (token, is_ended) = (fleet.alices_token("t1"), fleet.alices_token("ended"));

    fleet.revoke(0, "jti", "t1").await;

    fleet.refuses_soon(async || fleet.with_token(1, "/api", &token).await).await;
    assert_eq!(fleet.with_token(1, "/api", &is_ended).await.status(), StatusCode::OK);
    assert_eq!(fleet.gateways[1].log().matches("Ignored a malformed entry").count(), 3);
    // Nothing counts as an absence of Redis.
    assert!(!fleet.gateways[1].log().contains("using local state only"));
}

#[tokio::test]
async fn a_stopping_instance_publishes_pending_revocations() {
    let Some(mut fleet) = Fleet::start("an end", SEALED).await else { return };
    let token = fleet.alices_token("t1");
    let _: String = fleet.redis.ask(&["CLIENT", "PAUSE", "300"]);

    fleet.revoke(0, "jti", "t1").await;
    fleet.gateways[0].terminate();

    fleet.refuses_soon(async || fleet.with_token(1, "/api", &token).await).await;
}

#[tokio::test]
async fn a_reload_stays_connected_to_the_other_instances() {
    let Some(fleet) = Fleet::start("reload", SEALED).await else { return };
    for gateway in &fleet.gateways {
        gateway.reload("", "").await;
    }
    let token = fleet.alices_token("t1");

    fleet.revoke(0, "jti", "t1").await;

    fleet.refuses_soon(async || fleet.with_token(1, "/api", &token).await).await;
    let told: Vec<redis::Value> = fleet.redis.ask(&["XRANGE", "northgate:fleet:revoked", "-", "+"]);
    assert_eq!(told.len(), 1, "it is told once");
}

#[tokio::test]
async fn another_redis_gets_all_active_revocations() {
    let Some(fleet) = Fleet::start("another Redis", SEALED).await else { return };
    let (before, after) = (fleet.alices_token("before"), fleet.alices_token("after"));
    fleet.revoke(0, "jti", "before").await;
    fleet.refuses_soon(async || fleet.with_token(1, "/api", &before).await).await;

    let other = Redis::begin("another Redis").expect("there was one before");
    for gateway in &fleet.gateways {
        gateway.reload(&fleet.redis.url(), &other.url()).await;
    }
    fleet.revoke(0, "jti", "after").await;

    eventually(Duration::from_secs(10), async || {
        match fleet.with_token(1, "/api", &after).await.status() {
            StatusCode::UNAUTHORIZED => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
    let told: Vec<String> = eventually(SOON, async || {
        let entries: Vec<(String, Vec<String>)> =
            other.ask(&["XRANGE", "northgate:fleet:revoked", "-", "+"]);
        let told: Vec<_> = entries.into_iter().map(|(_, fields)| fields[1].clone()).collect();
        let all = ["before", "after"].iter().all(|jti| told.iter().any(|told| told == jti));
        if all { Ok(told) } else { Err(format!("{told:?}")) }
    })
    .await;
    assert!(told.len() <= 4, "once by each gateway at the most: {told:?}");
}

#[tokio::test]
async fn a_full_redis_is_not_read_repeatedly_and_gets_revocations_when_it_has_room() {
    let Some(fleet) = Fleet::start("revocation and a full Redis", SEALED).await else { return };
    let token = fleet.alices_token("full");
    assert_eq!(fleet.with_token(1, "/api", &token).await.status(), StatusCode::OK);
    let _: String = fleet.redis.ask(&["CONFIG", "SET", "maxmemory", "1"]);

    fleet.revoke(0, "jti", "full").await;
    tokio::time::sleep(SOON).await;

    let stats: String = fleet.redis.ask(&["INFO", "commandstats"]);
    let appended = stats.lines().find(|line| line.starts_with("cmdstat_xadd:")).expect("tried");
    let (_, refused) = appended.trim().rsplit_once("rejected_calls=").expect("counted");
    let refused: u32 = refused.split(',').next().and_then(|n| n.parse().ok()).expect("a number");
    assert!((1..=2).contains(&refused), "{appended}");

    let _: String = fleet.redis.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    eventually(Duration::from_secs(5), async || {
        match fleet.with_token(1, "/api", &token).await.status() {
            StatusCode::UNAUTHORIZED => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
}

impl Fleet {
    /// A token of alice's for the API, valid for ten minutes.
    fn alices_token(&self, jti: &str) -> String {
        let mint = Mint::client("api").user("alice").lifetime(LONG).claim("jti", jti);
        self.issuer.mint(&mint).expect("a token")
    }

    fn bobs_token(&self) -> String {
        self.issuer.mint(&Mint::client("api").user("bob").lifetime(LONG)).expect("a token")
    }

    async fn with_token(&self, gateway: usize, path: &str, token: &str) -> Response {
        let url = format!("{}{path}", self.gateways[gateway].url);
        self.http.get(url).bearer_auth(token).send().await.expect("an answer")
    }

    /// Revokes through the admin listener of one instance.
    async fn revoke(&self, gateway: usize, by: &str, named: &str) -> Value {
        let url = format!("{}/-/revoke", self.gateways[gateway].admin);
        let answer = self.http.post(url).form(&[(by, named)]).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK, "{by}");
        answer.json().await.expect("JSON")
    }

    /// Waits until the response is 401, and stays so.
    async fn refuses_soon(&self, ask: impl AsyncFn() -> Response) {
        eventually(SOON, async || match ask().await.status() {
            StatusCode::UNAUTHORIZED => Ok(()),
            status => Err(status.to_string()),
        })
        .await;
        assert_eq!(ask().await.status(), StatusCode::UNAUTHORIZED);
    }
}

/// The claim of a signed token.
fn claim(token: &str, name: &str) -> String {
    let payload = token.split('.').nth(1).expect("a signed token");
    let payload = URL_SAFE_NO_PAD.decode(payload).expect("base64url");
    let claims: Value = serde_json::from_slice(&payload).expect("JSON");
    claims[name].as_str().expect("it says so").to_owned()
}

/// The time within which a revocation reaches all instances.
const SOON: Duration = Duration::from_secs(1);
/// Longer than any of these tests.
const LONG: Duration = Duration::from_secs(600);

/// The key of a session that opens no cookies of the others.
const OTHER_KEY: &str = "[CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg=]";
