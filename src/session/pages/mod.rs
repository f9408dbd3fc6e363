//! HTML pages for users: small, accessible, without script.
//!
//! Their HTML is in `templates/session`. They load nothing: the one style sheet
//! is inside the page, and the content security policy names it by its hash. An
//! operator's style sheet replaces it.

use askama::Template;
use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Response, StatusCode, header};
use url::Url;

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
        let page = LoginPage { style: &self.style, action, return_to, user, problem };
        self.render(problem.map_or(StatusCode::OK, Problem::status), &page)
    }

    /// Returns the page that confirms a logout, since a link must not log out. Its form may lead to the `end_session`
    /// endpoint of the issuer, and on to origins that only the issuer knows.
    pub(super) fn logout(&self, action: &str, end_session: Option<&Url>) -> Response<Body> {
        let page = LogoutPage { style: &self.style, action };
        let mut response = self.render(StatusCode::OK, &page);
        if let (Some(url), Ok(policy)) = (end_session, self.policy.to_str()) {
            let policy = format!("{policy} https: {}", url.origin().ascii_serialization());
            if let Ok(policy) = HeaderValue::from_str(&policy) {
                response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
            }
        }
        response
    }

    /// Returns the page for a failed login, with a link to try again.
    pub(super) fn problem(&self, problem: Problem, login: &str) -> Response<Body> {
        self.render(problem.status(), &ProblemPage { style: &self.style, problem, login })
    }

    /// Returns a page that continues within this origin, where a redirect would count as cross-site.
    pub(super) fn continue_to(&self, target: &str) -> Response<Body> {
        self.render(StatusCode::OK, &LoggedInPage { style: &self.style, target })
    }

    fn render(&self, status: StatusCode, page: &impl Template) -> Response<Body> {
        match page.render() {
            Ok(page) => html(status, page, self.policy.clone()),
            // A template fails only if the `Display` of a value fails, and that of text does not.
            Err(_) => {
                html(StatusCode::INTERNAL_SERVER_ERROR, String::new(), CONTENT_SECURITY_POLICY)
            }
        }
    }
}

#[derive(Template)]
#[template(path = "session/login.html")]
struct LoginPage<'a> {
    style: &'a str,
    action: &'a str,
    return_to: Option<&'a str>,
    user: &'a str,
    problem: Option<Problem>,
}

#[derive(Template)]
#[template(path = "session/logout.html")]
struct LogoutPage<'a> {
    style: &'a str,
    action: &'a str,
}

#[derive(Template)]
#[template(path = "session/problem.html")]
struct ProblemPage<'a> {
    style: &'a str,
    problem: Problem,
    login: &'a str,
}

#[derive(Template)]
#[template(path = "session/logged_in.html")]
struct LoggedInPage<'a> {
    style: &'a str,
    target: &'a str,
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
    /// The session cannot be stored, or looked up, at the moment.
    StoreUnavailable,
    /// The gateway does not accept the issuer's tokens.
    Unusable,
    /// The ID token lacks a claim that every ID token has.
    LacksClaim,
    /// The ID token lacks `auth_time`, which the configured `max_age` needs.
    LacksAuthTime,
    /// The tokens do not fit into cookies.
    TooLarge,
    /// The user declined at the issuer.
    Denied,
    /// The issuer declined.
    Declined,
    /// The callback belongs to no login of this browser.
    Mismatch,
    /// The callback does not come from the issuer, by its `iss`.
    ForeignIssuer,
    /// The issuer refused the code that it had just issued.
    Refused,
    /// Two logins in a row, and the browser sends no session cookie.
    LoopWithoutCookie,
    /// Two logins in a row, and the browser sends a cookie that is not the one it was given.
    LoopForeignCookie,
    /// Two logins in a row, each of whose sessions ended at once.
    LoopEnded,
    /// The login was weaker or older than the page demands.
    StepUp,
}

