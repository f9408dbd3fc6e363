//! Explains the decision about a request from a configuration, without a running gateway.
//!
//! A [`RouteExplainer`] has the same routes as a [`Snapshot`](crate::gateway::Snapshot), indexed and matched by the
//! same code, but they lead to descriptions instead of actions.

use core::convert::Infallible;
use core::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use http::header::{CONNECTION, HOST, UPGRADE};
use http::request::Parts;
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Method, Uri};

use crate::base::clock::Timestamp;
use crate::base::raw_target;
use crate::config::reserved_headers::ReservedHeaders;
use crate::config::route::{HeaderMatch, HostPattern, PathPattern};
use crate::config::{self, AuthMethod, Config, Credential};
use crate::gateway::compile::{compile_issuer, matches_gateway_fields};
use crate::gateway::policy::authorize::AuthorizationRules;
use crate::gateway::proxy::identity_token;
use crate::gateway::proxy::references::References;
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

/// The routes of a configuration, for explanations.
#[derive(Debug)]
pub struct RouteExplainer<'c> {
    router: Router<ExplainedDestination<'c>>,
    config: &'c Config,
    reserved: ReservedHeaders,
}

/// The destination of a request.
#[derive(Clone, Copy, Debug)]
pub enum ExplainedDestination<'c> {
    /// A route of the configuration.
    Route(&'c config::Route),
    /// A path of a session's own.
    Session(&'c session::Settings),
    /// The protected-resource metadata (RFC 9728).
    Metadata,
    /// The JWK set of identity tokens.
    Keys,
    /// The gateway itself, which responds to `OPTIONS *` with 204.
    Gateway,
}

impl ExplainedDestination<'_> {
    /// Returns the route name in metrics and log.
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

/// One host and path of a route, with its other conditions.
#[derive(Clone, Debug)]
pub struct Candidate<'c> {
    /// The host; `None` is any.
    pub host: Option<HostPattern>,
    /// The path.
    pub path: PathPattern,
    /// The methods; empty is all except TRACE and CONNECT.
    pub methods: Vec<Method>,
    /// The header fields that a request must have.
    pub match_headers: Vec<HeaderMatch>,
    /// Whether the route takes the method of the request.
    pub takes_method: bool,
    /// The destination.
    pub leads_to: ExplainedDestination<'c>,
}

/// The decision about one request.
#[derive(Debug)]
pub struct RouteDecision<'c> {
    /// The host without port, in lower case; `None` if it is invalid.
    pub host: Option<Box<str>>,
    /// The path without dot segments; `None` if it is malformed.
    pub path: Option<String>,
    /// The readings of the path, with the destination of each; one for a path that is not ambiguous.
    pub readings: Vec<(String, Result<ExplainedDestination<'c>, Rejection>)>,
    /// The routes of the host and path, in the order in which methods and fields choose among them.
    pub candidates: Vec<Candidate<'c>>,
    /// The destination, or the refusal.
    pub outcome: Result<ExplainedDestination<'c>, Rejection>,
    /// Whether the request is a preflight that the gateway responds to for the route it concerns.
    pub preflight: bool,
    /// The path to send upstream, or the refusal of rewriting it.
    pub sent: Option<Result<String, Rejection>>,
}

impl<'c> RouteExplainer<'c> {
    /// Indexes the routes of `config`.
    pub fn of(config: &'c Config) -> Self {
        let routes = config
            .routes
            .iter()
            .map(|route| CompiledRoute::of(route, Arc::new(ExplainedDestination::Route(route))));
        let own = own_paths::entries(config, &ProtectedResources::of(config), |owner| {
            Ok::<_, Infallible>(Arc::new(match owner {
                OwnPathOwner::Session(session) => ExplainedDestination::Session(session),
                OwnPathOwner::Metadata(_) => ExplainedDestination::Metadata,
                OwnPathOwner::Keys => ExplainedDestination::Keys,
            }))
        });
        let own = own.unwrap_or_else(|never| match never {});
        Self {
            router: Router::new(routes.chain(own).collect()),
            config,
            reserved: config.reserved_headers(),
        }
    }

