//! An upload that does not begin costs others nothing: it leaves them the service's connections.

use std::io::Write;

use crate::support::{Client, Gateway, Http2, Outcome, Reading, Upstream, eventually, ok, open};

/// A service with so many connections, and hardly a queue for them.
fn scarce(service: &Upstream, connections: u32) -> String {
    let settings =
        format!("max_connections: {connections}, max_pending: 1, connect_timeout: 200ms, targets");
    open(service).replace("targets", &settings)
}

#[test]
fn uploads_that_do_not_begin_leave_the_connections_to_others() {
    for connections in [1, 3, 8] {
        let service = Upstream::polite();
        let gateway = Gateway::start("", &scarce(&service, connections));
        let mut idle: Vec<Client> = Vec::new();
        for fields in [
            "Content-Length: 10\r\n\r\n",
            "Content-Length: 10\r\nExpect: 100-continue\r\n\r\n",
            "Transfer-Encoding: chunked\r\n\r\n",
            "Transfer-Encoding: chunked\r\n\r\n5",
            "Transfer-Encoding: chunked\r\n\r\n5;a=b\r\n",
        ] {
            for _ in 0..8 {
                let mut client = gateway.connect();
                client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}"));
                idle.push(client);
            }
        }
        let mut http2 = Http2::connect(&gateway);
        for stream in 0..40 {
            let mut head =
                vec![(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/")];
            head.extend((stream % 2 == 0).then_some(("content-length", "10")));
            http2.head(stream * 2 + 1, &head, false);
            // A frame without a byte begins nothing.
            http2.data(stream * 2 + 1, "", false);
        }
        let in_flight = "northgate_http_requests_in_flight{route=\"open\"}";
        eventually("all of them", || gateway.metric(in_flight) >= 80.0);
        // Longer than any of them is waited for.
        std::thread::sleep(core::time::Duration::from_millis(700));

        for _ in 0..3 {
            assert_eq!(gateway.get("/", "").status, 200, "{connections}");
        }
        let unstarted = (connections / 4).max(u32::from(connections > 1)) as usize;
        assert!(service.connections() <= 1 + unstarted, "{connections}");

        let upload = &mut idle[0];
        upload.send("0123456789");
        assert_eq!(upload.answer().status, 200);
        let upload = &mut idle[8];
        assert_eq!(upload.answer().status, 100);
        upload.send("0123456789");
        assert_eq!(upload.answer().status, 200);
        http2.data(1, "0123456789", true);
        assert_eq!(http2.outcome(1), Outcome::Answered(200));
    }
}

#[test]
fn a_client_may_begin_its_content_after_the_answer() {
    let service = Upstream::by_hand(|mut stream, connection, seen| {
        let mut reading = Reading::new(&stream);
        while let Some(mut request) = reading.head(connection) {
            stream.write_all(&ok("early")).expect("a reader");
            if reading.body(&mut request).is_none() {
                return;
            }
            seen(request);
        }
    });
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();
    for framing in ["Content-Length: 10", "Content-Length: 10\r\nConnection: close"] {
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n"));
        assert_eq!(client.answer().text(), "early");
        client.send("0123456789");
    }
    service.reached(2);
    assert!(service.seen().iter().all(|seen| seen.body == b"0123456789"));
}

#[test]
fn content_without_a_byte_is_forwarded_as_none() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    for body in ["0\r\n\r\n", "0\r\nX-Sum: 42\r\n\r\n"] {
        let answer = gateway.ask(&format!(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}"
        ));
        assert_eq!(answer.status, 200);
    }
    let seen = service.seen();
    assert_eq!((seen[0].field("content-length"), &*seen[0].trailers), (Some("0"), ""));
    assert_eq!(seen[1].trailers.to_ascii_lowercase(), "x-sum: 42\r\n");
}
