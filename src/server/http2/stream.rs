//! One stream of an HTTP/2 connection: a request and its responses.

use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::{CONTENT_LENGTH, DATE};
use http::{HeaderMap, Request, Response};
use http_body::Body as _;
use tokio::task::spawn_local;

use super::flood_guard::DetectedFlood;
use super::request_content::Http2RequestBody;
use super::request_target;
use super::responder::Responder;
use super::stall_timeout::{StreamProgress, until_stalled};
use super::websocket::WebSocketStream;
use crate::base::body::Body;
use crate::base::grpc;
use crate::base::raw_target::BadTarget;
use crate::config::reserved_headers::{is_hop_by_hop, remove_if};
use crate::gateway::{Gateway, Peer, Rejection};
use crate::http2::{ReceivedContents, send_content};
use crate::server::catch_panic;
use crate::server::connection_timeouts::ConnectionActivity;
use crate::server::date;

/// Serves the streams of one connection.
pub(in crate::server) struct StreamService {
    pub(in crate::server) gateway: Gateway,
    pub(in crate::server) peer: Rc<Peer>,
    pub(in crate::server) activity: Arc<ConnectionActivity>,
    /// The contents of the requests of the connection.
    pub(in crate::server) contents: Rc<ReceivedContents>,
    /// The reason to close the connection.
    pub(in crate::server) flood: Rc<DetectedFlood>,
    /// How long a client may grant no window for a response.
    pub(in crate::server) stall_timeout: Duration,
}

impl StreamService {
    /// Begins to serve a request, in a task of its own on this thread.
    pub(super) fn begin(
        self: &Rc<Self>,
        request: Request<RecvStream>,
        sender: SendResponse<Bytes>,
    ) {
        let progress = Rc::<StreamProgress>::default();
        let active = self.activity.begin();
        let (service, own) = (Rc::clone(self), Rc::clone(&progress));
        // Boxed: it is several kilobytes large, and would be moved into the task.
        let serving = Box::pin(async move {
            service.serve(request, sender, &own).await;
            drop(active);
        });
        spawn_local(until_stalled(serving, progress, self.stall_timeout));
    }

    async fn serve(
        &self,
        request: Request<RecvStream>,
        sender: SendResponse<Bytes>,
        progress: &StreamProgress,
    ) {
        let responder = Rc::new(Responder::new(sender));
        let (mut head, stream) = request.into_parts();
        let target = request_target::restore(&mut head);
        let (websocket, content) = match WebSocketStream::of(&mut head, stream) {
            Ok(websocket) => (Some(websocket), Body::empty()),
            Err(stream) => {
                let active = || self.activity.begin();
                let contents = &self.contents;
                (None, Http2RequestBody::body(&head, stream, &responder, contents, active))
            }
        };
        let mut response = match target {
            Ok(()) => {
                let request = Request::from_parts(head, content);
                let (peer, interim) = (Rc::clone(&self.peer), Rc::<Responder>::clone(&responder));
                let serving = catch_panic::serve(&self.gateway, peer, Some(interim), request);
                let Some(response) = unless_reset(&responder, serving).await else { return };
                response
            }
            Err(error) => self.gateway.reject_head(Rc::clone(&self.peer), &head, &rejection(error)),
        };
        self.complete_fields(response.headers_mut());
        let response = match websocket {
            Some(websocket) => {
                websocket.respond(response, &responder, &self.contents, self.activity.begin())
            }
            None => Some(response),
        };
        let Some(response) = response else { return };
        progress.response_started(response.body(), grpc::is_grpc(response.headers()));
        respond(response, &responder, progress).await;
    }

    /// Removes the fields of a connection, which HTTP/2 does not have (RFC 9113 §8.2.2), and adds the date.
    fn complete_fields(&self, headers: &mut HeaderMap) {
        remove_if(headers, is_hop_by_hop);
        if !headers.contains_key(DATE) {
            let now = || self.gateway.shared().retained().clock.now();
            let date = date::with_date(self.activity.tick(), now, |date| Some(date?.clone()));
            if let Some(date) = date {
                headers.insert(DATE, date);
            }
        }
    }
}

async fn respond(response: Response<Body>, responder: &Responder, progress: &StreamProgress) {
    let (mut head, content) = response.into_parts();
    let ended = content.is_end_stream();
    if !ended && let Some(length) = content.size_hint().exact() {
        head.headers.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    // If it fails, the client has gone.
    let sent = responder.send_response(Response::from_parts(head, ()), ended);
    if let Ok(stream) = sent
        && !ended
    {
        let polled = |more| progress.frame_polled(more);
        send_content(stream, content, Reason::INTERNAL_ERROR, polled).await;
    }
}

/// Awaits `serving`; `None` if the client resets the stream before.
async fn unless_reset<T>(responder: &Responder, serving: impl Future<Output = T>) -> Option<T> {
    let mut serving = pin!(serving);
    poll_fn(|cx| match serving.as_mut().poll(cx) {
        Poll::Ready(served) => Poll::Ready(Some(served)),
        Poll::Pending => responder.poll_reset(cx).map(|()| None),
    })
    .await
}

fn rejection(error: BadTarget) -> Rejection {
    match error {
        BadTarget::Malformed => Rejection::BadRequest,
        BadTarget::TooLong => Rejection::TargetTooLong,
    }
}
