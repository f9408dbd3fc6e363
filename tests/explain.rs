//! What `routes`, `explain` and `token inspect` say, to the letter.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use northgate::base::clock::Clock;
use northgate::config::{self, Environment};
use serde_json::{Value, json};
use tempfile::TempDir;

#[test]
fn routes_are_listed_in_the_order_of_a_search() {
    assert_eq!(
        northgate(&["routes"]),
        "\
ROUTE  HOST             PATH          METHODS    AUTH      LIMITS        LEADS TO
inner  api.example.com  /orders/{id}  any        none      -             a
old    any              /old          any        none      -             /orders, 308
write  any              /orders/**    POST, PUT  jwt main  daily         a
read   any              /orders/**    GET        jwt main  spike, daily  a
"
    );
}

#[test]
fn a_request_is_explained_up_to_its_upstream() {
    assert_eq!(
        northgate(&["explain", "GET", "http://any.example/orders/x/../%37?token=s3cret"]),
        "\
Route read matches.
  host    any.example       any host
  path    /orders/x/../%37  is forwarded as /orders/%37
  path    /orders/%37       could be read as /orders/7
  path    /orders/7         fits /orders/**
  method  GET               write takes only POST, PUT
  method  GET               read takes GET
Then, in this order:
  1  spike arrest    spike: 10/s, burst 1, by ip
  2  authentication  a signed token (JWT) of main, with every scope of orders:read
  3  limit           daily: 10000/day (calendar UTC), by client
                     a request without client counts by its address instead
  4  rewrite         /orders/%37 becomes /v1/orders/%37
  5  upstream        a: http://10.0.0.1, within 30s
"
    );
}

#[test]
fn a_shared_limit_is_explained_with_its_bound() {
    let shared = FILE.replace(
        "quota: 10000/day, by: client }",
        "quota: 100000/day, by: header:x-key, store: redis }\nredis: { url: 'redis://127.0.0.1:1' }",
    );
    let shared = shared.replace("    auth: none\n", "    auth: none\n    limits: [daily]\n");

    let text = northgate_with(&shared, &["explain", "http://api.example.com/orders/7"]);

    let lines = "
  2  limit           daily: 100000/day (calendar UTC), by header:x-key
                     a request without header:x-key counts by its address instead
                     shared through Redis, and not exceeded while it responds
                     if it loses data or begins to fail, or a gateway is killed: up to 1200 more, or 17 per gateway if that is more
                     if it loses data, the use before a gateway's start, or of a key that none has touched for 10 minutes, may count from zero; if it evicts single keys, any use
                     while it does not respond within `redis.timeout`, at most 5 ms, each gateway gives out its share: up to the limit once more
  3  rewrite         none: the upstream receives /orders/7
";
    assert!(text.contains(lines), "{text}");
}

#[test]
fn a_limit_is_explained_with_its_costs_and_all_else_that_it_has() {
    let limits = "
  a: { rate: 100/s, by: ip, cost: 2, max_keys: 5, response: { status: 503, retry_jitter: 3s } }
  b: { quota: 9/day, by: [client, route], on_missing: reject, cost: request_size/1000, headers: false }
  c: { quota: { claim: plan, values: { gold: 5/day }, clients: { app: gold } }, by: [header:x-a, ip], on_missing: skip, methods: [GET], cost: { response_json: /n, default: 3 }, metered: true }
";
    let billed = "server: { state_dir: . }\nmetering: { log: true }\n";
    let file = FILE.replace("limits:\n", &format!("{billed}limits:{limits}"));
    let file = file.replace("limits: [spike, daily]", "limits: [a, b, c]");
    let file = file.replace("    limits: [daily]\n", "    limits: [daily, spike]\n");

    let text = northgate_with(&file, &["explain", "http://h/orders"]);

    for lines in [
        "
  1  spike arrest    a: 100/s, burst 10, by ip, at a cost of 2
                     5 keys have counters of their own, all others share one
                     refuses with 503
                     Retry-After is up to 3s longer, at random
",
        "
  3  limit           b: 9/day (calendar UTC), by client and route, at a cost of 1 per 1000 bytes of the request's content
                     a request without client is refused with 400
                     responses have no header field with the remaining amount or the time to retry
  4  limit           c: by the plan that the client, or else the claim plan, names: gold 5/day (calendar UTC); any other 403, by header:x-a and ip, GET only, at the cost at /n of the response, in up to 1048576 bytes of JSON; 3 until then, and if it has none
                     a request without header:x-a is not counted
                     its usage is collected for bills
",
    ] {
        assert!(text.contains(lines), "{text}");
    }
}

#[test]
fn the_method_is_get_unless_another_is_given() {
    assert!(northgate(&["explain", "http://h/orders"]).starts_with("Route read matches.\n"));
    assert!(
        northgate(&["explain", "get", "http://h/orders"]).starts_with(
            "No route matches: 400, get is not a method: methods are case-sensitive.\n"
        )
    );
    let put = northgate(&["explain", "PUT", "http://h/orders"]);
    assert!(put.starts_with("Route write matches.\n"), "{put}");
    let exact = northgate(&["explain", "http://API.example.com:8080/orders/7"]);
    assert!(exact.starts_with("Route inner matches.\n"), "{exact}");
}

#[test]
fn a_target_that_is_no_url_is_explained_as_it_is_sent() {
    assert_eq!(
        northgate(&["explain", "OPTIONS", "*", "-H", "Host: h"]),
        "The gateway responds itself: 204.\n  host  h\n"
    );
    let origin = northgate(&["explain", "/orders", "-H", "Host: h"]);
    assert!(origin.starts_with("Route read matches.\n"), "{origin}");
    for arguments in [["CONNECT", "h:443", "-H", "X-A: b"], ["GET", "*", "-H", "Host: h"]] {
        let said = northgate(&[&["explain"], &arguments[..]].concat());
        assert!(said.starts_with("No route matches: 400, "), "{said}");
    }
}

#[test]
fn an_unmatched_request_is_explained_with_the_reason() {
    for (method, url, expected) in [
        (
            "GET",
            "http://h/nothing",
            "\
No route matches: 404, no route has this host and path.
  host  h
  path  /nothing  matches no route
",
        ),
        (
            "DELETE",
            "http://h/orders",
            "\
No route matches: 405, a route has this path, but not this method. Allow: GET, HEAD, POST, PUT.
  host    h        any host
  path    /orders  fits /orders/**
  method  DELETE   write takes only POST, PUT
  method  DELETE   read takes only GET
",
        ),
        (
            "GET",
            "http://h/orders/..%2fadmin",
            "\
No route matches: 400, an upstream could read its path as another route's.
  host     h                   any host
  reading  /orders/..%2Fadmin  leads to read
  reading  /orders/../admin    leads to read
  reading  /admin              leads nowhere: 404
",
        ),
    ] {
        assert_eq!(northgate(&["explain", method, url]), expected);
    }
}

#[test]
fn an_invalid_token_is_explained_by_the_rule_it_breaks() {
    for (claims, story) in [
        (
            json!({ "exp": 1_000_000_000 }),
            "is refused: 401, the token has expired (exp is 2001-09-09T01:46:40Z, leeway 30s).",
        ),
        (
            json!({ "aud": "https://other" }),
            "is refused: 401, the token's `aud` is not accepted \
             (aud is https://other, main takes https://api).",
        ),
        (
            json!({ "nbf": 4_000_000_000_u64 }),
            "is refused: 401, the token is not valid yet \
             (nbf is 2096-10-02T07:06:40Z, iat is absent, leeway 30s).",
        ),
        (
            json!({ "iss": "http://else" }),
            "is refused: 401, the token's `iss` is not accepted \
             (iss is http://else, and main is http://127.0.0.1:1).",
        ),
        (
            json!({ "scope": "orders:list" }),
            "is refused: 403, the route requires every scope of orders:read, \
             the token has orders:list.\n  \
             The signature was not checked: the issuer's keys are unavailable.",
        ),
        (
            json!({ "cnf": { "jkt": URL_SAFE_NO_PAD.encode([1; 32]) } }),
            "is bound to a key: the request may pass, but only as `Authorization: DPoP`, with a proof of that key.\n  \
             The signature was not checked: the issuer's keys are unavailable.",
        ),
        (
            json!({ "cnf": { "x5t#S256": URL_SAFE_NO_PAD.encode([1; 32]) } }),
            "is bound to a certificate: the request may pass, but only over a connection with that client certificate.\n  \
             The signature was not checked: the issuer's keys are unavailable.",
        ),
        (
            json!({ "exp": "4000000000" }),
            "is refused: 401, the token is malformed (exp is a string, not a number of seconds since 1970).",
        ),
        (
            json!({ "sub": "" }),
            "is refused: 401, the token lacks a required claim (sub is missing or empty, main wants iss, exp, aud, sub).",
        ),
        (
            json!({ "cnf": { "jku": "https://keys" } }),
            "is refused: 401, the route requires a token bound to nothing, to one key or to one certificate, \
             this one is bound to an unsupported confirmation method.\n  \
             The signature was not checked: the issuer's keys are unavailable.",
        ),
        (
            json!({}),
            "is good here: the request may pass.\n  \
             The signature was not checked: the issuer's keys are unavailable.",
        ),
    ] {
        let token = token(&claims);
        let said = northgate(&["explain", "http://h/orders", "--token", &token]);
        let (_, said_of_it) = said.split_once("The token:\n").expect(&said);
        assert!(said_of_it.contains("  iss"), "{said}");
        assert!(said_of_it.ends_with(&format!("  {story}\n")), "{said}\n{story}");
        assert_secret(&said, &token);
    }
}

#[test]
fn a_malformed_token_is_explained() {
    let twice = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","alg":"ES256"}"#);
    for (token, story) in [
        (
            format!("{twice}.e30.AAAA"),
            "  cannot be parsed as a JWT.\n  is refused: 401, the token is malformed (its header has a member twice).\n",
        ),
        (
            "opaque".to_owned(),
            "  is not a JWT: only its issuer can read it.\n  \
             is refused: 401, the token is malformed (it has 1 part; a signed token has 3).\n",
        ),
    ] {
        let said = northgate(&["explain", "http://h/orders", "--token", &token]);
        assert!(said.ends_with(&format!("The token:\n{story}")), "{said}");
    }
}

#[test]
fn an_encrypted_token_is_called_one() {
    let header =
        URL_SAFE_NO_PAD.encode(r#"{"alg":"RSA-OAEP-256","enc":"A256GCM","kid":"k1","cty":"JWT"}"#);
    let token = format!("{header}.AAAA.AAAA.AAAA.AAAA");

    let said = northgate(&["token", "inspect", &token]);

    for part in ["RSA-OAEP-256", "A256GCM", "k1", "is an encrypted token (JWE)"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn a_token_is_inspected_by_itself() {
    let token = token(&json!({ "exp": 1_000_000_000 }));

    let said = northgate(&["token", "inspect", &token]);

    assert_eq!(
        format!("\n{said}"),
        "
  alg    ES256
  kid    a
  typ    at+jwt
  aud    https://api
  exp    2001-09-09T01:46:40Z
  iss    http://127.0.0.1:1
  scope  orders:read
  sub    alice
  for issuer main: is refused: 401, the token has expired (exp is 2001-09-09T01:46:40Z, leeway 30s).
"
    );
    assert_secret(&said, &token);
}

#[test]
fn a_token_is_explained_by_the_login_that_the_route_requires_of_one_in_authorization() {
    let route = "  - id: strong\n    path: /strong\n    upstream: a\n    \
                 auth: { any: [{ jwt: main, token_from: { cookie: at }, scopes: [none] }, { jwt: main }], acr: gold }\n";
    let text = format!("{FILE}{route}");

    let said =
        northgate_with(&text, &["explain", "http://h/strong", "--token", &token(&json!({}))]);

    let told = "is refused: 401, the route requires acr gold, acr is absent, auth_time is absent.";
    assert!(said.contains(told), "{said}");
}

#[test]
fn a_jwt_is_presented_to_no_issuer_but_its_own() {
    let other = "issuers:\n  other: { issuer: 'http://127.0.0.1:2', audience: x, client: { id: a, secret: b } }\n";
    let text = FILE.replace("issuers:\n", other);

    let said = northgate_with(&text, &["token", "inspect", &token(&json!({ "exp": 1 }))]);

    // An introspection there would be unavailable.
    let refused = "for issuer other: is refused: 401, the token's `iss` is not accepted (iss is http://127.0.0.1:1, and other is http://127.0.0.1:2).";
    assert!(said.contains(refused), "{said}");
}

#[test]
fn an_opaque_token_is_not_introspected_without_a_client() {
    let text = FILE.replace("    client: { id: gateway, secret: correct horse }\n", "");

    let said = northgate_with(&text, &["token", "inspect", "opaque"]);

    let told = "for issuer main: cannot be introspected: the issuer has no `client`.";
    assert!(said.contains(told), "{said}");
}

#[test]
fn the_names_of_claims_are_escaped_and_cut() {
    let forged = "a\u{1b}[31m\u{9b}\n  for issuer main: is good";
    let token = token(&json!({ forged: 1, "x".repeat(70_000): 1 }));

    let said = northgate(&["token", "inspect", &token]);

    assert!(!said.contains(['\u{1b}', '\u{9b}']) && !said.contains("\n  for issuer main: is good"));
    assert!(said.contains(r"a\u{1b}[31m\u{9b}\n  for issuer main: is good"), "{said}");
    assert!(said.contains(&format!("{}…", "x".repeat(64))), "{said}");
}

#[test]
fn a_check_counts_what_it_has_read() {
    let said = northgate(&["check"]);

    assert!(said.ends_with("gateway.yaml: 4 routes, 1 warning\n"), "{said}");
}

#[test]
fn the_config_command_prints_every_section_and_no_secret_and_loads_again() {
    let printed = northgate(&["config"]);

    for line in [
        "    balance: round_robin",
        "logging:",
        "  redact_query:",
        "metrics:",
        "        secret: \"***\"",
    ] {
        let line = line.trim_start();
        let is_there = printed.lines().any(|printed| printed.trim_start().starts_with(line));
        assert!(is_there, "{line}\n{printed}");
    }
    assert!(!printed.contains("correct horse"), "{printed}");
    let (config, _) = config::load_text(
        "gateway.yaml",
        &printed,
        Path::new(""),
        &Environment::default(),
        Clock::system().now(),
    )
    .unwrap_or_else(|faults| panic!("{faults}\n{printed}"));
    assert_eq!(config.effective_yaml(), printed);
}

/// Neither the token nor any of its parts is printed.
fn assert_secret(said: &str, token: &str) {
    for part in token.split('.') {
        assert!(!said.contains(part), "{said}");
    }
}

/// A token of `main` with these claims added or replaced; its signature is invalid.
fn token(claims: &Value) -> String {
    let mut all = json!({
        "iss": "http://127.0.0.1:1", "sub": "alice", "aud": "https://api",
        "exp": 4_000_000_000_u64, "scope": "orders:read",
    });
    for (name, value) in claims.as_object().expect("claims") {
        all[name] = value.clone();
    }
    let part = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let header = json!({ "alg": "ES256", "typ": "at+jwt", "kid": "a" });
    format!("{}.{}.{}", part(&header), part(&all), URL_SAFE_NO_PAD.encode([7; 64]))
}

/// Runs the program and returns its output.
/// As in `northgate routes | head`.
#[test]
fn a_reader_that_ends_early_changes_no_exit_code() {
    let faulty = FILE.replace("version: 1", "version: 1\nlimitz: {}");
    for (text, arguments, code) in [
        (FILE, &["routes"][..], 0),
        (FILE, &["explain", "http://api.example.com/orders/7"], 0),
        (FILE, &["config"], 0),
        (&faulty, &["check"], 78),
    ] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);

        let run = run(text, arguments, writer.into());

        let complaints = String::from_utf8_lossy(&run.stderr);
        assert_eq!((run.status.code(), &*complaints), (Some(code), ""), "{arguments:?}");
    }
}

#[test]
fn output_that_cannot_be_written_is_a_failure_with_its_cause() {
    let full = fs::File::options().write(true).open("/dev/full").expect("Linux has it");

    let run = run(FILE, &["config"], full.into());

    let complaints = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(1));
    assert!(complaints.starts_with("northgate: cannot write the output: "), "{complaints}");
}

fn northgate(arguments: &[&str]) -> String {
    northgate_with(FILE, arguments)
}

fn northgate_with(text: &str, arguments: &[&str]) -> String {
    let run = run(text, arguments, Stdio::piped());
    let complaints = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && complaints.is_empty(), "{complaints}");
    String::from_utf8(run.stdout).expect("text")
}

fn run(text: &str, arguments: &[&str], stdout: Stdio) -> Output {
    let files = TempDir::new().expect("a directory");
    let file = files.path().join("gateway.yaml");
    fs::write(&file, text).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_northgate"));
    command.args(arguments).arg("--config").arg(&file).stdout(stdout).stderr(Stdio::piped());
    command.spawn().and_then(Child::wait_with_output).expect("the program runs")
}

/// No process listens on port 1, so that the issuer's keys are unavailable.
const FILE: &str = "
version: 1
listen: 127.0.0.1:8080
issuers:
  main:
    issuer: 'http://127.0.0.1:1'
    audience: 'https://api'
    client: { id: gateway, secret: correct horse }
upstreams:
  a: { targets: ['http://10.0.0.1:80'] }
limits:
  spike: { rate: 10/s }
  daily: { quota: 10000/day, by: client }
routes:
  - id: old
    path: /old
    redirect: { to: /orders }
    auth: none
  - id: write
    path: /orders/**
    methods: [POST, PUT]
    upstream: a
    auth: { jwt: main }
    limits: [daily]
  - id: read
    path: /orders/**
    methods: [GET]
    upstream: a
    auth: { jwt: main, scopes: [orders:read] }
    limits: [spike, daily]
    rewrite: { add_prefix: /v1 }
  - id: inner
    host: api.example.com
    path: /orders/{id}
    upstream: a
    auth: none
";
