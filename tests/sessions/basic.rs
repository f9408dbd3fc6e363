//! HTTP Basic credentials exchanged for tokens.

use core::net::IpAddr;
use core::time::Duration;
use std::sync::Arc;

use crate::fault_injection::{Endpoint, Fault, TestIssuer};
use futures_util::future::join_all;
use http::StatusCode;
use northgate::base::clock::{Clock, Timestamp};
use northgate::base::scopes::Scopes;
use northgate::base::secret::Secret;
use northgate::basic::{BasicError, BasicExchange};
use northgate::dev::issuer::{API, Algorithm, DevIssuerConfig};
use northgate::issuer::{self, Client, ClientAuth, Issuer};
use northgate::observe::metrics::Metrics;
use northgate::password::{Credentials, LoginThrottles};
use northgate::token::{Revocation, RevocationList, RevocationTarget};
use serde_json::json;
use tokio::runtime::Handle;

use crate::support::verifier;

struct Gate {
    exchange: BasicExchange,
    issuer: TestIssuer,
    clock: Clock,
    metrics: Metrics,
    revocations: RevocationList,
}

impl Gate {
    fn start(scopes: &str) -> Self {
        let clock = Clock::manual(Timestamp::from_secs(1_800_000_000));
        let control = Handle::current();
        let options = DevIssuerConfig {
            access_lifetime: Duration::from_secs(100),
            ..DevIssuerConfig::default()
        };
        let address = ([127, 0, 0, 1], 0).into();
        let issuer = TestIssuer::start(address, clock.clone(), options, &control).unwrap();
        let metrics = Metrics::default();
        let client =
            Client { id: "gateway".into(), auth: ClientAuth::Basic("gateway-secret".into()) };
        let mut settings = issuer::Settings::new("main", issuer.url());
        settings.password_grant.scopes = Scopes::parse(scopes);
        let asked = Issuer::new(settings, clock.clone(), &metrics, control.clone()).unwrap();
        let asked = Arc::new(asked);
        let revocations = RevocationList::new(clock.clone());
        let verifier = Some(Arc::new(verifier(&asked, &clock, &metrics, &revocations)));
        let throttles = LoginThrottles::default();
        let clock_of = clock.clone();
        let exchange =
            BasicExchange::new(asked, client, verifier, clock_of, &metrics, control, &throttles);
        exchange.subscribe_to(&revocations);
        Self { exchange, issuer, clock, metrics, revocations }
    }

    async fn ask(&self, user: &str, password: &str) -> Result<String, BasicError> {
        self.ask_from(HOME, user, password).await
    }

    async fn ask_from(
        &self,
        from: IpAddr,
        user: &str,
        password: &str,
    ) -> Result<String, BasicError> {
        let credentials = Credentials { user: user.into(), password: Secret::from(password) };
        let exchanged = self.exchange.principal(&credentials, from, None).await?;
        assert!(exchanged.bearer.is_sensitive());
        Ok(exchanged.bearer.to_str().unwrap().to_owned())
    }

    fn asked(&self) -> u64 {
        self.issuer.count(Endpoint::Token)
    }

    fn looked_up(&self, result: &str) -> u64 {
        let series =
            format!(r#"northgate_token_cache_requests_total{{cache="basic",result="{result}"}} "#);
        let text = self.metrics.render();
        text.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap()
    }
}

const HOME: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(192, 0, 2, 7));

#[tokio::test]
async fn the_upstream_gets_a_token_and_the_issuer_is_called_once() {
    let gate = Gate::start("orders:read");

    let first = gate.ask("alice", "wonderland").await.unwrap();
    let second = gate.ask("alice", "wonderland").await.unwrap();

    assert!(first.starts_with("Bearer eyJ"));
    assert_eq!((first, gate.asked()), (second, 1));
    assert_eq!((gate.looked_up("miss"), gate.looked_up("hit")), (1, 1));
}

#[tokio::test]
async fn parallel_first_requests_make_one_call() {
    let gate = Gate::start("orders:read");

    let answers = join_all((0..50).map(|_| gate.ask("alice", "wonderland"))).await;

    assert!(answers.iter().all(|answer| answer == &answers[0] && answer.is_ok()));
    assert_eq!((gate.asked(), gate.looked_up("shared")), (1, 49));
}

