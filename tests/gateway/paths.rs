//! The path that chose the route is the path that the service sees, whatever it reads in it (security.md, "Path and
//! route confusion").

use std::io::Write as _;
use std::sync::{Arc, Mutex};

use crate::support::{Answer, Gateway, Http2, Outcome, Reading, Upstream, ok, open};

#[test]
fn every_spelling_of_a_protected_path_is_protected() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &guarded(&service));

    for target in [
        "/admin",
        "/admin/",
        "/admin/users",
        "//admin/users",
        "///admin",
        "/./admin/users",
        "/public/../admin/users",
        "/public/%2e%2e/admin/users",
        "/public/%2E./admin",
        "/%61dmin/users",
        "/adm%69n",
        "/public//../admin",
        "/admin?public",
        "/admin%3Fpublic",
        "/admin?/../public",
        "/x/../admin/./users",
    ] {
        let answer = gateway.get(target, "");
        assert!(matches!(answer.status, 404 | 400), "{target}: {}", answer.status);
    }
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
}

#[test]
fn a_path_that_a_service_could_read_as_another_routes_is_refused() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &guarded(&service));

    for target in [
        "/public/..%2fadmin",
        "/public/..%2Fadmin",
        "/public%2f..%2fadmin",
        "/public/..%5cadmin",
        "/public/..\\admin",
        "/public/..;/admin",
        "/public/..;a=b/admin",
        "/public/%2e%2e;/admin",
        "/public//../admin",
        "/public/x//../../admin",
        "/public/a%2f..%2f..%2fadmin",
        "/public/a%5c..%5c..%5cadmin",
        "/public/..%3b/admin",
        "/public%2fa",
        "/public\\a",
        "//public/a",
    ] {
        assert_eq!(gateway.get(target, "").status, 400, "{target}");
    }
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
    assert!(gateway.log().contains("\"ambiguous-path\""), "{}", gateway.log());
    let refused = "northgate_http_rejections_total{route=\"_none\",reason=\"ambiguous_path\"}";
    assert!(gateway.metric(refused) >= 16.0);
}

/// Frameworks on WSGI and ASGI decode `%2F` and resolve no dot segments: they would run what stands below `/admin`.
#[test]
fn a_path_whose_uncovered_dots_a_service_leaves_passes_no_guarded_route_by() {
    let service = Upstream::polite();
    let rest = guarded(&service).replace("/public/**", "/**");
    let gateway = Gateway::start("", &rest);
    let targets = [
        "/admin%2fwipe%2f..%2f..",
        "/admin%2f..",
        "/admin%2F%2e%2e",
        "/admin%5c..",
        "/%61dmin%2f..",
        "/admin%2fwipe/x%2f..%2f..%2f..",
        "/x/../admin%2f..",
        "/admin;a%2f..",
    ];

    let mut http2 = Http2::connect(&gateway);
    for (target, stream) in targets.into_iter().zip((1..).step_by(2)) {
        assert_eq!(gateway.get(target, "").status, 400, "{target}");
        http2.head(stream, &request_for(target), true);
        assert_eq!(http2.outcome(stream), Outcome::Answered(400), "{target}");
    }

    assert!(service.seen().is_empty(), "{:#?}", service.seen());
    assert_eq!(gateway.get("/public%2f..%2fa", "").status, 200, "the same route in all readings");
}

#[test]
fn a_malformed_path_is_refused_whatever_the_routes() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    for target in [
        "/a%00",
        "/a%0d%0aX-Injected:%201",
        "/a%1f",
        "/a%7F",
        "/%",
        "/%4",
        "/%zz",
        "/..",
        "/../a",
        "/a/../../b",
        "/a/..%2f..%2fb",
        "/..%5cb",
        "/..;/b",
        "/a/..;x/..;y/b",
        "/a//../../b",
        "/%c0%ae%c0%ae/a",
        "/..%c0%afa",
        "/..%e0%80%afa",
    ] {
        assert_eq!(gateway.get(target, "").status, 400, "{target}");
    }
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
}

