//! What a request costs services that end their connections by GOAWAY: as many receipts as `retries` promises.

use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use core::time::Duration;
use std::io::{Read, Write};
use std::sync::{Arc, Barrier};
use std::thread;

use super::{echo, with};
use crate::support::{Client, Gateway, drain, frame, next_frame, raw_service};

#[test]
fn a_request_goes_to_a_service_that_ends_every_connection_no_more_often_than_promised() {
    let (received, url) = ending_connections(0);
    let (_, other) = ending_connections(0);
    for targets in [&[&*url][..], &[&*url, &*other]] {
        for (attempts, most) in [(0, 1), (2, 3)] {
            let settings =
                format!(", retries: {{ attempts: {attempts} }}, outlier: {{ errors: 100 }}");
            let gateway = Gateway::start("", &with(targets, &settings));
            for method in ["GET", "POST"] {
                received.store(0, SeqCst);

                assert!(gateway.ask(&empty_request(method)).status >= 502);

                let received = received.load(SeqCst);
                assert!(received <= most, "{method}, {attempts} attempts: {received}");
            }
        }
    }
}

/// Requests that share the connections that end.
#[test]
fn requests_at_a_time_cost_a_service_that_ends_every_connection_no_more_than_promised() {
    let (received, url) = ending_connections(0);
    // The budget allows ten further attempts.
    for (attempts, most) in [(0, 12), (2, 22)] {
        let settings = format!(", retries: {{ attempts: {attempts} }}, outlier: {{ errors: 100 }}");
        let gateway = Gateway::start("", &with(&[&url], &settings));
        received.store(0, SeqCst);

        let statuses = ask_at_a_time(&gateway, 12, "POST");

        assert!(statuses.iter().all(|status| *status == 503), "{statuses:?}");
        let received = received.load(SeqCst);
        assert!((12..=most).contains(&received), "{attempts} attempts: {received}");
    }
}

#[test]
fn a_service_that_takes_one_request_per_connection_loses_none_and_gets_each_twice_at_most() {
    for targets in [1, 2] {
        let services: Vec<_> = (0..targets).map(|_| ending_connections(1)).collect();
        let urls: Vec<_> = services.iter().map(|(_, url)| &**url).collect();
        let settings = ", retries: { attempts: 0, budget: 0% }, outlier: { errors: 1 }";
        let gateway = Gateway::start("", &with(&urls, settings));
        for method in ["GET", "POST"] {
            services.iter().for_each(|(received, _)| received.store(0, SeqCst));

            assert_eq!(ask_at_a_time(&gateway, 12, method), [200; 12], "{method}");

            let received: usize = services.iter().map(|(received, _)| received.load(SeqCst)).sum();
            assert!((12..=24).contains(&received), "{method}, {targets} targets: {received}");
        }
    }
}

#[test]
fn a_request_beyond_goaway_goes_to_another_target_first() {
    let (received, url) = ending_connections(0);
    let other = echo(100);
    let settings = ", outlier: { errors: 100, error_rate: 0% }, retries: { budget: 0% }";
    let gateway = Gateway::start("", &with(&[&url, &other.url()], settings));

    let statuses: Vec<_> = (0..8).map(|_| gateway.get("/a", "").status).collect();

    assert_eq!(statuses, [200; 8]);
    assert_eq!((received.load(SeqCst), other.calls()), (4, 8));
}

/// Starts a service that answers so many requests of each connection, and ends it by GOAWAY when no further one arrives.
/// Returns the number of requests that it has received, and its URL.
fn ending_connections(answered: usize) -> (Arc<AtomicUsize>, String) {
    let received = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&received);
    let (url, _) = raw_service(move |_, stream| {
        let _ = stream.read_exact(&mut [0; 24]);
        let mut streams = Vec::new();
        while streams.is_empty() || stream.peek(&mut [0]).is_ok_and(|read| read > 0) {
            match next_frame(stream) {
                Some((1, id)) => {
                    count.fetch_add(1, SeqCst);
                    streams.push(id);
                    let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
                }
                Some(_) => {}
                None => return,
            }
        }
        let _ = stream.set_read_timeout(None);
        let taken = &streams[..answered.min(streams.len())];
        let last = taken.last().copied().unwrap_or(0);
        let _ = stream.write_all(&frame(7, 0, 0, &[last.to_be_bytes(), [0; 4]].concat()));
        for id in taken {
            let _ = stream.write_all(&frame(1, 5, *id, &[0x88]));
        }
        drain(stream);
    });
    (received, url)
}

fn empty_request(method: &str) -> String {
    format!("{method} /a HTTP/1.1\r\nHost: api.test\r\nContent-Length: 0\r\n\r\n")
}

/// Sends so many requests at a time, and returns the statuses.
fn ask_at_a_time(gateway: &Gateway, count: usize, method: &str) -> Vec<u16> {
    let (address, begin) = (gateway.address(), Arc::new(Barrier::new(count)));
    let asking = (0..count).map(|_| {
        let (begin, request) = (Arc::clone(&begin), empty_request(method));
        thread::spawn(move || {
            let mut client = Client::connect(address);
            begin.wait();
            client.send(&request);
            client.answer().status
        })
    });
    let asking: Vec<_> = asking.collect();
    asking.into_iter().map(|client| client.join().expect("an answer")).collect()
}
