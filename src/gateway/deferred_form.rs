//! Resumes a form post that waited for a login: replaces the returning GET by the stored POST.

use http::request::Parts;

use super::Snapshot;
use super::exchange::Exchange;
use crate::session::ResumedForm;

impl Snapshot {
    /// Replaces a request that comes back for a stored form by that form's POST.
    pub(super) async fn resume_form(&self, head: &mut Parts) -> Option<ResumedForm> {
        for session in &self.context.sessions {
            if session.may_resume_form(head)
                // Boxed: rarely used and large, and every request carries this future.
                && let Some(form) = Box::pin(session.resume_form(head)).await
            {
                return Some(form);
            }
        }
        None
    }
}

impl Exchange {
    /// Forgets a form that was sent in place of this request. If no upstream got it, because a limit refused the request
    /// or no connection could be made, the form is kept again, for its user to load the page again.
    pub(super) fn settle_form(&mut self, form: ResumedForm, is_refused: bool) {
        let is_answered = !is_refused && self.outcome.fallback.is_none();
        if is_answered || form.arrival().get() || self.login.is_some() {
            self.cookies.extend(form.forget());
        }
    }
}
