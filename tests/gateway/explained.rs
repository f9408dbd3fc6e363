//! What `explain` says is what the gateway does, for any configuration and any request.

use http::header::HOST;
use http::{HeaderName, HeaderValue, Method, Request};
use northgate::config::{self, Config, Environment};
use northgate::gateway::view::explain::{ExplainedDestination, RouteExplainer};
use proptest::prelude::*;

use crate::support::{Answer, Gateway, Upstream, noon, whole};

/// A route of which only the place in the file is its name.
#[derive(Clone, Debug)]
struct Route {
    host: &'static str,
    path: &'static str,
    methods: &'static str,
    fields: &'static str,
    enabled: bool,
    cors: bool,
    guarded: bool,
}

#[derive(Clone, Debug)]
struct Asked {
    method: &'static str,
    host: &'static str,
    path: String,
    fields: Vec<(&'static str, &'static str)>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_global_rejects: 20_000, ..ProptestConfig::default() })]
    #[test]
    fn explain_agrees_with_the_gateway(
        routes in prop::collection::vec(route(), 1..7),
        requests in prop::collection::vec(asked(), 40),
    ) {
        let service = Upstream::polite();
        let text = whole("public_url: \"https://a.test\"", &file(&routes, &service));
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("gateway.yaml");
        std::fs::write(&path, &text).expect("written");
        let loaded = config::load(&path, &Environment::default(), noon().now());
        // Some of what is made up contradicts itself, and is refused.
        prop_assume!(loaded.is_ok());
        let (config, _) = loaded.expect("it is right");
        let gateway = Gateway::of(noon(), &text);

        for request in &requests {
            let answer = request.put_to(&gateway);
            let expected = explained(&config, request);
            let happened = (answer.status, answer.field("x-route").map(str::to_owned));
            prop_assert_eq!(happened, expected, "{:?} of {}", request, text);
        }
    }
}

