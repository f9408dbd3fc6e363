//! Requests on connections that end at the worst moment, and requests that wait for connections.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Barrier;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

use futures_util::future::join_all;
use http::Request;
use socket2::SockRef;
use tokio::task::LocalSet;

use super::super::balancing::endpoint::{Dial, Endpoint, EndpointKey};
use super::super::connections::connect::ConnectError;
use super::super::{ExtraHeaders, Settings};
use super::*;
use crate::observe::metrics::Metrics;

/// The worker has not waited for events since the upstream reset the connection, so that the request is about to be sent.
#[tokio::test]
async fn a_request_of_which_a_reset_connection_takes_nothing_was_not_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let endpoint = endpoint(address);
    let metrics = Metrics::default().upstream("test");
    let limit = Duration::from_secs(10);
    let settings = PoolSettings {
        connect_timeout: limit,
        wait: limit * 10,
        keep_alive: limit,
        metrics: &metrics,
    };
    let (head, ()) =
        Request::post("/").header("host", "api.test").body(()).expect("valid").into_parts();
    let request = OutgoingRequest { head: &head, fields: ExtraHeaders::default(), interim: None };

    let local = LocalSet::new();
    let outcome = local.run_until(async {
        let pool = SharedConnections::default();
        let accepting = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).expect("settings");
            // The preface: it is read, so that only the reset below ends the connection.
            stream.read_exact(&mut [0; 24]).expect("a preface");
            stream
        });
        let acquired = pool.acquire(&endpoint, &settings, Sharing::Shared, Duration::ZERO).await;
        let Ok(Acquired::Http2(stream_permit)) = acquired else { panic!("{acquired:?}") };
        let permit = endpoint.try_admit().expect("a permit");
        let stream = accepting.join().expect("a connection");
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket");
        drop(stream);

        let exchange = Http2Request {
            request: &request,
            host: None,
            scheme: Scheme::Http,
            websocket: None,
            wait: limit,
            since: Instant::now(),
            deadline: None,
            idle_timeout: limit,
            metrics: Arc::clone(&metrics),
        };
        exchange.run(stream_permit, permit, "content".into()).await
    });

    let error = outcome.await.expect_err("a reset");
    assert_eq!((error.failure, error.sent, error.stale), (UpstreamError::Refused, false, true));
    assert!(error.remaining_content.is_some());
}

/// The service sends its settings late, and takes one stream on each connection: the last of the requests wait for
/// three rounds of eight connections, longer than `connect_timeout`.
#[tokio::test]
async fn requests_wait_while_connections_are_opened_one_after_another() {
    const LATE: Duration = Duration::from_millis(1500);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let acquired = acquire(listener, Duration::from_secs(4), 24, |_, mut stream| {
        std::thread::sleep(LATE);
        stream.write_all(ONE_STREAM).expect("settings");
    });
    for result in acquired.await {
        assert!(matches!(result, Ok(Acquired::Http2(_))), "{result:?}");
    }
}

/// The first connection says that each takes one stream. Of the next two, one fails once the other is open.
#[tokio::test]
async fn a_failed_connection_fails_no_request_while_others_are_opened() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let other_is_open = Barrier::new(2);
    let limit = Duration::from_secs(60);
    let acquired = acquire(listener, limit, 3, move |index, mut stream| {
        if index == 1 {
            other_is_open.wait();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").expect("no settings");
            return;
        }
        stream.write_all(ONE_STREAM).expect("settings");
        if index == 2 {
            let mut received = Vec::new();
            while !received.ends_with(ACKNOWLEDGED) {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("an acknowledgement");
                received.extend(byte);
            }
            other_is_open.wait();
        }
    });
    for result in acquired.await {
        assert!(matches!(result, Ok(Acquired::Http2(_))), "{result:?}");
    }
}

