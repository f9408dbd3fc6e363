//! The limits of one route, decided all or nothing.
//!
//! Each limit's counter stays locked while the next one is checked, down to the
//! last; only when all have agreed is any of them charged, on the way back.
//! So a refusal by one charges none, and no other request can come between
//! check and charge. Counters are locked in one order throughout the
//! process, which excludes deadlocks.

use core::time::Duration;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::Value;

use super::concurrency::InFlightPermit;
use super::counter_table::Slot;
use super::counters::Now;
use super::key::{LimitKeySource, NoKey};
use super::limiter::{Balance, Limiter, seconds};
use super::plans::PlanIndex;
use super::rate::Kind;
use super::response_cost::ResponseCost;
use super::response_headers::{MAX_POLICIES, RateLimitFields};
use crate::base::random::random;
use crate::observe::metrics::{LimitMetrics, LimitResult, Metrics};

/// All limits of one route.
#[derive(Debug)]
pub struct RouteLimits {
    /// The limits before authentication, and the others; each in locking order.
    early: Box<[LimitCheck]>,
    late: Box<[LimitCheck]>,
    fields: Option<RateLimitFields>,
    reads_responses: bool,
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
        let reads = |check: &LimitCheck| {
            matches!(check.limiter.settings().response_cost, Some(ResponseCost::Json { .. }))
        };
        let reads_responses = checks.iter().any(reads);
        let fields = RateLimitFields::new(checks.iter().map(|check| &*check.limiter));
        checks.sort_unstable_by_key(|check| Arc::as_ptr(&check.limiter.counts).addr());
        let early = |check: &LimitCheck| check.limiter.settings().runs_before_authentication();
        let (early, late): (Vec<_>, Vec<_>) = checks.into_iter().partition(early);
        Self { early: early.into(), late: late.into(), fields, reads_responses }
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
        self.name_of(limited.place)
    }

    /// Returns the name of the first limit that would have refused a request, were it no dry run; once.
    pub fn take_dry_run(&self, standing: &mut LimitState) -> Option<&str> {
        standing.dry_run.take().map(|place| self.name_of(place))
    }

    /// Whether a limit reads the cost of a request from the response's content.
    pub fn reads_responses(&self) -> bool {
        self.reads_responses
    }

    fn name_of(&self, place: u16) -> &str {
        let mut checks = self.early.iter().chain(&self.late);
        let named = checks.find(|check| check.place == usize::from(place));
        named.map_or("", |check| &check.limiter.settings().name)
    }
}

/// The limit decisions of one request, and its permits.
///
/// To be held until the response's last byte: requests in flight are released on drop.
#[derive(Debug, Default)]
pub struct LimitState {
    left: [Balance; MAX_POLICIES],
    in_flight: Vec<InFlightPermit>,
    metered: Vec<ChargedLimit>,
    /// The limits whose cost the response tells.
    unsettled: Vec<ChargedLimit>,
    /// The first limit that would have refused the request, were it no dry run; by its index.
    dry_run: Option<u16>,
}

impl LimitState {
    /// Returns the meter of a request body of unknown size, which limits by bytes have admitted as empty.
    /// Returns it once; `None` if no limit was charged.
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
            *slot = Balance { checked: true, remaining: 0, reset, ..*slot };
        }
    }

    /// Charges the costs that the response's head tells.
    pub fn settle_by_head(&mut self, headers: &HeaderMap, moment: Now) {
        self.settle(moment, |cost| cost.in_head(headers));
    }

    /// Charges the costs that the response's content tells.
    pub fn settle_by_content(&mut self, content: &Value, moment: Now) {
        self.settle(moment, |cost| cost.in_content(content));
    }

    /// Whether a limit waits for the response to tell the cost.
    pub fn has_unsettled(&self) -> bool {
        !self.unsettled.is_empty()
    }

    /// Returns the maximum bytes of JSON content that tell a cost; `None` if none does.
    pub fn max_content_of_costs(&self) -> Option<usize> {
        let costs =
            self.unsettled.iter().filter_map(|one| one.limiter.settings().response_cost.as_ref());
        let sizes = costs.filter_map(|cost| match cost {
            ResponseCost::Json { max_size, .. } => Some(*max_size),
            ResponseCost::Header(_) => None,
        });
        sizes.max()
    }

    /// Charges each unsettled cost that `told` finds. The others stay at what was charged before.
    fn settle(&mut self, moment: Now, told: impl Fn(&ResponseCost) -> Option<u64>) {
        let Self { unsettled, left, .. } = self;
        unsettled.retain(|limit| {
            let settings = limit.limiter.settings();
            let Some(cost) = settings.response_cost.as_ref().and_then(&told) else { return true };
            let balance = limit.settle(cost, moment);
            if settings.tells_clients()
                && let Some(slot) = left.get_mut(limit.place)
            {
                *slot = balance;
            }
            false
        });
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
    metered: Vec<ChargedLimit>,
    /// The bytes charged so far.
    bytes: u64,
}

