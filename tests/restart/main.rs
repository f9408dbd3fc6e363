//! State that survives a restart.

#[path = "../support/dpop.rs"]
mod dpop;
#[path = "../support/fault_injection.rs"]
mod fault_injection;
mod killed;
mod usage;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use northgate::base::clock::{Clock, Timestamp};
use northgate::config::{self, Environment};
use northgate::observe::log::Log;
use northgate::observe::metrics::Metrics;
use northgate::server::{RunningGateway, Startup};
use tempfile::TempDir;
use tokio::runtime::Handle;

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_continues_after_a_restart() {
    let directory = TempDir::new().expect("a directory");

    let before = start(directory.path()).await;
    assert_eq!([ask(&before).await, ask(&before).await], [204, 204]);
    assert!(before.server.drain(Duration::from_secs(10)).await);
    before.upkeep.save().await;

    let after = start(directory.path()).await;
    assert_eq!([ask(&after).await, ask(&after).await], [204, 429]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_drains_does_not_overwrite_its_successors_quotas() {
    for is_told in [true, false] {
        let directory = TempDir::new().expect("a directory");
        let before = start(directory.path()).await;
        assert_eq!(ask(&before).await, 204);
        before.upkeep.save().await;
        let after = start(directory.path()).await;
        if is_told {
            before.upkeep.leave_to_successor().await;
        }
        assert_eq!([ask(&after).await, ask(&after).await], [204, 204]);
        after.upkeep.save().await;

        assert_eq!(ask(&before).await, 204);
        before.upkeep.finish().await;
        after.upkeep.save().await;

        let third = start(directory.path()).await;
        assert_eq!(ask(&third).await, 429, "told: {is_told}");
    }
}

async fn start(directory: &Path) -> RunningGateway {
    let file = directory.join("gateway.yaml");
    fs::write(&file, FILE).expect("written");
    let clock = Clock::manual(NOON);
    let environment = Environment::default();
    let loaded = config::load(&file, &environment, clock.now());
    let (config, _) = loaded.unwrap_or_else(|faults| panic!("{faults}"));
    let metrics = Metrics::with(config.metrics.settings.clone());
    let log = Log::start(&config.logging, Some("off"), clock.clone(), &metrics).expect("a log");
    let log = Arc::new(log);
    let control = Handle::current();
    let launch = Startup { file, environment, clock, metrics, log, control };
    launch.start(&config).await.expect("it starts")
}

async fn ask(gateway: &RunningGateway) -> u16 {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let url = format!("http://{}/", gateway.server.addresses()[0]);
    client.get(url).send().await.expect("an answer").status().as_u16()
}

const NOON: Timestamp = Timestamp::from_secs(1_700_049_600);

const FILE: &str = "
version: 1
listen: 127.0.0.1:0
admin: { listen: 127.0.0.1:0 }
server: { state_dir: ., workers: 1 }
limits:
  three: { quota: 3/day }
routes:
  - { id: answer, path: /, respond: { status: 204 }, auth: none, limits: [three] }
";