/// Status and route that `explain` foretells.
fn explained(config: &Config, request: &Asked) -> (u16, Option<String>) {
    let mut head = Request::new(()).into_parts().0;
    head.method = Method::from_bytes(request.method.as_bytes()).expect("a method");
    // What is no target is no request.
    let Ok(target) = request.path.parse() else { return (400, None) };
    head.uri = target;
    head.headers.insert(HOST, HeaderValue::from_static(request.host));
    for (name, value) in &request.fields {
        head.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let decision = RouteExplainer::of(config).decide(head);
    match decision.outcome {
        Ok(_) if decision.preflight => (204, None),
        Ok(ExplainedDestination::Route(route)) if route.id.starts_with('g') => (401, None),
        Ok(ExplainedDestination::Route(route)) => (200, Some(route.id.to_string())),
        Ok(ExplainedDestination::Metadata | ExplainedDestination::Keys) => (200, None),
        Ok(ExplainedDestination::Gateway) => (204, None),
        Ok(ExplainedDestination::Session(_)) => unreachable!("there is no session"),
        Err(rejection) => (rejection.status().as_u16(), None),
    }
}

impl Asked {
    fn put_to(&self, gateway: &Gateway) -> Answer {
        let Self { method, host, path, fields } = self;
        let fields: String =
            fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let mut client = gateway.connect();
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n"));
        if *method == "HEAD" { client.answer_without_body() } else { client.answer() }
    }
}

fn file(routes: &[Route], service: &Upstream) -> String {
    let mut text = format!(
        "issuers:\n  main: {{ issuer: \"http://127.0.0.1:1\", audience: \"https://api\" }}\n\
         upstreams:\n  service: {{ targets: [\"{}\"] }}\nroutes:\n",
        service.url()
    );
    for (place, route) in routes.iter().enumerate() {
        let Route { host, path, methods, fields, enabled, cors, guarded } = route;
        let (kind, leads_to) = if *guarded {
            ("g", "upstream: service, auth: { jwt: main, identity_token: true }".to_owned())
        } else {
            (
                "r",
                format!("respond: {{ status: 200, headers: {{ X-Route: r{place} }} }}, auth: none"),
            )
        };
        let cors = if *cors { ", cors: { origins: \"*\", methods: [GET] }" } else { "" };
        text += &format!(
            "  - {{ id: {kind}{place}, {host}path: \"{path}\", {methods}{fields}{leads_to}, enabled: {enabled}{cors} }}\n"
        );
    }
    text
}

fn route() -> impl Strategy<Value = Route> {
    let host = prop::sample::select(vec![
        "",
        "",
        "host: a.test, ",
        "host: \"*.test\", ",
        "host: \"[::1]\", ",
    ]);
    let path = prop::sample::select(vec![
        "/**",
        "/a",
        "/a/**",
        "/a/{x}",
        "/a/b",
        "/a/{x}/b",
        "/a:b",
        "/",
        "/.well-known/**",
        "/{x}/**",
        "/a/b/**",
    ]);
    let methods = prop::sample::select(vec![
        "",
        "",
        "methods: [GET], ",
        "methods: [HEAD], ",
        "methods: [POST, HEAD], ",
        "methods: [OPTIONS], ",
    ]);
    let fields = prop::sample::select(vec![
        "",
        "",
        "",
        "match_headers: { x-tenant: a }, ",
        "match_headers: { x-forwarded-proto: http }, ",
        "match_headers: { x-forwarded-proto: https, x-tenant: a }, ",
        "match_headers: { remote-user: root }, ",
    ]);
    let switches =
        (prop::bool::weighted(0.8), prop::bool::weighted(0.2), prop::bool::weighted(0.2));
    (host, path, methods, fields, switches).prop_map(
        |(host, path, methods, fields, (enabled, cors, guarded))| Route {
            host,
            path,
            methods,
            fields,
            enabled,
            cors,
            guarded,
        },
    )
}

fn asked() -> impl Strategy<Value = Asked> {
    let method = prop::sample::select(vec![
        "GET",
        "GET",
        "HEAD",
        "POST",
        "OPTIONS",
        "OPTIONS",
        "TRACE",
        "get",
        "options",
        "Head",
        "PURGE",
        "CONNECT",
        "M-SEARCH",
        "PROPFIND",
        "COPY",
        "MOVE",
        "X!#$%&'*+-.^_`|~1",
    ]);
    let host = prop::sample::select(vec![
        "a.test",
        "A.TEST:80",
        "b.test",
        "a.b.test",
        "[::1]",
        "[0:0::1]",
        "[::2]",
    ]);
    let path = prop_oneof![
        4 => "/(a|b|%61|a%3Ab|a:b|a%2Fb|;x|[.]|[.][.]|%2e%2e|)(/|//|;x/|%2f|\\\\)?(a|b|%62|[.][.]|%zz)?(/|/b|/c)?",
        1 => prop::sample::select(vec![
            "/.well-known/jwks.json".to_owned(),
            "/.well-known/jwks%2Ejson".to_owned(),
            "/.well-known//jwks.json".to_owned(),
            "/.well-known/oauth-protected-resource".to_owned(),
            "/.well-known/oauth-protected-resource/a".to_owned(),
        ]),
        // Every form of RFC 9112 §3.2 but the first, and what is nearly one of them.
        2 => prop::sample::select(
            [
                "*", "*", "/*", "*?a", "http://b.test/a", "HTTP://A.test:80/a/b?c", "http://[::1]/a",
                "http://a.test", "http://a.test?b", "http://a.test/*", "http://a.test/a/../b",
                "ftp://a.test/a", "http://u:p@a.test/a", "a.test", "a.test:80", "b.test:443",
            ]
            .map(str::to_owned)
            .to_vec(),
        ),
    ];
    let field = prop::sample::select(vec![
        ("x-tenant", "a"),
        ("x-tenant", "b"),
        ("x_tenant", "a"),
        ("x-tenant", ""),
        ("x-forwarded-proto", "https"),
        ("remote-user", "root"),
        ("connection", "x-tenant"),
        ("origin", "https://o.test"),
        ("access-control-request-method", "GET"),
        ("access-control-request-method", "DELETE"),
        ("access-control-request-headers", "x-tenant"),
        ("destination", "/a"),
        ("destination", "/a/b"),
        ("destination", "http://b.test/a"),
        ("destination", "/a%2f.."),
        ("destination", "nonsense"),
    ]);
    (method, host, path, prop::collection::vec(field, 0..4))
        .prop_map(|(method, host, path, fields)| Asked { method, host, path, fields })
}
