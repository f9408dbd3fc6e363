//! Services that speak HTTP/2, and a client of the gateway that does.

use core::future::Future;
use core::net::SocketAddr;
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use core::time::Duration;
use std::io::{Read, Write};
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::{Builder, SendResponse};
use h2::{RecvStream, SendStream};
use http::request::Parts;
use http::{HeaderMap, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use super::Gateway;

/// A service that handles each request by a function of the test.
pub(crate) struct Http2Service {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    calls: Arc<AtomicUsize>,
    runtime: Option<Runtime>,
}

/// One request at a service.
pub(crate) struct Call {
    pub(crate) head: Parts,
    pub(crate) body: RecvStream,
    pub(crate) respond: SendResponse<Bytes>,
    /// The number of the request at the service, from 0.
    pub(crate) number: usize,
}

impl Http2Service {
    /// A service whose connections allow so many streams each.
    pub(crate) fn start<F, R>(max_streams: u32, handle: F) -> Self
    where
        F: Fn(Call) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let mut builder = Builder::new();
        builder.max_concurrent_streams(max_streams);
        Self::with(builder, handle)
    }

    /// A service that takes extended CONNECT (RFC 8441).
    pub(crate) fn taking_websockets<F, R>(handle: F) -> Self
    where
        F: Fn(Call) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let mut builder = Builder::new();
        builder.enable_connect_protocol();
        Self::with(builder, handle)
    }

    /// A service that accepts heads of so many bytes (`SETTINGS_MAX_HEADER_LIST_SIZE`).
    pub(crate) fn accepting_heads<F, R>(max_bytes: u32, handle: F) -> Self
    where
        F: Fn(Call) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let mut builder = Builder::new();
        builder.max_header_list_size(max_bytes);
        Self::with(builder, handle)
    }

    fn with<F, R>(builder: Builder, handle: F) -> Self
    where
        F: Fn(Call) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (connections, calls) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (opened, called) = (Arc::clone(&connections), Arc::clone(&calls));
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                opened.fetch_add(1, SeqCst);
                let (handle, called) = (handle.clone(), Arc::clone(&called));
                let serving = serve(stream, builder.clone(), called, handle);
                tokio::runtime::Handle::current().spawn(serving);
            }
        });
        Self { address, connections, calls, runtime: Some(runtime) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }

    /// The requests so far.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }
}

impl Drop for Http2Service {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve<F, R>(stream: TcpStream, builder: Builder, called: Arc<AtomicUsize>, handle: F)
where
    F: Fn(Call) -> R,
    R: Future<Output = ()> + Send + 'static,
{
    let Ok(mut http2) = builder.handshake::<_, Bytes>(stream).await else { return };
    while let Some(Ok((request, respond))) = http2.accept().await {
        let (head, body) = request.into_parts();
        let number = called.fetch_add(1, SeqCst);
        tokio::runtime::Handle::current().spawn(handle(Call { head, body, respond, number }));
    }
}

impl Call {
    /// Reads the whole content, and its trailers.
    pub(crate) async fn read(&mut self) -> (Vec<u8>, Option<HeaderMap>) {
        read(&mut self.body).await
    }

    /// Responds with this content, and trailers if it is gRPC.
    pub(crate) fn answer(mut self, content: &str) {
        let mut response = Response::builder();
        let is_grpc = self.head.headers.get("content-type").cloned();
        if let Some(kind) = &is_grpc {
            response = response.header("content-type", kind);
        }
        let response = response.body(()).expect("a response");
        let Ok(mut stream) = self.respond.send_response(response, false) else { return };
        let _ = stream.send_data(content.to_owned().into(), is_grpc.is_none());
        if is_grpc.is_some() {
            let _ = stream.send_trailers(trailers(0));
        }
    }
}

/// The trailers of a call with this status.
pub(crate) fn trailers(status: u8) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.to_string().parse().expect("a value"));
    trailers
}

/// Reads content to its end; fails the test if it is cut off.
pub(crate) async fn read(body: &mut RecvStream) -> (Vec<u8>, Option<HeaderMap>) {
    try_read(body).await.expect("the whole content")
}

/// Reads content to its end.
pub(crate) async fn try_read(
    body: &mut RecvStream,
) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut whole = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        let _ = body.flow_control().release_capacity(piece.len());
        whole.extend_from_slice(&piece);
    }
    Ok((whole, body.trailers().await?))
}

