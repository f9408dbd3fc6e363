//! The last good responses of a route, for the time when its upstream gives none.
//!
//! Never what belongs to one client: requests with `Authorization`, `Cookie` or content and callers that are known are left
//! out, as are responses that set cookies or that `Cache-Control` keeps from shared caches (RFC 9111 §3) or from being used stale
//! (§4.2.4). Bounded in age, in bytes of a response and of all together.

use core::task::Poll;
use core::time::Duration;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::{
    AGE, AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, COOKIE, HOST, PRAGMA, RANGE,
    SET_COOKIE, VARY,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body::Body as _;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::base::body::Body;
use crate::base::cache_control::{age, seconds};
use crate::base::header_fields::fields_bytes;
use crate::base::method::is_safe;
use crate::base::watched_body::{Polled, Watch, Watched};
use crate::gateway::response::hardening::has_directive;
use crate::upstream::{CloseDelimited, OutgoingRequest};

/// The last good responses of one route.
#[derive(Debug)]
pub(crate) struct StaleResponses {
    /// The maximum age at which a response is used.
    max_age: Duration,
    /// By upstream, host and target, the responses to requests that differ in what these vary by.
    cache: Cache<Box<[u8]>, Arc<[Arc<Stored>]>>,
}

/// A response, with what selects it.
#[derive(Debug)]
struct Stored {
    /// The header fields that the response varies by, with the values of its request.
    varies: Vec<(HeaderName, Vec<HeaderValue>)>,
    headers: HeaderMap,
    body: Bytes,
    /// The uptime of the response.
    at: Duration,
    /// The age at which it is not used any more.
    max_age: Duration,
}

/// A request that concerns the stored responses of a target.
#[derive(Debug)]
pub(crate) struct StaleKey {
    target: Box<[u8]>,
    /// Whether the request changes its target (RFC 9110 §9.2.1): no response to it is stored, and what is stored has ended.
    is_unsafe: bool,
}

impl StaleKey {
    /// Returns the key of a request from a client of `host`, whose target is that which the upstream named `upstream` receives;
    /// `None` for a safe one that must have a response of its own, such as one `is_private`, of a known caller or with
    /// content.
    pub(crate) fn of(
        head: &Parts,
        host: Option<&HeaderValue>,
        upstream: &str,
        is_private: bool,
    ) -> Option<Self> {
        let headers = &head.headers;
        let private = [AUTHORIZATION, COOKIE, RANGE];
        let is_public = !is_private
            && private.iter().all(|name| !headers.contains_key(name))
            && !has_directive(headers, &["no-store"]);
        if is_safe(&head.method) && !(head.method == Method::GET && is_public) {
            return None;
        }
        let host = host.or(headers.get(HOST)).map_or(&b""[..], HeaderValue::as_bytes);
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
        // None of the parts can contain a space, so the key is unambiguous.
        let target = [upstream.as_bytes(), b" ", host, b" ", target.as_bytes()].concat().into();
        Some(Self { target, is_unsafe: !is_safe(&head.method) })
    }
}

impl StaleResponses {
    /// Creates an empty store of up to `max_bytes`.
    pub(crate) fn new(max_age: Duration, max_bytes: u64) -> Self {
        #[expect(clippy::borrowed_box, reason = "the cache hands out its own type of key")]
        let weigher = |key: &Box<[u8]>, all: &Arc<[Arc<Stored>]>| {
            let bytes: usize = all.iter().map(|stored| stored.weight()).sum();
            u32::try_from(key.len() + bytes).unwrap_or(u32::MAX)
        };
        let cache = Cache::builder()
            .max_capacity(max_bytes)
            .weigher(weigher)
            // The last response of a target is the one that will be needed: it must be admitted.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(max_age)
            .build();
        Self { max_age, cache }
    }

    /// Returns the stored response for `request`, as the upstream would receive it, at the uptime `now`, with its age.
    pub(crate) fn get(
        &self,
        key: &StaleKey,
        request: &OutgoingRequest<'_>,
        now: Duration,
    ) -> Option<Response<Body>> {
        let all = self.cache.get(&key.target).filter(|_| !key.is_unsafe)?;
        let stored = all.iter().find(|stored| stored.is_for(request))?;
        let since = now.saturating_sub(stored.at);
        if since > stored.max_age {
            return None;
        }
        let mut response = Response::new(Body::from(stored.body.clone()));
        *response.headers_mut() = stored.headers.clone();
        let age = age(&stored.headers).saturating_add(since.as_secs());
        response.headers_mut().insert(AGE, HeaderValue::from(age));
        response.headers_mut().insert(CACHE_STATUS, HeaderValue::from_static(STALE));
        Some(response)
    }

    /// Forgets what is stored of a target that a request with the response `status` has changed (RFC 9111 §4.4).
    pub(crate) fn forget_changed(&self, key: &StaleKey, status: StatusCode) {
        if key.is_unsafe && (status.is_success() || status.is_redirection()) {
            self.cache.invalidate(&key.target);
        }
    }

    /// Returns the same response to `request`, as the upstream has received it; it is stored once its content has passed, if
    /// it may be. A response that withdraws the stored ones, or replaces them and may not be stored, ends them.
    pub(crate) fn keep(
        self: &Arc<Self>,
        key: StaleKey,
        request: &OutgoingRequest<'_>,
        response: Response<Body>,
        now: Duration,
    ) -> Response<Body> {
        self.forget_changed(&key, response.status());
        if key.is_unsafe {
            return response;
        }
        if !may_be_stored(&response) {
            if replaces_stored(response.status()) {
                self.cache.invalidate(&key.target);
            }
            return response;
        }
        let varies =
            response.headers().get_all(VARY).iter().filter_map(|field| field.to_str().ok());
        let names = varies.flat_map(|field| field.split(',')).map(str::trim);
        let names = names.filter(|name| !name.is_empty()).map(HeaderName::try_from);
        let names = names.collect::<Result<Vec<_>, _>>();
        // A response that varies by `*` varies by more than the request's fields (RFC 9110 §12.5.5).
        let Some(names) = names.ok().filter(|names| names.iter().all(|name| name != "*")) else {
            self.cache.invalidate(&key.target);
            return response;
        };
        // An upstream may have read the field in the other spelling, and given a response that does not belong to `values`.
        if names.iter().any(|name| request.has_other_spelling(name)) {
            return response;
        }
        let varies = names
            .into_iter()
            .map(|name| {
                let values = request.values(&name).map(copied).collect();
                (name, values)
            })
            .collect();
        let fields = response.headers().iter().filter(|(name, _)| **name != CONTENT_LENGTH);
        let headers = fields.map(|(name, value)| (name.clone(), copied(value))).collect();
        let max_age = max_stale_age(response.headers()).unwrap_or(Duration::MAX).min(self.max_age);
        let stored = Stored { varies, headers, body: Bytes::new(), at: now, max_age };
        let (head, body) = response.into_parts();
        let body = if let Some(whole) = body.buffered() {
            self.store(key.target, Stored { body: Bytes::copy_from_slice(&whole), ..stored });
            body
        } else {
            let keeping = Some((Arc::clone(self), key.target, stored));
            let copy = ContentCopy { read: BytesMut::new(), keeping };
            body.wrapped(|body| Watched::new(body, copy))
        };
        Response::from_parts(head, body)
    }

    fn store(&self, key: Box<[u8]>, stored: Stored) {
        let others = self.cache.get(&key);
        let others = others.iter().flat_map(|all| all.iter());
        let same = |other: &&Arc<Stored>| other.varies == stored.varies;
        let mut all: Vec<_> =
            others.filter(|other| !same(other)).take(MAX_VARIANTS - 1).map(Arc::clone).collect();
        all.insert(0, Arc::new(stored));
        self.cache.insert(key, all.into());
    }
}

impl Stored {
    fn is_for(&self, request: &OutgoingRequest<'_>) -> bool {
        self.varies.iter().all(|(name, values)| {
            request.values(name).eq(values.iter()) && !request.has_other_spelling(name)
        })
    }

    fn weight(&self) -> usize {
        let varies = self.varies.iter().flat_map(|(_, values)| values).map(HeaderValue::len);
        self.body.len() + fields_bytes(&self.headers) + varies.sum::<usize>() + ENTRY_BYTES
    }
}

/// Returns a value of its own bytes: those of a message are a part of the whole buffer that it was read into.
fn copied(value: &HeaderValue) -> HeaderValue {
    let mut copy = HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone());
    copy.set_sensitive(value.is_sensitive());
    copy
}

