//! What logins have told of an issuer: how it calls their sessions, and how late its clock is.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use std::sync::Arc;

use moka::sync::Cache;
use serde_json::Value;

use crate::base::clock::Timestamp;
use crate::session::logout::ended_sessions::bounded;
use crate::session::store::loaded::LoadedSession;
use crate::token::Principal;

/// What logins have told of an issuer.
pub(crate) struct LoginTimes {
    /// `sid` of those that came lately.
    sessions: Cache<Arc<str>, ()>,
    /// By how much the issuer's clock is behind ours, in nanoseconds; [`NEVER`] before the first login.
    behind: AtomicU64,
}

impl LoginTimes {
    pub(crate) fn new() -> Self {
        Self { sessions: bounded(), behind: AtomicU64::new(NEVER) }
    }

    /// A login has brought `loaded_session`, just now. What the issuer calls its session.
    pub(crate) fn note(&self, opened: &LoadedSession, principal: &Principal) -> Vec<Arc<str>> {
        let person = opened.person();
        let named = person.get("sid").and_then(Value::as_str).map(Arc::from);
        let mut sessions: Vec<_> =
            [named, principal.session.clone()].into_iter().flatten().collect();
        sessions.dedup();
        for session in &sessions {
            self.sessions.insert(Arc::clone(session), ());
        }
        // An ID token is made for each login; an access token may have been made before.
        let issued = person.get("iat").and_then(Value::as_u64).map(Timestamp::from_secs);
        if let Some(issued) = issued.or(principal.issued) {
            let behind = opened.visit.received.since(issued).min(MAX_CLOCK_SKEW);
            self.behind.store(u64::try_from(behind.as_nanos()).unwrap_or(NEVER), Relaxed);
        }
        sessions
    }

    /// Whether a login has brought the session that the issuer calls so.
    pub(crate) fn know(&self, session: &str) -> bool {
        self.sessions.contains_key(session)
    }

    /// What the issuer's clock calls `said` is this moment of ours, at the latest.
    pub(crate) fn heard_at(&self, said: Timestamp, now: Timestamp) -> Timestamp {
        let behind = match self.behind.load(Relaxed) {
            NEVER => MAX_CLOCK_SKEW,
            nanos => Duration::from_nanos(nanos),
        };
        // Its clock counts in whole seconds.
        said.plus(behind + Duration::from_secs(1)).min(now)
    }
}

impl fmt::Debug for LoginTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logins").field("behind", &self.behind).finish_non_exhaustive()
    }
}

const NEVER: u64 = u64::MAX;
/// Clocks that differ by more are not waited for.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(60);
