//! Warns of values without effect (C110): claims on routes without authentication, response costs on limits without an
//! upstream, field values that no request can have, port 0.

use core::net::IpAddr;
use std::sync::Arc;

use super::Check;
use super::ineffective_settings::{address_of, entries};
use crate::config::auth::Auth;
use crate::config::de::field::{Field, Spanned};
use crate::config::fault::Code;
use crate::config::file::limits::Limit;
use crate::config::file::upstreams::Upstream;
use crate::config::file::value::KeywordOr;
use crate::config::file::{File, routes as file};
use crate::config::route::{Action, Route, TemplatePart};
use crate::upstream::{HashBy, Location};

impl Check<'_> {
    /// Warns of values that cannot have an effect where they are.
    pub(super) fn ineffective_values(&mut self, file: &File, routes: &[Route]) {
        if let Some(at) = file.defaults.get().and_then(|keys| keys.inherit_limits.get()) {
            let message = "`inherit_limits` has no effect in `defaults`: there is nothing below";
            self.fault(Code::C110, at.key_at, message, "write it in a policy or a route");
        }
        for keys in file.routes.get().into_iter().flat_map(|list| &list.value.items) {
            self.padded_values(keys);
            let has_id = |route: &&Route| keys.id.get().is_some_and(|id| *id.value == *route.id);
            if let Some(route) = routes.iter().find(has_id)
                && matches!(route.auth, Auth::None)
            {
                self.claims_of_no_caller(keys);
            }
        }
        // A route that is invalid may be the one that gives a value its effect.
        let is_whole = !self.faults.iter().any(|fault| !fault.code.is_warning());
        for (name, keys) in entries(&file.upstreams) {
            self.unreachable_targets(keys);
            if is_whole {
                self.hash_of_no_claim(name, keys, routes);
            }
        }
        for (name, keys) in entries(&file.limits).filter(|_| is_whole) {
            self.cost_without_upstream(name, keys, routes);
        }
    }

    /// Warns of values with spaces around them: those of requests have none (RFC 9110 §5.5).
    fn padded_values(&mut self, keys: &file::Route) {
        for (_, value) in entries(&keys.match_headers) {
            if let KeywordOr::Scalar(exact) = &value.value
                && exact.0.as_bytes() != exact.0.as_bytes().trim_ascii()
            {
                let message =
                    "no request ever has spaces around this value: they are not part of it";
                self.fault(Code::C110, value.at, message, "remove the spaces");
            }
        }
    }

    /// Warns of claims on a route that authenticates no caller.
    fn claims_of_no_caller(&mut self, keys: &file::Route) {
        let why = "this route authenticates no caller: there is no claim";
        let help = "list the tokens that the route takes in `auth`, or remove it";
        if let Some(by) = keys.split_by.get().filter(|by| is_claim(&by.value.0)) {
            self.fault(Code::C110, by.at, why, help);
        }
        let Some(headers) = keys.headers.get() else { return };
        let edits = [&headers.request, &headers.response];
        for edits in edits.into_iter().filter_map(Field::get) {
            for (_, template) in entries(&edits.set).chain(entries(&edits.add)) {
                let parts = &template.value.0.0;
                if parts.iter().any(|part| matches!(part, TemplatePart::Claim(_))) {
                    self.fault(Code::C110, template.at, why, help);
                }
            }
        }
    }

    /// Warns of targets and name servers that cannot be used.
    fn unreachable_targets(&mut self, keys: &Upstream) {
        let Some(targets) = keys.targets.get().filter(|targets| !targets.incomplete) else {
            return;
        };
        let mut needs_dns = false;
        for target in &targets.items {
            let Some(address) = address_of(&target.value) else { return };
            needs_dns |= match &address.location {
                Location::Host { host, .. } => host.parse::<IpAddr>().is_err(),
                Location::Unix(_) => false,
                Location::Srv(_) => true,
            };
            if matches!(address.location, Location::Host { port: 0, .. }) {
                let help = "write the port that the upstream listens on";
                self.fault(Code::C110, target.at, "no upstream listens on port 0", help);
            }
        }
        let given = [
            (keys.dns_servers.get().map(|at| at.key_at), "dns_servers"),
            (keys.dns_refresh.get().map(|at| at.key_at), "dns_refresh"),
        ];
        for (at, key) in given.into_iter().filter(|_| !needs_dns) {
            if let Some(at) = at {
                let message = format!("`{key}` has no effect here: every target is an address");
                self.fault(Code::C110, at, message, "remove it");
            }
        }
    }

    /// Warns of a hash by a claim where no route to the upstream authenticates a caller.
    fn hash_of_no_claim(&mut self, name: &Spanned<String>, keys: &Upstream, routes: &[Route]) {
        let Some(by) = keys.hash_by.get().filter(|by| is_claim(&by.value.0)) else { return };
        let mut leading = routes.iter().filter(|route| leads_to(route, &name.value)).peekable();
        if leading.peek().is_some() && leading.all(|route| matches!(route.auth, Auth::None)) {
            let message = "no route to this upstream authenticates a caller: there is no claim";
            self.fault(Code::C110, by.at, message, "hash by another value, such as ip");
        }
    }

    /// Warns of a cost in the content of responses where no route with the limit has an upstream.
    fn cost_without_upstream(&mut self, name: &Spanned<String>, keys: &Limit, routes: &[Route]) {
        let Some(KeywordOr::Mapping(cost)) = keys.cost.get().map(|cost| &cost.value) else {
            return;
        };
        let Some(at) = cost.response_json.get() else { return };
        let counts = |route: &&Route| route.limits.iter().any(|limit| **limit == *name.value);
        let mut counted = routes.iter().filter(counts).peekable();
        if counted.peek().is_some()
            && !counted.any(|route| matches!(route.action, Action::Upstream(_)))
        {
            let message = "`response_json` has no effect: no route with the limit has an upstream";
            self.fault(Code::C110, at.key_at, message, "write a fixed cost");
        }
    }
}

/// Whether requests of `route` may reach the upstream `name`.
fn leads_to(route: &Route, name: &str) -> bool {
    let is_it = |upstream: &Arc<str>| **upstream == *name;
    let split = route.split.iter().flat_map(|split| split.shares.iter().map(|(name, _)| name));
    let mirror = route.mirror.iter().map(|mirror| &mirror.upstream);
    let fallback = route.fallback.iter().filter_map(|fallback| fallback.upstream.as_ref());
    matches!(&route.action, Action::Upstream(upstream) if is_it(upstream))
        || split.chain(mirror).chain(fallback).any(is_it)
}

const fn is_claim(by: &HashBy) -> bool {
    matches!(by, HashBy::Claim(_))
}
