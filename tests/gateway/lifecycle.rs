//! Reloading, draining, and what the operator is told (behaviour.md §7).

use core::time::Duration;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::{io::Write, thread};

use crate::support::{Client, Gateway, Reading, Upstream, eventually, noon, ok, open};

#[test]
fn a_reload_swaps_everything_at_once_while_requests_go_on() {
    let (old, new) = (Upstream::start(|_| ok("old")), Upstream::start(|_| ok("new")));
    let gateway = Gateway::start("", &open(&old));
    let over = Arc::new(AtomicBool::new(false));
    let asking: Vec<_> = (0..3)
        .map(|_| {
            let (over, mut client) = (Arc::clone(&over), gateway.connect());
            thread::spawn(move || {
                let mut words = Vec::new();
                while !over.load(SeqCst) || words.len() < 10 {
                    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
                    let answer = client.answer();
                    assert_eq!(answer.status, 200);
                    words.push(answer.text().to_owned());
                }
                words
            })
        })
        .collect();
    old.reached(30);

    gateway.reload("", &open(&new)).expect("a good file");
    let at_once = gateway.get("/", "");
    new.reached(30);
    over.store(true, SeqCst);

    assert_eq!(at_once.text(), "new");
    for words in asking.into_iter().map(|thread| thread.join().expect("every answer was 200")) {
        let changes = words.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert_eq!((changes, &*words[words.len() - 1]), (1, "new"), "on the same connection");
    }
}

#[test]
fn a_bad_file_changes_nothing() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    let hash = gateway.launched.server.snapshot().hash.clone();

    for bad in ["routes: [", "unknown: 1\n", &open(&service).replace("auth: none", "auth: unknown")]
    {
        let story = gateway.reload("", bad).expect_err("a bad file");
        assert!(!story.is_empty());
        assert_eq!(gateway.get("/", "").status, 200);
        assert_eq!(gateway.launched.server.snapshot().hash, hash);
    }
    gateway.reload("max_headers: 20", &open(&service)).expect("a good file");
    assert_ne!(gateway.launched.server.snapshot().hash, hash);
}

#[test]
fn draining_loses_no_request_that_was_accepted() {
    let (go, went) = mpsc::channel::<()>();
    let went = Mutex::new(went);
    let service = Upstream::by_hand(move |mut stream, connection, seen| {
        let mut reading = Reading::new(&stream);
        let Some(head) = reading.until(b"\r\n\r\n") else { return };
        seen(crate::support::Seen::head(connection, &head));
        went.lock().expect("one waits").recv().expect("the test goes on");
        let _ = stream.write_all(&ok("late"));
    });
    // Who has connected and said nothing yet keeps the time that a head may take.
    let gateway = Gateway::start("header_timeout: 500ms", &open(&service));
    let mut idle = gateway.connect();
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    service.reached(1);

    let server = Arc::clone(&gateway.launched.server);
    let (address, started) = (gateway.address(), Arc::new(AtomicBool::new(false)));
    let seen = Arc::clone(&started);
    let draining = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        seen.store(true, SeqCst);
        runtime.expect("a runtime").block_on(server.drain(Duration::from_secs(20)))
    });
    crate::support::eventually("the listener's end", || {
        started.load(SeqCst) && std::net::TcpStream::connect(address).is_err()
    });
    go.send(()).expect("the service waits");

    assert_eq!(client.answer().text(), "late");
    assert!(client.is_closed(), "nothing new is taken on an old connection");
    assert!(idle.is_closed());
    assert!(draining.join().expect("no panic"), "nothing had to be cut");
}

#[test]
fn a_connection_in_use_is_told_of_a_drain_before_it_ends() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();
    let server = Arc::clone(&gateway.launched.server);
    let draining = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(server.drain(Duration::from_secs(20)))
    });

    let told = (0..10_000).find_map(|_| {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = client.answer();
        assert_eq!(answer.status, 200);
        answer.field("connection").map(ToOwned::to_owned)
    });

    assert_eq!(told.as_deref(), Some("close"));
    assert!(client.is_closed());
    assert!(draining.join().expect("no panic"), "nothing had to be cut");
}

