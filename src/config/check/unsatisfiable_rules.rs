//! Refuses rules of one credential that no token can satisfy (C106), and warns of rules without effect (C110).

use serde_json::Value as Json;

use super::Check;
use super::auth::scopes;
use crate::base::scopes::Scopes;
use crate::config::auth::{AuthMethod, Credential, Expected};
use crate::config::de::field::Spanned;
use crate::config::fault::Code;
use crate::config::file::File;
use crate::config::file::issuers::Issuer;
use crate::config::file::routes::{self as file};
use crate::config::file::sessions::Session;
use crate::token::is_for_another_use;

impl Check<'_> {
    /// Checks the rules of `auth_method` against one another; they come from `inner`, or from `outer` in their absence.
    pub(super) fn void_rules(
        &mut self,
        file: &File,
        inner: &file::Auth,
        outer: Option<&file::Auth>,
        auth_method: &AuthMethod,
    ) {
        if let Some(claims) = inner.claims.get() {
            self.not_empty("claims", claims);
        }
        let claims = inner.claims.or_else(outer.map(|outer| &outer.claims));
        for (path, _) in claims.get().into_iter().flat_map(|map| map.value.iter()) {
            let Some(rule) = auth_method.claims.iter().find(|rule| *rule.path == *path.value)
            else {
                continue;
            };
            let is_text = rule.expected.values().iter().any(Json::is_string);
            if &*path.value == "acr" && !is_text {
                let message = "`acr` is a text in tokens (\"OpenID Connect Core\" §2)";
                self.fault(Code::C110, path.at, message, "write it in quotes");
            }
            if let Some(why) = contradiction(file, auth_method, &path.value, &rule.expected) {
                let message = format!("no token can satisfy this: {why}");
                self.fault(Code::C106, path.at, message, "remove it, or write what tokens say");
            }
        }
        self.foreign_clients(file, inner, outer, auth_method);
        self.unrequested_scopes(file, inner, outer, auth_method);
        let any = inner.any_scope.or_else(outer.map(|outer| &outer.any_scope));
        let both = auth_method.any_scope.iter().find(|scope| auth_method.scopes.contains(scope));
        if let (Some(at), Some(both)) = (any.get(), both) {
            let message = format!("`any_scope` has no effect: `scopes` requires `{both}` already");
            self.fault(Code::C110, at.key_at, message, "remove that scope from one of the two");
        }
    }

    /// Refuses `clients` without the gateway's own, which has obtained the token, beside `basic` or `session`; warns where
    /// other credentials of `any` have the same rule.
    fn foreign_clients(
        &mut self,
        file: &File,
        inner: &file::Auth,
        outer: Option<&file::Auth>,
        auth_method: &AuthMethod,
    ) {
        let clients = inner.clients.or_else(outer.map(|outer| &outer.clients));
        let (Some(at), Some(own)) = (clients.get(), own_client(file, &auth_method.credential))
        else {
            return;
        };
        if !auth_method.clients.is_empty()
            && !auth_method.clients.iter().any(|client| **client == *own)
        {
            let kind = auth_method.credential.key();
            let tokens = format!("tokens beside `{kind}` are of the client `{own}`");
            let help = "write it beside tokens that clients present, or remove it";
            if inner.clients.get().is_some() {
                let message = format!("no caller satisfies this: {tokens}");
                self.fault(Code::C106, at.key_at, message, help);
            } else {
                // Other credentials of `any` may satisfy it.
                let message = format!("no caller with `{kind}` satisfies this: {tokens}");
                self.fault(Code::C110, at.key_at, message, help);
            }
        }
    }

    /// Warns of scopes that the gateway does not request where it obtains the token itself: an issuer may grant more, but
    /// few do (RFC 6749 §3.3). Not where roles count as scopes, which are requested by no name of theirs.
    fn unrequested_scopes(
        &mut self,
        file: &File,
        inner: &file::Auth,
        outer: Option<&file::Auth>,
        auth_method: &AuthMethod,
    ) {
        let Some((requested, key)) = requested_scopes(file, &auth_method.credential) else {
            return;
        };
        let all = inner.scopes.or_else(outer.map(|outer| &outer.scopes));
        let any = inner.any_scope.or_else(outer.map(|outer| &outer.any_scope));
        let is_lacking = |scope: &&str| !requested.iter().any(|asked| grants(asked, scope));
        let lacking = auth_method.scopes.iter().find(is_lacking);
        let none_of = auth_method
            .any_scope
            .iter()
            .find(|_| auth_method.any_scope.iter().all(|it| is_lacking(&it)));
        let unmet = [
            all.get().map(|at| at.key_at).zip(lacking),
            any.get().map(|at| at.key_at).zip(none_of),
        ];
        for (at, scope) in unmet.into_iter().flatten() {
            let message = format!("the gateway does not request `{scope}` for these users");
            self.fault(Code::C110, at, message, format!("add it to {key}"));
        }
    }

    /// Refuses an issuer that is twice in one list, and warns of two that are asked about the same tokens.
    pub(super) fn distinguishable_issuers(
        &mut self,
        file: &File,
        names: &[Spanned<String>],
        key: &str,
    ) {
        for (index, name) in names.iter().enumerate() {
            let earlier = &names[..index];
            if earlier.iter().any(|other| other.value == name.value) {
                let message = format!("{} is repeated", name.shown());
                self.fault(Code::C111, name.at, message, "keep one of them");
                continue;
            }
            let own = iss(file, &name.value);
            let first =
                earlier.iter().find(|other| own.is_some() && iss(file, &other.value) == own);
            let Some(first) = first else { continue };
            // A JWT is tried with the keys of each issuer; an opaque token would be introspected at each of them.
            if key != "jwt" {
                let tokens = if key == "bearer" { "opaque token" } else { "token" };
                let message = format!(
                    "issuers {} and {} are one server: each {tokens} is introspected twice",
                    first.shown(),
                    name.shown()
                );
                self.fault(Code::C110, name.at, message, "keep one of them");
            }
        }
    }
}

