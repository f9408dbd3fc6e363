//! Floor 6: the life of one request. Read `Snapshot::handle` first.
//!
//! A [`Snapshot`] is everything a request needs, compiled from one
//! configuration, immutable, and swapped whole. A [`Gateway`] is what one
//! thread serves requests with. An [`Exchange`] is one request's memory.
//! Whatever the gateway refuses is a [`Rejection`], and becomes a response in
//! `problem` and nowhere else.

mod compile;
mod exchange;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
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
use self::proxy::websocket;
use self::request::headers;
use self::request::host;
use self::request::request_body;
use self::response::https_redirect;
use self::routing::match_route;
use core::cell::RefCell;
use core::net::IpAddr;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU64, AtomicUsize};
use core::time::Duration;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::header::{CONNECTION, ORIGIN, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use tokio::task::JoinHandle;

pub use self::compile::{CompileError, compile};
pub use self::exchange::Exchange;
use self::policy::authenticate::Authenticate;
use self::policy::authorize::Authorize;
use self::proxy::stream_guard::StreamRegistry;
use self::request::path_readings::PathReadings;
pub use self::request::request_body::FramingError;
pub use self::response::rejection::{Challenge, Rejection};
pub use self::retained_state::RetainedState;
use self::routing::action::Action;
use self::routing::match_route::Found;
use self::routing::route::Router;
pub use self::service::ClientAddress;
use crate::base::body::Body;
use crate::config::reserved_headers::ReservedHeaders;
use crate::config::route::Cors;
use crate::config::server::Server;
use crate::issuer::Issuer;
use crate::limit;
use crate::observe::log::AccessLog;
use crate::observe::metrics::{Rejected, RouteMetrics};
use crate::revocation_sync::RevocationSync;
use crate::session::Sessions;
use crate::upstream::{ExtraHeaders, IdlePool, Upstream};

/// Everything a request needs, compiled from one configuration. Immutable; swapped whole.
#[derive(Debug)]
pub struct Snapshot {
    router: Router<Route>,
    sessions: Vec<Arc<Sessions>>,
    /// The authorization servers that routes rely on.
    issuers: Vec<Arc<Issuer>>,
    upstreams: Vec<Arc<Upstream>>,
    /// Those that this gateway shares a Redis with.
    fleet: Option<Arc<RevocationSync>>,
    /// Fields that only the gateway may say to services, on every route.
    reserved: ReservedHeaders,
    /// Bounds and habits that hold for every request.
    pub server: Server,
    /// Counts requests that no route takes.
    unmatched: Arc<RouteMetrics>,
    /// Whether a route is chosen by fields that the gateway says itself.
    matches_own_fields: bool,
    /// The last second, from 1, in which a warning was written that any client can cause.
    warned: AtomicU64,
    /// The hash of the configuration it was compiled from.
    pub hash: String,
}

/// One route, ready to run: the stages in the order in which `Snapshot::handle` runs them.
#[derive(Debug)]
pub struct Route {
    /// Its name in the file; a metric label.
    pub id: Arc<str>,
    cors: Option<Cors>,
    authenticate: Authenticate,
    authorize: Authorize,
    /// Those by address, route or globally before any cryptography, all others after authorization.
    limits: limit::RouteLimits,
    action: Action,
    /// Bytes of a request's body; `None` is no limit.
    max_body_size: Option<u64>,
    security_headers: bool,
    access_log: bool,
    metrics: Arc<RouteMetrics>,
}

impl Snapshot {
    /// Takes one request through its route. The order is the security policy; it is not configurable.
    async fn handle(
        &self,
        exchange: &mut Exchange,
        head: &mut Parts,
        body: Body,
        on: &Gateway,
    ) -> Result<Response<Body>, Rejection> {
        let (host, readings) = self.read_target(head, exchange)?;
        if request_body::is_asterisk_form(head) {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            return Ok(response);
        }
        if let Some(port) = exchange.peer.redirect_https {
            return https_redirect::to_https(&host, port, &head.uri);
        }
        // Nothing below decides by a field that the service will not see.
        let trusted = exchange.said.is_some();
        exchange.scrubbed = headers::strip_untrusted(&mut head.headers, &self.reserved, trusted);
        let route = match self.find(&host, head, &readings, exchange)? {
            Found::Route(route) => route,
            Found::Preflight(routes) => return preflight(&routes, head, exchange),
        };
        exchange.scrubbed.say_upgrade(&mut head.headers);
        exchange.matched(route, head);
        if route.is_absent() {
            return Err(Rejection::NoRoute);
        }
        // What is too large to be taken is no charge on any limit.
        if route.max_body_size.is_some_and(|most| http_body::Body::size_hint(&body).lower() > most)
        {
            return Err(Rejection::BodyTooLarge);
        }
        // What a service can survive is asked before any cryptography is spent on a caller…
        route.check_spike_arrest(head, &body, exchange)?;
        let caller = route.authenticate.check(head, exchange).await?;
        let permit = route.authorize.check(caller, exchange)?;
        // … and what a client has bought once it is known who and whether it may: refused requests are free.
        route.check_quotas(&permit, head, &body, exchange)?;
        route.action.run(permit, head, body, exchange, self, on).await
    }

    /// Reads a request's host, and its path in every way in which services could.
    fn read_target(
        &self,
        head: &mut Parts,
        exchange: &mut Exchange,
    ) -> Result<(Box<str>, PathReadings), Rejection> {
        request_body::check_framing(head)?;
        // HTTP/1 was counted while it was read.
        if head.headers.len() > self.server.max_headers {
            return Err(Rejection::HeadTooLarge);
        }
        if head.version == Version::HTTP_2 {
            if !request_body::is_well_formed_http2(head) {
                return Err(Rejection::BadRequest);
            }
            headers::merge_cookie_fields(&mut head.headers);
        }
        let host = host::read(head)?;
        exchange.host = host.authority;
        if request_body::is_asterisk_form(head) {
            return Ok((host.name, PathReadings::only("*".to_owned())));
        }
        Ok((host.name, match_route::read_path(&mut head.uri)?))
    }

    /// The route of a request, or those that a preflight asks about.
    fn find(
        &self,
        host: &str,
        head: &Parts,
        readings: &PathReadings,
        exchange: &Exchange,
    ) -> Result<Found<'_, Route>, Rejection> {
        let said = if self.matches_own_fields {
            self.own_fields(head, exchange)
        } else {
            HeaderMap::new()
        };
        let answers_preflights = |route: &Route| route.cors.is_some();
        match_route::find(&self.router, host, head, readings, &said, answers_preflights)
    }

    /// What the gateway will say to the service in the client's place, as far as no route decides it.
    fn own_fields(&self, head: &Parts, exchange: &Exchange) -> HeaderMap {
        let mut own = HeaderMap::new();
        let mut fields = ExtraHeaders::new();
        exchange.forwarded().write(&mut fields, self.server.forwarded_headers);
        fields.add(&self.server.request_id_header, &exchange.request_id);
        fields.merge_into(&mut own);
        if let Some(protocol) =
            exchange.scrubbed.upgrade.as_ref().filter(|_| head.method == Method::GET)
            && websocket::is_websocket(protocol)
        {
            own.insert(UPGRADE, protocol.clone());
            own.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        }
        own
    }

    /// Tells the operator of a path that was refused for what services could read in it.
    fn warn_of_ambiguous_path(&self, exchange: &Exchange, path: &str) {
        if self.may_warn(exchange) {
            let host = exchange.host.as_ref().and_then(|host| host.to_str().ok());
            tracing::warn!(
                request_id = exchange.request_id.to_str().unwrap_or_default(),
                host,
                path,
                "Refused a path that services could read as another one; `northgate explain` shows its readings."
            );
        }
    }

    /// Whether a warning that any client can cause is due again.
    fn may_warn(&self, exchange: &Exchange) -> bool {
        let now = exchange.moment.uptime.as_secs() + 1;
        self.warned.swap(now, Relaxed) != now
    }
}