#[test]
fn draining_cuts_what_does_not_end() {
    let service = Upstream::by_hand(|stream, connection, seen| {
        let mut reading = Reading::new(&stream);
        while let Some(head) = reading.until(b"\r\n\r\n") {
            seen(crate::support::Seen::head(connection, &head));
        }
    });
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    service.reached(1);

    assert!(!gateway.on_control(gateway.launched.server.drain(Duration::from_millis(100))));

    assert!(client.is_closed());
}

/// What draining does to `WebSockets`: they go on, and count as what was accepted.
#[test]
fn draining_waits_for_websockets_and_cuts_them_at_its_timeout() {
    let service = Upstream::by_hand(|mut stream, _, _| {
        let mut reading = Reading::new(&stream);
        let Some(_) = reading.until(b"\r\n\r\n") else { return };
        let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        let _ = stream.write_all(head.as_bytes());
        while let Some(line) = reading.until(b"\n") {
            let _ = stream.write_all(&line);
        }
    });
    for leaves in [true, false] {
        let gateway = Gateway::start("", &open(&service));
        let mut client = gateway.connect();
        client
            .send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n");
        assert_eq!(client.answer().status, 101);
        let (server, address) = (Arc::clone(&gateway.launched.server), gateway.address());
        let timeout = Duration::from_secs(if leaves { 20 } else { 1 });
        let draining = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(server.drain(timeout))
        });
        crate::support::eventually("the listener's end", || {
            std::net::TcpStream::connect(address).is_err()
        });

        client.send("still here\n");
        assert_eq!(client.until(b"\n").as_deref(), Some(&b"still here\n"[..]));
        if leaves {
            client.finish();
        }

        assert!(client.is_closed());
        let politely = draining.join().expect("no panic");
        assert_eq!(politely, leaves, "what did not leave was cut");
    }
}

#[test]
fn a_websocket_has_a_place_among_the_connections() {
    let service = Upstream::by_hand(|mut stream, _, _| {
        let mut reading = Reading::new(&stream);
        let Some(head) = reading.until(b"\r\n\r\n") else { return };
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let upgraded = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        let answer =
            if head.contains("upgrade") { upgraded.as_bytes().to_vec() } else { ok("fine") };
        let _ = stream.write_all(&answer);
        let _ = reading.until(b"never");
    });
    let gateway = Gateway::start("max_connections_per_ip: 1", &open(&service));
    let mut socket = gateway.connect();
    socket.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n");
    assert_eq!(socket.answer().status, 101);

    let mut second = gateway.connect();
    let _ = second.try_send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(second.try_answer().is_none(), "there is no second place");
    drop(socket);

    crate::support::eventually("a free place", || {
        let mut client = gateway.connect();
        let _ = client.try_send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.try_answer().is_some()
    });
}

