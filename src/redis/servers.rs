//! The servers behind one connection: a single Redis, the primary that Sentinels name, or a Cluster.

use core::fmt;
use core::time::Duration;

use ::redis::aio::{ConnectionLike, MultiplexedConnection};
use ::redis::cluster::{ClusterClient, ClusterClientBuilder};
use ::redis::cluster_async::ClusterConnection;
use ::redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, ErrorKind, Pipeline, RedisError,
    RedisFuture, RedisResult, ServerErrorKind, TlsCertificates, TlsMode, Value,
};
use tokio::sync::Mutex;

use super::settings::{InvalidUrl, Settings, Topology};

/// Clients of the servers in the settings.
pub(super) enum Servers {
    Single(Client),
    Sentinel(Mutex<SentinelClient>),
    /// With a client of the only node, if one alone is known: it may be a server that is no Cluster.
    Cluster(ClusterClient, Option<Box<Client>>),
}

impl Servers {
    /// Creates the clients; none connects yet.
    ///
    /// # Errors
    ///
    /// [`InvalidUrl`] if the client library refuses the settings.
    pub(super) fn new(settings: &Settings) -> Result<Self, InvalidUrl> {
        Self::open(settings).map_err(|_| InvalidUrl)
    }

    fn open(settings: &Settings) -> RedisResult<Self> {
        let certificates = settings
            .ca
            .as_ref()
            .filter(|_| settings.is_encrypted())
            .map(|pem| TlsCertificates { client_tls: None, root_cert: Some(pem.to_vec()) });
        let nodes = settings.nodes()?;
        let open_single = |node: &ConnectionInfo| match &certificates {
            Some(certificates) => Client::build_with_tls(node.clone(), certificates.clone()),
            None => Client::open(node.clone()),
        };
        match settings.topology() {
            Topology::Single => {
                let Some(node) = nodes.first() else {
                    return Err((::redis::ErrorKind::InvalidClientConfig, "no server").into());
                };
                Ok(Self::Single(open_single(node)?))
            }
            Topology::Sentinel { service, database } => {
                let access = nodes.first().map(|node| node.redis_settings().clone());
                let addresses = nodes.iter().map(|node| node.addr().clone());
                let mut builder =
                    SentinelClientBuilder::new(addresses, service, SentinelServerType::Master)?
                        .set_client_to_redis_db(*database);
                if let Some(username) = &settings.username {
                    builder = builder.set_client_to_redis_username(username);
                }
                if let Some(password) = &settings.password {
                    builder = builder.set_client_to_redis_password(password.expose());
                }
                // The URL's name and password are for the Sentinels.
                let access = access.unwrap_or_default();
                if let Some(username) = access.username() {
                    builder = builder.set_client_to_sentinel_username(username);
                }
                if let Some(password) = access.password() {
                    builder = builder.set_client_to_sentinel_password(password);
                }
                if settings.is_encrypted() {
                    builder = builder
                        .set_client_to_redis_tls_mode(TlsMode::Secure)
                        .set_client_to_sentinel_tls_mode(TlsMode::Secure);
                }
                if let Some(certificates) = certificates {
                    builder = builder
                        .set_client_to_redis_certificates(certificates.clone())
                        .set_client_to_sentinel_certificates(certificates);
                }
                Ok(Self::Sentinel(Mutex::new(builder.build()?)))
            }
            Topology::Cluster => {
                let only = match &nodes[..] {
                    [only] => Some(Box::new(open_single(only)?)),
                    _ => None,
                };
                let mut builder = ClusterClientBuilder::new(nodes)
                    .connection_timeout(settings.connect_timeout)
                    // Each command has a timeout of its own, and a failed one falls back to local state.
                    .response_timeout(settings.connect_timeout.max(Duration::from_secs(1)))
                    .retries(1);
                if let Some(certificates) = certificates {
                    builder = builder.certs(certificates);
                }
                Ok(Self::Cluster(builder.build()?, only))
            }
        }
    }

    /// Connects: to the server, to the current primary, or to all nodes of the cluster. A list of one server that is no
    /// Cluster is that server.
    pub(super) async fn connect(
        &self,
        config: &AsyncConnectionConfig,
    ) -> RedisResult<ServerConnection> {
        match self {
            Self::Single(client) => connect_single(client, config).await,
            Self::Sentinel(client) => {
                let mut client = client.lock().await;
                client.get_async_connection_with_config(config).await.map(ServerConnection::Server)
            }
            Self::Cluster(client, only) => match (client.get_async_connection().await, only) {
                (Err(error), Some(only)) if is_no_cluster(&error) => {
                    connect_single(only, config).await
                }
                (connection, _) => connection.map(ServerConnection::Cluster),
            },
        }
    }

    /// Whether another server may have taken over from one that stores nothing.
    pub(super) const fn may_fail_over(&self) -> bool {
        matches!(self, Self::Sentinel(_))
    }
}

async fn connect_single(
    client: &Client,
    config: &AsyncConnectionConfig,
) -> RedisResult<ServerConnection> {
    let connection = client.get_multiplexed_async_connection_with_config(config).await;
    connection.map(ServerConnection::Server)
}

/// Whether a server says that it is no node of a Cluster: `ERR This instance has cluster support disabled`, or that it does
/// not know the command.
pub(super) fn is_no_cluster(error: &RedisError) -> bool {
    let detail = || error.detail().unwrap_or_default().to_ascii_lowercase();
    error.kind() == ErrorKind::Server(ServerErrorKind::ResponseError)
        && detail().contains("cluster")
}

/// A connection that many callers use at once.
#[derive(Clone)]
pub(super) enum ServerConnection {
    Server(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ServerConnection {
    /// Whether commands on several keys go to several servers.
    pub(super) const fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }
}

impl fmt::Debug for ServerConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerConnection")
    }
}

impl ConnectionLike for ServerConnection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Server(connection) => connection.req_packed_command(command),
            Self::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Server(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Server(connection) => connection.get_db(),
            Self::Cluster(_) => 0,
        }
    }
}
