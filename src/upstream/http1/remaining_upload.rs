//! What is left of an exchange once its answer is whole: the end of the request, and the connection.

use core::future::poll_fn;
use core::task::Poll;
use core::time::Duration;

use super::Connection;
use crate::base::idle_timeout::IdleTimeout;
use crate::http1::BodyWriter;

/// A connection whose answer has been read to its end.
///
/// A service may answer before the request has ended, and read on all the same: what it was promised is
/// sent until the client has said everything or the service takes no more.
#[derive(Debug)]
pub(in crate::upstream) struct RemainingUpload {
    connection: Box<Connection>,
    sending: BodyWriter,
    /// Whether the answer allows for another request.
    reusable: bool,
}

impl RemainingUpload {
    pub(super) const fn new(
        connection: Box<Connection>,
        sending: BodyWriter,
        reusable: bool,
    ) -> Self {
        Self { connection, sending, reusable }
    }

    /// Whether nothing of the request is left to be sent.
    pub(in crate::upstream) fn is_over(&self) -> bool {
        self.sending.is_done()
    }

    /// The connection, if both sides have ended in a way that lets it be used again.
    pub(in crate::upstream) fn reusable(self) -> Option<Box<Connection>> {
        let Self { mut connection, sending, reusable } = self;
        let ended = sending.is_done() && !sending.has_failed();
        // More bytes than the answer has are nobody's answer (response smuggling).
        (reusable && ended && connection.is_quiet()).then_some(connection)
    }

    /// Sends on to the end of the request, unless the service takes nothing for `patience`.
    pub(in crate::upstream) async fn send(mut self, patience: Duration) -> Option<Box<Connection>> {
        let (mut silence, mut progress) = (IdleTimeout::new(Some(patience)), 0);
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
