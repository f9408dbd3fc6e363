//! The head of a request as its upstream receives it.

use http::header::{AUTHORIZATION, HOST, VIA};
use http::request::Parts;
use http::{HeaderMap, HeaderValue};

use super::forward::Forward;
use super::identity_token::IDENTITY_TOKEN;
use super::references::References;
use crate::gateway::exchange::Exchange;
use crate::gateway::policy::authorize::Permit;
use crate::gateway::policy::dpop_fields::DPOP;
use crate::gateway::policy::proof_of_possession;
use crate::gateway::request::headers;
use crate::gateway::response::rejection::Rejection;
use crate::upstream::{ExtraHeaders, HostHeader, Upstream};

impl Forward {
    /// Rewrites the request targets in header fields (`If` and `Destination`, RFC 4918 §10) as that of the request.
    ///
    /// # Errors
    ///
    /// The rejection of a reference that the rewrite does not lead to a valid target.
    pub(super) fn rewrite_references(
        &self,
        upstream: &Upstream,
        head: &mut Parts,
    ) -> Result<(), Rejection> {
        let keeps_host = upstream.settings().host_header == HostHeader::Preserve;
        match head.extensions.remove::<References>() {
            Some(references) => references.forward(&self.target, keeps_host, &mut head.headers),
            None => Ok(()),
        }
    }

    /// Edits the head for the upstream, and returns the fields that are only appended when it is written.
    ///
    /// The client's own fields of these names were stripped before the route was matched.
    pub(super) fn prepare<'a>(
        &'a self,
        upstream: &Upstream,
        permit: &'a Permit,
        token: Option<&'a HeaderValue>,
        head: &mut Parts,
        exchange: &'a Exchange,
    ) -> ExtraHeaders<'a> {
        let context = exchange.context();
        let mut fields = ExtraHeaders::new();
        fields.add(&VIA, headers::via(head.version));
        for session in &context.sessions {
            session.strip_cookies(&mut head.headers);
        }
        context.token_places.strip(&mut head.headers);
        if let Some(auth_method) = permit.auth_method {
            Self::authorize(permit.bearer.as_ref(), &mut head.headers, &mut fields);
            if let Some(principal) = &permit.principal {
                self.identity[auth_method].write(&mut fields, principal);
            }
            if let Some(token) = token {
                fields.add(&IDENTITY_TOKEN, token);
            }
        }
        exchange.forwarded().write(&mut fields, context.server.forwarded_headers);
        fields.add(&context.server.request_id_header, &exchange.request_id);
        // Another upstream replaces the field, unless it preserves the client's too.
        let mut receivers = [Some(upstream), self.fallback_upstream()].into_iter().flatten();
        if receivers.any(|upstream| upstream.settings().host_header == HostHeader::Preserve) {
            exchange.host.clone().map(|host| head.headers.insert(HOST, host));
        }
        if !self.request.is_empty() {
            // Before the gateway's own fields are added: edits remove other spellings of client fields only.
            self.request.remove_other_spellings(&mut head.headers);
            fields.merge_into(&mut head.headers);
            self.request.apply(&mut head.headers, permit.principal.as_deref(), exchange);
        }
        fields
    }

    /// Replaces the client's `Authorization` by the access token for the upstream.
    fn authorize<'a>(
        bearer: Option<&'a HeaderValue>,
        headers: &mut HeaderMap,
        fields: &mut ExtraHeaders<'a>,
    ) {
        // A proof is forwarded only with its token, for upstreams that check it again.
        if !bearer.is_some_and(proof_of_possession::is_dpop) {
            headers.remove(DPOP);
        }
        // The usual case: the token is forwarded as it was received.
        if bearer.is_some() && bearer == headers.get(AUTHORIZATION) {
            return;
        }
        headers.remove(AUTHORIZATION);
        if let Some(bearer) = bearer {
            fields.add(&AUTHORIZATION, bearer);
        }
    }
}
