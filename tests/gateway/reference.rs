//! What becomes of reference tokens on the way to a service, and every key that says how their issuer is asked
//! (behaviour.md §2; RFC 7662, RFC 9701).

use core::time::Duration;

use crate::fault_injection::{Endpoint, Fault};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use northgate::dev::issuer::API;
use serde_json::{Value, json};

use crate::support::{Answer, Gateway, Issuer, Seen, Upstream, start_issuer};

#[test]
fn a_service_gets_a_signed_token_in_place_of_the_reference() {
    for auth in [
        "{ introspection: main, forward_token: jwt, scopes: [partners:read] }",
        "{ bearer: main, forward_token: jwt }",
        "{ any: [{ introspection: main }], forward_token: jwt }",
    ] {
        let world = World::start("", auth);
        let token = world.issuer.reference();

        assert_eq!([world.ask(&token).status, world.ask(&token).status], [200; 2], "{auth}");

        assert_eq!(world.issuer.running.count(Endpoint::Introspection), 1, "kept with the verdict");
        let (first, second) = (world.service.seen().remove(0), world.service.seen().remove(1));
        assert_eq!(first.field("authorization"), second.field("authorization"));
        assert!(!first.head.contains(&token), "{}", first.head);
        let (header, claims) = parts(&first);
        assert_eq!(header["typ"], "at+jwt");
        assert_eq!((&claims["client_id"], &claims["aud"]), (&json!("partner"), &json!(API)));
        assert_eq!(first.field("x-auth-client"), Some("partner"));
        assert_eq!(world.ask("unknown").status, 401);
    }
}

#[test]
fn a_token_of_a_route_for_both_kinds_is_counted_as_it_was_verified() {
    let world = World::start("", "{ bearer: main }");
    let count = |auth: &str, result: &str| {
        let labels = format!("route=\"all\",auth=\"{auth}\",result=\"{result}\"");
        world.gateway.metric(&format!("northgate_auth_requests_total{{{labels}}}"))
    };

    assert_eq!(world.ask(&world.issuer.reference()).status, 200);
    assert_eq!(world.ask(&world.issuer.jwt()).status, 200);
    assert_eq!(world.ask("unknown").status, 401);

    assert_eq!([count("introspection", "ok"), count("jwt", "ok")], [1.0; 2]);
    assert_eq!([count("introspection", "inactive"), count("jwt", "inactive")], [1.0, 0.0]);
}

/// Salesforce, Facebook and others do not keep to the syntax of RFC 6750 §2.1.
#[test]
fn a_reference_token_may_have_any_visible_character_that_belongs_to_no_list() {
    let world = World::start("", "{ introspection: main }");

    for (asked, token) in (1..).zip(["00D5!AQ0A", "EAAB|xyz", "abc:def", "{uuid}", "a=b"]) {
        assert_eq!(world.ask(token).status, 401, "{token}");
        assert_eq!(world.issuer.running.count(Endpoint::Introspection), asked, "{token}");
    }
    for token in ["a,b", "a b", "a\"b\"", "a\\b", "\u{e9}"] {
        assert_eq!(world.ask(token).status, 400, "{token}");
    }
    assert_eq!(world.issuer.running.count(Endpoint::Introspection), 5);
}

#[test]
fn a_signed_token_needs_no_other() {
    let world = World::start("", "{ bearer: main, forward_token: jwt }");
    let token = world.issuer.jwt();

    assert_eq!(world.ask(&token).status, 200);

    let bearer = format!("Bearer {token}");
    assert_eq!(world.service.only().field("authorization"), Some(&*bearer));
    assert_eq!(world.issuer.running.count(Endpoint::Introspection), 0);
}

#[test]
fn a_signed_response_says_that_it_is_no_access_token() {
    let keys = ", introspection: { signed_answer: application/token-introspection+jwt }";
    let world = World::start(keys, "{ introspection: main, forward_token: jwt }");

    assert_eq!(world.ask(&world.issuer.reference()).status, 200);

    let (header, claims) = parts(&world.service.only());
    assert_eq!(header["typ"], "token-introspection+jwt");
    assert_eq!(claims["aud"], "gateway");
    assert_eq!(claims["token_introspection"]["client_id"], "partner");
    assert_eq!(world.ask("unknown").status, 401);
}

