//! Which route: host, then path, then method, then fields.
//!
//! The most specific wins, whatever the order of the file: an exact host before
//! `*.host` before any; then segment by segment a literal before `{x}` before
//! `**`. Host and path decide first: a method that none of their routes takes
//! is 405, never a less specific path.

use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::config;
use crate::config::route::{HeaderMatch, HostPattern, PathPattern, Segment};
use crate::gateway::Rejection;

/// What a route matches, and what it leads to.
#[derive(Debug)]
pub(crate) struct CompiledRoute<R> {
    /// Hosts it serves; empty is any.
    pub hosts: Vec<HostPattern>,
    /// Paths it serves.
    pub paths: Vec<PathPattern>,
    /// Methods it takes; empty is all but TRACE and CONNECT.
    pub methods: Vec<Method>,
    /// Fields a request must have besides.
    pub match_headers: Vec<HeaderMatch>,
    /// Whether it is alone where it is: no other entry with the same host and path is looked at.
    pub comes_first: bool,
    /// Where it leads.
    pub route: Arc<R>,
}

/// All routes, ready to be searched.
#[derive(Debug)]
pub(crate) struct Router<R> {
    exact: HashMap<Box<str>, Node>,
    /// By what follows the first label.
    any_label: HashMap<Box<str>, Node>,
    any: Node,
    entries: Vec<CompiledRoute<R>>,
}

/// One step of a path, with the routes that end here.
#[derive(Debug, Default)]
struct Node {
    literals: HashMap<Box<str>, Node>,
    parameter: Option<Box<Node>>,
    /// Indices of the routes whose path ends here, the most demanding first.
    here: Vec<usize>,
    /// … and of those that take everything from here on.
    rest: Vec<usize>,
}

impl<R> Router<R> {
    /// Arranges `entries` by host and path.
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
        let demanding = |&index: &usize| {
            let entry: &CompiledRoute<R> = &entries[index];
            (
                core::cmp::Reverse(!entry.methods.is_empty()),
                core::cmp::Reverse(entry.match_headers.len()),
            )
        };
        for tree in
            router.exact.values_mut().chain(router.any_label.values_mut()).chain([&mut router.any])
        {
            tree.sort(&demanding);
            tree.settle(&|&index| entries[index].comes_first);
        }
        router
    }

    /// The route of a request to `path`, in normal form, on `host`, in lower case and without a port.
    ///
    /// # Errors
    ///
    /// [`Rejection::NoRoute`] if no path, or none with these fields, matches; [`Rejection::Method`] if paths do but no method.
    pub(crate) fn find(
        &self,
        host: &str,
        path: &str,
        method: &Method,
        fields: Fields<'_>,
    ) -> Result<&Arc<R>, Rejection> {
        let group = self.group(host, path).ok_or(Rejection::NoRoute)?;
        let candidates = || group.iter().map(|&index| &self.entries[index]);
        let fits = |entry: &&CompiledRoute<R>| {
            entry.match_headers.iter().all(|wanted| fields.have(wanted))
        };
        let named = || {
            let named = |entry: &&CompiledRoute<R>| entry.methods.contains(method) && fits(entry);
            candidates().find(named).filter(|_| *method == Method::HEAD)
        };
        named()
            .or_else(|| candidates().find(|entry| entry.takes(method) && fits(entry)))
            .map(|entry| &entry.route)
            .ok_or_else(|| {
                if candidates().any(|entry| entry.takes(method)) {
                    Rejection::NoRoute
                } else {
                    Rejection::Method { allow: allow(candidates()) }
                }
            })
    }

    /// The routes that a request may take of which only some `fields` are known, the most demanding first: it may
    /// or may not have those that `may_come`.
    pub(crate) fn possible(
        &self,
        host: &str,
        path: &str,
        method: &Method,
        fields: Fields<'_>,
        may_come: impl Fn(&HeaderName) -> bool,
    ) -> Vec<&Arc<R>> {
        let mut possible = Vec::new();
        for entry in self.candidates(host, path, method) {
            let mut wanted = entry.match_headers.iter();
            let known = |wanted: &HeaderMatch| !may_come(&wanted.name);
            if !entry.takes(method) || wanted.clone().any(|one| known(one) && !fields.have(one)) {
                continue;
            }
            possible.push(&entry.route);
            if wanted.all(known) {
                break;
            }
        }
        possible
    }

    /// Every host and path with the routes there, in the order in which a search looks at them.
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

    /// Makes rules for `host` of what a walk comes by.
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

    /// The routes that host and path lead to, in the order in which method and fields choose among them: HEAD goes
    /// where it is named, and else where GET does.
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

    /// Every entry, in no order.
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

