//! Content on its way to services and back: as it arrives, and at the pace of the slower side.

use core::time::Duration;
use std::io::{Read, Write};
use std::thread;

use h2::Reason;
use http::{Request, Response};

use super::{always, with};
use crate::support::{
    Gateway, Http2Client, Http2Service, drain, frame, next_frame, raw_service, read,
    request_arrived,
};

/// Responds at once, and echoes each piece as it arrives.
fn echo_in_pieces() -> Http2Service {
    Http2Service::start(100, async |mut call| {
        let mut stream = call.respond.send_response(Response::new(()), false).expect("open");
        while let Some(Ok(piece)) = call.body.data().await {
            let _ = call.body.flow_control().release_capacity(piece.len());
            stream.send_data(piece, false).expect("open");
        }
        if let Ok(Some(trailers)) = call.body.trailers().await {
            stream.send_trailers(trailers).expect("open");
        } else {
            stream.send_data(bytes::Bytes::new(), true).expect("open");
        }
    })
}

#[test]
fn pieces_of_a_chunked_upload_are_echoed_one_by_one() {
    let service = echo_in_pieces();
    // The pauses of the client are longer than the timeout of the service.
    let gateway =
        Gateway::start("", &with(&[&service.url()], ", timeout: 500ms, idle_timeout: 500ms"));
    let mut client = gateway.connect();
    client.send(
        "POST /a HTTP/1.1\r\nHost: api.test\r\nTE: trailers\r\nConnection: TE\r\n\
         Transfer-Encoding: chunked\r\n\r\n",
    );

    for piece in ["first", "second", "third"] {
        client.send(format!("{:x}\r\n{piece}\r\n", piece.len()));
        let seen = client.until(piece.as_bytes()).expect("an echo");
        assert!(seen.ends_with(piece.as_bytes()));
        thread::sleep(Duration::from_millis(700));
    }
    client.send("0\r\nx-sum: 3\r\n\r\n");

    let seen = client.until(b"\r\n\r\n").expect("the end");
    assert_eq!(String::from_utf8_lossy(&seen), "\r\n0\r\nx-sum: 3\r\n\r\n");
}

#[test]
fn a_response_before_the_end_of_its_request_is_complete() {
    // RFC 9113 §8.1: the service wants no more of the request.
    let service = Http2Service::start(100, async |mut call| {
        let response = Response::builder().status(413).body(()).expect("a response");
        let mut stream = call.respond.send_response(response, false).expect("open");
        stream.send_data("too much".into(), true).expect("open");
        tokio::time::sleep(Duration::from_millis(100)).await;
        stream.send_reset(Reason::NO_ERROR);
        drop(call.body);
    });
    let gateway = Gateway::start("", &with(&[&service.url()], ""));

    for _ in 0..3 {
        let mut client = gateway.connect();
        client.send("POST /a HTTP/1.1\r\nHost: api.test\r\nContent-Length: 1000000\r\n\r\nsome");
        let answer = client.answer();
        assert_eq!((answer.status, answer.text()), (413, "too much"));
    }
}

#[test]
fn a_service_that_reads_nothing_is_given_up_and_a_slow_client_is_not_its_fault() {
    let (url, _) = raw_service(|_, stream| {
        request_arrived(stream);
        drain(stream);
    });
    let gateway = Gateway::start("", &with(&[&url], ", timeout: 500ms"));

    // More than the window of a stream.
    let mut client = gateway.connect();
    let length = 200_000;
    client.send(format!("POST /a HTTP/1.1\r\nHost: api.test\r\nContent-Length: {length}\r\n\r\n"));
    client.send(vec![b'x'; length]);
    assert_eq!(client.answer().status, 504);

    let echoing = echo_in_pieces();
    let gateway = Gateway::start("", &with(&[&echoing.url()], ", timeout: 500ms"));
    let mut client = gateway.connect();
    client.send(
        "POST /a HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\nContent-Length: 8\r\n\r\nhalf",
    );
    thread::sleep(Duration::from_millis(800));
    client.send("rest");
    assert_eq!(client.answer().text(), "halfrest");
}

#[test]
fn large_content_passes_whole_both_ways() {
    let service = echo_in_pieces();
    let gateway = Gateway::start("max_body_size: 0", &with(&[&service.url()], ""));
    let content: Vec<u8> = (0..5_000_000_u32).flat_map(|n| [(n % 251) as u8]).collect();
    let mut client = gateway.connect();
    client.send(format!(
        "POST /a HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        content.len()
    ));

    let answer = thread::scope(|scope| {
        let mut sending = client.stream.try_clone().expect("a socket");
        let content = &content;
        scope.spawn(move || sending.write_all(content));
        client.answer()
    });

    assert!(answer.body == content);
}

/// RFC 9113 §8.1: a service that needs no more of the content says so after its response, which stays valid.
#[test]
fn a_complete_response_survives_the_end_of_the_upload_that_the_service_asks_for() {
    let (url, _) = raw_service(|_, stream| {
        let mut preface = [0; 24];
        let _ = stream.read_exact(&mut preface);
        while let Some((kind, id)) = next_frame(stream) {
            if kind == 1 {
                let (head, content) = (frame(1, 4, id, &[0x88]), frame(0, 1, id, b"enough"));
                let _ = stream.write_all(&[head, content, frame(3, 0, id, &[0; 4])].concat());
            }
        }
    });
    let gateway = Gateway::start("", &always(&url));

    let mut client = gateway.connect();
    client
        .send("POST /a HTTP/1.1\r\nHost: api.test\r\nContent-Length: 1000000\r\n\r\nthe beginning");
    let over_http1 = client.answer();
    let over_http2 = Http2Client::run(&gateway, async |client| {
        let request = Request::post("http://api.test/a").body(()).expect("a request");
        let (response, mut sending) = client.begin(request, false).await;
        sending.send_data("the beginning".into(), false).expect("open");
        let mut response = response.await.expect("a response");
        (response.status(), read(response.body_mut()).await.0)
    });

    assert_eq!((over_http1.status, over_http1.text()), (200, "enough"));
    assert_eq!((over_http2.0.as_u16(), &*over_http2.1), (200, &b"enough"[..]));
    let failed = "northgate_upstream_errors_total{upstream=\"service\",reason=\"reset\"}";
    assert_eq!(gateway.metric(failed), 0.0);
}