#[test]
fn an_unsigned_introspection_response_never_replaces_a_signed_one() {
    let world = World::start("", "{ introspection: main, forward_token: jwt }");
    let now = world.issuer.clock.now().as_secs();
    let plain = json!({ "active": true, "sub": "partner", "client_id": "partner", "aud": API });
    let unsigned = json!({
        "iss": world.issuer.running.url(), "sub": "root", "aud": API, "exp": now + 60,
    });
    let encoded = |part: Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let unsigned = format!("{}.{}.", encoded(json!({ "alg": "none" })), encoded(unsigned));
    let answers = [
        ("application/json", plain.to_string()),
        ("application/jwt", unsigned),
        ("application/jwt", plain.to_string()),
        ("application/jwt", format!("{}\r\nX-Admin: 1", world.issuer.jwt())),
        // Another kind of signed answer than the one that was asked for.
        ("application/token-introspection+jwt", world.issuer.jwt()),
    ];

    for (number, (content_type, body)) in answers.into_iter().enumerate() {
        let fault = Fault::Answer { status: StatusCode::OK, content_type, body: body.into() };
        world.issuer.running.inject(Endpoint::Introspection, fault, 1);
        let token = world.issuer.reference();
        let answer = world.ask(&token);
        assert_eq!((number, answer.status), (number, 503));
        assert!(world.service.seen().is_empty());
        if number == 0 {
            assert_eq!(world.ask(&token).status, 503, "for this token it is remembered");
            world.route.gateway.clock.advance(Duration::from_secs(2));
            assert_eq!(world.ask(&token).status, 200, "and for a second only");
            world.service.forget();
        }
    }
}

#[test]
fn with_two_issuers_the_one_that_knows_a_token_decides() {
    let (first, second) = (start_issuer(), start_issuer());
    let keys =
        "audience: \"https://api.localhost\", client: { id: gateway, secret: gateway-secret }";
    let issuers = format!(
        "issuers:\n  first: {{ issuer: \"{}\", {keys} }}\n  second: {{ issuer: \"{}\", {keys} }}\n",
        first.running.url(),
        second.running.url(),
    );
    for method in ["introspection", "bearer"] {
        let world = Route::start(&issuers, &format!("{{ {method}: [first, second] }}"));
        let count =
            || [&first, &second].map(|issuer| issuer.running.count(Endpoint::Introspection));
        let asked = count();

        // The first is asked first, and what is known is asked no more.
        for _ in 0..2 {
            assert_eq!(world.ask(&first.reference()).status, 200);
        }
        assert_eq!(count(), [asked[0] + 2, asked[1]]);
        let of_second = second.reference();
        assert_eq!([world.ask(&of_second).status, world.ask(&of_second).status], [200; 2]);
        assert_eq!(count(), [asked[0] + 3, asked[1] + 1]);
        assert_eq!(world.ask("unknown").status, 401);

        // Who cannot be asked might have known it.
        let down = Fault::Status(StatusCode::BAD_GATEWAY);
        first.running.inject(Endpoint::Introspection, down, 2);
        assert_eq!(world.ask("unknown too").status, 400);
        assert_eq!(world.ask("unknown-too").status, 503);
        assert_eq!(world.ask(&second.reference()).status, 200, "who knows it has said so");
        assert_eq!(world.ask(&of_second).status, 200);
    }
    let bearer = Route::start(&issuers, "{ bearer: [first, second] }");
    let before = second.running.count(Endpoint::Introspection);
    assert_eq!([bearer.ask(&first.jwt()).status, bearer.ask(&second.jwt()).status], [200; 2]);
    assert_eq!(second.running.count(Endpoint::Introspection), before);
}

