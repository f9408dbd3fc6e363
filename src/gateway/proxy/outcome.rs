//! The outcome of a request at its upstream, for the access log.

use std::borrow::Cow;
use std::sync::Arc;

use crate::observe::metrics::FallbackKind;
use crate::upstream::{Endpoint, SendFailure};

/// The outcome of a request at its upstream.
#[derive(Debug, Default)]
pub(crate) struct UpstreamOutcome {
    /// The endpoint of the last attempt, and the number of attempts.
    pub endpoint: Option<(Arc<Endpoint>, u32)>,
    /// The name of the upstream that the request was sent to, if that is not the route's own.
    pub upstream: Option<Arc<str>>,
    /// The kind of the response in place of the upstream's.
    pub fallback: Option<FallbackKind>,
    /// The cause of a failure of the upstream.
    pub cause: Option<Cow<'static, str>>,
}

/// The replacement of an upstream's own response.
#[derive(Debug)]
pub(crate) struct Replacement {
    /// The kind of the fallback.
    pub kind: FallbackKind,
    /// The name of the upstream that responded, if any.
    pub upstream: Option<Arc<str>>,
    /// Why the upstream's own response was replaced.
    pub cause: Cow<'static, str>,
}

impl UpstreamOutcome {
    /// Records a response of `endpoint`, or what `replaced` it.
    pub(crate) fn completed(
        &mut self,
        endpoint: Option<(Arc<Endpoint>, u32)>,
        replaced: Option<Box<Replacement>>,
    ) {
        self.endpoint = endpoint;
        if let Some(replaced) = replaced {
            let Replacement { kind, upstream, cause } = *replaced;
            self.fallback = Some(kind);
            self.upstream = upstream.or(self.upstream.take());
            self.cause = Some(cause);
        }
    }

    /// Records a request without a response.
    pub(crate) fn failed(&mut self, failed: SendFailure) {
        self.endpoint = failed.endpoint.map(|endpoint| (endpoint, failed.attempts));
        self.cause = Some(failed.cause);
    }

    /// Whether an upstream responded, now or, with [`FallbackKind::Stale`], before.
    pub(crate) fn is_of_upstream(&self) -> bool {
        self.endpoint.is_some() && self.fallback != Some(FallbackKind::Respond)
    }

    /// Returns the name of the endpoint.
    pub(crate) fn target(&self) -> Option<&str> {
        self.endpoint.as_ref().map(|(endpoint, _)| endpoint.name())
    }

    /// Returns the number of attempts.
    pub(crate) fn attempts(&self) -> u32 {
        self.endpoint.as_ref().map_or(0, |&(_, attempts)| attempts)
    }
}
