//! One client connection: TLS handshake, HTTP/1.1 or HTTP/2, and its end.

use core::cell::Cell;
use core::future::{Future, poll_fn};
use core::net::{IpAddr, SocketAddr};
use core::pin::{Pin, pin};
use core::task::Poll;
use core::time::Duration;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use rustls::{ProtocolVersion, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::connection_limit::ConnectionPermit;
use super::connection_timeouts::{
    ConnectionActivity, MonitoredStream, TimeoutSweeper, TimeoutVerdict,
};
use super::http1::Closing;
use super::http2::flood_guard::{DetectedFlood, FloodGuard, ProtocolError};
use super::http2::raw_targets::{MAX_ADDED_BYTES, RawTargets};
use super::http2::stream::StreamService;
use super::lifecycle::phase::Phase;
use super::listener::{CurrentListener, Listener};
use super::{http1, http2, proxy_protocol};
use crate::base::inspected_stream::InspectedStream;
use crate::config::server::Server;
use crate::gateway::{Gateway, Peer};
use crate::http2::{DATA_FRAME_BUDGET, ReceivedContents};
use crate::observe::metrics::{HandshakeFailure, Protocol, ProxyRefusal};
use crate::token::PossessionProof;

/// A connection that was accepted, with its permit among all connections, which it holds until dropped.
pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) remote: SocketAddr,
    pub(super) settings: Arc<CurrentListener>,
    pub(super) permit: ConnectionPermit,
}

/// Counts and logs a connection that is closed because its client's address has too many.
pub(super) fn record_over_limit(listener: &Listener, gateway: &Gateway, client: IpAddr) {
    listener.metrics.refused_over_limit();
    gateway.warn_of_refused_connection(client);
}

/// Serves one connection until it ends.
pub(super) async fn serve(
    accepted: Accepted,
    listener: &Listener,
    gateway: Gateway,
    activity: Arc<ConnectionActivity>,
    phase: watch::Receiver<Phase>,
) {
    let Accepted { stream, remote, settings, mut permit } = accepted;
    let server = gateway.shared().snapshot.load().server().clone();
    let mut stream = MonitoredStream::new(stream, Arc::clone(&activity));
    let http2 = settings.http2;
    let connection = AcceptedConnection { gateway, activity, phase, listener, server, http2 };
    let mut peer = Peer::new(remote.ip());
    if settings.proxy_protocol {
        // Boxed: few listeners have it.
        let named = Box::pin(connection.read_proxy_header(&mut stream, remote)).await;
        match named {
            Ok(Some(client)) => peer = Peer::new(client),
            Ok(None) => peer.names_no_client = true,
            Err(reason) => return listener.metrics.proxy_refused(reason),
        }
        if !permit.count_for(peer.ip) {
            return record_over_limit(listener, &connection.gateway, peer.ip);
        }
    }
    peer.redirect_https = settings.redirect_https;
    // Boxed: otherwise every connection's future would reserve space for the largest variant.
    match settings.tls() {
        None => match connection.speaks_http2(&stream).await {
            Some(true) => Box::pin(connection.http2(stream, peer)).await,
            Some(false) => Box::pin(connection.http1(stream, peer)).await,
            None => {}
        },
        Some(tls) => {
            let Some(stream) = Box::pin(connection.accept_tls(tls, stream)).await else { return };
            let session = stream.get_ref().1;
            let http2 = session.alpn_protocol() == Some(b"h2");
            let presented = session.peer_certificates().and_then(|chain| chain.first());
            peer.certificate = presented
                .and_then(|certificate| PossessionProof::of_certificate(certificate).certificate);
            peer.secure = true;
            peer.tls = Some(match session.protocol_version() {
                Some(ProtocolVersion::TLSv1_3) => "1.3",
                _ => "1.2",
            });
            if http2 {
                Box::pin(connection.http2(stream, peer)).await;
            } else {
                Box::pin(connection.http1(stream, peer)).await;
            }
        }
    }
}

/// The parameters of serving a connection, for every version of HTTP.
struct AcceptedConnection<'a> {
    gateway: Gateway,
    activity: Arc<ConnectionActivity>,
    phase: watch::Receiver<Phase>,
    listener: &'a Listener,
    server: Server,
    /// Whether HTTP/2 is accepted on an unencrypted connection.
    http2: bool,
}

