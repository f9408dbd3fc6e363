//! An upload that goes on behind its response is recorded when both have ended, with what became of each.

use std::io::Write;

use serde_json::Value;

use crate::support::{Gateway, Http2, Outcome, Reading, Upstream, eventually, open};

const ACCEPTED: &[u8] = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn an_early_response_is_recorded_once_its_upload_has_ended() {
    let service = accepting();
    let gateway = Gateway::start("", &open(&service));

    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nx");
    assert_eq!(client.answer().status, 202);
    assert_eq!(recorded(&gateway), [] as [Value; 0]);
    client.send(vec![b'x'; 999_999]);
    service.reached(1);

    let line = only_line(&gateway);
    assert_eq!(line["http.response.status_code"], 202);
    assert_eq!(line["http.request.body.size"], 1_000_000);
    assert_eq!((&line["error.type"], &line["error.cause"]), (&Value::Null, &Value::Null));
    assert!((1_000_000.0..1_000_500.0).contains(&gateway.metric(REQUEST_BYTES)));
}

#[test]
fn an_upload_that_a_limit_cuts_behind_its_response_is_a_rejection() {
    let service = accepting();
    for (server, cut, error, reason) in [
        ("max_body_size: 5B", "5\r\n23456\r\n", "body-too-large", "body_size"),
        ("body_timeout: 200ms", "", "body-timeout", "body_size"),
    ] {
        let gateway = Gateway::start(server, &open(&service));

        let mut client = gateway.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n");
        assert_eq!(client.answer().status, 202);
        client.send(cut);

        let line = only_line(&gateway);
        assert_eq!(line["http.response.status_code"], 202, "{line}");
        assert_eq!(line["error.type"], error);
        let rejections =
            format!("northgate_http_rejections_total{{route=\"open\",reason=\"{reason}\"}}");
        assert_eq!(gateway.metric(&rejections) as u64, 1, "{rejections}");
    }
    assert_eq!(service.seen().len(), 0, "no request is whole");
}

#[test]
fn a_limit_that_cuts_an_upload_over_http_2_resets_it_with_an_error() {
    let service = accepting();
    let gateway = Gateway::start("max_body_size: 5B", &open(&service));
    let head = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/")];
    let mut http2 = Http2::connect(&gateway);

    http2.head(1, &head, false);
    assert_eq!(http2.outcome(1), Outcome::Answered(202));
    http2.data(1, "123456", false);

    assert_eq!(http2.reset_code(1), Some(CANCEL));
    assert_eq!(only_line(&gateway)["error.type"], "body-too-large");
}

#[test]
fn a_service_that_stops_reading_resets_an_upload_over_http_2_without_an_error() {
    let service = Upstream::by_hand(|mut stream, connection, _| {
        let _ = Reading::new(&stream).head(connection);
        let _ = stream.write_all(ACCEPTED);
    });
    let gateway = Gateway::start("", &open(&service));
    let head = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/")];
    let mut http2 = Http2::connect(&gateway);

    http2.head(1, &head, false);
    assert_eq!(http2.outcome(1), Outcome::Answered(202));
    for _ in 0..20 {
        http2.data(1, &"x".repeat(3_000), false);
    }

    assert_eq!(http2.reset_code(1), Some(NO_ERROR));
    let line = only_line(&gateway);
    assert_eq!(
        (&line["http.response.status_code"], &line["error.type"]),
        (&202.into(), &Value::Null)
    );
    assert_eq!(line["error.cause"], "the upstream stopped reading the request after its response");
}

#[test]
fn a_client_that_leaves_behind_a_success_before_its_upload_is_whole_is_recorded_as_gone() {
    for (response, status) in [
        (ACCEPTED, 499),
        // A client need not send the rest behind an error.
        (&b"HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\nno"[..], 401),
    ] {
        let service = responding(response);
        let gateway = Gateway::start("", &open(&service));

        let mut client = gateway.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf");
        client.answer();
        drop(client);

        assert_eq!(only_line(&gateway)["http.response.status_code"], status);
    }
}

/// A service that responds as soon as it has a head, and reads on.
fn accepting() -> Upstream {
    responding(ACCEPTED)
}

fn responding(response: &'static [u8]) -> Upstream {
    Upstream::by_hand(move |mut stream, connection, seen| {
        let mut reading = Reading::new(&stream);
        while let Some(mut request) = reading.head(connection) {
            stream.write_all(response).expect("a reader");
            if reading.body(&mut request).is_none() {
                return;
            }
            seen(request);
        }
    })
}

/// Returns the only line of the access log, once it is written.
fn only_line(gateway: &Gateway) -> Value {
    eventually("a line", || !recorded(gateway).is_empty());
    let mut lines = recorded(gateway);
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.remove(0)
}

fn recorded(gateway: &Gateway) -> Vec<Value> {
    let log = gateway.log();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines.filter(|line| line.get("http.request.body.size").is_some()).collect()
}

const REQUEST_BYTES: &str = "northgate_http_request_bytes_total{route=\"open\"}";
const NO_ERROR: u32 = 0;
const CANCEL: u32 = 8;
