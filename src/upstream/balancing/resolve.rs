//! Name resolution, by the control runtime: every A and AAAA record is an endpoint, and SRV records (RFC 2782) name
//! hosts, ports, weights and priorities.

use core::net::SocketAddr;
use core::pin::pin;
use core::time::Duration;
use std::collections::HashSet;
use std::sync::Arc;

use futures_util::future::select;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ProtocolConfig, ResolverConfig,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{RData, RecordType};
use tokio::time::timeout;

use crate::upstream::settings::{Location, Scheme, authority};

/// One address of a target.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(in crate::upstream) struct ResolvedAddress {
    /// Host and port as in `Host`.
    pub(in crate::upstream) authority: Arc<str>,
    pub(in crate::upstream) address: SocketAddr,
    /// The weight of the record, 1 to 1000; 1 without SRV records.
    pub(in crate::upstream) weight: u16,
    /// The rank of the record's priority; 0 is preferred, and the only one without SRV records.
    pub(in crate::upstream) rank: u32,
}

/// The reason why a name has no addresses.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(in crate::upstream) struct ResolveError(String);

/// Resolves names by the system's resolver, or by name servers of the operator.
pub(in crate::upstream) struct NameResolver<'a> {
    pub(in crate::upstream) servers: &'a [SocketAddr],
}

impl NameResolver<'_> {
    /// Returns the addresses of a target in a stable order. A host of SRV records whose own name cannot be resolved
    /// keeps its `previous` addresses.
    ///
    /// # Errors
    ///
    /// [`ResolveError`] if there are none.
    pub(in crate::upstream) async fn resolve(
        &self,
        scheme: Scheme,
        location: &Location,
        previous: &[ResolvedAddress],
    ) -> Result<Vec<ResolvedAddress>, ResolveError> {
        let resolving = async {
            match location {
                Location::Host { host, port } => {
                    let last = previous.iter().map(|each| each.address);
                    let found = self.addresses(host, *port, last).await?;
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
                Err(ResolveError(format!("no response within {} s", TIMEOUT.as_secs())))
            });
        let mut found = found?;
        let mut seen = HashSet::new();
        found.retain(|each| seen.insert((Arc::clone(&each.authority), each.address)));
        found.sort_by_key(|each| (each.rank, each.address));
        if found.len() > MAX_ADDRESSES {
            let (target, left_out) = (&found[0].authority, found.len() - MAX_ADDRESSES);
            tracing::warn!(%target, left_out, "A name has too many addresses; the last ones receive no requests.");
        }
        found.truncate(MAX_ADDRESSES);
        if found.is_empty() { Err(ResolveError(NO_ADDRESS.into())) } else { Ok(found) }
    }

    /// Returns the addresses of a host. One of the two address families may fail: it keeps its addresses in `previous`.
    async fn addresses(
        &self,
        host: &str,
        port: u16,
        previous: impl Iterator<Item = SocketAddr>,
    ) -> Result<Vec<SocketAddr>, ResolveError> {
        if self.servers.is_empty() {
            let found = tokio::net::lookup_host((host, port)).await;
            return Ok(found.map_err(|error| ResolveError(error.to_string()))?.collect());
        }
        let previous: Vec<_> = previous.collect();
        let of_family = async |is_ipv6| (is_ipv6, self.family(host, port, is_ipv6).await);
        let (one, other) = (pin!(of_family(false)), pin!(of_family(true)));
        let (first, rest) = select(one, other).await.factor_first();
        // A name without an address so far needs one soon; missing addresses come with the next refresh (RFC 8305 §3).
        let is_enough =
            previous.is_empty() && first.1.as_ref().is_ok_and(|found| !found.is_empty());
        let patience = if is_enough { RESOLUTION_DELAY } else { TIMEOUT };
        let second = timeout(patience, rest).await.ok();
        let (mut found, mut failed, mut answered) = (Vec::new(), None, false);
        for (is_ipv6, result) in core::iter::once(first).chain(second) {
            match result {
                Ok(addresses) => {
                    found.extend(addresses);
                    answered = true;
                }
                Err(error) => {
                    let kept = previous.iter().filter(|address| address.is_ipv6() == is_ipv6);
                    let before = found.len();
                    found.extend(kept);
                    failed = Some((error, found.len() > before));
                }
            }
        }
        match failed {
            Some((error, _)) if !answered || found.is_empty() => Err(error),
            None if found.is_empty() => Err(ResolveError(NO_ADDRESS.into())),
            Some((error, true)) => {
                tracing::warn!(host, %error, "Could not resolve the A or the AAAA records of a name; using its previous addresses of that family.");
                Ok(found)
            }
            _ => Ok(found),
        }
    }

    /// Returns the IPv4 or IPv6 addresses of a host; none if it has none.
    async fn family(
        &self,
        host: &str,
        port: u16,
        is_ipv6: bool,
    ) -> Result<Vec<SocketAddr>, ResolveError> {
        let strategy =
            if is_ipv6 { LookupIpStrategy::Ipv6Only } else { LookupIpStrategy::Ipv4Only };
        match self.client(strategy)?.lookup_ip(absolute(host)).await {
            Ok(found) => Ok(found.iter().map(|ip| SocketAddr::new(ip, port)).collect()),
            // Other codes, such as SERVFAIL, are failures.
            Err(NetError::Dns(DnsError::NoRecordsFound(NoRecords {
                response_code: ResponseCode::NoError | ResponseCode::NXDomain,
                ..
            }))) => Ok(Vec::new()),
            Err(error) => Err(ResolveError(error.to_string())),
        }
    }

    /// Resolves SRV records, and the hosts in them.
    async fn service(
        &self,
        scheme: Scheme,
        name: &str,
        previous: &[ResolvedAddress],
    ) -> Result<Vec<ResolvedAddress>, ResolveError> {
        let client = self.client(LookupIpStrategy::Ipv4AndIpv6)?;
        let lookup = client.lookup(absolute(name), RecordType::SRV).await;
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
        let hosts = records.iter().map(|(_, _, port, host)| async {
            let authority = authority(scheme, host, *port);
            let of_host = previous.iter().filter(|each| *each.authority == *authority);
            self.addresses(host, *port, of_host.map(|each| each.address)).await
        });
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
                weight: (*weight).max(1),
                rank,
            }));
        }
        Ok(found)
    }

    /// Creates a new client each time, so that a changed `resolv.conf` takes effect.
    fn client(&self, strategy: LookupIpStrategy) -> Result<TokioResolver, ResolveError> {
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
        options.ip_strategy = strategy;
        options.timeout = QUERY_TIMEOUT;
        options.attempts = 2;
        builder.build().map_err(|error| failed(&error))
    }
}

/// Names with a dot are taken as they are; others get the search domains of the system.
fn absolute(name: &str) -> String {
    if name.contains('.') && !name.ends_with('.') { format!("{name}.") } else { name.to_owned() }
}

const NO_ADDRESS: &str = "the name has no address";
/// How long the second family of addresses is waited for after the first, where none is known yet (RFC 8305 §3).
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);
/// The timeout of one resolution.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The timeout of one query to one name server.
const QUERY_TIMEOUT: Duration = Duration::from_secs(1);
/// The maximum number of addresses of one target: further ones in an answer are left out.
const MAX_ADDRESSES: usize = 256;
