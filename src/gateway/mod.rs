//! The processing of one request (floor 6). Start with `Snapshot::handle`.
//!
//! A [`Snapshot`] is everything needed to serve requests, compiled from one configuration; immutable, and replaced as
//! a whole. A [`Gateway`] serves the requests of one thread. An [`Exchange`] is the state of one request and its
//! response. Every refusal is a [`Rejection`]; `response::problem` alone turns rejections into responses.

mod compile;
mod deferred_form;
mod exchange;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
mod peer;
mod policy;
mod proxy;
mod request;
mod response;
mod retained_state;
mod routing;
mod service;
pub mod view;
mod well_known;

use self::policy::cors;
use self::proxy::destination::Destination;
use self::proxy::websocket;
use self::request::headers;
use self::request::host;
use self::request::request_body;
use self::response::https_redirect;
use self::routing::match_route;
use core::net::IpAddr;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU64, AtomicUsize};
use core::time::Duration;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};

pub use self::compile::{CompileError, compile};
pub use self::exchange::Exchange;
use self::exchange::panicked;
pub use self::peer::Peer;
use self::policy::authenticate::Authenticate;
use self::policy::authorize::Authorize;
use self::policy::token_source::TokenPlaces;
use self::proxy::stream_guard::StreamRegistry;
use self::request::path_readings::PathReadings;
use self::request::request_body::BodyLimits;
pub use self::request::request_body::{FramingError, OpensTunnel, UnknownProtocol};
use self::response::compression::ResponseCompression;
use self::response::problem::{self, AuthChallenges, ResponseFormat};
pub use self::response::rejection::{Challenge, Rejection};
pub use self::retained_state::RetainedState;
use self::routing::action::Action;
use self::routing::match_route::{Found, PreflightRoutes};
use self::routing::route::Router;
pub use self::service::ClientAddress;
use crate::base::body::Body;
use crate::base::in_flight::InFlightCalls;
use crate::base::interim_sink::InterimSink;
use crate::base::raw_target;
use crate::config::reserved_headers::ReservedHeaders;
use crate::config::route::{Coding, Cors};
use crate::config::server::Server;
use crate::limit;
use crate::observe::log::AccessLog;
use crate::observe::metrics::{Rejected, RouteMetrics};
use crate::revocation_sync::RevocationSync;
use crate::session::{ResumedForm, Sessions};
use crate::token::IssuerVerifier;
use crate::upstream::{self, ExtraHeaders, IdlePool, InvalidResponse, Upstream, UpstreamError};

/// Everything needed to serve requests, compiled from one configuration. Immutable; replaced as a whole.
#[derive(Debug)]
pub struct Snapshot {
    router: Router<Route>,
    sessions: Vec<Arc<Sessions>>,
    /// The authorization servers that routes use.
    issuer_verifiers: Vec<Arc<IssuerVerifier>>,
    upstreams: Vec<Arc<Upstream>>,
    /// The limits of the configuration.
    limiters: Vec<Arc<limit::Limiter>>,
    /// The exchange of revocations with the other instances on the same Redis.
    revocation_sync: Option<Arc<RevocationSync>>,
    /// The places of tokens besides `Authorization`, on any route.
    token_places: TokenPlaces,
    /// Header fields reserved for the gateway on every route.
    reserved: ReservedHeaders,
    /// Server settings: the limits that hold for every request.
    pub server: Server,
    /// Counts requests without a route.
    unmatched: Arc<RouteMetrics>,
    /// Whether a route matches header fields that the gateway sets itself.
    matches_gateway_fields: bool,
    /// Whether a route may ask the user of a session to log in again, and keep a form meanwhile.
    defers_forms: bool,
    /// The second of uptime, from 1, of the last warning that any client can cause.
    last_warning: AtomicU64,
    /// The hash of the configuration that this was compiled from.
    pub hash: String,
}

