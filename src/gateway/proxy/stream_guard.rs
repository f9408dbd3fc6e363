//! Stream guards: end a long response or tunnel when its authorization ends.
//!
//! A WebSocket or an event stream is authorized once and may last for days. It ends when the token that opened it
//! expires, unless its session has a newer one, at once when the token or the session is revoked, and with the
//! upstream's `stream_timeout`, even while its client reads nothing; a gRPC call ends at the end of a drain, too. The connection is closed, or the HTTP/2 stream
//! reset; nothing is written into the stream.
//!
//! Streams have no timers. Each thread lists its open ones and checks them when it sweeps its connections, four times
//! a second; a revocation triggers a check at once. A response that was received whole with its head has no guard.

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
use crate::token::{Principal, RevocationEvent, RevocationList, TokenHolder};

/// The open streams of one thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct StreamRegistry(Rc<RefCell<Vec<Weak<GuardState>>>>);

/// A handle on the guard of one stream.
#[derive(Clone, Debug)]
pub(crate) struct StreamGuard(Rc<GuardState>);

#[derive(Debug)]
struct GuardState {
    /// The owner of the stream, unless it is public.
    owner: Option<OwnerState>,
    /// The deadline of the stream, whatever its owner.
    deadline: Option<Instant>,
    /// Whether it is a gRPC call, whose client can be told why it ends.
    is_call: bool,
    ended: Cell<Option<TerminationReason>>,
    waker: RefCell<Option<Waker>>,
}

/// The owner of an open stream, with the state of its session.
#[derive(Debug)]
struct OwnerState {
    principal: Arc<Principal>,
    /// The session of the stream, if it has one.
    session: Option<SessionWatch>,
    /// The expiry of the token. A session may have a later one.
    ends: Timestamp,
    close_on_expiry: bool,
}

/// The owner of a new stream.
#[derive(Debug)]
pub(crate) struct StreamOwner {
    /// The principal.
    pub(crate) principal: Arc<Principal>,
    /// The expiry of the token.
    pub(crate) ends: Timestamp,
    /// The session of the caller.
    pub(crate) session: Option<SessionHandle>,
    /// Whether the stream ends when the token expires, or by revocation alone.
    pub(crate) close_on_expiry: bool,
}

/// The reason for which the gateway ended a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum TerminationReason {
    /// The token has expired, and the session has no newer one.
    #[error("the token that opened the stream has expired")]
    Expired,
    /// The token or the session was revoked.
    #[error("the authorization of the stream was revoked")]
    Revoked,
    /// The upstream's `stream_timeout` has elapsed.
    #[error("the stream timeout has elapsed")]
    Overdue,
    /// The gateway ends, and `drain_timeout` with it.
    #[error("the gateway is shutting down")]
    ShuttingDown,
}

impl TerminationReason {
    /// Returns the name in the log.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Expired => "token-expired",
            Self::Revoked => "token-revoked",
            Self::Overdue => "stream-timeout",
            Self::ShuttingDown => "shutting-down",
        }
    }
}

impl StreamRegistry {
    /// Creates the guard of a stream with this `owner` and `deadline`; `is_call` is whether it is a gRPC call.
    ///
    /// # Errors
    ///
    /// [`TerminationReason::Revoked`] if the authorization is revoked already.
    pub(crate) fn open(
        &self,
        owner: Option<StreamOwner>,
        deadline: Option<Instant>,
        is_call: bool,
        revocations: &RevocationList,
    ) -> Result<StreamGuard, TerminationReason> {
        let owner = owner.map(|StreamOwner { principal, ends, session, close_on_expiry }| {
            let session = session.map(|session| session.follow(ends));
            OwnerState { principal, session, ends, close_on_expiry }
        });
        let (ended, waker) = (Cell::new(None), RefCell::new(None));
        let state = Rc::new(GuardState { owner, deadline, is_call, ended, waker });
        self.0.borrow_mut().push(Rc::downgrade(&state));
        // Checked after it is listed: a revocation finds it in the list or is found here.
        state.check(revocations);
        state.ended.get().map_or(Ok(StreamGuard(state)), Err)
    }

