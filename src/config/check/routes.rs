//! `routes`, `policies`, `defaults`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use url::Url;

use super::layers::Layers;
use super::{A_YEAR, Check, auth, defined_names};
use crate::config::auth::Auth;
use crate::config::fault::{Code, Place};
use crate::config::file::{File, WordOr, routes as file};
use crate::config::patterns;
use crate::config::route::{
    Action, Cors, HeaderMatch, PathPattern, Rewrite, Route, Segment, ValueMatch,
};
use crate::config::set::{At, Many, Map, Set};
use crate::config::units::{self, Of, Text, Wrong};
use crate::limit;

/// The fields that tell services about callers, over all routes, and those that do by default.
pub(super) fn identity_headers(routes: &[Route]) -> Vec<HeaderName> {
    let ways = routes.iter().flat_map(|route| match &route.auth {
        Auth::None => &[][..],
        Auth::Ways { ways, .. } => ways,
    });
    let configured =
        ways.flat_map(|way| way.identity_headers.iter().map(|header| header.name.clone()));
    let mut names: Vec<_> =
        configured.chain(auth::default_identity().map(|header| header.name)).collect();
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    names
}

impl Check<'_> {
    pub(super) fn routes(
        &mut self,
        file: &File,
        max_body_size: Option<u64>,
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
        let Some(routes) = self.required(&file.routes, Place::START, "routes", help) else {
            return Vec::new();
        };
        if routes.items.is_empty() && !routes.incomplete {
            self.fault(Code::C105, routes.at, "`routes` is empty", help);
        }
        let mut ids: HashMap<&str, Place> = HashMap::new();
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
            if let Some(route) = self.route(file, keys, &layers, max_body_size, limits) {
                checked.push((route, keys));
            }
        }
        self.ambiguous(&checked);
        checked.into_iter().map(|(route, _)| route).collect()
    }

    /// The keys of `defaults` or a policy, each held against what holds for routes.
    fn bundle(&mut self, file: &File, keys: &At<file::Route>) {
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
        for (place, name) in own {
            if let Some(place) = place {
                self.fault(
                    Code::C101,
                    place,
                    format!("`{name}` is a route's own key"),
                    "write it into each route",
                );
            }
        }
        self.auth(file, &keys.auth);
        self.limit_names(file, keys.limits.get().into_iter().flat_map(|list| &list.value.items));
        self.policy_names(file, keys);
        self.header_names(keys);
        self.time(&keys.timeout, A_YEAR, A_YEAR);
        self.body_size(&keys.max_body_size);
        if let Some(retries) = keys.retries.get() {
            self.retries(retries);
        }
        if let Some(cors) = keys.cors.get() {
            self.cors(cors);
        }
    }

    /// The layers of a route; `policies` of `defaults` count if the route names none.
    fn layers<'f>(&mut self, file: &'f File, keys: &'f file::Route) -> Layers<'f> {
        let defaults = file.defaults.get().map(|at| &at.value);
        self.policy_names(file, keys);
        let named = if keys.policies.is_absent() {
            defaults.and_then(|defaults| defaults.policies.get())
        } else {
            keys.policies.get()
        };
        let policy = |name: &At<String>| {
            let map = &file.policies.get()?.value;
            map.iter().find(|(key, _)| key.value == name.value).map(|(_, policy)| &policy.value)
        };
        let names = named.into_iter().flat_map(|list| &list.value.items);
        let found: Vec<_> = names.map(policy).collect();
        Layers {
            incomplete: keys.policies.is_bad() || found.iter().any(Option::is_none),
            layers: defaults.into_iter().chain(found.into_iter().flatten()).chain([keys]).collect(),
        }
    }

    fn policy_names(&mut self, file: &File, keys: &file::Route) {
        let names = defined_names(&file.policies);
        for name in keys.policies.get().into_iter().flat_map(|list| &list.value.items) {
            self.defined(name, "policies", &names);
        }
    }

    fn limit_names<'n>(
        &mut self,
        file: &File,
        used: impl Iterator<Item = &'n At<String>>,
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

    /// The route, unless what it lacks leaves nothing to look at.
    fn route(
        &mut self,
        file: &File,
        keys: &At<file::Route>,
        layers: &Layers<'_>,
        max_body_size: Option<u64>,
        limits: &BTreeMap<Arc<str>, limit::Settings>,
    ) -> Option<Route> {
        let help = "write where it is, such as path: /orders/**";
        let paths = self.required(&keys.path, keys.at, "path", help).map(|paths| self.paths(paths));
        let action = self.action(file, keys);
        let auth = self.route_auth(file, keys, layers);
        let used = layers.limits();
        let names = self.limit_names(file, used.iter().copied());
        if matches!(auth, Some(Auth::None)) {
            for name in used {
                self.needs_no_caller(keys, name, limits);
            }
        }
        self.header_names(keys);
        let rewrite = layers.given(|keys| &keys.rewrite);
        let rewrite = match (rewrite, &paths) {
            (Some(rewrite), Some(paths)) => self.rewrite(rewrite, paths),
            _ => Rewrite::Keep,
        };
        let absent = Set::Absent;
        let timeout = layers.pick(&absent, |keys| &keys.timeout);
        let timeout = timeout.get().map(|_| self.time(timeout, A_YEAR, A_YEAR));
        let absent = Set::Absent;
        let size = layers.pick(&absent, |keys| &keys.max_body_size);
        let match_headers = self.match_headers(&keys.match_headers);
        let route = Route {
            id: keys.id.get()?.value.as_str().into(),
            hosts: keys
                .host
                .get()
                .map(|hosts| hosts.items.iter().map(|at| at.value.0.clone()).collect())
                .unwrap_or_default(),
            paths: paths?,
            methods: methods(keys.methods.get().map(|list| &list.value.0)),
            match_headers,
            action: action?,
            auth: auth?,
            limits: names,
            rewrite,
            request_headers: layers.edits(|headers| &headers.request),
            response_headers: layers.edits(|headers| &headers.response),
            timeout,
            retries: layers.given(|keys| &keys.retries).map(|retries| self.retries(retries)),
            max_body_size: self.body_size(size).unwrap_or(max_body_size),
            cors: layers.given(|keys| &keys.cors).and_then(|cors| self.cors(cors)),
            security_headers: layers
                .given(|keys| &keys.security_headers)
                .is_some_and(|at| at.value),
            websocket: layers.given(|keys| &keys.websocket).is_none_or(|at| at.value),
            access_log: layers.given(|keys| &keys.access_log).is_none_or(|at| at.value),
            enabled: layers.given(|keys| &keys.enabled).is_none_or(|at| at.value),
        };
        Some(route)
    }

    fn paths(&mut self, paths: &At<Many<Of<PathPattern>>>) -> Vec<PathPattern> {
        if paths.items.is_empty() && !paths.incomplete {
            self.fault(Code::C105, paths.at, "`path` is empty", "write where the route is");
        }
        let mut all: Vec<PathPattern> = Vec::new();
        for path in &paths.items {
            if all.contains(&path.value.0) {
                self.fault(
                    Code::C111,
                    path.at,
                    format!("{} is there already", path.shown()),
                    "keep one of them",
                );
            }
            all.push(path.value.0.clone());
        }
        all
    }

    fn route_auth(
        &mut self,
        file: &File,
        keys: &At<file::Route>,
        layers: &Layers<'_>,
    ) -> Option<Auth> {
        let absent = Set::Absent;
        let auth = layers.pick(&absent, |keys| &keys.auth);
        if auth.is_absent() && !layers.incomplete {
            let message = "`auth` is missing";
            self.fault(Code::C105, keys.at, message, "write `auth: none` if it is public");
        }
        self.auth(file, auth)
    }

    /// Refuses a limit that counts by who is calling where nobody has to say so.
    fn needs_no_caller(
        &mut self,
        keys: &At<file::Route>,
        name: &At<String>,
        limits: &BTreeMap<Arc<str>, limit::Settings>,
    ) {
        let Some(settings) = limits.get(name.value.as_str()) else { return };
        if !settings.by.iter().any(limit::KeyPart::needs_principal) {
            return;
        }
        let own =
            keys.limits.get().is_some_and(|list| list.items.iter().any(|own| own.at == name.at));
        let place = if own { name.at } else { keys.id.get().map_or(keys.at, |id| id.at) };
        let message = format!(
            "limit {} counts by caller, and this route asks nobody who they are",
            name.shown()
        );
        let help = "count by ip there, write `inherit_limits: false`, or ask for a token";
        self.fault(Code::C109, place, message, help);
    }

    fn action(&mut self, file: &File, keys: &At<file::Route>) -> Option<Action> {
        let bad = keys.upstream.is_bad() || keys.respond.is_bad() || keys.redirect.is_bad();
        match (keys.upstream.get(), keys.respond.get(), keys.redirect.get()) {
            (Some(name), None, None) => {
                let names = defined_names(&file.upstreams);
                self.defined(name, "upstreams", &names).map(Action::Upstream)
            }
            (None, Some(respond), None) => self.respond(respond),
            (None, None, Some(redirect)) => self.redirect(redirect),
            (None, None, None) => {
                if !bad {
                    let message = "this route leads nowhere";
                    self.fault(
                        Code::C106,
                        keys.at,
                        message,
                        "write one of upstream, respond and redirect",
                    );
                }
                None
            }
            (upstream, respond, redirect) => {
                let second = respond.filter(|_| upstream.is_some()).map(|at| at.key_at);
                let place = second.or(redirect.map(|at| at.key_at)).unwrap_or(keys.at);
                let message = "a route has one of upstream, respond and redirect";
                self.fault(Code::C106, place, message, "keep one of them");
                None
            }
        }
    }

    fn respond(&mut self, keys: &At<file::Respond>) -> Option<Action> {
        let status = keys.status.or(200);
        let valid = StatusCode::from_u16(status).ok().filter(|_| (200..=599).contains(&status));
        if let (None, Some(at)) = (valid, keys.status.get()) {
            self.wrong(at, Wrong::new("is not a status to answer with", "write 200 to 599"));
        }
        let mut headers = Vec::new();
        for (name, value) in keys.headers.get().into_iter().flat_map(|map| map.value.iter()) {
            if let Some(name) = self.field(name) {
                headers.push((name, value.value.0.clone()));
            }
        }
        let body = keys.body.or(String::new());
        let typed = headers.iter().any(|(name, _)| name == http::header::CONTENT_TYPE);
        if !body.is_empty() && !typed {
            let plain = HeaderValue::from_static("text/plain; charset=utf-8");
            headers.push((http::header::CONTENT_TYPE, plain));
        }
        Some(Action::Respond { status: valid?, body, headers })
    }

    fn redirect(&mut self, keys: &At<file::Redirect>) -> Option<Action> {
        let to = self.required(&keys.to, keys.at, "to", "write a path or a URL");
        let location = to.and_then(|to| {
            let path = to.value.starts_with('/') && !to.value.starts_with("//");
            let valid = path
                || Url::parse(&to.value).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
            let location =
                HeaderValue::parse(&to.value).ok().filter(|_| valid && !to.value.contains(' '));
            if location.is_none() {
                self.wrong(
                    to,
                    Wrong::new("is no place to go", "write a path such as /new, or a URL"),
                );
            }
            location
        });
        let status = match keys.status.get() {
            None => Some(StatusCode::PERMANENT_REDIRECT),
            Some(at) => match at.value {
                301 | 302 | 303 | 307 | 308 => StatusCode::from_u16(at.value).ok(),
                _ => {
                    self.wrong(
                        at,
                        Wrong::new("does not lead elsewhere", "write 301, 302, 303, 307 or 308"),
                    );
                    None
                }
            },
        };
        Some(Action::Redirect { to: location?, status: status? })
    }

    fn match_headers(
        &mut self,
        set: &Set<Map<WordOr<HeaderValue, file::Pattern>>>,
    ) -> Vec<HeaderMatch> {
        let mut all: Vec<HeaderMatch> = Vec::new();
        for (at, value) in set.get().into_iter().flat_map(|map| map.value.iter()) {
            let Some(name) = self.parsed::<HeaderName>(at) else { continue };
            if all.iter().any(|other| other.name == name) {
                self.fault(
                    Code::C111,
                    at.at,
                    format!("{} is there already", at.shown()),
                    "keep one of them",
                );
            }
            let value = match &value.value {
                WordOr::Scalar(value) => ValueMatch::Exact(value.0.clone()),
                WordOr::Mapping(pattern) => {
                    let help = "write { regex: \"v[12]\" }";
                    let Some(regex) = self.required(&pattern.regex, value.at, "regex", help) else {
                        continue;
                    };
                    ValueMatch::Regex(regex.value.0.clone())
                }
            };
            all.push(HeaderMatch { name, value });
        }
        all
    }

    /// Looks at the names of fields that `keys` change.
    fn header_names(&mut self, keys: &file::Route) {
        let Some(headers) = keys.headers.get() else { return };
        for edits in [&headers.request, &headers.response].into_iter().filter_map(Set::get) {
            for (name, _) in [&edits.set, &edits.add]
                .into_iter()
                .filter_map(Set::get)
                .flat_map(|map| map.value.iter())
            {
                self.field(name);
            }
            for name in edits.remove.get().into_iter().flat_map(|list| &list.value.items) {
                self.not_framing(&name.value.0, name.at);
            }
        }
    }

    /// A field that may be set.
    pub(super) fn field(&mut self, name: &At<String>) -> Option<HeaderName> {
        let parsed = self.parsed::<HeaderName>(name)?;
        self.not_framing(&parsed, name.at).then_some(parsed)
    }

    pub(super) fn not_framing(&mut self, name: &HeaderName, at: Place) -> bool {
        let framing = patterns::is_framing(name);
        if framing {
            let message = format!(
                "`{name}` belongs to the connection: to change it would let requests be smuggled"
            );
            self.fault(
                Code::C109,
                at,
                message,
                "take it out; `host_header` of an upstream sets Host",
            );
        }
        !framing
    }

    /// A key that is a text with a grammar.
    pub(super) fn parsed<T: Text>(&mut self, text: &At<String>) -> Option<T> {
        T::parse(&text.value).map_err(|wrong| self.wrong(text, wrong)).ok()
    }

    fn rewrite(&mut self, keys: &At<file::Rewrite>, paths: &[PathPattern]) -> Rewrite {
        if let Some(path) = keys.path.get() {
            if !keys.strip_prefix.is_absent() || !keys.add_prefix.is_absent() {
                let message = "`path` writes the path anew; a prefix means nothing beside it";
                self.fault(Code::C106, path.key_at, message, "keep one of them");
            }
            let patterns: Vec<_> = paths.iter().collect();
            return match patterns::rewritten(&path.value, &patterns) {
                Ok(parts) => Rewrite::Path(parts),
                Err(wrong) => {
                    self.wrong(path, wrong);
                    Rewrite::Keep
                }
            };
        }
        let strip = keys.strip_prefix.get().and_then(|at| Some((at, self.prefix(at)?)));
        let add = keys.add_prefix.get().and_then(|at| self.prefix(at));
        if let Some((at, prefix)) = &strip {
            if !paths.iter().all(|path| begins_with(path, prefix)) {
                let message = format!("not every path of the route begins with {}", at.shown());
                self.fault(Code::C106, at.at, message, "write what all of them begin with");
            }
        }
        if strip.is_none() && add.is_none() {
            return Rewrite::Keep;
        }
        let text = |prefix: Option<PathPattern>| {
            prefix.map(|p| p.to_string()).unwrap_or_default().into_boxed_str()
        };
        Rewrite::Prefix { strip: text(strip.map(|(_, prefix)| prefix)), add: text(add) }
    }

    /// `/a/b`: literal segments and no slash at the end.
    fn prefix(&mut self, text: &At<String>) -> Option<PathPattern> {
        let checked = patterns::plain(&text.value).and_then(|()| PathPattern::parse(&text.value));
        let checked = checked.and_then(|pattern| match pattern.segments.last() {
            Some(Segment::Literal(last)) if last.is_empty() => {
                let help = format!("write {}", text.value.trim_end_matches('/'));
                Err(Wrong::new(
                    "ends in a slash",
                    if text.value == "/" { "take it out".to_owned() } else { help },
                ))
            }
            _ => Ok(pattern),
        });
        checked.map_err(|wrong| self.wrong(text, wrong)).ok()
    }

    fn cors(&mut self, keys: &At<file::Cors>) -> Option<Cors> {
        let help = "write origins: [https://app.example.com]";
        let origins = self.required(&keys.origins, keys.at, "origins", help)?;
        let credentials = keys.credentials.or(false);
        let any = origins.items.iter().find(|origin| origin.value == "*");
        if any.is_some() && credentials {
            let message = "every page on the web could act in its visitor's name";
            self.fault(
                Code::C109,
                origins.at,
                message,
                "name the origins, or take out `credentials`",
            );
        }
        let mut named = Vec::new();
        for origin in origins.items.iter().filter(|origin| origin.value != "*") {
            match Url::parse(&origin.value).map(|url| url.origin().ascii_serialization()) {
                Ok(right) if right == origin.value => named.extend(HeaderValue::from_str(&right)),
                Ok(right) if right != "null" => {
                    self.wrong(
                        origin,
                        Wrong::new("is not how browsers write an origin", format!("write {right}")),
                    );
                }
                _ => self
                    .wrong(origin, Wrong::new("is not an origin", "write https://app.example.com")),
            }
        }
        let names = |set: &Set<crate::config::set::List<Of<HeaderName>>>| {
            set.get()
                .map(|list| list.items.iter().map(|at| at.value.0.clone()).collect())
                .unwrap_or_default()
        };
        let allowed = keys.methods.get().map(|list| &list.value.0);
        Some(Cors {
            origins: any.is_none().then_some(named),
            methods: match allowed {
                None => vec![Method::GET, Method::HEAD, Method::POST],
                some => methods(some),
            },
            headers: names(&keys.headers),
            expose: names(&keys.expose),
            credentials,
            max_age: self.time_or_zero(&keys.max_age, core::time::Duration::from_secs(600), A_YEAR),
        })
    }
}

/// Where a key stands, if it is there.
fn key<T>(set: &Set<T>) -> Option<Place> {
    set.get().map(|at| at.key_at)
}

/// Each method once.
fn methods(list: Option<&Many<Of<Method>>>) -> Vec<Method> {
    let mut methods: Vec<Method> = Vec::new();
    for method in list.into_iter().flat_map(|list| &list.items) {
        if !methods.contains(&method.value.0) {
            methods.push(method.value.0.clone());
        }
    }
    methods
}

fn begins_with(path: &PathPattern, prefix: &PathPattern) -> bool {
    path.segments.len() >= prefix.segments.len()
        && path.segments.iter().zip(&prefix.segments).all(|(a, b)| a == b)
}
