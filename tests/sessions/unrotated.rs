//! Sessions at a server that does not rotate refresh tokens: responses have none, and the old one stays valid.

use core::time::Duration;

use crate::fault_injection::Endpoint;
use northgate::dev::issuer::DevIssuerConfig;
use serde_json::json;
use url::Url;

use crate::code::code;
use crate::identity::answer;
use crate::support::{Browser, Gate};

fn gate(life: u64) -> Gate {
    let mut options = DevIssuerConfig {
        access_lifetime: Duration::from_secs(life),
        ..DevIssuerConfig::default()
    };
    for client in &mut options.clients {
        client.rotates_refresh_tokens = false;
    }
    Gate::at(options, |_| {})
}

#[tokio::test]
async fn new_tokens_that_reached_no_browser_do_not_block_newer_ones() {
    let gate = gate(300);
    let browser = gate.alice().await;
    gate.advance(400);
    gate.present(&browser).await.expect("refreshed, and the browser hangs up");
    let asked = gate.issuer.count(Endpoint::Token);

    gate.advance(350);

    gate.present(&browser).await.expect("refreshed again");
    assert_eq!(gate.issuer.count(Endpoint::Token), asked + 1);
}

#[tokio::test]
async fn a_session_with_short_lived_tokens_survives_many_refreshes() {
    let gate = gate(20);
    let mut browser = gate.alice().await;
    let asked = gate.issuer.count(Endpoint::Token);

    for second in 0..120 {
        gate.advance(1);
        let signed = gate.ask(&mut browser).await;
        assert!(signed.is_ok(), "after {second} s: {signed:?}");
    }

    let asked = gate.issuer.count(Endpoint::Token) - asked;
    assert!((8..=12).contains(&asked), "{asked} refreshes");
}

/// Some servers give all logins of a user at one client the same refresh token.
#[tokio::test]
async fn two_sessions_with_one_refresh_token_stay_two() {
    let gate = Gate::with(code);
    let same = || json!({ "refresh_token": "same", "expires_in": 100 });
    let (mut here, mut there) = (Browser::default(), Browser::default());
    gate.log_in_with(&mut here, same()).await;
    gate.log_in_with(&mut there, same()).await;
    let names = [gate.present(&here).await, gate.present(&there).await];
    let names = names.map(|user| user.unwrap().session);
    gate.advance(101);
    let url = Url::parse("https://localhost/?nonce=x").unwrap();
    gate.issuer.inject(Endpoint::Token, answer(&gate, &url, same()), 1);
    let asked = gate.issuer.count(Endpoint::Token);

    let renewed = [gate.ask(&mut here).await, gate.ask(&mut there).await];

    assert_eq!(renewed.map(|user| user.unwrap().session), names);
    assert_eq!(gate.issuer.count(Endpoint::Token), asked + 1, "the tokens are for both");
}
