//! A request is lost to no target that dies, and sent no more often than promised.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use core::time::Duration;
use std::sync::Arc;
use std::thread;

use super::health::file;
use super::service::Service;
use crate::support::{Client, Gateway, eventually, ok};
use northgate::base::clock::Clock;

#[test]
fn targets_that_die_one_after_the_other_cost_no_request() {
    let services: Arc<[Service]> = (0..3).map(|_| Service::start(|_| ok("fine"))).collect();
    let all: Vec<_> = services.iter().collect();
    let gateway = Gateway::at(Clock::system(), "", &file(&all, "retries: { budget: 100% }"));
    let over = Arc::new(AtomicBool::new(false));
    let killer = {
        let (services, over) = (Arc::clone(&services), Arc::clone(&over));
        thread::spawn(move || {
            for round in 0..16 {
                let service = &services[round % services.len()];
                service.kill();
                thread::sleep(Duration::from_millis(60));
                service.restart();
                thread::sleep(Duration::from_millis(60));
            }
            over.store(true, SeqCst);
        })
    };
    let sent = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (address, sent, over) = (gateway.address(), Arc::clone(&sent), Arc::clone(&over));
            thread::spawn(move || {
                let mut client = Client::connect(address);
                while !over.load(SeqCst) {
                    let number = sent.fetch_add(1, SeqCst);
                    client.send(format!("GET /r{number} HTTP/1.1\r\nHost: a\r\n\r\n"));
                    assert_eq!(client.answer().status, 200, "request {number}");
                    thread::sleep(Duration::from_millis(2));
                }
            })
        })
        .collect();
    for client in clients {
        client.join().expect("no error");
    }
    killer.join().expect("no error");

    let mut times = std::collections::HashMap::<String, usize>::new();
    for (target, count) in services.iter().flat_map(Service::received) {
        *times.entry(target).or_default() += count;
    }
    assert!(sent.load(SeqCst) > 16, "{sent:?}");
    let most = times.values().max().copied();
    assert!(most <= Some(2), "one retry was promised: {most:?}");
}

#[test]
fn methods_that_are_idempotent_by_their_registry_are_sent_again() {
    for (method, attempts) in
        [("PROPFIND", 2), ("REPORT", 2), ("SEARCH", 2), ("MKCOL", 2), ("LOCK", 1), ("PATCH", 1)]
    {
        let services = [(); 2].map(|()| Service::start(|_| Vec::new()));
        let gateway =
            Gateway::start("", &file(&[&services[0], &services[1]], "retries: { budget: 100% }"));

        let request = format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(gateway.ask(&request).status, 502, "{method}");

        let sent = services.iter().flat_map(Service::received).map(|(_, count)| count);
        assert_eq!(sent.sum::<usize>(), attempts, "{method}");
    }
}

#[test]
fn all_that_a_target_had_in_flight_when_it_died_is_sent_again() {
    let may_answer = Arc::new(AtomicBool::new(false));
    let [dying, other] = [(); 2].map(|()| {
        let may_answer = Arc::clone(&may_answer);
        Service::start(move |_| {
            while !may_answer.load(SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            ok("fine")
        })
    });
    // More than the budget of 20 %, or of 10 retries.
    let gateway = Gateway::at(Clock::system(), "", &file(&[&dying, &other], ""));
    let clients: Vec<_> = (0..60)
        .map(|_| {
            let mut client = gateway.connect();
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            client
        })
        .collect();
    eventually("all are in flight", || dying.count("/") == 30 && other.count("/") == 30);

    dying.kill();

    eventually("all are at the other", || other.count("/") == 60);
    may_answer.store(true, SeqCst);
    for mut client in clients {
        assert_eq!(client.answer().status, 200);
    }
}
