//! Upstreams: load balancing, health, retries, and clients of HTTP/1.1 and HTTP/2 (floor 2).
//!
//! An *upstream* is a service; an *endpoint* is one address of it. A request is sent (`request`) on one of this thread's
//! idle connections (`connections`) to the endpoint that `balancing` selects, or on a new one, and again within the
//! budget of retries. The control runtime resolves names and checks endpoints (`health`);
//! workers read the result without a lock. The HTTP/1.1 client (`http1`) is written for the gateway, because it is the
//! largest part of a request's cost: a connection belongs to the request that uses it, so there is no second task and
//! no channel between them. In HTTP/2 (`http2`, with the `h2` crate) a connection is shared by many requests.

mod attempt_error;
mod balancing;
mod connections;
mod error;
mod health;
mod http1;
mod http2;
mod registry;
mod request;
mod settings;

use core::fmt;
use core::sync::atomic::AtomicUsize;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

pub use self::balancing::endpoint::Endpoint;
use self::balancing::endpoint::{Dial, EndpointKey};
use self::balancing::endpoint_set::{EndpointSet, Member};
use self::balancing::load_balancer::scatter;
pub use self::connections::connect::enable_keep_alive;
pub use self::connections::idle_pool::IdlePool;
use self::connections::tls_connectors::TlsParts;
pub use self::error::{InvalidResponse, UpstreamError};
use self::health::circuit_breaker::CircuitBreaker;
pub use self::health::circuit_breaker::CircuitState;
pub use self::health::endpoint_health::EndpointState;
pub use self::health::maintenance::maintain;
use self::health::passive_health::PassiveHealth;
pub(crate) use self::http1::CloseDelimited;
#[cfg(fuzzing)]
pub use self::http1::fuzz;
#[cfg(fuzzing)]
pub use self::http2::fuzz as http2_fuzz;
use self::registry::ResolvedName;
pub use self::registry::UpstreamRegistry;
pub use self::request::extra_headers::{ExtraHeaders, OutgoingRequest};
pub(crate) use self::request::judgement::blames_endpoint;
pub(crate) use self::request::long_lived_response::is_endless;
pub use self::request::send::{SendFailure, UpstreamResponse};
pub use self::request::send_options::{RequestContent, SendOptions};
pub use self::request::tunnel::Tunnel;
use self::request::unstarted_uploads::UnstartedUploads;
pub use self::request::unstarted_uploads::UploadPermit;
pub use self::settings::{
    Address, Balance, CircuitBreakerSettings, HashBy, HealthCheck, HostHeader, Http2, Location,
    Outlier, Retries, RetryOn, Scheme, Settings, Target, Tls,
};
use crate::base::clock::Clock;
use crate::observe::metrics::{Metrics, UpstreamMetrics};
use crate::tls::TlsError;

/// One upstream. Shared by all workers and the control runtime.
#[derive(Debug)]
pub struct Upstream {
    settings: Arc<Settings>,
    targets: Box<[ConfiguredTarget]>,
    registry: Arc<UpstreamRegistry>,
    /// The current endpoints; the control runtime replaces the set.
    endpoints: Arc<ArcSwap<EndpointSet>>,
    /// Counts the choices of an endpoint.
    turn: AtomicUsize,
    budget: balancing::retry_budget::RetryBudget,
    unstarted: UnstartedUploads,
    /// The circuit breaker with its settings, if there is one.
    circuit: Option<(CircuitBreakerSettings, Arc<CircuitBreaker>)>,
    passive: Arc<PassiveHealth>,
    /// Notified when the endpoints were replaced.
    resolved: Notify,
    /// Notified after each check of an endpoint that was out.
    checked: Notify,
    metrics: Arc<UpstreamMetrics>,
    clock: Clock,
}

