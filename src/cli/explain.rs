//! `northgate explain`: which route a request takes, why, and how it is processed.

use std::path::Path;
use std::process::ExitCode;

use http::header::HOST;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request};

use super::exit::{EX_USAGE, exit_with};
use super::load::read;
use super::output::print;
use super::routes::destination_text;
use super::token::TokenCheck;
use super::{display, upstream_states};
use crate::base::raw_target;
use crate::base::secret::Secret;
use crate::config::{Action, Auth, Config, Route, format_duration};
use crate::gateway::Rejection;
use crate::gateway::view::explain::{
    Candidate, ExplainedDestination, RouteDecision, RouteExplainer,
};
use crate::limit;

/// The arguments of `northgate explain`: the request to explain.
#[derive(Debug, clap::Args)]
pub(super) struct ExplainArgs {
    /// Method of the request
    #[arg(default_value = "GET")]
    method: Method,
    /// URL with scheme and host; or a request target, with -H 'Host: host'
    url: String,
    /// Header field of the request, as curl takes it: `Name: value`
    #[arg(short = 'H', long = "header", value_name = "FIELD", value_parser = field)]
    fields: Vec<(HeaderName, HeaderValue)>,
    /// Access token of the request
    #[arg(long, value_name = "TOKEN")]
    token: Option<Secret<String>>,
}

/// Prints what a gateway with the configuration in `file` does with the request.
pub(super) fn explain(asked: ExplainArgs, file: &Path) -> ExitCode {
    let Some(head) = asked.head() else {
        let usage = "missing host: write a URL with scheme and host, or a request target with -H 'Host: host'";
        return exit_with(EX_USAGE, usage);
    };
    let config = match read(file) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let method = head.method.clone();
    let as_sent = raw_target::escaped(head.uri.path()).into_owned();
    let decision = RouteExplainer::of(&config).decide(head);
    print(why(&decision, &method, &as_sent));
    let Ok(destination) = &decision.outcome else { return ExitCode::SUCCESS };
    print(then(destination, &decision, &config));
    if let ExplainedDestination::Route(Route { action: Action::Upstream(name), .. }) = destination {
        let states = upstream_states::states_of(&config, name);
        if !states.is_empty() {
            print(format_args!("\nThe upstream {name}, as the running gateway sees it:\n"));
            let lines = states.into_iter().map(|[target, state]| [format!("  {target}"), state]);
            print(display::align(&lines.collect::<Vec<_>>()));
        }
    }
    if let (ExplainedDestination::Route(route), Some(token)) = (destination, &asked.token) {
        print("\nThe token:\n");
        match (TokenCheck { config: &config, token: token.expose() }).on(route) {
            Ok(text) => print(text),
            Err(code) => return code,
        }
    }
    ExitCode::SUCCESS
}

impl ExplainArgs {
    /// Returns the request's head; `None` if the URL is invalid.
    fn head(&self) -> Option<Parts> {
        let uri = raw_target::parse(self.url.clone().into()).ok()?;
        let mut head = Request::new(()).into_parts().0;
        match uri.authority() {
            // In origin form, as a client sends a request to an origin server (RFC 9112 §3.2.1).
            Some(host) if uri.scheme().is_some() || self.method == Method::CONNECT => {
                head.headers.insert(HOST, HeaderValue::from_str(host.as_str()).ok()?);
            }
            None if self.fields.iter().any(|(name, _)| name == HOST) => {}
            _ => return None,
        }
        head.method = self.method.clone();
        head.uri = uri;
        for (name, value) in &self.fields {
            head.headers.append(name, value.clone());
        }
        Some(head)
    }
}

fn field(text: &str) -> Result<(HeaderName, HeaderValue), &'static str> {
    let wrong = "write Name: value";
    let (name, value) = text.split_once(':').ok_or(wrong)?;
    let name = name.trim().parse().map_err(|_| wrong)?;
    Ok((name, value.trim().parse().map_err(|_| wrong)?))
}

