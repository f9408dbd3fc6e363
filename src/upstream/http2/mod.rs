//! An HTTP/2 client (RFC 9113): many requests at a time per connection.
//!
//! `h2` speaks the protocol. Around it: connections shared by the requests of a worker (`shared_connections`, `connection`), the
//! stream of each request (`stream`), and the question whether a request that failed was processed (`stream_error`).

mod connection;
mod frame_monitor;
#[cfg(fuzzing)]
pub mod fuzz;
pub(super) mod health;
pub(super) mod probe;
mod request;
mod response;
mod shared_connections;
mod stream;
mod stream_error;
#[cfg(test)]
mod tests;
mod upload;

use core::any::Any;
use core::future::{Future, poll_fn};
use core::pin::{Pin, pin};
use core::task::Poll;
use core::time::Duration;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use tokio::time::{Instant, sleep_until};

use self::connection::Connection;
pub(super) use self::connection::Sharing;
use self::frame_monitor::ConnectionFacts;
use self::response::{Ending, ResponseContent};
pub(super) use self::shared_connections::{
    Acquired, NO_SETTINGS, PoolSettings, SharedConnections, StreamPermit,
};
use self::stream::StreamState;
use self::stream_error::StreamError;
use super::balancing::attempted_endpoints::Refund;
use super::balancing::endpoint::EndpointPermit;
use super::request::interim_responses::RelayedInterim;
use super::request::long_lived_response::is_endless;
use super::request::tunnel::Tunnel;
use super::settings::Scheme;
use super::{OutgoingRequest, UpstreamError};
use crate::base::body::Body;
use crate::base::grpc;
use crate::base::header_fields::fields_bytes;
use crate::base::idle_timeout::IdleTimeout;
use crate::base::websocket::accept_value;
use crate::http2::{ReceivedContent, UpgradedStream};
use crate::observe::metrics::UpstreamMetrics;

/// The head of a response, with its body.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) response: Response<Body>,
    /// The stream itself, if the upstream has opened a WebSocket on it.
    pub(super) tunnel: Option<Tunnel>,
    /// Whether the upstream responded while it waited for the client, which had sent nothing for a while.
    pub(super) client_was_silent: bool,
}

/// A request without a response.
#[derive(Debug)]
pub(super) struct SendError {
    pub(super) failure: UpstreamError,
    /// Whether the upstream may have processed the request.
    pub(super) sent: bool,
    /// Whether the connection was closing when the request was sent: another one may work.
    pub(super) stale: bool,
    /// Whether the connection was lost, with all of its streams: a new one may work.
    pub(super) connection_lost: bool,
    /// Whether another request has reported that loss: it is one failure of the upstream, however many streams it ends.
    pub(super) loss_reported: bool,
    /// Whether the upstream ended the connection without a response to any request, and this one is the first to report it.
    pub(super) closed_unprocessed: bool,
    /// Whether the attempt counts against the retries.
    pub(super) refund: Refund,
    /// Whether the upstream waited for the client, which had sent nothing for a while.
    pub(super) client_was_silent: bool,
    /// The content for another attempt: `None` if a part of it is lost.
    pub(super) remaining_content: Option<Body>,
}

/// One request on its way, with all that its stream needs.
#[derive(Debug)]
pub(super) struct Http2Request<'a, 'r> {
    pub(super) request: &'a OutgoingRequest<'r>,
    /// The host, if not that of the request's head.
    pub(super) host: Option<&'a HeaderValue>,
    pub(super) scheme: Scheme,
    /// The key of the opening handshake of a WebSocket, if the request is one.
    pub(super) websocket: Option<&'a HeaderValue>,
    /// The maximum silence of the upstream, as in HTTP/1.1: waiting for the client's content is none. It ends at the
    /// deadline at the latest.
    pub(super) wait: Duration,
    /// The beginning of the first silence.
    pub(super) since: Instant,
    /// The deadline of the caller.
    pub(super) deadline: Option<Instant>,
    /// The maximum gap in the content of the response; not for events and gRPC.
    pub(super) idle_timeout: Duration,
    pub(super) metrics: Arc<UpstreamMetrics>,
}

