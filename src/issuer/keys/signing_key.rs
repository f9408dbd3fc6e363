//! Private keys that sign JWTs of the gateway: client assertions (RFC 7523), request objects (RFC 9101), identity
//! tokens.

use core::fmt;
use core::hash::{Hash, Hasher};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaEncoding, RsaKeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use super::algorithm::Algorithm;
use super::jwk::{thumbprint, to_base64url};
use crate::base::digest::sha256;
use crate::base::secret::Secret;

/// A private key that signs JWTs. `Debug` shows its algorithm only.
///
/// Two are equal if their public keys, algorithms and names are. Clones are the same key.
#[derive(Clone)]
pub struct SigningKey {
    pair: Arc<Pair>,
    algorithm: Algorithm,
    /// `kid` of the JWTs' header, if the server needs one.
    kid: Option<Box<str>>,
    /// The thumbprints of the key's certificate, for servers that know keys by them.
    certificate: Option<CertificateThumbprints>,
}

/// Thumbprints of a certificate, in base64url: `x5t` (RFC 7515 §4.1.7) and `x5t#S256` (§4.1.8).
#[derive(Clone, Eq, Hash, PartialEq)]
struct CertificateThumbprints {
    sha1: Box<str>,
    sha256: Box<str>,
}

enum Pair {
    Rsa(Box<RsaKeyPair>),
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl SigningKey {
    /// Reads a PEM private key: PKCS#8, PKCS#1 (RSA) or SEC1 (EC).
    ///
    /// The algorithm follows from the key: RSA signs RS256, P-256 ES256, P-384
    /// ES384, P-521 ES512, Ed25519 `EdDSA`.
    ///
    /// # Errors
    ///
    /// [`InvalidKey::Pem`] if there is no private key in `pem`,
    /// [`InvalidKey::Unsupported`] for another kind of key or an RSA key below
    /// 2048 bits.
    pub fn from_pem(pem: &[u8]) -> Result<Self, InvalidKey> {
        let der = PrivateKeyDer::from_pem_slice(pem).map_err(|_| InvalidKey::Pem)?;
        let (pair, algorithm) = match &der {
            PrivateKeyDer::Pkcs8(der) => from_pkcs8(der.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(der) => {
                RsaKeyPair::from_der(der.secret_pkcs1_der()).ok().map(from_rsa)
            }
            PrivateKeyDer::Sec1(der) => from_ecdsa(|alg| {
                EcdsaKeyPair::from_private_key_der(alg, der.secret_sec1_der()).ok()
            }),
            _ => None,
        }
        .ok_or(InvalidKey::Unsupported)?;
        Self::new(pair, algorithm)
    }

    /// Generates a P-256 key, [identified by its thumbprint](Self::with_thumbprint_kid), and returns it with its PKCS#8 document.
    ///
    /// # Errors
    ///
    /// [`SigningFailed`] if there are no random numbers.
    pub fn generate() -> Result<(Self, Secret<Vec<u8>>), SigningFailed> {
        let curve = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let document = EcdsaKeyPair::generate_pkcs8(curve, &SystemRandom::new());
        let document = Secret::new(document.map_err(|_| SigningFailed)?.as_ref().to_vec());
        let key = Self::from_pkcs8(document.expose()).map_err(|_| SigningFailed)?;
        Ok((key.with_thumbprint_kid(), document))
    }

    /// Reads a PKCS#8 document in DER, as [`SigningKey::from_pem`] does.
    ///
    /// # Errors
    ///
    /// [`InvalidKey::Unsupported`].
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, InvalidKey> {
        let (pair, algorithm) = from_pkcs8(der).ok_or(InvalidKey::Unsupported)?;
        Self::new(pair, algorithm)
    }

    fn new(pair: Pair, algorithm: Algorithm) -> Result<Self, InvalidKey> {
        if let Pair::Rsa(pair) = &pair
            && pair.public_modulus_len() < MIN_RSA_BYTES
        {
            return Err(InvalidKey::Unsupported);
        }
        Ok(Self { pair: Arc::new(pair), algorithm, kid: None, certificate: None })
    }

    /// Returns the key with its thumbprint as `kid` (RFC 7638).
    #[must_use]
    pub fn with_thumbprint_kid(&self) -> Self {
        let jwk = self.public_jwk();
        let thumbprint = jwk.as_object().and_then(thumbprint);
        let kid = thumbprint.map(|thumbprint| to_base64url(&thumbprint).into());
        Self { kid, ..self.clone() }
    }

    /// Sets the `kid` in the header of signed JWTs.
    #[must_use]
    pub fn with_kid(mut self, kid: &str) -> Self {
        self.kid = Some(kid.into());
        self
    }

    /// Names the key by its certificate, in DER, in the header of the JWTs that it signs for a server: by `x5t` and
    /// `x5t#S256`, of which servers read the one or the other.
    #[must_use]
    pub fn with_certificate(mut self, der: &[u8]) -> Self {
        let sha1 = digest(&SHA1_FOR_LEGACY_USE_ONLY, der);
        self.certificate = Some(CertificateThumbprints {
            sha1: to_base64url(sha1.as_ref()).into(),
            sha256: to_base64url(&sha256(&[der])).into(),
        });
        self
    }

    /// Returns the signature algorithm.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the `kid` in the header of signed JWTs.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// Signs `message`; ECDSA in the fixed-width form of RFC 7518 §3.4.
    ///
    /// # Errors
    ///
    /// [`SigningFailed`] if the library refuses, which does not happen with a valid key.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SigningFailed> {
        self.sign_as(self.algorithm, message)
    }

    /// Signs `message` with an algorithm of [`SigningKey::algorithms`].
    fn sign_as(&self, algorithm: Algorithm, message: &[u8]) -> Result<Vec<u8>, SigningFailed> {
        let random = SystemRandom::new();
        match &*self.pair {
            Pair::Rsa(pair) => {
                let mut bytes = vec![0; pair.public_modulus_len()];
                let encoding: &'static dyn RsaEncoding = match algorithm {
                    Algorithm::Rs384 => &signature::RSA_PKCS1_SHA384,
                    Algorithm::Rs512 => &signature::RSA_PKCS1_SHA512,
                    Algorithm::Ps256 => &signature::RSA_PSS_SHA256,
                    Algorithm::Ps384 => &signature::RSA_PSS_SHA384,
                    Algorithm::Ps512 => &signature::RSA_PSS_SHA512,
                    _ => &signature::RSA_PKCS1_SHA256,
                };
                pair.sign(encoding, &random, message, &mut bytes)
                    .map(|()| bytes)
                    .map_err(|_| SigningFailed)
            }
            Pair::Ecdsa(pair) => pair
                .sign(&random, message)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(|_| SigningFailed),
            Pair::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
        }
    }

