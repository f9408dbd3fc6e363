//! The state of the store that limits are shared through: its time, its availability, and the channel to its task.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::lease::LeaseSlot;
use super::lease::Outage;
use super::protocol::{Caller, Message, Status};
use super::store_time::StoreTime;
use crate::limit::counters::limit_counters::Now;
use crate::observe::metrics::LimitStoreMetrics;
use crate::redis::RESTORE_TIME;

/// A lease: the limit's number, and the place in its table.
pub(super) type LeaseId = (u64, LeaseSlot);

/// Work for the store's task.
#[derive(Debug)]
pub(super) enum Job {
    /// Send the messages of one request, and return the decisions.
    Ask {
        leases: Vec<LeaseId>,
        messages: Vec<Message>,
        respond: oneshot::Sender<Option<Vec<Decided>>>,
    },
    /// Send a message about what this lease is by then, for which no request waits.
    Tell(LeaseId, MessageReason),
    /// Send this message about a lease, for which no request waits.
    Send(LeaseId, Message),
    /// Send all that the store may have lost.
    Resynchronize,
}

/// The reason for a message about a lease.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum MessageReason {
    /// The lease is nearly used up.
    Renew,
    /// Grants are to be given back.
    Return,
    /// More is used than was granted.
    Report,
}

/// The store's decision about one limit of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::limit) struct Decided {
    pub(super) status: Status,
    /// The wait of a refused request, in microseconds.
    pub(super) wait: u64,
}

/// The state of the store that requests read.
#[derive(Debug)]
pub(in crate::limit) struct StoreState {
    pub(in crate::limit) time: StoreTime,
    jobs: mpsc::UnboundedSender<Job>,
    /// How long a request waits.
    budget: Duration,
    /// Whether the server can be used, by the task's last look.
    usable: AtomicBool,
    /// Consecutive failures.
    failures: AtomicU32,
    /// The time of the first of them, in microseconds of uptime plus one; zero if there is none.
    failing_since: AtomicU64,
    gateways: AtomicU64,
    /// The last time, in microseconds of uptime, at which there were as many gateways.
    gateways_at: AtomicU64,
    /// The time since which the store has its data, and the one since which it has all that this gateway remembers.
    since: AtomicU64,
    reported: AtomicU64,
    /// Whether the configuration uses another store by now.
    retired: AtomicBool,
    pub(super) metrics: Arc<LimitStoreMetrics>,
}

impl StoreState {
    pub(super) fn new(
        budget: Duration,
        jobs: mpsc::UnboundedSender<Job>,
        metrics: Arc<LimitStoreMetrics>,
    ) -> Self {
        Self {
            time: StoreTime::default(),
            jobs,
            budget: budget.min(MAX_BUDGET),
            usable: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            failing_since: AtomicU64::new(0),
            gateways: AtomicU64::new(1),
            gateways_at: AtomicU64::new(0),
            since: AtomicU64::new(0),
            reported: AtomicU64::new(0),
            retired: AtomicBool::new(false),
            metrics,
        }
    }

    /// Whether asking the store makes sense: the circuit is closed.
    pub(in crate::limit) fn is_usable(&self) -> bool {
        self.usable.load(Relaxed) && self.failures.load(Relaxed) < MAX_FAILURES
    }

    /// Returns the number of gateways that share the store, at least 1.
    pub(in crate::limit) fn gateways(&self) -> u64 {
        self.gateways.load(Relaxed)
    }

    /// Records the number of gateways at `moment`. A server that has lost its data knows few for a moment: a smaller
    /// number counts when it has lasted.
    pub(super) fn set_gateways(&self, count: u64, moment: Now) {
        let (count, now) = (count.max(1), micros(moment));
        let has_lasted = now.saturating_sub(self.gateways_at.load(Relaxed)) > RESTORE_MICROS;
        if count >= self.gateways() || has_lasted {
            self.gateways.store(count, Relaxed);
            self.gateways_at.store(now, Relaxed);
        }
    }

