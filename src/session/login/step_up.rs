//! Step-up: a login that is stronger or more recent than that of the session (RFC 9470).
//!
//! The user of a session is led to the issuer with `acr_values` and `max_age`,
//! by a sealed parameter of the login's URL, and comes back to the page, or to
//! the form, that the route has refused.

use std::sync::Arc;

use http::header::{
    CONTENT_LENGTH, CONTENT_TYPE, IF_MODIFIED_SINCE, IF_NONE_MATCH, ORIGIN, RANGE, REFERER,
};
use http::request::Parts;
use http::{HeaderValue, Method};
use url::{Url, form_urlencoded};

use super::kept_forms::{KeptForm, MAX_FORM};
use super::login_requirements::StepUp;
use super::return_to::ReturnTarget;
use crate::base::body::Body;
use crate::session::cookies::origin::SEC_FETCH_SITE;
use crate::session::settings::OnUnauthenticated;
use crate::session::{LoginRedirect, Sessions, is_shown, user_agent};
use crate::token::authentication_level::AuthenticationLevel;

impl Sessions {
    /// Leads the user of a request, which `level` refuses, to a login that meets it. The content of a form is read and
    /// kept for `subject`.
    pub async fn step_up(
        &self,
        head: &Parts,
        body: Body,
        level: &AuthenticationLevel,
        subject: Option<Arc<str>>,
    ) -> Option<LoginRedirect> {
        let target = head.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let reads = matches!(head.method, Method::GET | Method::HEAD);
        let navigates = self.settings.on_unauthenticated != OnUnauthenticated::Refuse
            && is_shown(&head.headers);
        let mut step_up = StepUp { level: level.clone(), form: None };
        if !navigates {
            let page = user_agent::htmx_page(&head.headers);
            let return_to = page.clone().flatten().or_else(|| own_referer(head));
            let url = self.step_up_url(return_to.as_deref(), &step_up)?;
            return Some(match page {
                Some(_) => LoginRedirect::Htmx(url),
                None => LoginRedirect::Named(url),
            });
        }
        if reads {
            return self.step_up_url(Some(target), &step_up).map(LoginRedirect::Location);
        }
        let content = body.collect(MAX_FORM).await;
        if let Ok(content) = content {
            let form = KeptForm {
                method: head.method.clone(),
                target: target.into(),
                content_type: head.headers.get(CONTENT_TYPE).cloned(),
                content,
                subject,
            };
            step_up.form = Some(self.retained.forms.keep(form, &self.clock));
        } else {
            let session = &*self.settings.name;
            tracing::warn!(
                session,
                "Could not keep a form for the time of a login: it is too long, or did not arrive; its user has to send it again."
            );
        }
        // Where the form came from, should it be gone when the login is done.
        let page = own_referer(head);
        self.step_up_url(page.as_deref(), &step_up).map(LoginRedirect::Location)
    }

    fn step_up_url(&self, return_to: Option<&str>, step_up: &StepUp) -> Option<HeaderValue> {
        let sealed = self.logins.seal_step_up(step_up);
        let return_to = return_to.unwrap_or(&self.settings.after_login);
        self.login_url(return_to, Some(&format!("&{PARAMETER}={sealed}")))
    }

    /// Returns the demands that the URL of a login names; `None` unless the gateway has made it.
    pub(crate) fn requested_step_up(&self, request: &Parts) -> Option<StepUp> {
        let query = request.uri.query().unwrap_or_default();
        let sealed = form_urlencoded::parse(query.as_bytes())
            .find_map(|(name, value)| (name == PARAMETER).then_some(value))?;
        self.logins.open_step_up(&sealed)
    }

    /// Returns the path of the form that waits for a login of `subject`, and the cookie that has it sent there by the new
    /// `session`.
    pub(crate) fn release_form(
        &self,
        step_up: &StepUp,
        subject: Option<&Arc<str>>,
        session: &str,
    ) -> Option<(ReturnTarget, Vec<HeaderValue>)> {
        let id = step_up.form.as_ref()?;
        let form = self.retained.forms.get(id)?;
        if form.subject.as_ref() != subject || subject.is_none() {
            // Another user has logged in, who must not send it.
            self.retained.forms.take(id);
            return None;
        }
        let target = ReturnTarget::parse(&form.target, &self.settings.return_to)?;
        Some((target, self.logins.release_form(*id, session)))
    }

    /// Whether a request may be one that comes back for a form: usually none is kept.
    pub fn may_resume_form(&self, head: &Parts) -> bool {
        head.method == Method::GET && self.retained.forms.is_any_waiting(&self.clock)
    }

    /// Puts a form, for which its user has logged in, in place of the request that comes back to its path. Returns its
    /// content and the cookies to set.
    pub async fn resume_form(&self, head: &mut Parts) -> Option<(Body, Vec<HeaderValue>)> {
        if !self.may_resume_form(head) {
            return None;
        }
        let (id, session) = self.logins.released_form(&head.headers)?;
        let target = head.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        if *self.retained.forms.get(&id)?.target != *target {
            return None;
        }
        // Another user may have logged in meanwhile.
        let opened = self.storage.open(&self.presented_cookies(&head.headers)).await.ok()??;
        if *opened.name != *session {
            return None;
        }
        let form = self.retained.forms.take(&id)?;
        let cookies = self.logins.forget_form(&head.headers);
        head.method = form.method.clone();
        for field in [IF_NONE_MATCH, IF_MODIFIED_SINCE, RANGE, ORIGIN, CONTENT_TYPE] {
            head.headers.remove(field);
        }
        // Its page was of this origin when the form was posted.
        head.headers.insert(SEC_FETCH_SITE, HeaderValue::from_static("same-origin"));
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(form.content.len()));
        if let Some(content_type) = &form.content_type {
            head.headers.insert(CONTENT_TYPE, content_type.clone());
        }
        Some((Body::from(form.content.clone()), cookies))
    }
}

/// Returns path and query of the page that a request came from, if it is one of the request's host.
fn own_referer(head: &Parts) -> Option<String> {
    let url = Url::parse(head.headers.get(REFERER)?.to_str().ok()?).ok()?;
    let host = head
        .uri
        .authority()
        .map(http::uri::Authority::as_str)
        .or_else(|| head.headers.get(http::header::HOST)?.to_str().ok())?;
    let here = Url::parse(&format!("{}://{host}", url.scheme())).ok()?;
    (here.origin() == url.origin()).then(|| match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    })
}

/// The parameter of a login's URL with the sealed demands.
const PARAMETER: &str = "step_up";
