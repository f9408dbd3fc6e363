//! Floor 8: the whole system on one machine, for a newcomer and for the tests.
//!
//! An authorization server ([`issuer`]), two sample services, and the lines
//! that a newcomer pastes ([`mod@print`]). Everything listens on loopback
//! addresses only, because keys, users and passwords are public.

mod around;
mod html;
pub mod issuer;
mod listen;
mod ports;
pub mod print;
mod routes;
mod services;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::runtime::Handle;

pub use listen::StartError;
pub use ports::{OffsetTooLarge, Ports};

use self::around::Around;
use self::issuer::{Client, DevIssuer, Running};
use self::listen::{Bound, Listening};
use self::ports::loopback;
use self::services::orders::Orders;
use self::services::shop::Shop;
use crate::base::clock::Clock;
use crate::config::Environment;

/// What `northgate dev` is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where everything listens.
    pub ports: Ports,
    /// The configuration the gateway runs; the shop's page shows it.
    pub configuration: PathBuf,
    /// Where the file's variables come from; [`Options::environment`] adds the ports.
    pub environment: Environment,
}

impl Options {
    /// The variables that the gateway loads its file with: those given, and where everything listens.
    pub fn environment(&self) -> Environment {
        self.environment.clone().with(self.ports.variables())
    }
}

/// The development issuer and the sample services. Dropping it ends them all.
#[derive(Debug)]
pub struct Support {
    issuer: Arc<Running>,
    _services: [Listening; 3],
}

impl Support {
    /// The issuer, to mint tokens and to rotate keys.
    pub fn issuer(&self) -> &Running {
        &self.issuer
    }
}

/// Starts the issuer and the services on `control`: all that a gateway needs around it.
///
/// # Errors
///
/// [`StartError::Taken`] if another program listens on one of the ports;
/// nothing is left running then.
pub fn start_support(
    options: &Options,
    clock: Clock,
    control: &Handle,
) -> Result<Support, StartError> {
    let ports = options.ports;
    let [first, second] = ports.orders();
    // All the ports first: what cannot start whole does not start.
    let (first, second) = (Bound::bind(loopback(first))?, Bound::bind(loopback(second))?);
    let shop = Bound::bind(loopback(ports.shop()))?;
    let address = loopback(ports.issuer());
    let issuer =
        Arc::new(DevIssuer::start(address, clock.clone(), issuer_options(ports), control)?);
    let around = Around {
        issuer: Arc::clone(&issuer),
        configuration: options.configuration.clone(),
        environment: options.environment(),
        clock,
        metrics: format!("http://{}/metrics", loopback(ports.admin())),
        http: reqwest::Client::builder().no_proxy().build().map_err(|_| StartError::Client)?,
    };
    let shop_service = Shop::new(around);
    let orders = |bound: Bound| {
        let service = Orders::new(&format!("orders:{}", bound.address.port()));
        bound.serve(control, move |request| service.clone().answer(request))
    };
    let services = [
        orders(first)?,
        orders(second)?,
        shop.serve(control, move |request| shop_service.clone().answer(request))?,
    ];
    Ok(Support { issuer, _services: services })
}

/// The issuer as the repository's `gateway.yaml` knows it.
fn issuer_options(ports: Ports) -> issuer::Options {
    let shop = format!("https://localhost:{}", ports.https());
    let mut options = issuer::Options {
        issuer: Some(format!("http://localhost:{}", ports.issuer())),
        ..issuer::Options::default()
    };
    let web: Option<&mut Client> = options.clients.iter_mut().find(|c| *c.id == *"gateway-web");
    if let Some(web) = web {
        web.redirect_uris = vec![format!("{shop}/auth/callback")];
        let told = format!("http://localhost:{}/auth/back-channel-logout", ports.http());
        web.backchannel_logout_uri = Some(told);
        web.post_logout_redirect_uris = vec![format!("{shop}/")];
    }
    options
}