impl Http2Request<'_, '_> {
    /// Sends the request with `body` on a stream, and waits for the response head.
    ///
    /// # Cancellation
    ///
    /// Dropping the future resets the stream.
    pub(super) async fn run(
        self,
        stream_permit: StreamPermit,
        permit: EndpointPermit,
        body: Body,
    ) -> Result<Reply, SendError> {
        let (connection, rested) =
            (Rc::clone(&stream_permit.slot.connection), stream_permit.slot.rested);
        let pool = Rc::clone(&stream_permit.pool);
        let held = Box::new((stream_permit, permit));
        let stream = StreamState::new(body, held);
        let facts = &connection.facts;
        let (reads, written) = (facts.reads(), facts.written());
        let _cut = CutUnlessAnswered { stream: &stream, facts, reads };
        let length = stream.upload.size_hint().exact();
        let request = if self.websocket.is_some() {
            request::build_websocket(self.request, self.host, self.scheme)
        } else {
            request::build(self.request, self.host, self.scheme, length)
        };
        let request = match request {
            Ok(request) => request,
            Err(failure) => return Err(lost(&stream, failure, Loss::UNSENT)),
        };
        if !facts.accepts_head(request::list_bytes(&request)) {
            return Err(lost(&stream, UpstreamError::HeadTooLarge, Loss::UNSENT));
        }
        connection.facts.request_sent();
        let responding = self.response_to(request, &connection, &stream);
        match self.within_silence(&stream, responding).await {
            Some(Ok((response, sending))) => match (self.websocket, sending) {
                (Some(key), Some(sending)) if response.status().is_success() => {
                    opened(key, &connection, &stream, response, sending)
                }
                _ => self.answered(&connection, &stream, response),
            },
            Some(Err(mut failure)) => {
                let client_was_silent = stream.upload.waits_long(self.since);
                let may_be_unsent =
                    failure.is_of_connection() || failure == StreamError::BeyondGoAway;
                if may_be_unsent && connection.facts.written() == written {
                    // The connection has taken nothing since: neither this request nor a part of it.
                    failure = StreamError::Unsent;
                } else if failure == StreamError::Lost && connection.facts.is_violated() {
                    failure = StreamError::ProtocolOfConnection;
                }
                if failure.is_of_ending() {
                    pool.unsent(&connection);
                }
                let sent = !failure.is_unprocessed();
                let stale = match failure {
                    StreamError::Unsent | StreamError::BeyondGoAway => true,
                    // The idle connection may just have been closed. A reset of the stream is an answer to it.
                    StreamError::Lost => rested,
                    StreamError::Reset(_)
                    | StreamError::Refused
                    | StreamError::Protocol
                    | StreamError::ProtocolOfConnection => false,
                };
                let error = match (failure, facts.alert()) {
                    (StreamError::Lost, Some(cause)) => UpstreamError::TlsAlert(cause),
                    _ => failure.error(),
                };
                let connection_lost = failure.is_of_connection();
                let is_vain = failure.is_of_ending() && !facts.has_served();
                let refund = match failure {
                    StreamError::Unsent => Refund::Always,
                    StreamError::BeyondGoAway if !is_vain => Refund::Once,
                    _ => Refund::Never,
                };
                Err(SendError {
                    connection_lost,
                    loss_reported: connection_lost && facts.report_loss(),
                    closed_unprocessed: is_vain && !facts.report_loss(),
                    refund,
                    ..lost(&stream, error, Loss { sent, stale, client_was_silent })
                })
            }
            None => {
                let silent = facts.reads() == reads;
                let failure = if self.deadline.is_some_and(|until| until <= Instant::now()) {
                    let silent = silent
                        && !stream.upload.is_starved()
                        && self.since.elapsed() >= MIN_JUDGED_SILENCE;
                    UpstreamError::Deadline { silent }
                } else {
                    if silent {
                        // A connection that is silent altogether is dead: it gets no further request.
                        facts.retire();
                    }
                    UpstreamError::Timeout
                };
                Err(lost(&stream, failure, Loss::SENT))
            }
        }
    }