/// Returns how long after its arrival a response may be used in place of an error, if its fields allow it: until it is
/// stale, and for `stale-if-error` beyond that (RFC 5861 §4).
fn max_stale_age(headers: &HeaderMap) -> Option<Duration> {
    let beyond = seconds(headers, "stale-if-error")?;
    let fresh = seconds(headers, "max-age").unwrap_or(0).saturating_sub(age(headers));
    Some(Duration::from_secs(fresh.saturating_add(beyond)))
}

/// Whether a response may be given to other clients, and after its time.
fn may_be_stored(response: &Response<Body>) -> bool {
    let headers = response.headers();
    let is_small = response.body().size_hint().lower() <= MAX_STORED_BYTES as u64;
    let has_visible_end = response.extensions().get::<CloseDelimited>().is_none();
    let forbids = |value: &HeaderValue| {
        value.to_str().map_or(true, |text| {
            text.split(',').any(|directive| {
                let name = directive.split('=').next().unwrap_or_default().trim();
                FORBIDDING.iter().any(|forbidding| name.eq_ignore_ascii_case(forbidding))
            })
        })
    };
    response.status() == StatusCode::OK
        && is_small
        && has_visible_end
        && !headers.contains_key(SET_COOKIE)
        && !headers.contains_key(CONTENT_RANGE)
        && !headers.get_all(CACHE_CONTROL).iter().any(forbids)
        && !headers.get_all(PRAGMA).iter().any(forbids)
}

