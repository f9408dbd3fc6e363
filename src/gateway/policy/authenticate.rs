//! Authentication: finds the credential of a request and verifies it.
//!
//! A route lists its authentication methods. The first whose credential is present decides: an invalid one never falls
//! through to another. Access tokens are read from the field or cookie that `token_from` names, by default from
//! `Authorization`, as Bearer (RFC 6750 §2.1) or with a `DPoP` proof (RFC 9449 §7.1).

use core::time::Duration;
use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, HeaderValue};

use super::proof_of_possession;
use super::proof_of_possession::{PopError, ProofValidator, TokenScheme};
use super::token_source;
use crate::base::body::Body;
use crate::basic::{BasicError, BasicExchange, ExchangedCredentials};
use crate::config::TokenBinding;
use crate::config::auth::{ForwardToken, TokenSource};
use crate::gateway::Rejection;
use crate::gateway::exchange::Exchange;
use crate::gateway::response::problem::AuthChallenges;
use crate::gateway::response::rejection::Challenge;
use crate::observe::metrics::{AuthLabel, AuthResult};
use crate::password::Credentials;
use crate::session::{
    LoginRedirect, SessionError, SessionErrorReason, SessionHandle, SessionUser, Sessions,
};
use crate::token::authentication_level::AuthenticationLevel;
use crate::token::{Principal, TokenError, TokenFormat, Verifier, is_b64token, is_token};

/// The authentication methods of a route.
#[derive(Debug, Default)]
pub(crate) struct Authenticate {
    /// Empty on a public route: `auth: none`.
    authenticators: Box<[Authenticator]>,
    /// Accepts requests without credentials; an invalid credential is refused all the same.
    optional: bool,
    /// Whether a method takes its credential from `Authorization`.
    reads_authorization: bool,
    /// The validator of proofs of possession, if a method takes tokens.
    proofs: Option<ProofValidator>,
}

/// One authentication method: its credential and the verifier.
#[derive(Debug)]
pub(crate) struct Authenticator {
    /// The kind of credential, with its verifier.
    pub credential: CredentialVerifier,
    /// The place of the token in a request.
    pub token_from: TokenSource,
    /// The method's name in metrics and log, for signed tokens if it takes both formats.
    pub method: AuthLabel,
    /// The binding that the token must have.
    pub bound_to: Option<TokenBinding>,
    /// The maximum age of a cached verification; `None` uses the issuer's limit.
    pub max_staleness: Option<Duration>,
    /// The access token to forward upstream.
    pub forward_token: ForwardToken,
}

/// A kind of credential, with its verifier.
#[derive(Debug)]
pub(crate) enum CredentialVerifier {
    /// An access token.
    Token(Verifier),
    /// User name and password, exchanged for an access token.
    Basic(Arc<BasicExchange>),
    /// A session's cookies.
    Session(Arc<Sessions>),
}

/// An authenticated or anonymous caller, before authorization.
#[derive(Debug)]
pub(crate) enum Caller {
    /// Any caller of a public route; credentials are forwarded untouched.
    Public,
    /// A caller without credentials, on a route where they are optional.
    Anonymous,
    /// A caller with verified credentials.
    Authenticated {
        /// The principal.
        principal: Arc<Principal>,
        /// The `Authorization` value to send upstream.
        bearer: Option<HeaderValue>,
        /// The session of the caller.
        session: Option<SessionHandle>,
        /// The index of the route's authentication method.
        auth_method: usize,
    },
}

impl Caller {
    /// Returns the index of the authentication method that has authenticated the caller.
    pub(crate) const fn auth_method(&self) -> Option<usize> {
        match self {
            Self::Authenticated { auth_method, .. } => Some(*auth_method),
            Self::Public | Self::Anonymous => None,
        }
    }
}

impl Authenticate {
    /// Creates the methods of one route, in the order of its list.
    pub(crate) fn new(
        authenticators: Vec<Authenticator>,
        optional: bool,
        proofs: ProofValidator,
    ) -> Self {
        let takes_tokens = authenticators
            .iter()
            .any(|authenticator| matches!(authenticator.credential, CredentialVerifier::Token(_)));
        let reads_authorization = authenticators.iter().any(Authenticator::reads_authorization);
        let proofs = takes_tokens.then_some(proofs);
        Self { authenticators: authenticators.into(), optional, reads_authorization, proofs }
    }

