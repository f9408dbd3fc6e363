//! The settings and the content of one request.

use core::cell::Cell;
use core::time::Duration;

use bytes::Bytes;
use http_body::Body as _;
use tokio::time::Instant;

use crate::base::body::Body;
use crate::http1::BodyWriter;
use crate::upstream::connections::idle_pool::IdlePool;
use crate::upstream::settings::Retries;

/// The settings of one request.
#[derive(Clone, Copy, Debug)]
pub struct SendOptions<'a> {
    /// The idle connections of this thread.
    pub idle: &'a IdlePool,
    /// The timeout until the response head.
    pub wait: Duration,
    /// The deadline of the caller, by which there must be a response.
    pub deadline: Option<Instant>,
    /// The uptime of this moment.
    pub began: Duration,
    /// The retry policy; `None` is the upstream's.
    pub retries: Option<&'a Retries>,
    /// Whether the request may go to another upstream after this one: a small response is then waited for.
    pub has_fallback: bool,
    /// Whether the caller itself reads the content, even for a client that leaves: the beginning is not waited for then.
    pub reads_content: bool,
    /// The hash of the value that selects the endpoint, where the upstream balances by hash.
    pub key: Option<u64>,
    /// A flag to be set as soon as something of the request may have reached an endpoint; `None` for most requests.
    pub arrival: Option<&'a Cell<bool>>,
}

impl SendOptions<'_> {
    /// Records that something of the request may arrive from now on, even if the exchange is cancelled; returns whether
    /// that was so before.
    pub(in crate::upstream) fn begin_exchange(&self) -> bool {
        self.arrival.is_some_and(|arrival| arrival.replace(true))
    }

    /// Takes back what [`SendOptions::begin_exchange`] has recorded, of an exchange that is known to have sent nothing.
    pub(in crate::upstream) fn was_unsent(&self, before: bool) {
        if let Some(arrival) = self.arrival {
            arrival.set(before);
        }
    }

    /// Whether the deadline has passed.
    pub(in crate::upstream) fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Returns how long something that began at `since` may take before the response: the timeout of the response head, up
    /// to the deadline.
    pub(in crate::upstream) fn within(&self, since: Instant) -> Duration {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(since));
        left.map_or(self.wait, |left| self.wait.min(left))
    }
}

/// The content of a request, until it is sent.
#[derive(Debug)]
pub struct RequestContent {
    /// Boxed: it is moved often.
    pub(in crate::upstream) writer: Box<BodyWriter>,
    /// The whole content, if it is in memory: it can be sent again after a part of it was sent.
    pub(in crate::upstream) whole: Option<Bytes>,
}

impl RequestContent {
    /// Prepares `body` for sending.
    pub fn new(body: Body) -> Self {
        // A body that has ended is empty, whatever its kind.
        let whole = if body.is_end_stream() { Some(Bytes::new()) } else { body.buffered() };
        Self { writer: Box::new(BodyWriter::new(body)), whole }
    }

    /// Returns the same content for another upstream; `None` if it is not in memory.
    #[must_use]
    pub fn copy(&self) -> Option<Self> {
        self.whole.clone().map(|whole| Self::new(whole.into()))
    }
}
