//! Sessions, from the login form to the service and back, byte by byte.

use core::time::Duration;
use std::collections::BTreeMap;
use std::io::Write as _;

use crate::fault_injection::{Endpoint, Fault};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use northgate::dev::issuer::Algorithm;
use serde_json::json;
use url::Url;

use crate::support::{Answer, Gateway, Issuer, Reading, Upstream, eventually, ok, start_issuer};

#[test]
fn the_service_gets_a_token_and_none_of_our_cookies() {
    let world = World::start();
    let alice = world.log_in();
    let ours = format!(
        "theirs=\"1\"; {}; __Host-web.csrf=x; __Host-web.login=1a; __Host-web.login.1=b; __Host-admin=1x; \
         __Host-admin.2=y; __Host-webshop=kept; last=2",
        alice.cookie()
    );

    for path in ["/app/a", "/open"] {
        assert_eq!(world.get(path, &format!("Cookie: {ours}\r\n")).status, 200);
    }

    let seen = world.service.seen();
    for request in &seen {
        let cookie = request.field("cookie");
        assert_eq!(cookie, Some("theirs=\"1\"; __Host-webshop=kept; last=2"), "{}", request.line());
    }
    assert!(seen[0].field("authorization").is_some_and(|value| value.starts_with("Bearer ey")));
    assert_eq!(seen[0].field("x-auth-subject"), Some("alice"));
    assert_eq!((seen[1].field("authorization"), seen[1].field("x-auth-subject")), (None, None));
}

/// A route for everything on the session's host gets neither passwords nor what the issuer sends.
#[test]
fn no_route_takes_a_sessions_own_paths_over() {
    let greedy = |service: &str| {
        format!(
            "  - {{ id: greedy, host: localhost, path: /**, upstream: {service}, auth: none }}\n\
             \x20 - {{ id: posts, host: localhost, path: \"/auth/{{step}}\", methods: [POST], upstream: {service}, auth: none }}\n"
        )
    };
    let world = World::with("", &greedy("service"));

    let alice = world.log_in();
    let bye = world.post("/auth/back-channel-logout", "logout_token=x", "");
    let back = world.get("/a/back?code=x&state=y", "");
    let who = world.get("/auth/session", &format!("Cookie: {}\r\n", alice.cookie()));

    assert_eq!((bye.status, who.status), (400, 200));
    assert!(back.status != 200, "{}", back.head);
    assert!(world.service.seen().is_empty(), "{:?}", world.service.seen());
    assert_eq!(world.get("/else", "").status, 200);
}

#[test]
fn a_sessions_own_paths_take_its_limits_and_those_of_all() {
    let limits = "  each: { quota: 4/hour, by: ip }\n  own: { quota: 3/hour, by: global }\n";
    let world = World::limited(limits, "limits: [own]", "defaults: { limits: [each] }\n");
    let paths = [
        ("GET", "/auth/login"),
        ("POST", "/auth/logout"),
        ("POST", "/auth/refresh"),
        ("POST", "/auth/back-channel-logout"),
        ("GET", "/a/back?code=x&state=y"),
        ("GET", "/open"),
    ];
    let told = paths.map(|(method, path)| match method {
        "GET" => world.get(path, "Cookie: __Host-access_token=x\r\n"),
        _ => world.post(path, "logout_token=x", "Cookie: __Host-access_token=x\r\n"),
    });

    // Three by its own limit; `admin` has none, and takes the last one by address.
    let limited = told.map(|answer| answer.status == 429);
    assert_eq!(limited, [false, false, false, true, false, true]);
}

#[test]
fn guesses_at_the_login_and_with_basic_credentials_count_together() {
    let basic = "  - { id: basic, path: /basic, upstream: service, auth: { basic: main } }\n";
    let world = World::with("", basic);
    let at_basic = |password: &str| {
        let credentials = STANDARD.encode(format!("alice:{password}"));
        world.get("/basic", &format!("Authorization: Basic {credentials}\r\n")).status
    };
    let at_login = |password: &str| {
        world.post("/auth/login", &format!("username=Alice&password={password}"), "").status
    };

    let told = [at_basic("1"), at_basic("2"), at_basic("3"), at_login("4"), at_login("5")];
    assert!(told.iter().all(|status| *status == 401), "{told:?}");
    // The login allows five a minute, Basic credentials ten.
    assert_eq!([at_login("6"), at_login("wonderland")], [429, 429]);
    assert_eq!([at_basic("7"), at_basic("wonderland")], [401, 200]);
}

