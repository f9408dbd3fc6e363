//! What is counted for each kind of session.

use std::sync::Arc;

use super::Source;
use super::family::{self, Scrape};
use super::labels::{LabeledCounters, LoginResult, LogoutKind, RefreshResult};

/// The numbers of one entry under `sessions`; exported as long as somebody holds them.
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

    /// An attempt to log in ended.
    pub fn login(&self, result: LoginResult) {
        self.logins.inc(result);
    }

    /// A refresh token was redeemed. Count each call once, not those who shared its answer.
    pub fn refreshed(&self, result: RefreshResult) {
        self.refreshes.inc(result);
    }

    /// A session ended.
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
