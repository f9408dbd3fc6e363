//! Configuration → snapshot, reusing what is kept.

use core::sync::atomic::AtomicU64;
use std::collections::HashMap;
use std::sync::Arc;

use super::policy::authenticate::{Authenticate, Authenticator, Credential};
use super::policy::authorize::Authorize;
use super::policy::proof_of_possession::ProofValidator;
use super::proxy::forward::Forward;
use super::proxy::identity_headers::IdentityHeaders;
use super::proxy::identity_token;
use super::proxy::identity_token::{IdentityTokens, SigningKeySet};
use super::proxy::rewrite::TargetRewriter;
use super::request::request_body::BodyLimits;
use super::retained_state::RetainedState;
use super::routing::action::Action;
use super::routing::own_paths;
use super::routing::own_paths::{OwnPathOwner, wants_identity_tokens};
use super::routing::route::{CompiledRoute, Router};
use super::well_known::protected_resource;
use super::well_known::protected_resource::ProtectedResources;
use super::{Route, Snapshot};
use crate::config::auth::ForwardToken;
use crate::config::reserved_headers::{self, ReservedHeaders};
use crate::config::{self, Auth, Config};
use crate::issuer::signing_key::SigningFailed;
use crate::issuer::{self, Issuer};
use crate::limit::{self, Limiter};
use crate::observe::metrics::{AuthMethod, NO_ROUTE};
use crate::revocation_sync::RevocationSync;
use crate::session::{BasicExchange, Sessions};
use crate::store::{InvalidUrl, Redis};
use crate::tls::TlsError;
use crate::token::{self, Dpop, IssuerVerifier, TokenUse, Verifier};
use crate::upstream::Upstream;

/// Something that the configuration describes cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The TLS settings of an upstream.
    #[error("the TLS settings of upstream {name} cannot be used")]
    Upstream {
        /// Which.
        name: Arc<str>,
        /// Why not.
        #[source]
        source: TlsError,
    },
    /// The TLS settings of an issuer.
    #[error("the TLS settings of issuer {name} cannot be used")]
    Issuer {
        /// Which.
        name: Arc<str>,
        /// Why not.
        #[source]
        source: TlsError,
    },
    /// The connection to Redis; `config` refuses such URLs.
    #[error("the connection to Redis cannot be made")]
    Redis(#[from] InvalidUrl),
    /// The keys of identity tokens.
    #[error("no key for identity tokens can be made")]
    IdentityKeys(#[source] SigningFailed),
    /// A name that nothing bears; `config` refuses such files.
    #[error("{kind} {name} is not defined")]
    Unknown {
        /// What kind of thing.
        kind: &'static str,
        /// Its name.
        name: Arc<str>,
    },
}

/// Compiles a configuration; `retained_state` lends what an earlier one left.
///
/// # Errors
///
/// [`CompileError`] says what cannot be made.
pub fn compile(config: &Config, kept: &RetainedState) -> Result<Snapshot, CompileError> {
    let compiler = Compiler::new(config, kept)?;
    let mut routes =
        config.routes.iter().map(|route| compiler.entry(route)).collect::<Result<Vec<_>, _>>()?;
    routes.extend(own_paths::entries(config, &compiler.resources, |owner| compiler.owned(owner))?);
    let own = config.identity_headers.iter().chain([&config.server.request_id_header]);
    Ok(Snapshot {
        router: Router::new(routes),
        sessions: compiler.sessions.values().cloned().collect(),
        issuers: compiler.issuers.values().cloned().collect(),
        upstreams: compiler.upstreams.values().cloned().collect(),
        fleet: compiler.fleet,
        reserved: ReservedHeaders::new(own),
        matches_own_fields: matches_own_fields(config),
        server: config.server.clone(),
        unmatched: kept.metrics.route(NO_ROUTE),
        warned: AtomicU64::new(0),
        hash: config.hash.clone(),
    })
}

/// The rooms' values that routes are made of, by name.
struct Compiler<'a> {
    config: &'a Config,
    kept: &'a RetainedState,
    issuers: HashMap<Arc<str>, Arc<Issuer>>,
    judges: HashMap<Arc<str>, Arc<IssuerVerifier>>,
    sessions: HashMap<Arc<str>, Arc<Sessions>>,
    upstreams: HashMap<Arc<str>, Arc<Upstream>>,
    limiters: HashMap<Arc<str>, Arc<Limiter>>,
    resources: ProtectedResources<'a>,
    dpop: Arc<Dpop>,
    fleet: Option<Arc<RevocationSync>>,
    /// What identity tokens are signed with, if a route wants them.
    identity_keys: Option<Arc<SigningKeySet>>,
}

