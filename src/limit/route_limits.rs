//! A route's limits, decided all or nothing.
//!
//! Each limit's cell stays locked while the next one is asked, down to the
//! last; only when all have agreed is any of them charged, on the way back.
//! So a refusal by one charges none, and no other request can slip between
//! the question and the charge. Cells are locked in one order throughout the
//! process, which is why none ever waits for another in a circle.

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
    /// Spike arrest that needs no caller, and everything else; each in the order of locking.
    early: Box<[LimitCheck]>,
    late: Box<[LimitCheck]>,
    fields: Option<RateLimitFields>,
}

impl RouteLimits {
    /// The limits of `route`, in the order of the file: if several refuse, the first answers.
    pub fn new(limiters: &[Arc<Limiter>], route: &str, metrics: &Metrics) -> Self {
        let mut checks: Vec<LimitCheck> = Vec::with_capacity(limiters.len());
        for limiter in limiters {
            // A limit named twice, by the defaults and by the route, is one limit.
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

    /// Whether [`RouteLimits::before_authentication`] has anything to ask, and the clocks need to be read for it.
    pub fn asks_before_authentication(&self) -> bool {
        !self.early.is_empty()
    }

    /// Whether [`RouteLimits::after_authorization`] has.
    pub fn asks_after_authorization(&self) -> bool {
        !self.late.is_empty()
    }

    /// Checks the limits that need no caller: what a service can survive from one address.
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
    /// Returns [`LimitExceeded::Limited`] if one of them refuses, and [`LimitExceeded::KeyMissing`] if one cannot tell whose
    /// request it is; then none has been charged.
    pub fn after_authorization(
        &self,
        subject: &LimitKeySource<'_>,
        moment: Now,
        standing: &mut LimitState,
    ) -> Result<(), LimitExceeded> {
        Evaluation { subject, moment, standing }.put(&self.late)
    }

    /// Tells a client where it stands, on any answer, admitted or refused. Costs one small allocation.
    pub fn write(&self, standing: &LimitState, headers: &mut HeaderMap) {
        if let Some(fields) = &self.fields {
            fields.write(&standing.left, headers);
        }
    }

    /// The name of the limit that refused, for the log.
    pub fn name(&self, limited: &Limited) -> &str {
        let mut checks = self.early.iter().chain(&self.late);
        let refused = checks.find(|check| check.place == usize::from(limited.place));
        refused.map_or("", |check| &check.limiter.settings().name)
    }
}

/// Where one request stands with its route's limits, and what it holds of them.
///
/// Keep it until the answer's last byte: requests in flight are released when it is dropped.
#[derive(Debug, Default)]
pub struct LimitState {
    left: [Balance; MAX_POLICIES],
    in_flight: Vec<InFlightPermit>,
    metered: Vec<MeteredLimit>,
}

impl LimitState {
    /// What charges the request's body as it comes, if limits count bytes and it has not said how many: they have
    /// admitted it as if it were empty. There is one, and none if all of this is not so.
    pub fn meter(&mut self) -> Option<Meter> {
        let mut metered = core::mem::take(&mut self.metered);
        metered.sort_unstable_by_key(|metered| Arc::as_ptr(&metered.limiter.counts).addr());
        (!metered.is_empty()).then_some(Meter { metered, bytes: 0 })
    }

    /// A limit has ended the request's body: nothing is left of it.
    pub fn ended_by(&mut self, limited: &Limited) {
        if limited.announce
            && let Some(slot) = self.left.get_mut(usize::from(limited.place))
        {
            let reset = u32::try_from(limited.retry_after).unwrap_or(u32::MAX);
            *slot = Balance { asked: true, remaining: 0, reset };
        }
    }

    /// What is held of limits on requests in flight, for whom the request outlives its answer.
    pub fn hand_over(&mut self) -> HeldPermits {
        HeldPermits { _in_flight: core::mem::take(&mut self.in_flight) }
    }
}

/// Requests in flight, released when this is dropped.
#[derive(Debug)]
pub struct HeldPermits {
    _in_flight: Vec<InFlightPermit>,
}

/// Charges a body that comes without saying its size, as it comes.
#[derive(Debug)]
pub struct Meter {
    /// In the order of locking.
    metered: Vec<MeteredLimit>,
    /// What was charged for.
    bytes: u64,
}

impl Meter {
    /// Charges for `bytes` more, by all limits or by none.
    ///
    /// # Errors
    ///
    /// The limit that has no more: the body ends.
    pub fn charge(&mut self, bytes: u64, moment: Now) -> Result<(), Limited> {
        let size = self.bytes.saturating_add(bytes);
        MeteredLimit::charge(&self.metered, self.bytes, size, moment)?;
        self.bytes = size;
        Ok(())
    }
}

/// Why a request may not pass.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LimitExceeded {
    /// A limit is used up.
    Limited(Limited),
    /// A limit cannot tell whose request it is, and its `on_missing` is `reject`: 400.
    KeyMissing,
}

/// A limit is used up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limited {
    /// Seconds until it is worth asking again, rounded up, at least 1: for as long as every limit that refused wants.
    pub retry_after: u64,
    /// 429 or 503.
    pub status: StatusCode,
    /// Whether the client is told when to ask again.
    announce: bool,
    /// The place of the first limit that refused among its route's.
    place: u16,
}

impl Limited {
    /// The value of `Retry-After` (RFC 9110 §10.2.3), unless the limit keeps quiet.
    pub fn retry_after_value(&self) -> Option<HeaderValue> {
        self.announce.then(|| self.retry_after.into())
    }
}

#[derive(Debug)]
struct LimitCheck {
    /// Among the route's limits, in the order of the file.
    place: usize,
    limiter: Arc<Limiter>,
    metrics: Arc<LimitMetrics>,
}

impl LimitCheck {
    fn refuse(&self, wait: u64) -> Limited {
        refuse(&self.limiter, self.place, wait)
    }

    /// Notes where the client stands, if answers speak of this limit.
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
    /// Charges for a body that grows from `before` to `size` bytes. As in [`Evaluation::ask`], each cell stays locked
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

/// A limit's answer to whom it has nothing left for.
fn refuse(limiter: &Limiter, place: usize, wait: u64) -> Limited {
    let settings = limiter.settings();
    Limited {
        retry_after: seconds(wait).max(1),
        status: settings.status.into(),
        announce: settings.headers,
        place: place as u16,
    }
}

/// May this request pass?
struct Evaluation<'a, 's> {
    subject: &'a LimitKeySource<'s>,
    moment: Now,
    standing: &'a mut LimitState,
}

impl Evaluation<'_, '_> {
    fn put(mut self, checks: &[LimitCheck]) -> Result<(), LimitExceeded> {
        self.ask(checks, None).map_or(Ok(()), Err)
    }

    /// Asks the first of `checks` and, with its cell locked, the others; what comes back is what all of them say.
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

    /// Remembers what is to be done when the request ends.
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

/// Of two refusals the one that comes first in the file, with the longer wait.
fn first(one: Option<Limited>, other: Limited) -> Limited {
    let Some(one) = one else { return other };
    let retry_after = one.retry_after.max(other.retry_after);
    Limited { retry_after, ..if one.place < other.place { one } else { other } }
}
