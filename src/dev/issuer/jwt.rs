//! Parsing and verifying a JWT that a client sends: an assertion, or an ID token as a hint.
//!
//! The gateway verifies tokens in `token/`, and far more strictly.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
    UnparsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::keys::Algorithm;

/// A parsed JWT; its claims are unverified until [`Jwt::is_signed_with`] returns true.
#[derive(Debug)]
pub(super) struct Jwt {
    pub(super) claims: Value,
    header: Value,
    signed: String,
    signature: Vec<u8>,
}

impl Jwt {
    /// Parses the compact serialization (RFC 7515 §3.1).
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let json = |part: &str| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok();
        Some(Self {
            header: json(header)?,
            claims: json(claims)?,
            signed: signed.to_owned(),
            signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
        })
    }

    /// Returns a claim that is a string.
    pub(super) fn text(&self, claim: &str) -> Option<&str> {
        self.claims.get(claim)?.as_str()
    }

    /// Whether a key of this JWK set verifies the signature.
    pub(super) fn is_signed_with(&self, keys: &Value) -> bool {
        let algorithm =
            self.header.get("alg").and_then(Value::as_str).and_then(Algorithm::from_name);
        let Some(algorithm) = algorithm else { return false };
        let kid = self.header.get("kid");
        let keys = keys.get("keys").and_then(Value::as_array).into_iter().flatten();
        keys.filter(|key| kid.is_none() || key.get("kid").is_none() || key.get("kid") == kid)
            .any(|key| self.verifies(algorithm, key).unwrap_or(false))
    }

    /// `None` if the key cannot be used with the algorithm.
    fn verifies(&self, algorithm: Algorithm, key: &Value) -> Option<bool> {
        let text = |name: &str| key.get(name).and_then(Value::as_str);
        let number = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
        let message = self.signed.as_bytes();
        let verified = match (algorithm, text("kty")?, text("crv")) {
            (Algorithm::Rs256, "RSA", None) => {
                RsaPublicKeyComponents { n: number("n")?, e: number("e")? }.verify(
                    &RSA_PKCS1_2048_8192_SHA256,
                    message,
                    &self.signature,
                )
            }
            (Algorithm::Es256, "EC", Some("P-256")) => {
                let point = [vec![4], number("x")?, number("y")?].concat();
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                    .verify(message, &self.signature)
            }
            (Algorithm::EdDsa, "OKP", Some("Ed25519")) => {
                UnparsedPublicKey::new(&ED25519, number("x")?).verify(message, &self.signature)
            }
            _ => return None,
        };
        Some(verified.is_ok())
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use serde_json::{Map, json};

    use super::super::keys::KeyRing;
    use super::*;
    use crate::base::clock::Clock;

    #[test]
    fn a_jwt_verifies_with_its_own_key_set_alone_under_every_algorithm() {
        let ring = || KeyRing::new(&Algorithm::ALL, Duration::ZERO, Clock::system()).expect("keys");
        let (ours, theirs) = (ring(), ring());

        for algorithm in Algorithm::ALL {
            let key = ours.signing(Some(algorithm));
            let token = key.sign(Map::new(), &Map::new()).expect("a signature");
            let jwt = Jwt::parse(&token).expect("a JWT");
            assert!(jwt.is_signed_with(&ours.published()));
            assert!(!jwt.is_signed_with(&theirs.published()));
        }
    }

    #[test]
    fn a_changed_claim_breaks_the_signature() {
        let ring = KeyRing::new(&[Algorithm::Es256], Duration::ZERO, Clock::system()).expect("key");
        let claims = json!({ "sub": "api" });
        let claims = claims.as_object().expect("an object");
        let token = ring.signing(None).sign(Map::new(), claims).expect("a signature");
        let forged = URL_SAFE_NO_PAD.encode(r#"{"sub":"bob"}"#);
        let parts: Vec<_> = token.split('.').collect();

        let jwt = Jwt::parse(&format!("{}.{forged}.{}", parts[0], parts[2])).expect("a JWT");

        assert!(!jwt.is_signed_with(&ring.published()));
    }
}