/// `/v1/orders:wipe` is the route of an operation, as many APIs write it.
#[test]
fn an_escaped_delimiter_passes_no_guarded_route_by() {
    let service = Upstream::polite();
    for delimiter in "!$&'()+,;=:@".chars() {
        let rest = format!(
            "upstreams:\n  service: {{ targets: [\"{}\"] }}\nroutes:\n\
             \x20 - {{ id: all, path: /v1/**, upstream: service, auth: none }}\n\
             \x20 - {{ id: wipe, path: \"/v1/orders{delimiter}wipe\", upstream: service, auth: none, enabled: false }}\n",
            service.url()
        );
        let gateway = Gateway::start("", &rest);
        let (upper, lower) =
            (format!("%{:02X}", delimiter as u8), format!("%{:02x}", delimiter as u8));
        for target in [
            format!("/v1/orders{upper}wipe"),
            format!("/v1/orders{lower}wipe"),
            format!("/v1/orders{upper}%77ipe"),
            format!("/v1/./orders{upper}wip%65"),
            format!("/v1//orders{upper}wipe"),
        ] {
            assert_eq!(gateway.get(&target, "").status, 400, "{target}");
        }
        let unreserved = gateway.get(&format!("/v1/%6Frders{delimiter}%77ipe"), "").status;
        assert!(matches!(unreserved, 404 | 400), "{delimiter}: {unreserved}");
        assert!(service.seen().is_empty(), "{:#?}", service.seen());

        assert_eq!(gateway.get(&format!("/v1/orders{upper}wiped"), "").status, 200);
        assert_eq!(service.only().target(), format!("/v1/orders{upper}wiped"));
        service.forget();
    }
}

/// What clients send: npm, S3 keys, servlets, PromQL, an address in a path.
#[test]
fn a_path_that_is_one_routes_in_every_reading_arrives_byte_for_byte() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    let targets = [
        "/@scope%2fname",
        "/@scope%2Fname/-/name-1.0.0.tgz",
        "/bucket//key//with//empty///segments/",
        "/bucket/a%5Cb\\c",
        "/;jsessionid=1",
        "/app;v=1/;x/a;b",
        "/%61%2D%c3%A9",
        "/a%3ab%40c%2Cd",
        "/a\"b{c}|d^e",
        "/caf%E9/\u{e9}",
        "/%252e%252e%252fa",
        "/proxy/https://example.com/a?b=//c/../d",
        "/api/v1/query?query=up{job=%22a%22}&x={1}|/..",
        "//host/a",
        "/.hidden/...",
    ];

    for target in targets {
        assert_eq!(gateway.get(target, "").status, 200, "{target}");
        assert_eq!(service.only().target(), target);
        service.forget();
    }
    for target in targets {
        let mut http2 = Http2::connect(&gateway);
        http2.head(1, &request_for(target), true);
        assert_eq!(http2.outcome(1), Outcome::Answered(200), "{target}");
        assert_eq!(service.only().target(), target);
        service.forget();
    }
}

/// PromQL, GraphQL, and keys in other encodings, as curl and old clients send them: a type of URIs cannot hold them.
#[test]
fn raw_bytes_that_no_uri_holds_arrive_byte_for_byte() {
    let (service, targets) = keeps_targets();
    let rest = route_to(&service, "/**", "");
    let gateway = Gateway::start("", &rest);

    for target in RAW {
        let answer = send(&gateway, target);
        assert_eq!(answer.status, 200, "{}", target.escape_ascii());
        let sent = targets.lock().expect("no panic").pop();
        // Dot segments are resolved in every target.
        let expected = target.strip_prefix(b"/./x/..").unwrap_or(target);
        assert_eq!(sent.as_deref(), Some(expected));
    }
}

const RAW: &[&[u8]] = &[
    b"/api/v1/query?query=rate(up{job=\"a\"}[5m])>0&x=`y`",
    b"/graphql?query={user(id:\"1\"){name}}",
    b"/a<b>`c\"d",
    b"/caf\xe9/\xff\xfe?\xe9",
    b"/./x/../a<//b>;c?<",
    "/\u{10f73c}?\u{10f73c}".as_bytes(),
    "/%3C<\u{e9}\u{10ffff}".as_bytes(),
];

