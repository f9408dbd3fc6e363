//! Step-up: a login that is stronger or more recent than that of the session (RFC 9470).
//!
//! The user is redirected to the issuer with `acr_values` and `max_age`, by a sealed parameter of the login's URL, and
//! comes back to the page, or to the form, that the route has refused.

use core::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    CONTENT_LENGTH, CONTENT_TYPE, IF_MODIFIED_SINCE, IF_NONE_MATCH, ORIGIN, RANGE, REFERER,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use url::{Url, form_urlencoded};

use super::deferred_forms::{DeferredForm, FormId, MAX_FORM};
use super::login_requirements::StepUp;
use super::return_to::ReturnTarget;
use super::session_hosts::as_written;
use crate::base::body::Body;
use crate::session::cookies::origin::{SEC_FETCH_SITE, authority};
use crate::session::registry::RetainedSessions;
use crate::session::settings::OnUnauthenticated;
use crate::session::{LoginRedirect, Sessions, is_shown, navigation};
use crate::token::authentication_level::AuthenticationLevel;

impl Sessions {
    /// Redirects the user of a request that `level` refuses to a login that meets it. The content of a form is read and
    /// kept for `subject`, as its principal qualifies it.
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
            let page = navigation::htmx_page(head);
            let return_to = page.clone().flatten().or_else(|| own_referer(head));
            let url = self.step_up_url(head, return_to.as_deref(), &step_up)?;
            return Some(match page {
                Some(_) => LoginRedirect::Htmx(url),
                None => LoginRedirect::Named(url),
            });
        }
        if reads {
            return self.step_up_url(head, Some(target), &step_up).map(LoginRedirect::Location);
        }
        let content = body.collect(MAX_FORM).await;
        let target = as_written(target);
        let (host, url) =
            (authority(&head.uri, &head.headers), self.session_hosts.url(head, &target));
        if let (Ok(content), Some(host), Some(url)) = (content, host, url) {
            let form = DeferredForm {
                method: head.method.clone(),
                host: host.into(),
                target: target.into(),
                url: url.into(),
                fields: fields_of_form(&head.headers),
                // Without the room that reading it has taken besides.
                content: Bytes::copy_from_slice(&content),
                subject,
            };
            step_up.form = Some(self.retained.forms.defer(form, &self.clock));
        } else {
            let session = &*self.settings.name;
            tracing::warn!(
                session,
                "Could not store a form until its user has logged in: it is too long, incomplete, or for a host outside the session; its user has to submit it again."
            );
        }
        // The page that posted the form, in case the form has expired when the login is done.
        let page = own_referer(head);
        self.step_up_url(head, page.as_deref(), &step_up).map(LoginRedirect::Location)
    }

    fn step_up_url(
        &self,
        head: &Parts,
        page: Option<&str>,
        step_up: &StepUp,
    ) -> Option<HeaderValue> {
        let sealed = self.logins.seal_step_up(step_up);
        self.login_url(&self.page_of(head, page), Some(&format!("&{PARAMETER}={sealed}")))
    }

    /// Returns the demands that the URL of a login names; `None` unless the gateway has made it.
    pub(crate) fn requested_step_up(&self, request: &Parts) -> Option<StepUp> {
        let query = request.uri.query().unwrap_or_default();
        let sealed = form_urlencoded::parse(query.as_bytes())
            .find_map(|(name, value)| (name == PARAMETER).then_some(value))?;
        self.logins.open_step_up(&sealed)
    }

    /// Returns the URL of the form that waits for a login of `subject`, and the cookie that has it sent there by the new
    /// `session`. `headers` are those of the callback.
    pub(crate) fn release_form(
        &self,
        headers: &HeaderMap,
        step_up: &StepUp,
        subject: Option<&Arc<str>>,
        session: &str,
    ) -> Option<(ReturnTarget, Vec<HeaderValue>)> {
        let id = step_up.form.as_ref()?;
        let name = &*self.settings.name;
        let Some(form) = self.retained.forms.get(id) else {
            tracing::warn!(
                session = name,
                "Could not find the form that waited for a login: it has expired, or another instance has it; its user has to submit it again."
            );
            return None;
        };
        if form.subject.as_ref() != subject || subject.is_none() {
            // Another user has logged in, and must not send the form.
            self.retained.forms.take(id);
            tracing::warn!(
                session = name,
                "Dropped the form that waited for a login: another user has logged in."
            );
            return None;
        }
        Some((ReturnTarget::trusted(&form.url), self.logins.release_form(headers, *id, session)))
    }

    /// Returns the cookies that have the forms of other tabs, which wait for their pages to load, sent by the new `session` of
    /// the same `subject`: it has replaced the one that they were released for.
    pub(crate) fn carry_forms_over(
        &self,
        headers: &HeaderMap,
        subject: Option<&Arc<str>>,
        session: &str,
    ) -> Vec<HeaderValue> {
        if !self.retained.forms.is_any_waiting(&self.clock) {
            return Vec::new();
        }
        let is_its_own =
            |form: Arc<DeferredForm>| subject.is_some() && form.subject.as_ref() == subject;
        let released = self.logins.released_forms(headers).into_iter();
        released
            .filter(|form| self.retained.forms.get(&form.id).is_some_and(is_its_own))
            .flat_map(|form| self.logins.carry_form_over(&form, session))
            .collect()
    }

    /// Whether a request may be one that comes back for a form: usually none is stored.
    pub fn may_resume_form(&self, head: &Parts) -> bool {
        head.method == Method::GET && self.retained.forms.is_any_waiting(&self.clock)
    }

    /// Puts a form, for which its user has logged in, in place of the request that comes back to its address.
    pub async fn resume_form(&self, head: &mut Parts) -> Option<ResumedForm> {
        if !self.may_resume_form(head) {
            return None;
        }
        let host = authority(&head.uri, &head.headers)?;
        let target = head.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let target = as_written(target);
        let released = self.logins.released_forms(&head.headers).into_iter().find(|released| {
            let form = self.retained.forms.get(&released.id);
            form.is_some_and(|form| *form.target == *target && form.host.eq_ignore_ascii_case(host))
        })?;
        // Another user may have logged in meanwhile.
        let opened = self.storage.open(&self.presented_cookies(&head.headers)).await.ok()??;
        if *opened.name != *released.session {
            return None;
        }
        let form = self.retained.forms.take(&released.id)?;
        let (retained, cookies) =
            (Arc::clone(&self.retained), self.logins.forget_form(&head.headers, &released));
        let form =
            ResumedForm { id: released.id, form, retained, has_arrived: Rc::default(), cookies };
        let DeferredForm { method, fields, content, .. } = &*form.form;
        head.method = method.clone();
        for field in [IF_NONE_MATCH, IF_MODIFIED_SINCE, RANGE].iter().chain(&OF_THE_FORM) {
            head.headers.remove(field);
        }
        head.headers.extend(fields.clone());
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(content.len()));
        Some(form)
    }
}