#[test]
fn responses_with_cookies_or_for_sessions_are_kept_from_shared_caches() {
    let world = World::start();
    let mut alice = world.log_in();
    let login = world.post("/auth/login", "username=alice&password=wonderland", "");
    let kept = world.get("/app/cdn", &alice.fields(""));
    world.issuer.clock.advance(Duration::from_secs(310));
    let renewed = world.get("/app/cdn", &alice.fields(""));
    alice.take(&renewed);

    for answer in [&login, &kept, &renewed] {
        let cache = answer.field("cache-control").unwrap_or_default();
        assert!(cache.contains("private") || cache.contains("no-store"), "{}", answer.head);
        for field in ["cdn-cache-control", "surrogate-control"] {
            assert_eq!(answer.fields(field), ["no-store"], "{}", answer.head);
        }
        for field in ["cloudflare-cdn-cache-control", "x-accel-expires", "edge-control"] {
            assert_eq!(answer.field(field), None, "{}", answer.head);
        }
    }
    let public = world.get("/app/public", &alice.fields(""));
    assert_eq!(public.fields("cache-control"), ["public, max-age=60"], "{}", public.head);
    world.issuer.clock.advance(Duration::from_secs(310));
    let with_cookies = world.get("/app/public", &alice.fields(""));
    assert!(!with_cookies.fields("set-cookie").is_empty());
    assert_eq!(with_cookies.fields("cache-control"), ["max-age=60, private"]);
    for answer in [&public, &with_cookies] {
        for field in ["cdn-cache-control", "surrogate-control"] {
            assert_eq!(answer.fields(field), ["no-store"], "{}", answer.head);
        }
        for field in ["cloudflare-cdn-cache-control", "x-accel-expires", "edge-control"] {
            assert_eq!(answer.field(field), None, "{}", answer.head);
        }
    }
    let open = world.get("/open/cdn", "");
    assert_eq!(open.field("cdn-cache-control"), Some("max-age=600"));
}

#[test]
fn a_session_in_several_cookie_fields_is_one_session() {
    let world = World::start();
    let alice = world.log_in();
    let crumbs = alice.cookie().replace("; ", "\r\nCookie: ");

    assert_eq!(world.get("/app/a", &format!("Cookie: a=1\r\nCookie: {crumbs}\r\n")).status, 200);

    assert_eq!(world.service.only().fields("cookie"), ["a=1"]);
}

/// A client that begins to log in, with no credentials yet, holds a connection no longer than any other.
#[test]
fn a_login_that_stops_is_answered_408() {
    let world = World::of("body_timeout: 500ms");
    let mut client = world.gateway.connect();

    client.send(
        "POST /auth/login HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: same-origin\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\nusername=alice",
    );

    let answer = client.answer();
    assert_eq!((answer.status, answer.problem().as_deref()), (408, Some("body-timeout")));
    assert!(client.is_closed());
}

#[test]
fn new_cookies_go_out_on_every_kind_of_answer() {
    let world = World::start();
    for (path, status) in [
        ("/app/fine", 200),
        ("/app/events", 200),
        ("/app/moved", 302),
        ("/app/missing", 404),
        ("/app/broken", 500),
        ("/app/public", 200),
        ("/app/socket", 101),
        // The gateway's own refusals.
        ("/scoped", 403),
        ("/dead", 502),
    ] {
        let mut alice = world.log_in();
        let before = alice.cookie();
        world.issuer.clock.advance(Duration::from_secs(310));

        let answer = world.get(path, &alice.fields(if status == 101 { SOCKET } else { "" }));

        assert_eq!(answer.status, status, "{path}: {}", answer.head);
        alice.take(&answer);
        assert_ne!(alice.cookie(), before, "{path} has no new cookie");
        let caches = answer.fields("cache-control").join(", ");
        assert!(caches.contains("private") || caches.contains("no-store"), "{path}: {caches}");
        assert_eq!(world.get("/app/fine", &alice.fields("")).status, 200, "{path}");
    }
    assert!(
        world.get("/app/public", &world.log_in().fields("")).field("cache-control")
            == Some("public, max-age=60")
    );
}

