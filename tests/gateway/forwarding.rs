//! What a service sees of a request and a client of an answer (RFC 9110 §7.6; security.md rules 22–28).

use std::io::Write;
use std::thread;

use http::{Request, StatusCode};

use crate::support::{
    Answer, Client, Gateway, Http2, Http2Client, Outcome, Reading, Seen, Upstream, ok, open,
};

#[test]
fn hop_by_hop_request_fields_do_not_reach_the_upstream() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    gateway.get(
        "/a",
        "Connection: keep-alive, X-Secret, TE\r\nConnection: X-Other\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Connection: keep-alive\r\nTE: gzip, trailers\r\nX-Secret: 1\r\nx-other: 2\r\n\
         Upgrade: foo\r\nProxy-Authorization: Basic eDp5\r\nX-Kept: yes\r\n",
    );

    let seen = service.only();
    for name in [
        "keep-alive",
        "proxy-connection",
        "x-secret",
        "x-other",
        "upgrade",
        "proxy-authorization",
        "transfer-encoding",
    ] {
        assert_eq!(seen.field(name), None, "{name}: {}", seen.head);
    }
    assert!(seen.fields("connection").iter().all(|value| !value.contains("X-")), "{}", seen.head);
    assert_eq!(seen.field("x-kept"), Some("yes"));
    assert_eq!(seen.field("te"), Some("trailers"), "a service may send trailers to who takes them");
}

#[test]
fn hop_by_hop_response_fields_do_not_reach_the_client() {
    let service = Upstream::start(|_| {
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n\
          Keep-Alive: timeout=5\r\nProxy-Connection: x\r\nUpgrade: h2c\r\nX-Kept: yes\r\n\r\nok"
            .to_vec()
    });
    let gateway = Gateway::start("", &open(&service));

    let answer = gateway.get("/", "");

    for name in ["x-hop", "keep-alive", "proxy-connection", "upgrade", "connection"] {
        assert_eq!(answer.field(name), None, "{}", answer.head);
    }
    assert_eq!((answer.field("x-kept"), answer.text()), (Some("yes"), "ok"));
}

/// CVE-2022-31813, CVE-2024-45410, CVE-2025-48865
#[test]
fn a_client_cannot_name_the_gateways_own_fields_away() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    gateway.get(
        "/",
        "Connection: X-Forwarded-For, X-Forwarded-Host, X-Forwarded-Proto, X-Request-Id, Via, Host, close\r\n",
    );

    let seen = service.only();
    assert_eq!(seen.field("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.field("x-forwarded-host"), Some("api.test"));
    assert_eq!(seen.field("x-forwarded-proto"), Some("http"));
    assert!(seen.field("x-request-id").is_some() && seen.field("via").is_some());
    assert_eq!(seen.field("host").map(|host| format!("http://{host}")), Some(service.url()));
}

#[test]
fn options_go_no_further_than_they_are_told() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    let options = |most: &str| {
        gateway
            .ask(&format!("OPTIONS / HTTP/1.1\r\nHost: a\r\nMax-Forwards: {most}\r\n\r\n"))
            .status
    };

    assert_eq!([options("0"), options("3")], [204, 200]);

    assert_eq!(service.only().field("max-forwards"), Some("2"));
}

#[test]
fn a_gateway_whose_service_is_itself_asks_itself_a_few_times_and_no_more() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    let port = gateway.address().port();
    let own = open(&service).replace(&service.url(), &format!("http://127.0.0.1:{port}"));
    gateway.reload("", &own).expect("a good file");

    assert_eq!(gateway.get("/", "").status, 508);

    assert!(service.seen().is_empty());
}

#[test]
fn bytes_after_a_204_are_never_the_next_response() {
    let service = Upstream::start(|seen| match seen.target() {
        "/length" => b"HTTP/1.1 204 No Content\r\nContent-Length: 42\r\n\r\n".to_vec(),
        "/chunks" => b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(),
        "/empty" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        _ => ok("fine"),
    });
    let gateway = Gateway::start("", &open(&service));

    for path in ["/length", "/chunks", "/empty", "/"] {
        let status = if path == "/" { 200 } else { 204 };
        assert_eq!(gateway.get(path, "").status, status, "{path}");
    }

    // What comes late would be read as the next answer: the connection is not used again.
    let connections: Vec<_> = service.seen().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections, [0, 1, 2, 2]);
}

