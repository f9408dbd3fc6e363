//! An operator ends tokens and sessions before their time: `POST /-/revoke` (behaviour.md §2, §8 item 43).

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use core::time::Duration;

use crate::fault_injection::Endpoint;
use northgate::dev::issuer::Mint;
use serde_json::{Value, json};

use crate::support::{Answer, Client, Gateway, Issuer, Upstream, start_issuer};

#[test]
fn a_revoked_token_is_refused_at_once_and_stays_refused() {
    for form in [true, false] {
        for by in ["jti", "sid", "sub", "token"] {
            let world = World::start("");
            let three_days = Duration::from_secs(3 * 86_400);
            let mint = Mint::client("api").user("alice").lifetime(three_days);
            let token = world.issuer.mint(&mint.claim("jti", "t1"));
            assert_eq!(world.get("/jwt", &token).status, 200);
            world.issuer.clock.advance(Duration::from_secs(1));
            let value = if by == "token" { token.clone() } else { claim(&token, by) };

            let done = if form {
                world.form(&form_of(&[(by, &value)]))
            } else {
                world.json(&json!({ by: value }))
            };

            assert_eq!(done.status, 200, "{by}: {}", done.text());
            let told: Value = serde_json::from_slice(&done.body).expect("JSON");
            let lasts = "until a restart: there is neither `server.state_dir` nor `redis`";
            let all = json!({ "revoked": [by], "issuers": "all", "forgotten": 1, "lasts": lasts });
            assert_eq!(told, all);
            for seconds in [0, 3600, 86_400, 100_000] {
                world.issuer.clock.advance(Duration::from_secs(seconds));
                let refused = world.get("/jwt", &token);
                assert_eq!(refused.status, 401, "{by} after {seconds} s");
                let told = refused.field("www-authenticate").expect("a challenge");
                assert!(told.contains("has been revoked"), "{by} after {seconds} s: {told}");
            }
            assert!(!world.gateway.log().contains(&token));
        }
    }
}

#[test]
fn a_value_is_revoked_whatever_was_copied_with_it() {
    let world = World::start("");
    let around: [fn(&str) -> String; 6] = [
        |value| format!("{value}\n"),
        |value| format!("{value}\r\n"),
        |value| format!("  {value}\t"),
        |value| format!("\"{value}\""),
        |value| format!("'{value}'\n"),
        |value| format!("\u{feff}{value}"),
    ];
    let fields = ["jti", "sid", "sub", "token"];
    for (n, (by, around)) in fields.iter().flat_map(|by| around.map(|it| (by, it))).enumerate() {
        world.issuer.clock.advance(Duration::from_secs(2));
        let token = world.person("bob", &format!("t{n}"));
        assert_eq!(world.get("/jwt", &token).status, 200);
        let value = if *by == "token" { token.clone() } else { claim(&token, by) };
        world.issuer.clock.advance(Duration::from_secs(2));

        let done = world.form(&form_of(&[(by, &around(&value)), ("iss", "main\n")]));

        assert_eq!(done.status, 200, "{by}: {}", done.text());
        assert_eq!(world.get("/jwt", &token).status, 401, "{by}={:?}", around("…"));
    }
    for scheme in ["Bearer ", "bearer  ", "DPoP ", "Authorization: Bearer ", "\n Bearer "] {
        let token = world.person("bob", scheme.trim());
        assert_eq!(world.get("/jwt", &token).status, 200);
        let copied = format!("{scheme}{token}\n");
        assert_eq!(world.json(&json!({ "token": copied })).status, 200);
        assert_eq!(world.get("/jwt", &token).status, 401, "{scheme}");
    }
}

#[test]
fn a_token_of_no_configured_issuer_is_reported() {
    let world = World::start("");
    let token = world.alice("t1");
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let stranger = format!(
        "{}.{}.AAAA",
        part("{\"alg\":\"ES256\"}"),
        part("{\"iss\":\"https://other.test\"}")
    );
    let doubt = |token: &str| {
        let told = world.form(&form_of(&[("token", token)]));
        let told: Value = serde_json::from_slice(&told.body).expect("JSON");
        told["unrecognized"].as_str().map(str::to_owned)
    };

    assert_eq!(doubt(&token), None);
    let cut = token.split_once('.').expect("a JWT").1;
    for unknown in ["never-seen", cut, "a.b.c"] {
        assert!(doubt(unknown).is_some_and(|it| it.contains("no JWT with an `iss`")), "{unknown}");
    }
    assert!(doubt(&stranger).is_some_and(|it| it.contains("not configured")));
    let reference = world.issuer.reference();
    assert_eq!(world.get("/reference", &reference).status, 200);
    assert_eq!(doubt(&reference), None, "it was in use");
}

