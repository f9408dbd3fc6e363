//! What is being served, for the operator.

use serde_json::{Value, json};

use crate::gateway::Snapshot;

impl Snapshot {
    /// Every route: its id, what it matches, and where it leads.
    pub fn describe_routes(&self) -> Value {
        self.router
            .entries()
            .iter()
            .map(|entry| {
                json!({
                    "id": *entry.route.id,
                    "hosts": entry.hosts.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    "paths": entry.paths.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    "methods": entry.methods.iter().map(http::Method::as_str).collect::<Vec<_>>(),
                    "upstream": entry.route.upstream(),
                })
            })
            .collect()
    }

    /// Brings the metrics of services' endpoints up to date: one whose ejection is over gets requests again, whether or
    /// not one has come since.
    pub fn refresh_health(&self) {
        self.upstreams.iter().for_each(|upstream| upstream.refresh_health());
    }

    /// Every service in use: its endpoints, with their load and health.
    pub fn describe_upstreams(&self) -> Value {
        self.upstreams
            .iter()
            .map(|upstream| {
                let endpoints: Vec<_> = upstream
                    .endpoints()
                    .map(|(endpoint, healthy)| {
                        json!({ "url": endpoint.name(), "in_flight": endpoint.load(), "healthy": healthy })
                    })
                    .collect();
                json!({ "name": *upstream.settings().name, "endpoints": endpoints })
            })
            .collect()
    }
}