#[test]
fn the_admin_listener_serves_health_and_state() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    let ask = |line: &str, fields: &str| {
        gateway.operator(&format!(
            "{line} HTTP/1.1\r\nHost: {}\r\n{fields}\r\n",
            gateway.launched.admin
        ))
    };
    gateway.get("/", "");

    assert_eq!(ask("GET /livez", "").status, 200);
    assert_eq!(ask("GET /readyz", "").status, 200);
    let metrics = ask("GET /metrics", "");
    assert!(metrics.text().contains("route=\"open\""), "{}", metrics.text());
    let hash = gateway.launched.server.snapshot().hash.clone();
    assert!(ask("GET /config", "").text().contains(&hash));
    assert_eq!(ask("POST /-/reload", "").status, 200);
    assert_eq!(ask("GET /-/reload", "").status, 405);
    assert_eq!(ask("GET /nothing", "").status, 404);

    // A page in the operator's browser must not be able to do the same.
    assert_eq!(ask("POST /-/reload", "Origin: https://evil.test\r\n").status, 403);
    assert_eq!(ask("GET /config", "Origin: null\r\n").status, 403);
    let own = format!("Origin: http://{}\r\n", gateway.launched.admin);
    assert_eq!(ask("GET /config", &own).status, 200);

    // Nor one whose own name leads here by now (DNS rebinding): to the browser it is the same origin.
    let as_host = |line: &str, host: &str| {
        let request = format!("{line} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n\r\n");
        gateway.operator(&request).status
    };
    for line in ["POST /-/reload", "POST /-/revoke", "GET /config", "GET /routes"] {
        for host in ["evil.test", "evil.test:9901", "localhost.evil.test", "127.0.0.1.evil.test"] {
            assert_eq!(as_host(line, host), 403, "{line} {host}");
        }
    }
    for host in ["localhost", "LOCALHOST:9901", "127.0.0.1:9901", "[::1]:9901", "10.0.0.1"] {
        assert_eq!(as_host("GET /config", host), 200, "{host}");
    }
    assert_eq!(as_host("GET /metrics", "prometheus.test"), 200, "as a scraper may call it");

    gateway.launched.readiness.drain();
    assert_eq!(ask("GET /readyz", "").status, 503);
    assert_eq!(ask("GET /livez", "").status, 200);
}

#[test]
fn the_admin_listener_serves_head_wherever_get_and_names_the_methods_it_allows() {
    let service = Upstream::polite();
    let text = format!(
        "version: 1\nlisten: [{{ address: \"127.0.0.1:0\" }}]\n\
         admin: {{ listen: \"127.0.0.1:0\", token: a-long-token-for-the-operator }}\n\
         metrics: {{ path: /routes }}\nserver: {{ workers: 1 }}\n{}",
        open(&service)
    );
    let gateway = Gateway::of(noon(), &text);
    let ask = |line: &str, fields: &str, body: &str| {
        let mut client = Client::connect(gateway.launched.admin);
        client.send(format!("{line} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n{body}"));
        if line.starts_with("HEAD") { client.answer_without_body() } else { client.answer() }
    };
    let token = "Authorization: Bearer a-long-token-for-the-operator\r\n";

    for path in ["/livez", "/healthz", "/readyz", "/version", "/config", "/upstreams", "/routes"] {
        let (get, head) =
            (ask(&format!("GET {path}"), token, ""), ask(&format!("HEAD {path}"), token, ""));
        assert_eq!(head.status, get.status, "{path}");
        assert_eq!(head.field("content-type"), get.field("content-type"), "{path}");
        let refused = ask(&format!("PUT {path}"), token, "");
        assert_eq!((refused.status, refused.field("allow")), (405, Some("GET,HEAD")), "{path}");
        assert_eq!(refused.text(), "method not allowed\n");
        // The token is checked before anything else.
        assert_eq!(ask(&format!("PUT {path}"), "", "").status, 401, "{path}");
    }
    for path in ["/-/reload", "/-/revoke"] {
        let refused = ask(&format!("GET {path}"), token, "");
        assert_eq!((refused.status, refused.field("allow")), (405, Some("POST")), "{path}");
        assert_eq!(ask(&format!("GET {path}"), "", "").status, 401, "{path}");
    }
    assert_eq!(ask("GET /nothing", "", "").status, 401);
    assert_eq!(ask("GET /nothing", token, "").text(), "not found\n");
    // The operator's path of the metrics goes before an endpoint of the same path.
    assert!(ask("GET /routes", "", "").text().contains("northgate_"));
    assert_eq!(ask("GET /metrics", "", "").status, 401);
    // Content is limited, and a token is asked for before a byte of it is read.
    let form = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 70000\r\n";
    let body = "a".repeat(70_000);
    assert_eq!(ask("POST /-/revoke", &format!("{token}{form}"), &body).status, 413);
    assert_eq!(ask("POST /-/revoke", form, "").status, 401);
}

