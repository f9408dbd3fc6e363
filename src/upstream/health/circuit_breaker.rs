//! The circuit breaker of an upstream: after too many failures requests are refused at once, until probes succeed.
//!
//! Open: no request is sent for `open_for`. Half-open: the control runtime probes, by the active check or else by a
//! connection; no client's request is a probe. After enough successes in a row the circuit closes; a failure opens it
//! again. A circuit that opens again soon after it was closed stays open twice as long.

use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};
use core::time::Duration;

use tokio::sync::Notify;

use super::endpoint_health::{Health, Outcome, nanos};
use crate::upstream::settings::{CircuitBreakerSettings, Outlier};

/// The circuit of one upstream, shared by all workers and across reloads.
#[derive(Debug, Default)]
pub(in crate::upstream) struct CircuitBreaker {
    /// Counts failures as for one endpoint.
    counts: Health,
    /// A [`CircuitState`].
    state: AtomicU8,
    /// How often in a row the circuit has opened without a quiet time in between.
    openings: AtomicU32,
    /// Uptime in nanoseconds of the last opening, or of the last probe that failed.
    opened_at: AtomicU64,
    /// Successful probes in a row since then.
    successes: AtomicU32,
    /// Uptime in nanoseconds of the last closing.
    closed_at: AtomicU64,
    opened: Notify,
}

/// The state of a circuit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CircuitState {
    /// Requests are sent.
    Closed = 0,
    /// Requests are refused; probes succeed so far.
    HalfOpen = 1,
    /// Requests are refused.
    Open = 2,
}

impl CircuitState {
    /// Returns the word for the log and the admin API.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

impl CircuitBreaker {
    pub(in crate::upstream) fn state(&self) -> CircuitState {
        match self.state.load(Relaxed) {
            0 => CircuitState::Closed,
            1 => CircuitState::HalfOpen,
            _ => CircuitState::Open,
        }
    }

    /// Records the outcome at the uptime `now` of an attempt that began at `began`; true if it opens the circuit.
    pub(in crate::upstream) fn record(
        &self,
        outcome: Outcome,
        settings: &CircuitBreakerSettings,
        began: Duration,
        now: Duration,
    ) -> bool {
        // An attempt from before the last closing is no evidence about the time after it.
        if self.state() != CircuitState::Closed || nanos(began) < self.closed_at.load(Relaxed) {
            return false;
        }
        let rules = Outlier {
            errors: settings.errors,
            error_rate: settings.error_rate,
            min_requests: settings.min_requests,
            eject_for: Duration::ZERO,
            max_ejected: 100,
        };
        if !self.counts.record(outcome, &rules, began, now) {
            return false;
        }
        let (closed, open) = (CircuitState::Closed as u8, CircuitState::Open as u8);
        // If several requests fail at the same moment, one of them opens the circuit.
        let opens = self.state.compare_exchange(closed, open, Relaxed, Relaxed).is_ok();
        if opens {
            let quiet = nanos(now).saturating_sub(self.closed_at.load(Relaxed));
            if quiet > nanos(settings.open_for * QUIET_TIMES) {
                self.openings.store(0, Relaxed);
            }
            self.openings.fetch_add(1, Relaxed);
            self.opened_at.store(nanos(now), Relaxed);
            self.successes.store(0, Relaxed);
            self.opened.notify_one();
        }
        opens
    }

    /// Waits until the circuit is open.
    pub(in crate::upstream) async fn wait_until_open(&self) {
        while self.state() == CircuitState::Closed {
            self.opened.notified().await;
        }
    }

    /// Returns how long an open circuit stays so at the uptime `now` before it is probed.
    pub(in crate::upstream) fn time_to_probe(
        &self,
        settings: &CircuitBreakerSettings,
        now: Duration,
    ) -> Duration {
        let opened_at = Duration::from_nanos(self.opened_at.load(Relaxed));
        (opened_at + self.open_time(settings)).saturating_sub(now)
    }

    /// Returns how long requests are refused at least at the uptime `now`, in seconds: until the next probe, rounded up, and
    /// at least 1.
    pub(in crate::upstream) fn seconds_to_probe(
        &self,
        settings: &CircuitBreakerSettings,
        now: Duration,
    ) -> u64 {
        let left = self.time_to_probe(settings, now);
        (left.as_secs() + u64::from(left.subsec_nanos() > 0)).max(1)
    }

