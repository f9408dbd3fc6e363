//! `northgate config` prints every key of the file.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

#[test]
fn every_key_of_the_file_is_in_the_effective_configuration() {
    let files = super::files();
    let effective = super::load(FILE, files.path()).effective();
    let mut forgotten = Vec::new();
    for (name, keys) in mappings() {
        let (_, places, left_out) = PLACES.iter().find(|(known, ..)| *known == name).unwrap_or_else(|| {
            panic!("{name} has no place in the effective configuration: name one, and write it out in FILE")
        });
        let places = places.split(' ').map(|place| {
            effective.pointer(place).unwrap_or_else(|| panic!("nothing is at {place} of {name}"))
        });
        let printed: BTreeSet<&String> =
            places.filter_map(Value::as_object).flat_map(|entries| entries.keys()).collect();
        let left_out: Vec<_> = left_out.split_whitespace().collect();
        let is_forgotten =
            |key: &&String| !printed.contains(key) && !left_out.contains(&key.as_str());
        forgotten.extend(keys.iter().filter(is_forgotten).map(|key| format!("{name}: {key}")));
        let stale = left_out.iter().filter(|key| printed.contains(&(**key).to_owned()));
        assert_eq!(stale.count(), 0, "{name}: a key that is left out is printed");
    }
    assert!(forgotten.is_empty(), "`northgate config` forgets {forgotten:?}");
}

#[test]
fn the_effective_configuration_loads_to_the_same() {
    let files = super::files();
    let burst = "{ rate: { claim: plan, values: { a: 5/s }, default: 1/s }, burst: 7,";
    for (from, to) in [
        ("", ""),
        ("{ jwt: main,", "{ jwt: main, identity_headers: {},"),
        ("flow: code", "flow: code\n    scopes: []\n    return_to: []"),
        ("flow: code", "flow: password"),
        ("circuit_breaker: {}", "retries: { on: [] }"),
        ("health_check: { path: /health }", "health_check: { grpc: shop }"),
        ("rewrite: { strip_prefix: /a, add_prefix: /b }", "rewrite: { strip_prefix: /a }"),
        ("regex: \"a+\"", "regex: \"a|b\""),
        ("{ rate: 10/s,", burst),
        ("version: 1", "version: 1\nlogging: { sample: 7%, redact_query: [] }"),
        ("version: 1", "version: 1\nlogging: { sample: 0.001% }"),
    ] {
        let text = FILE.replacen(from, to, 1);
        assert!(from.is_empty() || text != FILE, "{from}");
        let config = super::load(&text, files.path());
        let printed = config.effective_yaml();
        // Secrets are hidden: any of them in their place.
        let whole = printed.replace("\"***\"", "{ file: session-key }");

        let again = super::load(&whole, files.path());

        assert_eq!(again.effective(), config.effective(), "{to}\n{printed}");
        assert_eq!(again.effective_yaml(), printed, "{to}");
    }
}

/// Returns the keys of each kind of mapping in the file: `issuers::Client` has `id`, `secret` …
fn mappings() -> Vec<(String, Vec<String>)> {
    let mut all: Vec<(String, Vec<String>)> = Vec::new();
    for file in fs::read_dir("src/config/file").expect("the keys") {
        let path = file.expect("a file").path();
        let room = path.file_stem().expect("a name").to_string_lossy().into_owned();
        for line in fs::read_to_string(&path).expect("text").lines() {
            if let Some(name) = line.strip_prefix("pub(crate) struct ") {
                let name = name.split([' ', '(', ';']).next().unwrap_or_default();
                all.push((format!("{room}::{name}"), Vec::new()));
            }
            let key = line.strip_prefix("    pub(crate) ").and_then(|line| line.split_once(": "));
            if let (Some((key, kind)), Some((_, keys))) = (key, all.last_mut())
                && (kind.starts_with("Field<") || kind.starts_with("Value<"))
            {
                keys.push(key.to_owned());
            }
        }
    }
    all.retain(|(_, keys)| !keys.is_empty());
    assert!(all.len() > 40, "the file has many mappings");
    all
}

