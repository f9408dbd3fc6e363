//! Warns of keys that have no effect (C110): header fields that no request has when they are evaluated,
//! and keys that only matter to another kind of route, limit, upstream, issuer or log.
//!
//! A key that is an error in such a position, because it looks like a protection, is refused elsewhere in `check`.

use http::header::{CONNECTION, TE, UPGRADE};
use http::{HeaderName, HeaderValue, Method};

use super::Check;
use crate::config::auth::{AuthMethod, ForwardToken};
use crate::config::de::field::{Field, Map, Spanned};
use crate::config::fault::{Code, Position};
use crate::config::file::issuers::Issuer;
use crate::config::file::limits::Limit;
use crate::config::file::upstreams::Target;
use crate::config::file::value::{KeywordOr, Value};
use crate::config::file::{File, routes as file};
use crate::config::reserved_headers::{ReservedHeaders, is_forwarded_as, is_hop_by_hop};
use crate::config::route::{Route, ValueMatch};
use crate::config::server::Server;
use crate::limit::KeyPart;
use crate::observe::log::Access;
use crate::upstream::{Address, HashBy, Scheme};

impl Check<'_> {
    /// Warns of keys that have no effect.
    pub(super) fn ineffective(
        &mut self,
        file: &File,
        server: &Server,
        identity_headers: &[HeaderName],
        routes: &[Route],
    ) {
        let own = identity_headers.iter().chain([&server.request_id_header]);
        let seen = Seen { server, reserved: ReservedHeaders::new(own) };
        for keys in file.routes.get().into_iter().flat_map(|list| &list.value.items) {
            self.unseen_fields(keys, &seen);
            self.unseen_hash("split_by", &keys.split_by, &seen);
            self.without_service(keys);
            self.unusable_cors(keys, routes);
            self.of_other_methods(keys);
            self.of_known_callers(keys, routes);
        }
        for (_, keys) in entries(&file.limits) {
            self.uncounted(keys, &seen);
            self.unanswered(keys);
        }
        if let Some(at) = position(&file.metering)
            && !entries(&file.limits)
                .any(|(_, keys)| keys.metered.or(false) || keys.metered.is_bad())
        {
            self.means_nothing(at, "metering", "without a limit that is `metered`");
        }
        for (_, keys) in entries(&file.upstreams) {
            self.unseen_hash("hash_by", &keys.hash_by, &seen);
        }
        self.of_upstreams(file);
        self.of_issuers(file, server, routes);
        if let Some(logging) = file.logging.get() {
            let recorded = logging.access.get().map_or(Access::All, |at| at.value.0);
            if let Some(sample) = logging.sample.get().filter(|_| recorded != Access::All) {
                self.means_nothing(sample.key_at, "sample", "without access: all");
            }
        }
    }

    pub(super) fn means_nothing(&mut self, at: Position, key: &str, why: &str) {
        self.fault(Code::C110, at, format!("`{key}` has no effect {why}"), "remove it");
    }

    fn unseen_fields(&mut self, keys: &file::Route, seen: &Seen<'_>) {
        for (name, value) in entries(&keys.match_headers) {
            let Ok(field) = name.value.parse::<HeaderName>() else { continue };
            let why = seen.why_not(&field);
            let matched = match &value.value {
                KeywordOr::Scalar(exact) => Some(ValueMatch::Exact(exact.0.clone())),
                KeywordOr::Mapping(pattern) => {
                    pattern.regex.get().map(|at| ValueMatch::Regex(at.value.0.clone()))
                }
            };
            if let Some((why, help)) = why {
                let message = format!("no request ever matches {}: {why}", name.shown());
                self.fault(Code::C110, name.at, message, help);
            } else if let (Some(values), Some(matched)) = (gateway_values(&field), matched)
                && !values.iter().any(|value| matched.fits(&HeaderValue::from_static(value)))
            {
                let only = values.iter().filter(|value| value.is_ascii()).copied();
                let message = format!("no request ever has this value of {}", name.shown());
                let help = format!(
                    "write {}, the values that the gateway sets",
                    crate::config::de::units::listed(only)
                );
                self.fault(Code::C110, value.at, message, help);
            }
        }
    }

    /// Refuses a hash of a field that no request has when it is evaluated: all requests would be spread, without a word.
    fn unseen_hash(&mut self, key: &str, by: &Value<HashBy>, seen: &Seen<'_>) {
        let Some((at, HashBy::Header(name))) = by.get().map(|by| (by.at, &by.value.0)) else {
            return;
        };
        if let Some((why, _)) = seen.why_not_hashed(name) {
            let message = format!("`{key}` never sees {name}: {why}");
            let help = "write ip for the client's address, claim:sub for the caller, or a field that clients send";
            self.fault(Code::C106, at, message, help);
        }
    }

    /// Warns of keys that only matter to an upstream, on routes without one.
    fn without_service(&mut self, keys: &file::Route) {
        let kind = match (keys.respond.get(), keys.redirect.get()) {
            (Some(_), _) => "respond",
            (_, Some(_)) => "redirect",
            _ => return,
        };
        let auth = match keys.auth.get().map(|at| &at.value) {
            Some(KeywordOr::Mapping(auth)) => Some(auth),
            _ => None,
        };
        let request = keys.headers.get().and_then(|headers| headers.request.get());
        let given = [
            (position(&keys.rewrite), "rewrite"),
            (position(&keys.timeout), "timeout"),
            (position(&keys.retries), "retries"),
            (position(&keys.buffer_request), "buffer_request"),
            (position(&keys.fallback), "fallback"),
            (position(&keys.split), "split"),
            (position(&keys.mirror), "mirror"),
            (position(&keys.websocket), "websocket"),
            (position(&keys.close_on_expiry), "close_on_expiry"),
            (request.map(|at| at.key_at), "headers.request"),
            (auth.and_then(|auth| position(&auth.identity_token)), "identity_token"),
            (auth.and_then(|auth| position(&auth.forward_token)), "forward_token"),
        ];
        for (at, key) in given {
            if let Some(at) = at {
                let why = format!("beside `{kind}`: no upstream receives the request");
                self.means_nothing(at, key, &why);
            }
        }
    }

    /// Warns of copies and of kept responses for methods that the route itself does not match.
    fn of_other_methods(&mut self, keys: &file::Route) {
        let Some(taken) = keys.methods.get() else { return };
        let is_listed = |method: &Method| taken.items.iter().any(|at| at.value.0 == *method);
        let takes = |method: &Method| {
            is_listed(method) || *method == Method::HEAD && is_listed(&Method::GET)
        };
        if !takes(&Method::GET)
            && let Some(stale) = keys.fallback.get().and_then(|fallback| fallback.stale.get())
        {
            self.means_nothing(stale.key_at, "stale", "on a route that does not take GET");
        }
        let Some(mirror) = keys.mirror.get() else { return };
        match mirror.methods.get() {
            None if !takes(&Method::HEAD) => {
                let message = "nothing is copied: without `methods`, only GET and HEAD are";
                let help = "write the methods that may be done twice into `mirror.methods`";
                self.fault(Code::C110, mirror.key_at, message, help);
            }
            Some(methods) if !methods.items.iter().any(|at| takes(&at.value.0)) => {
                self.means_nothing(methods.key_at, "methods", "here: the route takes none of them");
            }
            _ => {}
        }
    }

    /// Warns of keys of a route that need a caller, or the absence of one.
    fn of_known_callers(&mut self, keys: &file::Route, routes: &[Route]) {
        let Some(id) = keys.id.get() else { return };
        let Some(route) = routes.iter().find(|route| *route.id == *id.value) else { return };
        if route.auth.methods().is_empty() {
            if let Some(at) = position(&keys.close_on_expiry) {
                self.means_nothing(at, "close_on_expiry", "with `auth: none`: no token expires");
            }
        } else if let Some(stale) = keys.fallback.get().and_then(|fallback| fallback.stale.get())
            && !route.auth.is_optional()
        {
            let why = "on a route with `auth`: responses to known callers are not kept";
            self.means_nothing(stale.key_at, "stale", why);
        }
    }

    /// Warns of keys of a refusal that a limit never sends.
    fn unanswered(&mut self, keys: &Limit) {
        if let Some(response) = keys.response.get() {
            if keys.dry_run.or(false) {
                self.means_nothing(response.key_at, "response", "with dry_run: nothing is refused");
            } else if let Some(jitter) = position(&response.retry_jitter)
                && !keys.headers.or(true)
            {
                let why = "with headers: false: there is no `Retry-After`";
                self.means_nothing(jitter, "retry_jitter", why);
            }
        }
    }

    fn uncounted(&mut self, keys: &Limit, seen: &Seen<'_>) {
        let by = keys.by.get().into_iter().flat_map(|by| &by.value.items);
        for part in by.clone() {
            if let KeyPart::Header(name) = &part.value.0
                && let Some((why, help)) = seen.why_not_counted(name)
            {
                let message = format!("no request ever has {}: {why}", part.shown());
                self.fault(Code::C110, part.at, message, help);
            }
        }
        let always =
            |part: &KeyPart| matches!(part, KeyPart::Ip | KeyPart::Route | KeyPart::Global);
        if let Some(at) = keys.on_missing.get()
            && !keys.by.is_bad()
            && by.clone().all(|part| always(&part.value.0))
        {
            self.means_nothing(at.key_at, "on_missing", "here: what `by` names is never absent");
        }
        let one = |part: &KeyPart| matches!(part, KeyPart::Global);
        if let Some(at) = keys.max_keys.get()
            && keys.by.get().is_some()
            && by.clone().all(|part| one(&part.value.0))
        {
            self.means_nothing(at.key_at, "max_keys", "by global: there is one count");
        }
    }

    fn of_upstreams(&mut self, file: &File) {
        for (_, keys) in entries(&file.upstreams) {
            if let Some(retries) = keys.retries.get()
                && retries.attempts.get().is_some_and(|at| at.value == 0)
            {
                let given = [(position(&retries.on), "on"), (position(&retries.budget), "budget")];
                for (at, key) in given {
                    if let Some(at) = at {
                        self.means_nothing(at, key, "with attempts: 0");
                    }
                }
            } else if let Some(retries) = keys.retries.get()
                && retries.on.get().is_some_and(|on| on.items.is_empty() && !on.incomplete)
                && let Some(at) = position(&retries.attempts)
            {
                self.means_nothing(at, "attempts", "with on: []: nothing is sent again");
            }
            let outlier = keys.outlier.get().map(|keys| (&keys.error_rate, &keys.min_requests));
            let breaker =
                keys.circuit_breaker.get().map(|keys| (&keys.error_rate, &keys.min_requests));
            for (rate, least) in [outlier, breaker].into_iter().flatten() {
                if rate.get().is_some_and(|at| at.value.0.0 == 0)
                    && let Some(at) = position(least)
                {
                    self.means_nothing(at, "min_requests", "with error_rate: 0%");
                }
            }
            let Some(targets) = keys.targets.get().filter(|targets| !targets.incomplete) else {
                continue;
            };
            if let [only] = &targets.items[..]
                && let KeywordOr::Mapping(target) = &only.value
                && let Some(at) = position(&target.weight)
            {
                self.means_nothing(at, "weight", "for the only target");
            }
            let is_plain = |target: &Spanned<KeywordOr<_, _>>| plain_http(&target.value);
            if let Some(tls) = keys.tls.get()
                && !targets.items.is_empty()
                && targets.items.iter().all(is_plain)
            {
                self.means_nothing(tls.key_at, "tls", "here: every target is http");
            }
        }
    }

    fn of_issuers(&mut self, file: &File, server: &Server, routes: &[Route]) {
        // While a route is invalid, the usage of an issuer is unknown.
        if self.faults.iter().any(|fault| !fault.code.is_warning()) {
            return;
        }
        let methods = || routes.iter().flat_map(|route| route.auth.methods());
        for (name, keys) in entries(&file.issuers) {
            let named =
                |names: &[std::sync::Arc<str>]| names.iter().any(|other| **other == *name.value);
            let of_session = |name: &str| {
                let found = entries(&file.sessions).find(|(session, _)| session.value == name);
                found.and_then(|(_, keys)| keys.issuer.get()).map(|issuer| issuer.value.as_str())
            };
            // Opaque tokens that the gateway obtained itself are introspected.
            let introspects = methods().any(|AuthMethod { credential, .. }| {
                let session = credential.session();
                named(credential.introspecting_issuers())
                    || named(credential.password_issuer().map_or(&[], core::slice::from_ref))
                    || session.is_some_and(|session| of_session(session) == Some(&*name.value))
            });
            let exchanges = methods().any(|auth_method| {
                let issuer = auth_method.credential.password_issuer();
                issuer.is_some_and(|issuer| **issuer == *name.value)
            });
            let unused = keys.revocation_check.is_absent() && !introspects;
            let given = [
                (position(&keys.introspection), "introspection"),
                (position(&keys.on_unavailable), "on_unavailable"),
                (position(&keys.stale_for), "stale_for"),
            ];
            for (at, key) in given {
                if let Some(at) = at.filter(|_| unused) {
                    self.means_nothing(at, key, "here: no route asks this issuer about tokens");
                }
            }
            // Tokens that the gateway obtains itself, and their ID tokens, may be JWTs as well.
            let logs_in = entries(&file.sessions)
                .any(|(_, session)| session.issuer.get().is_some_and(|at| at.value == name.value));
            let obtains = logs_in || exchanges;
            let presented = methods().any(|AuthMethod { credential, forward_token, .. }| {
                named(credential.jwt_issuers())
                    || *forward_token == ForwardToken::Signed
                        && named(credential.introspecting_issuers())
            });
            self.unused_introspection(&name.value, keys, routes, obtains);
            if introspects && !presented && !obtains {
                self.of_signed_tokens(keys);
            }
            if let Some(at) = keys.max_token_size.get()
                && !obtains
                && at.value.0.0 > server.max_header_size as u64
            {
                let message =
                    "no request carries a token of this size: `server.max_header_size` is smaller";
                let help = "raise server.max_header_size as well, or remove it";
                self.fault(Code::C110, at.at, message, help);
            }
            if let Some(at) = position(&keys.password_grant).filter(|_| !exchanges) {
                let why = "here: no route takes `basic` credentials of this issuer";
                self.means_nothing(at, "password_grant", why);
            }
        }
        let Some(server) = file.server.get() else { return };
        let takes_tokens = methods().any(|auth_method| auth_method.credential.takes_tokens());
        if let Some(at) = position(&server.dpop_nonce_keys).filter(|_| !takes_tokens) {
            let why = "here: no route takes tokens that clients present";
            self.means_nothing(at, "dpop_nonce_keys", why);
        }
        if let Some(at) = position(&server.identity_keys)
            && !methods().any(|auth_method| auth_method.identity_token)
        {
            self.means_nothing(at, "identity_keys", "without a route that has `identity_token`");
        }
    }
}