/// The fields by which a request chooses its route: those that its service will see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a> {
    /// What has come, without what is taken away from strangers and from every hop.
    pub client: &'a HeaderMap,
    /// What the gateway says itself, in place of any of the same name.
    pub gateway: &'a HeaderMap,
}

impl Fields<'_> {
    fn have(&self, wanted: &HeaderMatch) -> bool {
        let own = self.gateway.contains_key(&wanted.name);
        has(if own { self.gateway } else { self.client }, wanted)
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
    /// What the operator's `route` matches, leading to `leads_to`.
    pub(crate) fn of(route: &config::Route, leads_to: Arc<R>) -> Self {
        Self {
            hosts: route.hosts.clone(),
            paths: route.paths.clone(),
            methods: route.methods.clone(),
            match_headers: route.match_headers.clone(),
            comes_first: false,
            route: leads_to,
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

    /// Leaves those that come first alone where they are.
    fn settle(&mut self, comes_first: &impl Fn(&usize) -> bool) {
        if self.here.iter().any(comes_first) {
            self.here.retain(comes_first);
        }
        self.literals.values_mut().for_each(|node| node.settle(comes_first));
        if let Some(node) = &mut self.parameter {
            node.settle(comes_first);
        }
    }

    /// Shows every route below to `see`, in the order of a search: with the steps to it, `None` for
    /// any segment, and whether it takes everything from there on.
    fn walk<'n>(
        &'n self,
        steps: &mut Vec<Option<&'n str>>,
        see: &mut impl FnMut(&[Option<&str>], bool, usize),
    ) {
        self.here.iter().for_each(|&index| see(steps, false, index));
        let mut literals: Vec<_> = self.literals.iter().collect();
        literals.sort_unstable_by_key(|(segment, _)| *segment);
        let literals = literals.into_iter().map(|(segment, node)| (Some(&**segment), node));
        let parameter = self.parameter.as_deref().map(|node| (None, node));
        for (step, node) in literals.chain(parameter) {
            steps.push(step);
            node.walk(steps, see);
            steps.pop();
        }
        self.rest.iter().for_each(|&index| see(steps, true, index));
    }

    /// The routes for what is left of a path: its segments without the slash before them, `None` at the end.
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

/// Whether `steps`, with `None` for any segment, are those of `path`.
fn fits(path: &PathPattern, steps: &[Option<&str>]) -> bool {
    path.segments.len() == steps.len()
        && path.segments.iter().zip(steps).all(|(segment, step)| match (segment, step) {
            (Segment::Literal(text), Some(step)) => **text == **step,
            (Segment::Parameter(_), None) => true,
            _ => false,
        })
}

/// Whether a field is there and says what is wanted. If it is there more than once each must: a service may look at
/// another one than the gateway has (CVE-2020-25017).
fn has(headers: &HeaderMap, wanted: &HeaderMatch) -> bool {
    headers.contains_key(&wanted.name)
        && headers.get_all(&wanted.name).iter().all(|value| wanted.value.fits(value))
}

/// The methods a path takes, as `Allow` lists them (RFC 9110 §10.2.1).
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
    use super::*;
    use crate::config::route::ValueMatch;

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
    fn a_dead_end_leads_back() {
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
    fn a_host_of_its_own_comes_first() {
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
    fn a_method_nobody_takes_is_405_and_never_a_less_specific_path() {
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
    fn head_goes_where_it_is_named_and_else_where_get_goes() {
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
    fn an_entry_that_comes_first_is_alone_at_its_host_and_path() {
        let entry = |id: &str, methods: Vec<Method>, comes_first| CompiledRoute {
            hosts: vec![HostPattern::Exact("a".into())],
            paths: vec![pattern("/login")],
            methods,
            match_headers: vec![],
            comes_first,
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

    /// CVE-2020-25017, CVE-2026-26308
    #[test]
    fn a_field_that_says_two_things_chooses_no_route() {
        let wanted = HeaderMatch {
            name: http::HeaderName::from_static("x-tenant"),
            value: ValueMatch::Exact(HeaderValue::from_static("a")),
        };
        for (values, fits) in [
            (&["a"][..], true),
            (&["a", "a"], true),
            (&["a", "b"], false),
            (&["b", "a"], false),
            (&["a, b"], false),
            (&[], false),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("x-tenant", HeaderValue::from_static(value));
            }
            assert_eq!(has(&headers, &wanted), fits, "{values:?}");
        }
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
            comes_first: false,
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
