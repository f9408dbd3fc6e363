//! The endpoints that one request has tried, and how many of its attempts count.

use http::Method;

use super::endpoint::Endpoint;
use crate::upstream::http2::Sharing;
use crate::upstream::settings::Retries;

/// The endpoints a request was already sent to, in order; at most one more than there are retries, and the other
/// addresses of a name that were tried with one of them.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::upstream) struct AttemptedEndpoints {
    /// The generations of their slots, which are unique; 0 is none.
    generations: [u64; MAX_ATTEMPTED],
    next: usize,
    count: u32,
    /// Attempts that do not count against the retries.
    free: u32,
    /// Whether no connection is shared in HTTP/2: the request may be the cause of the end of one.
    is_alone: bool,
}

impl AttemptedEndpoints {
    /// Adds an attempt.
    pub(in crate::upstream) const fn add(&mut self, endpoint: &Endpoint) {
        self.exclude(endpoint);
        self.count += 1;
    }

    /// Excludes an endpoint from further attempts.
    pub(in crate::upstream) const fn exclude(&mut self, endpoint: &Endpoint) {
        self.generations[self.next % MAX_ATTEMPTED] = endpoint.slot().generation;
        self.next += 1;
    }

    /// Does not count the last attempt against the retries, since nothing of the request was sent or processed by it;
    /// false after [`MAX_REFUNDS`], and after one of an endpoint that ends the connections that it gets `closed_unprocessed_alone`.
    pub(in crate::upstream) const fn refund(&mut self, closed_unprocessed_alone: bool) -> bool {
        let refunds = self.free < if closed_unprocessed_alone { 1 } else { MAX_REFUNDS };
        if refunds {
            self.free += 1;
        }
        refunds
    }

    /// Returns how many attempts do not count against the retries.
    pub(in crate::upstream) const fn refunds(&self) -> u32 {
        self.free
    }

    /// Has attempts in HTTP/2 share no connection: one was lost with all of its streams, or may be.
    pub(in crate::upstream) const fn share_no_connection(&mut self) {
        self.is_alone = true;
    }

    /// Returns how the next attempt uses a connection in HTTP/2.
    pub(in crate::upstream) const fn sharing(&self) -> Sharing {
        if self.is_alone { Sharing::Alone } else { Sharing::Shared }
    }

    /// Returns the number of attempts.
    pub(in crate::upstream) const fn count(&self) -> u32 {
        self.count
    }

    /// Whether the retries and the method of the request permit another attempt. `sent` is whether the upstream may have
    /// processed the last one.
    pub(in crate::upstream) fn permit_another(
        &self,
        retries: &Retries,
        method: &Method,
        sent: bool,
    ) -> bool {
        self.count.saturating_sub(self.free) <= retries.attempts
            && (!sent || method.is_idempotent())
    }

    pub(in crate::upstream) fn contains(&self, endpoint: &Endpoint) -> bool {
        self.generations.contains(&endpoint.slot().generation)
    }
}

const MAX_ATTEMPTED: usize = 16;
/// Attempts that do not count: a service that takes few streams per connection sends GOAWAY to all others at once.
const MAX_REFUNDS: u32 = 8;
