//! Which route a request takes, by what of it, and what the route's answers say.

use crate::support::{Answer, Gateway, Http2, Outcome, Upstream, ok};

#[test]
fn head_goes_where_it_is_named_and_else_where_get_goes_whatever_the_order() {
    let get = "  - { id: get, path: /a, methods: [GET], respond: { status: 200 }, auth: none }\n";
    let head =
        "  - { id: head, path: /a, methods: [HEAD], respond: { status: 403 }, auth: none }\n";
    let post =
        "  - { id: post, path: /a, methods: [POST], respond: { status: 202 }, auth: none }\n";
    for (routes, status) in [
        ([get, head], 403),
        ([head, get], 403),
        ([get, post], 200),
        ([post, get], 200),
        ([post, head], 403),
    ] {
        let gateway = Gateway::start("", &format!("routes:\n{}", routes.concat()));
        assert_eq!(answer_to(&gateway, "HEAD", "/a", "").status, status, "{routes:?}");
    }
}

#[test]
fn a_route_is_chosen_by_the_fields_that_its_service_sees() {
    let rest = "routes:\n\
        \x20 - { id: inner, path: /**, match_headers: { X-Forwarded-For: { regex: \"10[.].*\" } }, respond: { status: 299 }, auth: none }\n\
        \x20 - { id: secure, path: /s/**, match_headers: { X-Forwarded-Proto: https }, respond: { status: 299 }, auth: none }\n\
        \x20 - { id: plain, path: /s/**, match_headers: { X-Forwarded-Proto: http }, respond: { status: 298 }, auth: none }\n\
        \x20 - { id: scopes, path: /i/**, match_headers: { X-Auth-Scopes: admin }, respond: { status: 299 }, auth: none }\n\
        \x20 - { id: user, path: /u/**, match_headers: { Remote-User: root }, respond: { status: 299 }, auth: none }\n\
        \x20 - { id: hop, path: /h/**, match_headers: { X-Hop: a }, respond: { status: 299 }, auth: none }\n\
        \x20 - { id: id, path: /r/**, match_headers: { X-Request-Id: a }, respond: { status: 299 }, auth: none }\n\
        \x20 - { id: socket, path: /w/**, match_headers: { Upgrade: websocket }, respond: { status: 299 }, auth: none }\n\
        \x20 - { id: rest, path: /**, respond: { status: 200 }, auth: none }\n\
        \x20 - { id: rests, path: [/i/**, /u/**, /h/**, /r/**, /w/**], respond: { status: 200 }, auth: none }\n";
    let stranger = Gateway::start("", rest);
    let proxy = Gateway::start("trusted_proxies: [127.0.0.0/8]", rest);
    let status = |gateway: &Gateway, path, fields| answer_to(gateway, "GET", path, fields).status;

    for (path, fields) in [
        ("/", "X-Forwarded-For: 10.1.1.1\r\n"),
        ("/", "x_forwarded_for: 10.1.1.1\r\n"),
        ("/i/", "X-Auth-Scopes: admin\r\n"),
        ("/u/", "Remote-User: root\r\n"),
        ("/h/", "X-Hop: a\r\nConnection: x-hop\r\n"),
        ("/r/", "X-Request-Id: a\r\n"),
        ("/w/", "Upgrade: websocket\r\n"),
    ] {
        assert_eq!(status(&stranger, path, fields), 200, "{fields}");
    }
    assert_eq!(status(&stranger, "/s/", "X-Forwarded-Proto: https\r\n"), 298);
    assert_eq!(status(&stranger, "/h/", "X-Hop: a\r\n"), 299);
    assert_eq!(status(&stranger, "/w/", "Upgrade: websocket\r\nConnection: upgrade\r\n"), 299);
    assert_eq!(status(&proxy, "/", "X-Forwarded-For: 10.1.1.1\r\n"), 299);
    assert_eq!(status(&proxy, "/s/", "X-Forwarded-Proto: https\r\n"), 299);
    assert_eq!(status(&proxy, "/s/", "X-Forwarded-Proto: wss\r\n"), 299);
    assert_eq!(status(&proxy, "/s/", "X-Forwarded-Proto: ws\r\n"), 298);
    assert_eq!(status(&proxy, "/u/", "Remote-User: root\r\n"), 299);
    assert_eq!(status(&proxy, "/i/", "X-Auth-Scopes: admin\r\n"), 200);
}

