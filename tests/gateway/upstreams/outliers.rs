//! Targets that fail requests are left alone, as many as may be, and backups take their place.

use core::fmt::Write as _;
use core::time::Duration;
use std::io::{Read as _, Write as _};
use std::sync::{Mutex, mpsc};
use tokio::time::Instant;

use super::health::{error, file};
use super::service::Service;
use crate::support::{Gateway, Seen, Upstream, eventually, ok, open};
use northgate::base::clock::Clock;

#[test]
fn as_many_failing_targets_are_left_alone_as_may_be() {
    let sick: Vec<_> = (0..3).map(|_| Service::start(|_| error(500))).collect();
    let well: Vec<_> = (0..2).map(|_| Service::start(|_| ok("fine"))).collect();
    let all: Vec<_> = sick.iter().chain(&well).collect();
    let gateway = Gateway::start("", &file(&all, "outlier: { error_rate: 0% }"));
    for _ in 0..60 {
        gateway.get("/first", "");
    }

    let failed = (0..60).filter(|_| gateway.get("/then", "").status == 500).count();

    let mut asked: Vec<_> = sick.iter().map(|service| service.count("/then")).collect();
    asked.sort_unstable();
    assert_eq!(asked, [0, 0, failed], "half of five is two");
}

#[test]
fn a_backup_serves_where_every_other_target_fails() {
    let primaries = [(); 2].map(|()| Service::start(|_| error(500)));
    let backup = Service::start(|_| ok("backup"));
    let gateway = Gateway::start("", &with_backup(&primaries, &backup, ""));
    for _ in 0..10 {
        gateway.get("/", "");
    }

    for _ in 0..20 {
        assert_eq!(gateway.get("/", "").text(), "backup");
    }
    assert_eq!(primaries.each_ref().map(|primary| primary.count("/")), [5, 5]);
}

#[test]
fn health_is_ignored_only_where_no_backup_is_well() {
    let primaries = [(); 2].map(|()| Service::start(|_| ok("primary")));
    let backup = Service::start(|_| ok("backup"));
    let more = ", panic_threshold: 50%, retries: { attempts: 0 }, \
                health_check: { path: /health, interval: 250ms, unhealthy_after: 1 }";
    primaries.iter().for_each(Service::kill);
    let gateway = Gateway::at(Clock::system(), "", &with_backup(&primaries, &backup, more));
    eventually("the backup serves", || gateway.get("/", "").status == 200);

    for _ in 0..20 {
        assert_eq!(gateway.get("/", "").text(), "backup");
    }
}

/// A response that is too large to be waited for, and malformed at its end.
fn torn() -> Vec<u8> {
    let mut response = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
    let _ = write!(response, "{:x}\r\n{}\r\nZZ\r\n", 300_000, "x".repeat(300_000));
    response.into_bytes()
}

#[test]
fn a_target_that_breaks_off_its_responses_is_ejected() {
    let torn = Service::start(|_| torn());
    let other = Service::start(|_| ok("fine"));
    let gateway = Gateway::start("", &file(&[&torn, &other], "outlier: { error_rate: 0% }"));

    for _ in 0..40 {
        let mut client = gateway.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        client.rest();
    }

    assert_eq!((torn.count("/"), other.count("/")), (5, 35));
    assert!(gateway.log().contains("a chunk of the content is malformed"));
}

