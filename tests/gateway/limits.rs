//! What a service survives and what a client has bought (behaviour.md §5).

use core::time::Duration;
use std::io::Write;
use std::sync::Mutex;
use std::sync::mpsc::channel;

use northgate::dev::issuer::Mint;

use crate::support::{Gateway, Reading, Upstream, eventually, open, start_issuer};

#[test]
fn a_request_too_many_is_told_when_to_come_back() {
    let service = Upstream::polite();
    let rest = format!(
        "limits:\n  spike: {{ rate: 1/s, burst: 2, by: ip }}\nupstreams:\n  service: {{ targets: [\"{}\"] }}\n\
         routes:\n  - {{ id: a, path: /**, upstream: service, auth: none, limits: [spike] }}\n",
        service.url()
    );
    let gateway = Gateway::start("", &rest);

    let admitted = gateway.get("/", "");
    assert_eq!(admitted.status, 200);
    assert!(admitted.field("ratelimit").is_some_and(|value| value.starts_with("\"spike\";r=1")));
    assert!(admitted.field("ratelimit-policy").is_some());
    assert_eq!(gateway.get("/", "").status, 200);

    for _ in 0..3 {
        let refused = gateway.get("/", "");
        assert_eq!((refused.status, refused.field("retry-after")), (429, Some("1")));
        assert_eq!(refused.problem().as_deref(), Some("limited"));
        assert!(refused.field("ratelimit").is_some_and(|value| value.contains("r=0")));
    }
    // The refused ones have cost nothing.
    gateway.clock.advance(Duration::from_secs(1));
    assert_eq!((gateway.get("/", "").status, gateway.get("/", "").status), (200, 429));
    assert_eq!(service.seen().len(), 3);
}

/// Services differ in which of the values they take for the client's key.
#[test]
fn a_used_up_key_stays_refused_beside_others() {
    let service = Upstream::polite();
    let rest = format!(
        "limits:\n  day: {{ quota: 2/day, by: header:X-Key }}\nupstreams:\n  service: {{ targets: [\"{}\"] }}\n\
         routes:\n  - {{ id: a, path: /**, upstream: service, auth: none, limits: [day] }}\n",
        service.url()
    );
    let gateway = Gateway::start("", &rest);
    let status = |fields: &str| gateway.get("/", fields).status;
    let key = "X-Key: 1\r\n";
    assert_eq!([key; 3].map(status), [200, 200, 429]);

    for other in ["X-Key: 2\r\n", "X-Key: 1\r\n", "X-Key:\r\n", "x_key: 3\r\n", "x.key: 3\r\n"] {
        assert_eq!(status(&format!("{key}{other}")), 400, "{other}");
        assert_eq!(status(&format!("{other}{key}")), 400, "{other}");
    }
    assert_eq!(status("x_key: 1\r\n"), 400);

    assert_eq!(service.seen().len(), 2);
    assert_eq!([status("X-Key: 2\r\n"), status("")], [200, 200]);
}

#[test]
fn spike_arrest_by_address_precedes_token_verification() {
    let (gateway, service, _issuer) = limited("spike: { rate: 1/min, burst: 2, by: ip }", "spike");

    let statuses = [(); 3].map(|()| gateway.get("/", "Authorization: Bearer nonsense\r\n").status);

    assert_eq!(statuses, [401, 401, 429]);
    assert!(service.seen().is_empty());
}

#[test]
fn a_client_is_charged_for_what_it_was_let_in_for_and_for_nothing_else() {
    let (gateway, service, issuer) = limited("daily: { quota: 2/day, by: client }", "daily");
    let token = format!("Authorization: Bearer {}\r\n", issuer.jwt());
    let poor = issuer.mint(&Mint::client("api").scopes("other"));
    let poor = format!("Authorization: Bearer {poor}\r\n");
    let ask = |fields: &str| gateway.get("/", fields).status;

    assert_eq!(ask(&poor), 403);
    assert_eq!(ask("Authorization: Bearer nonsense\r\n"), 401);
    assert_eq!([ask(&token), ask(&token), ask(&token)], [200, 200, 429]);
    assert_eq!(service.seen().len(), 2);

    let other = issuer.mint(&Mint::client("gateway").scopes("orders:read"));
    assert_eq!(ask(&format!("Authorization: Bearer {other}\r\n")), 200, "another client's quota");
}

#[test]
fn a_count_survives_a_reload() {
    let service = Upstream::polite();
    let rest = format!(
        "limits:\n  daily: {{ quota: 1/day, by: ip }}\nupstreams:\n  service: {{ targets: [\"{}\"] }}\n\
         routes:\n  - {{ id: a, path: /**, upstream: service, auth: none, limits: [daily] }}\n",
        service.url()
    );
    let gateway = Gateway::start("", &rest);
    assert_eq!(gateway.get("/", "").status, 200);

    gateway.reload("max_headers: 50", &rest).expect("a good file");

    assert_eq!(gateway.get("/", "").status, 429);
}

