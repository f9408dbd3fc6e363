//! A rate limit for log lines that clients can cause.

use crate::base::lock::IgnorePoison;
use core::time::Duration;
use std::sync::Mutex;

/// Admits a number of lines per ten seconds, and counts those it suppresses.
#[derive(Debug)]
pub struct LogLimiter {
    burst: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The uptime at which the current ten seconds began; `None` before the first line.
    began: Option<Duration>,
    written: u32,
    suppressed: u64,
}

impl LogLimiter {
    /// Creates a limiter that admits `burst` lines per ten seconds.
    pub fn new(burst: u32) -> Self {
        Self { burst, state: Mutex::default() }
    }

    /// Admits one line at uptime `now`, and returns how many were suppressed since the last one;
    /// `None` if this one is suppressed too.
    pub fn admit(&self, now: Duration) -> Option<u64> {
        let mut state = self.state.lock().ignore_poison();
        if state.began.is_none_or(|began| now.saturating_sub(began) >= INTERVAL) {
            state.began = Some(now);
            state.written = 0;
        }
        if state.written >= self.burst {
            state.suppressed += 1;
            return None;
        }
        state.written += 1;
        Some(core::mem::take(&mut state.suppressed))
    }
}

const INTERVAL: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_limiter_admits_a_burst_per_interval_and_counts_the_rest() {
        let limiter = LogLimiter::new(2);
        let at = Duration::from_secs;

        let admitted: Vec<_> = (0..5).map(|_| limiter.admit(at(0))).collect();
        assert_eq!(admitted, [Some(0), Some(0), None, None, None]);
        assert_eq!(limiter.admit(at(9)), None);
        assert_eq!(limiter.admit(at(10)), Some(4));
        assert_eq!(limiter.admit(at(11)), Some(0));
        assert_eq!(limiter.admit(at(12)), None);
    }
}