    /// Records a probe at the uptime `now`; true if it changes the state. A success makes the circuit half-open, the last
    /// of `close_after` closes it, and a failure opens it again.
    pub(in crate::upstream) fn probed(
        &self,
        well: bool,
        settings: &CircuitBreakerSettings,
        now: Duration,
    ) -> bool {
        let before = self.state();
        let state = if !well {
            self.opened_at.store(nanos(now), Relaxed);
            self.successes.store(0, Relaxed);
            CircuitState::Open
        } else if self.successes.fetch_add(1, Relaxed) + 1 < settings.close_after {
            CircuitState::HalfOpen
        } else {
            self.counts.reset();
            self.closed_at.store(nanos(now), Relaxed);
            CircuitState::Closed
        };
        self.state.store(state as u8, Relaxed);
        state != before
    }

    /// Returns how long the circuit stays open after an opening before it is probed.
    fn open_time(&self, settings: &CircuitBreakerSettings) -> Duration {
        let doublings = self.openings.load(Relaxed).saturating_sub(1).min(MAX_DOUBLINGS);
        (settings.open_for * 2_u32.pow(doublings)).min(MAX_OPEN_TIME.max(settings.open_for))
    }
}

/// A circuit that was closed for so many times `open_for` opens for its shortest time again.
const QUIET_TIMES: u32 = 4;
const MAX_DOUBLINGS: u32 = 6;
/// The longest time that a circuit stays open before it is probed, unless `open_for` is longer.
const MAX_OPEN_TIME: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);

    #[test]
    fn a_circuit_opens_after_a_run_and_refuses_until_it_is_closed() {
        let (circuit, settings) = (CircuitBreaker::default(), settings());

        let fails = |began, now| circuit.record(Outcome::Failed, &settings, began, now);
        let opens: Vec<_> = (0..4).map(|_| fails(NOW, NOW)).collect();

        assert_eq!(opens, [false, false, true, false]);
        assert_eq!(circuit.state(), CircuitState::Open);
        assert!(circuit.probed(true, &settings, NOW));
        assert_eq!(circuit.state(), CircuitState::HalfOpen);
        assert!(!fails(NOW, NOW), "late responses do not matter");
        let later = NOW + Duration::from_secs(1);
        assert!(circuit.probed(true, &settings, later));
        assert_eq!(circuit.state(), CircuitState::Closed);
        assert!(!fails(later, later), "counting begins anew");
        assert!((0..9).all(|_| !fails(NOW, later)), "nor do they after the circuit has closed");
    }

    #[test]
    fn the_time_that_a_circuit_stays_open_counts_from_its_opening() {
        let (circuit, settings) = (CircuitBreaker::default(), settings());
        for _ in 0..3 {
            let _ = circuit.record(Outcome::Failed, &settings, NOW, NOW);
        }
        let left =
            |secs| circuit.time_to_probe(&settings, NOW + Duration::from_secs(secs)).as_secs();

        assert_eq!([left(0), left(4), left(9)], [5, 1, 0]);
        let told =
            |millis| circuit.seconds_to_probe(&settings, NOW + Duration::from_millis(millis));
        assert_eq!([told(0), told(1), told(4001), told(9000)], [5, 5, 1, 1]);

        circuit.probed(false, &settings, NOW + Duration::from_secs(9));
        assert_eq!(left(9), 5, "a probe that fails opens it anew");
    }

    #[test]
    fn a_circuit_that_opens_again_stays_open_longer() {
        let (circuit, settings) = (CircuitBreaker::default(), settings());
        let mut times = Vec::new();
        for wait in [0, 1, 1, 1000] {
            let now = NOW + Duration::from_secs(wait * (times.len() as u64 + 1));
            for _ in 0..3 {
                let _ = circuit.record(Outcome::Failed, &settings, now, now);
            }
            times.push(circuit.open_time(&settings).as_secs());
            for _ in 0..settings.close_after {
                circuit.probed(true, &settings, now);
            }
        }

        assert_eq!(times, [5, 10, 20, 5]);
    }

    fn settings() -> CircuitBreakerSettings {
        CircuitBreakerSettings {
            errors: 3,
            error_rate: 50,
            min_requests: 20,
            open_for: Duration::from_secs(5),
            close_after: 2,
        }
    }
}
