//! Fallback responses of a route whose upstream fails: from another upstream, the last good response, or a fixed one.

use std::borrow::Cow;
use std::sync::Arc;

use http::{Method, Response, StatusCode};

use super::outcome::Replacement;
use super::route_upstream::RouteUpstream;
use super::stale_responses::{StaleKey, StaleResponses};
use crate::base::body::Body;
use crate::base::clock::{Clock, Timestamp};
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
        fallible: Fallible<'_>,
    ) -> Result<Completed, Box<SendFailure>> {
        let Fallible { request, again, stale_key, options, permit, now, is_grpc, timeout, clock } =
            fallible;
        let method = &request.head.method;
        let (own, content, may_repeat) = match sent {
            Ok(sent) if replaces(sent.response.status(), method) && sent.tunnel.is_none() => {
                (Ok(sent), again, true)
            }
            Ok(mut sent) => {
                if let (Some(stale), Some(key)) = (&self.stale, stale_key) {
                    sent.response = stale.keep(key, request, sent.response, clock.uptime());
                }
                return Ok(sent.into());
            }
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
            Err(mut failed) => {
                let may_repeat = !failed.sent || method.is_idempotent();
                let content = failed.content.take().or(again);
                (Err(failed), content, may_repeat)
            }
        };
        let cause: Cow<'static, str> = match &own {
            Ok(sent) => format!("status {}", sent.response.status().as_u16()).into(),
            Err(failed) => failed.cause.clone(),
        };
        let tries = match &own {
            Ok(sent) => sent.attempts,
            Err(failed) => failed.attempts,
        };
        let mut of_other = None;
        // The canary of a split may fall back on the route's own upstream, which has no other.
        let other = self
            .upstream
            .as_ref()
            .filter(|other| !core::ptr::eq(&raw const *other.upstream, upstream));
        if let (Some(other), Some(content), true) = (other, content, may_repeat) {
            let began = clock.uptime();
            let wait = timeout.unwrap_or(other.upstream.settings().timeout);
            let options = SendOptions { wait, began, ..options };
            if let Ok(head) = other.own_head(request, permit, now)
                && let fields = request.fields.deadline_alone()
                && let request = (OutgoingRequest { head: &head, fields, ..*request })
                && let Ok(mut sent) = other.upstream.send(&request, content, options).await
            {
                // The attempts at both upstreams.
                sent.attempts += tries;
                let kind = FallbackKind::Upstream;
                let is_unhealthy = replaces(sent.response.status(), method);
                let name = Some(Arc::clone(&other.upstream.settings().name));
                let replaced = Replacement { kind, upstream: name, cause: cause.clone() };
                let replaced = Some(Box::new(replaced));
                let completed = Completed { replaced, waited: None, ..sent.into() };
                if !is_unhealthy {
                    if let (Some(stale), Some(key)) = (&self.stale, &stale_key) {
                        stale.forget_changed(key, completed.response.status());
                    }
                    upstream.metrics().fell_back(kind);
                    return Ok(completed);
                }
                of_other = Some(completed);
            }
        }
        let stale = self.stale.as_ref().zip(stale_key.as_ref());
        let stale = stale.and_then(|(stale, key)| stale.get(key, request, clock.uptime()));
        let fixed = || {
            let fixed = self.respond.as_ref().filter(|_| !is_grpc)?;
            Some((fixed.response(), FallbackKind::Respond))
        };
        let response = stale.map(|response| (response, FallbackKind::Stale)).or_else(fixed);
        match (response, own) {
            (Some((response, kind)), own) => {
                upstream.metrics().fell_back(kind);
                let endpoint = match own {
                    Ok(sent) => Some((sent.endpoint, sent.attempts)),
                    Err(failed) => failed.endpoint.map(|endpoint| (endpoint, failed.attempts)),
                };
                Ok(Completed {
                    response,
                    tunnel: None,
                    endpoint,
                    replaced: Some(Box::new(Replacement { kind, upstream: None, cause })),
                    waited: None,
                })
            }
            (None, _) if let Some(completed) = of_other => {
                upstream.metrics().fell_back(FallbackKind::Upstream);
                Ok(completed)
            }
            (None, Ok(sent)) => Ok(Completed { waited: None, ..sent.into() }),
            (None, Err(failed)) => Err(failed),
        }
    }
}

/// Whether a response shows that the upstream is unhealthy, to a request that may be repeated.
fn replaces(status: StatusCode, method: &Method) -> bool {
    blames_endpoint(status) && method.is_idempotent()
}
