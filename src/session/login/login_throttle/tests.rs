use core::future::poll_fn;
use core::task::Poll;

use futures_util::FutureExt;

use super::*;

const HOME: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(192, 0, 2, 1));
const WINDOW: Duration = Duration::from_secs(60);

fn two_a_minute() -> (Arc<LoginThrottle>, Clock) {
    let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
    let allowed = settings::Failures { count: 2, window: WINDOW };
    let counts = Arc::new(Counts::new(clock.clone()));
    (Arc::new(LoginThrottle::new(allowed, counts)), clock)
}

/// Another way in to the same authorization server.
fn beside(one: &LoginThrottle, count: u32, window: Duration) -> Arc<LoginThrottle> {
    let allowed = settings::Failures { count, window };
    Arc::new(LoginThrottle::new(allowed, Arc::clone(&one.counts)))
}

/// An address of its own for each `n`.
fn from(n: u32) -> IpAddr {
    IpAddr::from(core::net::Ipv4Addr::from(0x0a00_0000 + n))
}

/// An attempt that does not have to wait.
fn begin(
    failures: &Arc<LoginThrottle>,
    user: &str,
    address: IpAddr,
) -> Result<LoginAttempt, TooMany> {
    failures.begin(user, address).now_or_never().expect("there is a place, or none will be")
}

fn fail(failures: &Arc<LoginThrottle>, user: &str, address: IpAddr) -> Result<(), TooMany> {
    begin(failures, user, address).map(LoginAttempt::failed)
}

fn admitted(failures: &LoginThrottle, user: &str, address: IpAddr) -> Option<Result<(), TooMany>> {
    failures.admit(user, address).now_or_never()
}

#[test]
fn an_address_is_refused_whatever_name_it_tries() {
    let (failures, clock) = two_a_minute();

    assert_eq!(fail(&failures, "a", HOME), Ok(()));
    clock.advance(Duration::from_millis(19_500));
    assert_eq!(fail(&failures, "b", HOME), Ok(()));
    assert_eq!(fail(&failures, "c", HOME), Err(TooMany { retry_after: 41 }));
    assert_eq!(admitted(&failures, "d", HOME), Some(Err(TooMany { retry_after: 41 })));
    assert!(begin(&failures, "a", from(1)).is_ok());
}

#[test]
fn a_name_is_refused_only_after_far_more_failures_than_an_address() {
    let (failures, _) = two_a_minute();
    for n in 0..2 * NAME_FACTOR {
        assert_eq!(fail(&failures, "alice", from(n)), Ok(()), "{n}");
    }

    assert!(fail(&failures, "alice", from(1_000)).is_err());
    assert!(matches!(admitted(&failures, "alice", from(1_000)), Some(Err(_))));
    assert!(begin(&failures, "bob", from(1_000)).is_ok());
}

#[test]
fn where_a_name_has_logged_in_lately_the_failures_of_others_lock_nobody_out() {
    let (failures, _) = two_a_minute();
    begin(&failures, "alice", HOME).unwrap().passed();
    failures.recognized("Alice", from(5_000));
    for n in 0..2 * NAME_FACTOR {
        fail(&failures, "alice", from(n)).unwrap();
    }

    for familiar in [HOME, from(5_000)] {
        assert_eq!(admitted(&failures, "ALICE", familiar), Some(Ok(())));
        assert!(begin(&failures, "alice", familiar).is_ok());
    }
    assert!(begin(&failures, "alice", from(5_001)).is_err());
    // There the address's own limit holds all the same.
    fail(&failures, "alice", HOME).unwrap();
    fail(&failures, "alice", HOME).unwrap();
    assert!(begin(&failures, "alice", HOME).is_err());
}

#[test]
fn two_ways_in_give_no_more_guesses_than_one() {
    let (login, clock) = two_a_minute();
    let basic = beside(&login, 3, WINDOW * 10);
    fail(&login, "alice", HOME).unwrap();
    fail(&basic, "alice", HOME).unwrap();

    assert!(fail(&login, "alice", HOME).is_err());
    assert!(matches!(admitted(&login, "alice", HOME), Some(Err(_))));
    assert_eq!(fail(&basic, "alice", HOME), Ok(()), "its own limit is higher");
    assert!(fail(&basic, "alice", HOME).is_err());

    // Each forgets after its own time, whatever the other does.
    clock.advance(WINDOW);
    assert_eq!(fail(&login, "alice", HOME), Ok(()));
    assert!(fail(&basic, "alice", HOME).is_err());
    clock.advance(WINDOW * 9);
    assert_eq!(fail(&basic, "alice", HOME), Ok(()));
}

#[test]
fn guesses_at_a_name_count_at_every_way_in_but_not_where_it_has_logged_in_by_one() {
    let (login, _) = two_a_minute();
    let basic = beside(&login, 2, WINDOW);
    begin(&login, "alice", HOME).unwrap().passed();
    for n in 0..2 * NAME_FACTOR {
        let door = if n % 2 == 0 { &login } else { &basic };
        fail(door, "alice", from(n)).unwrap();
    }

    for door in [&login, &basic] {
        assert!(begin(door, "Alice", from(1_000)).is_err());
        assert!(begin(door, "alice", HOME).is_ok());
    }
}

