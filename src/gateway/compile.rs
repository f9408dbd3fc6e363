//! Compiles a configuration into a snapshot, reusing retained state.

mod forwarding;

use core::sync::atomic::AtomicU64;
use core::time::Duration;
use std::collections::HashMap;
use std::sync::Arc;

use super::policy::authenticate::{Authenticate, Authenticator, CredentialVerifier};
use super::policy::authorize::Authorize;
use super::policy::dpop_fields::DPOP;
use super::policy::proof_of_possession::ProofValidator;
use super::policy::token_source::TokenPlaces;
use super::proxy::identity_token;
use super::proxy::identity_token::SigningKeySet;
use super::response::problem::AuthChallenges;
use super::retained_state::RetainedState;
use super::routing::action::Action;
use super::routing::own_paths;
use super::routing::own_paths::{OwnPathOwner, wants_identity_tokens};
use super::routing::route::{CompiledRoute, Router};
use super::routing::route_properties::RouteProperties;
use super::snapshot::{Route, Snapshot};
use super::stage_context::StageContext;
use super::well_known::protected_resource;
use super::well_known::protected_resource::ProtectedResources;
use crate::basic::BasicExchange;
use crate::config::auth::ForwardToken;
use crate::config::reserved_headers::{self, ReservedHeaders};
use crate::config::{self, Auth, Config};
use crate::issuer::keys::signing_key::SigningFailed;
use crate::issuer::{self, Issuer};
use crate::limit::{self, LimitStore, Limiter};
use crate::observe::metrics::NO_ROUTE;
use crate::redis::{InvalidUrl, Redis};
use crate::revocation_sync::RevocationSync;
use crate::session::Sessions;
use crate::tls::TlsError;
use crate::token::{self, Dpop, IssuerVerifier, TokenUse, Verifier};
use crate::upstream::Upstream;

/// An error of compiling a configuration.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The TLS settings of an upstream are unusable.
    #[error("cannot use the TLS settings of upstream {name}")]
    Upstream {
        /// The upstream.
        name: Arc<str>,
        /// The cause.
        #[source]
        source: TlsError,
    },
    /// The TLS settings of an issuer are unusable.
    #[error("cannot use the TLS settings of issuer {name}")]
    Issuer {
        /// The issuer.
        name: Arc<str>,
        /// The cause.
        #[source]
        source: TlsError,
    },
    /// The URL of Redis is invalid; `config` refuses such URLs.
    #[error("cannot create the Redis client")]
    Redis(#[from] InvalidUrl),
    /// Generating a key for identity tokens failed.
    #[error("cannot generate a key for identity tokens")]
    IdentityKeys(#[source] SigningFailed),
    /// A name without a definition; `config` refuses such files.
    #[error("{kind} {name} is not defined")]
    Unknown {
        /// The kind of object.
        kind: &'static str,
        /// The name.
        name: Arc<str>,
    },
}

/// Compiles a configuration, reusing `retained` state of earlier ones.
///
/// # Errors
///
/// [`CompileError`] names the object that cannot be created.
pub fn compile(config: &Config, retained: &RetainedState) -> Result<Snapshot, CompileError> {
    let compiler = Compiler::new(config, retained)?;
    let mut routes =
        config.routes.iter().map(|route| compiler.entry(route)).collect::<Result<Vec<_>, _>>()?;
    routes.extend(own_paths::entries(config, &compiler.resources, |owner| compiler.owned(owner))?);
    Ok(Snapshot {
        router: Router::new(routes),
        defers_forms: config
            .routes
            .iter()
            .any(|route| Authenticate::defers_forms(route.auth.methods())),
        context: StageContext {
            server: config.server.clone(),
            sessions: compiler.sessions.values().cloned().collect(),
            token_places: TokenPlaces::of(config),
            reserved: config.reserved_headers(),
            unmatched: retained.metrics.route(NO_ROUTE),
            last_warning: AtomicU64::new(0),
        },
        issuer_verifiers: compiler.issuer_verifiers.values().cloned().collect(),
        upstreams: compiler.upstreams.values().cloned().collect(),
        limiters: {
            let names = config.limits.keys();
            names.filter_map(|name| compiler.limiters.get(name).cloned()).collect()
        },
        revocation_sync: compiler.revocation_sync,
        matches_gateway_fields: matches_gateway_fields(config),
        hash: config.hash.clone(),
    })
}

/// The objects that routes are compiled from, by name.
struct Compiler<'a> {
    config: &'a Config,
    retained: &'a RetainedState,
    issuers: HashMap<Arc<str>, Arc<Issuer>>,
    issuer_verifiers: HashMap<Arc<str>, Arc<IssuerVerifier>>,
    sessions: HashMap<Arc<str>, Arc<Sessions>>,
    upstreams: HashMap<Arc<str>, Arc<Upstream>>,
    limiters: HashMap<Arc<str>, Arc<Limiter>>,
    resources: ProtectedResources<'a>,
    dpop: Arc<Dpop>,
    /// The fields that no trailer section of a request has, on no route: upstreams may merge it into the header section
    /// (RFC 9110 §6.5.1).
    reserved_trailers: ReservedHeaders,
    revocation_sync: Option<Arc<RevocationSync>>,
    /// The signing keys of identity tokens, if a route uses them.
    identity_keys: Option<Arc<SigningKeySet>>,
}