/// One compiled route: its stages in the order in which `Snapshot::handle` runs them.
#[derive(Debug)]
pub struct Route {
    /// The route's name in the configuration; a metric label.
    pub id: Arc<str>,
    cors: Option<Cors>,
    authenticate: Authenticate,
    authorize: Authorize,
    /// Limits by address, by route or global apply before any cryptography, all others after authorization.
    limits: limit::RouteLimits,
    action: Action,
    /// The limit on the bytes of request content; `None` is unlimited.
    max_body_size: Option<u64>,
    security_headers: bool,
    /// Content codings of compressed responses, the preferred one first.
    compress: Vec<Coding>,
    access_log: bool,
    metrics: Arc<RouteMetrics>,
}

impl Snapshot {
    /// Takes one request through its route. The order of the stages is the security policy and not configurable.
    async fn handle(
        &self,
        exchange: &mut Exchange,
        head: &mut Parts,
        body: Body,
        gateway: &Gateway,
    ) -> Result<Response<Body>, Rejection> {
        let (host, readings) = self.read_target(head, exchange)?;
        if request_body::is_asterisk_form(head) {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            return Ok(response);
        }
        if let Some(port) = exchange.peer.redirect_https {
            if exchange.response_format.is_grpc() {
                return Err(Rejection::HttpsRequired);
            }
            return https_redirect::to_https(&host, port, &head.uri);
        }
        // No decision below depends on a field that the upstream will not see.
        let trusted = exchange.client_info.is_some();
        exchange.stripped = headers::strip_untrusted(&mut head.headers, &self.reserved, trusted);
        let route = match self.find(&host, head, &readings, exchange)? {
            Found::Route(route) => route,
            Found::Preflight(routes) => return preflight(&routes, head, exchange),
        };
        exchange.stripped.restore_upgrade(&mut head.headers);
        exchange.matched(route, head);
        if route.is_disabled() {
            return Err(Rejection::NoRoute);
        }
        if let Some(destination) = Destination::read(head, exchange.host.as_ref())? {
            self.check_destination(destination, route, &host, head, exchange)?;
        }
        exchange.compression = ResponseCompression::negotiate(&route.compress, &head.headers);
        // A request that is refused for its declared size is not charged to any limit.
        if route.max_body_size.is_some_and(|max| http_body::Body::size_hint(&body).lower() > max) {
            return Err(Rejection::BodyTooLarge);
        }
        // Limits that protect the upstream apply before any cryptography is spent on the caller…
        route.check_spike_arrest(head, &body, exchange).await?;
        let caller = route.authenticate.check(head, exchange).await?;
        let auth_method = caller.auth_method();
        let permit = match route.authorize.check(caller, exchange) {
            Ok(permit) => permit,
            Err(rejection) => {
                if let Rejection::InsufficientAuthentication { required } = &rejection {
                    let body =
                        exchange.receive(body, BodyLimits::of(&self.server), &self.reserved)?;
                    let body = body.map_or_else(Body::empty, Body::streaming);
                    // Boxed: rarely used and large, and every request carries this future.
                    Box::pin(route.authenticate.step_up(
                        auth_method,
                        required,
                        head,
                        body,
                        exchange,
                    ))
                    .await;
                }
                return Err(rejection);
            }
        };
        // … and quotas once the caller is known and authorized: refused requests are not charged.
        route.check_quotas(&permit, head, &body, exchange).await?;
        route.action.run(permit, head, body, exchange, self, gateway).await
    }

    /// Reads the host of a request, and the readings of its path.
    fn read_target(
        &self,
        head: &mut Parts,
        exchange: &mut Exchange,
    ) -> Result<(Box<str>, PathReadings), Rejection> {
        request_body::check_framing(head)?;
        if head.version == Version::HTTP_2 {
            if !request_body::is_well_formed_http2(head) {
                return Err(Rejection::BadRequest);
            }
            // The crumbs of a `Cookie` field are one field, however many there are (RFC 9113 §8.2.3).
            headers::merge_cookie_fields(&mut head.headers);
            // The parser of HTTP/1 has checked its own.
            headers::check_size(head, &self.server)?;
        }
        let host = host::read(head)?;
        exchange.host = host.authority;
        if request_body::is_asterisk_form(head) {
            return Ok((host.name, PathReadings::only("*".to_owned())));
        }
        Ok((host.name, match_route::read_path(&mut head.uri)?))
    }

