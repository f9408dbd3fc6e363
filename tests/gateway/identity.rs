//! The gateway's own signed word on who calls (`auth.identity_token`).

use core::time::Duration;
use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use northgate::dev::issuer::Mint;
use northgate::issuer::{Algorithm, Jwks};
use rcgen::KeyPair;
use serde_json::{Value, json};

use crate::support::{Gateway, Issuer, Upstream, eventually, start_issuer};

#[test]
fn a_service_can_verify_who_calls() {
    let world = World::start("", "");
    let jwt = world.issuer.jwt();
    let reference = world.issuer.reference();
    let basic = format!("Authorization: Basic {}\r\n", STANDARD.encode("alice:wonderland"));

    for (path, fields, subject, client, service) in [
        ("/orders", bearer(&jwt), "api", "api", "orders"),
        ("/shop", bearer(&jwt), "api", "api", "shop"),
        ("/reference", bearer(&reference), "partner", "partner", "orders"),
        ("/basic", basic, "alice", "gateway", "orders"),
    ] {
        let claims = world.identity(path, &fields).expect("a token");
        let now = world.issuer.clock.now().as_secs();
        assert_eq!(claims["iss"], "northgate", "{path}");
        assert_eq!(claims["aud"], service, "{path}");
        assert_eq!((&claims["sub"], &claims["client_id"]), (&json!(subject), &json!(client)));
        assert_eq!((&claims["iat"], &claims["exp"]), (&json!(now), &json!(now + 300)));
    }
    assert!(world.identity("/orders", &bearer(&jwt)).expect("a token")["scope"].is_string());
    assert_eq!(world.identity("/without", &bearer(&jwt)), None);
    assert_eq!(world.identity("/optional", ""), None);
}

#[test]
fn an_identity_token_names_the_upstream_that_receives_it() {
    let (issuer, service, copies) = (start_issuer(), Upstream::polite(), Upstream::polite());
    let auth = "auth: { jwt: main, identity_token: true }";
    let edits = "headers: { request: { set: { X-Edited: \"1\" } } }";
    let file = format!(
        "{}upstreams:\n  dead: {{ targets: [\"http://127.0.0.1:1\"] }}\n  stable: {{ targets: [\"{1}\"] }}\n  \
         canary: {{ targets: [\"{1}\"] }}\n  copies: {{ targets: [\"{2}\"] }}\nroutes:\n\
         \x20 - {{ id: own, path: /own, upstream: stable, {auth}, mirror: {{ upstream: copies }} }}\n\
         \x20 - {{ id: split, path: /split, upstream: stable, {auth}, split: {{ canary: 100% }} }}\n\
         \x20 - {{ id: fallback, path: /fallback, upstream: dead, {auth}, fallback: {{ upstream: canary }} }}\n\
         \x20 - {{ id: edited, path: /edited, upstream: dead, {auth}, fallback: {{ upstream: canary }}, {edits} }}\n",
        issuer.settings(""),
        service.url(),
        copies.url()
    );
    let gateway = Gateway::at(issuer.clock.clone(), "", &file);
    let token = bearer(&issuer.jwt());
    let audience = |seen: &crate::support::Seen| {
        let tokens = seen.fields("x-auth-identity");
        assert_eq!(tokens.len(), 1, "{}", seen.head);
        part(tokens[0], 1)["aud"].clone()
    };

    for (path, upstream) in
        [("/own", "stable"), ("/split", "canary"), ("/fallback", "canary"), ("/edited", "canary")]
    {
        let before = service.seen().len();
        assert_eq!(gateway.get(path, &token).status, 200, "{path}");
        assert_eq!(audience(&service.seen()[before]), upstream, "{path}");
    }
    eventually("the copy", || !copies.seen().is_empty());
    assert_eq!(audience(&copies.seen()[0]), "copies");
}

#[test]
fn an_ordinary_request_signs_nothing() {
    let world = World::start("", "");
    let jwt = bearer(&world.issuer.jwt());
    let token = || world.token("/orders", &jwt).expect("a token");

    let first = token();
    world.issuer.clock.advance(Duration::from_secs(149));
    assert_eq!(token(), first);
    world.issuer.clock.advance(Duration::from_secs(1));
    let second = token();
    assert_ne!(second, first);
    let other = world.issuer.jwt();
    assert_ne!(world.token("/orders", &bearer(&other)), Some(second), "one for each caller");

    let short = world.issuer.mint(&Mint::client("api").lifetime(Duration::from_secs(60)));
    let now = world.issuer.clock.now().as_secs();
    let claims = world.identity("/orders", &bearer(&short)).expect("a token");
    assert_eq!(claims["exp"], now + 60, "never beyond the caller's own");
}

