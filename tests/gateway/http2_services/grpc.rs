//! gRPC: the four shapes, deadlines, cancellation, and refusals that its clients understand.

use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use core::time::Duration;
use std::sync::{Arc, Mutex};

use http::{Request, Response};
use tokio::time::Instant;

use super::{always, echo, with};
use crate::support::{
    Gateway, Http2Client, Http2Service, drain, eventually, raw_service, read, request_arrived,
    start_issuer, trailers, try_read,
};

#[test]
fn a_unary_call_arrives_with_its_metadata_and_returns_its_status() {
    let seen = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&seen);
    let service = Http2Service::start(100, move |mut call| {
        let kept = Arc::clone(&kept);
        async move {
            *kept.lock().expect("a lock") = Some(call.head.clone());
            call.read().await;
            let response = Response::builder()
                .header("content-type", "application/grpc")
                .header("x-initial-bin", "AAEC")
                .body(())
                .expect("a response");
            let mut stream = call.respond.send_response(response, false).expect("open");
            let mut trailers = trailers(5);
            trailers.insert("grpc-message", "not%20here".parse().expect("a value"));
            trailers.insert("x-trailing-bin", "//79".parse().expect("a value"));
            stream.send_data("answer".into(), false).expect("open");
            stream.send_trailers(trailers).expect("open");
        }
    });
    let gateway = Gateway::start("", &always(&service.url()));

    let call = Http2Client::run(&gateway, async |client| {
        client.unary("/shop.Orders/Get", &[("x-key-bin", "AQI=")], "question").await
    });

    assert_eq!((call.http, &*call.content, call.code), (200, &b"answer"[..], Some(5)));
    assert_eq!(call.head["x-initial-bin"], "AAEC");
    let ends = call.trailers.expect("trailers");
    assert_eq!(
        (&ends["grpc-message"], &ends["x-trailing-bin"]),
        (&"not%20here".parse().unwrap(), &"//79".parse().unwrap())
    );
    let head = seen.lock().expect("a lock").take().expect("a request");
    assert_eq!(head.uri.to_string(), format!("{}/shop.Orders/Get", service.url()));
    assert_eq!(
        (head.headers["te"].as_bytes(), head.headers["x-key-bin"].as_bytes()),
        (&b"trailers"[..], &b"AQI="[..])
    );
    assert!(head.headers.contains_key("x-request-id") && !head.headers.contains_key("host"));
}

#[test]
fn messages_go_both_ways_at_the_same_time() {
    // Responds before the request has ended, and echoes each message at once.
    let service = Http2Service::start(100, async |mut call| {
        let response = Response::builder().header("content-type", "application/grpc");
        let mut stream =
            call.respond.send_response(response.body(()).expect("valid"), false).expect("open");
        while let Some(Ok(message)) = call.body.data().await {
            let _ = call.body.flow_control().release_capacity(message.len());
            stream.send_data(message, false).expect("open");
        }
        assert_eq!(call.body.trailers().await.expect("trailers").expect("some")["x-sum"], "3");
        stream.send_trailers(trailers(0)).expect("open");
    });
    let gateway = Gateway::start("", &always(&service.url()));

    Http2Client::run(&gateway, async |client| {
        let (response, mut sending) = client.call("/chat", &[]).await;
        let mut body = response.await.expect("a head before the end of the request").into_body();
        for message in ["one", "two", "three"] {
            sending.send_data(message.into(), false).expect("open");
            assert_eq!(body.data().await.expect("an echo").expect("whole"), message);
        }
        let mut ends = http::HeaderMap::new();
        ends.insert("x-sum", "3".parse().expect("a value"));
        sending.send_trailers(ends).expect("open");
        let (_, trailers) = read(&mut body).await;
        assert_eq!(trailers.expect("trailers")["grpc-status"], "0");
    });
}

#[test]
fn many_messages_are_answered_by_one_and_one_by_many() {
    let service = Http2Service::start(100, async |mut call| {
        let (content, _) = call.read().await;
        if call.head.uri.path() == "/upload" {
            return call.answer(&content.len().to_string());
        }
        let response = Response::builder().header("content-type", "application/grpc");
        let mut stream =
            call.respond.send_response(response.body(()).expect("valid"), false).expect("open");
        for _ in 0..100 {
            stream.send_data("0123456789".into(), false).expect("open");
        }
        stream.send_trailers(trailers(0)).expect("open");
    });
    let gateway = Gateway::start("", &always(&service.url()));

    Http2Client::run(&gateway, async |client| {
        let (response, mut sending) = client.call("/upload", &[]).await;
        for n in 0..100 {
            sending.send_data("0123456789".into(), n == 99).expect("open");
        }
        let (content, _) = read(response.await.expect("a response").body_mut()).await;
        assert_eq!(content, b"1000");

        let download = client.unary("/download", &[], "go").await;
        assert_eq!((download.content.len(), download.code), (1000, Some(0)));
    });
}