/// Services differ in which of the values they use, and in the spellings that they know.
#[test]
fn a_field_that_is_read_in_two_ways_passes_by_no_route() {
    let service = Upstream::polite();
    let rest = format!(
        "upstreams:\n  service: {{ targets: [\"{}\"] }}\nroutes:\n\
         \x20 - {{ id: guard, path: /**, match_headers: {{ X-Action: wipe }}, respond: {{ status: 403 }}, auth: none }}\n\
         \x20 - {{ id: open, path: /**, upstream: service, auth: none }}\n",
        service.url()
    );
    let gateway = Gateway::start("", &rest);

    for fields in [
        &[("x-action", "wipe"), ("x-action", "a")][..],
        &[("x-action", "a"), ("x-action", "wipe")],
        &[("x-action", "wipe"), ("x-action", "")],
        &[("x-action", "a"), ("x-action", "wipe"), ("x-action", "b")],
        &[("x_action", "wipe")],
        &[("x-action", "a"), ("x_action", "wipe")],
    ] {
        let lines = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        let answer = answer_to(&gateway, "GET", "/", &lines.collect::<String>());
        assert_eq!((answer.status, answer.problem().as_deref()), (400, Some("ambiguous-field")));
        let mut http2 = Http2::connect(&gateway);
        let get = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")];
        http2.head(1, &[&get[..], fields].concat(), true);
        assert_eq!(http2.outcome(1), Outcome::Answered(400), "{fields:?}");
    }
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
    assert_eq!(answer_to(&gateway, "GET", "/", "X-Action: wipe\r\n").status, 403);
    for fields in ["", "X-Action: a\r\n", "X-Action: a\r\nX-Action: b\r\n", "X-B: 1\r\nX-B: 2\r\n"]
    {
        assert_eq!(answer_to(&gateway, "GET", "/", fields).status, 200, "{fields}");
    }
}

/// Browsers apply a cached grant to all later requests to the URL, whatever route these take.
#[test]
fn a_preflight_grants_nothing_that_another_route_of_the_url_refuses() {
    let route = |id: &str, path: &str, taken: &str, cors: &str| {
        format!(
            "  - {{ id: {id}, path: {path}, {taken}respond: {{ status: 200 }}, auth: none, cors: {{ {cors} }} }}\n"
        )
    };
    let both = "origins: [\"https://a.test\", \"https://b.test\"], headers: [x-a], ";
    let rest = [
        "routes:\n".to_owned(),
        route("read", "/d", "", &format!("{both} methods: [GET, PUT, DELETE]")),
        route(
            "write",
            "/d",
            "methods: [DELETE], ",
            "origins: [\"https://b.test\"], methods: [DELETE]",
        ),
        route("get", "/e", "methods: [GET], ", &format!("{both} methods: [GET, PUT]")),
        route("put", "/e", "methods: [PUT], ", &format!("{both} methods: [PUT]")),
        route("post", "/e", "methods: [POST], ", &format!("{both} methods: [POST]")),
        route("plain", "/f", "", &format!("{both} methods: [GET, PUT]")),
        route("tenant", "/f", "match_headers: { x-a: a }, ", &format!("{both} methods: [GET]")),
        route("alone", "/g", "", &format!("{both} methods: [GET, PUT]")),
    ];
    let gateway = Gateway::start("", &rest.concat());
    let granted = |path: &str, method: &str, names: &str| {
        let fields = format!(
            "Origin: https://a.test\r\nAccess-Control-Request-Method: {method}\r\n\
             Access-Control-Request-Headers: {names}\r\n"
        );
        let answer = answer_to(&gateway, "OPTIONS", path, &fields);
        let field = |name: &str| answer.field(name).unwrap_or_default().to_owned();
        assert_eq!(field("access-control-allow-origin"), "https://a.test", "{path} {method}");
        ["methods", "headers"]
            .map(|list| field(&format!("access-control-allow-{list}")))
            .into_iter()
            .chain([field("access-control-max-age")])
            .collect::<Vec<_>>()
    };

    // Another origin's route: for this one request.
    assert_eq!(granted("/d", "GET", "x-a"), ["GET", "x-a", "0"]);
    assert_eq!(granted("/d", "PUT", "x-b"), ["PUT", "", "0"]);
    // The same grants but for the method.
    assert_eq!(granted("/e", "GET", "x-a"), ["GET", "x-a", "600"]);
    assert_eq!(granted("/e", "PUT", "x-a"), ["PUT", "x-a", "600"]);
    // With the field, which may be set afterwards, it would be a route that does not allow PUT.
    assert_eq!(granted("/f", "PUT", ""), ["PUT", "", "0"]);
    assert_eq!(granted("/f", "GET", ""), ["GET", "x-a", "600"]);
    assert_eq!(granted("/g", "GET", ""), ["GET, PUT", "x-a", "600"]);
}

