//! The log as a pipeline reads it.

use std::net::{SocketAddr, TcpListener};

use northgate::base::strict_json;
use serde_json::{Map, Value};

use super::{Log, Running, ask};

#[test]
fn the_line_of_a_failed_request_names_the_upstream_that_was_asked() {
    for rule in
        ["split: { canary: 100% }", "split: { canary: 100% }, fallback: { upstream: canary }"]
    {
        let (address, mut log, _gateway) = start(rule);

        assert_eq!(ask(address).as_deref(), Some("502"), "{rule}");

        let line = log.event("Could not serve a request");
        assert_eq!(line["upstream"], "canary", "{rule}");
        assert_eq!(line["route"], "all", "{rule}");
    }
}

#[test]
fn the_line_of_an_ejected_target_has_its_address_and_its_logger() {
    let (address, mut log, _gateway) = start("split: { canary: 100% }");

    assert_eq!(ask(address).as_deref(), Some("502"));

    let line = log.event("out of rotation");
    assert!(line["target"].as_str().is_some_and(|target| target.starts_with("http://127.0.0.1:")));
    assert!(line["logger"].as_str().is_some_and(|logger| logger.starts_with("northgate::")));
}

impl Log {
    /// The first event from here on with `part`. All lines before it are read as strictly.
    fn event(&mut self, part: &str) -> Map<String, Value> {
        loop {
            let line = self.line("");
            let members = strict_json::parse_object(line.trim_end().as_bytes())
                .unwrap_or_else(|error| panic!("{error}: {line}"));
            if line.contains(part) {
                return members;
            }
        }
    }
}

/// A gateway whose route has an upstream that works, and `canary`, which refuses connections.
fn start(rule: &str) -> (SocketAddr, Log, Running) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let closed = listener.local_addr().expect("an address");
    drop(listener);
    let text = format!(
        "version: 1\nlisten: 127.0.0.1:0\nadmin: {{ listen: \"127.0.0.1:0\" }}\nserver: {{ workers: 1 }}\n\
         logging: {{ format: json, access: off }}\n\
         upstreams:\n  own: {{ targets: [\"http://127.0.0.1:1\"] }}\n  canary: {{ targets: [\"http://{closed}\"] }}\n\
         routes:\n  - {{ id: all, path: /, upstream: own, auth: none, {rule} }}\n"
    );
    let mut gateway = Running::start(&text, &[]);
    let mut log = gateway.log();
    let address = log.address();
    (address, log, gateway)
}