/// CVE-2025-41235, CVE-2026-47825, GHSA-6384-m2mw-rf54, CVE-2026-40575
#[test]
fn only_a_trusted_proxy_may_send_forwarding_fields() {
    let service = Upstream::polite();
    let spoofed = "X-Forwarded-For: 6.6.6.6\r\nx_forwarded_for: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n\
                   X-Forwarded-Host: evil\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Prefix: /evil\r\n\
                   X-Real-IP: 6.6.6.6\r\nX-Forwarded-Uri: /evil\r\nX-Original-URL: /evil\r\n\
                   X-Rewrite-Url: /evil\r\nX-Forwarded-Port: 66666666\r\nX-Request-Id: evil\r\n\
                   X-Forwarded: for=evil\r\nX-Forwarded-Email: evil\r\nX_Forwarded-Groups: evil\r\n\
                   X-Forwarded-Client-Cert: evil\r\nForwarded_For: evil\r\nContent_Length: 66666666\r\n\
                   X.Forwarded.For: 6.6.6.6\r\nContent.Length: 66666666\r\nProxy: http://evil\r\n\
                   Client-Cert: evil\r\nClient-Cert-Chain: evil\r\nX-SSL-Client-S-DN: evil\r\n";

    let gateway = Gateway::start("", &open(&service));
    gateway.get("/", spoofed);
    let seen = service.only();
    assert!(!seen.head.contains("6.6.6.6") && !seen.head.contains("evil"), "{}", seen.head);
    // Long enough that no port and no request id holds it by chance.
    assert!(!seen.head.contains("66666666"), "{}", seen.head);

    let gateway = Gateway::start("trusted_proxies: [127.0.0.0/8]", &open(&service));
    gateway.get("/", "X-Forwarded-For: 6.6.6.6, 1.1.1.1\r\nX-Request-Id: from-the-proxy\r\n");
    let seen = service.seen().remove(1);
    assert_eq!(seen.field("x-forwarded-for"), Some("6.6.6.6, 1.1.1.1, 127.0.0.1"));
    assert_eq!(seen.field("x-request-id"), Some("from-the-proxy"));

    // The standard's field is believed where the other is not written, and both are passed on as the gateway writes them.
    let fields = "Forwarded: for=6.6.6.6, for=\"1.1.1.1:47\";proto=https;host=evil\r\nX-Forwarded-Host: evil\r\n";
    gateway.get("/", fields);
    let seen = service.seen().remove(2);
    assert_eq!(seen.field("x-forwarded-for"), Some("6.6.6.6, 1.1.1.1, 127.0.0.1"));
    assert_eq!(seen.field("x-forwarded-proto"), Some("https"));
    assert_eq!(seen.field("x-forwarded-host"), Some("api.test"));
    assert_eq!(seen.field("forwarded"), None);

    // One chain in two fields is one chain.
    gateway.get("/", "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 1.1.1.1\r\n");
    let seen = service.seen().remove(3);
    assert_eq!(seen.field("x-forwarded-for"), Some("6.6.6.6, 1.1.1.1, 127.0.0.1"));
}

#[test]
fn a_request_has_one_id_for_client_service_and_log() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    let answers = [gateway.get("/", ""), gateway.get("/", "")];

    let ids: Vec<_> = answers.iter().filter_map(|answer| answer.field("x-request-id")).collect();
    let seen = service.seen();
    assert_eq!(seen[0].field("x-request-id"), Some(ids[0]));
    assert_ne!(ids[0], ids[1]);
    assert!(gateway.log().contains(ids[1]), "{}", gateway.log());
}

#[test]
fn via_is_added_and_what_stood_there_stays() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    gateway.get("/", "Via: 1.0 before\r\n");

    let via = service.only().fields("via").join(", ");
    assert_eq!(via, "1.0 before, 1.1 northgate");
}

