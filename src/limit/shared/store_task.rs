//! The task that talks to the store: it asks for requests, renews leases ahead, returns what is not used, and repeats
//! messages that the store may have lost.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};

use super::backend::Backend;
use super::lease::{Lease, LeaseSlot};
use super::protocol::{CounterReply, Message, MessagePurpose, Shape, Status};
use super::redis_backend::RedisBackend;
use super::shared_limit::SharedLimit;
use super::store_state::{Decided, Job, LeaseId, MessageReason, StoreState};
use crate::base::clock::Clock;
use crate::base::digest::sha256;
use crate::base::lock::IgnorePoison;
use crate::limit::counters::limit_counters::Now;
use crate::limit::settings::Settings;
use crate::observe::metrics::Metrics;
use crate::redis::Redis;

/// A store that limits are shared through.
#[derive(Debug)]
pub struct LimitStore {
    core: Arc<Core>,
    prefix: Box<str>,
    next_id: AtomicU64,
    /// The numbers of all leases; the first is 1.
    nonces: Arc<AtomicU32>,
    metrics: Metrics,
}

impl LimitStore {
    /// Shares limits through `redis`, with a task on its control runtime. The task ends once no configuration uses the store,
    /// and the store knows all that was admitted, in flight or not.
    pub fn start(redis: &Arc<Redis>, clock: &Clock, metrics: &Metrics) -> Arc<Self> {
        let budget = redis.settings().timeout;
        // The braces are the hash tag: a cluster keeps all counters in one slot, so that one script decides any of them.
        let prefix = redis.key("{limits}", "");
        let probe_key = redis.key("probe", "{limits}");
        let control = redis.control().clone();
        let backend = Box::new(RedisBackend::new(Arc::clone(redis), clock.clone()));
        let keys = (prefix.into(), probe_key.into());
        let (store, jobs) = Self::new(backend, budget, keys, clock, metrics);
        control.spawn(run(Arc::clone(&store), jobs));
        store
    }

    /// Shares limits through `backend`, with a task on the current runtime.
    #[cfg(test)]
    pub(super) fn with_backend(
        backend: Box<dyn Backend>,
        clock: &Clock,
        metrics: &Metrics,
    ) -> Arc<Self> {
        let budget = Duration::from_millis(5);
        let keys = ("test:".into(), super::tests::reference_store::PROBE_KEY.into());
        let (store, jobs) = Self::new(backend, budget, keys, clock, metrics);
        tokio::runtime::Handle::current().spawn(run(Arc::clone(&store), jobs));
        store
    }

    /// Returns what is granted and not used.
    #[cfg(test)]
    pub(super) fn unused(&self) -> u64 {
        let mut unused = 0;
        self.core.each_lease(|_, _, lease| {
            unused += lease.granted.saturating_sub(lease.used);
            true
        });
        unused
    }

    /// Has the task forget all leases, as a killed process does.
    #[cfg(test)]
    pub(super) fn silence(&self) {
        self.core.limits.lock().ignore_poison().clear();
    }

    fn new(
        backend: Box<dyn Backend>,
        budget: Duration,
        (prefix, probe_key): (Box<str>, Arc<str>),
        clock: &Clock,
        metrics: &Metrics,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Job>) {
        let (sender, jobs) = mpsc::unbounded_channel();
        let state = Arc::new(StoreState::new(budget, sender, metrics.limit_store()));
        let limits = Mutex::default();
        let core = Core { backend, state, clock: clock.clone(), limits, probe_key };
        let (next_id, nonces) = (AtomicU64::new(0), Arc::new(AtomicU32::new(1)));
        let store =
            Self { core: Arc::new(core), prefix, next_id, nonces, metrics: metrics.clone() };
        (Arc::new(store), jobs)
    }

    /// Has the task look after the leases of a limit, which it may have forgotten as unused.
    pub(in crate::limit) fn serve(&self, limit: &Arc<SharedLimit>) {
        self.core.limits.lock().ignore_poison().insert(limit.id, Arc::clone(limit));
    }

