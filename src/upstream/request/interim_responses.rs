//! Interim responses (RFC 9110 §15.2), on their way from an upstream to the client.

use core::cell::RefCell;

use http::Response;

use crate::base::interim_sink::MAX_INTERIM_RESPONSES;
use crate::upstream::InvalidResponse;

/// The interim responses to one request.
#[derive(Debug)]
pub(in crate::upstream) struct RelayedInterim<'a> {
    /// The responses that wait to be passed on; without a sink they are dropped.
    sink: Option<&'a RefCell<Vec<Response<()>>>>,
    /// Bytes so far.
    bytes: usize,
}

impl<'a> RelayedInterim<'a> {
    pub(in crate::upstream) const fn new(sink: Option<&'a RefCell<Vec<Response<()>>>>) -> Self {
        Self { sink, bytes: 0 }
    }

    /// Adds a response of `bytes`; `None` is one that does not concern the client.
    ///
    /// # Errors
    ///
    /// [`InvalidResponse::TooManyInterim`] if the upstream sends them without end.
    pub(in crate::upstream) fn add(
        &mut self,
        response: Option<Response<()>>,
        bytes: usize,
    ) -> Result<(), InvalidResponse> {
        self.bytes += bytes;
        if self.bytes > MAX_INTERIM_HEAD_BYTES {
            return Err(InvalidResponse::TooManyInterim);
        }
        if let (Some(sink), Some(response)) = (self.sink, response)
            && sink.borrow().len() < MAX_INTERIM_RESPONSES
        {
            sink.borrow_mut().push(response);
        }
        Ok(())
    }
}

/// The bytes of all interim responses to one request: as many as a final head may have.
const MAX_INTERIM_HEAD_BYTES: usize = 64 * 1024;
