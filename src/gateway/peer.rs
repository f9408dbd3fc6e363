//! The peer of a client connection.

use core::cell::RefCell;
use core::net::IpAddr;

use http::HeaderValue;
use tokio::task::JoinHandle;

/// The peer of one client connection.
#[derive(Debug)]
pub struct Peer {
    /// The peer's address; an IPv4-mapped IPv6 address is stored as IPv4.
    pub ip: IpAddr,
    /// The address as a field value.
    pub address: HeaderValue,
    /// The TLS version, if the connection is encrypted.
    pub tls: Option<&'static str>,
    /// Whether the connection is encrypted.
    pub secure: bool,
    /// SHA-256 of the client certificate, if the client presented one.
    pub certificate: Option<[u8; 32]>,
    /// The https port to redirect clients to; `None` does not redirect.
    pub redirect_https: Option<u16>,
    /// Whether the address is that of a load balancer which named no client: the fields in which it would forward
    /// one's address are not trusted.
    pub names_no_client: bool,
    /// The task that serves the connection after an upgrade.
    pub(super) upgraded: RefCell<Option<JoinHandle<()>>>,
}

impl Peer {
    /// Creates a peer at `ip` on an unencrypted connection.
    pub fn new(ip: IpAddr) -> Self {
        let ip = ip.to_canonical();
        let address =
            HeaderValue::try_from(ip.to_string()).unwrap_or(HeaderValue::from_static("unknown"));
        let upgraded = RefCell::default();
        Self {
            ip,
            address,
            tls: None,
            secure: false,
            certificate: None,
            redirect_https: None,
            names_no_client: false,
            upgraded,
        }
    }

    /// Waits until an upgraded connection has ended; returns at once for others. To be called after HTTP has ended.
    pub async fn wait_for_tunnel(&self) {
        let upgraded = self.upgraded.take();
        if let Some(upgraded) = upgraded
            && upgraded.await.is_err()
        {
            tracing::error!(
                "A task serving an upgraded connection panicked; the connection is closed."
            );
        }
    }
}