impl Snapshot {
    /// The issuers that routes rely on, and whether each has answered since the start.
    pub fn issuers(&self) -> impl Iterator<Item = (&str, bool)> {
        self.issuers.iter().map(|issuer| (&**issuer.name(), issuer.has_responded()))
    }

    /// The names of the issuers that have this name in the file, or this `iss`.
    pub fn issuers_called(&self, called: &str) -> impl Iterator<Item = Arc<str>> {
        self.issuers
            .iter()
            .filter(move |issuer| {
                **issuer.name() == *called || *issuer.settings().issuer == *called
            })
            .map(|issuer| Arc::clone(issuer.name()))
    }
}

impl Snapshot {
    /// Whether other gateways are told what is revoked.
    pub const fn is_shared(&self) -> bool {
        self.fleet.is_some()
    }

    /// Learns what other gateways of the same Redis have revoked, as long as `patience` lasts at the most.
    pub async fn catch_up(&self, patience: Duration) {
        if let Some(fleet) = &self.fleet
            && !fleet.wait_for_initial_sync(patience).await
        {
            tracing::warn!(
                "Redis does not answer: what other gateways have revoked is not known yet."
            );
        }
    }

    /// Tells other gateways what they have not been told yet, as long as `patience` lasts at the most.
    pub async fn settle(&self, patience: Duration) {
        if let Some(fleet) = &self.fleet {
            fleet.flush(patience).await;
        }
    }
}

