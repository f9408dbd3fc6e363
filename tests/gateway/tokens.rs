//! Who is let in, who is not, and what each is told (behaviour.md §2, §3; RFC 6750, RFC 7662).

use crate::fault_injection::{Endpoint, Fault};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use core::time::Duration;
use http::StatusCode;
use northgate::dev::issuer::{API, Algorithm, Mint};
use serde_json::{Value, json};
use std::thread;

use crate::support::{Answer, Client, Gateway, Issuer, Upstream, start_issuer};

#[test]
fn a_good_token_is_let_in_and_travels_on() {
    let world = World::start("");
    let token = world.issuer.jwt();

    // The scheme's case does not matter (RFC 9110 §11.1).
    for scheme in ["Bearer", "bearer", "BEARER"] {
        assert_eq!(
            world.gateway.get("/jwt", &format!("Authorization: {scheme} {token}\r\n")).status,
            200
        );
    }

    let seen = world.service.seen().remove(0);
    assert_eq!(seen.field("authorization"), Some(&*format!("Bearer {token}")));
    assert_eq!(seen.field("x-auth-subject"), Some("api"));
    assert_eq!(seen.field("x-auth-client"), Some("api"));
    assert!(seen.field("x-auth-scopes").is_some_and(|scopes| scopes.contains("orders:read")));
}

/// CVE-2025-64484, GHSA-5m6w-wvh7-57vm, CVE-2026-39998, CVE-2026-44087
#[test]
fn a_client_cannot_set_identity_headers() {
    let world = World::start("");
    let spoofed = "X-Auth-Subject: root\r\nx_auth_subject: root\r\nX-Auth_Subject: root\r\n\
                   x-AUTH-client: root\r\nX_AUTH_SCOPES: root\r\nX.Auth.Subject: root\r\n\
                   X-Auth~Client: root\r\nX!AUTH_SCOPES: root\r\n";
    let token = bearer(&world.issuer.jwt());

    for (path, fields) in [
        ("/open", spoofed.to_owned()),
        ("/jwt", format!("{token}{spoofed}")),
        (
            "/jwt",
            format!("{token}{spoofed}Connection: X-Auth-Subject, X-Auth-Client, Authorization\r\n"),
        ),
        ("/optional", spoofed.to_owned()),
    ] {
        let before = world.service.seen().len();
        assert_eq!(world.gateway.get(path, &fields).status, 200, "{path}");
        let seen = world.service.seen().remove(before);
        assert!(!seen.head.contains("root"), "{}", seen.head);
        if path == "/jwt" {
            assert_eq!(seen.field("x-auth-subject"), Some("api"), "{}", seen.head);
            assert!(seen.field("authorization").is_some());
        }
    }
}

/// CVE-2023-27493
#[test]
fn no_user_is_named_like_another_to_a_service() {
    let world = World::start("");
    let mut told = Vec::new();
    for subject in
        ["alice", "alice ", " alice", "\u{e9}", "%C3%A9", "a\r\nX-Auth-Client: b", "a%0D"]
    {
        let mint = Mint::client("api").user(subject);
        let before = world.service.seen().len();
        assert_eq!(world.jwt(&world.issuer.mint(&mint)).status, 200, "{subject:?}");
        let seen = world.service.seen().remove(before);
        told.push(seen.field("x-auth-subject").expect("a subject").to_owned());
    }

    assert_eq!(
        told,
        [
            "alice",
            "alice%20",
            "%20alice",
            "%C3%A9",
            "%25C3%25A9",
            "a%0D%0AX-Auth-Client:%20b",
            "a%250D"
        ]
    );
}

