//! Fallback responses of a route whose upstream fails: from another upstream, the last good response, or a fixed one.

use std::borrow::Cow;
use std::sync::Arc;

use http::{Method, Response, StatusCode};

use super::outcome::Replacement;
use super::route_upstream::RouteUpstream;
use super::stale_responses::{StaleKey, StaleResponses};
use crate::base::body::Body;
use crate::base::clock::{Clock, Timestamp};
use crate::base::method::is_idempotent;
use crate::gateway::policy::authorize::Permit;
use crate::gateway::response::static_response::StaticResponse;
use crate::observe::metrics::FallbackKind;
use crate::upstream::{
    Endpoint, OutgoingRequest, RequestContent, SendFailure, SendOptions, Tunnel, Upstream,
    UpstreamError, UpstreamResponse, blames_endpoint,
};

/// The fallback of a route; each part is tried in this order.
#[derive(Debug, Default)]
pub(crate) struct Fallback {
    /// Another upstream.
    pub upstream: Option<RouteUpstream>,
    /// The last good responses.
    pub stale: Option<Arc<StaleResponses>>,
    /// A fixed response.
    pub respond: Option<StaticResponse>,
}

/// The response of a route, of its upstream or in place of that.
#[derive(Debug)]
pub(crate) struct Completed {
    pub response: Response<Body>,
    pub tunnel: Option<Box<Tunnel>>,
    /// The endpoint that responded, and the number of attempts.
    pub endpoint: Option<(Arc<Endpoint>, u32)>,
    /// The replacement of the upstream's own response, if there is one.
    pub replaced: Option<Box<Replacement>>,
    /// The time spent waiting for the response head; `None` if the fallback was tried.
    pub waited: Option<core::time::Duration>,
}

impl From<UpstreamResponse> for Completed {
    fn from(sent: UpstreamResponse) -> Self {
        Self {
            response: sent.response,
            tunnel: sent.tunnel,
            endpoint: Some((sent.endpoint, sent.attempts)),
            replaced: None,
            waited: Some(sent.waited),
        }
    }
}

/// A request that may have a fallback.
#[derive(Debug)]
pub(crate) struct Fallible<'a> {
    pub request: &'a OutgoingRequest<'a>,
    /// The content, if it can be sent again.
    pub again: Option<RequestContent>,
    pub stale_key: Option<StaleKey>,
    /// The options for the other upstream, but the time and its beginning.
    pub options: SendOptions<'a>,
    pub permit: &'a Permit,
    /// The time of the request, for its identity token.
    pub now: Timestamp,
    /// Whether the request is a gRPC call, whose client cannot read a fixed response.
    pub is_grpc: bool,
    /// The route's own timeout of the response head, if it has one.
    pub timeout: Option<core::time::Duration>,
    pub clock: &'a Clock,
}

impl Fallback {
    /// Returns the other upstream, if there is one.
    pub(crate) fn other(&self) -> Option<&Upstream> {
        self.upstream.as_ref().map(|receiver| &*receiver.upstream)
    }