#[test]
fn a_head_and_a_limited_request_get_new_cookies_as_well() {
    let world = World::start();
    let alice = world.log_in();
    world.issuer.clock.advance(Duration::from_secs(310));
    let mut client = world.gateway.connect();
    client.send(format!("HEAD /app/fine HTTP/1.1\r\nHost: localhost\r\n{}\r\n", alice.fields("")));
    assert!(!client.answer_without_body().fields("set-cookie").is_empty());

    let mut alice = world.log_in();
    assert_eq!(world.get("/narrow", &alice.fields("")).status, 200);
    world.issuer.clock.advance(Duration::from_secs(310));
    let answer = world.get("/narrow", &alice.fields(""));
    assert_eq!(answer.status, 429);
    alice.take(&answer);
    assert_eq!(world.get("/app/fine", &alice.fields("")).status, 200);
}

#[test]
fn an_ended_session_is_reported_in_the_clients_format() {
    let world = World::start();
    let alice = world.log_in();
    world.issuer.clock.advance(Duration::from_secs(1_801));
    let origin = "Origin: https://app.example.com\r\n";
    let ask = |more: &str| world.get("/app/fine?a=b", &alice.fields(more));

    let page = ask("Sec-Fetch-Mode: navigate\r\nAccept: text/html\r\n");
    assert_eq!(page.status, 302);
    assert_eq!(page.field("location"), Some("/auth/login?return_to=%2Fapp%2Ffine%3Fa%3Db"));
    assert!(page.fields("set-cookie").iter().all(|cookie| cookie.contains("Max-Age=0")));

    let fetch = ask(&format!("{origin}Sec-Fetch-Mode: cors\r\nAccept: */*\r\n"));
    assert_eq!(fetch.status, 401);
    assert_eq!(fetch.problem().as_deref(), Some("unauthenticated"));
    assert!(fetch.text().contains(r#""login":"/auth/login""#), "{}", fetch.text());
    assert_eq!(fetch.field("www-authenticate"), Some(r#"Cookie form-action="/auth/login""#));
    assert_eq!(fetch.field("access-control-allow-origin"), Some("https://app.example.com"));
    assert_eq!(fetch.field("access-control-allow-credentials"), Some("true"));

    let events = ask("Sec-Fetch-Mode: cors\r\nAccept: text/event-stream\r\n");
    assert_eq!((events.status, events.field("location")), (401, None));

    let socket = ask(&format!("Sec-Fetch-Mode: websocket\r\n{SOCKET}"));
    assert_eq!((socket.status, socket.field("location")), (401, None));

    assert!(world.service.seen().is_empty(), "the service was asked");
}

#[test]
fn on_a_route_of_two_sessions_a_user_is_led_to_the_login_of_the_one_that_has_ended() {
    let both = "  - { id: both, path: /both, upstream: service, auth: { any: [{ session: admin }, { session: web }] } }\n";
    let world = World::with("", both);
    let alice = world.log_in();
    let ask = |fields: &str| {
        let page = "Sec-Fetch-Mode: navigate\r\nAccept: text/html\r\n";
        world.get("/both", &format!("{page}{fields}"))
    };
    assert_eq!(ask("").field("location"), Some("/a/in?return_to=%2Fboth"), "the first of them");
    assert_eq!(ask(&alice.fields("")).status, 200);

    world.issuer.clock.advance(Duration::from_secs(1_801));

    assert_eq!(ask(&alice.fields("")).field("location"), Some("/auth/login?return_to=%2Fboth"));
}

#[test]
fn a_preflight_needs_no_session_and_a_foreign_post_gets_no_further() {
    let world = World::start();
    let alice = world.log_in();
    let asked = world.issuer.running.count(Endpoint::Token);
    world.issuer.clock.advance(Duration::from_secs(310));

    let preflight = world.gateway.ask(
        "OPTIONS /app/fine HTTP/1.1\r\nHost: localhost\r\nOrigin: https://app.example.com\r\n\
         Access-Control-Request-Method: POST\r\n\r\n",
    );
    assert_eq!(preflight.status, 204);
    for whence in ["Origin: https://evil.example\r\n", "Sec-Fetch-Site: cross-site\r\n", ""] {
        let refused = world.gateway.ask(&format!(
            "POST /app/fine HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n{}\r\n",
            alice.fields(whence)
        ));
        assert_eq!((refused.status, refused.fields("set-cookie").len()), (403, 0), "{whence}");
    }
    let socket = world
        .get("/app/socket", &alice.fields(&format!("Origin: https://evil.example\r\n{SOCKET}")));
    assert_eq!(socket.status, 403);

    assert_eq!(
        world.issuer.running.count(Endpoint::Token),
        asked,
        "a foreign page made it refresh"
    );
    assert!(world.service.seen().is_empty());
}

/// The scopes of the request are up to the user, who can edit its address.
#[test]
fn the_log_says_why_a_session_with_an_opaque_access_token_lacks_scopes() {
    let route = "  - { id: o, path: /opaque, upstream: service, auth: { session: admin, scopes: [\"orders:read\"] } }\n";
    let world = World::with("", route);
    let admin = world.log_in_without_scope();

    let refused = world.get("/opaque", &admin.fields(""));

    let problem = refused.problem();
    assert_eq!((refused.status, problem.as_deref()), (403, Some("insufficient-scope")));
    let id = refused.field("x-request-id").expect("an id").to_owned();
    eventually("its cause", || {
        let log = world.gateway.log();
        let line = log.lines().find(|line| line.contains(&id)).unwrap_or_default();
        line.contains("the session's access token is opaque to the gateway")
    });
}

#[test]
fn while_the_issuer_is_away_the_session_stays() {
    let world = World::start();
    let mut alice = world.log_in();
    world.issuer.running.inject(
        Endpoint::Token,
        crate::fault_injection::Fault::Status(http::StatusCode::BAD_GATEWAY),
        u32::MAX,
    );

    world.issuer.clock.advance(Duration::from_secs(270));
    assert_eq!(world.get("/app/fine", &alice.fields("")).status, 200, "the token is still good");
    world.issuer.clock.advance(Duration::from_secs(80));
    let away = world.get("/app/fine", &alice.fields("Sec-Fetch-Mode: navigate\r\n"));
    assert_eq!(
        (away.status, away.field("retry-after"), away.field("location")),
        (503, Some("1"), None)
    );
    alice.take(&away);

    world.issuer.running.clear(Endpoint::Token);
    world.issuer.clock.advance(Duration::from_secs(60));
    assert_eq!(world.get("/app/fine", &alice.fields("")).status, 200);
}

#[test]
fn a_front_end_learns_who_is_logged_in_and_until_when() {
    let world = World::start();
    let anonymous = world.get("/auth/session", "");
    assert_eq!(anonymous.status, 401);
    assert!(anonymous.text().contains(r#""logged_in":false"#));

    let told = world.get("/auth/session", &world.log_in().fields(""));

    assert_eq!((told.status, told.field("cache-control")), (200, Some("no-store")));
    let told: serde_json::Value = serde_json::from_slice(&told.body).expect("JSON");
    assert_eq!((&told["logged_in"], &told["subject"]), (&true.into(), &"alice".into()));
    for end in ["idle_ends_at", "ends_at", "access_token_ends_at"] {
        assert!(told[end].as_u64().is_some_and(|at| at > 1_700_049_600), "{end}: {told}");
    }
}

#[test]
fn the_log_and_the_metrics_hold_no_secret_of_a_session() {
    let world = World::start();
    let mut alice = world.log_in();
    world.post("/auth/login", "username=alice&password=looking-glass", "");
    world.issuer.clock.advance(Duration::from_secs(310));
    alice.take(&world.get("/app/fine", &alice.fields("")));
    world.post("/auth/logout", "", &alice.fields(""));
    eventually("the logout's record", || world.gateway.log().contains("/auth/logout"));

    let told = world.gateway.log() + &world.gateway.metrics.render();

    let bearer = world.service.only().field("authorization").expect("a token").to_owned();
    let cookies = alice.jar.values().map(String::as_str);
    for secret in ["wonderland", "looking-glass", "gateway-web-secret", &bearer[7..]]
        .into_iter()
        .chain(cookies)
    {
        assert!(!told.contains(secret), "{secret}");
    }
}

/// An issuer, a service, and routes that require a session.
struct World {
    gateway: Gateway,
    service: Upstream,
    issuer: Issuer,
}

impl World {
    fn start() -> Self {
        Self::of("")
    }

    /// One with these keys of `server`.
    fn of(server: &str) -> Self {
        Self::with(server, "")
    }

    /// The same with more routes.
    fn with(server: &str, routes: &str) -> Self {
        Self::whole(server, "", "", "", routes)
    }

    /// One with these limits, keys of its session `web`, and sections.
    fn limited(limits: &str, web: &str, sections: &str) -> Self {
        Self::whole("", limits, web, sections, "")
    }

    fn whole(server: &str, limits: &str, web: &str, sections: &str, routes: &str) -> Self {
        let issuer = start_issuer();
        let service = Upstream::by_hand(|mut stream, connection, seen| {
            let mut reading = Reading::new(&stream);
            while let Some(request) = reading.request(connection) {
                let answer = answer_of(request.target());
                seen(request);
                if stream.write_all(&answer).is_err() {
                    break;
                }
            }
        });
        let session = |more: &str| {
            format!(
                "{{ issuer: main, client: {{ id: gateway-web, secret: gateway-web-secret }}, \
                 public_url: \"https://localhost:8443\", scopes: [openid, profile, offline_access, \"orders:read\"], {more} }}"
            )
        };
        let rest = format!(
            "{}{sections}sessions:\n  web: {}\n  admin: {}\nlimits:\n  few: {{ quota: 1/hour, by: subject }}\n{limits}\
             upstreams:\n  service: {{ targets: [\"{}\"] }}\n  dead: {{ targets: [\"http://127.0.0.1:1\"] }}\nroutes:\n\
             \x20 - {{ id: app, path: /app/**, upstream: service, auth: {{ session: web }}, \
             cors: {{ origins: \"https://app.example.com\", methods: [GET, POST], credentials: true }} }}\n\
             \x20 - {{ id: open, path: /open/**, upstream: service, auth: none }}\n\
             \x20 - {{ id: scoped, path: /scoped, upstream: service, auth: {{ session: web, scopes: [\"orders:write\"] }} }}\n\
             \x20 - {{ id: narrow, path: /narrow, upstream: service, auth: {{ session: web }}, limits: [few] }}\n\
             \x20 - {{ id: dead, path: /dead, upstream: dead, auth: {{ session: web }} }}\n{routes}",
            issuer.settings(""),
            session(&format!("flow: password, {web}")),
            session(
                "flow: code, paths: { login: /a/in, callback: /a/back, logout: /a/out, status: /a/who, refresh: /a/new, back_channel_logout: /a/bye }"
            ),
            service.url()
        );
        let gateway = Gateway::at(issuer.clock.clone(), server, &rest).ready();
        Self { gateway, service, issuer }
    }

    fn get(&self, path: &str, fields: &str) -> Answer {
        self.gateway.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n"))
    }

    fn post(&self, path: &str, form: &str, fields: &str) -> Answer {
        self.gateway.ask(&format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: same-origin\r\nAccept: text/html\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n{fields}\r\n{form}",
            form.len()
        ))
    }

    /// A browser in which alice has just logged in.
    fn log_in(&self) -> Browser {
        let answer = self.post("/auth/login", "username=alice&password=wonderland", "");
        assert_eq!(answer.status, 303, "{}", answer.head);
        let mut browser = Browser::default();
        browser.take(&answer);
        browser
    }

    /// A browser in which alice has logged in at the issuer, by a request that was not pushed. The token response has no
    /// `scope`, and an access token for another service.
    fn log_in_without_scope(&self) -> Browser {
        let issuer = &self.issuer.running;
        let not_pushed = Fault::Status(StatusCode::BAD_REQUEST);
        issuer.inject(Endpoint::PushedAuthorization, not_pushed, 1);
        let begun = self.get("/a/in", "");
        let mut browser = Browser::default();
        browser.take(&begun);
        let away = Url::parse(begun.field("location").expect("an address")).expect("a URL");
        let parameter = |name: &str| {
            let mut pairs = away.query_pairs();
            pairs.find_map(|(found, value)| (found == name).then(|| value.into_owned()))
        };
        let now = self.issuer.clock.now().as_secs();
        let sign = |audience: &str| {
            let claims = json!({
                "iss": issuer.url(), "sub": "alice", "aud": audience, "iat": now, "exp": now + 300,
                "nonce": parameter("nonce"),
            });
            issuer.sign(Algorithm::Es256, json!({ "typ": "JWT" }), claims)
        };
        let tokens = json!({
            "access_token": sign("other"), "token_type": "Bearer", "id_token": sign("gateway-web"),
        });
        let content_type = "application/json";
        let body = tokens.to_string().into();
        let answer = Fault::Answer { status: StatusCode::OK, content_type, body };
        issuer.inject(Endpoint::Token, answer, 1);
        let state = parameter("state").expect("a state");
        let back = format!("/a/back?code=x&state={state}&iss={}", issuer.url());
        let answer = self.get(&back, &browser.fields(""));
        assert_eq!(answer.status, 303, "{}", answer.head);
        browser.take(&answer);
        browser
    }
}

fn answer_of(target: &str) -> Vec<u8> {
    let text: &[u8] = match target {
        "/app/events" => {
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n\
              8\r\ndata: 1\n\r\n0\r\n\r\n"
        }
        "/app/moved" => b"HTTP/1.1 302 Found\r\nLocation: /app/fine\r\nContent-Length: 0\r\n\r\n",
        "/app/missing" => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        "/app/broken" => b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
        "/app/cdn" | "/open/cdn" => {
            b"HTTP/1.1 200 OK\r\nCDN-Cache-Control: max-age=600\r\nSurrogate-Control: max-age=600\r\n\
              Cloudflare-CDN-Cache-Control: max-age=600\r\nX-Accel-Expires: 600\r\nEdge-Control: max-age=600\r\n\
              Content-Length: 0\r\n\r\n"
        }
        "/app/public" => {
            b"HTTP/1.1 200 OK\r\nCache-Control: public, max-age=60\r\nCDN-Cache-Control: max-age=600\r\n\
              Surrogate-Control: max-age=600\r\nCloudflare-CDN-Cache-Control: max-age=600\r\n\
              X-Accel-Expires: 600\r\nEdge-Control: max-age=600\r\nContent-Length: 0\r\n\r\n"
        }
        "/app/socket" => {
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        }
        _ => return ok("fine"),
    };
    text.to_vec()
}

/// What a browser holds.
#[derive(Default)]
struct Browser {
    jar: BTreeMap<String, String>,
}

impl Browser {
    fn take(&mut self, answer: &Answer) {
        for field in answer.fields("set-cookie") {
            let pair = field.split(';').next().and_then(|pair| pair.split_once('='));
            let (name, value) = pair.expect("a cookie");
            if field.contains("Max-Age=0") {
                self.jar.remove(name);
            } else {
                self.jar.insert(name.to_owned(), value.to_owned());
            }
        }
    }

    fn cookie(&self) -> String {
        let pairs = self.jar.iter().map(|(name, value)| format!("{name}={value}"));
        pairs.collect::<Vec<_>>().join("; ")
    }

    /// The fields of a request, with the cookies.
    fn fields(&self, more: &str) -> String {
        format!("Cookie: {}\r\n{more}", self.cookie())
    }
}

const SOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