/// Whether a response that is not stored shows that those stored for its target have ended: it is another one, or the
/// target is gone or forbidden. A response to a condition (304), to a client's mistake or to a moment (429) shows
/// nothing about them.
fn replaces_stored(status: StatusCode) -> bool {
    status.is_success()
        || (status.is_redirection() && status != StatusCode::NOT_MODIFIED)
        || matches!(status.as_u16(), 401 | 403 | 404 | 410 | 451)
}

/// A copy of the content of a response, which is stored when its end has passed.
struct ContentCopy {
    read: BytesMut,
    /// The place to store it at; `None` if it is stored, too large, or broken.
    keeping: Option<(Arc<StaleResponses>, Box<[u8]>, Stored)>,
}

impl ContentCopy {
    /// Stores the content, all of which has passed.
    fn finish(&mut self) {
        if let Some((responses, key, stored)) = self.keeping.take() {
            let body = core::mem::take(&mut self.read).freeze();
            responses.store(key, Stored { body, ..stored });
        }
    }
}

impl Watch for ContentCopy {
    fn polled(&mut self, polled: &Polled, body: &Body) {
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref()
                    && self.keeping.is_some()
                {
                    self.read.extend_from_slice(data);
                    if self.read.len() > MAX_STORED_BYTES
                        && let Some((responses, key, _)) = self.keeping.take()
                    {
                        // It replaces the stored one nevertheless.
                        responses.cache.invalidate(&key);
                        self.read = BytesMut::new();
                    }
                }
                if body.is_end_stream() {
                    self.finish();
                }
            }
            Poll::Ready(None) => self.finish(),
            Poll::Ready(Some(Err(_))) => self.keeping = None,
            Poll::Pending => {}
        }
    }
}

