//! What would happen to a request, and why: for the operator, with nothing running.
//!
//! A [`Map`] holds the same routes as a [`Snapshot`](super::Snapshot), arranged and searched by the
//! same code, but they lead to what the configuration says instead of to what serves.

use core::convert::Infallible;
use std::sync::Arc;

use http::Method;
use http::request::Parts;

use super::authorize::Rules;
use super::compile::judge;
use super::own::{self, Owner};
use super::resource::{self, Resources};
use super::rewrite::{self, Target};
use super::route::{Entry, Router, Rule};
use super::{CompileError, Kept, Rejection, find, host, identity_token};
use crate::base::clock::Timestamp;
use crate::config::route::{HeaderMatch, HostPattern, PathPattern};
use crate::config::{self, Config, Credential, Way};
use crate::observe::metrics::AuthResult;
use crate::token::jwt::Unverified;
use crate::token::{Kind, Principal, TokenError, Verifier};
use crate::{issuer, session};

/// What leads where.
#[derive(Debug)]
pub struct Map<'c>(Router<Destination<'c>>);

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
}

impl Destination<'_> {
    /// What metrics and the log call it.
    pub fn id(&self) -> String {
        match self {
            Self::Route(route) => route.id.to_string(),
            Self::Session(session) => format!("_session_{}", session.name),
            Self::Metadata => resource::ID.to_owned(),
            Self::Keys => identity_token::ID.to_owned(),
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
    /// The path in its normal form; `None` if it has none.
    pub path: Option<String>,
    /// What host and path lead to, in the order in which methods and fields were compared.
    pub candidates: Vec<Candidate<'c>>,
    /// What takes the request, or why nothing does.
    pub outcome: Result<Destination<'c>, Rejection>,
    /// The path that the service receives.
    pub sent: Option<String>,
}

impl<'c> Map<'c> {
    /// The routes of `config`.
    pub fn of(config: &'c Config) -> Self {
        let routes =
            config.routes.iter().map(|route| Entry::of(route, Arc::new(Destination::Route(route))));
        let own = own::entries(config, &Resources::of(config), |owner| {
            Ok::<_, Infallible>(Arc::new(match owner {
                Owner::Session(session) => Destination::Session(session),
                Owner::Metadata(_) => Destination::Metadata,
                Owner::Keys => Destination::Keys,
            }))
        });
        let own = own.unwrap_or_else(|never| match never {});
        Self(Router::new(routes.chain(own).collect()))
    }

    /// Every host and path in the order of a search, the most specific first.
    pub fn in_order(&self) -> Vec<Candidate<'c>> {
        self.0.in_order().iter().map(Candidate::of).collect()
    }

    /// What becomes of a request.
    pub fn decide(&self, mut head: Parts) -> Decision<'c> {
        let refused = |host, rejection| Decision {
            host,
            path: None,
            candidates: Vec::new(),
            outcome: Err(rejection),
            sent: None,
        };
        let host = match host::read(&mut head) {
            Ok(host) => host.name,
            Err(rejection) => return refused(None, rejection),
        };
        if let Err(rejection) = find::normalise(&mut head.uri) {
            return refused(Some(host), rejection);
        }
        let path = head.uri.path().to_owned();
        let candidates = self.candidates(&host, &path, &head.method);
        let answers_preflights =
            |leads: &Destination<'_>| matches!(leads, Destination::Route(r) if r.cors.is_some());
        let outcome = find::find(&self.0, &host, &head, answers_preflights).map(|found| **found);
        let outcome = match outcome {
            Ok(Destination::Route(route)) if !route.enabled => Err(Rejection::NoRoute),
            outcome => outcome,
        };
        let sent = match &outcome {
            Ok(Destination::Route(route)) => {
                let mut uri = head.uri;
                Target::new(route.rewrite.clone(), route.paths.clone()).rewrite(&mut uri);
                Some(uri.path().to_owned())
            }
            _ => None,
        };
        Decision { host: Some(host), path: Some(path), candidates, outcome, sent }
    }

    fn candidates(&self, host: &str, path: &str, method: &Method) -> Vec<Candidate<'c>> {
        let rules = self.0.in_order();
        let candidate = |entry: &Entry<Destination<'c>>| {
            let here = |rule: &&Rule<'_, Destination<'c>>| {
                core::ptr::eq(rule.entry, entry) && rewrite::fits(rule.path, path)
            };
            // The first is the one that a search comes to first.
            let rule = rules.iter().find(here)?;
            Some(Candidate { takes_method: entry.takes(method), ..Candidate::of(rule) })
        };
        self.0.candidates(host, path).filter_map(candidate).collect()
    }
}

impl<'c> Candidate<'c> {
    fn of(rule: &Rule<'_, Destination<'c>>) -> Self {
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
    kept: &Kept,
) -> Result<Verdict, CompileError> {
    let (kind, names) = match credential {
        Credential::Jwt(issuers) => (Kind::Jwt, issuers),
        Credential::Introspection(issuers) => (Kind::Introspection, issuers),
        Credential::Bearer(issuers) => (Kind::Bearer, issuers),
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
        Ok(good) => Verdict::Good(good.in_the_right_hands()),
        Err(error @ TokenError::Unavailable { .. }) if kind != Kind::Introspection => {
            let unverified = |(_, issuer): &(&Arc<str>, &config::Issuer)| {
                let token = Unverified::read(token).ok()?;
                token.believed(&issuer.settings, &issuer.rules, now).ok()
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
pub fn refusal(way: &Way, principal: &Principal) -> Option<(AuthResult, Rejection)> {
    Rules::new(way).refusal(principal)
}
