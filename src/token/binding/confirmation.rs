//! What a request proves to have besides the token.

use std::sync::Arc;

use aws_lc_rs::digest;

use crate::token::TokenError;
use crate::token::principal::{Confirmation, Principal};

/// Whom a good token speaks for, if whoever presents it proves to have what it is bound to.
#[derive(Debug)]
#[must_use = "nobody is let in before the proof"]
pub struct UnconfirmedPrincipal(Arc<Principal>);

impl UnconfirmedPrincipal {
    pub(crate) const fn new(principal: Arc<Principal>) -> Self {
        Self(principal)
    }

    /// What the token is bound to; whoever presents one that is bound to nothing may use it.
    pub fn bound_to(&self) -> Option<&Confirmation> {
        self.0.confirmation.as_ref()
    }

    /// Who the token speaks for in the right hands: to explain, never to let anybody in.
    pub(crate) fn confirmed_by(self) -> Arc<Principal> {
        self.0
    }

    /// The principal, if the token is bound to nothing, or to what `confirmation` proves.
    ///
    /// # Errors
    ///
    /// [`TokenError::Unproven`] if it is bound to something else.
    pub fn proved_by(self, proof: &PossessionProof) -> Result<Arc<Principal>, TokenError> {
        match self.bound_to() {
            Some(bound) if !proof.matches(bound) => Err(TokenError::Unproven),
            _ => Ok(self.0),
        }
    }
}

/// What a request proves to have.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PossessionProof {
    /// The thumbprint of the key that signed a valid `DPoP` proof for this request and token (RFC 9449 §4.3).
    pub key: Option<[u8; 32]>,
    /// SHA-256 of the certificate that the client showed in the TLS handshake (RFC 8705 §3.1).
    pub certificate: Option<[u8; 32]>,
}

impl PossessionProof {
    /// What a client proves that showed `certificate`, in DER, in the handshake.
    pub fn of_certificate(certificate: &[u8]) -> Self {
        let mut sum = [0; 32];
        sum.copy_from_slice(digest::digest(&digest::SHA256, certificate).as_ref());
        Self { key: None, certificate: Some(sum) }
    }

    /// Whether it is what a token is bound to.
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
    fn proves_what_it_is_and_nothing_else() {
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
