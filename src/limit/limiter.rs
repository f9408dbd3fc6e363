//! One limit: its algorithms, and counters that may outlive a reload.

use std::sync::Arc;

use http::Method;
use serde_json::{Map, Value};

use super::algorithms::algorithm::Algorithm;
use super::algorithms::rate::{Kind, Window};
use super::counters::consumers::name_of;
use super::counters::counter::{Counter, CounterKind};
use super::counters::ledger::Entry;
use super::counters::limit_counters::{LimitCounters, Now};
use super::counters::registry::LimitRegistry;
use super::key::{LimitKeySource, NoKey, shared_name};
use super::plans::PlanIndex;
use super::settings::{Cost, Settings};
use super::shared::{self, Lease, Shape, SharedLimit, to_epoch_nanos};
use crate::observe::metrics::Metrics;

/// A limit of one snapshot. Its counters are shared with the previous snapshot if the
/// [`LimitId`](super::LimitId) is the same; all other settings may differ.
#[derive(Debug)]
pub struct Limiter {
    settings: Settings,
    /// The algorithm of callers without a plan.
    rule: Algorithm,
    /// The algorithms of the plans, in the order of the settings.
    plans: Box<[Algorithm]>,
    pub(super) counts: Arc<LimitCounters>,
    /// The leases of a limit that several gateways share.
    pub(super) shared: Option<Arc<SharedLimit>>,
    /// The limit's name in the keys of a shared store.
    id: Box<str>,
}

impl Limiter {
    /// Creates a limit with these `settings`, continuing the counters in the registry.
    pub fn new(settings: Settings, registry: &LimitRegistry, metrics: &Metrics) -> Self {
        let counts = registry.get_or_create(&settings, metrics);
        let plans = settings.plans.iter().flat_map(|plans| &plans.values);
        let plans = plans.map(|plan| Algorithm::new(&plan.kind)).collect();
        let shared = settings.store.is_shared().then(|| registry.shared(&settings)).flatten();
        if let Some(shared) = &shared {
            shared.allow(settings.max_keys);
        }
        let (rule, id) = (Algorithm::new(&settings.kind), settings.id().to_string().into());
        let limiter = Self { settings, rule, plans, counts, shared, id };
        limiter.counts.counters.allow(limiter.settings.max_keys, limiter.used_up());
        limiter
    }

    /// Returns the settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns the key under which this request is counted.
    pub(super) fn key(&self, subject: &LimitKeySource<'_>) -> Result<u64, NoKey> {
        match &self.settings.methods {
            Some(methods) if !counts(methods, subject.method) => Err(NoKey::Skip),
            _ => self.counts.seed.key(&self.settings.by, self.settings.on_missing, subject),
        }
    }

    /// Returns the plan of the caller; `None` if it has none and there is no default.
    pub(super) fn plan(&self, subject: &LimitKeySource<'_>) -> Option<PlanIndex> {
        match &self.settings.plans {
            None => Some(PlanIndex::DEFAULT),
            Some(plans) => plans.of(subject.client, subject.claim),
        }
    }

    /// Returns the amount of a plan.
    pub(super) fn amount(&self, plan: PlanIndex) -> &Kind {
        let plans = self.settings.plans.as_ref();
        let value = plan.position().checked_sub(1).and_then(|index| plans?.values.get(index));
        value.map_or(&self.settings.kind, |plan| &plan.kind)
    }

    /// Returns the algorithm of a plan.
    pub(super) fn rule(&self, plan: PlanIndex) -> &Algorithm {
        let value = plan.position().checked_sub(1).and_then(|index| self.plans.get(index));
        value.unwrap_or(&self.rule)
    }

    /// Returns the name of a request's counter in a shared store.
    pub(super) fn shared_name(&self, subject: &LimitKeySource<'_>) -> String {
        shared_name(&self.id, &self.settings.by, self.settings.on_missing, subject)
    }

    /// Returns the cost of a request with a body of `size` bytes.
    pub(super) fn cost(&self, size: u64) -> u64 {
        if self.is_concurrency() { 1 } else { self.settings.cost.of(size) }
    }

    /// Returns the amount of a plan in the form of a shared store, whose time is `now`.
    pub(super) fn shape(&self, plan: PlanIndex, now: u64) -> Shape {
        let overdraft = matches!(self.settings.cost, Cost::RequestSize(_));
        self.rule(plan).shape(now, overdraft, self.settings.response_cost.is_some())
    }

    /// Returns the balance of a key with this lease.
    pub(super) fn shared_balance(&self, plan: PlanIndex, lease: &Lease, now: u64) -> Balance {
        let limit = self.amount(plan).whole();
        let (remaining, micros) = lease.balance(limit, || self.shape(plan, now), now);
        Balance::new(plan, remaining, micros.saturating_mul(1_000))
    }

