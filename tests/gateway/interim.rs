//! Interim responses of a service reach clients that understand them (RFC 9110 §15.2, RFC 8297).

use core::time::Duration;
use std::io::Write;
use std::sync::Mutex;
use std::sync::mpsc::channel;

use crate::support::{GET, Gateway, Http2, Outcome, Reading, Upstream, ok, open};

const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n";

/// A service that sends `interim` before each response.
fn hinting(interim: String) -> Upstream {
    Upstream::by_hand(move |mut stream, connection, seen| {
        let mut reading = Reading::new(&stream);
        while let Some(request) = reading.request(connection) {
            seen(request);
            stream.write_all(&[interim.as_bytes(), &ok("fine")].concat()).expect("a reader");
        }
    })
}

#[test]
fn early_hints_reach_the_client_before_the_response_is_there() {
    let (go, went) = channel::<()>();
    let went = Mutex::new(went);
    let service = Upstream::by_hand(move |mut stream, connection, _| {
        let mut reading = Reading::new(&stream);
        while reading.request(connection).is_some() {
            stream.write_all(HINTS.as_bytes()).expect("a reader");
            went.lock().expect("one").recv().expect("the client has them");
            stream.write_all(&ok("fine")).expect("a reader");
        }
    });
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();
    for _ in 0..3 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let hints = client.answer();
        assert_eq!((hints.status, hints.field("link")), (103, Some("</style.css>; rel=preload")));
        go.send(()).expect("the service waits");
        assert_eq!(client.answer().text(), "fine");
    }
}

#[test]
fn interim_responses_precede_the_response_in_their_order() {
    let processing = "HTTP/1.1 102 Processing\r\n\r\n";
    let service = hinting(format!("{processing}{HINTS}{HINTS}"));
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let statuses = [(); 4].map(|()| client.answer().status);
        assert_eq!(statuses, [102, 103, 103, 200]);
    }
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    assert_eq!(client.answer().status, 100);
    client.send("body");
    assert_eq!([(); 4].map(|()| client.answer().status), [102, 103, 103, 200]);
}

#[test]
fn a_client_that_does_not_understand_interim_responses_gets_none() {
    let service = hinting(HINTS.repeat(3));
    let gateway = Gateway::start("", &open(&service));
    assert_eq!(gateway.ask("GET / HTTP/1.0\r\nHost: a\r\n\r\n").status, 200);
}

#[test]
fn http_2_clients_get_interim_responses_on_their_streams() {
    let service = hinting(format!("HTTP/1.1 102 Processing\r\n\r\n{}", HINTS.repeat(100)));
    let gateway = Gateway::start("", &open(&service));
    let mut client = Http2::connect(&gateway);
    for stream in [1, 3] {
        client.head(stream, &GET, true);
        assert_eq!(client.outcome(stream), Outcome::Answered(102));
        let mut hints = 0;
        while client.outcome(stream) == Outcome::Answered(103) {
            hints += 1;
        }
        assert!((1..=15).contains(&hints), "{hints}");
    }
}

#[test]
fn http_2_clients_are_told_to_continue_when_the_content_is_wanted() {
    let service = hinting(String::new());
    let gateway = Gateway::start("", &open(&service));
    let mut client = Http2::connect(&gateway);
    let expecting = |length: &'static str| {
        let fields = [("expect", "100-Continue"), ("content-length", length)];
        [&[(":method", "POST")], &GET[1..], &fields].concat()
    };
    client.head(1, &expecting("4"), false);
    assert_eq!(client.outcome(1), Outcome::Answered(100));
    client.data(1, "body", true);
    assert_eq!(client.outcome(1), Outcome::Answered(200));

    client.head(3, &expecting("99999999999"), false);
    assert_eq!(client.outcome(3), Outcome::Answered(413));
}

#[test]
fn a_switch_of_protocols_or_a_continue_of_the_service_is_not_passed_on() {
    let service = hinting("HTTP/1.1 100 Continue\r\n\r\n".to_owned());
    let gateway = Gateway::start("", &open(&service));
    assert_eq!(gateway.get("/", "").status, 200);

    let service = hinting(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n".to_owned(),
    );
    let gateway = Gateway::start("", &open(&service));
    assert_eq!(gateway.get("/", "").status, 502);
}

#[test]
fn a_request_whose_service_sends_interim_responses_without_end_fails() {
    let (over, ended) = channel::<()>();
    let service = Upstream::by_hand(move |mut stream, connection, _| {
        if Reading::new(&stream).request(connection).is_some() {
            while stream.write_all(HINTS.repeat(100).as_bytes()).is_ok() {}
            over.send(()).expect("the test waits");
        }
    });
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");

    let last = core::iter::repeat_with(|| client.answer()).find(|answer| answer.status != 103);

    assert_eq!(last.expect("a response").status, 502);
    ended.recv_timeout(Duration::from_secs(20)).expect("the service's connection ends");
}

#[test]
fn interim_responses_are_edited_and_bounded_like_others() {
    let fields = "Link: </a>\r\nX-Internal: secret\r\nConnection: x-hop\r\nX-Hop: a\r\n\
                  Set-Cookie: a=b\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n";
    // Ambiguous framing in an interim response is no framing, but it is dropped whole.
    let bad = format!("HTTP/1.1 103 Early Hints\r\n{fields}Content-Length: 6\r\n\r\n");
    let good = format!("HTTP/1.1 103 Early Hints\r\n{fields}\r\n");
    let service = hinting(format!("{bad}{}", good.repeat(100)));
    let rest = open(&service).replace(
        "auth: none }",
        "auth: none, headers: { response: { remove: [X-Internal], add: { Set-Cookie: a=b } } } }",
    );
    let gateway = Gateway::start("", &rest);
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut interim = 0;
    let answer = loop {
        let answer = client.answer();
        if answer.status != 103 {
            break answer;
        }
        interim += 1;
        assert_eq!(answer.field("link"), Some("</a>"));
        for name in [
            "x-internal",
            "x-hop",
            "connection",
            "set-cookie",
            "content-length",
            "transfer-encoding",
        ] {
            assert_eq!(answer.field(name), None, "{name}");
        }
    };
    assert_eq!(answer.text(), "fine");
    assert!((1..=16).contains(&interim), "{interim}");
}
