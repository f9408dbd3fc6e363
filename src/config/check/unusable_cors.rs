//! Warns of CORS policies that no page can use (C110).

use http::Method;
use http::header::AUTHORIZATION;

use super::Check;
use crate::config::auth::{AuthMethod, TokenBinding, TokenSource};
use crate::config::de::field::Field;
use crate::config::fault::Code;
use crate::config::file::routes as file;
use crate::config::route::{Cors, Route};

impl Check<'_> {
    /// Warns of a CORS policy, or of one of its methods, that no page can use.
    pub(super) fn unusable_cors(&mut self, keys: &file::Route, routes: &[Route]) {
        self.cors_of_other_routes(keys);
        let Some(id) = keys.id.get() else { return };
        let Some(route) = routes.iter().find(|route| *route.id == *id.value) else { return };
        let Some(policy) = &route.cors else { return };
        self.fields_beside_cors(keys);
        if route.auth.is_optional() {
            return;
        }
        let lacks = |auth_method: &AuthMethod| lacking(auth_method, policy);
        let first = route.auth.methods().first().and_then(lacks);
        if let Some(first) =
            first.filter(|_| route.auth.methods().iter().all(|it| lacks(it).is_some()))
        {
            let at = keys.cors.get().map_or(id.at, |cors| cors.key_at);
            let message = "no page can use this route: `cors` lets it send no credential";
            self.fault(Code::C110, at, message, first);
            return;
        }
        let is_cookie =
            |auth_method: &AuthMethod| matches!(auth_method.token_from, TokenSource::Cookie(_));
        if !route.auth.methods().iter().all(is_cookie) {
            return;
        }
        let methods = keys.cors.get().and_then(|cors| cors.methods.get());
        for method in methods.into_iter().flat_map(|list| &list.value.items) {
            let asked = &method.value.0;
            if ![Method::GET, Method::HEAD, Method::OPTIONS].contains(asked) {
                let message = format!(
                    "no page can use {asked}: a token in a cookie authenticates it for pages of the same origin alone"
                );
                let help = "remove it, or have pages send the token in a field";
                self.fault(Code::C110, method.at, message, help);
            }
        }
    }

    /// Warns of a route's own `Access-Control-*` fields, which pages get whatever the policy says.
    fn fields_beside_cors(&mut self, keys: &file::Route) {
        let response = keys.headers.get().and_then(|headers| headers.response.get());
        let edits = response.into_iter().flat_map(|edits| [&edits.set, &edits.add]);
        let edited = edits.filter_map(Field::get).flat_map(|map| map.value.iter());
        let fixed = keys.respond.get().and_then(|respond| respond.headers.get());
        let fixed = fixed.into_iter().flat_map(|map| map.value.iter());
        for name in edited.map(|(name, _)| name).chain(fixed.map(|(name, _)| name)) {
            if name.value.to_ascii_lowercase().starts_with("access-control-") {
                let message = format!(
                    "{} beside `cors` is what every page gets, whatever its origin",
                    name.shown()
                );
                self.fault(Code::C110, name.at, message, "remove it: `cors` writes these fields");
            }
        }
    }

    /// Warns of CORS methods that the route itself does not match.
    fn cors_of_other_routes(&mut self, keys: &file::Route) {
        let Some(taken) = keys.methods.get() else { return };
        let methods = keys.cors.get().and_then(|cors| cors.methods.get());
        for method in methods.into_iter().flat_map(|list| &list.value.items) {
            let takes = |other: &Method| taken.items.iter().any(|at| at.value.0 == *other);
            let asked = &method.value.0;
            let is_taken = takes(asked) || (*asked == Method::HEAD && takes(&Method::GET));
            if !is_taken {
                let message = format!("this route does not take {asked}: no page can use it");
                let help = "remove it, or write it into `methods`; the route that takes it has a `cors` of its own";
                self.fault(Code::C110, method.at, message, help);
            }
        }
    }
}

/// Returns what a policy lacks for a page to send the credential of a method.
fn lacking(auth_method: &AuthMethod, policy: &Cors) -> Option<String> {
    let allows = |name: &_| policy.headers.contains(name);
    if auth_method.is_in_cookies() {
        return (!policy.credentials).then(|| "write credentials: true".to_owned());
    }
    // Browsers send user names and passwords that they have asked for.
    if auth_method.credential.password_issuer().is_some() && policy.credentials {
        return None;
    }
    match &auth_method.token_from {
        TokenSource::Header(name) => (!allows(name)).then(|| format!("write headers: [{name}]")),
        TokenSource::Authorization if !allows(&AUTHORIZATION) => {
            let proof = if auth_method.bound_to == Some(TokenBinding::Key) { ", DPoP" } else { "" };
            Some(format!("write headers: [Authorization{proof}]"))
        }
        TokenSource::Authorization | TokenSource::Cookie(_) => None,
    }
}
