//! Settings that a reload cannot change, and the check that reports which of them differ.
//!
//! A reload applies everything else: a snapshot holds all settings of its configuration, and state outside of
//! snapshots gets its new settings from [`crate::server::Server::reload`]. The test below names every key of the
//! sections that are not compiled, so that a new key is either applied or listed here.

use serde_json::Value;

use crate::config::Config;

/// The keys that wait for a restart, as written in the configuration.
const RESTART_KEYS: [&str; 6] = [
    "admin.listen",
    "metering",
    "metrics.buckets",
    "metrics.methods",
    "server.state_dir",
    "server.workers",
];

/// The values of these keys at the start of the process.
#[derive(Debug)]
pub(crate) struct RestartRequired([Value; RESTART_KEYS.len()]);

impl RestartRequired {
    /// Records the values that are in force until the next restart.
    pub(crate) fn with(config: &Config) -> Self {
        Self(values(config))
    }

    /// Returns the keys whose values in `config` are not in force.
    pub(crate) fn waiting(&self, config: &Config) -> Vec<&'static str> {
        let new = values(config);
        let changed = RESTART_KEYS.iter().zip(self.0.iter().zip(&new));
        changed.filter(|(_, (old, new))| old != new).map(|(key, _)| *key).collect()
    }
}

fn values(config: &Config) -> [Value; RESTART_KEYS.len()] {
    let effective = config.effective();
    RESTART_KEYS.map(|key| value(&effective, key))
}

/// Returns the value at `key`.
fn value(effective: &Value, key: &str) -> Value {
    key.split('.').fold(effective, |value, step| &value[step]).clone()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::DirBuilderExt as _;

    use super::*;
    use crate::base::clock::Timestamp;
    use crate::config::{self, Environment};

    #[test]
    fn a_reload_applies_a_key_or_reports_it_as_waiting() {
        let directory = tempfile::tempdir().expect("a directory");
        let (state, pem) = (directory.path().join("state"), directory.path().join("key.pem"));
        std::fs::DirBuilder::new().mode(0o700).create(&state).expect("a directory");
        let key = rcgen::KeyPair::generate().expect("a key").serialize_pem();
        std::fs::write(&pem, key).expect("a file");

        for (key, values) in changes() {
            let (before, after) = (file(key, ""), file(key, values));
            let load = |text: &str| {
                config::load_text("f", text, directory.path(), &Environment::default(), NOW)
                    .unwrap_or_else(|faults| panic!("{key}\n{faults}"))
                    .0
            };
            let (before, after) = (load(&before), load(&after));

            assert_ne!(before.effective(), after.effective(), "{key} is to be seen");
            let waiting = RestartRequired::with(&before).waiting(&after);
            let wanted: &[&str] = if RESTART_KEYS.contains(&key) { &[key] } else { &[] };
            assert_eq!(waiting, wanted, "{key}");
        }
    }

    #[test]
    fn every_key_of_sections_that_are_not_compiled_is_covered() {
        let looked_at: BTreeSet<&str> = changes().into_iter().map(|(key, _)| key).collect();
        let all = config::keys_of_the_process();
        let all: BTreeSet<&str> = all.iter().map(String::as_str).collect();

        assert_eq!(looked_at, all);
    }

    #[test]
    fn the_documentation_lists_the_keys_that_wait_and_no_others() {
        let docs = include_str!("../../../docs/config.md");
        let (_, behind) = docs.split_once("These keys wait for a restart:").expect("a list");
        // The list ends with its sentence; the names are between backticks.
        let list = behind.split_once("`.").expect("an end").0;
        let listed: BTreeSet<&str> = list.split('`').skip(1).step_by(2).collect();

        assert_eq!(listed, RESTART_KEYS.into_iter().collect());
    }

    /// Returns every key, with a value that differs from that in [`file`].
    fn changes() -> Vec<(&'static str, &'static str)> {
        vec![
            ("listen[].address", "127.0.0.1:9000"),
            ("listen[].tls", "self_signed"),
            ("listen[].http2", "false"),
            ("listen[].redirect_https", "8443"),
            ("listen[].proxy_protocol", "true"),
            ("server.workers", "3"),
            ("server.header_timeout", "3s"),
            ("server.body_timeout", "3s"),
            ("server.min_body_rate", "3B"),
            ("server.idle_timeout", "3s"),
            ("server.max_header_size", "9KiB"),
            ("server.max_headers", "3"),
            ("server.max_body_size", "3B"),
            ("server.max_connections", "3"),
            ("server.max_connections_per_ip", "3"),
            ("server.max_requests_in_flight", "3"),
            ("server.http2_max_concurrent_streams", "3"),
            ("server.trusted_proxies", "[10.0.0.0/8]"),
            ("server.forwarded_headers", "none"),
            ("server.public_url", "https://a.example"),
            ("server.dpop_nonce_keys", "['AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=']"),
            ("server.drain_delay", "3s"),
            ("server.drain_timeout", "3s"),
            ("server.state_dir", "state"),
            ("server.identity_keys", "key.pem"),
            ("server.server_header", "a"),
            ("server.request_id_header", "X-Id"),
            ("admin.listen", "127.0.0.1:9902"),
            ("admin.token", "another-long-token"),
            ("admin.public_metrics_only", "true"),
            ("logging.level", "debug"),
            ("logging.format", "text"),
            ("logging.access", "off"),
            ("logging.sample", "3%"),
            ("logging.redact_query", "[a]"),
            ("metrics.path", "/other"),
            ("metrics.buckets", "[1, 2]"),
            ("metrics.methods", "false"),
        ]
    }

    /// Returns a configuration in which `key` has `value`, if there is one.
    fn file(key: &str, value: &str) -> String {
        let mut listen = "address: 127.0.0.1:8080".to_owned();
        let mut sections = String::new();
        let (section, name) = key.split_once('.').expect("a section");
        match (section, value) {
            (_, "") => {}
            ("listen[]", _) if name == "address" => listen = format!("address: {value}"),
            ("listen[]", _) if name == "proxy_protocol" => {
                listen.push_str(", proxy_protocol: true");
                sections = "server: { trusted_proxies: [10.0.0.0/8] }\n".to_owned();
            }
            ("listen[]", _) => listen.push_str(&format!(", {name}: {value}")),
            _ => sections = format!("{section}: {{ {name}: {value} }}\n"),
        }
        format!(
            "version: 1\nlisten: [{{ {listen} }}]\n{sections}routes: [{{ id: a, path: /**, respond: {{}}, auth: none }}]\n"
        )
    }

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
}
