//! A request that was not processed is sent again, with its content; one that may have been is not.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use core::time::Duration;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Barrier};
use std::thread;

use h2::Reason;

use super::{always, echo, with};
use crate::support::{
    Client, Gateway, Http2Client, Http2Service, drain, eventually, frame, next_frame, raw_service,
    read_frame, request_arrived,
};

#[test]
fn a_refused_stream_is_sent_again_with_its_content() {
    // With another target, and without one.
    for targets in [1, 2] {
        let refusing = Http2Service::start(100, async |mut call| {
            call.read().await;
            if call.number == 0 {
                return call.respond.send_reset(Reason::REFUSED_STREAM);
            }
            call.answer("content");
        });
        let other = echo(100);
        let urls = [refusing.url(), other.url()];
        let urls: Vec<&str> = urls.iter().take(targets).map(String::as_str).collect();
        let gateway = Gateway::start("", &with(&urls, ""));

        let call =
            Http2Client::run(&gateway, async |client| client.unary("/a", &[], "content").await);

        assert_eq!((&*call.content, call.code), (&b"content"[..], Some(0)), "{targets} targets");
        assert_eq!(refusing.calls() + other.calls(), 2);
    }
}

#[test]
fn a_service_that_refuses_every_stream_is_not_asked_for_ever() {
    let service = Http2Service::start(100, async |mut call| {
        call.respond.send_reset(Reason::REFUSED_STREAM);
    });
    let gateway = Gateway::start("", &always(&service.url()));

    assert_eq!(gateway.get("/a", "").status, 503);

    assert_eq!(service.calls(), 2);
    let refused = "northgate_upstream_errors_total{upstream=\"service\",reason=\"refused\"}";
    assert_eq!(gateway.metric(refused), 2.0);
}

#[test]
fn a_target_that_refuses_every_stream_loses_no_request_and_is_ejected() {
    let refusing = Http2Service::start(100, async |mut call| {
        call.read().await;
        call.respond.send_reset(Reason::REFUSED_STREAM);
    });
    let other = echo(100);
    let urls = [refusing.url(), other.url()];
    // No budget: what was not processed is no further load.
    let settings = ", retries: { budget: 0% }, outlier: { error_rate: 0% }";
    let gateway = Gateway::start("", &with(&urls.each_ref().map(|url| &**url), settings));

    for _ in 0..40 {
        let request = "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
        assert_eq!(gateway.ask(request).text(), "hello");
    }

    assert_eq!((refusing.calls(), other.calls()), (5, 40));
}

#[test]
fn a_stream_beyond_goaway_is_sent_again() {
    let (url, connections) = raw_service(|number, stream| {
        request_arrived(stream);
        if number == 0 {
            // Nothing was processed.
            let _ = stream.write_all(&frame(7, 0, 0, &[0; 8]));
        } else {
            let _ = stream.write_all(&frame(1, 5, 1, &[0x88]));
        }
        drain(stream);
    });
    let gateway = Gateway::start("", &always(&url));

    let answer =
        gateway.ask("POST /a HTTP/1.1\r\nHost: api.test\r\nContent-Length: 5\r\n\r\nhello");

    assert_eq!(answer.status, 200);
    assert_eq!(connections.load(SeqCst), 2);
}

/// As nginx does with `keepalive_requests`.
#[test]
fn a_service_that_takes_few_streams_per_connection_loses_none() {
    let (url, connections) = raw_service(|_, stream| {
        let mut preface = [0; 24];
        let _ = stream.read_exact(&mut preface);
        while let Some((kind, id)) = next_frame(stream) {
            if kind == 1 && id <= 5 {
                let _ = stream.write_all(&frame(1, 5, id, &[0x88]));
            }
            if kind == 1 && id == 5 {
                let _ = stream.write_all(&frame(7, 0, 0, &[0, 0, 0, 5, 0, 0, 0, 0]));
            }
        }
    });
    let gateway = Gateway::start("", &always(&url));

    let address = gateway.address();
    let asking = (0..12).map(|_| {
        thread::spawn(move || {
            let mut client = Client::connect(address);
            client.send("POST /a HTTP/1.1\r\nHost: api.test\r\nContent-Length: 5\r\n\r\nhello");
            client.answer().status
        })
    });
    for status in asking.collect::<Vec<_>>() {
        assert_eq!(status.join().expect("an answer"), 200);
    }

    assert!(connections.load(SeqCst) >= 4);
}