impl AcceptedConnection<'_> {
    async fn http1<S>(mut self, stream: S, peer: Peer)
    where
        S: http1::Socket + Send + 'static,
    {
        let _open = OpenConnection::count(self.listener, Protocol::Http1);
        let (peer, closing) = (Rc::new(peer), Rc::<Cell<Closing>>::default());
        let connection = http1::Connection::new(
            stream,
            Rc::clone(&peer),
            self.gateway.clone(),
            Arc::clone(&self.activity),
            Rc::clone(&closing),
        );
        {
            let mut running = pin!(connection.run());
            self.drive(running.as_mut(), |_, how| closing.set(how)).await;
        }
        // If the connection was cut, an upgrade was cancelled with it. An upgraded connection still counts towards
        // the connection limit, and a drain waits for it.
        peer.wait_for_tunnel().await;
    }

    async fn http2<S>(mut self, stream: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let _open = OpenConnection::count(self.listener, Protocol::Http2);
        let streams = self.server.http2_max_concurrent_streams;
        let windows = FlowControlWindows::of(streams);
        let mut builder = h2::server::Builder::new();
        builder
            .max_concurrent_streams(streams)
            // WebSockets (RFC 8441).
            .enable_connect_protocol()
            .max_header_list_size(self.max_header_list_size())
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            // Frames that arrive for a stream after the gateway has reset it are ignored (RFC 9113 §5.1).
            .reset_stream_duration(RESET_RETENTION)
            .max_concurrent_reset_streams(MAX_RETAINED_RESETS)
            // No limit in h2: `FloodGuard` limits them by rate.
            .max_local_error_reset_streams(None)
            .max_send_buffer_size(SEND_BUFFER)
            .data_frame_budget(DATA_FRAME_BUDGET)
            .initial_window_size(windows.stream)
            .initial_connection_window_size(windows.connection);
        let (gateway, client) = (self.gateway.clone(), peer.ip);
        let contents = Rc::<ReceivedContents>::default();
        let inspected = Rc::clone(&contents);
        let flood = Rc::<DetectedFlood>::default();
        let detected = Rc::clone(&flood);
        let fault = move |error: ProtocolError| {
            gateway.record_protocol_error(client, error.stream, error.name());
        };
        let inspector = FloodGuard::new(Instant::now(), inspected, detected, fault);
        let stream = RawTargets::new(InspectedStream { stream, inspector });
        let service = StreamService {
            gateway: self.gateway.clone(),
            peer: Rc::new(peer),
            activity: Arc::clone(&self.activity),
            contents,
            flood,
            stall_timeout: self.server.body_timeout,
        };
        let mut connection = pin!(http2::connection::Connection::new(&builder, stream, service));
        self.drive(connection.as_mut(), |mut connection, _| connection.close()).await;
    }

    /// Returns the limit on a header list (RFC 9113 §6.5.2), which counts 32 bytes for each field besides its own: a
    /// browser may send each of its cookies in a field. The gateway applies `max_header_size` once they are joined. Up to
    /// [`REFUSED_HEAD_BYTES`] more it answers 431 itself, and has browsers delete the cookies; h2 does not.
    fn max_header_list_size(&self) -> u32 {
        let crumbs = COOKIE_CRUMBS * FIELD_OVERHEAD;
        let size = self.server.max_header_size + crumbs + MAX_ADDED_BYTES + REFUSED_HEAD_BYTES;
        u32::try_from(size).unwrap_or(u32::MAX)
    }

    /// Polls a connection to its end, and closes it on a timeout or when the gateway drains.
    async fn drive<C: Future>(
        &mut self,
        mut connection: Pin<&mut C>,
        close: impl Fn(Pin<&mut C>, Closing),
    ) -> Option<C::Output> {
        let mut draining = pin!(until_draining(self.phase.clone()));
        let (mut listening, mut drains, mut closing) = (false, false, false);
        poll_fn(|cx| {
            // The first poll registers the waker; after that, checking for changes is cheaper.
            let news = !listening || self.phase.has_changed().unwrap_or(true);
            listening = true;
            if !drains && !closing && news && draining.as_mut().poll(cx).is_ready() {
                drains = true;
                self.activity.start_drain();
                close(connection.as_mut(), Closing::AfterRequest);
            }
            match self.activity.verdict(cx) {
                TimeoutVerdict::Active => {}
                TimeoutVerdict::Idle if closing => return Poll::Ready(None),
                TimeoutVerdict::Idle => {
                    closing = true;
                    self.activity.start_graceful_close();
                    close(connection.as_mut(), Closing::Now);
                    // Polled again to be woken for the next verdict.
                    let _ = self.activity.verdict(cx);
                }
                TimeoutVerdict::Stalled => return Poll::Ready(None),
            }
            connection.as_mut().poll(cx).map(Some)
        })
        .await
    }

    /// Performs the TLS handshake; `None` if it fails, which is counted.
    async fn accept_tls(
        &self,
        tls: Arc<ServerConfig>,
        stream: MonitoredStream<TcpStream>,
    ) -> Option<Box<TlsStream<MonitoredStream<TcpStream>>>> {
        let accepting = TlsAcceptor::from(tls).accept(stream);
        match self.until_stalled(accepting).await {
            Some(Ok(stream)) => return Some(Box::new(stream)),
            Some(Err(error)) => self.listener.metrics.handshake_failed(failure(&error)),
            None => self.listener.metrics.handshake_failed(HandshakeFailure::Timeout),
        }
        None
    }

    /// Awaits `handshake`, within the timeout of a request head.
    async fn until_stalled<F: Future>(&self, handshake: F) -> Option<F::Output> {
        let mut handshake = pin!(handshake);
        poll_fn(|cx| match self.activity.verdict(cx) {
            TimeoutVerdict::Active => handshake.as_mut().poll(cx).map(Some),
            TimeoutVerdict::Idle | TimeoutVerdict::Stalled => Poll::Ready(None),
        })
        .await
    }

    /// Reads the header of the PROXY protocol, and returns the client's address; `None` if the header names none.
    ///
    /// A sender that is not trusted is refused before a byte of it is read.
    async fn read_proxy_header(
        &self,
        stream: &mut MonitoredStream<TcpStream>,
        remote: SocketAddr,
    ) -> Result<Option<IpAddr>, ProxyRefusal> {
        if !self.server.trusts(remote.ip().to_canonical()) {
            return Err(ProxyRefusal::Untrusted);
        }
        let mut first = [0; proxy_protocol::ENOUGH_BYTES];
        let mut peeked = 0;
        let header = loop {
            let peeking = self.until_stalled(stream.get_ref().peek(&mut first));
            let count = peeking.await.and_then(Result::ok).ok_or(ProxyRefusal::Missing)?;
            match proxy_protocol::parse(&first[..count]) {
                Ok(Some(header)) => break header,
                Ok(None) if count == 0 => return Err(ProxyRefusal::Missing),
                Ok(None) => self.until_more(count == peeked).await.ok_or(ProxyRefusal::Missing)?,
                Err(proxy_protocol::InvalidHeader) => return Err(ProxyRefusal::Malformed),
            }
            peeked = count;
        };
        let mut left = header.length;
        while left > 0 {
            let piece = left.min(first.len());
            let reading = self.until_stalled(stream.read(&mut first[..piece])).await;
            match reading.and_then(Result::ok) {
                Some(count @ 1..) => left -= count,
                Some(0) | None => return Err(ProxyRefusal::Missing),
            }
        }
        Ok(header.client)
    }

    /// Waits for a tick if nothing new has arrived: bytes that are peeked at are ready all the time. `None` after the
    /// timeout of the handshake.
    async fn until_more(&self, nothing_new: bool) -> Option<()> {
        if nothing_new {
            self.until_stalled(tokio::time::sleep(TimeoutSweeper::TICK)).await?;
        }
        Some(())
    }

    /// Whether a client on an unencrypted connection begins with the HTTP/2 preface (RFC 9113 §3.4): one peek per
    /// connection.
    async fn speaks_http2(&self, stream: &MonitoredStream<TcpStream>) -> Option<bool> {
        if !self.http2 {
            return Some(false);
        }
        let mut first = [0; PREFACE.len()];
        let mut peeked = 0;
        loop {
            let count = self.until_stalled(stream.get_ref().peek(&mut first)).await?.ok()?;
            let matches = first[..count] == PREFACE[..count];
            if count == 0 || !matches || count == PREFACE.len() {
                return (count > 0).then_some(matches);
            }
            self.until_more(count == peeked).await?;
            peeked = count;
        }
    }
}

