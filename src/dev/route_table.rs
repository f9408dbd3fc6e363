//! The routes of a configuration as rows of the table on the shop's start page.

use http::Method;
use serde_json::{Value, json};

use crate::config::route::{PathPattern, Segment};
use crate::config::{Auth, Route};

/// Returns one row for each path of each enabled route, in the order of the file.
pub(super) fn rows(routes: &[Route]) -> Value {
    let rows = routes.iter().filter(|route| route.enabled).flat_map(|route| {
        route.paths.iter().map(|path| {
            json!({
                "id": route.id,
                "method": route.methods.first().unwrap_or(&Method::GET).as_str(),
                "pattern": path.to_string(),
                "sample": sample(path),
                "who": who(&route.auth),
                "credential": credential(&route.auth),
                "limits": route.limits,
            })
        })
    });
    rows.collect()
}

/// Returns a path that the pattern matches.
fn sample(pattern: &PathPattern) -> String {
    let steps = pattern.segments.iter().map(|segment| match segment {
        Segment::Literal(text) => format!("/{text}"),
        Segment::Parameter(_) => "/1".to_owned(),
    });
    let path: String = steps.collect();
    if path.is_empty() { "/".to_owned() } else { path }
}

/// Describes in words which clients a route admits.
fn who(auth: &Auth) -> String {
    let Auth::AnyOf { methods, optional } = auth else { return "every client".to_owned() };
    let methods = methods.iter().map(|auth_method| {
        let credential = auth_method.credential.description();
        if auth_method.scopes.is_empty() {
            credential.to_owned()
        } else {
            format!("{credential} with {}", auth_method.scopes)
        }
    });
    let methods = methods.collect::<Vec<_>>().join(", or ");
    if *optional { format!("every client; authenticated with {methods}") } else { methods }
}

/// Returns the credential that the page presents unless its user selects another.
fn credential(auth: &Auth) -> &'static str {
    auth.methods().first().map_or("nothing", |auth_method| auth_method.credential.sample())
}
