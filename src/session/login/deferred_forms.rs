//! Form posts that wait until their user has logged in again (step-up).
//!
//! A form is stored in memory until the login is done, then sent once: the browser comes back to the path of the form
//! with a sealed cookie that names it, and the gateway replaces that request by the form. A form belongs to the subject
//! that posted it, and is released at its own host and path only.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::base::clock::{Clock, Timestamp};
use crate::base::random::random;

/// The identifier of a deferred form, not guessable.
pub(crate) type FormId = [u8; 16];

/// A form that was posted.
pub(crate) struct DeferredForm {
    pub(crate) method: Method,
    /// The host that it was posted to, with its port.
    pub(crate) host: Box<str>,
    /// Path and query, as browsers write them.
    pub(crate) target: Box<str>,
    /// The whole URL, where its browser is led back to.
    pub(crate) url: Box<str>,
    /// The fields that describe the content and the page that it was posted from.
    pub(crate) fields: HeaderMap,
    pub(crate) content: Bytes,
    /// The subject that posted it: [`Principal::qualified_subject`](crate::token::Principal::qualified_subject).
    pub(crate) subject: Option<Arc<str>>,
}

/// The forms of one session configuration, bounded in number, size and time.
pub(crate) struct DeferredForms {
    forms: Cache<FormId, Arc<DeferredForm>>,
    /// The forms of each subject, the oldest first.
    by_subject: Cache<Option<Arc<str>>, Vec<FormId>>,
    /// The time until which one may be waiting, in nanoseconds: requests look for cookies only until then.
    until: AtomicU64,
}

impl DeferredForms {
    pub(crate) fn new() -> Self {
        let weight = |_: &FormId, form: &Arc<DeferredForm>| {
            let fields: usize = form.fields.values().map(HeaderValue::len).sum();
            let len = form.content.len() + form.target.len() + form.url.len() + fields + 512;
            u32::try_from(len).unwrap_or(u32::MAX)
        };
        let forms = Cache::builder()
            .weigher(weight)
            .max_capacity(MAX_BYTES)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(LIFETIME)
            .build();
        let by_subject = Cache::builder()
            .max_capacity(MAX_SUBJECTS)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(LIFETIME)
            .build();
        Self { forms, by_subject, until: AtomicU64::new(0) }
    }

    /// Stores a form, and returns the name under which it can be taken once. The oldest of many forms of one subject makes
    /// room for it, and none of another's.
    pub(crate) fn defer(&self, form: DeferredForm, clock: &Clock) -> FormId {
        let id = random();
        self.insert(id, Arc::new(form));
        self.until.fetch_max(clock.now().plus(LIFETIME).as_nanos(), Relaxed);
        id
    }

    /// Whether a form may be waiting.
    pub(crate) fn is_any_waiting(&self, clock: &Clock) -> bool {
        let until = self.until.load(Relaxed);
        until > 0 && clock.now() < Timestamp::from_nanos(until)
    }

    /// Puts back a form that was taken but not sent.
    pub(crate) fn put_back(&self, id: FormId, form: Arc<DeferredForm>) {
        self.insert(id, form);
    }

    fn insert(&self, id: FormId, form: Arc<DeferredForm>) {
        let subject = form.subject.clone();
        self.forms.insert(id, form);
        let mut excess = Vec::new();
        self.by_subject.entry(subject).and_upsert_with(|known| {
            let mut ids = known.map(moka::Entry::into_value).unwrap_or_default();
            ids.retain(|known| *known != id && self.forms.contains_key(known));
            ids.push(id);
            excess = ids.drain(..ids.len().saturating_sub(MAX_FORMS_OF_SUBJECT)).collect();
            ids
        });
        for id in &excess {
            self.forms.invalidate(id);
        }
    }

    /// Returns a form without taking it.
    pub(crate) fn get(&self, id: &FormId) -> Option<Arc<DeferredForm>> {
        self.forms.get(id)
    }

    /// Takes a form: of several callers one gets it.
    pub(crate) fn take(&self, id: &FormId) -> Option<Arc<DeferredForm>> {
        self.forms.remove(id)
    }
}

impl fmt::Debug for DeferredForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeferredForm").field("target", &self.target).finish_non_exhaustive()
    }
}

impl fmt::Debug for DeferredForms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeferredForms")
            .field("count", &self.forms.entry_count())
            .finish_non_exhaustive()
    }
}

/// Bytes of a deferred form; the user has to send a longer one again.
pub(crate) const MAX_FORM: usize = 256 << 10;
/// Bytes of all deferred forms of one session configuration; the least used make room.
const MAX_BYTES: u64 = 64 << 20;
/// Forms of one subject: those of a few tabs.
const MAX_FORMS_OF_SUBJECT: usize = 4;
/// Subjects whose forms are counted.
const MAX_SUBJECTS: u64 = 100_000;
/// As long as a login may take.
const LIFETIME: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_taken_once() {
        let (forms, clock) = (DeferredForms::new(), Clock::manual(Timestamp::from_secs(1)));
        assert!(!forms.is_any_waiting(&clock));

        let id = forms.defer(form_of("alice"), &clock);

        assert!(forms.is_any_waiting(&clock) && forms.get(&id).is_some());
        assert!(forms.take(&id).is_some() && forms.take(&id).is_none());
        clock.advance(LIFETIME);
        assert!(!forms.is_any_waiting(&clock));
    }

    #[test]
    fn forms_of_one_subject_push_out_none_of_another() {
        let (forms, clock) = (DeferredForms::new(), Clock::manual(Timestamp::from_secs(1)));
        let alices = forms.defer(form_of("alice"), &clock);

        let bobs: Vec<_> = (0..300).map(|_| forms.defer(form_of("bob"), &clock)).collect();

        assert!(forms.get(&alices).is_some());
        let kept = |id: &&FormId| forms.get(id).is_some();
        assert_eq!(bobs.iter().filter(kept).count(), MAX_FORMS_OF_SUBJECT);
        assert!(forms.get(&bobs[299]).is_some(), "the newest");
        let taken = forms.take(&bobs[299]).unwrap();
        forms.put_back(bobs[299], taken);
        assert_eq!(bobs.iter().filter(kept).count(), MAX_FORMS_OF_SUBJECT);
    }

    fn form_of(subject: &str) -> DeferredForm {
        DeferredForm {
            method: Method::POST,
            host: "www.example.com".into(),
            target: "/orders".into(),
            url: "https://www.example.com/orders".into(),
            fields: HeaderMap::new(),
            content: Bytes::from(vec![b'a'; MAX_FORM - 1024]),
            subject: Some(subject.into()),
        }
    }
}