#[test]
fn via_names_the_version_that_the_client_spoke() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    gateway.ask("GET /a HTTP/1.0\r\nHost: a\r\n\r\n");
    let mut http2 = Http2::connect(&gateway);
    let head = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/b")];
    http2.head(1, &head, true);
    assert_eq!(http2.outcome(1), Outcome::Answered(200));

    let via: Vec<_> =
        service.seen().iter().map(|seen| seen.field("via").map(str::to_owned)).collect();
    assert_eq!(via, [Some("1.0 northgate".to_owned()), Some("2.0 northgate".to_owned())]);
}

#[test]
fn a_204_has_no_length_in_any_version() {
    let service =
        Upstream::start(|_| b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n".to_vec());
    let rest =
        open(&service) + "  - { id: own, path: /own, auth: none, respond: { status: 204 } }\n";
    let gateway = Gateway::start("", &rest);

    for path in ["/", "/own"] {
        let answer =
            gateway.ask(&format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
        assert_eq!((answer.status, answer.field("content-length")), (204, None), "{path}");

        let head = Http2Client::run(&gateway, async |client| {
            let request = Request::get(format!("http://a{path}")).body(()).expect("a request");
            client.begin(request, true).await.0.await.expect("a response")
        });
        assert_eq!(
            (head.status(), head.headers().get("content-length")),
            (StatusCode::NO_CONTENT, None),
            "{path}"
        );
    }
}

#[test]
fn a_browser_gets_a_page_for_an_error_and_a_program_a_problem_document() {
    let gateway = Gateway::start(
        "",
        "routes:\n  - { id: a, path: /a, auth: none, respond: { status: 200 } }\n",
    );

    for (accept, is_page) in [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", true),
        ("Text/HTML", true),
        ("text/html;q=0, application/json", false),
        ("text/html;q=0", false),
        ("*/*", false),
        ("application/json, text/html;q=0.5", false),
    ] {
        let answer = gateway.get("/nothing", &format!("Accept: {accept}\r\n"));

        assert_eq!(answer.status, 404, "{accept}");
        let kind = if is_page { "text/html; charset=utf-8" } else { "application/problem+json" };
        assert_eq!(answer.field("content-type"), Some(kind), "{accept}");
        let id = answer.field("x-request-id").expect("an id");
        assert!(answer.text().contains(id), "{accept}: {}", answer.text());
    }
}

#[test]
fn an_absolute_target_wins_over_the_host_field() {
    let service = Upstream::polite();
    let rest = open(&service).replace("service: {", "service: { host_header: preserve,");
    let gateway = Gateway::start("", &rest);

    let answer = gateway.ask("GET http://real.test/a?b=1 HTTP/1.1\r\nHost: other.test\r\n\r\n");

    assert_eq!(answer.status, 200);
    let seen = service.only();
    assert_eq!((seen.line(), seen.field("host")), ("GET /a?b=1 HTTP/1.1", Some("real.test")));
    assert_eq!(seen.field("x-forwarded-host"), Some("real.test"));
}

/// RFC 9112 §3.2.2: no path means the root; a request line without one would be none.
#[test]
fn an_absolute_target_without_a_path_has_the_roots() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    for (target, sent) in [("http://a", "/"), ("http://a?b", "/?b"), ("http://a/?b", "/?b")] {
        let before = service.seen().len();
        assert_eq!(gateway.get(target, "").status, 200, "{target}");
        assert_eq!(service.seen()[before].line(), format!("GET {sent} HTTP/1.1"));
    }
}

#[test]
fn a_host_that_is_none_is_refused() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: user@a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n",
        "GET http://user@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: .\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a..b\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        assert_eq!(gateway.ask(request).status, 400, "{request:?}");
    }
    assert!(service.seen().is_empty());
}

