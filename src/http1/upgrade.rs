//! Upgrades of a client's connection to another protocol (RFC 9110 §7.8).

use crate::base::lock::IgnorePoison;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};
use std::io;
use std::sync::{Arc, Mutex};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// A request extension through which the upgraded connection can be obtained.
#[derive(Clone, Debug)]
pub struct OnUpgrade(Arc<Mutex<Option<oneshot::Receiver<Upgraded>>>>);

impl OnUpgrade {
    /// Creates a sender for the connection, and the extension that receives it.
    pub fn new() -> (oneshot::Sender<Upgraded>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(Arc::new(Mutex::new(Some(receiver)))))
    }

    /// Waits for the connection, after the 101 response was sent; `None` if it never is, or
    /// if another clone has taken the connection.
    pub async fn connection(self) -> Option<Upgraded> {
        let promised = self.0.lock().ignore_poison().take();
        promised?.await.ok()
    }
}

/// A connection that was upgraded from HTTP.
pub struct Upgraded {
    /// The bytes received after the request.
    early: BytesMut,
    stream: Box<dyn Duplex>,
    abandoned: Option<Abandoned>,
}

/// The moment at which a client that has ended its side of a connection abandons the other.
pub type Abandoned = Pin<Box<dyn Future<Output = ()> + Send>>;

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Duplex for S {}

impl Upgraded {
    /// Creates an upgraded connection of `stream`, from which `early` was read already.
    pub fn new<S>(early: BytesMut, stream: S) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Self { early, stream: Box::new(stream), abandoned: None }
    }

    /// Tells when the client abandons the connection, where reading and writing do not.
    #[must_use]
    pub fn abandoned_when(self, moment: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { abandoned: Some(Box::pin(moment)), ..self }
    }

    /// Takes that moment. The task that reads must poll it, after it has read; never ready where it is not known.
    pub fn take_abandoned(&mut self) -> Abandoned {
        self.abandoned.take().unwrap_or_else(|| Box::pin(core::future::pending()))
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.early.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let count = this.early.len().min(buf.remaining());
        buf.put_slice(&this.early[..count]);
        this.early.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl core::fmt::Debug for Upgraded {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Upgraded").field("early", &self.early.len()).finish_non_exhaustive()
    }
}
