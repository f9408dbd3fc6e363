//! Circuit breakers: after a run of failures, calls are refused at once instead of queueing for an
//! unavailable server.
//!
//! One caller's failures must not affect others. So there is a circuit for each purpose, and it counts
//! only failures that show that the *server* is unavailable: no connection, no response in time, 502,
//! 503 or 504, and that for different inputs. An odd response (500, HTML, a lifetime of 0 …) concerns one
//! token, code or name: it is remembered for exactly that input, as is an outage that only one input has met.

use crate::base::lock::IgnorePoison;
use core::time::Duration;
use std::sync::{Mutex, MutexGuard};

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::call_purpose::{Input, Purpose};

/// The circuit breakers of one authorization server.
#[derive(Debug)]
pub(in crate::issuer) struct CircuitBreakers {
    of_purpose: [Mutex<FailureRun>; Purpose::COUNT],
    /// Inputs that have failed recently, by [`Input::exact`]: refuses only input that is the same in every byte.
    of_input: Cache<[u8; 32], Pause>,
}

/// The failures of one purpose since its last success.
#[derive(Debug, Default)]
struct FailureRun {
    /// The callers of failed calls, each once; at most as many as open the circuit.
    callers: Vec<[u8; 32]>,
    /// The number of failed trial calls.
    trials: u32,
    /// The uptime at which an open circuit admits a trial call.
    opens_at: Duration,
}

/// The failures of one input since its last proper response.
#[derive(Clone, Copy, Debug, Default)]
struct Pause {
    failures: u32,
    /// The uptime before which it is not sent again, once it has failed too often.
    until: Duration,
}

impl CircuitBreakers {
    pub(in crate::issuer) fn new() -> Self {
        let of_input = Cache::builder()
            .max_capacity(MAX_INPUTS)
            // The input that has just failed is the one that will be repeated: it must be admitted.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(INPUT_RETENTION)
            .build();
        Self { of_purpose: Default::default(), of_input }
    }

    /// Admits a call, or returns how long to wait. `now` is the uptime.
    pub(in crate::issuer) fn admit(
        &self,
        purpose: Purpose,
        input: Input,
        now: Duration,
    ) -> Result<CallPermit<'_>, Duration> {
        let failed = self.of_input.get(&input.exact);
        if let Some(Pause { failures, until }) = failed
            && failures >= MAX_CONSECUTIVE_FAILURES
        {
            if now < until {
                return Err(until.saturating_sub(now));
            }
            // This call is the probe of this input.
            let until = now + wait(failures);
            self.of_input.insert(input.exact, Pause { failures, until });
        }
        let mut run = self.run(purpose);
        if run.is_open() {
            if now < run.opens_at {
                return Err(run.opens_at.saturating_sub(now));
            }
            // This call is the probe: no other passes before its backoff has elapsed.
            run.opens_at = now + backoff(run.trials);
        }
        drop(run);
        Ok(CallPermit { circuits: self, purpose, input, has_failed: failed.is_some() })
    }

    fn run(&self, purpose: Purpose) -> MutexGuard<'_, FailureRun> {
        self.of_purpose[purpose as usize].lock().ignore_poison()
    }
}

/// A call under way. Dropping it records nothing about the server.
#[derive(Debug)]
pub(in crate::issuer) struct CallPermit<'a> {
    circuits: &'a CircuitBreakers,
    purpose: Purpose,
    input: Input,
    has_failed: bool,
}