#[test]
fn a_preflight_is_granted_by_the_route_of_the_request_it_asks_about_alone() {
    let cors = |origin: &str, more: &str| {
        format!(
            "cors: {{ origins: \"https://{origin}.test\", methods: [GET, PUT, DELETE], headers: [x-tenant, x-b]{more} }}"
        )
    };
    let rest = format!(
        "routes:\n\
         \x20 - {{ id: read, path: /a, methods: [GET], respond: {{ status: 200 }}, auth: none, {} }}\n\
         \x20 - {{ id: write, path: /a, methods: [PUT], respond: {{ status: 200 }}, auth: none, {} }}\n\
         \x20 - {{ id: remove, path: /a, methods: [DELETE], respond: {{ status: 200 }}, auth: none }}\n\
         \x20 - {{ id: options, path: /a, methods: [OPTIONS], respond: {{ status: 200 }}, auth: none, {} }}\n\
         \x20 - {{ id: tenant, path: /t, match_headers: {{ x-tenant: a }}, respond: {{ status: 200 }}, auth: none, {} }}\n\
         \x20 - {{ id: others, path: /t, respond: {{ status: 200 }}, auth: none, {} }}\n\
         \x20 - {{ id: off, path: /off, respond: {{ status: 200 }}, auth: none, enabled: false, {} }}\n",
        cors("one", ""),
        cors("two", ""),
        cors("one", ""),
        cors("one", ", credentials: true"),
        cors("two", ""),
        cors("one", ""),
    );
    let gateway = Gateway::start("", &rest);
    let granted = |path: &str, origin: &str, method: &str, headers: &str| {
        let fields = format!(
            "Origin: https://{origin}.test\r\nAccess-Control-Request-Method: {method}\r\n{headers}"
        );
        let answer = answer_to(&gateway, "OPTIONS", path, &fields);
        answer.field("access-control-allow-origin").is_some()
    };

    assert!(granted("/a", "one", "GET", "") && !granted("/a", "two", "GET", ""));
    assert!(granted("/a", "two", "PUT", "") && !granted("/a", "one", "PUT", ""));
    assert!(!granted("/a", "one", "DELETE", "") && !granted("/a", "two", "DELETE", ""));
    assert!(!granted("/a", "one", "delete", "") && !granted("/a", "one", "PATCH", ""));
    // Without the field the request takes the route that asks for none; with it, either.
    assert!(granted("/t", "two", "GET", "") && !granted("/t", "one", "GET", ""));
    let names = "Access-Control-Request-Headers: x-b, X-Tenant\r\n";
    assert!(!granted("/t", "two", "GET", names) && !granted("/t", "one", "GET", names));

    let off = "Origin: https://one.test\r\nAccess-Control-Request-Method: GET\r\n";
    assert_eq!(answer_to(&gateway, "OPTIONS", "/off", off).status, 404);
}

#[test]
fn a_route_that_is_switched_off_is_not_there_before_anything_is_asked() {
    let rest = "limits:\n  none: { rate: 1/day, burst: 1, by: global }\nissuers:\n\
        \x20 main: { issuer: \"http://127.0.0.1:1\", audience: \"https://api\" }\nroutes:\n\
        \x20 - { id: off, path: /off, respond: { status: 200 }, auth: { jwt: main }, enabled: false, limits: [none], cors: { origins: \"*\", methods: [GET] } }\n";
    let gateway = Gateway::start("", rest);

    for (method, fields) in [
        ("GET", ""),
        ("GET", ""),
        ("GET", "Authorization: Bearer a.b.c\r\n"),
        ("POST", "Content-Length: 99999999\r\n"),
        ("OPTIONS", "Origin: https://a.test\r\nAccess-Control-Request-Method: GET\r\n"),
    ] {
        let answer = answer_to(&gateway, method, "/off", fields);
        assert_eq!(
            (answer.status, answer.problem().as_deref()),
            (404, Some("no-route")),
            "{fields}"
        );
        assert_eq!(answer.field("access-control-allow-origin"), None);
    }
}