    /// Returns the counter after a request with a body of `size` bytes, or how long to wait, in nanoseconds.
    ///
    /// `counter` itself is not charged.
    pub(super) fn admit(
        &self,
        plan: PlanIndex,
        counter: &mut Counter,
        now: u64,
        size: u64,
    ) -> Result<Counter, u64> {
        let overdraft = matches!(self.settings.cost, Cost::RequestSize(_));
        self.rule(plan).admit(counter, now, self.settings.cost.of(size), overdraft)
    }

    /// Returns the counter after a body that was admitted as empty has grown from `before` to `size` bytes, or how long
    /// to wait, in nanoseconds. A quota refuses what exceeds it; an open rate takes debt, as for a body with an
    /// announced size.
    ///
    /// `counter` itself is not charged.
    pub(super) fn charge_more(
        &self,
        plan: PlanIndex,
        counter: &mut Counter,
        now: u64,
        before: u64,
        size: u64,
    ) -> Result<Counter, u64> {
        let cost = self.settings.cost.of(size) - self.settings.cost.of(before);
        match self.rule(plan) {
            rule @ Algorithm::Rate(_) => Ok(rule.charge(*counter, now, cost)),
            Algorithm::InFlight(_) => Ok(*counter),
            rule => rule.admit(counter, now, cost, false),
        }
    }

    /// Returns the counter of a request whose cost turned out to be `cost`: what exceeds the limit is debt.
    pub(super) fn adjust_cost(
        &self,
        plan: PlanIndex,
        counter: Counter,
        now: u64,
        cost: u64,
    ) -> Counter {
        let reserved = self.settings.cost.of(0);
        if cost >= reserved {
            self.rule(plan).charge(counter, now, cost - reserved)
        } else {
            self.rule(plan).refund(counter, now, reserved - cost)
        }
    }

    /// Returns the counter after giving back what a body of `size` bytes was charged.
    pub(super) fn refund(&self, plan: PlanIndex, counter: Counter, now: u64, size: u64) -> Counter {
        self.rule(plan).refund(counter, now, self.settings.cost.of(size))
    }

    /// Returns the balance of the key with this counter.
    pub(super) fn left(&self, plan: PlanIndex, counter: Counter, now: u64) -> Balance {
        let (remaining, reset) = self.rule(plan).left(counter, now);
        Balance::new(plan, remaining, reset)
    }

    /// Returns the balance of the key with this counter, after a request that would have to wait for `wait` nanoseconds: the
    /// remainder may admit a smaller request.
    pub(super) fn left_by_refused(
        &self,
        plan: PlanIndex,
        counter: Counter,
        now: u64,
        wait: u64,
    ) -> Balance {
        self.left(plan, counter, now).or_wait(wait)
    }

    /// Returns the balance of a key with this lease, after a request that would have to wait for `wait` nanoseconds. Only a
    /// limit on bytes can have a remainder here: at a cost of one the request would have been admitted.
    pub(super) fn shared_left_by_refused(
        &self,
        plan: PlanIndex,
        lease: &Lease,
        now: u64,
        wait: u64,
    ) -> Balance {
        if self.measures_bodies() {
            self.shared_balance(plan, lease, now).or_wait(wait)
        } else {
            Balance::new(plan, 0, wait)
        }
    }

    /// Returns the name of a plan; `None` for the limit's own amount.
    pub(super) fn plan_name(&self, plan: PlanIndex) -> Option<&str> {
        let index = plan.position().checked_sub(1)?;
        Some(&self.settings.plans.as_ref()?.values.get(index)?.name)
    }

    /// Notes the use of a key whose counter was `before`, for operators.
    pub(super) fn note_consumer(
        &self,
        (key, plan): (u64, PlanIndex),
        (before, after): (Counter, Counter),
        now: u64,
        subject: &LimitKeySource<'_>,
    ) {
        let kind = self.counts.counters.kind();
        // An even rate recovers between two requests: only one that is busy has consumers. Decided without a division.
        if kind == CounterKind::Rate && after.until.saturating_sub(now) <= after.used {
            return;
        }
        let before = kind.used(before, now);
        let after = kind.used(after, now);
        if after > before {
            let name = || name_of(&self.settings.by, subject);
            self.counts.consumers.note(key, plan, (before, after), name);
        }
    }

    /// Notes the use of a key of a shared limit after a request of this `cost`, for operators.
    pub(super) fn note_shared_consumer(
        &self,
        (key, plan): (u64, PlanIndex),
        balance: Balance,
        cost: u64,
        subject: &LimitKeySource<'_>,
    ) {
        let after = self.amount(plan).whole().saturating_sub(balance.remaining);
        let use_of_key = (after.saturating_sub(cost), after);
        let name = || name_of(&self.settings.by, subject);
        self.counts.consumers.note(key, plan, use_of_key, name);
    }

    /// Returns the end of the window that `counter` counts in; `None` without windows.
    pub(super) fn window_end(&self, plan: PlanIndex, counter: Counter, moment: Now) -> Option<u64> {
        self.rule(plan).window_end(counter, self.counts.time(moment))
    }

