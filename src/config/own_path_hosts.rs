//! The hosts on which a session's own paths take precedence over routes.

use super::route::{HostPattern, Route};
use crate::session::Settings;

/// Returns the hosts on which `session` is used: that of its `public_url`, and those of each of the `routes` that
/// accepts it, since a browser is redirected to the login of its current host. `None` is any host, also for a session
/// that no route accepts.
pub fn hosts(session: &Settings, routes: &[Route]) -> Vec<Option<HostPattern>> {
    let mut hosts = vec![HostPattern::of_url(&session.public_url)];
    let mut used = routes.iter().filter(|route| takes(route, session)).peekable();
    if used.peek().is_none() {
        hosts.push(None);
    }
    for route in used {
        if route.hosts.is_empty() {
            hosts.push(None);
        }
        hosts.extend(route.hosts.iter().cloned().map(Some));
    }
    hosts
}

/// Whether the two lists have a host in common; `None` is any host.
pub fn overlap(one: &[Option<HostPattern>], other: &[Option<HostPattern>]) -> bool {
    one.iter().any(|one| {
        other.iter().any(|other| match (one, other) {
            (Some(one), Some(other)) => one.overlaps(other),
            _ => true,
        })
    })
}

/// Whether `route` accepts `session`.
pub fn takes(route: &Route, session: &Settings) -> bool {
    let mut methods = route.auth.methods().iter();
    methods.any(|auth_method| auth_method.credential.session() == Some(&session.name))
}
