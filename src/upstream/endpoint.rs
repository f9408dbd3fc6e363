//! One address of an upstream: its load and its health, shared by all workers and across reloads.

use core::fmt;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use core::time::Duration;
use std::sync::Arc;

use http::HeaderValue;
use rustls::pki_types::ServerName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::settings::{Address, Http2, Outlier, Settings, Target, Tls};
use super::tls_connectors::Connectors;

/// One address of an upstream.
pub struct Endpoint {
    /// Identifies the endpoint within this process.
    id: usize,
    address: Address,
    name: String,
    host: HeaderValue,
    tls: Option<(Connectors, ServerName<'static>)>,
    http2: Http2,
    capacity: u32,
    free: Arc<Semaphore>,
    max_pending: u32,
    pending: AtomicU32,
    failures: AtomicU32,
    /// Uptime in nanoseconds until which the endpoint is ejected.
    ejected_until: AtomicU64,
}

/// The settings by which endpoints of two configurations are the same.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct EndpointKey {
    address: Address,
    tls: Tls,
    http2: Http2,
    max_connections: u32,
    max_pending: u32,
}

impl EndpointKey {
    pub(super) fn new(settings: &Settings, target: &Target) -> Self {
        Self {
            address: target.address.clone(),
            tls: settings.tls.clone(),
            http2: settings.http2,
            max_connections: settings.max_connections,
            max_pending: settings.max_pending,
        }
    }
}

impl Endpoint {
    pub(super) fn new(
        settings: &Settings,
        target: &Target,
        tls: Option<(Connectors, ServerName<'static>)>,
    ) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let authority = target.address.authority();
        Self {
            id: NEXT.fetch_add(1, Relaxed),
            name: target.address.to_string(),
            host: HeaderValue::from_str(&authority).unwrap_or(HeaderValue::from_static("invalid")),
            address: target.address.clone(),
            tls,
            http2: settings.http2,
            capacity: settings.max_connections,
            free: Arc::new(Semaphore::new(settings.max_connections as usize)),
            max_pending: settings.max_pending,
            pending: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
        }
    }

    /// Returns the address as in the log and the `target` label.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) const fn id(&self) -> usize {
        self.id
    }

    pub(super) const fn address(&self) -> &Address {
        &self.address
    }

    /// Whether the upstream is spoken to in HTTP/2 and nothing else.
    pub(super) fn requires_http2(&self) -> bool {
        self.http2 == Http2::Always
    }

    pub(super) const fn host(&self) -> &HeaderValue {
        &self.host
    }

    pub(super) const fn tls(&self) -> Option<&(Connectors, ServerName<'static>)> {
        self.tls.as_ref()
    }

    /// Returns the number of requests in flight.
    pub fn load(&self) -> u32 {
        self.capacity.saturating_sub(self.free.available_permits() as u32)
    }

    /// Acquires a permit for a request in flight, waiting up to `wait`; `None` if there is none.
    pub(super) async fn admit(&self, wait: Duration) -> Option<EndpointPermit> {
        if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
            return Some(EndpointPermit { _permit: permit });
        }
        let _waiting = InFlight::begin(&self.pending, self.max_pending)?;
        let freed = Box::pin(Arc::clone(&self.free).acquire_owned());
        let permit = tokio::time::timeout(wait, freed).await.ok()?.ok()?;
        Some(EndpointPermit { _permit: permit })
    }

    /// Records the outcome of a request; true if that ejects or readmits the endpoint. An ejected endpoint
    /// gets no requests until `eject_for` has passed; then one more failure ejects it again.
    pub(super) fn answered(&self, well: bool, outlier: &Outlier, now: Duration) -> bool {
        if well {
            // The usual case reads without writing, so that the cache line stays shared between workers.
            return self.failures.load(Relaxed) != 0 && {
                self.failures.store(0, Relaxed);
                self.ejected_until.swap(0, Relaxed) != 0
            };
        }
        let ejects = self.failures.fetch_add(1, Relaxed) + 1 >= outlier.errors;
        if ejects {
            self.ejected_until.store(nanos(now + outlier.eject_for), Relaxed);
            self.failures.store(outlier.errors.saturating_sub(1), Relaxed);
        }
        ejects
    }

    pub(super) fn is_ejected(&self, now: Duration) -> bool {
        let until = self.ejected_until.load(Relaxed);
        until != 0 && nanos(now) < until
    }
}

/// A request in flight at an endpoint; released on drop.
#[derive(Debug)]
pub(super) struct EndpointPermit {
    _permit: OwnedSemaphorePermit,
}

/// A request that waits for a permit.
struct InFlight<'a>(&'a AtomicU32);

impl<'a> InFlight<'a> {
    fn begin(pending: &'a AtomicU32, max_pending: u32) -> Option<Self> {
        pending
            .fetch_update(Relaxed, Relaxed, |n| (n < max_pending).then_some(n + 1))
            .ok()
            .map(|_| Self(pending))
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("name", &self.name)
            .field("load", &self.load())
            .finish_non_exhaustive()
    }
}

fn nanos(uptime: Duration) -> u64 {
    u64::try_from(uptime.as_nanos()).unwrap_or(u64::MAX)
}
