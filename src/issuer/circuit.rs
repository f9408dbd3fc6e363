//! A circuit: after a run of failures, calls are refused at once instead of
//! piling up in front of a server that is down.

use core::time::Duration;
use std::sync::{Mutex, PoisonError};

/// Lets calls pass until five in a row have failed; then one at a time, after
/// 1 s, doubling to 30 s. What a client can provoke is no failure.
#[derive(Debug, Default)]
pub(super) struct Circuit(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// The uptime before which no call passes, once the circuit is open.
    opens_at: Duration,
}

impl Circuit {
    /// Lets a call pass, or says how long to wait. `now` is the uptime.
    pub(super) fn admit(&self, now: Duration) -> Result<Pass<'_>, Duration> {
        let mut state = self.state();
        if state.failures < TOLERATED {
            return Ok(Pass { circuit: self });
        }
        if now < state.opens_at {
            return Err(state.opens_at.saturating_sub(now));
        }
        // This call is the trial: nobody else passes until its wait, too, is over.
        state.opens_at = now + wait(state.failures);
        Ok(Pass { circuit: self })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call under way. Dropping it says nothing about the server.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    circuit: &'a Circuit,
}

impl Pass<'_> {
    /// The server answered as it should: the circuit closes.
    pub(super) fn succeeded(self) {
        self.circuit.state().failures = 0;
    }

    /// The server answered something that a client can provoke: it is there, at
    /// least. An open circuit closes; a run of failures is neither ended nor prolonged.
    pub(super) fn answered(self) {
        let mut state = self.circuit.state();
        if state.failures >= TOLERATED {
            state.failures = 0;
        }
    }

    /// The server did not answer, or not as it should.
    pub(super) fn failed(self, now: Duration) {
        let mut state = self.circuit.state();
        state.failures = state.failures.saturating_add(1);
        if state.failures >= TOLERATED {
            state.opens_at = now + wait(state.failures);
        }
    }
}

/// 1 s after the first run of failures, doubling with each further one to 30 s.
fn wait(failures: u32) -> Duration {
    backoff(failures.saturating_sub(TOLERATED))
}

/// How long to wait before trying again what has failed `times` + 1 times: 1 s, doubling to 30 s.
pub(super) fn backoff(times: u32) -> Duration {
    let seconds = 1_u64.checked_shl(times).unwrap_or(u64::MAX);
    Duration::from_secs(seconds.min(30))
}

/// Failures in a row that open the circuit.
const TOLERATED: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn fail(circuit: &Circuit, times: u32, now: Duration) {
        for _ in 0..times {
            circuit.admit(now).expect("closed").failed(now);
        }
    }

    #[test]
    fn opens_after_five_failures_in_a_row() {
        let circuit = Circuit::default();

        fail(&circuit, 4, at(0));
        circuit.admit(at(0)).unwrap().succeeded();
        fail(&circuit, 5, at(0));

        assert_eq!(circuit.admit(at(0)).err(), Some(at(1)));
    }

    #[test]
    fn lets_one_call_try_again_and_waits_twice_as_long_each_time_up_to_30_seconds() {
        let circuit = Circuit::default();
        fail(&circuit, 5, at(0));

        let mut now = at(0);
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            assert!(circuit.admit(now + at(seconds).mul_f32(0.99)).is_err());
            now += at(seconds);
            let trial = circuit.admit(now).expect("one may try");
            assert!(circuit.admit(now).is_err(), "only one may try");
            trial.failed(now);
        }
    }

    #[test]
    fn closes_when_the_trial_succeeds() {
        let circuit = Circuit::default();
        fail(&circuit, 5, at(0));

        circuit.admit(at(1)).unwrap().succeeded();

        fail(&circuit, 4, at(1));
        assert!(circuit.admit(at(1)).is_ok());
    }

    #[test]
    fn a_trial_that_never_ends_does_not_keep_it_open() {
        let circuit = Circuit::default();
        fail(&circuit, 5, at(0));

        circuit.admit(at(1)).expect("the trial, which is never heard of again");

        assert!(circuit.admit(at(2)).is_ok());
    }

    #[test]
    fn what_a_client_provokes_neither_opens_it_nor_keeps_it_open() {
        let circuit = Circuit::default();
        for _ in 0..100 {
            circuit.admit(at(0)).unwrap().answered();
        }
        fail(&circuit, 4, at(0));
        circuit.admit(at(0)).unwrap().answered();
        fail(&circuit, 1, at(0));
        assert!(circuit.admit(at(0)).is_err(), "an answer in between does not hide failures");

        circuit.admit(at(1)).unwrap().answered();

        assert!(circuit.admit(at(1)).is_ok());
    }
}
