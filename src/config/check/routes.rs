//! Checks `routes`, `policies`, `defaults`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use http::HeaderName;

use super::headers::methods;
use super::layers::Layers;
use super::{Check, MAX_DURATION, auth, conflicting_headers, defined_names};
use crate::config::auth::Auth;
use crate::config::de::field::{Field, Map, OneOrMany, Spanned};
use crate::config::de::units;
use crate::config::de::units::Scalar;
use crate::config::fault::{Code, Position};
use crate::config::file::{File, routes as file};
use crate::config::route::{Action, PathPattern, Rewrite, Route, Segment};
use crate::config::server::Server;
use crate::limit;

/// Returns the fields that identify the caller to an upstream: the identity headers of all routes, the default ones,
/// and those that `headers.request` of any route fills from claims.
///
/// Not among the latter are fields with a meaning in HTTP, such as `Authorization` and `Accept-Language`, which
/// other routes need from clients.
pub(super) fn identity_headers(routes: &[Route]) -> Vec<HeaderName> {
    let methods = routes.iter().flat_map(|route| route.auth.methods());
    let configured = methods.flat_map(|auth_method| {
        auth_method.identity_headers.iter().map(|header| header.name.clone())
    });
    let edited = routes.iter().flat_map(|route| route.request_headers.filled_from_claims());
    let edited = edited.filter(|name| !conflicting_headers::belongs_to_http(name)).cloned();
    let default = auth::default_identity().map(|header| header.name);
    let mut names: Vec<_> = configured.chain(edited).chain(default).collect();
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    names
}