/// HTTP/2 alike: `:path` has no other grammar than the target of HTTP/1.1.
#[test]
fn raw_bytes_arrive_byte_for_byte_over_http_2() {
    let (service, targets) = keeps_targets();
    let gateway = Gateway::start("", &route_to(&service, "/**", ""));

    for target in RAW {
        // A literal of its own, one that the client's table keeps, and the entry of that table.
        for blocks in [&[&b"\x04"[..]][..], &[b"\x44"], &[b"\x44", b"\xbe"]] {
            let mut http2 = Http2::connect(&gateway);
            for (stream, path) in (1..).step_by(2).zip(blocks) {
                let literal = [&[target.len() as u8], *target].concat();
                let path = if path[0] == 0xbe { path.to_vec() } else { [*path, &literal].concat() };
                http2.block(stream, &[b"\x82\x86\x01\x01a", &*path].concat(), true);
                let outcome = http2.outcome(stream);
                assert_eq!(outcome, Outcome::Answered(200), "{}", target.escape_ascii());
                let expected = target.strip_prefix(b"/./x/..").unwrap_or(target);
                assert_eq!(targets.lock().expect("no panic").pop().as_deref(), Some(expected));
            }
        }
    }
}

/// Clients may split a header block anywhere (RFC 9113 §4.3).
#[test]
fn raw_bytes_arrive_byte_for_byte_in_a_head_of_several_frames() {
    let (service, targets) = keeps_targets();
    let gateway = Gateway::start("", &route_to(&service, "/**", ""));

    for (target, size) in RAW.iter().zip([1, 2, 5, 8, 13].into_iter().cycle()) {
        let mut http2 = Http2::connect(&gateway);
        let block = [&b"\x82\x86\x01\x01a\x04"[..], &[target.len() as u8], target].concat();
        http2.pieces(1, &block, size);
        assert_eq!(http2.outcome(1), Outcome::Answered(200), "{}", target.escape_ascii());
        let expected = target.strip_prefix(b"/./x/..").unwrap_or(target);
        assert_eq!(targets.lock().expect("no panic").pop().as_deref(), Some(expected));
    }
}

/// A raw byte over HTTP/2 is its escape in every reading, and a path that no target may be is answered 400.
#[test]
fn a_raw_byte_passes_no_guarded_route_by_over_http_2() {
    let service = Upstream::polite();
    let guarded =
        "  - { id: less, path: \"/a%3Cb\", upstream: service, auth: none, enabled: false }\n";
    let gateway = Gateway::start("", &(open(&service) + guarded));

    for (target, status) in [
        (&b"/a<b"[..], 404),
        (b"/./a<b", 404),
        (b"/..\xc0\xafa", 400),
        (b"/<\x01", 400),
        (b"/<\x7f", 400),
        (b"/<\r\nx", 400),
        (b"/< HTTP/1.1", 400),
        (b"/..;/<", 400),
        (b"/a#b", 400),
        (b"/a?#", 400),
        (b"/<#b", 400),
        (b"<", 400),
        (b"http://a/<", 400),
    ] {
        for path in [b"\x04", b"\x44"] {
            let mut http2 = Http2::connect(&gateway);
            let literal = [&path[..], &[target.len() as u8], target].concat();
            http2.block(1, &[b"\x82\x86\x01\x01a", &*literal].concat(), true);
            let outcome = http2.outcome(1);
            assert_eq!(outcome, Outcome::Answered(status), "{}", target.escape_ascii());
            let mut http2 = Http2::connect(&gateway);
            http2.pieces(1, &[b"\x82\x86\x01\x01a", &*literal].concat(), 3);
            let outcome = http2.outcome(1);
            assert_eq!(outcome, Outcome::Answered(status), "{}", target.escape_ascii());
        }
    }
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
}

