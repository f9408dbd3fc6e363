//! What the gateway says of itself: protected-resource metadata (RFC 9728), derived from its own routes.
//!
//! The gateway as a whole is a resource, known by `server.public_url`. So is whatever lies below
//! each literal beginning of a path that takes tokens: routes on `/api/orders/**` and on
//! `/api/orders/{id}` are the resource `<public_url>/api/orders`. Each resource has a document, its
//! path behind the well-known one (RFC 9728 §3.1), and a route's challenges name that of its own
//! resource (§5.1): a client that follows them learns what this route wants, not what any might.
//!
//! Routes on other hosts than the public one are other resources, of which nothing is said. An
//! operator who routes `/.well-known` paths has the last word on them.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde_json::{Value, json};
use url::Url;

use crate::config::route::{Cors, HostPattern, PathPattern, Segment};
use crate::config::server::Tls;
use crate::config::{Auth, AuthMethod, Config, Credential, Route, TokenBinding};
use crate::gateway::proxy::rewrite;
use crate::gateway::routing::action::Action;
use crate::token::binding::dpop;

/// What metrics and the log call requests for these documents.
pub(crate) const ID: &str = "_protected_resource";

/// The gateway's resources, by where they begin.
#[derive(Debug)]
pub(crate) struct ProtectedResources<'c> {
    config: &'c Config,
    /// Without a name of its own, the gateway is no resource to anybody.
    public: Option<&'c Url>,
    /// The whole is there too, as the empty beginning.
    by_beginning: BTreeMap<String, ResourceMetadata<'c>>,
}

/// What the routes of one resource take.
#[derive(Debug, Default)]
struct ResourceMetadata<'c> {
    issuers: BTreeSet<&'c str>,
    scopes: BTreeSet<&'c str>,
    /// Whether some way takes tokens that are not bound to a key.
    takes_others: bool,
}

impl<'c> ProtectedResources<'c> {
    /// The resources that `config` makes.
    pub(crate) fn of(config: &'c Config) -> Self {
        let public = config.server.public_url.as_ref();
        let mut resources = Self { config, public, by_beginning: BTreeMap::new() };
        for route in config.routes.iter().filter(|route| route.enabled) {
            if !resources.has(route) {
                continue;
            }
            let beginnings: BTreeSet<_> = route.paths.iter().map(path_prefix).collect();
            for beginning in beginnings.into_iter().chain([String::new()]) {
                let facts = resources.by_beginning.entry(beginning).or_default();
                auth_methods(route).for_each(|way| facts.add(config, way));
            }
        }
        resources
    }

    /// What proofs of possession on `route` are for, if it is reached by the gateway's public name.
    pub(crate) fn public_url(&self, route: &Route) -> Option<&'c Url> {
        self.public.filter(|url| HostPattern::of_url(url).is_some_and(|host| serves(route, &host)))
    }

    /// Where the document of `route`'s resource is.
    pub(crate) fn document_of(&self, route: &Route) -> Option<Box<str>> {
        if !self.has(route) {
            return None;
        }
        let mut beginnings: Vec<_> = route.paths.iter().map(path_prefix).collect();
        beginnings.dedup();
        // Of a route in several places, only the whole can be said to be its resource.
        let path = if let [one] = &*beginnings { one } else { "" };
        Some(format!("{}{WELL_KNOWN}{path}", origin(self.public?)).into())
    }

    /// Every document: its path, and what answers there.
    pub(crate) fn documents(&self) -> impl Iterator<Item = (PathPattern, Action)> {
        let host = self.public.and_then(HostPattern::of_url);
        self.by_beginning.iter().filter_map(move |(beginning, facts)| {
            let at = format!("{WELL_KNOWN}{beginning}");
            let host = host.as_ref();
            let taken = |route: &Route| {
                host.is_some_and(|host| serves(route, host)) && is_well_known(route, &at)
            };
            if self.config.routes.iter().any(taken) {
                return None;
            }
            let document =
                facts.document(self.config, &format!("{}{beginning}", origin(self.public?)));
            let segments = at.split('/').skip(1).map(|text| Segment::Literal(text.into()));
            let path = PathPattern { segments: segments.collect(), rest: false };
            Some((path, answer(&document)))
        })
    }

    /// Whether `route` is part of one.
    fn has(&self, route: &Route) -> bool {
        self.public_url(route).is_some() && auth_methods(route).next().is_some()
    }
}

