//! What a request proves to have besides the token.

use super::principal::Confirmation;

/// What a request proves to have.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Proof {
    /// The thumbprint of the key that signed a valid `DPoP` proof for this request and token (RFC 9449 §4.3).
    pub key: Option<[u8; 32]>,
    /// SHA-256 of the certificate that the client showed in the TLS handshake (RFC 8705 §3.1).
    pub certificate: Option<[u8; 32]>,
}

impl Proof {
    /// Whether it is what a token is bound to.
    pub fn proves(&self, bound: &Confirmation) -> bool {
        match bound {
            Confirmation::Key(thumbprint) => self.key.as_ref() == Some(thumbprint),
            Confirmation::Certificate(digest) => self.certificate.as_ref() == Some(digest),
            Confirmation::Unknown => false,
        }
    }
}
