//! What would happen to a request, and why: for the operator, with nothing running.
//!
//! A [`RouteExplainer`] holds the same routes as a [`Snapshot`](crate::gateway::Snapshot), arranged and searched by the
//! same code, but they lead to what the configuration says instead of to what serves.

use core::convert::Infallible;
use core::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use http::header::{CONNECTION, HOST, UPGRADE};
use http::request::Parts;
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Method};

use crate::base::clock::Timestamp;
use crate::config::reserved_headers::ReservedHeaders;
use crate::config::route::{HeaderMatch, HostPattern, PathPattern};
use crate::config::{self, AuthMethod, Config, Credential};
use crate::gateway::compile::{judge, matches_own_fields};
use crate::gateway::policy::authorize::AuthorizationRules;
use crate::gateway::proxy::identity_token;
use crate::gateway::proxy::rewrite;
use crate::gateway::proxy::rewrite::TargetRewriter;
use crate::gateway::proxy::websocket::is_websocket;
use crate::gateway::request::forwarded::Forwarded;
use crate::gateway::request::path_readings::PathReadings;
use crate::gateway::request::{headers, host, request_body};
use crate::gateway::routing::match_route;
use crate::gateway::routing::match_route::Found;
use crate::gateway::routing::own_paths;
use crate::gateway::routing::own_paths::OwnPathOwner;
use crate::gateway::routing::route::{CompiledRoute, MatchRule, Router};
use crate::gateway::well_known::protected_resource;
use crate::gateway::well_known::protected_resource::ProtectedResources;
use crate::gateway::{CompileError, Rejection, RetainedState};
use crate::observe::metrics::{AuthResult, NO_ROUTE};
use crate::token::jwt::verify::Unverified;
use crate::token::{Principal, TokenError, TokenUse, Verifier};
use crate::upstream::ExtraHeaders;
use crate::{issuer, session};

/// What leads where.
#[derive(Debug)]
pub struct RouteExplainer<'c> {
    router: Router<Destination<'c>>,
    config: &'c Config,
    reserved: ReservedHeaders,
}

/// What a request comes to.
#[derive(Clone, Copy, Debug)]
pub enum Destination<'c> {
    /// A route of the file.
    Route(&'c config::Route),
    /// A path that a session serves itself.
    Session(&'c session::Settings),
    /// What the gateway says of itself as a protected resource (RFC 9728).
    Metadata,
    /// The public keys of its identity tokens.
    Keys,
    /// The gateway itself, which answers `OPTIONS *` with 204.
    Gateway,
}

impl Destination<'_> {
    /// What metrics and the log call it.
    pub fn id(&self) -> String {
        match self {
            Self::Route(route) => route.id.to_string(),
            Self::Session(session) => format!("_session_{}", session.name),
            Self::Metadata => protected_resource::ID.to_owned(),
            Self::Keys => identity_token::ID.to_owned(),
            Self::Gateway => NO_ROUTE.to_owned(),
        }
    }
}

/// One host and path, and what takes requests there.
#[derive(Clone, Debug)]
pub struct Candidate<'c> {
    /// `None` is any.
    pub host: Option<HostPattern>,
    /// Where.
    pub path: PathPattern,
    /// Methods it takes; empty is all but TRACE and CONNECT.
    pub methods: Vec<Method>,
    /// Fields a request must have besides.
    pub match_headers: Vec<HeaderMatch>,
    /// Whether it takes the method that was asked about.
    pub takes_method: bool,
    /// What it leads to.
    pub leads_to: Destination<'c>,
}

/// What was found for a request.
#[derive(Debug)]
pub struct Decision<'c> {
    /// The host without its port, in lower case; `None` if it is not one.
    pub host: Option<Box<str>>,
    /// The path without dot segments; `None` if no service should see it.
    pub path: Option<String>,
    /// The readings of that path by which it is matched, and where each leads; one if it is read alike by all services.
    pub readings: Vec<(String, Result<Destination<'c>, Rejection>)>,
    /// What host and path lead to, in the order in which methods and fields were compared.
    pub candidates: Vec<Candidate<'c>>,
    /// What takes the request, or why nothing does.
    pub outcome: Result<Destination<'c>, Rejection>,
    /// Whether it is a preflight that the gateway answers, for what takes the request that it asks about.
    pub preflight: bool,
    /// The path that the service receives, or why it receives none.
    pub sent: Option<Result<String, Rejection>>,
}