impl http1::Socket for MonitoredStream<TcpStream> {
    fn socket(&self) -> &TcpStream {
        self.get_ref()
    }
}

impl http1::Socket for Box<TlsStream<MonitoredStream<TcpStream>>> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0.get_ref()
    }
}

/// Resolves when the gateway drains.
async fn until_draining(mut phase: watch::Receiver<Phase>) {
    // A dropped sender means the same.
    let _ = phase.wait_for(|phase| *phase != Phase::Serving).await;
}

fn failure(error: &io::Error) -> HandshakeFailure {
    use rustls::{AlertDescription as Alert, Error};
    match error.get_ref().and_then(|error| error.downcast_ref::<Error>()) {
        None => HandshakeFailure::Closed,
        Some(Error::InvalidMessage(_)) => HandshakeFailure::NotTls,
        Some(Error::PeerIncompatible(_)) => HandshakeFailure::Version,
        Some(Error::NoCertificatesPresented | Error::InvalidCertificate(_)) => {
            HandshakeFailure::ClientCertificate
        }
        Some(Error::AlertReceived(
            Alert::BadCertificate | Alert::CertificateUnknown | Alert::UnknownCA,
        )) => HandshakeFailure::Refused,
        Some(_) => HandshakeFailure::Other,
    }
}

