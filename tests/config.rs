//! What is written in documents and examples loads, and means what it says.

#[path = "config/effective_keys.rs"]
mod effective_keys;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use http::Method;
use northgate::base::clock::Timestamp;
use northgate::config::auth::{ForwardToken, TokenSource};
use northgate::config::route::{PathRewrite, Rewrite};
use northgate::config::{self, Action, Auth, Config, Credential, Environment};
use northgate::limit::{Kind, Unit};
use northgate::token::TokenUse;
use tempfile::TempDir;

#[test]
fn the_example_of_the_reference_loads() {
    let files = files();
    let config = load(EXAMPLE, files.path());

    let route = |id: &str| config.routes.iter().find(|route| &*route.id == id).expect(id);
    assert!(matches!(&route("catalog").action, Action::Upstream(name) if &**name == "orders"));
    assert!(matches!(route("catalog").auth, Auth::None));
    assert_eq!(names(&route("orders").limits), ["spike", "daily"]);
    let Auth::AnyOf { methods, .. } = &route("batch").auth else {
        panic!("it asks for credentials")
    };
    assert_eq!(
        methods[0].credential,
        Credential::Token { accepts: TokenUse::Jwt, issuers: vec!["main".into()] }
    );
    assert_eq!(methods[1].credential, Credential::Basic("main".into()));
    assert!(methods.iter().all(|method| method.scopes.contains("orders:read")));
    let session = &config.sessions["web"];
    assert_eq!(&*session.client.id, "gateway-web");
    assert_eq!(session.prompt.as_deref(), Some("consent"));
    let Kind::Quota(quota) = &config.limits["daily"].kind else { panic!("a quota") };
    assert_eq!((quota.rate().count(), quota.rate().unit()), (10_000, Unit::Day));
}

#[test]
fn the_repositorys_own_file_loads() {
    let (config, _) = config::load(Path::new("gateway.yaml"), &Environment::default(), NOW)
        .unwrap_or_else(|faults| panic!("{faults}"));

    assert_eq!(config.listeners.len(), 2);
}

#[test]
fn the_benchmarks_files_load() {
    let files = files();
    let template = include_str!("files/bench.yaml");
    for features in [
        &[][..],
        &["tls"],
        &["tls", "handshake"],
        &["jwt"],
        &["jwt", "limit"],
        &["opaque"],
        &["routes"],
    ] {
        let text = rendered(template, features);
        let loaded =
            config::load_text("bench.yaml", &text, files.path(), &Environment::default(), NOW);
        let (config, _) = loaded.unwrap_or_else(|faults| panic!("{features:?}\n{faults}\n{text}"));
        assert_eq!(config.server.idle_timeout, Duration::from_secs(3_600), "{features:?}");
        assert_eq!(config.routes.len(), if features.contains(&"routes") { 2 } else { 1 });
    }
}