impl<'c> RouteExplainer<'c> {
    /// The routes of `config`.
    pub fn of(config: &'c Config) -> Self {
        let routes = config
            .routes
            .iter()
            .map(|route| CompiledRoute::of(route, Arc::new(Destination::Route(route))));
        let own = own_paths::entries(config, &ProtectedResources::of(config), |owner| {
            Ok::<_, Infallible>(Arc::new(match owner {
                OwnPathOwner::Session(session) => Destination::Session(session),
                OwnPathOwner::Metadata(_) => Destination::Metadata,
                OwnPathOwner::Keys => Destination::Keys,
            }))
        });
        let own = own.unwrap_or_else(|never| match never {});
        let names = config.identity_headers.iter().chain([&config.server.request_id_header]);
        Self {
            router: Router::new(routes.chain(own).collect()),
            config,
            reserved: ReservedHeaders::new(names),
        }
    }

    /// Every host and path in the order of a search, the most specific first.
    pub fn in_order(&self) -> Vec<Candidate<'c>> {
        self.router.in_order().iter().map(Candidate::of).collect()
    }

    /// What becomes of a request of a client that is no trusted proxy, over TLS if its target says `https`.
    pub fn decide(&self, mut head: Parts) -> Decision<'c> {
        let refused = |host, rejection| Decision {
            host,
            path: None,
            readings: Vec::new(),
            candidates: Vec::new(),
            outcome: Err(rejection),
            preflight: false,
            sent: None,
        };
        let host = match host::read(&mut head) {
            Ok(host) => host.name,
            Err(rejection) => return refused(None, rejection),
        };
        if request_body::is_asterisk_form(&head) {
            return Decision {
                path: Some("*".to_owned()),
                outcome: Ok(Destination::Gateway),
                ..refused(Some(host), Rejection::NoRoute)
            };
        }
        let secure = head.uri.scheme() == Some(&Scheme::HTTPS);
        let said = self.own_fields(&mut head, secure);
        let readings = match match_route::read_path(&mut head.uri) {
            Ok(readings) => readings,
            Err(rejection) => return refused(Some(host), rejection),
        };
        let path = head.uri.path().to_owned();
        let candidates = self.candidates(&host, readings.forwarded(&path), &head.method);
        let found = |readings: &PathReadings| self.find(&host, &head, readings, &said);
        let each = readings.all(&path).map(|reading| {
            (
                reading.to_owned(),
                found(&PathReadings::only(reading.to_owned())).map(|(leads, _)| leads),
            )
        });
        let each = each.collect();
        let (outcome, preflight) = match found(&readings) {
            Ok((leads, preflight)) => (Ok(leads), preflight),
            Err(rejection) => (Err(rejection), false),
        };
        let sent = match &outcome {
            Ok(Destination::Route(route)) => {
                let target = TargetRewriter::new(route.rewrite.clone(), route.paths.clone());
                let mut uri = head.uri;
                Some(target.rewrite(&mut uri).map(|()| uri.path().to_owned()))
            }
            _ => None,
        };
        let (host, path) = (Some(host), Some(path));
        Decision { host, path, readings: each, candidates, outcome, preflight, sent }
    }

    fn find(
        &self,
        host: &str,
        head: &Parts,
        readings: &PathReadings,
        said: &HeaderMap,
    ) -> Result<(Destination<'c>, bool), Rejection> {
        let answers_preflights = |leads: &Destination<'_>| match leads {
            Destination::Route(route) => route.cors.is_some(),
            Destination::Metadata => true,
            Destination::Session(_) | Destination::Keys | Destination::Gateway => false,
        };
        let found =
            match_route::find(&self.router, host, head, readings, said, answers_preflights)?;
        let (found, preflight) = match found {
            Found::Route(found) => (**found, false),
            Found::Preflight(all) => (***all.first().ok_or(Rejection::NoRoute)?, true),
        };
        match found {
            Destination::Route(route) if !route.enabled => Err(Rejection::NoRoute),
            found => Ok((found, preflight)),
        }
    }

    /// Takes away what the service will not see of the request, and returns what the gateway will say in its place.
    fn own_fields(&self, head: &mut Parts, secure: bool) -> HeaderMap {
        let mut own = HeaderMap::new();
        let host = head.headers.get(HOST).cloned();
        let upgrade = headers::strip_untrusted(&mut head.headers, &self.reserved, false).upgrade;
        if !matches_own_fields(self.config) {
            return own;
        }
        let peer_value = HeaderValue::from_static(SOME_CLIENT);
        let peer = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let forwarded =
            Forwarded { said: None, peer, peer_value: &peer_value, host: host.as_ref(), secure };
        let mut fields = ExtraHeaders::new();
        forwarded.write(&mut fields, self.config.server.forwarded_headers);
        fields.merge_into(&mut own);
        if let Some(protocol) = upgrade.filter(|_| head.method == Method::GET)
            && is_websocket(&protocol)
        {
            own.insert(UPGRADE, protocol);
            own.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        }
        own
    }

    fn candidates(&self, host: &str, path: &str, method: &Method) -> Vec<Candidate<'c>> {
        let rules = self.router.in_order();
        let candidate = |entry: &CompiledRoute<Destination<'c>>| {
            let here = |rule: &&MatchRule<'_, Destination<'c>>| {
                core::ptr::eq(rule.entry, entry) && rewrite::is_valid_target(rule.path, path)
            };
            // The first is the one that a search comes to first.
            let rule = rules.iter().find(here)?;
            Some(Candidate { takes_method: entry.takes(method), ..Candidate::of(rule) })
        };
        self.router.candidates(host, path, method).filter_map(candidate).collect()
    }
}

