//! The responses of Redis about a session and its refresh.

use std::sync::Arc;

use super::loaded_session::LoadedSession;
use crate::session::refresh::decision::LockResponse;

/// The result of looking up a session in Redis.
pub(crate) enum SharedLookup {
    /// The session, sealed.
    Sealed(Box<str>),
    /// The session has ended.
    Ended,
    /// No such key.
    NotFound,
}

/// The result of trying to acquire a refresh lock.
pub(crate) enum LockState {
    /// Acquired: redeem, and publish the result.
    Acquired,
    /// Acquired, after another instance had it and never published a result.
    AcquiredAfterExpiry,
    /// Another instance holds it: try again in a moment.
    Held,
    /// Redis has lost its data a moment ago, and instances are publishing their results again: try again in a moment.
    Restoring,
    /// Another instance has refreshed the session; its result.
    Refreshed(Arc<LoadedSession>),
    /// The session has ended.
    Ended,
}

impl LockState {
    /// Returns the state without its session.
    pub(crate) const fn response(&self) -> LockResponse {
        match self {
            Self::Acquired => LockResponse::Acquired,
            Self::AcquiredAfterExpiry => LockResponse::AcquiredAfterExpiry,
            Self::Held => LockResponse::Held,
            Self::Restoring => LockResponse::NoResponse,
            Self::Refreshed(_) => LockResponse::Refreshed,
            Self::Ended => LockResponse::Ended,
        }
    }
}

/// The successor of a session whose refresh token was redeemed.
#[derive(Default)]
pub(crate) struct Successor {
    /// The session with new tokens.
    pub(crate) renewed: Option<Arc<LoadedSession>>,
    /// Whether a browser has received newer tokens that this instance does not know.
    pub(crate) is_replaced: bool,
    /// Whether the session has ended.
    pub(crate) is_over: bool,
}
