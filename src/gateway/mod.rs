//! The processing of one request (floor 6). Start with `Snapshot::handle`.
//!
//! A [`Snapshot`] is everything needed to serve requests, compiled from one configuration; immutable, and replaced as
//! a whole. A [`Gateway`] serves the requests of one thread. An [`Exchange`] is the state of one request and its
//! response; it knows no stage, only what stages and responses need of a snapshot (`stage_context`) and of its route
//! (`routing::route_properties`). Every refusal is a [`Rejection`]; `response::problem` alone turns rejections into
//! responses.

mod compile;
mod deferred_form;
mod exchange;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
mod peer;
mod policy;
mod process_state;
mod proxy;
mod request;
mod response;
mod retained_state;
mod routing;
mod service;
mod shared;
mod snapshot;
mod stage_context;
mod thread_state;
pub mod view;
mod well_known;

use core::net::IpAddr;
use core::time::Duration;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};

pub use self::compile::{CompileError, compile};
pub use self::exchange::Exchange;
use self::exchange::panicked;
pub use self::peer::Peer;
use self::policy::cors;
use self::process_state::RequestPermit;
use self::proxy::references::References;
use self::proxy::websocket;
use self::request::headers;
use self::request::host;
use self::request::path_readings::PathReadings;
use self::request::request_body;
use self::request::request_body::BodyLimits;
pub use self::request::request_body::{FramingError, OpensTunnel, UnknownProtocol};
use self::response::compression::ResponseCompression;
use self::response::https_redirect;
use self::response::problem::{self, AuthChallenges, ResponseFormat};
pub use self::response::rejection::{Challenge, Rejection};
pub use self::retained_state::RetainedState;
use self::routing::match_route;
use self::routing::match_route::{Found, PreflightRoutes};
pub use self::service::ClientAddress;
pub use self::shared::Shared;
pub use self::snapshot::{Route, Snapshot};
use self::thread_state::ThreadState;
use crate::base::body::Body;
use crate::base::interim_sink::InterimSink;
use crate::base::raw_target;
use crate::observe::metrics::Rejected;
use crate::session::ResumedForm;
use crate::upstream::{ExtraHeaders, InvalidResponse, UpstreamError};

