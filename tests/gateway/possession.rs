//! Tokens that are good in one hand only, with a key: DPoP (RFC 9449), attack by attack.

use crate::dpop::{signing_key, thumbprint, token_hash};
use crate::fault_injection::{Endpoint, Fault};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use core::time::Duration;
use northgate::dev::issuer::{API, Mint};
use northgate::issuer::keys::signing_key::SigningKey;
use serde_json::{Value, json};

use crate::support::{Answer, Gateway, Issuer, Upstream, start_issuer};

#[test]
fn a_bound_token_with_its_proof_is_let_in_and_both_travel_on() {
    let world = World::start("");
    let token = world.bound_token();

    for (path, scheme) in [("/dpop", "DPoP"), ("/any", "dpop"), ("/dpop", "DPOP")] {
        let proof = world.proof("GET", path, &token);
        let answer = world.gateway.get(path, &fields(scheme, &token, &[&proof]));
        assert_eq!(answer.status, 200, "{}", answer.head);
        let seen = world.service.seen().pop().expect("the request");
        assert_eq!(seen.field("authorization"), Some(&*format!("{scheme} {token}")));
        assert_eq!(seen.field("dpop"), Some(&*proof));
        assert_eq!(seen.field("x-auth-subject"), Some("api"));
    }

    // A proof goes where its token goes, and nowhere else.
    let proof = world.proof("GET", "/stripped", &token);
    assert_eq!(world.gateway.get("/stripped", &fields("DPoP", &token, &[&proof])).status, 200);
    let unbound = world.issuer.jwt();
    assert_eq!(world.gateway.get("/any", &fields("Bearer", &unbound, &["x"])).status, 200);
    for seen in world.service.seen().iter().rev().take(2) {
        assert_eq!(seen.field("dpop"), None, "{}", seen.head);
    }
    let log = world.gateway.log();
    assert!(!log.contains(&token) && !log.contains(&proof));
}