/// A target of the configuration, with what its endpoints share.
struct ConfiguredTarget {
    target: Target,
    tls: Option<TlsParts>,
    /// The addresses of a name; `None` for an address or a Unix socket.
    resolved: Option<Arc<ResolvedName>>,
}

impl fmt::Debug for ConfiguredTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfiguredTarget").field("target", &self.target).finish_non_exhaustive()
    }
}

impl Upstream {
    /// Creates the upstream; existing endpoints are shared, with their load and health, and so are the last addresses of
    /// names. [`maintain`] keeps them current.
    ///
    /// # Errors
    ///
    /// [`TlsError`] if the authorities or the identity cannot be used.
    pub fn new(
        settings: Settings,
        registry: &Arc<UpstreamRegistry>,
        clock: Clock,
        metrics: &Metrics,
    ) -> Result<Self, TlsError> {
        let (metrics, settings) = (metrics.upstream(&settings.name), Arc::new(settings));
        let connectors = connections::tls_connectors::connectors(&settings)?;
        let targets = settings
            .targets
            .iter()
            .map(|target| {
                let tls = match (&connectors, target.address.scheme) {
                    (Some(connectors), Scheme::Https) => Some((
                        connectors.clone(),
                        connections::tls_connectors::server_name(&settings, target)?,
                    )),
                    _ => None,
                };
                let resolved = registry.resolved_name(&settings, &target.address);
                Ok(ConfiguredTarget { target: target.clone(), tls, resolved })
            })
            .collect::<Result<Box<[_]>, TlsError>>()?;
        let circuit =
            settings.circuit_breaker.map(|breaker| (breaker, registry.circuit(&settings, breaker)));
        let endpoints = Arc::new(ArcSwap::from_pointee(EndpointSet::new(Vec::new())));
        let passive = Arc::new(PassiveHealth {
            settings: Arc::clone(&settings),
            endpoints: Arc::clone(&endpoints),
            circuit: circuit.clone(),
            metrics: Arc::clone(&metrics),
            clock: clock.clone(),
        });
        let upstream = Self {
            unstarted: UnstartedUploads::of(&settings),
            settings,
            targets,
            registry: Arc::clone(registry),
            endpoints,
            turn: AtomicUsize::new(0),
            budget: balancing::retry_budget::RetryBudget::default(),
            circuit,
            passive,
            resolved: Notify::new(),
            checked: Notify::new(),
            metrics,
            clock,
        };
        upstream.endpoints.store(Arc::new(upstream.current_set(None)));
        Ok(upstream)
    }

    /// Returns the state of the circuit; `None` without a circuit breaker.
    pub fn circuit(&self) -> Option<CircuitState> {
        self.circuit.as_ref().map(|(_, circuit)| circuit.state())
    }

    /// Returns the metrics.
    pub fn metrics(&self) -> &UpstreamMetrics {
        &self.metrics
    }

    /// Returns the settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns its endpoints, each with its state at the moment, and whether it therefore receives no requests.
    pub fn endpoints(&self) -> Vec<(Arc<Endpoint>, EndpointState, bool)> {
        let now = self.clock.uptime();
        let set = self.endpoints.load();
        let are_out = set.are_out(&self.settings, now);
        let each = set.members.iter().zip(are_out).map(|(member, is_out)| {
            let state = member.endpoint.state(now, self.settings.slow_start);
            (Arc::clone(&member.endpoint), state, is_out)
        });
        each.collect()
    }

    /// Whether all targets may be spoken to in HTTP/2, where requests share connections.
    pub fn speaks_http2(&self) -> bool {
        let http2 = self.settings.http2;
        self.settings.targets.iter().all(|target| http2.is_possible(target.address.scheme))
    }

    /// Returns a permit to forward a request before its content begins; `None` if too many requests have one.
    pub fn admit_unstarted(&self) -> Option<UploadPermit> {
        self.unstarted.admit()
    }

