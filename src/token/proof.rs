//! What a request proves to have besides the token.

use aws_lc_rs::digest;

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
    /// What a client proves that showed `certificate`, in DER, in the handshake.
    pub fn of_certificate(certificate: &[u8]) -> Self {
        let mut sum = [0; 32];
        sum.copy_from_slice(digest::digest(&digest::SHA256, certificate).as_ref());
        Self { key: None, certificate: Some(sum) }
    }

    /// Whether it is what a token is bound to.
    pub fn proves(&self, bound: &Confirmation) -> bool {
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
        let key = Proof { key: Some([1; 32]), certificate: None };
        let certificate = Proof::of_certificate(b"der");
        let digest = certificate.certificate.unwrap();

        assert!(key.proves(&Confirmation::Key([1; 32])));
        assert!(!key.proves(&Confirmation::Key([2; 32])));
        assert!(!key.proves(&Confirmation::Certificate([1; 32])));
        assert!(certificate.proves(&Confirmation::Certificate(digest)));
        assert!(!certificate.proves(&Confirmation::Key(digest)));
        assert!(!Proof::default().proves(&Confirmation::Key([0; 32])));
        for proof in [key, certificate] {
            assert!(!proof.proves(&Confirmation::Unknown));
        }
    }
}