impl<'a> Compiler<'a> {
    fn new(config: &'a Config, kept: &'a RetainedState) -> Result<Self, CompileError> {
        let mut compiler = Self {
            config,
            kept,
            issuers: HashMap::new(),
            judges: HashMap::new(),
            sessions: HashMap::new(),
            upstreams: HashMap::new(),
            limiters: HashMap::new(),
            resources: ProtectedResources::of(config),
            dpop: Arc::new(Dpop::new(&config.dpop_nonce_keys, Arc::clone(&kept.spent))),
            fleet: None,
            identity_keys: None,
        };
        compiler.redis()?;
        if config.routes.iter().any(wants_identity_tokens) {
            let keys = kept.identity_keys(&config.server).map_err(CompileError::IdentityKeys)?;
            compiler.identity_keys = Some(keys);
        }
        compiler.issuers()?;
        compiler.sessions()?;
        compiler.upstreams()?;
        compiler.limiters();
        Ok(compiler)
    }

    /// What is shared from now on, and where.
    fn redis(&mut self) -> Result<(), CompileError> {
        let RetainedState { clock, control, revocations, sessions, spent, stores, fleets, .. } =
            self.kept;
        let Some(settings) = &self.config.redis else {
            sessions.share(None);
            return Ok(());
        };
        let make = || Redis::new(settings.clone(), control.clone());
        let redis = stores.get_or_try_insert_with(settings.clone(), make)?;
        sessions.share(Some(Arc::clone(&redis)));
        let dpop = Dpop::new(&self.config.dpop_nonce_keys, Arc::clone(spent));
        self.dpop = Arc::new(dpop.shared_in(Arc::clone(&redis), clock.clone()));
        let renewals = sessions.renewals();
        let join = || RevocationSync::start(redis, revocations.clone(), renewals, clock.clone());
        self.fleet = Some(fleets.get_or_insert_with(settings.clone(), join));
        Ok(())
    }

    fn issuers(&mut self) -> Result<(), CompileError> {
        for (name, config::Issuer { settings, rules }) in &self.config.issuers {
            let (issuer, judge) = judge(name, settings, rules, self.kept)?;
            self.issuers.insert(Arc::clone(name), issuer);
            self.judges.insert(Arc::clone(name), judge);
        }
        Ok(())
    }

    fn sessions(&mut self) -> Result<(), CompileError> {
        let RetainedState { clock, metrics, control, sessions, .. } = self.kept;
        for (name, settings) in &self.config.sessions {
            let issuer = find(&self.issuers, "issuer", &settings.issuer)?;
            let verifier = self.bearer(&settings.issuer)?;
            let session = Sessions::new(
                settings.clone(),
                issuer,
                Some(verifier),
                clock.clone(),
                metrics,
                control.clone(),
                sessions,
            );
            self.sessions.insert(Arc::clone(name), Arc::new(session));
        }
        Ok(())
    }

    /// Whatever tokens an issuer gives, by their shape.
    fn bearer(&self, issuer: &Arc<str>) -> Result<Arc<Verifier>, CompileError> {
        Ok(Arc::new(Verifier::new(TokenUse::Bearer, vec![find(&self.judges, "issuer", issuer)?])))
    }

    fn upstreams(&mut self) -> Result<(), CompileError> {
        let (config, kept) = (self.config, self.kept);
        for settings in config.upstreams.values() {
            let name = Arc::clone(&settings.name);
            let upstream =
                Upstream::new(settings.clone(), &kept.endpoints, kept.clock.clone(), &kept.metrics)
                    .map_err(|source| CompileError::Upstream { name: Arc::clone(&name), source })?;
            self.upstreams.insert(name, Arc::new(upstream));
        }
        Ok(())
    }

    fn limiters(&mut self) {
        let kept = self.kept;
        let limiter = |settings: &limit::Settings| {
            (
                Arc::clone(&settings.name),
                Arc::new(Limiter::new(settings.clone(), &kept.counts, &kept.metrics)),
            )
        };
        self.limiters = self.config.limits.values().map(limiter).collect();
    }

    /// The route of one of the gateway's own paths.
    fn owned(&self, owner: OwnPathOwner<'_>) -> Result<Arc<Route>, CompileError> {
        let metadata = || Some(protected_resource::cors());
        let (id, cors, action, limits) = match owner {
            OwnPathOwner::Session(settings) => {
                let session = find(&self.sessions, "session", &settings.name)?;
                let id = format!("_session_{}", settings.name);
                (id, None, Action::Session(session), &settings.limits[..])
            }
            OwnPathOwner::Metadata(answer) => {
                (protected_resource::ID.to_owned(), metadata(), answer, &[][..])
            }
            OwnPathOwner::Keys => {
                let keys = self.identity_keys.clone();
                let action = keys.map_or(Action::Disabled, Action::Jwks);
                (identity_token::ID.to_owned(), None, action, &[][..])
            }
        };
        let id: Arc<str> = id.into();
        Ok(Arc::new(Route {
            cors,
            authenticate: Authenticate::default(),
            authorize: Authorize::default(),
            limits: self.limits(&id, limits)?,
            action,
            max_body_size: None,
            security_headers: false,
            access_log: true,
            metrics: self.kept.metrics.route(&id),
            id,
        }))
    }