    /// Returns the names of the algorithms that the key can sign with, the usual one first.
    fn algorithms(&self) -> &'static [(&'static str, Algorithm)] {
        match self.algorithm {
            Algorithm::Es256 => &[("ES256", Algorithm::Es256)],
            Algorithm::Es384 => &[("ES384", Algorithm::Es384)],
            Algorithm::Es512 => &[("ES512", Algorithm::Es512)],
            // RFC 9864 §2.2 has a name of its own for the curve.
            Algorithm::EdDsa => &[("EdDSA", Algorithm::EdDsa), ("Ed25519", Algorithm::EdDsa)],
            _ => &[
                ("RS256", Algorithm::Rs256),
                ("PS256", Algorithm::Ps256),
                ("PS384", Algorithm::Ps384),
                ("PS512", Algorithm::Ps512),
                ("RS384", Algorithm::Rs384),
                ("RS512", Algorithm::Rs512),
            ],
        }
    }

    /// Signs a JWT of the type `typ` for a server that accepts the algorithms `announced`: with the first that this key
    /// can sign with, and as usual if the server announces none of them.
    ///
    /// # Errors
    ///
    /// As [`SigningKey::sign`].
    pub(in crate::issuer) fn sign_jwt_for(
        &self,
        announced: &[Box<str>],
        typ: &str,
        claims: &Value,
    ) -> Result<String, SigningFailed> {
        let known = self.algorithms();
        let is_announced = |name: &str| announced.iter().any(|other| **other == *name);
        let (name, algorithm) =
            known.iter().find(|(name, _)| is_announced(name)).unwrap_or(&known[0]);
        let mut header = json!({ "alg": name, "typ": typ });
        if let Some(kid) = self.kid() {
            header["kid"] = kid.into();
        }
        if let Some(certificate) = &self.certificate {
            header["x5t"] = (*certificate.sha1).into();
            header["x5t#S256"] = (*certificate.sha256).into();
        }
        let encoded = |part: &Value| to_base64url(part.to_string().as_bytes());
        let signed = format!("{}.{}", encoded(&header), encoded(claims));
        let signature = self.sign_as(*algorithm, signed.as_bytes())?;
        Ok(format!("{signed}.{}", to_base64url(&signature)))
    }

    /// Signs a JWT in the compact serialization (RFC 7515 §3.1).
    ///
    /// # Errors
    ///
    /// As [`SigningKey::sign`].
    pub fn sign_jwt(&self, header: &Value, claims: &Value) -> Result<String, SigningFailed> {
        let encoded = |part: &Value| to_base64url(part.to_string().as_bytes());
        let mut token = format!("{}.{}", encoded(header), encoded(claims));
        let signature = self.sign(token.as_bytes())?;
        token.push('.');
        token.push_str(&to_base64url(&signature));
        Ok(token)
    }

    /// Returns the public key as a JWK (RFC 7517).
    pub fn public_jwk(&self) -> Value {
        let public = self.public();
        let mut jwk = match &*self.pair {
            Pair::Rsa(_) => {
                let (n, e) = rsa_numbers(public);
                json!({ "kty": "RSA", "n": to_base64url(n), "e": to_base64url(e) })
            }
            Pair::Ecdsa(_) => {
                let (x, y) = public[1..].split_at(public.len() / 2);
                let curve = match self.algorithm {
                    Algorithm::Es256 => "P-256",
                    Algorithm::Es384 => "P-384",
                    _ => "P-521",
                };
                json!({ "kty": "EC", "crv": curve, "x": to_base64url(x), "y": to_base64url(y) })
            }
            Pair::Ed25519(_) => {
                json!({ "kty": "OKP", "crv": "Ed25519", "x": to_base64url(public) })
            }
        };
        jwk["use"] = "sig".into();
        jwk["alg"] = self.algorithm.name().into();
        if let Some(kid) = &self.kid {
            jwk["kid"] = (**kid).into();
        }
        jwk
    }

    fn public(&self) -> &[u8] {
        match &*self.pair {
            Pair::Rsa(pair) => pair.public_key().as_ref(),
            Pair::Ecdsa(pair) => pair.public_key().as_ref(),
            Pair::Ed25519(pair) => pair.public_key().as_ref(),
        }
    }
}

