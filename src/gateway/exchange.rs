//! The state of one request and its response, from arrival to last byte.
//!
//! Stages record what they learn; [`Exchange::finish`] sets the header fields that every response gets and wraps its
//! content, so that metrics and access log count the exchange when both response and request have ended, or when the client
//! disconnects before.

mod finish;
pub(super) mod panicked;
mod request_end;
mod response_recorder;

use core::cell::Cell;
use core::net::IpAddr;
use core::time::Duration;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::FutureExt;
use http::header::{CONNECTION, ORIGIN, USER_AGENT};
use http::request::Parts;
use http::{HeaderValue, Method, Response, Uri, Version};

use super::peer::Peer;
use super::policy::cors;
use super::process_state::{ProcessState, RequestPermit};
use super::proxy::outcome::UpstreamOutcome;
use super::proxy::stream_guard::StreamGuard;
use super::request::forwarded::{ClientInfo, Forwarded};
use super::request::headers::StrippedFields;
use super::request::request_body;
use super::request::request_body::{BodyLimits, BodyProgress, ContentCharging, LimitedBody};
use super::request::request_id;
use super::response::compression::ResponseCompression;
use super::response::problem;
use super::response::problem::{AuthChallenges, ResponseFormat};
use super::response::rejection::Rejection;
use super::routing::route_properties::RouteProperties;
use super::stage_context::{HasStageContext, StageContext};
use crate::base::body::Body;
use crate::base::clock::{Clock, Timestamp};
use crate::base::grpc;
use crate::base::interim_sink::InterimSink;
use crate::base::raw_target;
use crate::config::reserved_headers::ReservedHeaders;
use crate::limit::{LimitState, Now};
use crate::observe::access_log_entry::AccessLogEntry;
use crate::observe::metrics::{AuthLabel, AuthResult, FallbackKind, LimitResult, RouteMetrics};
use crate::session::{DeferredCookies, LoginRedirect};
use crate::token::{Principal, RevocationList};

/// One request and its response.
#[derive(Debug)]
pub struct Exchange {
    process: Arc<ProcessState>,
    snapshot: Arc<dyn HasStageContext>,
    /// The request id, as sent to the client and the upstream and written to the log.
    pub request_id: HeaderValue,
    /// The client's address: that of the peer, or behind trusted proxies the nearest untrusted hop.
    pub client: IpAddr,
    /// The time at which the request arrived.
    pub received_at: Timestamp,
    /// The peer of the connection.
    pub peer: Rc<Peer>,
    /// The sink for interim responses to the client, if it accepts them.
    pub(super) interim: Option<Rc<dyn InterimSink>>,
    /// The forwarding fields of the peer, if it is a trusted proxy.
    pub(super) client_info: Option<Box<ClientInfo>>,
    /// The time after the last wait: read from the clock only after one.
    pub moment: Now,
    /// The format of error responses that the client accepts.
    pub response_format: ResponseFormat,
    /// The progress of the request content.
    pub received: Rc<BodyProgress>,
    /// New cookies; they are set on the response, whatever its status.
    pub cookies: Vec<HeaderValue>,
    /// A session whose new cookies are set as well, in its state at the time of the response.
    pub renewal: Option<DeferredCookies>,
    /// A flag for a request that may come back if none of it has reached an upstream.
    pub arrival: Option<Rc<Cell<bool>>>,
    /// The login page that a user agent is redirected to instead of a 401.
    pub login: Option<LoginRedirect>,
    /// Whether the client presents its token with a `DPoP` proof: challenges then use that scheme.
    pub speaks_dpop: bool,
    /// Whether the token is in a field or cookie whose presence does not tell caches that the response is for one user
    /// (RFC 9111 §3.5).
    pub(super) token_is_elsewhere: bool,
    /// The `DPoP` nonce that the client's next proof must carry.
    pub next_nonce: Option<HeaderValue>,
    /// The requested host, with its port.
    pub host: Option<HeaderValue>,
    /// The facts about the request head that stripping removed from it.
    pub(super) stripped: StrippedFields,
    /// The permit for this request in flight.
    pub(super) in_flight: Option<RequestPermit>,
    /// The guard of the response, if it streams.
    pub(super) stream_guard: Option<StreamGuard>,
    /// The compression of the response, if the route has one.
    pub(super) compression: Option<ResponseCompression>,
    secure: bool,
    method: Method,
    version: Version,
    origin: Option<HeaderValue>,
    /// Whether the response gets CORS fields.
    wants_cors_fields: bool,
    started: Duration,
    /// The time spent waiting for issuers, upstreams and the client, until the response head.
    waited: Duration,
    /// The beginning of the wait under way.
    waiting_since: Cell<Option<Duration>>,
    /// The gateway's own time until the response head; transferring the content does not count.
    overhead: Option<Duration>,
    route: Option<Arc<RouteProperties>>,
    auth: Option<(AuthLabel, AuthResult)>,
    principal: Option<Arc<Principal>>,
    /// The state of the request's limits, and the permits that it holds of them.
    pub limit_state: LimitState,
    /// The limit that refused the request, or would have, were it no dry run.
    limited_by: Option<(Box<str>, LimitResult)>,
    /// The status of a refusal that was sent as a status of gRPC.
    refused_with: Option<u16>,
    /// The status code that ended a gRPC call.
    grpc_status: Option<u16>,
    /// The outcome at the upstream.
    pub(super) outcome: UpstreamOutcome,
    error: Option<&'static str>,
    /// The request data that only the access log uses; `None` if the log is off.
    log_data: Option<Box<LogData>>,
    recorded: bool,
}

