//! Name resolution, by the control runtime: every A and AAAA record is an endpoint, and SRV records (RFC 2782) name
//! hosts, ports, weights and priorities.

use core::net::SocketAddr;
use core::time::Duration;
use std::collections::HashSet;
use std::sync::Arc;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ProtocolConfig, ResolverConfig,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use tokio::time::timeout;

use super::settings::{Location, Scheme, authority};

/// One address of a target.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct ResolvedAddress {
    /// Host and port as in `Host`.
    pub(super) authority: Arc<str>,
    pub(super) address: SocketAddr,
    /// The weight of the record, 1 to 1000; 1 without SRV records.
    pub(super) weight: u16,
    /// The rank of the record's priority; 0 is preferred, and the only one without SRV records.
    pub(super) rank: u32,
}

/// The reason why a name has no addresses.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct ResolveError(String);

/// Resolves names by the system's resolver, or by name servers of the operator.
pub(super) struct NameResolver<'a> {
    pub(super) servers: &'a [SocketAddr],
}

impl NameResolver<'_> {
    /// Returns the addresses of a target in a stable order. A host of SRV records whose own name cannot be resolved
    /// keeps its `previous` addresses.
    ///
    /// # Errors
    ///
    /// [`ResolveError`] if there are none.
    pub(super) async fn resolve(
        &self,
        scheme: Scheme,
        location: &Location,
        previous: &[ResolvedAddress],
    ) -> Result<Vec<ResolvedAddress>, ResolveError> {
        let resolving = async {
            match location {
                Location::Host { host, port } => {
                    let found = self.addresses(host, *port).await?;
                    let authority: Arc<str> = authority(scheme, host, *port).into();
                    let each = found.into_iter().map(|address| ResolvedAddress {
                        authority: Arc::clone(&authority),
                        address,
                        weight: 1,
                        rank: 0,
                    });
                    Ok(each.collect())
                }
                Location::Srv(name) => self.service(scheme, name, previous).await,
                Location::Unix(_) => Ok(Vec::new()),
            }
        };
        let found: Result<Vec<_>, ResolveError> =
            timeout(TIMEOUT, resolving).await.unwrap_or_else(|_| {
                Err(ResolveError(format!("no answer within {} s", TIMEOUT.as_secs())))
            });
        let mut found = found?;
        let mut seen = HashSet::new();
        found.retain(|each| seen.insert((Arc::clone(&each.authority), each.address)));
        found.sort_by_key(|each| (each.rank, each.address));
        found.truncate(MAX_ADDRESSES);
        if found.is_empty() {
            Err(ResolveError("the name has no address".into()))
        } else {
            Ok(found)
        }
    }

    async fn addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, ResolveError> {
        let failed = |error: &dyn core::fmt::Display| ResolveError(error.to_string());
        if self.servers.is_empty() {
            let found = tokio::net::lookup_host((host, port)).await.map_err(|e| failed(&e))?;
            return Ok(found.collect());
        }
        let found = self.client()?.lookup_ip(absolute(host)).await.map_err(|e| failed(&e))?;
        Ok(found.iter().map(|ip| SocketAddr::new(ip, port)).collect())
    }

    /// Resolves SRV records, and the hosts in them.
    async fn service(
        &self,
        scheme: Scheme,
        name: &str,
        previous: &[ResolvedAddress],
    ) -> Result<Vec<ResolvedAddress>, ResolveError> {
        let lookup = self.client()?.lookup(absolute(name), RecordType::SRV).await;
        let lookup = lookup.map_err(|error| ResolveError(error.to_string()))?;
        let mut records: Vec<_> = lookup
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                // A target of `.` says that there is no such service.
                RData::SRV(srv) if !srv.target.is_root() => {
                    let host = srv.target.to_utf8().trim_end_matches('.').to_ascii_lowercase();
                    Some((srv.priority, srv.weight, srv.port, host))
                }
                _ => None,
            })
            .collect();
        records.sort();
        records.truncate(MAX_ADDRESSES);
        let mut priorities: Vec<u16> = records.iter().map(|record| record.0).collect();
        priorities.dedup();
        let hosts = records.iter().map(|(_, _, port, host)| self.addresses(host, *port));
        let hosts = futures_util::future::join_all(hosts).await;
        let mut found = Vec::new();
        for ((priority, weight, port, host), addresses) in records.iter().zip(hosts) {
            let authority: Arc<str> = authority(scheme, host, *port).into();
            let rank = priorities.iter().position(|other| other == priority).unwrap_or(0) as u32;
            let addresses = addresses.unwrap_or_else(|error| {
                tracing::warn!(name, host = &**host, %error, "Could not resolve a host of SRV records; using its previous addresses.");
                let of_host = previous.iter().filter(|each| each.authority == authority);
                of_host.map(|each| each.address).collect()
            });
            found.extend(addresses.into_iter().map(|address| ResolvedAddress {
                authority: Arc::clone(&authority),
                address,
                // A weight of 0 is to be chosen hardly ever (RFC 2782).
                weight: (*weight).clamp(1, 1000),
                rank,
            }));
        }
        Ok(found)
    }

    /// Creates the client anew each time, so that a changed `resolv.conf` takes effect.
    fn client(&self) -> Result<TokioResolver, ResolveError> {
        let failed = |error: &dyn core::fmt::Display| ResolveError(error.to_string());
        let mut builder = if self.servers.is_empty() {
            TokioResolver::builder_tokio().map_err(|error| failed(&error))?
        } else {
            let servers = self.servers.iter().map(|server| {
                let connection = |protocol: ProtocolConfig| {
                    let mut connection = ConnectionConfig::new(protocol);
                    connection.port = server.port();
                    connection
                };
                let both = vec![connection(ProtocolConfig::Udp), connection(ProtocolConfig::Tcp)];
                NameServerConfig::new(server.ip(), true, both)
            });
            let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        let options = builder.options_mut();
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.timeout = QUERY_TIMEOUT;
        options.attempts = 2;
        builder.build().map_err(|error| failed(&error))
    }
}

/// Names with a dot are taken as they are; others get the search domains of the system.
fn absolute(name: &str) -> String {
    if name.contains('.') && !name.ends_with('.') { format!("{name}.") } else { name.to_owned() }
}

/// The timeout of one resolution.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The timeout of one query to one name server.
const QUERY_TIMEOUT: Duration = Duration::from_secs(1);
/// The maximum number of addresses of one target: further ones in an answer are left out.
const MAX_ADDRESSES: usize = 256;