impl Problem {
    pub(super) const fn message(self) -> &'static str {
        match self {
            Self::Credentials => "The user name or the password is wrong.",
            Self::Malformed => "A user name and a password are needed.",
            Self::TooMany => "Too many attempts have failed. Please wait a little.",
            Self::Unavailable | Self::StoreUnavailable => {
                "Logging in is not possible at the moment. Please try again soon."
            }
            Self::Unusable => "The login succeeded, but its token is not accepted here.",
            Self::LacksClaim => {
                "The login succeeded, but its ID token lacks a claim that every ID token has. \
                 Please tell the people who run this site."
            }
            Self::LacksAuthTime => {
                "The login succeeded, but its ID token lacks `auth_time`: it does not say when you have logged in, which is \
                 needed here. Please tell the people who run this site."
            }
            Self::TooLarge => "The login succeeded, but its tokens are too large for cookies.",
            Self::Denied => "You were not logged in because access was not allowed.",
            Self::Declined => "The authorization server did not complete the login.",
            Self::Mismatch => "This login was not begun in this browser, or it took too long.",
            Self::ForeignIssuer => {
                "The answer to this login does not say that it comes from the authorization server of this site. \
                 Please tell the people who run it."
            }
            Self::Refused => {
                "The authorization server did not accept the code that it issued for this login. \
                 Logging in again may not help: please tell the people who run this site."
            }
            Self::StepUp => {
                "You are logged in, but the authorization server did not confirm the stronger or more recent login that \
                 this page demands."
            }
            Self::LoopWithoutCookie => {
                "You have logged in twice, and there is no session: your browser does not send its cookie, or the \
                 session ended at once. Please allow cookies for this site. If they are allowed, please tell the \
                 people who run it."
            }
            Self::LoopForeignCookie => {
                "You have logged in twice, but your browser sends another cookie in place of that of your session. \
                 Please delete the cookies of this site."
            }
            Self::LoopEnded => {
                "You have logged in twice, and each time the session ended at once. \
                 Please tell the people who run this site."
            }
        }
    }

    pub(super) const fn status(self) -> StatusCode {
        match self {
            Self::Credentials => StatusCode::UNAUTHORIZED,
            Self::Malformed
            | Self::Mismatch
            | Self::ForeignIssuer
            | Self::LoopWithoutCookie
            | Self::LoopForeignCookie => StatusCode::BAD_REQUEST,
            Self::Denied | Self::StepUp => StatusCode::FORBIDDEN,
            Self::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable | Self::StoreUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unusable
            | Self::LacksClaim
            | Self::LacksAuthTime
            | Self::TooLarge
            | Self::Declined
            | Self::Refused
            | Self::LoopEnded => StatusCode::BAD_GATEWAY,
        }
    }

    /// Returns the last part of the problem's `type` (RFC 9457 §3.1.1).
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Credentials => "login-refused",
            Self::Malformed => "bad-request",
            Self::TooMany => "limited",
            Self::Unavailable => "issuer-unavailable",
            Self::StoreUnavailable => "store-unavailable",
            Self::Unusable | Self::LacksClaim | Self::LacksAuthTime => "login-unusable",
            Self::TooLarge => "login-too-large",
            Self::Denied => "login-denied",
            Self::Declined => "login-declined",
            Self::Mismatch => "login-mismatch",
            Self::ForeignIssuer => "login-foreign-issuer",
            Self::Refused => "login-code-refused",
            Self::StepUp => "login-insufficient",
            Self::LoopWithoutCookie | Self::LoopForeignCookie | Self::LoopEnded => "login-loop",
        }
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
        assert!(page.contains("&#60;script&#62;alert(&#39;&#38;&#39;)&#60;/script&#62;&#34;"));
        assert!(page.contains("value=\"/&#34;&#62;&#60;script&#62;\""));
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
        let page =
            |style| text(Pages::new(Some(style), [].into_iter()).logout("/auth/logout", None));

        assert!(page("body { color: red }").await.contains("<style>body { color: red }</style>"));
        assert!(!page("</style><script>").await.contains("<script>"));
    }
}
