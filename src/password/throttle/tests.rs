use core::future::poll_fn;
use core::task::Poll;

use futures_util::FutureExt;

use super::*;

const HOME: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(192, 0, 2, 1));
const WINDOW: Duration = Duration::from_secs(60);

fn two_a_minute() -> (Arc<LoginThrottle>, Clock) {
    let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
    let allowed = Failures { count: 2, window: WINDOW };
    let counts = Arc::new(Counts::new(clock.clone()));
    (Arc::new(LoginThrottle::new(allowed, counts)), clock)
}

/// Another login method at the same authorization server.
fn other_method(one: &LoginThrottle, count: u32, window: Duration) -> Arc<LoginThrottle> {
    let allowed = Failures { count, window };
    Arc::new(LoginThrottle::new(allowed, Arc::clone(&one.counts)))
}

/// A distinct address for each `n`.
fn from(n: u32) -> IpAddr {
    IpAddr::from(core::net::Ipv4Addr::from(0x0a00_0000 + n))
}

/// Begins an attempt that does not have to wait.
fn begin(
    throttle: &Arc<LoginThrottle>,
    user: &str,
    address: IpAddr,
) -> Result<LoginAttempt, TooMany> {
    throttle.begin(user, address).now_or_never().expect("begins or is refused at once")
}

fn fail(throttle: &Arc<LoginThrottle>, user: &str, address: IpAddr) -> Result<(), TooMany> {
    begin(throttle, user, address).map(LoginAttempt::failed)
}

fn admitted(throttle: &LoginThrottle, user: &str, address: IpAddr) -> Option<Result<(), TooMany>> {
    throttle.admit(user, address).now_or_never()
}

#[test]
fn an_address_is_refused_for_all_names() {
    let (throttle, clock) = two_a_minute();

    assert_eq!(fail(&throttle, "a", HOME), Ok(()));
    clock.advance(Duration::from_millis(19_500));
    assert_eq!(fail(&throttle, "b", HOME), Ok(()));
    assert_eq!(fail(&throttle, "c", HOME), Err(TooMany { retry_after: 41 }));
    assert_eq!(admitted(&throttle, "d", HOME), Some(Err(TooMany { retry_after: 41 })));
    assert!(begin(&throttle, "a", from(1)).is_ok());
}

#[test]
fn a_name_may_fail_far_more_often_than_an_address() {
    let (throttle, _) = two_a_minute();
    for n in 0..2 * NAME_FACTOR {
        assert_eq!(fail(&throttle, "alice", from(n)), Ok(()), "{n}");
    }

    assert!(fail(&throttle, "alice", from(1_000)).is_err());
    assert!(matches!(admitted(&throttle, "alice", from(1_000)), Some(Err(_))));
    assert!(begin(&throttle, "bob", from(1_000)).is_ok());
}

#[test]
fn a_name_is_not_locked_out_at_addresses_it_logged_in_from() {
    let (throttle, _) = two_a_minute();
    begin(&throttle, "alice", HOME).unwrap().passed();
    throttle.recognized("alice", from(5_000));
    for n in 0..2 * NAME_FACTOR {
        fail(&throttle, "alice", from(n)).unwrap();
    }

    for familiar in [HOME, from(5_000)] {
        assert_eq!(admitted(&throttle, "alice", familiar), Some(Ok(())));
        assert!(begin(&throttle, "alice", familiar).is_ok());
    }
    assert!(begin(&throttle, "alice", from(5_001)).is_err());
    // The limit of the address applies there as well.
    fail(&throttle, "alice", HOME).unwrap();
    fail(&throttle, "alice", HOME).unwrap();
    assert!(begin(&throttle, "alice", HOME).is_err());
}

#[test]
fn a_user_whose_name_folds_alike_is_not_exempt_from_the_limit_of_another() {
    let (throttle, _) = two_a_minute();
    for (n, similar) in (7_000..).zip(["Alice", "alicé", "ａlice", "al ice", "alice\u{200b}"]) {
        begin(&throttle, similar, from(n)).unwrap().passed();
        throttle.recognized(similar, from(n));
    }
    for n in 0..2 * NAME_FACTOR {
        fail(&throttle, "alice", from(n)).unwrap();
    }

    for n in 7_000..7_005 {
        assert!(begin(&throttle, "alice", from(n)).is_err(), "{n}");
        assert!(matches!(admitted(&throttle, "alice", from(n)), Some(Err(_))), "{n}");
    }
}