/// Returns the comparisons of the routing decision, one per line, and its result.
fn why(decision: &RouteDecision<'_>, method: &Method, as_sent: &str) -> String {
    let mut rows = Vec::new();
    let mut row = |what: &str, is: &str, why: String| {
        rows.push([format!("  {what}"), is.to_owned(), why]);
    };
    let first = decision.candidates.first();
    let here = &decision.candidates;
    match &decision.host {
        None => row("host", "-", "is missing, or is not one".to_owned()),
        Some(host) => {
            let fits = match first.map(|candidate| &candidate.host) {
                Some(Some(pattern)) => format!("fits {pattern}"),
                Some(None) => "any host".to_owned(),
                None => String::new(),
            };
            row("host", host, fits);
        }
    }
    match &decision.path {
        None => row("path", as_sent, "invalid or ambiguous path".to_owned()),
        Some(path) => {
            let fits = first.map_or_else(
                || "matches no route".to_owned(),
                |candidate| format!("fits {}", candidate.path),
            );
            if path != as_sent {
                row("path", as_sent, format!("is forwarded as {path}"));
            }
            if let [(one, _)] = &decision.readings[..] {
                if one != path {
                    row("path", path, format!("could be read as {one}"));
                }
                row("path", one, fits);
            } else {
                for (reading, leads) in &decision.readings {
                    let leads = match leads {
                        Ok(destination) => format!("leads to {}", destination.id()),
                        Err(rejection) => format!("leads nowhere: {}", rejection.status().as_u16()),
                    };
                    row("reading", reading, leads);
                }
            }
        }
    }
    if matches!(decision.outcome, Err(Rejection::AmbiguousPath)) {
        let text = refused(&Rejection::AmbiguousPath, here, method);
        return format!("{text}{}", display::align(&rows));
    }
    for candidate in here {
        row("method", method.as_str(), method_at(candidate));
        for wanted in candidate.match_headers.iter().filter(|_| candidate.takes_method) {
            row(
                "field",
                wanted.name.as_str(),
                format!("{} for {}", display::field(wanted), candidate.leads_to.id()),
            );
        }
        if matches!(decision.outcome, Ok(taken) if taken.id() == candidate.leads_to.id()) {
            break;
        }
    }
    let verdict = match &decision.outcome {
        Ok(ExplainedDestination::Gateway) => "The gateway responds itself: 204.\n".to_owned(),
        Ok(destination) => format!("Route {} matches.\n", destination.id()),
        Err(rejection) => refused(rejection, here, method),
    };
    format!("{verdict}{}", display::align(&rows))
}

fn method_at(candidate: &Candidate<'_>) -> String {
    let id = candidate.leads_to.id();
    match (candidate.takes_method, candidate.methods.is_empty()) {
        (true, true) => format!("{id} takes any method"),
        (false, true) => format!("{id} takes any method but TRACE and CONNECT"),
        (true, false) => format!("{id} takes {}", display::list(&candidate.methods)),
        (false, false) => format!("{id} takes only {}", display::list(&candidate.methods)),
    }
}

