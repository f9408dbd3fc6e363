//! Configuration → snapshot, reusing what is kept.

use core::sync::atomic::AtomicU64;
use std::collections::HashMap;
use std::sync::Arc;

use super::action::Action;
use super::authenticate::{Authenticate, Credential, Way};
use super::authorize::Authorize;
use super::fleet::Fleet;
use super::forward::Forward;
use super::identity::Identity;
use super::identity_token::{self, IdentityTokens, Keys};
use super::kept::Kept;
use super::own::{self, Owner, wants_identity_tokens};
use super::possession::Proofs;
use super::receive::Bounds;
use super::resource::{self, Resources};
use super::rewrite::Target;
use super::route::{Entry, Router};
use super::{Route, Snapshot};
use crate::config::auth::ForwardToken;
use crate::config::reserved::{self, Reserved};
use crate::config::{self, Auth, Config};
use crate::issuer::sign::SigningFailed;
use crate::issuer::{self, Issuer};
use crate::limit::{self, Limiter};
use crate::observe::metrics::{AuthMethod, NO_ROUTE};
use crate::session::{BasicExchange, Session};
use crate::store::{InvalidUrl, Redis};
use crate::tls::TlsError;
use crate::token::{self, Dpop, Judge, Kind, Verifier};
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

/// Compiles a configuration; `kept` lends what an earlier one left.
///
/// # Errors
///
/// [`CompileError`] says what cannot be made.
pub fn compile(config: &Config, kept: &Kept) -> Result<Snapshot, CompileError> {
    let compiler = Compiler::new(config, kept)?;
    let mut routes =
        config.routes.iter().map(|route| compiler.entry(route)).collect::<Result<Vec<_>, _>>()?;
    routes.extend(own::entries(config, &compiler.resources, |owner| compiler.owned(owner))?);
    let own = config.identity_headers.iter().chain([&config.server.request_id_header]);
    Ok(Snapshot {
        router: Router::new(routes),
        sessions: compiler.sessions.values().cloned().collect(),
        issuers: compiler.issuers.values().cloned().collect(),
        upstreams: compiler.upstreams.values().cloned().collect(),
        fleet: compiler.fleet,
        reserved: Reserved::new(own),
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
    kept: &'a Kept,
    issuers: HashMap<Arc<str>, Arc<Issuer>>,
    judges: HashMap<Arc<str>, Arc<Judge>>,
    sessions: HashMap<Arc<str>, Arc<Session>>,
    upstreams: HashMap<Arc<str>, Arc<Upstream>>,
    limiters: HashMap<Arc<str>, Arc<Limiter>>,
    resources: Resources<'a>,
    dpop: Arc<Dpop>,
    fleet: Option<Arc<Fleet>>,
    /// What identity tokens are signed with, if a route wants them.
    identity_keys: Option<Arc<Keys>>,
}

impl<'a> Compiler<'a> {
    fn new(config: &'a Config, kept: &'a Kept) -> Result<Self, CompileError> {
        let mut compiler = Self {
            config,
            kept,
            issuers: HashMap::new(),
            judges: HashMap::new(),
            sessions: HashMap::new(),
            upstreams: HashMap::new(),
            limiters: HashMap::new(),
            resources: Resources::of(config),
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
        let Kept { clock, control, revocations, sessions, spent, stores, fleets, .. } = self.kept;
        let Some(settings) = &self.config.redis else {
            sessions.share(None);
            return Ok(());
        };
        let make = || Redis::new(settings.clone(), control.clone());
        let redis = stores.try_keep(settings.clone(), make)?;
        sessions.share(Some(Arc::clone(&redis)));
        let dpop = Dpop::new(&self.config.dpop_nonce_keys, Arc::clone(spent));
        self.dpop = Arc::new(dpop.shared_in(Arc::clone(&redis), clock.clone()));
        let renewals = sessions.renewals();
        let join = || Fleet::join(redis, revocations.clone(), renewals, clock.clone());
        self.fleet = Some(fleets.keep(settings.clone(), join));
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
        let Kept { clock, metrics, control, sessions, .. } = self.kept;
        for (name, settings) in &self.config.sessions {
            let issuer = find(&self.issuers, "issuer", &settings.issuer)?;
            let verifier = self.bearer(&settings.issuer)?;
            let session = Session::new(
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
        Ok(Arc::new(Verifier::new(Kind::Bearer, vec![find(&self.judges, "issuer", issuer)?])))
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
    fn owned(&self, owner: Owner<'_>) -> Result<Arc<Route>, CompileError> {
        let metadata = || Some(resource::cors());
        let (id, cors, action, limits) = match owner {
            Owner::Session(settings) => {
                let session = find(&self.sessions, "session", &settings.name)?;
                let id = format!("_session_{}", settings.name);
                (id, None, Action::Session(session), &settings.limits[..])
            }
            Owner::Metadata(answer) => (resource::ID.to_owned(), metadata(), answer, &[][..]),
            Owner::Keys => {
                let keys = self.identity_keys.clone();
                let action = keys.map_or(Action::Absent, Action::Keys);
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
        let compiled = ways.iter().map(|way| self.way(way)).collect::<Result<Vec<_>, _>>()?;
        let proofs = Proofs::new(Arc::clone(&self.dpop), self.resources.public_url(route));
        let metadata = self.resources.document_of(route);
        let authenticate = Authenticate::new(compiled, *optional, metadata, proofs);
        Ok((authenticate, Authorize::new(ways)))
    }

    fn way(&self, way: &config::Way) -> Result<Way, CompileError> {
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
                (self.token(Kind::Jwt, issuers, false)?, AuthMethod::Jwt)
            }
            config::Credential::Introspection(issuers) => {
                (self.token(Kind::Introspection, issuers, signed)?, AuthMethod::Introspection)
            }
            config::Credential::Bearer(issuers) => {
                (self.token(Kind::Bearer, issuers, signed)?, AuthMethod::Jwt)
            }
            config::Credential::Basic(issuer) => {
                (Credential::Basic(self.basic(issuer)?), AuthMethod::Basic)
            }
            config::Credential::Session(session) => (
                Credential::Session(find(&self.sessions, "session", session)?),
                AuthMethod::Session,
            ),
        };
        Ok(Way {
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
        kind: Kind,
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
        let Kept { clock, metrics, control, sessions, .. } = self.kept;
        let issuer = find(&self.issuers, "issuer", name)?;
        let judge = find(&self.judges, "issuer", name)?;
        let verifier = self.bearer(name)?;
        let client = issuer.settings().client.clone();
        let client = client.ok_or_else(|| CompileError::Unknown {
            kind: "client of issuer",
            name: Arc::clone(name),
        })?;
        Ok(self.kept.exchanges.keep(Judge::key(issuer.settings(), judge.rules()), || {
            let exchange = BasicExchange::new(
                issuer,
                client,
                Some(verifier),
                clock.clone(),
                metrics,
                control.clone(),
                sessions,
            );
            exchange.heed(&self.kept.revocations);
            exchange
        }))
    }

    fn entry(&self, route: &config::Route) -> Result<Entry<Route>, CompileError> {
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
        Ok(Entry::of(route, Arc::new(compiled)))
    }

    fn limits(&self, route: &Arc<str>, names: &[Arc<str>]) -> Result<limit::Set, CompileError> {
        let limiters = names
            .iter()
            .map(|name| find(&self.limiters, "limit", name))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(limit::Set::new(&limiters, route, &self.kept.metrics))
    }

    fn action(&self, route: &config::Route) -> Result<Action, CompileError> {
        if !route.enabled {
            return Ok(Action::Absent);
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
        let tokens = |way: &config::Way| {
            let (keys, issuer) = (Arc::clone(keys), Arc::clone(&issuer));
            way.identity_token.then(|| {
                IdentityTokens::new(keys, issuer, Arc::clone(upstream), &way.identity_headers)
            })
        };
        ways(route).iter().map(tokens).collect()
    }

    fn forward(&self, route: &config::Route, name: &Arc<str>) -> Result<Forward, CompileError> {
        let upstream = find(&self.upstreams, "upstream", name)?;
        let server = &self.config.server;
        let identity = ways(route).iter().map(|way| Identity::new(&way.identity_headers)).collect();
        Ok(Forward {
            timeout: route.timeout.unwrap_or(upstream.settings().timeout),
            upstream,
            bounds: Bounds { size: route.max_body_size, ..Bounds::of(server) },
            target: Target::new(route.rewrite.clone(), route.paths.clone()),
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
    wanted.any(|wanted| reserved::is_said_by_gateway(&wanted.name, request_id))
}

/// The ways to be let in on a route; none if it lets everybody in.
fn ways(route: &config::Route) -> &[config::Way] {
    match &route.auth {
        Auth::None => &[],
        Auth::Ways { ways, .. } => ways,
    }
}

/// An issuer, and who judges its tokens, as they were kept or anew.
pub(super) fn judge(
    name: &Arc<str>,
    settings: &issuer::Settings,
    rules: &token::Rules,
    kept: &Kept,
) -> Result<(Arc<Issuer>, Arc<Judge>), CompileError> {
    let Kept { clock, metrics, control, .. } = kept;
    let failed = |source| CompileError::Issuer { name: Arc::clone(name), source };
    let issuer = kept.issuers.try_keep(settings.fingerprint(), || {
        Issuer::new(settings.clone(), clock.clone(), metrics, control.clone())
    });
    let issuer = issuer.map_err(failed)?;
    let judge = kept.judges.keep(Judge::key(settings, rules), || {
        let revocations = kept.revocations.clone();
        Judge::new(
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
