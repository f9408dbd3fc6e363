//! Content over HTTP/2: in small frames, with trailers, and as windows allow.

use bytes::Bytes;
use futures_util::future::join_all;
use http::Request;

use crate::http2::BAD_REQUESTS;
use crate::support::{
    GET, Gateway, Http2, Http2Client, Outcome, PATIENCE, Upstream, eventually, frame, ok, open,
    read_frame,
};

type Fields<'a> = &'a [(&'a str, &'a str)];

const POST: Fields<'static> =
    &[(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/")];

#[test]
fn many_small_frames_within_the_windows_end_no_connection() {
    const CALLS: usize = 16;
    const FRAMES: usize = 5000;
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    let statuses = Http2Client::run(&gateway, async |client| {
        let calls = (0..CALLS).map(async |_| {
            let request = Request::post("http://a/").body(()).expect("a request");
            let (response, mut stream) = client.begin(request, false).await;
            for _ in 0..FRAMES {
                stream.send_data(Bytes::from_static(b"eight by"), false).expect("it is open");
            }
            stream.send_data(Bytes::new(), true).expect("it is open");
            response.await.expect("a response").status().as_u16()
        });
        join_all(calls).await
    });

    assert_eq!(statuses, [200; CALLS]);
    assert!(service.seen().iter().all(|seen| seen.body.len() == 8 * FRAMES));
}

#[test]
fn empty_frames_are_limited_by_rate_and_not_for_life() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    let mut client = Http2::connect(&gateway);
    for stream in [1, 3] {
        client.head(stream, POST, false);
        for _ in 0..200 {
            client.data(stream, "", false);
        }
        client.data(stream, "content", true);
        assert_eq!(client.outcome(stream), Outcome::Answered(200));
    }
}

#[test]
fn trailers_that_are_too_many_or_malformed_are_no_end_of_a_request() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    let many: Vec<_> = (0..65).map(|n| format!("x-{n}")).collect();
    let many: Vec<_> = many.iter().map(|name| (&**name, "1")).collect();
    let large = [17_000, 80_000, 170_000].map(|size| "x".repeat(size));
    let cases: [Fields<'_>; 8] = [
        &many,
        &[("x-a", &large[0])],
        &[("x-a", &large[1])],
        &[("x-a", &large[2])],
        &[(":path", "/b\u{ff}")],
        &[("x-a", "1"), (":status", "200")],
        &[(":method", "GET")],
        &[("x-a", " 1")],
    ];
    for trailers in cases {
        let mut client = Http2::connect(&gateway);
        client.head(1, POST, false);
        client.data(1, "content", false);
        client.head(1, trailers, true);
        let outcome = client.outcome(1);
        let refused = matches!(outcome, Outcome::Reset | Outcome::Answered(400..));
        assert!(refused, "{:?}: {outcome:?}", trailers[0].0);
        client.head(3, &[(":method", "HEAD"), GET[1], GET[2], (":path", "/alive")], true);
        assert_eq!(client.outcome(3), Outcome::Answered(200), "the connection lives on");
    }
    let seen = service.seen();
    assert!(seen.iter().all(|seen| seen.target() == "/alive"), "{seen:#?}");
}

#[test]
fn a_response_lasts_until_its_client_has_granted_window_for_all_of_it() {
    let service = Upstream::start(|_| ok(&"x".repeat(70_000)));
    let rest = open(&service).replace("auth: none }", "auth: none, limits: [slots] }");
    let gateway =
        Gateway::start("", &format!("limits:\n  slots: {{ concurrency: 1, by: route }}\n{rest}"));
    let mut client = Http2::connect(&gateway);
    client.head(1, &GET, true);
    assert_eq!(client.outcome(1), Outcome::Answered(200));
    // 4,465 bytes are beyond the window of the stream.
    client.head(3, &GET, true);
    assert_eq!(client.outcome(3), Outcome::Answered(429));

    client.grant(1, 70_000);

    eventually("a free place", || gateway.get("/", "").status == 200);
}

#[test]
fn content_on_its_way_to_refused_uploads_is_ignored() {
    // More than the library remembers.
    const UPLOADS: u32 = 1_300;
    let service = Upstream::polite();
    let rest = open(&service).replace("auth: none }", "auth: none, methods: [GET] }");
    let gateway = Gateway::start("", &rest);
    let mut client = Http2::connect(&gateway);
    let uploads = || (0..UPLOADS).map(|n| 2 * n + 1);
    for stream in uploads() {
        client.grant(0, 1_000);
        client.head(stream, POST, false);
        assert_eq!(client.outcome(stream), Outcome::Answered(405));
    }
    for stream in uploads() {
        client.data(stream, "content", true);
    }
    let next = 2 * UPLOADS + 1;
    client.head(next, &GET, true);
    assert_eq!(client.outcome(next), Outcome::Answered(200));
    assert_eq!(gateway.metric(BAD_REQUESTS), 0.0);
}

#[test]
fn a_connection_begins_with_settings() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    let _ = client.try_send(frame(PING, 0, 0, &[0; 8]));
    client.stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let mut goaway = None;
    while let Ok((kind, _, _, payload)) = read_frame(&mut client.stream) {
        goaway = (kind == GOAWAY).then_some(payload).or(goaway);
    }
    assert_eq!(goaway.as_deref(), Some(&[0, 0, 0, 0, 0, 0, 0, 1][..]), "PROTOCOL_ERROR");
    eventually("the count of it", || gateway.metric(BAD_REQUESTS) == 1.0);
}

const PING: u8 = 6;
const GOAWAY: u8 = 7;
