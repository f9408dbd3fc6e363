//! One address of an upstream: its load and its health, shared by all workers and across reloads.

use core::fmt;
use core::net::SocketAddr;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use core::time::Duration;
use std::sync::{Arc, Mutex};

use http::HeaderValue;
use rustls::pki_types::ServerName;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::base::lock::IgnorePoison;
use crate::upstream::connections::tls_connectors::Connectors;
use crate::upstream::health::endpoint_health::{EndpointState, Health};
use crate::upstream::settings::{Http2, Scheme, Settings, Tls, authority};

/// One address of an upstream.
pub struct Endpoint {
    slot: Slot,
    key: EndpointKey,
    name: String,
    host: HeaderValue,
    tls: Option<(Connectors, ServerName<'static>)>,
    capacity: u32,
    free: Arc<Semaphore>,
    max_pending: u32,
    pending: AtomicU32,
    pub(in crate::upstream) health: Health,
    /// Asks the control runtime for a check at once.
    refused: Notify,
    /// Asks the control runtime for a check soon.
    suspect: Notify,
    /// Whether name resolution no longer returns the address: connections are not reused.
    retired: AtomicBool,
}

/// The settings by which endpoints of two configurations are the same.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(in crate::upstream) struct EndpointKey {
    upstream: Arc<str>,
    scheme: Scheme,
    /// Host and port as in `Host`.
    pub(in crate::upstream) authority: Arc<str>,
    pub(in crate::upstream) dial: Dial,
    tls: Tls,
    /// The name that its certificate must have.
    server_name: Option<ServerName<'static>>,
    http2: Http2,
    max_connections: u32,
    max_pending: u32,
}

/// The address to which connections are made.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(in crate::upstream) enum Dial {
    /// An address.
    Socket(SocketAddr),
    /// A name and a port, resolved for each connection: used until the control runtime has resolved the name.
    Name(Arc<str>, u16),
    /// A path of a Unix socket.
    Unix(Arc<str>),
    /// A name that was not resolved yet.
    Unresolved,
}

impl EndpointKey {
    /// Creates the key of an endpoint of an upstream at `dial`, with `authority` in `Host`, whose certificate must have the name
    /// `server_name`.
    pub(in crate::upstream) fn new(
        settings: &Settings,
        scheme: Scheme,
        authority: Arc<str>,
        dial: Dial,
        server_name: Option<ServerName<'static>>,
    ) -> Self {
        Self {
            upstream: Arc::clone(&settings.name),
            scheme,
            authority,
            dial,
            tls: settings.tls.clone(),
            server_name,
            http2: settings.http2,
            max_connections: settings.max_connections,
            max_pending: settings.max_pending,
        }
    }
}