/// Flow-control windows: the content that a client may send before it is read (RFC 9113 §5.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct FlowControlWindows {
    stream: u32,
    connection: u32,
}

impl FlowControlWindows {
    /// Sizes the windows for a number of concurrent `streams`. Unread content of a stream occupies the connection's
    /// window: that has room for every stream's window, so that no stream blocks another.
    fn of(streams: u32) -> Self {
        let streams = streams.max(1);
        let stream = (CONNECTION_WINDOW / streams).clamp(MIN_STREAM_WINDOW, MAX_STREAM_WINDOW);
        Self { stream, connection: stream.saturating_mul(streams).min(MAX_WINDOW) }
    }
}

/// Counts an open connection in the metrics until dropped.
struct OpenConnection<'a>(&'a Listener, Protocol);

impl<'a> OpenConnection<'a> {
    fn count(listener: &'a Listener, protocol: Protocol) -> Self {
        listener.metrics.opened(protocol);
        Self(listener, protocol)
    }
}

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.metrics.closed(self.1);
    }
}

/// Cookies that a browser may keep for one site, each in a field of its own; Chromium keeps up to 180.
const COOKIE_CRUMBS: usize = 256;
/// Bytes beyond `max_header_size` of a head that is read to be refused: all cookies that a browser keeps for a site, 180
/// of 4 KiB.
const REFUSED_HEAD_BYTES: usize = 768 * 1024;
/// The bytes that a header list counts for a field besides its name and value: 32, and the name `cookie`.
const FIELD_OVERHEAD: usize = 38;
/// How long a stream that the gateway has reset is remembered.
const RESET_RETENTION: Duration = Duration::from_secs(30);
/// Streams of one connection that the gateway has reset and remembers.
const MAX_RETAINED_RESETS: usize = 1000;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Streams that a client may reset before the gateway has accepted them (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 32;
const SEND_BUFFER: usize = 256 * 1024;
/// Bytes of unread content that a connection may hold, unless its streams are too many for [`MIN_STREAM_WINDOW`].
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// The initial window of every stream (RFC 9113 §6.9.2).
const MIN_STREAM_WINDOW: u32 = 65_535;
const MAX_STREAM_WINDOW: u32 = 256 * 1024;
/// The maximum window (RFC 9113 §6.9.1).
const MAX_WINDOW: u32 = (1 << 31) - 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stream_has_its_window_within_the_connections() {
        for streams in [1, 2, 32, 100, 128, 1000, 30_000] {
            let FlowControlWindows { stream, connection } = FlowControlWindows::of(streams);
            assert_eq!(connection, stream * streams, "{streams}");
            assert!(
                (MIN_STREAM_WINDOW..=MAX_STREAM_WINDOW).contains(&stream),
                "{streams}: {stream}"
            );
        }
        assert_eq!(FlowControlWindows::of(100).stream, 83_886);
        assert_eq!(FlowControlWindows::of(u32::MAX).connection, MAX_WINDOW);
    }
}
