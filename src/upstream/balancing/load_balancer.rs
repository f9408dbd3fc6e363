//! Load balancing: a pure function over states, loads and weights.

use crate::upstream::settings::Balance;

/// An endpoint as the choice sees it.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) struct Candidate {
    /// Endpoints of a higher tier are used only while none of a lower one is available: backups, and SRV records of a
    /// lower priority.
    pub(in crate::upstream) tier: u32,
    /// The weight, at least 1.
    pub(in crate::upstream) weight: u32,
    /// The number of requests in flight.
    pub(in crate::upstream) load: u32,
    /// Whether the endpoint may be chosen.
    pub(in crate::upstream) open: bool,
    /// Whether a request would wait there for another to end.
    pub(in crate::upstream) full: bool,
    /// The share of its weight in percent during a slow start, 1 to 100.
    pub(in crate::upstream) share: u8,
    /// A hash of the endpoint's name, equal on all gateways.
    pub(in crate::upstream) identity: u64,
}

/// The rules of one choice.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) struct Choice<'a> {
    pub(in crate::upstream) balance: Balance,
    /// The indices of all endpoints in the order of a weighted round: see [`round_robin_schedule`].
    pub(in crate::upstream) turns: &'a [u16],
    /// A number that increases with each choice.
    pub(in crate::upstream) turn: usize,
    /// The hash of the value that selects the endpoint, for [`Balance::Hash`].
    pub(in crate::upstream) key: Option<u64>,
}

impl Choice<'_> {
    /// Returns the endpoint for a request: one with free capacity, or else any that is open; `None` if no endpoint is. `view`
    /// returns the candidate of each index below `count`.
    pub(in crate::upstream) fn among(
        &self,
        count: usize,
        view: impl Fn(usize) -> Candidate,
    ) -> Option<usize> {
        let tiers = (0..count).map(&view).filter(|candidate| candidate.open);
        let tier = tiers.map(|candidate| candidate.tier).min()?;
        let is_open = |candidate: &Candidate| candidate.open && candidate.tier == tier;
        let with_capacity = |index| Some(view(index)).filter(|c| is_open(c) && !c.full);
        let any = |index| Some(view(index)).filter(is_open);
        self.of(count, with_capacity).or_else(|| self.of(count, any))
    }

    /// Returns one of the `eligible` endpoints by the algorithm.
    fn of(&self, count: usize, eligible: impl Fn(usize) -> Option<Candidate>) -> Option<usize> {
        match (self.balance, self.key) {
            (Balance::Hash, Some(key)) => consistent(count, eligible, key),
            (Balance::LeastRequests, _) => self.least_loaded(count, eligible),
            (Balance::RandomTwo, _) => self.less_loaded_of_two(count, eligible),
            // Without a value to hash, requests are spread.
            (Balance::RoundRobin | Balance::Hash, _) => self.round_robin(count, eligible),
        }
    }

    /// Returns the next endpoint of the round; in a slow start an endpoint passes on a part of its turns.
    fn round_robin(
        &self,
        count: usize,
        eligible: impl Fn(usize) -> Option<Candidate>,
    ) -> Option<usize> {
        let next = usize::from(*self.turns.get(self.turn.checked_rem(self.turns.len())?)?);
        let random = scatter(self.turn as u64);
        let chance = random % 100;
        let takes = |index: usize| eligible(index).filter(|it| chance < u64::from(it.share));
        // A turn that is passed on goes to a random other endpoint: else the next one of the round would receive all of
        // them.
        let draw = |accepts: &dyn Fn(usize) -> Option<Candidate>| {
            let others = || (0..count).filter_map(|i| Some((i, accepts(i)?)));
            let weight = |candidate: &Candidate| u64::from(candidate.weight.max(1));
            drawn(others, weight, random.rotate_right(32)).map(|(index, _)| index)
        };
        Some(next)
            .filter(|&index| takes(index).is_some())
            .or_else(|| draw(&takes))
            .or_else(|| Some(next).filter(|&index| eligible(index).is_some()))
            .or_else(|| draw(&eligible))
    }

    /// Returns the endpoint with the fewest requests in flight for its weight; among equal ones, each in turn.
    fn least_loaded(
        &self,
        count: usize,
        eligible: impl Fn(usize) -> Option<Candidate>,
    ) -> Option<usize> {
        let candidates = (0..count).filter_map(|i| {
            let index = (self.turn.wrapping_add(i)) % count;
            Some((index, eligible(index)?))
        });
        let least = candidates.min_by(|(_, a), (_, b)| by_load(a, b));
        least.map(|(index, _)| index)
    }

    /// Returns the less loaded of two different endpoints, drawn by weight.
    fn less_loaded_of_two(
        &self,
        count: usize,
        eligible: impl Fn(usize) -> Option<Candidate>,
    ) -> Option<usize> {
        let draw = |except: Option<usize>, chance: u64| {
            let candidates = || {
                (0..count).filter(|&i| Some(i) != except).filter_map(|i| Some((i, eligible(i)?)))
            };
            drawn(candidates, drawn_weight, chance)
        };
        let chance = scatter(self.turn as u64);
        let (first, a) = draw(None, chance)?;
        let Some((second, b)) = draw(Some(first), chance.rotate_right(32)) else {
            return Some(first);
        };
        // Both candidates were drawn by weight; the load decides between them.
        Some(if a.load <= b.load { first } else { second })
    }
}