#[tokio::test]
async fn a_cached_token_is_never_served_for_other_credentials() {
    let gate = Gate::start("orders:read");
    let alice = gate.ask("alice", "wonderland").await.unwrap();

    assert_ne!(gate.ask("bob", "builder").await.unwrap(), alice);
    for (user, password) in
        [("alice", "wonderlan"), ("alice:", "wonderland"), ("alicew", "onderland")]
    {
        assert_eq!(gate.ask(user, password).await, Err(BasicError::Invalid), "{user}:{password}");
    }
}

#[tokio::test]
async fn a_token_is_renewed_shortly_before_its_expiry() {
    let gate = Gate::start("orders:read offline_access");
    let first = gate.ask("alice", "wonderland").await.unwrap();

    gate.clock.advance(Duration::from_secs(89));
    assert_eq!(gate.ask("alice", "wonderland").await.unwrap(), first);
    gate.clock.advance(Duration::from_secs(2));
    assert_ne!(gate.ask("alice", "wonderland").await.unwrap(), first);
    assert_eq!(gate.asked(), 2);
}

#[tokio::test]
async fn a_token_whose_lifetime_is_not_told_is_renewed_by_its_refresh_token_and_else_by_the_password()
 {
    let gate = Gate::start("orders:read offline_access");
    let claims = json!({
        "iss": gate.issuer.url(), "sub": "alice", "aud": API, "client_id": "gateway", "jti": "a",
        "iat": 1_800_000_000, "exp": 1_800_000_100,
    });
    let access = gate.issuer.sign(Algorithm::Es256, json!({ "typ": "at+jwt" }), claims);
    let told = json!({ "access_token": access, "token_type": "Bearer", "refresh_token": "gone" });
    let untold = Fault::json(&told);
    gate.issuer.inject(Endpoint::Token, untold, 1);
    let first = gate.ask("alice", "wonderland").await.unwrap();
    assert_eq!(first, format!("Bearer {access}"));

    // Its `exp` tells when it ends.
    gate.clock.advance(Duration::from_secs(91));

    // The issuer does not know the refresh token: it was asked, and then the password was.
    assert_ne!(gate.ask("alice", "wonderland").await.unwrap(), first);
    assert_eq!(gate.asked(), 3);
}

#[tokio::test]
async fn credentials_are_checked_again_when_the_cache_expires() {
    let gate = Gate::start("orders:read offline_access");
    gate.ask("alice", "wonderland").await.unwrap();
    for _ in 0..3 {
        gate.clock.advance(Duration::from_secs(91));
        gate.ask("alice", "wonderland").await.unwrap();
    }
    let asked = gate.asked();
    gate.issuer.inject(Endpoint::Token, Fault::invalid_grant(), 1);

    // Five minutes after its last check the password is checked again, although the token is valid.
    gate.clock.advance(Duration::from_secs(28));

    assert_eq!(gate.ask("alice", "wonderland").await, Err(BasicError::Invalid));
    assert_eq!(gate.asked(), asked + 1);
}

