//! The limits of one route, decided all or nothing.
//!
//! Each limit's counter stays locked while the next one is checked, down to the
//! last; only when all have agreed is any of them charged, on the way back.
//! So a refusal by one charges none, and no other request can come between
//! check and charge. Counters are locked in one order throughout the
//! process, which excludes deadlocks.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, StatusCode};

use super::concurrency::InFlightPermit;
use super::counter_table::Slot;
use super::counters::Now;
use super::key::{LimitKeySource, NoKey};
use super::limiter::{Balance, Limiter, seconds};
use super::response_headers::{MAX_POLICIES, RateLimitFields};
use crate::observe::metrics::{LimitMetrics, LimitResult, Metrics};

/// All limits of one route.
#[derive(Debug)]
pub struct RouteLimits {
    /// The limits before authentication, and the others; each in locking order.
    early: Box<[LimitCheck]>,
    late: Box<[LimitCheck]>,
    fields: Option<RateLimitFields>,
}

impl RouteLimits {
    /// Creates the limits of `route`, in the order of the file: if several refuse, the first determines the response.
    pub fn new(limiters: &[Arc<Limiter>], route: &str, metrics: &Metrics) -> Self {
        let mut checks: Vec<LimitCheck> = Vec::with_capacity(limiters.len());
        for limiter in limiters {
            // A limit named by the defaults and by the route is one limit.
            if checks.iter().all(|other| !Arc::ptr_eq(&other.limiter.counts, &limiter.counts)) {
                let metrics = metrics.limit(&limiter.settings().name, route);
                checks.push(LimitCheck {
                    place: checks.len(),
                    limiter: Arc::clone(limiter),
                    metrics,
                });
            }
        }
        let fields = RateLimitFields::new(checks.iter().map(|check| &*check.limiter));
        checks.sort_unstable_by_key(|check| Arc::as_ptr(&check.limiter.counts).addr());
        let early = |check: &LimitCheck| check.limiter.settings().runs_before_authentication();
        let (early, late): (Vec<_>, Vec<_>) = checks.into_iter().partition(early);
        Self { early: early.into(), late: late.into(), fields }
    }

    /// Whether [`RouteLimits::before_authentication`] has anything to check, and needs the clocks.
    pub fn asks_before_authentication(&self) -> bool {
        !self.early.is_empty()
    }

    /// Whether [`RouteLimits::after_authorization`] has anything to check.
    pub fn asks_after_authorization(&self) -> bool {
        !self.late.is_empty()
    }

    /// Checks the limits that do not depend on the caller, such as a rate per address.
    ///
    /// # Errors
    ///
    /// Returns [`LimitExceeded::Limited`] if one of them refuses; then none has been charged.
    pub fn before_authentication(
        &self,
        subject: &LimitKeySource<'_>,
        moment: Now,
        standing: &mut LimitState,
    ) -> Result<(), LimitExceeded> {
        Evaluation { subject, moment, standing }.put(&self.early)
    }

    /// Checks all other limits.
    ///
    /// # Errors
    ///
    /// Returns [`LimitExceeded::Limited`] if one of them refuses, and [`LimitExceeded::KeyMissing`] if one has no key for
    /// the request; then none has been charged.
    pub fn after_authorization(
        &self,
        subject: &LimitKeySource<'_>,
        moment: Now,
        standing: &mut LimitState,
    ) -> Result<(), LimitExceeded> {
        Evaluation { subject, moment, standing }.put(&self.late)
    }

    /// Adds the header fields about limits to any response. Costs one small allocation.
    pub fn write(&self, standing: &LimitState, headers: &mut HeaderMap) {
        if let Some(fields) = &self.fields {
            fields.write(&standing.left, headers);
        }
    }

    /// Returns the name of the limit that refused, for the log.
    pub fn name(&self, limited: &Limited) -> &str {
        let mut checks = self.early.iter().chain(&self.late);
        let refused = checks.find(|check| check.place == usize::from(limited.place));
        refused.map_or("", |check| &check.limiter.settings().name)
    }
}

