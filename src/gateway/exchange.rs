//! One request's memory, from arrival to last byte.
//!
//! Stages write down what they learned; [`Exchange::finish`] adds what every
//! answer gets, wraps its body, and tells metrics and log when that has ended,
//! or when the client went away before it had.

use core::cell::Cell;
use core::net::IpAddr;
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use http::header::{CACHE_CONTROL, CONNECTION, ORIGIN, SERVER, SET_COOKIE, USER_AGENT};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, Uri, Version};
use http_body::{Body as _, Frame, SizeHint};

use super::policy::cors;
use super::policy::proof_of_possession::DPOP_NONCE;
use super::proxy::stream_guard::{StreamGuard, TerminationReason};
use super::request::forwarded::{ClientInfo, Forwarded};
use super::request::headers::Scrubbed;
use super::request::request_body;
use super::request::request_body::{BodyLimits, BodyProgress, Metering};
use super::request::request_id;
use super::response::hardening::{
    harden, has_directive, keep_from_shared_caches, keep_from_targeted_caches, without_content,
};
use super::response::problem;
use super::response::problem::{AuthChallenges, ResponseFormat};
use super::response::rejection::Rejection;
use super::routing::action::Action;
use super::{InFlightPermit, Peer, Route, Shared, Snapshot};
use crate::base::body::{self, Body};
use crate::base::clock::{Clock, Timestamp};
use crate::limit::{LimitState, Now};
use crate::observe::metrics::{AuthMethod, AuthResult, LimitResult, RouteMetrics};
use crate::observe::record::AccessLogEntry;
use crate::session::DeferredCookies;
use crate::token::Principal;
use crate::upstream::{Endpoint, UpstreamError};

/// One request and its answer.
#[derive(Debug)]
pub struct Exchange {
    shared: Arc<Shared>,
    snapshot: Arc<Snapshot>,
    /// The request's id, as the client, the service and the log know it.
    pub request_id: HeaderValue,
    /// The client's address, behind trusted proxies the right hop.
    pub client: IpAddr,
    /// When the request came, by the calendar.
    pub received_at: Timestamp,
    /// Who is connected.
    pub peer: Rc<Peer>,
    /// What the peer says of the request's way to it, if it is believed.
    pub(super) said: Option<Box<ClientInfo>>,
    /// The moment as of the last wait: read anew only after one.
    pub moment: Now,
    /// What the client can read.
    pub reader: ResponseFormat,
    /// What has come of the request's body.
    pub received: Rc<BodyProgress>,
    /// New cookies; they go out on whatever answer the request gets.
    pub cookies: Vec<HeaderValue>,
    /// A session that goes out in new cookies, too: those of the moment when the answer goes.
    pub renewal: Option<DeferredCookies>,
    /// Where a browser is sent instead of a 401.
    pub login: Option<HeaderValue>,
    /// Whether the client presents its token with a `DPoP` proof: what it is told is in that scheme.
    pub speaks_dpop: bool,
    /// The nonce that its next proof must carry.
    pub next_nonce: Option<HeaderValue>,
    /// The host the client asked for, port included.
    pub host: Option<HeaderValue>,
    /// What the head said besides what services may see.
    pub(super) scrubbed: Scrubbed,
    /// This request's place among those in flight.
    pub(super) place: Option<InFlightPermit>,
    /// What holds the answer open, if it streams.
    pub(super) lifeline: Option<StreamGuard>,
    secure: bool,
    method: Method,
    version: Version,
    origin: Option<HeaderValue>,
    /// Whether the answer says which pages may read it.
    speaks_to_pages: bool,
    began: Duration,
    /// How long issuers, services and the client were waited for, until the answer's head.
    waited: Duration,
    /// Since when one of them is.
    waits_since: Cell<Option<Duration>>,
    /// The gateway's own time, once the answer's head is made: how long its body takes is others' affair.
    overhead: Option<Duration>,
    route: Option<Arc<Route>>,
    auth: Option<(AuthMethod, AuthResult)>,
    principal: Option<Arc<Principal>>,
    /// Where the request stands with its route's limits, and what it holds of them.
    pub standing: LimitState,
    limited_by: Option<Box<str>>,
    endpoint: Option<(Arc<Endpoint>, u32)>,
    error: Option<&'static str>,
    /// What only the log wants; `None` if nothing will be recorded.
    line: Option<Box<LogLine>>,
    recorded: bool,
}

