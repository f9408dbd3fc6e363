//! Refuses two settings that write the same header field of a request, or fields that upstreams cannot distinguish, and
//! a token in a field that the gateway writes or removes.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderName;
use http::header::{AUTHORIZATION, COOKIE, FORWARDED, VIA};

use super::{Check, cookies};
use crate::base::header_fields::are_alike;
use crate::config::de::field::{Map, Spanned};
use crate::config::fault::Code;
use crate::config::file::value::KeywordOr;
use crate::config::file::{File, routes as file};
use crate::config::reserved_headers::{IDENTITY_TOKEN, ReservedHeaders, is_hop_by_hop};
use crate::config::route::{HeaderEdits, Route};
use crate::config::server::Server;
use crate::session::Settings;

impl Check<'_> {
    /// Refuses fields that are written twice, and places of tokens that the gateway writes or removes.
    pub(super) fn conflicting_headers(
        &mut self,
        file: &File,
        server: &Server,
        identity_headers: &[HeaderName],
        sessions: &BTreeMap<Arc<str>, Settings>,
        routes: &[Route],
    ) {
        let own = identity_headers.iter().chain([&server.request_id_header]);
        let reserved = ReservedHeaders::new(own);
        self.id_field(file, server, identity_headers);
        for keys in blocks(file) {
            for auth in auths(keys) {
                if let Some(names) = auth.identity_headers.get() {
                    self.identity_fields(&names.value, server);
                }
                if let Some(from) = auth.token_from.get() {
                    self.token_place(from, &reserved, sessions);
                }
            }
            for edits in keys.headers.get().into_iter().flat_map(|headers| {
                [&headers.request, &headers.response].into_iter().filter_map(|edits| edits.get())
            }) {
                for fields in [&edits.set, &edits.add].into_iter().filter_map(|map| map.get()) {
                    self.distinguishable_fields(&fields.value);
                }
            }
        }
        for route in routes {
            self.edits_beside_identity(file, route);
        }
    }

    /// Refuses an id in a field that has another meaning: services would take it for that, and a trusted proxy's field, which is
    /// passed on, for an identity header.
    fn id_field(&mut self, file: &File, server: &Server, identity_headers: &[HeaderName]) {
        let id = &server.request_id_header;
        let Some(at) = file.server.get().and_then(|keys| keys.request_id_header.get()) else {
            return;
        };
        if is_hop_by_hop(id)
            || has_meaning_of_its_own(id)
            || ReservedHeaders::new(identity_headers).contains(id, false)
            || gateway_field(id, None).is_some()
        {
            let message = format!("`{id}` is a field with a meaning of its own");
            self.fault(Code::C106, at.at, message, "write another field, such as X-Request-Id");
        }
    }

    fn identity_fields(&mut self, names: &Map<String>, server: &Server) {
        self.distinguishable_fields(names);
        for (at, _) in names.iter() {
            let Ok(name) = at.value.parse::<HeaderName>() else { continue };
            // The exact name of the identity token has a fault of its own.
            if name != IDENTITY_TOKEN
                && let Some(content) = gateway_field(&name, Some(&server.request_id_header))
            {
                let message = format!("upstreams read {} as {content}", at.shown());
                self.fault(
                    Code::C106,
                    at.at,
                    message,
                    "write another field, such as X-Auth-Subject",
                );
            }
        }
    }

    /// Refuses names that are one field, or that upstreams take for one.
    fn distinguishable_fields<T>(&mut self, names: &Map<T>) {
        let mut earlier: Vec<(HeaderName, String)> = Vec::new();
        for (at, _) in names.iter() {
            let Ok(name) = at.value.parse::<HeaderName>() else { continue };
            if let Some((_, other)) = earlier.iter().find(|(other, _)| are_alike(other, &name)) {
                let message = format!("upstreams cannot distinguish {} from {other}", at.shown());
                self.fault(Code::C111, at.at, message, "keep one of them");
            }
            earlier.push((name, at.shown()));
        }
    }

    /// Refuses edits that put a second value beside an identity header, whose name has the caller's claim.
    fn edits_beside_identity(&mut self, file: &File, route: &Route) {
        let HeaderEdits { set, add, .. } = &route.request_headers;
        let headers =
            || route.auth.methods().iter().flat_map(|auth_method| &auth_method.identity_headers);
        let added = add.iter().map(|(name, _)| (name, true));
        let spelled = set.iter().map(|(name, _)| (name, false));
        let clash = added.chain(spelled).find(|(name, is_added)| {
            headers()
                .any(|header| are_alike(&header.name, name) && (*is_added || header.name != **name))
        });
        let written = file.routes.get().into_iter().flat_map(|list| &list.value.items);
        let keys = written.filter_map(|keys| keys.id.get()).find(|id| *id.value == *route.id);
        if let (Some((name, _)), Some(id)) = (clash, keys) {
            let message =
                format!("`{name}` of `headers.request` adds a second value to an identity header");
            let help =
                "edit another field: `headers.request.set` replaces one of exactly that name";
            self.fault(Code::C106, id.at, message, help);
        }
    }

    fn token_place(
        &mut self,
        from: &file::TokenFrom,
        reserved: &ReservedHeaders,
        sessions: &BTreeMap<Arc<str>, Settings>,
    ) {
        if let Some(at) = from.header.get()
            && let Ok(name) = at.value.parse::<HeaderName>()
            && ![AUTHORIZATION, COOKIE].contains(&name)
            && (is_hop_by_hop(&name)
                || gateway_field(&name, None).is_some()
                || reserved.is_own(&name))
        {
            let message =
                format!("no token is ever found in {}: clients may not send it", at.shown());
            let help = "write a field of its own, such as X-Access-Token";
            self.fault(Code::C106, at.at, message, help);
        }
        if let Some(at) = from.cookie.get()
            && let Some(session) =
                sessions.values().find(|session| cookies::writes(session, &at.value))
        {
            let message = format!("{} is a cookie of session `{}`", at.shown(), session.name);
            let help = "write the cookie of the other program; the session's own is for `auth: { session: … }`";
            self.fault(Code::C106, at.at, message, help);
        }
    }
}

