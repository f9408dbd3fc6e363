//! Services that are broken or hostile: the client gets no more than a failure, and other connections none.

use core::sync::atomic::Ordering::SeqCst;
use std::io::Write;

use http::Response;

use super::{always, with};
use crate::support::{Gateway, Http2Service, drain, frame, raw_service, request_arrived};

#[test]
fn a_head_that_is_none_is_a_failure() {
    let literal = |name: &str, value: &str| {
        let mut block = vec![0, name.len() as u8];
        block.extend_from_slice(name.as_bytes());
        block.push(value.len() as u8);
        block.extend_from_slice(value.as_bytes());
        block
    };
    let ok = [0x88].to_vec();
    let heads = [
        literal("x-a", "no status"),
        [ok.clone(), literal("connection", "x")].concat(),
        [ok.clone(), literal("transfer-encoding", "chunked")].concat(),
        [ok.clone(), literal("upgrade", "x")].concat(),
        [ok.clone(), literal("Upper", "x")].concat(),
        [ok.clone(), literal("x-a", "b\r\nx-injected: 1")].concat(),
        [ok.clone(), literal("x-a\r\nx-b", "c")].concat(),
        [ok.clone(), literal("x-a", "b\0")].concat(),
        [ok.clone(), literal(":status", "200")].concat(),
        [literal("x-a", "b"), ok.clone()].concat(),
        [ok.clone(), literal("content-length", "5")].concat(),
        [ok.clone(), literal("content-length", "0"), literal("content-length", "0")].concat(),
        [ok.clone(), literal("content-length", "-1")].concat(),
        [ok.clone(), literal("content-length", "")].concat(),
        [ok.clone(), literal("x-a", " b")].concat(),
        [ok.clone(), literal("x-a", "b ")].concat(),
        [ok.clone(), (0..300).flat_map(|n| literal(&format!("x-{n}"), "")).collect()].concat(),
        literal(":status", "20"),
        literal(":status", "2000"),
        literal(":status", "abc"),
        vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    ];
    for head in heads {
        let block = head.clone();
        let (url, _) = raw_service(move |_, stream| {
            request_arrived(stream);
            let _ = stream.write_all(&frame(1, 5, 1, &block));
            drain(stream);
        });
        let gateway = Gateway::start("", &with(&[&url], ", timeout: 2s"));
        let answer = gateway.get("/a", "");
        assert_eq!(answer.status, 502, "{}", String::from_utf8_lossy(&head));
        assert_eq!(answer.field("x-injected"), None);
    }
}

#[test]
fn content_of_another_length_than_announced_is_not_completed() {
    for (announced, sent) in [("3", "too long"), ("100", "too short")] {
        let service = Http2Service::start(100, move |mut call| async move {
            let response = Response::builder().header("content-length", announced);
            let response = response.body(()).expect("a response");
            let mut stream = call.respond.send_response(response, false).expect("open");
            let _ = stream.send_data(sent.into(), true);
        });
        let gateway = Gateway::start("", &always(&service.url()));
        let mut client = gateway.connect();
        client.send("GET /a HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n\r\n");

        let received = String::from_utf8(client.rest()).expect("text");

        // Either a failure, or less content than announced and the end of the connection.
        let content = received.split("\r\n\r\n").nth(1).unwrap_or_default();
        assert!(
            received.starts_with("HTTP/1.1 502 ")
                || content.len() < announced.parse().expect("a number"),
            "{received}"
        );
    }
}

#[test]
fn a_reset_without_an_error_completes_no_response() {
    let reset = frame(3, 0, 1, &[0; 4]);
    let cases = [
        ("nothing", reset.clone(), 502, false),
        (
            "a part",
            [frame(1, 4, 1, &[0x88]), frame(0, 0, 1, b"part"), reset.clone()].concat(),
            200,
            false,
        ),
        ("all", [frame(1, 4, 1, &[0x88]), frame(0, 1, 1, b"all"), reset].concat(), 200, true),
    ];
    for (sent, frames, status, is_whole) in cases {
        let (url, _) = raw_service(move |_, stream| {
            request_arrived(stream);
            let _ = stream.write_all(&frames);
            drain(stream);
        });
        let gateway = Gateway::start("", &always(&url));
        let mut client = gateway.connect();
        client.send("GET /a HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n\r\n");

        let received = String::from_utf8(client.rest()).expect("text");

        assert!(received.starts_with(&format!("HTTP/1.1 {status} ")), "{sent}: {received}");
        let ends = received.contains("content-length: 3\r\n") && received.ends_with("\r\n\r\nall");
        assert_eq!(ends, is_whole, "{sent}: {received}");
    }
}

#[test]
fn responses_without_content_have_none() {
    for (method, status) in [("HEAD", 200), ("GET", 204), ("GET", 304)] {
        let service = Http2Service::start(100, move |mut call| async move {
            let response = Response::builder().status(status).body(()).expect("a response");
            let mut stream = call.respond.send_response(response, false).expect("open");
            let _ = stream.send_data("HTTP/1.1 200 OK\r\n\r\n".into(), true);
        });
        let gateway = Gateway::start("", &always(&service.url()));
        let mut client = gateway.connect();
        client.send(format!("{method} /a HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n\r\n"));

        let received = String::from_utf8(client.rest()).expect("text");

        assert!(received.starts_with("HTTP/1.1 ") && received.ends_with("\r\n\r\n"), "{received}");
        assert_eq!(received.matches("HTTP/1.1 ").count(), 1, "{method} {status}: {received}");
    }
}

#[test]
fn a_flood_of_frames_ends_that_connection_alone() {
    let floods: [(&str, Vec<u8>); 5] = [
        ("PING", frame(6, 0, 0, &[0; 8])),
        ("SETTINGS", frame(4, 0, 0, &[])),
        ("CONTINUATION", frame(9, 0, 1, &[0; 100])),
        ("empty DATA", frame(0, 0, 1, &[])),
        ("interim responses", frame(1, 4, 1, &[8, 3, b'1', b'0', b'0'])),
    ];
    for (name, flood) in floods {
        let (url, connections) = raw_service(move |number, stream| {
            request_arrived(stream);
            if number > 0 {
                let _ = stream.write_all(&frame(1, 5, 1, &[0x88]));
                return drain(stream);
            }
            match name {
                "CONTINUATION" => drop(stream.write_all(&frame(1, 0, 1, &[0x88]))),
                "empty DATA" => drop(stream.write_all(&frame(1, 4, 1, &[0x88]))),
                _ => {}
            }
            let mut reading = stream.try_clone().expect("a socket");
            std::thread::spawn(move || drain(&mut reading));
            let flood = flood.repeat(1000);
            for _ in 0..1000 {
                if stream.write_all(&flood).is_err() {
                    return;
                }
            }
        });
        let gateway = Gateway::start("", &with(&[&url], ", timeout: 5s, retries: { attempts: 0 }"));

        let mut client = gateway.connect();
        client.send("GET /a HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n\r\n");
        let flooded = String::from_utf8(client.rest()).expect("text");
        assert!(
            flooded.starts_with("HTTP/1.1 502 ")
                || name == "empty DATA" && !flooded.ends_with("0\r\n\r\n"),
            "{name}: {flooded}"
        );
        assert_eq!(gateway.get("/a", "").status, 200, "{name}");
        assert_eq!(connections.load(SeqCst), 2, "{name}");
    }
}
