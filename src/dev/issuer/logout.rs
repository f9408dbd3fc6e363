//! A client says that a person wants to log out (OpenID Connect RP-Initiated Logout 1.0).

use std::sync::Arc;

use http::Method;
use url::Url;

use super::browser::Login;
use super::clients::Client;
use super::error::OAuthError;
use super::form::Form;
use super::jwt::Jwt;
use super::pages;
use super::reply::{self, Reply};
use super::{Call, DevIssuer};

/// Logs the person out, at once if the client shows an ID token of this login, else after asking them.
pub(super) fn answer(issuer: &DevIssuer, call: &Call) -> Result<Reply, OAuthError> {
    let form = match call.head.method {
        Method::POST => call.form()?,
        _ => Form::parse(call.head.uri.query().unwrap_or_default().as_bytes())?,
    };
    let Ok(asked) = Asked::check(issuer, &form) else {
        return Ok(pages::refusal("The client that sent you here may not send you on from here."));
    };
    let browser = issuer.browsers.find(&call.head.headers);
    let login = browser.as_ref().and_then(|id| issuer.browsers.login(id, issuer.clock.now()));
    if let (Some(browser), Some(login)) = (browser, login) {
        let confirmed =
            call.head.method == Method::POST && form.one("confirmed") == Some(&*login.facts.sid);
        if !confirmed && !asked.means(&login) {
            return Ok(pages::confirm_logout(&Asked::fields(&form), &login.facts.sid));
        }
        issuer.browsers.log_out(&browser);
        issuer.end_login(&login.facts.sid)?;
    }
    Ok(match asked.back {
        Some(location) => reply::see_other(&location),
        None => pages::logged_out(),
    })
}

/// What the client asked for.
struct Asked {
    /// The login that its ID token was given in.
    sid: Option<String>,
    /// Where the person goes then.
    back: Option<String>,
}

/// The person cannot be sent where the client wants.
struct Elsewhere;

impl Asked {
    fn check(issuer: &DevIssuer, form: &Form) -> Result<Self, Elsewhere> {
        // An ID token is a hint however old it is, as long as it is ours.
        let hint = form.one("id_token_hint").and_then(Jwt::parse);
        let hint = hint.filter(|hint| {
            hint.text("iss") == Some(&issuer.url) && hint.is_signed_with(&issuer.keys.published())
        });
        let named = form.one("client_id").or(hint.as_ref().and_then(|hint| hint.text("aud")));
        let client = named.and_then(|id| issuer.clients.find(id));
        let back = match form.one("post_logout_redirect_uri") {
            Some(uri) => Some(way_back(client, uri, form.one("state")).ok_or(Elsewhere)?),
            None => None,
        };
        Ok(Self { sid: hint.and_then(|hint| hint.text("sid").map(str::to_owned)), back })
    }

    /// Whether the client's ID token shows that it means this login.
    fn means(&self, login: &Login) -> bool {
        self.sid.as_deref() == Some(&*login.facts.sid)
    }

    /// What a confirmation must repeat.
    fn fields(form: &Form) -> Vec<(&'static str, &str)> {
        ["id_token_hint", "client_id", "post_logout_redirect_uri", "state"]
            .into_iter()
            .filter_map(|name| Some((name, form.one(name)?)))
            .collect()
    }
}

fn way_back(client: Option<Arc<Client>>, uri: &str, state: Option<&str>) -> Option<String> {
    client?.post_logout_redirect_uris.iter().find(|registered| *registered == uri)?;
    let mut uri = Url::parse(uri).ok()?;
    if let Some(state) = state {
        uri.query_pairs_mut().append_pair("state", state);
    }
    Some(uri.into())
}
