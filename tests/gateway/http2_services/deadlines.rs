//! Services that are silent towards calls whose deadline is shorter than `timeout`, and calls that end before their content.

use core::time::Duration;
use std::sync::{Arc, Mutex};

use http::Response;
use northgate::base::clock::Clock;

use super::{echo, with};
use crate::support::{
    Gateway, Http2Client, Http2Service, drain, frame, next_frame, raw_service, request_arrived,
    try_read,
};

const DEADLINE: [(&str, &str); 1] = [("grpc-timeout", "300m")];

#[test]
fn a_target_that_is_silent_until_the_deadline_of_calls_is_ejected() {
    let (silent, _) = raw_service(|_, stream| {
        request_arrived(stream);
        drain(stream);
    });
    let other = echo(100);
    let text = with(&[&silent, &other.url()], ", outlier: { errors: 3, eject_for: 1h }");
    let gateway = Gateway::at(Clock::system(), "", &text);

    Http2Client::run(&gateway, async |client| {
        while !is_ejected(&gateway, &silent) {
            client.unary("/a", &DEADLINE, "x").await;
        }
    });

    let series = "northgate_upstream_errors_total{upstream=\"service\",reason=\"timeout\"}";
    assert!(gateway.metric(series) >= 3.0);
}

#[test]
fn a_connection_that_has_gone_silent_gets_no_further_call() {
    let (url, _) = raw_service(|number, stream| {
        if number == 0 {
            request_arrived(stream);
            return drain(stream);
        }
        let mut preface = [0; 24];
        let _ = std::io::Read::read_exact(stream, &mut preface);
        while let Some((kind, id)) = next_frame(stream) {
            if kind == 1 {
                let _ = std::io::Write::write_all(stream, &frame(1, 5, id, &[0x88]));
            }
        }
    });
    let gateway = Gateway::at(Clock::system(), "", &with(&[&url], ""));

    Http2Client::run(&gateway, async |client| {
        // The answer is no response of gRPC, but one.
        while client.unary("/a", &DEADLINE, "x").await.code == Some(4) {}
    });
}

#[test]
fn a_call_that_has_ended_gives_its_place_back_though_its_client_sends_on() {
    let service = Http2Service::start(100, async |mut call| {
        let response = Response::builder().status(404).body(()).expect("a response");
        let _ = call.respond.send_response(response, true);
        let _ = try_read(&mut call.body).await;
    });
    let text = with(&[&service.url()], ", max_connections: 1, connect_timeout: 20s");
    let gateway = Gateway::at(Clock::system(), "", &text);

    Http2Client::run(&gateway, async |client| {
        let (response, _sending) = client.call("/a", &[]).await;
        assert_eq!(response.await.expect("a response").status(), 404);

        let next = client.unary("/a", &[], "x").await;

        assert_eq!(next.http, 404);
    });
}

/// Whatever the time that the first target or upstream took.
#[test]
fn a_further_attempt_and_the_fallback_have_the_time_that_is_left() {
    let timeouts = Arc::new(Mutex::new(Vec::new()));
    let service = Http2Service::start(100, {
        let timeouts = Arc::clone(&timeouts);
        move |mut call| {
            let seen = Arc::clone(&timeouts);
            async move {
                call.read().await;
                let timeout = call.head.headers["grpc-timeout"].to_str().expect("text").to_owned();
                let asked = {
                    let mut seen = seen.lock().expect("a lock");
                    seen.push(timeout);
                    seen.len()
                };
                if asked < 3 {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    return call.respond.send_reset(h2::Reason::REFUSED_STREAM);
                }
                call.answer("x");
            }
        }
    });
    let url = service.url();
    let text = format!(
        "upstreams:\n  service: {{ targets: [\"{url}\"], http2: always }}\n  \
         other: {{ targets: [\"{url}\"], http2: always }}\n\
         routes:\n  - {{ id: open, path: /**, upstream: service, auth: none, \
         fallback: {{ upstream: other }} }}\n"
    );
    let gateway = Gateway::start("", &text);

    let call = Http2Client::run(&gateway, async |client| {
        client.unary("/a", &[("grpc-timeout", "20S")], "x").await
    });

    assert_eq!(call.http, 200);
    let timeouts = timeouts.lock().expect("a lock");
    let left: Vec<u64> = timeouts
        .iter()
        .map(|left| left.strip_suffix('u').expect("microseconds").parse().expect("a number"))
        .collect();
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(left.windows(2).all(|two| two[1] + 300_000 <= two[0]), "{left:?}");
}

fn is_ejected(gateway: &Gateway, url: &str) -> bool {
    let state = gateway.operator("GET /-/upstreams HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let all: serde_json::Value = serde_json::from_slice(&state.body).expect("JSON");
    let endpoints = all[0]["endpoints"].as_array().expect("a list");
    endpoints.iter().any(|endpoint| endpoint["url"] == url && endpoint["state"] == "ejected")
}