#[derive(Debug)]
struct LogLine {
    /// The target, if what came has one.
    uri: Option<Uri>,
    user_agent: Option<HeaderValue>,
}

impl Exchange {
    /// Begins to remember a request.
    pub fn begin(
        shared: &Arc<Shared>,
        snapshot: &Arc<Snapshot>,
        peer: Rc<Peer>,
        head: &Parts,
    ) -> Self {
        let server = &snapshot.server;
        let trusted = !server.trusted_proxies.is_empty()
            && server.trusted_proxies.iter().any(|net| net.contains(&peer.ip));
        let said = trusted
            .then(|| Box::new(ClientInfo::read(&head.headers, peer.ip, &server.trusted_proxies)));
        let client = said.as_ref().map_or(peer.ip, |said| said.client);
        let given = if trusted { head.headers.get(&server.request_id_header) } else { None };
        let given = given.filter(|id| request_id::is_acceptable(id));
        let secure = peer.secure || said.as_ref().is_some_and(|said| said.secure);
        let moment = Now::of(&shared.kept.clock);
        let received_at = moment.now;
        let request_id = given.cloned().unwrap_or_else(|| request_id::new(received_at));
        let line = shared.log.is_on().then(|| {
            Box::new(LogLine {
                uri: Some(head.uri.clone()),
                user_agent: head.headers.get(USER_AGENT).cloned(),
            })
        });
        Self {
            shared: Arc::clone(shared),
            snapshot: Arc::clone(snapshot),
            request_id,
            client,
            received_at,
            peer,
            said,
            moment,
            secure,
            reader: ResponseFormat::of(&head.headers),
            received: Rc::default(),
            cookies: Vec::new(),
            renewal: None,
            login: None,
            speaks_dpop: false,
            next_nonce: None,
            host: None,
            scrubbed: Scrubbed::default(),
            place: None,
            lifeline: None,
            speaks_to_pages: false,
            method: head.method.clone(),
            version: head.version,
            origin: None,
            began: moment.uptime,
            waited: Duration::ZERO,
            waits_since: Cell::new(None),
            overhead: None,
            route: None,
            auth: None,
            principal: None,
            standing: LimitState::default(),
            limited_by: None,
            endpoint: None,
            error: None,
            line,
            recorded: false,
        }
    }
}

impl Exchange {
    /// The route is known: it counts the request from now on.
    pub fn matched(&mut self, route: &Arc<Route>, head: &Parts) {
        // What asks on behalf of a page is granted by the route that it asks about, and no other.
        let speaks_to_pages =
            !route.is_absent() && !cors::is_preflight(&head.method, &head.headers);
        if route.cors.is_some() && speaks_to_pages {
            self.origin = head.headers.get(ORIGIN).cloned();
            self.speaks_to_pages = true;
        }
        self.preflight_for(route);
    }

    /// A preflight asks about this route, which counts it; the answer says itself what pages may do.
    pub fn preflight_for(&mut self, route: &Arc<Route>) {
        route.metrics.began();
        self.route = Some(Arc::clone(route));
    }

