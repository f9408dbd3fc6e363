//! The router: matches host, then path, then method, then header fields.
//!
//! The most specific entry wins, whatever the order in the file: an exact host before `*.host` before any host; then
//! segment by segment a literal before `{x}` before `**`. Host and path are decided first: a method that none of
//! their routes takes is 405, and never falls back to a less specific path.

use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method};

use super::fields::{Fields, Match};
use crate::config;
use crate::config::route::{HeaderMatch, HostPattern, PathPattern, Segment};
use crate::gateway::Rejection;

/// The match conditions of a route.
#[derive(Debug)]
pub(crate) struct CompiledRoute<R> {
    /// The hosts; empty is any.
    pub hosts: Vec<HostPattern>,
    /// The path patterns.
    pub paths: Vec<PathPattern>,
    /// The methods; empty is all except TRACE and CONNECT.
    pub methods: Vec<Method>,
    /// The header fields that a request must have.
    pub match_headers: Vec<HeaderMatch>,
    /// Whether this entry excludes all others with the same host and path.
    pub exclusive: bool,
    /// The route, or a description of it.
    pub route: Arc<R>,
}

/// All routes, indexed by host and path.
#[derive(Debug)]
pub(crate) struct Router<R> {
    exact: HashMap<Box<str>, Node>,
    /// By the domain after the first label.
    any_label: HashMap<Box<str>, Node>,
    any: Node,
    entries: Vec<CompiledRoute<R>>,
}

/// One path segment of the index, with the routes that end here.
#[derive(Debug, Default)]
struct Node {
    literals: HashMap<Box<str>, Node>,
    parameter: Option<Box<Node>>,
    /// Indices of the routes whose path ends here, those with most conditions first.
    here: Vec<usize>,
    /// Indices of the routes that take every longer path.
    rest: Vec<usize>,
}

impl<R> Router<R> {
    /// Indexes `entries` by host and path.
    pub(crate) fn new(entries: Vec<CompiledRoute<R>>) -> Self {
        let mut router = Self {
            exact: HashMap::new(),
            any_label: HashMap::new(),
            any: Node::default(),
            entries,
        };
        for (index, entry) in router.entries.iter().enumerate() {
            for path in &entry.paths {
                if entry.hosts.is_empty() {
                    router.any.insert(path, index);
                }
                for host in &entry.hosts {
                    let tree = match host {
                        HostPattern::Exact(host) => router.exact.entry(host.clone()).or_default(),
                        HostPattern::Wildcard(domain) => {
                            router.any_label.entry(domain.clone()).or_default()
                        }
                    };
                    tree.insert(path, index);
                }
            }
        }
        let entries = &router.entries;
        let by_conditions = |&index: &usize| {
            let entry: &CompiledRoute<R> = &entries[index];
            (
                core::cmp::Reverse(!entry.methods.is_empty()),
                core::cmp::Reverse(entry.match_headers.len()),
            )
        };
        for tree in
            router.exact.values_mut().chain(router.any_label.values_mut()).chain([&mut router.any])
        {
            tree.sort(&by_conditions);
            tree.apply_exclusive(&|&index| entries[index].exclusive);
        }
        router
    }

    /// Finds the route of a request to `path`, in canonical form, on `host`, in lower case and without port.
    ///
    /// # Errors
    ///
    /// [`Rejection::NoRoute`] if no path or no header condition matches; [`Rejection::Method`] if paths match but no
    /// method; [`Rejection::AmbiguousField`] if upstreams could read a field so that another route matches.
    pub(crate) fn find(
        &self,
        host: &str,
        path: &str,
        method: &Method,
        fields: Fields<'_>,
    ) -> Result<&Arc<R>, Rejection> {
        let candidates = || self.candidates(host, path, method);
        for entry in candidates().filter(|entry| entry.takes(method)) {
            match fields.meet(&entry.match_headers) {
                Match::Yes => return Ok(&entry.route),
                Match::No => {}
                Match::Ambiguous => return Err(Rejection::AmbiguousField),
            }
        }
        let has_entry = candidates().next().is_some();
        if !has_entry || candidates().any(|entry| entry.takes(method)) {
            Err(Rejection::NoRoute)
        } else {
            Err(Rejection::Method { allow: allow(candidates()) })
        }
    }

