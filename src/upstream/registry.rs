//! State of upstreams that outlives every reload: endpoints, addresses of names, and the tasks that keep them current.

use core::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::task::AbortHandle;

use super::balancing::endpoint::{Endpoint, EndpointKey};
use super::balancing::resolve::ResolvedAddress;
use super::connections::tls_connectors::TlsParts;
use super::health::circuit_breaker::CircuitBreaker;
use super::settings::{Address, CircuitBreakerSettings, Location, Settings, Target};
use crate::base::lock::IgnorePoison;
use crate::base::weak_map::WeakMap;

/// State of upstreams that outlives every reload. Entries are dropped with the last snapshot that uses them.
#[derive(Debug, Default)]
pub struct UpstreamRegistry {
    endpoints: WeakMap<EndpointKey, Endpoint>,
    names: WeakMap<(Address, Vec<SocketAddr>), ResolvedName>,
    circuits: WeakMap<(Arc<str>, Vec<Target>, CircuitBreakerSettings), CircuitBreaker>,
    /// The tasks of the snapshot in use.
    tasks: Mutex<Vec<AbortHandle>>,
}

/// The last known addresses of a name.
#[derive(Debug, Default)]
pub(super) struct ResolvedName(Mutex<Arc<[ResolvedAddress]>>);

impl ResolvedName {
    /// Returns the addresses; none before the first answer.
    pub(super) fn addresses(&self) -> Arc<[ResolvedAddress]> {
        Arc::clone(&self.0.lock().ignore_poison())
    }

    /// Stores an answer; true if it differs from the last one.
    pub(super) fn store(&self, found: Vec<ResolvedAddress>) -> bool {
        let mut last = self.0.lock().ignore_poison();
        let differs = **last != *found;
        if differs {
            *last = found.into();
        }
        differs
    }
}

impl UpstreamRegistry {
    /// Replaces the tasks, ending the earlier ones.
    pub(super) fn replace_tasks(&self, tasks: Vec<AbortHandle>) {
        let earlier = core::mem::replace(&mut *self.tasks.lock().ignore_poison(), tasks);
        earlier.iter().for_each(AbortHandle::abort);
    }

    /// Returns the addresses of the name in `address`, which are shared by the upstreams that use it; `None` if there
    /// is nothing to resolve.
    pub(super) fn resolved_name(
        &self,
        settings: &Settings,
        address: &Address,
    ) -> Option<Arc<ResolvedName>> {
        let resolves = match &address.location {
            Location::Host { host, .. } => host.parse::<IpAddr>().is_err(),
            Location::Srv(_) => true,
            Location::Unix(_) => false,
        };
        let key = || (address.clone(), settings.dns_servers.clone());
        resolves.then(|| self.names.get_or_insert_with(key(), ResolvedName::default))
    }

    /// Returns the circuit of the upstream with these `settings`, created if absent: with other targets it is another
    /// upstream, whose circuit is closed.
    pub(super) fn circuit(
        &self,
        settings: &Settings,
        breaker: CircuitBreakerSettings,
    ) -> Arc<CircuitBreaker> {
        let key = (Arc::clone(&settings.name), settings.targets.clone(), breaker);
        self.circuits.get_or_insert_with(key, CircuitBreaker::default)
    }

    /// Returns the endpoint of `key`, created if absent.
    pub(super) fn endpoint(&self, key: EndpointKey, tls: Option<&TlsParts>) -> Arc<Endpoint> {
        self.endpoints.get_or_insert_with(key.clone(), || Endpoint::new(key, tls.cloned()))
    }
}

impl Drop for UpstreamRegistry {
    fn drop(&mut self) {
        self.tasks.get_mut().ignore_poison().iter().for_each(AbortHandle::abort);
    }
}