    /// Finds the route of a request, or those that a preflight concerns.
    fn find(
        &self,
        host: &str,
        head: &Parts,
        readings: &PathReadings,
        exchange: &Exchange,
    ) -> Result<Found<'_, Route>, Rejection> {
        let own = if self.matches_gateway_fields {
            self.gateway_fields(head, exchange)
        } else {
            HeaderMap::new()
        };
        let answers_preflights = |route: &Route| route.cors.is_some();
        match_route::find(&self.router, host, head, readings, &own, answers_preflights)
    }

    /// Checks that the destination of a request leads to the route of the request, and keeps the destination for the
    /// action.
    fn check_destination(
        &self,
        mut destination: Destination,
        route: &Arc<Route>,
        host: &str,
        head: &mut Parts,
        exchange: &Exchange,
    ) -> Result<(), Rejection> {
        let readings = match_route::read_path(&mut destination.target)?;
        let own = core::mem::replace(&mut head.uri, destination.target.clone());
        let found = self.find(host, head, &readings, exchange);
        head.uri = own;
        match found {
            Ok(Found::Route(other)) if Arc::ptr_eq(route, other) => {
                head.extensions.insert(destination);
                Ok(())
            }
            Err(Rejection::AmbiguousPath) => Err(Rejection::AmbiguousPath),
            _ => Err(Rejection::Forbidden),
        }
    }

    /// Returns the header fields that the gateway sets whatever the route, in place of the client's.
    fn gateway_fields(&self, head: &Parts, exchange: &Exchange) -> HeaderMap {
        let mut own = HeaderMap::new();
        let mut fields = ExtraHeaders::new();
        exchange.forwarded().write(&mut fields, self.server.forwarded_headers);
        fields.add(&self.server.request_id_header, &exchange.request_id);
        fields.merge_into(&mut own);
        if let Some(protocol) =
            exchange.stripped.upgrade.as_ref().filter(|_| head.method == Method::GET)
            && websocket::is_websocket(protocol)
        {
            own.insert(UPGRADE, protocol.clone());
            own.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        }
        own
    }

    /// Logs a path that was refused for its ambiguous readings.
    fn warn_of_ambiguous_path(&self, exchange: &Exchange, path: &str) {
        if self.may_warn(exchange) {
            let host = exchange.host.as_ref().and_then(|host| host.to_str().ok());
            tracing::warn!(
                request_id = exchange.request_id.to_str().unwrap_or_default(),
                host,
                path,
                "Refused an ambiguous path: upstreams could read it as another one; `northgate explain` shows its readings."
            );
        }
    }

    /// Whether a warning that any client can cause is due: at most one a second.
    fn may_warn(&self, exchange: &Exchange) -> bool {
        self.may_warn_at(exchange.moment.uptime)
    }

    fn may_warn_at(&self, uptime: Duration) -> bool {
        let now = uptime.as_secs() + 1;
        self.last_warning.swap(now, Relaxed) != now
    }

    /// Whether revocations are published to other instances.
    pub const fn is_shared(&self) -> bool {
        self.revocation_sync.is_some()
    }

    /// Waits up to `timeout` for the revocations that other instances published through Redis.
    pub async fn receive_revocations(&self, timeout: Duration) {
        if let Some(sync) = &self.revocation_sync
            && !sync.wait_for_initial_sync(timeout).await
        {
            tracing::warn!(
                "Could not receive the revocations of other instances: Redis did not respond in time; their revocations are not enforced yet."
            );
        }
    }

    /// Waits up to `timeout` until pending revocations are published to other instances.
    pub async fn publish_revocations(&self, timeout: Duration) {
        if let Some(sync) = &self.revocation_sync {
            sync.flush(timeout).await;
        }
    }
}

/// Responds to a preflight, which carries no credentials, for all routes that its request may take.
fn preflight(
    routes: &PreflightRoutes<'_, Route>,
    head: &Parts,
    exchange: &mut Exchange,
) -> Result<Response<Body>, Rejection> {
    let Some(first) = routes.possible.first() else { return Err(Rejection::NoRoute) };
    exchange.preflight_for(first);
    if first.is_disabled() {
        return Err(Rejection::NoRoute);
    }
    let possible: Option<Vec<_>> = routes.possible.iter().map(|route| route.grants()).collect();
    let others = routes.others.iter().map(|(route, takes)| (route.grants(), *takes));
    let others: Vec<_> = others.collect();
    Ok(cors::preflight(&possible.unwrap_or_default(), &others, &head.headers))
}