    /// Returns the routes that a request may take of which only some `fields` are known, those with most conditions
    /// first. The request may or may not have the fields for which `may_have` returns true.
    pub(crate) fn possible(
        &self,
        host: &str,
        path: &str,
        method: &Method,
        fields: Fields<'_>,
        may_have: impl Fn(&HeaderName) -> bool,
    ) -> Vec<&Arc<R>> {
        let mut possible = Vec::new();
        for entry in self.candidates(host, path, method) {
            let known = || entry.match_headers.iter().filter(|wanted| !may_have(&wanted.name));
            let met = if entry.takes(method) { fields.meet(known()) } else { Match::No };
            if met == Match::No {
                continue;
            }
            possible.push(&entry.route);
            if met == Match::Yes && known().count() == entry.match_headers.len() {
                break;
            }
        }
        possible
    }

    /// Returns every host and path with its routes, in the order of a search.
    pub(crate) fn in_order(&self) -> Vec<MatchRule<'_, R>> {
        let mut rules = Vec::new();
        let named = |trees: &'_ HashMap<Box<str>, Node>| {
            let mut hosts: Vec<_> = trees.keys().cloned().collect();
            hosts.sort_unstable();
            hosts
        };
        for host in named(&self.exact) {
            let tree = &self.exact[&host];
            tree.walk(&mut Vec::new(), &mut self.rules(Some(HostPattern::Exact(host)), &mut rules));
        }
        for domain in named(&self.any_label) {
            let tree = &self.any_label[&domain];
            let host = HostPattern::Wildcard(domain);
            tree.walk(&mut Vec::new(), &mut self.rules(Some(host), &mut rules));
        }
        self.any.walk(&mut Vec::new(), &mut self.rules(None, &mut rules));
        rules
    }

    /// Returns a visitor of [`Node::walk`] that collects the rules of `host`.
    fn rules<'r>(
        &'r self,
        host: Option<HostPattern>,
        rules: &mut Vec<MatchRule<'r, R>>,
    ) -> impl FnMut(&[Option<&str>], bool, usize) {
        move |steps, rest, index| {
            let entry = &self.entries[index];
            let is = |path: &&PathPattern| path.rest == rest && fits(path, steps);
            let paths = entry.paths.iter().filter(is);
            rules.extend(paths.map(|path| MatchRule { host: host.clone(), path, entry }));
        }
    }

    /// Returns the routes of a host and path, in the order in which method and fields choose among them: HEAD takes a
    /// route that names it before one that names GET.
    pub(crate) fn candidates(
        &self,
        host: &str,
        path: &str,
        method: &Method,
    ) -> impl Iterator<Item = &CompiledRoute<R>> {
        let group = self.group(host, path).unwrap_or_default();
        let named = move |entry: &&CompiledRoute<R>| {
            *method == Method::HEAD && entry.methods.contains(&Method::HEAD)
        };
        let entries = move || group.iter().map(|&index| &self.entries[index]);
        entries()
            .filter(move |entry| named(entry))
            .chain(entries().filter(move |entry| !named(entry)))
    }

    /// Returns every entry, in no particular order.
    pub(crate) fn entries(&self) -> &[CompiledRoute<R>] {
        &self.entries
    }

    fn group(&self, host: &str, path: &str) -> Option<&[usize]> {
        let segments = path.strip_prefix('/')?;
        if !self.exact.is_empty()
            && let Some(group) = self.exact.get(host).and_then(|tree| tree.find(Some(segments)))
        {
            return Some(group);
        }
        if !self.any_label.is_empty()
            && let Some((label, domain)) = host.split_once('.')
            && !label.is_empty()
            && let Some(group) =
                self.any_label.get(domain).and_then(|tree| tree.find(Some(segments)))
        {
            return Some(group);
        }
        self.any.find(Some(segments))
    }
}

