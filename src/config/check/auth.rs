//! `auth` of routes, policies and `defaults`.

use core::ops::Deref;
use core::time::Duration;
use std::sync::Arc;

use http::HeaderName;
use http::header::{AUTHORIZATION, COOKIE};
use serde_json::Value as Json;

use super::{Check, MAX_DURATION, defined_names};
use crate::base::scopes::Scopes;
use crate::config::auth::{
    Auth, AuthMethod, ClaimRule, Credential, Expected, ForwardToken, IdentityHeader, TokenBinding,
    TokenSource,
};
use crate::config::de::field::{Field, List, OneOrMany, Spanned};
use crate::config::de::units::{InvalidValue, Scalar, Scope};
use crate::config::fault::Code;
use crate::config::file::File;
use crate::config::file::routes::{self as file, AuthNone, ClaimValue};
use crate::config::file::server::{ClientAuth, Listener};
use crate::config::file::value::{KeywordOr, Value};
use crate::config::reserved_headers::IDENTITY_TOKEN;
use crate::session::{Flow, Identity};
use crate::token::TokenUse;
use crate::token::authentication_level::AuthenticationLevel;

/// Returns the identity header fields of routes that do not configure any.
pub(super) fn default_identity() -> impl Iterator<Item = IdentityHeader> {
    [("x-auth-subject", "sub"), ("x-auth-client", "client_id"), ("x-auth-scopes", "scope")]
        .into_iter()
        .map(|(name, claim)| IdentityHeader {
            name: HeaderName::from_static(name),
            claim: claim.into(),
        })
}