#[test]
fn known_methods_in_other_letters_are_refused() {
    let service = Upstream::polite();
    let rest = format!(
        "upstreams:\n  service: {{ targets: [\"{}\"] }}\nroutes:\n\
         \x20 - {{ id: all, path: /**, upstream: service, auth: none }}\n\
         \x20 - {{ id: guarded, path: /**, methods: [DELETE, PROPFIND], upstream: service, auth: none, enabled: false }}\n",
        service.url()
    );
    let gateway = Gateway::start("", &rest);

    for method in ["delete", "Delete", "DELETe", "get", "Get", "propfind", "trace", "hEAD"] {
        assert_eq!(answer_to(&gateway, method, "/a", "").status, 400, "{method}");
        let mut http2 = Http2::connect(&gateway);
        let head = [(":method", method), (":scheme", "http"), (":authority", "h"), (":path", "/a")];
        http2.head(1, &head, true);
        assert_eq!(http2.outcome(1), Outcome::Answered(400), "{method}");
    }
    assert!(service.seen().is_empty());
    assert_eq!(answer_to(&gateway, "REPORT", "/a", "").status, 200);
}

#[test]
fn no_answer_to_head_has_content() {
    let rest = "routes:\n\
        \x20 - { id: a, path: /a, respond: { status: 200, body: hello }, auth: none }\n\
        \x20 - { id: b, path: /b, methods: [POST], respond: { status: 200, body: hello }, auth: none }\n\
        \x20 - { id: c, path: /c, redirect: { to: /a }, auth: none }\n";
    let gateway = Gateway::start("", rest);

    for (path, status) in [("/a", 200), ("/b", 405), ("/none", 404), ("/%zz", 400), ("/c", 308)] {
        let mut client = gateway.connect();
        client.send(format!("HEAD {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"));
        let answer = client.answer_without_body();
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(client.rest(), b"", "{path}");
        if path == "/a" {
            assert_eq!(answer.field("content-length"), Some("5"));
        }
        let mut http2 = Http2::connect(&gateway);
        let head = [(":method", "HEAD"), (":scheme", "http"), (":authority", "h"), (":path", path)];
        http2.head(1, &head, true);
        assert_eq!(http2.outcome_and_end(1), (Outcome::Answered(status), true), "{path}");
    }
}

#[test]
fn hosts_that_are_ipv6_addresses_are_compared_as_addresses() {
    let rest = "routes:\n\
        \x20 - { id: own, host: \"[2001:DB8:0:0::1]\", path: /**, respond: { status: 299 }, auth: none }\n\
        \x20 - { id: rest, path: /**, respond: { status: 200 }, auth: none }\n";
    let gateway = Gateway::start("", rest);

    for (host, status) in [
        ("[2001:db8::1]", 299),
        ("[2001:DB8::1]:8443", 299),
        ("[2001:0db8:0000:0000:0000:0000:0000:0001]", 299),
        ("[2001:db8::0.0.0.1]", 299),
        ("[2001:db8::2]", 200),
        ("[2001:db8::1", 400),
        ("[2001:db8::1%25eth0]", 400),
    ] {
        let answer = gateway.ask(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(answer.status, status, "{host}");
    }
    let mut http2 = Http2::connect(&gateway);
    let head = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "[2001:db8::1]"),
        (":path", "/"),
        ("host", "[2001:db8:0::1]"),
    ];
    http2.head(1, &head, true);
    assert_eq!(http2.outcome(1), Outcome::Answered(299));
}

#[test]
fn a_limit_of_get_counts_head_too() {
    let rest = "limits:\n  reads: { quota: 2/hour, by: ip, methods: [GET] }\nroutes:\n\
        \x20 - { id: a, path: /a, respond: { status: 200 }, auth: none, limits: [reads] }\n";
    let gateway = Gateway::start("", rest);

    let statuses = ["HEAD", "GET", "HEAD", "GET", "POST"]
        .map(|method| answer_to(&gateway, method, "/a", "").status);

    assert_eq!(statuses, [200, 200, 429, 429, 200]);
}

