//! Distinguishes navigations, whose response a person sees, from requests by scripts.
//!
//! Browsers say it in `Sec-Fetch-Mode`. Libraries that fetch pages in the
//! background, and ask for HTML to put it into the current page, say it in
//! fields of their own: htmx, Turbo, and those that set `X-Requested-With`.

use http::request::Parts;
use http::{HeaderMap, HeaderName, Method};
use url::Url;

use super::cookies::origin::SEC_FETCH_SITE;

/// Whether a script reads the response, whatever it accepts.
pub fn is_script(headers: &HeaderMap) -> bool {
    let mode = headers.get(SEC_FETCH_MODE);
    mode.is_some_and(|mode| mode != "navigate")
        || LIBRARIES.iter().any(|field| headers.contains_key(field))
        // Android's web views send the name of their app in it, with navigations.
        || headers.get(X_REQUESTED_WITH).is_some_and(|by| *by == "XMLHttpRequest")
}

/// Whether htmx sent the request.
pub fn is_htmx(headers: &HeaderMap) -> bool {
    headers.get(HX_REQUEST).is_some_and(|value| *value == "true")
}

/// Whether a page of another site loads the response as a part of itself, or has a script that does.
pub fn is_cross_site_resource(headers: &HeaderMap) -> bool {
    let is = |name, value| headers.get(name).is_some_and(|found| *found == value);
    is(SEC_FETCH_SITE, "cross-site") && !is(SEC_FETCH_MODE, "navigate")
}

/// Returns the path and query of the page that htmx shows after the request, if it has sent it: `Some(None)` if the page is
/// unknown. A boosted link, or a page of the history, is shown itself; any other response becomes a part of the
/// current page. `None` for other requests.
#[expect(clippy::option_option, reason = "no request of htmx, and one from an unknown page")]
pub(super) fn htmx_page(request: &Parts) -> Option<Option<String>> {
    let headers = &request.headers;
    let is_set = |field| headers.get(field).is_some_and(|value| *value == "true");
    if !is_htmx(headers) {
        return None;
    }
    let reads = matches!(request.method, Method::GET | Method::HEAD);
    if reads && (is_set(HX_BOOSTED) || is_set(HX_HISTORY_RESTORE_REQUEST)) {
        return Some(request.uri.path_and_query().map(|page| page.as_str().to_owned()));
    }
    let page = headers.get(HX_CURRENT_URL).and_then(|url| Url::parse(url.to_str().ok()?).ok());
    // Only the path counts: the login accepts it as any other requested target.
    Some(page.map(|page| match page.query() {
        Some(query) => format!("{}?{query}", page.path()),
        None => page.path().to_owned(),
    }))
}

/// The mode of a browser's request (Fetch Metadata §2.2).
pub(super) const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
/// Makes htmx navigate, whatever the status of the response.
pub const HX_REDIRECT: HeaderName = HeaderName::from_static("hx-redirect");
const HX_REQUEST: HeaderName = HeaderName::from_static("hx-request");
const HX_CURRENT_URL: HeaderName = HeaderName::from_static("hx-current-url");
const HX_BOOSTED: HeaderName = HeaderName::from_static("hx-boosted");
const HX_HISTORY_RESTORE_REQUEST: HeaderName =
    HeaderName::from_static("hx-history-restore-request");
/// Fields that only scripts set.
const LIBRARIES: [HeaderName; 3] = [
    HX_REQUEST,
    HeaderName::from_static("turbo-frame"),
    HeaderName::from_static("x-turbo-request-id"),
];
const X_REQUESTED_WITH: HeaderName = HeaderName::from_static("x-requested-with");

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        fields.iter().map(field).collect()
    }

    #[test]
    fn scripts_are_distinguished_from_navigations() {
        for fields in [
            &[("sec-fetch-mode", "cors")][..],
            &[("sec-fetch-mode", "same-origin"), ("accept", "text/html")],
            &[("hx-request", "true")],
            &[("turbo-frame", "orders"), ("accept", "text/html")],
            &[("x-requested-with", "XMLHttpRequest")],
        ] {
            assert!(is_script(&headers(fields)), "{fields:?}");
        }
        assert!(!is_script(&headers(&[("sec-fetch-mode", "navigate"), ("accept", "text/html")])));
        assert!(!is_script(&headers(&[("accept", "text/html")])));
        assert!(!is_script(&headers(&[("x-requested-with", "com.example.app")])), "a web view");
    }

    #[test]
    fn htmx_names_its_page() {
        let asked = |fields: &[(&'static str, &'static str)]| {
            let mut request = http::Request::get("/next?a=b").body(()).unwrap().into_parts().0;
            request.headers = headers(fields);
            htmx_page(&request)
        };
        let page = |url| asked(&[("hx-request", "true"), ("hx-current-url", url)]);

        assert_eq!(
            page("https://www.example.com/orders?page=2"),
            Some(Some("/orders?page=2".into()))
        );
        assert_eq!(page("nonsense"), Some(None));
        assert_eq!(asked(&[("hx-current-url", "https://www.example.com/")]), None);
        for whole in ["hx-boosted", "hx-history-restore-request"] {
            let of_link = [
                ("hx-request", "true"),
                (whole, "true"),
                ("hx-current-url", "https://www.example.com/orders"),
            ];
            assert_eq!(asked(&of_link), Some(Some("/next?a=b".into())), "{whole}");
        }
    }
}