    /// Sends `request` on a stream of `connection`, and waits for the response head. With it comes the other direction of a
    /// WebSocket.
    async fn response_to(
        &self,
        request: Request<()>,
        connection: &Connection,
        stream: &Rc<StreamState>,
    ) -> Result<(Response<RecvStream>, Option<SendStream<Bytes>>), StreamError> {
        // Both fail only if the connection has ended, before anything was sent.
        let mut sender = connection.sender().ready().await.map_err(|_| StreamError::Unsent)?;
        let ended = self.websocket.is_none() && stream.upload.is_end_stream();
        let opened = sender.send_request(request, ended);
        let (mut response, sending) = opened.map_err(|_| StreamError::Unsent)?;
        let sending = Some(sending).filter(|_| !ended);
        let (websocket, mut content) =
            if self.websocket.is_some() { (sending, None) } else { (None, sending) };
        let mut interim = RelayedInterim::new(self.request.interim);
        poll_fn(|cx| {
            if let Some(content) = content.take() {
                stream.send_content(content, cx);
            }
            while let Poll::Ready(Some(received)) = response.poll_informational(cx) {
                let received = received.map_err(|error| StreamError::of(&error))?;
                let bytes = fields_bytes(received.headers());
                let received = response::interim(received).map_err(|_| StreamError::Protocol)?;
                interim.add(received, bytes).map_err(|_| StreamError::Protocol)?;
            }
            Pin::new(&mut response).poll(cx).map_err(|error| StreamError::of(&error))
        })
        .await
        .map(|response| (response, websocket))
    }

    /// Awaits the response; `None` if the upstream neither reads nor responds for too long.
    async fn within_silence<F: Future>(
        &self,
        stream: &StreamState,
        sending: F,
    ) -> Option<F::Output> {
        let mut sending = pin!(sending);
        let mut silence = pin!(sleep_until(self.since + self.wait));
        poll_fn(|cx| {
            if let Poll::Ready(outcome) = sending.as_mut().poll(cx) {
                return Poll::Ready(Some(outcome));
            }
            while silence.as_mut().poll(cx).is_ready() {
                let now = Instant::now();
                let upload = &stream.upload;
                let since =
                    if upload.is_starved() { now } else { upload.progress_since(self.since) };
                if since + self.wait <= now {
                    return Poll::Ready(None);
                }
                silence.as_mut().reset(since + self.wait);
            }
            Poll::Pending
        })
        .await
    }

    fn answered(
        &self,
        connection: &Connection,
        stream: &Rc<StreamState>,
        mut response: Response<RecvStream>,
    ) -> Result<Reply, SendError> {
        if let Err(failure) = response::check(&mut response) {
            return Err(lost(stream, failure, Loss::SENT));
        }
        stream.upload.response_began();
        let client_was_silent = stream.upload.waits_long(self.since);
        // A call ends with its response, also with one of another type.
        let is_grpc =
            grpc::is_grpc(response.headers()) || grpc::is_grpc(&self.request.head.headers);
        let endless = is_endless(response.headers());
        let ending = if is_grpc { Ending::Cut } else { Ending::Finish(self.wait) };
        let bodiless = response::is_bodiless(&self.request.head.method, response.status());
        let (head, received) = response.into_parts();
        let body = if bodiless || received.is_end_stream() {
            ending.apply(stream);
            Body::empty()
        } else {
            Body::streaming(ResponseContent {
                received: ReceivedContent::new(
                    &head.headers,
                    received,
                    response::MAX_TRAILERS,
                    &connection.facts.contents,
                ),
                stream: Some(Rc::clone(stream)),
                gap: IdleTimeout::new((!endless).then_some(self.idle_timeout)),
                ending,
                metrics: Arc::clone(&self.metrics),
            })
        };
        Ok(Reply { response: Response::from_parts(head, body), tunnel: None, client_was_silent })
    }
}