/// The kinds of mappings, where the effective configuration of [`FILE`] has them, and the keys that it has in another form:
/// each route's own in place of a layer.
const PLACES: &[(&str, &str, &str)] = &[
    ("issuers::Issuer", "/issuers/main /issuers/other", "jwks_uri"),
    ("issuers::Client", "/issuers/main/client /issuers/other/client", ""),
    ("issuers::Endpoints", "/issuers/main/endpoints", ""),
    ("issuers::Introspection", "/issuers/main/introspection", ""),
    ("issuers::PasswordGrant", "/issuers/main/password_grant", ""),
    ("issuers::JwtCache", "/issuers/main/jwt_cache", ""),
    ("issuers::Decryption", "/issuers/main/decryption", ""),
    ("limits::Limit", "/limits/rate /limits/quota /limits/concurrency", ""),
    ("limits::CostOfResponse", "/limits/quota/cost /limits/told/cost", ""),
    ("limits::Plans", "/limits/told/quota", ""),
    ("limits::Response", "/limits/rate/response", ""),
    ("metering::Metering", "/metering", ""),
    ("metering::Http", "/metering/http", ""),
    ("mod::File", "", "defaults policies"),
    ("observability::Logging", "/logging", ""),
    ("observability::Metrics", "/metrics", ""),
    ("redis::Redis", "/redis", ""),
    ("routes::Fallback", "/routes/0/fallback", ""),
    ("routes::Respond", "/routes/1/respond", ""),
    ("routes::Mirror", "/routes/0/mirror", ""),
    ("upstreams::CircuitBreaker", "/upstreams/shop/circuit_breaker", ""),
    ("routes::Route", "/routes/0 /routes/1 /routes/2", "inherit_limits policies"),
    ("routes::Pattern", "/routes/0/match_headers/x-a", ""),
    ("routes::Redirect", "/routes/2/redirect", ""),
    (
        "routes::Auth",
        "/routes/0/auth /routes/0/auth/any/0 /routes/0/auth/any/1 /routes/0/auth/any/2 /routes/0/auth/any/3 /routes/1/auth/any/0",
        "",
    ),
    ("routes::TokenFrom", "/routes/0/auth/any/0/token_from /routes/0/auth/any/1/token_from", ""),
    ("routes::Contains", "/routes/0/auth/any/0/claims/roles", ""),
    ("routes::Rewrite", "/routes/0/rewrite /routes/3/rewrite", ""),
    ("routes::Headers", "/routes/0/headers", ""),
    ("routes::Edits", "/routes/0/headers/request", ""),
    ("routes::Cors", "/routes/0/cors", ""),
    ("server::Listener", "/listen/0", ""),
    ("server::Tls", "/listen/0/tls", ""),
    ("server::Server", "/server", ""),
    ("server::Admin", "/admin", ""),
    ("sessions::Session", "/sessions/web", ""),
    ("sessions::Paths", "/sessions/web/paths", "base"),
    ("sessions::Cookie", "/sessions/web/cookie", ""),
    ("upstreams::Upstream", "/upstreams/shop", ""),
    ("upstreams::Target", "/upstreams/shop/targets/0", ""),
    ("upstreams::Outlier", "/upstreams/shop/outlier", ""),
    ("upstreams::HealthCheck", "/upstreams/shop/health_check", ""),
    ("upstreams::Tls", "/upstreams/shop/tls", ""),
    ("upstreams::Retries", "/upstreams/shop/retries", ""),
    // A secret is printed as `***`.
    ("value::SecretSource", "", "file env"),
];

/// A file with every kind of mapping.
const FILE: &str = "
version: 1
listen:
  - { address: 127.0.0.1:8443, tls: { cert: tls.pem, key: tls-key.pem, client_ca: tls.pem, client_auth: optional } }
server: { state_dir: state, identity_keys: tls-key.pem }
issuers:
  main:
    issuer: https://auth.example.com
    audience: api
    client: { id: gateway, auth: private_key_jwt, key: tls-key.pem, cert: tls.pem, kid: one }
    decryption: { keys: tls-key.pem, algorithms: [ECDH-ES] }
  other:
    issuer: https://other.example.com
    audience: api
    ca_file: tls.pem
    jwks_file: jwks.json
    discovery: off
    client: { id: gateway, auth: tls_client_auth, key: tls-key.pem, cert: tls.pem }
sessions:
  web:
    issuer: main
    flow: code
    client: { id: web, secret: { file: gateway-web } }
    public_url: https://www.example.com
    keys: [{ file: session-key }]
    style: style.css
upstreams:
  shop:
    targets: [http://127.0.0.1:1]
    health_check: { path: /health }
    circuit_breaker: {}
    tls: { ca_file: tls.pem, cert: tls.pem, key: tls-key.pem }
  other: { targets: [http://127.0.0.1:2] }
redis: { url: \"rediss://redis:6379\", ca_file: tls.pem }
metering: { http: { url: https://billing.example.com, token: { file: billing-token }, ca_file: tls.pem } }
limits:
  rate: { rate: 10/s, methods: [GET], by: ip }
  quota: { quota: 10/day, store: redis, by: ip, cost: { response_header: X-Cost } }
  concurrency: { concurrency: 5 }
  told:
    quota: { claim: plan, values: { free: 10/day }, clients: { app: free }, default: 5/day }
    by: client
    cost: { response_json: /cost }
    metered: true
routes:
  - id: all
    path: /a/**
    match_headers: { X-A: { regex: \"a+\" } }
    methods: [GET]
    upstream: shop
    rewrite: { strip_prefix: /a, add_prefix: /b }
    auth:
      any:
        - { jwt: main, token_from: { header: X-Token }, claims: { roles: { contains: a } } }
        - { introspection: main, token_from: { cookie: token } }
        - { basic: main }
        - { session: web }
    limits: [rate, quota, concurrency, told]
    fallback: { stale: 1h }
    split: { other: 50% }
    mirror: { upstream: other }
    cors: { origins: [https://www.example.com] }
  - { id: fixed, path: /fixed, respond: { body: a }, auth: { bearer: main } }
  - { id: moved, path: /moved, redirect: { to: /a }, auth: none }
  - { id: path, path: \"/path/{id}\", upstream: shop, rewrite: { path: \"/p/{id}\" }, auth: none }
";