    /// What a service is told about where the request came from.
    pub(super) fn forwarded(&self) -> Forwarded<'_> {
        Forwarded {
            said: self.said.as_deref(),
            peer: self.peer.ip,
            peer_value: &self.peer.address,
            host: self.host.as_ref(),
            secure: self.secure,
        }
    }

    /// The route, once it is known.
    pub fn route(&self) -> Option<&Arc<Route>> {
        self.route.as_ref()
    }

    /// The only reader of time.
    pub fn clock(&self) -> &Clock {
        &self.shared.kept.clock
    }

    /// What authentication came to.
    pub fn authenticated(&mut self, method: AuthMethod, result: AuthResult) {
        self.auth = Some((method, result));
    }

    /// Authorization refused who authentication had recognized: what is counted is the refusal.
    pub fn refused(&mut self, result: AuthResult) {
        if let Some((_, counted)) = &mut self.auth {
            *counted = result;
        }
    }

    /// Awaits `answer`, and counts the time as waiting unless it was there at once.
    pub async fn measured<F: Future>(&mut self, answer: F) -> F::Output {
        let mut answer = core::pin::pin!(answer);
        if let Some(answer) = answer.as_mut().now_or_never() {
            return answer;
        }
        self.measure_wait();
        let answer = answer.await;
        self.moment = Now::of(&self.shared.kept.clock);
        self.end_wait(self.moment.uptime);
        answer
    }

    /// Others are waited for from now on.
    pub fn measure_wait(&self) {
        self.waits_since.set(Some(self.shared.kept.clock.uptime()));
    }

    /// They were waited for until `now`.
    pub fn end_wait(&mut self, now: Duration) {
        if let Some(since) = self.waits_since.take() {
            self.waited += now.saturating_sub(since);
        }
    }

    /// The time until `now` that was not spent waiting; a wait that was broken off counts as one to its end.
    fn own_time(&self, now: Duration) -> Duration {
        let until = self.waits_since.get().unwrap_or(now);
        until.saturating_sub(self.began).saturating_sub(self.waited)
    }

    /// Who was recognized.
    pub fn authenticated_as(&mut self, principal: &Arc<Principal>) {
        self.principal = Some(Arc::clone(principal));
    }

    /// A limit refused the request.
    pub fn limited(&mut self, limit: &str) {
        self.limited_by = Some(limit.into());
    }

    /// Puts the request's body under `bounds`, and under the limits that count its bytes.
    ///
    /// # Errors
    ///
    /// [`Rejection::BodyTooLarge`] if the body says itself that it is.
    pub(super) fn receive(&mut self, body: Body, bounds: BodyLimits) -> Result<Body, Rejection> {
        let meter = self.standing.meter();
        let metering = meter.map(|meter| Metering { meter, clock: self.clock().clone() });
        request_body::limit_body(body, bounds, &self.snapshot.reserved, &self.received, metering)
    }

    /// What to answer when the request's body broke off, or was given up.
    pub(super) fn body_failed(&mut self) -> Rejection {
        let rejection = self.received.rejection();
        if let Rejection::Limited(limited) = &rejection {
            self.standing.ended_by(limited);
            self.limited_by = self.route.as_ref().map(|route| route.limits.name(limited).into());
        }
        rejection
    }

    /// Who answered, and after how many tries.
    pub fn forwarded_to(&mut self, endpoint: Arc<Endpoint>, attempts: u32) {
        self.endpoint = Some((endpoint, attempts));
    }

    /// The ways to be let in that the route takes, for a 401.
    pub fn challenges(&self) -> &AuthChallenges {
        const NONE: &AuthChallenges = &AuthChallenges {
            bearer: false,
            dpop: false,
            basic: false,
            login: None,
            metadata: None,
        };
        self.route.as_ref().map_or(NONE, |route| route.authenticate.challenges())
    }

    /// What came has neither method nor path: it is counted and logged as one of no known method.
    pub(super) fn is_parse_failure(&mut self) {
        if let Some(line) = &mut self.line {
            line.uri = None;
        }
        self.method = Method::from_bytes(b"UNREADABLE").unwrap_or_default();
    }

    /// The gateway answers itself.
    pub fn reject(&mut self, rejection: &Rejection) -> Response<Body> {
        self.error = Some(rejection.name());
        self.metrics().rejected(rejection.reason());
        let login = self.login.take();
        let mut response = problem::respond(
            rejection,
            self.challenges(),
            self.speaks_dpop,
            self.reader,
            &self.request_id,
            login,
        );
        if matches!(
            rejection,
            Rejection::BadRequest
                | Rejection::AmbiguousPath
                | Rejection::TargetTooLong
                | Rejection::UnknownCoding
                | Rejection::BodyTimeout
        ) && self.version < Version::HTTP_2
        {
            // Whoever cannot say one thing clearly, or to its end, is not asked for the next on the same connection.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Whether the client's own connection is encrypted, as far as whoever is trusted says.
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// Makes up the cookies that have changed, as late as possible.
    pub async fn renew_cookies(&mut self) {
        if let Some(renewal) = self.renewal.take() {
            // Boxed: few requests renew anything, and all of them carry this future.
            self.cookies.extend(Box::pin(renewal.set_cookies()).await);
        }
    }

    /// Adds what every answer gets, and sees it off.
    pub fn finish(mut self: Box<Self>, mut response: Response<Body>) -> Response<Body> {
        self.overhead = Some(self.own_time(self.shared.kept.clock.uptime()));
        let server = &self.snapshot.server;
        let (status, headers) = (response.status().as_u16(), response.headers_mut());
        headers.insert(&server.request_id_header, self.request_id.clone());
        self.keep_from_caches(headers);
        for cookie in self.cookies.drain(..) {
            headers.append(SET_COOKIE, cookie);
        }
        if let Some(nonce) = self.next_nonce.take() {
            // RFC 9449 §8.2: whoever is answered from a cache must not get somebody's old nonce.
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            headers.insert(DPOP_NONCE, nonce);
        }
        if self.endpoint.is_none()
            && let Some(name) = &server.server_header
        {
            headers.insert(SERVER, name.clone());
        }
        if let Some(route) = &self.route {
            route.limits.write(&self.standing, headers);
            if let Some(cors) = route.cors.as_ref().filter(|_| self.speaks_to_pages) {
                cors::decorate(cors, self.origin.as_ref(), headers);
            }
            if route.security_headers {
                harden(headers, self.secure);
            }
        }
        // No client reads what such an answer carries: it has ended when its head is out.
        let bodiless = self.method == Method::HEAD || matches!(status, 204 | 304);
        if bodiless && self.endpoint.is_none() {
            response = without_content(response);
        }
        let exchange = Some(self);
        response.map(|body| {
            let cut = body.cut();
            let recorded = RecordedBody { body, status, sent: 0, ended: bodiless, exchange };
            Body::streaming(recorded).with_cut(cut)
        })
    }

    /// Keeps from shared caches what is one browser's: an answer that sets cookies of ours, that is of one of a session's
    /// own paths, or that was made for a session. The last kind its service may call public, but no CDN stores it.
    fn keep_from_caches(&self, headers: &mut HeaderMap) {
        let is_own =
            self.route.as_ref().is_some_and(|route| matches!(route.action, Action::Session(_)));
        let is_of_a_session = matches!(self.auth, Some((AuthMethod::Session, _)));
        if !self.cookies.is_empty()
            || is_own
            || is_of_a_session && !has_directive(headers, &["public"])
        {
            keep_from_shared_caches(headers);
        } else if is_of_a_session {
            keep_from_targeted_caches(headers);
        }
    }

    /// The answer has ended, and is recorded; what the exchange holds of limits it keeps while the service still reads
    /// the request.
    fn answered(mut self: Box<Self>, status: u16, sent: u64) {
        self.record(status, sent);
        let received = Rc::clone(&self.received);
        // Ours here, the exchange's own, and the body's if it is still held.
        if Rc::strong_count(&received) > 2 {
            received.has_timed_out(self);
        }
    }

    fn metrics(&self) -> &RouteMetrics {
        self.route.as_ref().map_or(&self.snapshot.unmatched, |route| &route.metrics)
    }

    /// Tells metrics and log how it ended.
    fn record(&mut self, status: u16, sent: u64) {
        self.recorded = true;
        let now = self.shared.kept.clock.uptime();
        let took = now.saturating_sub(self.began);
        let overhead = self.overhead.unwrap_or_else(|| self.own_time(now));
        let received = self.received.bytes();
        if self.route.is_none() {
            self.metrics().began();
        }
        if let Some((method, result)) = self.auth {
            self.metrics().authenticated(method, result);
        }
        self.metrics().answered(&self.method, status, took, overhead, received, sent);
        let logged = self.route.as_ref().is_none_or(|route| route.access_log);
        if let Some(line) = self.line.as_ref().filter(|_| logged && self.shared.log.wants(status)) {
            self.log(line, status, sent, took, overhead);
        }
    }

    fn log(&self, line: &LogLine, status: u16, sent: u64, took: Duration, overhead: Duration) {
        let principal = self.principal.as_deref();
        let limit_result =
            if self.limited_by.is_some() { Some(LimitResult::Limited) } else { None };
        self.shared.log.record(&AccessLogEntry {
            time: self.shared.kept.clock.now(),
            request_id: self.request_id.to_str().unwrap_or_default(),
            trace_id: None,
            span_id: None,
            client: self.client,
            method: self.method.as_str(),
            path: line.uri.as_ref().map_or("", Uri::path),
            query: line.uri.as_ref().and_then(Uri::query),
            version: self.version,
            status,
            request_bytes: self.received.bytes(),
            response_bytes: sent,
            took,
            overhead,
            route: self.route.as_ref().map_or("_none", |route| &route.id),
            upstream: self.route.as_ref().and_then(|route| route.upstream()),
            target: self.endpoint.as_ref().map(|(endpoint, _)| endpoint.name()),
            attempts: self.endpoint.as_ref().map_or(0, |&(_, attempts)| attempts),
            auth: self.auth.map(|(method, _)| method),
            auth_result: self.auth.map(|(_, result)| result),
            issuer: principal.map(|principal| &*principal.issuer),
            subject: principal.and_then(|principal| principal.subject.as_deref()),
            client_id: principal.and_then(|principal| principal.client.as_deref()),
            limit: self.limited_by.as_deref(),
            limit_result,
            error: self.error,
            user_agent: line.user_agent.as_ref().and_then(|agent| agent.to_str().ok()),
            tls: self.peer.tls,
        });
    }
}

impl Drop for Exchange {
    /// A request without an answer: the client went away while it waited, or the gateway panicked.
    fn drop(&mut self) {
        if !self.recorded {
            self.record(if std::thread::panicking() { INTERNAL } else { CLIENT_CLOSED }, 0);
        }
    }
}

/// An answer's body, with the exchange it ends.
struct RecordedBody {
    body: Body,
    status: u16,
    sent: u64,
    ended: bool,
    /// `None` once it was dropped.
    exchange: Option<Box<Exchange>>,
}

impl RecordedBody {
    /// The answer breaks off.
    fn aborted(&mut self, error: &body::Error) {
        self.ended = true;
        let Some(exchange) = &mut self.exchange else { return };
        let cut = error.downcast_ref::<TerminationReason>();
        // A client that goes away while its request is still sent on is gone, and no service's fault.
        let own = error.downcast_ref() == Some(&UpstreamError::Client);
        let gone = own && !exchange.received.is_refused();
        exchange.error = match cut {
            Some(cut) => Some(cut.name()),
            None if gone => None,
            None if own => Some(exchange.body_failed().name()),
            None => Some("upstream-failed"),
        };
        if gone {
            self.status = CLIENT_CLOSED;
        }
    }
}

impl http_body::Body for RecordedBody {
    type Data = Bytes;
    type Error = body::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                this.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
                this.ended |= this.body.is_end_stream();
            }
            Poll::Ready(Some(Err(error))) => this.aborted(error),
            Poll::Ready(None) => this.ended = true,
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for RecordedBody {
    fn drop(&mut self) {
        let Some(mut exchange) = self.exchange.take() else { return };
        let mut status = self.status;
        if !self.ended && !self.body.is_end_stream() {
            // A body that was dropped before its end: it was cut off from a client that did not read, or the client
            // went away.
            match exchange.lifeline.as_ref().and_then(StreamGuard::why) {
                Some(cut) => exchange.error = Some(cut.name()),
                None => status = CLIENT_CLOSED,
            }
        }
        exchange.answered(status, self.sent);
    }
}

/// What metrics and log say of a client that went away; nobody ever sees it on the wire.
const CLIENT_CLOSED: u16 = 499;
const INTERNAL: u16 = 500;
