//! Checks `sessions`.

use super::auth::is_forgetful;
use core::time::Duration;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use url::Url;

use super::auth::scopes;
use super::{Check, MAX_DURATION, defined_names};
use crate::base::secret::Secret;
use crate::config::Issuer;
use crate::config::de::field::{Field, ListOrNone, Spanned};
use crate::config::de::units::{FromScalar, InvalidValue};
use crate::config::fault::{Code, Position};
use crate::config::file::{File, sessions as file};
use crate::config::own_path_hosts;
use crate::config::patterns;
use crate::config::route::{HostPattern, PathPattern, Route};
use crate::limit::{self, KeyPart};
use crate::password::Failures;
use crate::session::{Cookie, Csrf, Paths, ReturnTo, SameSite, Settings, Store, TokenStorage};

impl Check<'_> {
    pub(super) fn sessions(
        &mut self,
        file: &File,
        issuers: &BTreeMap<Arc<str>, Issuer>,
        limits: &BTreeMap<Arc<str>, limit::Settings>,
    ) -> BTreeMap<Arc<str>, Settings> {
        self.names(&file.sessions);
        let Some(sessions) = file.sessions.get() else { return BTreeMap::new() };
        let mut all = BTreeMap::new();
        for (name, keys) in sessions.iter() {
            let own_limits = self.session_limits(file, keys, limits);
            if let Some(session) = self.session(file, issuers, name, keys) {
                let session = Settings { limits: own_limits, ..session };
                self.lasting(file, name, &session);
                all.insert(Arc::from(name.value.as_str()), session);
            }
        }
        all
    }

    fn session(
        &mut self,
        file: &File,
        issuers: &BTreeMap<Arc<str>, Issuer>,
        name: &Spanned<String>,
        keys: &Spanned<file::Session>,
    ) -> Option<Settings> {
        let issuer = self
            .required(&keys.issuer, name.at, "issuer", "name the issuer where people log in")
            .and_then(|issuer| self.defined(issuer, "issuers", &defined_names(&file.issuers)));
        let help = "write flow: password, or flow: code";
        let flow = self.required(&keys.flow, name.at, "flow", help).map(|at| at.value.0);
        let help = "write the scheme and host that users see, such as https://www.example.com";
        self.required(&keys.public_url, name.at, "public_url", help);
        let public_url = self.public_url(
            &keys.public_url,
            "browsers must reach this over https: cookies travel there",
        );
        let asked = if keys.scopes.is_absent() {
            "openid".split(' ').collect()
        } else {
            scopes(&keys.scopes)
        };
        let client = self.session_client(file, issuers, name, keys, issuer.as_deref());
        let seconds = Duration::from_secs;
        self.whole_seconds(&keys.idle_timeout);
        self.whole_seconds(&keys.absolute_timeout);
        let idle_timeout = self.time(&keys.idle_timeout, seconds(1_800), MAX_DURATION);
        let absolute_timeout = self.time(&keys.absolute_timeout, seconds(43_200), MAX_DURATION);
        if absolute_timeout < idle_timeout {
            let position =
                keys.absolute_timeout.get().or(keys.idle_timeout.get()).map_or(keys.at, |at| at.at);
            self.fault(
                Code::C106,
                position,
                "`absolute_timeout` is shorter than `idle_timeout`",
                "write the longer time for the whole session",
            );
        }
        let paths = self.session_paths(name, &keys.paths);
        let tokens = self.token_storage(name, keys);
        if let TokenStorage::Server(Store::Redis) = tokens {
            self.shares(&keys.store, file, "`store: redis`");
        }
        let cookie = self.cookie(&keys.cookie);
        if let Some(url) = &public_url {
            self.cookie_domain(&keys.cookie, &cookie, url);
        }
        let authorize_parameters = self.authorize_parameters(keys);
        let identity = self.session_identity(keys, &asked);
        self.effects_of_login(keys, &asked);
        let session_keys = self.session_keys(file, name, keys, tokens);
        let login_failures = self.failures(&keys.login_failures);
        let csrf = self.csrf(keys);
        let after_login = self.session_path(&keys.after_login, "/");
        let after_logout = self.session_path(&keys.after_logout, "/");
        let no_pages = [&paths.callback, &paths.logout, &paths.refresh, &paths.back_channel_logout];
        self.no_page(&keys.after_login, no_pages.into_iter().chain([&paths.login]));
        self.no_page(&keys.after_logout, no_pages.into_iter());
        let return_to = self.return_to(&keys.return_to);
        let refresh_before = self.time(&keys.refresh_before, seconds(60), MAX_DURATION);
        let style = keys.style.get().and_then(|path| self.style(path));

        let mut session = Settings::new(&name.value, &issuer?, client?, flow?, public_url?);
        session.prompt = self.prompt(keys, &asked);
        if authorize_parameters.iter().any(|(name, _)| **name == *"prompt") {
            session.prompt = None;
        }
        session.authorize_parameters = authorize_parameters;
        session.identity = identity;
        session.userinfo = keys.userinfo.or(false);
        session.scopes = asked;
        session.resource = keys.resource.get().map(|at| at.value.0.clone());
        session.paths = paths;
        session.tokens = tokens;
        session.keys = session_keys;
        session.cookie = cookie;
        session.idle_timeout = idle_timeout;
        session.absolute_timeout = absolute_timeout;
        if let Some((count, window)) = login_failures {
            session.login_failures = Failures { count, window };
        }
        session.refresh_before = refresh_before;
        session.csrf = csrf;
        session.on_unauthenticated =
            keys.on_unauthenticated.get().map(|at| at.value.0).unwrap_or_default();
        session.after_login = after_login;
        session.after_logout = after_logout;
        session.return_to = return_to;
        session.revoke_on_logout = keys.revoke_on_logout.or(true);
        session.end_session = keys.end_session.or(true);
        session.forward = keys.forward.get().map(|at| at.value.0).unwrap_or_default();
        session.style = style;
        Some(session)
    }

    /// Returns the limits of a session's own paths; none may count by caller, who is unknown there.
    fn session_limits(
        &mut self,
        file: &File,
        keys: &file::Session,
        limits: &BTreeMap<Arc<str>, limit::Settings>,
    ) -> Vec<Arc<str>> {
        let needs = |name: &str, needs: fn(&KeyPart) -> bool| {
            let limit = limits.get(name);
            limit.is_some_and(|limit| limit.plans.is_some() || limit.by.iter().any(needs))
        };
        let shared = file.defaults.get().and_then(|defaults| defaults.limits.get());
        let shared = shared.into_iter().flat_map(|list| &list.value.items);
        let open = |part: &KeyPart| !matches!(part, KeyPart::Ip | KeyPart::Route | KeyPart::Global);
        let mut names: Vec<Arc<str>> = shared
            .filter(|name| limits.contains_key(name.value.as_str()) && !needs(&name.value, open))
            .map(|name| name.value.as_str().into())
            .collect();
        let own: Vec<_> =
            keys.limits.get().into_iter().flat_map(|list| &list.value.items).collect();
        for name in self.limit_names(file, own.iter().copied()) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        for name in own.into_iter().filter(|name| needs(&name.value, KeyPart::needs_principal)) {
            let message = format!(
                "limit {} counts by caller, but requests to a session's own paths have no caller yet",
                name.shown()
            );
            self.fault(Code::C109, name.at, message, "name one that counts by ip, or global");
        }
        names
    }

    /// Warns where cookies outlive a restart, but the record of ended sessions does not.
    fn lasting(&mut self, file: &File, name: &Spanned<String>, session: &Settings) {
        let lasts = match session.tokens {
            // Without configured keys, cookies become invalid when the process ends.
            TokenStorage::PlainCookies | TokenStorage::SealedCookies => !session.keys.is_empty(),
            TokenStorage::Server(_) => false,
        };
        if lasts && is_forgetful(file) {
            let message =
                format!("after a restart, logged-out sessions of `{}` are valid again", name.value);
            self.fault(Code::C110, name.at, message, "write server: { state_dir: path }");
        }
    }

    /// Reads a style sheet for the login pages.
    fn style(&mut self, path: &Spanned<String>) -> Option<Arc<str>> {
        let Ok(text) = String::from_utf8(self.file(path)?) else {
            let message = format!("{} is not text", path.shown());
            self.fault(Code::C108, path.at, message, "name a style sheet in UTF-8");
            return None;
        };
        // The style sheet is embedded in a `<style>` element.
        if text.contains("</") {
            let message = format!("{} holds `</`, which would end it early", path.shown());
            self.fault(Code::C108, path.at, message, "remove it from the style sheet");
            return None;
        }
        Some(text.into())
    }

    fn session_client(
        &mut self,
        file: &File,
        issuers: &BTreeMap<Arc<str>, Issuer>,
        name: &Spanned<String>,
        keys: &file::Session,
        issuer: Option<&str>,
    ) -> Option<crate::issuer::Client> {
        if !keys.client.is_absent() {
            return keys.client.get().and_then(|client| self.client(client));
        }
        let issuer = issuer?;
        let written =
            file.issuers.get().and_then(|map| map.iter().find(|(key, _)| key.value == issuer));
        if written.is_some_and(|(_, issuer)| issuer.client.is_absent()) {
            let message = format!("neither session `{}` nor its issuer has a `client`", name.value);
            self.fault(Code::C105, name.at, message, "write client: { id: …, secret: … }");
        }
        issuers.get(issuer)?.settings.client.clone()
    }

    fn session_paths(&mut self, name: &Spanned<String>, set: &Field<file::Paths>) -> Paths {
        let absent = file::Paths::default();
        let keys = set.get().map_or(&absent, |at| &at.value);
        let base = self.own_path(&keys.base, "/auth");
        let default = Paths::under(base.trim_end_matches('/'));
        let paths = Paths {
            login: self.own_path(&keys.login, &default.login),
            callback: self.own_path(&keys.callback, &default.callback),
            logout: self.own_path(&keys.logout, &default.logout),
            status: self.own_path(&keys.status, &default.status),
            refresh: self.own_path(&keys.refresh, &default.refresh),
            back_channel_logout: self
                .own_path(&keys.back_channel_logout, &default.back_channel_logout),
        };
        let own = [
            &paths.login,
            &paths.callback,
            &paths.logout,
            &paths.status,
            &paths.refresh,
            &paths.back_channel_logout,
        ];
        for (index, path) in own.iter().enumerate() {
            if own[..index].contains(path) {
                let position = set.get().map_or(name.at, |at| at.at);
                let message = "two of the session's paths are the same";
                self.fault(Code::C106, position, message, "write another for one of them");
            }
        }
        paths
    }

    /// Refuses an address after a login or logout at which the gateway does something, and shows no page: another login
    /// after each, without end.
    fn no_page<'p>(&mut self, set: &Field<String>, mut own: impl Iterator<Item = &'p Arc<str>>) {
        if let Some(at) = set.get()
            && own.any(|path| **path == *at.value)
        {
            let message = format!("{} is a path of the session itself, and no page", at.shown());
            self.fault(Code::C106, at.at, message, "write a page of the site, such as /");
        }
    }

    /// Returns a path at which the gateway serves a session.
    fn own_path(&mut self, set: &Field<String>, default: &str) -> Arc<str> {
        if let Some(at) = set.get().filter(|at| at.value.contains(';')) {
            let wrong =
                "can never match: an upstream could read the path without the part after `;`";
            self.wrong(at, InvalidValue::new(wrong, "write it without `;`"));
            return default.into();
        }
        self.session_path(set, default)
    }

    fn session_path(&mut self, set: &Field<String>, default: &str) -> Arc<str> {
        let Some(at) = set.get() else { return default.into() };
        match patterns::check_literal(&at.value) {
            Ok(()) => at.value.as_str().into(),
            Err(wrong) => {
                self.wrong(at, wrong);
                default.into()
            }
        }
    }

    fn token_storage(&mut self, name: &Spanned<String>, keys: &file::Session) -> TokenStorage {
        let tokens = keys.tokens.get().map(|at| at.value.0).unwrap_or_default();
        if let TokenStorage::Server(_) = tokens {
            let position = keys.tokens.get().map_or(name.at, |at| at.at);
            let store =
                self.required(&keys.store, position, "store", "write store: memory, or redis");
            return TokenStorage::Server(store.map(|at| at.value.0).unwrap_or_default());
        }
        if let Some(at) = keys.store.get() {
            let message = "`store` is for sessions with `tokens: server`";
            self.fault(Code::C106, at.at, message, "write tokens: server as well, or remove it");
        }
        if let (TokenStorage::PlainCookies, Some(at)) = (tokens, keys.tokens.get()) {
            let message =
                "browsers will hold usable tokens, which other programs on their machines can read";
            self.fault(Code::C110, at.at, message, "write sealed_cookies");
        }
        tokens
    }

    fn session_keys(
        &mut self,
        file: &File,
        name: &Spanned<String>,
        keys: &file::Session,
        tokens: TokenStorage,
    ) -> Vec<Secret<[u8; 32]>> {
        let Some(list) = keys.keys.get() else {
            // Sessions in process memory need no keys, unless refreshes are shared through Redis, encrypted.
            let alone = tokens == TokenStorage::Server(Store::Memory) && file.redis.is_absent();
            if keys.keys.is_absent() && !alone {
                let message = format!(
                    "session `{}` has no `keys`: its sessions end with this process and other replicas cannot read them",
                    name.value
                );
                self.fault(
                    Code::C110,
                    name.at,
                    message,
                    "write keys: [{ file: path }], made by `northgate keygen`",
                );
            }
            return Vec::new();
        };
        list.items.iter().filter_map(|key| self.key(key)).collect()
    }

    fn cookie(&mut self, set: &Field<file::Cookie>) -> Cookie {
        let default = Cookie::default();
        let Some(keys) = set.get() else { return default };
        let prefix = keys.prefix.or(default.prefix.to_string());
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if let Some(at) = keys.prefix.get().filter(|at| !at.value.bytes().all(token)) {
            self.wrong(
                at,
                InvalidValue::new(
                    "cannot begin a cookie's name",
                    "write letters, digits, `-` and `_`",
                ),
            );
        }
        if let Some(at) = keys.prefix.get().filter(|at| at.value.len() > MAX_PREFIX_LEN) {
            let wrong = "is too long: browsers drop cookies whose names and values are long";
            self.wrong(at, InvalidValue::new(wrong, "write up to 64 characters"));
        }
        let secure = keys.secure.or(true);
        let host_prefix = prefix.eq_ignore_ascii_case("__Host-");
        let secure_prefix = host_prefix || prefix.eq_ignore_ascii_case("__Secure-");
        let path = self.session_path(&keys.path, "/");
        let breaks = [
            (keys.domain.get().map(|at| at.key_at).filter(|_| host_prefix), "`domain`"),
            (
                keys.path.get().map(|at| at.key_at).filter(|_| host_prefix && &*path != "/"),
                "another `path`",
            ),
            (
                keys.secure.get().map(|at| at.key_at).filter(|_| secure_prefix && !secure),
                "`secure: false`",
            ),
        ];
        for (position, what) in breaks {
            if let Some(position) = position {
                let message = format!("browsers refuse a cookie with this `prefix` and {what}");
                self.fault(Code::C106, position, message, "remove it, or write another `prefix`");
            }
        }
        let same_site = keys.same_site.get().map(|at| at.value.0).unwrap_or_default();
        if let Some(at) = keys.same_site.get().filter(|_| same_site == SameSite::None && !secure) {
            let message = "cookies for every site must be Secure";
            self.fault(Code::C109, at.at, message, "write same_site: lax, or secure: true");
        }
        if let Some(at) = keys.secure.get().filter(|_| !secure && !secure_prefix) {
            let message =
                "session cookies will travel over http, where others on the network can read them";
            self.fault(Code::C110, at.key_at, message, "remove it");
        }
        let domain = keys.domain.get().and_then(|at| match self.parsed::<HostPattern>(at)? {
            HostPattern::Exact(host) => Some(Arc::from(host)),
            HostPattern::Wildcard(_) => {
                self.wrong(at, InvalidValue::new("is not a domain", "write it without `*.`"));
                None
            }
        });
        Cookie { prefix: prefix.into(), same_site, secure, domain, path }
    }

    fn csrf(&mut self, keys: &file::Session) -> Csrf {
        let csrf = keys.csrf.get().map(|at| at.value.0).unwrap_or_default();
        if let (Csrf::Off, Some(at)) = (csrf, keys.csrf.get()) {
            let message = "every page on the web can act with a logged-in user's session";
            self.fault(Code::C110, at.at, message, "write strict");
        }
        csrf
    }

    fn return_to(&mut self, set: &Field<ListOrNone<String>>) -> Vec<ReturnTo> {
        let Some(list) = set.get() else { return vec![ReturnTo::SameOrigin] };
        let mut destinations = Vec::new();
        for at in &list.items {
            if at.value.starts_with('/') {
                match PathPattern::parse(&at.value) {
                    Ok(pattern) if patterns::check_literal(&at.value).is_ok() || pattern.rest => {
                        let path = at.value.strip_suffix("/**").unwrap_or(&at.value);
                        let path = if path.is_empty() { "/" } else { path };
                        destinations
                            .push(ReturnTo::Path { path: path.into(), below: pattern.rest });
                    }
                    Ok(_) => self.wrong(
                        at,
                        InvalidValue::new(
                            "is a pattern",
                            "write a path, with or without /** at its end",
                        ),
                    ),
                    Err(wrong) => self.wrong(at, wrong),
                }
                continue;
            }
            match Url::parse(&at.value).map(|url| url.origin().ascii_serialization()) {
                // No origin contains `*`.
                Ok(origin) if origin == at.value && !origin.contains('*') => {
                    destinations.push(ReturnTo::Origin(origin.into()));
                }
                Ok(origin) if origin != "null" && !origin.contains('*') => {
                    self.wrong(
                        at,
                        InvalidValue::new(
                            "is not an origin as browsers send it",
                            format!("write {origin}"),
                        ),
                    );
                }
                _ => self.wrong(
                    at,
                    InvalidValue::new(
                        "is neither a path nor an origin",
                        "write /app/** or https://app.example.com",
                    ),
                ),
            }
        }
        destinations
    }

    /// Refuses two owners of one host and path, since a session's own paths precede every route where it is used.
    pub(super) fn shadowed(
        &mut self,
        file: &File,
        sessions: &BTreeMap<Arc<str>, Settings>,
        routes: &[Route],
    ) {
        let mut taken: Vec<(String, &str, Rc<Hosts>)> = Vec::new();
        for (name, keys) in file.sessions.get().into_iter().flat_map(|map| map.value.iter()) {
            let settings = sessions.get(name.value.as_str());
            let hosts = settings
                .map_or_else(|| vec![None], |session| own_path_hosts::hosts(session, routes));
            let hosts = Rc::new(hosts);
            for own in own_paths(name, keys) {
                let same = |(path, _, others): &&(String, &str, Rc<Hosts>)| {
                    *path == own.path && own_path_hosts::overlap(others, &hosts)
                };
                if let Some((_, other, _)) = taken.iter().find(same) {
                    let message = format!("{} is already a path of session `{other}`", own.shown);
                    let help = "give one of the two sessions other `paths`";
                    self.fault(Code::C106, own.position, message, help);
                }
                if let Some(route) = route_at(routes, &hosts, &own.path) {
                    let message = format!("{} is shadowed by route `{route}`", own.shown);
                    let help = "give the session other `paths`, or the route another path";
                    self.fault(Code::C106, own.position, message, help);
                }
                if DOCUMENTS.iter().any(|document| own.path.starts_with(document)) {
                    let message = format!("{} is a path of the gateway's own documents", own.shown);
                    self.fault(Code::C106, own.position, message, "write another path");
                }
                taken.push((own.path, &name.value, Rc::clone(&hosts)));
            }
        }
    }
}