/// Returns why no route matches.
fn refused(rejection: &Rejection, here: &[Candidate<'_>], method: &Method) -> String {
    let status = rejection.status().as_u16();
    let why = match rejection {
        Rejection::Method { allow } => {
            let allow = String::from_utf8_lossy(allow.as_bytes());
            format!("a route has this path, but not this method. Allow: {allow}")
        }
        // Host and path are valid and a route has them: only the method is left.
        Rejection::BadRequest if !here.is_empty() => {
            format!("{method} is not a method: methods are case-sensitive")
        }
        Rejection::BadRequest => "invalid host or path".to_owned(),
        Rejection::AmbiguousPath => "an upstream could read its path as another route's".to_owned(),
        Rejection::AmbiguousField => {
            "an upstream could read a header field as another route's: it is there twice, or in another spelling".to_owned()
        }
        Rejection::NoRoute if here.is_empty() => "no route has this host and path".to_owned(),
        Rejection::NoRoute if here.iter().all(|one| one.match_headers.is_empty()) => {
            "the route is disabled".to_owned()
        }
        Rejection::NoRoute => "no route here matches these header fields".to_owned(),
        // Only COPY and MOVE are forbidden without regard to the caller.
        Rejection::Forbidden => "its Destination does not lead to the same route".to_owned(),
        other => other.title().to_owned(),
    };
    format!("No route matches: {status}, {why}.\n")
}

/// Returns the steps in which the gateway processes the request on its route.
fn then(
    destination: &ExplainedDestination<'_>,
    decision: &RouteDecision<'_>,
    config: &Config,
) -> String {
    let mut steps: Vec<[String; 2]> = Vec::new();
    match destination {
        _ if decision.preflight => {
            steps.push(["response".to_owned(), "to a preflight, by its `cors`".to_owned()]);
        }
        ExplainedDestination::Gateway => return String::new(),
        ExplainedDestination::Session(_)
        | ExplainedDestination::Metadata
        | ExplainedDestination::Keys => {
            let limits = match destination {
                ExplainedDestination::Session(session) => &session.limits[..],
                _ => &[],
            };
            for limit in limits.iter().filter_map(|name| config.limits.get(name)) {
                steps.extend(limit_steps("limit", limit));
            }
            steps.push(["served by".to_owned(), destination_text(destination)]);
        }
        ExplainedDestination::Route(route) => on_route(route, decision, config, &mut steps),
    }
    let mut number = 0;
    let numbered = steps.into_iter().map(|[what, how]| {
        // A line without a name continues the previous step.
        if what.is_empty() {
            return [String::new(), what, how];
        }
        number += 1;
        [format!("  {number}"), what, how]
    });
    let numbered: Vec<_> = numbered.collect();
    format!("Then, in this order:\n{}", display::align(&numbered))
}

/// Returns the step at a limit, with lines about it.
fn limit_steps(what: &str, limit: &limit::Settings) -> Vec<[String; 2]> {
    let how = format!("{}: {}", limit.name, display::limit(limit));
    let lines = display::limit_notes(limit).into_iter().chain(display::overrun(limit));
    let lines = lines.map(|line| [String::new(), line]);
    core::iter::once([what.to_owned(), how]).chain(lines).collect()
}

fn on_route(
    route: &Route,
    decision: &RouteDecision<'_>,
    config: &Config,
    steps: &mut Vec<[String; 2]>,
) {
    let mut step = |what: &str, how: String| steps.push([what.to_owned(), how]);
    if let Some(cors) = &route.cors {
        let origins = cors.origins.as_ref().map_or_else(
            || "any origin".to_owned(),
            |origins| {
                display::list(
                    origins.iter().map(|o| String::from_utf8_lossy(o.as_bytes()).into_owned()),
                )
            },
        );
        step("preflights", format!("are answered for origins {origins}"));
    }
    let limits = || route.limits.iter().filter_map(|name| config.limits.get(name));
    for limit in limits().filter(|limit| limit.runs_before_authentication()) {
        for [what, how] in limit_steps("spike arrest", limit) {
            step(&what, how);
        }
    }
    match &route.auth {
        Auth::None => step("authentication", "none".to_owned()),
        Auth::AnyOf { methods, optional } => {
            for (index, auth_method) in methods.iter().enumerate() {
                step(
                    if index == 0 { "authentication" } else { "or" },
                    display::auth_method(auth_method),
                );
            }
            if *optional {
                step("or", "a request without credentials".to_owned());
            }
        }
    }
    for limit in limits().filter(|limit| !limit.runs_before_authentication()) {
        for [what, how] in limit_steps("limit", limit) {
            step(&what, how);
        }
    }
    match &route.action {
        Action::Upstream(name) => {
            let path = decision.path.as_deref().unwrap_or_default();
            match &decision.sent {
                Some(Ok(sent)) if sent != path => step("rewrite", format!("{path} becomes {sent}")),
                Some(Err(rejection)) => {
                    let status = rejection.status().as_u16();
                    step(
                        "rewrite",
                        format!("refused: {status}, an upstream could read {path} otherwise"),
                    );
                }
                _ => step("rewrite", format!("none: the upstream receives {path}")),
            }
            if let Some(upstream) = config.upstreams.get(name) {
                let targets = display::list(upstream.targets.iter().map(|target| &target.address));
                let timeout = format_duration(route.timeout.unwrap_or(upstream.timeout));
                step("upstream", format!("{name}: {targets}, within {timeout}"));
                if let Some(check) = &upstream.health_check {
                    let every = format_duration(check.interval);
                    let what = match &check.grpc {
                        Some(service) => format!("gRPC health of {service:?}"),
                        None => format!("GET {}", check.path),
                    };
                    step("health", format!("{what} every {every}"));
                }
                if let Some(breaker) = &upstream.circuit_breaker {
                    let time = format_duration(breaker.open_for);
                    step("circuit", format!("opens for {time} after {} failures", breaker.errors));
                }
            }
            for (other, share) in route.split.iter().flat_map(|split| &split.shares) {
                step("split", format!("{}% of requests to {other}", f64::from(*share) / 100.0));
            }
            if let Some(mirror) = &route.mirror {
                let methods = display::list(&mirror.methods);
                step("mirror", format!("a copy of {methods} to {}", mirror.upstream));
            }
            if let Some(fallback) = &route.fallback {
                let upstream = fallback.upstream.iter().map(|name| format!("upstream {name}"));
                let stale = fallback.stale.iter();
                let stale = stale.map(|(age, _)| {
                    format!("the last good response of up to {}", format_duration(*age))
                });
                let fixed = fallback.respond.iter();
                let fixed = fixed.map(|response| format!("a fixed {}", response.status.as_u16()));
                let all: Vec<_> = upstream.chain(stale).chain(fixed).collect();
                step("fallback", all.join(", else "));
            }
        }
        Action::Respond(_) | Action::Redirect { .. } => {
            step("response", destination_text(&ExplainedDestination::Route(route)));
        }
    }
}