#[test]
fn the_gateway_may_prove_itself_with_a_token_of_its_own() {
    let keys = ", max_concurrent: 1, introspection: { authorization: bearer }";
    let world = World::start(keys, "{ introspection: main }");

    for _ in 0..3 {
        assert_eq!(world.ask(&world.issuer.reference()).status, 200);
    }

    assert_eq!(world.issuer.running.count(Endpoint::Token), 1);
    assert_eq!(world.issuer.running.count(Endpoint::Introspection), 3);
    world.issuer.clock.advance(Duration::from_secs(481));
    assert_eq!(world.ask(&world.issuer.reference()).status, 200);
    assert_eq!(world.issuer.running.count(Endpoint::Token), 2, "renewed before it ends");
}

#[test]
fn an_answer_is_good_for_as_long_as_the_file_says() {
    for (keys, questions) in [
        ("", [1, 2]),
        (", introspection: { cache: 10s }", [2, 3]),
        (", introspection: { cache: 0s }", [3, 4]),
    ] {
        let world = World::start(keys, "{ introspection: main }");
        let token = world.issuer.reference();
        world.ask(&token);
        world.issuer.clock.advance(Duration::from_secs(10));
        world.ask(&token);
        assert_eq!(world.ask(&token).status, 200);
        let count = || world.issuer.running.count(Endpoint::Introspection);
        assert_eq!(count(), questions[0], "{keys}");
        world.issuer.clock.advance(Duration::from_secs(20));
        world.ask(&token);
        assert_eq!(count(), questions[1], "{keys}");
    }
}

#[test]
fn a_refused_token_is_remembered_for_as_long_as_the_file_says() {
    for (keys, questions) in [("", 2), (", introspection: { negative_cache: 20s }", 1)] {
        let world = World::start(keys, "{ introspection: main }");
        assert_eq!([world.ask("bad").status, world.ask("bad").status], [401; 2]);
        assert_eq!(world.issuer.running.count(Endpoint::Introspection), 1);

        world.issuer.clock.advance(Duration::from_secs(10));
        assert_eq!(world.ask("bad").status, 401);

        assert_eq!(world.issuer.running.count(Endpoint::Introspection), questions, "{keys}");
    }
}

#[test]
fn an_answer_without_an_audience_is_refused_unless_the_file_says_otherwise() {
    for (keys, status) in [("", 401), (", introspection: { accept_without_audience: true }", 200)] {
        let world = World::start(keys, "{ introspection: main }");
        let body = json!({ "active": true, "sub": "a" }).to_string().into();
        let content_type = "application/json";
        let fault = Fault::Answer { status: StatusCode::OK, content_type, body };
        world.issuer.running.inject(Endpoint::Introspection, fault, 1);

        assert_eq!(world.ask("t").status, status, "{keys}");
    }
}

#[test]
fn an_active_token_stays_valid_while_the_issuer_is_unavailable_if_configured() {
    for (keys, status) in [("", 503), (", on_unavailable: stale, stale_for: 60s", 200)] {
        let world = World::start(keys, "{ introspection: main }");
        let token = world.issuer.reference();
        assert_eq!(world.ask(&token).status, 200);
        world.issuer.running.inject(Endpoint::Introspection, Fault::Close, u32::MAX);

        world.issuer.clock.advance(Duration::from_secs(40));

        assert_eq!(world.ask(&token).status, status, "{keys}");
        assert_eq!(world.ask(&world.issuer.reference()).status, 503, "never seen active");
        world.issuer.clock.advance(Duration::from_secs(50));
        assert_eq!(world.ask(&token).status, 503);
    }
}

#[test]
fn a_signed_token_may_be_asked_about_as_well() {
    for (keys, status) in [("", 200), (", revocation_check: introspection", 401)] {
        let world = World::start(keys, "{ jwt: main }");
        // Signed by the issuer, which has never heard of it: revoked.
        let now = world.issuer.clock.now().as_secs();
        let claims = json!({
            "iss": world.issuer.running.url(), "sub": "api", "aud": API, "exp": now + 60,
        });
        let header = json!({ "typ": "at+jwt" });
        let algorithm = northgate::dev::issuer::Algorithm::Es256;
        let forgotten = world.issuer.running.sign(algorithm, header, claims);

        assert_eq!(world.ask(&forgotten).status, status, "{keys}");
        assert_eq!(world.ask(&world.issuer.jwt()).status, 200);
    }
}

