//! Streams: what stays open after a request was let in ends when what let it in does.
//!
//! A WebSocket or a stream of events is authorized once and may run for days.
//! It ends with the token that opened it, unless its session has a newer one
//! by then, and at once when the token or the session is revoked. The
//! connection is closed, or HTTP/2's stream reset: nothing is written into it.
//!
//! No stream has a timer. Each thread knows its open ones and looks at them
//! when its connections are swept, four times a second; a revocation makes it
//! look at once. An answer that came whole with its head never gets here.

use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::broadcast::error::RecvError;

use crate::base::body::{self, Body};
use crate::base::clock::Timestamp;
use crate::session::{Following, OpenVisit};
use crate::token::{News, Principal, Revocations};

/// The open streams of one thread.
#[derive(Clone, Debug, Default)]
pub(super) struct Streams(Rc<RefCell<Vec<Weak<Line>>>>);

/// What holds one stream open.
#[derive(Debug)]
pub(super) struct Lifeline(Rc<Line>);

#[derive(Debug)]
struct Line {
    principal: Arc<Principal>,
    /// The session that it belongs to, if it does.
    visit: Option<Following>,
    /// When its token ends. A visit knows of later ones.
    ends: Timestamp,
    close_on_expiry: bool,
    cut: Cell<Option<Cut>>,
    waker: RefCell<Option<Waker>>,
}

/// Who opens a stream, and how long that is good.
#[derive(Debug)]
pub(super) struct Opener {
    /// Who.
    pub(super) principal: Arc<Principal>,
    /// When their token ends.
    pub(super) ends: Timestamp,
    /// The session they came with.
    pub(super) visit: Option<OpenVisit>,
    /// Whether the stream ends with the token, or with revocations alone.
    pub(super) close_on_expiry: bool,
}

/// Why a stream was ended before its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Cut {
    /// Its token has ended, and there is no newer one.
    #[error("the token that opened the stream has ended")]
    Expired,
    /// Its token or its session was revoked.
    #[error("what opened the stream was revoked")]
    Revoked,
}

impl Cut {
    /// What the log calls it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Expired => "token-expired",
            Self::Revoked => "token-revoked",
        }
    }
}

impl Streams {
    /// Holds a stream open as long as it may be.
    ///
    /// # Errors
    ///
    /// [`Cut::Revoked`] if that is over already.
    pub(super) fn open(&self, opener: Opener, revocations: &Revocations) -> Result<Lifeline, Cut> {
        let Opener { principal, ends, visit, close_on_expiry } = opener;
        let visit = visit.map(|visit| visit.follow(ends));
        let (cut, waker) = (Cell::new(None), RefCell::new(None));
        let line = Rc::new(Line { principal, visit, ends, close_on_expiry, cut, waker });
        self.0.borrow_mut().push(Rc::downgrade(&line));
        // After it is listed: a revocation either finds it there or is found here.
        line.check(revocations);
        line.cut.get().map_or(Ok(Lifeline(line)), Err)
    }

    /// Ends those whose token has ended by `now`, and forgets those that are closed.
    pub(super) fn sweep(&self, now: Timestamp) {
        self.each(|line| line.look(now));
    }

    /// Ends what is revoked, as long as the thread lives.
    pub(super) async fn heed(&self, revocations: &Revocations) {
        let mut news = revocations.listen();
        loop {
            match news.recv().await {
                Ok(news) => self.each(|line| line.hear(&news)),
                Err(RecvError::Lagged(_)) => self.each(|line| line.check(revocations)),
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn each(&self, mut act: impl FnMut(&Line)) {
        // Whoever is woken is polled later: nothing comes back here meanwhile.
        self.0.borrow_mut().retain(|line| {
            let line = line.upgrade();
            if let Some(line) = &line {
                act(line);
            }
            line.is_some()
        });
    }
}

impl Line {
    fn look(&self, now: Timestamp) {
        match self.visit.as_ref().map_or(Some(self.ends), Following::ends) {
            None => self.cut(Cut::Revoked),
            Some(ends) if self.close_on_expiry && now >= ends => self.cut(Cut::Expired),
            Some(_) => {}
        }
    }

    fn hear(&self, news: &News) {
        if news.covers(&self.principal) || self.is_over() {
            self.cut(Cut::Revoked);
        }
    }

    fn check(&self, revocations: &Revocations) {
        if revocations.cover(&self.principal) || self.is_over() {
            self.cut(Cut::Revoked);
        }
    }

    fn is_over(&self) -> bool {
        self.visit.as_ref().is_some_and(|visit| visit.ends().is_none())
    }

    fn cut(&self, why: Cut) {
        if self.cut.get().is_none() {
            self.cut.set(Some(why));
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }
}

impl Lifeline {
    /// Resolves when the stream must end.
    pub(super) async fn cut(&self) -> Cut {
        poll_fn(|cx| self.poll_cut(cx)).await
    }

    fn poll_cut(&self, cx: &Context<'_>) -> Poll<Cut> {
        if let Some(why) = self.0.cut.get() {
            return Poll::Ready(why);
        }
        let mut waker = self.0.waker.borrow_mut();
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

/// A body that breaks off when its lifeline is cut.
pub(super) struct Tied {
    /// `None` once it was cut.
    body: Option<Body>,
    line: Lifeline,
}

impl Tied {
    /// Ties `body` to `line`.
    pub(super) const fn new(body: Body, line: Lifeline) -> Self {
        Self { body: Some(body), line }
    }
}

impl http_body::Body for Tied {
    type Data = Bytes;
    type Error = body::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
        let this = self.get_mut();
        if let Poll::Ready(why) = this.line.poll_cut(cx) {
            // The service need not send on for nobody.
            this.body = None;
            return Poll::Ready(Some(Err(why.into())));
        }
        match &mut this.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_some_and(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}