#[test]
fn an_identity_token_of_a_client_is_removed() {
    let world = World::start("", "");
    let spoofed = "X-Auth-Identity: forged\r\nx_auth_identity: forged\r\nX-Auth_IDENTITY: forged\r\n\
                   Connection: X-Auth-Identity\r\n";
    let jwt = bearer(&world.issuer.jwt());

    for (path, fields) in [
        ("/open", String::new()),
        ("/without", jwt.clone()),
        ("/optional", String::new()),
        ("/orders", jwt),
    ] {
        let before = world.service.seen().len();
        assert_eq!(world.gateway.get(path, &format!("{fields}{spoofed}")).status, 200, "{path}");
        let seen = world.service.seen().remove(before);
        assert!(!seen.head.contains("forged"), "{}", seen.head);
        assert_eq!(seen.fields("x-auth-identity").len(), usize::from(path == "/orders"), "{path}");
    }
    let log = world.gateway.log();
    assert!(!log.contains(&world.token("/orders", &bearer(&world.issuer.jwt())).expect("one")));
}

#[test]
fn a_field_that_an_edit_fills_from_a_claim_is_removed_from_what_clients_send() {
    let route = "  - id: a\n    path: /orders\n    upstream: orders\n    auth: { jwt: main }\n    \
        headers: { request: { remove: [X-Debug], set: { X-User: \"{claim:sub}\", X-Role: \"{claim:role}\", Accept-Language: \"{claim:locale}\" }, \
        add: { X-Team: \"{claim:sub}\" } } }\n  \
        - { id: b, path: /public, upstream: orders, auth: none }\n";
    let world = World::with(tempfile::tempdir().expect("a directory"), "", "", route);
    let forged = "X-User: forged\r\nX_User: forged\r\nx.role: forged\r\nX-Role: forged\r\nX-Team: forged\r\n\
                  X-Language: kept\r\nAccept-Language: de\r\n";
    let token = bearer(&world.issuer.jwt());

    assert_eq!(world.gateway.get("/public", forged).status, 200);
    let sent = format!("{token}{forged}X_Debug: forged\r\naccept_language: forged\r\n");
    assert_eq!(world.gateway.get("/orders", &sent).status, 200);

    let [public, orders] = &world.service.seen()[..] else { panic!("two requests") };
    for seen in [public, orders] {
        assert!(!seen.head.contains("forged"), "{}", seen.head);
        assert_eq!(seen.field("x-language"), Some("kept"));
    }
    assert_eq!(public.field("accept-language"), Some("de"), "a field of HTTP itself");
    assert_eq!((orders.fields("x-user"), orders.fields("x-team")), (vec!["api"], vec!["api"]));
    assert_eq!(orders.field("x-role"), None);
}

