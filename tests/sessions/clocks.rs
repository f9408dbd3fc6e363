//! Sessions whose issuer's clock differs from the gateway's, and streams that outlive their requests.

use core::time::Duration;

use crate::fault_injection::Endpoint;
use northgate::base::clock::Clock;
use northgate::dev::issuer::DevIssuerConfig;
use northgate::token::{Revocation, RevocationTarget};

use crate::support::{Gate, NOW};

/// No login has shown yet by how much the clocks differ.
#[tokio::test]
async fn a_revoked_subject_can_log_in_at_an_issuer_whose_clock_is_ahead() {
    for ahead in [10, 25] {
        let (clock, their) = (Clock::manual(NOW), Clock::manual(NOW.plus_secs(ahead)));
        let gate = Gate::apart(clock, their, DevIssuerConfig::default(), |_| {}, |_| {});
        let what = RevocationTarget::Subject("alice".into());
        gate.revocations.revoke(Revocation { issuer: Some("main".into()), what }, None);
        gate.advance(1);

        let browser = gate.alice().await;

        assert!(gate.present(&browser).await.is_ok(), "{ahead} seconds ahead");
    }
}

#[tokio::test]
async fn tokens_of_an_issuer_whose_clock_is_behind_are_not_refreshed_for_every_request() {
    let (clock, their) = (Clock::manual(NOW), Clock::manual(NOW.minus(Duration::from_secs(35))));
    let options =
        DevIssuerConfig { access_lifetime: Duration::from_secs(60), ..DevIssuerConfig::default() };
    let gate = Gate::apart(clock, their, options, |_| {}, |_| {});
    let mut browser = gate.alice().await;
    let redeemed = gate.issuer.count(Endpoint::Token);

    for _ in 0..8 {
        gate.ask(&mut browser).await.expect("the token is valid");
        gate.advance(1);
    }

    assert_eq!(gate.issuer.count(Endpoint::Token), redeemed);
}

#[tokio::test]
async fn a_stream_ends_with_the_timeouts_of_its_session_although_its_token_lives_on() {
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let options = DevIssuerConfig { access_lifetime: hours(10), ..DevIssuerConfig::default() };
    let gate = Gate::at(options, |settings| {
        (settings.idle_timeout, settings.absolute_timeout) = (hours(1), hours(2));
    });
    let mut browser = gate.alice().await;
    let user = gate.ask(&mut browser).await.expect("alice has a session");
    assert!(user.expires > NOW.plus(hours(9)), "the token outlives the session");

    let stream = user.handle.follow(user.expires);

    assert_eq!(stream.ends(), Some(NOW.plus(hours(1))), "unless the session is used");
    for _ in 0..2 {
        gate.advance(3000);
        gate.ask(&mut browser).await.expect("alice is not idle");
    }
    assert_eq!(stream.ends(), Some(NOW.plus(hours(2))), "however much it is used");
}
