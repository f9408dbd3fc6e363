//! Interim responses (RFC 9110 §15.2) on their way to the client of an HTTP/1.1 connection.

use core::cell::{Cell, RefCell};

use http::Response;

use crate::base::encoded_fields::write_field_line;
use crate::base::interim_sink::{InterimSink, MAX_INTERIM_BYTES, MAX_INTERIM_RESPONSES};

/// The interim responses to the request under way that were not sent yet, as they are written.
#[derive(Debug, Default)]
pub(super) struct InterimResponses {
    heads: RefCell<Vec<u8>>,
    /// The number of further interim responses that the request may have.
    left: Cell<usize>,
}

impl InterimResponses {
    /// Begins a request; only a client that `understands` interim responses gets them, and so none before HTTP/1.1
    /// (RFC 9110 §15.2).
    pub(super) fn start(&self, understands: bool) {
        self.left.set(if understands { MAX_INTERIM_RESPONSES } else { 0 });
        if !self.heads.borrow().is_empty() {
            self.heads.borrow_mut().clear();
        }
    }

    /// Whether there is a response to send.
    pub(super) fn is_empty(&self) -> bool {
        self.heads.borrow().is_empty()
    }

    /// Returns the responses to send.
    pub(super) fn take(&self) -> Vec<u8> {
        self.heads.take()
    }
}

impl InterimSink for InterimResponses {
    fn is_open(&self) -> bool {
        self.left.get() > 0
    }

    fn send(&self, response: Response<()>) {
        let status = response.status();
        let mut heads = self.heads.borrow_mut();
        let Some(left) = self.left.get().checked_sub(1) else { return };
        let before = heads.len();
        heads.extend_from_slice(b"HTTP/1.1 ");
        heads.extend_from_slice(status.as_str().as_bytes());
        heads.push(b' ');
        heads.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
        heads.extend_from_slice(b"\r\n");
        for (name, value) in response.headers() {
            write_field_line(&mut heads, name, value);
        }
        heads.extend_from_slice(b"\r\n");
        if heads.len() > MAX_INTERIM_BYTES {
            heads.truncate(before);
            return;
        }
        self.left.set(left);
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use http::header::LINK;

    use super::*;

    #[test]
    fn responses_are_bounded_in_number_and_size() {
        let interim = InterimResponses::default();
        interim.send(hint("</a>"));
        assert!(interim.is_empty(), "no request has begun");

        interim.start(true);
        for _ in 0..100 {
            interim.send(hint("</a>"));
        }
        let one = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
        assert_eq!(interim.take(), one.repeat(MAX_INTERIM_RESPONSES).as_bytes());
        assert!(!interim.is_open());

        interim.start(true);
        interim.send(hint(&"x".repeat(MAX_INTERIM_BYTES)));
        assert!(interim.is_empty() && interim.is_open());
    }

    fn hint(link: &str) -> Response<()> {
        let response = Response::builder().status(StatusCode::EARLY_HINTS).header(LINK, link);
        response.body(()).expect("valid")
    }
}