/// Answers a preflight, which carries no credentials, for all routes that its request may take.
fn preflight(
    routes: &[&Arc<Route>],
    head: &Parts,
    exchange: &mut Exchange,
) -> Result<Response<Body>, Rejection> {
    let Some(first) = routes.first() else { return Err(Rejection::NoRoute) };
    exchange.preflight_for(first);
    if first.is_absent() {
        return Err(Rejection::NoRoute);
    }
    let cors: Vec<_> =
        routes.iter().map(|route| route.cors.as_ref().filter(|_| !route.is_absent())).collect();
    Ok(cors::preflight(&cors, head.headers.get(ORIGIN)))
}

impl Route {
    /// Whether it is switched off: nothing of it is asked then.
    const fn is_absent(&self) -> bool {
        matches!(self.action, Action::Disabled)
    }

    /// The name of the service that requests go to, if they go to one.
    fn upstream(&self) -> Option<&str> {
        match &self.action {
            Action::Forward(forward) => Some(&forward.upstream.settings().name),
            Action::Respond { .. } | Action::Jwks(_) | Action::Session(_) | Action::Disabled => {
                None
            }
        }
    }
}

/// What all threads share.
#[derive(Debug)]
pub struct Shared {
    /// The snapshot that new requests get.
    pub snapshot: ArcSwap<Snapshot>,
    /// What outlives every reload.
    pub kept: RetainedState,
    /// Where requests are recorded.
    pub log: AccessLog,
    in_flight: AtomicUsize,
}

impl Shared {
    /// Serves from `snapshot` until it is swapped.
    pub fn new(snapshot: Snapshot, kept: RetainedState, log: AccessLog) -> Self {
        Self {
            snapshot: ArcSwap::from_pointee(snapshot),
            kept,
            log,
            in_flight: AtomicUsize::new(0),
        }
    }
}

/// The gateway on one thread: what all threads share, and this thread's idle upstream connections.
/// Cheap to clone; not `Send`, on purpose.
#[derive(Clone, Debug)]
pub struct Gateway {
    shared: Arc<Shared>,
    idle: IdlePool,
    streams: StreamRegistry,
}

/// Who is connected.
#[derive(Debug)]
pub struct Peer {
    /// The other side's address; IPv4 also where it came mapped into IPv6.
    pub ip: IpAddr,
    /// The same, as a field value.
    pub address: HeaderValue,
    /// The version of TLS, if the connection is encrypted.
    pub tls: Option<&'static str>,
    /// Whether the connection is encrypted.
    pub secure: bool,
    /// SHA-256 of the certificate that the client has shown in the handshake, if it has shown one.
    pub certificate: Option<[u8; 32]>,
    /// Where to send clients that should have come over TLS: the port.
    pub redirect_https: Option<u16>,
    /// What became of the connection if it is no longer HTTP.
    upgraded: RefCell<Option<JoinHandle<()>>>,
}