/// Inside the gateway some private-use characters carry raw bytes. A client that sends such a character means it.
#[test]
fn a_clients_private_use_character_is_no_byte_of_the_request_line() {
    let (service, targets) = keeps_targets();
    let gateway = Gateway::start("", &route_to(&service, "/**", ""));

    for byte in [0, 9, 10, 13, 32, 34, 35, 37, 47, 60, 62, 63, 96, 127, 128, 255] {
        let character = char::from_u32(0x10_f700 + byte).expect("a character");
        for target in [format!("/a{character}b"), format!("/?a{character}b")] {
            let mut http2 = Http2::connect(&gateway);
            http2.head(1, &request_for(&target), true);
            assert_eq!(http2.outcome(1), Outcome::Answered(200), "{byte:#x}");
            assert_eq!(targets.lock().expect("no panic").pop().as_deref(), Some(target.as_bytes()));
            assert_eq!(send(&gateway, target.as_bytes()).status, 200, "{byte:#x}");
            assert_eq!(targets.lock().expect("no panic").pop().as_deref(), Some(target.as_bytes()));
        }
    }
}

/// What the gateway resolves or rewrites leaves the other bytes as they are.
#[test]
fn raw_bytes_survive_dot_segments_and_rewrites() {
    let (service, targets) = keeps_targets();
    let strip = route_to(&service, "/api/**", ", rewrite: { strip_prefix: /api, add_prefix: /v1 }");
    let gateway = Gateway::start("", &strip);

    for (target, sent) in [
        (&b"/api/a<b?c=\">`"[..], &b"/v1/a<b?c=\">`"[..]),
        (b"/x/../api/\xe9>//", b"/v1/\xe9>//"),
        (b"/%61pi/`", b"/v1/`"),
    ] {
        assert_eq!(send(&gateway, target).status, 200, "{}", target.escape_ascii());
        assert_eq!(targets.lock().expect("no panic").pop().as_deref(), Some(sent));
    }
}

/// A raw character is its escape in every reading, and an overlong slash is none in any form.
#[test]
fn a_raw_byte_passes_no_guarded_route_by() {
    let service = Upstream::polite();
    let guarded = "  - { id: less, path: \"/a%3Cb\", upstream: service, auth: none, enabled: false }\n\
                   \x20 - { id: latin, path: \"/caf%E9\", upstream: service, auth: none, enabled: false }\n";
    let gateway = Gateway::start("", &(open(&service) + guarded));

    for target in [&b"/a<b"[..], b"/./a<b", b"/a%3cb", b"/caf\xe9", b"/x/../caf\xe9"] {
        assert_eq!(send(&gateway, target).status, 404, "{}", target.escape_ascii());
    }
    for target in
        [&b"/..\xc0\xafa"[..], b"/\xe0\x80\xafa", b"/a/..\\..\\<", b"/<\x01", b"/<\x7f", b"/..;/<"]
    {
        assert_eq!(send(&gateway, target).status, 400, "{}", target.escape_ascii());
    }
    assert_eq!(send(&gateway, &[b"/", &b"<".repeat(30_000)[..]].concat()).status, 414);
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
}

/// A service that keeps the bytes of the targets that it is sent.
fn keeps_targets() -> (Upstream, Arc<Mutex<Vec<Vec<u8>>>>) {
    let targets = Arc::<Mutex<Vec<Vec<u8>>>>::default();
    let kept = Arc::clone(&targets);
    let service = Upstream::by_hand(move |mut stream, _, _| {
        let mut reading = Reading::new(&stream);
        while let Some(head) = reading.until(b"\r\n\r\n") {
            let target = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default().to_vec();
            kept.lock().expect("no panic").push(target);
            if stream.write_all(&ok("fine")).is_err() {
                return;
            }
        }
    });
    (service, targets)
}

fn route_to(service: &Upstream, path: &str, more: &str) -> String {
    format!(
        "upstreams:\n  service: {{ targets: [\"{}\"] }}\nroutes:\n  - {{ id: all, path: \"{path}\", upstream: service, auth: none{more} }}\n",
        service.url()
    )
}