#[tokio::test]
async fn guesses_under_way_at_one_way_in_are_waited_for_at_the_other() {
    let (login, _) = two_a_minute();
    let basic = beside(&login, 3, WINDOW);
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

    // One place is enough for the other alone, whoever has waited for longer.
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
fn it_is_heard_again_when_the_window_is_over() {
    let (failures, clock) = two_a_minute();
    for _ in 0..2 {
        fail(&failures, "alice", HOME).unwrap();
    }

    clock.advance(WINDOW);

    assert_eq!(admitted(&failures, "alice", HOME), Some(Ok(())));
    assert_eq!(fail(&failures, "alice", HOME), Ok(()));
    assert_eq!(fail(&failures, "alice", HOME), Ok(()));
    assert!(fail(&failures, "alice", HOME).is_err());
}

#[test]
fn a_name_is_exempt_only_where_exactly_it_has_logged_in() {
    let all: Vec<_> = ["a", "b", "ab", ""]
        .into_iter()
        .flat_map(|name| [1, 2, 1 << 63].map(|network| familiar(name, network)))
        .collect();
    for (index, one) in all.iter().enumerate() {
        assert!(!all[..index].contains(one), "{index}");
    }
}

#[test]
fn what_is_neither_taken_nor_refused_counts_for_the_name_alone() {
    let (failures, _) = two_a_minute();
    for n in 0..2 * NAME_FACTOR {
        let attempt = begin(&failures, "alice", HOME);
        attempt.unwrap_or_else(|error| panic!("{n}: {error}")).undecided();
    }

    assert!(begin(&failures, "alice", HOME).is_err());
    assert!(begin(&failures, "ALICE", from(1)).is_err());
    begin(&failures, "bob", HOME).unwrap().passed();
    for _ in 0..=2 * NAME_FACTOR {
        begin(&failures, "bob", HOME).unwrap().undecided();
    }
}

#[test]
fn success_and_what_was_never_answered_give_their_places_back() {
    let (failures, _) = two_a_minute();
    for _ in 0..10 {
        begin(&failures, "alice", HOME).unwrap().passed();
        drop(begin(&failures, "alice", HOME).unwrap());
    }
    assert!(begin(&failures, "alice", HOME).is_ok());
    assert_eq!(failures.counts.under_way.load(SeqCst), 0);
}

#[tokio::test]
async fn of_twenty_guesses_at_once_only_the_allowed_ones_are_tried() {
    let (failures, _) = two_a_minute();
    let tried = Arc::new(AtomicUsize::new(0));
    let guesses = (0..20).map(|_| {
        let (failures, tried) = (Arc::clone(&failures), Arc::clone(&tried));
        async move {
            let attempt = failures.begin("alice", HOME).await?;
            tried.fetch_add(1, SeqCst);
            tokio::task::yield_now().await;
            attempt.failed();
            Ok::<_, TooMany>(())
        }
    });

    let told = futures_util::future::join_all(guesses).await;

    assert_eq!(tried.load(SeqCst), 2);
    assert_eq!(told.iter().filter(|told| told.is_ok()).count(), 2);
}

#[tokio::test]
async fn a_crowd_that_logs_in_rightly_is_not_refused() {
    let (failures, _) = two_a_minute();
    let crowd = (0..50).map(|n| {
        let failures = Arc::clone(&failures);
        async move {
            let attempt = failures.begin(&format!("user{n}"), HOME).await?;
            tokio::task::yield_now().await;
            attempt.passed();
            Ok::<_, TooMany>(())
        }
    });

    let told = futures_util::future::join_all(crowd).await;

    assert!(told.iter().all(Result::is_ok));
}

#[tokio::test]
async fn an_answer_from_memory_waits_for_the_attempts_under_way() {
    let (failures, _) = two_a_minute();
    let one = begin(&failures, "alice", HOME).unwrap();
    let two = begin(&failures, "alice", HOME).unwrap();
    let mut admitted = Box::pin(failures.admit("alice", HOME));
    let mut another = Box::pin(failures.admit("alice", HOME));
    poll_fn(|cx| {
        assert!(admitted.poll_unpin(cx).is_pending() && another.poll_unpin(cx).is_pending());
        Poll::Ready(())
    })
    .await;

    one.passed();
    assert_eq!((admitted.await, another.await), (Ok(()), Ok(())));

    let three = begin(&failures, "alice", HOME).unwrap();
    let admitted = failures.admit("alice", HOME);
    let (told, ()) = futures_util::future::join(admitted, async {
        two.failed();
        three.failed();
    })
    .await;
    assert!(told.is_err());
}

#[test]
fn the_addresses_of_one_ipv6_network_are_one() {
    let (failures, _) = two_a_minute();
    let v6 = |text: &str| text.parse::<IpAddr>().unwrap();

    fail(&failures, "a", v6("2001:db8::1")).unwrap();
    fail(&failures, "b", v6("2001:db8::2")).unwrap();
    assert!(fail(&failures, "c", v6("2001:db8::3")).is_err());
    assert!(fail(&failures, "c", v6("2001:db8:0:1::3")).is_ok());

    fail(&failures, "d", HOME).unwrap();
    fail(&failures, "e", v6("::ffff:192.0.2.1")).unwrap();
    assert!(fail(&failures, "f", HOME).is_err());
}

#[test]
fn a_flood_of_names_costs_bounded_memory() {
    let (failures, _) = two_a_minute();
    for n in 0..MAX_COUNTS + 5_000 {
        failures.counts.by_key.get_with(n, Arc::default);
    }
    let counts = &failures.counts.by_key;
    counts.run_pending_tasks();

    assert!(counts.entry_count() <= MAX_COUNTS);
    assert!(counts.contains_key(&(MAX_COUNTS + 4_999)));
}
