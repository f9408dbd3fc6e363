//! Routes in words: the order in which they match, and how one of them processes a request.
//!
//! This file only describes routes; matching is in `gateway`.

use core::cmp::Reverse;
use core::fmt::Write as _;
use std::sync::Arc;

use super::auth::{Auth, AuthMethod, Credential, Expected, TokenBinding};
use super::de::units::format_duration;
use super::redact;
use super::route::{Action, HostPattern, PathPattern, Rewrite, Route, Segment, ValueMatch};
use super::{Config, Issuer};
use crate::limit::{KeyPart, Kind, ResponseCost, Settings as Limit};
use crate::token::Audience;

impl Config {
    /// Returns a table of every host and path in matching order, the most specific first.
    pub fn match_order(&self) -> String {
        let mut rows: Vec<_> = self.routes.iter().flat_map(spots).collect();
        rows.sort_by_cached_key(Spot::rank);
        let heads =
            ["HOST", "PATH", "METHODS", "ROUTE", "WHO", "LIMITS", "LEADS TO"].map(str::to_owned);
        let cells = rows.iter().map(|spot| {
            let Route { id, auth, limits, action, enabled, .. } = spot.route;
            [
                spot.host.map_or_else(|| "any".to_owned(), ToString::to_string),
                spot.path.to_string() + &fields(spot.route),
                methods(spot.route),
                id.to_string(),
                who(auth),
                if limits.is_empty() { "-".to_owned() } else { limits.join(" ") },
                if *enabled { leads_to(action) } else { "404 (not enabled)".to_owned() },
            ]
        });
        table(core::iter::once(heads).chain(cells).collect())
    }

    /// Describes the processing of a request on `route`, step by step, in order.
    pub fn explain(&self, route: &Route) -> String {
        let mut text = String::new();
        let mut say = |step: &str, words: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{step:<15} {words}");
        };
        let paths: Vec<_> = route.paths.iter().map(ToString::to_string).collect();
        let hosts: Vec<_> = route.hosts.iter().map(ToString::to_string).collect();
        let host =
            if hosts.is_empty() { String::new() } else { format!(" on {}", hosts.join(", ")) };
        say(
            "route",
            &format!(
                "{}: {} {}{host}{}",
                route.id,
                methods(route),
                paths.join(", "),
                fields(route)
            ),
        );
        if !route.enabled {
            say("answer", "404: the route is not enabled");
            return text;
        }
        let limits = || route.limits.iter().filter_map(|name| self.limits.get(name));
        for limit in limits().filter(|limit| limit.runs_before_authentication()) {
            say("limit", &format!("{}, before authentication", limit_in_words(limit)));
        }
        match &route.auth {
            Auth::None => say("caller", "any client"),
            Auth::Ways { ways, optional } => {
                for way in ways {
                    say("caller", &self.credential(way));
                    for rule in rules(way) {
                        say("", &rule);
                    }
                }
                if *optional {
                    say("", "or anonymous, without credentials");
                }
            }
        }
        for limit in limits().filter(|limit| !limit.runs_before_authentication()) {
            say("limit", &limit_in_words(limit));
        }
        self.action(route, &mut say);
        text
    }

    fn credential(&self, way: &AuthMethod) -> String {
        let at = |names: &[Arc<str>]| {
            let issuers = names.iter().map(|name| match self.issuers.get(name) {
                Some(Issuer { settings, rules }) => {
                    let audience = match &rules.audience {
                        Audience::OneOf(audiences) => format!(", for {}", audiences.join(" or ")),
                        Audience::Any => String::new(),
                    };
                    format!("{name} ({}{audience})", settings.issuer)
                }
                None => name.to_string(),
            });
            issuers.collect::<Vec<_>>().join(" or ")
        };
        match &way.credential {
            Credential::Jwt(names) => format!("a signed Bearer token of {}", at(names)),
            Credential::Introspection(names) => {
                format!("a Bearer token introspected at {}", at(names))
            }
            Credential::Bearer(names) => {
                format!("a Bearer token, signed by or known to {}", at(names))
            }
            Credential::Basic(name) => {
                format!("HTTP Basic credentials, exchanged at {}", at(core::slice::from_ref(name)))
            }
            Credential::Session(name) => format!("the cookies of session {name}"),
        }
    }

    fn action(&self, route: &Route, say: &mut impl FnMut(&str, &str)) {
        match &route.action {
            Action::Respond { status, .. } => say("answer", &format!("{status}, by the gateway")),
            Action::Redirect { to, status } => {
                say(
                    "answer",
                    &format!(
                        "{status}, to {}",
                        redact::shown("to", to.to_str().unwrap_or_default())
                    ),
                );
            }
            Action::Upstream(name) => {
                match &route.rewrite {
                    Rewrite::Keep => {}
                    Rewrite::Prefix { strip, add } => {
                        say(
                            "path",
                            &format!("without {}, with {} before it", nothing(strip), nothing(add)),
                        );
                    }
                    Rewrite::Path(_) => say("path", "is rewritten"),
                }
                let Some(upstream) = self.upstreams.get(name) else { return };
                let targets: Vec<_> =
                    upstream.targets.iter().map(|target| target.address.to_string()).collect();
                let timeout = format_duration(route.timeout.unwrap_or(upstream.timeout));
                say("service", &format!("{name} at {}", targets.join(", ")));
                say("", &format!("with {timeout} until the response head"));
            }
        }
    }
}