impl CallPermit<'_> {
    /// Records a proper response: the circuit closes.
    pub(in crate::issuer) fn record_success(self) {
        *self.circuits.run(self.purpose) = FailureRun::default();
        self.clear();
    }

    /// Records a refusal that a client can provoke.
    pub(in crate::issuer) fn record_refusal(self) {
        self.record_reachable();
        self.clear();
    }

    /// Records a malformed response. It concerns no other input, and is remembered for this one.
    pub(in crate::issuer) fn record_unexpected_response(self, now: Duration) {
        self.record_reachable();
        self.record_failure(now);
    }

    /// Records that the server did not respond, or a proxy in front of it did.
    pub(in crate::issuer) fn record_unavailable(self, now: Duration) {
        let mut run = self.circuits.run(self.purpose);
        if run.is_open() {
            run.trials = run.trials.saturating_add(1);
            run.opens_at = now + backoff(run.trials);
        } else if !run.callers.contains(&self.input.caller) {
            run.callers.push(self.input.caller);
            if run.is_open() {
                run.opens_at = now + backoff(0);
            }
        }
        drop(run);
        self.record_failure(now);
    }

    /// Closes an open circuit, because the server responds; a run of failures is neither ended nor
    /// extended, or a client could hide it.
    fn record_reachable(&self) {
        let mut run = self.circuits.run(self.purpose);
        if run.is_open() {
            *run = FailureRun::default();
        }
    }

    fn record_failure(&self, now: Duration) {
        self.circuits.of_input.entry(self.input.exact).and_upsert_with(|known| {
            let failures = known.map_or(0, |known| known.into_value().failures).saturating_add(1);
            Pause { failures, until: now + wait(failures) }
        });
    }

    fn clear(&self) {
        if self.has_failed {
            self.circuits.of_input.invalidate(&self.input.exact);
        }
    }
}

impl FailureRun {
    const fn is_open(&self) -> bool {
        self.callers.len() >= MAX_CONSECUTIVE_FAILURES as usize
    }
}

/// Returns 1 s after the first run of failures, doubling with each further one to 30 s.
fn wait(failures: u32) -> Duration {
    backoff(failures.saturating_sub(MAX_CONSECUTIVE_FAILURES))
}

/// Returns how long to wait before the next attempt after `times` + 1 failures: 1 s, doubling to 30 s.
pub(in crate::issuer) fn backoff(times: u32) -> Duration {
    let seconds = 1_u64.checked_shl(times).unwrap_or(u64::MAX);
    Duration::from_secs(seconds.min(30))
}