#[test]
fn revoking_one_token_leaves_others_valid() {
    let world = World::start("");
    let (alice, other, bob) = (world.alice("t1"), world.alice("t2"), world.person("bob", "t3"));

    let done = world.json(&json!({ "jti": "t1", "sid": claim(&bob, "sid"), "iss": "main" }));

    let told: Value = serde_json::from_slice(&done.body).expect("JSON");
    let issuers = json!([world.issuer.running.url(), "main"]);
    assert_eq!((&told["revoked"], &told["issuers"]), (&json!(["jti", "sid"]), &issuers));
    assert_eq!(world.get("/jwt", &alice).status, 401);
    assert_eq!(world.get("/jwt", &other).status, 200);
    assert_eq!(world.get("/jwt", &bob).status, 401);
}

#[test]
fn an_issuer_is_named_as_in_the_file_or_as_in_its_tokens() {
    let world = World::start("");
    let url = world.issuer.running.url().to_owned();

    // The twin has the same `iss`: its tokens are those of `main`.
    for (name, jti) in [("main", "t1"), (&*url, "t2"), ("twin", "t3")] {
        let token = world.alice(jti);
        assert_eq!(world.get("/jwt", &token).status, 200);
        assert_eq!(world.form(&form_of(&[("jti", jti), ("iss", name)])).status, 200);
        assert_eq!(world.get("/jwt", &token).status, 401);
    }
}

#[test]
fn a_reference_token_and_basic_credentials_are_asked_about_anew() {
    let world = World::start("");
    let reference = world.issuer.reference();
    assert_eq!(world.get("/reference", &reference).status, 200);
    assert_eq!(world.form(&form_of(&[("token", &reference)])).status, 200);
    assert_eq!(world.get("/reference", &reference).status, 401);

    let basic = || {
        world.gateway.get(
            "/basic",
            &format!("Authorization: Basic {}\r\n", STANDARD.encode("alice:wonderland")),
        )
    };
    assert_eq!((basic().status, basic().status), (200, 200));
    let exchanged = world.issuer.running.count(Endpoint::Token);
    world.issuer.clock.advance(Duration::from_secs(1));

    let done = world.form("sub=alice");

    assert!(
        done.text().contains("\"forgotten\":2"),
        "the credentials and the verdict: {}",
        done.text()
    );
    world.issuer.clock.advance(Duration::from_secs(1));
    assert_eq!(basic().status, 200, "who has a password may come again");
    assert_eq!(world.issuer.running.count(Endpoint::Token), exchanged + 1);
}

/// Encrypted again, it is the same token.
#[test]
fn revoking_an_encrypted_token_revokes_the_token_inside() {
    let secret = [9; 32];
    let keys = tempfile::NamedTempFile::new().expect("a file");
    let key = json!({ "kty": "oct", "kid": "d", "k": URL_SAFE_NO_PAD.encode(secret) });
    std::fs::write(keys.path(), key.to_string()).expect("a key");
    let decryption = format!(
        ", decryption: {{ keys: {:?}, algorithms: [dir], content_algorithms: [A256GCM] }}",
        keys.path()
    );
    let world = World::with("", &decryption);
    let token = world.alice("t1");
    let (first, second) = (encrypted(&token, secret, 1), encrypted(&token, secret, 2));
    assert_eq!(world.get("/jwt", &first).status, 200);

    assert_eq!(world.form(&form_of(&[("token", &first)])).status, 200);

    for token in [&first, &second, &token] {
        assert_eq!(world.get("/jwt", token).status, 401);
    }
}

#[test]
fn a_reload_forgives_nothing() {
    let world = World::start("");
    let token = world.alice("t1");
    world.form("jti=t1");

    world
        .gateway
        .reload("max_headers: 50", &rest(&world.issuer, &world.service, ""))
        .expect("a good file");

    assert_eq!(world.get("/jwt", &token).status, 401);
}

