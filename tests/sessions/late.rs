//! A slow issuer: it has rotated the refresh token all the same.

use core::time::Duration;

use crate::fault_injection::{Endpoint, Fault};
use northgate::dev::issuer::DevIssuerConfig;
use northgate::session::Reason;

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
    assert_eq!(refused.reason, Reason::Unavailable { retry_after: 1 });
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
    let began = tokio::time::Instant::now();
    gate.ask(&mut browser).await.expect("the old token is good");
    assert!(began.elapsed() < Duration::from_millis(300), "{:?}", began.elapsed());

    gate.advance(60);
    gate.ask(&mut browser).await.expect("the new token has come");
    assert_eq!(gate.issuer.count(Endpoint::Token), asked + 1);
}
