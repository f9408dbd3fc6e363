//! Opens connections to upstreams: TCP or a Unix socket, TLS; the addresses of a name are raced (RFC 8305).

use core::net::SocketAddr;
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;
use std::io::{self, Read as _};
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::handshake_error;
use super::tls_connectors::{HTTP1, HTTP2, Offer};
use super::tls_records::TlsRecordTracker;
use crate::base::inspected_stream::InspectedStream;
use crate::upstream::UpstreamError;
use crate::upstream::balancing::endpoint::{Dial, Endpoint, EndpointPermit};

/// A failure to connect, with its cause for the log.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct ConnectError {
    pub(in crate::upstream) failure: UpstreamError,
    pub(in crate::upstream) cause: Box<str>,
}

impl From<UpstreamError> for ConnectError {
    fn from(failure: UpstreamError) -> Self {
        Self { failure, cause: failure.cause().into() }
    }
}

impl ConnectError {
    fn of(error: &io::Error) -> Self {
        // The text of the system's errors ends in a number that says nothing more.
        let text = error.to_string();
        let cause = text.split(" (os error").next().unwrap_or_default().to_ascii_lowercase();
        Self { failure: UpstreamError::Connect, cause: cause.into() }
    }

    pub(in crate::upstream) fn new(failure: UpstreamError, cause: &str) -> Self {
        Self { failure, cause: cause.into() }
    }

    pub(in crate::upstream) fn timeout(limit: Duration) -> Self {
        let cause = format!("timed out: no connection within {} ms", limit.as_millis());
        Self { failure: UpstreamError::Connect, cause: cause.into() }
    }
}

/// Opens a connection to `endpoint` within `limit`, including name resolution and TLS handshake.
pub(in crate::upstream) async fn connect(
    endpoint: &Endpoint,
    limit: Duration,
    offer: Offer,
) -> Result<Stream, ConnectError> {
    let opening = Box::pin(open(endpoint, offer));
    tokio::time::timeout(limit, opening).await.unwrap_or_else(|_| Err(ConnectError::timeout(limit)))
}

/// Opens a connection to the first of `endpoints` where `open` succeeds. Each has [`CONNECTION_ATTEMPT_DELAY`] before
/// the next one is tried in parallel; after a failure the next one is tried at once (RFC 8305 §5). `lost` is called for
/// each that has failed, with its error, and for those that were slower than the one returned.
pub(in crate::upstream) async fn race<T, F>(
    mut endpoints: impl Iterator<Item = (Arc<Endpoint>, EndpointPermit)>,
    open: impl Fn(Arc<Endpoint>) -> F,
    mut lost: impl FnMut(&Endpoint, Option<&ConnectError>),
) -> Result<(T, Arc<Endpoint>, EndpointPermit), ConnectError>
where
    F: Future<Output = Result<T, ConnectError>>,
{
    let mut attempts = FuturesUnordered::new();
    let mut under_way: Vec<(Arc<Endpoint>, EndpointPermit)> = Vec::new();
    let mut begin = |attempts: &mut FuturesUnordered<_>, under_way: &mut Vec<_>| {
        let Some((endpoint, permit)) = endpoints.next() else { return false };
        under_way.push((Arc::clone(&endpoint), permit));
        let opening = open(Arc::clone(&endpoint));
        attempts.push(async move { (opening.await, endpoint) });
        true
    };
    let mut more = begin(&mut attempts, &mut under_way);
    let mut last = ConnectError::timeout(CONNECTION_ATTEMPT_DELAY);
    loop {
        let next = async {
            if more {
                tokio::time::timeout(CONNECTION_ATTEMPT_DELAY, attempts.next()).await.ok()
            } else {
                Some(attempts.next().await)
            }
        };
        let ended = match next.await {
            None => None,
            Some(None) => return Err(last),
            Some(Some(ended)) => Some(ended),
        };
        match ended {
            Some((Ok(stream), endpoint)) => {
                let won = under_way.iter().position(|(other, _)| Arc::ptr_eq(other, &endpoint));
                let Some(won) = won else { return Err(last) };
                for (slower, _) in under_way.iter().take(won) {
                    lost(slower, None);
                }
                let (endpoint, permit) = under_way.swap_remove(won);
                return Ok((stream, endpoint, permit));
            }
            Some((Err(error), endpoint)) => {
                under_way.retain(|(other, _)| !Arc::ptr_eq(other, &endpoint));
                lost(&endpoint, Some(&error));
                last = error;
            }
            None => {}
        }
        more = more && begin(&mut attempts, &mut under_way);
    }
}

async fn open(endpoint: &Endpoint, offer: Offer) -> Result<Stream, ConnectError> {
    let tcp = match endpoint.dial() {
        Dial::Socket(address) => tcp_to(*address).await,
        Dial::Name(host, port) => tcp_to_name(host, *port).await,
        Dial::Unix(path) => {
            let unix = UnixStream::connect(&**path).await.map_err(|error| ConnectError::of(&error));
            return unix.map(Stream::Unix);
        }
        Dial::Unresolved => Err(io::Error::other("the name could not be resolved")),
    };
    let tcp = tcp.map_err(|error| ConnectError::of(&error))?;
    match endpoint.tls() {
        None => Ok(Stream::Tcp(tcp)),
        Some((connectors, name)) => {
            let connector = connectors.offering(offer);
            let records = InspectedStream { stream: tcp, inspector: TlsRecordTracker::default() };
            let tls = connector.connect(name.clone(), records).await.map_err(|error| {
                let cause = handshake_error::cause(&error).into();
                ConnectError { failure: UpstreamError::Tls, cause }
            })?;
            Ok(Stream::Tls(Box::new(tls)))
        }
    }
}