/// The hosts on which a session is used; `None` is any.
type Hosts = Vec<Option<HostPattern>>;

/// Characters of `cookie.prefix`: browsers drop cookies of more than 4,096 bytes (RFC 6265bis §5.6), and parts take 3,800.
const MAX_PREFIX_LEN: usize = 64;
/// The paths of the gateway's own documents: its JWK set and its metadata.
const DOCUMENTS: [&str; 2] = ["/.well-known/jwks.json", "/.well-known/oauth-protected-resource"];

/// One of the paths that the gateway serves for a session.
struct OwnPath {
    path: String,
    shown: String,
    position: Position,
}

/// Returns a session's paths, including defaults, with their positions in the file.
fn own_paths(name: &Spanned<String>, keys: &file::Session) -> Vec<OwnPath> {
    let absent = file::Paths::default();
    let own = keys.paths.get().map_or(&absent, |at| &at.value);
    let base = own.base.get().map_or("/auth", |at| at.value.trim_end_matches('/'));
    let default = Paths::under(base);
    let pairs = [
        (&own.login, default.login),
        (&own.callback, default.callback),
        (&own.logout, default.logout),
        (&own.status, default.status),
        (&own.refresh, default.refresh),
        (&own.back_channel_logout, default.back_channel_logout),
    ];
    let paths = pairs.into_iter().map(|(set, default)| match set.get() {
        Some(at) => OwnPath { path: at.value.clone(), shown: at.shown(), position: at.at },
        None => {
            OwnPath { path: default.to_string(), shown: format!("`{default}`"), position: name.at }
        }
    });
    paths.collect()
}

/// Returns the id of a route with exactly this path on one of the session's hosts.
fn route_at<'r>(routes: &'r [Route], hosts: &[Option<HostPattern>], path: &str) -> Option<&'r str> {
    let wanted = PathPattern::parse(path).ok()?;
    let here = |route: &&Route| {
        let its: Vec<_> = route.hosts.iter().cloned().map(Some).collect();
        route.paths.contains(&wanted)
            && own_path_hosts::overlap(if its.is_empty() { &[None] } else { &its }, hosts)
    };
    routes.iter().find(here).map(|route| &*route.id)
}
