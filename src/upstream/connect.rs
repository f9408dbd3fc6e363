//! Opens connections to upstreams: name resolution, TCP, TLS.

use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;
use std::io;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::tls_connectors::{HTTP2, Offer};
use super::tls_records::TlsRecordTracker;
use super::{Endpoint, UpstreamError};
use crate::base::tapped::Tapped;

/// Opens a connection to `endpoint` within `limit`, including name resolution and TLS handshake.
pub(super) async fn connect(
    endpoint: &Endpoint,
    limit: Duration,
    offer: Offer,
) -> Result<Stream, UpstreamError> {
    // Rare, and large: boxed, to keep it out of the future of every request.
    let opening = Box::pin(open(endpoint, offer));
    tokio::time::timeout(limit, opening).await.unwrap_or(Err(UpstreamError::Connect))
}

async fn open(endpoint: &Endpoint, offer: Offer) -> Result<Stream, UpstreamError> {
    let address = endpoint.address();
    // Names are resolved for every new connection: an upstream that moved is found without a restart.
    let tcp = TcpStream::connect((&*address.host, address.port))
        .await
        .map_err(|_| UpstreamError::Connect)?;
    tcp.set_nodelay(true).map_err(|_| UpstreamError::Connect)?;
    enable_keep_alive(&SockRef::from(&tcp)).map_err(|_| UpstreamError::Connect)?;
    match endpoint.tls() {
        None => Ok(Stream::Tcp(tcp)),
        Some((connectors, name)) => {
            let connector = connectors.offering(offer);
            let records = Tapped { stream: tcp, tap: TlsRecordTracker::default() };
            let tls =
                connector.connect(name.clone(), records).await.map_err(|_| UpstreamError::Tls)?;
            Ok(Stream::Tls(Box::new(tls)))
        }
    }
}

/// Enables TCP keep-alive, because a peer that has lost power closes no connection, and a
/// tunnel may be silent for days. Sockets accepted from a listener inherit it.
///
/// # Errors
///
/// The error of the system call.
pub fn enable_keep_alive(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEP_ALIVE_IDLE)
            .with_interval(KEEP_ALIVE_INTERVAL)
            .with_retries(KEEP_ALIVE_RETRIES),
    )
}

const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEP_ALIVE_RETRIES: u32 = 4;

/// A connection to an upstream, with or without TLS.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream<Tapped<TcpStream, TlsRecordTracker>>>),
}

impl Stream {
    /// Whether the peer selected HTTP/2 in the TLS handshake; `None` without TLS.
    pub(super) fn selected_http2(&self) -> Option<bool> {
        match self {
            Self::Tcp(_) => None,
            Self::Tls(tls) => Some(tls.get_ref().1.alpn_protocol() == Some(HTTP2)),
        }
    }

    /// Returns whether what is written goes through TLS.
    pub(super) const fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Whether an idle connection is reusable: nothing was received on it, not even its end, and nothing is buffered.
    /// Costs no system call in the usual case.
    pub(super) fn is_quiet(&mut self) -> bool {
        match self {
            Self::Tcp(tcp) => read_without_waiting(tcp, &mut [0]) == Some(0),
            Self::Tls(tls) => is_quiet(tls),
        }
    }
}

/// Checks the same above TLS. Messages for the session alone, such as a session ticket (RFC 8446 §4.6), are allowed.
fn is_quiet(tls: &mut TlsStream<Tapped<TcpStream, TlsRecordTracker>>) -> bool {
    let (Tapped { stream, tap: records }, session) = tls.get_mut();
    let mut room = [0; 512];
    for _ in 0..MAX_READS {
        let is_empty = session
            .process_new_packets()
            .is_ok_and(|left| left.plaintext_bytes_to_read() == 0 && !left.peer_has_closed());
        if !is_empty {
            return false;
        }
        let Some(count) = read_without_waiting(stream, &mut room) else { return false };
        if count == 0 {
            // A partial record may be the beginning of a response.
            return records.is_at_record_boundary();
        }
        let mut come = &room[..count];
        records.advance(come);
        while !come.is_empty() {
            if !session.read_tls(&mut come).is_ok_and(|count| count > 0) {
                return false;
            }
        }
    }
    false
}

/// Reads what was received into `room`; zero bytes if nothing was, `None` after the end.
fn read_without_waiting(tcp: &TcpStream, room: &mut [u8]) -> Option<usize> {
    match tcp.try_read(room) {
        Ok(0) => None,
        Ok(count) => Some(count),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Some(0),
        Err(_) => None,
    }
}

/// The maximum number of reads of an idle session: it receives little, and one with more data is not reusable.
const MAX_READS: usize = 16;

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
