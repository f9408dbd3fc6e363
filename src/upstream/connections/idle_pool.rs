//! The idle connections of one worker thread, and those that its requests share.
//!
//! A connection never moves between threads, so the pool takes no lock. It is
//! a stack: the connection used last is reused first, and the ones that traffic
//! no longer needs age at the bottom and are dropped.

use core::cell::RefCell;
use core::fmt;
use core::time::Duration;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use super::connect::FreshRead;
use crate::upstream::Endpoint;
use crate::upstream::http1::Connection;
use crate::upstream::http2::SharedConnections;

/// Idle upstream connections of one worker, by endpoint. Cheap to clone; deliberately not `Send`.
#[derive(Clone, Default)]
pub struct IdlePool {
    idle: Rc<RefCell<Vec<IdleConnections>>>,
    /// The connections in HTTP/2, which requests share.
    http2: SharedConnections,
}

/// The idle connections in one slot.
#[derive(Default)]
struct IdleConnections {
    /// The generation of the endpoint that they belong to.
    generation: u64,
    endpoint: Weak<Endpoint>,
    resting: Vec<IdleConnection>,
}

struct IdleConnection {
    connection: Box<Connection>,
    /// Uptime at which the connection was put back.
    since: Duration,
    /// Uptime at which the connection expires.
    until: Duration,
}

impl IdlePool {
    /// Returns the connections in HTTP/2.
    pub(in crate::upstream) const fn http2(&self) -> &SharedConnections {
        &self.http2
    }

    /// Takes the most recently used connection to `endpoint`, if one is still usable by a read as recent as `read`, and has
    /// been idle for less than `keep_alive`, which a reload may have shortened since.
    pub(in crate::upstream) fn take(
        &self,
        endpoint: &Endpoint,
        now: Duration,
        read: FreshRead,
        keep_alive: Duration,
    ) -> Option<Box<Connection>> {
        let mut slots = self.idle.borrow_mut();
        let slot = slots.get_mut(endpoint.slot().index)?;
        if slot.generation != endpoint.slot().generation {
            return None;
        }
        while let Some(IdleConnection { mut connection, since, until }) = slot.resting.pop() {
            let is_kept = now < until && now.saturating_sub(since) < keep_alive;
            if is_kept && connection.is_quiet(read) {
                connection.rest(false);
                return Some(connection);
            }
        }
        None
    }

    /// Stores `connection` for the next request to `endpoint`, for `keep_alive`.
    pub(in crate::upstream) fn put(
        &self,
        endpoint: &Arc<Endpoint>,
        mut connection: Box<Connection>,
        now: Duration,
        keep_alive: Duration,
    ) {
        if keep_alive.is_zero() || endpoint.is_retired() {
            return;
        }
        connection.rest(true);
        let mut slots = self.idle.borrow_mut();
        let (index, generation) = (endpoint.slot().index, endpoint.slot().generation);
        if slots.len() <= index {
            slots.resize_with(index + 1, IdleConnections::default);
        }
        let slot = &mut slots[index];
        if slot.generation != generation {
            let endpoint = Arc::downgrade(endpoint);
            *slot = IdleConnections { generation, endpoint, resting: Vec::new() };
        }
        slot.resting.push(IdleConnection { connection, since: now, until: now + keep_alive });
    }

    /// Drops expired and closed connections, and those to addresses that are no longer in use; called by a worker
    /// every second or so.
    pub fn sweep(&self, now: Duration) {
        self.http2.sweep(now);
        for slot in self.idle.borrow_mut().iter_mut().filter(|slot| !slot.resting.is_empty()) {
            if slot.endpoint.upgrade().is_none_or(|endpoint| endpoint.is_retired()) {
                slot.resting.clear();
            }
            slot.resting.retain_mut(|resting| {
                now < resting.until && resting.connection.is_quiet(FreshRead::OfLastWait)
            });
        }
    }
}

impl fmt::Debug for IdlePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count: usize = self.idle.borrow().iter().map(|slot| slot.resting.len()).sum();
        f.debug_struct("IdlePool").field("connections", &count).finish_non_exhaustive()
    }
}
