//! A request that was not processed is sent again, with its content; one that may have been is not.

use core::sync::atomic::Ordering::SeqCst;
use std::io::{Read, Write};
use std::thread;

use h2::Reason;

use super::{always, echo, with};
use crate::support::{
    Client, Gateway, Http2Client, Http2Service, drain, frame, next_frame, raw_service,
    request_arrived,
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

#[test]
fn a_service_that_sends_goaway_on_every_connection_is_not_asked_for_ever() {
    let (url, connections) = raw_service(|_, stream| {
        request_arrived(stream);
        let _ = stream.write_all(&frame(7, 0, 0, &[0; 8]));
        drain(stream);
    });
    let gateway = Gateway::start("", &always(&url));

    assert_eq!(gateway.get("/a", "").status, 503);

    assert!(connections.load(SeqCst) <= 12, "{connections:?}");
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
