//! Mirrors requests: a copy is sent to another upstream, and its response is discarded.

use std::sync::Arc;

use http::Method;
use http_body_util::BodyExt;
use tokio::sync::Semaphore;
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::route_upstream::RouteUpstream;
use crate::base::body::Body;
use crate::base::random::random;
use crate::gateway::policy::authorize::Permit;
use crate::limit::Now;
use crate::observe::metrics::MirrorResult;
use crate::upstream::{IdlePool, OutgoingRequest, RequestContent, SendOptions, is_endless};

/// The settings by which a route mirrors requests.
#[derive(Debug)]
pub(crate) struct Mirror {
    /// The upstream that receives the copies.
    pub receiver: RouteUpstream,
    /// The share of requests in hundredths of a percent.
    pub share: u32,
    /// The methods of requests that are copied: safe ones, unless the operator names others.
    pub methods: Box<[Method]>,
    /// The copies that may be in flight.
    pub permits: Arc<Semaphore>,
}

impl Mirror {
    /// Whether a request is to be copied.
    pub(crate) fn wants(&self, method: &Method) -> bool {
        self.methods.contains(method)
            && u64::from_be_bytes(random()) % 10_000 < u64::from(self.share)
    }

    /// Sends a copy of a request as it is forwarded, and drops the response. `key` selects the target, where the upstream
    /// balances by hash. A copy beyond the limit, of content that is not in memory, or without its identity token is not
    /// sent.
    pub(crate) fn copy(
        &self,
        request: &OutgoingRequest<'_>,
        body: &Body,
        permit: &Permit,
        idle: &IdlePool,
        key: Option<u64>,
        now: Now,
    ) {
        let upstream = &self.receiver.upstream;
        let metrics = upstream.metrics();
        let (Ok(slot), Some(content)) =
            (Arc::clone(&self.permits).try_acquire_owned(), body.buffered())
        else {
            metrics.mirrored(MirrorResult::LeftOut);
            return;
        };
        let Ok(mut head) = self.receiver.own_head(request, permit, now.now) else {
            metrics.mirrored(MirrorResult::LeftOut);
            return;
        };
        head.extensions.clear();
        let fields = request.fields.deadline_alone();
        let (upstream, idle) = (Arc::clone(upstream), idle.clone());
        spawn_local(async move {
            let request = OutgoingRequest { head: &head, fields, interim: None };
            let wait = upstream.settings().timeout;
            let options = SendOptions {
                idle: &idle,
                wait,
                deadline: None,
                began: now.uptime,
                retries: None,
                has_fallback: false,
                reads_content: true,
                key,
                arrival: None,
            };
            let sent = upstream.send(&request, RequestContent::new(content.into()), options).await;
            let result = if sent.is_ok() { MirrorResult::Ok } else { MirrorResult::Failed };
            upstream.metrics().mirrored(result);
            // A stream may last for days, and its copy has no reader.
            if let Ok(sent) = sent
                && !is_endless(sent.response.headers())
            {
                // A response that is not complete within the head's timeout is dropped, and its connection closed.
                let _ = timeout(wait, discard(sent.response.into_body())).await;
            }
            drop(slot);
        });
    }
}

/// Reads a response to its end, so that its connection can be used again, up to [`MAX_RESPONSE_BYTES`].
async fn discard(mut body: Body) {
    let mut left = MAX_RESPONSE_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, bytes::Bytes::len);
        let Some(rest) = usize::checked_sub(left, length) else { break };
        left = rest;
    }
}

/// The most content of a response that is read, and dropped.
const MAX_RESPONSE_BYTES: usize = 1 << 20;