/// A service of bytes: each connection is a script of the test, run in a thread. The client's bytes are discarded.
pub(crate) fn raw_service(
    script: impl Fn(usize, &mut std::net::TcpStream) + Send + Sync + 'static,
) -> (String, Arc<AtomicUsize>) {
    let listener = StdListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let connections = Arc::<AtomicUsize>::default();
    let (opened, script) = (Arc::clone(&connections), Arc::new(script));
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let (opened, script) = (Arc::clone(&opened), Arc::clone(&script));
            thread::spawn(move || {
                if is_probe(&stream) {
                    let _ = stream.write_all(&frame(4, 0, 0, &[]));
                    return;
                }
                let number = opened.fetch_add(1, SeqCst);
                let _ = stream.write_all(&frame(4, 0, 0, &[]));
                script(number, &mut stream);
            });
        }
    });
    (url, connections)
}

/// Whether a new connection is no more than a probe, which counts as none: it sends empty settings, or nothing.
fn is_probe(stream: &std::net::TcpStream) -> bool {
    let mut begin = [0; 27];
    loop {
        match stream.peek(&mut begin) {
            Ok(27) => return begin[24..] == [0; 3],
            Ok(0) | Err(_) => return true,
            Ok(_) => thread::yield_now(),
        }
    }
}

/// Waits until a request has begun on a new connection; false if the client closes before.
pub(crate) fn request_arrived(stream: &mut std::net::TcpStream) -> bool {
    let mut preface = [0; 24];
    if stream.read_exact(&mut preface).is_err() {
        return false;
    }
    while let Some((kind, _)) = next_frame(stream) {
        if kind == 1 {
            return true;
        }
    }
    false
}

/// Reads the next frame, and returns its type and stream.
pub(crate) fn next_frame(stream: &mut std::net::TcpStream) -> Option<(u8, u32)> {
    read_frame(stream).ok().map(|(kind, _, stream_id, _)| (kind, stream_id))
}

/// Reads the next frame, and returns its type, flags, stream and payload.
pub(crate) fn read_frame(
    stream: &mut std::net::TcpStream,
) -> std::io::Result<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let [a, b, c, kind, flags, stream_id @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    stream.read_exact(&mut payload)?;
    Ok((kind, flags, u32::from_be_bytes(stream_id), payload))
}

/// Reads and discards what comes, until the client closes.
pub(crate) fn drain(stream: &mut std::net::TcpStream) {
    while stream.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {}
}

/// A frame of HTTP/2 (RFC 9113 §4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A client of the gateway, in HTTP/2 by prior knowledge.
#[derive(Clone)]
pub(crate) struct Http2Client(SendRequest<Bytes>);

impl Http2Client {
    /// Runs a test with a client of `gateway`.
    pub(crate) fn run<T>(gateway: &Gateway, test: impl AsyncFnOnce(Self) -> T) -> T {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            let stream = TcpStream::connect(gateway.address()).await.expect("a connection");
            let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
            tokio::runtime::Handle::current().spawn(connection);
            let within = tokio::time::timeout(Duration::from_secs(20), test(Self(client)));
            within.await.expect("in time")
        })
    }

    /// Begins a request of any kind.
    pub(crate) async fn begin(
        &self,
        request: Request<()>,
        ends: bool,
    ) -> (ResponseFuture, SendStream<Bytes>) {
        let mut client = self.0.clone().ready().await.expect("a place");
        client.send_request(request, ends).expect("a request")
    }

    /// Begins a gRPC call with further fields.
    pub(crate) async fn call(
        &self,
        path: &str,
        fields: &[(&str, &str)],
    ) -> (ResponseFuture, SendStream<Bytes>) {
        let mut request = Request::post(format!("http://api.test{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        self.begin(request.body(()).expect("a request"), false).await
    }

    /// Makes a unary gRPC call, and returns the response's head, content and status.
    pub(crate) async fn unary(&self, path: &str, fields: &[(&str, &str)], content: &str) -> Unary {
        let (response, mut sending) = self.call(path, fields).await;
        // A call may be refused before its content is sent.
        let _ = sending.send_data(content.to_owned().into(), true);
        let (head, mut body) = response.await.expect("a response").into_parts();
        let (content, trailers) = read(&mut body).await;
        let status = |fields: &HeaderMap| fields.get("grpc-status")?.to_str().ok()?.parse().ok();
        let code = trailers.as_ref().and_then(status).or_else(|| status(&head.headers));
        Unary { http: head.status.as_u16(), head: head.headers, content, trailers, code }
    }
}

/// The outcome of a unary call.
#[derive(Debug)]
pub(crate) struct Unary {
    /// The status of HTTP.
    pub(crate) http: u16,
    pub(crate) head: HeaderMap,
    pub(crate) content: Vec<u8>,
    pub(crate) trailers: Option<HeaderMap>,
    /// The status of the call.
    pub(crate) code: Option<u8>,
}