    /// Returns this gateway as it presents itself to the store.
    pub(super) fn caller(&self) -> Caller {
        Caller { gateways: self.gateways(), reported: self.reported.load(Relaxed) }
    }

    /// Records since when the store has its data; if it has lost earlier data, all is sent again soon.
    pub(super) fn learn_since(&self, since: u64) {
        let known = self.since.swap(since, Relaxed);
        if known != 0 && known != since {
            // Without the task there is no store.
            let _ = self.jobs.send(Job::Resynchronize);
        }
    }

    /// Records that the store has all that this gateway remembers, if it has not lost it meanwhile.
    pub(super) fn set_reported(&self, since: u64) {
        if self.since.load(Relaxed) == since {
            self.reported.store(since, Relaxed);
        }
    }

    /// Returns the time since which the store has its data; zero before the first response.
    pub(super) fn since(&self) -> u64 {
        self.since.load(Relaxed)
    }

    /// Records whether the configuration uses another store by now, whose availability is exported then.
    pub(super) fn set_retired(&self, retired: bool) {
        self.retired.store(retired, Relaxed);
    }

    /// Returns the circumstances of a decision without the store, by a limit whose smallest request costs `least_cost`.
    pub(in crate::limit) fn outage(&self, moment: Now, least_cost: u64) -> Outage {
        let lasted = match self.failing_since.load(Relaxed) {
            0 => 0,
            since => (micros(moment) + 1).saturating_sub(since),
        };
        Outage { lasted, gateways: self.gateways(), least_cost }
    }

    /// Records whether the connection is usable at `moment`.
    pub(super) fn set_usable(&self, usable: bool, moment: Now) {
        self.usable.store(usable, Relaxed);
        if !usable {
            self.begin_outage(moment);
        }
        self.export();
    }

    /// Records a call without a response in time.
    pub(super) fn failed(&self, moment: Now) {
        self.failures.fetch_add(1, Relaxed);
        self.begin_outage(moment);
        self.metrics.failed();
        self.export();
    }

    /// Records a response to a call.
    pub(super) fn answered(&self) {
        self.failures.store(0, Relaxed);
        if self.usable.load(Relaxed) {
            self.failing_since.store(0, Relaxed);
        }
        self.export();
    }

    fn export(&self) {
        if !self.retired.load(Relaxed) {
            self.metrics.set_usable(self.is_usable());
        }
    }

    fn begin_outage(&self, moment: Now) {
        // The outage has begun before.
        let _ = self.failing_since.compare_exchange(0, micros(moment) + 1, Relaxed, Relaxed);
    }

    /// Sends a message about this lease soon.
    pub(super) fn tell(&self, lease: LeaseId, reason: MessageReason) {
        // Without the task there is no store; leases end by themselves.
        let _ = self.jobs.send(Job::Tell(lease, reason));
    }

    /// Sends this message about a lease soon.
    pub(super) fn send(&self, lease: LeaseId, message: Message) {
        // As above: a lease that is not returned ends by itself.
        let _ = self.jobs.send(Job::Send(lease, message));
    }

    /// Asks the store, for at most a few milliseconds. `None` if it did not respond in time: it may still decide.
    pub(super) async fn ask(
        &self,
        leases: Vec<LeaseId>,
        messages: Vec<Message>,
        moment: Now,
    ) -> Option<Vec<Decided>> {
        let (respond, response) = oneshot::channel();
        self.jobs.send(Job::Ask { leases, messages, respond }).ok()?;
        let Ok(response) = tokio::time::timeout(self.budget, response).await else {
            self.failed(moment);
            return None;
        };
        response.ok()?
    }
}

fn micros(moment: Now) -> u64 {
    u64::try_from(moment.uptime.as_micros()).unwrap_or(u64::MAX - 1)
}

/// The longest that a request waits for the store.
const MAX_BUDGET: Duration = Duration::from_millis(5);
/// The time in which all gateways notice that the server has lost its data, and report what they remember.
const RESTORE_MICROS: u64 = RESTORE_TIME.as_micros() as u64;
/// After this number of consecutive failures no request waits, until the task has received a response.
const MAX_FAILURES: u32 = 3;
