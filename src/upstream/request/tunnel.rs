//! An upgrade to another protocol, as far as the upstream: a whole connection (RFC 9110 §7.8), or a stream of one in HTTP/2
//! (RFC 8441).

use core::any::Any;
use core::fmt;
use core::pin::Pin;
use std::io;
use std::rc::Rc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, copy_bidirectional};

use crate::http2::UpgradedStream;
use crate::upstream::balancing::endpoint::EndpointPermit;
use crate::upstream::connections::connect::Stream;
use crate::upstream::connections::connection_gauges::Counted;

/// A connection or stream that was switched to another protocol.
pub struct Tunnel {
    /// The bytes received directly after the response.
    early: Bytes,
    carrier: Carrier,
    /// The count of the connection in the gauges.
    _counted: Option<Counted>,
    /// The permit of the request, which lasts as long as the tunnel.
    _load: Option<EndpointPermit>,
}

enum Carrier {
    Connection(Stream),
    /// With the moment at which an upstream that has ended its side is gone.
    Stream(UpgradedStream<Rc<dyn Any>>, Pin<Box<dyn Future<Output = ()>>>),
}

impl Tunnel {
    /// Creates the tunnel of a connection, of which `early` has been received.
    pub(in crate::upstream) fn of_connection(
        early: Bytes,
        stream: Stream,
        counted: Counted,
    ) -> Self {
        let carrier = Carrier::Connection(stream);
        Self { early, carrier, _counted: Some(counted), _load: None }
    }

    /// Creates the tunnel of a stream in HTTP/2, which holds the permits itself. `abandoned` is the end of an upstream that
    /// has ended its side.
    pub(in crate::upstream) fn of_stream(
        stream: UpgradedStream<Rc<dyn Any>>,
        abandoned: impl Future<Output = ()> + 'static,
    ) -> Self {
        let carrier = Carrier::Stream(stream, Box::pin(abandoned));
        Self { early: Bytes::new(), carrier, _counted: None, _load: None }
    }

    /// Holds the permit of its request until it ends.
    pub(in crate::upstream) fn holding(self, load: EndpointPermit) -> Self {
        Self { _load: Some(load), ..self }
    }

    /// Copies bytes both ways until both sides have ended.
    ///
    /// # Errors
    ///
    /// The first error of either side.
    pub async fn join<T>(self, client: &mut T) -> io::Result<(u64, u64)>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        client.write_all(&self.early).await?;
        match self.carrier {
            Carrier::Connection(mut stream) => copy_bidirectional(client, &mut stream).await,
            Carrier::Stream(mut stream, abandoned) => tokio::select! {
                biased;
                copied = copy_bidirectional(client, &mut stream) => copied,
                () = abandoned => Err(io::ErrorKind::ConnectionAborted.into()),
            },
        }
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tunnel")
    }
}