impl Snapshot {
    /// Takes one request through its route. The order of the stages is the security policy and not configurable.
    async fn handle(
        &self,
        exchange: &mut Exchange,
        head: &mut Parts,
        body: Body,
        thread: &ThreadState,
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
        exchange.stripped =
            headers::strip_untrusted(&mut head.headers, &self.context.reserved, trusted);
        let route = match self.find(&host, head, &readings, exchange)? {
            Found::Route(route) => route,
            Found::Preflight(routes) => return preflight(&routes, head, exchange),
        };
        exchange.stripped.restore_upgrade(&mut head.headers);
        exchange.matched(&route.properties, head);
        if route.properties.is_disabled {
            return Err(Rejection::NoRoute);
        }
        if let Some(references) = References::read(head, exchange.host.as_ref())? {
            self.check_references(references, route, &host, head, exchange)?;
        }
        exchange.compression = ResponseCompression::negotiate(&route.compress, &head.headers);
        // A request that is refused for its declared size is not charged to any limit.
        if route.max_body_size.is_some_and(|max| http_body::Body::size_hint(&body).lower() > max) {
            return Err(Rejection::BodyTooLarge);
        }
        // Limits that protect the upstream apply before any cryptography is spent on the caller…
        route.properties.check_spike_arrest(head, &body, exchange).await?;
        let caller = route.authenticate.check(head, exchange).await?;
        let auth_method = caller.auth_method();
        let permit = match route.authorize.check(caller, exchange) {
            Ok(permit) => permit,
            Err(rejection) => {
                if let Rejection::InsufficientAuthentication { required } = &rejection {
                    let body = exchange.receive(
                        body,
                        BodyLimits::of(&self.context.server),
                        &self.context.reserved,
                    )?;
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
        route.properties.check_quotas(&permit, head, &body, exchange).await?;
        route.action.run(permit, head, body, exchange, &self.context, thread).await
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
            headers::check_size(head, &self.context.server)?;
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
        let answers_preflights = |route: &Route| route.properties.cors.is_some();
        match_route::find(&self.router, host, head, readings, &own, answers_preflights)
    }

    /// Checks that the references of a request lead to the route of the request, and keeps them for the action.
    fn check_references(
        &self,
        mut references: References,
        route: &Arc<Route>,
        host: &str,
        head: &mut Parts,
        exchange: &Exchange,
    ) -> Result<(), Rejection> {
        for target in references.targets() {
            let readings = match_route::read_path(target)?;
            let own = core::mem::replace(&mut head.uri, target.clone());
            let found = self.find(host, head, &readings, exchange);
            head.uri = own;
            match found {
                Ok(Found::Route(other)) if Arc::ptr_eq(route, other) => {}
                Err(Rejection::AmbiguousPath) => return Err(Rejection::AmbiguousPath),
                _ => return Err(Rejection::Forbidden),
            }
        }
        head.extensions.insert(references);
        Ok(())
    }

    /// Returns the header fields that the gateway sets whatever the route, in place of the client's.
    fn gateway_fields(&self, head: &Parts, exchange: &Exchange) -> HeaderMap {
        let mut own = HeaderMap::new();
        let mut fields = ExtraHeaders::new();
        exchange.forwarded().write(&mut fields, self.context.server.forwarded_headers);
        fields.add(&self.context.server.request_id_header, &exchange.request_id);
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
        if self.context.may_warn(exchange.moment.uptime) {
            let host = exchange.host.as_ref().and_then(|host| host.to_str().ok());
            tracing::warn!(
                request_id = exchange.request_id.to_str().unwrap_or_default(),
                host,
                path,
                "Refused an ambiguous path: upstreams could read it as another one; `northgate explain` shows its readings."
            );
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
    exchange.preflight_for(&first.properties);
    if first.properties.is_disabled {
        return Err(Rejection::NoRoute);
    }
    let possible: Option<Vec<_>> = routes.possible.iter().map(|route| route.grants()).collect();
    let others = routes.others.iter().map(|(route, takes)| (route.grants(), *takes));
    let others: Vec<_> = others.collect();
    Ok(cors::preflight(&possible.unwrap_or_default(), &others, &head.headers))
}

/// The gateway on one thread: the shared state, and this thread's idle upstream connections and open streams. Cheap
/// to clone; deliberately not `Send`.
#[derive(Clone, Debug)]
pub struct Gateway {
    shared: Arc<Shared>,
    thread: ThreadState,
}

impl Gateway {
    /// Creates the gateway of this thread.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, thread: ThreadState::default() }
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
        let mut exchange = self.begin(&snapshot, peer, &head);
        exchange.interim = interim;
        exchange.arrival = resumed.as_ref().map(ResumedForm::arrival);
        let opens_tunnel = head.extensions.get::<OpensTunnel>().is_some();
        let mut outcome = match RequestPermit::acquire(
            &self.shared.process,
            snapshot.server().max_requests_in_flight,
        ) {
            Some(permit) => {
                exchange.in_flight = Some(permit);
                snapshot.handle(&mut exchange, &mut head, body, &self.thread).await
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

    fn begin(&self, snapshot: &Arc<Snapshot>, peer: Rc<Peer>, head: &Parts) -> Box<Exchange> {
        let (process, snapshot) = (Arc::clone(&self.shared.process), Arc::clone(snapshot));
        Box::new(Exchange::begin(process, snapshot, peer, head))
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
        let mut exchange = self.begin(&snapshot, peer, head);
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
        let name = self.shared.snapshot.load().server().request_id_header.clone();
        response.headers_mut().insert(name, request_id);
        response
    }

    /// Logs a connection that was closed because its client's address has too many.
    pub fn warn_of_refused_connection(&self, client: IpAddr) {
        if self.shared.snapshot.load().context.may_warn(self.shared.retained().clock.uptime()) {
            tracing::warn!(%client, "Closed a connection: the client's address has max_connections_per_ip connections.");
        }
    }

    /// Counts and logs an error of an HTTP/2 client, answered by a reset of `stream`, or, with 0, by the end of the
    /// connection, before an exchange began.
    pub fn record_protocol_error(&self, client: IpAddr, stream: u32, error: &str) {
        let snapshot = self.shared.snapshot.load();
        snapshot.context.unmatched.rejected(Rejected::BadRequest);
        if snapshot.context.may_warn(self.shared.retained().clock.uptime()) {
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
        self.thread.unfinished.all_ended(Duration::MAX).await;
    }

    /// Closes idle upstream connections that are too old, and ends streams whose token has expired. To be called a
    /// few times a second.
    pub fn sweep(&self) {
        self.thread.idle.sweep(self.shared.retained().clock.uptime());
        self.thread.streams.sweep(self.shared.retained().clock.now());
    }

    /// Ends this thread's gRPC calls whose response has begun, each with a status.
    pub fn end_calls(&self) {
        self.thread.streams.end_calls();
    }

    /// Ends this thread's streams when their token or session is revoked. To be run as long as the thread serves.
    pub async fn watch_revocations(&self) {
        self.thread.streams.watch_revocations(&self.shared.retained().revocations).await;
    }
}