#[test]
fn http_1_0_is_answered_and_its_connection_closed() {
    let service = Upstream::start(|_| {
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_vec()
    });
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();

    client.send("GET /old HTTP/1.0\r\n\r\n");

    let answer = client.answer();
    assert_eq!((answer.status, answer.text()), (200, "abc"));
    assert_eq!(answer.field("transfer-encoding"), None, "HTTP/1.0 knows no chunks");
    assert!(client.is_closed());
    assert_eq!(service.only().line(), "GET /old HTTP/1.1");
}

#[test]
fn an_unsent_request_is_retried_on_another_endpoint() {
    let service = Upstream::polite();
    let unreachable = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        format!("http://{}", listener.local_addr().expect("a bound socket"))
    };
    let rest = open(&service).replace("[\"", &format!("[\"{unreachable}\", \""));
    let gateway = Gateway::start("", &rest);

    for _ in 0..4 {
        let mut client = gateway.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
        assert_eq!(client.answer().status, 200, "a connection that failed has sent nothing");
    }

    assert_eq!(service.seen().len(), 4);
    assert!(service.seen().iter().all(|seen| seen.body == b"abc"));
}

#[test]
fn a_request_that_may_have_been_processed_is_retried_only_if_idempotent() {
    let breaks = || {
        Upstream::by_hand(|stream, connection, seen| {
            if let Some(head) = Reading::new(&stream).until(b"\r\n\r\n") {
                seen(Seen::head(connection, &head));
            }
        })
    };
    let (first, second) = (breaks(), breaks());
    let rest = open(&first).replace("[\"", &format!("[\"{}\", \"", second.url()));
    let gateway = Gateway::start("", &rest);
    let tries = || first.seen().len() + second.seen().len();

    let answer = gateway.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert_eq!((answer.status, tries()), (502, 1));

    let answer = gateway.get("/", "");
    assert_eq!((answer.status, tries()), (502, 3), "GET is tried twice");
}

#[test]
fn a_request_body_streams_to_the_service_while_it_comes() {
    let service = Upstream::by_hand(|mut stream, _, _| {
        let mut reading = Reading::new(&stream);
        reading.until(b"first").expect("the first part");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").expect("a reader");
        reading.until(b"second").expect("the second part");
        stream.write_all(b"third").expect("a reader");
    });
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();

    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
    // The head of the answer comes although the request has not ended.
    let head = client.until(b"\r\n\r\n").expect("a head");
    assert!(head.starts_with(b"HTTP/1.1 200"));
    client.send("6\r\nsecond\r\n0\r\n\r\n");

    assert_eq!(client.exactly(5), b"third");
}

#[test]
fn an_answers_body_streams_to_the_client_while_it_comes() {
    let (go, went) = std::sync::mpsc::channel::<()>();
    let went = std::sync::Mutex::new(went);
    let service = Upstream::by_hand(move |mut stream, _, _| {
        Reading::new(&stream).until(b"\r\n\r\n").expect("a head");
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
            .expect("a reader");
        went.lock().expect("one client").recv().expect("the client has read the first part");
        stream.write_all(b"3\r\ntwo\r\n0\r\n\r\n").expect("a reader");
    });
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");

    client.until(b"one").expect("the first part");
    go.send(()).expect("the service waits");
    client.until(b"two").expect("the second part");
    client.until(b"0\r\n\r\n").expect("the end");
}

#[test]
fn a_large_body_arrives_whole_in_both_directions() {
    let body: String = (0..300_000).map(|number| format!("{number:07},")).collect();
    let service = Upstream::start(|seen| ok(core::str::from_utf8(&seen.body).expect("text")));
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();

    let request =
        format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let mut writer = client.stream.try_clone().expect("a socket");
    let writing = thread::spawn(move || writer.write_all(request.as_bytes()));
    let answer = client.answer();

    writing.join().expect("no panic").expect("the gateway reads");
    assert!(answer.text() == body, "{} bytes came back", answer.body.len());
}

#[test]
fn a_client_that_expects_100_is_told_to_go_on() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();

    client.send("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    assert_eq!(client.answer().status, 100);
    client.send("body");

    assert_eq!(client.answer().status, 200);
    assert_eq!(service.only().body, b"body");
}

