//! The page that a browser gets for an error: small, accessible, without script, and loading nothing.

use std::sync::LazyLock;

use askama::Template;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, StatusCode};

use crate::base::digest::sha256;

/// A page about a refused request. All its texts are escaped.
#[derive(Debug, Template)]
#[template(path = "gateway/problem.html")]
pub(crate) struct ErrorPage<'a> {
    status: u16,
    reason: &'static str,
    title: &'static str,
    request_id: &'a str,
    retry_after: Option<&'a str>,
    login: Option<&'a str>,
    style: &'static str,
}

impl<'a> ErrorPage<'a> {
    /// Creates the page. `title` is a phrase without a full stop, `retry_after` a number of seconds, `login` the path
    /// of a login page.
    pub(crate) fn new(
        status: StatusCode,
        title: &'static str,
        request_id: &'a str,
        retry_after: Option<&'a HeaderValue>,
        login: Option<&'a str>,
    ) -> Self {
        Self {
            status: status.as_u16(),
            reason: status.canonical_reason().unwrap_or("Error"),
            title,
            request_id,
            retry_after: retry_after.and_then(|seconds| seconds.to_str().ok()),
            login,
            style: STYLE,
        }
    }

    /// Returns the HTML text; empty if it cannot be rendered, which does not happen with texts.
    pub(crate) fn html(&self) -> String {
        self.render().unwrap_or_default()
    }
}

/// Returns the content security policy: the style of the page by its hash, and nothing else.
pub(crate) fn policy() -> HeaderValue {
    static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
        let hash = STANDARD.encode(sha256(&[STYLE.as_bytes()]));
        HeaderValue::try_from(format!(
            "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
        ))
        .unwrap_or(HeaderValue::from_static("default-src 'none'"))
    });
    POLICY.clone()
}

const STYLE: &str = include_str!("error_page.css");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_status_reason_and_request_id() {
        let seconds = HeaderValue::from_static("7");
        let page = ErrorPage::new(
            StatusCode::TOO_MANY_REQUESTS,
            "Too many requests",
            "id-1",
            Some(&seconds),
            None,
        )
        .html();

        for part in [
            "<html lang=\"en\">",
            "<title>429 Too Many Requests</title>",
            "<p role=\"alert\">Too many requests.</p>",
            "in 7 seconds.",
            "<code>id-1</code>",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(page.len() < 4096 && !page.contains("src=") && !page.contains("<script"));
    }

    #[test]
    fn texts_from_outside_are_escaped() {
        let page = ErrorPage::new(
            StatusCode::NOT_FOUND,
            "Not found",
            "<script>&\"'",
            None,
            Some("/\"><b>"),
        )
        .html();

        assert!(!page.contains("<script") && !page.contains("<b>"), "{page}");
        assert!(page.contains("&#60;script&#62;&#38;&#34;&#39;"), "{page}");
    }

    #[test]
    fn the_policy_allows_the_style_of_the_page_alone() {
        let page = ErrorPage::new(StatusCode::NOT_FOUND, "Not found", "id", None, None).html();
        let style = page.split("<style>").nth(1).and_then(|rest| rest.split("</style>").next());
        let hash = STANDARD.encode(sha256(&[style.unwrap_or_default().as_bytes()]));

        let policy = policy();
        let policy = policy.to_str().expect("text");
        assert!(
            policy.starts_with(&format!("default-src 'none'; style-src 'sha256-{hash}';")),
            "{policy}"
        );
    }
}
