//! The end of an exchange: its response gets the header fields that every response has, and an observer.

use std::rc::Rc;

use http::header::{CACHE_CONTROL, CONTENT_LENGTH, SERVER, SET_COOKIE};
use http::{HeaderValue, Method, Response, Version};

use super::Exchange;
use super::response_recorder::ResponseRecorder;
use crate::base::body::Body;
use crate::base::grpc::{self, Variant};
use crate::base::watched_body::Watched;
use crate::gateway::policy::cors;
use crate::gateway::policy::dpop_fields::DPOP_NONCE;
use crate::gateway::response::grpc_refusal::StatusOnFailure;
use crate::gateway::response::hardening::{harden, keep_from_caches, without_content};
use crate::gateway::response::problem::ResponseFormat;
use crate::observe::metrics::AuthLabel;

impl Exchange {
    /// Sets the header fields that every response gets, and wraps its content for metrics and log.
    pub fn finish(mut self: Box<Self>, mut response: Response<Body>) -> Response<Body> {
        self.overhead = Some(self.own_time(self.process.retained.clock.uptime()));
        let server = &self.snapshot.context().server;
        let (status, headers) = (response.status().as_u16(), response.headers_mut());
        headers.insert(&server.request_id_header, self.request_id.clone());
        let is_own = self.route.as_ref().is_some_and(|route| route.serves_a_session);
        let is_of_a_user =
            self.token_is_elsewhere || matches!(self.auth, Some((AuthLabel::Session, _)));
        keep_from_caches(headers, !self.cookies.is_empty() || is_own, is_of_a_user);
        for cookie in self.cookies.drain(..) {
            headers.append(SET_COOKIE, cookie);
        }
        if let Some(nonce) = self.next_nonce.take() {
            // RFC 9449 §8.2: a cached response must not give another client an old nonce.
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            headers.insert(DPOP_NONCE, nonce);
        }
        if !self.outcome.is_of_upstream()
            && let Some(name) = &server.server_header
        {
            headers.insert(SERVER, name.clone());
        }
        if let Some(route) = &self.route {
            route.limits.write(&self.limit_state, headers);
            if let Some(cors) = route.cors.as_ref().filter(|_| self.wants_cors_fields) {
                cors::apply(cors, self.origin.as_ref(), headers);
            }
            if route.security_headers {
                harden(headers, self.secure);
            }
        }
        if let Some(compression) = self.compression {
            response = compression.apply(response, &self.method);
        }
        // A response without content has ended when its head is sent.
        let bodiless = self.method == Method::HEAD || matches!(status, 204 | 304);
        if status == 204 {
            // A 204 has no length in any version of HTTP (RFC 9110 §8.6).
            response.headers_mut().remove(CONTENT_LENGTH);
        }
        if bodiless && (self.error.is_some() || !self.outcome.is_of_upstream()) {
            response = without_content(response);
        }
        let status = self.refused_with.unwrap_or(status);
        self.call_ended(response.headers());
        let ends_in_status = self.response_format == ResponseFormat::Grpc(Variant::Grpc)
            && self.version == Version::HTTP_2
            && grpc::is_grpc(response.headers());
        let (received, exchange) = (Rc::clone(&self.received), Some(self));
        response.map(|body| {
            let (sent, ended) = (0, bodiless);
            let recorder = ResponseRecorder { status, sent, ended, ends_in_status, exchange };
            let body = body.wrapped(|body| Watched::new(body, recorder));
            let refused = move || received.is_refused().then(|| received.rejection());
            if ends_in_status { StatusOnFailure::body(body, refused) } else { body }
        })
    }
}
