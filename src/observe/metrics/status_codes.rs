//! Counters by status code, allocated on first use.
//!
//! There are 900 possible status codes, and a route sees five of
//! them. Each class (`2xx`) allocates its hundred counters with its first response, so
//! that counting is an index and an addition.

use std::sync::OnceLock;

use super::primitives::Counter;

/// A counter for each status code.
#[derive(Debug, Default)]
pub(super) struct StatusCounters([OnceLock<Box<[Counter]>>; CLASSES]);

impl StatusCounters {
    /// Counts one response.
    pub(super) fn inc(&self, status: u16) {
        let counts =
            self.0[class(status)].get_or_init(|| (0..100).map(|_| Counter::default()).collect());
        counts[usize::from(status % 100)].inc();
    }

    /// Calls `each` with every status code seen so far, as text, and its count.
    pub(super) fn each(&self, mut each: impl FnMut(&str, u64)) {
        for (class, counts) in (1..).zip(&self.0) {
            for (code, count) in counts.get().into_iter().flatten().enumerate() {
                if count.value() > 0 {
                    each(&format!("{}", class * 100 + code), count.value());
                }
            }
        }
    }
}

/// Returns the index of a status code's class: 0 for `1xx`. Codes outside 100 to 999 do not exist in HTTP.
pub(super) fn class(status: u16) -> usize {
    usize::from((status / 100).clamp(1, CLASSES as u16) - 1)
}

/// `1xx` to `9xx`: an upstream may send any three digits.
pub(super) const CLASSES: usize = 9;

/// The label of each class.
pub(super) const CLASS_WORDS: [&str; CLASSES] =
    ["1xx", "2xx", "3xx", "4xx", "5xx", "6xx", "7xx", "8xx", "9xx"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_counted_under_itself() {
        let codes = StatusCounters::default();
        for status in [100, 200, 200, 404, 499, 503, 999] {
            codes.inc(status);
        }

        let mut seen = Vec::new();
        codes.each(|code, count| seen.push(format!("{code}={count}")));
        assert_eq!(seen, ["100=1", "200=2", "404=1", "499=1", "503=1", "999=1"]);
    }
}
