//! A streaming response body, for responses whose body did not arrive whole with the head.

use core::cell::RefCell;
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;
use std::rc::{Rc, Weak};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::{Connection, InvalidResponse, RemainingUpload, UpstreamError};
use crate::base::body::{self, PollCut};
use crate::base::idle_timeout::IdleTimeout;
use crate::http1::{BodyWriter, ChunkEvent, Decoder, Framing, InvalidChunk, WriteError};

/// The rest of a response, with its connection.
#[derive(Debug)]
pub(in crate::upstream) struct ResponseBody {
    /// `None` once the body has ended.
    connection: Option<Box<Connection>>,
    decoder: Decoder,
    /// The announced length of the content.
    announced: Option<u64>,
    /// The beginning of the content, which was decoded with the head.
    first: Option<ChunkEvent>,
    /// The unfinished request, if the upstream responded before its end; `None` once the body has ended.
    sending: Option<Box<BodyWriter>>,
    reusable: bool,
    gap: IdleTimeout,
    rest: Option<RemainingUpload>,
}

impl ResponseBody {
    pub(super) fn new(
        connection: Box<Connection>,
        framing: Framing,
        decoder: Decoder,
        first: Option<ChunkEvent>,
        sending: Box<BodyWriter>,
        reusable: bool,
    ) -> Self {
        let announced = if let Framing::Length(length) = framing { Some(length) } else { None };
        Self {
            connection: Some(connection),
            decoder,
            announced,
            first,
            sending: Some(sending),
            reusable,
            gap: IdleTimeout::default(),
            rest: None,
        }
    }

    /// Sets the maximum gap in the body.
    pub(in crate::upstream) fn within(&mut self, gap: Option<Duration>) {
        self.gap = IdleTimeout::new(gap);
    }

    /// Returns the rest of the request, once the body has ended correctly.
    pub(in crate::upstream) fn rest(&mut self) -> Option<RemainingUpload> {
        self.rest.take()
    }

    /// Returns the task that sends the rest of the request while the early response is not read; `None` if all is sent.
    pub(in crate::upstream) fn upload(this: &Rc<RefCell<Self>>) -> Option<Rc<dyn PollCut>> {
        let is_early = this.borrow().sending.as_ref().is_some_and(|sending| !sending.is_done());
        is_early.then(|| -> Rc<dyn PollCut> { Rc::new(Upload(Rc::downgrade(this))) })
    }

    fn end(&mut self) {
        if let (Some(connection), Some(sending)) = (self.connection.take(), self.sending.take()) {
            self.rest = Some(RemainingUpload::new(connection, sending, self.reusable));
        }
    }

    fn poll_part(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        let (Some(connection), Some(sending)) = (&mut self.connection, &mut self.sending) else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(Err(WriteError::Body)) = connection.poll_sending(sending, cx) {
            return Poll::Ready(Some(Err(UpstreamError::Client)));
        }
        // An upstream that waits for the client is not silent.
        let starved = sending.waits_for_data();
        if starved {
            self.gap.stopped();
        }
        loop {
            let event = match self.first.take() {
                Some(first) => Ok(first),
                None => self.decoder.take(&mut connection.read),
            };
            match event {
                Err(InvalidChunk) => {
                    let invalid = UpstreamError::Invalid(InvalidResponse::Chunk);
                    return Poll::Ready(Some(Err(invalid)));
                }
                Ok(ChunkEvent::Data(data)) => {
                    self.gap.stopped();
                    if matches!(self.decoder, Decoder::Length(0)) {
                        self.end();
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(ChunkEvent::End(trailers)) => {
                    self.end();
                    return Poll::Ready(
                        (!trailers.is_empty()).then(|| Ok(Frame::trailers(trailers))),
                    );
                }
                Ok(ChunkEvent::Partial) => {}
            }
            match connection.poll_fill(cx) {
                Poll::Ready(Ok(0)) if matches!(self.decoder, Decoder::UntilClose) => {
                    self.end();
                    return Poll::Ready(None);
                }
                Poll::Ready(Ok(0) | Err(_)) => {
                    return Poll::Ready(Some(Err(truncated(self.announced, &self.decoder))));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => {
                    return if !starved && self.gap.poll_elapsed(cx).is_ready() {
                        Poll::Ready(Some(Err(UpstreamError::Stalled)))
                    } else {
                        Poll::Pending
                    };
                }
            }
        }
    }
}

/// Returns the error of a connection that ends before the content does.
fn truncated(announced: Option<u64>, decoder: &Decoder) -> UpstreamError {
    match (announced, decoder) {
        (Some(announced), Decoder::Length(left)) => {
            UpstreamError::Truncated { announced, received: announced.saturating_sub(*left) }
        }
        _ => UpstreamError::Reset,
    }
}

/// The rest of a request, while its early response is open.
#[derive(Debug)]
struct Upload(Weak<RefCell<ResponseBody>>);

impl PollCut for Upload {
    fn poll_cut(&self, cx: &Context<'_>) -> Poll<()> {
        if let Some(body) = self.0.upgrade()
            && let Ok(mut body) = body.try_borrow_mut()
            && let ResponseBody { connection: Some(connection), sending: Some(sending), .. } =
                &mut *body
        {
            // An error here will occur again when the next piece of the response is polled.
            let _ = connection.poll_sending(sending, &mut Context::from_waker(cx.waker()));
        }
        Poll::Pending
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = body::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
        let this = self.get_mut();
        let polled = this.poll_part(cx);
        if let Poll::Ready(Some(Err(failure))) = &polled
            && let Some(connection) = this.connection.take()
            && let Some(reason) = failure.reason()
        {
            connection.counted.metrics.failed(reason);
        }
        polled.map(|part| part.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.connection.is_none() || matches!(self.decoder, Decoder::Length(0))
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.connection, &self.decoder) {
            (None, _) => SizeHint::with_exact(0),
            (Some(_), Decoder::Length(left)) => SizeHint::with_exact(*left),
            (Some(_), _) => SizeHint::default(),
        }
    }
}
