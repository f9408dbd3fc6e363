//! A slow issuer: it has taken the code, or rotated the refresh token, all the same.

use core::time::Duration;

use crate::fault_injection::{Endpoint, Fault};
use futures_util::FutureExt as _;
use http::StatusCode;
use northgate::base::body::Body;
use northgate::dev::issuer::DevIssuerConfig;
use northgate::issuer;
use northgate::session::SessionErrorReason;
use url::Url;

use crate::code::{code, location};
use crate::issuer_pages::walk;
use crate::support::{Browser, Gate};

/// A gateway with a short timeout, and an issuer whose next response takes longer.
async fn gate(seconds: u64) -> (Gate, Browser) {
    let patience = Duration::from_millis(400);
    let gate = Gate::asking(DevIssuerConfig::default(), |asked| asked.timeout = patience, |_| {});
    let browser = gate.alice().await;
    gate.advance(seconds);
    gate.issuer.inject(Endpoint::Token, Fault::Delay(patience * 3 / 2), 1);
    (gate, browser)
}

#[tokio::test]
async fn a_late_token_response_is_not_lost_with_the_session() {
    let (gate, mut browser) = gate(700).await;
    let asked = gate.issuer.count(Endpoint::Token);

    let refused = gate.ask(&mut browser).await.unwrap_err();
    assert_eq!(refused.reason, SessionErrorReason::Unavailable { retry_after: 1 });
    assert!(refused.set_cookies.is_empty());

    // Concurrent requests wait for the same response.
    gate.ask(&mut browser).await.expect("the answer has come");
    assert_eq!(gate.issuer.count(Endpoint::Token), asked + 1);
    gate.advance(700);
    gate.ask(&mut browser).await.expect("the family lives");
}

#[tokio::test]
async fn while_a_token_response_is_late_a_valid_token_serves_without_waiting_twice() {
    let (gate, mut browser) = gate(570).await;
    let asked = gate.issuer.count(Endpoint::Token);

    gate.ask(&mut browser).await.expect("the old token is good");
    let second = gate.ask(&mut browser).now_or_never().expect("no wait");
    second.expect("the old token is good");

    gate.advance(60);
    gate.ask(&mut browser).await.expect("the new token has come");
    assert_eq!(gate.issuer.count(Endpoint::Token), asked + 1);
}

/// A gateway, a browser that the issuer has redirected back, and its way back.
async fn returning(settings: impl FnOnce(&mut issuer::Settings)) -> (Gate, Browser, Url) {
    let gate = Gate::asking(DevIssuerConfig::default(), settings, code);
    let mut browser = Browser::default();
    let away = gate.depart(&mut browser, "/auth/login?return_to=%2Fapp").await;
    let back = walk(&away, "allow").await;
    (gate, browser, back)
}

#[tokio::test]
async fn a_callback_that_is_reloaded_while_the_issuer_is_slow_redeems_its_code_once() {
    let (gate, mut browser, back) = returning(|_| {}).await;
    let paused = gate.issuer.pause(Endpoint::Token);
    let mut impatient = browser.clone();
    tokio::select! {
        _ = gate.come_back(&mut impatient, &back) => panic!("the issuer has not responded"),
        () = gate.issuer.wait_for_calls(Endpoint::Token, 1) => {}
    }

    let (response, ()) = tokio::join!(gate.come_back(&mut browser, &back), async { drop(paused) });

    assert_eq!(location(&response).path(), "/app");
    assert_eq!(gate.issuer.count(Endpoint::Token), 1);
    gate.ask(&mut browser).await.expect("the reload has a session");
}

#[tokio::test]
async fn a_callback_whose_response_was_lost_leads_to_the_same_session_until_its_logout() {
    let (gate, mut browser, back) = returning(|_| {}).await;
    let before = browser.clone();
    gate.come_back(&mut browser.clone(), &back).await;

    gate.come_back(&mut browser, &back).await;

    let first = gate.ask(&mut browser).await.expect("the second response has a session");
    gate.come_back(&mut browser.clone(), &back).await;
    let again = gate.ask(&mut browser).await.expect("a further one does not end it");
    assert_eq!((first.session, gate.issuer.count(Endpoint::Token)), (again.session, 1));
    let mut request = browser.post("/auth/logout").body(Body::empty()).unwrap();
    request.headers_mut().insert("origin", "https://localhost:8443".parse().unwrap());
    gate.serve(&mut browser, request).await;
    let response = gate.come_back(&mut before.clone(), &back).await;
    assert_eq!(location(&response).path(), "/authorize", "the session is over");
}

#[tokio::test]
async fn a_callback_that_waited_too_long_finds_its_session_when_it_is_reloaded() {
    let patience = Duration::from_millis(1500);
    let (gate, mut browser, back) = returning(|asked| asked.timeout = patience).await;
    let paused = gate.issuer.pause(Endpoint::Token);

    let late = gate.come_back(&mut browser, &back).await;
    drop(paused);
    let response = gate.come_back(&mut browser, &back).await;

    assert_eq!(late.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(location(&response).path(), "/app");
    assert_eq!(gate.issuer.count(Endpoint::Token), 1);
}

#[tokio::test]
async fn tokens_of_a_login_whose_user_agent_hangs_up_are_revoked() {
    let (gate, mut browser, back) = returning(|_| {}).await;
    gate.come_back(&mut browser, &back).await;
    let mut gone = Browser::default();
    let away = gate.depart(&mut gone, "/auth/login").await;
    let back = walk(&away, "allow").await;
    let paused = gate.issuer.pause(Endpoint::Token);
    tokio::select! {
        _ = gate.come_back(&mut gone, &back) => panic!("the issuer has not responded"),
        () = gate.issuer.wait_for_calls(Endpoint::Token, 2) => {}
    }
    drop(paused);
    gate.settle().await;
    assert_eq!(gate.issuer.count(Endpoint::Revocation), 0, "a reload may come");

    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(120)).await;
    tokio::time::resume();

    // Access and refresh token of that login, and none of the other one's.
    gate.issuer.wait_for_calls(Endpoint::Revocation, 2).await;
    gate.settle().await;
    assert_eq!(gate.issuer.count(Endpoint::Revocation), 2);
}

#[tokio::test]
async fn tokens_of_a_password_whose_user_agent_hangs_up_are_revoked() {
    let (gate, mut browser) = (Gate::start(), Browser::default());
    let paused = gate.issuer.pause(Endpoint::Token);
    tokio::select! {
        _ = gate.log_in(&mut browser, "alice", "wonderland") => {
            panic!("the issuer has not responded")
        }
        () = gate.issuer.wait_for_calls(Endpoint::Token, 1) => {}
    }

    drop(paused);

    gate.issuer.wait_for_calls(Endpoint::Revocation, 2).await;
}

#[tokio::test]
async fn tokens_of_an_abandoned_login_are_revoked_as_the_current_configuration_says() {
    let mut gate = Gate::with(|settings| settings.revoke_on_logout = false);
    let mut browser = Browser::default();
    let paused = gate.issuer.pause(Endpoint::Token);
    tokio::select! {
        _ = gate.log_in(&mut browser, "alice", "wonderland") => {
            panic!("the issuer has not responded")
        }
        () = gate.issuer.wait_for_calls(Endpoint::Token, 1) => {}
    }

    gate.reload(|settings| settings.revoke_on_logout = true);
    drop(paused);

    gate.issuer.wait_for_calls(Endpoint::Revocation, 2).await;
}
