//! A store in memory for tests: the arithmetic of `decide.lua` in Rust, with a clock that tests set, and failures on demand.

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use super::super::backend::{Backend, Call, StoreFailure};
use super::super::protocol::{
    Caller, CounterReply, Message, Response, SLOT_LIFETIME_MICROS, Shape, Status,
};
use crate::base::lock::IgnorePoison;

/// The store, and the switches of a test.
#[derive(Debug)]
pub(in crate::limit::shared) struct ReferenceStore {
    counters: Mutex<HashMap<Arc<str>, Counter>>,
    memory: Mutex<Memory>,
    /// The store's time.
    pub(in crate::limit::shared) now: AtomicU64,
    /// Whether calls fail.
    pub(in crate::limit::shared) fails: AtomicBool,
    /// Whether calls with messages fail, although the store responds.
    pub(in crate::limit::shared) refuses_messages: AtomicBool,
    /// Whether responses are lost: the store has decided, and the gateway does not learn it.
    pub(in crate::limit::shared) loses_responses: AtomicBool,
    pub(in crate::limit::shared) gateways: AtomicUsize,
    /// The number of calls with messages.
    pub(in crate::limit::shared) calls: AtomicUsize,
    lost: watch::Sender<u64>,
}

/// A gateway's connection to the [`ReferenceStore`].
#[derive(Debug)]
pub(in crate::limit::shared) struct ReferenceConnection {
    pub(in crate::limit::shared) model: Arc<ReferenceStore>,
    pub(in crate::limit::shared) me: u32,
}

/// Since when the store has its data, and the gateways that have reported all that they remember since then.
#[derive(Debug, Default)]
struct Memory {
    since: u64,
    reported: HashSet<u32>,
}

#[derive(Clone, Debug, Default)]
struct Counter {
    until: f64,
    /// The time per request by which a rate has charged `until`; zero before that.
    interval: f64,
    generation: u64,
    /// Reports of this and earlier generations are over.
    over: u64,
    /// The arrival time that was restored after a loss.
    base: f64,
    total: u64,
    floor: u64,
    grants: HashMap<(u32, u32), Grant>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Grant {
    amount: u64,
    seq: u64,
    /// The part that does not expire.
    kept: u64,
    /// The end of the slots, or of the lease beyond what is kept.
    expires: u64,
}

/// A message while it is decided.
struct Item {
    /// The gateway that sent it, and its record.
    own: (u32, u32),
    counter: Counter,
    grant: Option<Grant>,
    used: u64,
    room: i128,
    need: u64,
    fits: bool,
    wait: f64,
    changed: bool,
    continues: bool,
    undecided: bool,
}

impl ReferenceStore {
    pub(in crate::limit::shared) fn new(now: u64) -> Arc<Self> {
        Arc::new(Self {
            counters: Mutex::default(),
            memory: Memory { since: now - RESTORE_MICROS, ..Memory::default() }.into(),
            now: now.into(),
            fails: AtomicBool::new(false),
            refuses_messages: AtomicBool::new(false),
            loses_responses: AtomicBool::new(false),
            gateways: AtomicUsize::new(1),
            calls: AtomicUsize::new(0),
            lost: watch::Sender::new(0),
        })
    }

    /// Loses all data, as a restart without persistence does.
    pub(in crate::limit::shared) fn lose_data(&self) {
        self.lose_data_unnoticed();
        self.notice_loss();
    }

    /// Loses all data, which the gateways that do not call notice only by their heartbeats.
    pub(in crate::limit::shared) fn lose_data_unnoticed(&self) {
        self.evict();
        *self.memory.lock().ignore_poison() = Memory::default();
    }

    /// Tells all gateways that the server may have lost earlier messages.
    pub(in crate::limit::shared) fn notice_loss(&self) {
        self.lost.send_modify(|times| *times += 1);
    }

    /// Loses the counters alone, as a server does that evicts keys.
    pub(in crate::limit::shared) fn evict(&self) {
        // No two generations begin at one time.
        self.now.fetch_add(1, Relaxed);
        self.counters.lock().ignore_poison().clear();
    }

    /// Returns since when the store has its data, and whether gateways may remember data that it has lost.
    fn remember(&self, me: u32, caller: Caller) -> (u64, bool) {
        let now = self.now.load(Relaxed);
        let mut memory = self.memory.lock().ignore_poison();
        if memory.since == 0 {
            memory.since = now;
        }
        if caller.reported == memory.since {
            memory.reported.insert(me);
        }
        let is_recent = now - memory.since < RESTORE_MICROS;
        let others = memory.reported.iter().filter(|gateway| **gateway != me).count();
        (memory.since, is_recent && others as u64 + 1 < caller.gateways)
    }