#[test]
fn a_deadline_ends_a_call_that_has_no_response_and_one_that_streams() {
    let reset = Arc::new(AtomicUsize::new(0));
    let timeouts = Arc::new(Mutex::new(Vec::new()));
    let (resets, seen) = (Arc::clone(&reset), Arc::clone(&timeouts));
    let service = Http2Service::start(100, move |mut call| {
        let (resets, seen) = (Arc::clone(&resets), Arc::clone(&seen));
        async move {
            let timeout = call.head.headers["grpc-timeout"].to_str().expect("text").to_owned();
            seen.lock().expect("a lock").push(timeout);
            call.read().await;
            let mut open = None;
            if call.head.uri.path() == "/stream" {
                let response = Response::builder().header("content-type", "application/grpc");
                let response = response.body(()).expect("valid");
                let mut stream = call.respond.send_response(response, false).expect("open");
                stream.send_data("first".into(), false).expect("open");
                open = Some(stream);
            }
            let reason = match open.as_mut() {
                Some(stream) => core::future::poll_fn(|cx| stream.poll_reset(cx)).await,
                None => core::future::poll_fn(|cx| call.respond.poll_reset(cx)).await,
            };
            assert_eq!(reason.expect("a reset"), h2::Reason::CANCEL);
            resets.fetch_add(1, SeqCst);
        }
    });
    let gateway = Gateway::start("", &always(&service.url()));

    Http2Client::run(&gateway, async |client| {
        let began = Instant::now();
        let silent = client.unary("/silent", &[("grpc-timeout", "300m")], "x").await;
        assert_eq!((silent.http, silent.code), (200, Some(4)), "{silent:?}");
        assert!(began.elapsed() >= Duration::from_millis(300));
        let streaming = client.unary("/stream", &[("grpc-timeout", "300m")], "x").await;
        assert_eq!((&*streaming.content, streaming.code), (&b"first"[..], Some(4)));
        assert!(began.elapsed() < Duration::from_secs(5));

        for malformed in ["soon", "1", "123456789S", ""] {
            let refused = client.unary("/", &[("grpc-timeout", malformed)], "x").await;
            assert_eq!((refused.http, refused.code), (200, Some(13)), "{malformed}");
        }
        let over = client.unary("/", &[("grpc-timeout", "0n")], "x").await;
        assert_eq!(over.code, Some(4));
    });

    eventually("the calls are logged", || {
        let log = gateway.log();
        let overdue =
            log.lines().filter(|line| line.contains("\"error.type\":\"deadline-exceeded\""));
        let overdue: Vec<_> = overdue.collect();
        let count = |text: &str| overdue.iter().filter(|line| line.contains(text)).count();
        overdue.len() == 3
            && count("\"error.cause\":\"the deadline of the call passed") == 3
            && count("\"rpc.grpc.status_code\":4") == 3
            && count(&format!("\"target\":\"{}\"", service.url())) == 2
    });
    // A deadline that leaves no time is the client's.
    let series = "northgate_http_requests_total{route=\"open\",method=\"POST\",code=\"408\"}";
    assert_eq!(gateway.metric(series), 1.0);

    eventually("the resets", || reset.load(SeqCst) == 2);
    for timeout in timeouts.lock().expect("a lock").iter() {
        let left: u64 = timeout.strip_suffix('u').expect("microseconds").parse().expect("a number");
        assert!((1..=300_000).contains(&left), "{timeout}");
    }
}

#[test]
fn the_deadline_ends_a_call_whose_client_reads_nothing() {
    let (over, ended) = std::sync::mpsc::channel::<()>();
    let service = Http2Service::start(100, move |mut call| {
        let over = over.clone();
        async move {
            let response = Response::builder().header("content-type", "application/grpc");
            let response = response.body(()).expect("valid");
            let mut stream = call.respond.send_response(response, false).expect("open");
            // More than the window of the client.
            stream.send_data(vec![0; 1 << 20].into(), false).expect("open");
            let _ = core::future::poll_fn(|cx| stream.poll_reset(cx)).await;
            over.send(()).expect("the test waits");
        }
    });
    let gateway = Gateway::start("", &always(&service.url()));

    Http2Client::run(&gateway, async |client| {
        let (response, _sending) = client.call("/", &[("grpc-timeout", "300m")]).await;
        let (_head, _unread) = response.await.expect("a response").into_parts();
        let waited = tokio::task::spawn_blocking(move || {
            ended.recv_timeout(Duration::from_secs(15)).expect("the call ends at the service");
        });
        waited.await.expect("no panic");
    });
}