#[tokio::test]
async fn the_time_of_a_refusal_reveals_nothing_about_the_name() {
    let gate = Gate::start("orders:read");
    for (user, thinks) in [("alice", 60), ("unknown", 0)] {
        gate.issuer.inject(Endpoint::Token, Fault::Delay(Duration::from_millis(thinks)), 1);
        let began = tokio::time::Instant::now();

        assert_eq!(gate.ask(user, "wrong").await, Err(BasicError::Invalid));

        // At least a whole step, however long the issuer took.
        assert!(began.elapsed() >= Duration::from_millis(200), "{user}: {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn wrong_credentials_are_cached_for_a_moment() {
    let gate = Gate::start("orders:read");
    for _ in 0..20 {
        assert_eq!(gate.ask("alice", "wrong").await, Err(BasicError::Invalid));
    }
    assert_eq!(gate.asked(), 1);

    gate.clock.advance(Duration::from_secs(5));

    assert_eq!(gate.ask("alice", "wrong").await, Err(BasicError::Invalid));
    assert_eq!(gate.asked(), 2);
}

#[tokio::test]
async fn guessing_ends_after_ten_failures_but_cached_credentials_are_accepted() {
    let gate = Gate::start("orders:read");
    let away: IpAddr = [198, 51, 100, 1].into();
    gate.ask_from(away, "alice", "wonderland").await.unwrap();
    for guess in 0..10 {
        assert_eq!(gate.ask("alice", &guess.to_string()).await, Err(BasicError::Invalid));
    }

    let limited = Err(BasicError::Limited { retry_after: 60 });
    assert_eq!(gate.ask("alice", "10").await, limited);
    assert_eq!(gate.ask("bob", "builder").await, limited, "the address has failed too often");
    assert!(gate.ask_from(away, "bob", "builder").await.is_ok());
    assert!(gate.ask_from(away, "alice", "wonderland").await.is_ok());
    assert_eq!(gate.asked(), 12);
}

#[tokio::test]
async fn closing_the_connection_does_not_prevent_counting_a_guess() {
    let gate = Gate::start("orders:read");
    for guess in 0..10_u64 {
        let held = gate.issuer.pause(Endpoint::Token);
        let guess_text = guess.to_string();
        tokio::select! {
            biased;
            () = gate.issuer.wait_for_calls(Endpoint::Token, guess + 1) => {}
            _ = gate.ask("alice", &guess_text) => panic!("the issuer was held"),
        }
        drop(held);
        gate.issuer.clear(Endpoint::Token);
    }
    for guess in 0..10 {
        // A cached result is not revealed either.
        let told = gate.ask("alice", &guess.to_string()).await;
        assert!(matches!(told, Err(BasicError::Limited { .. })), "{told:?}");
    }
    assert_eq!(gate.asked(), 10);
    assert!(matches!(gate.ask("alice", "wonderland").await, Err(BasicError::Limited { .. })));
}

#[tokio::test]
async fn a_correct_guess_at_a_used_account_is_refused_like_a_wrong_one() {
    let gate = Gate::start("orders:read");
    let office: IpAddr = [198, 51, 100, 1].into();
    let kept = gate.ask_from(office, "alice", "wonderland").await.unwrap();
    for guess in 0..10 {
        assert_eq!(gate.ask("alice", &guess.to_string()).await, Err(BasicError::Invalid));
    }

    let wrong = gate.ask("alice", "wrong").await;
    assert_eq!(wrong, Err(BasicError::Limited { retry_after: 60 }));
    assert_eq!(gate.ask("alice", "wonderland").await, wrong, "its token is kept");
    assert_eq!(gate.ask("alice", "9").await, wrong, "its refusal is kept");
    assert_eq!(gate.ask_from(office, "alice", "wonderland").await, Ok(kept));
}

#[tokio::test]
async fn of_many_simultaneous_guesses_only_the_allowed_number_reaches_the_issuer() {
    let gate = Gate::start("orders:read");
    let office: IpAddr = [198, 51, 100, 1].into();
    gate.ask_from(office, "alice", "wonderland").await.unwrap();
    let asked = gate.asked();
    let guesses = (0..40).map(|guess| {
        // The correct one among them is last: all permits are taken by then.
        let guess = if guess == 39 { "wonderland".to_owned() } else { guess.to_string() };
        let gate = &gate;
        async move { gate.ask("alice", &guess).await }
    });

    let told = join_all(guesses).await;

    assert_eq!(gate.asked() - asked, 10);
    assert_eq!(told.iter().filter(|told| **told == Err(BasicError::Invalid)).count(), 10);
    assert!(matches!(told[39], Err(BasicError::Limited { .. })), "{:?}", told[39]);
}

#[tokio::test]
async fn guesses_from_many_addresses_do_not_lock_out_a_recent_user() {
    let gate = Gate::start("orders:read");
    let office: IpAddr = [198, 51, 100, 1].into();
    let kept = gate.ask_from(office, "alice", "wonderland").await.unwrap();
    let from = |n: u32| IpAddr::from(core::net::Ipv4Addr::from(0x0a00_0000 + n));
    let mut told = Vec::new();
    // One after the other and all different: refused credentials are cached, and every refusal is padded.
    for n in 0..20 {
        let guesses = (0..10).map(|guess| {
            let (gate, guess) = (&gate, format!("{n}-{guess}"));
            async move { gate.ask_from(from(n), "ＡＬＩＣÉ", &guess).await }
        });
        told.extend(join_all(guesses).await);
    }
    assert!(told.iter().all(|told| *told == Err(BasicError::Invalid)));

    let stranger = gate.ask_from(from(1_000), "alice", "wonderland").await;
    assert!(matches!(stranger, Err(BasicError::Limited { .. })), "{stranger:?}");
    assert_eq!(gate.ask_from(office, "alice", "wonderland").await, Ok(kept));
    gate.clock.advance(Duration::from_secs(95));
    let guesses = (0..20).map(|n| {
        let gate = &gate;
        async move { gate.ask_from(from(n), "alice", &format!("again {n}")).await }
    });
    join_all(guesses).await;
    assert!(gate.ask_from(office, "alice", "wonderland").await.is_ok(), "a new token is got, too");
}

#[tokio::test]
async fn an_unavailable_issuer_refuses_no_user_for_guessing() {
    let gate = Gate::start("orders:read");
    let kept = gate.ask("alice", "wonderland").await.unwrap();
    let fault = Fault::Status(StatusCode::INTERNAL_SERVER_ERROR);
    gate.issuer.inject(Endpoint::Token, fault, u32::MAX);

    assert_eq!(gate.ask("bob", "builder").await, Err(BasicError::Unavailable));
    gate.clock.advance(Duration::from_secs(95));
    assert_eq!(gate.ask("alice", "wonderland").await, Ok(kept), "the token is still good");
    gate.clock.advance(Duration::from_secs(5));
    assert_eq!(gate.ask("alice", "wonderland").await, Err(BasicError::Unavailable));
}

#[tokio::test]
async fn guesses_at_a_used_account_are_counted_while_the_issuer_is_unavailable() {
    for fault in [
        Fault::Status(StatusCode::SERVICE_UNAVAILABLE),
        Fault::Status(StatusCode::INTERNAL_SERVER_ERROR),
        Fault::Close,
    ] {
        let gate = Gate::start("orders:read");
        let office: IpAddr = [198, 51, 100, 1].into();
        let kept = gate.ask_from(office, "alice", "wonderland").await.unwrap();
        gate.issuer.inject(Endpoint::Token, fault, u32::MAX);
        for guess in 0..10 {
            let told = gate.ask("ALICE", &guess.to_string()).await;
            assert_eq!(told, Err(BasicError::Unavailable), "{guess}");
        }

        let wrong = gate.ask("alice", "wrong").await;
        assert!(matches!(wrong, Err(BasicError::Limited { .. })), "{wrong:?}");
        assert_eq!(gate.ask("alice", "wonderland").await, wrong, "its token is kept");
        assert_eq!(gate.ask_from(office, "alice", "wonderland").await, Ok(kept));
    }
}

#[tokio::test]
async fn users_without_cached_tokens_are_not_counted_while_the_issuer_is_unavailable() {
    let gate = Gate::start("orders:read");
    gate.ask("alice", "wonderland").await.unwrap();
    let fault = Fault::Status(StatusCode::SERVICE_UNAVAILABLE);
    gate.issuer.inject(Endpoint::Token, fault, u32::MAX);
    for _ in 0..30 {
        assert_eq!(gate.ask("bob", "builder").await, Err(BasicError::Unavailable));
    }
    gate.clock.advance(Duration::from_secs(101));
    for _ in 0..30 {
        assert_eq!(gate.ask("alice", "wonderland").await, Err(BasicError::Unavailable));
    }

    gate.issuer.clear(Endpoint::Token);
    gate.clock.advance(Duration::from_secs(60));

    assert!(gate.ask("bob", "builder").await.is_ok());
    assert!(gate.ask("alice", "wonderland").await.is_ok());
}

/// A service that asks again and again must not find itself locked out when its issuer is back.
#[tokio::test]
async fn credentials_that_the_issuer_has_not_seen_are_no_guesses() {
    let gate = Gate::start("orders:read");
    let fault = Fault::Status(StatusCode::SERVICE_UNAVAILABLE);
    gate.issuer.inject(Endpoint::Token, fault, u32::MAX);
    for request in 0..300 {
        let told = gate.ask("alice", "wonderland").await;
        assert_eq!(told, Err(BasicError::Unavailable), "request {request}");
    }
    assert!(gate.asked() < 10, "{} calls", gate.asked());

    gate.issuer.clear(Endpoint::Token);
    gate.clock.advance(Duration::from_secs(2));

    assert!(gate.ask("alice", "wonderland").await.is_ok());
}

#[tokio::test]
async fn revoked_tokens_are_removed_and_the_credentials_are_checked_again() {
    let gate = Gate::start("orders:read");
    gate.ask("alice", "wonderland").await.unwrap();
    gate.ask("bob", "builder").await.unwrap();
    let alice = Revocation { issuer: None, what: RevocationTarget::Subject("alice".into()) };
    gate.clock.advance(Duration::from_secs(1));

    // Both the exchanged token and the cached result of verifying it.
    assert_eq!(gate.revocations.revoke(alice, None), 2);

    gate.clock.advance(Duration::from_secs(1));
    gate.ask("bob", "builder").await.unwrap();
    assert_eq!(gate.issuer.count(Endpoint::Token), 2);
    gate.ask("alice", "wonderland").await.unwrap();
    assert_eq!(gate.issuer.count(Endpoint::Token), 3);
}