impl<'c> ResourceMetadata<'c> {
    fn add(&mut self, config: &'c Config, way: &'c AuthMethod) {
        let issuers = issuers(&way.credential).iter().filter_map(|name| config.issuers.get(name));
        self.issuers.extend(issuers.map(|issuer| &*issuer.settings.issuer));
        self.scopes.extend(way.scopes.iter().chain(way.any_scope.iter()));
        self.takes_others |= way.bound_to != Some(TokenBinding::Key);
    }

    /// The document of RFC 9728 §2.
    fn document(&self, config: &Config, resource: &str) -> Value {
        let mut document = json!({
            "resource": resource,
            "authorization_servers": self.issuers,
            "bearer_methods_supported": ["header"],
            "dpop_signing_alg_values_supported": dpop::algorithms(),
            "dpop_bound_access_tokens_required": !self.takes_others,
            "tls_client_certificate_bound_access_tokens": asks_for_certificates(config),
        });
        if !self.scopes.is_empty() {
            document["scopes_supported"] = json!(self.scopes);
        }
        document
    }
}

/// Any page may read it, and anybody keep it for a while.
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

fn answer(document: &Value) -> Action {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600")),
    ];
    Action::Respond {
        status: StatusCode::OK,
        headers: HeaderMap::from_iter(headers),
        body: document.to_string().into(),
    }
}

/// The ways of a route that take access tokens of the client's own.
fn auth_methods(route: &Route) -> impl Iterator<Item = &AuthMethod> {
    let ways = match &route.auth {
        Auth::None => &[][..],
        Auth::Ways { ways, .. } => ways,
    };
    ways.iter().filter(|way| !issuers(&way.credential).is_empty())
}

/// Whose tokens a way takes.
fn issuers(credential: &Credential) -> &[Arc<str>] {
    match credential {
        Credential::Jwt(issuers)
        | Credential::Introspection(issuers)
        | Credential::Bearer(issuers) => issuers,
        Credential::Basic(_) | Credential::Session(_) => &[],
    }
}

fn serves(route: &Route, host: &HostPattern) -> bool {
    route.hosts.is_empty() || route.hosts.iter().any(|pattern| pattern.overlaps(host))
}

/// Whether the operator speaks of `/.well-known` in a path that takes `at`; a `/**` speaks of nothing in particular.
fn is_well_known(route: &Route, at: &str) -> bool {
    route.paths.iter().any(|path| {
        path.segments.first() == Some(&Segment::Literal(".well-known".into()))
            && rewrite::is_valid_target(path, at)
    })
}

/// What all that fits `path` begins with: its steps before the first that is not fixed. The root is empty.
fn path_prefix(path: &PathPattern) -> String {
    let fixed = path.segments.iter().map_while(|segment| match segment {
        Segment::Literal(text) => Some(format!("/{text}")),
        Segment::Parameter(_) => None,
    });
    let beginning: String = fixed.collect();
    if beginning == "/" { String::new() } else { beginning }
}

fn asks_for_certificates(config: &Config) -> bool {
    let asks = |tls: &Tls| tls.clients.is_some();
    config.listeners.iter().any(|listener| listener.tls.as_ref().is_some_and(asks))
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
    fn every_literal_beginning_is_a_resource_and_so_is_the_whole() {
        let config = config(
            "public_url: https://api.example.com",
            "
  - { id: read, path: [/orders/**, \"/orders/{id}\"], methods: [GET], upstream: s, auth: { jwt: main, scopes: [orders:read] } }
  - { id: write, path: /orders/**, methods: [POST], upstream: s, auth: { jwt: main, any_scope: [orders:write, admin], dpop: true } }
  - { id: bound, path: /bound, upstream: s, auth: { bearer: other, dpop: true } }
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
            [at(""), at("/bound"), at("/orders")]
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
    fn whoever_routes_well_known_paths_has_the_last_word_on_them() {
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
    fn a_gateway_without_a_name_says_nothing_of_itself() {
        let config =
            config("workers: 1", "\n  - { id: a, path: /a, upstream: s, auth: { jwt: main } }\n");
        let resources = ProtectedResources::of(&config);

        assert_eq!(resources.documents().count(), 0);
        assert_eq!(resources.document_of(&config.routes[0]), None);
    }

    fn documents(config: &Config) -> BTreeMap<String, Value> {
        let read = |(path, action): (PathPattern, Action)| {
            let Action::Respond { body, .. } = action else { panic!("an answer") };
            (path.to_string(), serde_json::from_slice(&body).unwrap())
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