    /// Returns the names of the methods, for metrics.
    pub(crate) fn methods(&self) -> impl Iterator<Item = AuthLabel> {
        self.authenticators.iter().flat_map(|authenticator| {
            [authenticator.method, authenticator.method_of(TokenFormat::Reference)]
        })
    }

    /// Returns the challenges of a 401. `scopes` is what a token needs on the route.
    pub(crate) fn challenges(
        &self,
        metadata: Option<Box<str>>,
        scopes: Option<Box<str>>,
    ) -> AuthChallenges {
        let mut challenges = AuthChallenges { scopes, metadata, ..AuthChallenges::default() };
        for authenticator in &self.authenticators {
            match &authenticator.credential {
                CredentialVerifier::Token(_) => match authenticator.bound_to {
                    Some(TokenBinding::Key) => challenges.dpop = true,
                    Some(TokenBinding::Certificate) | None => challenges.bearer = true,
                },
                CredentialVerifier::Basic(_) => challenges.basic = true,
                CredentialVerifier::Session(session) => {
                    challenges.login = Some((*session.settings().paths.login).into());
                }
            }
        }
        challenges
    }

    /// Authenticates the caller of a request.
    ///
    /// # Errors
    ///
    /// [`Rejection::Unauthenticated`] if the credentials are missing or invalid, [`Rejection::MalformedCredentials`]
    /// if they cannot be parsed, [`Rejection::IssuerUnavailable`] if they cannot be verified at the moment, which is
    /// never the client's fault.
    pub(crate) async fn check(
        &self,
        head: &Parts,
        exchange: &mut Exchange,
    ) -> Result<Caller, Rejection> {
        if self.authenticators.is_empty() {
            exchange.authenticated(AuthLabel::None, AuthResult::Ok);
            return Ok(Caller::Public);
        }
        let presented = if self.reads_authorization {
            PresentedCredential::find(head)
        } else {
            // The route's token is elsewhere, so `Authorization` belongs to the upstream; a second one is refused all the same.
            only_field(&head.headers).map(|_unread| PresentedCredential::Nothing)
        };
        let presented = presented.inspect_err(|_rejection| {
            exchange.authenticated(self.authenticators[0].method, AuthResult::Malformed);
        })?;
        for (index, authenticator) in self.authenticators.iter().enumerate() {
            let found = authenticator.check(&presented, self.proofs.as_ref(), head, exchange).await;
            let Some(found) = found else { continue };
            return match found {
                Ok(Authenticated { principal, bearer, session }) => {
                    let method = authenticator.method_of(principal.form);
                    exchange.authenticated_as(&principal);
                    let bearer = match authenticator.forward_token {
                        ForwardToken::No => None,
                        ForwardToken::Presented => bearer,
                        ForwardToken::Signed => {
                            signed(&principal, bearer).inspect_err(|_none| {
                                exchange.authenticated(method, AuthResult::Unavailable);
                            })?
                        }
                    };
                    exchange.authenticated(method, AuthResult::Ok);
                    Ok(Caller::Authenticated { principal, bearer, session, auth_method: index })
                }
                Err((result, rejection)) => {
                    let format = authenticator.format_of(&presented, head);
                    exchange.authenticated(authenticator.method_of(format), result);
                    exchange.login = self.login(Some(authenticator), &rejection, head);
                    Err(rejection)
                }
            };
        }
        if self.optional && matches!(presented, PresentedCredential::Nothing) {
            exchange.authenticated(self.authenticators[0].method, AuthResult::Ok);
            return Ok(Caller::Anonymous);
        }
        exchange.authenticated(self.authenticators[0].method, AuthResult::Missing);
        let rejection = Rejection::Unauthenticated(Challenge::Missing);
        exchange.login = self.login(None, &rejection, head);
        Err(rejection)
    }

    /// Whether a session on this route may have to log in again for more than it has.
    pub(crate) fn defers_forms(methods: &[crate::config::AuthMethod]) -> bool {
        methods.iter().any(|method| method.level.is_some() && method.credential.session().is_some())
    }

    /// Leads the user of a session, whom the method at the index `auth_method` has authenticated, to a login that meets
    /// `required`. A form that the request has posted is kept, and sent after it.
    pub(crate) async fn step_up(
        &self,
        auth_method: Option<usize>,
        required: &AuthenticationLevel,
        head: &Parts,
        body: Body,
        exchange: &mut Exchange,
    ) {
        let Some(principal) = exchange.session_principal() else { return };
        let subject = principal.qualified_subject();
        let Some(CredentialVerifier::Session(session)) =
            auth_method.map(|index| &self.authenticators[index].credential)
        else {
            return;
        };
        let led = Box::pin(session.step_up(head, body, required, subject));
        exchange.login = exchange.measured(led).await;
    }

