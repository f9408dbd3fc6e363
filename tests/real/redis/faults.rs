//! Redis silent, unreachable, full, a replica or emptied, and instances that end: no session and no logout is
//! lost. The issuer ends a whole family if a refresh token is reused.

use std::time::Duration;

use crate::fault_injection::{Endpoint, Fault};
use futures_util::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use super::super::gateway::Gateway;
use super::super::support::eventually;
use super::{Fleet, PLAIN, SEALED, SERVER, cookies_of};

#[tokio::test]
async fn while_redis_is_silent_a_valid_token_is_served_and_none_is_redeemed() {
    // Due after half of its lifetime.
    let life = Duration::from_secs(9);
    for (tokens, silence) in [(SEALED, 600), (SERVER, 600), (SEALED, 2_500)] {
        let Some(fleet) = Fleet::with_tokens_of(life, "silence", tokens).await else { return };
        let cookie = fleet.log_in(0).await;
        assert_eq!(fleet.get(1, "/app", &cookie).await.status(), StatusCode::OK);
        sleep(life * 5 / 9).await;
        let redeemed = fleet.issuer.count(Endpoint::Token);

        fleet.redis.fall_silent();
        let end = Instant::now() + Duration::from_millis(silence);
        while Instant::now() < end {
            for answer in join_all((0..10).map(|n| fleet.get(n % 2, "/app", &cookie))).await {
                assert_eq!(answer.status(), StatusCode::OK, "{tokens}");
            }
        }
        assert_eq!(fleet.issuer.count(Endpoint::Token), redeemed, "{tokens}");
        fleet.redis.speak_again();

        // It is redeemed once after its expiry, and valid at both.
        sleep(life).await;
        let crowd = join_all((0..20).map(|n| fleet.get(n % 2, "/app", &cookie))).await;
        assert!(crowd.iter().all(|answer| answer.status() == StatusCode::OK), "{tokens}");
        assert_eq!(fleet.issuer.count(Endpoint::Token), redeemed + 1, "{tokens}");
    }
}

#[tokio::test]
async fn a_silence_of_redis_across_an_expiry_causes_one_refresh() {
    for tokens in [SEALED, SERVER] {
        let Some(fleet) = Fleet::start("silence at an end", tokens).await else { return };
        let cookie = fleet.log_in(0).await;
        assert_eq!(fleet.get(1, "/app", &cookie).await.status(), StatusCode::OK);
        fleet.let_the_token_expire().await;
        let redeemed = fleet.issuer.count(Endpoint::Token);

        fleet.redis.fall_silent();
        let crowd = async { join_all((0..20).map(|n| fleet.get(n % 2, "/app", &cookie))).await };
        let silence = async {
            sleep(Duration::from_millis(900)).await;
            fleet.redis.speak_again();
        };
        let (crowd, ()) = tokio::join!(crowd, silence);

        for answer in &crowd {
            assert_eq!(answer.status(), StatusCode::OK, "{tokens}");
        }
        assert_eq!(fleet.issuer.count(Endpoint::Token), redeemed + 1, "{tokens}");
    }
}

#[tokio::test]
async fn without_redis_an_expired_token_is_redeemed_only_at_its_home_and_published_later() {
    // Longer than any lock.
    let life = Duration::from_secs(4);
    for tokens in [SEALED, SERVER] {
        let Some(mut fleet) = Fleet::with_tokens_of(life, "alone", tokens).await else { return };
        let old = fleet.log_in(0).await;
        assert_eq!(fleet.get(1, "/app", &old).await.status(), StatusCode::OK);
        fleet.redis.stop();
        fleet.let_the_token_expire().await;
        let redeemed = fleet.issuer.count(Endpoint::Token);

        let crowd = join_all((0..20).map(|n| fleet.get(n % 2, "/app", &old))).await;

        for (n, answer) in crowd.iter().enumerate() {
            let status = if n % 2 == 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            assert_eq!(answer.status(), status, "{tokens} at {}", n % 2);
            assert_eq!(cookies_of(answer).is_empty(), n % 2 == 1 || tokens == SERVER);
        }
        assert_eq!(fleet.issuer.count(Endpoint::Token), redeemed + 1, "{tokens}");

        // Redis is empty after its restart, and the old cookie goes to the other instance: that is no theft.
        fleet.redis.start();
        fleet.is_there_again().await;
        let late = fleet.get(1, "/app", &old).await;
        assert_eq!(late.status(), StatusCode::OK, "{tokens}");
        assert_eq!(cookies_of(&late), cookies_of(&crowd[0]), "{tokens}");
        assert_eq!(fleet.issuer.count(Endpoint::Token), redeemed + 1, "{tokens}");
    }
}