    /// Creates the leases of a limit.
    pub(in crate::limit) fn limit(&self, settings: &Settings) -> Arc<SharedLimit> {
        let id = self.next_id.fetch_add(1, Relaxed);
        let prefix = format!("{}{}:", self.prefix, settings.name);
        // As every key, it is another one for another kind, window or `by`.
        let digest = sha256(&[settings.id().to_string().as_bytes()]);
        let number = digest[..8].iter().fold(0, |number, byte| (number << 8) | u64::from(*byte));
        let overflow = format!("{prefix}overflow-{number:016x}").into();
        Arc::new(SharedLimit::new(
            id,
            (prefix.into(), overflow),
            settings.max_keys,
            Arc::clone(&self.core.state),
            self.metrics.limit_keys(&settings.name),
            self.metrics.leases(&settings.name),
            Arc::clone(&self.nonces),
        ))
    }

    /// Resets the counter at `slot` for all gateways, and returns whether the store has done so. `name` is its name in
    /// the store.
    pub(in crate::limit) async fn reset(
        &self,
        limit: &SharedLimit,
        slot: LeaseSlot,
        name: Option<&str>,
        shape: Shape,
    ) -> bool {
        // The lease was forgotten meanwhile, and is not named: nothing is known of it.
        let Some(message) = limit.reset(slot, name, shape) else { return true };
        let decided = self.core.exchange(vec![(limit.id, slot)], vec![message], false).await;
        decided.is_some()
    }

    /// Returns all unused leases, for at most `timeout`: before the process ends.
    pub async fn drain(&self, timeout: Duration) {
        // Leases that are not returned end with their windows.
        let _ = tokio::time::timeout(timeout, self.core.return_all()).await;
    }
}

/// The part of a store that its task shares.
#[derive(Debug)]
struct Core {
    backend: Box<dyn Backend>,
    state: Arc<StoreState>,
    clock: Clock,
    /// The limits in use, and those whose leases the store does not have back yet.
    limits: Mutex<HashMap<u64, Arc<SharedLimit>>>,
    /// The key of the counter that no limit has.
    probe_key: Arc<str>,
}

/// Serves the store until no configuration uses it, and all that its limits have admitted is reported.
async fn run(mut store: Arc<LimitStore>, mut jobs: mpsc::UnboundedReceiver<Job>) {
    let core = Arc::clone(&store.core);
    let mut reconnections = core.backend.reconnections();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut count = 0_u64;
    if core.backend.is_usable() {
        // Connected before this task began to watch, and without leases so far.
        tokio::runtime::Handle::current().spawn(Arc::clone(&core).report(Vec::new()));
    }
    loop {
        let is_retired = Arc::strong_count(&store) == 1;
        core.state.set_retired(is_retired);
        if is_retired && core.limits.lock().ignore_poison().is_empty() {
            match Arc::try_unwrap(store) {
                Ok(_) => return,
                // A reload has selected it again at this moment.
                Err(selected) => store = selected,
            }
        }
        tokio::select! {
            job = jobs.recv() => match job {
                Some(job) => core.work(job, &mut jobs),
                None => return,
            },
            _ = ticks.tick() => {
                count += 1;
                let upkeep = count.is_multiple_of(UPKEEP_TICKS);
                if upkeep {
                    core.forget_unused(is_retired);
                }
                core.tick(upkeep);
            }
            changed = reconnections.changed() => match changed {
                Ok(()) => core.resynchronize(),
                Err(_) => return,
            },
        }
    }
}

impl Core {
    /// Takes `job` and all that wait after it.
    fn work(self: &Arc<Self>, job: Job, jobs: &mut mpsc::UnboundedReceiver<Job>) {
        let (mut tells, mut messages) = (HashMap::new(), Vec::new());
        let mut next = Some(job);
        while let Some(job) = next {
            match job {
                Job::Ask { leases, messages, respond } => self.ask(leases, messages, respond),
                Job::Tell(lease, reason) => {
                    tells.insert(lease, reason);
                }
                Job::Send(lease, message) => messages.push((lease, message)),
                Job::Resynchronize => self.resynchronize(),
            }
            next = jobs.try_recv().ok();
        }
        messages
            .extend(tells.into_iter().filter_map(|(lease, reason)| self.message(lease, reason)));
        self.tell(messages);
    }