#[test]
fn a_bad_token_is_401_invalid_token_whatever_is_wrong_with_it() {
    let world = World::start("");
    let now = world.issuer.clock.now().as_secs();
    let sign = |header: Value, change: &dyn Fn(&mut Value)| {
        let mut claims = json!({
            "iss": world.issuer.running.url(), "aud": API, "sub": "api", "client_id": "api",
            "iat": now, "exp": now + 300, "scope": "orders:read",
        });
        change(&mut claims);
        world.issuer.running.sign(Algorithm::Es256, header, claims)
    };
    let typ = || json!({ "typ": "at+jwt" });
    let good = sign(typ(), &|_| {});
    assert_eq!(world.jwt(&good).status, 200, "all others differ from this one in one point");

    let set =
        |name: &'static str, value: Value| sign(typ(), &move |claims| claims[name] = value.clone());
    let without = |name: &'static str| {
        sign(typ(), &|claims| {
            claims.as_object_mut().expect("an object").remove(name);
        })
    };
    let (body, signature) = good.rsplit_once('.').expect("three parts");
    let claims = body.split_once('.').expect("two parts").1;
    let none = |alg: &str| {
        let header = URL_SAFE_NO_PAD.encode(json!({ "alg": alg, "typ": "at+jwt" }).to_string());
        format!("{header}.{claims}.")
    };
    let tampered = |claims: Value| {
        let claims = URL_SAFE_NO_PAD.encode(claims.to_string());
        format!("{}.{claims}.{signature}", body.split_once('.').expect("two parts").0)
    };
    let zero = URL_SAFE_NO_PAD.encode([0; 64]);
    let bad = [
        ("expired", set("exp", json!(now - 31))),
        ("exp as text", set("exp", json!((now + 300).to_string()))),
        ("exp negative", set("exp", json!(-1))),
        ("no exp", without("exp")),
        ("not yet valid", set("nbf", json!(now + 31))),
        ("another issuer", set("iss", json!("https://evil.test"))),
        ("issuer with a slash", set("iss", json!(format!("{}/", world.issuer.running.url())))),
        ("issuers in a list", set("iss", json!([world.issuer.running.url()]))),
        ("another audience", set("aud", json!("https://other.test"))),
        ("half an audience", set("aud", json!("https://api.localhost.evil"))),
        ("no audience", without("aud")),
        ("no subject", without("sub")),
        ("an ID token's type", sign(json!({ "typ": "logout+jwt" }), &|_| {})),
        ("critical", sign(json!({ "typ": "at+jwt", "crit": ["exp"] }), &|_| {})),
        ("unknown key", sign(json!({ "typ": "at+jwt", "kid": "unknown" }), &|_| {})),
        ("HMAC", sign(json!({ "typ": "at+jwt", "alg": "HS256" }), &|_| {})),
        ("another algorithm", sign(json!({ "typ": "at+jwt", "alg": "RS256" }), &|_| {})),
        ("none", none("none")),
        ("None", none("None")),
        ("no algorithm", none("")),
        ("changed claims", tampered(json!({ "iss": world.issuer.running.url(), "sub": "root" }))),
        ("no signature", format!("{body}.")),
        ("zero signature", format!("{body}.{zero}")),
        ("four parts", format!("{good}.x")),
        ("padding", format!("{good}=")),
        ("no token at all", "nonsense".to_owned()),
        ("very long", "a.".repeat(10_000)),
    ];
    let before = world.service.seen().len();
    for (what, token) in &bad {
        let answer = world.jwt(token);
        assert_eq!(answer.status, 401, "{what}");
        let challenge = answer.field("www-authenticate").expect("a challenge");
        assert!(challenge.contains(r#"error="invalid_token""#), "{what}: {challenge}");
        assert!(!answer.head.contains(&**token) && !answer.text().contains(&**token), "{what}");
    }
    assert_eq!(world.service.seen().len(), before);
    let log = world.gateway.log();
    assert!(
        bad.iter()
            .chain([&("good", good.clone())])
            .all(|(_, token)| !log.contains(&format!("{token}")))
    );
}

#[test]
fn the_challenge_for_missing_credentials_has_no_error_code() {
    let world = World::start("");

    for fields in ["", "Authorization: Digest x\r\n", "Authorization: Basic YTpi\r\n"] {
        let answer = world.gateway.get("/jwt", fields);
        assert_eq!(answer.status, 401, "{fields}");
        let challenge = r#"Bearer realm="northgate", scope="orders:read""#;
        assert_eq!(answer.field("www-authenticate"), Some(challenge));
        assert_eq!(answer.problem().as_deref(), Some("unauthenticated"));
    }
    // A token elsewhere is none (RFC 9700 §4.3.2).
    let query = format!("/jwt?access_token={}", world.issuer.jwt());
    assert_eq!(world.gateway.get(&query, "").status, 401);
    assert!(!world.gateway.log().contains(&world.issuer.jwt()));
}

#[test]
fn credentials_that_cannot_be_one_are_400_invalid_request() {
    let world = World::start("");
    let token = world.issuer.jwt();

    for (path, fields) in [
        ("/jwt", format!("Authorization: Bearer {token}\r\nAuthorization: Bearer {token}\r\n")),
        ("/jwt", format!("Authorization: Bearer {token}\r\nAuthorization: Basic YTpi\r\n")),
        ("/jwt", format!("Authorization: Bearer\t{token}\r\n")),
        ("/jwt", format!("Authorization: Bearer {token} x\r\n")),
        ("/jwt", format!("Authorization: Bearer {token},Bearer {token}\r\n")),
        ("/jwt", "Authorization: Bearer \r\n".to_owned()),
        ("/jwt", "Authorization: Bearer a\"b\r\n".to_owned()),
        ("/jwt?access_token=x", bearer(&token)),
        ("/jwt?a=b&access_token=", bearer(&token)),
        ("/jwt?access%5Ftoken=x", bearer(&token)),
    ] {
        let answer = world.gateway.get(path, &fields);
        // A tab ends the scheme's name, or it does not: either way it is no token.
        let tab = fields.contains('\t') && answer.status == 401;
        assert!(answer.status == 400 || tab, "{path} {fields}: {}", answer.status);
        if answer.status == 400 {
            let challenge = answer.field("www-authenticate").expect("a challenge");
            assert!(challenge.contains(r#"error="invalid_request""#), "{fields}: {challenge}");
        }
    }
    assert!(world.service.seen().is_empty());
}

#[test]
fn a_token_without_the_scope_is_403_and_told_which() {
    let world = World::start("");
    let token = world.issuer.mint(&Mint::client("api").scopes("orders:write"));

    // The second time the verdict is kept, and the scope is asked for all the same (CVE-2021-32701).
    for _ in 0..2 {
        let answer = world.jwt(&token);
        assert_eq!(answer.status, 403);
        let challenge = answer.field("www-authenticate").expect("a challenge");
        assert!(challenge.contains(r#"error="insufficient_scope""#), "{challenge}");
        assert!(challenge.contains(r#"scope="orders:read""#), "{challenge}");
    }
    assert!(world.service.seen().is_empty());
}

#[test]
fn an_issuer_that_is_away_is_never_the_clients_fault() {
    let issuer = start_issuer();
    for endpoint in [Endpoint::Discovery, Endpoint::Jwks, Endpoint::Introspection] {
        issuer.running.inject(endpoint, Fault::Status(StatusCode::INTERNAL_SERVER_ERROR), u32::MAX);
    }
    let (jwt, reference) = (issuer.jwt(), issuer.reference());
    let world = World::around(issuer, "", |gateway| gateway);

    for (path, token) in [("/jwt", &jwt), ("/reference", &reference)] {
        let answer = world.gateway.get(path, &bearer(token));
        assert_eq!((answer.status, answer.problem().as_deref()), (503, Some("issuer-unavailable")));
        let seconds = answer.field("retry-after").expect("when to come back");
        assert!(seconds.parse::<u32>().is_ok_and(|seconds| seconds > 0));
    }
    assert_eq!(world.gateway.get("/open", "").status, 200, "public routes are served");
}

#[test]
fn a_broken_introspection_is_503_and_what_is_unknown_401() {
    let world = World::start("");
    world.issuer.running.inject(Endpoint::Introspection, Fault::garbage(), 1);
    world.issuer.running.inject(
        Endpoint::Introspection,
        Fault::Status(StatusCode::UNAUTHORIZED),
        1,
    );
    // Closed once it is asked again.
    world.issuer.running.inject(Endpoint::Introspection, Fault::Close, 2);
    let token = bearer(&world.issuer.reference());
    let ask = || world.gateway.get("/reference", &token).status;

    assert_eq!([ask(), ask(), ask()], [503; 3]);
    assert_eq!(ask(), 200, "an error is not kept");
    assert_eq!(world.gateway.get("/reference", &bearer("unknown")).status, 401);
}

#[test]
fn fifty_requests_with_one_fresh_reference_token_are_one_question() {
    let world = World::start("");
    let token = bearer(&world.issuer.reference());
    let held = world.issuer.running.pause(Endpoint::Introspection);

    let asking: Vec<_> = (0..50)
        .map(|_| {
            let (mut client, token) = (world.gateway.connect(), token.clone());
            client.send(format!("GET /reference HTTP/1.1\r\nHost: a\r\n{token}\r\n"));
            thread::spawn(move || client.answer().status)
        })
        .collect();
    crate::support::eventually("the question", || {
        world.issuer.running.count(Endpoint::Introspection) == 1
    });
    drop(held);

    assert!(asking.into_iter().all(|thread| thread.join().expect("an answer") == 200));
    assert_eq!(world.issuer.running.count(Endpoint::Introspection), 1);
    assert_eq!(world.service.seen().len(), 50);
}

#[test]
fn a_revoked_token_is_refused_at_once_where_the_route_wants_the_latest() {
    let world = World::start("");
    let token = world.issuer.reference();
    assert_eq!(world.gateway.get("/fresh", &bearer(&token)).status, 200);

    let form = format!("token={token}");
    let mut issuer = Client::connect(world.issuer.running.address());
    issuer.send(format!(
        "POST /revoke HTTP/1.1\r\nHost: {}\r\nAuthorization: Basic {}\r\nContent-Length: {}\r\n\
         Content-Type: application/x-www-form-urlencoded\r\n\r\n{form}",
        world.issuer.running.address(),
        STANDARD.encode("partner:partner-secret"),
        form.len()
    ));
    assert_eq!(issuer.answer().status, 200);

    let answer = world.gateway.get("/fresh", &bearer(&token));
    assert_eq!(answer.status, 401);
    assert!(answer.field("www-authenticate").is_some_and(|value| value.contains("invalid_token")));
}

#[test]
fn a_name_and_a_password_become_a_token_once() {
    let world = World::start("");
    let basic = |text: &str| format!("Authorization: Basic {}\r\n", STANDARD.encode(text));
    let before = world.issuer.running.count(Endpoint::Token);

    for _ in 0..3 {
        assert_eq!(world.gateway.get("/basic", &basic("alice:wonderland")).status, 200);
    }

    assert_eq!(world.issuer.running.count(Endpoint::Token), before + 1);
    let seen = world.service.seen().remove(0);
    assert!(seen.field("authorization").is_some_and(|value| value.starts_with("Bearer ")));
    assert_eq!(seen.field("x-auth-subject"), Some("alice"));

    let challenge = Some(r#"Basic realm="northgate", charset="UTF-8""#);
    for fields in [basic("alice:wrong"), basic("mallory:wonderland"), String::new()] {
        let answer = world.gateway.get("/basic", &fields);
        assert_eq!((answer.status, answer.field("www-authenticate")), (401, challenge), "{fields}");
    }
    assert_eq!(world.gateway.get("/basic", "Authorization: Basic !!!\r\n").status, 400);
    world.issuer.running.inject(Endpoint::Token, Fault::Status(StatusCode::BAD_GATEWAY), 9);
    let answer = world.gateway.get("/basic", &basic("bob:builder"));
    assert_eq!(answer.status, 503);
    let log = world.gateway.log();
    assert!(!log.contains("wonderland") && !log.contains(&STANDARD.encode("alice:wonderland")));
}

#[test]
fn a_token_granted_for_credentials_that_breaks_the_rules_is_503_and_not_requested_at_once_again() {
    let (issuer, service) = (start_issuer(), Upstream::polite());
    let settings = issuer.settings("").replace("https://api.localhost", "https://other.localhost");
    let file = format!(
        "{settings}upstreams: {{ service: {{ targets: [\"{}\"] }} }}\n\
         routes: [{{ id: basic, path: /, upstream: service, auth: {{ basic: main }} }}]\n",
        service.url()
    );
    let gateway = Gateway::at(issuer.clock.clone(), "", &file);
    let alice = format!("Authorization: Basic {}\r\n", STANDARD.encode("alice:wonderland"));

    let statuses = [(); 3].map(|()| gateway.get("/", &alice).status);
    let requested = issuer.running.count(Endpoint::Token);
    issuer.clock.advance(Duration::from_secs(10));
    gateway.get("/", &alice);

    assert_eq!((statuses, requested), ([503; 3], 1));
    assert_eq!(issuer.running.count(Endpoint::Token), 2, "after a while it is tried again");
}

#[test]
fn new_signing_keys_are_found_without_a_restart() {
    let world = World::start("");
    assert_eq!(world.jwt(&world.issuer.jwt()).status, 200);

    world.issuer.running.rotate_keys().expect("new keys");
    world.issuer.clock.advance(core::time::Duration::from_secs(31));

    assert_eq!(world.jwt(&world.issuer.jwt()).status, 200);
}

/// An issuer, a service, and routes for every way in.
struct World {
    gateway: Gateway,
    service: Upstream,
    issuer: Issuer,
}

impl World {
    fn start(server: &str) -> Self {
        Self::around(start_issuer(), server, Gateway::ready)
    }

    fn around(issuer: Issuer, server: &str, wait: impl Fn(Gateway) -> Gateway) -> Self {
        let service = Upstream::polite();
        let rest = format!(
            "{}upstreams:\n  service: {{ targets: [\"{}\"] }}\nroutes:\n\
             \x20 - {{ id: open, path: /open, upstream: service, auth: none }}\n\
             \x20 - {{ id: jwt, path: /jwt, upstream: service, auth: {{ jwt: main, scopes: [orders:read] }} }}\n\
             \x20 - {{ id: optional, path: /optional, upstream: service, auth: {{ jwt: main, optional: true }} }}\n\
             \x20 - {{ id: reference, path: /reference, upstream: service, auth: {{ introspection: main }} }}\n\
             \x20 - {{ id: fresh, path: /fresh, upstream: service, auth: {{ introspection: main, max_staleness: 0s }} }}\n\
             \x20 - {{ id: basic, path: /basic, upstream: service, auth: {{ basic: main }} }}\n",
            issuer.settings(""),
            service.url()
        );
        let gateway = wait(Gateway::at(issuer.clock.clone(), server, &rest));
        Self { gateway, service, issuer }
    }

    fn jwt(&self, token: &str) -> Answer {
        self.gateway.get("/jwt", &bearer(token))
    }
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}