#[test]
fn a_revocation_at_one_issuer_holds_when_the_configuration_renames_it() {
    let (issuer, service) = (start_issuer(), Upstream::polite());
    let file = |name: &str| {
        let rest = rest(&issuer, &service, "");
        let lines = rest.lines().filter(|line| !line.contains("twin")).collect::<Vec<_>>();
        format!(
            "version: 1\nlisten: [{{ address: \"127.0.0.1:0\" }}]\nadmin: {{ listen: \"127.0.0.1:0\" }}\n\
             server: {{ workers: 1 }}\n{}\n",
            lines.join("\n").replace("main", name)
        )
    };
    let (before, after) = (file("main"), file("idp"));
    let gateway = Gateway::of(issuer.clock.clone(), &before).ready();
    let world = World { gateway, service, issuer };
    let (revoked, other) = (world.alice("t1"), world.alice("t2"));
    assert_eq!(world.form("jti=t1&issuer=main").status, 200);

    world.gateway.replace(&after).expect("a good file");

    assert_eq!(world.get("/jwt", &revoked).status, 401);
    assert_eq!(world.get("/jwt", &other).status, 200);
}

#[test]
fn a_revocation_may_be_remembered_for_longer_than_a_day() {
    let world = World::start("");
    let life = Duration::from_secs(10 * 86_400);
    let token =
        world.issuer.mint(&Mint::client("api").user("alice").lifetime(life).claim("jti", "t1"));
    let until = (world.issuer.clock.now().as_secs() + 10 * 86_400).to_string();

    // The gateway has not verified the token yet: its expiry is unknown.
    assert_eq!(world.form(&form_of(&[("jti", "t1"), ("until", &until)])).status, 200);
    world.issuer.clock.advance(Duration::from_secs(9 * 86_400));

    assert_eq!(world.get("/jwt", &token).status, 401);
}

