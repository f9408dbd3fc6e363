//! Floor 8: the whole system on one machine, for a newcomer and for the tests.
//!
//! [`issuer`] is an authorization server, `services` are two sample upstreams,
//! and [`banner`] is the text that `northgate dev` prints, with commands to
//! paste. All of them listen on loopback addresses only, because keys, users
//! and passwords are public.

pub mod banner;
mod demo_state;
mod http_server;
pub mod issuer;
mod ports;
mod response;
mod route_table;
mod services;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::runtime::Handle;

pub use http_server::StartError;
pub use ports::{OffsetTooLarge, Ports};

use self::demo_state::DemoState;
use self::http_server::{BoundListener, ServerHandle};
use self::issuer::{Client, DevIssuer, DevIssuerConfig, DevIssuerHandle};
use self::ports::loopback;
use self::services::{orders, shop};
use crate::base::clock::Clock;
use crate::config::Environment;

/// The settings of `northgate dev`.
#[derive(Clone, Debug)]
pub struct DevConfig {
    /// The ports of all listeners.
    pub ports: Ports,
    /// The gateway's configuration file, which the shop's start page shows.
    pub configuration: PathBuf,
    /// The file's variables; [`DevConfig::environment`] adds the ports.
    pub environment: Environment,
}

impl DevConfig {
    /// Returns the variables that the gateway loads its file with: those given, and the ports.
    pub fn environment(&self) -> Environment {
        self.environment.clone().with(self.ports.variables())
    }
}

/// The running development issuer and sample services. Dropping it stops them all.
#[derive(Debug)]
pub struct Support {
    issuer: Arc<DevIssuerHandle>,
    _services: [ServerHandle; 3],
}

impl Support {
    /// Returns the issuer, to mint tokens and to rotate keys.
    pub fn issuer(&self) -> &DevIssuerHandle {
        &self.issuer
    }
}

/// Starts the issuer and the sample services on the runtime `control`.
///
/// # Errors
///
/// [`StartError::Taken`] if another program listens on one of the ports; no
/// listener is left running then.
pub fn start_support(
    config: &DevConfig,
    clock: Clock,
    control: &Handle,
) -> Result<Support, StartError> {
    let ports = config.ports;
    let bind = |port| BoundListener::bind(loopback(port));
    let [first, second] = ports.orders();
    // All the ports are bound before the first one is served.
    let (first, second, shop) = (bind(first)?, bind(second)?, bind(ports.shop())?);
    let address = loopback(ports.issuer());
    let issuer = Arc::new(DevIssuer::start(address, clock.clone(), issuer_config(ports), control)?);
    let state = DemoState {
        issuer: Arc::clone(&issuer),
        configuration: config.configuration.clone(),
        environment: config.environment(),
        clock,
        metrics_url: format!("http://{}/metrics", loopback(ports.admin())),
        http: reqwest::Client::builder().no_proxy().build().map_err(|_| StartError::Client)?,
    };
    let orders = |bound: BoundListener| {
        let name = format!("orders:{}", bound.address.port());
        bound.serve(orders::router(&name), control)
    };
    let services = [orders(first)?, orders(second)?, shop.serve(shop::router(state), control)?];
    Ok(Support { issuer, _services: services })
}

/// Returns the issuer's configuration as the repository's `gateway.yaml` expects them.
fn issuer_config(ports: Ports) -> DevIssuerConfig {
    let shop = format!("https://localhost:{}", ports.https());
    let mut config = DevIssuerConfig {
        issuer: Some(format!("http://localhost:{}", ports.issuer())),
        ..DevIssuerConfig::default()
    };
    let web: Option<&mut Client> = config.clients.iter_mut().find(|c| *c.id == *"gateway-web");
    if let Some(web) = web {
        web.redirect_uris = vec![format!("{shop}/auth/callback")];
        let logout_uri = format!("http://localhost:{}/auth/back-channel-logout", ports.http());
        web.backchannel_logout_uri = Some(logout_uri);
        web.post_logout_redirect_uris = vec![format!("{shop}/")];
    }
    config
}
