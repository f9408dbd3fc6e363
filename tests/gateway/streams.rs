//! What stays open after a request was let in ends when what let it in does (behaviour.md §4, §8 items 42 and 43).

use core::time::Duration;
use std::io::Write;

use crate::fault_injection::{Endpoint, Fault};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use northgate::dev::issuer::Mint;
use northgate::token::{Revocation, RevocationTarget, token_digest};
use serde_json::{Value, json};

use crate::support::{
    Answer, Client, Gateway, Http2, Issuer, Outcome, Reading, Upstream, eventually, start_issuer,
};

#[test]
fn a_websocket_ends_with_the_token_that_opened_it() {
    let world = World::start();
    let mut short = world.websocket("/jwt", &world.token("alice", 300));
    let mut long = world.websocket("/jwt", &world.token("alice", 600));

    world.advance(299);
    assert_eq!(short.echo(b"still here"), b"still here");
    world.advance(1);

    assert!(short.is_closed(), "and nothing was written into it");
    assert_eq!(long.echo(b"still here"), b"still here");
    world.open_websockets(1);
}

#[test]
fn a_stream_of_events_ends_with_the_token_that_opened_it() {
    let world = World::start();
    let mut events = world.events("/jwt", &world.token("alice", 300));

    world.advance(300);

    assert!(events.is_closed(), "without the chunk that would be its end");
    // The upstream connection is gone as well: nothing is sent without a reader.
    eventually("the service's farewell", || world.farewells() == 1);
    assert!(world.gateway.log().contains("token-expired"), "{}", world.gateway.log());
}

#[test]
fn http_2_loses_the_stream_and_not_the_connection() {
    let world = World::start();
    let mut http2 = Http2::connect(&world.gateway);
    let ask = |http2: &mut Http2, stream, lives| {
        let authorization = format!("Bearer {}", world.token("alice", lives));
        let fields = [
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "/jwt"),
            ("authorization", &*authorization),
        ];
        http2.head(stream, &fields, true);
        assert_eq!(http2.outcome(stream), Outcome::Answered(200));
    };
    ask(&mut http2, 1, 300);
    ask(&mut http2, 3, 900);

    world.advance(300);
    assert_eq!(http2.outcome(1), Outcome::Reset);

    world.revoke(RevocationTarget::Subject("alice".into()));
    assert_eq!(http2.outcome(3), Outcome::Reset);
    world.clock_moves_on();
    ask(&mut http2, 5, 300);
}

#[test]
fn a_route_may_let_streams_outlive_their_token_but_no_revocation() {
    let world = World::start();
    let token = world.token("alice", 300);
    let mut lasting = world.websocket("/lasting", &token);
    let mut events = world.events("/lasting", &token);
    let mut other = world.websocket("/jwt", &token);

    world.advance(100_000);
    assert!(other.is_closed());
    assert_eq!(lasting.echo(b"still here"), b"still here");

    world.revoke(RevocationTarget::Token(token_digest(&token)));
    assert!(lasting.is_closed() && events.is_closed());
}

#[test]
fn a_revocation_ends_what_it_names_and_nothing_else() {
    let world = World::start();
    let mut bob = world.websocket("/jwt", &world.token("bob", 600));
    let mut public = world.websocket("/open", "");
    let mint = |name: &str, id: &str| world.mint(Mint::client("api").user(name).claim("jti", id));

    for (what, token) in [
        (RevocationTarget::Id("t1".into()), mint("alice", "t1")),
        (RevocationTarget::Subject("alice".into()), mint("alice", "t2")),
        (RevocationTarget::Token(token_digest(&mint("alice", "t3"))), String::new()),
    ] {
        let token = if token.is_empty() { mint("alice", "t4") } else { token };
        let what = if let RevocationTarget::Token(_) = what {
            RevocationTarget::Token(token_digest(&token))
        } else {
            what
        };
        let (mut socket, mut events) =
            (world.websocket("/jwt", &token), world.events("/jwt", &token));
        world.advance(1);

        world.revoke(what.clone());

        assert!(socket.is_closed() && events.is_closed(), "{what:?}");
        world.advance(1);
    }
    assert_eq!(bob.echo(b"still here"), b"still here");
    assert_eq!(public.echo(b"still here"), b"still here");
    assert!(world.gateway.log().contains("token-revoked"), "{}", world.gateway.log());
}

