//! Metrics of one kind of session.

use std::sync::Arc;

use super::family::Source;
use super::family::{self, Scrape};
use super::labels::{LabeledCounters, LoginResult, LogoutKind, RefreshResult};

/// The metrics of one entry under `sessions`; exported while a handle exists.
#[derive(Debug)]
pub struct SessionMetrics {
    name: Arc<str>,
    logins: LabeledCounters<LoginResult>,
    refreshes: LabeledCounters<RefreshResult>,
    logouts: LabeledCounters<LogoutKind>,
}

impl SessionMetrics {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            logins: LabeledCounters::new(),
            refreshes: LabeledCounters::new(),
            logouts: LabeledCounters::new(),
        }
    }

    /// Counts a finished login attempt.
    pub fn login(&self, result: LoginResult) {
        self.logins.inc(result);
    }

    /// Counts a redeemed refresh token, once per call, not per request that shared its result.
    pub fn refreshed(&self, result: RefreshResult) {
        self.refreshes.inc(result);
    }

    /// Counts an ended session.
    pub fn logout(&self, kind: LogoutKind) {
        self.logouts.inc(kind);
    }
}

impl Source for SessionMetrics {
    fn report(&self, to: &mut Scrape) {
        let session = &*self.name;
        for (result, count) in self.logins.iter() {
            to.counter(&family::LOGINS, &[session, result], count);
        }
        for (result, count) in self.refreshes.iter() {
            to.counter(&family::REFRESHES, &[session, result], count);
        }
        for (kind, count) in self.logouts.iter() {
            to.counter(&family::LOGOUTS, &[session, kind], count);
        }
    }
}