impl<'a> Compiler<'a> {
    fn new(config: &'a Config, retained: &'a RetainedState) -> Result<Self, CompileError> {
        let mut compiler = Self {
            config,
            retained,
            issuers: HashMap::new(),
            issuer_verifiers: HashMap::new(),
            sessions: HashMap::new(),
            upstreams: HashMap::new(),
            limiters: HashMap::new(),
            resources: ProtectedResources::of(config),
            dpop: Arc::new(Dpop::new(&config.dpop_nonce_keys, Arc::clone(&retained.replay_cache))),
            reserved_trailers: {
                let tokens = TokenPlaces::of(config);
                config.reserved_headers().with(tokens.headers().iter().chain([&DPOP]))
            },
            revocation_sync: None,
            identity_keys: None,
        };
        compiler.redis()?;
        if config.routes.iter().any(wants_identity_tokens) {
            let keys =
                retained.identity_keys(&config.server).map_err(CompileError::IdentityKeys)?;
            compiler.identity_keys = Some(keys);
        }
        compiler.issuers()?;
        compiler.sessions()?;
        compiler.upstreams()?;
        compiler.limiters();
        Ok(compiler)
    }

    /// Connects to Redis and selects what is shared through it.
    fn redis(&mut self) -> Result<(), CompileError> {
        let RetainedState {
            clock,
            control,
            revocations,
            sessions,
            replay_cache,
            redis_clients,
            revocation_syncs,
            counts,
            limit_stores,
            metrics,
            ..
        } = self.retained;
        let Some(settings) = &self.config.redis else {
            sessions.share(None);
            counts.share(None);
            return Ok(());
        };
        let make = || Redis::new(settings.clone(), control.clone());
        let redis = redis_clients.get_or_try_insert_with(settings.clone(), make)?;
        sessions.share(Some(Arc::clone(&redis)));
        let shares_limits = self.config.limits.values().any(|limit| limit.store.is_shared());
        counts.share(if shares_limits {
            let start = || LimitStore::start(&redis, clock, metrics);
            Some(limit_stores.get_or_insert_arc(settings.clone(), start))
        } else {
            // Requests of limits that a reload took away are in flight, and the limits may come back.
            limit_stores.get(settings)
        });
        let dpop = Dpop::new(&self.config.dpop_nonce_keys, Arc::clone(replay_cache));
        self.dpop = Arc::new(dpop.shared_in(Arc::clone(&redis), clock.clone()));
        let renewals = sessions.renewals();
        let join = || RevocationSync::start(redis, revocations.clone(), renewals, clock.clone());
        self.revocation_sync = Some(revocation_syncs.get_or_insert_with(settings.clone(), join));
        Ok(())
    }

