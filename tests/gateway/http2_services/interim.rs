//! Interim responses of services (RFC 9113 §8.1).

use http::Response;

use super::always;
use crate::support::{GET, Gateway, Http2, Http2Service, Outcome};

/// A service that sends `count` hints before each response.
fn hinting(count: usize) -> Http2Service {
    Http2Service::start(100, move |mut call| async move {
        for _ in 0..count {
            let hints = Response::builder()
                .status(103)
                .header("link", "</style.css>; rel=preload")
                .header("set-cookie", "a=b");
            let hints = hints.body(()).expect("a response");
            if call.respond.send_informational(hints).is_err() {
                return;
            }
        }
        call.answer("fine");
    })
}

#[test]
fn interim_responses_of_a_service_reach_the_client() {
    let service = hinting(2);
    let gateway = Gateway::start("", &always(&service.url()));

    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    for _ in 0..2 {
        let hints = client.answer();
        assert_eq!((hints.status, hints.field("link")), (103, Some("</style.css>; rel=preload")));
        assert_eq!(hints.field("set-cookie"), None);
    }
    assert_eq!(client.answer().text(), "fine");

    let mut client = Http2::connect(&gateway);
    client.head(1, &GET, true);
    let outcomes = [(); 3].map(|()| client.outcome(1));
    assert_eq!(outcomes, [103, 103, 200].map(Outcome::Answered));
}

#[test]
fn a_request_whose_service_sends_interim_responses_without_end_fails() {
    let service = hinting(100_000);
    let gateway = Gateway::start("", &always(&service.url()));
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");

    let last = core::iter::repeat_with(|| client.answer()).find(|answer| answer.status != 103);

    assert_eq!(last.expect("a response").status, 502);
}