    fn ask(
        self: &Arc<Self>,
        leases: Vec<LeaseId>,
        messages: Vec<Message>,
        respond: oneshot::Sender<Option<Vec<Decided>>>,
    ) {
        let core = Arc::clone(self);
        tokio::runtime::Handle::current().spawn(async move {
            let decided = core.exchange(leases, messages, true).await;
            // A request is decided as a whole, here or by the store.
            let is_decided =
                |all: &Vec<Decided>| all.iter().all(|decided| decided.status != Status::Undecided);
            let decided = decided.filter(is_decided);
            // The request may have been decided without the store by now; the grants are in its lease.
            let _ = respond.send(decided);
        });
    }

    /// Tells the store about leases, in batches, for which no request waits.
    fn tell(self: &Arc<Self>, messages: Vec<(LeaseId, Message)>) {
        let mut messages = messages.into_iter().peekable();
        while messages.peek().is_some() {
            let (leases, batch) = messages.by_ref().take(BATCH).unzip();
            let core = Arc::clone(self);
            tokio::runtime::Handle::current()
                .spawn(async move { core.exchange(leases, batch, false).await });
        }
    }

    /// Sends messages in one round trip, and applies the replies.
    async fn exchange(
        &self,
        leases: Vec<LeaseId>,
        messages: Vec<Message>,
        all_or_nothing: bool,
    ) -> Option<Vec<Decided>> {
        let began = self.clock.uptime();
        let caller = self.state.caller();
        let result = self.backend.call(caller, messages.clone(), all_or_nothing).await;
        let moment = Now::of(&self.clock);
        let Ok(response) = result else {
            self.state.failed(moment);
            for (lease, message) in leases.into_iter().zip(&messages) {
                self.with_record(lease, message, |_, lease| lease.renewing = false);
            }
            return None;
        };
        self.state.metrics.answered(moment.uptime.saturating_sub(began));
        self.state.time.learn(response.now, moment);
        self.state.set_gateways(self.backend.gateways() as u64, moment);
        self.state.answered();
        self.state.learn_since(response.since);
        let gateways = self.state.gateways();
        for ((lease, message), reply) in leases.into_iter().zip(&messages).zip(&response.replies) {
            self.with_record(lease, message, |limit, lease| {
                let before = lease.granted;
                lease.apply(message, reply, response.now, gateways);
                lease.renewing &= message.purpose.ask;
                limit.metrics.granted(lease.granted.saturating_sub(before));
            });
        }
        let decided = |reply: &CounterReply| Decided { status: reply.status, wait: reply.wait };
        Some(response.replies.iter().map(decided).collect())
    }

    /// Looks at the connection, and at all leases if `upkeep`.
    fn tick(self: &Arc<Self>, upkeep: bool) {
        let moment = Now::of(&self.clock);
        let was_usable = self.state.is_usable();
        self.state.set_usable(self.backend.is_usable(), moment);
        if !self.backend.is_usable() {
            return;
        }
        if !was_usable {
            // The circuit is open: this is the attempt that may close it.
            return self.probe();
        }
        if upkeep {
            self.tell(self.due(moment));
        }
    }

    /// Forgets the limits that no configuration and no request uses, once the store knows all about them; if the store
    /// itself is retired and has been unavailable for a minute, also those of which it does not.
    fn forget_unused(&self, is_retired: bool) {
        let outage = self.state.outage(Now::of(&self.clock), 1);
        let is_lost = is_retired && outage.lasted > LOST_MICROS;
        let mut limits = self.limits.lock().ignore_poison();
        limits.retain(|_, limit| Arc::strong_count(limit) > 1 || !(is_lost || limit.is_settled()));
    }

    /// Tells the store all that it may have lost, or missed during an outage, and then that this is all.
    fn resynchronize(self: &Arc<Self>) {
        self.state.set_usable(self.backend.is_usable(), Now::of(&self.clock));
        let mut messages = Vec::new();
        self.each_lease(|limit, slot, lease| {
            lease.lost();
            messages.extend(limit.message(slot, lease, MessagePurpose::default(), false));
            true
        });
        let core = Arc::clone(self);
        tokio::runtime::Handle::current().spawn(async move { core.report(messages).await });
    }

    /// Sends `messages` in batches, and confirms that they are all that this gateway remembers.
    async fn report(self: Arc<Self>, messages: Vec<(LeaseId, Message)>) {
        let probe = || vec![Message::probe(&self.probe_key)];
        if self.exchange(Vec::new(), probe(), false).await.is_none() {
            // What is not reported is due when the store responds again.
            return self.undo(messages);
        }
        let since = self.state.since();
        let mut messages = messages.into_iter().peekable();
        while messages.peek().is_some() {
            let (leases, batch) = messages.by_ref().take(BATCH).unzip();
            if self.exchange(leases, batch, false).await.is_none() {
                return self.undo(messages.collect());
            }
        }
        self.state.set_reported(since);
        self.exchange(Vec::new(), probe(), false).await;
    }

