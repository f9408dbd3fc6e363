//! The endpoints that one request has tried, and how many of its attempts count.

use http::Method;

use super::endpoint::Endpoint;
use crate::base::method::is_idempotent;
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
    /// Whether [`Refund::Once`] was granted.
    had_refund: bool,
    /// How the next attempt uses a connection in HTTP/2.
    sharing: Sharing,
}

/// Whether an attempt without a response counts against the retries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::upstream) enum Refund {
    /// It counts: the endpoint may have received the request.
    Never,
    /// The first such attempt of a request does not count: the endpoint may have received the request, and says that it was
    /// ending the connection, on which it had served others. A new connection works, and nothing else does.
    Once,
    /// It does not count: the endpoint received nothing of the request.
    Always,
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

    /// Does not count the last attempt against the retries where `refund` permits that; returns whether it does, which ends
    /// after [`MAX_REFUNDS`].
    pub(in crate::upstream) const fn refund(&mut self, refund: Refund) -> bool {
        let is_granted = match refund {
            Refund::Never => false,
            Refund::Once => !core::mem::replace(&mut self.had_refund, true),
            Refund::Always => self.free < MAX_REFUNDS,
        };
        if is_granted {
            self.free += 1;
        }
        is_granted
    }

    /// Returns how many attempts do not count against the retries.
    pub(in crate::upstream) const fn refunds(&self) -> u32 {
        self.free
    }

    /// Has attempts in HTTP/2 share no connection: one was lost with all of its streams, or may be.
    pub(in crate::upstream) const fn share_no_connection(&mut self) {
        if matches!(self.sharing, Sharing::Shared) {
            self.sharing = Sharing::Alone;
        }
    }

    /// Has attempts in HTTP/2 use new connections: one that was in use was ending.
    pub(in crate::upstream) const fn use_new_connection(&mut self) {
        self.sharing = Sharing::New;
    }

    /// Returns how the next attempt uses a connection in HTTP/2.
    pub(in crate::upstream) const fn sharing(&self) -> Sharing {
        self.sharing
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
        self.count.saturating_sub(self.free) <= retries.attempts && (!sent || is_idempotent(method))
    }

    pub(in crate::upstream) fn contains(&self, endpoint: &Endpoint) -> bool {
        self.generations.contains(&endpoint.slot().generation)
    }
}

const MAX_ATTEMPTED: usize = 16;
/// Attempts that do not count: each of them is a connection that its endpoint has closed.
const MAX_REFUNDS: u32 = 8;