impl Check<'_> {
    /// Returns the authentication of a route; `None` if it is invalid.
    pub(super) fn auth(
        &mut self,
        file: &File,
        set: &Field<KeywordOr<AuthNone, file::Auth>>,
    ) -> Option<Auth> {
        let at = set.get()?;
        let keys = match &at.value {
            KeywordOr::Scalar(_) => return Some(Auth::None),
            KeywordOr::Mapping(keys) => keys,
        };
        let optional = keys.optional.or(false);
        let methods = match keys.any.get() {
            None if keys.any.is_bad() => return None,
            None => self.auth_method(file, keys, None, at).into_iter().collect(),
            Some(any) => self.any(file, any, keys),
        };
        if optional {
            self.unguarded(keys);
        }
        (!methods.is_empty()).then_some(Auth::AnyOf { methods, optional })
    }

    fn any(
        &mut self,
        file: &File,
        any: &Spanned<List<file::Auth>>,
        outer: &file::Auth,
    ) -> Vec<AuthMethod> {
        let beside = method(outer);
        if let Some(other) = beside.first() {
            let message = format!("`{}` cannot be combined with `any`", other.0);
            self.fault(Code::C106, any.key_at, message, "write it into the list");
        }
        let mut methods: Vec<AuthMethod> = Vec::new();
        for inner in &any.items {
            if !inner.any.is_absent() || !inner.optional.is_absent() {
                let message = "`any` and `optional` stand outside the list";
                self.fault(Code::C106, inner.at, message, "write them beside the outer `any`");
            }
            let Some(auth_method) = self.auth_method(file, &inner.value, Some(outer), inner) else {
                continue;
            };
            if let Some(first) =
                methods.iter().find(|first| first.carrier() == auth_method.carrier())
            {
                let message = format!("this is never reached: {} decides first", first.carrier());
                self.fault(
                    Code::C106,
                    inner.at,
                    message,
                    "write jwt: [a, b] for several issuers, or bearer",
                );
            }
            methods.push(auth_method);
        }
        let takes_tokens =
            |auth_method: &AuthMethod| !auth_method.credential.token_issuers().is_empty();
        if let Some(from) = outer.token_from.get()
            && !methods.is_empty()
            && !methods.iter().any(takes_tokens)
        {
            self.token_from_means_nothing(from.key_at);
        }
        self.unused_staleness(file, &outer.max_staleness, &methods);
        methods
    }

    /// Returns one accepted credential; keys that `inner` lacks are taken from `outer`.
    fn auth_method<T>(
        &mut self,
        file: &File,
        inner: &file::Auth,
        outer: Option<&file::Auth>,
        written: &Spanned<T>,
    ) -> Option<AuthMethod> {
        let credential = self.credential(file, inner, written);
        macro_rules! key {
            ($key:ident) => {
                inner.$key.or_else(outer.map(|outer| &outer.$key))
            };
        }
        let claims = key!(claims).get().map(|map| {
            map.value.iter().filter_map(|(path, value)| self.claim(path, value)).collect()
        });
        let identity = key!(identity_headers);
        let identity_headers = match identity.get() {
            None => default_identity().collect(),
            Some(map) => map
                .value
                .iter()
                .filter_map(|(name, claim)| self.identity_header(name, claim))
                .collect(),
        };
        let outer_source = outer.map(|outer| &outer.token_from);
        let is_token = credential.as_ref().is_none_or(|it| !it.token_issuers().is_empty());
        let source = inner.token_from.or_else(outer_source.filter(|_| is_token));
        let token_from = self.token_from(source, key!(dpop), credential.as_ref());
        let bound_to = self.bound_to(file, key!(dpop), key!(mtls), credential.as_ref());
        let staleness = key!(max_staleness);
        let max_staleness =
            staleness.get().map(|_| self.time_or_zero(staleness, Duration::ZERO, MAX_DURATION));
        let forward = key!(forward_token);
        // A token that is not in `Authorization` is forwarded, as one that is, only where that is asked for.
        let unasked = match token_from {
            TokenSource::Authorization => ForwardToken::Presented,
            TokenSource::Header(_) | TokenSource::Cookie(_) => ForwardToken::No,
        };
        let forward_token = forward.get().map_or(unasked, |at| at.value.0);
        let asked = |credential: &Credential| !credential.introspecting_issuers().is_empty();
        if let (ForwardToken::Signed, Some(at), Some(credential)) =
            (forward_token, forward.get(), &credential)
            && !asked(credential)
        {
            let message = "`jwt` replaces reference tokens, and this route accepts none";
            let help = "write forward_token: jwt beside introspection or bearer alone";
            self.fault(Code::C106, at.at, message, help);
        }
        let level = self.level(file, key!(acr), key!(max_age), credential.as_ref());
        self.relies_on_access_token(file, key!(audience), credential.as_ref());
        let auth_method = AuthMethod {
            credential: credential?,
            token_from,
            level,
            scopes: scopes(key!(scopes)),
            any_scope: scopes(key!(any_scope)),
            audience: self.texts(key!(audience).get().map(|at| &at.value)),
            claims: claims.unwrap_or_default(),
            clients: self.texts(key!(clients).get().map(|at| &at.value.0)),
            bound_to,
            max_staleness,
            identity_headers,
            identity_token: key!(identity_token).or(false),
            forward_token,
        };
        self.void_rules(file, inner, outer, &auth_method);
        let own = core::slice::from_ref(&auth_method);
        self.unused_staleness(file, &inner.max_staleness, own);
        Some(auth_method)
    }

    /// Returns the texts of a list, of which none may be empty: no token has such a value.
    pub(super) fn texts<T: for<'s> From<&'s str>>(
        &mut self,
        list: Option<&OneOrMany<String>>,
    ) -> Vec<T> {
        let mut texts = Vec::new();
        for at in list.into_iter().flat_map(|list| &list.items) {
            if at.value.is_empty() {
                self.fault(Code::C103, at.at, "this is empty", "write a text, or remove it");
            }
            texts.push(at.value.as_str().into());
        }
        texts
    }

    /// Returns the required token binding.
    fn bound_to(
        &mut self,
        file: &File,
        dpop: &Field<bool>,
        mtls: &Field<bool>,
        credential: Option<&Credential>,
    ) -> Option<TokenBinding> {
        let (dpop, mtls) = (dpop.get().filter(|at| at.value), mtls.get().filter(|at| at.value));
        let (bound_to, at) = match (dpop, mtls) {
            (None, None) => return None,
            (Some(_), Some(mtls)) => {
                let message = "a token is bound to a key or to a certificate, not to both";
                self.fault(Code::C106, mtls.key_at, message, "keep one of dpop and mtls");
                return None;
            }
            (Some(dpop), None) => {
                if is_forgetful(file) {
                    let message = "a proof that was used can be used again after a restart";
                    let help = "write server: { state_dir: path }";
                    self.fault(Code::C110, dpop.key_at, message, help);
                }
                (TokenBinding::Key, dpop)
            }
            (None, Some(mtls)) => (TokenBinding::Certificate, mtls),
        };
        if credential.is_some_and(|credential| !credential.takes_tokens()) {
            let message = "the gateway obtains this token itself: no client can prove possession";
            self.fault(
                Code::C106,
                at.key_at,
                message,
                "write it into an entry of `any` that takes tokens: { jwt: main, dpop: true }",
            );
        }
        if bound_to == TokenBinding::Certificate && !asks_for_certificates(file) {
            let message = "no listener requests client certificates";
            let help = "write client_ca: … and client_auth: required into the `tls` of one";
            self.fault(Code::C106, at.key_at, message, help);
        }
        Some(bound_to)
    }

    /// Refuses a rule about the access token beside a session that does not read it.
    fn relies_on_access_token(
        &mut self,
        file: &File,
        audience: &Field<OneOrMany<String>>,
        credential: Option<&Credential>,
    ) {
        let (Some(name), Some(at)) = (credential.and_then(Credential::session), audience.get())
        else {
            return;
        };
        let session =
            file.sessions.get().and_then(|all| all.iter().find(|(key, _)| *key.value == **name));
        let identity = session.and_then(|(_, session)| session.identity.get());
        if identity.is_some_and(|identity| identity.value.0 == Identity::IdToken) {
            let message =
                format!("session `{name}` does not read its access token: this can never be met");
            let help = "remove it, or write identity: access_token into the session";
            self.fault(Code::C109, at.key_at, message, help);
        }
    }

    /// Returns the demands on the user's login, which only a login at the issuer can meet.
    fn level(
        &mut self,
        file: &File,
        acr: &Field<OneOrMany<String>>,
        max_age: &Value<Duration>,
        credential: Option<&Credential>,
    ) -> Option<AuthenticationLevel> {
        let values = acr.get().map(|list| &list.value.items[..]).unwrap_or_default();
        for at in values {
            // The values are sent in a quoted list, separated by spaces (RFC 9470 §3).
            let plain = |byte: u8| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
            if at.value.is_empty() || !at.value.bytes().all(plain) {
                let help =
                    "write it without spaces and quotes, such as urn:mace:incommon:iap:silver";
                self.wrong(at, InvalidValue::new("is not a value of `acr`", help));
            }
        }
        let position = acr.get().map(|at| at.key_at).or(max_age.get().map(|at| at.key_at))?;
        let by_password = |name: &Arc<str>| {
            let session = file.sessions.get()?.iter().find(|(key, _)| *key.value == **name)?.1;
            let flow = session.flow.get()?;
            (flow.value.0 == Flow::Password).then_some(())
        };
        let cannot_step_up = match credential {
            Some(Credential::Basic(_)) => true,
            Some(Credential::Session(name)) => by_password(name).is_some(),
            _ => false,
        };
        if cannot_step_up {
            let message = "tokens of a password grant do not describe the user's login: this can never be met";
            let help = "write it beside a session with flow: code, or beside tokens; or remove it";
            self.fault(Code::C109, position, message, help);
        }
        self.whole_seconds(max_age);
        let max_age = max_age.get().map(|_| self.time(max_age, MAX_DURATION, MAX_DURATION));
        let acr: Box<[Arc<str>]> = values.iter().map(|at| at.value.as_str().into()).collect();
        (!acr.is_empty() || max_age.is_some()).then_some(AuthenticationLevel { acr, max_age })
    }

    fn credential<T>(
        &mut self,
        file: &File,
        keys: &file::Auth,
        written: &Spanned<T>,
    ) -> Option<Credential> {
        let methods = method(keys);
        match methods.as_slice() {
            [_] => {}
            [] => {
                let message = "no credential is listed";
                self.fault(
                    Code::C105,
                    written.at,
                    message,
                    "write one of jwt, introspection, bearer, basic, session, any",
                );
                return None;
            }
            [first, second, ..] => {
                let message = format!("`{}` and `{}` exclude each other", first.0, second.0);
                let help = format!("write any: [{{ {}: … }}, {{ {}: … }}]", first.0, second.0);
                self.fault(Code::C106, written.at, message, help);
                return None;
            }
        }
        for (accepts, key, names) in [
            (TokenUse::Jwt, "jwt", &keys.jwt),
            (TokenUse::Introspection, "introspection", &keys.introspection),
            (TokenUse::Bearer, "bearer", &keys.bearer),
        ] {
            if let Some(names) = names.get() {
                let issuers = self.issuer_names(file, names, key)?;
                return Some(Credential::Token { accepts, issuers });
            }
        }
        if let Some(name) = keys.basic.get() {
            let issuers = defined_names(&file.issuers);
            let known = self.defined(name, "issuers", &issuers)?;
            let client =
                file.issuers.get().and_then(|map| map.iter().find(|(key, _)| key.value == *known));
            if client.is_some_and(|(_, issuer)| issuer.client.is_absent()) {
                let message = format!(
                    "issuer {} has no `client`, which the exchange of credentials needs",
                    name.shown()
                );
                self.fault(
                    Code::C106,
                    name.at,
                    message,
                    "write client: { id: …, secret: … } into the issuer",
                );
            }
            return Some(Credential::Basic(known));
        }
        let name = keys.session.get()?;
        let sessions = defined_names(&file.sessions);
        self.defined(name, "sessions", &sessions).map(Credential::Session)
    }

    fn issuer_names(
        &mut self,
        file: &File,
        names: &Spanned<OneOrMany<String>>,
        key: &str,
    ) -> Option<Vec<Arc<str>>> {
        let issuers = defined_names(&file.issuers);
        self.distinguishable_issuers(file, &names.items, key);
        let mut found: Vec<Arc<str>> = Vec::new();
        for name in &names.items {
            found.extend(
                self.defined(name, "issuers", &issuers).filter(|name| !found.contains(name)),
            );
        }
        if found.len() > 1 && key != "jwt" {
            let message = "a reference token does not name its issuer: each of these issuers receives the others' tokens";
            let help = "name only issuers that trust each other, or give each a route of its own";
            self.fault(Code::C110, names.at, message, help);
        }
        (!found.is_empty() && found.len() == names.items.len() && !names.incomplete)
            .then_some(found)
    }

    fn claim(&mut self, path: &Spanned<String>, value: &Spanned<ClaimValue>) -> Option<ClaimRule> {
        if path.value.is_empty() {
            self.fault(
                Code::C103,
                path.at,
                "a claim has no name",
                "write its name, or a path such as realm_access.roles",
            );
            return None;
        }
        let expected = match &value.value {
            ClaimValue::Scalar(one) => Expected::OneOf(vec![one.clone()]),
            ClaimValue::Sequence(many) => Expected::OneOf(many.clone()),
            ClaimValue::Mapping(keys) => {
                let help = "write { contains: admin }";
                let wanted = self.required(&keys.contains, value.at, "contains", help)?;
                Expected::Contains(wanted.value.clone())
            }
        };
        let values = match &expected {
            Expected::OneOf(values) => values.as_slice(),
            Expected::Contains(value) => core::slice::from_ref(value),
        };
        let plain = |value: &Json| value.is_string() || value.is_number() || value.is_boolean();
        if values.is_empty() || !values.iter().all(plain) {
            let message = "a claim cannot be compared with this value";
            self.fault(Code::C103, value.at, message, "write a text, a number, true or false");
            return None;
        }
        if values.iter().any(|value| value.as_str() == Some("")) {
            let message = "an empty text is no value to compare a claim with";
            self.fault(Code::C103, value.at, message, "write the text, or remove the rule");
            return None;
        }
        Some(ClaimRule { path: path.value.as_str().into(), expected })
    }

    fn identity_header(
        &mut self,
        name: &Spanned<String>,
        claim: &Spanned<String>,
    ) -> Option<IdentityHeader> {
        let header = self.field(name)?;
        if header == AUTHORIZATION || header == COOKIE {
            let message = format!("`{header}` carries credentials");
            self.fault(Code::C109, name.at, message, "write another field, such as X-Auth-Subject");
            return None;
        }
        if header == IDENTITY_TOKEN {
            let message = "this field carries the gateway's identity token";
            let help = "write another field; identity_token: true fills this one";
            self.fault(Code::C106, name.at, message, help);
            return None;
        }
        if claim.value.is_empty() {
            self.fault(Code::C103, claim.at, "a claim has no name", "write its name, such as sub");
            return None;
        }
        Some(IdentityHeader { name: header, claim: claim.value.as_str().into() })
    }

    /// Refuses rules beside `optional`, which lets anonymous callers past every rule, wherever the rule is written.
    fn unguarded(&mut self, keys: &file::Auth) {
        self.rules_beside_optional(keys);
        for inner in keys.any.get().into_iter().flat_map(|any| &any.value.items) {
            self.rules_beside_optional(inner);
        }
    }

    fn rules_beside_optional(&mut self, keys: &file::Auth) {
        let rules = [
            (keys.scopes.get().map(|at| at.key_at), "scopes"),
            (keys.any_scope.get().map(|at| at.key_at), "any_scope"),
            (keys.audience.get().map(|at| at.key_at), "audience"),
            (keys.claims.get().map(|at| at.key_at), "claims"),
            (keys.clients.get().map(|at| at.key_at), "clients"),
            (keys.acr.get().map(|at| at.key_at), "acr"),
            (keys.max_age.get().map(|at| at.key_at), "max_age"),
            (keys.dpop.get().filter(|at| at.value).map(|at| at.key_at), "dpop"),
            (keys.mtls.get().filter(|at| at.value).map(|at| at.key_at), "mtls"),
        ];
        for (position, name) in rules {
            if let Some(position) = position {
                let message = format!(
                    "`{name}` would apply to callers with a token, and not to those without"
                );
                self.fault(Code::C109, position, message, "remove `optional`, or the rule");
            }
        }
    }
}

