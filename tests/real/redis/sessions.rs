//! Sessions across instances: one refresh, for late requests too, and one end.

use std::time::Duration;

use crate::fault_injection::{Endpoint, Fault};
use futures_util::future::join_all;
use http::StatusCode;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::super::support::eventually;
use super::{Fleet, LIFE, PLAIN, SEALED, SERVER, cookies_of};

#[tokio::test]
async fn fifty_requests_at_two_instances_with_one_expired_token_make_one_refresh() {
    for tokens in [SEALED, SERVER] {
        let Some(fleet) = Fleet::start("refresh", tokens).await else { return };
        let cookie = fleet.log_in(0).await;
        let redeemed = fleet.issuer.count(Endpoint::Token);
        fleet.let_the_token_expire().await;

        let answers = join_all((0..50).map(|n| fleet.get(n % 2, "/app", &cookie))).await;

        let statuses: Vec<_> = answers.iter().map(|answer| answer.status().as_u16()).collect();
        assert_eq!(statuses, [200; 50], "{tokens}");
        assert_eq!(fleet.issuer.count(Endpoint::Token) - redeemed, 1, "{tokens}");
        if tokens == SEALED {
            // One text for all: browsers join cookies of the responses that come last.
            let new: Vec<_> = answers.iter().map(cookies_of).collect();
            assert!(new.iter().all(|cookie| !cookie.is_empty() && *cookie == new[0]));
            assert_eq!(fleet.get(1, "/app", &new[0]).await.status(), StatusCode::OK);
        }
        // The issuer saw no reuse: the next refresh is granted, too.
        let latest = if tokens == SEALED { cookies_of(&answers[0]) } else { cookie };
        fleet.let_the_token_expire().await;
        assert_eq!(fleet.get(1, "/app", &latest).await.status(), StatusCode::OK, "{tokens}");
        assert_eq!(
            fleet
                .counted(r#"northgate_session_refreshes_total{session="web",result="reuse"}"#)
                .await,
            0
        );
    }
}

#[tokio::test]
async fn a_refresh_token_is_redeemed_once_in_every_step_of_a_key_rotation() {
    const OLD: &str = "keys: [BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=]";
    const NEW: &str = "keys: [CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg=]";
    const APPENDED: &str = "keys: [BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=, CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg=]";
    const MOVED: &str = "keys: [CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg=, BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=]";
    for tokens in [SEALED, SERVER] {
        let Some(fleet) = Fleet::start("key rotation", tokens).await else { return };
        for (from, to) in [(OLD, APPENDED), (APPENDED, MOVED), (MOVED, NEW)] {
            fleet.gateways[0].reload(from, to).await;
            let cookie = fleet.log_in(0).await;
            let redeemed = fleet.issuer.count(Endpoint::Token);
            fleet.let_the_token_expire().await;

            let answers = join_all((0..8).map(|n| fleet.get(n % 2, "/app", &cookie))).await;

            let statuses: Vec<_> = answers.iter().map(|answer| answer.status().as_u16()).collect();
            assert_eq!(statuses, [200; 8], "{tokens}: {to}");
            assert_eq!(fleet.issuer.count(Endpoint::Token) - redeemed, 1, "{tokens}: {to}");
            fleet.gateways[1].reload(from, to).await;
        }
    }
}

#[tokio::test]
async fn a_logout_at_a_gateway_without_the_key_is_no_logout() {
    for tokens in [SEALED, SERVER] {
        let Some(fleet) = Fleet::start("foreign logout", tokens).await else { return };
        fleet.gateways[0]
            .reload("keys: [Bw", "keys: [CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg=, Bw")
            .await;
        let cookie = fleet.log_in(0).await;

        let foreign = fleet.post(1, "/auth/logout", &cookie).await;

        assert_eq!(foreign.status(), StatusCode::SERVICE_UNAVAILABLE, "{tokens}");
        assert_eq!(fleet.get(0, "/app", &cookie).await.status(), StatusCode::OK, "{tokens}");
        let own = fleet.post(0, "/auth/logout", &cookie).await;
        assert_eq!(own.status(), StatusCode::OK, "{tokens}");
        fleet.issuer.wait_for_calls(Endpoint::Revocation, 2).await;
    }
}

#[tokio::test]
async fn a_refresh_token_that_is_not_rotated_is_redeemed_again_once() {
    for tokens in [SEALED, SERVER] {
        let Some(fleet) = Fleet::with("no rotation", tokens, LIFE, false).await else { return };
        let mut cookie = fleet.log_in(0).await;
        for round in 0..3 {
            let redeemed = fleet.issuer.count(Endpoint::Token);
            fleet.let_the_token_expire().await;

            let answers = join_all((0..50).map(|n| fleet.get(n % 2, "/app", &cookie))).await;

            for answer in &answers {
                assert_eq!(answer.status(), StatusCode::OK, "{tokens}, round {round}");
            }
            assert_eq!(
                fleet.issuer.count(Endpoint::Token) - redeemed,
                1,
                "{tokens}, round {round}"
            );
            if tokens == SEALED {
                cookie = cookies_of(&answers[0]);
            }
        }
    }
}

#[tokio::test]
async fn a_late_request_at_another_instance_gets_the_new_tokens() {
    let Some(fleet) = Fleet::start("straggler", SEALED).await else { return };
    let old = fleet.log_in(0).await;
    fleet.let_the_token_expire().await;
    let first = fleet.get(0, "/app", &old).await;
    let redeemed = fleet.issuer.count(Endpoint::Token);

    let late = fleet.get(1, "/app", &old).await;

    assert_eq!(late.status(), StatusCode::OK);
    assert_eq!(cookies_of(&late), cookies_of(&first));
    assert_eq!(fleet.issuer.count(Endpoint::Token), redeemed);
}

#[tokio::test]
async fn a_session_on_the_server_is_known_to_every_instance_and_to_none_after_its_logout() {
    let Some(fleet) = Fleet::start("sessions", SERVER).await else { return };

    let cookie = fleet.log_in(0).await;
    let elsewhere = fleet.get(1, "/app", &cookie).await;
    let logged_out = fleet.post(1, "/auth/logout", &cookie).await;
    let after = fleet.get(0, "/app", &cookie).await;

    assert_eq!(elsewhere.status(), StatusCode::OK);
    assert_eq!(logged_out.status(), StatusCode::OK);
    assert_eq!(after.status(), StatusCode::UNAUTHORIZED);
    assert!(!after.headers().contains_key("set-cookie"), "the browser may hold a new one by now");
    // The data in Redis lead to no session and contain no token.
    let held = fleet.redis.everything();
    let id = cookie.split_once('=').expect("a cookie").1;
    assert!(!held.is_empty() && !held.contains(id) && !held.contains(".eyJ"), "{held}");
}

#[tokio::test]
async fn a_copied_cookie_is_refreshed_at_no_instance_after_its_logout() {
    let Some(fleet) = Fleet::start("logout", SEALED).await else { return };
    // The issuer does not help.
    fleet.issuer.inject(Endpoint::Revocation, Fault::Status(StatusCode::NOT_FOUND), 100);
    let cookie = fleet.log_in(0).await;
    assert_eq!(fleet.post(0, "/auth/logout", &cookie).await.status(), StatusCode::OK);

    fleet.let_the_token_expire().await;

    let redeemed = fleet.issuer.count(Endpoint::Token);
    for gateway in [0, 1] {
        let answer = fleet.get(gateway, "/app", &cookie).await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{gateway}");
    }
    assert_eq!(fleet.issuer.count(Endpoint::Token), redeemed);
}

#[tokio::test]
async fn an_outage_of_redis_logs_no_user_out() {
    for tokens in [SEALED, SERVER] {
        let Some(mut fleet) = Fleet::start("absence", tokens).await else { return };
        let mut cookie = fleet.log_in(0).await;
        let other = fleet.log_in(1).await;

        fleet.redis.stop();
        fleet.let_the_token_expire().await;
        let answer = fleet.get(0, "/app", &cookie).await;
        assert_eq!(answer.status(), StatusCode::OK, "{tokens}");
        if tokens == SEALED {
            cookie = cookies_of(&answer);
        } else {
            // A session that only the other instance has is neither valid nor ended.
            let unknown = fleet.get(0, "/app", &other).await;
            assert_eq!(unknown.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(cookies_of(&unknown), "");
            let problem = unknown.text().await.expect("a problem");
            assert!(problem.contains("store-unavailable"), "not the issuer's fault: {problem}");
        }
        // A login that could not be shared fails.
        let new = match tokens {
            SERVER => {
                let answer = fleet.try_to_log_in(0).await;
                assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
                assert_eq!(cookies_of(&answer), "");
                cookie.clone()
            }
            _ => fleet.log_in(0).await,
        };

        // Redis is empty after its restart: instances write their data again.
        fleet.redis.start();
        fleet.is_there_again().await;
        for cookie in [&cookie, &new] {
            assert_eq!(fleet.get(0, "/app", cookie).await.status(), StatusCode::OK, "{tokens}");
            eventually(Duration::from_secs(5), async || match fleet.get(1, "/app", cookie).await {
                answer if answer.status() == StatusCode::OK => Ok(()),
                answer => Err(format!("{tokens}: {}", answer.status())),
            })
            .await;
        }
    }
}

#[tokio::test]
async fn many_requests_at_two_instances_make_one_refresh_every_time() {
    // Due after half of its lifetime.
    let Some(fleet) = Fleet::with_tokens_of(Duration::from_secs(2), "crowds", SEALED).await else {
        return;
    };
    // NORTHGATE_ROUNDS=1000 for half an hour.
    let rounds = std::env::var_os("NORTHGATE_ROUNDS").and_then(|text| text.to_str()?.parse().ok());
    // Gateways that find an empty Redis redeem nothing for two seconds that another may have redeemed.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let mut cookie = fleet.log_in(0).await;
    for round in 0..rounds.unwrap_or(4) {
        tokio::time::sleep(Duration::from_millis(1_050)).await;
        let redeemed = fleet.issuer.count(Endpoint::Token);

        let crowd = join_all((0..50).map(|n| fleet.get(n % 2, "/app", &cookie))).await;

        for answer in &crowd {
            assert_eq!(answer.status(), StatusCode::OK, "round {round}");
            assert_eq!(cookies_of(answer), cookies_of(&crowd[0]), "round {round}");
        }
        assert_eq!(fleet.issuer.count(Endpoint::Token) - redeemed, 1, "round {round}");
        cookie = cookies_of(&crowd[0]);
    }
}

#[tokio::test]
async fn a_slow_redis_causes_no_second_refresh() {
    for tokens in [SEALED, SERVER] {
        let Some(fleet) = Fleet::start("slow Redis", tokens).await else { return };
        let cookie = fleet.log_in(0).await;
        assert_eq!(fleet.get(1, "/app", &cookie).await.status(), StatusCode::OK);
        fleet.let_the_token_expire().await;
        let redeemed = fleet.issuer.count(Endpoint::Token);

        // Longer than `redis.timeout`, and no outage.
        let _: String = fleet.redis.ask(&["CLIENT", "PAUSE", "300"]);
        let answers = join_all((0..50).map(|n| fleet.get(n % 2, "/app", &cookie))).await;

        let statuses: Vec<_> = answers.iter().map(|answer| answer.status().as_u16()).collect();
        assert_eq!(statuses, [200; 50], "{tokens}");
        assert_eq!(fleet.issuer.count(Endpoint::Token) - redeemed, 1, "{tokens}");
        for gateway in &fleet.gateways {
            assert!(!gateway.log().contains("using local state only"), "{tokens}");
        }
    }
}

#[tokio::test]
async fn a_slow_response_of_another_instance_restores_no_replaced_tokens() {
    // The last use is recorded every second; tokens are refreshed after four.
    let tokens = format!("{SEALED}\n    idle_timeout: 10s\n    absolute_timeout: 1h");
    let life = Duration::from_secs(8);
    let Some(fleet) = Fleet::with_tokens_of(life, "slow answers", &tokens).await else { return };
    let old = fleet.log_in(0).await;
    tokio::time::sleep(life * 3 / 16).await;
    let slow = Handle::current().spawn(fleet.request(1, "/slow", &old).send());
    fleet.slow.reached(1).await;
    tokio::time::sleep(life * 3 / 8).await;
    let redeemed = fleet.issuer.count(Endpoint::Token);
    let new = cookies_of(&fleet.get(0, "/app", &old).await);
    assert_eq!(fleet.issuer.count(Endpoint::Token), redeemed + 1);
    assert_ne!(new, "");

    // The browser has them: the result is retained for half a minute, which is over.
    let record = eventually(Duration::from_secs(2), async || {
        let record = fleet.redis.key("northgate:refreshed:");
        let left: i64 = fleet.redis.ask(&["PTTL", &record]);
        if left <= 30_000 { Ok(record) } else { Err(format!("it stays {left} ms")) }
    })
    .await;
    let _: u32 = fleet.redis.ask(&["DEL", &record]);
    fleet.slow.may_answer.send_replace(true);
    let late = slow.await.expect("no panic").expect("an answer");

    assert_eq!((late.status(), &*cookies_of(&late)), (StatusCode::OK, ""));
    fleet.let_the_token_expire().await;
    assert_eq!(fleet.get(1, "/app", &new).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn new_tokens_are_available_to_all_instances_until_a_browser_has_them() {
    let Some(fleet) = Fleet::start("ungiven", SEALED).await else { return };
    let old = fleet.log_in(0).await;
    fleet.let_the_token_expire().await;
    // Refreshed, but the response is lost.
    let slow = Handle::current().spawn(fleet.request(0, "/slow", &old).send());
    fleet.slow.reached(1).await;
    let redeemed = fleet.issuer.count(Endpoint::Token);

    let left: i64 = fleet.redis.ask(&["PTTL", &fleet.redis.key("northgate:refreshed:")]);
    let elsewhere = fleet.get(1, "/app", &old).await;

    assert!((500_000..=600_000).contains(&left), "{left}");
    assert_eq!(elsewhere.status(), StatusCode::OK);
    assert_eq!(fleet.issuer.count(Endpoint::Token), redeemed);
    fleet.slow.may_answer.send_replace(true);
    let late = slow.await.expect("no panic").expect("an answer");
    assert_eq!(cookies_of(&late), cookies_of(&elsewhere));
}

#[tokio::test]
async fn a_logout_during_a_refresh_at_another_instance_is_not_undone() {
    for tokens in [SEALED, SERVER, PLAIN] {
        let Some(fleet) = Fleet::start("logout in a refresh", tokens).await else { return };
        let cookie = fleet.log_in(0).await;
        fleet.let_the_token_expire().await;
        let asked = fleet.issuer.count(Endpoint::Token);
        let held = fleet.issuer.pause(Endpoint::Token);
        let refreshing = Handle::current().spawn(fleet.request(1, "/app", &cookie).send());
        fleet.issuer.wait_for_calls(Endpoint::Token, asked + 1).await;
        // The issuer does not learn of it in time, and grants the refresh.
        let away = Fault::Status(StatusCode::SERVICE_UNAVAILABLE);
        fleet.issuer.inject(Endpoint::Revocation, away, u32::MAX);
        let logged_out = fleet.post(0, "/auth/logout", &cookie).await;
        assert_eq!(logged_out.status(), StatusCode::OK, "{tokens}");
        fleet.issuer.clear(Endpoint::Revocation);
        let revoked = fleet.issuer.count(Endpoint::Revocation);

        drop(held);
        let answer = refreshing.await.expect("no panic").expect("an answer");

        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{tokens}");
        for gateway in [0, 1] {
            for cookie in [&cookie, &cookies_of(&answer)] {
                let after = fleet.get(gateway, "/app", cookie).await;
                assert_eq!(after.status(), StatusCode::UNAUTHORIZED, "{tokens}");
            }
        }
        // The granted tokens are revoked.
        fleet.issuer.wait_for_calls(Endpoint::Revocation, revoked + 2).await;
    }
}

#[tokio::test]
async fn a_stream_continues_when_another_instance_refreshes_its_session() {
    let life = Duration::from_secs(4);
    let Some(fleet) = Fleet::with_tokens_of(life, "streams", SEALED).await else { return };
    let cookie = fleet.log_in(0).await;
    let logged_in = Instant::now();
    let mut stream = fleet.get(0, "/events", &cookie).await;
    assert_eq!(stream.status(), StatusCode::OK);
    tokio::time::sleep(life * 5 / 8).await;

    let redeemed = fleet.issuer.count(Endpoint::Token);
    assert_eq!(fleet.get(1, "/app", &cookie).await.status(), StatusCode::OK);
    assert_eq!(fleet.issuer.count(Endpoint::Token), redeemed + 1);

    while logged_in.elapsed() < life * 5 / 4 {
        let tick = stream.chunk().await.expect("it goes on after its first token's end");
        assert!(tick.is_some());
    }
    // And ends with the second one.
    eventually(life, async || match stream.chunk().await {
        Err(_) => Ok(()),
        Ok(_) => Err("it is still open".to_owned()),
    })
    .await;
    assert!(fleet.gateways[0].log().contains("token-expired"));
}