#[test]
fn a_client_that_fails_locks_out_no_user_who_has_logged_in_behind_the_same_address() {
    let (login, _) = two_a_minute();
    let basic = other_method(&login, 2, WINDOW);
    begin(&login, "alice", HOME).unwrap().passed();
    begin(&basic, "script", HOME).unwrap().passed();
    for name in ["script", "script"] {
        fail(&basic, name, HOME).unwrap();
    }

    assert!(fail(&basic, "script", HOME).is_err(), "it repeats an old password");
    assert!(begin(&login, "newcomer", HOME).is_err());
    assert_eq!(admitted(&login, "alice", HOME), Some(Ok(())));
    for _ in 0..2 {
        fail(&login, "alice", HOME).unwrap();
    }
    assert!(fail(&login, "alice", HOME).is_err(), "her own guesses count");
}

#[test]
fn an_address_may_not_try_all_names_that_have_logged_in_there() {
    let (throttle, _) = two_a_minute();
    let names: Vec<_> = (0..=2 * NAME_FACTOR).map(|n| format!("user{n}")).collect();
    for name in &names {
        begin(&throttle, name, HOME).unwrap().passed();
    }

    let tried = names.iter().filter(|name| fail(&throttle, name, HOME).is_ok()).count();

    assert_eq!(tried, names.len() - 1);
}

#[test]
fn two_login_methods_allow_no_more_guesses_than_one() {
    let (login, clock) = two_a_minute();
    let basic = other_method(&login, 3, WINDOW * 10);
    fail(&login, "alice", HOME).unwrap();
    fail(&basic, "alice", HOME).unwrap();

    assert!(fail(&login, "alice", HOME).is_err());
    assert!(matches!(admitted(&login, "alice", HOME), Some(Err(_))));
    assert_eq!(fail(&basic, "alice", HOME), Ok(()), "its own limit is higher");
    assert!(fail(&basic, "alice", HOME).is_err());

    // Each method counts in its own window.
    clock.advance(WINDOW);
    assert_eq!(fail(&login, "alice", HOME), Ok(()));
    assert!(fail(&basic, "alice", HOME).is_err());
    clock.advance(WINDOW * 9);
    assert_eq!(fail(&basic, "alice", HOME), Ok(()));
}

#[test]
fn failures_of_a_name_count_at_all_methods_but_not_at_familiar_addresses() {
    let (login, _) = two_a_minute();
    let basic = other_method(&login, 2, WINDOW);
    begin(&login, "alice", HOME).unwrap().passed();
    for n in 0..2 * NAME_FACTOR {
        let method = if n % 2 == 0 { &login } else { &basic };
        fail(method, "alice", from(n)).unwrap();
    }

    for method in [&login, &basic] {
        assert!(begin(method, "Alice", from(1_000)).is_err());
        assert!(begin(method, "alice", HOME).is_ok());
    }
}

#[tokio::test]
async fn attempts_at_one_method_are_waited_for_at_the_other() {
    let (login, _) = two_a_minute();
    let basic = other_method(&login, 3, WINDOW);
    let one = begin(&login, "alice", HOME).unwrap();
    let two = begin(&basic, "alice", HOME).unwrap();
    let mut strict = Box::pin(login.begin("alice", HOME));
    let three = begin(&basic, "alice", HOME).unwrap();
    let mut lax = Box::pin(basic.begin("alice", HOME));
    poll_fn(|cx| {
        assert!(strict.poll_unpin(cx).is_pending() && lax.poll_unpin(cx).is_pending());
        Poll::Ready(())
    })
    .await;

    // One released permit is enough for the laxer limit, although the stricter one has waited longer.
    drop(one);
    let four = poll_fn(|cx| {
        assert!(strict.poll_unpin(cx).is_pending());
        lax.poll_unpin(cx)
    })
    .await;

    four.unwrap().failed();
    two.failed();
    assert!(strict.await.is_err());
    three.passed();
}

#[test]
fn an_address_may_try_again_after_the_window() {
    let (throttle, clock) = two_a_minute();
    for _ in 0..2 {
        fail(&throttle, "alice", HOME).unwrap();
    }

    clock.advance(WINDOW);

    assert_eq!(admitted(&throttle, "alice", HOME), Some(Ok(())));
    assert_eq!(fail(&throttle, "alice", HOME), Ok(()));
    assert_eq!(fail(&throttle, "alice", HOME), Ok(()));
    assert!(fail(&throttle, "alice", HOME).is_err());
}

#[test]
fn an_exemption_covers_exactly_one_name_and_network() {
    let all: Vec<_> = ["a", "b", "ab", ""]
        .into_iter()
        .flat_map(|name| [1, 2, 1 << 63].map(|network| familiar(name, network)))
        .collect();
    for (index, one) in all.iter().enumerate() {
        assert!(!all[..index].contains(one), "{index}");
    }
}

