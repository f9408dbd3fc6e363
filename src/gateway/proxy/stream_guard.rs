//! Streams: what stays open after a request was let in ends when what let it in does.
//!
//! A WebSocket or a stream of events is authorized once and may run for days.
//! It ends with the token that opened it, unless its session has a newer one
//! by then, at once when the token or the session is revoked, and with its
//! upstream's `stream_timeout`, also while its client reads nothing. The
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
use tokio::time::Instant;

use crate::base::body::{self, Body};
use crate::base::clock::Timestamp;
use crate::session::{SessionHandle, SessionWatch};
use crate::token::{Principal, RevocationFeed, RevocationList};

/// The open streams of one thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct StreamRegistry(Rc<RefCell<Vec<Weak<GuardState>>>>);

/// What holds one stream open.
#[derive(Clone, Debug)]
pub(crate) struct StreamGuard(Rc<GuardState>);

#[derive(Debug)]
struct GuardState {
    /// Who has opened it, if it is not open to all.
    held: Option<GuardHandle>,
    /// When it must be over, whoever has opened it.
    until: Option<Instant>,
    cut: Cell<Option<TerminationReason>>,
    waker: RefCell<Option<Waker>>,
}

/// By whom a stream is held open.
#[derive(Debug)]
struct GuardHandle {
    principal: Arc<Principal>,
    /// The session that it belongs to, if it does.
    visit: Option<SessionWatch>,
    /// When its token ends. A visit knows of later ones.
    ends: Timestamp,
    close_on_expiry: bool,
}

/// Who opens a stream, and how long that is good.
#[derive(Debug)]
pub(crate) struct StreamOwner {
    /// Who.
    pub(crate) principal: Arc<Principal>,
    /// When their token ends.
    pub(crate) ends: Timestamp,
    /// The session they came with.
    pub(crate) visit: Option<SessionHandle>,
    /// Whether the stream ends with the token, or with revocations alone.
    pub(crate) close_on_expiry: bool,
}

/// Why a stream was ended before its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum TerminationReason {
    /// Its token has ended, and there is no newer one.
    #[error("the token that opened the stream has ended")]
    Expired,
    /// Its token or its session was revoked.
    #[error("what opened the stream was revoked")]
    Revoked,
    /// It has lasted as long as its upstream's answers may.
    #[error("the stream has lasted as long as it may")]
    Overdue,
}

impl TerminationReason {
    /// What the log calls it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Expired => "token-expired",
            Self::Revoked => "token-revoked",
            Self::Overdue => "stream-timeout",
        }
    }
}

impl StreamRegistry {
    /// Holds a stream open as long as it may be: for who has opened it, and `until` then at the most.
    ///
    /// # Errors
    ///
    /// [`TerminationReason::Revoked`] if that is over already.
    pub(crate) fn open(
        &self,
        opener: Option<StreamOwner>,
        until: Option<Instant>,
        revocations: &RevocationList,
    ) -> Result<StreamGuard, TerminationReason> {
        let held = opener.map(|StreamOwner { principal, ends, visit, close_on_expiry }| {
            let visit = visit.map(|visit| visit.follow(ends));
            GuardHandle { principal, visit, ends, close_on_expiry }
        });
        let (cut, waker) = (Cell::new(None), RefCell::new(None));
        let line = Rc::new(GuardState { held, until, cut, waker });
        self.0.borrow_mut().push(Rc::downgrade(&line));
        // After it is listed: a revocation either finds it there or is found here.
        line.check(revocations);
        line.cut.get().map_or(Ok(StreamGuard(line)), Err)
    }

    /// Ends those whose token has ended by `now`, or whose time is up, and forgets those that are closed.
    pub(crate) fn sweep(&self, now: Timestamp) {
        if self.0.borrow().is_empty() {
            return;
        }
        let instant = Instant::now();
        self.each(|line| line.look(now, instant));
    }