/// The limit decisions of one request, and its permits.
///
/// To be held until the response's last byte: requests in flight are released on drop.
#[derive(Debug, Default)]
pub struct LimitState {
    left: [Balance; MAX_POLICIES],
    in_flight: Vec<InFlightPermit>,
    metered: Vec<MeteredLimit>,
}

impl LimitState {
    /// Returns the meter of a request body of unknown size, which limits by bytes have admitted as empty.
    /// Returns it once; `None` if no such limit applies.
    pub fn meter(&mut self) -> Option<Meter> {
        let mut metered = core::mem::take(&mut self.metered);
        metered.sort_unstable_by_key(|metered| Arc::as_ptr(&metered.limiter.counts).addr());
        (!metered.is_empty()).then_some(Meter { metered, bytes: 0 })
    }

    /// Records that a limit has ended the request body: nothing remains.
    pub fn ended_by(&mut self, limited: &Limited) {
        if limited.announce
            && let Some(slot) = self.left.get_mut(usize::from(limited.place))
        {
            let reset = u32::try_from(limited.retry_after).unwrap_or(u32::MAX);
            *slot = Balance { checked: true, remaining: 0, reset };
        }
    }

    /// Hands over the permits of concurrency limits, for a request that outlives its response.
    pub fn hand_over(&mut self) -> HeldPermits {
        HeldPermits { _in_flight: core::mem::take(&mut self.in_flight) }
    }
}

/// Permits of concurrency limits, released on drop.
#[derive(Debug)]
pub struct HeldPermits {
    _in_flight: Vec<InFlightPermit>,
}

/// Charges a request body of unknown size while it arrives.
#[derive(Debug)]
pub struct Meter {
    /// The limits in locking order.
    metered: Vec<MeteredLimit>,
    /// The bytes charged so far.
    bytes: u64,
}

impl Meter {
    /// Charges `bytes` more, to all limits or to none.
    ///
    /// # Errors
    ///
    /// The limit that is exceeded: the body must end.
    pub fn charge(&mut self, bytes: u64, moment: Now) -> Result<(), Limited> {
        let size = self.bytes.saturating_add(bytes);
        MeteredLimit::charge(&self.metered, self.bytes, size, moment)?;
        self.bytes = size;
        Ok(())
    }
}

/// The reason why a request may not pass.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LimitExceeded {
    /// A limit is exceeded.
    Limited(Limited),
    /// A limit has no key for the request, and its `on_missing` is `reject`: 400.
    KeyMissing,
}

/// A limit that is exceeded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limited {
    /// Seconds until a retry may succeed, rounded up, at least 1: the maximum of all limits that refused.
    pub retry_after: u64,
    /// 429 or 503.
    pub status: StatusCode,
    /// Whether the response has `Retry-After`.
    announce: bool,
    /// The index of the first limit that refused among its route's.
    place: u16,
}

impl Limited {
    /// Returns the value of `Retry-After` (RFC 9110 §10.2.3), unless the limit has no header fields.
    pub fn retry_after_value(&self) -> Option<HeaderValue> {
        self.announce.then(|| self.retry_after.into())
    }
}

#[derive(Debug)]
struct LimitCheck {
    /// The index among the route's limits, in the order of the file.
    place: usize,
    limiter: Arc<Limiter>,
    metrics: Arc<LimitMetrics>,
}

impl LimitCheck {
    fn refuse(&self, wait: u64) -> Limited {
        refuse(&self.limiter, self.place, wait)
    }

    /// Records the balance, if responses have header fields about this limit.
    fn note(&self, standing: &mut LimitState, left: impl FnOnce(&Limiter) -> Balance) {
        if self.limiter.settings().headers
            && let Some(slot) = standing.left.get_mut(self.place)
        {
            *slot = left(&self.limiter);
        }
    }
}