impl Endpoint {
    pub(in crate::upstream) fn new(
        key: EndpointKey,
        tls: Option<(Connectors, ServerName<'static>)>,
    ) -> Self {
        let url = match &key.dial {
            Dial::Unix(path) => format!("unix:{path}"),
            _ => format!("{}://{}", key.scheme.as_str(), key.authority),
        };
        // A resolved address is distinguished from the other addresses of its name.
        let name = match &key.dial {
            Dial::Socket(address)
                if *authority(key.scheme, &address.ip().to_string(), address.port())
                    != *key.authority =>
            {
                format!("{url} ({})", address.ip())
            }
            _ => url,
        };
        // Hosts of SRV records are distinguished, too: their certificates are for the domain of the records (RFC 6125
        // §6.2.1).
        let name = match &key.server_name {
            Some(ServerName::DnsName(of)) if key.tls.server_name.is_none() => {
                let of = of.as_ref();
                let is_host = key.authority.split(':').next().is_some_and(|host| host == of);
                if is_host { name } else { format!("{name} as {of}") }
            }
            _ => name,
        };
        let host = HeaderValue::from_str(&key.authority);
        Self {
            slot: Slot::acquire(),
            name,
            host: host.unwrap_or(HeaderValue::from_static("invalid")),
            tls,
            capacity: key.max_connections,
            free: Arc::new(Semaphore::new(key.max_connections as usize)),
            max_pending: key.max_pending,
            pending: AtomicU32::new(0),
            health: Health::default(),
            refused: Notify::new(),
            suspect: Notify::new(),
            retired: AtomicBool::new(false),
            key,
        }
    }

    /// Returns the name as in the log and the `target` label: the URL of the target, with the address that its name
    /// was resolved to.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the address, once it is known.
    pub fn address(&self) -> Option<SocketAddr> {
        match self.key.dial {
            Dial::Socket(address) => Some(address),
            Dial::Name(..) | Dial::Unix(_) | Dial::Unresolved => None,
        }
    }

    /// Returns the cause of the last failure.
    pub fn last_failure(&self) -> Option<Box<str>> {
        self.health.last_failure()
    }

    pub(in crate::upstream) const fn slot(&self) -> &Slot {
        &self.slot
    }

    pub(in crate::upstream) const fn dial(&self) -> &Dial {
        &self.key.dial
    }

    pub(in crate::upstream) const fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// Returns the scheme.
    pub(in crate::upstream) const fn scheme(&self) -> Scheme {
        self.key.scheme
    }

    /// Whether the upstream is spoken to in HTTP/2 and nothing else.
    pub(in crate::upstream) fn requires_http2(&self) -> bool {
        self.key.http2 == Http2::Always
    }

    pub(in crate::upstream) const fn tls(&self) -> Option<&(Connectors, ServerName<'static>)> {
        self.tls.as_ref()
    }

    /// Returns the number of requests in flight.
    pub fn load(&self) -> u32 {
        self.capacity.saturating_sub(self.free.available_permits() as u32)
    }

    /// Returns the maximum number of requests in flight.
    pub(in crate::upstream) const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Returns the state at the uptime `now`.
    pub(in crate::upstream) fn state(&self, now: Duration, slow_start: Duration) -> EndpointState {
        self.health.state(now, slow_start)
    }

    /// Asks the control runtime to check the endpoint at once, since a request could not connect.
    pub(in crate::upstream) fn report_refusal(&self) {
        self.refused.notify_one();
    }

    /// Waits until a request could not connect.
    pub(in crate::upstream) async fn refusal(&self) {
        self.refused.notified().await;
    }

    /// Asks the control runtime to check the endpoint soon, since a connection broke off under a request.
    pub(in crate::upstream) fn suspect(&self) {
        self.suspect.notify_one();
    }

    /// Waits until a connection broke off under a request.
    pub(in crate::upstream) async fn suspected(&self) {
        self.suspect.notified().await;
    }

    /// Marks an address that name resolution no longer returns, or returns again.
    pub(in crate::upstream) fn retire(&self, retired: bool) {
        self.retired.store(retired, Relaxed);
    }

    /// Whether connections may be kept for further requests.
    pub(in crate::upstream) fn is_retired(&self) -> bool {
        self.retired.load(Relaxed)
    }

    /// Waits up to `wait` for a permit for a request in flight; `None` if none is free by then, or too many requests wait.
    pub(in crate::upstream) async fn admit(&self, wait: Duration) -> Option<EndpointPermit> {
        let _waiting = InFlight::begin(&self.pending, self.max_pending)?;
        let freed = Box::pin(Arc::clone(&self.free).acquire_owned());
        let permit = tokio::time::timeout(wait, freed).await.ok()?.ok()?;
        Some(EndpointPermit { _permit: permit })
    }

    /// Acquires a permit for a request in flight, if one is free.
    pub(in crate::upstream) fn try_admit(&self) -> Option<EndpointPermit> {
        let permit = Arc::clone(&self.free).try_acquire_owned().ok()?;
        Some(EndpointPermit { _permit: permit })
    }
}

/// A request in flight at an endpoint; released on drop.
#[derive(Debug)]
pub(in crate::upstream) struct EndpointPermit {
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

/// An index into the pools of idle connections, reused after its endpoint is gone: addresses come and go with name
/// resolution, and pools must not grow with them.
#[derive(Debug)]
pub(in crate::upstream) struct Slot {
    /// The index in each worker's pool.
    pub(in crate::upstream) index: usize,
    /// Tells the endpoints apart that have had the index, one after the other.
    pub(in crate::upstream) generation: u64,
}

impl Slot {
    fn acquire() -> Self {
        static GENERATION: AtomicU64 = AtomicU64::new(1);
        let mut free = FREE_SLOTS.lock().ignore_poison();
        let index = free.returned.pop().unwrap_or_else(|| {
            free.unused += 1;
            free.unused - 1
        });
        Self { index, generation: GENERATION.fetch_add(1, Relaxed) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        FREE_SLOTS.lock().ignore_poison().returned.push(self.index);
    }
}

struct FreeSlots {
    returned: Vec<usize>,
    /// The first index that was never used.
    unused: usize,
}

static FREE_SLOTS: Mutex<FreeSlots> = Mutex::new(FreeSlots { returned: Vec::new(), unused: 0 });

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::UpstreamRegistry;

    #[test]
    fn endpoints_whose_certificates_must_have_other_names_are_different() {
        let settings = Settings::new("a", Vec::new());
        let registry = UpstreamRegistry::default();
        let endpoint = |name: &'static str| {
            let dial = Dial::Socket(([127, 0, 0, 1], 9).into());
            let name = ServerName::try_from(name).ok();
            let authority = "h.test:9".into();
            let key = EndpointKey::new(&settings, Scheme::Https, authority, dial, name);
            registry.endpoint(key, None)
        };

        let (of_host, of_records) = (endpoint("h.test"), endpoint("a.test"));

        assert!(!Arc::ptr_eq(&of_host, &of_records) && Arc::ptr_eq(&of_host, &endpoint("h.test")));
        assert_eq!(of_host.name(), "https://h.test:9 (127.0.0.1)");
        assert_eq!(of_records.name(), "https://h.test:9 (127.0.0.1) as a.test");
    }
}