    /// Ends what is revoked, as long as the thread lives.
    pub(crate) async fn watch_revocations(&self, revocations: &RevocationList) {
        let mut news = revocations.listen();
        loop {
            match news.recv().await {
                Ok(news) => self.each(|line| line.hear(&news, revocations)),
                Err(RecvError::Lagged(_)) => self.each(|line| line.check(revocations)),
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn each(&self, mut act: impl FnMut(&GuardState)) {
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

impl GuardState {
    fn look(&self, now: Timestamp, instant: Instant) {
        if self.until.is_some_and(|until| instant >= until) {
            self.cut(TerminationReason::Overdue);
        }
        if let Some(held) = &self.held {
            match held.visit.as_ref().map_or(Some(held.ends), SessionWatch::ends) {
                None => self.cut(TerminationReason::Revoked),
                Some(ends) if held.close_on_expiry && now >= ends => {
                    self.cut(TerminationReason::Expired);
                }
                Some(_) => {}
            }
        }
    }

    fn hear(&self, news: &RevocationFeed, revocations: &RevocationList) {
        self.revoke_if(|held| {
            news.names(&held.principal) && revocations.is_revoked(&held.principal)
        });
    }

    fn check(&self, revocations: &RevocationList) {
        self.revoke_if(|held| revocations.is_revoked(&held.principal));
    }

    fn revoke_if(&self, revoked: impl FnOnce(&GuardHandle) -> bool) {
        if let Some(held) = &self.held
            && (revoked(held) || held.is_over())
        {
            self.cut(TerminationReason::Revoked);
        }
    }

    fn poll_why(&self, cx: &Context<'_>) -> Poll<TerminationReason> {
        if let Some(why) = self.cut.get() {
            return Poll::Ready(why);
        }
        let mut waker = self.waker.borrow_mut();
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    fn cut(&self, why: TerminationReason) {
        if self.cut.get().is_none() {
            self.cut.set(Some(why));
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }
}

impl GuardHandle {
    fn is_over(&self) -> bool {
        self.visit.as_ref().is_some_and(|visit| visit.ends().is_none())
    }
}

impl body::PollCut for GuardState {
    fn poll_cut(&self, cx: &Context<'_>) -> Poll<()> {
        self.poll_why(cx).map(drop)
    }
}

/// What may end a body, its lifeline or its own.
#[derive(Debug)]
struct Either(Rc<GuardState>, Rc<dyn body::PollCut>);

impl body::PollCut for Either {
    fn poll_cut(&self, cx: &Context<'_>) -> Poll<()> {
        let Self(line, own) = self;
        if line.poll_cut(cx).is_ready() { Poll::Ready(()) } else { own.poll_cut(cx) }
    }
}

impl StreamGuard {
    /// Why the stream was ended, if it was.
    pub(crate) fn why(&self) -> Option<TerminationReason> {
        self.0.cut.get()
    }

    /// Resolves when the stream must end.
    pub(crate) async fn cut(&self) -> TerminationReason {
        poll_fn(|cx| self.0.poll_why(cx)).await
    }
}

/// A body that breaks off when its lifeline is cut.
pub(crate) struct GuardedBody {
    /// `None` once it was cut.
    body: Option<Body>,
    line: StreamGuard,
}

impl GuardedBody {
    /// Ties `body` to `line`, also for as long as nobody asks for more of it.
    pub(crate) fn body(body: Body, line: StreamGuard) -> Body {
        let cut: Rc<dyn body::PollCut> = match body.cut() {
            Some(own) => Rc::new(Either(Rc::clone(&line.0), own)),
            None => Rc::<GuardState>::clone(&line.0),
        };
        Body::streaming(Self { body: Some(body), line }).with_cut(Some(cut))
    }
}

impl http_body::Body for GuardedBody {
    type Data = Bytes;
    type Error = body::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
        let this = self.get_mut();
        if let Poll::Ready(why) = this.line.0.poll_why(cx) {
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