/// A limit that has admitted a request before its size was known.
#[derive(Debug)]
struct MeteredLimit {
    limiter: Arc<Limiter>,
    metrics: Arc<LimitMetrics>,
    key: u64,
    place: usize,
}

impl MeteredLimit {
    /// Charges for a body that grows from `before` to `size` bytes. As in [`Evaluation::ask`], each counter stays locked
    /// until all have agreed.
    fn charge(all: &[Self], before: u64, size: u64, moment: Now) -> Result<(), Limited> {
        let Some((first, others)) = all.split_first() else { return Ok(()) };
        let limiter = &*first.limiter;
        let now = limiter.counts.time(moment);
        limiter.counts.cells.with(first.key, now, |cell, _| {
            let charged = limiter.charge_more(cell, now, before, size).map_err(|wait| {
                first.metrics.decided(LimitResult::Limited);
                refuse(limiter, first.place, wait)
            })?;
            Self::charge(others, before, size, moment)?;
            *cell = charged;
            Ok(())
        })
    }
}

/// Returns the refusal of a limit.
fn refuse(limiter: &Limiter, place: usize, wait: u64) -> Limited {
    let settings = limiter.settings();
    Limited {
        retry_after: seconds(wait).max(1),
        status: settings.status.into(),
        announce: settings.headers,
        place: place as u16,
    }
}

/// The check of one request.
struct Evaluation<'a, 's> {
    subject: &'a LimitKeySource<'s>,
    moment: Now,
    standing: &'a mut LimitState,
}

impl Evaluation<'_, '_> {
    fn put(mut self, checks: &[LimitCheck]) -> Result<(), LimitExceeded> {
        self.ask(checks, None).map_or(Ok(()), Err)
    }

    /// Checks the first of `checks` and, with its counter locked, the others; returns the combined refusal.
    fn ask(&mut self, checks: &[LimitCheck], refused: Option<Limited>) -> Option<LimitExceeded> {
        let Some((check, others)) = checks.split_first() else {
            return refused.map(LimitExceeded::Limited);
        };
        let limiter = &*check.limiter;
        let key = match limiter.key(self.subject) {
            Ok(key) => key,
            Err(NoKey::Skip) => return self.ask(others, refused),
            Err(NoKey::Reject) => return Some(LimitExceeded::KeyMissing),
        };
        let now = limiter.counts.time(self.moment);
        let size = self.subject.request_size.unwrap_or(0);
        limiter.counts.cells.with(key, now, |cell, place| match limiter.admit(cell, now, size) {
            Ok(charged) => {
                let refusal = self.ask(others, refused);
                if refusal.is_none() {
                    *cell = charged;
                    self.admitted(check, key, place);
                }
                check.note(self.standing, |limiter| limiter.left(*cell, now));
                refusal
            }
            Err(wait) => {
                check.metrics.decided(LimitResult::Limited);
                check.note(self.standing, |_| Balance::new(0, wait));
                self.ask(others, Some(first(refused, check.refuse(wait))))
            }
        })
    }

    /// Records what is to be released when the request ends.
    fn admitted(&mut self, check: &LimitCheck, key: u64, place: Slot) {
        check.metrics.decided(match place {
            Slot::Own => LimitResult::Allowed,
            Slot::Overflow => LimitResult::Overflow,
        });
        let limiter = &check.limiter;
        if limiter.is_concurrency() {
            self.standing.in_flight.push(InFlightPermit::new(&limiter.counts, key, place));
        }
        if limiter.measures_bodies() && self.subject.request_size.is_none() {
            self.standing.metered.push(MeteredLimit {
                limiter: Arc::clone(limiter),
                metrics: Arc::clone(&check.metrics),
                key,
                place: check.place,
            });
        }
    }
}

/// Combines two refusals: the first in the file, with the longer wait.
fn first(one: Option<Limited>, other: Limited) -> Limited {
    let Some(one) = one else { return other };
    let retry_after = one.retry_after.max(other.retry_after);
    Limited { retry_after, ..if one.place < other.place { one } else { other } }
}