fn from_pkcs8(der: &[u8]) -> Option<(Pair, Algorithm)> {
    if let Ok(pair) = RsaKeyPair::from_pkcs8(der) {
        return Some(from_rsa(pair));
    }
    if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
        return Some((Pair::Ed25519(pair), Algorithm::EdDsa));
    }
    from_ecdsa(|alg| EcdsaKeyPair::from_pkcs8(alg, der).ok())
}

fn from_rsa(pair: RsaKeyPair) -> (Pair, Algorithm) {
    (Pair::Rsa(Box::new(pair)), Algorithm::Rs256)
}

/// Tries the three curves: a key names its own, and parses as no other.
fn from_ecdsa(
    parse: impl Fn(&'static signature::EcdsaSigningAlgorithm) -> Option<EcdsaKeyPair>,
) -> Option<(Pair, Algorithm)> {
    [
        (&signature::ECDSA_P256_SHA256_FIXED_SIGNING, Algorithm::Es256),
        (&signature::ECDSA_P384_SHA384_FIXED_SIGNING, Algorithm::Es384),
        (&signature::ECDSA_P521_SHA512_FIXED_SIGNING, Algorithm::Es512),
    ]
    .into_iter()
    .find_map(|(curve, algorithm)| Some((Pair::Ecdsa(parse(curve)?), algorithm)))
}

/// Modulus and exponent of a public key as the library encodes it: two DER
/// integers in a sequence (RFC 8017 §A.1.1), without leading zeros.
fn rsa_numbers(der: &[u8]) -> (&[u8], &[u8]) {
    let (sequence, _) = der_value(der);
    let (n, rest) = der_value(sequence);
    let (e, _) = der_value(rest);
    let bare = |number: &'_ [u8]| number.iter().take_while(|byte| **byte == 0).count();
    (&n[bare(n)..], &e[bare(e)..])
}

/// The first value's contents, and what follows it.
fn der_value(der: &[u8]) -> (&[u8], &[u8]) {
    let (length, start) = match der[1] {
        short @ 0..0x80 => (usize::from(short), 2),
        long => {
            let octets = usize::from(long & 0x7f);
            let length =
                der[2..2 + octets].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            (length, 2 + octets)
        }
    };
    der[start..].split_at(length)
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl PartialEq for SigningKey {
    fn eq(&self, other: &Self) -> bool {
        self.algorithm == other.algorithm
            && self.kid == other.kid
            && self.certificate == other.certificate
            && self.public() == other.public()
    }
}

impl Eq for SigningKey {}

impl Hash for SigningKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.algorithm, &self.kid, &self.certificate, self.public()).hash(state);
    }
}