impl<'c> Candidate<'c> {
    fn of(rule: &MatchRule<'_, Destination<'c>>) -> Self {
        Self {
            host: rule.host.clone(),
            path: rule.path.clone(),
            methods: rule.entry.methods.clone(),
            match_headers: rule.entry.match_headers.clone(),
            takes_method: true,
            leads_to: *rule.entry.route,
        }
    }
}

/// What stands for the address of a client that could be any.
const SOME_CLIENT: &str = "0.0.0.0";

/// What a way in makes of a token.
#[derive(Debug)]
pub enum Verdict {
    /// It is good, and this is who it speaks for; if it is bound, in the right hands.
    Good(Arc<Principal>),
    /// The issuer's keys cannot be had: everything but the signature is good.
    Unchecked(Arc<Principal>),
    /// It breaks a rule.
    Refused(TokenError),
    /// This way takes no tokens.
    NotTaken,
}

/// What a way in makes of `token` at `now`. Asks the issuer for keys, and about reference tokens.
///
/// # Errors
///
/// [`CompileError`] if an issuer's TLS settings cannot be used.
pub async fn verify(
    config: &Config,
    credential: &Credential,
    token: &str,
    now: Timestamp,
    kept: &RetainedState,
) -> Result<Verdict, CompileError> {
    let (kind, names) = match credential {
        Credential::Jwt(issuers) => (TokenUse::Jwt, issuers),
        Credential::Introspection(issuers) => (TokenUse::Introspection, issuers),
        Credential::Bearer(issuers) => (TokenUse::Bearer, issuers),
        Credential::Basic(_) | Credential::Session(_) => return Ok(Verdict::NotTaken),
    };
    let issuers: Vec<(&Arc<str>, &config::Issuer)> =
        names.iter().filter_map(|name| Some((name, config.issuers.get(name)?))).collect();
    let mut judges = Vec::new();
    for (name, issuer) in &issuers {
        // Whoever only looks leaves nothing behind.
        let settings = issuer::Settings { state_dir: None, ..issuer.settings.clone() };
        judges.push(judge(name, &settings, &issuer.rules, kept)?.1);
    }
    Ok(match Verifier::new(kind, judges).verify_bound(token, now, None).await {
        Ok(good) => Verdict::Good(good.confirmed_by()),
        Err(error @ TokenError::Unavailable { .. }) if kind != TokenUse::Introspection => {
            let unverified = |(_, issuer): &(&Arc<str>, &config::Issuer)| {
                let token = Unverified::read(token).ok()?;
                token.unverified_principal(&issuer.settings, &issuer.rules, now).ok()
            };
            match issuers.iter().find_map(unverified) {
                Some(principal) => Verdict::Unchecked(Arc::new(principal)),
                None => Verdict::Refused(error),
            }
        }
        Err(error) => Verdict::Refused(error),
    })
}

/// The rule of `way` that `principal` does not fit, as metrics know it and as clients are answered.
pub fn refusal(way: &AuthMethod, principal: &Principal) -> Option<(AuthResult, Rejection)> {
    AuthorizationRules::new(way).refusal(principal)
}