/// One host and path of a route.
struct Spot<'c> {
    route: &'c Route,
    host: Option<&'c HostPattern>,
    path: &'c PathPattern,
}

fn spots(route: &Route) -> Vec<Spot<'_>> {
    let hosts: Vec<_> = match route.hosts.as_slice() {
        [] => vec![None],
        hosts => hosts.iter().map(Some).collect(),
    };
    let at_host = |host| route.paths.iter().map(move |path| Spot { route, host, path });
    hosts.into_iter().flat_map(at_host).collect()
}

impl Spot<'_> {
    /// Sorts the most specific first; ties by text.
    fn rank(&self) -> impl Ord + use<> {
        let host = match self.host {
            Some(HostPattern::Exact(host)) => (0, host.to_string()),
            Some(HostPattern::Wildcard(domain)) => (1, domain.to_string()),
            None => (2, String::new()),
        };
        let steps = self.path.segments.iter().map(|segment| match segment {
            Segment::Literal(text) => (0, text.to_string()),
            Segment::Parameter(_) => (1, String::new()),
        });
        let end = self.path.rest.then(|| (2, String::new()));
        let steps: Vec<_> = steps.chain(end).collect();
        (host, steps, self.route.methods.is_empty(), Reverse(self.route.match_headers.len()))
    }
}

fn fields(route: &Route) -> String {
    let fields = route.match_headers.iter().map(|wanted| match &wanted.value {
        ValueMatch::Exact(_) => format!(" {}: {}", wanted.name, wanted.shown()),
        ValueMatch::Regex(_) => format!(" {}: …", wanted.name),
    });
    fields.collect()
}

fn methods(route: &Route) -> String {
    let names: Vec<_> = route.methods.iter().map(http::Method::as_str).collect();
    if names.is_empty() { "any".to_owned() } else { names.join(",") }
}

fn who(auth: &Auth) -> String {
    let Auth::Ways { ways, optional } = auth else { return "any client".to_owned() };
    let ways = ways.iter().map(|way| {
        let credential = match &way.credential {
            Credential::Jwt(names) => format!("jwt {}", names.join("|")),
            Credential::Introspection(names) => format!("introspection {}", names.join("|")),
            Credential::Bearer(names) => format!("bearer {}", names.join("|")),
            Credential::Basic(name) => format!("basic {name}"),
            Credential::Session(name) => format!("session {name}"),
        };
        let scopes =
            if way.scopes.is_empty() { String::new() } else { format!(" ({})", way.scopes) };
        credential + &scopes
    });
    let ways = ways.collect::<Vec<_>>().join(" or ");
    if *optional { ways + " or anonymous" } else { ways }
}

fn leads_to(action: &Action) -> String {
    match action {
        Action::Upstream(name) => name.to_string(),
        Action::Respond { status, .. } => status.as_str().to_owned(),
        Action::Redirect { to, status } => {
            format!("{} {}", status.as_str(), to.to_str().unwrap_or_default())
        }
    }
}

