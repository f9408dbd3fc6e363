//! Warns of configuration that no request ever reaches (C110): routes shadowed by others, limits that count
//! nothing, names that are never used.
//!
//! Runs only on a file without errors: while a name or a route is invalid, its usage is unknown.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use http::Method;

use super::Check;
use super::route_conflicts::{MatchSpace, spot};
use crate::config::Issuer;
use crate::config::de::field::{Field, Map, Spanned};
use crate::config::de::units::listed;
use crate::config::fault::Code;
use crate::config::file::File;
use crate::config::route::{Action, Route};
use crate::config::server::Listener;
use crate::session;

impl Check<'_> {
    /// Warns of everything that is never used.
    pub(super) fn unused(
        &mut self,
        file: &File,
        listeners: &[Listener],
        routes: &[Route],
        sessions: &BTreeMap<Arc<str>, session::Settings>,
        issuers: &BTreeMap<Arc<str>, Issuer>,
    ) {
        if self.faults.iter().any(|fault| !fault.code.is_warning()) {
            return;
        }
        if let Some(listen) = file.listen.get()
            && !listeners.is_empty()
            && listeners.iter().all(|listener| listener.redirect_https.is_some())
        {
            let message = "every listener redirects to https: no request reaches a route";
            self.fault(Code::C110, listen.at, message, "add a listener with `tls`");
        }
        self.unreachable(file, routes);
        // A session's own paths take limits too, of any method.
        let own: HashSet<&str> = sessions
            .values()
            .flat_map(|session| session.limits.iter().map(|name| &**name))
            .collect();
        self.counting_nothing(file, routes, &own);
        let mut used = Used::by(file, routes);
        used.limits.extend(own);
        self.unnamed(&file.issuers, &used.issuers, "issuer", "no route and no session names it");
        self.unnamed(&file.sessions, &used.sessions, "session", "no route takes its cookies");
        self.unnamed(&file.upstreams, &used.upstreams, "upstream", "no route leads to it");
        self.unnamed(&file.limits, &used.limits, "limit", "nothing is counted by it");
        self.unnamed(&file.policies, &used.policies, "policy", "no route names it");
        self.unused_issuers(file, issuers, routes);
    }

    fn unnamed<T>(&mut self, section: &Field<Map<T>>, used: &HashSet<&str>, what: &str, why: &str) {
        for (name, _) in section.get().into_iter().flat_map(|map| map.value.iter()) {
            if !used.contains(name.value.as_str()) {
                let message = format!("{what} {} is never used: {why}", name.shown());
                self.fault(Code::C110, name.at, message, "refer to it, or remove it");
            }
        }
    }

    /// Warns of routes whose every request matches a more specific route.
    fn unreachable(&mut self, file: &File, routes: &[Route]) {
        let mut at: HashMap<MatchSpace<'_>, Vec<&Route>> = HashMap::new();
        for route in routes {
            for spot in spots(route) {
                at.entry(spot).or_default().push(route);
            }
        }
        let written = file.routes.get().into_iter().flat_map(|list| &list.value.items);
        for (route, keys) in routes.iter().zip(written) {
            let (position, name) =
                keys.id.get().map_or((keys.at, String::new()), |id| (id.at, id.shown()));
            if spots(route).all(|spot| is_covered(&at, &spot)) {
                let message = format!(
                    "route {name} is never reached: more specific paths take every request"
                );
                let help = "remove it, or one of the routes before it (`northgate routes` shows the order)";
                self.fault(Code::C110, position, message, help);
            } else if route.methods.is_empty()
                && spots(route).all(|spot| takes_every_method(&at[&spot], route))
            {
                let message =
                    format!("route {name} is never reached: others take every known method");
                self.fault(Code::C110, position, message, "remove it, or a method from the others");
            }
        }
    }

    /// Warns of limits whose `methods` are taken by no route that names them.
    fn counting_nothing(&mut self, file: &File, routes: &[Route], own: &HashSet<&str>) {
        for (name, keys) in file.limits.get().into_iter().flat_map(|map| map.value.iter()) {
            let Some(methods) = keys.methods.get().filter(|_| !own.contains(name.value.as_str()))
            else {
                continue;
            };
            let counted: Vec<&Method> = methods.items.iter().map(|at| &at.value.0).collect();
            let mut by = routes.iter().filter(|route| names(route, &name.value)).peekable();
            if by.peek().is_some() && by.all(|route| !may_count(&counted, route)) {
                let message = format!(
                    "limit {} never counts: no route with it takes {}",
                    name.shown(),
                    listed(counted.iter().map(|method| method.as_str()))
                );
                let help = "write methods that the routes take, or remove `methods`";
                self.fault(Code::C110, methods.key_at, message, help);
            }
        }
    }

    /// Refuses a limit that a route names itself and that counts none of its methods, since the route would look protected.
    pub(super) fn limit_counts(&mut self, file: &File, name: &Spanned<String>, methods: &[Method]) {
        let limits = file.limits.get();
        let keys = limits.and_then(|map| map.iter().find(|(key, _)| key.value == name.value));
        let Some(counted) = keys.and_then(|(_, keys)| keys.methods.get()) else { return };
        let counted: Vec<&Method> = counted.items.iter().map(|at| &at.value.0).collect();
        if !counted.is_empty() && !methods.is_empty() && !overlap(&counted, methods) {
            let message = format!(
                "limit {} counts {} only, which this route does not take",
                name.shown(),
                listed(counted.iter().map(|method| method.as_str())).replace(" or ", " and ")
            );
            let help = "name another limit, or write the route's methods into this one";
            self.fault(Code::C106, name.at, message, help);
        }
    }
}