    /// Returns the response, in place of one that `upstream` has not given or that shows that it is unhealthy.
    ///
    /// # Errors
    ///
    /// The failure of the upstream, if there is no response in its place.
    pub(crate) async fn complete(
        &self,
        upstream: &Upstream,
        sent: Result<UpstreamResponse, Box<SendFailure>>,
        mut fallible: Fallible<'_>,
    ) -> Result<Completed, Box<SendFailure>> {
        let request = fallible.request;
        let method = &request.head.method;
        let mut own = match sent {
            Ok(sent) if replaces(sent.response.status(), method) && sent.tunnel.is_none() => {
                Ok(sent)
            }
            Ok(sent) => return Ok(self.keep(sent, fallible).into()),
            // A failure that the client caused has no fallback, nor has a call whose deadline has passed.
            Err(failed)
                if matches!(
                    failed.failure,
                    UpstreamError::Client
                        | UpstreamError::HeadTooLarge
                        | UpstreamError::Deadline { .. }
                ) =>
            {
                return Err(failed);
            }
            Err(failed) => Err(failed),
        };
        let cause: Cow<'static, str> = match &own {
            Ok(sent) => format!("status {}", sent.response.status().as_u16()).into(),
            Err(failed) => failed.cause.clone(),
        };
        let of_other = self.ask_other(upstream, &mut own, &mut fallible, cause.clone()).await;
        match of_other {
            Some(completed) if !replaces(completed.response.status(), method) => {
                if let (Some(stale), Some(key)) = (&self.stale, &fallible.stale_key) {
                    stale.forget_changed(key, completed.response.status());
                }
                upstream.metrics().fell_back(FallbackKind::Upstream);
                Ok(completed)
            }
            of_other => self.replace(upstream, own, of_other, cause, &fallible),
        }
    }

    /// Keeps a good response, for a later failure.
    fn keep(&self, mut sent: UpstreamResponse, fallible: Fallible<'_>) -> UpstreamResponse {
        if let (Some(stale), Some(key)) = (&self.stale, fallible.stale_key) {
            let now = fallible.clock.uptime();
            sent.response = stale.keep(key, fallible.request, sent.response, now);
        }
        sent
    }

    /// Returns the response of the other upstream to the same request; `None` if there is none, or the request cannot be
    /// repeated.
    async fn ask_other(
        &self,
        upstream: &Upstream,
        own: &mut Result<UpstreamResponse, Box<SendFailure>>,
        fallible: &mut Fallible<'_>,
        cause: Cow<'static, str>,
    ) -> Option<Completed> {
        let request = fallible.request;
        let (unsent, may_repeat, attempts) = match own {
            Ok(sent) => (None, true, sent.attempts),
            Err(failed) => {
                let may_repeat = !failed.sent || is_idempotent(&request.head.method);
                (failed.content.take(), may_repeat, failed.attempts)
            }
        };
        // The canary of a split may fall back on the route's own upstream, which has no other.
        let other = self.upstream.as_ref();
        let other = other.filter(|other| !core::ptr::eq(&raw const *other.upstream, upstream))?;
        let content = unsent.or_else(|| fallible.again.take()).filter(|_| may_repeat)?;
        let began = fallible.clock.uptime();
        let wait = fallible.timeout.unwrap_or(other.upstream.settings().timeout);
        let options = SendOptions { wait, began, ..fallible.options };
        let head = other.own_head(request, fallible.permit, fallible.now).ok()?;
        let fields = request.fields.deadline_alone();
        let request = OutgoingRequest { head: &head, fields, ..*request };
        let mut sent = other.upstream.send(&request, content, options).await.ok()?;
        // The attempts at both upstreams.
        sent.attempts += attempts;
        let replaced = Replacement {
            kind: FallbackKind::Upstream,
            upstream: Some(Arc::clone(&other.upstream.settings().name)),
            cause,
        };
        Some(Completed { replaced: Some(Box::new(replaced)), waited: None, ..sent.into() })
    }

    /// Returns the last good response or the fixed one, else an unhealthy response: that of the other upstream, or the
    /// own one.
    fn replace(
        &self,
        upstream: &Upstream,
        own: Result<UpstreamResponse, Box<SendFailure>>,
        of_other: Option<Completed>,
        cause: Cow<'static, str>,
        fallible: &Fallible<'_>,
    ) -> Result<Completed, Box<SendFailure>> {
        let stale = self.stale.as_ref().zip(fallible.stale_key.as_ref());
        let now = fallible.clock.uptime();
        let stale = stale.and_then(|(stale, key)| stale.get(key, fallible.request, now));
        let fixed = || {
            let fixed = self.respond.as_ref().filter(|_| !fallible.is_grpc)?;
            Some((fixed.response(), FallbackKind::Respond))
        };
        let response = stale.map(|response| (response, FallbackKind::Stale)).or_else(fixed);
        match (response, of_other, own) {
            (Some((response, kind)), _, own) => {
                upstream.metrics().fell_back(kind);
                let endpoint = match own {
                    Ok(sent) => Some((sent.endpoint, sent.attempts)),
                    Err(failed) => failed.endpoint.map(|endpoint| (endpoint, failed.attempts)),
                };
                let replaced = Some(Box::new(Replacement { kind, upstream: None, cause }));
                Ok(Completed { response, tunnel: None, endpoint, replaced, waited: None })
            }
            (None, Some(completed), _) => {
                upstream.metrics().fell_back(FallbackKind::Upstream);
                Ok(completed)
            }
            (None, None, Ok(sent)) => Ok(Completed { waited: None, ..sent.into() }),
            (None, None, Err(failed)) => Err(failed),
        }
    }
}

/// Whether a response shows that the upstream is unhealthy, to a request that may be repeated.
fn replaces(status: StatusCode, method: &Method) -> bool {
    blames_endpoint(status) && is_idempotent(method)
}