    /// Returns the login page that a user agent is redirected to instead of a 401: that of the session that `refused` has
    /// found ended, else that of the first session.
    fn login(
        &self,
        refused: Option<&Authenticator>,
        rejection: &Rejection,
        head: &Parts,
    ) -> Option<LoginRedirect> {
        let session_of = |authenticator: &Authenticator| match &authenticator.credential {
            CredentialVerifier::Session(session) => Some(Arc::clone(session)),
            CredentialVerifier::Token(_) | CredentialVerifier::Basic(_) => None,
        };
        let session = refused
            .and_then(session_of)
            .or_else(|| self.authenticators.iter().find_map(session_of))?;
        matches!(rejection, Rejection::Unauthenticated(_))
            .then(|| session.login_redirect(head))
            .flatten()
    }
}

/// The authenticated caller, or the result for metrics and the rejection.
type Found = Result<Authenticated, (AuthResult, Rejection)>;

/// A principal, and the `Authorization` value to send upstream.
struct Authenticated {
    principal: Arc<Principal>,
    bearer: Option<HeaderValue>,
    /// The session of the caller.
    session: Option<SessionHandle>,
}

impl Authenticated {
    const fn new(principal: Arc<Principal>, bearer: Option<HeaderValue>) -> Self {
        Self { principal, bearer, session: None }
    }

    fn in_session(user: SessionUser) -> Self {
        Self { principal: user.principal, bearer: user.forward, session: Some(user.handle) }
    }
}

impl Authenticator {
    fn reads_authorization(&self) -> bool {
        match self.credential {
            CredentialVerifier::Token(_) => self.token_from == TokenSource::Authorization,
            CredentialVerifier::Basic(_) => true,
            CredentialVerifier::Session(_) => false,
        }
    }

    /// Returns the name in metrics and log for a token of this format: a method that takes signed and opaque tokens has
    /// the name of either.
    fn method_of(&self, format: TokenFormat) -> AuthLabel {
        match (&self.credential, format) {
            (CredentialVerifier::Token(verifier), TokenFormat::Reference)
                if verifier.takes_both() =>
            {
                AuthLabel::Introspection
            }
            _ => self.method,
        }
    }

    /// Returns the format of a token that was refused.
    fn format_of(&self, presented: &PresentedCredential<'_>, head: &Parts) -> TokenFormat {
        let CredentialVerifier::Token(verifier) = &self.credential else {
            return TokenFormat::Signed;
        };
        let token = match (&self.token_from, presented) {
            (TokenSource::Authorization, PresentedCredential::Token { token, .. }) => Some(*token),
            (source, _) => token_source::find(source, head).ok().flatten(),
        };
        let token = token.and_then(|token| core::str::from_utf8(token).ok());
        token.map_or(TokenFormat::Signed, |token| verifier.format_of(token))
    }

    /// Authenticates a request by this method; `None` if its credential is not present.
    async fn check(
        &self,
        presented: &PresentedCredential<'_>,
        proofs: Option<&ProofValidator>,
        head: &Parts,
        exchange: &mut Exchange,
    ) -> Option<Found> {
        match (&self.credential, presented) {
            (CredentialVerifier::Token(verifier), _)
                if self.token_from != TokenSource::Authorization =>
            {
                Box::pin(self.check_elsewhere(verifier, proofs, head, exchange)).await
            }
            (
                CredentialVerifier::Token(verifier),
                &PresentedCredential::Token { scheme, token, field },
            ) => {
                let known = match (scheme, self.bound_to) {
                    // The usual case: an unbound token that was verified before.
                    (TokenScheme::Bearer, None) => {
                        verifier.cached(token, exchange.received_at, self.max_staleness)
                    }
                    _ => None,
                };
                let verified = if let Some(principal) = known {
                    Ok(principal)
                } else {
                    // Boxed: rarely used and large, and every request carries this future.
                    let proofs = proofs?;
                    Box::pin(self.verify_token(verifier, scheme, token, proofs, head, exchange))
                        .await
                };
                let recognized = |principal| Authenticated::new(principal, Some(field.clone()));
                Some(verified.map(recognized))
            }
            (CredentialVerifier::Basic(basic), PresentedCredential::Basic(credentials)) => {
                let address = exchange.client;
                let exchanged = Box::pin(basic.principal(credentials, address, self.max_staleness));
                let exchanged = exchange.measured(exchanged).await;
                let recognized = |found: ExchangedCredentials| {
                    Authenticated::new(found.principal, Some(found.bearer))
                };
                Some(exchanged.map(recognized).map_err(of_basic))
            }
            (CredentialVerifier::Session(session), _) => {
                let authenticated = Box::pin(session.authenticate(head, self.max_staleness));
                match exchange.measured(authenticated).await {
                    Ok(mut user) => {
                        exchange.renewal = user.renewal.take();
                        Some(Ok(Authenticated::in_session(user)))
                    }
                    Err(SessionError { reason, set_cookies }) => {
                        exchange.cookies.extend(set_cookies);
                        match reason {
                            SessionErrorReason::Missing => None,
                            reason => Some(Err((reason.result(), of_session(reason)))),
                        }
                    }
                }
            }
            _ => None,
        }
    }
}