    /// Returns the end of the window that lasts, in a store of one quota; `None` between windows.
    pub(in crate::limit::shared) fn window_end(&self) -> Option<u64> {
        let now = self.now.load(Relaxed);
        let counters = self.counters.lock().ignore_poison();
        counters.values().map(|counter| counter.until as u64).find(|until| *until > now)
    }

    fn decide(&self, me: u32, caller: Caller, messages: &[Message], all: bool) -> Response {
        let now = self.now.load(Relaxed);
        let (since, is_learning) = self.remember(me, caller);
        let mut counters = self.counters.lock().ignore_poison();
        let mut items: Vec<Item> = messages
            .iter()
            .map(|message| begin(counters.get(&message.key).cloned(), me, message, now))
            .map(|item| if is_learning { item.undecided_since(since) } else { item })
            .collect();
        let agrees = |(item, message): (&Item, &Message)| item.fits || message.purpose.dry_run;
        let admitted = items.iter().zip(messages).all(agrees);
        let replies = messages.iter().zip(&mut items).map(|(message, item)| {
            let granted = item.fits && (admitted || !all);
            finish(item, message, granted, now);
            let grant = item.grant.unwrap_or_default();
            if item.changed || message.purpose.close {
                let mut counter = item.counter.clone();
                counter.grants.insert((me, message.nonce), grant);
                if message.purpose.close && message.seq >= grant.seq {
                    counter.grants.remove(&(me, message.nonce));
                }
                counters.insert(Arc::clone(&message.key), counter);
            }
            CounterReply {
                status: match (granted, item.fits) {
                    (true, _) => Status::Granted,
                    (_, true) => Status::NotCharged,
                    _ if item.undecided => Status::Undecided,
                    _ => Status::Refused,
                },
                generation: item.counter.generation,
                until: item.counter.until as u64,
                total: item.counter.total.max(item.counter.floor),
                granted: grant.amount,
                wait: item.wait.max(0.0).ceil() as u64,
                continues: item.continues,
                debt: 0,
                debt_limit: 0,
            }
        });
        let replies = replies.collect();
        Response { now, since, replies }
    }
}

fn begin(counter: Option<Counter>, me: u32, message: &Message, now: u64) -> Item {
    let counter = counter.unwrap_or_default();
    let grant = counter.grants.get(&(me, message.nonce)).copied();
    let used = message.used;
    let own = (me, message.nonce);
    let (counter, grant) = match (message.purpose.reset, message.shape) {
        (false, _) | (_, Shape::Slots { .. }) => (counter, grant),
        (true, shape) => {
            let until =
                if matches!(shape, Shape::Window { .. }) { counter.until } else { now as f64 };
            (Counter { until, generation: now, over: now, ..Counter::default() }, None)
        }
    };
    let mut item = Item {
        own,
        counter,
        grant,
        used,
        room: 0,
        need: 0,
        fits: false,
        wait: 0.0,
        changed: message.purpose.reset,
        continues: true,
        undecided: false,
    };
    match message.shape {
        Shape::Window { limit, .. } => window(&mut item, message, now, limit),
        Shape::Rate { whole, interval, .. } => {
            rate(&mut item, message, now, whole, interval);
        }
        Shape::Slots { limit } => slots(&mut item, me, message, now, limit),
    }
    let granted = item.grant.map_or(0, |grant| grant.amount);
    let must = i128::from(item.used + message.pending) - i128::from(granted);
    if message.purpose.ask {
        item.need = must.max(0) as u64;
    }
    let overdraft = matches!(message.shape, Shape::Rate { overdraft: true, .. });
    let must = if overdraft { must.min(1) } else { must };
    item.fits = !message.purpose.ask || message.pending == 0 || must <= item.room;
    if let (Shape::Rate { whole, interval, .. }, false) = (message.shape, item.fits) {
        item.wait = (item.counter.until - now as f64).max(0.0) + must as f64 * interval - whole;
    }
    item
}

impl Item {
    /// Leaves what needs a grant undecided, by a counter that was begun at `since` or later.
    fn undecided_since(self, since: u64) -> Self {
        if self.counter.generation != 1 && self.counter.generation < since {
            return self;
        }
        // A lease that covers the request decides it, and does not grow.
        let fits = self.fits && self.need == 0;
        Self { fits, undecided: self.fits, ..self }
    }
}

fn window(item: &mut Item, message: &Message, now: u64, limit: u64) {
    let Shape::Window { end, next, span, .. } = message.shape else { return };
    let begins = if end == 0 { now + next } else { [end, next][usize::from(now >= end)] } as f64;
    let has_ended = item.counter.until <= now as f64;
    let over = item.counter.over.max(if has_ended { item.counter.generation } else { 0 });
    let lasts_elsewhere = message.until > now
        && message.until <= now + span
        && (message.generation == 0 || message.generation > over);
    if has_ended {
        let until = if lasts_elsewhere { message.until as f64 } else { begins };
        item.counter = Counter { until, generation: now, over, ..Counter::default() };
        item.grant = None;
    } else {
        if item.counter.until > (now + span) as f64 {
            item.counter.until = begins;
        }
        expire(item, message, now);
    }
    let is_same = message.generation == item.counter.generation;
    let is_older = !is_same && message.generation != 0 && lasts_elsewhere;
    item.continues = is_same || is_older || (message.generation == 0 && message.until > now);
    item.used = if item.continues { item.used } else { 0 };
    let mine = if item.continues { message.granted } else { 0 };
    if is_older && end == 0 {
        item.counter.until = item.counter.until.min(message.until as f64);
    }
    let mut grant = item.grant.unwrap_or_default();
    if is_older || (message.seq > grant.seq && grant.amount < mine) {
        let more = mine.saturating_sub(grant.amount);
        item.counter.total += more;
        item.counter.floor = item.counter.floor.max(message.total);
        (grant.amount, item.changed) = (grant.amount + more, true);
    }
    if item.used > grant.amount {
        item.counter.total += item.used - grant.amount;
        item.counter.floor += item.used - grant.amount;
        (grant.amount, item.changed) = (item.used, true);
    }
    item.grant = Some(grant);
    let total = item.counter.total.max(item.counter.floor);
    item.room = i128::from(limit) - i128::from(total);
    item.wait = item.counter.until - now as f64;
}

fn rate(item: &mut Item, message: &Message, now: u64, whole: f64, interval: f64) {
    if item.counter.generation == 0 {
        (item.counter.until, item.counter.generation) = (now as f64, now);
    }
    let debt = item.counter.until - now as f64;
    if item.counter.interval > 0.0 && debt > 0.0 {
        let scale = interval / item.counter.interval;
        item.counter.until = now as f64 + debt * scale;
        item.counter.base = now as f64 + (item.counter.base - now as f64).max(0.0) * scale;
    }
    item.counter.interval = interval;
    item.counter.until -= expire(item, message, now) as f64 * interval;
    let is_same = message.generation == item.counter.generation;
    item.continues = message.generation == 0 || is_same || message.generation > item.counter.over;
    let is_older = item.continues && !is_same && message.generation != 0;
    let mut grant = match item.grant {
        grant if is_older => {
            let base = item.counter.base.max(now as f64);
            let more = (message.until as f64 - base).max(0.0);
            item.counter.until = item.counter.until.max(now as f64) + more;
            (item.counter.base, item.changed) = (base + more, true);
            let grant = grant.unwrap_or_default();
            Grant { amount: grant.amount.max(message.granted), ..grant }
        }
        None => {
            if is_same {
                item.counter.until = item.counter.until.max(message.until as f64);
                item.changed = true;
            }
            Grant { amount: message.granted, ..Grant::default() }
        }
        Some(grant) if message.seq > grant.seq && grant.amount < message.granted => {
            item.counter.until = item.counter.until.max(message.until as f64);
            item.changed = true;
            Grant { amount: message.granted, ..grant }
        }
        Some(grant) => grant,
    };
    if item.used > grant.amount {
        charge(item, now, interval, item.used - grant.amount);
        (grant.amount, item.changed) = (item.used, true);
    }
    item.grant = Some(grant);
    let debt = (item.counter.until - now as f64).max(0.0);
    item.room = ((whole - debt) / interval + 0.000_001).floor() as i128;
}

/// Takes back the leases that other gateways have not renewed; returns their amount.
fn expire(item: &mut Item, message: &Message, now: u64) -> u64 {
    let mut amount = 0;
    for (owner, grant) in &mut item.counter.grants {
        let own = item.own == *owner;
        if !own && message.shape.lease_lifetime() > 0 && grant.expires <= now {
            amount += grant.amount - grant.kept;
            grant.amount = grant.kept;
        }
    }
    item.changed |= amount > 0;
    item.counter.total = item.counter.total.saturating_sub(amount);
    item.counter.floor = item.counter.floor.saturating_sub(amount);
    amount
}

fn charge(item: &mut Item, now: u64, interval: f64, amount: u64) {
    item.counter.until = item.counter.until.max(now as f64) + amount as f64 * interval;
}

fn slots(item: &mut Item, me: u32, message: &Message, now: u64, limit: u64) {
    let own = (me, message.nonce);
    item.counter.grants.retain(|key, grant| *key == own || grant.expires > now);
    let others = item.counter.grants.iter().filter(|(key, _)| **key != own);
    let others: u64 = others.map(|(_, grant)| grant.amount).sum();
    let mut grant = item.grant.unwrap_or_default();
    grant.amount = grant.amount.max(item.used);
    grant.expires = now + SLOT_LIFETIME_MICROS;
    (item.counter.generation, item.counter.until) = (1, now as f64);
    (item.counter.total, item.counter.floor, item.changed) = (others + grant.amount, 0, true);
    item.room = i128::from(limit) - i128::from(item.counter.total);
    item.wait = 1_000_000.0;
    item.grant = Some(grant);
}

fn finish(item: &mut Item, message: &Message, granted: bool, now: u64) {
    let interval = match message.shape {
        Shape::Rate { interval, .. } => Some(interval),
        _ => None,
    };
    let mut grant = item.grant.unwrap_or_default();
    let kept = item.used + message.pending;
    if granted {
        let rest = (item.room - i128::from(item.need)).max(0) as u64 / message.shares.max(1);
        let free = (grant.amount + item.need).saturating_sub(kept);
        let extra = message.target.saturating_sub(free).min(rest);
        let extra = if item.undecided { 0 } else { extra };
        let add = item.need + extra.saturating_sub((free + extra) % message.cost);
        if add > 0 {
            grant.amount += add;
            item.counter.total += add;
            item.counter.floor += add;
            item.changed = true;
            if let Some(interval) = interval {
                charge(item, now, interval, add);
            }
        }
    }
    let keeps =
        if message.purpose.ask { kept.saturating_sub(message.cost) } else { kept + message.target };
    let lowers = message.purpose.lower && !(message.purpose.ask && item.fits);
    if lowers && message.seq > grant.seq && grant.amount > keeps {
        let cut = grant.amount - keeps;
        grant.amount = keeps;
        item.counter.total = item.counter.total.saturating_sub(cut);
        item.counter.floor = item.counter.floor.saturating_sub(cut);
        item.changed = true;
        if let Some(interval) = interval {
            item.counter.until -= cut as f64 * interval;
        }
    }
    if message.seq >= grant.seq {
        grant.kept = grant.amount.min(if granted { kept } else { item.used });
    }
    let lifetime = message.shape.lease_lifetime();
    if lifetime > 0 {
        grant.expires = now + lifetime;
        item.changed = true;
    }
    grant.seq = grant.seq.max(message.seq);
    item.grant = Some(grant);
}

/// The time in which a store that has lost its data waits for reports.
pub(in crate::limit::shared) const RESTORE_MICROS: u64 = 2_000_000;

/// The key of the counter that no limit has.
pub(in crate::limit::shared) const PROBE_KEY: &str = "probe";

impl Backend for ReferenceConnection {
    fn call(&self, caller: Caller, messages: Vec<Message>, all_or_nothing: bool) -> Call {
        let refuses = self.model.refuses_messages.load(Relaxed) && !messages.is_empty();
        let fails = refuses || self.model.fails.load(Relaxed);
        // A probe is none of the limits' counters and calls.
        let messages: Vec<_> =
            messages.into_iter().filter(|message| &*message.key != PROBE_KEY).collect();
        let loses = self.model.loses_responses.load(Relaxed);
        self.model.calls.fetch_add(usize::from(!messages.is_empty()), Relaxed);
        let response =
            (!fails).then(|| self.model.decide(self.me, caller, &messages, all_or_nothing));
        Box::pin(async move { response.filter(|_| !loses).ok_or(StoreFailure) })
    }

    fn is_usable(&self) -> bool {
        !self.model.fails.load(Relaxed)
    }

    fn gateways(&self) -> usize {
        self.model.gateways.load(Relaxed)
    }

    fn reconnections(&self) -> watch::Receiver<u64> {
        self.model.lost.subscribe()
    }
}