/// A form in place of the request that came back for it. On drop the form is stored again, unless it may have arrived:
/// a request that is refused, or whose client leaves, before any upstream got it can come back once more.
#[derive(Debug)]
pub struct ResumedForm {
    id: FormId,
    form: Arc<DeferredForm>,
    retained: Arc<RetainedSessions>,
    has_arrived: Rc<Cell<bool>>,
    /// The `Set-Cookie` fields that forget the form.
    cookies: Vec<HeaderValue>,
}

impl ResumedForm {
    /// Returns the content of the form.
    pub fn content(&self) -> Body {
        Body::from(self.form.content.clone())
    }

    /// Returns a flag to be set as soon as something of the form may have reached an upstream.
    pub fn arrival(&self) -> Rc<Cell<bool>> {
        Rc::clone(&self.has_arrived)
    }

    /// Removes the form after its use; returns the `Set-Cookie` fields that remove its cookie from the browser.
    pub fn forget(mut self) -> Vec<HeaderValue> {
        self.has_arrived.set(true);
        core::mem::take(&mut self.cookies)
    }
}

impl Drop for ResumedForm {
    fn drop(&mut self) {
        if !self.has_arrived.get() {
            self.retained.forms.put_back(self.id, Arc::clone(&self.form));
        }
    }
}

/// Returns the fields of a form that are sent again with it.
fn fields_of_form(headers: &HeaderMap) -> HeaderMap {
    let values = |name: &HeaderName| {
        let name = name.clone();
        headers
            .get_all(&name)
            .iter()
            .map(move |value| (name.clone(), value.clone()))
            .collect::<Vec<_>>()
    };
    OF_THE_FORM.iter().flat_map(values).collect()
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

/// The fields that describe a form's content, and the page that has posted it: an upstream, and the protection against
/// cross-site requests, judge the form by its own page, not by the redirect that brings its user back.
const OF_THE_FORM: [HeaderName; 4] = [CONTENT_TYPE, ORIGIN, REFERER, SEC_FETCH_SITE];
/// The parameter of a login's URL with the sealed demands.
const PARAMETER: &str = "step_up";