#[test]
fn a_number_that_changes_keeps_what_was_used_and_a_limit_that_returns_its_counts() {
    let service = Upstream::polite();
    let rest = |quota: &str| {
        format!(
            "limits:\n  daily: {{ quota: {quota}, by: ip }}\nupstreams:\n  service: {{ targets: [\"{}\"] }}\n\
             routes:\n  - {{ id: a, path: /**, upstream: service, auth: none, limits: [daily] }}\n",
            service.url()
        )
    };
    let gateway = Gateway::start("", &rest("3/day"));
    assert_eq!([(); 2].map(|()| gateway.get("/", "").status), [200, 200]);

    gateway.reload("", &rest("2/day")).expect("a good file");
    assert_eq!(gateway.get("/", "").status, 429);
    let other = rest("2/day").replace("daily", "renamed");
    gateway.reload("", &other).expect("a good file");
    assert_eq!(gateway.get("/", "").status, 200);
    gateway.reload("", &rest("5/day")).expect("a good file");

    let admitted = gateway.get("/", "");
    assert_eq!(admitted.status, 200);
    assert!(
        admitted.field("ratelimit").is_some_and(|left| left.contains("r=2")),
        "{}",
        admitted.head
    );
}

#[test]
fn a_plan_is_what_the_token_says() {
    let plans = "{ claim: plan, values: { free: 2/day, gold: 4/day }, clients: { gateway: free } }";
    let limit = format!("daily: {{ quota: {plans}, by: client }}");
    let (gateway, service, issuer) = limited(&limit, "daily");
    let token = |mint: Mint| format!("Authorization: Bearer {}\r\n", issuer.mint(&mint));
    let api = || Mint::client("api").scopes("orders:read");
    let free = token(api().claim("plan", "free"));
    let gold = token(api().claim("plan", "gold"));

    let admitted = gateway.get("/", &free);
    assert_eq!(admitted.field("ratelimit-policy"), Some("\"daily\";q=2;w=86400"));
    assert_eq!([(); 2].map(|()| gateway.get("/", &free).status), [200, 429]);
    let more = gateway.get("/", &gold);
    assert_eq!((more.status, more.field("ratelimit-policy")), (200, Some("\"daily\";q=4;w=86400")));
    assert!(more.field("ratelimit").is_some_and(|left| left.contains("r=1;")), "{}", more.head);
    assert_eq!([(); 2].map(|()| gateway.get("/", &gold).status), [200, 429]);

    service.forget();
    let none = gateway.get("/", &token(api()));
    assert_eq!((none.status, none.problem().as_deref()), (403, Some("forbidden")));
    assert_eq!(gateway.get("/", &token(api().claim("plan", "silver"))).status, 403);
    assert!(service.seen().is_empty());
    let by_file = token(Mint::client("gateway").scopes("orders:read").claim("plan", "gold"));
    assert_eq!([(); 3].map(|()| gateway.get("/", &by_file).status), [200, 200, 429]);
}