#[test]
fn an_invalid_revocation_request_is_refused_with_the_reason() {
    let world = World::start("");
    let token = world.alice("t1");
    let json = "application/json";
    let form = "application/x-www-form-urlencoded";
    for (kind, body, status, reason) in [
        (form, "", 400, "no target: set"),
        (form, "iss=main", 400, "no target: set"),
        (json, "{}", 400, "no target: set"),
        (form, "jti=", 400, "a value is empty"),
        (form, "jti=%0A+", 400, "a value is empty"),
        (form, "sub=alice%0Abob", 400, "control character"),
        (form, "token=a+b", 400, "`token` is no token"),
        (form, "token=a%0Ab", 400, "control character"),
        (json, r#"{"token":"a,b"}"#, 400, "`token` is no token"),
        (json, r#"{"jti":7}"#, 400, "a value is empty, or not text"),
        (json, r#"{"jti":null}"#, 400, "a value is empty, or not text"),
        (json, r#"{"jti":["t1"]}"#, 400, "a value is empty, or not text"),
        (form, "jti=t1&jti=t2", 400, "repeated"),
        (json, r#"{"jti":"t1","jti":"t2"}"#, 400, "not a JSON object"),
        (form, "jti=t1&iss=main&issuer=main", 400, "repeated"),
        (form, "jti=t1&subject=alice", 400, "unknown field"),
        (form, "jti=t1&iss=unknown", 400, "no configured issuer"),
        (form, "jti=t1&until=tomorrow", 400, "until"),
        (json, "[]", 400, "not a JSON object"),
        (json, "jti=t1", 400, "not a JSON object"),
        (form, r#"{"jti":"t1"}"#, 400, "a value is empty"),
        ("text/plain", "jti=t1", 400, "application/json"),
        ("", "jti=t1", 400, "application/json"),
    ] {
        let answer = world.operator(kind, body, "");
        assert_eq!(answer.status, status, "{kind} {body}: {}", answer.text());
        let told: Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert!(told["error"].as_str().is_some_and(|told| told.contains(reason)), "{body}: {told}");
    }
    let large = format!("jti=t1&sub={}", "x".repeat(70_000));
    assert_eq!(world.operator(form, &large, "").status, 413);

    assert_eq!(world.get("/jwt", &token).status, 200, "none of it did anything");
    let get = world.gateway.operator("GET /-/revoke HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(get.status, 405);
}

#[test]
fn only_the_operator_revokes() {
    let world = World::start(", token: a-long-token-for-the-operator");
    let token = world.alice("t1");
    let form = "application/x-www-form-urlencoded";

    assert_eq!(world.operator(form, "jti=t1", "").status, 401);
    assert_eq!(world.operator(form, "jti=t1", "Authorization: Bearer wrong\r\n").status, 401);
    let good = "Authorization: Bearer a-long-token-for-the-operator\r\n";
    let page = format!("{good}Origin: https://evil.test\r\n");
    assert_eq!(world.operator(form, "jti=t1", &page).status, 403);
    assert_eq!(world.get("/jwt", &token).status, 200);

    assert_eq!(world.operator(form, "jti=t1", good).status, 200);
    assert_eq!(world.get("/jwt", &token).status, 401);
}

/// An issuer, a service, and ways in.
struct World {
    gateway: Gateway,
    service: Upstream,
    issuer: Issuer,
}

impl World {
    /// `admin` is what stands in the braces of `admin:` after its address.
    fn start(admin: &str) -> Self {
        Self::with(admin, "")
    }

    /// `more` is what the issuer `main` has besides.
    fn with(admin: &str, more: &str) -> Self {
        let (issuer, service) = (start_issuer(), Upstream::polite());
        let text = format!(
            "version: 1\nlisten: [{{ address: \"127.0.0.1:0\" }}]\n\
             admin: {{ listen: \"127.0.0.1:0\"{admin} }}\nserver: {{ workers: 1 }}\n{}",
            rest(&issuer, &service, more)
        );
        let gateway = Gateway::of(issuer.clock.clone(), &text).ready();
        Self { gateway, service, issuer }
    }

    fn alice(&self, jti: &str) -> String {
        self.person("alice", jti)
    }

    fn person(&self, name: &str, jti: &str) -> String {
        self.issuer.mint(&Mint::client("api").user(name).claim("jti", jti))
    }

    fn get(&self, path: &str, token: &str) -> Answer {
        self.gateway.get(path, &format!("Authorization: Bearer {token}\r\n"))
    }

    fn form(&self, body: &str) -> Answer {
        self.operator("application/x-www-form-urlencoded", body, "")
    }

    fn json(&self, body: &Value) -> Answer {
        self.operator("application/json; charset=utf-8", &body.to_string(), "")
    }

    fn operator(&self, kind: &str, body: &str, fields: &str) -> Answer {
        let kind =
            if kind.is_empty() { String::new() } else { format!("Content-Type: {kind}\r\n") };
        let mut client = Client::connect(self.gateway.launched.admin);
        // Who is refused may not be read to the end.
        let _ = client.try_send(format!(
            "POST /-/revoke HTTP/1.1\r\nHost: localhost\r\n{kind}{fields}Content-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        client.answer()
    }
}

fn rest(issuer: &Issuer, service: &Upstream, more: &str) -> String {
    format!(
        "{}  twin: {{ issuer: \"{}\", audience: \"https://api.localhost\" }}\n\
         upstreams:\n  service: {{ targets: [\"{}\"] }}\nroutes:\n\
         \x20 - {{ id: jwt, path: /jwt, upstream: service, auth: {{ jwt: main }} }}\n\
         \x20 - {{ id: twin, path: /twin, upstream: service, auth: {{ jwt: twin }} }}\n\
         \x20 - {{ id: reference, path: /reference, upstream: service, auth: {{ introspection: main }} }}\n\
         \x20 - {{ id: basic, path: /basic, upstream: service, auth: {{ basic: main }} }}\n",
        issuer.settings(more),
        issuer.running.url(),
        service.url()
    )
}

/// The token, encrypted with `secret`; another `nonce` gives other text.
fn encrypted(token: &str, secret: [u8; 32], nonce: u8) -> String {
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"dir","enc":"A256GCM","kid":"d","cty":"JWT"}"#);
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &secret).expect("a key"));
    let (iv, mut text) = ([nonce; 12], token.as_bytes().to_vec());
    let aad = Aad::from(header.as_bytes());
    let tag = key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(iv), aad, &mut text);
    let tag = URL_SAFE_NO_PAD.encode(tag.expect("a tag"));
    format!("{header}..{}.{}.{tag}", URL_SAFE_NO_PAD.encode(iv), URL_SAFE_NO_PAD.encode(text))
}

/// What a token says, unverified.
fn claim(token: &str, name: &str) -> String {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).expect("three parts"));
    let claims: Value = serde_json::from_slice(&payload.expect("base64url")).expect("JSON");
    claims[name].as_str().expect("text").to_owned()
}

fn form_of(fields: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish()
}
