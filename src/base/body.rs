//! The body type of all requests and responses, buffered or streaming.

use core::fmt;
use core::pin::Pin;
use core::task::{Context, Poll};
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;

/// The content of a message. Not `Send`: it stays on the thread that created it.
#[derive(Default)]
pub struct Body {
    kind: Kind,
    /// The source of an early end, if any.
    cut: Option<Rc<dyn PollCut>>,
}

/// A condition that ends a body early, even while its reader reads nothing. It is polled during that time, so a
/// request whose early response the body is can be sent on meanwhile.
pub trait PollCut: fmt::Debug {
    /// Ready once the body must end; it then ends in an error.
    fn poll_cut(&self, cx: &Context<'_>) -> Poll<()>;
}

/// Two conditions, each of which ends a body.
#[derive(Debug)]
struct EitherCut(Rc<dyn PollCut>, Rc<dyn PollCut>);

impl PollCut for EitherCut {
    fn poll_cut(&self, cx: &Context<'_>) -> Poll<()> {
        // Both are polled: each registers its waker.
        match (self.0.poll_cut(cx), self.1.poll_cut(cx)) {
            (Poll::Pending, Poll::Pending) => Poll::Pending,
            _ => Poll::Ready(()),
        }
    }
}

#[derive(Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    Streaming(Pin<Box<dyn http_body::Body<Data = Bytes, Error = Error>>>),
}

/// The reason why a body ended early; written to the log, never sent to clients.
pub type Error = Box<dyn core::error::Error + Send + Sync>;

impl Body {
    /// Creates an empty body.
    pub const fn empty() -> Self {
        Self::of(Kind::Empty)
    }

    const fn of(kind: Kind) -> Self {
        Self { kind, cut: None }
    }

    /// Returns the same body, which `cut` may end early.
    #[must_use]
    pub fn with_cut(self, cut: Option<Rc<dyn PollCut>>) -> Self {
        Self { cut, ..self }
    }

    /// Adds `cut` to the conditions that may end this body early.
    #[must_use]
    pub fn also_cut_by(self, cut: Rc<dyn PollCut>) -> Self {
        let cut = match self.cut() {
            Some(own) => Rc::new(EitherCut(cut, own)),
            None => cut,
        };
        self.with_cut(Some(cut))
    }

    /// Wraps the body; what may end it early may end the wrapper too.
    #[must_use]
    pub fn wrapped<B>(self, wrap: impl FnOnce(Self) -> B) -> Self
    where
        B: http_body::Body<Data = Bytes, Error = Error> + 'static,
    {
        let cut = self.cut();
        Self::streaming(wrap(self)).with_cut(cut)
    }

    /// Returns the source of an early end: for wrappers, and for callers that pause reading because
    /// the peer is slow.
    pub fn cut(&self) -> Option<Rc<dyn PollCut>> {
        self.cut.clone()
    }

    /// Whether the whole body is in memory.
    pub const fn is_buffered(&self) -> bool {
        matches!(self.kind, Kind::Empty | Kind::Full(_))
    }

    /// Returns a copy of the whole body, if it is in memory; the bytes are shared.
    pub fn buffered(&self) -> Option<Bytes> {
        match &self.kind {
            Kind::Empty => Some(Bytes::new()),
            Kind::Full(bytes) => Some(bytes.clone()),
            Kind::Streaming(_) => None,
        }
    }

    /// Returns the whole body if it is in memory.
    ///
    /// # Errors
    ///
    /// The body itself if it is streaming.
    pub fn into_buffered(self) -> Result<Bytes, Self> {
        match self.kind {
            Kind::Empty => Ok(Bytes::new()),
            Kind::Full(bytes) => Ok(bytes),
            kind @ Kind::Streaming(_) => Err(Self { kind, cut: self.cut }),
        }
    }

    /// Wraps any other body, passing its frames on as they arrive.
    pub fn streaming<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes, Error = Error> + 'static,
    {
        Self::of(Kind::Streaming(Box::pin(body)))
    }

    /// Reads the whole body if it is no longer than `limit` bytes.
    ///
    /// # Errors
    ///
    /// [`ReadError::TooLarge`] as soon as more has come, [`ReadError::Broken`]
    /// if the body ends early.
    pub async fn collect(mut self, limit: usize) -> Result<Bytes, ReadError> {
        if self.size_hint().lower() > limit as u64 {
            return Err(ReadError::TooLarge);
        }
        let mut whole = BytesMut::new();
        while let Some(frame) = self.frame().await {
            let Ok(data) = frame.map_err(ReadError::Broken)?.into_data() else { continue };
            if whole.len() + data.len() > limit {
                return Err(ReadError::TooLarge);
            }
            whole.extend_from_slice(&data);
        }
        Ok(whole.freeze())
    }
}

/// The error of reading a whole body.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The body is larger than the limit.
    #[error("the body is larger than the limit")]
    TooLarge,
    /// The body ended early.
    #[error("the body ended early")]
    Broken(#[source] Error),
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        match &mut this.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = core::mem::take(bytes);
                this.kind = Kind::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Streaming(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(_) => false,
            Kind::Streaming(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Streaming(body) => body.size_hint(),
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::of(if bytes.is_empty() { Kind::Empty } else { Kind::Full(bytes) })
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.kind {
            Kind::Empty => "Body(empty)",
            Kind::Full(_) => "Body(full)",
            Kind::Streaming(_) => "Body(streaming)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_of_the_limit_is_collected() {
        assert_eq!(Body::from("12345").collect(5).await.expect("it fits"), "12345");
        assert_eq!(Body::empty().collect(0).await.expect("it fits"), "");
    }

    #[tokio::test]
    async fn a_body_above_the_limit_is_refused() {
        assert!(matches!(Body::from("123456").collect(5).await, Err(ReadError::TooLarge)));
    }
}
