//! Proof of possession of sender-constrained tokens: a `DPoP` key (RFC 9449) or a client certificate (mutual TLS, RFC
//! 8705).
//!
//! The scheme of the request, the confirmation of the token and the binding that the route requires must all agree: a
//! key-bound token is never accepted as Bearer, an unbound one never with a proof. The proof is checked for every
//! request, even if the token is cached.

use super::dpop_fields::DPOP;
use std::sync::Arc;

use http::HeaderValue;
use http::request::Parts;
use url::Url;

use crate::base::raw_target;
use crate::config::TokenBinding;
use crate::config::route::HostPattern;
use crate::gateway::Rejection;
use crate::gateway::exchange::Exchange;
use crate::gateway::response::rejection::Challenge;
use crate::observe::metrics::AuthResult;
use crate::token::binding::dpop::{MatchedProof, Target};
use crate::token::{
    BadProof, Confirmation, Dpop, PossessionProof, Principal, TokenError, UnconfirmedPrincipal,
};

/// The scheme by which a token is presented.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum TokenScheme {
    /// Alone (RFC 6750 §2.1).
    Bearer,
    /// With a proof (RFC 9449 §7.1).
    Dpop,
}

/// The validator of proofs of possession for one route.
#[derive(Debug)]
pub(crate) struct ProofValidator {
    dpop: Arc<Dpop>,
    /// The public URL of the gateway for this route; `None` uses `Host`.
    public_url: Option<Url>,
    /// Whether the route names hosts besides that of `public_url`: requests to these use `Host`.
    has_other_hosts: bool,
}

impl ProofValidator {
    /// Returns the validator for a route on `hosts`; none means any, all addressed by `public_url`.
    pub(crate) fn new(dpop: Arc<Dpop>, public_url: Option<&Url>, hosts: &[HostPattern]) -> Self {
        let public_host = public_url.and_then(HostPattern::of_url);
        let has_other_hosts = hosts.iter().any(|host| Some(host) != public_host.as_ref());
        Self { dpop, public_url: public_url.cloned(), has_other_hosts }
    }

    /// Returns the principal of a verified token, if the caller proves possession of the key or certificate it is
    /// bound to.
    pub(crate) async fn check(
        &self,
        verified: UnconfirmedPrincipal,
        PresentedToken { scheme, token }: PresentedToken<'_>,
        wanted: Option<TokenBinding>,
        head: &Parts,
        exchange: &mut Exchange,
    ) -> Result<Arc<Principal>, PopError> {
        match (scheme, wanted, verified.bound_to()) {
            (TokenScheme::Dpop, None | Some(TokenBinding::Key), Some(Confirmation::Key(_))) => {
                let matched = self.read(head, token, exchange)?;
                let proof = PossessionProof { key: Some(matched.key), certificate: None };
                let principal = verified.proved_by(&proof).map_err(|_| PopError::INVALID_PROOF)?;
                let recorded = self.dpop.record(&matched, exchange.received_at);
                recorded.map_err(|bad| self.refusal(bad, exchange))?;
                let recorded = exchange
                    .measured(self.dpop.record_shared(&matched, exchange.received_at))
                    .await;
                recorded.map_err(|bad| self.refusal(bad, exchange))?;
                exchange.next_nonce = nonce_value(matched.next_nonce);
                Ok(principal)
            }
            (TokenScheme::Bearer, None, bound_to)
            | (TokenScheme::Bearer, Some(TokenBinding::Certificate), bound_to @ Some(_)) => {
                // A client that omitted the proof gets the challenge of DPoP.
                exchange.speaks_dpop = matches!(bound_to, Some(Confirmation::Key(_)));
                let proof = PossessionProof { key: None, certificate: exchange.peer.certificate };
                verified.proved_by(&proof).map_err(|_| PopError::WRONG_KEY)
            }
            _ => Err(PopError::TOKEN_NOT_BOUND),
        }
    }

    /// Reads and checks the single proof of a request.
    fn read(
        &self,
        head: &Parts,
        token: &str,
        exchange: &mut Exchange,
    ) -> Result<MatchedProof, PopError> {
        let mut fields = head.headers.get_all(DPOP).iter();
        let proof = fields.next().filter(|_| fields.next().is_none());
        let proof = proof.and_then(|proof| proof.to_str().ok()).ok_or(PopError::INVALID_PROOF)?;
        let url = self.request_url(head, exchange).ok_or(PopError::INVALID_PROOF)?;
        let target = Target { method: head.method.as_str(), url: &url, token };
        self.dpop
            .read(proof, target, exchange.received_at)
            .map_err(|bad| self.refusal(bad, exchange))
    }

    /// Returns the URL of the request as the client sees it.
    fn request_url(&self, head: &Parts, exchange: &Exchange) -> Option<Url> {
        let path = &*raw_target::escaped(head.uri.path());
        let own = || {
            let scheme = if exchange.is_secure() { "https" } else { "http" };
            let host = exchange.host.as_ref()?.to_str().ok()?;
            Url::parse(&format!("{scheme}://{host}{path}")).ok()
        };
        let Some(public_url) = &self.public_url else { return own() };
        if self.has_other_hosts
            && let Some(own) = own()
            && own.host() != public_url.host()
        {
            return Some(own);
        }
        let mut url = public_url.clone();
        url.set_path(path);
        Some(url)
    }

    fn refusal(&self, bad: BadProof, exchange: &mut Exchange) -> PopError {
        match bad {
            BadProof::Invalid => PopError::INVALID_PROOF,
            BadProof::Nonce => {
                exchange.next_nonce = nonce_value(self.dpop.nonce(exchange.received_at));
                PopError(
                    AuthResult::Credentials,
                    Rejection::Unauthenticated(Challenge::NonceRequired),
                )
            }
            BadProof::Unknown => PopError(AuthResult::Unavailable, Rejection::StoreUnavailable),
            BadProof::Full | BadProof::Unkept => {
                PopError(AuthResult::Unavailable, Rejection::Overloaded)
            }
        }
    }
}

/// A token and the scheme by which it was presented.
#[derive(Clone, Copy)]
pub(crate) struct PresentedToken<'a> {
    pub(crate) scheme: TokenScheme,
    pub(crate) token: &'a str,
}

/// The result for metrics and the rejection.
#[derive(Debug)]
pub(crate) struct PopError(pub(crate) AuthResult, pub(crate) Rejection);

impl PopError {
    /// The proof is invalid, or not for this request.
    const INVALID_PROOF: Self =
        Self(TokenError::Unproven.result(), Rejection::Unauthenticated(Challenge::InvalidProof));
    /// The token is bound to another key or certificate.
    const WRONG_KEY: Self =
        Self::of_token("The request does not prove possession of the key of the access token");
    /// The token is not bound, or not in the required way.
    pub(crate) const TOKEN_NOT_BOUND: Self =
        Self::of_token("The access token is not bound as this resource requires");

    const fn of_token(description: &'static str) -> Self {
        let challenge = Challenge::InvalidToken(description);
        Self(TokenError::Unproven.result(), Rejection::Unauthenticated(challenge))
    }
}

/// Whether an `Authorization` value to send upstream is a `DPoP` token.
pub(crate) fn is_dpop(authorization: &HeaderValue) -> bool {
    authorization.as_bytes().get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"dpop "))
}

fn nonce_value(nonce: Option<String>) -> Option<HeaderValue> {
    nonce.and_then(|nonce| HeaderValue::try_from(nonce).ok())
}
