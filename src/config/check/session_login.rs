//! Checks the parts of `sessions` that a login depends on: cookies that browsers accept, the authorization request, and
//! the token that identifies the user.

use std::collections::BTreeMap;
use std::sync::Arc;

use url::Url;

use super::Check;
use crate::base::domain::is_within;
use crate::base::scopes::Scopes;
use crate::config::de::field::Field;
use crate::config::fault::Code;
use crate::config::file::{File, sessions as file};
use crate::config::own_path_hosts;
use crate::config::route::{HostPattern, Route};
use crate::session::{Cookie, Flow, ForwardedSessionToken, Identity, Settings};

impl Check<'_> {
    /// Refuses a `cookie.domain` that browsers would not accept from the host of `public_url`: its cookies are dropped
    /// silently, and every login leads to the next (RFC 6265 §5.3, step 6).
    pub(super) fn cookie_domain(
        &mut self,
        set: &Field<file::Cookie>,
        cookie: &Cookie,
        public_url: &Url,
    ) {
        let (Some(domain), Some(keys)) = (&cookie.domain, set.get()) else { return };
        let Some(at) = keys.domain.get() else { return };
        let host = public_url.host_str().unwrap_or_default();
        let is_name = matches!(public_url.host(), Some(url::Host::Domain(_)));
        let fits = is_name && domain.contains('.') && is_within(host, domain);
        if !fits {
            let message = format!("browsers refuse a cookie for {} from {host}", at.shown());
            let help = "write the host of `public_url`, or a domain above it; or remove it";
            self.fault(Code::C106, at.at, message, help);
        }
    }

    /// Returns further parameters of the authorization request; the gateway's own cannot be replaced.
    pub(super) fn authorize_parameters(
        &mut self,
        keys: &file::Session,
    ) -> Vec<(Arc<str>, Arc<str>)> {
        let Some(map) = keys.authorize_parameters.get() else { return Vec::new() };
        if keys.flow.get().is_some_and(|at| at.value.0 == Flow::Password) {
            let message = "`flow: password` has no authorization request";
            self.fault(Code::C106, map.key_at, message, "write flow: code, or remove it");
        }
        let mut parameters = Vec::new();
        for (name, value) in map.value.iter() {
            if let Some((_, help)) = OWN_PARAMETERS.iter().find(|(own, _)| *own == name.value) {
                let message = format!("`{}` is the gateway's own parameter", name.value);
                self.fault(Code::C106, name.at, message, *help);
            }
            if name.value == "prompt" && !keys.prompt.is_absent() {
                let message = "`prompt` is given twice";
                self.fault(Code::C106, name.at, message, "keep one of them");
            }
            if name.value.is_empty() || value.value.is_empty() {
                let message = "a parameter needs a name and a value";
                self.fault(Code::C103, value.at, message, "write access_type: offline");
            }
            parameters.push((name.value.as_str().into(), value.value.as_str().into()));
        }
        parameters
    }

    /// Returns the `prompt` of the authorization request; an empty one is none.
    pub(super) fn prompt(&mut self, keys: &file::Session, scopes: &Scopes) -> Option<Arc<str>> {
        let Some(at) = keys.prompt.get() else {
            return scopes.contains("offline_access").then(|| "consent".into());
        };
        if ["off", "false", "no", "never"].contains(&at.value.as_str()) {
            let message =
                format!("{} is not a value of `prompt` (OpenID Connect Core §3.1.2.1)", at.shown());
            self.fault(Code::C103, at.at, message, "write prompt: \"\" to send none");
        }
        Some(at.value.as_str().into()).filter(|prompt: &Arc<str>| !prompt.is_empty())
    }

    /// Refuses to forward an ID token that no issuer sends, and warns of keys that have no effect with the `flow`.
    pub(super) fn effects_of_login(&mut self, keys: &file::Session, scopes: &Scopes) {
        if let Some(at) =
            keys.forward.get().filter(|at| at.value.0 == ForwardedSessionToken::IdToken)
            && !scopes.contains("openid")
        {
            let message = "without the scope `openid` there is no ID token";
            self.fault(Code::C106, at.at, message, "write the scope openid, or access_token");
        }
        let Some(flow) = keys.flow.get().map(|at| at.value.0) else { return };
        let callback = keys.paths.get().and_then(|paths| paths.value.callback.get());
        let of_code = [("prompt", keys.prompt.get()), ("paths.callback", callback)];
        for (key, at) in of_code {
            if let (Flow::Password, Some(at)) = (flow, at) {
                let message =
                    format!("`{key}` has no effect: `flow: password` has no authorization request");
                self.fault(Code::C110, at.key_at, message, "remove it");
            }
        }
        if let (Flow::Password, Some(at)) = (flow, keys.userinfo.get().filter(|at| at.value)) {
            let message = "`flow: password` does not ask the userinfo endpoint";
            self.fault(Code::C106, at.at, message, "write flow: code, or remove it");
        }
        if let (Flow::Code, Some(at)) = (flow, keys.login_failures.get()) {
            let message =
                "`login_failures` has no effect: with `flow: code` the issuer counts them";
            self.fault(Code::C110, at.key_at, message, "remove it");
        }
    }

    /// Warns of routes that take a session at a host which never gets its cookies: a login at the issuer ends at the host of
    /// `public_url`.
    pub(super) fn hosts_without_cookies(
        &mut self,
        file: &File,
        sessions: &BTreeMap<Arc<str>, Settings>,
        routes: &[Route],
    ) {
        for (name, _) in file.sessions.get().into_iter().flat_map(|map| map.value.iter()) {
            let Some(session) = sessions.get(name.value.as_str()) else { continue };
            let Some(own) = session.public_url.host_str() else { continue };
            if session.flow != Flow::Code {
                continue;
            }
            let domain = session.cookie.domain.as_deref();
            let reaches = |host: &HostPattern| match host {
                HostPattern::Exact(host) => {
                    **host == *own || domain.is_some_and(|d| is_within(host, d))
                }
                HostPattern::Wildcard(above) => {
                    host.takes(own) || domain.is_some_and(|domain| is_within(above, domain))
                }
            };
            let takes = |route: &&Route| own_path_hosts::takes(route, session);
            let foreign =
                |route: &&Route| !route.hosts.is_empty() && !route.hosts.iter().any(reaches);
            if let Some(route) = routes.iter().filter(takes).find(foreign) {
                let message = format!(
                    "the hosts of route `{}` never get the cookies of `{}`: its logins end at {own}",
                    route.id, name.value
                );
                let help = "write a `cookie.domain` above both, or a session for each host";
                self.fault(Code::C110, name.at, message, help);
            }
        }
    }

    /// Returns the token that identifies the user.
    pub(super) fn session_identity(&mut self, keys: &file::Session, scopes: &Scopes) -> Identity {
        let Some(at) = keys.identity.get() else { return Identity::default() };
        let by_code = keys.flow.get().is_none_or(|flow| flow.value.0 == Flow::Code);
        if at.value.0 == Identity::IdToken && (!by_code || !scopes.contains("openid")) {
            let message = "there is no ID token that the gateway verifies";
            let help = "write flow: code and the scope openid, or remove it";
            self.fault(Code::C106, at.at, message, help);
        }
        at.value.0
    }
}

/// Parameters of the authorization request that the gateway sets itself, or cannot have, and what to do instead.
const OWN_PARAMETERS: [(&str, &str); 18] = [
    ("response_type", "remove it: it is always code"),
    ("response_mode", "remove it: the gateway reads the response from the query"),
    ("client_id", "write client: { id: … }"),
    ("client_secret", "write client: { secret: … }"),
    ("client_assertion", "write client: { auth: private_key_jwt, key: path }"),
    ("client_assertion_type", "write client: { auth: private_key_jwt, key: path }"),
    ("redirect_uri", "write public_url and paths.callback"),
    ("scope", "write scopes: […]"),
    ("resource", "write resource: …"),
    ("state", "remove it: each login has its own"),
    ("nonce", "remove it: each login has its own"),
    ("code_challenge", "remove it: each login has its own"),
    ("code_challenge_method", "remove it: it is always S256"),
    ("code_verifier", "remove it: each login has its own"),
    ("request", "remove it"),
    ("request_uri", "remove it: the gateway pushes the request where the issuer takes that"),
    ("id_token_hint", "remove it"),
    ("dpop_jkt", "remove it"),
];