async fn tcp_to(address: SocketAddr) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    enable_keep_alive(&SockRef::from(&tcp))?;
    Ok(tcp)
}

/// Resolves a name, and connects to the first of its addresses that accepts a connection.
async fn tcp_to_name(host: &str, port: u16) -> io::Result<TcpStream> {
    let found: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
    let mut rest = interleaved(found).into_iter();
    let mut attempts = FuturesUnordered::new();
    let mut last = io::Error::other("the name has no address");
    loop {
        let next = rest.next();
        let more = next.is_some();
        attempts.extend(next.map(tcp_to));
        let ended = async {
            if more {
                tokio::time::timeout(CONNECTION_ATTEMPT_DELAY, attempts.next()).await.ok()
            } else {
                Some(attempts.next().await)
            }
        };
        match ended.await {
            Some(Some(Ok(tcp))) => return Ok(tcp),
            Some(Some(Err(error))) => last = error,
            Some(None) => return Err(last),
            None => {}
        }
    }
}

/// Returns the addresses with the families taking turns, IPv6 first (RFC 8305 §4).
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let (six, four): (Vec<_>, Vec<_>) = addresses.into_iter().partition(SocketAddr::is_ipv6);
    let (mut six, mut four) = (six.into_iter(), four.into_iter());
    let mut all = Vec::new();
    loop {
        let pair = [six.next(), four.next()];
        if pair == [None, None] {
            return all;
        }
        all.extend(pair.into_iter().flatten());
    }
}

/// The time that an address has before the next one is tried in parallel (RFC 8305 §8: 250 ms).
const CONNECTION_ATTEMPT_DELAY: Duration = Duration::from_millis(250);

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
pub(in crate::upstream) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<InspectedStream<TcpStream, TlsRecordTracker>>>),
}

impl Stream {
    /// Whether the peer selected HTTP/2 in the TLS handshake; `None` without TLS.
    pub(in crate::upstream) fn selected_http2(&self) -> Option<bool> {
        match self {
            Self::Tcp(_) | Self::Unix(_) => None,
            Self::Tls(tls) => Some(tls.get_ref().1.alpn_protocol() == Some(HTTP2)),
        }
    }

    /// Whether the peer selected HTTP/1.1 in the TLS handshake.
    pub(in crate::upstream) fn selected_http1(&self) -> bool {
        matches!(self, Self::Tls(tls) if tls.get_ref().1.alpn_protocol() == Some(HTTP1))
    }

    /// Returns whether what is written goes through TLS.
    pub(in crate::upstream) const fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Whether an idle connection is reusable: nothing was received on it, not even its end, and nothing is buffered.
    pub(in crate::upstream) fn is_quiet(&mut self, read: FreshRead) -> bool {
        match self {
            Self::Tcp(tcp) => received(read.tcp(tcp, &mut [0])) == Some(0),
            Self::Unix(unix) => received(read.unix(unix, &mut [0])) == Some(0),
            Self::Tls(tls) => is_quiet(tls, read),
        }
    }
}

/// How recent the answer must be to whether an idle connection has received anything.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::upstream) enum FreshRead {
    /// As of the last time that the worker waited for events. Costs no system call in the usual case.
    OfLastWait,
    /// As of now: the upstream may have closed the connection while the worker was busy.
    OfNow,
}

impl FreshRead {
    fn tcp(self, tcp: &TcpStream, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::OfLastWait => tcp.try_read(room),
            Self::OfNow => (&*SockRef::from(tcp)).read(room),
        }
    }

    fn unix(self, unix: &UnixStream, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::OfLastWait => unix.try_read(room),
            Self::OfNow => (&*SockRef::from(unix)).read(room),
        }
    }
}

/// Checks the same above TLS. Messages for the session alone, such as a session ticket (RFC 8446 §4.6), are allowed.
fn is_quiet(
    tls: &mut TlsStream<InspectedStream<TcpStream, TlsRecordTracker>>,
    read: FreshRead,
) -> bool {
    let (InspectedStream { stream, inspector: records }, session) = tls.get_mut();
    let mut room = [0; 512];
    for _ in 0..MAX_READS {
        let is_empty = session
            .process_new_packets()
            .is_ok_and(|left| left.plaintext_bytes_to_read() == 0 && !left.peer_has_closed());
        if !is_empty {
            return false;
        }
        let Some(count) = received(read.tcp(stream, &mut room)) else { return false };
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

/// Returns the number of bytes that a read which does not wait has received; `None` after the end.
fn received(read: io::Result<usize>) -> Option<usize> {
    match read {
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
            Self::Unix(unix) => Pin::new(unix).poll_read(cx, buf),
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
            Self::Unix(unix) => Pin::new(unix).poll_write(cx, buf),
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
            Self::Unix(unix) => Pin::new(unix).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Unix(unix) => Pin::new(unix).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Unix(unix) => Pin::new(unix).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The worker has not waited for events since the upstream closed the connection.
    #[tokio::test]
    async fn a_fresh_read_finds_that_an_idle_connection_was_just_closed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let mut stream = Stream::Tcp(tcp_to(address).await.expect("a connection"));
        let (accepted, _) = listener.accept().expect("a connection");
        assert!(stream.is_quiet(FreshRead::OfLastWait) && stream.is_quiet(FreshRead::OfNow));

        drop(accepted);

        while stream.is_quiet(FreshRead::OfNow) {
            std::thread::yield_now();
        }
    }
}
