//! HTML pages for users: small, accessible, without script.
//!
//! They load nothing: the one style sheet is inside the page, and the content
//! security policy names it by its hash. An operator's style sheet replaces
//! it.

use core::fmt::{self, Write as _};

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Response, StatusCode};

use super::response::html;
use crate::base::body::Body;

/// The style of the pages, and the matching content security policy.
#[derive(Debug)]
pub(super) struct Pages {
    style: String,
    policy: HeaderValue,
}

impl Pages {
    /// Returns pages in `style`, or in the built-in one; forms may redirect to `origins` besides this one.
    ///
    /// Browsers apply `form-action` to redirects after a form's submission as well.
    pub(super) fn new<'a>(style: Option<&str>, origins: impl Iterator<Item = &'a str>) -> Self {
        // A style sheet that could end its element is ignored.
        let style = style.filter(|style| !style.contains("</")).unwrap_or(STYLE).to_owned();
        let hash = STANDARD.encode(digest::digest(&digest::SHA256, style.as_bytes()));
        let mut policy = format!(
            "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; \
             frame-ancestors 'none'; form-action 'self'"
        );
        for origin in origins {
            policy.push(' ');
            policy.push_str(origin);
        }
        let policy = HeaderValue::from_str(&policy).unwrap_or(CONTENT_SECURITY_POLICY);
        Self { style, policy }
    }

    /// Returns the login form.
    pub(super) fn login(&self, login: &Login<'_>) -> Response<Body> {
        let Login { action, return_to, user, problem } = *login;
        let mut form = String::with_capacity(1024);
        form.push_str("<h1>Log in</h1>\n");
        if let Some(problem) = problem {
            let _ =
                writeln!(form, "<p role=\"alert\" id=\"problem\">{}</p>", Text(problem.message()));
        }
        let _ = writeln!(form, "<form method=\"post\" action=\"{}\">", Text(action));
        if let Some(return_to) = return_to {
            let _ = writeln!(
                form,
                "<input type=\"hidden\" name=\"return_to\" value=\"{}\">",
                Text(return_to)
            );
        }
        let described = if problem.is_some() { " aria-describedby=\"problem\"" } else { "" };
        let _ = write!(
            form,
            "<label for=\"username\">User name</label>\n\
             <input id=\"username\" name=\"username\" value=\"{}\" autocomplete=\"username\" \
             autocapitalize=\"none\" spellcheck=\"false\" maxlength=\"1024\" required{described}>\n\
             <label for=\"password\">Password</label>\n\
             <input id=\"password\" name=\"password\" type=\"password\" \
             autocomplete=\"current-password\" maxlength=\"1024\" required{described}>\n\
             <button>Log in</button>\n</form>",
            Text(user)
        );
        let status = problem.map_or(StatusCode::OK, Problem::status);
        let title = if problem.is_some() { "Not logged in" } else { "Log in" };
        self.page(status, title, &form)
    }

    /// Returns the page that confirms a logout, since a link must not log out.
    pub(super) fn logout(&self, action: &str) -> Response<Body> {
        let form = format!(
            "<h1>Log out</h1>\n<p>This ends your session in this browser.</p>\n\
             <form method=\"post\" action=\"{}\">\n<button>Log out</button>\n</form>",
            Text(action)
        );
        self.page(StatusCode::OK, "Log out", &form)
    }

    /// Returns the page for a failed login, with a link to try again.
    pub(super) fn problem(&self, why: Problem, login: &str) -> Response<Body> {
        let content = format!(
            "<h1>Not logged in</h1>\n<p role=\"alert\">{}</p>\n\
             <p><a href=\"{}\">Log in</a></p>",
            Text(why.message()),
            Text(login)
        );
        self.page(why.status(), "Not logged in", &content)
    }

    /// Returns a page that continues within this origin, where a redirect would count as cross-site.
    pub(super) fn continue_to(&self, target: &str) -> Response<Body> {
        let content = format!(
            "<meta http-equiv=\"refresh\" content=\"0;url={0}\">\n\
             <h1>Logged in</h1>\n<p><a href=\"{0}\">Continue</a></p>",
            Text(target)
        );
        self.page(StatusCode::OK, "Logged in", &content)
    }

    fn page(&self, status: StatusCode, title: &str, content: &str) -> Response<Body> {
        let Self { style, policy } = self;
        let page = format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{}</title>\n<style>{style}</style>\n<main>\n{content}\n</main>\n</html>\n",
            Text(title)
        );
        html(status, page, policy.clone())
    }
}

/// The content of the login form.
#[derive(Clone, Copy, Debug)]
pub(super) struct Login<'a> {
    /// The URL that the form is sent to.
    pub(super) action: &'a str,
    /// The target of the login.
    pub(super) return_to: Option<&'a str>,
    /// The user name of the previous attempt.
    pub(super) user: &'a str,
    /// The reason why the form is shown again.
    pub(super) problem: Option<Problem>,
}

