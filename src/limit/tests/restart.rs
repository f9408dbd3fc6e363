//! Tests of the state that survives a restart.

use super::*;

#[test]
fn only_quotas_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let limits = || {
        let window = |name, window| {
            let quota = Quota::new(Rate::new(2, Unit::Hour).unwrap(), window).unwrap();
            by(Settings::new(name, Kind::Quota(quota)), [KeyPart::Client])
        };
        vec![
            window("calendar", Window::Calendar(Zone::utc())),
            window("flexi", Window::Flexi),
            window("rolling", Window::Rolling),
            by(rate("even", 1, Unit::Hour, None), [KeyPart::Client]),
            by(concurrency("slots", 1), [KeyPart::Client]),
        ]
    };
    let last = |desk: &Desk| {
        let open = |limit: Settings| {
            desk.ask(&desk.route(vec![limit.clone()]), &Caller::named("a")).is_ok()
        };
        limits().into_iter().map(open).collect::<Vec<_>>()
    };

    // Ten minutes past one, after a minute of work.
    let before = Desk::at("2025-06-01T01:09:00Z");
    before.wait_millis(60_000);
    let routes: Vec<_> = limits().into_iter().map(|limit| before.route(vec![limit])).collect();
    let held: Vec<_> = routes
        .iter()
        .flat_map(|route| [(); 2].map(|()| before.check(route, &Caller::named("a")).1))
        .collect();
    before.registry.save(dir.path(), Now::of(&before.clock)).unwrap();

    let restarted = |time| {
        let after = Desk::at(time);
        after.wait_millis(1_000);
        after.registry.load(dir.path(), Now::of(&after.clock)).unwrap();
        after
    };
    let after = restarted("2025-06-01T01:19:59Z");
    assert_eq!(last(&after), [false, false, false, true, true], "twenty past one");
    let other = after.route(limits());
    assert_eq!(after.ask(&other, &Caller::named("b")), Ok(()), "other clients have used nothing");
    assert_eq!(last(&restarted("2025-06-01T01:39:59Z"))[..3], [false, false, true]);
    assert_eq!(last(&restarted("2025-06-01T02:00:59Z"))[..3], [true, false, true]);
    assert_eq!(last(&restarted("2025-06-01T02:09:59Z"))[..3], [true, true, true]);
    // A clock that was set back by a year does not extend the wait by a year.
    let after = restarted("2024-06-01T00:00:00Z");
    assert_eq!(last(&after)[..3], [false, false, false]);
    after.wait_millis(3_600_000);
    assert_eq!(last(&after)[..3], [true, true, true]);
    drop(held);
}

#[test]
fn a_shared_limit_takes_no_counts_of_a_local_one_of_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let quota = Quota::new(Rate::new(1, Unit::Day).unwrap(), Window::Flexi).unwrap();
    let local = by(Settings::new("daily", Kind::Quota(quota)), [KeyPart::Client]);
    let store = Store::Redis { exact: false, on_error: OnStoreError::Local };
    let shared = Settings { store, ..local.clone() };
    let before = Desk::at("2025-06-01T01:09:00Z");
    assert!(before.ask(&before.route(vec![local.clone()]), &Caller::named("a")).is_ok());
    drop(before.route(vec![shared.clone()]));
    before.registry.save(dir.path(), Now::of(&before.clock)).unwrap();

    let after = Desk::at("2025-06-01T01:10:00Z");
    after.registry.load(dir.path(), Now::of(&after.clock)).unwrap();
    drop(after.route(vec![shared]));

    assert!(after.ask(&after.route(vec![local]), &Caller::named("a")).is_err());
}

#[test]
fn a_restart_does_not_shorten_a_month() {
    let dir = tempfile::tempdir().unwrap();
    let (before, after) = (Desk::at("2025-01-01T00:00:00Z"), Desk::at("2025-01-01T00:00:01Z"));
    let limit = || vec![quota("monthly", 1, Unit::Month)];
    let route = before.route(limit());
    assert_eq!(before.ask(&route, &Caller::default()), Ok(()));
    before.registry.save(dir.path(), Now::of(&before.clock)).unwrap();

    after.registry.load(dir.path(), Now::of(&after.clock)).unwrap();
    let route = after.route(limit());
    after.wait_millis(30 * 86_400_000);
    assert_eq!(after.ask(&route, &Caller::default()), Err(429), "the thirty-first");
    after.wait_millis(86_400_000);
    assert_eq!(after.ask(&route, &Caller::default()), Ok(()));
}

#[test]
fn quotas_of_unused_limits_are_saved() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second, third) = (Desk::default(), Desk::default(), Desk::default());
    let used = first.route(vec![quota("daily", 1, Unit::Day)]);
    assert_eq!(first.ask(&used, &Caller::default()), Ok(()));
    first.registry.save(dir.path(), Now::of(&first.clock)).unwrap();

    second.registry.load(dir.path(), Now::of(&second.clock)).unwrap();
    second.registry.save(dir.path(), Now::of(&second.clock)).unwrap();

    third.registry.load(dir.path(), Now::of(&third.clock)).unwrap();
    let route = third.route(vec![quota("daily", 1, Unit::Day)]);
    assert_eq!(third.ask(&route, &Caller::default()), Err(429));
}
