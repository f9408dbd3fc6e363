//! Metrics: handles that count, and the exposition for Prometheus.
//!
//! A handle (a route's, an issuer's, …) is requested by name once, when a
//! configuration is compiled, and counts with an atomic addition or two: no
//! look-up, no label, no lock. It owns its series: they are exported while
//! the handle exists, so those of a removed route vanish with the
//! last snapshot that had it. Requesting the name of an existing handle returns the same
//! one, and its counts continue.
//!
//! Names and labels are all in `family.rs`; the `prometheus` crate is used
//! only in this directory.

mod family;
mod issuer;
mod labels;
mod limit;
mod limit_store;
mod listener;
mod primitives;
mod process;
mod route;
mod session;
mod status_codes;
mod token;
mod upstream;

#[cfg(test)]
mod tests;

use self::family::Source;
use self::primitives::Buckets;
use core::fmt;
use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::MetricFamily;
use prometheus::{Registry, TEXT_FORMAT, TextEncoder};

use crate::base::weak_map::WeakMap;

use self::family::Scrape;
use self::labels::LabelValue as _;
use self::token::Verifications;

pub use self::family::{FAMILIES, Family, Kind};
pub use self::issuer::IssuerMetrics;
pub use self::labels::{
    AuthLabel, AuthResult, CacheResult, Endpoint, HandshakeFailure, LimitResult, LoginResult,
    LogoutKind, Method, Protocol, ProxyRefusal, RefreshResult, Rejected, TokenCache,
    UpstreamFailure,
};
pub use self::limit::LimitMetrics;
pub use self::limit_store::{LeaseMetrics, LimitStoreMetrics};
pub use self::listener::ListenerMetrics;
pub use self::primitives::{Counter, Gauge, Histogram, LabeledGauge};
pub use self::process::{COMMIT, ProcessMetrics, RUSTC, VERSION};
pub use self::route::RouteMetrics;
pub use self::session::SessionMetrics;
pub use self::token::TokenCacheMetrics;
pub use self::upstream::{FallbackKind, MirrorResult, UpstreamMetrics};

/// All metrics of the gateway. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    handles: Arc<Handles>,
    registry: Registry,
}

impl Metrics {
    /// Creates metrics whose request durations have the upper bounds `buckets`, in seconds.
    pub fn new(buckets: &[f64]) -> Self {
        Self::with(Settings { buckets: buckets.to_vec(), methods: true })
    }

    /// Creates metrics with these settings.
    pub fn with(settings: Settings) -> Self {
        let handles = Arc::new(Handles::new(&settings));
        let registry = Registry::new();
        let collector =
            HandleCollector { descriptors: family::descriptors(), handles: Arc::clone(&handles) };
        registry.register(Box::new(collector)).expect("family names are unique");
        registry
            .register(Box::new(ProcessCollector::for_self()))
            .expect("process metrics have other names");
        Self { handles, registry }
    }

    /// Returns the response body of a scrape, of type [`CONTENT_TYPE`].
    pub fn render(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .expect("the registry leaves out families without series")
    }

    /// Returns the metrics of the route `name`; [`NO_ROUTE`] for requests that match none.
    pub fn route(&self, name: &str) -> Arc<RouteMetrics> {
        let Handles { routes, buckets, methods, .. } = &*self.handles;
        routes.get_or_insert_with(name.into(), || RouteMetrics::new(name, buckets, *methods))
    }

    /// Returns the metrics of the authorization server `name`.
    pub fn issuer(&self, name: &str) -> Arc<IssuerMetrics> {
        self.handles
            .issuers
            .get_or_insert_with(name.into(), || IssuerMetrics::new(name, &self.handles.buckets))
    }

    /// Returns the metrics of all caches of one kind.
    pub fn token_cache(&self, kind: TokenCache) -> Arc<TokenCacheMetrics> {
        Arc::clone(&self.handles.token_caches[kind.index()])
    }

    /// Returns the metrics of the sessions called `name`.
    pub fn session(&self, name: &str) -> Arc<SessionMetrics> {
        self.handles.sessions.get_or_insert_with(name.into(), || SessionMetrics::new(name))
    }

    /// Returns the metrics of the upstream `name`.
    pub fn upstream(&self, name: &str) -> Arc<UpstreamMetrics> {
        self.handles
            .upstreams
            .get_or_insert_with(name.into(), || UpstreamMetrics::new(name, &self.handles.buckets))
    }

    /// Returns the metrics of `limit` on `route`.
    pub fn limit(&self, limit: &str, route: &str) -> Arc<LimitMetrics> {
        let key = (limit.into(), route.into());
        self.handles.limits.get_or_insert_with(key, || LimitMetrics::new(limit, route))
    }

