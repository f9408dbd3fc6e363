//! The service: it echoes, counts, fails, waits, and tells which calls were cancelled.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::Message;
use crate::generated::service_server::{Service, ServiceServer};

pub async fn serve() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    println!("{}", listener.local_addr().expect("an address").port());
    let mut stdin = tokio::io::stdin();
    let service = ServiceServer::new(Twin::default()).max_decoding_message_size(64 << 20);
    let serving = tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::select! {
        ended = serving => ended.expect("it serves"),
        _ = stdin.read_u8() => {}
    }
}

#[derive(Default)]
struct Twin {
    open: Arc<AtomicUsize>,
    all_open: Arc<Notify>,
    cancelled: Arc<AtomicBool>,
}

type Messages = Pin<Box<dyn Stream<Item = Result<Message, Status>> + Send>>;

#[tonic::async_trait]
impl Service for Twin {
    type DownloadStream = Messages;
    type ChatStream = Messages;

    async fn unary(&self, request: Request<Message>) -> Result<Response<Message>, Status> {
        let key = request.metadata().get_bin("x-key-bin").cloned();
        let mut response = Response::new(request.into_inner());
        if let Some(key) = key {
            response.metadata_mut().insert_bin("x-initial-bin", key);
        }
        Ok(response)
    }

    async fn upload(
        &self,
        request: Request<Streaming<Message>>,
    ) -> Result<Response<Message>, Status> {
        let mut messages = request.into_inner();
        let mut number = 0;
        while let Some(message) = messages.next().await {
            number += message?.content.len() as u64;
        }
        Ok(Response::new(Message { number, ..Message::default() }))
    }

    async fn download(&self, request: Request<Message>) -> Result<Response<Messages>, Status> {
        let messages = (0..request.into_inner().number)
            .map(|number| Ok(Message { content: vec![b'x'; 1000], number }));
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }

    /// Echoes each message. A first message with a number is answered when so many calls are open.
    async fn chat(
        &self,
        request: Request<Streaming<Message>>,
    ) -> Result<Response<Messages>, Status> {
        let mut messages = request.into_inner();
        let (sender, responses) = mpsc::channel(1);
        let (open, all_open) = (Arc::clone(&self.open), Arc::clone(&self.all_open));
        tokio::spawn(async move {
            let mut waited = false;
            while let Some(message) = messages.next().await {
                if let Ok(Message { number: awaited @ 1.., .. }) = message {
                    waited = true;
                    let opened = all_open.notified();
                    if open.fetch_add(1, Ordering::SeqCst) as u64 + 1 == awaited {
                        all_open.notify_waiters();
                    } else {
                        opened.await;
                    }
                }
                if sender.send(message).await.is_err() {
                    break;
                }
            }
            if waited {
                open.fetch_sub(1, Ordering::SeqCst);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }

    async fn fail(&self, _: Request<Message>) -> Result<Response<Message>, Status> {
        let mut status = Status::with_details(
            Code::FailedPrecondition,
            "nicht erfüllt: 100 %",
            b"\x00details\xff".as_slice().into(),
        );
        status.metadata_mut().insert("x-cause", MetadataValue::from_static("by design"));
        Err(status)
    }

    async fn slow(&self, request: Request<Message>) -> Result<Response<Message>, Status> {
        let _guard = TellsDrop(Arc::clone(&self.cancelled));
        if !request.metadata().contains_key("grpc-timeout") {
            return Err(Status::internal("the deadline did not arrive"));
        }
        tokio::time::sleep(Duration::from_secs(30)).await;
        Ok(Response::new(request.into_inner()))
    }

    async fn cancelled(&self, _: Request<Message>) -> Result<Response<Message>, Status> {
        let number = self.cancelled.swap(false, Ordering::SeqCst).into();
        Ok(Response::new(Message { number, ..Message::default() }))
    }
}

/// Tonic drops the future of a call that its client has cancelled.
struct TellsDrop(Arc<AtomicBool>);

impl Drop for TellsDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
