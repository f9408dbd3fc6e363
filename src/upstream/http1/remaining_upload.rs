//! The end of an exchange after its response is complete: the rest of the request, and the connection.

use core::future::poll_fn;
use core::task::Poll;
use core::time::Duration;

use super::super::connections::connect::FreshRead;
use super::Connection;
use crate::base::idle_timeout::IdleTimeout;
use crate::http1::BodyWriter;

/// A connection whose response was read to its end.
///
/// An upstream may respond before the request has ended, and still read on: the announced body is
/// sent until the client has sent everything or the upstream reads no more.
#[derive(Debug)]
pub(in crate::upstream) struct RemainingUpload {
    connection: Box<Connection>,
    sending: Box<BodyWriter>,
    /// Whether the response allows for another request.
    reusable: bool,
}

impl RemainingUpload {
    pub(super) const fn new(
        connection: Box<Connection>,
        sending: Box<BodyWriter>,
        reusable: bool,
    ) -> Self {
        Self { connection, sending, reusable }
    }

    /// Whether the request was sent completely.
    pub(in crate::upstream) fn is_over(&self) -> bool {
        self.sending.is_done()
    }

    /// Returns the connection, if both sides have ended in a way that allows for reuse.
    pub(in crate::upstream) fn reusable(self) -> Option<Box<Connection>> {
        let Self { mut connection, sending, reusable } = self;
        let ended = sending.is_done() && !sending.has_failed();
        // Surplus bytes after the response belong to no request (response smuggling).
        (reusable && ended && connection.is_quiet(FreshRead::OfLastWait)).then_some(connection)
    }

    /// Sends the rest of the request, unless the upstream reads nothing for `time_limit`.
    pub(in crate::upstream) async fn send(
        mut self,
        time_limit: Duration,
    ) -> Option<Box<Connection>> {
        let (mut silence, mut progress) = (IdleTimeout::new(Some(time_limit)), 0);
        let Self { connection, sending, .. } = &mut self;
        poll_fn(|cx| {
            if connection.poll_sending(sending, cx).is_ready() {
                return Poll::Ready(());
            }
            // The client's silence is bounded where its body is read.
            if sending.waits_for_data() || sending.progress() != progress {
                progress = sending.progress();
                silence.stopped();
            }
            if sending.waits_for_data() { Poll::Pending } else { silence.poll_elapsed(cx) }
        })
        .await;
        self.reusable()
    }
}