impl Meter {
    /// Charges `bytes` more, to all limits or to none.
    ///
    /// # Errors
    ///
    /// The limit that is exceeded: the body must end.
    pub fn charge(&mut self, bytes: u64, moment: Now) -> Result<(), LimitExceeded> {
        let size = self.bytes.saturating_add(bytes);
        let enforced = |metered: &&ChargedLimit| !metered.limiter.settings().dry_run;
        if self.metered.iter().filter(enforced).any(|one| one.limiter.never_fits(one.plan, size)) {
            return Err(LimitExceeded::TooLarge);
        }
        ChargedLimit::charge(&self.metered, self.bytes, size, moment)
            .map_err(LimitExceeded::Limited)?;
        self.bytes = size;
        Ok(())
    }

    /// Whether a limit counts bytes.
    pub fn counts_bytes(&self) -> bool {
        self.metered.iter().any(|metered| metered.limiter.measures_bodies())
    }

    /// Gives the request back to quotas of requests: its body turned out to be larger than any may be, which would have
    /// cost nothing had it said so. Rates and quotas of bytes keep what has arrived, which the upstream received: a
    /// client could send it for nothing otherwise.
    pub fn refund(&mut self, moment: Now) {
        let bought = |limiter: &Limiter| {
            matches!(limiter.settings().kind, Kind::Quota(_)) && !limiter.measures_bodies()
        };
        for one in self.metered.extract_if(.., |one| bought(&one.limiter)) {
            let ChargedLimit { limiter, key, plan, slot, .. } = one;
            let now = limiter.counts.time(moment);
            limiter.counts.cells.give_back(key, slot, |cell| {
                *cell = limiter.refund(plan, *cell, now, 0);
            });
        }
    }
}

/// The reason why a request may not pass.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LimitExceeded {
    /// A limit is exceeded.
    Limited(Limited),
    /// A limit has no key for the request, and its `on_missing` is `reject`: 400.
    KeyMissing,
    /// The content costs more than a quota ever allows at once: 413, since no wait helps.
    TooLarge,
    /// The caller has no plan of a limit that has no default: 403.
    NoPlan,
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

    /// Returns the record of an admitted request.
    fn charged(&self, key: u64, plan: PlanIndex, slot: Slot) -> ChargedLimit {
        ChargedLimit {
            limiter: Arc::clone(&self.limiter),
            metrics: Arc::clone(&self.metrics),
            key,
            plan,
            slot,
            place: self.place,
        }
    }

    /// Records the balance, if responses have header fields about this limit.
    fn note(&self, standing: &mut LimitState, left: impl FnOnce(&Limiter) -> Balance) {
        if self.limiter.settings().tells_clients()
            && let Some(slot) = standing.left.get_mut(self.place)
        {
            *slot = left(&self.limiter);
        }
    }
}

/// A limit that has admitted a request before its cost was known.
#[derive(Debug)]
struct ChargedLimit {
    limiter: Arc<Limiter>,
    metrics: Arc<LimitMetrics>,
    key: u64,
    plan: PlanIndex,
    slot: Slot,
    place: usize,
}