/// Returns the token to forward to an upstream that takes signed tokens only: never a reference token.
fn signed(
    principal: &Principal,
    presented: Option<HeaderValue>,
) -> Result<Option<HeaderValue>, Rejection> {
    match (principal.form, &principal.signed) {
        (TokenFormat::Signed, _) => Ok(presented),
        (TokenFormat::Reference, Some(signed)) => Ok(Some(signed.clone())),
        (TokenFormat::Reference, None) => Err(Rejection::IssuerUnavailable { retry_after: 1 }),
    }
}

impl Authenticator {
    /// Authenticates a request by a token that is not in `Authorization`.
    async fn check_elsewhere(
        &self,
        verifier: &Verifier,
        proofs: Option<&ProofValidator>,
        head: &Parts,
        exchange: &mut Exchange,
    ) -> Option<Found> {
        let token = match token_source::find(&self.token_from, head) {
            Ok(token) => token?,
            Err(rejection) => return Some(Err((AuthResult::Malformed, rejection))),
        };
        exchange.token_is_elsewhere = true;
        let verified =
            self.verify_token(verifier, TokenScheme::Bearer, token, proofs?, head, exchange).await;
        let forwarded = || match self.forward_token {
            ForwardToken::No => None,
            ForwardToken::Presented | ForwardToken::Signed => {
                let mut field = HeaderValue::from_bytes(&[b"Bearer ", token].concat()).ok()?;
                field.set_sensitive(true);
                Some(field)
            }
        };
        Some(verified.map(|principal| Authenticated::new(principal, forwarded())))
    }

    /// Verifies a token that is not cached, or is bound, and its proof of possession.
    async fn verify_token(
        &self,
        verifier: &Verifier,
        scheme: TokenScheme,
        token: &[u8],
        proofs: &ProofValidator,
        head: &Parts,
        exchange: &mut Exchange,
    ) -> Result<Arc<Principal>, (AuthResult, Rejection)> {
        let refused = |PopError(result, rejection)| (result, rejection);
        exchange.speaks_dpop = scheme == TokenScheme::Dpop;
        // Checking every byte costs more than a cache hit: only tokens that are not cached are checked.
        let is_token = if verifier.introspects() { is_token } else { is_b64token };
        let token = core::str::from_utf8(token).ok();
        let Some(token) = token.filter(|token| is_token(token)) else {
            return Err((AuthResult::Malformed, Rejection::MalformedCredentials));
        };
        if (scheme, self.bound_to) == (TokenScheme::Bearer, Some(TokenBinding::Key)) {
            return Err(refused(PopError::TOKEN_NOT_BOUND));
        }
        let (now, max_staleness) = (exchange.received_at, self.max_staleness);
        let verified = exchange.measured(verifier.verify_bound(token, now, max_staleness)).await;
        let verified = verified.map_err(of_token)?;
        let with = proof_of_possession::PresentedToken { scheme, token };
        proofs.check(verified, with, self.bound_to, head, exchange).await.map_err(refused)
    }
}

/// The credential in the `Authorization` field of a request.
pub(crate) enum PresentedCredential<'a> {
    Nothing,
    Token {
        scheme: TokenScheme,
        /// The rest of the value after the scheme.
        token: &'a [u8],
        /// The field as it is forwarded upstream.
        field: &'a HeaderValue,
    },
    Basic(Credentials),
    /// A scheme that no method uses.
    Other,
}

