//! Metrics of the caches of verified credentials.

use crate::base::lock::IgnorePoison;
use core::time::Duration;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::family::Source;
use super::family::{self, Scrape};
use super::labels::{AuthLabel, CacheResult, LabelValue as _, LabeledCounters, TokenCache};
use super::primitives::Buckets;
use super::primitives::{Bounds, Gauge, Histogram};

/// The metrics of all caches of one kind.
#[derive(Debug)]
pub struct TokenCacheMetrics {
    kind: TokenCache,
    lookups: LabeledCounters<CacheResult>,
    shares: Mutex<Vec<Weak<Gauge>>>,
    verifications: Arc<Verifications>,
}

impl TokenCacheMetrics {
    pub(super) fn new(kind: TokenCache, verifications: Arc<Verifications>) -> Self {
        Self { kind, lookups: LabeledCounters::new(), shares: Mutex::default(), verifications }
    }

    /// Counts a look-up.
    pub fn looked_up(&self, result: CacheResult) {
        self.lookups.inc(result);
    }

    /// Records the verification of a credential, cached or not.
    pub fn verified(&self, auth: AuthLabel, hit: bool, took: Duration) {
        self.verifications.observe(auth, hit, took);
    }

    /// Returns a gauge for the entries of one cache: the exported value is the
    /// sum over the existing caches.
    pub fn entries(&self) -> Arc<Gauge> {
        let share = Arc::new(Gauge::default());
        let mut shares = self.shares.lock().ignore_poison();
        shares.retain(|share| share.strong_count() > 0);
        shares.push(Arc::downgrade(&share));
        share
    }
}

impl Source for TokenCacheMetrics {
    fn report(&self, to: &mut Scrape) {
        let cache = self.kind.word();
        for (result, count) in self.lookups.iter() {
            to.counter(&family::CACHE_REQUESTS, &[cache, result], count);
        }
        let shares = self.shares.lock().ignore_poison();
        let entries = shares.iter().filter_map(Weak::upgrade).map(|share| share.value()).sum();
        to.level(&family::CACHE_ENTRIES, &[cache], entries);
    }
}

/// Histograms of verification durations, by method.
#[derive(Debug)]
pub(super) struct Verifications {
    bounds: Bounds,
    hits: [OnceLock<Histogram>; METHODS],
    misses: [OnceLock<Histogram>; METHODS],
}

impl Verifications {
    pub(super) fn new(buckets: &Buckets) -> Self {
        Self {
            bounds: buckets.verification.clone(),
            hits: Default::default(),
            misses: Default::default(),
        }
    }

    fn observe(&self, auth: AuthLabel, hit: bool, took: Duration) {
        let histograms = if hit { &self.hits } else { &self.misses };
        histograms[auth.index()].get_or_init(|| Histogram::new(&self.bounds)).observe(took);
    }
}

impl Source for Verifications {
    fn report(&self, to: &mut Scrape) {
        for (cache, histograms) in [("hit", &self.hits), ("miss", &self.misses)] {
            for (auth, histogram) in AuthLabel::ALL.iter().zip(histograms) {
                if let Some(histogram) = histogram.get() {
                    to.histogram(&family::VERIFICATION, &[auth.word(), cache], histogram);
                }
            }
        }
    }
}

const METHODS: usize = AuthLabel::ALL.len();