    /// Returns every host and path in the order of a search, the most specific first.
    pub fn in_order(&self) -> Vec<Candidate<'c>> {
        self.router.in_order().iter().map(Candidate::of).collect()
    }

    /// Decides about a request of a client that is not a trusted proxy, over TLS if its target has the scheme
    /// `https`.
    pub fn decide(&self, mut head: Parts) -> RouteDecision<'c> {
        let refused = |host, rejection| RouteDecision {
            host,
            path: None,
            readings: Vec::new(),
            candidates: Vec::new(),
            outcome: Err(rejection),
            preflight: false,
            sent: None,
        };
        let (host, authority) = match host::read(&mut head) {
            Ok(host) => (host.name, host.authority),
            Err(rejection) => return refused(None, rejection),
        };
        if request_body::is_asterisk_form(&head) {
            return RouteDecision {
                path: Some("*".to_owned()),
                outcome: Ok(ExplainedDestination::Gateway),
                ..refused(Some(host), Rejection::NoRoute)
            };
        }
        let secure = head.uri.scheme() == Some(&Scheme::HTTPS);
        let own = self.gateway_fields(&mut head, secure);
        let readings = match match_route::read_path(&mut head.uri) {
            Ok(readings) => readings,
            Err(rejection) => return refused(Some(host), rejection),
        };
        let path = head.uri.path().to_owned();
        let candidates = self.candidates(&host, readings.forwarded(&path), &head.method);
        let found = |readings: &PathReadings| self.find(&host, &head, readings, &own);
        let mut each: Vec<(String, _)> = Vec::new();
        for reading in readings.all(&path) {
            // As a path and as a reference, one path may be read alike.
            if each.iter().all(|(listed, _)| listed != reading) {
                let leads = found(&PathReadings::only(reading.to_owned()));
                each.push((reading.to_owned(), leads.map(|(destination, _)| destination)));
            }
        }
        let (outcome, preflight) = match found(&readings) {
            Ok((destination, preflight)) => (Ok(destination), preflight),
            Err(rejection) => (Err(rejection), false),
        };
        let outcome = outcome.and_then(|found| {
            if let Some(mut references) = References::read(&head, authority.as_ref())? {
                for target in references.targets() {
                    self.check_target(target, found, &host, &mut head, &own)?;
                }
            }
            Ok(found)
        });
        let sent = match &outcome {
            Ok(ExplainedDestination::Route(route)) => {
                let target = TargetRewriter::new(route.rewrite.clone(), route.paths.clone());
                let mut uri = head.uri;
                Some(
                    target.rewrite(&mut uri).map(|()| raw_target::escaped(uri.path()).into_owned()),
                )
            }
            _ => None,
        };
        let (host, path) = (Some(host), Some(raw_target::escaped(&path).into_owned()));
        RouteDecision { host, path, readings: each, candidates, outcome, preflight, sent }
    }

    /// Checks that a reference of `Destination` or `If` (RFC 4918 §10) leads to the route of the request, as the gateway
    /// does.
    fn check_target(
        &self,
        target: &mut Uri,
        found: ExplainedDestination<'c>,
        host: &str,
        head: &mut Parts,
        gateway_fields: &HeaderMap,
    ) -> Result<(), Rejection> {
        let readings = match_route::read_path(target)?;
        let own = core::mem::replace(&mut head.uri, target.clone());
        let other = self.find(host, head, &readings, gateway_fields);
        head.uri = own;
        match other {
            Ok((other, _)) if other.id() == found.id() => Ok(()),
            Err(Rejection::AmbiguousPath) => Err(Rejection::AmbiguousPath),
            _ => Err(Rejection::Forbidden),
        }
    }

    fn find(
        &self,
        host: &str,
        head: &Parts,
        readings: &PathReadings,
        gateway_fields: &HeaderMap,
    ) -> Result<(ExplainedDestination<'c>, bool), Rejection> {
        let answers_preflights = |destination: &ExplainedDestination<'_>| match destination {
            ExplainedDestination::Route(route) => route.cors.is_some(),
            ExplainedDestination::Metadata => true,
            ExplainedDestination::Session(_)
            | ExplainedDestination::Keys
            | ExplainedDestination::Gateway => false,
        };
        let found = match_route::find(
            &self.router,
            host,
            head,
            readings,
            gateway_fields,
            answers_preflights,
        )?;
        let (found, preflight) = match found {
            Found::Route(found) => (**found, false),
            Found::Preflight(all) => (***all.possible.first().ok_or(Rejection::NoRoute)?, true),
        };
        match found {
            ExplainedDestination::Route(route) if !route.enabled => Err(Rejection::NoRoute),
            found => Ok((found, preflight)),
        }
    }

    /// Strips the fields that the upstream will not see, and returns those that the gateway sets in their place.
    fn gateway_fields(&self, head: &mut Parts, secure: bool) -> HeaderMap {
        let mut own = HeaderMap::new();
        let host = head.headers.get(HOST).cloned();
        let upgrade = headers::strip_untrusted(&mut head.headers, &self.reserved, false).upgrade;
        if !matches_gateway_fields(self.config) {
            return own;
        }
        let peer_value = HeaderValue::from_static(SOME_CLIENT);
        let peer = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let forwarded = Forwarded {
            client_info: None,
            peer,
            peer_value: &peer_value,
            host: host.as_ref(),
            secure,
        };
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
        let candidate = |entry: &CompiledRoute<ExplainedDestination<'c>>| {
            let here = |rule: &&MatchRule<'_, ExplainedDestination<'c>>| {
                core::ptr::eq(rule.entry, entry) && rewrite::is_valid_target(rule.path, path)
            };
            // A search reaches the first one first.
            let rule = rules.iter().find(here)?;
            Some(Candidate { takes_method: entry.takes(method), ..Candidate::of(rule) })
        };
        self.router.candidates(host, path, method).filter_map(candidate).collect()
    }
}