    /// Returns the gauge of the keys that `limit` counts.
    pub fn limit_keys(&self, limit: &str) -> Arc<LabeledGauge> {
        self.handles.limit_keys.get_or_insert_with(limit.into(), || LabeledGauge::new(limit))
    }

    /// Returns the metrics of the store that limits are shared through; exported from now on.
    pub fn limit_store(&self) -> Arc<LimitStoreMetrics> {
        self.handles.limit_store.begin();
        Arc::clone(&self.handles.limit_store)
    }

    /// Returns the metrics of the leases of `limit`.
    pub fn leases(&self, limit: &str) -> Arc<LeaseMetrics> {
        self.handles.leases.get_or_insert_with(limit.into(), || LeaseMetrics::new(limit))
    }

    /// Returns the metrics of the listener at `address`, as the configuration writes it.
    pub fn listener(&self, address: &str) -> Arc<ListenerMetrics> {
        self.handles.listeners.get_or_insert_with(address.into(), || ListenerMetrics::new(address))
    }

    /// Returns the metrics of the process.
    pub fn process(&self) -> &ProcessMetrics {
        &self.handles.process
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::with(Settings::default())
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Settings of metrics.
///
/// # Defaults
///
/// Request durations from 1 ms to 10 s; requests are counted by method.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Upper bounds of request durations, in seconds, ascending.
    pub buckets: Vec<f64>,
    /// Whether requests have the label `method`.
    pub methods: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let buckets =
            [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
        Self { buckets: buckets.to_vec(), methods: true }
    }
}

/// The `Content-Type` of a scrape.
pub const CONTENT_TYPE: &str = TEXT_FORMAT;

/// The route label of requests that match no route.
pub const NO_ROUTE: &str = "_none";

/// All existing handles, by name.
struct Handles {
    buckets: Buckets,
    methods: bool,
    routes: WeakMap<Arc<str>, RouteMetrics>,
    issuers: WeakMap<Arc<str>, IssuerMetrics>,
    token_caches: [Arc<TokenCacheMetrics>; TokenCache::ALL.len()],
    verifications: Arc<Verifications>,
    sessions: WeakMap<Arc<str>, SessionMetrics>,
    upstreams: WeakMap<Arc<str>, UpstreamMetrics>,
    limits: WeakMap<(Arc<str>, Arc<str>), LimitMetrics>,
    limit_keys: WeakMap<Arc<str>, LabeledGauge>,
    limit_store: Arc<LimitStoreMetrics>,
    leases: WeakMap<Arc<str>, LeaseMetrics>,
    listeners: WeakMap<Arc<str>, ListenerMetrics>,
    process: ProcessMetrics,
}

impl Handles {
    fn new(settings: &Settings) -> Self {
        let buckets = Buckets::new(&settings.buckets);
        let verifications = Arc::new(Verifications::new(&buckets));
        let cache = |kind| Arc::new(TokenCacheMetrics::new(kind, Arc::clone(&verifications)));
        Self {
            token_caches: [TokenCache::Jwt, TokenCache::Introspection, TokenCache::Basic]
                .map(cache),
            verifications,
            limit_store: Arc::new(LimitStoreMetrics::new(&buckets.overhead)),
            leases: WeakMap::default(),
            buckets,
            methods: settings.methods,
            routes: WeakMap::default(),
            issuers: WeakMap::default(),
            sessions: WeakMap::default(),
            upstreams: WeakMap::default(),
            limits: WeakMap::default(),
            limit_keys: WeakMap::default(),
            listeners: WeakMap::default(),
            process: ProcessMetrics::default(),
        }
    }
}

impl Source for Handles {
    fn report(&self, to: &mut Scrape) {
        self.routes.report(to);
        self.issuers.report(to);
        self.token_caches.iter().for_each(|cache| cache.report(to));
        self.verifications.report(to);
        self.sessions.report(to);
        self.upstreams.report(to);
        self.limits.report(to);
        self.limit_keys.report(to);
        self.limit_store.report(to);
        self.leases.report(to);
        self.listeners.report(to);
        self.process.report(to);
    }
}

impl<K: Eq + core::hash::Hash, V: Source> Source for WeakMap<K, V> {
    fn report(&self, to: &mut Scrape) {
        for source in self.values() {
            source.report(to);
        }
    }
}

/// The collector that the registry scrapes.
struct HandleCollector {
    descriptors: Vec<Desc>,
    handles: Arc<Handles>,
}

impl Collector for HandleCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptors.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut scrape = Scrape::begin();
        self.handles.report(&mut scrape);
        scrape.finish()
    }
}