#[tokio::test]
async fn a_recovered_redis_is_noticed_within_tens_of_milliseconds() {
    let Some(fleet) = Fleet::with_tokens_of(LONG, "notice", SERVER).await else { return };
    let cookie = fleet.log_in(0).await;
    fleet.redis.fall_silent();
    eventually(Duration::from_secs(5), async || {
        let log = fleet.gateways[1].log();
        log.contains("using local state only").then_some(()).ok_or("it is not noticed".to_owned())
    })
    .await;
    let unknown = fleet.get(1, "/app", &cookie).await;
    assert_eq!(unknown.status(), StatusCode::SERVICE_UNAVAILABLE);

    fleet.redis.speak_again();
    let began = Instant::now();
    while fleet.get(1, "/app", &cookie).await.status() != StatusCode::OK {
        assert!(began.elapsed() < Duration::from_millis(600), "{:?}", began.elapsed());
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_logout_of_an_unknown_session_is_pending_while_redis_is_unreachable() {
    let Some(fleet) = Fleet::with_tokens_of(LONG, "unseen logout", SERVER).await else { return };
    let cookie = fleet.log_in(0).await;
    let revoked = fleet.issuer.count(Endpoint::Revocation);
    fleet.redis.fall_silent();

    for _ in 0..2 {
        let logout = fleet.post(1, "/auth/logout", &cookie).await;
        assert_eq!(logout.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(cookies_of(&logout), "", "it is not over");
    }
    assert_eq!(fleet.get(0, "/app", &cookie).await.status(), StatusCode::OK);

    fleet.redis.speak_again();
    for gateway in [0, 1] {
        is_over(&fleet, gateway, &cookie).await;
    }
    fleet.issuer.wait_for_calls(Endpoint::Revocation, revoked + 2).await;
    assert_eq!(fleet.post(1, "/auth/logout", &cookie).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn logouts_of_made_up_sessions_are_few_while_redis_is_unreachable() {
    let Some(fleet) = Fleet::with_tokens_of(LONG, "made up", SERVER).await else { return };
    let cookie = fleet.log_in(0).await;
    let (name, _) = cookie.split_once('=').expect("a cookie");
    fleet.redis.fall_silent();

    let made_up: Vec<_> = (0..60).map(|n| format!("{name}=AAAAAAAAAAAAAAAAAAA{n:02}A")).collect();
    let logouts = made_up.iter().map(async |cookie| {
        let logout = fleet.post(1, "/auth/logout", cookie).await;
        assert_eq!(logout.status(), StatusCode::SERVICE_UNAVAILABLE);
        logout.json::<Value>().await.expect("JSON")["pending"] == json!(true)
    });

    let pending = join_all(logouts).await.into_iter().filter(|is_pending| *is_pending).count();
    assert_eq!(pending, 50);
}

#[tokio::test]
async fn a_logout_whose_client_leaves_while_redis_is_silent_revokes_all_the_same() {
    let Some(fleet) = Fleet::with_tokens_of(LONG, "left logout", SEALED).await else { return };
    let cookie = fleet.log_in(0).await;
    assert_eq!(fleet.get(0, "/app", &cookie).await.status(), StatusCode::OK);
    let revoked = fleet.issuer.count(Endpoint::Revocation);
    fleet.redis.fall_silent();

    let ended = is_over(&fleet, 0, &cookie);
    tokio::select! {
        _ = fleet.post(0, "/auth/logout", &cookie) => {}
        // The client closes its connection.
        () = ended => {}
    }

    fleet.redis.speak_again();
    fleet.issuer.wait_for_calls(Endpoint::Revocation, revoked + 2).await;
}

#[tokio::test]
async fn a_pending_logout_is_not_lost_with_its_instance() {
    let state = tempfile::tempdir().expect("a folder");
    let Some(mut fleet) = Fleet::with_tokens_of(LONG, "owed and killed", SERVER).await else {
        return;
    };
    fleet.keep_state_of(1, state.path()).await;
    let (cookie, other) = (fleet.log_in(0).await, fleet.log_in(0).await);
    fleet.redis.fall_silent();
    let logout = fleet.post(1, "/auth/logout", &cookie).await;
    assert_eq!(logout.status(), StatusCode::SERVICE_UNAVAILABLE);

    fleet.gateways[1].kill();
    fleet.redis.speak_again();
    assert_eq!(fleet.get(0, "/app", &cookie).await.status(), StatusCode::OK, "it is not told yet");
    fleet.keep_state_of(1, state.path()).await;

    for gateway in [0, 1] {
        is_over(&fleet, gateway, &cookie).await;
        assert_eq!(fleet.get(gateway, "/app", &other).await.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn an_old_idle_copy_of_a_cookie_ends_the_session_at_no_instance() {
    for tokens in [SEALED, PLAIN, SERVER] {
        let tokens = format!("{tokens}\n    idle_timeout: 4s");
        let Some(fleet) = Fleet::with_tokens_of(LONG, "idle copies", &tokens).await else { return };
        let old = fleet.log_in(0).await;
        let revoked = fleet.issuer.count(Endpoint::Revocation);
        let mut cookie = old.clone();
        let end = Instant::now() + Duration::from_millis(4_500);
        while Instant::now() < end {
            let answer = fleet.get(1, "/app", &cookie).await;
            assert_eq!(answer.status(), StatusCode::OK, "{tokens}");
            let newer = cookies_of(&answer);
            cookie = if newer.is_empty() { cookie } else { newer };
            sleep(Duration::from_millis(200)).await;
        }

        // With sessions in Redis, an instance without Redis cannot know that another has used it.
        let is_kept_there = old == cookie;
        if is_kept_there {
            fleet.redis.fall_silent();
        }
        let late = fleet.get(0, "/app", &old).await;
        if is_kept_there {
            assert_eq!(late.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(cookies_of(&late), "");
            fleet.redis.speak_again();
            fleet.is_there_again().await;
        } else {
            assert_eq!(late.status(), StatusCode::UNAUTHORIZED, "{tokens}");
            let logout = fleet.post(0, "/auth/logout", &old).await;
            assert_eq!(logout.status(), StatusCode::OK, "{tokens}");
        }

        let lives = fleet.get(1, "/app", &cookie).await;
        assert_eq!(lives.status(), StatusCode::OK, "{tokens}");
        assert_eq!(fleet.issuer.count(Endpoint::Revocation), revoked, "{tokens}");
    }
}

#[tokio::test]
async fn an_emptied_redis_gets_its_data_again() {
    let Some(fleet) = Fleet::start("emptied", SERVER).await else { return };
    let cookie = fleet.log_in(0).await;
    let ended = fleet.log_in(0).await;
    assert_eq!(fleet.post(0, "/auth/logout", &ended).await.status(), StatusCode::OK);

    let _: String = fleet.redis.ask(&["FLUSHALL"]);

    // No request restores the data, and no connection was lost.
    eventually(Duration::from_secs(5), async || {
        match fleet.get(1, "/app", &cookie).await.status() {
            StatusCode::OK => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
    is_over(&fleet, 1, &ended).await;
    eventually(Duration::from_secs(5), async || {
        let stream = "northgate:fleet:revoked";
        let told: Vec<redis::Value> = fleet.redis.ask(&["XRANGE", stream, "-", "+"]);
        if told.is_empty() { Err("what was revoked is not told".to_owned()) } else { Ok(()) }
    })
    .await;
}

#[tokio::test]
async fn an_emptied_redis_gets_refresh_results_again() {
    let Some(fleet) = Fleet::with_tokens_of(Duration::from_secs(6), "emptied", SEALED).await else {
        return;
    };
    let old = fleet.log_in(0).await;
    fleet.let_the_token_expire().await;
    let new = cookies_of(&fleet.get(0, "/app", &old).await);
    let redeemed = fleet.issuer.count(Endpoint::Token);

    let _: String = fleet.redis.ask(&["FLUSHALL"]);
    eventually(Duration::from_secs(5), async || {
        let keys: Vec<String> = fleet.redis.ask(&["KEYS", "northgate:refreshed:*"]);
        if keys.len() == 1 { Ok(()) } else { Err(format!("{keys:?}")) }
    })
    .await;

    let late = fleet.get(1, "/app", &old).await;
    assert_eq!((late.status(), cookies_of(&late)), (StatusCode::OK, new));
    assert_eq!(fleet.issuer.count(Endpoint::Token), redeemed);
}

#[tokio::test]
async fn an_emptied_redis_has_no_instance_redeem_what_another_has_redeemed() {
    let life = Duration::from_secs(6);
    for tokens in [SEALED, PLAIN, SERVER] {
        let Some(fleet) = Fleet::with_tokens_of(life, "emptied: a refresh", tokens).await else {
            return;
        };
        let old = fleet.log_in(0).await;
        assert_eq!(fleet.get(1, "/app", &old).await.status(), StatusCode::OK);
        fleet.let_the_token_expire().await;
        assert_eq!(fleet.get(0, "/app", &old).await.status(), StatusCode::OK, "{tokens}");
        let redeemed = fleet.issuer.count(Endpoint::Token);

        let _: String = fleet.redis.ask(&["FLUSHALL"]);
        let late = fleet.get(1, "/app", &old).await;

        assert_eq!(late.status(), StatusCode::OK, "{tokens}");
        assert_eq!(fleet.issuer.count(Endpoint::Token), redeemed, "{tokens}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_redis_has_no_instance_redeem_what_another_is_redeeming() {
    for tokens in [SEALED, SERVER] {
        let life = Duration::from_secs(6);
        let Some(fleet) = Fleet::with_tokens_of(life, "emptied: a redeem", tokens).await else {
            return;
        };
        let cookie = fleet.log_in(0).await;
        assert_eq!(fleet.get(1, "/app", &cookie).await.status(), StatusCode::OK);
        fleet.let_the_token_expire().await;
        let redeemed = fleet.issuer.count(Endpoint::Token);
        let held = fleet.issuer.pause(Endpoint::Token);
        let redeeming = Handle::current().spawn(fleet.request(0, "/app", &cookie).send());
        fleet.issuer.wait_for_calls(Endpoint::Token, redeemed + 1).await;

        let _: String = fleet.redis.ask(&["FLUSHALL"]);
        let waiting = Handle::current().spawn(fleet.request(1, "/app", &cookie).send());
        // The issuer responds when the other instance has noticed the loss, and written its lock again.
        sleep(Duration::from_millis(500)).await;
        drop(held);

        for answer in [redeeming, waiting] {
            let answer = answer.await.expect("no panic").expect("an answer");
            assert_eq!(answer.status(), StatusCode::OK, "{tokens}");
        }
        assert_eq!(fleet.issuer.count(Endpoint::Token), redeemed + 1, "{tokens}");
    }
}

#[tokio::test]
async fn an_emptied_redis_has_no_instance_redeem_for_an_old_copy_of_a_session() {
    let life = Duration::from_secs(6);
    let Some(fleet) = Fleet::with_tokens_of(life, "emptied: a copy", SERVER).await else { return };
    let cookie = fleet.log_in(0).await;
    assert_eq!(fleet.get(1, "/app", &cookie).await.status(), StatusCode::OK);
    fleet.let_the_token_expire().await;
    assert_eq!(fleet.get(0, "/app", &cookie).await.status(), StatusCode::OK);
    let redeemed = fleet.issuer.count(Endpoint::Token);
    // The result of the refresh is kept for half a minute.
    sleep(Duration::from_secs(31)).await;

    let _: String = fleet.redis.ask(&["FLUSHALL"]);

    assert_eq!(fleet.get(1, "/app", &cookie).await.status(), StatusCode::OK);
    assert_eq!(fleet.get(0, "/app", &cookie).await.status(), StatusCode::OK);
    // The later tokens have expired by now.
    assert_eq!(fleet.issuer.count(Endpoint::Token), redeemed + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_instance_waits_for_a_refresh_after_its_request_has_ended() {
    for tokens in [SEALED, SERVER] {
        let Some(mut fleet) = Fleet::start("an end in a redeem", tokens).await else { return };
        let cookie = fleet.log_in(0).await;
        fleet.let_the_token_expire().await;
        let redeemed = fleet.issuer.count(Endpoint::Token);
        let held = fleet.issuer.pause(Endpoint::Token);
        // The issuer takes longer than any request waits.
        let given_up = fleet.get(0, "/app", &cookie).await;
        assert_eq!(given_up.status(), StatusCode::SERVICE_UNAVAILABLE, "{tokens}");

        fleet.gateways[0].signal("TERM");
        sleep(Duration::from_millis(1_500)).await;
        drop(held);
        fleet.gateways[0].wait();

        // Its result has expired by now and is redeemed in turn: the old token would end the family.
        let answer = fleet.get(1, "/app", &cookie).await;
        assert_eq!(answer.status(), StatusCode::OK, "{tokens}");
        assert_eq!(fleet.issuer.count(Endpoint::Token), redeemed + 2, "{tokens}");
    }
}

#[tokio::test]
async fn an_instance_killed_during_a_refresh_blocks_others_no_longer_than_a_call_takes() {
    let Some(mut fleet) = Fleet::start("a kill in a redeem", SEALED).await else { return };
    let cookie = fleet.log_in(0).await;
    fleet.let_the_token_expire().await;
    let asked = fleet.issuer.count(Endpoint::Token);
    let held = fleet.issuer.pause(Endpoint::Token);
    let request = fleet.request(0, "/app", &cookie).send();
    let lost = Handle::current().spawn(request);
    fleet.issuer.wait_for_calls(Endpoint::Token, asked + 1).await;

    fleet.gateways[0].kill();
    let killed = Instant::now();
    assert!(lost.await.expect("no panic").is_err());
    // The issuer sees the closed connection before it responds.
    sleep(Duration::from_millis(200)).await;
    drop(held);

    while fleet.get(1, "/app", &cookie).await.status() != StatusCode::OK {
        sleep(Duration::from_millis(10)).await;
    }
    // `timeout` is 3 s.
    assert!(killed.elapsed() < Duration::from_millis(3_500), "{:?}", killed.elapsed());
}

#[tokio::test]
async fn a_session_whose_key_was_removed_is_refreshed() {
    let Some(mut fleet) = Fleet::with_tokens_of(LONG, "a withdrawn key", SEALED).await else {
        return;
    };
    let cookie = fleet.log_in(0).await;
    let old = published_keys(&fleet).await;
    fleet.issuer.rotate_keys().expect("new keys");
    let mut keys = published_keys(&fleet).await;
    keys.retain(|key| !old.contains(key));
    let withdrawn = Fault::json(&json!({ "keys": keys }));
    fleet.issuer.inject(Endpoint::Jwks, withdrawn, u32::MAX);
    let redeemed = fleet.issuer.count(Endpoint::Token);
    // The gateway fetches the JWK set again.
    fleet.gateways[0] = Gateway::start(&fleet.text).await;

    let answer = fleet.get(0, "/app", &cookie).await;

    assert_eq!(answer.status(), StatusCode::OK);
    assert_ne!(cookies_of(&answer), "");
    assert_eq!(fleet.issuer.count(Endpoint::Token), redeemed + 1);
}

async fn published_keys(fleet: &Fleet) -> Vec<Value> {
    let url = format!("{}/.well-known/openid-configuration", fleet.issuer.url());
    let metadata: Value = reqwest::get(url).await.expect("an answer").json().await.expect("JSON");
    let url = metadata["jwks_uri"].as_str().expect("it has keys");
    let keys: Value = reqwest::get(url).await.expect("an answer").json().await.expect("JSON");
    keys["keys"].as_array().expect("keys").clone()
}

/// Waits until the session has ended at that instance, and stays so.
pub(super) async fn is_over(fleet: &Fleet, gateway: usize, cookie: &str) {
    eventually(Duration::from_secs(5), async || {
        match fleet.get(gateway, "/app", cookie).await.status() {
            StatusCode::UNAUTHORIZED => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
    assert_eq!(fleet.get(gateway, "/app", cookie).await.status(), StatusCode::UNAUTHORIZED);
}

/// Longer than any of these tests.
pub(super) const LONG: Duration = Duration::from_secs(600);
