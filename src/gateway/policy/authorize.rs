//! May this principal do this? The only maker of [`Permit`].

use std::sync::Arc;

use http::HeaderValue;
use serde_json::Value;

use super::authenticate::Caller;
use crate::base::scopes::Scopes;
use crate::config::auth::{AuthMethod, ClaimRule, Expected};
use crate::gateway::Rejection;
use crate::gateway::exchange::Exchange;
use crate::gateway::response::rejection::Challenge;
use crate::observe::metrics::AuthResult;
use crate::session::SessionHandle;
use crate::token::Principal;

/// What callers must be and have, for each of the route's ways.
#[derive(Debug, Default)]
pub(crate) struct Authorize(Box<[AuthorizationRules]>);

/// What a principal that came one way must be and have.
#[derive(Debug)]
pub(crate) struct AuthorizationRules {
    /// Every scope of these; else 403.
    scopes: Arc<Scopes>,
    /// One of these, if there are any; else 403.
    any_scope: Arc<Scopes>,
    /// One of these in `aud`, if there are any.
    audience: Box<[Arc<str>]>,
    claims: Box<[ClaimRule]>,
    clients: Box<[Arc<str>]>,
}

/// Proof that a request was authorized. Only [`Authorize::check`] makes one, only `Action::run` consumes one.
#[derive(Debug)]
#[must_use = "a request that was authorized should be acted upon"]
pub(crate) struct Permit {
    /// Who asks; `None` for everybody.
    pub principal: Option<Arc<Principal>>,
    /// What the service gets as `Authorization`: `None` strips it.
    pub bearer: Option<HeaderValue>,
    /// The session that the principal came with, for streams.
    pub visit: Option<SessionHandle>,
    /// Which way the principal came, by its place in the route's list; `None` leaves credentials untouched.
    pub way: Option<usize>,
}

impl Permit {
    const fn anonymous(way: Option<usize>) -> Self {
        Self { principal: None, bearer: None, visit: None, way }
    }
}

impl Authorize {
    /// The rules of a route's ways, in the order of its list.
    pub(crate) fn new(ways: &[AuthMethod]) -> Self {
        Self(ways.iter().map(AuthorizationRules::new).collect())
    }

    /// Lets a caller pass who fits every rule of the way they came.
    ///
    /// # Errors
    ///
    /// [`Rejection::InsufficientScope`] names what is missing; a token for another audience is not valid here
    /// (RFC 9068 §4); any other rule is [`Rejection::Forbidden`].
    pub(crate) fn check(
        &self,
        caller: Caller,
        exchange: &mut Exchange,
    ) -> Result<Permit, Rejection> {
        match caller {
            Caller::Public => Ok(Permit::anonymous(None)),
            // Only routes without rules take callers without a name; `config` refuses others.
            Caller::Anonymous => Ok(Permit::anonymous(Some(0))),
            Caller::Authenticated { principal, bearer, visit, way } => {
                match self.0[way].refusal(&principal) {
                    None => {
                        Ok(Permit { principal: Some(principal), bearer, visit, way: Some(way) })
                    }
                    Some((result, rejection)) => {
                        exchange.refused(result);
                        Err(rejection)
                    }
                }
            }
        }
    }
}

impl AuthorizationRules {
    pub(crate) fn new(way: &AuthMethod) -> Self {
        Self {
            scopes: Arc::new(way.scopes.clone()),
            any_scope: Arc::new(way.any_scope.clone()),
            audience: way.audience.clone().into(),
            claims: way.claims.clone().into(),
            clients: way.clients.clone().into(),
        }
    }

    /// The first rule that `principal` does not fit: what metrics and the client are told.
    pub(crate) fn refusal(&self, principal: &Principal) -> Option<(AuthResult, Rejection)> {
        let lacks = |scopes: &Arc<Scopes>| {
            Some((AuthResult::Scope, Rejection::InsufficientScope { required: Arc::clone(scopes) }))
        };
        if !self.audience.is_empty()
            && !self.audience.iter().any(|audience| principal.has_audience(audience))
        {
            let challenge =
                Challenge::InvalidToken("The access token is meant for another audience");
            return Some((AuthResult::Audience, Rejection::Unauthenticated(challenge)));
        }
        if !self.scopes.is_subset(&principal.scopes) {
            return lacks(&self.scopes);
        }
        if !self.any_scope.is_empty() && !self.any_scope.intersects(&principal.scopes) {
            return lacks(&self.any_scope);
        }
        let is_taken = |client: &Arc<str>| self.clients.contains(client);
        if !self.clients.is_empty() && !principal.client.as_ref().is_some_and(is_taken) {
            return Some((AuthResult::Client, Rejection::Forbidden));
        }
        let fits_all = self.claims.iter().all(|rule| fits(rule, principal));
        (!fits_all).then_some((AuthResult::Claim, Rejection::Forbidden))
    }
}

/// Whether a claim says what it must; an absent one never does.
fn fits(rule: &ClaimRule, principal: &Principal) -> bool {
    let Some(value) = principal.claim(&rule.path) else { return false };
    match &rule.expected {
        Expected::OneOf(values) => values.contains(value),
        Expected::Contains(wanted) => {
            value.as_array().is_some_and(|values: &Vec<Value>| values.contains(wanted))
        }
    }
}