/// One request must not shut all others out, whatever it says of its size.
#[test]
fn a_request_that_is_too_large_is_charged_to_no_limit() {
    let service = Upstream::polite();
    let rest = format!(
        "limits:\n  bytes: {{ rate: 1000/s, by: global, cost: request_size/1 }}\n\
         upstreams:\n  service: {{ targets: [\"{}\"] }}\nroutes:\n\
         \x20 - {{ id: bounded, path: /a, upstream: service, auth: none, limits: [bytes], max_body_size: 1KiB }}\n",
        service.url()
    );
    let gateway = Gateway::start("", &rest);

    for length in ["1025", "99999999999", "18446744073709551615"] {
        let fields = format!("Content-Length: {length}\r\n");
        assert_eq!(answer_to(&gateway, "POST", "/a", &fields).status, 413, "{length}");
    }
    assert_eq!(answer_to(&gateway, "POST", "/a", "").status, 200);
}

#[test]
fn on_a_route_with_cors_the_services_own_word_on_origins_is_taken_away() {
    let service = Upstream::start(|_| {
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nAccess-Control-Allow-Origin: https://evil.test\r\n\
          Access-Control-Allow-Credentials: true\r\nAccess-Control-Expose-Headers: X-Secret\r\n\
          Access-Control-Allow-Private-Network: true\r\nX-A: b\r\n\r\n"
            .to_vec()
    });
    let rest = format!(
        "upstreams:\n  service: {{ targets: [\"{}\"] }}\nroutes:\n\
         \x20 - {{ id: cors, path: /cors, upstream: service, auth: none, cors: {{ origins: \"https://app.test\", methods: [GET] }} }}\n\
         \x20 - {{ id: plain, path: /plain, upstream: service, auth: none }}\n",
        service.url()
    );
    let gateway = Gateway::start("", &rest);
    let own = |answer: &Answer| answer.head.to_ascii_lowercase().matches("access-control-").count();

    let evil = answer_to(&gateway, "GET", "/cors", "Origin: https://evil.test\r\n");
    assert_eq!((evil.status, own(&evil), evil.field("x-a")), (200, 0, Some("b")), "{}", evil.head);
    let app = answer_to(&gateway, "GET", "/cors", "Origin: https://app.test\r\n");
    assert_eq!(app.fields("access-control-allow-origin"), ["https://app.test"]);
    assert_eq!(own(&app), 1, "{}", app.head);
    assert_eq!(own(&answer_to(&gateway, "GET", "/plain", "")), 4);
}

#[test]
fn identity_fields_of_clients_reach_no_upstream() {
    let service = Upstream::start(|_| ok(""));
    let rest = crate::support::open(&service);
    let fields = "Remote_User: root\r\nX-WebAuth-User: root\r\nX-Auth-Request-Groups: admin\r\n\
                  X-HTTP-Method-Override: DELETE\r\nTrue.Client.IP: 127.0.0.1\r\nX-Client-Id: stays\r\n";

    let gateway = Gateway::start("", &rest);
    assert_eq!(answer_to(&gateway, "GET", "/", fields).status, 200);
    let seen = service.only();
    for name in [
        "remote_user",
        "x-webauth-user",
        "x-auth-request-groups",
        "x-http-method-override",
        "true.client.ip",
    ] {
        assert_eq!(seen.field(name), None, "{name}");
    }
    assert_eq!(seen.field("x-client-id"), Some("stays"));
    service.forget();
    let behind = Gateway::start("trusted_proxies: [127.0.0.0/8]", &rest);
    assert_eq!(answer_to(&behind, "GET", "/", fields).status, 200);
    assert_eq!(service.only().field("x-webauth-user"), Some("root"));
}

fn answer_to(gateway: &Gateway, method: &str, path: &str, fields: &str) -> Answer {
    let mut client = gateway.connect();
    client.send(format!("{method} {path} HTTP/1.1\r\nHost: api.test\r\n{fields}\r\n"));
    if method == "HEAD" { client.answer_without_body() } else { client.answer() }
}