#[test]
fn the_identity_token_has_the_claims_of_the_identity_headers() {
    let world = World::start("", "");
    let token =
        bearer(&world.issuer.mint(&Mint::client("api").claim("tier", json!({ "level": 3 }))));

    let claims = world.identity("/headers", &token).expect("a token");

    assert_eq!(claims["tier"], json!({ "level": 3 }));
    assert_eq!(world.service.seen()[0].field("x-tier"), Some(r#"{"level":3}"#));
}

#[test]
fn headers_edits_and_the_token_say_what_the_gateway_believes_and_nothing_else() {
    let keys = ", client_claim: app, scope_claim: granted";
    let route = "  - id: a\n    path: /orders\n    upstream: orders\n    \
        auth: { jwt: main, identity_token: true, identity_headers: { X-Sub: sub, X-Client: client_id, X-Scope: scope, X-Inner: scope.inner, X-Plan: plan.name } }\n    \
        headers: { request: { set: { X-Edit: \"{claim:sub}|{claim:client_id}|{claim:scope}|{claim:scope.inner}|{claim:plan.name}\" } } }\n";
    let world = World::with(tempfile::tempdir().expect("a directory"), "", keys, route);
    let raw = || Mint::client("api").claim("plan", json!({ "name": "gold" }));

    for (mint, client, scope) in [
        // The claims that the gateway believes are absent: their namesakes say nothing.
        (raw().claim("client_id", "admin").claim("scope", "root"), None, None),
        (raw().claim("client_id", json!({ "x": 1 })).claim("scope", json!(["root"])), None, None),
        (raw().claim("scope", json!({ "inner": "root" })).claim("client_id", json!(7)), None, None),
        // They are there, and say something else.
        (
            raw()
                .claim("client_id", "admin")
                .claim("scope", "root")
                .claim("app", "shop")
                .claim("granted", json!(["b", "a"])),
            Some("shop"),
            Some("a b"),
        ),
    ] {
        let before = world.service.seen().len();
        let claims =
            world.identity("/orders", &bearer(&world.issuer.mint(&mint))).expect("a token");

        let seen = world.service.seen().remove(before);
        let header = |name| seen.field(name).map(str::to_owned);
        let said = |name: &str| claims.get(name).and_then(Value::as_str).map(str::to_owned);
        let text = |text: Option<&str>| text.map(str::to_owned);
        assert_eq!((header("x-client"), said("client_id")), (text(client), text(client)));
        assert_eq!((header("x-scope"), said("scope")), (text(scope), text(scope)));
        assert_eq!((header("x-inner"), claims.get("scope.inner")), (None, None));
        assert_eq!((header("x-plan"), said("plan.name")), (text(Some("gold")), text(Some("gold"))));
        assert_eq!((header("x-sub"), said("sub")), (text(Some("api")), text(Some("api"))));
        let edit =
            format!("api|{}|{}||gold", client.unwrap_or_default(), scope.unwrap_or_default());
        assert_eq!(header("x-edit"), Some(edit));
    }
}

#[test]
fn the_keys_are_published_unless_the_operator_has_other_plans() {
    let wants = "auth: { jwt: main, identity_token: true }";
    for (route, own) in [
        ("", true),
        ("  - { id: rest, path: /**, upstream: service, auth: none }\n", true),
        ("  - { id: keys, path: /.well-known/jwks.json, upstream: service, auth: none }\n", false),
        ("  - { id: keys, path: /.well-known/**, upstream: service, auth: none }\n", false),
    ] {
        let world = World::of(
            "",
            &format!("  - {{ id: a, path: /a, upstream: service, {wants} }}\n{route}"),
        );
        let answer = world.gateway.get(JWKS, "");
        assert_eq!((route, answer.status), (route, 200));
        assert_eq!(answer.text() != "fine", own, "{route}");
        if own {
            assert_eq!(answer.field("content-type"), Some("application/json"));
            assert_eq!(answer.field("cache-control"), Some("public, max-age=300"));
            assert!(!answer.text().contains("\"d\""), "public halves alone");
            assert_eq!(
                world.gateway.ask(&format!("POST {JWKS} HTTP/1.1\r\nHost: a\r\n\r\n")).status,
                405
            );
        }
    }
    let unused = World::of("", "  - { id: a, path: /a, upstream: service, auth: { jwt: main } }\n");
    assert_eq!(unused.gateway.get(JWKS, "").status, 404);
}

#[test]
fn the_operators_keys_are_used_where_there_are_some() {
    let directory = tempfile::tempdir().expect("a directory");
    for name in ["new.pem", "old.pem"] {
        let key = KeyPair::generate().expect("a key").serialize_pem();
        fs::write(directory.path().join(name), key).expect("written");
    }
    let route = "  - { id: a, path: /orders, upstream: service, auth: { jwt: main, identity_token: true } }\n";
    let world = World::within(directory, "identity_keys: [new.pem, old.pem]", route);
    let published =
        || -> Value { serde_json::from_str(world.gateway.get(JWKS, "").text()).expect("JSON") };
    let kids = |set: &Value| {
        set["keys"]
            .as_array()
            .expect("keys")
            .iter()
            .map(|key| key["kid"].clone())
            .collect::<Vec<_>>()
    };

    let before = kids(&published());
    assert_eq!(before.len(), 2);
    let token = world.token("/orders", &bearer(&world.issuer.jwt())).expect("a token");
    assert_eq!(part(&token, 0)["kid"], before[0], "the first signs");
    world.issuer.clock.advance(Duration::from_secs(3 * 86_400));
    assert_eq!(kids(&published()), before, "only the operator replaces them");
    world.verified(&token);
}

#[test]
fn a_reload_changes_no_key() {
    let world = World::start("", "");
    let before = world.gateway.get(JWKS, "").body;

    world.gateway.reload("", &world.file).expect("reloaded");

    assert_eq!(world.gateway.get(JWKS, "").body, before);
    assert!(world.identity("/orders", &bearer(&world.issuer.jwt())).is_some());
}

/// An issuer, a service under two names, and routes that tell it who calls.
struct World {
    gateway: Gateway,
    service: Upstream,
    issuer: Issuer,
    file: String,
}

impl World {
    fn start(server: &str, more: &str) -> Self {
        let token = "identity_token: true";
        Self::of(
            server,
            &format!(
                "  - {{ id: open, path: /open, upstream: service, auth: none }}\n\
                 \x20 - {{ id: orders, path: /orders, upstream: orders, auth: {{ jwt: main, {token} }} }}\n\
                 \x20 - {{ id: shop, path: /shop, upstream: shop, auth: {{ bearer: main, {token} }} }}\n\
                 \x20 - {{ id: reference, path: /reference, upstream: orders, auth: {{ introspection: main, {token} }} }}\n\
                 \x20 - {{ id: basic, path: /basic, upstream: orders, auth: {{ any: [{{ jwt: main }}, {{ basic: main }}], {token} }} }}\n\
                 \x20 - {{ id: without, path: /without, upstream: orders, auth: {{ jwt: main }} }}\n\
                 \x20 - {{ id: optional, path: /optional, upstream: orders, auth: {{ jwt: main, optional: true, {token} }} }}\n\
                 \x20 - {{ id: headers, path: /headers, upstream: orders, auth: {{ jwt: main, {token}, identity_headers: {{ X-Tier: tier }} }} }}\n{more}"
            ),
        )
    }

    fn of(server: &str, routes: &str) -> Self {
        Self::within(tempfile::tempdir().expect("a directory"), server, routes)
    }

    fn within(directory: tempfile::TempDir, server: &str, routes: &str) -> Self {
        Self::with(directory, server, "", routes)
    }

    fn with(directory: tempfile::TempDir, server: &str, keys: &str, routes: &str) -> Self {
        let (issuer, service) = (start_issuer(), Upstream::polite());
        let at = service.url();
        let file = format!(
            "{}upstreams:\n  service: {{ targets: [\"{at}\"] }}\n  orders: {{ targets: [\"{at}\"] }}\n  \
             shop: {{ targets: [\"{at}\"] }}\nroutes:\n{routes}",
            issuer.settings(keys),
        );
        let whole = crate::support::whole(server, &file);
        let gateway = Gateway::within(directory, issuer.clock.clone(), &whole).ready();
        Self { gateway, service, issuer, file }
    }

    /// The token that the service gets with this request.
    fn token(&self, path: &str, fields: &str) -> Option<String> {
        let before = self.service.seen().len();
        assert_eq!(self.gateway.get(path, fields).status, 200, "{path}");
        self.service.seen().remove(before).field("x-auth-identity").map(str::to_owned)
    }

    /// Its claims, as a service would verify them.
    fn identity(&self, path: &str, fields: &str) -> Option<Value> {
        let token = self.token(path, fields)?;
        self.verified(&token);
        Some(part(&token, 1))
    }

    fn verified(&self, token: &str) {
        let header = part(token, 0);
        assert_eq!((&header["alg"], &header["typ"]), (&json!("ES256"), &json!("JWT")));
        let keys = self.gateway.get(JWKS, "").body;
        let keys = Jwks::parse(&keys, |_, why| panic!("{why}")).expect("a key set");
        let key = keys.select(header["kid"].as_str(), Algorithm::Es256, |_| true).expect("its key");
        let (signed, signature) = token.rsplit_once('.').expect("three parts");
        let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
        assert_eq!(key.verify(Algorithm::Es256, signed.as_bytes(), &signature), Ok(()));
    }
}

fn part(token: &str, number: usize) -> Value {
    let part = token.split('.').nth(number).expect("three parts");
    let bytes = URL_SAFE_NO_PAD.decode(part).expect("base64url");
    serde_json::from_slice(&bytes).expect("JSON")
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

const JWKS: &str = "/.well-known/jwks.json";
