//! Redirects requests on unencrypted connections to https.

use http::header::{CACHE_CONTROL, LOCATION};
use http::{HeaderValue, Response, StatusCode, Uri};

use crate::base::body::Body;
use crate::base::raw_target;
use crate::gateway::Rejection;

/// Redirects to `uri` on `host` over https at `port` by a 308: method and content stay (RFC 9110 §15.4.9).
///
/// # Errors
///
/// [`Rejection::BadRequest`] if the request has no host.
pub(crate) fn to_https(host: &str, port: u16, uri: &Uri) -> Result<Response<Body>, Rejection> {
    let target = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let target = raw_target::escaped(target);
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    let location = HeaderValue::try_from(format!("https://{host}{port}{target}"));
    let location = location.ok().filter(|_| !host.is_empty()).ok_or(Rejection::BadRequest)?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    response.headers_mut().insert(LOCATION, location);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_redirect_keeps_host_path_and_query() {
        let uri = "/a/b?c=d".parse().expect("a target");
        let location = |host, port| {
            let response = to_https(host, port, &uri).ok()?;
            response.headers()[LOCATION].to_str().ok().map(str::to_owned)
        };

        assert_eq!(location("example.com", 443).as_deref(), Some("https://example.com/a/b?c=d"));
        assert_eq!(
            location("example.com", 8443).as_deref(),
            Some("https://example.com:8443/a/b?c=d")
        );
        assert_eq!(location("", 443), None);
    }
}