impl<'a> PresentedCredential<'a> {
    /// Parses `Authorization`: one field, one credential, and no token in the query beside it (RFC 6750 §2).
    pub(crate) fn find(head: &'a Parts) -> Result<Self, Rejection> {
        let Some(field) = only_field(&head.headers)? else { return Ok(Self::Nothing) };
        let text = field.as_bytes();
        let end_of = |is_end: fn(&u8) -> bool, text: &[u8]| text.iter().position(is_end);
        let (scheme, rest) = text.split_at(end_of(|b| *b == b' ', text).unwrap_or(text.len()));
        let token_scheme = if scheme.eq_ignore_ascii_case(b"bearer") {
            Some(TokenScheme::Bearer)
        } else if scheme.eq_ignore_ascii_case(b"dpop") {
            Some(TokenScheme::Dpop)
        } else {
            None
        };
        if let Some(scheme) = token_scheme {
            let token = &rest[end_of(|b| *b != b' ', rest).unwrap_or(rest.len())..];
            if head.uri.query().is_some_and(has_token) {
                return Err(Rejection::MalformedCredentials);
            }
            return Ok(Self::Token { scheme, token, field });
        }
        if scheme.eq_ignore_ascii_case(b"basic") {
            let credentials = Credentials::from_authorization(field)
                .map_err(|_| Rejection::MalformedCredentials)?;
            return credentials.map(Self::Basic).ok_or(Rejection::MalformedCredentials);
        }
        core::str::from_utf8(text).map(|_| Self::Other).map_err(|_| Rejection::MalformedCredentials)
    }
}

fn only_field(headers: &HeaderMap) -> Result<Option<&HeaderValue>, Rejection> {
    let mut fields = headers.get_all(AUTHORIZATION).iter();
    let field = fields.next();
    if fields.next().is_some() { Err(Rejection::MalformedCredentials) } else { Ok(field) }
}

/// Whether a query contains an access token as well (RFC 6750 §2.3).
fn has_token(query: &str) -> bool {
    query.split('&').any(|pair| {
        let name = pair.split('=').next().unwrap_or_default();
        name == "access_token"
            || (name.contains('%')
                && url::form_urlencoded::parse(name.as_bytes())
                    .any(|(name, _)| name == "access_token"))
    })
}

fn of_token(error: TokenError) -> (AuthResult, Rejection) {
    let rejection = match error {
        TokenError::Unavailable { retry_after } => {
            Rejection::IssuerUnavailable { retry_after: u64::from(retry_after) }
        }
        error => Rejection::Unauthenticated(Challenge::InvalidToken(describe(error))),
    };
    (error.result(), rejection)
}

/// Returns the `error_description` for a client (RFC 6750 §3.1); details of keys and claims are only logged.
const fn describe(error: TokenError) -> &'static str {
    match error {
        TokenError::Expired => "The access token has expired",
        TokenError::NotYetValid => "The access token is not valid yet",
        TokenError::Inactive | TokenError::Revoked => {
            "The access token has been revoked or has ended"
        }
        TokenError::Audience => "The access token is meant for another audience",
        TokenError::Issuer => "The access token is from another issuer",
        TokenError::Unproven => {
            "The request does not prove possession of the key of the access token"
        }
        _ => "The access token is not valid",
    }
}

fn of_basic(error: BasicError) -> (AuthResult, Rejection) {
    let rejection = match error {
        BasicError::Invalid => Rejection::Unauthenticated(Challenge::InvalidCredentials),
        BasicError::Limited { retry_after } => Rejection::TooManyFailures { retry_after },
        BasicError::Unavailable => Rejection::IssuerUnavailable { retry_after: 1 },
        BasicError::Token(error @ TokenError::Unavailable { .. }) => return of_token(error),
        BasicError::Token(_) => Rejection::IssuerUnavailable { retry_after: 10 },
    };
    (error.result(), rejection)
}

const fn of_session(reason: SessionErrorReason) -> Rejection {
    match reason {
        SessionErrorReason::Missing => Rejection::Unauthenticated(Challenge::Missing),
        SessionErrorReason::Csrf => Rejection::CsrfRejected,
        SessionErrorReason::Expired => Rejection::Unauthenticated(Challenge::SessionEnded),
        SessionErrorReason::TooLarge => Rejection::SessionTooLarge,
        SessionErrorReason::Unavailable { retry_after } => {
            Rejection::IssuerUnavailable { retry_after: retry_after as u64 }
        }
        SessionErrorReason::StoreUnavailable => Rejection::StoreUnavailable,
    }
}