#[test]
fn an_invalid_proof_is_refused_even_if_the_token_is_cached() {
    let world = World::start("");
    let token = world.bound_token();
    let good = world.proof("GET", "/dpop", &token);
    // The verdict on the token is kept from now on.
    assert_eq!(world.gateway.get("/dpop", &fields("DPoP", &token, &[&good])).status, 200);
    let before = world.service.seen().len();

    let make = |header: Value, claims: Value| {
        signed(&world.key, "/dpop", &token, world.now(), header, claims)
    };
    let none = |alg: &str| {
        let jwk = world.key.public_jwk();
        let header = json!({ "typ": "dpop+jwt", "alg": alg, "jwk": jwk });
        let payload = good.split('.').nth(1).expect("claims");
        format!("{}.{payload}.", URL_SAFE_NO_PAD.encode(header.to_string()))
    };
    let mut private = world.key.public_jwk();
    private["d"] = "AQAB".into();
    let other = signing_key();
    let of_other = |key: &SigningKey, header| {
        signed(key, "/dpop", &token, world.now(), header, json!({ "jti": "other" }))
    };
    let now = world.now();
    let proofs = [
        ("used already", good.clone()),
        ("another method", make(json!({}), json!({ "htm": "POST" }))),
        ("method in lower case", make(json!({}), json!({ "htm": "get" }))),
        ("another path", make(json!({}), json!({ "htu": "http://api.test/any" }))),
        ("a longer path", make(json!({}), json!({ "htu": "http://api.test/dpop/x" }))),
        ("another host", make(json!({}), json!({ "htu": "http://evil.test/dpop" }))),
        ("another scheme", make(json!({}), json!({ "htu": "https://api.test/dpop" }))),
        ("another port", make(json!({}), json!({ "htu": "http://api.test:81/dpop" }))),
        ("no address", make(json!({}), json!({ "htu": null }))),
        ("another token", make(json!({}), json!({ "ath": token_hash("another") }))),
        ("no token", make(json!({}), json!({ "ath": null }))),
        ("no name", make(json!({}), json!({ "jti": null }))),
        ("stale", make(json!({}), json!({ "iat": now - 90 }))),
        ("from the future", make(json!({}), json!({ "iat": now + 31 }))),
        ("no time", make(json!({}), json!({ "iat": null }))),
        ("another key", of_other(&other, json!({}))),
        ("another key, ours shown", of_other(&other, json!({ "jwk": world.key.public_jwk() }))),
        ("another's key shown", of_other(&world.key, json!({ "jwk": other.public_jwk() }))),
        ("a private key", make(json!({ "jwk": private }), json!({}))),
        ("no key", make(json!({ "jwk": null }), json!({}))),
        (
            "a symmetric key",
            make(json!({ "alg": "HS256", "jwk": { "kty": "oct", "k": "AAAA" } }), json!({})),
        ),
        ("HMAC with the public key", make(json!({ "alg": "HS256" }), json!({}))),
        ("none", none("none")),
        ("None", none("None")),
        ("no signature", none("ES256")),
        ("another type", make(json!({ "typ": "JWT" }), json!({}))),
        ("critical", make(json!({ "crit": ["b64"] }), json!({}))),
        ("the token itself", token.clone()),
        ("nonsense", "nonsense".to_owned()),
        ("nothing", String::new()),
        ("very long", "a.".repeat(9_000)),
    ];
    for (what, proof) in &proofs {
        for path in ["/dpop", "/any"] {
            // What is only wrong for one path may be right for the other.
            if path == "/any" && (what.contains("path") || *what == "used already") {
                continue;
            }
            let answer = world.gateway.get(path, &fields("DPoP", &token, &[proof]));
            assert_invalid_proof(&answer, what);
        }
    }
    let fresh = || world.proof("GET", "/dpop", &token);
    let two = world.gateway.get("/dpop", &fields("DPoP", &token, &[&fresh(), &fresh()]));
    assert_invalid_proof(&two, "two proofs");
    let twice = fresh();
    let twice = world.gateway.get("/dpop", &fields("DPoP", &token, &[&twice, &twice]));
    assert_invalid_proof(&twice, "one proof twice");
    let listed = world
        .gateway
        .get("/dpop", &fields("DPoP", &token, &[&format!("{}, {}", fresh(), fresh())]));
    assert_invalid_proof(&listed, "two proofs in one field");
    assert_invalid_proof(&world.gateway.get("/dpop", &fields("DPoP", &token, &[])), "no proof");

    assert_eq!(world.service.seen().len(), before, "nothing of it reached the service");
    assert_eq!(world.gateway.get("/dpop", &fields("DPoP", &token, &[&fresh()])).status, 200);
    let refused = world
        .gateway
        .metric(r#"northgate_auth_requests_total{route="dpop",auth="jwt",result="credentials"}"#);
    assert!(refused >= proofs.len() as f64, "{refused}");
}

#[test]
fn the_scheme_and_the_token_and_the_route_must_agree() {
    let world = World::start("");
    let (bound, unbound) = (world.bound_token(), world.issuer.jwt());
    let proof = |path, token: &str| world.proof("GET", path, token);
    let with_cnf = |cnf: Value| world.issuer.mint(&Mint::client("api").claim("cnf", cnf));
    let both = with_cnf(json!({ "jkt": thumbprint(&world.key), "x5t#S256": token_hash("x") }));
    let certificate = with_cnf(json!({ "x5t#S256": token_hash("x") }));
    let unknown = with_cnf(json!({ "kid": "x" }));

    for (what, path, scheme, token) in [
        ("a bound token as Bearer", "/any", "Bearer", &bound),
        ("a bound token as Bearer where proofs are wanted", "/dpop", "Bearer", &bound),
        ("an unbound token as Bearer where proofs are wanted", "/dpop", "Bearer", &unbound),
        ("an unbound token with a proof", "/dpop", "DPoP", &unbound),
        ("an unbound token with a proof where none is wanted", "/any", "DPoP", &unbound),
        ("a certificate's token with a proof", "/any", "DPoP", &certificate),
        ("a certificate's token in the clear", "/any", "Bearer", &certificate),
        ("a token bound to two things", "/any", "DPoP", &both),
        ("a token bound to the unknown", "/any", "DPoP", &unknown),
        ("a token bound to the unknown, as Bearer", "/any", "Bearer", &unknown),
        ("a bound token as Bearer where nothing is needed", "/optional", "Bearer", &bound),
    ] {
        // Twice: the second time the verdict on the token is known.
        for _ in 0..2 {
            for proofs in [vec![proof(path, token)], vec![]] {
                let proofs: Vec<_> = proofs.iter().map(String::as_str).collect();
                let answer = world.gateway.get(path, &fields(scheme, token, &proofs));
                assert_eq!(answer.status, 401, "{what}");
                let challenge = answer.field("www-authenticate").expect("a challenge");
                let error = r#"error="invalid_token""#;
                let no_proof = scheme == "DPoP" && proofs.is_empty();
                assert!(challenge.contains(error) || no_proof, "{what}: {challenge}");
            }
        }
    }
    assert!(world.service.seen().is_empty());
    // What is bound to nothing stays good as it always was.
    assert_eq!(world.gateway.get("/any", &fields("Bearer", &unbound, &[])).status, 200);
    assert_eq!(world.gateway.get("/optional", "").status, 200);
}

#[test]
fn a_client_is_told_in_the_scheme_that_it_must_use() {
    let world = World::start("");
    let token = world.bound_token();
    let told = |path, fields: &str| {
        let answer = world.gateway.get(path, fields);
        (answer.status, answer.field("www-authenticate").expect("a challenge").to_owned())
    };

    let (status, wants) = told("/dpop", "");
    assert_eq!(status, 401);
    assert!(wants.starts_with("DPoP ") && wants.contains(r#"algs=""#) && wants.contains("ES256"));
    assert!(!wants.contains("HS256") && !wants.contains("error="), "{wants}");
    assert_eq!(told("/any", "").1, r#"Bearer realm="northgate""#);
    let (_, downgraded) = told("/any", &fields("Bearer", &token, &[]));
    assert!(downgraded.starts_with("DPoP ") && downgraded.contains("invalid_token"));
    let (status, scoped) =
        told("/scoped", &fields("DPoP", &token, &[&world.proof("GET", "/scoped", &token)]));
    assert_eq!(status, 403);
    assert!(scoped.starts_with("DPoP ") && scoped.contains("insufficient_scope"), "{scoped}");
    assert_eq!(told("/any", "Authorization: DPoP a\"b\r\n").0, 400);
    assert_eq!(told("/any?access_token=x", &fields("DPoP", &token, &["x"])).0, 400);
}

#[test]
fn the_confirmation_of_a_reference_token_is_enforced() {
    let world = World::start("");
    let token = "a-reference-token";
    let answer = json!({
        "active": true, "iss": world.issuer.running.url(), "aud": API, "sub": "p", "client_id": "p",
        "token_type": "DPoP", "cnf": { "jkt": thumbprint(&world.key) },
    });
    world.issuer.running.inject(Endpoint::Introspection, Fault::json(&answer), u32::MAX);
    let ask = |scheme, proofs: &[&str]| {
        world.gateway.get("/reference", &fields(scheme, token, proofs)).status
    };

    let proof = world.proof("GET", "/reference", token);
    assert_eq!(ask("DPoP", &[&proof]), 200);
    assert_eq!(ask("DPoP", &[&proof]), 401, "the proof was used");
    assert_eq!(ask("DPoP", &[]), 401);
    assert_eq!(ask("Bearer", &[]), 401);
    assert_eq!(ask("Bearer", &[&world.proof("GET", "/reference", token)]), 401);
    assert_eq!(world.issuer.running.count(Endpoint::Introspection), 1);
}

#[test]
fn a_proof_that_was_used_stays_used_across_a_reload() {
    let world = World::start("");
    let token = world.bound_token();
    let proof = world.proof("GET", "/dpop", &token);
    let ask = || world.gateway.get("/dpop", &fields("DPoP", &token, &[&proof]));
    assert_eq!(ask().status, 200);

    world.gateway.reload("", &world.rest).expect("it loads");

    assert_invalid_proof(&ask(), "used before the reload");
    // Until it could not be used any more anyway.
    world.issuer.clock.advance(Duration::from_secs(89));
    assert_invalid_proof(&ask(), "used a while ago");
}

#[test]
fn with_nonce_keys_a_proof_must_carry_a_nonce_that_is_replaced_in_time() {
    let key = STANDARD.encode([7; 32]);
    let world = World::start(&format!("dpop_nonce_keys: [\"{key}\"]"));
    let token = world.bound_token();
    let ask = |nonce: Option<&str>| {
        let claims = json!({ "nonce": nonce });
        let proof = signed(&world.key, "/dpop", &token, world.now(), json!({}), claims);
        world.gateway.get("/dpop", &fields("DPoP", &token, &[&proof]))
    };
    let nonce_of = |answer: &Answer| answer.field("dpop-nonce").map(str::to_owned);

    let first = ask(None);
    assert_eq!(first.status, 401);
    let challenge = first.field("www-authenticate").expect("a challenge");
    assert!(challenge.starts_with("DPoP ") && challenge.contains(r#"error="use_dpop_nonce""#));
    let nonce = nonce_of(&first).expect("a nonce");
    assert_eq!(ask(Some("made-up")).status, 401);

    let second = ask(Some(&nonce));
    assert_eq!((second.status, nonce_of(&second)), (200, None));
    world.issuer.clock.advance(Duration::from_secs(200));
    let third = ask(Some(&nonce));
    let next = nonce_of(&third).expect("the next nonce");
    assert_eq!((third.status, third.field("cache-control")), (200, Some("no-store")));
    world.issuer.clock.advance(Duration::from_secs(101));
    assert_eq!(ask(Some(&nonce)).status, 401, "it has ended");
    assert_eq!(ask(Some(&next)).status, 200);

    // A ring of keys: another replica, or this one after a reload, takes what the old key made.
    let other = STANDARD.encode([8; 32]);
    let server = format!("dpop_nonce_keys: [\"{other}\", \"{key}\"]");
    world.gateway.reload(&server, &world.rest).expect("it loads");
    assert_eq!(ask(Some(&next)).status, 200);
    world
        .gateway
        .reload(&format!("dpop_nonce_keys: [\"{other}\"]"), &world.rest)
        .expect("it loads");
    assert_eq!(ask(Some(&next)).status, 401);
}

#[test]
fn a_proof_is_for_the_address_that_clients_know() {
    let world =
        World::start("public_url: https://api.example.com, trusted_proxies: [127.0.0.1/32]");
    let token = world.bound_token();
    let ask = |path: &str, host: &str, more: &str, htu: &str| {
        let proof = signed(&world.key, path, &token, world.now(), json!({}), json!({ "htu": htu }));
        let fields = fields("DPoP", &token, &[&proof]);
        world
            .gateway
            .ask(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{fields}{more}\r\n"))
            .status
    };

    // Whatever the host says that a proxy asked for.
    assert_eq!(ask("/dpop", "10.0.0.1", "", "https://api.example.com/dpop"), 200);
    assert_eq!(ask("/dpop", "api.example.com", "", "https://api.example.com/dpop"), 200);
    assert_eq!(ask("/dpop?a=b", "a", "", "https://api.example.com/dpop"), 200);
    assert_eq!(ask("/dpop", "evil.test", "", "http://evil.test/dpop"), 401);
    assert_eq!(ask("/dpop", "api.example.com", "", "http://api.example.com/dpop"), 401);
    // A route that the operator has given another host is known by that.
    let https = "X-Forwarded-Proto: https\r\n";
    assert_eq!(ask("/hosted", "other.test", https, "https://other.test/hosted"), 200);
    assert_eq!(ask("/hosted", "other.test", "", "http://other.test/hosted"), 200);
    assert_eq!(ask("/hosted", "other.test", https, "http://other.test/hosted"), 401);
    assert_eq!(ask("/hosted", "other.test", https, "https://api.example.com/hosted"), 401);
    // One that has several is known by the one of the request.
    let (shop, api) = ("https://shop.example.com/wild", "https://api.example.com/wild");
    assert_eq!(ask("/wild", "shop.example.com", https, shop), 200);
    assert_eq!(ask("/wild", "shop.example.com", https, api), 401);
    assert_eq!(ask("/wild", "api.example.com", "", api), 200);
}

#[test]
fn the_gateway_says_of_itself_what_its_routes_want() {
    let world = World::start("public_url: https://api.example.com");

    let answer = world.gateway.get("/dpop", "");
    let challenge = answer.field("www-authenticate").expect("a challenge");
    let url = "https://api.example.com/.well-known/oauth-protected-resource/dpop";
    assert!(challenge.contains(&format!(r#"resource_metadata="{url}""#)), "{challenge}");
    let bad = world.gateway.get("/any", &fields("Bearer", "bad", &[]));
    let challenge = bad.field("www-authenticate").expect("a challenge");
    assert!(challenge.starts_with("Bearer ") && challenge.contains("oauth-protected-resource/any"));

    for host in ["api.example.com", "10.0.0.1"] {
        let path = "/.well-known/oauth-protected-resource/dpop";
        let answer = world.gateway.ask(&format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nOrigin: https://app.test\r\n\r\n"
        ));
        assert_eq!(answer.status, 200, "{}", answer.head);
        assert_eq!(answer.field("content-type"), Some("application/json"));
        assert_eq!(answer.field("access-control-allow-origin"), Some("*"));
        assert_eq!(answer.field("access-control-allow-credentials"), None);
        assert_eq!(answer.field("cache-control"), Some("public, max-age=3600"));
        let document: Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(document["resource"], "https://api.example.com/dpop");
        assert_eq!(document["authorization_servers"], json!([world.issuer.running.url()]));
        assert_eq!(document["dpop_bound_access_tokens_required"], true);
    }
    let whole = world.gateway.get("/.well-known/oauth-protected-resource", "");
    let whole: Value = serde_json::from_slice(&whole.body).expect("JSON");
    assert_eq!(whole["resource"], "https://api.example.com");
    assert_eq!(whole["scopes_supported"], json!(["unknown:scope"]));
    assert_eq!(whole["dpop_bound_access_tokens_required"], false);
    let preflight = world.gateway.ask(
        "OPTIONS /.well-known/oauth-protected-resource HTTP/1.1\r\nHost: a\r\nOrigin: https://b.test\r\n\
         Access-Control-Request-Method: GET\r\n\r\n",
    );
    assert_eq!(
        (preflight.status, preflight.field("access-control-allow-origin")),
        (204, Some("*"))
    );
    let post = world.gateway.ask(
        "POST /.well-known/oauth-protected-resource HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    );
    assert_eq!(post.status, 405);
    assert!(world.service.seen().is_empty());

    // Without a name of its own there is nothing to say.
    world.gateway.reload("", &world.rest).expect("it loads");
    assert_eq!(world.gateway.get("/.well-known/oauth-protected-resource", "").status, 404);
    let challenge = world.gateway.get("/any", "");
    assert_eq!(challenge.field("www-authenticate"), Some(r#"Bearer realm="northgate""#));
}

#[test]
fn an_operators_own_metadata_wins() {
    let own = "  - { id: own, path: /.well-known/oauth-protected-resource, respond: { body: mine }, auth: none }\n\
               \x20 - { id: all, path: /**, upstream: service, auth: none }\n";
    let world = World::with("public_url: https://api.example.com", own);

    assert_eq!(world.gateway.get("/.well-known/oauth-protected-resource", "").text(), "mine");
    let other = world.gateway.get("/.well-known/oauth-protected-resource/any", "");
    assert_eq!(other.field("content-type"), Some("application/json"), "what is under /** is not");
}

/// A gateway, its issuer, a service, and a client's key.
struct World {
    gateway: Gateway,
    service: Upstream,
    issuer: Issuer,
    key: SigningKey,
    rest: String,
}

impl World {
    fn start(server: &str) -> Self {
        Self::with(server, "")
    }

    fn with(server: &str, more: &str) -> Self {
        let (issuer, service) = (start_issuer(), Upstream::polite());
        let rest = format!(
            "{}upstreams:\n  service: {{ targets: [\"{}\"] }}\nroutes:\n\
             \x20 - {{ id: dpop, path: /dpop, upstream: service, auth: {{ jwt: main, dpop: true }} }}\n\
             \x20 - {{ id: any, path: /any, upstream: service, auth: {{ jwt: main }} }}\n\
             \x20 - {{ id: optional, path: /optional, upstream: service, auth: {{ jwt: main, optional: true }} }}\n\
             \x20 - {{ id: stripped, path: /stripped, upstream: service, auth: {{ bearer: main, dpop: true, forward_token: false }} }}\n\
             \x20 - {{ id: scoped, path: /scoped, upstream: service, auth: {{ jwt: main, dpop: true, scopes: [\"unknown:scope\"] }} }}\n\
             \x20 - {{ id: wild, host: \"*.example.com\", path: /wild, upstream: service, auth: {{ jwt: main, dpop: true }} }}\n\
             \x20 - {{ id: hosted, host: other.test, path: /hosted, upstream: service, auth: {{ jwt: main, dpop: true }} }}\n\
             \x20 - {{ id: reference, path: /reference, upstream: service, auth: {{ introspection: main }} }}\n{more}",
            issuer.settings(""),
            service.url()
        );
        let gateway = Gateway::at(issuer.clock.clone(), server, &rest).ready();
        Self { gateway, service, issuer, key: signing_key(), rest }
    }

    fn now(&self) -> u64 {
        self.issuer.clock.now().as_secs()
    }

    /// A signed token that is bound to the client's key.
    fn bound_token(&self) -> String {
        let cnf = json!({ "jkt": thumbprint(&self.key) });
        self.issuer.mint(&Mint::client("api").claim("cnf", cnf))
    }

    /// A new proof for one request.
    fn proof(&self, method: &str, path: &str, token: &str) -> String {
        signed(&self.key, path, token, self.now(), json!({}), json!({ "htm": method }))
    }
}

/// A proof for `GET path` with `token`, but for what `header` and `claims` say otherwise; `null` leaves out.
fn signed(
    key: &SigningKey,
    path: &str,
    token: &str,
    now: u64,
    header: Value,
    claims: Value,
) -> String {
    static NUMBER: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
    let changed = |mut into: Value, by: Value| {
        for (name, value) in by.as_object().expect("an object") {
            match value {
                Value::Null => into.as_object_mut().expect("an object").remove(name),
                value => {
                    into.as_object_mut().expect("an object").insert(name.clone(), value.clone())
                }
            };
        }
        into
    };
    let header =
        changed(json!({ "typ": "dpop+jwt", "alg": "ES256", "jwk": key.public_jwk() }), header);
    let path = path.split('?').next().expect("a path");
    let claims = changed(
        json!({
            "jti": format!("proof-{number}"), "htm": "GET", "htu": format!("http://api.test{path}"),
            "iat": now, "ath": token_hash(token),
        }),
        claims,
    );
    key.sign_jwt(&header, &claims).expect("a signature")
}

fn fields(scheme: &str, token: &str, proofs: &[&str]) -> String {
    let proofs: String = proofs.iter().map(|proof| format!("DPoP: {proof}\r\n")).collect();
    format!("Authorization: {scheme} {token}\r\n{proofs}")
}

fn assert_invalid_proof(answer: &Answer, what: &str) {
    assert_eq!(answer.status, 401, "{what}");
    let challenge = answer.field("www-authenticate").expect("a challenge");
    assert!(challenge.starts_with("DPoP "), "{what}: {challenge}");
    assert!(challenge.contains(r#"error="invalid_dpop_proof""#), "{what}: {challenge}");
    assert!(challenge.contains(r#"algs=""#), "{what}: {challenge}");
}
