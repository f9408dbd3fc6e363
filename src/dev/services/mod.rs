//! Two sample services, as they might stand behind any gateway: `orders` speaks JSON, `shop` HTML.
//!
//! They show what a service gets from the gateway: who calls, from where, with
//! which token. They never show the token itself.

pub(super) mod orders;
mod reply;
pub(super) mod shop;

use core::convert::Infallible;

use http::header::{AUTHORIZATION, COOKIE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue};
use serde_json::{Map, Value, json};

/// What a service got, fit to be shown to the caller.
fn received(head: &Parts) -> Value {
    let cookies = head.headers.get_all(COOKIE).iter().filter_map(|field| field.to_str().ok());
    let cookies =
        cookies.flat_map(|field| field.split("; ")).filter_map(|pair| pair.split('=').next());
    json!({
        "method": head.method.as_str(),
        "path": head.uri.path(),
        "query": head.uri.query(),
        "host": text(head.headers.get("host")),
        "request_id": text(head.headers.get("x-request-id")),
        "authorization": text(head.headers.get(AUTHORIZATION)).as_deref().map(shape),
        "identity": fields(&head.headers, |name| name.starts_with("x-auth-")),
        "forwarded": fields(&head.headers, |name| {
            name.starts_with("x-forwarded-") || matches!(name, "forwarded" | "via" | "traceparent")
        }),
        "cookies": cookies.collect::<Vec<_>>(),
    })
}

/// What kind of credential an `Authorization` field holds, and not the credential.
fn shape(field: &str) -> &'static str {
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

/// A service always answers.
type Answer = Result<reply::Reply, Infallible>;

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn a_token_is_described_and_never_shown() {
        let request = Request::builder()
            .uri("/api/orders?page=1")
            .header("authorization", "bearer eyJ.secret.sig")
            .header("cookie", "theme=dark; basket=17")
            .header("x-auth-subject", "alice")
            .header("accept", "*/*")
            .body(());
        let (head, ()) = request.expect("a request").into_parts();

        let seen = received(&head);

        assert_eq!(seen["authorization"], "Bearer, a signed token");
        assert_eq!(seen["identity"], json!({ "x-auth-subject": "alice" }));
        assert_eq!(seen["cookies"], json!(["theme", "basket"]));
        assert!(!seen.to_string().contains("secret") && !seen.to_string().contains("dark"));
    }
}
