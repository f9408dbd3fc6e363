//! Tests of costs that the response tells.

use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;

#[test]
fn a_cost_is_charged_when_it_is_known_and_its_debt_is_carried() {
    let desk = Desk::at("2025-06-01T12:00:00Z");
    let route = desk.route(vec![told(quota("tokens", 100, Unit::Day))]);
    let day = 86_400_000;

    assert_eq!(desk.cost(&route, Some("40")), Ok((60, 43_200)));
    assert_eq!(desk.cost(&route, Some("250")), Ok((0, 129_600)), "290 of 100 are used");
    assert_eq!(desk.cost(&route, Some("1")), Err(429));
    assert_eq!(desk.retry_after(&route, &Caller::default()), Some(43_200 + 86_400));
    desk.wait_millis(day);
    assert_eq!(desk.cost(&route, Some("1")), Err(429), "190 are carried");
    desk.wait_millis(day);
    assert_eq!(desk.cost(&route, Some("4")), Ok((6, 43_200)), "90 are carried");
    desk.wait_millis(day);
    assert_eq!(desk.cost(&route, Some("4")), Ok((96, 43_200)));
}

#[test]
fn a_response_without_a_cost_is_charged_the_default_and_one_of_zero_nothing() {
    let desk = Desk::default();
    let mut limit = told(quota("tokens", 100, Unit::Day));
    limit.cost = Cost::Fixed(NonZeroU32::new(7).unwrap());
    let route = desk.route(vec![limit]);

    assert_eq!(desk.cost(&route, None), Ok((93, 82_800)));
    assert_eq!(desk.cost(&route, Some("nonsense")), Ok((86, 82_800)));
    assert_eq!(desk.cost(&route, Some("0")), Ok((86, 82_800)));
    assert_eq!(desk.cost(&route, Some("2.5")), Ok((83, 82_800)));
}

#[test]
fn a_cost_below_the_default_is_given_back_in_the_window_that_was_charged() {
    let desk = Desk::at("2025-06-01T23:00:00Z");
    let mut limit = told(quota("tokens", 10, Unit::Day));
    limit.metered = true;
    let route = desk.route(vec![limit]);
    let (_, mut late) = desk.check(&route, &Caller::named("a"));
    desk.wait_millis(3_600_000);
    desk.cost(&route, Some("1")).unwrap();

    let head = [(HeaderName::from_static("x-cost"), HeaderValue::from_static("0"))];
    late.settle_by_head(&head.into_iter().collect(), Now::of(&desk.clock));

    assert_eq!(desk.cost(&route, Some("1")), Ok((8, 86_400)));
    let usage = desk.registry.collect_usage(Now::of(&desk.clock));
    let billed: Vec<_> =
        usage.iter().map(|usage| usage.units).filter(|units| *units != 0).collect();
    assert_eq!(billed, [2], "of the new window alone");
}

#[test]
fn a_rolling_quota_and_a_rate_carry_debt_as_well() {
    let desk = Desk::default();
    let rolling = Quota::new(Rate::new(60, Unit::Hour).unwrap(), Window::Rolling).unwrap();
    let rolling = told(Settings::new("rolling", Kind::Quota(rolling)));
    for limit in [rolling, told(by(rate("even", 1, Unit::Minute, Some(60)), [KeyPart::Client]))] {
        let route = desk.route(vec![limit]);
        assert_eq!(desk.cost(&route, Some("120")), Ok((0, 3_660)));
        desk.wait_millis(3_659_000);
        assert_eq!(desk.cost(&route, Some("1")), Err(429));
        desk.wait_millis(1_000);
        assert_eq!(desk.cost(&route, Some("1")).map(|(left, _)| left), Ok(0));
    }
}

#[test]
fn debt_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let flexi = Quota::new(Rate::new(10, Unit::Hour).unwrap(), Window::Flexi).unwrap();
    let limits = || {
        vec![
            told(quota("tokens", 10, Unit::Hour)),
            told(Settings::new("flexi", Kind::Quota(flexi.clone()))),
        ]
    };
    let before = Desk::at("2025-06-01T01:00:00Z");
    let route = before.route(limits());
    before.cost(&route, Some("25")).unwrap();
    before.registry.save(dir.path(), Now::of(&before.clock)).unwrap();

    let after = Desk::at("2025-06-01T02:30:00Z");
    after.registry.load(dir.path(), Now::of(&after.clock)).unwrap();
    let route = after.route(limits());
    assert_eq!(after.cost(&route, Some("1")), Err(429), "15 are carried");
    after.wait_millis(1_800_000);
    assert_eq!(after.cost(&route, Some("1")).map(|(left, _)| left), Ok(4), "5 are carried");
}

proptest! {
    /// The model is a number of used units that every day lowers by the allowance.
    #[test]
    fn costs_agree_with_a_model(
        allowance in 1_u64..50,
        requests in prop::collection::vec((0_u64..40_000, prop::option::of(0_u64..120)), 1..100),
    ) {
        let desk = Desk::default();
        let route = desk.route(vec![told(quota("tokens", allowance, Unit::Day))]);
        let (mut day, mut used) = (desk.clock.now().as_secs() / 86_400, 0_u64);
        for (gap, cost) in requests {
            desk.wait_millis(gap * 1_000);
            let today = desk.clock.now().as_secs() / 86_400;
            used = used.saturating_sub((today - day) * allowance);
            day = today;
            let admitted = used < allowance;
            used += if admitted { cost.unwrap_or(1) } else { 0 };

            let told = cost.map(|cost| cost.to_string());
            let outcome = desk.cost(&route, told.as_deref());
            prop_assert_eq!(outcome.is_ok(), admitted);
            if let Ok((left, _)) = outcome {
                prop_assert_eq!(left, allowance.saturating_sub(used));
            }
        }
    }
}

impl Desk {
    /// Checks a request whose response tells `cost`; returns the remaining allowance and the seconds until its reset.
    fn cost(&self, route: &RouteLimits, cost: Option<&str>) -> Result<(u64, u64), u16> {
        let (admitted, mut standing) = self.check(route, &Caller::named("a"));
        if admitted.is_err() {
            return Err(429);
        }
        let mut head = HeaderMap::new();
        if let Some(cost) = cost {
            head.insert("x-cost", HeaderValue::from_str(cost).unwrap());
        }
        standing.settle_by_head(&head, Now::of(&self.clock));
        let left = fields(route, &standing).0;
        let number = |mark: &str| {
            let text = left.split_once(mark).map_or("0", |(_, rest)| rest);
            let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            text[..end].parse().unwrap()
        };
        Ok((number("r="), number("t=")))
    }
}

fn told(limit: Settings) -> Settings {
    Settings {
        response_cost: Some(ResponseCost::Header(HeaderName::from_static("x-cost"))),
        ..limit
    }
}