fn send(gateway: &Gateway, target: &[u8]) -> Answer {
    let mut client = gateway.connect();
    client.send([b"GET ", target, b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat());
    client.answer()
}

#[test]
fn dot_segments_are_resolved_and_nothing_else_is_touched() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &guarded(&service));

    for (target, sent) in [
        ("/public/%61", "/public/%61"),
        ("/public//a/./b/../c", "/public//a/c"),
        ("/x/../public/a", "/public/a"),
        ("/x/%2e%2E/%70ublic/a/.", "/%70ublic/a/"),
        ("/public/a%20b?q=%2F..%2F&r=a//b", "/public/a%20b?q=%2F..%2F&r=a//b"),
        ("/public/%c3%a9", "/public/%c3%a9"),
        ("http://evil/public/a", "/public/a"),
    ] {
        assert_eq!(gateway.get(target, "").status, 200, "{target}");
        assert_eq!(service.only().target(), sent, "{target}");
        service.forget();
    }
}

/// A target that a transformation would make longer than the gateway takes is never sent, or matched, as it was.
#[test]
fn a_large_target_switches_nothing_off() {
    let service = Upstream::polite();
    let rest = format!(
        "upstreams:\n  service: {{ targets: [\"{}\"] }}\nroutes:\n\
         \x20 - {{ id: all, path: /**, upstream: service, auth: none }}\n\
         \x20 - {{ id: admin, path: /admin/**, upstream: service, auth: none, enabled: false }}\n\
         \x20 - {{ id: strip, path: /strip/**, upstream: service, auth: none, rewrite: {{ strip_prefix: /strip }} }}\n\
         \x20 - {{ id: add, path: /add/**, upstream: service, auth: none, rewrite: {{ add_prefix: /prefix }} }}\n\
         \x20 - {{ id: whole, path: \"/user/{{name}}\", upstream: service, auth: none, rewrite: {{ path: \"/a/much/longer/{{name}}\" }} }}\n",
        service.url()
    );
    let gateway = Gateway::start("max_header_size: 1MiB", &rest);
    let filled = |start: &str, unit: &str, length: usize| {
        format!("{start}{}", unit.repeat((length - start.len()) / unit.len()))
    };

    for (start, status) in [
        ("/%61dmin/secret/", 404),
        ("/public/../admin;", 400),
        ("/public/../admin/", 404),
        ("/public/%2e%2e/admin/x", 404),
        ("http://h/%61dmin/", 404),
        ("/add/", 414),
        ("/user/", 414),
        ("/add/x?", 414),
    ] {
        for unit in ["{", "a", "\u{e9}"] {
            let target = filled(start, unit, 65_530);
            assert_eq!(gateway.get(&target, "").status, status, "{start} {unit}");
            assert!(service.seen().is_empty(), "{start} {unit}");
        }
    }
    for start in ["/", "/strip/", "/admin/", "/?", "http://h/", "http://h/?", "/a?b/../"] {
        for length in [65_535, 65_536, 70_000, 200_000] {
            let target = filled(start, "a", length);
            assert_eq!(gateway.get(&target, "").status, 414, "{start} {length}");
        }
    }
    assert!(service.seen().is_empty());
    let target = filled("/strip/", "{", 65_530);
    assert_eq!(gateway.get(&target, "").status, 200);
    assert_eq!(service.only().target(), &target["/strip".len()..]);
    service.forget();

    let mut http2 = Http2::connect(&gateway);
    http2.head(1, &request_for(&filled("/add/", "a", 65_530)), true);
    assert_eq!(http2.outcome(1), Outcome::Answered(414));
    let mut http2 = Http2::connect(&gateway);
    http2.head(1, &request_for(&filled("/%61dmin/", "{", 65_530)), true);
    assert_eq!(http2.outcome(1), Outcome::Answered(404));
    let mut http2 = Http2::connect(&gateway);
    http2.head(1, &request_for(&filled("/", "a", 70_000)), true);
    assert_ne!(http2.outcome(1), Outcome::Answered(200));
    assert!(service.seen().is_empty());
}

