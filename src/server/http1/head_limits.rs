//! The limits of a request head.

use crate::base::raw_target::MAX_TARGET_BYTES;
use crate::config::server::Server;

/// The limits of a request head.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadLimits {
    /// Bytes.
    pub(super) size: usize,
    /// Number of header fields.
    pub(super) fields: usize,
    /// Bytes of cookies, beyond which they are the cause of a head that is too large.
    pub(super) cookies: usize,
}

impl HeadLimits {
    /// Returns the limits that the settings of the server set.
    pub(super) fn of(server: &Server) -> Self {
        Self {
            size: server.max_header_size,
            fields: server.max_headers,
            cookies: server.max_cookie_bytes(),
        }
    }

    /// Returns the bytes of the longest request target.
    pub(super) fn target(self) -> usize {
        MAX_TARGET_BYTES.min(self.size)
    }
}
