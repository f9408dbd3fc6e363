//! Refuses two routes that match the same requests equally well (C112).
//!
//! Host, then path, then methods, then the number of `match_headers` decide
//! between routes. Where all four are equal and one request could match both,
//! the choice would be arbitrary, and must not depend on the order in the file.

use std::collections::HashMap;

use super::Check;
use crate::config::de::field::Spanned;
use crate::config::fault::Code;
use crate::config::file::routes as file;
use crate::config::route::{HostPattern, PathPattern, Route, Segment, ValueMatch};

/// The position of a route among all hosts and paths. Parameters compare equal, whatever their names.
pub(super) type MatchSpace<'r> = (Option<&'r HostPattern>, Vec<Option<&'r str>>, bool);

impl Check<'_> {
    pub(super) fn ambiguous(&mut self, routes: &[(Route, &Spanned<file::Route>)]) {
        let mut taken: HashMap<MatchSpace<'_>, Vec<usize>> = HashMap::new();
        for (index, (route, keys)) in routes.iter().enumerate() {
            let any = [None];
            let hosts: Vec<_> = route.hosts.iter().map(Some).collect();
            let mut reported: Vec<usize> = Vec::new();
            for host in if hosts.is_empty() { &any[..] } else { &hosts } {
                for path in &route.paths {
                    let others = taken.entry(spot(*host, path)).or_default();
                    for other in others.iter().copied() {
                        if other != index
                            && !reported.contains(&other)
                            && tie(route, &routes[other].0)
                        {
                            reported.push(other);
                            self.tied(keys, path, routes[other].1);
                        }
                    }
                    others.push(index);
                }
            }
        }
    }

    fn tied(
        &mut self,
        keys: &Spanned<file::Route>,
        path: &PathPattern,
        other: &Spanned<file::Route>,
    ) {
        let paths = keys.path.get().into_iter().flat_map(|paths| &paths.items);
        let position =
            paths.filter(|at| at.value.0 == *path).map(|at| at.at).next().unwrap_or(keys.at);
        let name = |keys: &file::Route| keys.id.get().map(Spanned::shown).unwrap_or_default();
        let message = format!("routes {} and {} match the same requests", name(other), name(keys));
        let help = "give one of them other `methods`, a `host`, or one more of `match_headers`";
        self.fault(Code::C112, position, message, help);
    }
}

pub(super) fn spot<'r>(host: Option<&'r HostPattern>, path: &'r PathPattern) -> MatchSpace<'r> {
    let segments = path.segments.iter().map(|segment| match segment {
        Segment::Literal(text) => Some(&**text),
        Segment::Parameter(_) => None,
    });
    (host, segments.collect(), path.rest)
}

/// Whether one request could match both routes with neither being more specific.
fn tie(a: &Route, b: &Route) -> bool {
    let methods = match (a.methods.as_slice(), b.methods.as_slice()) {
        ([], []) => true,
        ([], _) | (_, []) => false,
        (a, b) => a.iter().any(|method| b.contains(method)),
    };
    methods && a.match_headers.len() == b.match_headers.len() && !are_distinguishable(a, b)
}

/// Whether some header field must have different values for the two routes.
fn are_distinguishable(a: &Route, b: &Route) -> bool {
    a.match_headers.iter().any(|wanted| {
        b.match_headers.iter().any(|other| {
            wanted.name == other.name
                && matches!((&wanted.value, &other.value), (ValueMatch::Exact(a), ValueMatch::Exact(b)) if a != b)
        })
    })
}