/// Opens the WebSocket that a success opens (RFC 8441 §5): for the client it is the 101 of HTTP/1.1 to its `key`.
fn opened(
    key: &HeaderValue,
    connection: &Connection,
    stream: &Rc<StreamState>,
    mut response: Response<RecvStream>,
    sending: SendStream<Bytes>,
) -> Result<Reply, SendError> {
    let accept = HeaderValue::try_from(accept_value(key.as_bytes().trim_ascii()));
    let (Ok(()), Ok(accept)) = (response::check(&mut response), accept) else {
        return Err(lost(stream, UpstreamError::Protocol, Loss::SENT));
    };
    stream.upload.response_began();
    let (mut head, received) = response.into_parts();
    head.status = StatusCode::SWITCHING_PROTOCOLS;
    head.headers.remove(CONTENT_LENGTH);
    head.headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    head.headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    let contents = &connection.facts.contents;
    let none = HeaderMap::new();
    let received = ReceivedContent::new(&none, received, response::MAX_TRAILERS, contents);
    let held: Rc<dyn Any> = Rc::<StreamState>::clone(stream);
    let (upgraded, abandoned) = UpgradedStream::new(sending, received, held);
    let tunnel = Some(Tunnel::of_stream(upgraded, abandoned));
    Ok(Reply {
        response: Response::from_parts(head, Body::empty()),
        tunnel,
        client_was_silent: false,
    })
}

/// The shortest silence before the deadline of a call that counts against its endpoint: the client chooses the deadline.
const MIN_JUDGED_SILENCE: Duration = Duration::from_millis(100);

/// The state of a request when its stream ended without a response.
struct Loss {
    /// Whether some of the request may have reached the upstream.
    sent: bool,
    /// Whether the upstream may have closed the idle connection before.
    stale: bool,
    /// Whether the upstream waited for the client, which had sent nothing for a while.
    client_was_silent: bool,
}

impl Loss {
    const UNSENT: Self = Self { sent: false, stale: false, client_was_silent: false };
    const SENT: Self = Self { sent: true, ..Self::UNSENT };
}

/// Ends a stream without a response.
fn lost(stream: &StreamState, failure: UpstreamError, loss: Loss) -> SendError {
    let Loss { sent, stale, client_was_silent } = loss;
    stream.cut();
    if stream.upload.has_failed() {
        return SendError {
            failure: UpstreamError::Client,
            sent: true,
            stale: false,
            connection_lost: false,
            loss_reported: false,
            closed_unprocessed: false,
            refund: Refund::Never,
            client_was_silent: false,
            remaining_content: None,
        };
    }
    let whole = !sent || !stream.upload.is_touched();
    let remaining_content = if whole { stream.upload.take_back() } else { None };
    SendError {
        failure,
        sent,
        stale,
        connection_lost: false,
        loss_reported: false,
        closed_unprocessed: false,
        refund: Refund::Never,
        client_was_silent,
        remaining_content,
    }
}

/// Resets a stream whose request is cancelled before its response, and asks an upstream from which nothing was received
/// meanwhile for a sign of life.
struct CutUnlessAnswered<'a> {
    stream: &'a Rc<StreamState>,
    facts: &'a ConnectionFacts,
    /// The reads of the connection before the request.
    reads: u64,
}

impl Drop for CutUnlessAnswered<'_> {
    fn drop(&mut self) {
        if !self.stream.upload.has_response() {
            self.stream.cut();
            if self.facts.reads() == self.reads {
                self.facts.doubt();
            }
        }
    }
}
