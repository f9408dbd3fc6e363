//! A store in memory for tests: the arithmetic of `decide.lua` in Rust, with a clock that tests set, and failures on demand.

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use super::super::backend::{Backend, Call, StoreFailure};
use super::super::protocol::{
    CounterReply, Message, Response, SLOT_LIFETIME_MICROS, Shape, Status,
};
use crate::base::lock::IgnorePoison;

/// The store, and the switches of a test.
#[derive(Debug)]
pub(in crate::limit::shared) struct ReferenceStore {
    counters: Mutex<HashMap<Arc<str>, Counter>>,
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

#[derive(Clone, Debug, Default)]
struct Counter {
    until: f64,
    /// The time per request by which a rate has charged `until`; zero before that.
    interval: f64,
    generation: u64,
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
}

impl ReferenceStore {
    pub(in crate::limit::shared) fn new(now: u64) -> Arc<Self> {
        Arc::new(Self {
            counters: Mutex::default(),
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
        self.counters.lock().ignore_poison().clear();
        self.lost.send_modify(|times| *times += 1);
    }

    /// Returns the end of the window that lasts, in a store of one quota; `None` between windows.
    pub(in crate::limit::shared) fn window_end(&self) -> Option<u64> {
        let now = self.now.load(Relaxed);
        let counters = self.counters.lock().ignore_poison();
        counters.values().map(|counter| counter.until as u64).find(|until| *until > now)
    }

    fn decide(&self, me: u32, messages: &[Message], all: bool) -> Response {
        let now = self.now.load(Relaxed);
        let mut counters = self.counters.lock().ignore_poison();
        let mut items: Vec<Item> = messages
            .iter()
            .map(|message| begin(counters.get(&message.key).cloned(), me, message, now))
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
                    _ => Status::Refused,
                },
                generation: item.counter.generation,
                until: item.counter.until as u64,
                total: item.counter.total.max(item.counter.floor),
                granted: grant.amount,
                wait: item.wait.max(0.0).ceil() as u64,
            }
        });
        let replies = replies.collect();
        Response { now, replies }
    }
}

fn begin(counter: Option<Counter>, me: u32, message: &Message, now: u64) -> Item {
    let known = counter.is_some();
    let counter = counter.unwrap_or_default();
    let grant = counter.grants.get(&(me, message.nonce)).copied();
    let used = message.used;
    let own = (me, message.nonce);
    let (counter, grant) = match (message.purpose.reset, message.shape) {
        (false, _) | (_, Shape::Slots { .. }) => (counter, grant),
        (true, shape) => {
            let until =
                if matches!(shape, Shape::Window { .. }) { counter.until } else { now as f64 };
            (Counter { until, generation: now, ..Counter::default() }, None)
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
    };
    match message.shape {
        Shape::Window { limit, .. } => window(&mut item, message, now, limit),
        Shape::Rate { whole, interval, .. } => {
            rate(&mut item, message, now, known, whole, interval);
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

fn window(item: &mut Item, message: &Message, now: u64, limit: u64) {
    let Shape::Window { end, next, span, .. } = message.shape else { return };
    let begins = if end == 0 { now + next } else { [end, next][usize::from(now >= end)] } as f64;
    let remembered = message.until > now && message.until <= now + span;
    if item.counter.until <= now as f64 {
        item.counter = Counter { until: begins, generation: now, ..Counter::default() };
        if remembered {
            item.counter.until = message.until as f64;
            if message.generation != 0 {
                item.counter.generation = message.generation;
            }
        }
        item.grant = None;
    } else {
        if item.counter.until > (now + span) as f64 {
            item.counter.until = begins;
        }
        expire(item, message, now);
    }
    let applies = message.generation == item.counter.generation
        || (message.generation == 0 && message.until > now);
    item.used = if applies { item.used } else { 0 };
    let mine = if applies { message.granted } else { 0 };
    let mut grant = item.grant.unwrap_or_default();
    if message.seq > grant.seq && grant.amount < mine {
        item.counter.total += mine - grant.amount;
        item.counter.floor = item.counter.floor.max(message.total);
        (grant.amount, item.changed) = (mine, true);
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

fn rate(item: &mut Item, message: &Message, now: u64, known: bool, whole: f64, interval: f64) {
    if !known || item.counter.generation == 0 {
        item.counter.until = now as f64;
        item.counter.generation = if message.generation == 0 { now } else { message.generation };
    }
    let debt = item.counter.until - now as f64;
    if item.counter.interval > 0.0 && debt > 0.0 {
        item.counter.until = now as f64 + debt * interval / item.counter.interval;
    }
    item.counter.interval = interval;
    item.counter.until -= expire(item, message, now) as f64 * interval;
    let remembers =
        message.generation != 0 && (!known || message.generation == item.counter.generation);
    let mut grant = match item.grant {
        None => {
            if remembers {
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
        item.counter.total -= cut;
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

/// The key of the counter that no limit has.
pub(in crate::limit::shared) const PROBE_KEY: &str = "probe";

impl Backend for ReferenceConnection {
    fn call(&self, messages: Vec<Message>, all_or_nothing: bool) -> Call {
        let refuses = self.model.refuses_messages.load(Relaxed) && !messages.is_empty();
        let fails = refuses || self.model.fails.load(Relaxed);
        // A probe is none of the limits' counters and calls.
        let messages: Vec<_> =
            messages.into_iter().filter(|message| &*message.key != PROBE_KEY).collect();
        let loses = self.model.loses_responses.load(Relaxed);
        self.model.calls.fetch_add(usize::from(!messages.is_empty()), Relaxed);
        let response = (!fails).then(|| self.model.decide(self.me, &messages, all_or_nothing));
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
