//! The client: it calls, and panics at the first answer that is not the promised one.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request};

use crate::Message;
use crate::generated::service_client::ServiceClient;

const STREAMS: usize = 10_000;
/// What the gateway allows on one connection unless its file says otherwise.
const STREAMS_PER_CONNECTION: usize = 100;

async fn connect(url: &str) -> ServiceClient<Channel> {
    let mut endpoint = Endpoint::from_shared(url.to_owned()).expect("a URL");
    if let Ok(ca) = std::env::var("CA") {
        let pem = std::fs::read(ca).expect("a certificate");
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
        endpoint = endpoint.tls_config(tls).expect("a configuration");
    }
    ServiceClient::new(endpoint.connect().await.expect("a connection"))
        .max_decoding_message_size(64 << 20)
}

pub async fn shapes(url: &str) {
    let mut client = connect(url).await;

    let mut request = Request::new(Message { content: b"hello".to_vec(), number: 7 });
    let key = MetadataValue::from_bytes(b"\x01\x02\x00");
    request.metadata_mut().insert_bin("x-key-bin", key.clone());
    let response = client.unary(request).await.expect("a response");
    assert_eq!(response.metadata().get_bin("x-initial-bin"), Some(&key));
    assert_eq!(response.get_ref().content, b"hello");

    for size in [0, 1, 16_384, 65_536, 20 << 20] {
        let sent = Message { content: vec![b'm'; size], number: 0 };
        let response = client.unary(sent.clone()).await.expect("a response");
        assert!(response.into_inner() == sent, "{size} bytes come back");
    }

    let messages = (0..500).map(|number| Message { content: vec![b'x'; 1000], number });
    let response = client.upload(tokio_stream::iter(messages)).await.expect("a response");
    assert_eq!(response.into_inner().number, 500_000);

    let wanted = Message { number: 500, ..Message::default() };
    let messages = client.download(wanted).await.expect("a response").into_inner();
    let numbers: Vec<u64> =
        messages.map(|message| message.expect("a message").number).collect().await;
    assert_eq!(numbers, (0..500).collect::<Vec<_>>());

    // Each message is sent when the one before has come back.
    let (sender, messages) = mpsc::channel(1);
    let mut responses =
        client.chat(ReceiverStream::new(messages)).await.expect("a response").into_inner();
    for turn in 0..50 {
        let sent = Message { content: format!("message {turn}").into_bytes(), number: 0 };
        sender.send(sent.clone()).await.expect("the call goes on");
        assert_eq!(responses.message().await.expect("a message"), Some(sent));
    }
    drop(sender);
    assert_eq!(responses.message().await.expect("an end"), None);

    let status = client.fail(Message::default()).await.expect_err("the service fails");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.message(), "nicht erfüllt: 100 %");
    assert_eq!(status.details(), b"\x00details\xff");
    assert_eq!(status.metadata().get("x-cause").expect("metadata"), "by design");

    let mut request = Request::new(Message::default());
    request.set_timeout(Duration::from_millis(500));
    let began = Instant::now();
    let status = client.slow(request).await.expect_err("the deadline comes first");
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    assert!(began.elapsed() < Duration::from_secs(10));
    expect_cancelled(&mut client).await;

    let mut request = Request::new(Message::default());
    request.metadata_mut().insert("grpc-timeout", MetadataValue::from_static("25S"));
    let mut other = client.clone();
    let call = tokio::spawn(async move { other.slow(request).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    call.abort();
    expect_cancelled(&mut client).await;
}

/// The service drops the call within seconds.
async fn expect_cancelled(client: &mut ServiceClient<Channel>) {
    for _ in 0..100 {
        let response = client.cancelled(Message::default()).await.expect("a response");
        if response.into_inner().number == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the service was not told that the call is over");
}

/// No call gets its first message before all are open.
pub async fn streams(url: &str) {
    let mut calls = JoinSet::new();
    for _ in 0..STREAMS / STREAMS_PER_CONNECTION {
        let client = connect(url).await;
        for _ in 0..STREAMS_PER_CONNECTION {
            calls.spawn(stream(client.clone()));
        }
    }
    while let Some(ended) = calls.join_next().await {
        ended.expect("the call ends well");
    }
}

async fn stream(mut client: ServiceClient<Channel>) {
    let (sender, messages) = mpsc::channel(1);
    let first = Message { content: b"open".to_vec(), number: STREAMS as u64 };
    sender.send(first.clone()).await.expect("there is room");
    let mut responses =
        client.chat(ReceiverStream::new(messages)).await.expect("a response").into_inner();
    assert_eq!(responses.message().await.expect("a message"), Some(first));
    let second = Message { content: b"go on".to_vec(), number: 0 };
    sender.send(second.clone()).await.expect("the call goes on");
    assert_eq!(responses.message().await.expect("a message"), Some(second));
    drop(sender);
    assert_eq!(responses.message().await.expect("an end"), None);
}
