//! The idle connections of one worker thread, and those that its requests share.
//!
//! A connection never moves between threads, so the pool takes no lock. It is
//! a stack: the connection used last is reused first, and the ones that traffic
//! no longer needs age at the bottom and are dropped.

use core::cell::RefCell;
use core::fmt;
use core::time::Duration;
use std::rc::Rc;

use super::Endpoint;
use super::http1::Connection;
use super::http2::ConnectionPool;

/// Idle upstream connections of one worker, by endpoint. Cheap to clone; deliberately not `Send`.
#[derive(Clone, Default)]
pub struct IdlePool {
    idle: Rc<RefCell<Vec<Vec<IdleConnection>>>>,
    /// The connections in HTTP/2, which requests share.
    http2: ConnectionPool,
}

struct IdleConnection {
    connection: Box<Connection>,
    /// Uptime at which the connection expires.
    until: Duration,
}

impl IdlePool {
    /// Returns the connections in HTTP/2.
    pub(super) const fn http2(&self) -> &ConnectionPool {
        &self.http2
    }

    /// Takes the most recently used connection to `endpoint`, if one is still usable.
    pub(super) fn take(&self, endpoint: &Endpoint, now: Duration) -> Option<Box<Connection>> {
        let mut endpoints = self.idle.borrow_mut();
        let resting = endpoints.get_mut(endpoint.id())?;
        while let Some(IdleConnection { mut connection, until }) = resting.pop() {
            if now < until && connection.is_quiet() {
                connection.rest(false);
                return Some(connection);
            }
        }
        None
    }

    /// Stores `connection` for the next request to `endpoint`, for `keep_alive`.
    pub(super) fn put(
        &self,
        endpoint: &Endpoint,
        mut connection: Box<Connection>,
        now: Duration,
        keep_alive: Duration,
    ) {
        if keep_alive.is_zero() {
            return;
        }
        connection.rest(true);
        let mut endpoints = self.idle.borrow_mut();
        if endpoints.len() <= endpoint.id() {
            endpoints.resize_with(endpoint.id() + 1, Vec::new);
        }
        endpoints[endpoint.id()].push(IdleConnection { connection, until: now + keep_alive });
    }

    /// Drops expired and closed connections; called by a worker every second or so.
    pub fn sweep(&self, now: Duration) {
        self.http2.sweep(now);
        for resting in self.idle.borrow_mut().iter_mut() {
            resting.retain_mut(|resting| now < resting.until && resting.connection.is_quiet());
        }
    }
}

impl fmt::Debug for IdlePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count: usize = self.idle.borrow().iter().map(Vec::len).sum();
        f.debug_struct("Idle").field("connections", &count).finish()
    }
}