/// Returns the authentication methods that are present, valid or not.
fn method(keys: &file::Auth) -> Vec<(&'static str, ())> {
    let methods = [
        ("jwt", keys.jwt.is_absent()),
        ("introspection", keys.introspection.is_absent()),
        ("bearer", keys.bearer.is_absent()),
        ("basic", keys.basic.is_absent()),
        ("session", keys.session.is_absent()),
    ];
    methods.into_iter().filter(|(_, absent)| !absent).map(|(name, _)| (name, ())).collect()
}

/// Whether some listener requests client certificates; true if that cannot be read.
fn asks_for_certificates(file: &File) -> bool {
    let Some(listen) = file.listen.get() else { return true };
    let asks = |listener: &Listener| match &listener.tls {
        Field::Present(Spanned { value: KeywordOr::Mapping(tls), .. }) => {
            !tls.client_auth.get().is_none_or(|at| at.value.0 == ClientAuth::None)
                || tls.client_auth.is_bad()
        }
        Field::Present(_) | Field::Absent => false,
        Field::Invalid => true,
    };
    listen.incomplete
        || listen.items.iter().any(|item| match &item.value {
            KeywordOr::Mapping(listener) => asks(listener),
            KeywordOr::Scalar(_) => false,
        })
}

pub(super) fn scopes<L: Deref<Target = OneOrMany<Scalar<Scope>>>>(set: &Field<L>) -> Scopes {
    set.get()
        .into_iter()
        .flat_map(|list| &list.value.items)
        .map(|at| at.value.0.0.as_str())
        .collect()
}

/// Whether the record of ended sessions is lost at a restart.
pub(super) fn is_forgetful(file: &File) -> bool {
    let state_dir = file.server.get().map(|server| &server.value.state_dir);
    file.redis.is_absent() && !file.server.is_bad() && state_dir.is_none_or(Field::is_absent)
}
