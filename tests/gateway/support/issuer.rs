//! The development issuer, by the clock of the gateway that trusts it.

use crate::fault_injection::TestIssuer;
use northgate::base::clock::Clock;
use northgate::dev::issuer::{Algorithm, DevIssuerConfig, Mint};
use tokio::runtime::{Builder, Runtime};

/// A running issuer.
pub(crate) struct Issuer {
    pub(crate) running: TestIssuer,
    pub(crate) clock: Clock,
    _runtime: Runtime,
}

/// An issuer on a free port, at noon. Its keys are small, so that it starts quickly.
pub(crate) fn start_issuer() -> Issuer {
    let clock = super::gateway::noon();
    let runtime =
        Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let options =
        DevIssuerConfig { algorithms: vec![Algorithm::Es256], ..DevIssuerConfig::default() };
    let address = "127.0.0.1:0".parse().expect("an address");
    let running =
        TestIssuer::start(address, clock.clone(), options, runtime.handle()).expect("a free port");
    Issuer { running, clock, _runtime: runtime }
}

impl Issuer {
    /// How it is written under `issuers:`, with further keys.
    pub(crate) fn settings(&self, more: &str) -> String {
        format!(
            "issuers:\n  main: {{ issuer: \"{}\", audience: \"https://api.localhost\", \
             client: {{ id: gateway, secret: gateway-secret }}{more} }}\n",
            self.running.url()
        )
    }

    /// A signed token of the client `api`.
    pub(crate) fn jwt(&self) -> String {
        self.mint(&Mint::client("api"))
    }

    /// A reference token of the client `partner`.
    pub(crate) fn reference(&self) -> String {
        self.mint(&Mint::client("partner"))
    }

    pub(crate) fn mint(&self, mint: &Mint) -> String {
        self.running.mint(mint).expect("a token")
    }
}