/// As nginx does with `keepalive_requests` under load: requests arrive behind the last one that it takes, and others are
/// about to be sent when the connection ends.
#[test]
fn no_request_is_lost_with_a_connection_that_ends_under_load() {
    let overfull = Arc::<AtomicUsize>::default();
    let (url, connections) = raw_service({
        let overfull = Arc::clone(&overfull);
        move |_, stream| {
            let mut preface = [0; 24];
            let _ = stream.read_exact(&mut preface);
            while let Some((kind, id)) = next_frame(stream) {
                if kind != 1 {
                    continue;
                }
                match id {
                    ..LAST => drop(stream.write_all(&frame(1, 5, id, &[0x88]))),
                    LAST => {
                        let goaway = frame(7, 0, 0, &[LAST.to_be_bytes(), [0; 4]].concat());
                        let _ = stream.write_all(&[goaway, frame(1, 5, id, &[0x88])].concat());
                    }
                    BEHIND => drop(overfull.fetch_add(1, SeqCst)),
                    _ => {}
                }
            }
        }
    });
    let gateway = Gateway::start("", &with(&[&url], ", timeout: 60s"));

    let address = gateway.address();
    let asking = (0..16).map(|_| {
        thread::spawn(move || {
            let mut client = Client::connect(address);
            for _ in 0..60 {
                client.send("POST /a HTTP/1.1\r\nHost: api.test\r\nContent-Length: 5\r\n\r\nhello");
                assert_eq!(client.answer().status, 200);
            }
        })
    });
    for client in asking.collect::<Vec<_>>() {
        client.join().expect("every answer");
    }

    assert!(connections.load(SeqCst) >= 16 * 60 / 20, "{connections:?}");
    // The gateway has learned the number of requests that a connection takes.
    assert!(overfull.load(SeqCst) <= 6, "{overfull:?}");
}

/// The last stream of a connection with twenty requests, and the one behind it.
const LAST: u32 = 39;
const BEHIND: u32 = LAST + 2;

#[test]
fn a_request_that_was_not_sent_goes_to_another_target_whatever_its_method() {
    let closing = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", closing.local_addr().expect("an address"));
    thread::spawn(move || {
        // Each connection ends before the settings of HTTP/2.
        while let Ok((mut stream, _)) = closing.accept() {
            let _ = stream.read(&mut [0; 24]);
        }
    });
    let other = echo(100);
    let gateway = Gateway::start("", &with(&[&url, &other.url()], ""));

    for _ in 0..4 {
        let answer =
            gateway.ask("POST /a HTTP/1.1\r\nHost: api.test\r\nContent-Length: 5\r\n\r\nhello");

        assert_eq!((answer.status, answer.text()), (200, "hello"));
    }
    assert_eq!(other.calls(), 4);
}

#[test]
fn a_connection_that_another_stream_breaks_costs_no_idempotent_request() {
    // Neither is answered before both have been sent again: an idle connection would do for the other.
    let both = Barrier::new(2);
    let (url, connections) = raw_service(move |number, stream| {
        let mut preface = [0; 24];
        let _ = stream.read_exact(&mut preface);
        let mut streams = 0;
        while let Some((kind, id)) = next_frame(stream) {
            if kind != 1 {
                continue;
            }
            streams += 1;
            if number > 0 {
                both.wait();
                let _ = stream.write_all(&frame(1, 5, id, &[0x88]));
            } else if streams == 2 {
                // A field in upper case: the library ends the connection for it.
                let _ = stream.write_all(&frame(1, 5, id, b"\x88\0\x01X\x01y"));
            }
        }
    });
    let gateway = Gateway::start("", &always(&url));

    let address = gateway.address();
    let asking = (0..2).map(|_| {
        thread::spawn(move || {
            let mut client = Client::connect(address);
            client.send("GET /a HTTP/1.1\r\nHost: api.test\r\n\r\n");
            client.answer().status
        })
    });
    for status in asking.collect::<Vec<_>>() {
        assert_eq!(status.join().expect("an answer"), 200);
    }

    // Either may be the cause: each has a connection of its own.
    assert_eq!(connections.load(SeqCst), 3);
}