impl ChargedLimit {
    /// Charges for a body that grows from `before` to `size` bytes. As in [`Evaluation::ask`], each counter stays locked
    /// until all have agreed.
    fn charge(all: &[Self], before: u64, size: u64, moment: Now) -> Result<(), Limited> {
        let Some((first, others)) = all.split_first() else { return Ok(()) };
        let limiter = &*first.limiter;
        if !limiter.measures_bodies() {
            return Self::charge(others, before, size, moment);
        }
        let now = limiter.counts.time(moment);
        limiter.counts.cells.with(first.key, now, |cell, _| {
            let charged = match limiter.charge_more(first.plan, cell, now, before, size) {
                Ok(charged) => charged,
                // A dry run counts what would have been admitted.
                Err(_) if limiter.settings().dry_run => *cell,
                Err(wait) => {
                    first.metrics.decided(LimitResult::Limited);
                    return Err(refuse(limiter, first.place, wait));
                }
            };
            Self::charge(others, before, size, moment)?;
            *cell = charged;
            Ok(())
        })
    }

    /// Charges what the request turned out to cost; returns the new balance.
    fn settle(&self, cost: u64, moment: Now) -> Balance {
        let limiter = &*self.limiter;
        let now = limiter.counts.time(moment);
        limiter.counts.cells.with(self.key, now, |cell, _| {
            *cell = limiter.settle(self.plan, *cell, now, cost);
            limiter.left(self.plan, *cell, now)
        })
    }
}

/// Returns the refusal of a limit.
fn refuse(limiter: &Limiter, place: usize, wait: u64) -> Limited {
    let settings = limiter.settings();
    Limited {
        retry_after: seconds(wait).max(1) + jitter(settings.retry_jitter),
        status: settings.status.into(),
        announce: settings.headers,
        place: place as u16,
    }
}

/// Returns a random number of seconds, at most `longest`.
fn jitter(longest: Duration) -> u64 {
    match longest.as_secs() {
        0 => 0,
        longest => u64::from_ne_bytes(random()) % (longest + 1),
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
        let never = match limiter.plan(self.subject) {
            Some(plan) if !limiter.never_fits(plan, size) => Ok(plan),
            Some(_) => Err(LimitExceeded::TooLarge),
            None => Err(LimitExceeded::NoPlan),
        };
        let plan = match never {
            Ok(plan) => plan,
            Err(_) if limiter.settings().dry_run => {
                self.would_refuse(check);
                return self.ask(others, refused);
            }
            Err(never) => {
                check.metrics.decided(LimitResult::Limited);
                return Some(never);
            }
        };
        limiter.counts.cells.with(key, now, |cell, slot| {
            match limiter.admit(plan, cell, now, size) {
                Ok(charged) => {
                    let refusal = self.ask(others, refused);
                    if refusal.is_none() {
                        limiter.note_consumer((key, plan), (*cell, charged), now, self.subject);
                        *cell = charged;
                        self.admitted(check, key, plan, slot);
                    }
                    check.note(self.standing, |limiter| limiter.left(plan, *cell, now));
                    refusal
                }
                Err(_) if limiter.settings().dry_run => {
                    self.would_refuse(check);
                    self.ask(others, refused)
                }
                Err(wait) => {
                    check.metrics.decided(LimitResult::Limited);
                    check.note(self.standing, |_| Balance::new(plan, 0, wait));
                    self.ask(others, Some(first(refused, check.refuse(wait))))
                }
            }
        })
    }

    /// Records that a dry run would have refused the request.
    fn would_refuse(&mut self, check: &LimitCheck) {
        check.metrics.decided(LimitResult::DryRun);
        let first = self.standing.dry_run.get_or_insert(check.place as u16);
        *first = (*first).min(check.place as u16);
    }

    /// Records what is to be released when the request ends.
    fn admitted(&mut self, check: &LimitCheck, key: u64, plan: PlanIndex, slot: Slot) {
        check.metrics.decided(match slot {
            Slot::Own => LimitResult::Allowed,
            Slot::Overflow => LimitResult::Overflow,
        });
        let limiter = &check.limiter;
        if limiter.is_concurrency() {
            self.standing.in_flight.push(InFlightPermit::new(&limiter.counts, key, slot));
        }
        if self.subject.request_size.is_none() && !limiter.is_concurrency() {
            self.standing.metered.push(check.charged(key, plan, slot));
        }
        if limiter.settings().response_cost.is_some() {
            self.standing.unsettled.push(check.charged(key, plan, slot));
        }
    }
}

/// Combines two refusals: the first in the file, with the longer wait.
fn first(one: Option<Limited>, other: Limited) -> Limited {
    let Some(one) = one else { return other };
    let retry_after = one.retry_after.max(other.retry_after);
    Limited { retry_after, ..if one.place < other.place { one } else { other } }
}