#[test]
fn a_client_that_expects_100_is_not_told_so_if_it_is_refused() {
    let service = Upstream::polite();
    let gateway = Gateway::start("max_body_size: 3B", &open(&service));
    let mut client = gateway.connect();

    client.send("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");

    assert_eq!(client.answer().status, 413);
    assert!(service.seen().is_empty());
}

#[test]
fn answers_without_a_body_have_none() {
    let service = Upstream::start(|seen| match seen.target() {
        "/204" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        "/304" => b"HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\nContent-Length: 7\r\n\r\n".to_vec(),
        _ if seen.line().starts_with("HEAD") => {
            b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n".to_vec()
        }
        _ => ok("whole"),
    });
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();

    client.send("HEAD /head HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = client.answer_without_body();
    assert_eq!((answer.status, answer.field("content-length")), (200, Some("4000")));
    for (path, status) in [("/204", 204), ("/304", 304)] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let answer = client.answer();
        assert_eq!((answer.status, answer.field("transfer-encoding")), (status, None));
    }
    // The connections on both sides are still in step.
    client.send("GET /whole HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer().text(), "whole");
    assert_eq!(service.connections(), 1);
}

#[test]
fn informational_answers_are_never_taken_for_the_final_one() {
    let service = Upstream::start(|_| {
        let mut bytes =
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".to_vec();
        bytes.extend(ok("final"));
        bytes
    });
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();

    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");

    let answer = final_answer(&mut client);
    assert_eq!((answer.status, answer.text()), (200, "final"));
}

#[test]
fn fields_that_a_route_removes_or_sets_are_removed_from_trailers_of_responses() {
    let service = Upstream::start(|_| {
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\
          X-Internal: secret\r\nX-Set: other\r\nX-Request-Id: 1\r\nServer: evil\r\n\
          RateLimit: \"a\";r=1\r\nStrict-Transport-Security: max-age=0\r\nAccess-Control-Allow-Origin: *\r\nX-Sum: 42\r\n\r\n"
            .to_vec()
    });
    let edits = "auth: none, cors: { origins: [\"https://a.test\"] }, headers: { response: { remove: [X-Internal], set: { X-Set: a } } } }";
    let gateway = Gateway::start("", &open(&service).replace("auth: none }", edits));

    let answer = gateway.get("/", "TE: trailers\r\nConnection: TE\r\n");

    assert_eq!(answer.trailers.to_ascii_lowercase(), "x-sum: 42\r\n");
}

#[test]
fn the_edits_of_a_route_hold_for_responses_of_the_gateways_own() {
    let edits =
        "headers: { response: { set: { X-Set: \"{client_ip}\" }, remove: [X-Gone] } }, auth: none";
    let rest = format!(
        "routes:\n  - {{ id: a, path: /a, respond: {{ headers: {{ X-Gone: a }} }}, {edits} }}\n\
         \x20 - {{ id: b, path: /b, redirect: {{ to: /a }}, {edits} }}\n"
    );
    let gateway = Gateway::start("", &rest);
    for (path, status) in [("/a", 200), ("/b", 308)] {
        let answer = gateway.get(path, "");
        assert_eq!((answer.status, answer.field("x-set")), (status, Some("127.0.0.1")));
        assert_eq!(answer.field("x-gone"), None);
    }
}

#[test]
fn trailers_pass_in_both_directions() {
    let service = Upstream::start(|_| {
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Grpc-Status\r\n\r\n2\r\nok\r\n0\r\n\
          Grpc-Status: 0\r\n\r\n"
            .to_vec()
    });
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();

    client.send(
        "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
         1\r\na\r\n0\r\nX-Sum: 42\r\n\r\n",
    );

    let answer = client.answer();
    assert_eq!((answer.text(), &*answer.trailers), ("ok", "grpc-status: 0\r\n"));
    assert_eq!(service.only().trailers.to_ascii_lowercase(), "x-sum: 42\r\n");
}

/// Skips informational answers.
fn final_answer(client: &mut Client) -> Answer {
    loop {
        let answer = client.answer();
        if answer.status >= 200 {
            return answer;
        }
    }
}