impl<'c> Candidate<'c> {
    fn of(rule: &MatchRule<'_, ExplainedDestination<'c>>) -> Self {
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

/// The address of an unspecified client.
const SOME_CLIENT: &str = "0.0.0.0";

/// The verdict of an authentication method on a token.
#[derive(Debug)]
pub enum Verdict {
    /// The token is valid: its principal. A bound token is assumed to be presented with its proof.
    Good(Arc<Principal>),
    /// The issuer's keys are unavailable: everything except the signature is valid.
    Unchecked(Arc<Principal>),
    /// The token is invalid.
    Refused(TokenError),
    /// The method takes no tokens.
    NotTaken,
}

/// Verifies `token` at `now` as the authentication method of `credential` does. Fetches the issuer's keys, and
/// introspects reference tokens.
///
/// # Errors
///
/// [`CompileError`] if an issuer's TLS settings cannot be used.
pub async fn verify(
    config: &Config,
    credential: &Credential,
    token: &str,
    now: Timestamp,
    retained: &RetainedState,
) -> Result<Verdict, CompileError> {
    let Some(kind) = credential.token_use() else { return Ok(Verdict::NotTaken) };
    let names = credential.token_issuers();
    let issuers: Vec<(&Arc<str>, &config::Issuer)> =
        names.iter().filter_map(|name| Some((name, config.issuers.get(name)?))).collect();
    let mut issuer_verifiers = Vec::new();
    for (name, issuer) in &issuers {
        // An explanation leaves no state on disk.
        let settings = issuer::Settings { state_dir: None, ..issuer.settings.clone() };
        issuer_verifiers.push(compile_issuer(name, &settings, &issuer.rules, retained)?.1);
    }
    Ok(match Verifier::new(kind, issuer_verifiers).verify_bound(token, now, None).await {
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

/// Returns the refusal of `principal` at `now` by the rules of `auth_method`, for metrics and for the client.
pub fn refusal(
    auth_method: &AuthMethod,
    principal: &Principal,
    now: Timestamp,
) -> Option<(AuthResult, Rejection)> {
    let rules = AuthorizationRules::new(auth_method);
    rules.refusal(principal).or_else(|| rules.weakness(principal, now))
}