/// Returns the requirements for a valid token.
fn rules(way: &AuthMethod) -> Vec<String> {
    let mut rules = Vec::new();
    if !way.scopes.is_empty() {
        rules.push(format!("with the scopes {}", way.scopes));
    }
    if !way.any_scope.is_empty() {
        rules.push(format!("with one of the scopes {}", way.any_scope));
    }
    if !way.audience.is_empty() {
        rules.push(format!("made for {}", way.audience.join(" or ")));
    }
    for claim in &way.claims {
        rules.push(match &claim.expected {
            Expected::OneOf(values) => {
                let values: Vec<_> = values.iter().map(ToString::to_string).collect();
                format!("whose claim {} is {}", claim.path, values.join(" or "))
            }
            Expected::Contains(value) => format!("whose claim {} contains {value}", claim.path),
        });
    }
    match way.bound_to {
        Some(TokenBinding::Key) => rules.push("bound to a key that a DPoP proof shows".to_owned()),
        Some(TokenBinding::Certificate) => {
            rules.push("bound to the certificate that the client shows".to_owned());
        }
        None => {}
    }
    if !way.clients.is_empty() {
        rules.push(format!("of the client {}", way.clients.join(" or ")));
    }
    if let Some(age) = way.max_staleness {
        rules.push(match format_duration(age).as_str() {
            "0s" => "introspected every time".to_owned(),
            age => format!("introspected within {age}"),
        });
    }
    rules
}

fn limit_in_words(limit: &Limit) -> String {
    let by: Vec<_> = limit.by.iter().map(key_part).collect();
    let how_much = match &limit.plans {
        None => amount_in_words(&limit.kind),
        Some(plans) => {
            let each = plans.values.iter();
            let each = each.map(|plan| format!("{} {}", plan.name, amount_in_words(&plan.kind)));
            let default = match plans.has_default {
                true => format!("else {}", amount_in_words(&limit.kind)),
                false => "else 403".to_owned(),
            };
            let claim = plans
                .claim
                .as_ref()
                .map_or_else(|| "client".to_owned(), |claim| format!("claim {claim}"));
            let each: Vec<_> = each.chain([default]).collect();
            format!("by the plan of the {claim}: {}", each.join("; "))
        }
    };
    let cost = match &limit.response_cost {
        None => String::new(),
        Some(ResponseCost::Header(name)) => format!(", at the cost in {name} of the response"),
        Some(ResponseCost::Json { pointer, .. }) => {
            format!(", at the cost at {pointer} in the response")
        }
    };
    let dry_run = if limit.dry_run { ", refusing nothing (dry run)" } else { "" };
    format!("{}: {how_much}, by {}{cost}{dry_run}", limit.name, by.join(" and "))
}

fn amount_in_words(kind: &Kind) -> String {
    match kind {
        Kind::Rate(spike) => {
            let rate = spike.rate();
            format!("{} a {}, {} at once", rate.count(), unit(rate.unit()), spike.burst())
        }
        Kind::Quota(quota) => {
            format!("{} a {}, counted", quota.rate().count(), unit(quota.rate().unit()))
        }
        Kind::Concurrency(most) => format!("{most} at once"),
    }
}

pub(super) fn key_part(part: &KeyPart) -> String {
    match part {
        KeyPart::Ip => "ip".to_owned(),
        KeyPart::Client => "client".to_owned(),
        KeyPart::Subject => "subject".to_owned(),
        KeyPart::Session => "session".to_owned(),
        KeyPart::Route => "route".to_owned(),
        KeyPart::Global => "global".to_owned(),
        KeyPart::Header(name) => format!("header:{name}"),
        KeyPart::Claim(path) => format!("claim:{path}"),
    }
}

pub(super) const fn unit(unit: crate::limit::Unit) -> &'static str {
    use crate::limit::Unit;
    match unit {
        Unit::Second => "second",
        Unit::Minute => "minute",
        Unit::Hour => "hour",
        Unit::Day => "day",
        Unit::Week => "week",
        Unit::Month => "month",
    }
}

fn nothing(text: &str) -> &str {
    if text.is_empty() { "nothing" } else { text }
}

/// Aligns rows in columns, without trailing spaces.
fn table<const N: usize>(rows: Vec<[String; N]>) -> String {
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = core::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}
