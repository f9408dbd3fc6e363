//! Data about an issuer learned from logins: `sid` values of its sessions, and its clock skew.

use core::fmt;
use core::sync::atomic::{AtomicI64, Ordering::Relaxed};
use core::time::Duration;
use std::sync::Arc;

use moka::sync::Cache;
use serde_json::Value;

use crate::base::clock::Timestamp;
use crate::session::logout::ended_sessions::bounded;
use crate::session::store::loaded_session::LoadedSession;
use crate::token::Principal;
use crate::token::jwt::claim_types::date;

/// The `sid` values of recent logins of one client at its issuer, and the skew of the issuer's clock.
pub(crate) struct IssuerObservations {
    /// The `sid` of recent logins.
    sessions: Cache<Arc<str>, ()>,
    /// The delay of the issuer's clock behind ours, in nanoseconds, negative if it is ahead; [`NEVER`] before the first
    /// login.
    behind: AtomicI64,
}

impl IssuerObservations {
    pub(crate) fn new() -> Self {
        Self { sessions: bounded(), behind: AtomicI64::new(NEVER) }
    }

    /// Records a login that has just finished and returns the `sid` values of its session.
    pub(crate) fn record(&self, loaded: &LoadedSession, principal: &Principal) -> Vec<Arc<str>> {
        let person = loaded.person();
        let sid = person.get("sid").and_then(Value::as_str).map(Arc::from);
        let mut sessions: Vec<_> = [sid, principal.session.clone()].into_iter().flatten().collect();
        sessions.dedup();
        for session in &sessions {
            self.sessions.insert(Arc::clone(session), ());
        }
        // An ID token is issued for each login; an access token may be older.
        let issued = date(person, "iat").ok().flatten();
        if let Some(issued) = issued.or(principal.issued) {
            // By the time at which the response had arrived: no later login must be taken for an earlier one.
            let now = loaded.state.since;
            // Not cut: the more the clock seems to be behind, the more a logout ends.
            let nanos = |skew: Duration| i64::try_from(skew.as_nanos()).unwrap_or(i64::MAX - 1);
            let behind =
                if issued > now { -nanos(issued.since(now)) } else { nanos(now.since(issued)) };
            self.behind.store(behind, Relaxed);
        }
        sessions
    }

    /// Whether a recent login had this `sid`.
    pub(crate) fn contains(&self, session: &str) -> bool {
        self.sessions.contains_key(session)
    }

    /// Returns the latest moment of the gateway's clock at which the issuer's clock showed `issued`: `now` at the latest, and
    /// before the first login.
    pub(crate) fn latest_local_time(&self, issued: Timestamp, now: Timestamp) -> Timestamp {
        // The issuer's timestamps are in whole seconds.
        let issued = issued.plus(Duration::from_secs(1));
        let local = match self.behind.load(Relaxed) {
            NEVER => return now,
            behind => {
                let skew = Duration::from_nanos(behind.unsigned_abs());
                if behind < 0 { issued.minus(skew) } else { issued.plus(skew) }
            }
        };
        local.min(now)
    }
}

impl fmt::Debug for IssuerObservations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuerObservations").field("behind", &self.behind).finish_non_exhaustive()
    }
}

const NEVER: i64 = i64::MAX;