/// The reason why a private key was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidKey {
    /// The text contains no private key.
    #[error("no private key could be read from the PEM text")]
    Pem,
    /// The key is neither RSA (2048 bits or more) nor EC (P-256, P-384, P-521) nor Ed25519.
    #[error(
        "the private key is neither RSA of at least 2048 bits, nor P-256, P-384, P-521 or Ed25519"
    )]
    Unsupported,
}

/// The library refused to sign.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("cannot sign the assertion")]
pub struct SigningFailed;

/// 2048 bits (RFC 7518 §3.3).
const MIN_RSA_BYTES: usize = 256;

#[cfg(test)]
mod tests {
    use super::super::jwk::Key;
    use super::*;
    use crate::base::strict_json;

    #[test]
    fn the_key_determines_its_algorithm() {
        for (algorithm, expected) in [
            (&rcgen::PKCS_ECDSA_P256_SHA256, Algorithm::Es256),
            (&rcgen::PKCS_ECDSA_P384_SHA384, Algorithm::Es384),
            (&rcgen::PKCS_ED25519, Algorithm::EdDsa),
        ] {
            let pem = rcgen::KeyPair::generate_for(algorithm).unwrap().serialize_pem();
            let key = SigningKey::from_pem(pem.as_bytes()).unwrap();

            assert_eq!(key.algorithm(), expected);
            assert!(!key.sign(b"message").unwrap().is_empty());
        }
    }

    #[test]
    fn the_public_jwk_verifies_signatures_of_the_key() {
        for algorithm in [
            &rcgen::PKCS_RSA_SHA256,
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ECDSA_P521_SHA512,
            &rcgen::PKCS_ED25519,
        ] {
            let pem = rcgen::KeyPair::generate_for(algorithm).unwrap().serialize_pem();
            let private = SigningKey::from_pem(pem.as_bytes()).unwrap().with_kid("k");
            let public = Key::from_jwk(private.public_jwk().as_object().unwrap()).unwrap();
            let signature = private.sign(b"message").unwrap();

            assert_eq!(public.kid(), Some("k"));
            assert_eq!(public.verify(private.algorithm(), b"message", &signature), Ok(()));
            assert!(public.verify(private.algorithm(), b"massage", &signature).is_err());
        }
    }

    #[test]
    fn a_key_with_a_certificate_is_named_by_it_where_it_signs_for_a_server() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&pair).unwrap();
        let key = SigningKey::from_pem(pair.serialize_pem().as_bytes()).unwrap();
        let named = key.clone().with_certificate(certificate.der());

        let token = named.sign_jwt_for(&[], "JWT", &json!({})).unwrap();

        let header = strict_json::base64url(token.split('.').next().unwrap()).unwrap();
        let header = strict_json::parse_object(&header).unwrap();
        assert_eq!(header["x5t#S256"], to_base64url(&sha256(&[certificate.der()])));
        assert_eq!(header["x5t"].as_str().map(str::len), Some(27), "20 bytes");
        assert_ne!(named, key, "a reload takes a new certificate");
    }

    #[test]
    fn a_generated_key_has_its_thumbprint_as_kid_and_can_be_stored() {
        let (key, document) = SigningKey::generate().unwrap();
        let again = SigningKey::from_pkcs8(document.expose()).unwrap().with_thumbprint_kid();
        let public = Key::from_jwk(key.public_jwk().as_object().unwrap()).unwrap();

        assert_eq!(key, again);
        assert_eq!(key.algorithm(), Algorithm::Es256);
        assert_eq!(key.kid(), public.thumbprint().map(|digest| to_base64url(digest)).as_deref());
    }

    #[test]
    fn texts_without_a_private_key_are_refused() {
        let certificate = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();

        assert_eq!(SigningKey::from_pem(b"key").err(), Some(InvalidKey::Pem));
        assert_eq!(
            SigningKey::from_pem(certificate.cert.pem().as_bytes()).err(),
            Some(InvalidKey::Pem)
        );
    }
}