/// One host and path of a route.
#[derive(Debug)]
pub(crate) struct MatchRule<'r, R> {
    /// `None` is any.
    pub host: Option<HostPattern>,
    pub path: &'r PathPattern,
    pub entry: &'r CompiledRoute<R>,
}

impl<R> CompiledRoute<R> {
    /// Creates the entry of the operator's `route`.
    pub(crate) fn of(route: &config::Route, compiled: Arc<R>) -> Self {
        Self {
            hosts: route.hosts.clone(),
            paths: route.paths.clone(),
            methods: route.methods.clone(),
            match_headers: route.match_headers.clone(),
            exclusive: false,
            route: compiled,
        }
    }

    pub(crate) fn takes(&self, method: &Method) -> bool {
        if self.methods.is_empty() {
            *method != Method::TRACE && *method != Method::CONNECT
        } else {
            self.methods.contains(method)
                || (*method == Method::HEAD && self.methods.contains(&Method::GET))
        }
    }
}

impl Node {
    fn insert(&mut self, path: &PathPattern, index: usize) {
        let mut node = self;
        for segment in &path.segments {
            node = match segment {
                Segment::Literal(text) => node.literals.entry(text.clone()).or_default(),
                Segment::Parameter(_) => node.parameter.get_or_insert_default(),
            };
        }
        if path.rest { node.rest.push(index) } else { node.here.push(index) }
    }

    fn sort<K: Ord>(&mut self, key: &impl Fn(&usize) -> K) {
        self.here.sort_by_key(key);
        self.rest.sort_by_key(key);
        self.literals.values_mut().for_each(|node| node.sort(key));
        if let Some(node) = &mut self.parameter {
            node.sort(key);
        }
    }

    /// Removes the other entries where one is exclusive.
    fn apply_exclusive(&mut self, exclusive: &impl Fn(&usize) -> bool) {
        if self.here.iter().any(exclusive) {
            self.here.retain(exclusive);
        }
        self.literals.values_mut().for_each(|node| node.apply_exclusive(exclusive));
        if let Some(node) = &mut self.parameter {
            node.apply_exclusive(exclusive);
        }
    }

    /// Visits every route below in the order of a search: with the segments to it, `None` for a parameter, and
    /// whether it takes every longer path.
    fn walk<'n>(
        &'n self,
        steps: &mut Vec<Option<&'n str>>,
        visit: &mut impl FnMut(&[Option<&str>], bool, usize),
    ) {
        self.here.iter().for_each(|&index| visit(steps, false, index));
        let mut literals: Vec<_> = self.literals.iter().collect();
        literals.sort_unstable_by_key(|(segment, _)| *segment);
        let literals = literals.into_iter().map(|(segment, node)| (Some(&**segment), node));
        let parameter = self.parameter.as_deref().map(|node| (None, node));
        for (step, node) in literals.chain(parameter) {
            steps.push(step);
            node.walk(steps, visit);
            steps.pop();
        }
        self.rest.iter().for_each(|&index| visit(steps, true, index));
    }

    /// Finds the routes for the rest of a path: its segments without the slash before them, `None` at the end.
    fn find(&self, left: Option<&str>) -> Option<&[usize]> {
        let Some(left) = left else {
            let ends = if self.here.is_empty() { &self.rest } else { &self.here };
            return (!ends.is_empty()).then_some(ends);
        };
        let (segment, next) = match left.split_once('/') {
            Some((segment, next)) => (segment, Some(next)),
            None => (left, None),
        };
        let literal = || self.literals.get(segment)?.find(next);
        let parameter = || self.parameter.as_ref().filter(|_| !segment.is_empty())?.find(next);
        let rest = || (!self.rest.is_empty()).then_some(&*self.rest);
        literal().or_else(parameter).or_else(rest)
    }
}

/// Whether `steps`, with `None` for a parameter, are the segments of `path`.
fn fits(path: &PathPattern, steps: &[Option<&str>]) -> bool {
    path.segments.len() == steps.len()
        && path.segments.iter().zip(steps).all(|(segment, step)| match (segment, step) {
            (Segment::Literal(text), Some(step)) => **text == **step,
            (Segment::Parameter(_), None) => true,
            _ => false,
        })
}