impl Check<'_> {
    pub(super) fn routes(
        &mut self,
        file: &File,
        server: &Server,
        limits: &BTreeMap<Arc<str>, limit::Settings>,
    ) -> Vec<Route> {
        self.names(&file.policies);
        let shared = file.defaults.get().into_iter();
        let policies = file
            .policies
            .get()
            .into_iter()
            .flat_map(|map| map.value.iter().map(|(_, route)| route));
        for keys in shared.clone().chain(policies) {
            self.bundle(file, keys);
        }
        for policy in
            file.policies.get().into_iter().flat_map(|map| map.value.iter().map(|(_, route)| route))
        {
            if let Some(at) = policy.policies.get() {
                let message = "a policy cannot name policies";
                self.fault(
                    Code::C106,
                    at.key_at,
                    message,
                    "name them one after the other in the route",
                );
            }
        }
        let help = "write at least one route";
        let Some(routes) = self.required(&file.routes, Position::START, "routes", help) else {
            return Vec::new();
        };
        let mut ids: HashMap<&str, Position> = HashMap::new();
        let mut checked = Vec::new();
        for keys in &routes.items {
            if let Some(id) =
                self.required(&keys.id, keys.at, "id", "write a name for metrics and logs")
            {
                if let Err(wrong) = units::name(&id.value) {
                    self.wrong(id, wrong);
                }
                if let Some(first) = ids.insert(&id.value, id.at) {
                    let message = format!("another route is called {}", id.shown());
                    self.fault(
                        Code::C111,
                        id.at,
                        message,
                        format!("the first one is in line {}", first.line),
                    );
                }
            }
            let layers = self.layers(file, keys);
            if let Some(route) = self.route(file, keys, &layers, server, limits) {
                checked.push((route, keys));
            }
        }
        self.ambiguous(&checked);
        checked.into_iter().map(|(route, _)| route).collect()
    }

    /// Checks the keys of `defaults` or a policy by the rules for routes.
    fn bundle(&mut self, file: &File, keys: &Spanned<file::Route>) {
        let own = [
            (key(&keys.id), "id"),
            (key(&keys.host), "host"),
            (key(&keys.path), "path"),
            (key(&keys.methods), "methods"),
            (key(&keys.match_headers), "match_headers"),
            (key(&keys.upstream), "upstream"),
            (key(&keys.respond), "respond"),
            (key(&keys.redirect), "redirect"),
        ];
        for (position, name) in own {
            if let Some(position) = position {
                self.fault(
                    Code::C101,
                    position,
                    format!("`{name}` is a route's own key"),
                    "write it into each route",
                );
            }
        }
        self.auth(file, &keys.auth);
        self.limit_names(file, keys.limits.get().into_iter().flat_map(|list| &list.value.items));
        self.policy_names(file, keys);
        self.lists(keys);
        self.header_names(keys);
        self.time(&keys.timeout, MAX_DURATION, MAX_DURATION);
        self.body_size(&keys.max_body_size, None);
        if let Some(retries) = keys.retries.get() {
            self.retries(retries);
        }
        if let Some(fallback) = keys.fallback.get() {
            self.fallback(file, fallback, None);
        }
        if let Some(mirror) = keys.mirror.get() {
            self.mirror(file, mirror, None);
        }
        if let Some(cors) = keys.cors.get() {
            self.cors(cors);
        }
    }

    /// Returns the layers of a route; `policies` of `defaults` apply if the route names none.
    fn layers<'f>(&mut self, file: &'f File, keys: &'f file::Route) -> Layers<'f> {
        let defaults = file.defaults.get().map(|at| &at.value);
        self.policy_names(file, keys);
        let named = if keys.policies.is_absent() {
            defaults.and_then(|defaults| defaults.policies.get())
        } else {
            keys.policies.get()
        };
        let policy = |name: &Spanned<String>| {
            let map = &file.policies.get()?.value;
            map.iter().find(|(key, _)| key.value == name.value).map(|(_, policy)| &policy.value)
        };
        let found: Vec<_> =
            named.into_iter().flat_map(|list| &list.value.items).map(policy).collect();
        Layers {
            incomplete: keys.policies.is_bad() || found.iter().any(Option::is_none),
            layers: defaults.into_iter().chain(found.into_iter().flatten()).chain([keys]).collect(),
        }
    }

    /// Refuses what is twice in a list of these keys alone.
    fn lists(&mut self, keys: &file::Route) {
        if let Some(hosts) = keys.host.get() {
            self.no_duplicates(&hosts.items);
        }
        if let Some(methods) = keys.methods.get() {
            self.no_duplicates(&methods.items);
        }
        if let Some(limits) = keys.limits.get() {
            self.no_duplicates(&limits.items);
        }
    }

    fn policy_names(&mut self, file: &File, keys: &file::Route) {
        let names = defined_names(&file.policies);
        if let Some(list) = keys.policies.get() {
            self.no_duplicates(&list.items);
        }
        for name in keys.policies.get().into_iter().flat_map(|list| &list.value.items) {
            self.defined(name, "policies", &names);
        }
    }

    pub(super) fn limit_names<'n>(
        &mut self,
        file: &File,
        used: impl Iterator<Item = &'n Spanned<String>>,
    ) -> Vec<Arc<str>> {
        let names = defined_names(&file.limits);
        let mut found: Vec<Arc<str>> = Vec::new();
        for name in used {
            if let Some(name) = self.defined(name, "limits", &names)
                && !found.contains(&name)
            {
                found.push(name);
            }
        }
        found
    }

    /// Returns the route, unless a missing key makes further checks impossible.
    fn route(
        &mut self,
        file: &File,
        keys: &Spanned<file::Route>,
        layers: &Layers<'_>,
        server: &Server,
        limits: &BTreeMap<Arc<str>, limit::Settings>,
    ) -> Option<Route> {
        let help = "write the path of the route, such as path: /orders/**";
        let paths = self.required(&keys.path, keys.at, "path", help).map(|paths| self.paths(paths));
        let action = self.action(file, keys);
        let auth = self.route_auth(file, keys, layers);
        let used = layers.limits();
        let names = self.limit_names(file, used.iter().copied());
        self.lists(keys);
        let taken = methods(keys.methods.get().map(|list| &list.value.0));
        for name in keys.limits.get().into_iter().flat_map(|list| &list.items) {
            self.limit_counts(file, name, &taken);
        }
        if let Some(auth) = auth.as_ref().filter(|auth| auth.is_optional()) {
            for name in used {
                self.needs_no_caller(keys, name, limits, auth);
            }
        }
        self.header_names(keys);
        let rewrite = layers.given(|keys| &keys.rewrite);
        let rewrite = match (rewrite, &paths) {
            (Some(rewrite), Some(paths)) => self.rewrite(rewrite, paths),
            _ => Rewrite::Keep,
        };
        let absent = Field::Absent;
        let timeout = layers.first_set(&absent, |keys| &keys.timeout);
        let timeout = timeout.get().map(|_| self.time(timeout, MAX_DURATION, MAX_DURATION));
        let absent = Field::Absent;
        let size = layers.first_set(&absent, |keys| &keys.max_body_size);
        let absent = Field::Absent;
        let rate = layers.first_set(&absent, |keys| &keys.min_body_rate);
        let match_headers = self.match_headers(&keys.match_headers);
        let compress = self.compress(keys, layers, auth.as_ref());
        let own = match &action {
            Some(Action::Upstream(name)) => Some(Arc::clone(name)),
            _ => None,
        };
        let split = self.split(file, layers, own.as_ref());
        let only = own.as_ref().filter(|_| split.is_none());
        let fallback = layers.given(|keys| &keys.fallback);
        let fallback = fallback.map(|keys| self.fallback(file, keys, only));
        let mirror = layers.given(|keys| &keys.mirror);
        let mirror = mirror.and_then(|keys| self.mirror(file, keys, own.as_ref()));
        let route = Route {
            id: keys.id.get()?.value.as_str().into(),
            hosts: keys
                .host
                .get()
                .map(|hosts| hosts.items.iter().map(|at| at.value.0.clone()).collect())
                .unwrap_or_default(),
            paths: paths?,
            methods: taken,
            match_headers,
            action: action?,
            auth: auth?,
            limits: names,
            rewrite,
            request_headers: layers.edits(|headers| &headers.request),
            response_headers: layers.edits(|headers| &headers.response),
            timeout,
            retries: layers.given(|keys| &keys.retries).map(|retries| self.retries(retries)),
            buffer_request: layers.given(|keys| &keys.buffer_request).is_some_and(|at| at.value),
            fallback,
            split,
            mirror,
            max_body_size: self.body_size(size, server.max_body_size),
            min_body_rate: rate
                .get()
                .map_or(server.min_body_rate, |at| Some(at.value.0.0))
                .filter(|rate| *rate > 0),
            cors: layers.given(|keys| &keys.cors).and_then(|cors| self.cors(cors)),
            security_headers: layers
                .given(|keys| &keys.security_headers)
                .is_some_and(|at| at.value),
            compress,
            websocket: layers.given(|keys| &keys.websocket).is_none_or(|at| at.value),
            close_on_expiry: layers.given(|keys| &keys.close_on_expiry).is_none_or(|at| at.value),
            access_log: layers.given(|keys| &keys.access_log).is_none_or(|at| at.value),
            enabled: layers.given(|keys| &keys.enabled).is_none_or(|at| at.value),
        };
        Some(route)
    }

    fn paths(&mut self, paths: &Spanned<OneOrMany<Scalar<PathPattern>>>) -> Vec<PathPattern> {
        self.no_duplicates(&paths.items);
        let all: Vec<PathPattern> = paths.items.iter().map(|path| path.value.0.clone()).collect();
        for (path, at) in all.iter().zip(&paths.items) {
            let is_of_route =
                |reading: &PathPattern| all.iter().any(|other| covers(other, reading));
            if !without_parameters(path).iter().all(is_of_route) {
                let message = format!(
                    "no request reaches {}: services could read another path, without what follows `;`",
                    at.shown()
                );
                let help = "write it without `;`, or give the route that path too";
                self.fault(Code::C110, at.at, message, help);
            }
        }
        all
    }

    /// Refuses an empty mapping, which is not read as "none".
    pub(super) fn not_empty<T>(&mut self, name: &str, map: &Spanned<Map<T>>) {
        if map.value.names().next().is_none() {
            let help =
                "an empty mapping is not read as \"none\": write at least one, or remove the key";
            self.fault(Code::C105, map.at, format!("`{name}` is empty"), help);
        }
    }

    fn route_auth(
        &mut self,
        file: &File,
        keys: &Spanned<file::Route>,
        layers: &Layers<'_>,
    ) -> Option<Auth> {
        let absent = Field::Absent;
        let auth = layers.first_set(&absent, |keys| &keys.auth);
        if auth.is_absent() && !layers.incomplete {
            let message = "`auth` is missing";
            self.fault(Code::C105, keys.at, message, "write `auth: none` if it is public");
        }
        self.auth(file, auth)
    }

    /// Refuses a limit that counts by caller on a route without authentication, and one that refuses anonymous callers
    /// where they are let in.
    fn needs_no_caller(
        &mut self,
        keys: &Spanned<file::Route>,
        name: &Spanned<String>,
        limits: &BTreeMap<Arc<str>, limit::Settings>,
        auth: &Auth,
    ) {
        let Some(settings) = limits.get(name.value.as_str()) else { return };
        let is_public = matches!(auth, Auth::None);
        if !settings.needs_principal() || !is_public && !settings.refuses_anonymous() {
            return;
        }
        let own =
            keys.limits.get().is_some_and(|list| list.items.iter().any(|own| own.at == name.at));
        let position = if own { name.at } else { keys.id.get().map_or(keys.at, |id| id.at) };
        let (what, help) = if is_public {
            (
                "counts by caller, and this route does not require authentication",
                "count by ip there, write `inherit_limits: false`, or ask for a token",
            )
        } else {
            (
                "refuses callers without a token, whom `optional` lets in",
                "write another `on_missing`, a `default` plan, or remove `optional`",
            )
        };
        let message = format!("limit {} {what}", name.shown());
        self.fault(Code::C109, position, message, help);
    }
}

