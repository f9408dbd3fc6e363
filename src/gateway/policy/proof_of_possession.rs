//! Tokens that are good in one hand only: whoever presents one proves to have the key (`DPoP`, RFC
//! 9449) or the certificate (mutual TLS, RFC 8705) that it is bound to.
//!
//! The scheme says what a client claims, the token what it must prove, the route what it wants, and
//! all three must agree: a token that is bound to a key is never taken as Bearer, one that is not is
//! never taken with a proof. The proof is looked at for every request, also where the verdict on the
//! token is known.

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderName, HeaderValue};
use url::Url;

use crate::config::TokenBinding;
use crate::gateway::Rejection;
use crate::gateway::exchange::Exchange;
use crate::gateway::response::rejection::Challenge;
use crate::observe::metrics::AuthResult;
use crate::token::binding::dpop::{MatchedProof, Target};
use crate::token::{
    BadProof, Confirmation, Dpop, PossessionProof, Principal, TokenError, UnconfirmedPrincipal,
};

/// `DPoP`: the proof that a request brings (RFC 9449 §4.1).
pub(crate) const DPOP: HeaderName = HeaderName::from_static("dpop");
/// `DPoP-Nonce`: what the next proof must carry (RFC 9449 §8).
pub(crate) const DPOP_NONCE: HeaderName = HeaderName::from_static("dpop-nonce");

/// How a token is presented.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Scheme {
    /// Alone (RFC 6750 §2.1).
    Bearer,
    /// With a proof (RFC 9449 §7.1).
    Dpop,
}

/// How the proofs that come to a route are checked.
#[derive(Debug)]
pub(crate) struct ProofValidator {
    dpop: Arc<Dpop>,
    /// What clients call the gateway there; `None` takes what they say in `Host`.
    public: Option<Url>,
}

impl ProofValidator {
    pub(crate) fn new(dpop: Arc<Dpop>, public: Option<&Url>) -> Self {
        Self { dpop, public: public.cloned() }
    }

    /// Who a good token speaks for, if whoever presents it so proves to be the one it was given to.
    pub(crate) async fn check(
        &self,
        verified: UnconfirmedPrincipal,
        Presented { scheme, token }: Presented<'_>,
        wanted: Option<TokenBinding>,
        head: &Parts,
        exchange: &mut Exchange,
    ) -> Result<Arc<Principal>, PopError> {
        match (scheme, wanted, verified.bound_to()) {
            (Scheme::Dpop, None | Some(TokenBinding::Key), Some(Confirmation::Key(_))) => {
                let fitting = self.read(head, token, exchange)?;
                let proof = PossessionProof { key: Some(fitting.key), certificate: None };
                let principal = verified.proved_by(&proof).map_err(|_| PopError::INVALID_PROOF)?;
                let spent = self.dpop.record(&fitting, exchange.received_at);
                spent.map_err(|bad| self.refusal(bad, exchange))?;
                let alone = exchange
                    .measured(self.dpop.record_shared(&fitting, exchange.received_at))
                    .await;
                alone.map_err(|bad| self.refusal(bad, exchange))?;
                exchange.next_nonce = nonce_value(fitting.next_nonce);
                Ok(principal)
            }
            (Scheme::Bearer, None, bound_to)
            | (Scheme::Bearer, Some(TokenBinding::Certificate), bound_to @ Some(_)) => {
                // A client that forgot the proof is told so in the words of DPoP.
                exchange.speaks_dpop = matches!(bound_to, Some(Confirmation::Key(_)));
                let proof = PossessionProof { key: None, certificate: exchange.peer.certificate };
                verified.proved_by(&proof).map_err(|_| PopError::WRONG_KEY)
            }
            _ => Err(PopError::TOKEN_NOT_BOUND),
        }
    }

    /// Reads the one proof of a request.
    fn read(
        &self,
        head: &Parts,
        token: &str,
        exchange: &mut Exchange,
    ) -> Result<MatchedProof, PopError> {
        let mut fields = head.headers.get_all(DPOP).iter();
        let proof = fields.next().filter(|_| fields.next().is_none());
        let proof = proof.and_then(|proof| proof.to_str().ok()).ok_or(PopError::INVALID_PROOF)?;
        let url = self.asked_for(head, exchange).ok_or(PopError::INVALID_PROOF)?;
        let target = Target { method: head.method.as_str(), url: &url, token };
        self.dpop
            .read(proof, target, exchange.received_at)
            .map_err(|bad| self.refusal(bad, exchange))
    }

    /// What the client asked for, as it knows it.
    fn asked_for(&self, head: &Parts, exchange: &Exchange) -> Option<Url> {
        let path = head.uri.path();
        if let Some(public) = &self.public {
            let mut url = public.clone();
            url.set_path(path);
            return Some(url);
        }
        let scheme = if exchange.is_secure() { "https" } else { "http" };
        let host = exchange.host.as_ref()?.to_str().ok()?;
        Url::parse(&format!("{scheme}://{host}{path}")).ok()
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
            BadProof::Unknown => {
                PopError(AuthResult::Unavailable, Rejection::IssuerUnavailable { retry_after: 1 })
            }
            BadProof::Full | BadProof::Unkept => {
                PopError(AuthResult::Unavailable, Rejection::Overloaded)
            }
        }
    }
}

/// A token as it was presented.
#[derive(Clone, Copy)]
pub(crate) struct Presented<'a> {
    pub(crate) scheme: Scheme,
    pub(crate) token: &'a str,
}

/// What metrics and the client are told.
#[derive(Debug)]
pub(crate) struct PopError(pub(crate) AuthResult, pub(crate) Rejection);

impl PopError {
    /// The proof is none, or none for this request.
    const INVALID_PROOF: Self =
        Self(TokenError::Unproven.result(), Rejection::Unauthenticated(Challenge::InvalidProof));
    /// The token is somebody else's.
    const WRONG_KEY: Self =
        Self::of_token("The access token is bound to a key that the request does not prove");
    /// The token is bound to nothing, or to something else than is wanted.
    pub(crate) const TOKEN_NOT_BOUND: Self =
        Self::of_token("The access token is not bound as this resource wants it to be");

    const fn of_token(description: &'static str) -> Self {
        let challenge = Challenge::InvalidToken(description);
        Self(TokenError::Unproven.result(), Rejection::Unauthenticated(challenge))
    }
}

/// Whether what goes on to the service as `Authorization` is a token that came with a proof.
pub(crate) fn comes_with_proof(authorization: &HeaderValue) -> bool {
    authorization.as_bytes().get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"dpop "))
}

fn nonce_value(nonce: Option<String>) -> Option<HeaderValue> {
    nonce.and_then(|nonce| HeaderValue::try_from(nonce).ok())
}