    /// Returns the end of the window of a limit that several gateways share, in calendar time; `None` without windows.
    pub(super) fn shared_window_end(
        &self,
        plan: PlanIndex,
        lease: &Lease,
        moment: Now,
    ) -> Option<u64> {
        match &self.settings.kind {
            Kind::Quota(quota) => match quota.window() {
                Window::Calendar(_) => self.window_end(plan, Counter::default(), moment),
                // The store has begun it.
                Window::Flexi => Some(to_epoch_nanos(lease.until())),
                Window::Rolling => None,
            },
            Kind::Rate(_) | Kind::Concurrency(_) => None,
        }
    }

    /// Adds what was charged to the usage that is billed, or takes back what was given back.
    pub(super) fn meter(
        &self,
        (key, plan): (u64, PlanIndex),
        window_end: impl FnOnce() -> Option<u64>,
        units: i64,
        name: impl FnOnce() -> Arc<Map<String, Value>>,
    ) {
        if !self.settings.metered {
            return;
        }
        let window_end = window_end();
        let plans = self.settings.plans.as_ref();
        let value = plan.position().checked_sub(1).and_then(|index| plans?.values.get(index));
        let plan = value.map(|plan| Arc::clone(&plan.name));
        let entry = Entry { key: Some(key), plan, window_end };
        self.counts.ledger.add(entry, units, self.settings.max_keys, name);
    }

    /// Returns the amount of the smallest plan.
    pub(super) fn smallest(&self) -> u64 {
        let plans = self.settings.plans.iter().flat_map(|plans| &plans.values);
        let wholes = plans.map(|plan| plan.kind.whole());
        wholes.fold(self.settings.kind.whole(), u64::min)
    }

    /// Returns the used units from which not even the smallest request fits, whatever the plan.
    pub(super) fn used_up(&self) -> u64 {
        let smallest = self.smallest();
        let cost = match self.settings.cost {
            Cost::Fixed(cost) => cost.get().into(),
            Cost::RequestSize(_) => 1,
        };
        (smallest + 1).saturating_sub(cost).max(1)
    }

    /// Whether a body of `size` bytes costs more than the quota of a plan ever allows at once.
    pub(super) fn never_fits(&self, plan: PlanIndex, size: u64) -> bool {
        matches!(self.settings.cost, Cost::RequestSize(_))
            && matches!(self.amount(plan), Kind::Quota(quota) if self.settings.cost.of(size) > quota.rate().count())
    }

    /// Whether the limit counts bytes, so that a body of unknown size is charged while it arrives.
    pub(super) fn measures_bodies(&self) -> bool {
        matches!(self.settings.cost, Cost::RequestSize(_)) && !self.is_concurrency()
    }

    /// Whether an admitted request stays counted until it ends.
    pub(super) fn is_concurrency(&self) -> bool {
        self.rule.is_concurrency()
    }
}

/// Returns by how much one key may exceed a limit that `gateways` share, if the store loses its data or begins to fail;
/// of several plans, the most.
pub fn overrun_bound(settings: &Settings, gateways: u64) -> u64 {
    let plans = settings.plans.iter().flat_map(|plans| &plans.values).map(|plan| &plan.kind);
    let kinds = plans.chain([&settings.kind]);
    let shapes = kinds.map(|kind| Algorithm::new(kind).shape(0, false, false));
    let least_cost = settings.least_cost();
    shapes.map(|shape| shared::overrun_bound(&shape, gateways, least_cost)).fold(0, u64::max)
}

/// Returns the least by which each gateway adds to [`overrun_bound`], however many there are.
pub fn least_overrun(settings: &Settings) -> u64 {
    shared::least_overrun(settings.least_cost())
}

/// Whether a limit of `methods` counts a request: HEAD costs an upstream as much as GET (RFC 9110 §9.3.2).
fn counts(methods: &[Method], method: &Method) -> bool {
    methods.contains(method) || (*method == Method::HEAD && methods.contains(&Method::GET))
}

/// The remaining allowance of a limit, and when it is renewed. The default is that of a limit that was not checked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Balance {
    /// Whether the limit was checked.
    pub(super) checked: bool,
    /// The plan of the caller.
    pub(super) plan: PlanIndex,
    /// Seconds until the whole limit is available; if nothing remains, until the next request is admitted.
    pub(super) reset: u32,
    /// Remaining requests, or units of cost.
    pub(super) remaining: u64,
}

impl Balance {
    /// Creates a balance of `remaining` now, renewed in `nanos` nanoseconds.
    pub(super) fn new(plan: PlanIndex, remaining: u64, nanos: u64) -> Self {
        let reset = u32::try_from(seconds(nanos)).unwrap_or(u32::MAX);
        Self { checked: true, plan, reset, remaining }
    }

    /// Returns the balance as that of a request that was refused for `wait` nanoseconds.
    fn or_wait(self, wait: u64) -> Self {
        if self.remaining > 0 { self } else { Self::new(self.plan, 0, wait) }
    }
}

/// Returns nanoseconds as whole seconds, rounded up, so that a client that waits that long is not refused for a fraction.
pub(super) fn seconds(nanos: u64) -> u64 {
    nanos.div_ceil(NANOS)
}

const NANOS: u64 = 1_000_000_000;