#[test]
fn more_calls_at_once_than_the_file_allows_are_503() {
    let world = World::start(", max_concurrent: 1", "{ introspection: main }");
    let held = world.issuer.running.pause(Endpoint::Introspection);
    let mut first = world.gateway.connect();
    let waiting = world.issuer.reference();
    first.send(request(&waiting));
    crate::support::eventually("the call", || {
        world.issuer.running.count(Endpoint::Introspection) == 1
    });

    let answer = world.ask(&world.issuer.reference());

    assert_eq!((answer.status, answer.field("retry-after")), (503, Some("1")));
    drop(held);
    assert_eq!(first.answer().status, 200);
    world.issuer.running.clear(Endpoint::Introspection);
    assert_eq!(world.ask(&world.issuer.reference()).status, 200);
}

#[test]
fn no_client_can_keep_the_others_from_being_asked_about() {
    let world = World::start("", "{ introspection: main }");
    let statuses = [400, 401, 403, 404, 413, 422, 429, 500];
    for status in statuses {
        let status = StatusCode::from_u16(status).expect("a status");
        world.issuer.running.inject(Endpoint::Introspection, Fault::Status(status), 10);
    }

    for number in 0..10 * statuses.len() {
        assert_eq!(world.ask(&format!("bad-{number}")).status, 503);
    }

    assert_eq!(world.ask(&world.issuer.reference()).status, 200);
}

/// An issuer, and a route of its tokens.
struct World {
    issuer: Issuer,
    route: Route,
}

/// A gateway with one route, `/`, and the service behind it.
struct Route {
    gateway: Gateway,
    service: Upstream,
}

impl World {
    /// `keys` are the issuer's further ones, each with a comma before it.
    fn start(keys: &str, auth: &str) -> Self {
        let issuer = start_issuer();
        let route = Route::at(&issuer, &issuer.settings(keys), auth);
        Self { issuer, route }
    }
}

impl core::ops::Deref for World {
    type Target = Route;

    fn deref(&self) -> &Route {
        &self.route
    }
}

impl Route {
    fn start(issuers: &str, auth: &str) -> Self {
        Self::of(crate::support::noon(), issuers, auth)
    }

    fn at(issuer: &Issuer, issuers: &str, auth: &str) -> Self {
        Self::of(issuer.clock.clone(), issuers, auth)
    }

    fn of(clock: northgate::base::clock::Clock, issuers: &str, auth: &str) -> Self {
        let service = Upstream::polite();
        let rest = format!(
            "{issuers}upstreams:\n  service: {{ targets: [\"{}\"] }}\n\
             routes:\n  - {{ id: all, path: /, upstream: service, auth: {auth} }}\n",
            service.url()
        );
        Self { gateway: Gateway::at(clock, "", &rest).ready(), service }
    }

    fn ask(&self, token: &str) -> Answer {
        self.gateway.ask(&request(token))
    }
}

fn request(token: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: api.test\r\nAuthorization: Bearer {token}\r\n\r\n")
}

/// The header and claims of the signed token that a service got.
fn parts(seen: &Seen) -> (Value, Value) {
    let token = seen.field("authorization").and_then(|field| field.strip_prefix("Bearer "));
    let mut parts = token.expect("a token").split('.').map(|part| {
        let bytes = URL_SAFE_NO_PAD.decode(part).expect("base64url");
        serde_json::from_slice(&bytes).unwrap_or(Value::Null)
    });
    let (header, claims) = (parts.next(), parts.next());
    assert_eq!(parts.count(), 1, "a signature");
    (header.expect("a header"), claims.expect("claims"))
}