#[test]
fn a_cost_that_a_response_tells_is_charged_with_it() {
    let service = Upstream::start(|seen| {
        let (kind, cost, body) = match seen.target() {
            "/field" => ("text/plain", "X-Cost: 30\r\n", "hello".to_owned()),
            "/json" => ("application/json", "", r#"{"usage":{"total_tokens":50}}"#.to_owned()),
            "/large" => ("application/json", "", format!("\"{}\"", "x".repeat(100_000))),
            _ => ("application/json", "", "{}".to_owned()),
        };
        let length = body.len();
        format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{cost}Content-Length: {length}\r\n\r\n{body}").into()
    });
    let rest = format!(
        "limits:\n  field: {{ quota: 100/day, cost: {{ response_header: X-Cost }} }}\n\
         \x20 json: {{ quota: 100/day, cost: {{ response_json: /usage/total_tokens, max_size: 1KiB, default: 3 }} }}\n\
         upstreams:\n  service: {{ targets: [\"{}\"] }}\n\
         routes:\n  - {{ id: a, path: /**, upstream: service, auth: none, limits: [field, json] }}\n",
        service.url()
    );
    let gateway = Gateway::start("", &rest);
    let left = |path: &str| {
        let answer = gateway.get(path, "Accept-Encoding: gzip\r\nRange: bytes=0-1\r\n");
        assert_eq!(answer.status, 200, "{path}");
        let left = answer.field("ratelimit").expect("a field").to_owned();
        let number = |name: &str| -> u64 {
            let (_, rest) = left.split_once(&format!("\"{name}\";r=")).expect("the limit");
            rest.split([';', ',']).next().and_then(|text| text.parse().ok()).expect("a number")
        };
        (answer.body.len(), number("field"), number("json"))
    };

    assert_eq!(left("/field"), (5, 70, 97));
    assert_eq!(left("/json"), (29, 69, 47));
    assert_eq!(left("/large"), (100_002, 68, 44));
    assert_eq!(left("/none"), (2, 67, 41));
    assert_eq!(left("/json"), (29, 66, 0));
    assert_eq!(gateway.get("/none", "").status, 429, "nine are owed");
    gateway.clock.advance(Duration::from_secs(86_400));
    assert_eq!(left("/none"), (2, 99, 88));
    let seen = service.seen();
    assert!(seen.iter().all(|seen| seen.field("accept-encoding") == Some("identity")));
    assert!(seen.iter().all(|seen| seen.field("range").is_none()));
}

#[test]
fn a_client_that_leaves_is_charged_what_the_content_tells_and_a_drain_waits_for_it() {
    let (tell, told) = channel::<()>();
    let told = Mutex::new(told);
    let service = Upstream::by_hand(move |mut stream, connection, _| {
        let mut reading = Reading::new(&stream);
        while let Some(request) = reading.request(connection) {
            let cost = if request.target() == "/free" { "00" } else { "50" };
            let content = format!("{{\"usage\":{{\"total_tokens\":\"{cost}\"}}}}");
            // The hints reach the client when the gateway has the head that follows them.
            let head = format!(
                "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                content.len()
            );
            stream.write_all(head.as_bytes()).expect("a reader");
            if cost == "50" && told.lock().expect("one").recv().is_err() {
                break;
            }
            let _ = stream.write_all(content.as_bytes());
        }
    });
    let rest = format!(
        "limits:\n  json: {{ quota: 100/day, cost: {{ response_json: /usage/total_tokens }} }}\n{}",
        open(&service).replace("auth: none }", "auth: none, limits: [json] }")
    );
    let gateway = Gateway::start("", &rest);
    let leave = |times: f64| {
        let mut client = gateway.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.answer().status, 103);
        drop(client);
        let gone = "northgate_http_requests_total{route=\"open\",method=\"GET\",code=\"499\"}";
        eventually("the end of the request", || gateway.metric(gone) >= times);
    };
    let left = || {
        let mut client = gateway.connect();
        client.send("GET /free HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.answer().status, 103);
        client.answer().field("ratelimit").expect("a field").to_owned()
    };

    leave(1.0);
    tell.send(()).expect("a service");

    eventually("the charge", || left().starts_with("\"json\";r=50"));
    leave(2.0);
    let drained = gateway.on_control(gateway.launched.server.drain(Duration::from_millis(100)));
    assert!(!drained, "the cost was not told yet");
}

/// A watch, or a long poll: its JSON does not end.
#[test]
fn clients_that_leave_an_endless_response_hold_neither_places_nor_the_service() {
    let (ended, closed) = std::sync::mpsc::channel();
    let service = Upstream::by_hand(move |mut stream, connection, seen| {
        let mut reading = crate::support::Reading::new(&stream);
        while let Some(head) = reading.until(b"\r\n\r\n") {
            seen(crate::support::Seen::head(connection, &head));
            if head.starts_with(b"GET /free") {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                continue;
            }
            let _ = stream.write_all(
                b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n\
                Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n[\r\n",
            );
            while reading.until(b"\n").is_some() {}
            let _ = ended.send(());
        }
    });
    let rest = format!(
        "limits:\n  json: {{ quota: 100/day, cost: {{ response_json: /usage }} }}\n{}",
        open(&service).replace("auth: none }", "auth: none, timeout: 200ms, limits: [json] }")
    );
    let gateway = Gateway::start("max_requests_in_flight: 2", &rest);

    for _ in 0..2 {
        let mut client = gateway.connect();
        client.send("GET /endless HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.answer().status, 103);
        drop(client);
    }

    eventually("a free place", || gateway.get("/free", "").status == 200);
    for _ in 0..2 {
        closed.recv_timeout(Duration::from_secs(20)).expect("the gateway gives the response up");
    }
}

#[test]
fn a_dry_run_refuses_nothing_and_is_in_the_log() {
    let service = Upstream::polite();
    let rest = format!(
        "limits:\n  daily: {{ quota: 1/day, by: ip, dry_run: true }}\nupstreams:\n  service: {{ targets: [\"{}\"] }}\n\
         routes:\n  - {{ id: a, path: /**, upstream: service, auth: none, limits: [daily] }}\n",
        service.url()
    );
    let gateway = Gateway::start("", &rest);

    let answers = [(); 3].map(|()| gateway.get("/", ""));

    assert!(
        answers.iter().all(|answer| answer.status == 200 && answer.field("ratelimit").is_none())
    );
    let counted = |result| {
        gateway.metric(&format!(
            "northgate_limit_decisions_total{{limit=\"daily\",route=\"a\",result=\"{result}\"}}"
        ))
    };
    assert_eq!((counted("allowed"), counted("dry_run"), counted("limited")), (1.0, 2.0, 0.0));
    assert!(gateway.log().contains("dry_run"), "{}", gateway.log());
}

/// A route behind a token and this limit.
fn limited(limit: &str, name: &str) -> (Gateway, Upstream, crate::support::Issuer) {
    let (service, issuer) = (Upstream::polite(), start_issuer());
    let rest = format!(
        "{}limits:\n  {limit}\nupstreams:\n  service: {{ targets: [\"{}\"] }}\nroutes:\n\
         \x20 - {{ id: a, path: /**, upstream: service, auth: {{ jwt: main, scopes: [orders:read] }}, limits: [{name}] }}\n",
        issuer.settings(""),
        service.url()
    );
    (Gateway::at(issuer.clock.clone(), "", &rest).ready(), service, issuer)
}
