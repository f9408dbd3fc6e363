//! Proof of possession for sender-constrained tokens.

use std::sync::Arc;

use crate::base::digest::sha256;

use crate::token::TokenError;
use crate::token::principal::{Confirmation, Principal};

/// The principal of a valid sender-constrained token, before proof of possession is checked (RFC 7800).
#[derive(Debug)]
#[must_use = "the principal is confirmed by a proof only"]
pub struct UnconfirmedPrincipal(Arc<Principal>);

impl UnconfirmedPrincipal {
    pub(crate) const fn new(principal: Arc<Principal>) -> Self {
        Self(principal)
    }

    /// Returns the confirmation method of the token; without one it is a bearer token.
    pub fn bound_to(&self) -> Option<&Confirmation> {
        self.0.confirmation.as_ref()
    }

    /// Returns the principal without a proof: for explanations, never to grant access.
    pub(crate) fn confirmed_by(self) -> Arc<Principal> {
        self.0
    }

    /// Returns the principal if the token is not bound, or bound to what `proof` proves.
    ///
    /// # Errors
    ///
    /// [`TokenError::Unproven`] if the token is bound to another key or certificate.
    pub fn proved_by(self, proof: &PossessionProof) -> Result<Arc<Principal>, TokenError> {
        match self.bound_to() {
            Some(bound) if !proof.matches(bound) => Err(TokenError::Unproven),
            _ => Ok(self.0),
        }
    }
}

/// The keys and certificates of which a request has proved possession.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PossessionProof {
    /// The thumbprint of the key that signed a valid `DPoP` proof for this request and token (RFC 9449 §4.3).
    pub key: Option<[u8; 32]>,
    /// SHA-256 of the client's certificate in the TLS handshake (RFC 8705 §3.1).
    pub certificate: Option<[u8; 32]>,
}

impl PossessionProof {
    /// Returns the proof by a client's certificate, in DER.
    pub fn of_certificate(certificate: &[u8]) -> Self {
        Self { key: None, certificate: Some(sha256(&[certificate])) }
    }

    /// Whether it proves what a token is bound to.
    pub fn matches(&self, bound: &Confirmation) -> bool {
        match bound {
            Confirmation::Key(thumbprint) => self.key.as_ref() == Some(thumbprint),
            Confirmation::Certificate(digest) => self.certificate.as_ref() == Some(digest),
            Confirmation::Unknown => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_matches_only_its_own_key_or_certificate() {
        let key = PossessionProof { key: Some([1; 32]), certificate: None };
        let certificate = PossessionProof::of_certificate(b"der");
        let digest = certificate.certificate.unwrap();

        assert!(key.matches(&Confirmation::Key([1; 32])));
        assert!(!key.matches(&Confirmation::Key([2; 32])));
        assert!(!key.matches(&Confirmation::Certificate([1; 32])));
        assert!(certificate.matches(&Confirmation::Certificate(digest)));
        assert!(!certificate.matches(&Confirmation::Key(digest)));
        assert!(!PossessionProof::default().matches(&Confirmation::Key([0; 32])));
        for proof in [key, certificate] {
            assert!(!proof.matches(&Confirmation::Unknown));
        }
    }
}