    /// The ways to be let in on a route.
    fn authenticate(
        &self,
        route: &config::Route,
    ) -> Result<(Authenticate, Authorize), CompileError> {
        let Auth::Ways { ways, optional } = &route.auth else { return Ok(Default::default()) };
        let compiled =
            ways.iter().map(|way| self.authenticator(way)).collect::<Result<Vec<_>, _>>()?;
        let proofs = ProofValidator::new(Arc::clone(&self.dpop), self.resources.public_url(route));
        let metadata = self.resources.document_of(route);
        let authenticate = Authenticate::new(compiled, *optional, metadata, proofs);
        Ok((authenticate, Authorize::new(ways)))
    }

    fn authenticator(&self, way: &config::AuthMethod) -> Result<Authenticator, CompileError> {
        let issuers = match &way.credential {
            config::Credential::Jwt(issuers)
            | config::Credential::Introspection(issuers)
            | config::Credential::Bearer(issuers) => &issuers[..],
            config::Credential::Basic(issuer) => core::slice::from_ref(issuer),
            config::Credential::Session(session) => self
                .config
                .sessions
                .get(session)
                .map_or(&[][..], |s| core::slice::from_ref(&s.issuer)),
        };
        let rules = issuers.iter().filter_map(|issuer| self.judges.get(issuer));
        let leeway = rules.map(|judge| judge.rules().leeway).max().unwrap_or_default();
        let signed = way.forward_token == ForwardToken::Signed;
        let (credential, method) = match &way.credential {
            config::Credential::Jwt(issuers) => {
                (self.token(TokenUse::Jwt, issuers, false)?, AuthMethod::Jwt)
            }
            config::Credential::Introspection(issuers) => {
                (self.token(TokenUse::Introspection, issuers, signed)?, AuthMethod::Introspection)
            }
            config::Credential::Bearer(issuers) => {
                (self.token(TokenUse::Bearer, issuers, signed)?, AuthMethod::Jwt)
            }
            config::Credential::Basic(issuer) => {
                (Credential::Basic(self.basic(issuer)?), AuthMethod::Basic)
            }
            config::Credential::Session(session) => (
                Credential::Session(find(&self.sessions, "session", session)?),
                AuthMethod::Session,
            ),
        };
        Ok(Authenticator {
            credential,
            method,
            bound_to: way.bound_to,
            max_staleness: way.max_staleness,
            forward_token: way.forward_token,
            leeway,
        })
    }

    fn token(
        &self,
        kind: TokenUse,
        issuers: &[Arc<str>],
        signed: bool,
    ) -> Result<Credential, CompileError> {
        let judges = issuers
            .iter()
            .map(|issuer| find(&self.judges, "issuer", issuer))
            .collect::<Result<Vec<_>, _>>()?;
        let verifier = Verifier::new(kind, judges);
        Ok(Credential::Token(if signed { verifier.with_signed_answers() } else { verifier }))
    }

    fn basic(&self, name: &Arc<str>) -> Result<Arc<BasicExchange>, CompileError> {
        let RetainedState { clock, metrics, control, sessions, .. } = self.kept;
        let issuer = find(&self.issuers, "issuer", name)?;
        let judge = find(&self.judges, "issuer", name)?;
        let verifier = self.bearer(name)?;
        let client = issuer.settings().client.clone();
        let client = client.ok_or_else(|| CompileError::Unknown {
            kind: "client of issuer",
            name: Arc::clone(name),
        })?;
        Ok(self.kept.exchanges.get_or_insert_with(
            IssuerVerifier::key(issuer.settings(), judge.rules()),
            || {
                let exchange = BasicExchange::new(
                    issuer,
                    client,
                    Some(verifier),
                    clock.clone(),
                    metrics,
                    control.clone(),
                    sessions,
                );
                exchange.subscribe_to(&self.kept.revocations);
                exchange
            },
        ))
    }

    fn entry(&self, route: &config::Route) -> Result<CompiledRoute<Route>, CompileError> {
        let (authenticate, authorize) = self.authenticate(route)?;
        let compiled = Route {
            id: Arc::clone(&route.id),
            cors: route.cors.clone(),
            authenticate,
            authorize,
            limits: self.limits(&route.id, &route.limits)?,
            action: self.action(route)?,
            max_body_size: route.max_body_size,
            security_headers: route.security_headers,
            access_log: route.access_log,
            metrics: self.kept.metrics.route(&route.id),
        };
        Ok(CompiledRoute::of(route, Arc::new(compiled)))
    }