#[test]
fn a_cancelled_call_is_cancelled_at_the_service() {
    let reset = Arc::new(AtomicUsize::new(0));
    let resets = Arc::clone(&reset);
    let service = Http2Service::start(100, move |mut call| {
        let resets = Arc::clone(&resets);
        async move {
            if call.head.uri.path() == "/before" {
                let _ = core::future::poll_fn(|cx| call.respond.poll_reset(cx)).await;
            } else {
                let response = Response::builder().header("content-type", "application/grpc");
                let response = response.body(()).expect("valid");
                let mut stream = call.respond.send_response(response, false).expect("open");
                let _ = core::future::poll_fn(|cx| stream.poll_reset(cx)).await;
            }
            resets.fetch_add(1, SeqCst);
        }
    });
    let gateway = Gateway::start("", &always(&service.url()));

    Http2Client::run(&gateway, async |client| {
        let (response, mut sending) = client.call("/before", &[]).await;
        sending.send_data("x".into(), false).expect("open");
        while service.calls() < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        sending.send_reset(h2::Reason::CANCEL);
        drop(response);
        while reset.load(SeqCst) < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }

        // The service reads nothing of the request, so that the gateway waits for window when the client leaves.
        let (response, mut sending) = client.call("/during", &[]).await;
        sending.reserve_capacity(200_000);
        let body = response.await.expect("a head").into_body();
        sending.send_data(vec![0; 200_000].into(), false).expect("open");
        tokio::time::sleep(Duration::from_millis(50)).await;
        sending.send_reset(h2::Reason::CANCEL);
        drop(body);
        while reset.load(SeqCst) < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn every_refusal_is_a_status_of_the_call() {
    let (silent, _) = raw_service(|_, stream| {
        request_arrived(stream);
    });
    let service = echo(100);
    let rest = format!(
        "upstreams:\n  service: {{ targets: [\"{}\"], http2: always }}\n  \
         gone: {{ targets: [\"http://127.0.0.1:1\"], http2: always }}\n  \
         broken: {{ targets: [\"{silent}\"], http2: always }}\n\
         limits:\n  few: {{ rate: 1/hour, burst: 1, by: ip }}\n  \
         none: {{ rate: 1/hour, burst: 1, by: ip, response: {{ status: 503 }} }}\n\
         routes:\n  - {{ id: open, path: /open/**, upstream: service, auth: none }}\n  \
         - {{ id: limited, path: /limited, upstream: service, auth: none, limits: [few] }}\n  \
         - {{ id: late, path: /late, upstream: service, auth: none, limits: [none] }}\n  \
         - {{ id: small, path: /small, upstream: service, auth: none, max_body_size: 3B }}\n  \
         - {{ id: gone, path: /gone, upstream: gone, auth: none }}\n  \
         - {{ id: broken, path: /broken, upstream: broken, auth: none }}\n",
        service.url()
    );
    let gateway = Gateway::start("", &rest);

    Http2Client::run(&gateway, async |client| {
        for path in ["/limited", "/late"] {
            assert_eq!(client.unary(path, &[], "x").await.code, Some(0));
        }
        for (path, code, message) in [
            ("/unknown", 12, "Not found"),
            ("/limited", 8, "Too many requests"),
            ("/late", 8, "Too many requests"),
            ("/small", 8, "The request content is too large"),
            ("/gone", 14, "The upstream server failed"),
            ("/broken", 14, "The upstream server failed"),
            ("/open/..%2flimited", 13, "The path is ambiguous"),
        ] {
            let refused = client.unary(path, &[], "more than three").await;
            assert_eq!((refused.http, refused.code), (200, Some(code)), "{path} {refused:?}");
            assert_eq!(refused.head["content-type"], "application/grpc", "{path}");
            assert_eq!(refused.head["grpc-message"], message, "{path}");
            assert!(refused.content.is_empty() && refused.trailers.is_none(), "{path}");
            assert_eq!(refused.head.contains_key("retry-after"), message == "Too many requests");
        }
    });

    // Metrics and log count a refusal under the status that it has in HTTP.
    let series = "northgate_http_requests_total{route=\"limited\",method=\"POST\",code=\"429\"}";
    assert!(gateway.metrics.render().contains(series), "{}", gateway.metrics.render());
}

#[test]
fn refusals_of_tokens_and_silent_services_are_statuses_of_the_call() {
    let issuer = start_issuer();
    let (silent, _) = raw_service(|_, stream| {
        request_arrived(stream);
        drain(stream);
    });
    let service = echo(100);
    let rest = format!(
        "{}upstreams:\n  service: {{ targets: [\"{}\"], http2: always }}\n  \
         silent: {{ targets: [\"{silent}\"], http2: always, timeout: 200ms }}\n\
         routes:\n  - {{ id: token, path: /token, upstream: service, auth: {{ jwt: main }} }}\n  \
         - {{ id: scope, path: /scope, upstream: service, auth: {{ jwt: main, scopes: [none.has] }} }}\n  \
         - {{ id: silent, path: /silent, upstream: silent, auth: none }}\n  \
         - {{ id: get, path: /get, methods: [GET], upstream: service, auth: none }}\n",
        issuer.settings(""),
        service.url(),
    );
    let gateway = Gateway::at(issuer.clock.clone(), "", &rest).ready();
    let good = format!("Bearer {}", issuer.jwt());

    Http2Client::run(&gateway, async |client| {
        for (path, token, code) in [
            ("/token", "", 16),
            ("/token", "Bearer no.good.token", 16),
            ("/token", &*good, 0),
            ("/scope", &*good, 7),
            ("/silent", "", 4),
            ("/get", "", 12),
        ] {
            let fields = [("authorization", token)];
            let fields: &[_] = if token.is_empty() { &[] } else { &fields };
            let call = client.unary(path, fields, "x").await;
            assert_eq!((call.http, call.code), (200, Some(code)), "{path} {token} {call:?}");
            assert_eq!(
                call.head.contains_key("www-authenticate"),
                matches!(code, 7 | 16),
                "{path}"
            );
        }
    });
    assert_eq!(service.calls(), 1);
}

#[test]
fn a_client_of_grpc_web_gets_the_status_in_the_content_too() {
    let service = echo(100);
    let gateway = Gateway::start("", &always(&service.url()));

    let refused = gateway.ask(
        "POST /%00 HTTP/1.1\r\nHost: api.test\r\nContent-Type: application/grpc-web+proto\r\nContent-Length: 0\r\n\r\n",
    );
    assert_eq!((refused.status, refused.field("grpc-status")), (200, Some("13")));
    assert_eq!(refused.body[0], 0x80);
    assert!(
        String::from_utf8_lossy(&refused.body[5..])
            .starts_with("grpc-status: 13\r\ngrpc-message: ")
    );

    let passed = gateway.ask(
        "POST /a HTTP/1.1\r\nHost: api.test\r\nContent-Type: application/grpc-web+proto\r\nContent-Length: 5\r\n\r\nhello",
    );
    assert_eq!((passed.status, passed.text()), (200, "hello"));
}

#[test]
fn a_call_that_fails_in_its_middle_ends_in_a_status() {
    let service = Http2Service::start(100, async |mut call| {
        call.read().await;
        let response = Response::builder().header("content-type", "application/grpc");
        let mut stream =
            call.respond.send_response(response.body(()).expect("valid"), false).expect("open");
        stream.send_data("half".into(), false).expect("open");
        tokio::time::sleep(Duration::from_millis(50)).await;
        stream.send_reset(h2::Reason::INTERNAL_ERROR);
    });
    let gateway = Gateway::start("", &with(&[&service.url()], ", stream_timeout: 0s"));

    Http2Client::run(&gateway, async |client| {
        let call = client.unary("/a", &[], "x").await;
        assert_eq!((&*call.content, call.code), (&b"half"[..], Some(13)));

        // Other content is cut off, not completed.
        let request = Request::get("http://api.test/plain").body(()).expect("a request");
        let (response, _) = client.begin(request, true).await;
        let mut response = response.await.expect("a head");
        response.headers_mut().clear();
        assert!(try_read(response.body_mut()).await.is_err());
    });
    eventually("the status is logged", || gateway.log().contains("\"rpc.grpc.status_code\":13"));
}

#[test]
fn a_call_that_outlasts_a_drain_ends_in_a_status() {
    let service = Http2Service::start(100, async |mut call| {
        let response = Response::builder().header("content-type", "application/grpc");
        let mut stream =
            call.respond.send_response(response.body(()).expect("valid"), false).expect("open");
        stream.send_data("first".into(), false).expect("open");
        let _ = core::future::poll_fn(|cx| stream.poll_reset(cx)).await;
    });
    let gateway = Gateway::start("", &always(&service.url()));
    let server = Arc::clone(&gateway.launched.server);

    Http2Client::run(&gateway, async |client| {
        let (response, mut sending) = client.call("/a", &[]).await;
        sending.send_data("x".into(), true).expect("open");
        let mut body = response.await.expect("a response").into_body();
        assert_eq!(body.data().await.expect("content").expect("content"), "first");
        let draining = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(server.drain(Duration::from_secs(2)))
        });

        let (_, trailers) = read(&mut body).await;

        let trailers = trailers.expect("trailers");
        assert_eq!(trailers["grpc-status"], "14");
        assert_eq!(trailers["grpc-message"], "The gateway is shutting down");
        drop((client, body));
        assert!(draining.join().expect("no panic"), "no connection was dropped");
    });
    eventually("it is logged", || gateway.log().contains("\"error.type\":\"shutting-down\""));
}