#[derive(Debug)]
struct LogData {
    /// The request target; `None` if the request could not be parsed.
    uri: Option<Uri>,
    user_agent: Option<HeaderValue>,
}

impl Exchange {
    /// Begins the exchange of a request.
    pub fn begin(
        process: Arc<ProcessState>,
        snapshot: Arc<dyn HasStageContext>,
        peer: Rc<Peer>,
        head: &Parts,
    ) -> Self {
        let server = &snapshot.context().server;
        let trusted = server.trusts(peer.ip) && !peer.names_no_client;
        let client_info = trusted
            .then(|| Box::new(ClientInfo::read(&head.headers, peer.ip, &server.trusted_proxies)));
        let client = client_info.as_ref().map_or(peer.ip, |info| info.client);
        let given = if trusted { head.headers.get(&server.request_id_header) } else { None };
        let given = given.filter(|id| request_id::is_acceptable(id));
        let secure = peer.secure || client_info.as_ref().is_some_and(|info| info.secure);
        let moment = Now::of(&process.retained.clock);
        let received_at = moment.now;
        let request_id = given.cloned().unwrap_or_else(|| request_id::new(received_at));
        let log_data = process.log.is_on().then(|| {
            Box::new(LogData {
                uri: Some(head.uri.clone()),
                user_agent: head.headers.get(USER_AGENT).cloned(),
            })
        });
        Self {
            process,
            snapshot,
            request_id,
            client,
            received_at,
            peer,
            interim: None,
            client_info,
            moment,
            secure,
            response_format: ResponseFormat::of(&head.headers),
            received: Rc::default(),
            cookies: Vec::new(),
            renewal: None,
            arrival: None,
            login: None,
            speaks_dpop: false,
            token_is_elsewhere: false,
            next_nonce: None,
            host: None,
            stripped: StrippedFields::default(),
            in_flight: None,
            stream_guard: None,
            compression: None,
            wants_cors_fields: false,
            method: head.method.clone(),
            version: head.version,
            origin: None,
            started: moment.uptime,
            waited: Duration::ZERO,
            waiting_since: Cell::new(None),
            overhead: None,
            route: None,
            auth: None,
            principal: None,
            limit_state: LimitState::default(),
            limited_by: None,
            refused_with: None,
            grpc_status: None,
            outcome: UpstreamOutcome::default(),
            error: None,
            log_data,
            recorded: false,
        }
    }
}