#[test]
fn an_unclear_outcome_counts_for_the_name_alone() {
    let (throttle, _) = two_a_minute();
    for n in 0..2 * NAME_FACTOR {
        let attempt = begin(&throttle, "alice", HOME);
        attempt.unwrap_or_else(|error| panic!("{n}: {error}")).undecided();
    }

    assert!(begin(&throttle, "alice", HOME).is_err());
    assert!(begin(&throttle, "ALICE", from(1)).is_err());
    begin(&throttle, "bob", HOME).unwrap().passed();
    for _ in 0..=2 * NAME_FACTOR {
        begin(&throttle, "bob", HOME).unwrap().undecided();
    }
}

#[test]
fn successful_and_dropped_attempts_release_their_permits() {
    let (throttle, _) = two_a_minute();
    for _ in 0..10 {
        begin(&throttle, "alice", HOME).unwrap().passed();
        drop(begin(&throttle, "alice", HOME).unwrap());
    }
    assert!(begin(&throttle, "alice", HOME).is_ok());
    assert_eq!(throttle.counts.under_way.load(SeqCst), 0);
}

#[tokio::test]
async fn of_twenty_simultaneous_guesses_only_the_allowed_number_is_tried() {
    let (throttle, _) = two_a_minute();
    let tried = Arc::new(AtomicUsize::new(0));
    let guesses = (0..20).map(|_| {
        let (throttle, tried) = (Arc::clone(&throttle), Arc::clone(&tried));
        async move {
            let attempt = throttle.begin("alice", HOME).await?;
            tried.fetch_add(1, SeqCst);
            tokio::task::yield_now().await;
            attempt.failed();
            Ok::<_, TooMany>(())
        }
    });

    let results = futures_util::future::join_all(guesses).await;

    assert_eq!(tried.load(SeqCst), 2);
    assert_eq!(results.iter().filter(|results| results.is_ok()).count(), 2);
}

#[tokio::test]
async fn many_simultaneous_correct_logins_are_not_refused() {
    let (throttle, _) = two_a_minute();
    let logins = (0..50).map(|n| {
        let throttle = Arc::clone(&throttle);
        async move {
            let attempt = throttle.begin(&format!("user{n}"), HOME).await?;
            tokio::task::yield_now().await;
            attempt.passed();
            Ok::<_, TooMany>(())
        }
    });

    let results = futures_util::future::join_all(logins).await;

    assert!(results.iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_cached_response_waits_for_attempts_under_way() {
    let (throttle, _) = two_a_minute();
    let one = begin(&throttle, "alice", HOME).unwrap();
    let two = begin(&throttle, "alice", HOME).unwrap();
    let mut admitted = Box::pin(throttle.admit("alice", HOME));
    let mut another = Box::pin(throttle.admit("alice", HOME));
    poll_fn(|cx| {
        assert!(admitted.poll_unpin(cx).is_pending() && another.poll_unpin(cx).is_pending());
        Poll::Ready(())
    })
    .await;

    one.passed();
    assert_eq!((admitted.await, another.await), (Ok(()), Ok(())));

    // Alice is familiar here by now.
    let [three, four] = [(); 2].map(|()| begin(&throttle, "alice", HOME).unwrap());
    let admitted = throttle.admit("alice", HOME);
    let (results, ()) = futures_util::future::join(admitted, async {
        two.failed();
        three.failed();
        four.failed();
    })
    .await;
    assert!(results.is_err());
}

#[test]
fn addresses_of_one_ipv6_network_share_a_count() {
    let (throttle, _) = two_a_minute();
    let v6 = |text: &str| text.parse::<IpAddr>().unwrap();

    fail(&throttle, "a", v6("2001:db8::1")).unwrap();
    fail(&throttle, "b", v6("2001:db8::2")).unwrap();
    assert!(fail(&throttle, "c", v6("2001:db8::3")).is_err());
    assert!(fail(&throttle, "c", v6("2001:db8:0:1::3")).is_ok());

    fail(&throttle, "d", HOME).unwrap();
    fail(&throttle, "e", v6("::ffff:192.0.2.1")).unwrap();
    assert!(fail(&throttle, "f", HOME).is_err());
}

#[test]
fn a_flood_of_names_uses_bounded_memory() {
    let (throttle, _) = two_a_minute();
    for n in 0..MAX_COUNTS + 5_000 {
        throttle.counts.by_key.get_with(n, Arc::default);
    }
    let counts = &throttle.counts.by_key;
    counts.run_pending_tasks();

    assert!(counts.entry_count() <= MAX_COUNTS);
    assert!(counts.contains_key(&(MAX_COUNTS + 4_999)));
}