#[test]
fn a_stream_that_began_within_the_leeway_lasts_as_long_as_that() {
    let world = World::start();
    let token = world.token("alice", 300);
    let mut before = world.websocket("/jwt", &token);
    world.advance(310);
    assert!(before.is_closed());

    let mut within = world.websocket("/jwt", &token);
    world.advance(19);
    assert_eq!(within.echo(b"still here"), b"still here");
    world.advance(1);
    assert!(within.is_closed());
}

#[test]
fn a_refresh_by_any_request_of_the_session_keeps_its_streams_open() {
    let world = World::start();
    let mut alice = world.log_in("alice", "wonderland");
    let mut socket = world.session_websocket(&alice);
    let mut other = world.session_websocket(&world.log_in("alice", "wonderland"));

    world.advance(250);
    let before = alice.clone();
    alice = world.browse(&alice);
    assert_ne!(alice, before, "the tokens were refreshed");
    world.advance(60);

    assert!(other.is_closed(), "this session was not refreshed");
    assert_eq!(socket.echo(b"still here"), b"still here");
    // The newer token ends as well.
    world.advance(240);
    assert!(socket.is_closed());
}

#[test]
fn a_logout_ends_the_streams_of_its_session() {
    let world = World::start();
    let alice = world.log_in("alice", "wonderland");
    let mut opened_before = world.session_websocket(&alice);
    let mut events = world.session_events(&alice);
    let mut other = world.session_websocket(&world.log_in("alice", "wonderland"));
    world.advance(250);
    let renewed = world.browse(&alice);
    let mut opened_after = world.session_websocket(&renewed);

    let answer = world.gateway.ask(&format!(
        "POST /auth/logout HTTP/1.1\r\nHost: a\r\nCookie: {renewed}\r\nSec-Fetch-Site: same-origin\r\n\
         Content-Length: 0\r\n\r\n"
    ));
    assert_eq!(answer.status, 200, "{}", answer.text());

    // Also those that were opened with a token which that session has no more.
    assert!(opened_before.is_closed() && events.is_closed() && opened_after.is_closed());
    assert_eq!(other.echo(b"still here"), b"still here");
}

#[test]
fn the_issuers_word_and_the_end_of_a_session_end_its_streams() {
    let world = World::start();
    let (alice, bob) = (world.log_in("alice", "wonderland"), world.log_in("bob", "builder"));
    let (mut of_alice, mut of_bob) =
        (world.session_websocket(&alice), world.session_websocket(&bob));
    world.advance(1);

    let token = world.issuer.running.logout_token("gateway-web", "", "alice").expect("a token");
    let form = format!("logout_token={token}");
    let answer = world.gateway.ask(&format!(
        "POST /auth/back-channel-logout HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\
         Content-Type: application/x-www-form-urlencoded\r\n\r\n{form}",
        form.len()
    ));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.field("cache-control"), Some("no-store"));
    assert!(of_alice.is_closed());
    assert_eq!(of_bob.echo(b"still here"), b"still here");

    // Its refresh token is refused: the session is over, and with it what it has open.
    world.issuer.running.inject(Endpoint::Token, Fault::invalid_grant(), 1);
    world.advance(250);
    assert_eq!(world.try_browse(&bob).status, 401);
    assert!(of_bob.is_closed());
}