/// The names that the configuration refers to.
struct Used<'f> {
    issuers: HashSet<&'f str>,
    sessions: HashSet<&'f str>,
    upstreams: HashSet<&'f str>,
    limits: HashSet<&'f str>,
    policies: HashSet<&'f str>,
}

impl<'f> Used<'f> {
    fn by(file: &'f File, routes: &'f [Route]) -> Self {
        let (mut issuers, mut sessions) = (HashSet::new(), HashSet::new());
        for auth_method in routes.iter().flat_map(|route| route.auth.methods()) {
            issuers.extend(auth_method.credential.issuers().iter().map(|name| &**name));
            sessions.extend(auth_method.credential.session().map(|name| &**name));
        }
        let written = file.sessions.get().into_iter().flat_map(|map| map.value.iter());
        issuers
            .extend(written.filter_map(|(_, keys)| keys.issuer.get()).map(|at| at.value.as_str()));
        let upstreams = routes.iter().flat_map(upstreams);
        let limits = routes.iter().flat_map(|route| route.limits.iter().map(|name| &**name));
        let defaults = file.defaults.get().and_then(|defaults| defaults.policies.get());
        let policies = file.routes.get().into_iter().flat_map(|list| &list.value.items);
        let policies = policies
            .filter_map(
                |keys| if keys.policies.is_absent() { defaults } else { keys.policies.get() },
            )
            .flat_map(|list| list.items.iter().map(|at| at.value.as_str()));
        Self {
            issuers,
            sessions,
            upstreams: upstreams.collect(),
            limits: limits.collect(),
            policies: policies.collect(),
        }
    }
}

/// Returns the names of all upstreams that requests of a route, or copies of them, may reach.
fn upstreams(route: &Route) -> impl Iterator<Item = &str> {
    let own = match &route.action {
        Action::Upstream(name) => Some(name),
        Action::Respond(_) | Action::Redirect { .. } => None,
    };
    let fallback = route.fallback.as_ref().and_then(|fallback| fallback.upstream.as_ref());
    let mirror = route.mirror.as_ref().map(|mirror| &mirror.upstream);
    let split = route.split.iter().flat_map(|split| split.shares.iter().map(|(name, _)| name));
    [own, fallback, mirror].into_iter().flatten().chain(split).map(|name| &**name)
}

fn names(route: &Route, limit: &str) -> bool {
    route.limits.iter().any(|name: &Arc<str>| **name == *limit)
}

fn spots(route: &Route) -> impl Iterator<Item = MatchSpace<'_>> {
    let hosts = route.hosts.iter().map(Some);
    let any = route.hosts.is_empty().then_some(None);
    hosts.chain(any).flat_map(|host| route.paths.iter().map(move |path| spot(host, path)))
}

/// Whether every path that matches this pattern matches a more specific one of the same host.
fn is_covered(
    at: &HashMap<MatchSpace<'_>, Vec<&Route>>,
    (host, segments, rest): &MatchSpace<'_>,
) -> bool {
    if !rest {
        return false;
    }
    let with = |more: &[Option<&'static str>], rest: bool| {
        let segments: Vec<Option<&str>> = segments.iter().chain(more).copied().collect();
        let spot: MatchSpace<'_> = (*host, segments, rest);
        at.contains_key(&spot)
    };
    // `/a/**` is `/a`, `/a/` and `/a/{x}/**`; `/**` is `/` and `/{x}/**`.
    let itself = segments.is_empty() || with(&[], false);
    itself && with(&[Some("")], false) && with(&[None], true)
}

/// Whether other routes of the same host and path take every known method of the requests that `route` matches.
fn takes_every_method(here: &[&Route], route: &Route) -> bool {
    let before = |method: &Method| {
        here.iter().any(|other| {
            other.methods.contains(method)
                && other
                    .match_headers
                    .iter()
                    .all(|wanted| route.match_headers.iter().any(|own| own.is_the_same_as(wanted)))
        })
    };
    FORWARDED_METHODS.iter().all(before) && (before(&Method::HEAD) || before(&Method::GET))
}

fn may_count(counted: &[&Method], route: &Route) -> bool {
    route.methods.is_empty() || overlap(counted, &route.methods)
}

/// HEAD counts as GET, on either side.
fn overlap(counted: &[&Method], methods: &[Method]) -> bool {
    let as_get = |method: &Method| matches!(*method, Method::GET | Method::HEAD);
    counted.iter().any(|counted| {
        methods.iter().any(|method| method == *counted || as_get(method) && as_get(counted))
    })
}

/// The methods of RFC 9110 and RFC 5789 that are forwarded, but HEAD, which goes with GET.
const FORWARDED_METHODS: [Method; 6] =
    [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS, Method::PATCH];
