//! Protected-resource metadata (RFC 9728), derived from the routes.
//!
//! The gateway as a whole is a resource, identified by `server.public_url`. So is each literal path prefix of routes
//! that take tokens: routes on `/api/orders/**` and `/api/orders/{id}` are the resource `<public_url>/api/orders`.
//! Each resource has a document at the well-known path followed by its own path (RFC 9728 §3.1), and a route's
//! challenges name the document of its resource (§5.1), so that a client learns the requirements of this route and of
//! no other.
//!
//! Routes on other hosts than the public one belong to no resource. A route of the operator for a `/.well-known` path
//! takes precedence.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde_json::{Value, json};
use url::Url;

use crate::config::auth::TokenSource;
use crate::config::route::{Cors, HostPattern, PathPattern, Segment};
use crate::config::server::Tls;
use crate::config::{AuthMethod, Config, Route, TokenBinding};
use crate::gateway::proxy::header_edits::HeaderEditor;
use crate::gateway::proxy::rewrite;
use crate::gateway::response::static_response::StaticResponse;
use crate::gateway::routing::action::Action;
use crate::token::binding::dpop;

/// The route name of these documents in metrics and log.
pub(crate) const ID: &str = "_protected_resource";

/// The resources of the gateway, by path prefix.
#[derive(Debug)]
pub(crate) struct ProtectedResources<'c> {
    config: &'c Config,
    /// The identifier of the gateway; without it there are no resources.
    public_url: Option<&'c Url>,
    /// The gateway as a whole is the empty prefix.
    by_prefix: BTreeMap<String, ResourceMetadata<'c>>,
}

/// The metadata of one resource, collected from its routes.
#[derive(Debug, Default)]
struct ResourceMetadata<'c> {
    issuers: BTreeSet<&'c str>,
    scopes: BTreeSet<&'c str>,
    /// Whether a method accepts tokens that are not bound to a key.
    accepts_unbound: bool,
    /// The ways of RFC 6750 §2 to present a token; a cookie or a field of its own is none.
    bearer_methods: &'static [&'static str],
}

impl<'c> ProtectedResources<'c> {
    /// Collects the resources of `config`.
    pub(crate) fn of(config: &'c Config) -> Self {
        let public_url = config.server.public_url.as_ref();
        let mut resources = Self { config, public_url, by_prefix: BTreeMap::new() };
        for route in config.routes.iter().filter(|route| route.enabled) {
            if !resources.has(route) {
                continue;
            }
            let prefixes: BTreeSet<_> = route.paths.iter().map(path_prefix).collect();
            for prefix in prefixes.into_iter().chain([String::new()]) {
                let metadata = resources.by_prefix.entry(prefix).or_default();
                auth_methods(route).for_each(|auth_method| metadata.add(config, auth_method));
            }
        }
        resources
    }

    /// Returns the URL that proofs of possession on `route` must name, if `route` is on the public host.
    pub(crate) fn public_url(&self, route: &Route) -> Option<&'c Url> {
        self.public_url
            .filter(|url| HostPattern::of_url(url).is_some_and(|host| serves(route, &host)))
    }

    /// Returns the URL of the metadata of `route`'s resource.
    pub(crate) fn document_of(&self, route: &Route) -> Option<Box<str>> {
        if !self.has(route) {
            return None;
        }
        let mut prefixes: Vec<_> = route.paths.iter().map(path_prefix).collect();
        prefixes.dedup();
        // A route with several prefixes belongs to the gateway as a whole.
        let path = if let [prefix] = &*prefixes { prefix } else { "" };
        Some(format!("{}{WELL_KNOWN}{path}", origin(self.public_url?)).into())
    }

    /// Returns every document: its path, and the action that responds with it.
    pub(crate) fn documents(&self) -> impl Iterator<Item = (PathPattern, Action)> {
        let host = self.public_url.and_then(HostPattern::of_url);
        self.by_prefix.iter().filter_map(move |(prefix, metadata)| {
            let at = format!("{WELL_KNOWN}{prefix}");
            let host = host.as_ref();
            let taken = |route: &Route| {
                host.is_some_and(|host| serves(route, host)) && is_well_known(route, &at)
            };
            if self.config.routes.iter().any(taken) {
                return None;
            }
            let document =
                metadata.document(self.config, &format!("{}{prefix}", origin(self.public_url?)));
            let segments = at.split('/').skip(1).map(|text| Segment::Literal(text.into()));
            let path = PathPattern { segments: segments.collect(), rest: false };
            Some((path, respond(&document)))
        })
    }

    /// Whether `route` belongs to a resource.
    fn has(&self, route: &Route) -> bool {
        self.public_url(route).is_some() && auth_methods(route).next().is_some()
    }
}

