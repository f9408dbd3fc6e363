//! State of upstreams that outlives every reload: endpoints, addresses of names, and the tasks that keep them current.

use core::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::endpoint::{Endpoint, EndpointKey};
use super::maintenance::maintain;
use super::resolve::ResolvedAddress;
use super::settings::{Address, Location, Settings};
use super::{TlsParts, Upstream};
use crate::base::lock::IgnorePoison;
use crate::base::weak_map::WeakMap;

/// State of upstreams that outlives every reload. Entries are dropped with the last snapshot that uses them.
#[derive(Debug, Default)]
pub struct UpstreamRegistry {
    endpoints: WeakMap<EndpointKey, Endpoint>,
    names: WeakMap<(Address, Vec<SocketAddr>), ResolvedName>,
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
    /// Resolves the names of `upstreams` and checks their endpoints from now on, in place of those of earlier calls.
    pub fn maintain<'a>(
        &self,
        upstreams: impl Iterator<Item = &'a Arc<Upstream>>,
        control: &Handle,
    ) {
        let mut tasks = self.tasks.lock().ignore_poison();
        tasks.drain(..).for_each(|task| task.abort());
        tasks.extend(
            upstreams.map(|upstream| control.spawn(maintain(Arc::clone(upstream))).abort_handle()),
        );
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