/// Servlet containers cut parameters off before they look at a path.
#[test]
fn parameters_do_not_hide_a_protected_path() {
    let service = Upstream::polite();
    let rest = format!(
        "upstreams:\n  service: {{ targets: [\"{}\"] }}\nroutes:\n\
         \x20 - {{ id: all, path: /**, upstream: service, auth: none }}\n\
         \x20 - {{ id: admin, path: /admin/**, upstream: service, auth: none, enabled: false }}\n",
        service.url()
    );
    let gateway = Gateway::start("", &rest);

    for target in [
        "/admin;x",
        "/admin;x=y/users",
        "/admin%3Bx/users",
        "/admin;/users",
        "/admin;%2e/a",
        "/;x/admin",
        "/x/..;/admin",
    ] {
        assert_eq!(gateway.get(target, "").status, 400, "{target}");
    }
    assert_eq!(gateway.get("/admin/users;x", "").status, 404);
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
    assert_eq!(gateway.get("/orders;v=1/a;b", "").status, 200);
    assert_eq!(service.only().target(), "/orders;v=1/a;b");
}

/// CVE-2026-26205: the first segment is never taken for an authority.
#[test]
fn a_path_that_begins_with_two_slashes_names_no_host() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &guarded(&service));

    assert_eq!(gateway.get("//evil.test/public/a", "").status, 404);
    assert!(service.seen().is_empty());
}

/// CVE-2026-40912, CVE-2026-48020: a prefix is cut off the normal form, at a segment's end.
#[test]
fn a_rewritten_path_cannot_leave_its_place() {
    let service = Upstream::polite();
    let rest = format!(
        "upstreams:\n  service: {{ targets: [\"{}\"] }}\nroutes:\n\
         \x20 - {{ id: strip, path: /api/**, upstream: service, auth: none, rewrite: {{ strip_prefix: /api, add_prefix: /v1 }} }}\n\
         \x20 - {{ id: whole, path: \"/user/{{name}}\", upstream: service, auth: none, rewrite: {{ path: \"/people/{{name}}\" }} }}\n",
        service.url()
    );
    let gateway = Gateway::start("", &rest);

    for (target, sent) in [
        ("/api/a", "/v1/a"),
        ("/%61pi/a%20b", "/v1/a%20b"),
        ("/api/@scope%2fname", "/v1/@scope%2fname"),
        ("/api//a", "/v1//a"),
        ("/api/a\\b;c//d", "/v1/a\\b;c//d"),
        ("/api/b/../a?x=1", "/v1/a?x=1"),
        ("/user/a%20b?x", "/people/a%20b?x"),
        ("/user/%61", "/people/%61"),
    ] {
        let before = service.seen().len();
        assert_eq!(gateway.get(target, "").status, 200, "{target}");
        assert_eq!(service.seen()[before].target(), sent, "{target}");
    }
    let before = service.seen().len();
    for target in [
        "/api../a",
        "/apix/a",
        "/api/../secret",
        "/api/%2e%2e/secret",
        "/api/..%2fsecret",
        "/api/..%2fapi/secret",
        "/api/..;/api/secret",
        "/api/..\\api\\secret",
        "/user/a%2fb",
        "/user/a\\b",
        "/user/%0d%0a",
    ] {
        let status = gateway.get(target, "").status;
        assert!(matches!(status, 400 | 404), "{target}: {status}");
    }
    assert_eq!(service.seen().len(), before);
}

/// All paths are open except those below `/admin`, which are closed to all callers.
fn guarded(service: &Upstream) -> String {
    format!(
        "upstreams:\n  service: {{ targets: [\"{}\"] }}\nroutes:\n\
         \x20 - {{ id: public, path: /public/**, upstream: service, auth: none }}\n\
         \x20 - {{ id: admin, path: /admin/**, upstream: service, auth: none, enabled: false }}\n",
        service.url()
    )
}

/// The head of a GET over HTTP/2.
fn request_for(target: &str) -> [(&str, &str); 4] {
    [(":method", "GET"), (":scheme", "http"), (":authority", "h"), (":path", target)]
}