/// Returns the methods of a path for `Allow` (RFC 9110 §10.2.1).
fn allow<'a, R: 'a>(entries: impl Iterator<Item = &'a CompiledRoute<R>>) -> HeaderValue {
    let mut methods: Vec<&str> = Vec::new();
    for entry in entries {
        if entry.methods.is_empty() {
            methods.extend(["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"]);
        }
        methods.extend(entry.methods.iter().map(Method::as_str));
        if entry.methods.contains(&Method::GET) {
            methods.push("HEAD");
        }
    }
    methods.sort_unstable();
    methods.dedup();
    HeaderValue::from_str(&methods.join(", ")).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    #[test]
    fn the_most_specific_path_wins_whatever_the_order() {
        let router = router(&[
            ("all", "", "/**", ""),
            ("param", "", "/orders/{id}", ""),
            ("literal", "", "/orders/new", ""),
            ("below", "", "/orders/**", ""),
        ]);

        assert_eq!(find(&router, "GET", "", "/orders/new"), Ok("literal".into()));
        assert_eq!(find(&router, "GET", "", "/orders/7"), Ok("param".into()));
        assert_eq!(find(&router, "GET", "", "/orders/7/lines"), Ok("below".into()));
        assert_eq!(find(&router, "GET", "", "/orders"), Ok("below".into()));
        assert_eq!(find(&router, "GET", "", "/orders/"), Ok("below".into()));
        assert_eq!(find(&router, "GET", "", "/ordersnew"), Ok("all".into()));
        assert_eq!(find(&router, "GET", "", "/"), Ok("all".into()));
    }

    #[test]
    fn the_search_backtracks_from_a_dead_end() {
        let router = router(&[
            ("deep", "", "/a/b/c", ""),
            ("param", "", "/{x}/b/d", ""),
            ("rest", "", "/a/c/**", ""),
        ]);

        assert_eq!(find(&router, "GET", "", "/a/b/d"), Ok("param".into()));
        assert_eq!(find(&router, "GET", "", "/a/c/e"), Ok("rest".into()));
        assert_eq!(find(&router, "GET", "", "/a/b/e"), Err(Rejection::NoRoute));
        assert_eq!(find(&router, "GET", "", "/b/b/e"), Err(Rejection::NoRoute));
    }

    #[test]
    fn an_exact_host_takes_precedence() {
        let router = router(&[
            ("any", "", "/**", ""),
            ("exact", "a.example.com", "/x", ""),
            ("wild", "*.example.com", "/**", ""),
        ]);

        assert_eq!(find(&router, "GET", "a.example.com", "/x"), Ok("exact".into()));
        assert_eq!(find(&router, "GET", "a.example.com", "/y"), Ok("wild".into()));
        assert_eq!(find(&router, "GET", "b.example.com", "/x"), Ok("wild".into()));
        assert_eq!(find(&router, "GET", "a.b.example.com", "/x"), Ok("any".into()));
        assert_eq!(find(&router, "GET", "example.com", "/x"), Ok("any".into()));
    }

    #[test]
    fn an_unsupported_method_is_405_and_never_a_less_specific_path() {
        let router = router(&[
            ("read", "", "/a", "GET"),
            ("write", "", "/a", "POST"),
            ("all", "", "/**", ""),
        ]);

        assert_eq!(find(&router, "GET", "", "/a"), Ok("read".into()));
        assert_eq!(find(&router, "HEAD", "", "/a"), Ok("read".into()));
        assert_eq!(find(&router, "POST", "", "/a"), Ok("write".into()));
        let allow = HeaderValue::from_static("GET, HEAD, POST");
        assert_eq!(find(&router, "DELETE", "", "/a"), Err(Rejection::Method { allow }));
        assert!(matches!(find(&router, "TRACE", "", "/b"), Err(Rejection::Method { .. })));
    }

    #[test]
    fn head_takes_a_route_that_names_it_before_one_for_get() {
        for (routes, taken) in [
            (&[("get", "", "/a", "GET"), ("head", "", "/a", "HEAD")][..], "head"),
            (&[("head", "", "/a", "HEAD"), ("get", "", "/a", "GET")], "head"),
            (&[("get", "", "/a", "GET"), ("write", "", "/a", "POST,HEAD")], "write"),
            (&[("write", "", "/a", "POST"), ("get", "", "/a", "GET")], "get"),
            (&[("any", "", "/a", ""), ("get", "", "/a", "GET")], "get"),
            (&[("any", "", "/a", ""), ("head", "", "/a", "HEAD")], "head"),
            (&[("any", "", "/a", ""), ("write", "", "/a", "POST")], "any"),
        ] {
            assert_eq!(find(&router(routes), "HEAD", "", "/a"), Ok(taken.into()), "{routes:?}");
        }
        let guarded = router(&[("head", "", "/a", "HEAD"), ("get", "", "/a", "GET")]);
        assert_eq!(find(&guarded, "GET", "", "/a"), Ok("get".into()));
    }

    #[test]
    fn a_route_with_methods_comes_before_one_without() {
        let router = router(&[("any", "", "/a", ""), ("read", "", "/a", "GET")]);

        assert_eq!(find(&router, "GET", "", "/a"), Ok("read".into()));
        assert_eq!(find(&router, "PUT", "", "/a"), Ok("any".into()));
    }

    #[test]
    fn an_exclusive_entry_is_alone_at_its_host_and_path() {
        let entry = |id: &str, methods: Vec<Method>, exclusive| CompiledRoute {
            hosts: vec![HostPattern::Exact("a".into())],
            paths: vec![pattern("/login")],
            methods,
            match_headers: vec![],
            exclusive,
            route: Arc::new(id.to_owned()),
        };
        let router = Router::new(vec![
            entry("post", vec![Method::POST], false),
            entry("connect", vec![Method::CONNECT], false),
            entry("own", vec![], true),
        ]);

        assert_eq!(find(&router, "POST", "a", "/login"), Ok("own".into()));
        assert!(matches!(find(&router, "CONNECT", "a", "/login"), Err(Rejection::Method { .. })));
    }

    #[test]
    fn a_parameter_is_never_empty() {
        let router = router(&[("param", "", "/a/{x}", "")]);

        assert_eq!(find(&router, "GET", "", "/a/"), Err(Rejection::NoRoute));
        assert_eq!(find(&router, "GET", "", "/a/b"), Ok("param".into()));
    }

    fn router(routes: &[(&str, &str, &str, &str)]) -> Router<String> {
        let entries = routes.iter().map(|(id, host, path, methods)| CompiledRoute {
            hosts: match (*host, host.strip_prefix("*.")) {
                ("", _) => vec![],
                (_, Some(domain)) => vec![HostPattern::Wildcard(domain.into())],
                (host, None) => vec![HostPattern::Exact(host.into())],
            },
            paths: vec![pattern(path)],
            methods: methods
                .split(',')
                .filter(|m| !m.is_empty())
                .map(|m| m.parse().expect("a method"))
                .collect(),
            match_headers: vec![],
            exclusive: false,
            route: Arc::new((*id).to_owned()),
        });
        Router::new(entries.collect())
    }

    fn pattern(path: &str) -> PathPattern {
        let (path, rest) = path.strip_suffix("/**").map_or((path, false), |path| (path, true));
        let segments = path.split('/').skip(1).map(|s| {
            match s.strip_prefix('{').and_then(|s| s.strip_suffix('}')) {
                Some(name) => Segment::Parameter(name.into()),
                None => Segment::Literal(s.into()),
            }
        });
        PathPattern { segments: segments.collect(), rest }
    }

    fn find(
        router: &Router<String>,
        method: &str,
        host: &str,
        path: &str,
    ) -> Result<String, Rejection> {
        let method = method.parse().expect("a method");
        let none = HeaderMap::new();
        let fields = Fields { client: &none, gateway: &none };
        router.find(host, path, &method, fields).map(|id| (**id).clone())
    }
}
