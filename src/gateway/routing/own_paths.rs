//! The gateway's own paths: those of sessions, and the documents that it publishes about itself.
//!
//! Both `compile` and `northgate explain` take them from here, so that explanations agree with what is served.
//!
//! A session's own paths receive passwords, codes and logout tokens. On the hosts where the session is used
//! ([`own_path_hosts::hosts`](crate::config::own_path_hosts::hosts)) they take precedence over every route; on other hosts they
//! are served where no route is as specific. A document yields to a route that names its path.

use std::sync::Arc;

use http::Method;

use super::action::Action;
use super::route::CompiledRoute;
use crate::config::route::{HostPattern, PathPattern, Segment};
use crate::config::{Config, Route, own_path_hosts};
use crate::gateway::proxy::identity_token::JWKS_PATH;
use crate::gateway::proxy::rewrite;
use crate::gateway::well_known::protected_resource::ProtectedResources;
use crate::session;

/// The owner of one of the gateway's own paths.
#[derive(Debug)]
pub(crate) enum OwnPathOwner<'c> {
    /// A session.
    Session(&'c session::Settings),
    /// Protected-resource metadata (RFC 9728), with its response.
    Metadata(Action),
    /// The public keys of identity tokens (RFC 7517).
    Keys,
}

/// Returns the own paths of `config`, with the routes that `make_route` creates for their owners.
///
/// # Errors
///
/// The errors of `make_route`.
pub(crate) fn entries<'c, R, E>(
    config: &'c Config,
    resources: &ProtectedResources<'c>,
    make_route: impl Fn(OwnPathOwner<'c>) -> Result<Arc<R>, E>,
) -> Result<Vec<CompiledRoute<R>>, E> {
    let mut entries = Vec::new();
    for session in config.sessions.values() {
        let route = make_route(OwnPathOwner::Session(session))?;
        entries.extend(of_session(config, session, &route));
    }
    let public = config.server.public_url.as_ref().and_then(HostPattern::of_url);
    for (path, response) in resources.documents() {
        let route = make_route(OwnPathOwner::Metadata(response))?;
        // On the public host no other route takes the path over; on any host, for proxies that use another name.
        let hosts = [public.iter().cloned().collect(), Vec::new()];
        entries.extend(hosts.map(|hosts| of_document(hosts, path.clone(), Arc::clone(&route))));
    }
    if config.routes.iter().any(wants_identity_tokens) {
        let route = make_route(OwnPathOwner::Keys)?;
        let hosts = [public.map(Some), Some(None)].into_iter().flatten();
        let free = hosts.filter(|host| {
            !config.routes.iter().any(|route| names_jwks_path(route, host.as_ref()))
        });
        entries.extend(free.map(|host| {
            of_document(host.into_iter().collect(), literal(JWKS_PATH), Arc::clone(&route))
        }));
    }
    Ok(entries)
}

/// Whether an authentication method of `route` adds an identity token.
pub(crate) fn wants_identity_tokens(route: &Route) -> bool {
    route.auth.methods().iter().any(|auth_method| auth_method.identity_token)
}

/// Returns the paths of `session` on its hosts, and on any host those that no other session has.
fn of_session<R>(
    config: &Config,
    session: &session::Settings,
    route: &Arc<R>,
) -> impl Iterator<Item = CompiledRoute<R>> {
    let hosts = own_path_hosts::hosts(session, &config.routes);
    let everywhere = hosts.contains(&None);
    let others = || config.sessions.values().filter(|other| other.name != session.name);
    let contested = |path: &str| others().any(|other| other.own_paths().any(|own| own == path));
    let all = session.own_paths().map(literal).collect();
    let free =
        session.own_paths().filter(|path| everywhere || !contested(path)).map(literal).collect();
    let entry = |hosts: Vec<HostPattern>, paths: Vec<PathPattern>| CompiledRoute {
        hosts,
        paths,
        methods: Vec::new(),
        match_headers: Vec::new(),
        exclusive: true,
        route: Arc::clone(route),
    };
    [entry(hosts.into_iter().flatten().collect(), all), entry(Vec::new(), free)].into_iter()
}