impl Peer {
    /// Somebody at `ip`, in the clear.
    pub fn new(ip: IpAddr) -> Self {
        let ip = ip.to_canonical();
        let address =
            HeaderValue::try_from(ip.to_string()).unwrap_or(HeaderValue::from_static("unknown"));
        let upgraded = RefCell::default();
        Self {
            ip,
            address,
            tls: None,
            secure: false,
            certificate: None,
            redirect_https: None,
            upgraded,
        }
    }
}

impl Peer {
    /// Waits until an upgraded connection has ended, if this is one. To be called when HTTP is over.
    pub async fn wait_for_tunnel(&self) {
        let upgraded = self.upgraded.take();
        if let Some(upgraded) = upgraded
            && upgraded.await.is_err()
        {
            tracing::error!("An upgraded connection ended in a panic.");
        }
    }
}

impl Gateway {
    /// A gateway for this thread.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, idle: IdlePool::default(), streams: StreamRegistry::default() }
    }

    /// What all threads share.
    pub const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Answers one request. Whatever happens, there is an answer, and it is counted and recorded
    /// when its body ends or is dropped.
    pub async fn serve(&self, peer: Rc<Peer>, request: Request<Body>) -> Response<Body> {
        let snapshot = self.shared.snapshot.load_full();
        let (mut head, body) = request.into_parts();
        let mut exchange = Box::new(Exchange::begin(&self.shared, &snapshot, peer, &head));
        let outcome =
            match InFlightPermit::take(&self.shared, snapshot.server.max_requests_in_flight) {
                Some(place) => {
                    exchange.place = Some(place);
                    snapshot.handle(&mut exchange, &mut head, body, self).await
                }
                None => Err(Rejection::Overloaded),
            };
        if matches!(outcome, Err(Rejection::AmbiguousPath)) {
            snapshot.warn_of_ambiguous_path(&exchange, head.uri.path());
        }
        let response = outcome.unwrap_or_else(|rejection| exchange.reject(&rejection));
        exchange.renew_cookies().await;
        exchange.finish(response)
    }

    /// Answers what could not be read as a request.
    pub fn reject_unparsable(&self, peer: Rc<Peer>, rejection: &Rejection) -> Response<Body> {
        let snapshot = self.shared.snapshot.load_full();
        let (head, ()) = Request::new(()).into_parts();
        let mut exchange = Box::new(Exchange::begin(&self.shared, &snapshot, peer, &head));
        exchange.is_parse_failure();
        let response = exchange.reject(rejection);
        exchange.finish(response)
    }

    /// Counts what could not be read as a request, and was answered before it became one.
    pub fn record_parse_error(&self, too_large: bool) {
        let reason = if too_large { Rejected::HeaderSize } else { Rejected::BadRequest };
        self.shared.snapshot.load().unmatched.rejected(reason);
    }

    /// Drops connections to services that are too old, and ends streams whose token has ended; to
    /// be called a few times a second.
    pub fn sweep(&self) {
        self.idle.sweep(self.shared.kept.clock.uptime());
        self.streams.sweep(self.shared.kept.clock.now());
    }

    /// Ends this thread's streams when what opened them is revoked; to be run as long as it serves.
    pub async fn watch_revocations(&self) {
        self.streams.watch_revocations(&self.shared.kept.revocations).await;
    }
}

/// A place among the requests in flight, free again when dropped.
#[derive(Debug)]
struct InFlightPermit(Arc<Shared>);

impl InFlightPermit {
    fn take(shared: &Arc<Shared>, most: Option<usize>) -> Option<Self> {
        let place = Self(Arc::clone(shared));
        let before = shared.in_flight.fetch_add(1, Relaxed);
        most.is_none_or(|most| before < most).then_some(place)
    }
}

impl Drop for InFlightPermit {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}
