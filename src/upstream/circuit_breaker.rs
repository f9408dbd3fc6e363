//! The circuit breaker of an upstream: after too many failures requests are refused at once, until probes succeed.
//!
//! Open: no request is sent for `open_for`. Half-open: the control runtime probes, by the active check or else by a
//! connection; no client's request is a probe. After enough successes in a row the circuit closes; a failure opens it
//! again. A circuit that opens again soon after it was closed stays open twice as long.

use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};
use core::time::Duration;

use tokio::sync::Notify;

use super::health::{Health, nanos};
use super::settings::{CircuitBreakerSettings, Outlier};

/// The circuit of one upstream, shared by all workers and across reloads.
#[derive(Debug, Default)]
pub(super) struct CircuitBreaker {
    /// Counts failures as for one endpoint.
    counts: Health,
    /// A [`CircuitState`].
    state: AtomicU8,
    /// How often in a row the circuit has opened without a quiet time in between.
    openings: AtomicU32,
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
    pub(super) fn state(&self) -> CircuitState {
        match self.state.load(Relaxed) {
            0 => CircuitState::Closed,
            1 => CircuitState::HalfOpen,
            _ => CircuitState::Open,
        }
    }

    /// Records the outcome of an attempt at the uptime `now`; true if it opens the circuit.
    pub(super) fn record(
        &self,
        well: bool,
        settings: &CircuitBreakerSettings,
        now: Duration,
    ) -> bool {
        if self.state() != CircuitState::Closed {
            return false;
        }
        let rules = Outlier {
            errors: settings.errors,
            error_rate: settings.error_rate,
            min_requests: settings.min_requests,
            eject_for: Duration::ZERO,
            max_ejected: 100,
        };
        if !self.counts.answered(well, &rules, now) || well {
            return false;
        }
        let (closed, open) = (CircuitState::Closed as u8, CircuitState::Open as u8);
        // Of requests that fail at the same moment, one opens the circuit.
        let opens = self.state.compare_exchange(closed, open, Relaxed, Relaxed).is_ok();
        if opens {
            let quiet = nanos(now).saturating_sub(self.closed_at.load(Relaxed));
            if quiet > nanos(settings.open_for * QUIET_TIMES) {
                self.openings.store(0, Relaxed);
            }
            self.openings.fetch_add(1, Relaxed);
            self.opened.notify_one();
        }
        opens
    }

    /// Waits until the circuit is open.
    pub(super) async fn wait_until_open(&self) {
        while self.state() == CircuitState::Closed {
            self.opened.notified().await;
        }
    }

    /// Returns how long the circuit stays open before it is probed.
    pub(super) fn open_time(&self, settings: &CircuitBreakerSettings) -> Duration {
        let doublings = self.openings.load(Relaxed).saturating_sub(1).min(MAX_DOUBLINGS);
        (settings.open_for * 2_u32.pow(doublings)).min(MAX_OPEN_TIME.max(settings.open_for))
    }

    /// Sets the state at the uptime `now`.
    pub(super) fn set(&self, state: CircuitState, now: Duration) {
        if state == CircuitState::Closed {
            self.counts.reset();
            self.closed_at.store(nanos(now), Relaxed);
        }
        self.state.store(state as u8, Relaxed);
    }
}

/// A circuit that was closed for so many times `open_for` begins anew with its shortest time.
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

        let opens: Vec<_> = (0..4).map(|_| circuit.record(false, &settings, NOW)).collect();

        assert_eq!(opens, [false, false, true, false]);
        assert_eq!(circuit.state(), CircuitState::Open);
        circuit.set(CircuitState::HalfOpen, NOW);
        assert!(!circuit.record(false, &settings, NOW), "late responses do not matter");
        circuit.set(CircuitState::Closed, NOW);
        assert!(!circuit.record(false, &settings, NOW), "counting begins anew");
    }

    #[test]
    fn a_circuit_that_opens_again_stays_open_longer() {
        let (circuit, settings) = (CircuitBreaker::default(), settings());
        let mut times = Vec::new();
        for wait in [0, 1, 1, 1000] {
            let now = NOW + Duration::from_secs(wait * (times.len() as u64 + 1));
            for _ in 0..3 {
                let _ = circuit.record(false, &settings, now);
            }
            times.push(circuit.open_time(&settings).as_secs());
            circuit.set(CircuitState::Closed, now);
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