/// Draws one of `candidates` by `weight`, where `chance` falls; `None` if there are none.
fn drawn<I: Iterator<Item = (usize, Candidate)>>(
    candidates: impl Fn() -> I,
    weight: impl Fn(&Candidate) -> u64,
    chance: u64,
) -> Option<(usize, Candidate)> {
    let total: u64 = candidates().map(|(_, candidate)| weight(&candidate)).sum();
    let mut rest = chance.checked_rem(total)?;
    candidates().find(|(_, candidate)| {
        let weight = weight(candidate);
        let found = rest < weight;
        rest = rest.saturating_sub(weight);
        found
    })
}

/// Returns the endpoint of `key` by weighted rendezvous hashing: a change of the endpoints moves only the keys of those
/// that came or went. From [`MIN_BOUND`] requests on, an endpoint with more than 125 % of its share of all requests in
/// flight is skipped.
fn consistent(
    count: usize,
    eligible: impl Fn(usize) -> Option<Candidate>,
    key: u64,
) -> Option<usize> {
    let candidates = || (0..count).filter_map(|i| Some((i, eligible(i)?)));
    let (load, weight) = candidates().fold((1, 0), |(load, weight), (_, candidate)| {
        (load + u64::from(candidate.load), weight + drawn_weight(&candidate))
    });
    let has_room = |candidate: &Candidate| {
        let max = (load * drawn_weight(candidate) * MAX_LOAD_PERCENT).div_ceil(weight * 100);
        u64::from(candidate.load) < max.max(MIN_BOUND)
    };
    let score = |candidate: &Candidate| {
        // A uniform number in (0, 1]: its logarithm makes the highest score as likely as the weight.
        let uniform = ((scatter(candidate.identity ^ key) >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        -(drawn_weight(candidate) as f64) / uniform.ln().min(-f64::MIN_POSITIVE)
    };
    let best = |having_room: bool| {
        candidates()
            .filter(|(_, candidate)| !having_room || has_room(candidate))
            .max_by(|(_, a), (_, b)| score(a).total_cmp(&score(b)))
            .map(|(index, _)| index)
    };
    best(true).or_else(|| best(false))
}

/// Compares requests in flight per weight, by cross multiplication.
fn by_load(a: &Candidate, b: &Candidate) -> core::cmp::Ordering {
    let load = |of: &Candidate, other: &Candidate| u64::from(of.load + 1) * drawn_weight(other);
    load(a, b).cmp(&load(b, a))
}

/// Returns the weight in hundredths, with the share of a slow start.
fn drawn_weight(candidate: &Candidate) -> u64 {
    u64::from(candidate.weight.max(1)) * u64::from(candidate.share.max(1))
}

/// Returns the order of a weighted round: every endpoint as often as its weight, spread evenly (smooth weighted round
/// robin). A round is at most [`MAX_ROUND`] turns and one of each endpoint.
pub(in crate::upstream) fn round_robin_schedule(weights: &[u32]) -> Box<[u16]> {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let sum: u64 = weights.iter().map(|weight| u64::from(weight / divisor)).sum();
    let scaled = |weight: u32| {
        let weight = u64::from(weight / divisor);
        if sum > MAX_ROUND { (weight * MAX_ROUND / sum).max(1) } else { weight }
    };
    let weights: Vec<i64> = weights.iter().map(|&weight| scaled(weight).cast_signed()).collect();
    let total: i64 = weights.iter().sum();
    let mut current = vec![0; weights.len()];
    (0..total)
        .map(|_| {
            current.iter_mut().zip(&weights).for_each(|(c, w)| *c += w);
            let next = (0..current.len())
                .max_by_key(|&i| (current[i], core::cmp::Reverse(i)))
                .unwrap_or(0);
            current[next] -= total;
            next as u16
        })
        .collect()
}

/// Spreads a number over all bits (splitmix64).
pub(in crate::upstream) fn scatter(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The percentage of its share of the load above which an endpoint's keys move on.
const MAX_LOAD_PERCENT: u64 = 125;
/// The requests in flight up to which an endpoint keeps its keys whatever its share: a page whose parts are loaded at a time is
/// no overload, and its session may be in the memory of one endpoint.
const MIN_BOUND: u64 = 16;
/// The maximum number of turns of a round.
const MAX_ROUND: u64 = 4096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_round_has_every_weight_spread_evenly() {
        assert_eq!(*round_robin_schedule(&[1, 1]), [0, 1]);
        assert_eq!(*round_robin_schedule(&[500, 500]), [0, 1]);
        assert_eq!(*round_robin_schedule(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
        let of_records = round_robin_schedule(&[30_000, 3_000]);
        assert_eq!(of_records.iter().filter(|index| **index == 0).count(), 10);
        assert_eq!(of_records.len(), 11);
    }

    #[test]
    fn a_round_of_the_load_balancer_is_bounded() {
        let weights: Vec<u32> = (0..200).map(|i| 997 - i).collect();

        let round = round_robin_schedule(&weights);

        assert!(round.len() <= MAX_ROUND as usize + weights.len(), "{}", round.len());
        assert!((0..200).all(|index| round.contains(&index)));
    }

    #[test]
    fn an_endpoint_in_a_slow_start_receives_its_share() {
        for balance in [Balance::RoundRobin, Balance::RandomTwo, Balance::Hash] {
            let mut all = vec![open(1), open(1)];
            all[1].share = 10;
            let received = draw(balance, &all, 10_000);
            assert!((300..2_000).contains(&received[1]), "{balance:?}: {received:?}");
        }
    }

    #[test]
    fn weights_hold_for_every_balance() {
        for balance in [Balance::RoundRobin, Balance::RandomTwo, Balance::Hash] {
            let received = draw(balance, &[open(3), open(1), open(1)], 10_000);
            assert!((5_000..7_000).contains(&received[0]), "{balance:?}: {received:?}");
        }
        let mut all = [open(3), open(1)];
        for _ in 0..400 {
            let chosen = choice(Balance::LeastRequests, &all, 0, None).expect("one");
            all[chosen].load += 1;
        }
        assert!((295..=305).contains(&all[0].load), "{all:?}");
    }

    #[test]
    fn the_turns_of_endpoints_that_are_out_are_spread_over_all_others() {
        let mut all = vec![open(1); 5];
        (all[0].open, all[1].open) = (false, false);

        let received = draw(Balance::RoundRobin, &all, 10_000);

        assert_eq!(received[..2], [0, 0]);
        assert!(received[2..].iter().all(|count| (3_000..3_700).contains(count)), "{received:?}");
    }

    #[test]
    fn a_key_stays_at_its_endpoint_while_few_requests_are_in_flight() {
        let mut all = vec![open(1); 10];
        let home = choice(Balance::Hash, &all, 0, Some(7)).expect("one");

        for load in 0..MIN_BOUND {
            all[home].load = load as u32;
            assert_eq!(choice(Balance::Hash, &all, 0, Some(7)), Some(home), "{load}");
        }
    }

    #[test]
    fn a_key_that_would_overload_its_endpoint_moves_on() {
        let mut all = vec![open(1); 4];
        let home = choice(Balance::Hash, &all, 0, Some(7)).expect("one");
        for candidate in &mut all {
            candidate.load = 10;
        }
        assert_eq!(choice(Balance::Hash, &all, 0, Some(7)), Some(home));

        all[home].load = 20;

        assert_ne!(choice(Balance::Hash, &all, 0, Some(7)), Some(home));
    }

    proptest! {
        #[test]
        fn the_choice_is_open_and_of_the_lowest_tier_that_is(
            all in prop::collection::vec((0..3_u32, 1..1000_u32, 0..50_u32, any::<bool>(), 10..=100_u8), 1..12),
            turn in any::<usize>(),
            key in prop::option::of(any::<u64>()),
            balance in prop::sample::select(ALL.to_vec()),
        ) {
            let all: Vec<_> = all.into_iter().enumerate().map(|(i, (tier, weight, load, open, share))| {
                let full = load % 3 == 0;
                Candidate { tier, weight, load, open, full, share, identity: i as u64 }
            }).collect();
            let lowest = all.iter().filter(|c| c.open).map(|c| c.tier).min();

            let chosen = choice(balance, &all, turn, key);

            prop_assert_eq!(chosen.map(|index| all[index].tier), lowest);
            prop_assert!(chosen.is_none_or(|index| all[index].open));
            let has_capacity = all.iter().any(|c| c.open && Some(c.tier) == lowest && !c.full);
            prop_assert_eq!(chosen.is_some_and(|index| !all[index].full), has_capacity);
        }

        #[test]
        fn only_the_keys_of_an_endpoint_that_leaves_move(keys in prop::collection::vec(any::<u64>(), 50), gone in 0..5_usize) {
            let all = vec![open(1); 5];
            let mut fewer = all.clone();
            fewer[gone].open = false;
            for key in keys {
                let (before, after) = (choice(Balance::Hash, &all, 0, Some(key)), choice(Balance::Hash, &fewer, 0, Some(key)));
                prop_assert!(before == Some(gone) || before == after);
                prop_assert_ne!(after, Some(gone));
            }
        }

        #[test]
        fn an_overloaded_endpoint_is_never_the_least_loaded(loads in prop::collection::vec(0..100_u32, 2..8), turn in any::<usize>()) {
            let all: Vec<_> = loads.iter().map(|&load| Candidate { load, ..open(1) }).collect();
            let chosen = choice(Balance::LeastRequests, &all, turn, None).expect("one");
            prop_assert_eq!(Some(&loads[chosen]), loads.iter().min());
        }
    }

    const ALL: [Balance; 4] =
        [Balance::RoundRobin, Balance::LeastRequests, Balance::RandomTwo, Balance::Hash];

    fn open(weight: u32) -> Candidate {
        Candidate { tier: 0, weight, load: 0, open: true, full: false, share: 100, identity: 0 }
    }

    fn choice(balance: Balance, all: &[Candidate], turn: usize, key: Option<u64>) -> Option<usize> {
        let weights: Vec<_> = all.iter().map(|candidate| candidate.weight).collect();
        let turns = round_robin_schedule(&weights);
        let view = |index: usize| Candidate { identity: scatter(index as u64), ..all[index] };
        Choice { balance, turns: &turns, turn, key }.among(all.len(), view)
    }

    /// Returns how many of `times` requests, each with a key of its own, each endpoint receives.
    fn draw(balance: Balance, all: &[Candidate], times: usize) -> Vec<usize> {
        let mut received = vec![0; all.len()];
        for turn in 0..times {
            let key = Some(scatter(turn as u64 ^ 0x5555));
            received[choice(balance, all, turn, key).expect("one")] += 1;
        }
        received
    }
}
