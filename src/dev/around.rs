//! The system around the sample services: what the shop's page shows of it.

use core::fmt;
use core::time::Duration;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use super::issuer::{Mint, Running};
use super::routes;
use crate::base::clock::Clock;
use crate::config::{self, Environment};

/// Where to look.
pub(super) struct Around {
    /// Makes tokens to try.
    pub(super) issuer: Arc<Running>,
    /// The configuration file in use.
    pub(super) configuration: PathBuf,
    /// Its variables.
    pub(super) environment: Environment,
    pub(super) clock: Clock,
    /// The gateway's counters.
    pub(super) metrics: String,
    pub(super) http: reqwest::Client,
}

/// Something cannot be shown now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unknown;

impl Around {
    /// Tokens to try, good for an hour.
    pub(super) fn tokens(&self) -> Result<Value, Unknown> {
        let mint = |mint: Mint| self.issuer.mint(&mint.lifetime(LIFETIME)).map_err(|_| Unknown);
        Ok(json!({
            "signed": mint(Mint::client("api").scopes("orders:read orders:write"))?,
            "narrow": mint(Mint::client("api").scopes(""))?,
            "reference": mint(Mint::client("partner"))?,
        }))
    }

    /// The routes of the configuration file, as it is now.
    pub(super) fn routes(&self) -> Result<Value, Unknown> {
        let now = self.clock.now();
        let (config, _) =
            config::load(&self.configuration, &self.environment, now).map_err(|_| Unknown)?;
        Ok(routes::table(&config.routes))
    }

    /// The configuration file, as it is written now.
    pub(super) fn configuration(&self) -> Result<String, Unknown> {
        std::fs::read_to_string(&self.configuration).map_err(|_| Unknown)
    }

    /// The gateway's counters, as Prometheus reads them.
    pub(super) async fn metrics(&self) -> Result<String, Unknown> {
        let answer = self.http.get(&self.metrics).timeout(PATIENCE).send().await;
        let answer = answer.and_then(reqwest::Response::error_for_status).map_err(|_| Unknown)?;
        answer.text().await.map_err(|_| Unknown)
    }
}

impl fmt::Debug for Around {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Around").field("configuration", &self.configuration).finish_non_exhaustive()
    }
}

const LIFETIME: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(2);
