//! Requests on connections that end at the worst moment.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use http::Request;
use socket2::SockRef;
use tokio::task::LocalSet;

use super::super::endpoint::{Dial, Endpoint, EndpointKey};
use super::super::{ExtraHeaders, Settings};
use super::*;
use crate::observe::metrics::Metrics;

/// The worker has not waited for events since the upstream reset the connection, so that the request is about to be sent.
#[tokio::test]
async fn a_request_of_which_a_reset_connection_takes_nothing_was_not_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let settings = Settings::new("test", Vec::new());
    let authority = address.to_string().into();
    let key = EndpointKey::new(&settings, Scheme::Http, authority, Dial::Socket(address));
    let endpoint = Arc::new(Endpoint::new(key, None));
    let metrics = Metrics::default().upstream("test");
    let limit = Duration::from_secs(10);
    let settings = PoolSettings { connect_timeout: limit, keep_alive: limit, metrics: &metrics };
    let (head, ()) =
        Request::post("/").header("host", "api.test").body(()).expect("valid").into_parts();
    let request = OutgoingRequest { head: &head, fields: ExtraHeaders::default(), interim: None };

    let local = LocalSet::new();
    let outcome = local.run_until(async {
        let pool = ConnectionPool::default();
        let accepting = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).expect("settings");
            // The preface: it is read, so that only the reset below ends the connection.
            stream.read_exact(&mut [0; 24]).expect("a preface");
            stream
        });
        let acquired = pool.acquire(&endpoint, &settings, Sharing::Shared, Duration::ZERO).await;
        let Ok(Acquired::Http2(place)) = acquired else { panic!("{acquired:?}") };
        let permit = endpoint.try_admit().expect("a permit");
        let stream = accepting.join().expect("a connection");
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket");
        drop(stream);

        let exchange = Exchange {
            request: &request,
            host: None,
            scheme: Scheme::Http,
            wait: limit,
            since: Instant::now(),
            idle_timeout: limit,
            metrics: Arc::clone(&metrics),
        };
        exchange.run(place, permit, "content".into()).await
    });

    let error = outcome.await.expect_err("a reset");
    assert_eq!((error.failure, error.sent, error.stale), (UpstreamError::Refused, false, true));
    assert!(error.anew.is_some());
}