impl Check<'_> {
    /// Warns of keys of an issuer that only matter to signed tokens.
    fn of_signed_tokens(&mut self, keys: &Issuer) {
        let given = [
            (position(&keys.algorithms), "algorithms"),
            (position(&keys.token_types), "token_types"),
            (position(&keys.required_claims), "required_claims"),
            (position(&keys.jwt_cache), "jwt_cache"),
            (position(&keys.max_token_size), "max_token_size"),
        ];
        for (at, key) in given {
            if let Some(at) = at {
                let why = "here: tokens of this issuer are introspected, and no route verifies signed ones";
                self.means_nothing(at, key, why);
            }
        }
    }
}

/// The header fields of a request as routes and limits see them.
struct Seen<'c> {
    server: &'c Server,
    reserved: ReservedHeaders,
}

impl Seen<'_> {
    /// Returns why no request has this field when a route is matched, and the fix.
    fn why_not(&self, name: &HeaderName) -> Option<(&'static str, &'static str)> {
        let Server { forwarded_headers, request_id_header, .. } = self.server;
        if name == request_id_header || is_forwarded_as(name, *forwarded_headers) {
            return None;
        }
        self.why_not_counted(name)
    }

    /// Returns why no request has this field when its value selects a target, and the fix.
    fn why_not_hashed(&self, name: &HeaderName) -> Option<(&'static str, &'static str)> {
        if is_hop_by_hop(name) {
            return Some(("it is a hop-by-hop field and is removed", ""));
        }
        self.why_not_counted(name)
    }

    /// Returns why no request has this field when limits count it, without the fields that the gateway itself writes, and
    /// the fix.
    fn why_not_counted(&self, name: &HeaderName) -> Option<(&'static str, &'static str)> {
        if [UPGRADE, CONNECTION, TE].contains(name) {
            None
        } else if is_hop_by_hop(name) {
            Some((
                "it is a hop-by-hop field and is removed",
                "match a field that is forwarded to the upstream",
            ))
        } else if self.reserved.contains(name, true) {
            let why = "only the gateway may set it, and sets it after authorization, or not at all";
            let help = "match a field that clients send; who may call is for `auth`: `scopes`, `claims`, `clients`";
            Some((why, help))
        } else if self.server.trusted_proxies.is_empty() && self.reserved.contains(name, false) {
            let why = "it is removed from requests of all peers but `trusted_proxies`, and there are none";
            Some((
                why,
                "name the proxies that send it in `trusted_proxies`, or match another field",
            ))
        } else {
            None
        }
    }
}

