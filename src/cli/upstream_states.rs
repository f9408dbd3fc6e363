//! The states of an upstream's targets, as the running gateway sees them.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::time::Duration;

use serde_json::Value;

use super::run;
use crate::config::Config;

/// Asks the admin listener of the gateway that runs with `config` for the states of the upstream called `name`; one line
/// each, and none if no gateway answers.
pub(super) fn states_of(config: &Config, name: &str) -> Vec<[String; 2]> {
    let Ok(runtime) = run::control_runtime() else { return Vec::new() };
    let answer = runtime.block_on(ask(config));
    let Some(Value::Array(upstreams)) = answer else { return Vec::new() };
    let Some(upstream) = upstreams.iter().find(|upstream| upstream["name"] == name) else {
        return Vec::new();
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut lines = Vec::new();
    if let Some(circuit) = upstream["circuit"].as_str() {
        lines.push(["circuit".to_owned(), circuit.to_owned()]);
    }
    for endpoint in upstream["endpoints"].as_array().into_iter().flatten() {
        let cause = match (&endpoint["last_failure"], endpoint["healthy"].as_bool()) {
            (Value::String(cause), Some(false)) => format!(": {cause}"),
            _ => String::new(),
        };
        lines.push([text(&endpoint["url"]), format!("{}{cause}", text(&endpoint["state"]))]);
    }
    lines
}

async fn ask(config: &Config) -> Option<Value> {
    let address = reachable(config.admin.listen);
    let client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build().ok()?;
    let mut request = client.get(format!("http://{address}/-/upstreams"));
    if let Some(token) = &config.admin.token {
        request = request.bearer_auth(token.expose());
    }
    let response = request.send().await.ok()?;
    if !response.status().is_success() {
        return None;
    }
    response.json().await.ok()
}

/// Returns the address at which this machine reaches a listener.
fn reachable(listener: SocketAddr) -> SocketAddr {
    let ip = match listener.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listener.port())
}

/// Explanations do not wait for a gateway that is not there.
const TIMEOUT: Duration = Duration::from_millis(500);