#[test]
fn a_good_response_ends_a_row_of_torn_ones() {
    let service = Service::start(|seen| match seen.target() {
        "/torn" => torn(),
        _ => ok("fine"),
    });
    let more = "outlier: { errors: 3, error_rate: 0% }, \
                circuit_breaker: { errors: 3, error_rate: 0% }, retries: { attempts: 0 }";
    let gateway = Gateway::start("", &file(&[&service], more));

    for _ in 0..5 {
        let mut client = gateway.connect();
        client.send("GET /torn HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert!(client.rest().len() > 100_000);
        assert_eq!(gateway.get("/", "").text(), "fine");
    }
}

/// Servers give up a response that is not read: nginx after 60 s (`send_timeout`), as many others.
#[test]
fn a_response_that_breaks_off_behind_a_pause_of_its_client_is_no_failure_of_its_target() {
    let (full, paused) = (mpsc::channel(), mpsc::channel::<()>());
    let (full, paused) = ((Mutex::new(full.0), full.1), (paused.0, Mutex::new(paused.1)));
    let service = Upstream::by_hand(move |mut stream, _, _| {
        if stream.read(&mut [0; 1000]).is_ok_and(|length| length > 0) {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n");
            let _ = stream.set_write_timeout(Some(Duration::from_millis(200)));
            while stream.write(&[b'x'; 65_536]).is_ok() {}
            let _ = full.0.lock().expect("a sender").send(());
            let _ = paused.1.lock().expect("a receiver").recv();
        }
    });
    let rest = open(&service).replace("targets", "outlier: { errors: 1, eject_for: 1h }, targets");
    let gateway = Gateway::start("", &rest);
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    full.1.recv().expect("a full socket");

    gateway.clock.advance(Duration::from_secs(2));
    paused.0.send(()).expect("a service");

    assert!(client.rest().len() < 100_000_000);
    let state = gateway.operator("GET /-/upstreams HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(state.text().contains(r#""state":"healthy""#), "{}", state.text());
}

#[test]
fn requests_that_break_a_connection_cost_a_check_per_second_and_one_check_decides_nothing() {
    let service = Service::start({
        let checks = core::sync::atomic::AtomicUsize::new(0);
        move |seen: &Seen| match seen.target() {
            "/crash" => Vec::new(),
            // The second check fails, which the first crash asks for.
            "/health" if checks.fetch_add(1, core::sync::atomic::Ordering::SeqCst) == 1 => {
                error(500)
            }
            _ => ok("fine"),
        }
    });
    let more = "health_check: { path: /health, interval: 1h, healthy_after: 1000 }, \
                outlier: { errors: 1000, error_rate: 0% }, retries: { attempts: 0 }";
    let gateway = Gateway::at(Clock::system(), "", &file(&[&service], more));
    eventually("the first check", || service.count("/health") == 1);
    let began = Instant::now();

    for _ in 0..50 {
        assert_eq!(gateway.get("/crash", "").status, 502);
        std::thread::sleep(Duration::from_millis(20));
    }

    // Besides one for each second, that of the start, and the one that follows the failure.
    let checks = service.count("/health") as u64;
    assert!(checks <= began.elapsed().as_secs() + 3, "{checks}");
    eventually("the failed check is followed by another", || service.count("/health") >= 3);
    assert_eq!(gateway.get("/", "").status, 200, "it was never out");
}

fn with_backup(primaries: &[Service; 2], backup: &Service, more: &str) -> String {
    format!(
        "upstreams: {{ a: {{ targets: [{}, {}, {{ url: {}, backup: true }}]{more} }} }}\n\
         routes: [{{ id: open, path: /**, upstream: a, auth: none }}]\n",
        primaries[0].url(),
        primaries[1].url(),
        backup.url()
    )
}

#[test]
fn a_target_that_is_ejected_and_still_used_is_not_called_out() {
    let sick = Service::start(|_| error(500));
    let gateway = Gateway::start("", &file(&[&sick], "outlier: { errors: 3 }"));

    for _ in 0..5 {
        gateway.get("/", "");
    }

    assert_eq!(sick.count("/"), 5);
    let state = gateway.operator("GET /-/upstreams HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let all: serde_json::Value = serde_json::from_slice(&state.body).expect("JSON");
    let endpoint = &all[0]["endpoints"][0];
    assert_eq!((&endpoint["state"], &endpoint["out"]), (&"ejected".into(), &false.into()));
    assert_eq!(endpoint["last_failure"], "status 500");
    let series = "northgate_upstream_target_healthy{upstream=\"a\",target=\"";
    assert_eq!(gateway.metric(&format!("{series}{}\"}}", sick.url())), 1.0);
}
