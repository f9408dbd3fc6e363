//! Load balancing: pure functions over loads, weights and attempted endpoints.

use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;

use super::settings::{Balance, Target};
use super::{Endpoint, Upstream};

/// The endpoints a request was already sent to, in order; at most one more than there are retries.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AttemptedEndpoints {
    indices: [usize; MAX_ATTEMPTS],
    count: usize,
}

impl AttemptedEndpoints {
    pub(super) const fn add(&mut self, index: usize) {
        self.indices[self.count % MAX_ATTEMPTS] = index;
        self.count += 1;
    }

    pub(super) const fn count(&self) -> u32 {
        self.count as u32
    }

    fn contains(&self, index: usize) -> bool {
        self.indices[..self.count.min(MAX_ATTEMPTS)].contains(&index)
    }
}

impl Upstream {
    /// Returns the endpoint for the next attempt; `None` if all were attempted or are ejected.
    pub(super) fn select(&self, tried: &AttemptedEndpoints, now: Duration) -> Option<usize> {
        if let ([_], 0) = (&*self.endpoints, tried.count) {
            return Some(0);
        }
        let open = |index: usize, backup: bool| {
            self.settings.targets[index].backup == backup
                && !tried.contains(index)
                && !self.may_be_selected(&self.endpoints[index], now)
        };
        self.pick_among(|index| open(index, false))
            .or_else(|| self.pick_among(|index| open(index, true)))
    }

    fn pick_among(&self, open: impl Fn(usize) -> bool) -> Option<usize> {
        let candidates = 0..self.endpoints.len();
        match self.settings.balance {
            Balance::RoundRobin => {
                let turn = self.turn.fetch_add(1, Relaxed);
                round_robin(&self.turns, turn, open)
            }
            Balance::LeastRequests => {
                candidates.filter(|&i| open(i)).min_by(|&a, &b| self.busier(a, b))
            }
            Balance::RandomTwo => {
                let chance = scatter(self.turn.fetch_add(1, Relaxed) as u64);
                let candidates: Vec<_> = candidates.filter(|&i| open(i)).collect();
                let (a, b) = two_of(&candidates, chance)?;
                Some(if self.busier(a, b).is_le() { a } else { b })
            }
        }
    }

    /// Compares requests in flight per weight, by cross multiplication.
    fn busier(&self, a: usize, b: usize) -> core::cmp::Ordering {
        let load = |i: usize| u64::from(self.endpoints[i].load());
        let weight = |i: usize| u64::from(self.settings.targets[i].weight);
        (load(a) * weight(b)).cmp(&(load(b) * weight(a)))
    }

    /// Whether an ejected endpoint is selected anyway: at most `max_ejected` percent of them are left out.
    fn may_be_selected(&self, endpoint: &Endpoint, now: Duration) -> bool {
        if !endpoint.is_ejected(now) {
            return false;
        }
        let ejected = self.endpoints.iter().filter(|e| e.is_ejected(now)).count();
        ejected * 100 <= self.endpoints.len() * usize::from(self.settings.outlier.max_ejected)
    }
}

/// Returns the order of a weighted round: every target as often as its weight, spread evenly (smooth weighted round robin).
pub(super) fn round_robin_schedule(targets: &[Target]) -> Box<[u16]> {
    let divisor = targets.iter().map(|t| t.weight).fold(0, gcd).max(1);
    let weights: Vec<i64> = targets.iter().map(|t| i64::from(t.weight / divisor)).collect();
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

fn round_robin(turns: &[u16], turn: usize, open: impl Fn(usize) -> bool) -> Option<usize> {
    (0..turns.len())
        .map(|i| usize::from(turns[(turn + i) % turns.len()]))
        .find(|&index| open(index))
}

fn two_of(candidates: &[usize], chance: u64) -> Option<(usize, usize)> {
    let count = candidates.len();
    let first = *candidates.get(chance as usize % count.max(1))?;
    // The second is drawn from the others, so that the two differ if possible.
    let step = 1 + (chance >> 32) as usize % count.saturating_sub(1).max(1);
    Some((first, candidates[(chance as usize % count + step) % count]))
}

/// Spreads consecutive numbers over all bits (`SplitMix64`).
const fn scatter(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

const MAX_ATTEMPTS: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::settings::{Address, Scheme};

    #[test]
    fn a_round_has_every_weight_spread_evenly() {
        assert_eq!(*round_robin_schedule(&targets(&[1, 1])), [0, 1]);
        assert_eq!(*round_robin_schedule(&targets(&[500, 500])), [0, 1]);
        assert_eq!(*round_robin_schedule(&targets(&[5, 1, 1])), [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn round_robin_skips_unavailable_endpoints() {
        let turns = round_robin_schedule(&targets(&[1, 1, 1]));

        assert_eq!(round_robin(&turns, 0, |i| i != 0), Some(1));
        assert_eq!(round_robin(&turns, 2, |_| true), Some(2));
        assert_eq!(round_robin(&turns, 7, |_| false), None);
    }

    #[test]
    fn two_draws_differ_and_reach_every_endpoint() {
        let candidates = [3, 5, 8];
        let drawn: Vec<_> =
            (0..200).map(|n| two_of(&candidates, scatter(n)).expect("two")).collect();

        assert!(drawn.iter().all(|(a, b)| a != b));
        assert!(candidates.iter().all(|c| drawn.iter().any(|(a, _)| a == c)));
        assert_eq!(two_of(&[], 7), None);
        assert_eq!(two_of(&[4], 7), Some((4, 4)));
    }

    fn targets(weights: &[u16]) -> Vec<Target> {
        let address = Address { scheme: Scheme::Http, host: "127.0.0.1".into(), port: 1 };
        weights
            .iter()
            .map(|&weight| Target { address: address.clone(), weight, backup: false })
            .collect()
    }
}