/// Directives of a response that must not be used for others, or not after its time.
const FORBIDDING: [&str; 6] =
    ["private", "no-store", "no-cache", "must-revalidate", "proxy-revalidate", "s-maxage"];
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// RFC 9211: a stored response was used, since there was no other.
const STALE: &str = "northgate; hit; detail=stale";
/// The most content of a stored response.
const MAX_STORED_BYTES: usize = 256 * 1024;
/// The responses of one target that differ in what they vary by.
const MAX_VARIANTS: usize = 8;
/// The bytes of an entry besides its fields and its content.
const ENTRY_BYTES: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::ExtraHeaders;

    const NOW: Duration = Duration::from_secs(100);

    #[test]
    fn a_public_response_is_used_again_with_its_age() {
        let kept = Arc::new(responses());
        keep(&kept, &[], &[("age", "5")]);

        let again = get(&kept, &[], NOW + Duration::from_secs(7)).expect("stored");

        assert_eq!(again.headers()[AGE], "12");
        assert_eq!(again.body().buffered().as_deref(), Some(&b"hello"[..]));
        assert!(get(&kept, &[], NOW + Duration::from_secs(61)).is_none());
    }

    #[test]
    fn a_response_for_one_client_is_never_stored() {
        for field in [("cookie", "a=b"), ("authorization", "Bearer x"), ("range", "bytes=0-1")] {
            assert!(key(&head("/", &[field])).is_none(), "{field:?}");
        }
        for field in [
            ("set-cookie", "a=b"),
            ("cache-control", "max-age=5, PRIVATE"),
            ("cache-control", "private=\"x\""),
            ("cache-control", "no-store"),
            ("cache-control", "no-cache"),
            ("cache-control", "must-revalidate"),
            ("vary", "*"),
            ("content-range", "bytes 0-1/2"),
        ] {
            let kept = Arc::new(responses());
            keep(&kept, &[], &[field]);
            assert!(get(&kept, &[], NOW).is_none(), "{field:?}");
        }
    }

    #[test]
    fn content_that_ends_with_its_connection_is_not_stored() {
        let (kept, head) = (Arc::new(responses()), head("/x?y=1", &[]));
        let mut response = response(&[]);
        response.extensions_mut().insert(CloseDelimited);

        kept.keep(key(&head).expect("public"), &outgoing(&head), response, NOW);

        assert!(get(&kept, &[], NOW).is_none());
    }

    #[test]
    fn a_withdrawn_or_replaced_response_is_used_no_more() {
        for (status, field, is_used) in [
            (200, ("cache-control", "no-store"), false),
            (200, ("vary", "*"), false),
            (301, ("location", "/y"), false),
            (401, ("x", ""), false),
            (403, ("x", ""), false),
            (404, ("x", ""), false),
            (410, ("x", ""), false),
            (304, ("x", ""), true),
            (400, ("x", ""), true),
            (429, ("x", ""), true),
        ] {
            let kept = Arc::new(responses());
            keep(&kept, &[], &[]);
            let mut response = response(&[field]);
            *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            let head = head("/x?y=1", &[]);

            kept.keep(key(&head).expect("public"), &outgoing(&head), response, NOW);

            assert_eq!(get(&kept, &[], NOW).is_some(), is_used, "{status} {field:?}");
        }
    }

    #[test]
    fn a_successful_request_that_changes_a_target_ends_its_stored_responses() {
        for (method, status, is_used) in [
            (Method::DELETE, 204, false),
            (Method::PUT, 200, false),
            (Method::POST, 303, false),
            (Method::POST, 422, true),
            (Method::OPTIONS, 200, true),
        ] {
            let kept = Arc::new(responses());
            keep(&kept, &[], &[]);
            let mut head = head("/x?y=1", &[("authorization", "Bearer x")]);
            head.method = method.clone();
            let key =
                StaleKey::of(&head, Some(&HeaderValue::from_static("a.example")), "orders", true);

            if let Some(key) = key {
                let mut response = response(&[]);
                *response.status_mut() = StatusCode::from_u16(status).expect("a status");
                kept.keep(key, &outgoing(&head), response, NOW);
            }

            assert_eq!(get(&kept, &[], NOW).is_some(), is_used, "{method} {status}");
        }
    }

    #[test]
    fn a_request_that_forbids_storing_is_not_stored() {
        assert!(key(&head("/", &[("cache-control", "no-store")])).is_none());
    }

    #[test]
    fn a_response_is_used_in_place_of_an_error_no_longer_than_it_allows() {
        for (control, seconds) in [
            ("stale-if-error=0", 0),
            ("max-age=10, Stale-If-Error=0", 10),
            ("max-age=10, stale-if-error=20", 30),
            ("stale-if-error=x", 0),
            ("stale-if-error=86400", 60),
            ("max-age=10", 60),
        ] {
            let kept = Arc::new(responses());
            keep(&kept, &[], &[("cache-control", control)]);
            let is_used = |age| get(&kept, &[], NOW + Duration::from_secs(age)).is_some();
            assert!(is_used(seconds) && !is_used(seconds + 1), "{control}");
        }
    }

    #[test]
    fn a_response_is_used_only_for_requests_that_it_does_not_vary_by() {
        let kept = Arc::new(responses());
        keep(&kept, &[("accept-language", "en")], &[("vary", "Accept-Language")]);

        assert!(get(&kept, &[("accept-language", "en")], NOW).is_some());
        assert!(get(&kept, &[("accept-language", "de")], NOW).is_none());
        assert!(get(&kept, &[], NOW).is_none());
    }

    #[test]
    fn a_response_to_a_field_in_another_spelling_is_neither_stored_nor_used() {
        let kept = Arc::new(responses());
        let fields: &[(&str, &str)] = &[("x_tenant", "a")];
        keep(&kept, fields, &[("vary", "X-Tenant")]);
        assert!(get(&kept, &[], NOW).is_none());

        keep(&kept, &[], &[("vary", "X-Tenant")]);

        assert!(get(&kept, fields, NOW).is_none());
        assert!(get(&kept, &[], NOW).is_some());
    }

    #[test]
    fn a_response_may_vary_by_what_the_gateway_adds() {
        let (kept, head) = (Arc::new(responses()), head("/", &[]));
        let name = HeaderName::from_static("x-forwarded-for");
        let values = ["192.0.2.1", "192.0.2.2"].map(HeaderValue::from_static);
        let [one, other] = [0, 1].map(|n| {
            let mut fields = ExtraHeaders::default();
            fields.add(&name, &values[n]);
            OutgoingRequest { head: &head, fields, interim: None }
        });
        let own = || key(&head).expect("public");

        kept.keep(own(), &one, response(&[("vary", "X-Forwarded-For")]), NOW);

        assert!(kept.get(&own(), &one, NOW).is_some());
        assert!(kept.get(&own(), &other, NOW).is_none());
    }

    #[test]
    fn the_bound_counts_what_clients_make_a_response_vary_by() {
        let kept = Arc::new(responses());
        let long = "x".repeat(60_000);
        for n in 0..100 {
            let language = format!("{long}{n}");
            let head = head(&format!("/{n}"), &[("accept-language", &language)]);
            let own = key(&head).expect("public");
            kept.keep(own, &outgoing(&head), response(&[("vary", "Accept-Language")]), NOW);
        }

        kept.cache.run_pending_tasks();

        assert!((1..=(1 << 20) / 60_000).contains(&kept.cache.entry_count()));
    }

    #[test]
    fn hosts_and_targets_do_not_share_responses() {
        let kept = Arc::new(responses());
        keep(&kept, &[], &[]);
        let is_stored = |host: &str, target: &str| {
            let head = head(target, &[]);
            let host = HeaderValue::from_str(host).expect("valid");
            let own = StaleKey::of(&head, Some(&host), "orders", false).expect("public");
            kept.get(&own, &outgoing(&head), NOW).is_some()
        };

        assert!(is_stored("a.example", "/x?y=1"));
        assert!(!is_stored("b.example", "/x?y=1"));
        assert!(!is_stored("a.example", "/x?y=2"));
    }

    fn responses() -> StaleResponses {
        StaleResponses::new(Duration::from_secs(60), 1 << 20)
    }

    fn head(target: &str, fields: &[(&str, &str)]) -> Parts {
        let request = fields.iter().fold(http::Request::get(target), |request, (name, value)| {
            request.header(*name, *value)
        });
        request.body(()).expect("valid").into_parts().0
    }

    fn key(head: &Parts) -> Option<StaleKey> {
        StaleKey::of(head, Some(&HeaderValue::from_static("a.example")), "orders", false)
    }

    fn outgoing(head: &Parts) -> OutgoingRequest<'_> {
        OutgoingRequest { head, fields: ExtraHeaders::default(), interim: None }
    }

    fn keep(kept: &Arc<StaleResponses>, request: &[(&str, &str)], fields: &[(&str, &str)]) {
        let head = head("/x?y=1", request);
        kept.keep(key(&head).expect("public"), &outgoing(&head), response(fields), NOW);
    }

    fn get(
        kept: &StaleResponses,
        request: &[(&str, &str)],
        now: Duration,
    ) -> Option<Response<Body>> {
        let head = head("/x?y=1", request);
        kept.get(&key(&head).expect("public"), &outgoing(&head), now)
    }

    fn response(fields: &[(&str, &str)]) -> Response<Body> {
        let response = fields
            .iter()
            .fold(Response::builder(), |response, (name, value)| response.header(*name, *value));
        response.body("hello".into()).expect("valid")
    }
}
