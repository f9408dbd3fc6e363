//! The responses to the request of one stream: interim ones (RFC 9113 §8.1), and the final one.

use core::cell::{Cell, RefCell};
use core::task::{Context, Poll};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::{Response, StatusCode};

use crate::base::header_fields::fields_bytes;
use crate::base::interim_sink::{InterimSink, MAX_INTERIM_BYTES, MAX_INTERIM_RESPONSES};

/// Sends the responses of one stream. Shared by the task of the stream and the content of its request, which asks for
/// `100 Continue`.
#[derive(Debug)]
pub(super) struct Responder {
    sender: RefCell<SendResponse<Bytes>>,
    /// Further interim responses that may be sent; none after the final one.
    interim_left: Cell<usize>,
    interim_bytes_left: Cell<usize>,
}

impl Responder {
    pub(super) fn new(sender: SendResponse<Bytes>) -> Self {
        Self {
            sender: RefCell::new(sender),
            interim_left: Cell::new(MAX_INTERIM_RESPONSES),
            interim_bytes_left: Cell::new(MAX_INTERIM_BYTES),
        }
    }

    /// Tells a client that waits with its content to send it (RFC 9110 §10.1.1), unless it has the final response.
    pub(super) fn send_continue(&self) {
        if self.is_open() {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::CONTINUE;
            self.send_interim(response);
        }
    }

    /// Sends the head of the final response; `ended` if no content follows.
    ///
    /// # Errors
    ///
    /// The client or the connection has ended the stream.
    pub(super) fn send_response(
        &self,
        response: Response<()>,
        ended: bool,
    ) -> Result<SendStream<Bytes>, h2::Error> {
        self.interim_left.set(0);
        let mut sender = self.sender.borrow_mut();
        let sent = sender.send_response(response, ended);
        if sent.is_err() {
            sender.send_reset(Reason::INTERNAL_ERROR);
        }
        sent
    }

    /// Ready once the client has reset the stream, or its connection has ended.
    pub(super) fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.sender.borrow_mut().poll_reset(cx).map(drop)
    }

    fn send_interim(&self, response: Response<()>) {
        // Fails only if the stream has ended, which its task detects itself.
        let _ = self.sender.borrow_mut().send_informational(response);
    }
}

impl InterimSink for Responder {
    fn is_open(&self) -> bool {
        self.interim_left.get() > 0
    }

    fn send(&self, response: Response<()>) {
        let Some(left) = self.interim_left.get().checked_sub(1) else { return };
        let bytes = fields_bytes(response.headers());
        let Some(bytes_left) = self.interim_bytes_left.get().checked_sub(bytes) else { return };
        self.interim_left.set(left);
        self.interim_bytes_left.set(bytes_left);
        self.send_interim(response);
    }

    fn refuse_rest(&self) {
        // The implicit reset, with NO_ERROR, would say that the request is served (RFC 9113 §8.1).
        self.sender.borrow_mut().send_reset(Reason::CANCEL);
    }
}