impl Route {
    /// Whether the route is disabled: its policies are not applied then.
    const fn is_disabled(&self) -> bool {
        matches!(self.action, Action::Disabled)
    }

    /// Returns the CORS policy by which pages may send requests that the route serves.
    fn grants(&self) -> Option<&Cors> {
        self.cors.as_ref().filter(|_| !self.is_disabled())
    }

    /// Whether it serves the paths of a session: login, logout, status.
    const fn serves_a_session(&self) -> bool {
        matches!(self.action, Action::Session(_))
    }

    /// Returns the name of the upstream that requests are forwarded to, if any.
    fn upstream(&self) -> Option<&str> {
        match &self.action {
            Action::Forward(forward) => Some(&forward.receiver.upstream.settings().name),
            Action::Respond(..) | Action::Jwks(_) | Action::Session(_) | Action::Disabled => None,
        }
    }
}

/// The state that all threads share.
#[derive(Debug)]
pub struct Shared {
    /// The snapshot that new requests use.
    pub snapshot: ArcSwap<Snapshot>,
    /// The state that outlives every reload.
    pub retained: RetainedState,
    /// The access log.
    pub log: AccessLog,
    in_flight: AtomicUsize,
}

impl Shared {
    /// Serves from `snapshot` until it is replaced.
    pub fn new(snapshot: Snapshot, retained: RetainedState, log: AccessLog) -> Self {
        upstream::maintain(&retained.upstreams, snapshot.upstreams.iter(), &retained.control);
        Self {
            snapshot: ArcSwap::from_pointee(snapshot),
            retained,
            log,
            in_flight: AtomicUsize::new(0),
        }
    }

    /// Serves new requests from `snapshot`; requests under way keep theirs to their end.
    pub fn replace(&self, snapshot: Snapshot) {
        let retained = &self.retained;
        upstream::maintain(&retained.upstreams, snapshot.upstreams.iter(), &retained.control);
        self.snapshot.store(Arc::new(snapshot));
    }
}

/// The gateway on one thread: the shared state, and this thread's idle upstream connections and open streams. Cheap
/// to clone; deliberately not `Send`.
#[derive(Clone, Debug)]
pub struct Gateway {
    shared: Arc<Shared>,
    idle: IdlePool,
    streams: StreamRegistry,
    /// Work of this thread's requests that goes on when their clients have left.
    unfinished: InFlightCalls,
}

impl Gateway {
    /// Creates the gateway of this thread.
    pub fn new(shared: Arc<Shared>) -> Self {
        let (idle, streams) = (IdlePool::default(), StreamRegistry::default());
        Self { shared, idle, streams, unfinished: InFlightCalls::default() }
    }

    /// Returns the state that all threads share.
    pub const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Handles one request. There is always a response; metrics and access log count it when its content ends or is
    /// dropped. Interim responses before it go to `interim`.
    pub async fn serve(
        &self,
        peer: Rc<Peer>,
        interim: Option<Rc<dyn InterimSink>>,
        request: Request<Body>,
    ) -> Response<Body> {
        let snapshot = self.shared.snapshot.load_full();
        let (mut head, mut body) = request.into_parts();
        let resumed =
            if snapshot.defers_forms { snapshot.resume_form(&mut head).await } else { None };
        if let Some(form) = &resumed {
            body = form.content();
        }
        let mut exchange = Box::new(Exchange::begin(&self.shared, &snapshot, peer, &head));
        exchange.interim = interim;
        exchange.arrival = resumed.as_ref().map(ResumedForm::arrival);
        let opens_tunnel = head.extensions.get::<OpensTunnel>().is_some();
        let mut outcome =
            match RequestPermit::acquire(&self.shared, snapshot.server.max_requests_in_flight) {
                Some(permit) => {
                    exchange.in_flight = Some(permit);
                    snapshot.handle(&mut exchange, &mut head, body, self).await
                }
                None => Err(Rejection::Overloaded),
            };
        if matches!(outcome, Err(Rejection::AmbiguousPath)) {
            snapshot.warn_of_ambiguous_path(&exchange, &raw_target::escaped(head.uri.path()));
        }
        if opens_tunnel && outcome.as_ref().is_ok_and(|response| response.status().is_success()) {
            outcome = Err(if exchange.outcome.is_of_upstream() {
                Rejection::Upstream(UpstreamError::Invalid(InvalidResponse::NoUpgrade))
            } else {
                Rejection::UnknownProtocol
            });
        }
        if let Some(form) = resumed {
            exchange.settle_form(form, outcome.is_err());
        }
        let response = outcome.unwrap_or_else(|rejection| exchange.reject(&rejection));
        exchange.set_deferred_cookies().await;
        exchange.finish(response)
    }

