//! One stream: what its request and its response share.

use core::any::Any;
use core::cell::RefCell;
use core::fmt;
use core::future::Future as _;
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;
use std::rc::Rc;

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Frame;
use tokio::task::{AbortHandle, spawn_local};

use super::upload::UploadState;
use crate::base::body::{self, Body};
use crate::http2::send_content;

/// The state of one stream. It ends when neither the content of the request nor that of the response needs it.
pub(super) struct StreamState {
    /// The content of the request.
    pub(super) upload: UploadState,
    /// The task that sends the content.
    sending: RefCell<Option<AbortHandle>>,
    /// The permits that the stream holds.
    _held: Box<dyn Any>,
}

impl StreamState {
    /// Creates the state of a stream that sends `body` and holds `held`.
    pub(super) fn new(body: Body, held: Box<dyn Any>) -> Rc<Self> {
        Rc::new(Self { upload: UploadState::new(body), sending: RefCell::default(), _held: held })
    }

    /// Sends the content on `stream`; what cannot be sent at once in a task of its own, since the response may begin and end
    /// meanwhile.
    pub(super) fn send_content(self: &Rc<Self>, stream: SendStream<Bytes>, cx: &mut Context<'_>) {
        let content = StreamContent(Rc::clone(self));
        let mut sending = Box::pin(send_content(stream, content, Reason::CANCEL, |_| ()));
        if sending.as_mut().poll(cx).is_pending() {
            self.sending.replace(Some(spawn_local(sending).abort_handle()));
        }
    }

    /// Ends the stream early: what is not sent will never be. `h2` resets a stream of which neither side is held.
    pub(super) fn cut(&self) {
        if let Some(sending) = self.sending.take() {
            sending.abort();
        }
    }

    /// Lets the content of the request be sent although the response has ended; an upstream that reads nothing of it
    /// for `limit` gets no more.
    pub(super) fn finish_upload(self: &Rc<Self>, limit: Duration) {
        if self.upload.is_over() {
            return;
        }
        let stream = Rc::downgrade(self);
        spawn_local(async move {
            let mut seen = None;
            loop {
                tokio::time::sleep(limit).await;
                let Some(stream) = stream.upgrade().filter(|stream| !stream.upload.is_over())
                else {
                    return;
                };
                let progress = stream.upload.last_progress();
                if !stream.upload.is_starved() && seen == Some(progress) {
                    return stream.cut();
                }
                seen = Some(progress);
            }
        });
    }
}

impl fmt::Debug for StreamState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamState").field("upload", &self.upload).finish_non_exhaustive()
    }
}

/// The content of a request, as it is read to be sent.
#[derive(Debug)]
struct StreamContent(Rc<StreamState>);

impl http_body::Body for StreamContent {
    type Data = Bytes;
    type Error = body::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
        self.0.upload.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.upload.is_end_stream()
    }
}

impl Drop for StreamContent {
    fn drop(&mut self) {
        self.0.upload.ended();
    }
}
