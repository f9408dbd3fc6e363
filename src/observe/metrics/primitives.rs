//! Counters, gauges and histograms: one atomic addition each.
//!
//! The `prometheus` crate's own values carry a descriptor and their labels
//! with them, some 400 bytes apiece, and add floating-point numbers in a
//! compare-and-swap loop. A route has over a hundred of them. These are
//! bare numbers; names and labels are added by a scrape.

use core::fmt;
use core::ops::Deref;
use core::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use std::sync::Arc;

/// A number that only increases.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `count`.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// Returns the count.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that increases and decreases.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Sets the value.
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Subtracts one.
    pub fn dec(&self) {
        self.add(-1);
    }

    /// Adds `delta`, which may be negative.
    pub fn add(&self, delta: i64) {
        self.0.fetch_add(delta, Relaxed);
    }

    /// Returns the value.
    pub fn value(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// A gauge with a name from the configuration; exported while it exists.
#[derive(Debug)]
pub struct LabeledGauge {
    name: Arc<str>,
    gauge: Gauge,
}

impl LabeledGauge {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.into(), gauge: Gauge::default() }
    }

    /// Creates a gauge with an initial value.
    pub(super) fn starting_at(name: &str, value: i64) -> Self {
        let named = Self::new(name);
        named.set(value);
        named
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl Deref for LabeledGauge {
    type Target = Gauge;

    fn deref(&self) -> &Gauge {
        &self.gauge
    }
}

/// A histogram of durations, counted by upper bounds.
pub struct Histogram {
    bounds: Bounds,
    /// One count per bound, and one above the last bound.
    counts: Box<[AtomicU64]>,
    /// Nanoseconds; wraps after 584 years, which Prometheus takes for a restart.
    sum: AtomicU64,
}

impl Histogram {
    pub(super) fn new(bounds: &Bounds) -> Self {
        let counts = (0..=bounds.0.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds: bounds.clone(), counts, sum: AtomicU64::new(0) }
    }

    /// Counts one duration.
    pub fn observe(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        // With a dozen bounds, a linear scan is faster than a binary search.
        let bucket = self.bounds.0.iter().take_while(|bound| **bound < nanos).count();
        self.counts[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(nanos, Relaxed);
    }

    /// Returns the counts in the form of Prometheus: bounds in seconds, cumulative counts.
    pub(super) fn read(&self) -> HistogramSnapshot {
        let mut count = 0;
        let mut cumulative = self.counts.iter().map(|bucket| {
            count += bucket.load(Relaxed);
            count
        });
        let buckets = self.bounds.0.iter().map(|bound| seconds(*bound)).zip(&mut cumulative);
        let buckets = buckets.collect();
        cumulative.for_each(drop);
        HistogramSnapshot { buckets, count, sum: seconds(self.sum.load(Relaxed)) }
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram").finish_non_exhaustive()
    }
}

/// The counts of a histogram at one moment.
#[derive(Debug, PartialEq)]
pub(super) struct HistogramSnapshot {
    /// Upper bounds in seconds, with the number of observations at or below each.
    pub(super) buckets: Vec<(f64, u64)>,
    /// The number of observations.
    pub(super) count: u64,
    /// The sum of all observations in seconds.
    pub(super) sum: f64,
}

/// The upper bounds of a histogram's buckets, ascending, shared by its users.
#[derive(Clone, Debug)]
pub(super) struct Bounds(Arc<[u64]>);

impl Bounds {
    /// Converts bounds from seconds; sorts them, and drops those that are not positive numbers.
    pub(super) fn from_seconds(bounds: &[f64]) -> Self {
        let mut nanos: Vec<u64> =
            bounds.iter().map(|bound| (bound * 1e9).round() as u64).filter(|b| *b > 0).collect();
        nanos.sort_unstable();
        nanos.dedup();
        Self(nanos.into())
    }
}

/// Returns nanoseconds as the nearest number of seconds, so that a bound of 2.5 ms prints as `0.0025`.
fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// The histogram bounds, by what is measured.
pub(super) struct Buckets {
    /// Requests, and calls to upstreams and issuers: configurable.
    pub(super) requests: Bounds,
    /// The gateway's own share of a request: from tens of microseconds.
    pub(super) overhead: Bounds,
    /// From a look-up in a cache (a microsecond) to a call to an authorization server.
    pub(super) verification: Bounds,
}

impl Buckets {
    pub(super) fn new(requests: &[f64]) -> Self {
        let overhead =
            [5e-5, 1e-4, 2.5e-4, 5e-4, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5];
        let verification = [1e-6, 5e-6, 2.5e-5, 1e-4, 2.5e-4, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5];
        Self {
            requests: Bounds::from_seconds(requests),
            overhead: Bounds::from_seconds(&overhead),
            verification: Bounds::from_seconds(&verification),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_at_a_bound_belongs_to_it() {
        let histogram = Histogram::new(&Bounds::from_seconds(&[0.001, 0.01]));

        histogram.observe(Duration::from_millis(1));
        histogram.observe(Duration::from_micros(1001));
        histogram.observe(Duration::from_secs(1));

        let reading = histogram.read();
        assert_eq!(reading.buckets, [(0.001, 1), (0.01, 2)]);
        assert_eq!(reading.count, 3);
        assert!((reading.sum - 1.002_001).abs() < 1e-9);
    }

    #[test]
    fn bounds_are_put_in_order() {
        let bounds = Bounds::from_seconds(&[0.5, 0.0025, 0.5, 0.0, f64::NAN]);

        assert_eq!(*bounds.0, [2_500_000, 500_000_000]);
    }

    #[test]
    fn an_endless_wait_is_above_every_bound() {
        let histogram = Histogram::new(&Bounds::from_seconds(&[1.0]));

        histogram.observe(Duration::MAX);

        assert_eq!((histogram.read().buckets[0].1, histogram.read().count), (0, 1));
    }
}
