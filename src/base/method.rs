//! The properties of request methods (RFC 9110 §9.2), by the registry of IANA: the type of methods knows those of the core
//! alone.

use http::Method;

/// Whether a method is safe: it changes nothing.
pub fn is_safe(method: &Method) -> bool {
    method.is_safe() || SAFE.contains(&method.as_str())
}

/// Whether a method is idempotent: several requests have the effect of one.
pub fn is_idempotent(method: &Method) -> bool {
    method.is_idempotent()
        || SAFE.contains(&method.as_str())
        || IDEMPOTENT.contains(&method.as_str())
}

const SAFE: [&str; 4] = ["PROPFIND", "QUERY", "REPORT", "SEARCH"];
/// The idempotent methods that are not safe. `LOCK`, `PATCH` and `POST` are neither.
const IDEMPOTENT: [&str; 25] = [
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "COPY",
    "LABEL",
    "LINK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "ORDERPATCH",
    "PROPPATCH",
    "REBIND",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_have_the_properties_of_the_registry() {
        for (method, safe, idempotent) in [
            ("GET", true, true),
            ("PROPFIND", true, true),
            ("REPORT", true, true),
            ("SEARCH", true, true),
            ("DELETE", false, true),
            ("MKCOL", false, true),
            ("UNLOCK", false, true),
            ("LOCK", false, false),
            ("POST", false, false),
            ("PATCH", false, false),
            ("CONNECT", false, false),
            ("propfind", false, false),
            ("UNKNOWN", false, false),
        ] {
            let method = Method::from_bytes(method.as_bytes()).expect("a token");
            assert_eq!((is_safe(&method), is_idempotent(&method)), (safe, idempotent), "{method}");
        }
    }
}
