//! Load balancing: pure functions over loads, weights and attempted endpoints.

use super::settings::Target;

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

    pub(super) fn contains(&self, index: usize) -> bool {
        self.indices[..self.count.min(MAX_ATTEMPTS)].contains(&index)
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

/// The first endpoint, from turn number `turn` on, that is open.
pub(super) fn round_robin(
    turns: &[u16],
    turn: usize,
    open: impl Fn(usize) -> bool,
) -> Option<usize> {
    (0..turns.len())
        .map(|i| usize::from(turns[(turn + i) % turns.len()]))
        .find(|&index| open(index))
}

/// Two different ones of `candidates`, by chance; the same one twice if there is only one.
pub(super) fn two_of(candidates: &[usize], chance: u64) -> Option<(usize, usize)> {
    let count = candidates.len();
    let first = *candidates.get(chance as usize % count.max(1))?;
    // The second is drawn from the others, so that the two differ if possible.
    let step = 1 + (chance >> 32) as usize % count.saturating_sub(1).max(1);
    Some((first, candidates[(chance as usize % count + step) % count]))
}

/// Spreads consecutive numbers over all bits (`SplitMix64`).
pub(super) const fn scatter(n: u64) -> u64 {
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
