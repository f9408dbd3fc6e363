//! Two sample upstreams, as they might stand behind any gateway: [`orders`] returns JSON, [`shop`] HTML.
//!
//! They show what the gateway forwards to an upstream: the authenticated
//! identity, the client's address, the kind of credential. They never show the
//! credential itself.

pub(super) mod orders;
mod response;
pub(super) mod shop;

use http::header::{AUTHORIZATION, COOKIE, HOST};
use http::{HeaderMap, HeaderValue, Method, Uri};
use serde_json::{Map, Value, json};

/// Describes a request as an upstream received it, without its secrets.
fn received(method: &Method, uri: &Uri, headers: &HeaderMap) -> Value {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|field| field.to_str().ok());
    let cookies =
        cookies.flat_map(|field| field.split("; ")).filter_map(|pair| pair.split('=').next());
    json!({
        "method": method.as_str(),
        "path": uri.path(),
        "query": uri.query(),
        "host": text(headers.get(HOST)),
        "request_id": text(headers.get("x-request-id")),
        "authorization": text(headers.get(AUTHORIZATION)).as_deref().map(credential_kind),
        "identity": fields(headers, |name| name.starts_with("x-auth-")),
        "forwarded": fields(headers, |name| {
            name.starts_with("x-forwarded-") || matches!(name, "forwarded" | "via" | "traceparent")
        }),
        "cookies": cookies.collect::<Vec<_>>(),
    })
}

/// Names the kind of credential in an `Authorization` field.
fn credential_kind(field: &str) -> &'static str {
    let (scheme, rest) = field.split_once(' ').unwrap_or((field, ""));
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" if rest.split('.').count() == 3 => "Bearer, a signed token",
        "bearer" => "Bearer, a reference token",
        "basic" => "Basic, which should never get here",
        _ => "of an unknown kind",
    }
}

fn fields(headers: &HeaderMap, wanted: impl Fn(&str) -> bool) -> Value {
    let names = headers.keys().filter(|name| wanted(name.as_str()));
    let values = |name| {
        let values: Vec<_> = headers.get_all(name).iter().map(lossy).collect();
        values.join(", ")
    };
    names.map(|name| (name.to_string(), json!(values(name)))).collect::<Map<_, _>>().into()
}

fn text(value: Option<&HeaderValue>) -> Option<String> {
    value.map(lossy)
}

fn lossy(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn a_description_names_credentials_and_cookies_and_never_shows_their_values() {
        let request = Request::builder()
            .uri("/api/orders?page=1")
            .header("authorization", "bearer eyJ.secret.sig")
            .header("cookie", "theme=dark; basket=17")
            .header("x-auth-subject", "alice")
            .header("accept", "*/*")
            .body(());
        let (head, ()) = request.expect("a request").into_parts();

        let seen = received(&head.method, &head.uri, &head.headers);

        assert_eq!(seen["authorization"], "Bearer, a signed token");
        assert_eq!(seen["identity"], json!({ "x-auth-subject": "alice" }));
        assert_eq!(seen["cookies"], json!(["theme", "basket"]));
        assert!(!seen.to_string().contains("secret") && !seen.to_string().contains("dark"));
    }
}