/// A request that makes the service end its connection is sent twice, and each time it takes no other request along.
#[test]
fn a_request_that_ends_every_connection_costs_no_other_request() {
    let (waiting, ended) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (url, _) = raw_service({
        let (waiting, ended) = (Arc::clone(&waiting), Arc::clone(&ended));
        move |number, stream| {
            let mut preface = [0; 24];
            let _ = stream.read_exact(&mut preface);
            let _ = stream.set_read_timeout(Some(Duration::from_millis(300)));
            let mut open = Vec::new();
            loop {
                match stream.peek(&mut [0]) {
                    Ok(0) => return,
                    Ok(_) => {}
                    Err(_) if number == 0 => continue,
                    Err(_) => {
                        // No request that ends the connection has come: the others are answered.
                        for id in open.drain(..) {
                            let _ = stream.write_all(&frame(1, 5, id, &[0x88]));
                        }
                        continue;
                    }
                }
                match next_frame(stream) {
                    // The only content: a field in upper case, for which the library ends the connection.
                    Some((0, id)) => {
                        ended.fetch_add(1, SeqCst);
                        let _ = stream.write_all(&frame(1, 5, id, b"\x88\0\x01X\x01y"));
                        return drain(stream);
                    }
                    Some((1, id)) => {
                        open.push(id);
                        waiting.fetch_add(1, SeqCst);
                    }
                    Some(_) => {}
                    None => return,
                }
            }
        }
    });
    let text = with(&[&url], ", timeout: 10s, circuit_breaker: { errors: 5 }")
        .replace("auth: none", "auth: none, buffer_request: true");
    let gateway = Gateway::start("", &text);
    let ask = |request: &'static str| {
        let address = gateway.address();
        thread::spawn(move || {
            let mut client = Client::connect(address);
            client.send(request);
            client.answer().status
        })
    };

    let others: Vec<_> =
        (0..30).map(|_| ask("GET /a HTTP/1.1\r\nHost: api.test\r\n\r\n")).collect();
    eventually("the requests arrive", || waiting.load(SeqCst) == 30);
    let cause = ask("PUT /a HTTP/1.1\r\nHost: api.test\r\nContent-Length: 5\r\n\r\nhello");

    assert_eq!(cause.join().expect("an answer"), 502);
    for other in others {
        assert_eq!(other.join().expect("an answer"), 200);
    }
    assert_eq!(ended.load(SeqCst), 2);
    // Each lost connection is one failure.
    let circuit = "northgate_upstream_circuit_state{upstream=\"service\"}";
    assert_eq!(gateway.metric(circuit), 0.0);
}

#[test]
fn a_target_that_ends_every_connection_in_vain_is_ejected() {
    let good = echo(100);
    let (ends, ended) = raw_service(|_, stream| {
        request_arrived(stream);
        let _ = stream.write_all(&frame(7, 0, 0, &[0; 8]));
        drain(stream);
    });
    let allows_nothing = Http2Service::start(0, async |_| {});
    let outlier = ", outlier: { errors: 3, error_rate: 0% }";
    for (bad, connections) in [
        (&ends, &(|| ended.load(SeqCst)) as &dyn Fn() -> usize),
        (&allows_nothing.url(), &|| allows_nothing.connections()),
    ] {
        let gateway = Gateway::start("", &with(&[bad, &good.url()], outlier));
        let ask = || (0..20).map(|_| gateway.get("/a", "").status).collect::<Vec<_>>();

        assert_eq!(ask(), [200; 20]);
        let before = connections();
        assert_eq!(ask(), [200; 20]);

        assert_eq!(connections(), before, "{bad} is left alone");
        assert_eq!(target(&gateway, 0)["state"], "ejected");
    }
}