    /// Ends the streams whose token has expired by `now` or whose deadline has passed, and drops closed ones from the
    /// list.
    pub(crate) fn sweep(&self, now: Timestamp) {
        if self.0.borrow().is_empty() {
            return;
        }
        let instant = Instant::now();
        self.each(|state| state.check_deadlines(now, instant));
    }

    /// Ends all gRPC calls.
    pub(crate) fn end_calls(&self) {
        self.each(|state| {
            if state.is_call {
                state.end(TerminationReason::ShuttingDown);
            }
        });
    }

    /// Ends revoked streams, as long as the thread serves.
    pub(crate) async fn watch_revocations(&self, revocations: &RevocationList) {
        let mut events = revocations.listen();
        loop {
            match events.recv().await {
                Ok(event) => self.each(|state| state.apply(&event, revocations)),
                Err(RecvError::Lagged(_)) => self.each(|state| state.check(revocations)),
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn each(&self, mut act: impl FnMut(&GuardState)) {
        // A woken task is polled later: `act` never re-enters this borrow.
        self.0.borrow_mut().retain(|state| {
            let state = state.upgrade();
            if let Some(state) = &state {
                act(state);
            }
            state.is_some()
        });
    }
}

impl GuardState {
    fn check_deadlines(&self, now: Timestamp, instant: Instant) {
        if self.deadline.is_some_and(|deadline| instant >= deadline) {
            self.end(TerminationReason::Overdue);
        }
        if let Some(owner) = &self.owner {
            match owner.session.as_ref().map_or(Some(owner.ends), SessionWatch::ends) {
                None => self.end(TerminationReason::Revoked),
                Some(ends) if owner.close_on_expiry && now >= ends => {
                    self.end(TerminationReason::Expired);
                }
                Some(_) => {}
            }
        }
    }

    fn apply(&self, event: &RevocationEvent, revocations: &RevocationList) {
        self.revoke_if(|owner| event.names(&owner.principal) && owner.is_revoked(revocations));
    }

    fn check(&self, revocations: &RevocationList) {
        self.revoke_if(|owner| owner.is_revoked(revocations));
    }

    fn revoke_if(&self, revoked: impl FnOnce(&OwnerState) -> bool) {
        if let Some(owner) = &self.owner
            && (revoked(owner) || owner.session_has_ended())
        {
            self.end(TerminationReason::Revoked);
        }
    }

    fn poll_ended(&self, cx: &Context<'_>) -> Poll<TerminationReason> {
        if let Some(reason) = self.ended.get() {
            return Poll::Ready(reason);
        }
        let mut waker = self.waker.borrow_mut();
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    fn end(&self, reason: TerminationReason) {
        if self.ended.get().is_none() {
            self.ended.set(Some(reason));
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }
}

impl OwnerState {
    fn is_revoked(&self, revocations: &RevocationList) -> bool {
        let holder =
            if self.session.is_some() { TokenHolder::Gateway } else { TokenHolder::Client };
        revocations.is_revoked(&self.principal, holder)
    }

    fn session_has_ended(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.ends().is_none())
    }
}

impl body::PollCut for GuardState {
    fn poll_cut(&self, cx: &Context<'_>) -> Poll<()> {
        self.poll_ended(cx).map(drop)
    }
}

impl StreamGuard {
    /// Returns the reason for which the stream was ended, if it was.
    pub(crate) fn reason(&self) -> Option<TerminationReason> {
        self.0.ended.get()
    }

    /// Waits until the stream must end.
    pub(crate) async fn ended(&self) -> TerminationReason {
        poll_fn(|cx| self.0.poll_ended(cx)).await
    }
}

/// A body that its guard may abort.
pub(crate) struct GuardedBody {
    /// `None` once it was aborted.
    body: Option<Body>,
    guard: StreamGuard,
}

impl GuardedBody {
    /// Ties `body` to `guard`, even while it is not polled.
    pub(crate) fn body(body: Body, guard: StreamGuard) -> Body {
        let cut = Rc::<GuardState>::clone(&guard.0);
        body.wrapped(|body| Self { body: Some(body), guard }).also_cut_by(cut)
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
        if let Poll::Ready(reason) = this.guard.0.poll_ended(cx) {
            // Dropping the content stops the upstream.
            this.body = None;
            return Poll::Ready(Some(Err(reason.into())));
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