#[test]
fn the_operators_token_guards_everything_but_health_and_metrics() {
    let service = Upstream::polite();
    let text = format!(
        "version: 1\nlisten: [{{ address: \"127.0.0.1:0\" }}]\n\
         admin: {{ listen: \"127.0.0.1:0\", token: a-long-token-for-the-operator }}\nserver: {{ workers: 1 }}\n{}",
        open(&service)
    );
    let gateway = Gateway::of(noon(), &text);
    let ask = |line: &str, fields: &str| {
        let mut client = Client::connect(gateway.launched.admin);
        client.send(format!("{line} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n"));
        let answer = client.answer();
        assert_eq!(answer.field("www-authenticate").is_some(), answer.status == 401, "{line}");
        answer.status
    };

    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(ask(&format!("GET {path}"), ""), 200, "{path}");
    }
    for line in ["GET /config", "GET /routes", "GET /upstreams", "GET /version", "POST /-/reload"] {
        assert_eq!(ask(line, ""), 401, "{line}");
        assert_eq!(ask(line, "Authorization: Bearer wrong\r\n"), 401, "{line}");
        assert_eq!(
            ask(line, "Authorization: bearer a-long-token-for-the-operator\r\n"),
            200,
            "{line}"
        );
    }
}

#[test]
fn a_reload_takes_over_what_the_operators_listener_answers_by() {
    let service = Upstream::polite();
    let text = |admin: &str, more: &str| {
        format!(
            "version: 1\nlisten: [{{ address: \"127.0.0.1:0\" }}]\n\
             admin: {{ listen: \"127.0.0.1:0\"{admin} }}\nserver: {{ workers: 1 }}\n{more}{}",
            open(&service)
        )
    };
    let gateway = Gateway::of(noon(), &text(", token: the-first-token-of-two", ""));
    let ask = |path: &str, token: &str| {
        gateway
            .operator(&format!(
                "GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
            ))
            .status
    };
    assert_eq!(ask("/config", "the-first-token-of-two"), 200);

    let changed = text(", token: the-second-token-of-two", "metrics: { path: /other }\n");
    gateway.replace(&changed).expect("a good file");

    assert_eq!(ask("/config", "the-first-token-of-two"), 401);
    assert_eq!(ask("/config", "the-second-token-of-two"), 200);
    assert_eq!((ask("/other", "none"), ask("/metrics", "the-second-token-of-two")), (200, 404));
}

#[test]
fn a_reload_takes_over_what_holds_for_new_connections() {
    let service = Upstream::polite();
    let text = |listener: &str, server: &str| {
        format!(
            "version: 1\nlisten: [{{ address: \"127.0.0.1:0\"{listener} }}]\n\
             admin: {{ listen: \"127.0.0.1:0\" }}\nserver: {{ workers: 1{server} }}\n{}",
            open(&service)
        )
    };
    let gateway = Gateway::of(noon(), &text("", ""));
    assert_eq!(gateway.get("/", "").status, 200);

    gateway.replace(&text(", redirect_https: 8443", "")).expect("a good file");
    let answer = gateway.get("/", "");
    assert_eq!((answer.status, answer.field("location")), (308, Some("https://api.test:8443/")));

    gateway.replace(&text("", ", max_connections_per_ip: 1")).expect("a good file");
    let mut first = gateway.connect();
    first.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(first.answer().status, 200);
    assert!(gateway.connect().is_closed());
}