/// The state of one target of the only upstream.
fn target(gateway: &Gateway, index: usize) -> serde_json::Value {
    let state = gateway.operator("GET /-/upstreams HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let all: serde_json::Value = serde_json::from_slice(&state.body).expect("JSON");
    all[0]["endpoints"][index].clone()
}

/// A service that ends each connection after some requests serves, and is at no fault.
#[test]
fn a_target_that_ends_a_connection_on_which_it_has_served_is_at_no_fault() {
    let (url, _) = raw_service(|_, stream| {
        for id in [1, 3, 5] {
            if id == 1 && !request_arrived(stream) {
                return;
            }
            while id > 1 && next_frame(stream).is_some_and(|(kind, _)| kind != 1) {}
            let _ = stream.write_all(&frame(1, 5, id, &[0x88]));
        }
        let _ = stream.write_all(&frame(7, 0, 0, &[0, 0, 0, 5, 0, 0, 0, 0]));
        drain(stream);
    });
    let strict = ", outlier: { errors: 1, error_rate: 0% }, circuit_breaker: { errors: 1 }";
    let gateway = Gateway::start("", &with(&[&url], strict));

    let statuses: Vec<_> = (0..20).map(|_| gateway.get("/a", "").status).collect();

    assert_eq!(statuses, [200; 20]);
    assert_eq!(target(&gateway, 0)["last_failure"], serde_json::Value::Null);
}

#[test]
fn a_request_that_may_have_been_processed_is_not_sent_again() {
    for reason in [Reason::INTERNAL_ERROR, Reason::CANCEL, Reason::NO_ERROR] {
        let service = Http2Service::start(100, move |mut call| async move {
            call.read().await;
            call.respond.send_reset(reason);
        });
        let gateway = Gateway::start("", &always(&service.url()));

        let answer =
            gateway.ask("POST /a HTTP/1.1\r\nHost: api.test\r\nContent-Length: 5\r\n\r\nhello");

        assert_eq!((answer.status, service.calls()), (502, 1), "{reason}");
    }
}

#[test]
fn only_idempotent_requests_survive_a_connection_that_dies() {
    for (method, status, asked) in [("GET", 200, 2), ("POST", 502, 1)] {
        let (url, connections) = raw_service(|number, stream| {
            request_arrived(stream);
            if number == 0 {
                return;
            }
            let _ = stream.write_all(&frame(1, 5, 1, &[0x88]));
            drain(stream);
        });
        let (other, more) = raw_service(|_, stream| {
            request_arrived(stream);
            let _ = stream.write_all(&frame(1, 5, 1, &[0x88]));
            drain(stream);
        });
        let gateway = Gateway::start("", &with(&[&url, &other], ""));

        let answer = gateway
            .ask(&format!("{method} /a HTTP/1.1\r\nHost: api.test\r\nContent-Length: 0\r\n\r\n"));

        assert_eq!(answer.status, status, "{method}");
        assert_eq!(connections.load(SeqCst) + more.load(SeqCst), asked, "{method}");
    }
}

#[test]
fn a_small_response_without_a_length_that_breaks_off_is_replaced_by_another_targets() {
    let (url, _) = raw_service(|_, stream| {
        let _ = stream.read_exact(&mut [0; 24]);
        while let Some((kind, id)) = next_frame(stream) {
            if kind == 1 {
                let head = frame(1, 4, id, &[0x88]);
                let (part, reset) = (frame(0, 0, id, b"fi"), frame(3, 0, id, &[0, 0, 0, 2]));
                let _ = stream.write_all(&[head, part, reset].concat());
            }
        }
    });
    let other = echo(100);
    let gateway = Gateway::start("", &with(&[&url, &other.url()], ", outlier: { errors: 100 }"));

    for _ in 0..8 {
        assert_eq!(gateway.get("/a", "").status, 200);
    }

    assert_eq!(other.calls(), 8);
}

/// As nginx does with a field of more than 8 KiB.
#[test]
fn a_head_for_which_a_service_ends_its_connection_costs_no_other_request_and_is_not_its_fault() {
    let (waiting, released) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
    let (url, _) = raw_service({
        let (waiting, released) = (Arc::clone(&waiting), Arc::clone(&released));
        move |_, stream| {
            let _ = stream.read_exact(&mut [0; 24]);
            while let Ok((kind, _, id, payload)) = read_frame(stream) {
                if kind == 1 && payload.len() > 8_000 {
                    return;
                }
                if kind == 1 {
                    waiting.fetch_add(1, SeqCst);
                    while !released.load(SeqCst) {
                        thread::yield_now();
                    }
                    let _ = stream.write_all(&frame(1, 5, id, &[0x88]));
                }
            }
        }
    });
    let strict = ", circuit_breaker: { errors: 2 }, outlier: { errors: 1 }";
    let gateway = Gateway::start("", &with(&[&url], strict));
    let address = gateway.address();
    let small = thread::spawn(move || {
        let mut client = Client::connect(address);
        client.send("POST /a HTTP/1.1\r\nHost: api.test\r\nContent-Length: 0\r\n\r\n");
        client.answer().status
    });
    eventually("the request has arrived", || waiting.load(SeqCst) == 1);

    for _ in 0..4 {
        let large = format!("X-Large: {}\r\n", "~".repeat(20_000));
        assert_eq!(gateway.get("/a", &large).status, 502);
    }

    released.store(true, SeqCst);
    assert_eq!(small.join().expect("an answer"), 200);
    assert_eq!(gateway.get("/a", "").status, 200);
}