/// Callers in a row whose calls find the server unavailable before its circuit opens, and failures in a row of one
/// input before that is not sent any more.
const MAX_CONSECUTIVE_FAILURES: u32 = 5;
/// Inputs remembered at once, some hundred bytes each.
const MAX_INPUTS: u64 = 10_000;
/// The time for which the failures of an input are remembered: many times the longest pause.
const INPUT_RETENTION: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    const P: Purpose = Purpose::Introspection;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn input(name: u64) -> Input {
        Input::new(P, "gateway", "json", &name.to_string())
    }

    /// Fails one call for each input.
    fn fail(circuits: &CircuitBreakers, inputs: core::ops::Range<u64>, now: Duration) {
        for name in inputs {
            circuits.admit(P, input(name), now).expect("closed").record_unavailable(now);
        }
    }

    #[test]
    fn a_circuit_opens_after_five_failures_in_a_row_of_different_inputs() {
        let circuits = CircuitBreakers::new();

        fail(&circuits, 0..4, at(0));
        circuits.admit(P, input(9), at(0)).unwrap().record_success();
        fail(&circuits, 0..5, at(0));

        assert_eq!(circuits.admit(P, input(9), at(0)).err(), Some(at(1)));
    }

    #[test]
    fn one_input_opens_no_circuit_however_often_it_fails() {
        for odd in [true, false] {
            let circuits = CircuitBreakers::new();
            for seconds in 0..1_000 {
                if let Ok(pass) = circuits.admit(P, input(1), at(seconds)) {
                    if odd {
                        pass.record_unexpected_response(at(seconds));
                    } else {
                        pass.record_unavailable(at(seconds));
                    }
                }
                assert!(circuits.admit(P, input(2), at(seconds)).is_ok());
            }
        }
    }

    #[test]
    fn guesses_at_one_name_open_no_circuit() {
        let circuits = CircuitBreakers::new();
        for number in 0..50 {
            let input = input(number).of_caller(P, "alice");
            circuits.admit(P, input, at(0)).unwrap().record_unavailable(at(0));
        }

        assert!(circuits.admit(P, input(99), at(0)).is_ok());
    }

    #[test]
    fn odd_responses_open_no_circuit_and_are_remembered_for_their_input() {
        let circuits = CircuitBreakers::new();
        for name in 0..100 {
            circuits.admit(P, input(name), at(0)).unwrap().record_unexpected_response(at(0));
        }
        for _ in 0..4 {
            circuits.admit(P, input(0), at(0)).unwrap().record_unexpected_response(at(0));
        }

        assert_eq!(circuits.admit(P, input(0), at(0)).err(), Some(at(1)));
        assert!(circuits.admit(P, input(1), at(0)).is_ok(), "it has failed once");
        assert!(circuits.admit(P, input(100), at(0)).is_ok(), "it has never failed");

        let trial = circuits.admit(P, input(0), at(1)).expect("a trial is admitted");
        assert!(circuits.admit(P, input(0), at(1)).is_err(), "once");
        trial.record_success();
        assert!(circuits.admit(P, input(0), at(1)).is_ok());
    }

    #[test]
    fn purposes_share_no_circuit() {
        let circuits = CircuitBreakers::new();
        fail(&circuits, 0..5, at(0));

        for purpose in [
            Purpose::Password,
            Purpose::Code,
            Purpose::Refresh,
            Purpose::ClientCredentials,
            Purpose::Revocation,
            Purpose::Push,
        ] {
            let input = Input::new(purpose, "gateway", "json", "9");
            assert!(circuits.admit(purpose, input, at(0)).is_ok(), "{purpose:?}");
        }
    }

    #[test]
    fn an_open_circuit_admits_one_trial_and_doubles_its_wait_up_to_30_seconds() {
        let circuits = CircuitBreakers::new();
        fail(&circuits, 0..5, at(0));

        let mut now = at(0);
        for (number, seconds) in (10..).zip([1, 2, 4, 8, 16, 30, 30]) {
            assert!(circuits.admit(P, input(8), now + at(seconds).mul_f32(0.99)).is_err());
            now += at(seconds);
            let trial = circuits.admit(P, input(number), now).expect("one trial is admitted");
            assert!(circuits.admit(P, input(9), now).is_err(), "only one may try");
            trial.record_unavailable(now);
        }
    }

    #[test]
    fn an_open_circuit_closes_when_the_trial_succeeds() {
        let circuits = CircuitBreakers::new();
        fail(&circuits, 0..5, at(0));

        circuits.admit(P, input(9), at(1)).unwrap().record_success();

        fail(&circuits, 0..4, at(1));
        assert!(circuits.admit(P, input(9), at(1)).is_ok());
    }

    #[test]
    fn a_trial_that_never_ends_does_not_keep_the_circuit_open() {
        let circuits = CircuitBreakers::new();
        fail(&circuits, 0..5, at(0));

        circuits.admit(P, input(9), at(1)).expect("the trial, which never ends");

        assert!(circuits.admit(P, input(9), at(2)).is_ok());
    }

    #[test]
    fn failures_that_clients_provoke_neither_open_a_circuit_nor_hold_it_open() {
        let circuits = CircuitBreakers::new();
        for _ in 0..100 {
            circuits.admit(P, input(9), at(0)).unwrap().record_refusal();
        }
        fail(&circuits, 0..4, at(0));
        circuits.admit(P, input(9), at(0)).unwrap().record_refusal();
        fail(&circuits, 4..5, at(0));
        assert!(
            circuits.admit(P, input(9), at(0)).is_err(),
            "a response in between hides no failures"
        );

        circuits.admit(P, input(9), at(1)).unwrap().record_refusal();

        assert!(circuits.admit(P, input(9), at(1)).is_ok());
    }

    #[test]
    fn a_flood_of_inputs_uses_bounded_memory_and_the_latest_is_remembered() {
        let circuits = CircuitBreakers::new();
        for name in 0..MAX_INPUTS + 5_000 {
            circuits.admit(P, input(name), at(0)).unwrap().record_unexpected_response(at(0));
        }
        circuits.of_input.run_pending_tasks();

        assert!(circuits.of_input.entry_count() <= MAX_INPUTS);
        assert!(circuits.of_input.contains_key(&input(MAX_INPUTS + 4_999).exact));
    }
}