impl Exchange {
    /// Records the route, which counts the request from now on.
    pub fn matched(&mut self, route: &Arc<RouteProperties>, head: &Parts) {
        // A preflight gets the CORS fields of the route that it concerns, from `cors::preflight`.
        let wants_cors_fields =
            !route.is_disabled && !cors::is_preflight(&head.method, &head.headers);
        if route.cors.is_some() && wants_cors_fields {
            self.origin = head.headers.get(ORIGIN).cloned();
            self.wants_cors_fields = true;
        }
        self.preflight_for(route);
    }

    /// Records the route that a preflight concerns and that counts it; the response has its CORS fields already.
    pub fn preflight_for(&mut self, route: &Arc<RouteProperties>) {
        route.metrics.began();
        self.route = Some(Arc::clone(route));
    }

    /// Returns the forwarding information to send to the upstream.
    pub(super) fn forwarded(&self) -> Forwarded<'_> {
        Forwarded {
            client_info: self.client_info.as_deref(),
            peer: self.peer.ip,
            peer_value: &self.peer.address,
            host: self.host.as_ref(),
            secure: self.secure,
        }
    }

    /// Returns the route, once it is known.
    pub fn route(&self) -> Option<&Arc<RouteProperties>> {
        self.route.as_ref()
    }

    /// Returns the part of its snapshot that stages use.
    pub(super) fn context(&self) -> &StageContext {
        self.snapshot.context()
    }

    /// Returns the tokens and sessions that were ended.
    pub(super) fn revocations(&self) -> &RevocationList {
        &self.process.retained.revocations
    }

    /// Returns the injected clock.
    pub fn clock(&self) -> &Clock {
        &self.process.retained.clock
    }

    /// Records the result of authentication.
    pub fn authenticated(&mut self, method: AuthLabel, result: AuthResult) {
        self.auth = Some((method, result));
    }

    /// Returns the principal of a caller who was authenticated by a session.
    pub fn session_principal(&self) -> Option<&Principal> {
        self.principal.as_deref().filter(|_| matches!(self.auth, Some((AuthLabel::Session, _))))
    }

    /// Replaces the result of a successful authentication by the refusal of authorization, for metrics.
    pub fn authorization_refused(&mut self, result: AuthResult) {
        if let Some((_, recorded)) = &mut self.auth {
            *recorded = result;
        }
    }

    /// Sets the cause of a refusal for the log, where the rejection alone does not show it.
    pub fn explain_refusal(&mut self, cause: &'static str) {
        self.outcome.cause = Some(cause.into());
    }

    /// Awaits `future`, and counts the time as waiting unless it is ready at once.
    pub async fn measured<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = core::pin::pin!(future);
        if let Some(output) = future.as_mut().now_or_never() {
            return output;
        }
        self.begin_wait();
        let output = future.await;
        self.moment = Now::of(&self.process.retained.clock);
        self.end_wait(self.moment.uptime);
        output
    }

    /// Begins a wait for an issuer, an upstream or the client.
    pub fn begin_wait(&self) {
        self.waiting_since.set(Some(self.process.retained.clock.uptime()));
    }

    /// Ends the wait at `now`.
    pub fn end_wait(&mut self, now: Duration) {
        if let Some(since) = self.waiting_since.take() {
            self.waited += now.saturating_sub(since);
        }
    }

    /// Returns the time until `now` that was not spent waiting; an unfinished wait counts as waiting.
    fn own_time(&self, now: Duration) -> Duration {
        let until = self.waiting_since.get().unwrap_or(now);
        until.saturating_sub(self.started).saturating_sub(self.waited)
    }

    /// Records the authenticated principal.
    pub fn authenticated_as(&mut self, principal: &Arc<Principal>) {
        self.principal = Some(Arc::clone(principal));
    }

    /// Records the limit that refused the request, or would have.
    pub fn limited(&mut self, limit: &str, result: LimitResult) {
        self.limited_by = Some((limit.into(), result));
    }

    /// Logs that a response had no valid cost, at most once a second.
    pub(super) fn warn_of_untold_cost(&self) {
        if self.context().may_warn(self.moment.uptime) {
            let route = self.route.as_ref().map_or("", |route| &*route.id);
            tracing::warn!(
                route,
                "Could not read the cost of a request from its response; the default was charged."
            );
        }
    }

    /// Limits the request content by `bounds`, and by the limits that count its bytes; `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`Rejection::BodyTooLarge`] if the declared length exceeds the limit.
    pub(super) fn receive(
        &mut self,
        body: Body,
        bounds: BodyLimits,
        reserved: &ReservedHeaders,
    ) -> Result<Option<Box<LimitedBody>>, Rejection> {
        let charge = self.limit_state.content_charge();
        let charging = charge.map(|charge| ContentCharging::new(charge, self.clock().clone()));
        request_body::limit_body(body, bounds, reserved, &self.received, charging)
    }

    /// Returns the rejection for request content that was aborted.
    pub(super) fn body_failed(&mut self) -> Rejection {
        let rejection = self.received.rejection();
        if let Rejection::Limited(limited) = &rejection {
            self.limit_state.ended_by(limited);
            let name = self.route.as_ref().map(|route| route.limits.name(limited).into());
            self.limited_by = name.map(|name| (name, LimitResult::Limited));
        }
        rejection
    }

    /// Returns the authentication methods of the route, for a 401.
    pub fn challenges(&self) -> &AuthChallenges {
        self.route.as_ref().map_or(&AuthChallenges::NONE, |route| &route.challenges)
    }

    /// Leaves the target out of the log: it could not be read.
    pub(super) fn forget_target(&mut self) {
        if let Some(log_data) = &mut self.log_data {
            log_data.uri = None;
        }
    }

    /// Builds the response to a refused request.
    pub fn reject(&mut self, rejection: &Rejection) -> Response<Body> {
        self.error = Some(rejection.name());
        if self.outcome.cause.is_none() {
            self.outcome.cause = rejection.cause();
        }
        self.metrics().rejected(rejection.reason());
        let login = self.login.take();
        if self.response_format.is_grpc() {
            self.refused_with = Some(rejection.status().as_u16());
        }
        let mut response = problem::respond(
            rejection,
            self.challenges(),
            self.speaks_dpop,
            self.response_format,
            &self.request_id,
            login,
        );
        if matches!(
            rejection,
            Rejection::BadRequest
                | Rejection::AmbiguousPath
                | Rejection::AmbiguousField
                | Rejection::TargetTooLong
                | Rejection::UnknownCoding
                | Rejection::BodyTimeout
        ) && self.version < Version::HTTP_2
        {
            // A client whose request is malformed or incomplete gets no further request on the same connection.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Returns the uptime at which the request arrived.
    pub(super) const fn started(&self) -> Duration {
        self.started
    }

    /// Whether the client's connection uses TLS, according to the trusted proxies if there are any.
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// Adds the cookies of a changed session, as late as possible.
    pub async fn set_deferred_cookies(&mut self) {
        if let Some(renewal) = self.renewal.take() {
            // Boxed: few requests change a session, and all of them carry this future.
            self.cookies.extend(Box::pin(renewal.set_cookies()).await);
        }
    }

    /// Keeps the status of a gRPC call, if these fields, of a head or of trailers, end it.
    fn call_ended(&mut self, fields: &http::HeaderMap) {
        if self.response_format.is_grpc() {
            self.grpc_status = grpc::status_of(fields);
        }
    }

    /// Returns the name of the upstream that was asked, by `split` or as a fallback; before that, of the route's own.
    fn upstream_name(&self) -> Option<&str> {
        self.outcome.upstream.as_deref().or_else(|| self.route()?.upstream.as_deref())
    }

    fn metrics(&self) -> &RouteMetrics {
        self.route.as_ref().map_or(&self.context().unmatched, |route| &route.metrics)
    }

    /// Records the outcome in metrics and access log.
    fn record(&mut self, status: u16, sent: u64) {
        self.recorded = true;
        let now = self.process.retained.clock.uptime();
        let took = now.saturating_sub(self.started);
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
        if let Some(log_data) =
            self.log_data.as_ref().filter(|_| logged && self.process.log.wants(status))
        {
            self.log(log_data, status, sent, took, overhead);
        } else if let Some(cause) = self.outcome.cause.as_deref().filter(|_| status >= 502) {
            // Failures are logged even if the access log leaves the request out.
            tracing::warn!(
                request_id = self.request_id.to_str().unwrap_or_default(),
                status,
                route = self.route.as_ref().map(|route| &*route.id),
                upstream = self.upstream_name(),
                target = self.outcome.target(),
                error.cause = cause,
                "Could not serve a request; the client received an error response."
            );
        }
    }

    fn log(&self, log_data: &LogData, status: u16, sent: u64, took: Duration, overhead: Duration) {
        let principal = self.principal.as_deref();
        let path = raw_target::escaped(log_data.uri.as_ref().map_or("", Uri::path));
        let query = log_data.uri.as_ref().and_then(Uri::query).map(raw_target::escaped);
        let dry_run_of_content = || {
            let name = self.route.as_ref()?.limits.name_of(self.received.dry_run()?);
            Some((name, LimitResult::DryRun))
        };
        let limited_by = self.limited_by.as_ref().map(|(name, result)| (&**name, *result));
        let limited_by = limited_by.or_else(dry_run_of_content);
        self.process.log.record(&AccessLogEntry {
            time: self.process.retained.clock.now(),
            request_id: self.request_id.to_str().unwrap_or_default(),
            client: self.client,
            method: self.method.as_str(),
            path: &path,
            query: query.as_deref(),
            version: self.version,
            status,
            grpc_status: self.grpc_status,
            request_bytes: self.received.bytes(),
            response_bytes: sent,
            took,
            overhead,
            route: self.route.as_ref().map_or("_none", |route| &route.id),
            upstream: self.upstream_name(),
            fallback: self.outcome.fallback.map(FallbackKind::word),
            target: self.outcome.target(),
            attempts: self.outcome.attempts(),
            auth: self.auth.map(|(method, _)| method),
            auth_result: self.auth.map(|(_, result)| result),
            issuer: principal.map(|principal| &*principal.issuer),
            subject: principal.and_then(|principal| principal.subject.as_deref()),
            client_id: principal.and_then(|principal| principal.client.as_deref()),
            limit: limited_by.map(|(name, _)| name),
            limit_result: limited_by.map(|(_, result)| result),
            error: self.error,
            cause: self.outcome.cause.as_deref(),
            user_agent: log_data.user_agent.as_ref().and_then(|agent| agent.to_str().ok()),
            tls: self.peer.tls,
        });
    }
}

impl Drop for Exchange {
    /// Records a request without a response: the client disconnected while it waited, or the gateway panicked.
    fn drop(&mut self) {
        if !self.recorded {
            let is_panic = std::thread::panicking();
            if is_panic {
                panicked::record(&self.request_id);
            }
            self.record(if is_panic { INTERNAL } else { CLIENT_CLOSED }, 0);
        }
    }
}

/// The status in metrics and log for a client that disconnected; never sent.
const CLIENT_CLOSED: u16 = 499;
const INTERNAL: u16 = 500;