#[test]
fn keys_that_wait_for_a_restart_are_named_in_response_and_log() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    let reload =
        || gateway.operator("POST /-/reload HTTP/1.1\r\nHost: localhost\r\n\r\n").text().to_owned();
    assert!(reload().contains("\"waiting_for_restart\":[]"));

    let text = format!(
        "version: 1\nlisten: [{{ address: \"127.0.0.1:0\" }}]\n\
         admin: {{ listen: \"127.0.0.1:2\" }}\nserver: {{ workers: 2 }}\nmetrics: {{ methods: false }}\n{}",
        open(&service)
    );
    gateway.replace(&text).expect("a good file");

    let answer = reload();
    for key in ["admin.listen", "metrics.methods", "server.workers"] {
        assert!(answer.contains(&format!("\"{key}\"")), "{key}: {answer}");
    }
    assert!(!answer.contains("state_dir"), "{answer}");
}

#[test]
fn only_the_gateways_own_time_is_overhead() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let service = Upstream::by_hand(move |mut stream, connection, seen| {
        let mut reading = Reading::new(&stream);
        while let Some(request) = reading.request(connection) {
            let target = request.target().to_owned();
            seen(request);
            // An end of the test is as good as its word.
            let next = || wait.lock().expect("no panic").recv().unwrap_or_default();
            let answer = match &*target {
                "/stream" => {
                    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab";
                    stream.write_all(head).expect("the gateway reads");
                    next();
                    b"cd".to_vec()
                }
                "/slow" => {
                    next();
                    ok("")
                }
                _ => ok(""),
            };
            if stream.write_all(&answer).is_err() {
                break;
            }
        }
    });
    let gateway = Gateway::start("", &open(&service));
    let minute = Duration::from_secs(60);

    // A slow service, a slow download, a slow upload, and a client that goes away while it waits.
    let mut client = gateway.connect();
    client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    service.reached(1);
    gateway.clock.advance(minute);
    go.send(()).expect("the service waits");
    assert_eq!(client.answer().status, 200);
    client.send("GET /stream HTTP/1.1\r\nHost: a\r\n\r\n");
    client.until(b"\r\n\r\nab").expect("half of the answer");
    gateway.clock.advance(minute);
    go.send(()).expect("the service waits");
    assert_eq!(client.exactly(2), b"cd");
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab");
    gateway.clock.advance(minute);
    client.send("cd");
    assert_eq!(client.answer().status, 200);
    let mut leaves = gateway.connect();
    leaves.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    service.reached(4);
    gateway.clock.advance(minute);
    drop(leaves);

    let counted = "northgate_http_overhead_seconds_count{route=\"open\"}";
    eventually("all four are counted", || gateway.metric(counted) >= 4.0);
    let sum = gateway.metric("northgate_http_overhead_seconds_sum{route=\"open\"}");
    assert!(sum < 1.0, "{sum}");
}

#[test]
fn a_target_gets_requests_from_the_start_and_again_when_its_ejection_is_over() {
    let service = Upstream::start(|_| b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n".to_vec());
    let gateway = Gateway::start("", &open(&service));
    let healthy = || {
        let text = gateway.operator("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").text().to_owned();
        let line = text.lines().find(|line| line.starts_with("northgate_upstream_target_healthy{"));
        line.expect("it is exported").rsplit(' ').next().expect("a value").to_owned()
    };
    assert_eq!(healthy(), "1");

    for _ in 0..5 {
        gateway.get("/", "");
    }
    let ejected = healthy();
    gateway.clock.advance(Duration::from_secs(3_600));

    assert_eq!(healthy(), "1", "it was {ejected}");
}

/// A whole file with these listeners.
fn listening(listen: &str, service: &Upstream) -> String {
    format!(
        "version: 1\nlisten: [{listen}]\nadmin: {{ listen: \"127.0.0.1:0\" }}\n\
         server: {{ workers: 2 }}\n{}",
        open(service)
    )
}

fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("an address").port()
}

