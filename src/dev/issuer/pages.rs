//! What people see: plain HTML, one style sheet, no script.

use core::fmt::Write;

use http::StatusCode;

use super::clients::{Authentication, Client};
use super::reply::{self, Reply};
use super::request::AuthorizationRequest;
use super::{DevIssuer, path};
use crate::dev::html::escape;

/// The login form. `tried` is the user name of an attempt that failed.
pub(super) fn login(
    issuer: &DevIssuer,
    request: &AuthorizationRequest,
    name: &str,
    tried: Option<&str>,
) -> Reply {
    let failed = match tried {
        Some(_) => r#"<p class="alert" role="alert">The user name or the password is wrong.</p>"#,
        None => "",
    };
    let username = tried.or(request.login_hint.as_deref()).unwrap_or_default();
    let hints = issuer.people.iter().map(|person| {
        let (name, password) = (escape(&person.name), escape(person.password.expose()));
        format!("<code>{name}</code> with <code>{password}</code>")
    });
    let body = format!(
        r#"<h1>Log in</h1>
<p><strong>{client}</strong> wants to know who you are.</p>
{failed}<form method="post" action="{action}">
<input type="hidden" name="request" value="{name}">
<label for="username">User name</label>
<input id="username" name="username" value="{username}" autocomplete="username" autocapitalize="none" spellcheck="false" required autofocus>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required>
<button>Log in</button>
</form>
<p class="hint">Try {hints}.</p>"#,
        hints = hints.collect::<Vec<_>>().join(", or "),
        client = escape(&request.client.name),
        action = path::LOGIN,
        name = escape(name),
        username = escape(username),
    );
    let status = if tried.is_some() { StatusCode::FORBIDDEN } else { StatusCode::OK };
    page(status, "Log in", &body, request.back.form_target().as_deref())
}

/// The consent form: one box for each scope.
pub(super) fn consent(request: &AuthorizationRequest, name: &str, person: &str) -> Reply {
    let mut boxes = String::new();
    // Who somebody is comes first, and is not a choice: without it there is no login to speak of.
    let (first, rest): (Vec<_>, Vec<_>) =
        request.scopes.iter().partition(|scope| *scope == "openid");
    for scope in first.into_iter().chain(rest) {
        let fixed = if scope == "openid" { " disabled" } else { "" };
        let _ = writeln!(
            boxes,
            r#"<label class="box"><input type="checkbox" name="{name}" checked{fixed}> <span>{meaning} <code>{scope}</code></span></label>"#,
            name = escape(&box_of(scope)),
            meaning = meaning(scope),
            scope = escape(scope),
        );
    }
    let body = format!(
        r#"<h1>Allow access?</h1>
<p>You are <strong>{person}</strong>. <strong>{client}</strong> asks for:</p>
<form method="post" action="{action}">
<input type="hidden" name="request" value="{name}">
<fieldset><legend>What you allow</legend>
{boxes}</fieldset>
<div class="choice">
<button name="decision" value="allow">Allow</button>
<button name="decision" value="deny" class="quiet">Deny</button>
</div>
</form>"#,
        person = escape(person),
        client = escape(&request.client.name),
        action = path::CONSENT,
        name = escape(name),
    );
    page(StatusCode::OK, "Allow access?", &body, request.back.form_target().as_deref())
}

/// The name of a scope's box on the consent page.
pub(super) fn box_of(scope: &str) -> String {
    format!("scope {scope}")
}

/// Something that only the person can be told.
pub(super) fn refusal(why: &str) -> Reply {
    let body = format!("<h1>This does not work</h1>\n<p>{}</p>", escape(why));
    page(StatusCode::BAD_REQUEST, "This does not work", &body, None)
}

/// Asks whether the person wants to be logged out.
///
/// The answer names the login, as only its clients can, and those may end it without asking.
pub(super) fn confirm_logout(fields: &[(&str, &str)], sid: &str) -> Reply {
    let hidden: String = fields.iter().map(|(name, value)| hidden(name, value)).collect();
    let body = format!(
        r#"<h1>Log out?</h1>
<p>You will have to log in again here.</p>
<form method="post" action="{action}">
{hidden}<button name="confirmed" value="{sid}">Log out</button>
</form>"#,
        action = path::END_SESSION,
        sid = escape(sid),
    );
    page(StatusCode::OK, "Log out?", &body, None)
}

/// Nobody is logged in any more, and there is nowhere to go back to.
pub(super) fn logged_out() -> Reply {
    page(StatusCode::OK, "Logged out", "<h1>Logged out</h1>\n<p>You are logged out here.</p>", None)
}