    /// Responds to a request head that could not be parsed. `head` is what could be read all the same: its fields
    /// decide whether the client wants a page, its method whether the response has content. The target counts as
    /// unreadable.
    pub fn reject_head(
        &self,
        peer: Rc<Peer>,
        head: &Parts,
        rejection: &Rejection,
    ) -> Response<Body> {
        let snapshot = self.shared.snapshot.load_full();
        let mut exchange = Box::new(Exchange::begin(&self.shared, &snapshot, peer, head));
        exchange.forget_target();
        let response = exchange.reject(rejection);
        exchange.finish(response)
    }

    /// Returns the response after a panic, which is in the log with its cause.
    pub fn internal_error(&self) -> Response<Body> {
        let request_id = panicked::take().unwrap_or(HeaderValue::from_static("unknown"));
        let challenges = AuthChallenges::default();
        let format = ResponseFormat::default();
        let mut response =
            problem::respond(&Rejection::Internal, &challenges, false, format, &request_id, None);
        let name = self.shared.snapshot.load().server.request_id_header.clone();
        response.headers_mut().insert(name, request_id);
        response
    }

    /// Logs a connection that was closed because its client's address has too many.
    pub fn warn_of_refused_connection(&self, client: IpAddr) {
        if self.shared.snapshot.load().may_warn_at(self.shared.retained.clock.uptime()) {
            tracing::warn!(%client, "Closed a connection: the client's address has max_connections_per_ip connections.");
        }
    }

    /// Counts and logs an error of an HTTP/2 client, answered by a reset of `stream`, or, with 0, by the end of the
    /// connection, before an exchange began.
    pub fn record_protocol_error(&self, client: IpAddr, stream: u32, error: &str) {
        let snapshot = self.shared.snapshot.load();
        snapshot.unmatched.rejected(Rejected::BadRequest);
        if snapshot.may_warn_at(self.shared.retained.clock.uptime()) {
            tracing::warn!(
                %client,
                stream,
                error,
                "Refused a malformed HTTP/2 request or frame; the stream was reset, or the connection closed."
            );
        }
    }

    /// Waits until all is done that requests of this thread have left to do when their clients left. To be called when
    /// no connection is open.
    pub async fn finish(&self) {
        self.unfinished.all_ended(Duration::MAX).await;
    }

    /// Closes idle upstream connections that are too old, and ends streams whose token has expired. To be called a
    /// few times a second.
    pub fn sweep(&self) {
        self.idle.sweep(self.shared.retained.clock.uptime());
        self.streams.sweep(self.shared.retained.clock.now());
    }

    /// Ends this thread's gRPC calls whose response has begun, each with a status.
    pub fn end_calls(&self) {
        self.streams.end_calls();
    }

    /// Ends this thread's streams when their token or session is revoked. To be run as long as the thread serves.
    pub async fn watch_revocations(&self) {
        self.streams.watch_revocations(&self.shared.retained.revocations).await;
    }
}

/// A permit for one request in flight, released when dropped.
#[derive(Debug)]
struct RequestPermit(Arc<Shared>);

impl RequestPermit {
    fn acquire(shared: &Arc<Shared>, max: Option<usize>) -> Option<Self> {
        let permit = Self(Arc::clone(shared));
        let before = shared.in_flight.fetch_add(1, Relaxed);
        max.is_none_or(|max| before < max).then_some(permit)
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}