/// As PROTOCOL-HTTP2.md of gRPC maps them, before the response head and after it.
#[test]
fn the_code_of_a_reset_is_a_status_of_the_call() {
    let code = Arc::new(AtomicUsize::new(0));
    let service = Http2Service::start(100, {
        let code = Arc::clone(&code);
        move |mut call| {
            let reason = h2::Reason::from(code.load(SeqCst) as u32);
            async move {
                call.read().await;
                if call.head.uri.path() == "/head" {
                    return call.respond.send_reset(reason);
                }
                let response = Response::builder().header("content-type", "application/grpc");
                let response = response.body(()).expect("valid");
                let mut stream = call.respond.send_response(response, false).expect("open");
                stream.send_data("half".into(), false).expect("open");
                // A reset at once would drop what is not written yet.
                tokio::time::sleep(Duration::from_millis(50)).await;
                stream.send_reset(reason);
            }
        }
    });
    let gateway = Gateway::start("", &with(&[&service.url()], ", outlier: { errors: 100 }"));

    Http2Client::run(&gateway, async |client| {
        for (reset, status) in [(0, 13), (1, 13), (2, 13), (8, 1), (11, 8), (12, 7), (99, 13)] {
            code.store(reset, SeqCst);
            for path in ["/head", "/content"] {
                let call = client.unary(path, &[], "x").await;
                assert_eq!(call.code, Some(status), "{path} {reset}");
            }
        }
    });
}

