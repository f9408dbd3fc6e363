//! The pages that users see: HTML from the templates in `templates/dev/issuer`, one style sheet, no script.

use askama::Template;
use axum::response::{IntoResponse, Response};
use http::StatusCode;

use super::DevIssuer;
use super::authorization_request::AuthorizationRequest;
use super::clients::{Authentication, Client};
use super::response;
use super::users::User;

/// Shows the login form. `failed_username` is the user name of a failed attempt.
pub(super) fn login(
    issuer: &DevIssuer,
    request: &AuthorizationRequest,
    request_id: &str,
    failed_username: Option<&str>,
) -> Response {
    let failed = failed_username.is_some();
    let username = failed_username.or(request.login_hint.as_deref()).unwrap_or_default();
    let users = issuer.users.iter().collect();
    let page = LoginPage { client: &request.client.name, request_id, username, failed, users };
    let status = if failed { StatusCode::FORBIDDEN } else { StatusCode::OK };
    render(status, &page, request.back.form_target().as_deref())
}

#[derive(Template)]
#[template(path = "dev/issuer/login.html")]
struct LoginPage<'a> {
    client: &'a str,
    request_id: &'a str,
    username: &'a str,
    failed: bool,
    users: Vec<&'a User>,
}

/// Shows the consent form: one box for each requested scope.
pub(super) fn consent(request: &AuthorizationRequest, request_id: &str, user: &str) -> Response {
    // `openid` comes first and has no choice: without it there is no login.
    let (openid, others): (Vec<_>, Vec<_>) =
        request.scopes.iter().partition(|scope| *scope == "openid");
    let scopes = openid.into_iter().chain(others).collect();
    let page = ConsentPage { client: &request.client.name, request_id, user, scopes };
    render(StatusCode::OK, &page, request.back.form_target().as_deref())
}

#[derive(Template)]
#[template(path = "dev/issuer/consent.html")]
struct ConsentPage<'a> {
    client: &'a str,
    request_id: &'a str,
    user: &'a str,
    scopes: Vec<&'a str>,
}

/// Returns the name of a scope's box on the consent form.
pub(super) fn box_of_scope(scope: &str) -> String {
    format!("{BOX_PREFIX}{scope}")
}

/// Returns the scope of a box on the consent form.
pub(super) fn scope_of_box(name: &str) -> Option<&str> {
    name.strip_prefix(BOX_PREFIX)
}

/// Shows an error that only the user may see.
pub(super) fn refusal(problem: &str) -> Response {
    render(StatusCode::BAD_REQUEST, &RefusalPage { problem }, None)
}

#[derive(Template)]
#[template(path = "dev/issuer/refusal.html")]
struct RefusalPage<'a> {
    problem: &'a str,
}

/// Asks the user to confirm a logout.
///
/// The form names the `sid`, which only the login's clients know; they may end it without confirmation.
pub(super) fn confirm_logout(fields: &[(&str, &str)], sid: &str) -> Response {
    render(StatusCode::OK, &ConfirmLogoutPage { fields, sid }, None)
}

#[derive(Template)]
#[template(path = "dev/issuer/confirm_logout.html")]
struct ConfirmLogoutPage<'a> {
    fields: &'a [(&'a str, &'a str)],
    sid: &'a str,
}

/// Shows that the user is logged out, where the client wants no redirect.
pub(super) fn logged_out() -> Response {
    render(StatusCode::OK, &LoggedOutPage {}, None)
}

#[derive(Template)]
#[template(path = "dev/issuer/logged_out.html")]
struct LoggedOutPage {}

/// Shows the registration form.
pub(super) fn register(problem: Option<&str>) -> Response {
    let status = if problem.is_none() { StatusCode::OK } else { StatusCode::BAD_REQUEST };
    render(status, &RegisterPage { problem }, None)
}

#[derive(Template)]
#[template(path = "dev/issuer/register.html")]
struct RegisterPage<'a> {
    problem: Option<&'a str>,
}

/// Shows a registered client. Its secret is shown on no other page.
pub(super) fn registered(client: &Client) -> Response {
    let page = RegisteredPage { client, secret: secret(client).unwrap_or("none") };
    render(StatusCode::CREATED, &page, None)
}

#[derive(Template)]
#[template(path = "dev/issuer/registered.html")]
struct RegisteredPage<'a> {
    client: &'a Client,
    secret: &'a str,
}

/// Shows the issuer's users, clients, keys and endpoints.
pub(super) fn home(issuer: &DevIssuer) -> Response {
    let clients = issuer.clients.all();
    let clients = clients.iter().map(|client| {
        // Only the secrets of pre-registered clients are public.
        let public = issuer.config.clients.iter().any(|known| known.id == client.id);
        let secret = match secret(client) {
            Some(secret) if public => secret,
            Some(_) => "…",
            None => "none",
        };
        let grants = client.grants.iter().map(|grant| grant.name()).collect::<Vec<_>>().join(", ");
        ClientRow { client, secret, grants }
    });
    let published = issuer.keys.published();
    let keys = published["keys"].as_array().into_iter().flatten().map(|key| {
        let text = |name: &str| key[name].as_str().unwrap_or_default();
        (text("alg"), text("kid"))
    });
    let page = HomePage {
        url: &issuer.url,
        users: issuer.users.iter().collect(),
        clients: clients.collect(),
        keys: keys.collect(),
    };
    render(StatusCode::OK, &page, None)
}

#[derive(Template)]
#[template(path = "dev/issuer/home.html")]
struct HomePage<'a> {
    url: &'a str,
    users: Vec<&'a User>,
    clients: Vec<ClientRow<'a>>,
    /// `alg` and `kid` of each published key.
    keys: Vec<(&'a str, &'a str)>,
}

struct ClientRow<'a> {
    client: &'a Client,
    secret: &'a str,
    grants: String,
}

/// Returns the style sheet of all pages.
pub(super) fn style_sheet() -> Response {
    let style_sheet = include_str!("../page/style.css");
    response::content(StatusCode::OK, "text/css; charset=utf-8", style_sheet)
}

fn render(status: StatusCode, page: &impl Template, form_target: Option<&str>) -> Response {
    match page.render() {
        Ok(html) => response::page(status, html, form_target),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Returns the client's secret, if it has one.
fn secret(client: &Client) -> Option<&str> {
    match &client.authentication {
        Authentication::Basic(secret) | Authentication::Post(secret) => Some(secret.expose()),
        Authentication::PrivateKeyJwt(_) | Authentication::None => None,
    }
}

/// Describes a scope for the user.
fn meaning(scope: &str) -> &'static str {
    match scope {
        "openid" => "Know who you are",
        "profile" => "Read your name",
        "email" => "Read your e-mail address",
        "offline_access" => "Stay logged in for you",
        "orders:read" => "Read your orders",
        "orders:write" => "Change and delete your orders",
        "partners:read" => "Read what partners may see",
        _ => "Use",
    }
}

const BOX_PREFIX: &str = "scope ";
