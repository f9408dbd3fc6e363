//! The pauses of a client that receives a response: an upstream that gives up a response which is not read is at no fault.

use core::task::Poll;
use core::time::Duration;

use crate::base::watched_body::Polled;

/// A recorder of the pauses between a frame of content and the client's wish for the next one.
#[derive(Debug)]
pub(in crate::upstream) struct ClientPauses {
    /// The uptime at which the client received the last frame; `None` while the upstream is waited for.
    received_at: Option<Duration>,
    is_long: bool,
}

impl ClientPauses {
    /// Creates a recorder for a response whose head was received at the uptime `now`.
    pub(in crate::upstream) const fn new(now: Duration) -> Self {
        Self { received_at: Some(now), is_long: false }
    }

    /// Records a poll of the content at the uptime `now`, with its outcome.
    pub(in crate::upstream) fn polled(&mut self, polled: &Polled, now: Duration) {
        if let Some(at) = self.received_at.take() {
            self.is_long |= now.saturating_sub(at) >= MIN_PAUSE;
        }
        if let Poll::Ready(Some(Ok(_))) = polled {
            self.received_at = Some(now);
        }
    }

    /// Whether the upstream may have given up the response because the client paused.
    pub(in crate::upstream) const fn may_have_cut(&self) -> bool {
        self.is_long
    }
}

/// Shorter than the timeouts of servers for clients that read nothing.
const MIN_PAUSE: Duration = Duration::from_secs(1);
