//! Sessions at a server that ends the whole family if a refresh token is reused.

use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use northgate::base::clock::Clock;
use serde_json::{Value, json};

use super::super::support::eventually;
use super::{Jar, World, cookies_of, walk};

#[tokio::test]
async fn twenty_requests_share_one_refresh_and_the_session_lives_on() {
    let Some(world) = World::start("refresh", &[("ACCESS_TOKEN_TTL", "2")]).await else { return };
    let cookies = world.log_in().await;
    let clock = Clock::system();
    let ended = clock.now().plus_secs(2);
    eventually(Duration::from_secs(5), async || {
        if clock.now() > ended { Ok(()) } else { Err("the token is still good".to_owned()) }
    })
    .await;
    let asked = world.provider.count("/token").await;

    let answers = join_all((0..20).map(|_| world.with_cookies("/session", &cookies))).await;

    assert!(answers.iter().all(|answer| answer.status() == StatusCode::OK));
    assert_eq!(world.provider.count("/token").await - asked, 1);
    let renewed = cookies_of(&answers[0]);
    assert!(!renewed.is_empty(), "the refreshed session has no new cookie");

    // Had a second request redeemed the old refresh token, the server would have ended the family.
    assert_eq!(world.with_cookies("/session", &renewed).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn logout_ends_the_session_here_and_there() {
    let Some(world) = World::start("logout", &[]).await else { return };
    let cookies = world.log_in().await;

    let answer = world
        .http
        .post(world.at("/auth/logout"))
        .header("origin", &world.gateway.url)
        .header("cookie", &cookies)
        .send()
        .await
        .expect("an answer");

    assert!(
        answer.status().is_redirection() || answer.status().is_success(),
        "{}",
        answer.status()
    );
    eventually(Duration::from_secs(5), async || {
        match world.provider.count("/token/revocation").await {
            0 => Err("nothing was revoked".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
}

#[tokio::test]
async fn many_requests_with_an_expired_token_make_one_refresh_every_time() {
    let Some(world) = World::start("refresh races", &[("ACCESS_TOKEN_TTL", "4")]).await else {
        return;
    };
    // NORTHGATE_ROUNDS=1000 for a long night.
    let rounds = std::env::var_os("NORTHGATE_ROUNDS").and_then(|text| text.to_str()?.parse().ok());
    let mut jar = Jar::default();
    world.log_in_with(&mut jar).await;
    for round in 0..rounds.unwrap_or(8) {
        let (clock, before) = (Clock::system(), jar.clone());
        let due = clock.now().plus_secs(3);
        eventually(Duration::from_secs(6), async || {
            if clock.now() > due { Ok(()) } else { Err("the token is still good".to_owned()) }
        })
        .await;
        let asked = world.provider.count("/token").await;

        let cookie = jar.cookie();
        let crowd = join_all((0..50).map(|_| world.with_cookies("/session", &cookie))).await;

        for answer in &crowd {
            assert_eq!(answer.status(), StatusCode::OK, "round {round}");
            jar.take(answer);
        }
        assert_eq!(world.provider.count("/token").await - asked, 1, "round {round}");
        assert_ne!(jar, before, "round {round}: no new cookie");
        // Late requests with the old cookie, too.
        let straggler = world.with_cookies("/session", &before.cookie()).await;
        assert_eq!(straggler.status(), StatusCode::OK, "round {round}");
    }
}

#[tokio::test]
async fn a_session_survives_an_outage_of_its_issuer() {
    let Some(world) = World::start("absence in a session", &[("ACCESS_TOKEN_TTL", "2")]).await
    else {
        return;
    };
    let mut jar = Jar::default();
    world.log_in_with(&mut jar).await;
    world
        .provider
        .order("faults", json!({ "path": "/token", "status": 503, "times": 100_000 }))
        .await;

    eventually(Duration::from_secs(60), async || {
        let answer = world.with_cookies("/session", &jar.cookie()).await;
        jar.take(&answer);
        match answer.status() {
            StatusCode::SERVICE_UNAVAILABLE => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
    world.provider.order("reset", json!({})).await;

    eventually(Duration::from_secs(60), async || {
        let answer = world.with_cookies("/session", &jar.cookie()).await;
        jar.take(&answer);
        match answer.status() {
            StatusCode::OK => Ok(()),
            StatusCode::UNAUTHORIZED => panic!("the session ended"),
            status => Err(status.to_string()),
        }
    })
    .await;
}

#[tokio::test]
async fn a_refresh_longer_than_any_timeout_ends_no_session() {
    let Some(world) = World::start("late refresh", &[("ACCESS_TOKEN_TTL", "2")]).await else {
        return;
    };
    let mut jar = Jar::default();
    world.log_in_with(&mut jar).await;
    world.provider.order("faults", json!({ "path": "/token", "delay": 7_000 })).await;
    let mut wait_for = async |wanted: StatusCode| {
        eventually(Duration::from_secs(20), async || {
            let answer = world.with_cookies("/session", &jar.cookie()).await;
            jar.take(&answer);
            match answer.status() {
                status if status == wanted => Ok(()),
                StatusCode::UNAUTHORIZED => panic!("the session ended"),
                status => Err(status.to_string()),
            }
        })
        .await;
    };
    wait_for(StatusCode::SERVICE_UNAVAILABLE).await;

    // All requests get the late result: a second redemption of the same token would have ended the family. Such
    // short-lived tokens have expired when they arrive, and are refreshed with the new refresh token.
    wait_for(StatusCode::OK).await;
}

#[tokio::test]
async fn a_key_rotation_during_a_session_logs_no_user_out() {
    let Some(world) = World::start("keys in a session", &[("ACCESS_TOKEN_TTL", "4")]).await else {
        return;
    };
    let mut jar = Jar::default();
    world.log_in_with(&mut jar).await;
    assert_eq!(world.with_cookies("/session", &jar.cookie()).await.status(), StatusCode::OK);

    world.provider.order("keys", json!({})).await;

    // Past the expiry of the old token, and of the new one.
    let (clock, asked) = (Clock::system(), world.provider.count("/token").await);
    let end = clock.now().plus_secs(9);
    while clock.now() < end {
        let answer = world.with_cookies("/session", &jar.cookie()).await;
        assert_eq!(answer.status(), StatusCode::OK);
        jar.take(&answer);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(world.provider.count("/token").await - asked >= 2);
}

#[tokio::test]
async fn a_user_logs_in_by_a_pushed_request() {
    let Some(world) = World::start("code", &[]).await else { return };
    let mut jar = Jar::default();

    let away = world.depart(&mut jar, "/sso/login?return_to=%2Fapp%3Fpage%3D2").await;
    assert!(away.contains("request_uri=") && !away.contains("code_challenge"), "{away}");
    assert_eq!(world.provider.count("/request").await, 1);
    let back = walk(&world.http, &away).await;
    let iss = back.query_pairs().find(|(name, _)| name == "iss").map(|(_, iss)| iss.into_owned());
    assert_eq!(iss.as_deref(), Some(&*world.provider.issuer));
    let answer = world.come_back(&mut jar, &back).await;

    assert_eq!(answer.status(), StatusCode::SEE_OTHER);
    assert_eq!(answer.headers()["location"], "/app?page=2");
    let seen: Value = world.with_cookies("/app", &jar.cookie()).await.json().await.expect("JSON");
    assert!(
        seen["headers"]["authorization"].as_str().is_some_and(|text| text.starts_with("Bearer ey"))
    );
    assert_eq!(seen["headers"]["cookie"], Value::Null);

    // The callback is loaded twice: the code is used up, the session continues, and so does the wanted page.
    let again = world.come_back(&mut jar, &back).await;
    assert_eq!(
        (again.status(), &again.headers()["location"]),
        (StatusCode::SEE_OTHER, &"/app?page=2".parse().unwrap())
    );
    assert_eq!(world.with_cookies("/app", &jar.cookie()).await.status(), StatusCode::OK);

    // Logged out again, at the server as well.
    let logout = world.http.post(world.at("/sso/logout")).header("origin", &world.gateway.url);
    let logout = logout.header("accept", "text/html").header("cookie", jar.cookie());
    let answer = logout.send().await.expect("an answer");
    let next = answer.headers()["location"].to_str().expect("text").to_owned();
    assert!(next.starts_with(&format!("{}/session/end?", world.provider.issuer)), "{next}");
    assert_eq!(world.provider.count("/token/revocation").await, 2);
}

#[tokio::test]
async fn a_route_that_demands_a_stronger_and_recent_login_gets_one() {
    let Some(world) = World::start("step-up", &[]).await else { return };
    let mut jar = Jar::default();
    let away = world.depart(&mut jar, "/sso/login").await;
    let back = walk(&world.http, &away).await;
    world.come_back(&mut jar, &back).await;
    assert_eq!(world.with_cookies("/app", &jar.cookie()).await.status(), StatusCode::OK);

    let page = world.http.get(world.at("/strong?a=1")).header("accept", "text/html");
    let page = page.header("sec-fetch-mode", "navigate").header("cookie", jar.cookie());
    let refused = page.send().await.expect("an answer");
    let login = refused.headers()["location"].to_str().expect("text").to_owned();
    let away = world.depart(&mut jar, &login).await;
    let back = walk(&world.http, &away).await;
    let answer = world.come_back(&mut jar, &back).await;

    assert_eq!(
        (answer.status(), &answer.headers()["location"]),
        (StatusCode::SEE_OTHER, &"/strong?a=1".parse().unwrap())
    );
    let seen = world.with_cookies("/strong?a=1", &jar.cookie()).await;
    assert_eq!(seen.status(), StatusCode::OK);
}

#[tokio::test]
async fn two_tabs_log_in_at_once() {
    let Some(world) = World::start("two tabs", &[]).await else { return };
    let mut jar = Jar::default();
    let one = world.depart(&mut jar, "/sso/login?return_to=%2Fone").await;
    let two = world.depart(&mut jar, "/sso/login?return_to=%2Ftwo").await;

    let (one, two) = (walk(&world.http, &one).await, walk(&world.http, &two).await);

    for (back, path) in [(two, "/two"), (one, "/one")] {
        let answer = world.come_back(&mut jar, &back).await;
        assert_eq!(
            (answer.status(), &answer.headers()["location"]),
            (StatusCode::SEE_OTHER, &path.parse().unwrap())
        );
        assert_eq!(world.with_cookies("/app", &jar.cookie()).await.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn a_callback_mixed_up_with_another_servers_is_refused() {
    let Some(world) = World::start("mix-up", &[]).await else { return };
    for iss in [Some("https://evil.example"), None] {
        let mut jar = Jar::default();
        let away = world.depart(&mut jar, "/sso/login").await;
        let mut back = walk(&world.http, &away).await;
        let kept: Vec<_> =
            back.query_pairs().into_owned().filter(|(name, _)| name != "iss").collect();
        back.query_pairs_mut().clear().extend_pairs(kept);
        if let Some(iss) = iss {
            back.query_pairs_mut().append_pair("iss", iss);
        }
        let asked = world.provider.count("/token").await;

        let answer = world.come_back(&mut jar, &back).await;

        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{iss:?}");
        assert_eq!(world.provider.count("/token").await, asked, "the code was given away");
        assert_eq!(
            world.with_cookies("/app", &jar.cookie()).await.status(),
            StatusCode::UNAUTHORIZED
        );
    }
}