/// Returns all values of a field that the gateway writes itself; `None` if they are unknown.
fn gateway_values(name: &HeaderName) -> Option<&'static [&'static str]> {
    Some(match name.as_str() {
        "x-forwarded-proto" => &["http", "https"],
        // Clients choose the case, and routes see the field as it was sent.
        "upgrade" => &["websocket", "WebSocket", "Websocket", "WEBSOCKET"],
        "connection" => &["upgrade"],
        "te" => &["trailers"],
        _ => return None,
    })
}

fn plain_http(target: &KeywordOr<Address, Target>) -> bool {
    address_of(target).is_some_and(|address| address.scheme == Scheme::Http)
}

/// Returns the address of a target, if it has a valid one.
pub(super) fn address_of(target: &KeywordOr<Address, Target>) -> Option<&Address> {
    match target {
        KeywordOr::Scalar(address) => Some(&address.0),
        KeywordOr::Mapping(target) => target.url.get().map(|at| &at.value.0),
    }
}

/// Returns the entries of a mapping, if it is present.
pub(super) fn entries<T>(
    section: &Field<Map<T>>,
) -> impl Iterator<Item = (&Spanned<String>, &Spanned<T>)> {
    section.get().into_iter().flat_map(|map| map.value.iter())
}

/// Returns the position of a key, if it is present.
fn position<T>(set: &Field<T>) -> Option<Position> {
    set.get().map(|at| at.key_at)
}