#[tokio::test]
async fn an_endpoint_that_allows_no_stream_gets_a_few_connections_for_a_request() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let connections = Arc::<AtomicUsize>::default();
    let opened = Arc::clone(&connections);
    let acquired = acquire(listener, Duration::from_secs(60), 1, move |_, mut stream| {
        opened.fetch_add(1, SeqCst);
        stream.write_all(NO_STREAM).expect("settings");
    });
    let result = &acquired.await[0];
    let failure = result.as_ref().err().map(|error| error.failure);
    assert_eq!(failure, Some(UpstreamError::Refused));
    assert!((1..=4).contains(&connections.load(SeqCst)), "{connections:?}");
}

/// The service accepts connections, and sends no settings.
#[tokio::test]
async fn a_handshake_that_takes_longer_than_the_request_may_is_no_lack_of_streams() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = endpoint(listener.local_addr().expect("an address"));
    let metrics = Metrics::default().upstream("test");
    let limit = Duration::from_secs(60);
    let wait = Duration::from_millis(100);
    let settings =
        PoolSettings { connect_timeout: limit, wait, keep_alive: limit, metrics: &metrics };
    let pool = SharedConnections::default();

    let acquiring = pool.acquire(&endpoint, &settings, Sharing::Shared, Duration::ZERO);
    let failure = LocalSet::new().run_until(acquiring).await.map_err(|error| error.failure);

    assert_eq!(failure.err(), Some(UpstreamError::Connect));
}

/// One connection with one stream is all that the service takes; it closes further ones at once.
#[tokio::test]
async fn requests_wait_for_a_stream_where_the_endpoint_takes_no_more_connections() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        let (mut first, _) = listener.accept().expect("a connection");
        first.write_all(ONE_STREAM).expect("settings");
        listener.incoming().for_each(drop);
    });
    let endpoint = endpoint(address);
    let metrics = Metrics::default().upstream("test");
    let limit = Duration::from_secs(60);
    let settings =
        PoolSettings { connect_timeout: limit, wait: limit, keep_alive: limit, metrics: &metrics };
    let pool = SharedConnections::default();
    let served = AtomicUsize::new(0);
    let requests = (0..20).map(async |_| {
        let result = pool.acquire(&endpoint, &settings, Sharing::Shared, Duration::ZERO).await;
        assert!(matches!(result, Ok(Acquired::Http2(_))), "{result:?}");
        tokio::task::yield_now().await;
        served.fetch_add(1, SeqCst);
    });
    LocalSet::new().run_until(join_all(requests)).await;
    assert_eq!(served.into_inner(), 20);
}

/// Acquires `count` stream permits at the same time. `accept` serves each connection, with its index, in a thread of its own.
async fn acquire(
    listener: TcpListener,
    limit: Duration,
    count: usize,
    accept: impl Fn(usize, &TcpStream) + Send + Sync + 'static,
) -> Vec<Result<Acquired, ConnectError>> {
    let address = listener.local_addr().expect("an address");
    let endpoint = endpoint(address);
    let metrics = Metrics::default().upstream("test");
    let settings = PoolSettings {
        connect_timeout: limit,
        wait: limit * 10,
        keep_alive: limit,
        metrics: &metrics,
    };
    let accept = Arc::new(accept);
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for index in 0.. {
            let Ok((stream, _)) = listener.accept() else { break };
            let stream = Arc::new(stream);
            kept.push(Arc::clone(&stream));
            let accept = Arc::clone(&accept);
            std::thread::spawn(move || accept(index, &stream));
        }
    });
    let pool = SharedConnections::default();
    let each =
        (0..count).map(|_| pool.acquire(&endpoint, &settings, Sharing::Shared, Duration::ZERO));
    LocalSet::new().run_until(join_all(each)).await
}

fn endpoint(address: SocketAddr) -> Arc<Endpoint> {
    let settings = Settings::new("test", Vec::new());
    let authority = address.to_string().into();
    let key = EndpointKey::new(&settings, Scheme::Http, authority, Dial::Socket(address), None);
    Arc::new(Endpoint::new(key, None))
}

/// A frame of settings: one stream at a time (RFC 9113 §6.5).
const ONE_STREAM: &[u8] = &[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1];
/// The same without any stream.
const NO_STREAM: &[u8] = &[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0];
/// The frame that acknowledges settings.
const ACKNOWLEDGED: &[u8] = &[0, 0, 0, 4, 1, 0, 0, 0, 0];