/// Returns the entry of a document of the gateway at `path` on `hosts`; on any host if there are none.
fn of_document<R>(hosts: Vec<HostPattern>, path: PathPattern, route: Arc<R>) -> CompiledRoute<R> {
    CompiledRoute {
        hosts,
        paths: vec![path],
        methods: vec![Method::GET, Method::HEAD],
        match_headers: Vec::new(),
        exclusive: false,
        route,
    }
}

/// Whether the operator has a route for the JWK set path on `host` (or, without one, on any host); a `/**` does not
/// count.
fn names_jwks_path(route: &Route, host: Option<&HostPattern>) -> bool {
    let well_known = Some(&Segment::Literal(".well-known".into()));
    let here = |pattern: &HostPattern| host.is_some_and(|host| pattern.overlaps(host));
    (route.hosts.is_empty() || route.hosts.iter().any(here))
        && route.paths.iter().any(|path| {
            path.segments.first() == well_known && rewrite::is_valid_target(path, JWKS_PATH)
        })
}

/// Returns the pattern of one path.
fn literal(path: &str) -> PathPattern {
    let segments = path.split('/').skip(1).map(|text| Segment::Literal(text.into()));
    PathPattern { segments: segments.collect(), rest: false }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use http::Request;
    use http::header::HOST;

    use super::*;
    use crate::base::clock::Timestamp;
    use crate::config::{self, Environment};
    use crate::gateway::view::explain::RouteExplainer;

    const ALL: &str = "/auth/login /auth/callback /auth/logout /auth/session /auth/refresh /auth/back-channel-logout";

    #[test]
    fn own_paths_come_before_every_route_of_the_public_host() {
        let config = config(
            "web: { public_url: \"https://WWW.example.com:8443\", SESSION }",
            "
  - { id: exact, host: www.example.com, path: /**, upstream: s, auth: none }
  - { id: below, host: www.example.com, path: /auth/**, upstream: s, auth: none }
  - { id: beyond, host: www.example.com, path: /auth/login/**, upstream: s, auth: none }
  - { id: step, host: www.example.com, path: \"/auth/{step}\", methods: [GET, POST], upstream: s, auth: none }
  - { id: field, host: www.example.com, path: \"/{a}/{b}\", match_headers: { x-a: b }, upstream: s, auth: none }
  - { id: any-label, host: \"*.example.com\", path: /**, upstream: s, auth: none }
  - { id: app, path: /**, upstream: s, auth: { session: web } }
",
        );
        for host in
            ["www.example.com", "WWW.EXAMPLE.com:8443", "www.example.com.", "www.example.com:1"]
        {
            for path in ALL.split(' ') {
                for method in ["GET", "POST", "PUT", "OPTIONS"] {
                    assert_eq!(
                        taken(&config, method, host, path),
                        "_session_web",
                        "{method} {host} {path}"
                    );
                }
            }
        }
        // A path below an own path is not one; another spelling of it is, unless an upstream could read it in several ways.
        assert_eq!(taken(&config, "POST", "www.example.com", "/auth/login/x"), "beyond");
        assert_eq!(taken(&config, "POST", "www.example.com", "/auth/%6Cogin"), "_session_web");
        assert_eq!(taken(&config, "POST", "www.example.com", "//auth/./login"), "400");
        assert_eq!(taken(&config, "POST", "www.example.com", "/auth/login;x"), "400");
        assert_eq!(taken(&config, "TRACE", "www.example.com", "/auth/login"), "405");
    }

    #[test]
    fn a_public_url_by_address_is_known_in_every_spelling() {
        let config = config(
            "web: { public_url: \"https://[2001:db8:0:0::1]\", SESSION }",
            "
  - { id: all, host: \"[2001:DB8::0:1]\", path: /**, upstream: s, auth: none }
",
        );
        for host in ["[2001:db8::1]", "[2001:DB8:0:0:0:0:0:1]:443"] {
            assert_eq!(taken(&config, "POST", host, "/auth/login"), "_session_web", "{host}");
            assert_eq!(taken(&config, "POST", host, "/other"), "all", "{host}");
        }
    }

    /// A user agent is redirected to the login of the host that it is on: `/**` there must not loop it.
    #[test]
    fn own_paths_come_first_wherever_a_route_takes_the_session() {
        let config = config(
            "web: { public_url: \"https://www.example.com\", SESSION }",
            "
  - { id: app, host: [app.example.com, \"*.shop.example.com\"], path: /**, upstream: s, auth: { session: web } }
  - { id: other, host: other.example.com, path: /**, upstream: s, auth: none }
",
        );
        for host in
            ["www.example.com", "app.example.com", "a.shop.example.com", "elsewhere.example"]
        {
            assert_eq!(taken(&config, "GET", host, "/auth/login"), "_session_web", "{host}");
        }
        assert_eq!(taken(&config, "GET", "other.example.com", "/auth/login"), "other");
    }

    #[test]
    fn sessions_of_different_hosts_may_have_the_same_paths() {
        let config = config(
            "web: { public_url: \"https://www.example.com\", SESSION }
  shop: { public_url: \"https://shop.example.com\", SESSION }",
            "
  - { id: web, host: www.example.com, path: /**, upstream: s, auth: { session: web } }
  - { id: shop, host: shop.example.com, path: /**, upstream: s, auth: { session: shop } }
",
        );
        assert_eq!(taken(&config, "GET", "www.example.com", "/auth/login"), "_session_web");
        assert_eq!(taken(&config, "GET", "shop.example.com", "/auth/login"), "_session_shop");
        assert_eq!(taken(&config, "GET", "else.example.com", "/auth/login"), "404");
    }

    #[test]
    fn the_jwk_set_is_explained_where_it_is_served() {
        let config = config(
            "{}",
            "
  - { id: all, host: www.example.com, path: /**, upstream: s, auth: { jwt: main, identity_token: true } }
",
        );
        assert_eq!(
            taken(&config, "GET", "www.example.com", "/.well-known/jwks.json"),
            "_identity_keys"
        );
        assert_eq!(
            taken(&config, "GET", "else.example.com", "/.well-known/jwks.json"),
            "_identity_keys"
        );
    }

    /// Returns the route of a request, or the status of the refusal.
    fn taken(config: &Config, method: &str, host: &str, path: &str) -> String {
        let request =
            Request::builder().method(method).uri(path).header(HOST, host).header("x-a", "b");
        let (head, ()) = request.body(()).unwrap().into_parts();
        match RouteExplainer::of(config).decide(head).outcome {
            Ok(destination) => destination.id(),
            Err(rejection) => rejection.status().as_u16().to_string(),
        }
    }

    fn config(sessions: &str, routes: &str) -> Config {
        let session =
            "issuer: main, flow: code, client: { id: web, auth: none }, keys: [{ env: KEY }]";
        let text = format!(
            "version: 1\nlisten: 127.0.0.1:0\nserver: {{ public_url: \"https://www.example.com\" }}\n\
             issuers:\n  main: {{ issuer: \"https://main.example.com\", audience: a }}\n\
             sessions:\n  {}\nupstreams: {{ s: {{ targets: [\"http://127.0.0.1:1\"] }} }}\nroutes:{routes}",
            sessions.replace("SESSION", session),
        );
        let key = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=";
        let environment: Environment = [("KEY", key)].into_iter().collect();
        let loaded =
            config::load_text("f", &text, Path::new(""), &environment, Timestamp::from_secs(0));
        loaded.unwrap_or_else(|faults| panic!("{faults}\n{text}")).0
    }
}