/// The reason why a login failed: the same text for every user.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Problem {
    /// The issuer refused the credentials.
    Credentials,
    /// The credentials are missing or malformed.
    Malformed,
    /// Too many attempts have failed.
    TooMany,
    /// The issuer is unavailable.
    Unavailable,
    /// The gateway does not accept the issuer's tokens.
    Unusable,
    /// The tokens do not fit into cookies.
    TooLarge,
    /// The user declined at the issuer.
    Denied,
    /// The issuer declined.
    Declined,
    /// The callback belongs to no login of this browser.
    Mismatch,
}

impl Problem {
    pub(super) const fn message(self) -> &'static str {
        match self {
            Self::Credentials => "The user name or the password is wrong.",
            Self::Malformed => "A user name and a password are needed.",
            Self::TooMany => "Too many attempts have failed. Please wait a little.",
            Self::Unavailable => "Logging in is not possible at the moment. Please try again soon.",
            Self::Unusable => "The login succeeded, but its token is not accepted here.",
            Self::TooLarge => "The login succeeded, but its tokens are too large for cookies.",
            Self::Denied => "You were not logged in because access was not allowed.",
            Self::Declined => "The authorization server did not complete the login.",
            Self::Mismatch => "This login was not begun in this browser, or it took too long.",
        }
    }

    pub(super) const fn status(self) -> StatusCode {
        match self {
            Self::Credentials => StatusCode::UNAUTHORIZED,
            Self::Malformed | Self::Mismatch => StatusCode::BAD_REQUEST,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unusable | Self::TooLarge | Self::Declined => StatusCode::BAD_GATEWAY,
        }
    }

    /// Returns the last part of the problem's `type` (RFC 9457 §3.1.1).
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Credentials => "login-refused",
            Self::Malformed => "bad-request",
            Self::TooMany => "limited",
            Self::Unavailable => "issuer-unavailable",
            Self::Unusable => "login-unusable",
            Self::TooLarge => "login-too-large",
            Self::Denied => "login-denied",
            Self::Declined => "login-declined",
            Self::Mismatch => "login-mismatch",
        }
    }
}

/// Untrusted text, escaped for HTML.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

const STYLE: &str = include_str!("style.css");
const CONTENT_SECURITY_POLICY: HeaderValue = HeaderValue::from_static("default-src 'none'");

#[cfg(test)]
mod tests {
    use http::header::CONTENT_SECURITY_POLICY;

    use super::*;

    async fn text(response: Response<Body>) -> String {
        let body = response.into_body().collect(100_000).await.unwrap();
        String::from_utf8(body.to_vec()).unwrap()
    }

    fn login(user: &str) -> Response<Body> {
        let problem = Some(Problem::Credentials);
        let return_to = Some("/\"><script>");
        let login = Login { action: "/auth/login", return_to, user, problem };
        Pages::new(None, ["https://auth.example.com"].into_iter()).login(&login)
    }

    #[tokio::test]
    async fn the_typed_name_is_escaped() {
        let page = text(login("<script>alert('&')</script>\"")).await;

        assert!(!page.contains("<script"), "{page}");
        assert!(page.contains("&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;&quot;"));
        assert!(page.contains("value=\"/&quot;&gt;&lt;script&gt;\""));
    }

    #[tokio::test]
    async fn the_policy_names_the_style_by_its_hash_and_allows_nothing_else() {
        let response = login("alice");
        let policy = response.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
        let page = text(response).await;
        let style = page.split("<style>").nth(1).unwrap().split("</style>").next().unwrap();
        let hash = STANDARD.encode(digest::digest(&digest::SHA256, style.as_bytes()));

        assert_eq!(
            policy,
            format!(
                "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; \
                 frame-ancestors 'none'; form-action 'self' https://auth.example.com"
            )
        );
        assert!(!page.contains("style=") && !page.contains("src="));
    }

    #[tokio::test]
    async fn every_field_has_a_label_and_a_refusal_is_announced() {
        let page = text(login("alice")).await;

        for field in ["username", "password"] {
            assert!(page.contains(&format!("<label for=\"{field}\">")));
            assert!(page.contains(&format!("id=\"{field}\"")));
        }
        assert!(page.contains("role=\"alert\"") && page.contains("<html lang=\"en\">"));
        assert!(page.len() < 4096, "{} bytes", page.len());
    }

    #[tokio::test]
    async fn an_operators_style_replaces_the_built_in_one_unless_it_breaks_out() {
        let page = |style| text(Pages::new(Some(style), [].into_iter()).logout("/auth/logout"));

        assert!(page("body { color: red }").await.contains("<style>body { color: red }</style>"));
        assert!(!page("</style><script>").await.contains("<script>"));
    }
}