    fn limits(
        &self,
        route: &Arc<str>,
        names: &[Arc<str>],
    ) -> Result<limit::RouteLimits, CompileError> {
        let limiters = names
            .iter()
            .map(|name| find(&self.limiters, "limit", name))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(limit::RouteLimits::new(&limiters, route, &self.kept.metrics))
    }

    fn action(&self, route: &config::Route) -> Result<Action, CompileError> {
        if !route.enabled {
            return Ok(Action::Disabled);
        }
        Ok(match &route.action {
            config::Action::Upstream(name) => Action::Forward(Box::new(self.forward(route, name)?)),
            config::Action::Respond { status, body, headers } => Action::Respond {
                status: *status,
                headers: headers.iter().cloned().collect(),
                body: body.clone().into(),
            },
            config::Action::Redirect { to, status } => Action::redirect(to.clone(), *status),
        })
    }

    /// What signs for each way into a route, for the service `upstream`.
    fn identity_tokens(
        &self,
        route: &config::Route,
        upstream: &Arc<str>,
    ) -> Box<[Option<IdentityTokens>]> {
        let Some(keys) = self.identity_keys.as_ref().filter(|_| wants_identity_tokens(route))
        else {
            return Box::default();
        };
        let issuer: Arc<str> = match &self.config.server.public_url {
            Some(url) => url.origin().ascii_serialization().into(),
            None => identity_token::UNNAMED.into(),
        };
        let tokens = |way: &config::AuthMethod| {
            let (keys, issuer) = (Arc::clone(keys), Arc::clone(&issuer));
            way.identity_token.then(|| {
                IdentityTokens::new(keys, issuer, Arc::clone(upstream), &way.identity_headers)
            })
        };
        authenticators(route).iter().map(tokens).collect()
    }

    fn forward(&self, route: &config::Route, name: &Arc<str>) -> Result<Forward, CompileError> {
        let upstream = find(&self.upstreams, "upstream", name)?;
        let server = &self.config.server;
        let identity = authenticators(route)
            .iter()
            .map(|way| IdentityHeaders::new(&way.identity_headers))
            .collect();
        Ok(Forward {
            timeout: route.timeout.unwrap_or(upstream.settings().timeout),
            upstream,
            bounds: BodyLimits { size: route.max_body_size, ..BodyLimits::of(server) },
            target: TargetRewriter::new(route.rewrite.clone(), route.paths.clone()),
            request: route.request_headers.clone().into(),
            response: route.response_headers.clone().into(),
            identity,
            identity_tokens: self.identity_tokens(route, name),
            websocket: route.websocket,
            close_on_expiry: route.close_on_expiry,
        })
    }
}

/// Whether a route is chosen by fields that the gateway says itself.
pub(super) fn matches_own_fields(config: &Config) -> bool {
    let request_id = &config.server.request_id_header;
    let mut wanted = config.routes.iter().flat_map(|route| &route.match_headers);
    wanted.any(|wanted| reserved_headers::is_said_by_gateway(&wanted.name, request_id))
}

/// The ways to be let in on a route; none if it lets everybody in.
fn authenticators(route: &config::Route) -> &[config::AuthMethod] {
    match &route.auth {
        Auth::None => &[],
        Auth::Ways { ways, .. } => ways,
    }
}

/// An issuer, and who judges its tokens, as they were kept or anew.
pub(super) fn judge(
    name: &Arc<str>,
    settings: &issuer::Settings,
    rules: &token::ValidationRules,
    kept: &RetainedState,
) -> Result<(Arc<Issuer>, Arc<IssuerVerifier>), CompileError> {
    let RetainedState { clock, metrics, control, .. } = kept;
    let failed = |source| CompileError::Issuer { name: Arc::clone(name), source };
    let issuer = kept.issuers.get_or_try_insert_with(settings.fingerprint(), || {
        Issuer::new(settings.clone(), clock.clone(), metrics, control.clone())
    });
    let issuer = issuer.map_err(failed)?;
    let judge = kept.judges.get_or_insert_with(IssuerVerifier::key(settings, rules), || {
        let revocations = kept.revocations.clone();
        IssuerVerifier::new(
            Arc::clone(&issuer),
            rules.clone(),
            revocations,
            clock.clone(),
            metrics,
            control.clone(),
        )
    });
    Ok((issuer, judge))
}

/// What bears `name`.
fn find<T: Clone>(
    all: &HashMap<Arc<str>, T>,
    kind: &'static str,
    name: &Arc<str>,
) -> Result<T, CompileError> {
    all.get(name).cloned().ok_or_else(|| CompileError::Unknown { kind, name: Arc::clone(name) })
}