#[test]
fn a_reload_opens_new_addresses_and_drains_removed_ones() {
    let service = Upstream::polite();
    let (first, second) = (free_port(), free_port());
    let one = |port: u16| format!("\"127.0.0.1:{port}\"");
    let gateway = Gateway::of(noon(), &listening(&one(first), &service));
    let at = |port: u16| Client::connect(([127, 0, 0, 1], port).into());
    let get = |client: &mut Client| {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.try_answer().map(|answer| answer.status)
    };
    let mut kept = at(first);
    assert_eq!(get(&mut kept), Some(200));

    gateway.replace(&listening(&format!("{}, {}", one(second), one(first)), &service)).expect("ok");
    for port in [first, second, second, second] {
        assert_eq!(get(&mut at(port)), Some(200));
    }
    assert_eq!(get(&mut kept), Some(200), "an open connection is not touched");
    assert_eq!(gateway.address().port(), second, "in the order of the file");

    gateway.replace(&listening(&one(second), &service)).expect("a good file");
    assert!(kept.is_closed(), "an idle connection of a removed address ends");
    eventually("the socket's end", || std::net::TcpStream::connect(("127.0.0.1", first)).is_err());
    for _ in 0..4 {
        assert_eq!(get(&mut at(second)), Some(200));
    }

    // And back again.
    gateway.replace(&listening(&one(first), &service)).expect("a good file");
    assert_eq!(get(&mut at(first)), Some(200));
    assert!(gateway.on_control(gateway.launched.server.drain(Duration::from_secs(5))));
}

#[test]
fn an_address_that_cannot_be_bound_fails_the_reload_and_changes_nothing() {
    let service = Upstream::polite();
    let first = free_port();
    let gateway = Gateway::of(noon(), &listening(&format!("\"127.0.0.1:{first}\""), &service));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("an address");
    let hash = gateway.launched.server.snapshot().hash.clone();

    let story = gateway
        .replace(&listening(&format!("\"127.0.0.1:{}\", \"{taken}\"", free_port()), &service))
        .expect_err("the address is taken");

    assert!(story.contains(&taken.to_string()) && story.contains("in use"), "{story}");
    assert_eq!(gateway.launched.server.snapshot().hash, hash);
    assert_eq!(gateway.address().port(), first);
    assert_eq!(gateway.get("/", "").status, 200);
}

#[test]
fn an_address_may_be_widened_and_narrowed_while_it_is_in_use() {
    let service = Upstream::polite();
    let port = free_port();
    let narrow = format!("\"127.0.0.1:{port}\"");
    let gateway = Gateway::of(noon(), &listening(&narrow, &service));
    for listen in [format!("\"0.0.0.0:{port}\""), narrow] {
        gateway.replace(&listening(&listen, &service)).expect("a good file");
        for _ in 0..8 {
            let mut client = Client::connect(([127, 0, 0, 1], port).into());
            client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            assert_eq!(client.answer().status, 200, "{listen}");
        }
    }
}

#[test]
fn a_connection_that_arrives_while_its_listener_drains_is_served_or_tries_again() {
    let service = Upstream::polite();
    let (first, second) = (free_port(), free_port());
    let file = |port: u16| listening(&format!("\"127.0.0.1:{port}\""), &service);
    let gateway = Gateway::of(noon(), &file(first));
    let over = Arc::new(AtomicBool::new(false));
    let askers: Vec<_> = (0..4)
        .map(|_| {
            let over = Arc::clone(&over);
            thread::spawn(move || {
                let mut served = 0;
                while !over.load(SeqCst) {
                    // A connection that was made is served; without a successor the next ones are refused.
                    let address = core::net::SocketAddr::from(([127, 0, 0, 1], first));
                    let Ok(stream) = std::net::TcpStream::connect(address) else { break };
                    let mut client = Client::over(stream);
                    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
                    assert_eq!(client.answer().status, 200);
                    served += 1;
                }
                served
            })
        })
        .collect();
    service.reached(100);
    gateway.replace(&file(second)).expect("a good file");
    eventually("the socket's end", || std::net::TcpStream::connect(("127.0.0.1", first)).is_err());
    over.store(true, SeqCst);
    let served: usize = askers.into_iter().map(|asker| asker.join().expect("all served")).sum();
    assert!(served >= 100);
}