#[test]
fn a_logout_at_the_issuer_reaches_the_gateway_by_itself() {
    let world = World::start();
    let address = world.issuer.running.address();
    let client = json!({
        "backchannel_logout_uri": format!("http://{}/auth/back-channel-logout", world.gateway.address()),
        "grant_types": ["password", "refresh_token"], "scope": "openid offline_access",
    })
    .to_string();
    let mut registering = Client::connect(address);
    registering.send(format!(
        "POST /register HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{client}",
        client.len()
    ));
    let client: Value = serde_json::from_slice(&registering.answer().body).expect("JSON");
    let own = format!("id: {}, secret: {}", client["client_id"], client["client_secret"]);
    let rest = world.rest.replace("id: gateway-web, secret: gateway-web-secret", &own);
    world.gateway.reload("", &rest).expect("a good file");
    let alice = world.log_in("alice", "wonderland");
    let mut socket = world.session_websocket(&alice);
    let seen = world.service.seen().remove(0);
    let token =
        seen.field("authorization").and_then(|field| field.split('.').nth(1)).expect("a JWT");
    let claims = URL_SAFE_NO_PAD.decode(token).expect("base64url");
    let claims: Value = serde_json::from_slice(&claims).expect("JSON");

    world.issuer.running.end_login(claims["sid"].as_str().expect("a sid")).expect("a logout token");

    assert!(socket.is_closed());
    assert_eq!(world.try_browse(&alice).status, 401);
}

#[test]
fn a_revocation_while_the_service_thinks_is_not_missed() {
    let world = World::start();
    let token = world.token("alice", 300);
    let mut client = world.gateway.connect();
    client.send(format!(
        "GET /jwt?slow HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n"
    ));
    world.service.reached(1);
    world.advance(1);

    world.revoke(RevocationTarget::Subject("alice".into()));
    world.go_on();

    let answer = client.answer();
    assert_eq!((answer.status, answer.problem().as_deref()), (401, Some("unauthenticated")));
    assert!(answer.field("www-authenticate").is_some_and(|told| told.contains("invalid_token")));
    eventually("the service's farewell", || world.farewells() == 1);
}

/// An issuer, and a service whose answers do not end.
struct World {
    gateway: Gateway,
    service: Upstream,
    issuer: Issuer,
    go: std::sync::mpsc::Sender<()>,
    rest: String,
}

impl World {
    fn start() -> Self {
        let (go, wait) = std::sync::mpsc::channel();
        let wait = std::sync::Mutex::new(wait);
        let service = Upstream::by_hand(move |mut stream, connection, seen| {
            let mut reading = Reading::new(&stream);
            let Some(request) = reading.request(connection) else { return };
            let (upgrade, slow) =
                (request.field("upgrade").is_some(), request.target().contains('?'));
            seen(request);
            if slow {
                wait.lock().expect("one waits").recv().expect("the test goes on");
            }
            let answer: &[u8] = if upgrade { SWITCHED } else { EVENTS };
            let _ = stream.write_all(answer);
            while let Some(line) = reading.until(b"\n") {
                let _ = stream.write_all(&line);
            }
            seen(crate::support::Seen::head(connection, b"farewell"));
        });
        let issuer = start_issuer();
        let rest = format!(
            "{}sessions:\n\
             \x20 web: {{ issuer: main, flow: password, client: {{ id: gateway-web, secret: gateway-web-secret }}, \
             public_url: \"http://127.0.0.1\", scopes: [openid, offline_access], cookie: {{ prefix: \"\", secure: false }} }}\n\
             upstreams:\n  service: {{ targets: [\"{}\"] }}\nroutes:\n\
             \x20 - {{ id: open, path: /open, upstream: service, auth: none }}\n\
             \x20 - {{ id: jwt, path: /jwt, upstream: service, auth: {{ jwt: main }} }}\n\
             \x20 - {{ id: lasting, path: /lasting, upstream: service, auth: {{ jwt: main }}, close_on_expiry: false }}\n\
             \x20 - {{ id: app, path: /app, upstream: service, auth: {{ session: web }} }}\n\
             \x20 - {{ id: short, path: /short, respond: {{ body: fine }}, auth: {{ session: web }} }}\n",
            issuer.settings(""),
            service.url()
        );
        let gateway = Gateway::at(issuer.clock.clone(), "", &rest).ready();
        Self { gateway, service, issuer, go, rest }
    }

    fn token(&self, person: &str, lives: u64) -> String {
        self.mint(Mint::client("api").user(person).lifetime(Duration::from_secs(lives)))
    }