    fn issuers(&mut self) -> Result<(), CompileError> {
        for (name, config::Issuer { settings, rules, .. }) in &self.config.issuers {
            let (issuer, issuer_verifier) = compile_issuer(name, settings, rules, self.retained)?;
            self.issuers.insert(Arc::clone(name), issuer);
            self.issuer_verifiers.insert(Arc::clone(name), issuer_verifier);
        }
        Ok(())
    }

    fn sessions(&mut self) -> Result<(), CompileError> {
        let RetainedState { clock, metrics, control, sessions, .. } = self.retained;
        for (name, settings) in &self.config.sessions {
            let issuer = find(&self.issuers, "issuer", &settings.issuer)?;
            let verifier = self.held_tokens(&settings.issuer)?;
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

    /// Returns a verifier for all tokens of an issuer, of either format, that the gateway itself holds.
    fn held_tokens(&self, issuer: &Arc<str>) -> Result<Arc<Verifier>, CompileError> {
        let of_clients = find(&self.issuer_verifiers, "issuer", issuer)?;
        let rules = of_clients.rules().of_held_tokens();
        let settings = of_clients.issuer().settings();
        let (_, issuer_verifier) = compile_issuer(issuer, settings, &rules, self.retained)?;
        Ok(Arc::new(Verifier::new(TokenUse::Bearer, [issuer_verifier])))
    }

    fn upstreams(&mut self) -> Result<(), CompileError> {
        let (config, retained) = (self.config, self.retained);
        for settings in config.upstreams.values() {
            let name = Arc::clone(&settings.name);
            let upstream = Upstream::new(
                settings.clone(),
                &retained.upstreams,
                retained.clock.clone(),
                &retained.metrics,
            )
            .map_err(|source| CompileError::Upstream { name: Arc::clone(&name), source })?;
            self.upstreams.insert(name, Arc::new(upstream));
        }
        Ok(())
    }

    fn limiters(&mut self) {
        let retained = self.retained;
        let limiter = |settings: &limit::Settings| {
            (
                Arc::clone(&settings.name),
                Arc::new(Limiter::new(settings.clone(), &retained.counts, &retained.metrics)),
            )
        };
        self.limiters = self.config.limits.values().map(limiter).collect();
    }

    /// Compiles the route of one of the gateway's own paths.
    fn owned(&self, owner: OwnPathOwner<'_>) -> Result<Arc<Route>, CompileError> {
        let metadata = || Some(protected_resource::cors());
        let (id, cors, action, limits) = match owner {
            OwnPathOwner::Session(settings) => {
                let session = find(&self.sessions, "session", &settings.name)?;
                let id = format!("_session_{}", settings.name);
                (id, None, Action::Session(session), &settings.limits[..])
            }
            OwnPathOwner::Metadata(action) => {
                (protected_resource::ID.to_owned(), metadata(), action, &[][..])
            }
            OwnPathOwner::Keys => {
                let keys = self.identity_keys.clone();
                let action = keys.map_or(Action::Disabled, Action::Jwks);
                (identity_token::ID.to_owned(), None, action, &[][..])
            }
        };
        let id: Arc<str> = id.into();
        let properties = RouteProperties {
            upstream: None,
            cors,
            challenges: AuthChallenges::default(),
            limits: self.limits(&id, limits)?,
            is_disabled: matches!(action, Action::Disabled),
            serves_a_session: matches!(action, Action::Session(_)),
            security_headers: false,
            access_log: true,
            metrics: self.retained.metrics.route(&id),
            id,
        };
        Ok(Arc::new(Route {
            properties: Arc::new(properties),
            authenticate: Authenticate::default(),
            authorize: Authorize::default(),
            action,
            max_body_size: None,
            compress: Vec::new(),
        }))
    }

    /// Compiles the authentication methods of a route.
    fn authenticate(
        &self,
        route: &config::Route,
    ) -> Result<(Authenticate, AuthChallenges, Authorize), CompileError> {
        let Auth::AnyOf { methods, optional } = &route.auth else { return Ok(Default::default()) };
        let compiled = methods
            .iter()
            .map(|auth_method| self.authenticator(auth_method))
            .collect::<Result<Vec<_>, _>>()?;
        let proofs = ProofValidator::new(
            Arc::clone(&self.dpop),
            self.resources.public_url(route),
            &route.hosts,
        );
        let metadata = self.resources.document_of(route);
        let scopes = wanted_scopes(methods);
        let authenticate = Authenticate::new(compiled, *optional, proofs);
        let challenges = authenticate.challenges(metadata, scopes);
        Ok((authenticate, challenges, Authorize::new(methods)))
    }

    fn authenticator(
        &self,
        auth_method: &config::AuthMethod,
    ) -> Result<Authenticator, CompileError> {
        let signed = auth_method.forward_token == ForwardToken::Signed;
        let credential = match &auth_method.credential {
            config::Credential::Token { accepts, issuers } => {
                self.token(*accepts, issuers, signed && *accepts != TokenUse::Jwt)?
            }
            config::Credential::Basic(issuer) => CredentialVerifier::Basic(self.basic(issuer)?),
            config::Credential::Session(session) => {
                CredentialVerifier::Session(find(&self.sessions, "session", session)?)
            }
        };
        Ok(Authenticator {
            credential,
            token_from: auth_method.token_from.clone(),
            method: auth_method.credential.label(),
            bound_to: auth_method.bound_to,
            max_staleness: auth_method.max_staleness,
            forward_token: auth_method.forward_token,
        })
    }

    /// Returns the longest leeway of the issuers whose tokens a method accepts.
    fn leeway(&self, auth_method: &config::AuthMethod) -> Duration {
        let session = auth_method.credential.session();
        let session = session.and_then(|session| self.config.sessions.get(session));
        let issuers = match session {
            Some(session) => core::slice::from_ref(&session.issuer),
            None => auth_method.credential.issuers(),
        };
        let rules = issuers.iter().filter_map(|issuer| self.issuer_verifiers.get(issuer));
        rules.map(|issuer_verifier| issuer_verifier.rules().leeway).max().unwrap_or_default()
    }

    fn token(
        &self,
        kind: TokenUse,
        issuers: &[Arc<str>],
        signed: bool,
    ) -> Result<CredentialVerifier, CompileError> {
        let issuer_verifiers = issuers
            .iter()
            .map(|issuer| find(&self.issuer_verifiers, "issuer", issuer))
            .collect::<Result<Vec<_>, _>>()?;
        let mut verifier = Verifier::new(kind, issuer_verifiers);
        if kind == TokenUse::Bearer {
            verifier = verifier.among(self.issuers.values().cloned());
        }
        Ok(CredentialVerifier::Token(if signed {
            verifier.with_signed_responses()
        } else {
            verifier
        }))
    }

    fn basic(&self, name: &Arc<str>) -> Result<Arc<BasicExchange>, CompileError> {
        let RetainedState { clock, metrics, control, throttles, .. } = self.retained;
        let issuer = find(&self.issuers, "issuer", name)?;
        let issuer_verifier = find(&self.issuer_verifiers, "issuer", name)?;
        let verifier = self.held_tokens(name)?;
        let client = issuer.settings().client.clone();
        let client = client.ok_or_else(|| CompileError::Unknown {
            kind: "client of issuer",
            name: Arc::clone(name),
        })?;
        Ok(self.retained.exchanges.get_or_insert_with(
            IssuerVerifier::key(issuer.settings(), issuer_verifier.rules()),
            || {
                let exchange = BasicExchange::new(
                    issuer,
                    client,
                    Some(verifier),
                    clock.clone(),
                    metrics,
                    control.clone(),
                    throttles,
                );
                exchange.subscribe_to(&self.retained.revocations);
                exchange
            },
        ))
    }

    fn entry(&self, route: &config::Route) -> Result<CompiledRoute<Route>, CompileError> {
        let (authenticate, challenges, authorize) = self.authenticate(route)?;
        let metrics = self.retained.metrics.route(&route.id);
        for method in authenticate.methods() {
            metrics.expects(method);
        }
        let action = self.action(route)?;
        let properties = RouteProperties {
            id: Arc::clone(&route.id),
            upstream: action.upstream().cloned(),
            cors: route.cors.clone(),
            challenges,
            limits: self.limits(&route.id, &route.limits)?,
            is_disabled: matches!(action, Action::Disabled),
            serves_a_session: false,
            security_headers: route.security_headers,
            access_log: route.access_log,
            metrics,
        };
        let compiled = Route {
            properties: Arc::new(properties),
            authenticate,
            authorize,
            action,
            max_body_size: route.max_body_size,
            compress: route.compress.clone(),
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
        Ok(limit::RouteLimits::new(&limiters, route, &self.retained.metrics))
    }

    fn action(&self, route: &config::Route) -> Result<Action, CompileError> {
        if !route.enabled {
            return Ok(Action::Disabled);
        }
        let edits = || route.response_headers.clone().into();
        Ok(match &route.action {
            config::Action::Upstream(name) => Action::Forward(Box::new(self.forward(route, name)?)),
            config::Action::Respond(response) => Action::Respond(response.into(), edits()),
            config::Action::Redirect { to, status } => {
                Action::redirect(to.clone(), *status, edits())
            }
        })
    }
}

/// Whether a route matches header fields that the gateway sets itself.
pub(super) fn matches_gateway_fields(config: &Config) -> bool {
    let request_id = &config.server.request_id_header;
    let mut wanted = config.routes.iter().flat_map(|route| &route.match_headers);
    wanted.any(|wanted| reserved_headers::is_said_by_gateway(&wanted.name, request_id))
}

/// Returns an issuer and its token verifier, retained or new.
pub(super) fn compile_issuer(
    name: &Arc<str>,
    settings: &issuer::Settings,
    rules: &token::ValidationRules,
    retained: &RetainedState,
) -> Result<(Arc<Issuer>, Arc<IssuerVerifier>), CompileError> {
    let RetainedState { clock, metrics, control, .. } = retained;
    let failed = |source| CompileError::Issuer { name: Arc::clone(name), source };
    let predecessors = retained.issuers.values();
    let issuer = retained.issuers.get_or_try_insert_with(settings.fingerprint(), || {
        let (clock, control) = (clock.clone(), control.clone());
        Issuer::succeeding(&predecessors, settings.clone(), clock, metrics, control)
    });
    let issuer = issuer.map_err(failed)?;
    let predecessors = retained.issuer_verifiers.values();
    let issuer_verifier =
        retained.issuer_verifiers.get_or_insert_with(IssuerVerifier::key(settings, rules), || {
            let revocations = retained.revocations.clone();
            IssuerVerifier::succeeding(
                &predecessors,
                Arc::clone(&issuer),
                rules.clone(),
                revocations,
                clock.clone(),
                metrics,
                control.clone(),
            )
        });
    Ok((issuer, issuer_verifier))
}

/// Returns the object called `name`.
fn find<T: Clone>(
    all: &HashMap<Arc<str>, T>,
    kind: &'static str,
    name: &Arc<str>,
) -> Result<T, CompileError> {
    all.get(name).cloned().ok_or_else(|| CompileError::Unknown { kind, name: Arc::clone(name) })
}

/// Returns the scopes that a client without a token should request: those of the first method that takes tokens.
fn wanted_scopes(methods: &[config::AuthMethod]) -> Option<Box<str>> {
    let auth_method = methods.iter().find(|auth_method| auth_method.credential.takes_tokens())?;
    let scopes =
        if auth_method.scopes.is_empty() { &auth_method.any_scope } else { &auth_method.scopes };
    (!scopes.is_empty()).then(|| scopes.to_string().into())
}