/// Returns the keys of the issuer called `name`.
pub(super) fn issuer<'f>(file: &'f File, name: &str) -> Option<&'f Issuer> {
    let issuers = file.issuers.get()?;
    issuers.iter().find(|(key, _)| key.value == name).map(|(_, keys)| &**keys)
}

/// Returns the `issuer` URL of the issuer called `name`.
fn iss<'f>(file: &'f File, name: &str) -> Option<&'f str> {
    issuer(file, name)?.issuer.get().map(|at| at.value.as_str())
}

/// Whether the `client_id` of a token of the issuer called `name` is its client.
fn is_client(file: &File, name: &str) -> bool {
    let claims = issuer(file, name).and_then(|keys| keys.client_claim.get());
    claims.is_none_or(|list| list.items.first().is_some_and(|at| at.value == "client_id"))
}

/// Returns the id of the client whose tokens callers with this credential have, where that is the gateway's own.
fn own_client<'f>(file: &'f File, credential: &Credential) -> Option<&'f str> {
    let (name, own) = match credential.session() {
        Some(name) => {
            let session = session(file, name)?;
            (session.issuer.get()?.value.as_str(), Some(&session.client))
        }
        None => (&**credential.password_issuer()?, None),
    };
    if !is_client(file, name) {
        return None;
    }
    let client = match own {
        Some(own) if !own.is_absent() => own,
        _ => &issuer(file, name)?.client,
    };
    client.get()?.id.get().map(|at| at.value.as_str())
}

/// Returns the scopes that the gateway requests for callers with this credential, and the key that lists them; `None`
/// where the client chooses them, or the issuer.
fn requested_scopes(file: &File, credential: &Credential) -> Option<(Scopes, &'static str)> {
    let session = match credential.session() {
        Some(name) => Some(session(file, name)?),
        None => None,
    };
    let name = match session {
        Some(session) => session.issuer.get()?.value.as_str(),
        None => credential.password_issuer()?,
    };
    let claims = issuer(file, name)?.scope_claim.get();
    let names_roles =
        |at: &Spanned<String>| !matches!(at.value.as_str(), "scope" | "scp") || at.value.is_empty();
    if claims.is_some_and(|list| list.items.iter().any(names_roles)) {
        return None;
    }
    let Some(session) = session else {
        let requested = scopes(&issuer(file, name)?.password_grant.get()?.scopes);
        return (!requested.is_empty()).then_some((requested, "`password_grant.scopes`"));
    };
    let own = &session.scopes;
    let requested = if own.is_absent() { "openid".split(' ').collect() } else { scopes(own) };
    (!requested.is_empty() && !own.is_bad()).then_some((requested, "the session's `scopes`"))
}

/// Whether a request for the scope `asked` may be granted as `scope`: Entra ID's tokens leave out the name of the API, which
/// requests have (`api://orders/Orders.Read`, and `api://orders/.default` for all that it has).
fn grants(asked: &str, scope: &str) -> bool {
    let api = asked.strip_suffix(scope);
    api.is_some_and(|api| api.is_empty() || api.ends_with(['/', ':']))
        || asked.ends_with("/.default")
}

/// Returns the keys of the session called `name`.
fn session<'f>(file: &'f File, name: &str) -> Option<&'f Session> {
    let sessions = file.sessions.get()?;
    sessions.iter().find(|(key, _)| key.value == name).map(|(_, keys)| &**keys)
}

/// Returns why no token can have the expected value in the claim at `path`.
fn contradiction(
    file: &File,
    auth_method: &AuthMethod,
    path: &str,
    expected: &Expected,
) -> Option<String> {
    let values = expected.values();
    let disjoint = |allowed: &[&str]| {
        !values.iter().any(|value| value.as_str().is_some_and(|text| allowed.contains(&text)))
    };
    let names = auth_method.credential.issuers();
    match path {
        "iss" => {
            let issuers: Option<Vec<&str>> = names.iter().map(|name| iss(file, name)).collect();
            let issuers = issuers.filter(|issuers| !issuers.is_empty() && disjoint(issuers))?;
            Some(format!("`iss` is always `{}`", issuers.join("` or `")))
        }
        "exp" | "iat" | "nbf" | "auth_time" => {
            Some(format!("`{path}` is a time, another one in each token"))
        }
        "sub" | "jti" | "azp" | "client_id" if !values.iter().any(Json::is_string) => {
            Some(format!("`{path}` is always a text"))
        }
        "acr" => {
            let level = auth_method.level.as_ref()?;
            let acr: Vec<&str> = level.acr.iter().map(|acr| &**acr).collect();
            (!acr.is_empty() && disjoint(&acr)).then(|| "`acr` asks for another value".to_owned())
        }
        name if matches!(auth_method.credential, Credential::Token { .. })
            && values.iter().all(|value| {
                value.as_str().is_some_and(|value| is_for_another_use(name, value))
            }) =>
        {
            Some("such tokens are not for access, and are refused".to_owned())
        }
        "client_id"
            if !auth_method.clients.is_empty()
                && names.iter().all(|name| is_client(file, name)) =>
        {
            let clients: Vec<&str> = auth_method.clients.iter().map(|client| &**client).collect();
            disjoint(&clients).then(|| "`clients` asks for another client".to_owned())
        }
        _ => None,
    }
}
