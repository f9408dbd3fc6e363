//! The state of the development system that the sample services display: routes, configuration, metrics, sample tokens.

use core::fmt;
use core::time::Duration;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use super::issuer::{DevIssuerHandle, Mint};
use super::route_table;
use crate::base::clock::Clock;
use crate::config::{self, Environment};

/// The issuer, the configuration file and the metrics of a development system.
pub(super) struct DemoState {
    /// Mints the sample tokens.
    pub(super) issuer: Arc<DevIssuerHandle>,
    /// The configuration file in use.
    pub(super) configuration: PathBuf,
    /// The variables of the configuration file.
    pub(super) environment: Environment,
    pub(super) clock: Clock,
    /// The URL of the gateway's metrics.
    pub(super) metrics_url: String,
    pub(super) http: reqwest::Client,
}

/// A part of the system cannot be shown at the moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unavailable;

impl DemoState {
    /// Mints sample tokens that live one hour.
    pub(super) fn tokens(&self) -> Result<Value, Unavailable> {
        let mint =
            |mint: Mint| self.issuer.mint(&mint.lifetime(TOKEN_LIFETIME)).map_err(|_| Unavailable);
        Ok(json!({
            "signed": mint(Mint::client("api").scopes("orders:read orders:write"))?,
            "narrow": mint(Mint::client("api").scopes(""))?,
            "reference": mint(Mint::client("partner"))?,
        }))
    }

    /// Reads the routes of the configuration file as it is now.
    pub(super) fn routes(&self) -> Result<Value, Unavailable> {
        let now = self.clock.now();
        let (config, _) =
            config::load(&self.configuration, &self.environment, now).map_err(|_| Unavailable)?;
        Ok(route_table::rows(&config.routes))
    }

    /// Reads the text of the configuration file as it is now.
    pub(super) fn configuration(&self) -> Result<String, Unavailable> {
        std::fs::read_to_string(&self.configuration).map_err(|_| Unavailable)
    }

    /// Fetches the gateway's metrics in the Prometheus text format.
    pub(super) async fn metrics(&self) -> Result<String, Unavailable> {
        let response = self.http.get(&self.metrics_url).timeout(METRICS_TIMEOUT).send().await;
        let response =
            response.and_then(reqwest::Response::error_for_status).map_err(|_| Unavailable)?;
        response.text().await.map_err(|_| Unavailable)
    }
}

impl fmt::Debug for DemoState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DemoState")
            .field("configuration", &self.configuration)
            .finish_non_exhaustive()
    }
}

const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);
const METRICS_TIMEOUT: Duration = Duration::from_secs(2);
