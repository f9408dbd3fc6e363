//! A form that was posted before its user had to log in again, in place of the request that comes back for it.

use std::sync::Arc;

use http::request::Parts;

use super::Snapshot;
use super::exchange::Exchange;
use crate::session::{ResumedForm, Sessions};

impl Snapshot {
    /// Puts a kept form in place of a request that comes back for one; returns the session that has kept it.
    pub(super) async fn resume_form(
        &self,
        head: &mut Parts,
    ) -> Option<(Arc<Sessions>, ResumedForm)> {
        for session in &self.sessions {
            if session.may_resume_form(head)
                // Boxed: rarely used and large, and every request carries this future.
                && let Some(form) = Box::pin(session.resume_form(head)).await
            {
                return Some((Arc::clone(session), form));
            }
        }
        None
    }
}

impl Exchange {
    /// Forgets a form that was sent in place of this request. If the request was refused before any upstream got it, by a
    /// limit for example, the form is kept again, for its user to load the page again.
    pub(super) fn settle_form(&mut self, session: &Sessions, form: ResumedForm, is_refused: bool) {
        if is_refused && self.outcome.endpoint.is_none() && self.login.is_none() {
            session.put_back_form(form);
        } else {
            self.cookies.extend(form.cookies);
        }
    }
}