/// The registration form.
pub(super) fn register(problem: Option<&str>) -> Reply {
    let problem = problem.map_or_else(String::new, |problem| {
        format!(r#"<p class="alert" role="alert">{}</p>"#, escape(problem))
    });
    let body = format!(
        r#"<h1>Register a client</h1>
<p>A client is a program that asks for tokens. It gets an id and a secret.</p>
{problem}<form method="post" action="{action}">
<label for="client_name">Name</label>
<input id="client_name" name="client_name" value="My program" required>
<label for="redirect_uri">Redirect URI, if people log in</label>
<input id="redirect_uri" name="redirect_uri" type="url" placeholder="https://localhost:8443/auth/callback">
<label for="scope">Scopes</label>
<input id="scope" name="scope" value="openid profile offline_access orders:read">
<label for="access_tokens">Access tokens</label>
<select id="access_tokens" name="access_tokens">
<option value="signed">signed: a service can verify them</option>
<option value="reference">reference: only this issuer knows them</option>
</select>
<button>Register</button>
</form>
<p class="hint">Programs register by themselves with JSON, as RFC 7591 says.</p>"#,
        action = path::REGISTER,
    );
    let status = if problem.is_empty() { StatusCode::OK } else { StatusCode::BAD_REQUEST };
    page(status, "Register a client", &body, None)
}

/// The answer to the registration form: the only time the secret is shown.
pub(super) fn registered(client: &Client) -> Reply {
    let secret = match &client.authentication {
        Authentication::Basic(secret) | Authentication::Post(secret) => secret.expose().as_str(),
        Authentication::PrivateKeyJwt(_) | Authentication::None => "none",
    };
    let body = format!(
        r#"<h1>{name} is registered</h1>
<dl>
<dt>Client id</dt><dd><code>{id}</code></dd>
<dt>Client secret</dt><dd><code>{secret}</code></dd>
<dt>Scopes</dt><dd>{scopes}</dd>
</dl>
<p>The secret is shown this once. It is forgotten when the issuer ends.</p>
<p><a href="{home}">About this issuer</a></p>"#,
        name = escape(&client.name),
        id = escape(&client.id),
        secret = escape(secret),
        scopes = escape(&client.scopes.to_string()),
        home = path::HOME,
    );
    page(StatusCode::CREATED, "Registered", &body, None)
}

/// The page about this issuer.
pub(super) fn home(issuer: &DevIssuer) -> Reply {
    let mut people = String::new();
    for person in issuer.people.iter() {
        let _ = writeln!(
            people,
            "<tr><td><code>{}</code></td><td><code>{}</code></td><td>{}</td><td>{}</td></tr>",
            escape(&person.name),
            escape(person.password.expose()),
            escape(&person.full_name),
            escape(&person.groups.join(", ")),
        );
    }
    let mut clients = String::new();
    for client in issuer.clients.all() {
        // Only those that everybody knows from the start have a secret that everybody may know.
        let public = issuer.options.clients.iter().any(|known| known.id == client.id);
        let secret = match &client.authentication {
            Authentication::Basic(secret) | Authentication::Post(secret) if public => {
                secret.expose().as_str()
            }
            Authentication::Basic(_) | Authentication::Post(_) => "…",
            Authentication::PrivateKeyJwt(_) | Authentication::None => "none",
        };
        let grants: Vec<_> = client.grants.iter().map(|grant| grant.name()).collect();
        let _ = writeln!(
            clients,
            "<tr><td><code>{}</code></td><td><code>{}</code></td><td>{}</td><td>{}</td></tr>",
            escape(&client.id),
            escape(secret),
            escape(&grants.join(", ")),
            escape(&client.scopes.to_string()),
        );
    }
    let published = issuer.keys.published();
    let mut keys = String::new();
    for key in published["keys"].as_array().into_iter().flatten() {
        let text = |name: &str| escape(key[name].as_str().unwrap_or_default());
        let _ = writeln!(keys, "<li>{} <code>{}</code></li>", text("alg"), text("kid"));
    }
    let body = format!(
        r#"<h1>Development issuer</h1>
<p>This is <code>{url}</code>, an OAuth 2.0 authorization server for one machine. It forgets everything when it ends.</p>
<h2>People</h2>
<table><thead><tr><th>User name</th><th>Password</th><th>Name</th><th>Groups</th></tr></thead><tbody>
{people}</tbody></table>
<h2>Clients</h2>
<table><thead><tr><th>Id</th><th>Secret</th><th>Grants</th><th>Scopes</th></tr></thead><tbody>
{clients}</tbody></table>
<p><a href="{register}">Register a client</a></p>
<h2>Published keys</h2>
<ul>
{keys}</ul>
<form method="post" action="{rotate}"><button class="quiet">Rotate the keys</button></form>
<h2>Endpoints</h2>
<ul>
<li><a href="{metadata}">Metadata</a> (RFC 8414)</li>
<li><a href="{openid}">OpenID configuration</a></li>
<li><a href="{jwks}">Keys</a></li>
</ul>"#,
        url = escape(&issuer.url),
        register = path::REGISTER,
        rotate = path::ROTATE,
        metadata = path::OAUTH_METADATA,
        openid = path::OPENID_METADATA,
        jwks = path::JWKS,
    );
    page(StatusCode::OK, "Development issuer", &body, None)
}

/// The style sheet of all pages.
pub(super) fn style() -> Reply {
    reply::of(StatusCode::OK, "text/css; charset=utf-8", include_str!("../page/style.css"))
}

fn page(status: StatusCode, title: &str, body: &str, form_target: Option<&str>) -> Reply {
    let html = format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · Development issuer</title>
<link rel="stylesheet" href="{style}">
</head>
<body>
<p class="banner">DEVELOPMENT: keys and users are public</p>
<main>
{body}
</main>
</body>
</html>
"#,
        style = path::STYLE,
    );
    reply::page(status, html, form_target)
}

fn hidden(name: &str, value: &str) -> String {
    format!("<input type=\"hidden\" name=\"{}\" value=\"{}\">\n", escape(name), escape(value))
}

/// A scope in words, for those that have some.
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