    /// Has messages that were not sent fall due again.
    fn undo(&self, messages: Vec<(LeaseId, Message)>) {
        for (lease, message) in &messages {
            self.with_record(*lease, message, |_, lease| lease.renewing = false);
        }
    }

    /// Asks about a counter that no limit has, to learn the time, and whether the store decides as it does for limits,
    /// for it may refuse a command that an empty call does not need; then sends the messages that are due.
    fn probe(self: &Arc<Self>) {
        let core = Arc::clone(self);
        tokio::runtime::Handle::current().spawn(async move {
            let probe = Message::probe(&core.probe_key);
            if core.exchange(Vec::new(), vec![probe], false).await.is_some() {
                core.tell(core.due(Now::of(&core.clock)));
            }
        });
    }

    /// Returns the messages that are due without a request, and forgets the leases that are over.
    fn due(&self, moment: Now) -> Vec<(LeaseId, Message)> {
        let now = self.state.time.now(moment);
        let mut messages = Vec::new();
        self.each_lease(|limit, slot, lease| {
            lease.forfeit(now);
            if lease.is_over(now) {
                return false;
            }
            if let Some(purpose) = lease.due(now) {
                messages.extend(limit.message(slot, lease, purpose, false));
                return !purpose.close;
            }
            true
        });
        messages
    }

    async fn return_all(&self) {
        let mut messages = Vec::new();
        self.each_lease(|limit, slot, lease| {
            messages.extend(limit.message(slot, lease, MessagePurpose::LAST, false));
            true
        });
        for batch in messages.chunks(BATCH) {
            let (leases, batch) = batch.iter().cloned().unzip();
            self.exchange(leases, batch, false).await;
        }
    }

    fn message(&self, id: LeaseId, reason: MessageReason) -> Option<(LeaseId, Message)> {
        let purpose =
            MessagePurpose { lower: reason == MessageReason::Return, ..MessagePurpose::default() };
        self.with_lease(id, |limit, lease| {
            // Slots are not leased ahead.
            let grows =
                reason == MessageReason::Renew && !matches!(lease.shape, Some(Shape::Slots { .. }));
            limit.message(id.1, lease, purpose, grows)
        })?
    }

    /// Passes `change` the lease that `message` is about, unless another one is in its place by now.
    fn with_record(
        &self,
        id: LeaseId,
        message: &Message,
        change: impl FnOnce(&SharedLimit, &mut Lease),
    ) {
        self.with_lease(id, |limit, lease| {
            if lease.nonce == message.nonce {
                change(limit, lease);
            }
        });
    }

    fn with_lease<R>(
        &self,
        (id, slot): LeaseId,
        change: impl FnOnce(&SharedLimit, &mut Lease) -> R,
    ) -> Option<R> {
        let limit = Arc::clone(self.limits.lock().ignore_poison().get(&id)?);
        limit.leases.existing(slot, |lease| change(&limit, lease))
    }

    /// Passes every lease to `visit`, and removes those for which it returns false.
    fn each_lease(&self, mut visit: impl FnMut(&SharedLimit, LeaseSlot, &mut Lease) -> bool) {
        let limits: Vec<_> = self.limits.lock().ignore_poison().values().cloned().collect();
        for limit in limits {
            let mut unused = 0_u64;
            limit.leases.retain(|slot, lease| {
                unused = unused.saturating_add(lease.granted.saturating_sub(lease.used));
                visit(&limit, slot, lease)
            });
            limit.metrics.unused(unused);
        }
    }
}

/// The interval of looks at the connection.
const TICK: Duration = Duration::from_millis(100);
/// Leases are looked after at every third of them.
const UPKEEP_TICKS: u64 = 3;
/// A store that no configuration uses, and that has been unavailable for this long, is not waited for.
const LOST_MICROS: u64 = 60_000_000;
/// The maximum number of messages in one call without a waiting request: the server serves nothing else meanwhile.
const BATCH: usize = 100;
