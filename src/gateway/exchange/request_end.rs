//! The end of an exchange: that of its response, or that of its request where the upstream reads on after a response.

use super::{CLIENT_CLOSED, Exchange};
use crate::gateway::request::request_body::ContentEnd;

/// An exchange whose response has ended, and whose request the upstream still reads. It is recorded when it is dropped,
/// and keeps until then what the request holds of limits.
struct UnfinishedRequest {
    exchange: Box<Exchange>,
    status: u16,
    sent: u64,
}

impl Drop for UnfinishedRequest {
    fn drop(&mut self) {
        self.exchange.both_ended(self.status, self.sent);
    }
}

impl Exchange {
    /// Records the response, which has ended, once the request has ended too.
    pub(super) fn response_ended(mut self: Box<Self>, status: u16, sent: u64) {
        if self.received.is_open() {
            let received = std::rc::Rc::clone(&self.received);
            received.hold_exchange(Box::new(UnfinishedRequest { exchange: self, status, sent }));
        } else {
            self.both_ended(status, sent);
        }
    }

    /// Records the exchange. A failure of the response is recorded already, and explains the end of the request.
    fn both_ended(&mut self, mut status: u16, sent: u64) {
        if self.error.is_none() && status != CLIENT_CLOSED && self.outcome.is_of_upstream() {
            match self.received.end() {
                ContentEnd::Refused => {
                    self.content_refused();
                    if let Some(client) = &self.interim {
                        client.refuse_rest();
                    }
                }
                // After an error a client may save itself the rest (RFC 9110 §15.5).
                ContentEnd::Broken if status < 400 => {
                    status = CLIENT_CLOSED;
                    self.explain_refusal(BROKEN);
                }
                ContentEnd::Unread => self.explain_refusal(UNREAD),
                ContentEnd::Broken | ContentEnd::Whole => {}
            }
        }
        self.record(status, sent);
    }

    /// Records that the gateway aborted the request content after the response had begun.
    pub(super) fn content_refused(&mut self) {
        let rejection = self.body_failed();
        self.error = Some(rejection.name());
        self.metrics().rejected(rejection.reason());
    }
}

/// The causes of requests that ended early, after their responses.
const BROKEN: &str = "the client aborted its request after the response";
const UNREAD: &str = "the upstream stopped reading the request after its response";