/// Returns what upstreams read from a field that the gateway itself writes, or that carries a credential.
fn gateway_field(name: &HeaderName, request_id: Option<&HeaderName>) -> Option<&'static str> {
    let is = |other: &HeaderName| are_alike(name, other);
    if request_id.is_some_and(is) {
        Some("the request's id")
    } else if [VIA, FORWARDED].iter().chain(&WAY).any(is) {
        Some("the path of the request through proxies")
    } else if is(&IDENTITY_TOKEN) {
        Some("the gateway's identity token")
    } else if is(&DPOP) {
        Some("a proof of possession")
    } else {
        None
    }
}

/// Whether the field has a meaning to HTTP or to the gateway, so that every route needs it as the client sends it.
pub(super) fn belongs_to_http(name: &HeaderName) -> bool {
    has_meaning_of_its_own(name) || gateway_field(name, None).is_some()
}

/// Whether HTTP itself, or the gateway's response, gives the field a meaning.
fn has_meaning_of_its_own(name: &HeaderName) -> bool {
    let name = name.as_str();
    let families = ["accept", "access-control-", "content-", "if-", "sec-", "ratelimit"];
    let names = "age allow alt-svc authorization cache-control cookie date etag expires from host last-modified link \
                 location max-forwards origin pragma range referer retry-after server set-cookie \
                 strict-transport-security trailer user-agent vary warning www-authenticate";
    families.iter().any(|family| name.starts_with(family))
        || names.split_ascii_whitespace().any(|own| own == name)
}

fn blocks(file: &File) -> impl Iterator<Item = &file::Route> {
    let policies = file.policies.get().into_iter().flat_map(|map| map.value.iter());
    let routes = file.routes.get().into_iter().flat_map(|list| &list.value.items);
    let shared = file.defaults.get().map(|keys| &keys.value).into_iter();
    shared.chain(policies.map(|(_, keys)| &keys.value)).chain(routes.map(|keys| &keys.value))
}

/// Returns the `auth` of a block, and those within its `any`.
fn auths(keys: &file::Route) -> impl Iterator<Item = &file::Auth> {
    let outer = keys.auth.get().and_then(|auth| match &auth.value {
        KeywordOr::Mapping(auth) => Some(auth),
        KeywordOr::Scalar(_) => None,
    });
    let inner = outer.and_then(|auth| auth.any.get()).into_iter();
    let inner =
        inner.flat_map(|list| &list.value.items).map(|auth: &Spanned<file::Auth>| &auth.value);
    outer.into_iter().chain(inner)
}

/// `X-Forwarded-User` and its kin are not among them: other products name identity headers so.
const WAY: [HeaderName; 3] = [
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-host"),
];
const DPOP: HeaderName = HeaderName::from_static("dpop");
