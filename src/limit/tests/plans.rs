//! Tests of plans and dry runs.

use proptest::prelude::*;

use super::*;

#[test]
fn a_callers_claim_selects_its_allowance_and_the_fields_say_its_numbers() {
    let desk = Desk::default();
    let route = desk.route(vec![by_plan(true), quota("other", 100, Unit::Day)]);

    for (plan, allowance) in [(json!("free"), 2), (json!("gold"), 5), (json!("none"), 1)] {
        let caller = with_plan(
            if allowance == 2 {
                "a"
            } else if allowance == 5 {
                "b"
            } else {
                "c"
            },
            plan,
        );
        let (admitted, standing) = desk.check(&route, &caller);
        assert_eq!(admitted, Ok(()));
        let (left, policy) = fields(&route, &standing);
        assert!(left.starts_with(&format!(r#""daily";r={};"#, allowance - 1)), "{left}");
        let expected = format!(r#""daily";q={allowance};w=86400, "other";q=100;w=86400"#);
        assert_eq!(policy, expected);
        for _ in 1..allowance {
            assert_eq!(desk.ask(&route, &caller), Ok(()));
        }
        assert_eq!(desk.ask(&route, &caller), Err(429));
    }
}

#[test]
fn another_plan_takes_effect_at_once_and_keeps_what_was_used() {
    for window in [Window::Calendar(Zone::utc()), Window::Flexi, Window::Rolling] {
        let desk = Desk::default();
        let route = desk.route(vec![plans_in(window.clone(), true)]);
        let ask = |plan| desk.ask(&route, &with_plan("a", json!(plan)));

        assert_eq!([ask("free"), ask("free"), ask("free")], [Ok(()), Ok(()), Err(429)]);
        assert_eq!([ask("gold"), ask("gold"), ask("gold")], [Ok(()); 3], "{window:?}");
        assert_eq!(ask("gold"), Err(429), "two were used as free: {window:?}");
        assert_eq!(ask("free"), Err(429));
    }
}

#[test]
fn a_caller_without_a_plan_has_the_default_or_is_refused() {
    let desk = Desk::default();
    let (open, closed) = (desk.route(vec![by_plan(true)]), desk.route(vec![by_plan(false)]));
    for claims in
        [json!({}), json!({ "plan": "x" }), json!({ "plan": ["gold"] }), json!({ "plan": 7 })]
    {
        let caller = Caller { claims, client: Some("z"), ip: "192.0.2.9", ..Caller::default() };
        assert_eq!(desk.ask(&closed, &caller), Err(403));
    }
    assert_eq!(desk.ask(&closed, &with_plan("a", json!("free"))), Ok(()));
    assert_eq!(desk.ask(&open, &Caller::named("z")), Ok(()));
    assert_eq!(desk.ask(&open, &Caller::named("z")), Err(429));
}

#[test]
fn the_file_assigns_a_plan_before_the_claim_does() {
    let desk = Desk::default();
    let mut limit = by_plan(true);
    if let Some(plans) = &mut limit.plans {
        plans.clients = Box::new([("partner".into(), 1)]);
    }
    let route = desk.route(vec![limit]);

    let caller = with_plan("partner", json!("free"));
    let admitted = (0..10).filter(|_| desk.ask(&route, &caller).is_ok()).count();
    assert_eq!(admitted, 5, "gold");
}

#[test]
fn a_limit_by_plan_waits_for_the_caller() {
    let mut even = rate("even", 1, Unit::Second, None);
    assert!(even.runs_before_authentication());

    even.plans = by_plan(true).plans;
    assert!(!even.runs_before_authentication());
    assert!(even.needs_principal());
}

#[test]
fn a_dry_run_counts_and_reports_and_refuses_nothing() {
    let desk = Desk::default();
    let dry = |mut limit: Settings| {
        limit.dry_run = true;
        limit
    };
    let route = desk.route(vec![
        dry(quota("spike", 2, Unit::Day)),
        dry(concurrency("slots", 1)),
        dry(by_plan(false)),
    ]);
    let mut held = Vec::new();
    for n in 0..5 {
        let (admitted, mut standing) = desk.check(&route, &Caller::default());
        assert_eq!(admitted, Ok(()));
        let refused = route.take_dry_run(&mut standing);
        // The first in the file.
        assert_eq!(refused, Some(["daily", "slots", "spike", "spike", "spike"][n]));
        let mut headers = HeaderMap::new();
        route.write(&standing, &mut headers);
        assert!(headers.is_empty(), "clients are told nothing: {headers:?}");
        held.push(standing);
    }

    let seen = desk.metrics.render();
    assert!(seen.contains(&decisions("allowed", 2)), "{seen}");
    assert!(seen.contains(&decisions("dry_run", 3)), "{seen}");
}

#[test]
fn a_dry_run_refuses_in_no_way_and_reports_each() {
    let dry = |settings: Settings| Settings { dry_run: true, ..settings };
    let bytes =
        Settings { cost: Cost::RequestSize(NonZeroU64::MIN), ..quota("spike", 100, Unit::Day) };
    let keyless = by(quota("spike", 10, Unit::Day), [KeyPart::Client]);
    let reject = Settings { on_missing: OnMissing::Reject, ..keyless };
    let large = Caller { request_size: Some(101), ..Caller::default() };
    let planless = Settings { name: "spike".into(), ..by_plan(false) };
    for (settings, caller) in
        [(reject, Caller::default()), (bytes.clone(), large), (planless, Caller::default())]
    {
        let desk = Desk::default();
        let route = desk.route(vec![dry(settings), quota("other", 10, Unit::Day)]);

        let (admitted, mut standing) = desk.check(&route, &caller);

        assert_eq!(admitted, Ok(()));
        assert_eq!(route.take_dry_run(&mut standing), Some("spike"));
        assert!(desk.metrics.render().contains(&decisions("dry_run", 1)));
        assert!(fields(&route, &standing).0.contains("r=9"), "the other counts");
    }

    let desk = Desk::default();
    let route = desk.route(vec![dry(bytes)]);
    let in_parts = Caller { request_size: None, ..Caller::default() };
    let (_, mut standing) = desk.check(&route, &in_parts);
    let mut content = standing.content_charge().expect("bytes are counted");
    assert_eq!((desk.charge(&mut content, 100), content.dry_run()), (Ok(()), None));
    for _ in 0..3 {
        assert_eq!((desk.charge(&mut content, 10), content.dry_run()), (Ok(()), Some(0)));
    }

    assert!(desk.metrics.render().contains(&decisions("dry_run", 1)), "once for a request");
}

#[test]
fn jitter_spreads_the_return_of_refused_clients() {
    let desk = Desk::default();
    let mut limit = quota("daily", 1, Unit::Day);
    limit.retry_jitter = Duration::from_secs(60);
    let route = desk.route(vec![limit]);
    assert_eq!(desk.ask(&route, &Caller::default()), Ok(()));

    let waits: std::collections::BTreeSet<_> =
        (0..200).filter_map(|_| desk.retry_after(&route, &Caller::default())).collect();

    assert!(waits.len() > 10, "{waits:?}");
    let (first, last) = (waits.first().copied(), waits.last().copied());
    assert!(first >= Some(82_800) && last <= Some(82_860), "never before the reset: {waits:?}");
}

proptest! {
    /// The model counts in a number, whatever the plan was.
    #[test]
    fn plans_that_change_with_every_request_agree_with_a_model(
        requests in prop::collection::vec((0_u64..8_000, 0_usize..3), 1..120),
    ) {
        let desk = Desk::default();
        let route = desk.route(vec![by_plan(true)]);
        let (mut day, mut used) = (0, 0);
        for (gap, plan) in requests {
            desk.wait_millis(gap * 1_000);
            let today = desk.clock.now().as_secs() / 86_400;
            if today != day {
                (day, used) = (today, 0);
            }
            let (name, allowance) = [("free", 2), ("gold", 5), ("other", 1)][plan];
            let expected = used < allowance;
            used += u64::from(expected);

            prop_assert_eq!(desk.ask(&route, &with_plan("a", json!(name))).is_ok(), expected);
        }
    }
}

/// Two a day for `free`, five for `gold`, one by default.
fn by_plan(has_default: bool) -> Settings {
    plans_in(Window::Calendar(Zone::utc()), has_default)
}

fn plans_in(window: Window, has_default: bool) -> Settings {
    let kind = |count| {
        Kind::Quota(Quota::new(Rate::new(count, Unit::Day).unwrap(), window.clone()).unwrap())
    };
    let plan = |name: &str, count| Plan { name: name.into(), kind: kind(count) };
    let mut settings = by(Settings::new("daily", kind(1)), [KeyPart::Client]);
    settings.plans = Some(Plans {
        claim: Some("plan".into()),
        values: Box::new([plan("free", 2), plan("gold", 5)]),
        clients: Box::default(),
        has_default,
    });
    settings
}

fn with_plan(client: &'static str, plan: Value) -> Caller {
    Caller { client: Some(client), claims: json!({ "plan": plan }), ..Caller::default() }
}
