//! `northgate routes`: lists the routes in matching order, with their destinations.

use std::path::Path;
use std::process::ExitCode;

use super::display;
use super::load::read;
use super::output::print;
use crate::gateway::view::explain::{Candidate, ExplainedDestination, RouteExplainer};

/// Prints every host and path of `file`, in the order in which a request is compared with them.
pub(super) fn routes(file: &Path) -> ExitCode {
    let config = match read(file) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let head = ["ROUTE", "HOST", "PATH", "METHODS", "AUTH", "LIMITS", "LEADS TO"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(RouteExplainer::of(&config).in_order().iter().map(row));
    print(display::align(&rows));
    ExitCode::SUCCESS
}

fn row(candidate: &Candidate<'_>) -> [String; 7] {
    let or_none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let host = candidate.host.as_ref().map_or_else(|| "any".to_owned(), ToString::to_string);
    let mut methods = display::list(&candidate.methods);
    if methods.is_empty() {
        "any".clone_into(&mut methods);
    }
    for field in &candidate.match_headers {
        methods = format!("{methods}, {}", display::field(field));
    }
    let (auth, limits) = match candidate.leads_to {
        ExplainedDestination::Route(route) => {
            (display::auth(&route.auth), display::list(&route.limits))
        }
        ExplainedDestination::Session(session) => {
            ("none".to_owned(), display::list(&session.limits))
        }
        ExplainedDestination::Metadata
        | ExplainedDestination::Keys
        | ExplainedDestination::Gateway => ("none".to_owned(), String::new()),
    };
    let path = candidate.path.to_string();
    [
        candidate.leads_to.id(),
        host,
        path,
        methods,
        auth,
        or_none(limits),
        destination_text(&candidate.leads_to),
    ]
}

/// Returns the destination of a route in a few words.
pub(super) fn destination_text(destination: &ExplainedDestination<'_>) -> String {
    match destination {
        ExplainedDestination::Session(session) => format!("session {}", session.name),
        ExplainedDestination::Metadata => "protected resource metadata (RFC 9728)".to_owned(),
        ExplainedDestination::Gateway => "itself".to_owned(),
        ExplainedDestination::Keys => "JWK set of identity tokens".to_owned(),
        ExplainedDestination::Route(route) if !route.enabled => "nothing: disabled".to_owned(),
        ExplainedDestination::Route(route) => route.action.destination(),
    }
}