    /// Whether the budget has room for another attempt, which takes it.
    fn has_budget(&self, retries: &Retries) -> bool {
        self.budget.take(retries.budget, self.clock.uptime())
    }

    /// Updates the metrics of the endpoints' health, and of the circuit.
    pub fn refresh_health(&self) {
        // A circuit that a reload has removed or replaced is reported as closed.
        self.metrics.circuit.set(self.circuit().unwrap_or(CircuitState::Closed) as i64);
        let now = self.clock.uptime();
        let set = self.endpoints.load();
        for (member, is_out) in set.members.iter().zip(set.are_out(&self.settings, now)) {
            member.healthy.set(i64::from(!is_out));
        }
    }

    /// Returns the endpoints of all targets by the last answers of name resolution. Endpoints that are not in `before`,
    /// the previous set, have just appeared.
    fn current_set(&self, before: Option<&EndpointSet>) -> EndpointSet {
        let mut members: Vec<Member> = Vec::new();
        for (index, configured) in self.targets.iter().enumerate() {
            let Target { address, weight, backup } = &configured.target;
            let member = |authority: Arc<str>, dial: Dial, of_record: u16, rank: u32| {
                let server_name = configured.tls.as_ref().map(|(_, name)| name.clone());
                let scheme = address.scheme;
                let key = EndpointKey::new(&self.settings, scheme, authority, dial, server_name);
                let endpoint = self.registry.endpoint(key, configured.tls.as_ref());
                endpoint.retire(false);
                Member {
                    weight: u32::from(*weight) * u32::from(of_record),
                    tier: rank.min(BACKUP_TIER - 1) + if *backup { BACKUP_TIER } else { 0 },
                    target: index,
                    identity: endpoint
                        .name()
                        .bytes()
                        .fold(0, |hash, byte| scatter(hash ^ u64::from(byte))),
                    healthy: self.metrics.target(endpoint.name()),
                    _http_version: self.metrics.target_version(endpoint.name()),
                    endpoint,
                }
            };
            let authority: Arc<str> = address.authority().into();
            let resolved = configured.resolved.as_ref().map(|name| name.addresses());
            match (resolved, &address.location) {
                (Some(found), _) if !found.is_empty() => {
                    members.extend(found.iter().map(|each| {
                        let dial = Dial::Socket(each.address);
                        member(Arc::clone(&each.authority), dial, each.weight, each.rank)
                    }));
                }
                (_, Location::Unix(path)) => {
                    members.push(member(authority, Dial::Unix(Arc::clone(path)), 1, 0));
                }
                (_, Location::Srv(_)) => members.push(member(authority, Dial::Unresolved, 1, 0)),
                (_, Location::Host { host, port }) => {
                    let dial = match host.parse() {
                        Ok(ip) => Dial::Socket(core::net::SocketAddr::new(ip, *port)),
                        // The operator's name servers alone resolve this name, not the system's resolver: wait for the
                        // first resolution.
                        Err(_) if !self.settings.dns_servers.is_empty() => Dial::Unresolved,
                        Err(_) => Dial::Name(Arc::clone(host), *port),
                    };
                    members.push(member(authority, dial, 1, 0));
                }
            }
        }
        let is_in = |set: &EndpointSet, endpoint: &Arc<Endpoint>| {
            set.members.iter().any(|member| Arc::ptr_eq(&member.endpoint, endpoint))
        };
        // No slow start at startup, when every endpoint is new.
        if let Some(before) = before.filter(|before| {
            before.members.iter().any(|member| member.endpoint.address().is_some())
        }) {
            let now = self.clock.uptime();
            let new = members.iter().filter(|member| !is_in(before, &member.endpoint));
            new.for_each(|member| member.endpoint.health.appeared(now));
        }
        EndpointSet::new(members)
    }
}

/// The lowest tier of backup endpoints; SRV priorities (16 bits) are below it.
const BACKUP_TIER: u32 = 1 << 16;

#[cfg(test)]
mod tests;