#[test]
fn a_service_that_fails_every_call_is_ejected_and_its_status_is_logged() {
    // The status comes behind content, or in the head alone.
    for has_content in [true, false] {
        let failing = Http2Service::start(100, move |mut call| async move {
            call.read().await;
            let mut response = Response::builder().header("content-type", "application/grpc");
            if has_content {
                let response = response.body(()).expect("a response");
                let mut stream = call.respond.send_response(response, false).expect("open");
                stream.send_data("part".into(), false).expect("open");
                stream.send_trailers(trailers(14)).expect("open");
            } else {
                response = response.header("grpc-status", "14");
                let response = response.body(()).expect("a response");
                call.respond.send_response(response, true).expect("open");
            }
        });
        let other = echo(100);
        let urls = [failing.url(), other.url()];
        let settings = ", outlier: { error_rate: 0% }";
        let gateway = Gateway::start("", &with(&urls.each_ref().map(|url| &**url), settings));

        let failed = Http2Client::run(&gateway, async |client| {
            let mut failed = 0;
            for _ in 0..40 {
                failed += usize::from(client.unary("/a", &[], "x").await.code == Some(14));
            }
            failed
        });

        assert_eq!((failed, failing.calls()), (5, 5), "{has_content}");
        let series = "northgate_upstream_errors_total{upstream=\"service\",reason=\"grpc_status\"}";
        assert_eq!(gateway.metric(series), 5.0);
        eventually("the calls are logged", || {
            gateway.log().matches("\"rpc.grpc.status_code\":14").count() == 5
        });
    }
}

#[test]
fn a_call_gets_no_fixed_response_that_it_cannot_read() {
    let text = always("http://127.0.0.1:1")
        .replace("auth: none", "auth: none, fallback: { respond: { status: 200, body: later } }");
    let gateway = Gateway::start("", &text);

    let call = Http2Client::run(&gateway, async |client| client.unary("/a", &[], "x").await);

    assert_eq!(call.code, Some(14));
    assert_eq!(gateway.get("/a", "").text(), "later");
}