#[test]
fn a_later_layer_replaces_a_key_and_adds_limits_and_headers() {
    let config = load(
        "
version: 1
listen: 127.0.0.1:8080
upstreams: { a: { targets: [http://10.0.0.1:80] } }
limits:
  one: { rate: 1/s }
  two: { rate: 2/s }
  three: { rate: 3/s }
defaults:
  timeout: 1s
  auth: none
  limits: [one]
  headers: { request: { set: { X-A: defaults, X-B: defaults } } }
policies:
  slow: { timeout: 2s, limits: [two, one] }
  slower: { timeout: 3s, headers: { request: { set: { x-b: slower } } } }
  alone: { inherit_limits: false, limits: [three] }
routes:
  - { id: plain, path: /plain, upstream: a }
  - { id: slow, path: /slow, upstream: a, policies: [slow, slower] }
  - { id: turned, path: /turned, upstream: a, policies: [slower, slow] }
  - { id: own, path: /own, upstream: a, policies: [slow], timeout: 4s, limits: [three] }
  - { id: alone, path: /alone, upstream: a, policies: [slow, alone] }
",
        Path::new(""),
    );

    let told: Vec<_> = config
        .routes
        .iter()
        .map(|route| (route.timeout.map(|time| time.as_secs()), names(&route.limits).join(" ")))
        .collect();
    assert_eq!(told[0], (Some(1), "one".into()));
    assert_eq!(told[1], (Some(3), "one two".into()));
    assert_eq!(told[2], (Some(2), "one two".into()));
    assert_eq!(told[3], (Some(4), "one two three".into()));
    assert_eq!(told[4], (Some(2), "three".into()));
    let set = &config.routes[1].request_headers.set;
    let fields: Vec<_> = set.iter().map(|(name, value)| format!("{name} {value:?}")).collect();
    assert_eq!(fields, ["x-a Template([Text(\"defaults\")])", "x-b Template([Text(\"slower\")])"]);
}

#[test]
fn keys_beside_any_apply_to_each_credential_without_its_own() {
    let config = load(
        "
version: 1
listen: 127.0.0.1:8080
issuers: { main: { issuer: https://a.example, audience: [a, b], client: { id: g, auth: none } } }
upstreams: { a: { targets: [http://10.0.0.1:80] } }
routes:
  - id: a
    path: /a
    upstream: a
    auth:
      any: [{ jwt: main, scopes: [own], max_staleness: 0s }, { basic: main }]
      token_from: { cookie: at }
      scopes: [outer]
      claims: { tier: [gold, 1], admin: true, realm_access.roles: { contains: ops } }
      identity_headers: { X-User: sub }
      forward_token: false
",
        Path::new(""),
    );

    let Auth::AnyOf { methods, optional } = &config.routes[0].auth else { panic!("it asks") };
    assert!(!optional);
    assert_eq!(
        (methods[0].scopes.to_string(), methods[1].scopes.to_string()),
        ("own".into(), "outer".into())
    );
    assert_eq!((methods[0].max_staleness, methods[1].max_staleness), (Some(Duration::ZERO), None));
    let cookie = TokenSource::Cookie("at".into());
    assert_eq!(
        (&methods[0].token_from, &methods[1].token_from),
        (&cookie, &TokenSource::Authorization)
    );
    assert_eq!(
        format!("{:?}", methods[1].claims[0].expected),
        "OneOf([String(\"gold\"), Number(1)])"
    );
    assert_eq!(format!("{:?}", methods[1].claims[1].expected), "OneOf([Bool(true)])");
    assert_eq!(format!("{:?}", methods[1].claims[2].expected), "Contains(String(\"ops\"))");
    assert!(methods.iter().all(
        |way| way.forward_token == ForwardToken::No && way.identity_headers[0].name == "x-user"
    ));
    let stripped: Vec<_> = config.identity_headers.iter().map(http::HeaderName::as_str).collect();
    assert_eq!(stripped, ["x-auth-client", "x-auth-scopes", "x-auth-subject", "x-user"]);
}

#[test]
fn switches_and_numbers_need_no_quotes_and_may_have_them() {
    let config = load(
        "
version: \"1\"
listen: { address: \"127.0.0.1:0\", http2: \"false\" }
server: { workers: \"${WORKERS}\", max_body_size: 1_000KiB }
logging: { access: off, sample: 12.5% }
upstreams: { a: { targets: { url: http://10.0.0.1, weight: 3 }, retries: { on: [502, connect] } } }
routes: [{ id: a, path: /, methods: [GET], upstream: a, auth: none, max_body_size: 1KiB }]
",
        Path::new(""),
    );

    assert!(!config.listeners[0].http2);
    assert_eq!(config.server.workers.map(std::num::NonZero::get), Some(3));
    assert_eq!(config.routes[0].max_body_size, Some(1024));
    assert_eq!(config.routes[0].methods, [Method::GET]);
}

#[test]
fn a_path_can_be_rewritten() {
    let route = |rewrite: &str| {
        let text = format!(
            "
version: 1
listen: 127.0.0.1:8080
upstreams: {{ a: {{ targets: [http://10.0.0.1:80] }} }}
routes: [{{ id: a, path: '/api/{{id}}/**', upstream: a, auth: none, rewrite: {rewrite} }}]
"
        );
        load(&text, Path::new("")).routes.remove(0).rewrite
    };

    let prefix = Rewrite::Prefix { strip: "/api".into(), add: "/v2".into() };
    assert_eq!(route("{ strip_prefix: /api, add_prefix: /v2 }"), prefix);
    let parts = vec![
        PathRewrite::Text("/o/".into()),
        PathRewrite::Parameter("id".into()),
        PathRewrite::Text("/".into()),
        PathRewrite::Rest,
    ];
    assert_eq!(route("{ path: '/o/{id}/{**}' }"), Rewrite::Path(parts));
}

#[test]
fn the_effective_configuration_is_equivalent_and_shows_no_secret() {
    let text = fs::read_to_string("gateway.yaml").expect("the repository's file");
    let config = load(&text, Path::new(""));
    let effective = config.effective_yaml();

    assert!(
        effective.contains("secret: \"***\"") && !effective.contains("gateway-secret"),
        "{effective}"
    );
    assert!(
        effective.contains("timeout: 10s") && effective.contains("max_body_size: 10485760B"),
        "{effective}"
    );
    assert_eq!(load(&effective, Path::new("")).effective_yaml(), effective);
}

#[test]
fn token_binding_is_shown() {
    let files = files();
    let config = load(
        "
version: 1
listen:
  - { address: 127.0.0.1:8443, tls: { cert: tls.pem, key: tls-key.pem, client_ca: tls.pem, client_auth: optional } }
server: { public_url: https://api.example.com, dpop_nonce_keys: [{ file: session-key }] }
issuers: { main: { issuer: https://auth.example.com, audience: api } }
routes:
  - { id: key, path: /key, respond: {}, auth: { jwt: main, dpop: true } }
  - { id: certificate, path: /certificate, respond: {}, auth: { jwt: main, mtls: true } }
",
        files.path(),
    );

    let effective = config.effective();
    let tls = &effective["listen"][0]["tls"];
    assert_eq!((&tls["client_auth"], &tls["session_tickets"]), (&"optional".into(), &false.into()));
    assert_eq!(effective["server"]["public_url"], "https://api.example.com");
    assert_eq!(effective["server"]["dpop_nonce_keys"][0], "***");
    let way = |index: usize| &effective["routes"][index]["auth"]["any"][0];
    assert_eq!((&way(0)["dpop"], &way(0)["mtls"]), (&true.into(), &false.into()));
    assert_eq!((&way(1)["dpop"], &way(1)["mtls"]), (&false.into(), &true.into()));
}

#[test]
fn a_missing_file_is_a_fault() {
    let faults = config::load(Path::new("nowhere.yaml"), &Environment::default(), NOW)
        .expect_err("a missing file");

    assert!(
        faults.to_string().starts_with("nowhere.yaml:1:1: [C108] the file cannot be read"),
        "{faults}"
    );
}

#[test]
fn the_hash_follows_the_file() {
    let text = EXAMPLE.replace("spike]", "spike ]");
    let files = files();

    assert_eq!(load(EXAMPLE, files.path()).hash, load(EXAMPLE, files.path()).hash);
    assert_ne!(load(EXAMPLE, files.path()).hash, load(&text, files.path()).hash);
}

#[test]
fn every_key_is_in_the_reference() {
    let reference = fs::read_to_string("docs/config.md").expect("the reference");
    let mut missing = Vec::new();
    for file in fs::read_dir("src/config/file").expect("the keys") {
        let text = fs::read_to_string(file.expect("a file").path()).expect("text");
        for line in text.lines() {
            let key = line.strip_prefix("    pub(crate) ").and_then(|line| line.split_once(": "));
            if let Some((key, _)) =
                key.filter(|(_, kind)| kind.starts_with("Field<") || kind.starts_with("Value<"))
            {
                let known = [format!("`{key}`"), format!(".{key}`"), format!("`.{key}")];
                if !known.iter().any(|form| reference.contains(form)) {
                    missing.push(key.to_owned());
                }
            }
        }
    }
    assert!(missing.is_empty(), "docs/config.md says nothing about {missing:?}");
}

#[test]
fn every_yaml_block_in_the_documents_loads() {
    let files = files();
    let mut blocks = 0;
    let mut documents: Vec<_> =
        fs::read_dir("docs").expect("docs").map(|entry| entry.expect("an entry").path()).collect();
    documents.push("README.md".into());
    for path in documents.iter().filter(|path| path.extension().is_some_and(|end| end == "md")) {
        let Ok(text) = fs::read_to_string(path) else { continue };
        // Additions to other blocks, which a test of the known issuers loads together with them.
        let text = without_section(&text, "## A login at each product");
        for block in text.split("```yaml\n").skip(1) {
            let block = block.split("```").next().unwrap_or_default();
            let loaded = config::load_text(
                &path.display().to_string(),
                &whole(block),
                files.path(),
                &environment(),
                NOW,
            );
            if let Err(faults) = loaded {
                panic!("{faults}\n{block}");
            }
            blocks += 1;
        }
    }
    assert!(blocks > 5, "the documents have examples");
}

/// A document without the section under a heading.
fn without_section(text: &str, heading: &str) -> String {
    let Some((before, section)) = text.split_once(heading) else { return text.to_owned() };
    let after = section.find("\n## ").map_or("", |at| &section[at..]);
    format!("{before}{after}")
}

/// A block with the sections it speaks of and does not show.
fn whole(block: &str) -> String {
    let has = |key: &str| block.lines().any(|line| line.starts_with(&format!("{key}:")));
    let mut text = block.to_owned();
    for section in SECTIONS.split("\n\n") {
        let key = section.trim_start().split(':').next().unwrap_or_default();
        // The session of the reference is for its issuer.
        let is_foreign = key == "sessions" && has("issuers") && !block.contains("\n  main:");
        if !has(key) && !is_foreign {
            text.push_str(section.trim_start());
            text.push('\n');
        }
    }
    text
}

/// The benchmark's template with these features, its lists of routes two long.
fn rendered(template: &str, features: &[&str]) -> String {
    let mut shown = vec![true];
    let mut text = String::new();
    let mut route: Option<String> = None;
    for line in template.lines() {
        if let Some(condition) = line.strip_prefix("%if ") {
            let holds = match condition.strip_prefix('!') {
                Some(feature) => !features.contains(&feature),
                None => features.contains(&condition),
            };
            shown.push(holds && shown.iter().all(|shown| *shown));
        } else if line == "%else" {
            let holds = shown.pop().expect("an open %if");
            shown.push(!holds && shown.iter().all(|shown| *shown));
        } else if line == "%for route" {
            route = Some(String::new());
            shown.push(*shown.last().expect("a level"));
        } else if line == "%end" {
            let was = shown.pop().expect("an open block");
            if let Some(line) = route.take().filter(|_| was) {
                for number in ["1", "2"] {
                    text.push_str(
                        &line
                            .replace("@ID@", &format!("r{number}"))
                            .replace("@PATTERN@", &format!("/r{number}/{{id}}")),
                    );
                }
            }
        } else if shown.iter().all(|shown| *shown) {
            let into = route.as_mut().unwrap_or(&mut text);
            into.push_str(line);
            into.push('\n');
        }
    }
    for (name, value) in [
        ("@WORKERS@", "1"),
        ("@PORT@", "9300"),
        ("@CERT@", "tls.pem"),
        ("@KEY@", "tls-key.pem"),
        ("@ISSUER@", "https://issuer.bench.example"),
        ("@JWKS@", "jwks.json"),
        ("@AUDIENCE@", "bench"),
        ("@UPSTREAM@", "127.0.0.1:9100"),
    ] {
        text = text.replace(name, value);
    }
    text
}

fn names(names: &[std::sync::Arc<str>]) -> Vec<&str> {
    let names: Vec<_> = names.iter().map(|name| &**name).collect();
    assert_eq!(names.len(), names.iter().collect::<BTreeSet<_>>().len(), "each once");
    names
}

fn load(text: &str, directory: &Path) -> Config {
    match config::load_text("gateway.yaml", text, directory, &environment(), NOW) {
        Ok((config, _)) => config,
        Err(faults) => panic!("{faults}"),
    }
}

fn environment() -> Environment {
    [("WORKERS", "3"), ("CLIENT_SECRET", "secret"), ("GATEWAY_SECRET", "secret")]
        .into_iter()
        .collect()
}

/// What examples name.
fn files() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, content: &str| {
        let path = directory.path().join(name);
        fs::write(&path, content).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
    };
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    write("tls.pem", &made.cert.pem());
    write("tls-key.pem", &made.signing_key.serialize_pem());
    write("gateway", "secret\n");
    write("style.css", "body { color: black }\n");
    write("gateway-web", "secret\n");
    write("redis", "secret\n");
    write("billing-token", "secret\n");
    let state = directory.path().join("state");
    fs::create_dir(&state).expect("a directory");
    fs::set_permissions(state, fs::Permissions::from_mode(0o700)).expect("its mode");
    write("session-key", "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=\n");
    write("hmac", "0123456789abcdef0123456789abcdef\n");
    write("supabase-secret", "0123456789abcdef0123456789abcdef\n");
    // The key of RFC 7517 §A.1.
    let jwks = "{\"keys\":[{\"kty\":\"EC\",\"crv\":\"P-256\",\"x\":\"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4\",\
         \"y\":\"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM\"}]}";
    write("jwks.json", jwks);
    write("cluster-jwks.json", jwks);
    directory
}

/// `gateway-yaml.md`, with files that are here and without what is not built yet.
const EXAMPLE: &str = "
version: 1
listen:
  - address: 0.0.0.0:8443
    tls: { cert: tls.pem, key: tls-key.pem }

issuers:
  main:
    issuer: https://auth.example.com
    audience: https://api.example.com
    client: { id: gateway, secret: { file: gateway } }

sessions:
  web:
    issuer: main
    flow: password                       # or: code
    client: { id: gateway-web, secret: { file: gateway-web } }
    public_url: https://www.example.com
    scopes: [openid, profile, offline_access]
    keys: [{ file: session-key }]

upstreams:
  orders:
    targets: [http://10.0.0.11:8080, http://10.0.0.12:8080]
  shop:
    targets: [http://10.0.0.31:8080]

limits:
  spike: { rate: 100/s, by: ip }
  daily: { quota: 10000/day, by: client }

redis:
  url: rediss://redis:6379
  password: { file: redis }

defaults:
  limits: [spike]

routes:
  - { id: catalog,  path: /public/catalog/**, upstream: orders, auth: none }
  - { id: orders,   path: /api/orders/**,     upstream: orders, auth: { jwt: main, scopes: [orders:read] }, limits: [daily] }
  - { id: partners, path: /api/partners/**,   upstream: orders, auth: { introspection: main, scopes: [partners:read] } }
  - { id: batch,    path: /api/batch/**,      upstream: orders, auth: { any: [{ jwt: main }, { basic: main }], scopes: [orders:read] } }
  - { id: app,      path: /app/**,            upstream: shop,   auth: { session: web } }
";

/// What a block of a document may lack.
const SECTIONS: &str = "
version: 1

listen: 127.0.0.1:8080

issuers: { main: { issuer: https://auth.example.com, audience: https://api.example.com, client: { id: gateway, secret: { file: gateway } } } }

sessions: { web: { issuer: main, flow: password, client: { id: web, secret: { file: gateway } }, public_url: https://www.example.com, keys: [{ file: session-key }] } }

upstreams: { orders: { targets: [http://10.0.0.11:8080] }, shop: { targets: [http://10.0.0.31:8080] }, api: { targets: [http://10.0.0.51:8080] } }

limits: { spike: { rate: 100/s }, daily: { quota: 10000/day, by: subject } }

routes: [{ id: all, path: /**, respond: {}, auth: none }]
";

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
