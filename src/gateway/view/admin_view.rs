//! The snapshot being served, as shown by the admin API.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::gateway::Snapshot;
use crate::limit::Limiter;
use crate::upstream::CircuitState;

impl Snapshot {
    /// Describes every route: its id, its match conditions and its upstream.
    pub fn describe_routes(&self) -> Value {
        self.router
            .entries()
            .iter()
            .map(|entry| {
                json!({
                    "id": *entry.route.properties.id,
                    "hosts": entry.hosts.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    "paths": entry.paths.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    "methods": entry.methods.iter().map(http::Method::as_str).collect::<Vec<_>>(),
                    "upstream": entry.route.properties.upstream,
                })
            })
            .collect()
    }

    /// Returns the limits of the configuration.
    pub fn limiters(&self) -> impl Iterator<Item = &Arc<Limiter>> {
        self.limiters.iter()
    }

    /// Returns the ids of all routes.
    pub fn route_ids(&self) -> impl Iterator<Item = &str> {
        self.router.entries().iter().map(|entry| &*entry.route.properties.id)
    }

    /// Updates the health metrics of all endpoints: an endpoint whose ejection is over counts as healthy even before
    /// its next request.
    pub fn refresh_health(&self) {
        self.upstreams.iter().for_each(|upstream| upstream.refresh_health());
    }

    /// Describes every upstream in use: its endpoints, with their load and health.
    pub fn describe_upstreams(&self) -> Value {
        self.upstreams
            .iter()
            .map(|upstream| {
                let endpoints: Vec<_> = upstream
                    .endpoints()
                    .into_iter()
                    .map(|(endpoint, state, is_out)| {
                        json!({
                            "url": endpoint.name(),
                            "address": endpoint.address().map(|address| address.to_string()),
                            "in_flight": endpoint.load(),
                            "healthy": state.is_available(),
                            "state": state.word(),
                            "out": is_out,
                            "last_failure": endpoint.last_failure(),
                        })
                    })
                    .collect();
                json!({
                    "name": *upstream.settings().name,
                    "circuit": upstream.circuit().map(CircuitState::word),
                    "endpoints": endpoints,
                })
            })
            .collect()
    }
}