/// Returns the position of a key, if it is present.
fn key<T>(set: &Field<T>) -> Option<Position> {
    set.get().map(|at| at.key_at)
}

/// Returns the paths that services read which cut parameters off (RFC 3986 §3.3): those of all segments, or of the last alone.
fn without_parameters(path: &PathPattern) -> Vec<PathPattern> {
    let cut = |segment: &Segment| match segment {
        Segment::Literal(text) => {
            Segment::Literal(text.split(';').next().unwrap_or_default().into())
        }
        parameter @ Segment::Parameter(_) => parameter.clone(),
    };
    let mut readings = Vec::new();
    let mut last = path.clone();
    if !path.rest
        && let Some(segment) = last.segments.last_mut()
    {
        *segment = cut(segment);
        readings.push(last);
    }
    readings
        .push(PathPattern { segments: path.segments.iter().map(cut).collect(), rest: path.rest });
    readings.retain(|reading| reading != path);
    readings
}

/// Whether `pattern` matches every path that `path` does.
fn covers(pattern: &PathPattern, path: &PathPattern) -> bool {
    let lengths = (pattern.segments.len(), path.segments.len());
    let has_length = if pattern.rest { lengths.0 <= lengths.1 } else { lengths.0 == lengths.1 };
    has_length
        && (pattern.rest || !path.rest)
        && pattern.segments.iter().zip(&path.segments).all(|pair| match pair {
            (Segment::Parameter(_), Segment::Literal(text)) => !text.is_empty(),
            (Segment::Parameter(_), Segment::Parameter(_)) => true,
            (literal, segment) => literal == segment,
        })
}