impl<'c> ResourceMetadata<'c> {
    fn add(&mut self, config: &'c Config, auth_method: &'c AuthMethod) {
        let issuers = auth_method
            .credential
            .token_issuers()
            .iter()
            .filter_map(|name| config.issuers.get(name));
        self.issuers.extend(issuers.map(|issuer| &*issuer.settings.issuer));
        self.scopes.extend(auth_method.scopes.iter().chain(auth_method.any_scope.iter()));
        self.accepts_unbound |= auth_method.bound_to != Some(TokenBinding::Key);
        if auth_method.token_from == TokenSource::Authorization {
            self.bearer_methods = &["header"];
        }
    }

    /// Returns the document (RFC 9728 §2).
    fn document(&self, config: &Config, resource: &str) -> Value {
        let mut document = json!({
            "resource": resource,
            "authorization_servers": self.issuers,
            "bearer_methods_supported": self.bearer_methods,
            "dpop_signing_alg_values_supported": dpop::algorithms(),
            "dpop_bound_access_tokens_required": !self.accepts_unbound,
            "tls_client_certificate_bound_access_tokens": requests_client_certificates(config),
        });
        if !self.scopes.is_empty() {
            document["scopes_supported"] = json!(self.scopes);
        }
        document
    }
}

/// Returns the CORS policy of the documents: any page may read them.
pub(crate) fn cors() -> Cors {
    Cors {
        origins: None,
        methods: vec![Method::GET, Method::HEAD],
        headers: Vec::new(),
        expose: Vec::new(),
        credentials: false,
        max_age: Duration::from_secs(86_400),
    }
}

fn respond(document: &Value) -> Action {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600")),
    ];
    let response = StaticResponse {
        status: StatusCode::OK,
        headers: HeaderMap::from_iter(headers),
        body: document.to_string().into(),
    };
    Action::Respond(response, HeaderEditor::default())
}

/// Returns the authentication methods of a route that take access tokens of the client.
fn auth_methods(route: &Route) -> impl Iterator<Item = &AuthMethod> {
    let auth_methods = route.auth.methods().iter();
    auth_methods.filter(|auth_method| !auth_method.credential.token_issuers().is_empty())
}

fn serves(route: &Route, host: &HostPattern) -> bool {
    route.hosts.is_empty() || route.hosts.iter().any(|pattern| pattern.overlaps(host))
}

/// Whether the operator has a route for a `/.well-known` path that matches `at`; a `/**` does not count.
fn is_well_known(route: &Route, at: &str) -> bool {
    route.paths.iter().any(|path| {
        path.segments.first() == Some(&Segment::Literal(".well-known".into()))
            && rewrite::is_valid_target(path, at)
    })
}

/// Returns the literal segments at the beginning of `path`. The root is empty.
fn path_prefix(path: &PathPattern) -> String {
    let fixed = path.segments.iter().map_while(|segment| match segment {
        Segment::Literal(text) => Some(format!("/{text}")),
        Segment::Parameter(_) => None,
    });
    let prefix: String = fixed.collect();
    if prefix == "/" { String::new() } else { prefix }
}

fn requests_client_certificates(config: &Config) -> bool {
    let requests = |tls: &Tls| tls.clients.is_some();
    config.listeners.iter().any(|listener| listener.tls.as_ref().is_some_and(requests))
}

fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::base::clock::Timestamp;
    use crate::config::{self, Environment};

    #[test]
    fn every_literal_prefix_is_a_resource_and_so_is_the_gateway() {
        let config = config(
            "public_url: https://api.example.com",
            "
  - { id: read, path: [/orders/**, \"/orders/{id}\"], methods: [GET], upstream: s, auth: { jwt: main, scopes: [orders:read] } }
  - { id: write, path: /orders/**, methods: [POST], upstream: s, auth: { jwt: main, any_scope: [orders:write, admin], dpop: true } }
  - { id: bound, path: /bound, upstream: s, auth: { bearer: other, dpop: true } }
  - { id: cookie, path: /cookie, upstream: s, auth: { jwt: main, token_from: { cookie: at } } }
  - { id: open, path: /open, upstream: s, auth: none }
  - { id: basic, path: /basic, upstream: s, auth: { basic: other } }
  - { id: elsewhere, host: other.example.com, path: /elsewhere, upstream: s, auth: { jwt: main } }
  - { id: root, host: [\"*.example.com\"], path: /, upstream: s, auth: { jwt: main } }
",
        );
        let documents = documents(&config);

        let at = |path: &str| format!("/.well-known/oauth-protected-resource{path}");
        assert_eq!(
            documents.keys().cloned().collect::<Vec<_>>(),
            [at(""), at("/bound"), at("/cookie"), at("/orders")]
        );
        let orders = &documents[&at("/orders")];
        assert_eq!(orders["resource"], "https://api.example.com/orders");
        assert_eq!(orders["authorization_servers"], json!(["https://main.example.com"]));
        assert_eq!(orders["scopes_supported"], json!(["admin", "orders:read", "orders:write"]));
        assert_eq!(orders["bearer_methods_supported"], json!(["header"]));
        assert_eq!(orders["dpop_bound_access_tokens_required"], false);
        assert_eq!(orders["tls_client_certificate_bound_access_tokens"], false);
        let algorithms = orders["dpop_signing_alg_values_supported"].as_array().unwrap();
        assert!(algorithms.contains(&json!("ES256")) && !algorithms.contains(&json!("HS256")));
        assert_eq!(documents[&at("/cookie")]["bearer_methods_supported"], json!([]));
        let bound = &documents[&at("/bound")];
        assert_eq!(bound["dpop_bound_access_tokens_required"], true);
        assert_eq!(bound.get("scopes_supported"), None);
        let whole = &documents[&at("")];
        assert_eq!(whole["resource"], "https://api.example.com");
        assert_eq!(
            whole["authorization_servers"],
            json!(["https://main.example.com", "https://other.example.com"])
        );
    }

    #[test]
    fn a_route_names_the_document_of_its_own_resource() {
        let config = config(
            "public_url: \"https://api.example.com:8443/\"",
            "
  - { id: orders, path: [/orders/**, \"/orders/{id}/items\"], upstream: s, auth: { jwt: main } }
  - { id: two, path: [/a, /b], upstream: s, auth: { jwt: main } }
  - { id: all, path: /**, upstream: s, auth: { jwt: main } }
  - { id: basic, path: /basic, upstream: s, auth: { basic: other } }
  - { id: elsewhere, host: other.example.com, path: /c, upstream: s, auth: { jwt: main } }
",
        );
        let resources = ProtectedResources::of(&config);
        let named = |id: &str| {
            let route = config.routes.iter().find(|route| &*route.id == id).unwrap();
            resources.document_of(route)
        };

        let at = |path: &str| {
            let url = "https://api.example.com:8443/.well-known/oauth-protected-resource";
            Some(format!("{url}{path}").into_boxed_str())
        };
        assert_eq!(named("orders"), at("/orders"));
        assert_eq!(named("two"), at(""));
        assert_eq!(named("all"), at(""));
        assert_eq!(named("basic"), None);
        assert_eq!(named("elsewhere"), None);
    }

    #[test]
    fn routes_for_well_known_paths_take_precedence() {
        let paths = |own: &str| {
            let routes = format!(
                "
  - {{ id: orders, path: /orders, upstream: s, auth: {{ jwt: main }} }}
  - {{ id: own, {own}, upstream: s, auth: none }}
"
            );
            documents(&config("public_url: https://api.example.com", &routes)).len()
        };

        assert_eq!(paths("path: /**"), 2);
        assert_eq!(paths("path: /.well-known/oauth-protected-resource"), 1);
        assert_eq!(paths("path: /.well-known/**"), 0);
        assert_eq!(paths("host: api.example.com, path: /.well-known/**"), 0);
        assert_eq!(paths("host: other.example.com, path: /.well-known/**"), 2);
    }

    #[test]
    fn a_gateway_without_a_public_url_publishes_no_metadata() {
        let config =
            config("workers: 1", "\n  - { id: a, path: /a, upstream: s, auth: { jwt: main } }\n");
        let resources = ProtectedResources::of(&config);

        assert_eq!(resources.documents().count(), 0);
        assert_eq!(resources.document_of(&config.routes[0]), None);
    }

    fn documents(config: &Config) -> BTreeMap<String, Value> {
        let read = |(path, action): (PathPattern, Action)| {
            let Action::Respond(response, _) = action else { panic!("an answer") };
            (path.to_string(), serde_json::from_slice(&response.body).unwrap())
        };
        ProtectedResources::of(config).documents().map(read).collect()
    }

    fn config(server: &str, routes: &str) -> Config {
        let issuer = |name: &str| {
            format!(
                "{name}: {{ issuer: \"https://{name}.example.com\", audience: a, client: {{ id: g, secret: s }} }}"
            )
        };
        let text = format!(
            "version: 1\nlisten: 127.0.0.1:0\nserver: {{ {server} }}\nissuers:\n  {}\n  {}\n\
             upstreams: {{ s: {{ targets: [\"http://127.0.0.1:1\"] }} }}\nroutes:{routes}",
            issuer("main"),
            issuer("other"),
        );
        let environment = Environment::default();
        let loaded =
            config::load_text("f", &text, Path::new(""), &environment, Timestamp::from_secs(0));
        loaded.unwrap_or_else(|faults| panic!("{faults}\n{text}")).0
    }
}
