//! Authorization: decides whether a caller may use a route. The only source of a [`Permit`].

use std::sync::Arc;

use http::HeaderValue;

use super::authenticate::Caller;
use crate::base::clock::Timestamp;
use crate::base::scopes::Scopes;
use crate::config::auth::{AuthMethod, ClaimRule, Expected};
use crate::gateway::Rejection;
use crate::gateway::exchange::Exchange;
use crate::gateway::response::rejection::Challenge;
use crate::observe::metrics::AuthResult;
use crate::session::SessionHandle;
use crate::token::Principal;
use crate::token::authentication_level::AuthenticationLevel;
use crate::token::principal::has_value;

/// The authorization rules of each of a route's authentication methods.
#[derive(Debug, Default)]
pub(crate) struct Authorize(Box<[AuthorizationRules]>);

/// The rules for principals authenticated by one method.
#[derive(Debug)]
pub(crate) struct AuthorizationRules {
    /// Scopes that are all required; otherwise 403.
    scopes: Arc<Scopes>,
    /// Scopes of which one is required, if there are any; otherwise 403.
    any_scope: Arc<Scopes>,
    /// Audiences of which `aud` must contain one, if there are any.
    audience: Box<[Arc<str>]>,
    claims: Box<[ClaimRule]>,
    clients: Box<[Arc<str>]>,
    /// The demands on the user's login.
    level: Option<Arc<AuthenticationLevel>>,
}

/// Proof that a request was authorized. Only [`Authorize::check`] makes one, only `Action::run` consumes one.
#[derive(Debug)]
#[must_use = "a request that was authorized should be acted upon"]
pub(crate) struct Permit {
    /// The caller; `None` on a public route or for an anonymous caller.
    pub principal: Option<Arc<Principal>>,
    /// The `Authorization` value to send upstream; `None` removes the field.
    pub bearer: Option<HeaderValue>,
    /// The session of the principal, for streams.
    pub session: Option<SessionHandle>,
    /// The index of the authentication method in the route's list; `None` leaves credentials untouched.
    pub auth_method: Option<usize>,
}

impl Permit {
    const fn anonymous(auth_method: Option<usize>) -> Self {
        Self { principal: None, bearer: None, session: None, auth_method }
    }
}

impl Authorize {
    /// Creates the rules of a route's authentication methods, in the order of its list.
    pub(crate) fn new(methods: &[AuthMethod]) -> Self {
        Self(methods.iter().map(AuthorizationRules::new).collect())
    }

    /// Authorizes a caller who satisfies every rule of their authentication method.
    ///
    /// # Errors
    ///
    /// [`Rejection::InsufficientScope`] names the missing scopes, [`Rejection::InsufficientAuthentication`] the demands
    /// on the login; a token for another audience is invalid (RFC 9068
    /// §4); every other rule is [`Rejection::Forbidden`].
    pub(crate) fn check(
        &self,
        caller: Caller,
        exchange: &mut Exchange,
    ) -> Result<Permit, Rejection> {
        match caller {
            Caller::Public => Ok(Permit::anonymous(None)),
            // Only routes without rules accept anonymous callers; `config` refuses others.
            Caller::Anonymous => Ok(Permit::anonymous(Some(0))),
            Caller::Authenticated { principal, bearer, session, auth_method } => {
                let rules = &self.0[auth_method];
                let refusal = rules.refusal(&principal);
                match refusal.or_else(|| rules.weakness(&principal, exchange.received_at)) {
                    None => Ok(Permit {
                        principal: Some(principal),
                        bearer,
                        session,
                        auth_method: Some(auth_method),
                    }),
                    Some((result, rejection)) => {
                        exchange.authorization_refused(result);
                        let is_opaque = session.as_ref().is_some_and(SessionHandle::is_opaque);
                        if is_opaque && matches!(rejection, Rejection::InsufficientScope { .. }) {
                            exchange.explain_refusal(SCOPES_OF_OPAQUE_TOKENS);
                        }
                        Err(rejection)
                    }
                }
            }
        }
    }
}

impl AuthorizationRules {
    pub(crate) fn new(auth_method: &AuthMethod) -> Self {
        Self {
            scopes: Arc::new(auth_method.scopes.clone()),
            any_scope: Arc::new(auth_method.any_scope.clone()),
            audience: auth_method.audience.clone().into(),
            claims: auth_method.claims.clone().into(),
            clients: auth_method.clients.clone().into(),
            level: auth_method.level.clone().map(Arc::new),
        }
    }

    /// Returns the refusal of a principal whose login is too weak or too long ago at `now`, all else being good.
    pub(crate) fn weakness(
        &self,
        principal: &Principal,
        now: Timestamp,
    ) -> Option<(AuthResult, Rejection)> {
        let required = self.level.as_ref().filter(|level| !level.is_met_by(principal, now))?;
        let required = Arc::clone(required);
        Some((AuthResult::Claim, Rejection::InsufficientAuthentication { required }))
    }

    /// Returns the refusal by the first rule that `principal` violates: the result for metrics and the rejection.
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
        let is_allowed = |client: &Arc<str>| self.clients.contains(client);
        if !self.clients.is_empty() && !principal.client.as_ref().is_some_and(is_allowed) {
            return Some((AuthResult::Client, Rejection::Forbidden));
        }
        let all_satisfied = self.claims.iter().all(|rule| is_satisfied(rule, principal));
        (!all_satisfied).then_some((AuthResult::Claim, Rejection::Forbidden))
    }
}

/// Whether a claim has an expected value; an absent claim never has. Servers write one value with or without a list,
/// so both forms of a rule match both.
fn is_satisfied(rule: &ClaimRule, principal: &Principal) -> bool {
    let Some(value) = principal.claim(&rule.path) else { return false };
    match &rule.expected {
        Expected::OneOf(values) => values.iter().any(|wanted| has_value(value, wanted)),
        Expected::Contains(wanted) => has_value(value, wanted),
    }
}

/// The cause of a 403 for the log: where a user may have edited the request, a response without `scope` proves none.
const SCOPES_OF_OPAQUE_TOKENS: &str = "the session's access token is opaque to the gateway: it has the scopes that the issuer named in the token \
     response, or without `scope` there those of a pushed request";
