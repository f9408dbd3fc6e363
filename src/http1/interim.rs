//! Interim responses (RFC 9110 §15.2) on their way to the client of an HTTP/1.1 connection.

use core::cell::{Cell, RefCell};

use http::{HeaderMap, StatusCode};

use crate::base::encoded_fields::write_field_line;

/// The interim responses to the request under way that were not sent yet, as they are written.
///
/// Bounded: a client that reads nothing, or an upstream without end, costs no more memory.
#[derive(Debug, Default)]
pub struct InterimResponses {
    heads: RefCell<Vec<u8>>,
    /// The number of further interim responses that the request may have.
    left: Cell<u32>,
}

impl InterimResponses {
    /// Begins a request; only a client that `understands` interim responses gets them, and so none before HTTP/1.1
    /// (RFC 9110 §15.2).
    pub fn start(&self, understands: bool) {
        self.left.set(if understands { MAX_RESPONSES } else { 0 });
        if !self.heads.borrow().is_empty() {
            self.heads.borrow_mut().clear();
        }
    }

    /// Whether the client gets interim responses.
    pub fn are_wanted(&self) -> bool {
        self.left.get() > 0
    }

    /// Adds a response, unless there are too many, or too large ones.
    pub fn push(&self, status: StatusCode, headers: &HeaderMap) {
        let mut heads = self.heads.borrow_mut();
        let Some(left) = self.left.get().checked_sub(1) else { return };
        let before = heads.len();
        heads.extend_from_slice(b"HTTP/1.1 ");
        heads.extend_from_slice(status.as_str().as_bytes());
        heads.push(b' ');
        heads.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
        heads.extend_from_slice(b"\r\n");
        for (name, value) in headers {
            write_field_line(&mut heads, name, value);
        }
        heads.extend_from_slice(b"\r\n");
        if heads.len() > MAX_BYTES {
            heads.truncate(before);
            return;
        }
        self.left.set(left);
    }

    /// Whether there is a response to send.
    pub fn is_empty(&self) -> bool {
        self.heads.borrow().is_empty()
    }

    /// Returns the responses to send.
    pub fn take(&self) -> Vec<u8> {
        self.heads.take()
    }
}

/// Interim responses to one request.
const MAX_RESPONSES: u32 = 16;
/// Bytes of interim responses that wait to be sent.
const MAX_BYTES: usize = 32 * 1024;

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::LINK;

    use super::*;

    #[test]
    fn responses_are_bounded_in_number_and_size() {
        let mut headers = HeaderMap::new();
        headers.insert(LINK, HeaderValue::from_static("</a>"));
        let interim = InterimResponses::default();
        interim.push(StatusCode::EARLY_HINTS, &headers);
        assert!(interim.is_empty(), "no request has begun");

        interim.start(true);
        for _ in 0..100 {
            interim.push(StatusCode::EARLY_HINTS, &headers);
        }
        let one = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
        assert_eq!(interim.take(), one.repeat(MAX_RESPONSES as usize).as_bytes());
        assert!(!interim.are_wanted());

        interim.start(true);
        let long = HeaderValue::from_str(&"x".repeat(MAX_BYTES)).expect("valid");
        headers.insert(LINK, long);
        interim.push(StatusCode::EARLY_HINTS, &headers);
        assert!(interim.is_empty() && interim.are_wanted());
    }
}
