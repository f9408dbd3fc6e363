//! For tests: how often each endpoint was called, and faults to order.

use core::convert::Infallible;
use core::time::Duration;
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http::StatusCode;
use tokio::sync::watch;

/// A path that is counted, and that faults can be ordered for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Endpoint {
    /// Both discovery documents (RFC 8414, OpenID Connect Discovery).
    Discovery,
    /// The published signing keys.
    Jwks,
    /// Where browsers are sent: the request, and the login and consent pages.
    Authorization,
    /// RFC 9126.
    PushedAuthorization,
    /// RFC 6749 §3.2.
    Token,
    /// RFC 7662.
    Introspection,
    /// RFC 7009.
    Revocation,
    /// RFC 7591.
    Registration,
    /// OpenID Connect Core §5.3.
    UserInfo,
    /// OpenID Connect RP-Initiated Logout.
    EndSession,
    /// The page about this issuer.
    Home,
}

/// What goes wrong instead of, or before, an answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status and an empty body.
    Status(StatusCode),
    /// This answer, right or wrong.
    Answer {
        /// The status.
        status: StatusCode,
        /// The `Content-Type`.
        content_type: &'static str,
        /// The body.
        body: Bytes,
    },
    /// The right answer, so much later.
    Delay(Duration),
    /// The connection closes without an answer.
    Close,
    /// No answer, ever.
    Silence,
    /// The right answer once the gate opens: see `Running::hold`.
    Hold(Gate),
}

impl Fault {
    /// A page where JSON should be, with status 200: what a captive portal or a proxy's login page looks like.
    pub const fn garbage() -> Self {
        Self::Answer {
            status: StatusCode::OK,
            content_type: "text/html",
            body: Bytes::from_static(b"<!doctype html><title>Welcome</title>"),
        }
    }
}

/// Holds requests back until it is opened or dropped.
#[derive(Clone, Debug)]
pub struct Gate(watch::Receiver<()>);

/// Opens its gate when it is dropped.
#[derive(Debug)]
pub struct Held(#[expect(dead_code, reason = "it is kept to be dropped")] watch::Sender<()>);

impl Gate {
    /// A closed gate, and what opens it.
    pub(super) fn closed() -> (Held, Self) {
        let (held, gate) = watch::channel(());
        (Held(held), Self(gate))
    }

    fn is_open(&self) -> bool {
        self.0.has_changed().is_err()
    }

    async fn opened(mut self) {
        // An error means that the sender is gone: that is the opening.
        while self.0.changed().await.is_ok() {}
    }
}

/// Counts and orders.
#[derive(Debug)]
pub(super) struct Traffic {
    counts: watch::Sender<HashMap<Endpoint, u64>>,
    faults: Mutex<HashMap<Endpoint, VecDeque<Ordered>>>,
}

#[derive(Debug)]
struct Ordered {
    fault: Fault,
    left: u32,
}

impl Traffic {
    pub(super) fn new() -> Self {
        Self { counts: watch::Sender::default(), faults: Mutex::default() }
    }

    /// Counts a request, and lets it pass, wait or fail.
    pub(super) async fn pass(&self, endpoint: Endpoint) -> Passed {
        self.counts.send_modify(|counts| *counts.entry(endpoint).or_default() += 1);
        match self.take(endpoint) {
            None => Passed::Unharmed,
            Some(Fault::Status(status)) => Passed::Failed(status),
            Some(Fault::Answer { status, content_type, body }) => {
                Passed::Answered(status, content_type, body)
            }
            Some(Fault::Close) => Passed::Closed,
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).await;
                Passed::Unharmed
            }
            Some(Fault::Silence) => match core::future::pending::<Infallible>().await {},
            Some(Fault::Hold(gate)) => {
                gate.opened().await;
                Passed::Unharmed
            }
        }
    }

    /// The next `times` requests to `endpoint` meet `fault`; orders are served in turn.
    pub(super) fn order(&self, endpoint: Endpoint, fault: Fault, times: u32) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.entry(endpoint).or_default().push_back(Ordered { fault, left: times });
    }

    /// Takes back what was ordered for `endpoint` and has not happened yet.
    pub(super) fn heal(&self, endpoint: Endpoint) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).remove(&endpoint);
    }

    pub(super) fn count(&self, endpoint: Endpoint) -> u64 {
        self.counts.borrow().get(&endpoint).copied().unwrap_or_default()
    }

    /// Waits until `endpoint` has been called `times` in all.
    pub(super) async fn reached(&self, endpoint: Endpoint, times: u64) {
        let mut counts = self.counts.subscribe();
        let enough = |counts: &HashMap<_, _>| counts.get(&endpoint).is_some_and(|n| *n >= times);
        // The sender lives in `self`, so this ends with the condition and no other way.
        let _ = counts.wait_for(enough).await;
    }

    fn take(&self, endpoint: Endpoint) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = faults.get_mut(&endpoint)?;
        while let Some(Ordered { fault: Fault::Hold(gate), .. }) = queue.front()
            && gate.is_open()
        {
            queue.pop_front();
        }
        let next = queue.front_mut()?;
        let fault = next.fault.clone();
        next.left = next.left.saturating_sub(1);
        if next.left == 0 {
            queue.pop_front();
        }
        Some(fault)
    }
}

/// What became of a request before its endpoint saw it.
#[derive(Debug)]
pub(super) enum Passed {
    /// The endpoint answers.
    Unharmed,
    /// This status is the answer.
    Failed(StatusCode),
    /// This is the answer.
    Answered(StatusCode, &'static str, Bytes),
    /// There is none.
    Closed,
}