    fn mint(&self, mint: Mint) -> String {
        self.issuer.mint(&mint)
    }

    fn advance(&self, seconds: u64) {
        self.issuer.clock.advance(Duration::from_secs(seconds));
    }

    /// On, so that a token issued now is younger than a revocation before.
    fn clock_moves_on(&self) {
        self.advance(1);
    }

    fn go_on(&self) {
        self.go.send(()).expect("the service waits");
    }

    fn revoke(&self, what: RevocationTarget) {
        let revocation = Revocation { issuer: Some("main".into()), what };
        self.gateway.launched.server.shared().retained().revocations.revoke(revocation, None);
    }

    fn websocket(&self, path: &str, token: &str) -> Client {
        let authorization = if token.is_empty() {
            String::new()
        } else {
            format!("Authorization: Bearer {token}\r\n")
        };
        self.open(path, &format!("{UPGRADE}{authorization}"), SWITCHED)
    }

    fn events(&self, path: &str, token: &str) -> Client {
        self.open(path, &format!("Authorization: Bearer {token}\r\n"), EVENTS)
    }

    fn session_websocket(&self, cookie: &str) -> Client {
        self.open("/app", &format!("{UPGRADE}Cookie: {cookie}\r\n"), SWITCHED)
    }

    fn session_events(&self, cookie: &str) -> Client {
        self.open("/app", &format!("Cookie: {cookie}\r\n"), EVENTS)
    }

    /// Opens a stream, and reads what the service says at first.
    fn open(&self, path: &str, fields: &str, answer: &[u8]) -> Client {
        let mut client = self.gateway.connect();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
        let head = client.until(b"\r\n\r\n").expect("an answer");
        assert_eq!(head[..13], answer[..13], "{}", String::from_utf8_lossy(&head));
        let first = answer.windows(4).position(|end| end == b"\r\n\r\n").expect("a head") + 4;
        assert_eq!(client.exactly(answer.len() - first), &answer[first..]);
        client
    }

    /// Logs in, and gives what the browser says from then on.
    fn log_in(&self, user: &str, password: &str) -> String {
        let form = format!("username={user}&password={password}");
        let answer = self.gateway.ask(&format!(
            "POST /auth/login HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\
             Content-Type: application/x-www-form-urlencoded\r\n\r\n{form}",
            form.len()
        ));
        assert_eq!(answer.status, 200, "{}", answer.text());
        cookies(&answer).expect("a cookie")
    }

    /// A short request of the session; gives the cookie that it has then.
    fn browse(&self, cookie: &str) -> String {
        let answer = self.try_browse(cookie);
        assert_eq!(answer.status, 200, "{}", answer.text());
        cookies(&answer).unwrap_or_else(|| cookie.to_owned())
    }

    fn try_browse(&self, cookie: &str) -> Answer {
        self.gateway.get("/short", &format!("Cookie: {cookie}\r\n"))
    }

    /// How often the service has seen a connection end.
    fn farewells(&self) -> usize {
        self.service.seen().iter().filter(|seen| seen.head == "farewell").count()
    }

    fn open_websockets(&self, count: usize) {
        eventually("the gauge of open ones", || {
            self.gateway.metric("northgate_upgraded_connections{route=\"jwt\"}") == count as f64
        });
    }
}

trait Echo {
    fn echo(&mut self, word: &[u8]) -> Vec<u8>;
}

impl Echo for Client {
    /// What comes back of a line, if the stream is still open.
    fn echo(&mut self, word: &[u8]) -> Vec<u8> {
        self.send([word, b"\n"].concat());
        let mut line = self.until(b"\n").unwrap_or_default();
        line.pop();
        line
    }
}

fn cookies(answer: &Answer) -> Option<String> {
    let pairs: Vec<_> = answer
        .fields("set-cookie")
        .iter()
        .filter_map(|field| field.split(';').next())
        .map(str::to_owned)
        .collect();
    (!pairs.is_empty()).then(|| pairs.join("; "))
}

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
const SWITCHED: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nhello";
const EVENTS: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                        Transfer-Encoding: chunked\r\n\r\n6\r\nhello\n\r\n";
