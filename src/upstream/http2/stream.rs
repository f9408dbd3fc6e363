//! One stream: what its request and its response share, and the tasks that hyper runs for it.

use core::any::Any;
use core::cell::RefCell;
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;
use std::rc::{Rc, Weak};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::task::{AbortHandle, spawn_local};

use super::upload::UploadState;
use crate::base::body::{self, Body};

/// The state of one stream. It ends when neither the content of the request nor that of the response needs it.
pub(super) struct StreamState {
    /// The content of the request.
    pub(super) upload: UploadState,
    executor: StreamExecutor,
    /// The tasks of hyper that send the content and await the response.
    tasks: RefCell<Vec<AbortHandle>>,
    /// The permits that the stream holds.
    _held: Box<dyn Any>,
}

impl StreamState {
    /// Creates the state of a stream on the connection of `executor`, which sends `body` and holds `held`.
    pub(super) fn new(executor: StreamExecutor, body: Body, held: Box<dyn Any>) -> Rc<Self> {
        let tasks = RefCell::default();
        Rc::new(Self { upload: UploadState::new(body), executor, tasks, _held: held })
    }

    /// Ends the stream early: what is not sent will never be. hyper resets a stream whose tasks are dropped, even if
    /// they wait for window, where they would notice nothing else.
    pub(super) fn cut(&self) {
        for task in self.tasks.take() {
            task.abort();
        }
    }

    /// Announces that the tasks that hyper spawns next belong to this stream.
    fn begin_tasks(self: &Rc<Self>) {
        self.executor.next.replace(Rc::downgrade(self));
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

/// The content of a request, as hyper reads it.
#[derive(Debug)]
pub(super) struct StreamContent(pub(super) Rc<StreamState>);

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

    /// Called by hyper once per request, right before it spawns the tasks of the stream.
    fn size_hint(&self) -> SizeHint {
        self.0.begin_tasks();
        self.0.upload.size_hint()
    }
}

impl Drop for StreamContent {
    fn drop(&mut self) {
        self.0.upload.ended();
    }
}

/// Runs the tasks of one connection on the worker's own thread, each known to its stream.
#[derive(Clone, Debug, Default)]
pub(super) struct StreamExecutor {
    /// The stream that the next task belongs to; none for the task of the connection, which is the first.
    next: Rc<RefCell<Weak<StreamState>>>,
}

impl<F: Future + 'static> hyper::rt::Executor<F> for StreamExecutor {
    fn execute(&self, task: F) {
        let running = spawn_local(async move {
            task.await;
        });
        if let Some(stream) = self.next.borrow().upgrade() {
            stream.tasks.borrow_mut().push(running.abort_handle());
        }
    }
}
