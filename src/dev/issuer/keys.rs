//! The signing keys and their rotation.
//!
//! A rotation signs with new keys at once. The old keys stay in the JWK set for
//! a while, because tokens signed with them are still valid.

use core::time::Duration;
use std::sync::{Arc, Mutex};

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
    RsaKeyPair,
};
use aws_lc_rs::{digest, signature};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::base::clock::{Clock, Timestamp};
use crate::base::lock::IgnorePoison;

/// A signature algorithm (RFC 7518 §3.1, RFC 8037).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Algorithm {
    /// RSA of 2048 bits, PKCS #1 v1.5, SHA-256.
    Rs256,
    /// ECDSA on P-256, SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// All algorithms, the most widely supported first.
    pub const ALL: [Self; 3] = [Self::Rs256, Self::Es256, Self::EdDsa];

    /// Returns the `alg` value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }

    /// Returns the algorithm of an `alg` value.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// Returns the half hash of an access token that an ID token carries as `at_hash` (OpenID Connect Core §3.1.3.6).
    pub(super) fn half_hash(self, token: &str) -> String {
        let hash = match self {
            Self::Rs256 | Self::Es256 => digest::digest(&digest::SHA256, token.as_bytes()),
            Self::EdDsa => digest::digest(&digest::SHA512, token.as_bytes()),
        };
        URL_SAFE_NO_PAD.encode(&hash.as_ref()[..hash.as_ref().len() / 2])
    }
}

/// One signing key for each algorithm, and the retired keys.
#[derive(Debug)]
pub(super) struct KeyRing {
    algorithms: Vec<Algorithm>,
    published_for: Duration,
    clock: Clock,
    keys: Mutex<Keys>,
}

#[derive(Debug)]
struct Keys {
    /// One for each algorithm, in the order of the options: the first is the default.
    signing: Vec<Arc<SigningKey>>,
    /// Retired keys, and when each leaves the JWK set.
    retired: Vec<(Arc<SigningKey>, Timestamp)>,
}

impl KeyRing {
    /// Generates a key for each of `algorithms`. A retired key stays published for `published_for`.
    pub(super) fn new(
        algorithms: &[Algorithm],
        published_for: Duration,
        clock: Clock,
    ) -> Result<Self, Unspecified> {
        let signing = generate(algorithms)?;
        Ok(Self {
            algorithms: algorithms.to_vec(),
            published_for,
            clock,
            keys: Mutex::new(Keys { signing, retired: Vec::new() }),
        })
    }

    /// Generates new signing keys and retires the old ones.
    pub(super) fn rotate(&self) -> Result<(), Unspecified> {
        let new = generate(&self.algorithms)?;
        let until = self.clock.now().plus(self.published_for);
        let mut keys = self.keys.lock().ignore_poison();
        let old = core::mem::replace(&mut keys.signing, new);
        keys.retired.extend(old.into_iter().map(|key| (key, until)));
        Ok(())
    }

    /// Returns the key in use for `algorithm`, or for the default algorithm.
    pub(super) fn signing(&self, algorithm: Option<Algorithm>) -> Arc<SigningKey> {
        let keys = self.keys.lock().ignore_poison();
        let wanted = keys.signing.iter().find(|key| Some(key.algorithm) == algorithm);
        Arc::clone(wanted.unwrap_or(&keys.signing[0]))
    }

    /// Returns the supported algorithms, the default first.
    pub(super) fn algorithms(&self) -> &[Algorithm] {
        &self.algorithms
    }

    /// Returns the JWK set (RFC 7517 §5).
    pub(super) fn published(&self) -> Value {
        let now = self.clock.now();
        let mut keys = self.keys.lock().ignore_poison();
        keys.retired.retain(|(_, until)| now < *until);
        let old = keys.retired.iter().map(|(key, _)| key);
        json!({ "keys": keys.signing.iter().chain(old).map(|key| &key.public).collect::<Vec<_>>() })
    }
}

fn generate(algorithms: &[Algorithm]) -> Result<Vec<Arc<SigningKey>>, Unspecified> {
    if algorithms.is_empty() {
        return Err(Unspecified);
    }
    algorithms.iter().map(|algorithm| SigningKey::generate(*algorithm).map(Arc::new)).collect()
}

/// A key pair, its public key as a JWK, and its `kid`.
#[derive(Debug)]
pub(super) struct SigningKey {
    pub(super) algorithm: Algorithm,
    pair: Pair,
    kid: String,
    public: Value,
}

#[derive(Debug)]
enum Pair {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

impl SigningKey {
    fn generate(algorithm: Algorithm) -> Result<Self, Unspecified> {
        let pair = match algorithm {
            Algorithm::Rs256 => Pair::Rsa(RsaKeyPair::generate(KeySize::Rsa2048)?),
            Algorithm::Es256 => Pair::Ec(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?),
            Algorithm::EdDsa => Pair::Ed(Ed25519KeyPair::generate()?),
        };
        let mut public = pair.jwk()?;
        let kid = thumbprint(&public);
        public.extend([
            ("kid".to_owned(), json!(kid)),
            ("use".to_owned(), json!("sig")),
            ("alg".to_owned(), json!(algorithm.name())),
        ]);
        Ok(Self { algorithm, pair, kid, public: public.into() })
    }

    /// Signs a JWT in compact serialization. `alg` and `kid` are added to the header unless it has its own.
    pub(super) fn sign(
        &self,
        mut header: Map<String, Value>,
        claims: &Map<String, Value>,
    ) -> Result<String, Unspecified> {
        header.entry("alg").or_insert_with(|| json!(self.algorithm.name()));
        header.entry("kid").or_insert_with(|| json!(self.kid));
        let header = URL_SAFE_NO_PAD.encode(Value::from(header).to_string());
        let claims = URL_SAFE_NO_PAD.encode(json!(claims).to_string());
        let message = format!("{header}.{claims}");
        let signature = self.pair.sign(message.as_bytes())?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

impl Pair {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Unspecified> {
        let random = SystemRandom::new();
        Ok(match self {
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)?;
                signature
            }
            Self::Ec(pair) => pair.sign(&random, message)?.as_ref().to_vec(),
            Self::Ed(pair) => pair.try_sign(message)?.as_ref().to_vec(),
        })
    }

    /// Returns the required members of the JWK (RFC 7638 §3.2).
    fn jwk(&self) -> Result<Map<String, Value>, Unspecified> {
        let jwk = match self {
            Self::Rsa(pair) => rsa_jwk(pair.public_key())?,
            Self::Ec(pair) => {
                // 0x04, then both coordinates, 32 bytes each.
                let point = pair.public_key().as_ref();
                let (x, y) = (point.get(1..33), point.get(33..65));
                let (x, y) = (x.ok_or(Unspecified)?, y.ok_or(Unspecified)?);
                json!({ "kty": "EC", "crv": "P-256", "x": base64url(x), "y": base64url(y) })
            }
            Self::Ed(pair) => {
                json!({ "kty": "OKP", "crv": "Ed25519", "x": base64url(pair.public_key().as_ref()) })
            }
        };
        match jwk {
            Value::Object(members) => Ok(members),
            _ => Err(Unspecified),
        }
    }
}

fn rsa_jwk(key: &signature::RsaSubjectPublicKey) -> Result<Value, Unspecified> {
    let der: PublicKeyX509Der<'_> = key.as_der()?;
    let (_, info) = SubjectPublicKeyInfo::from_der(der.as_ref()).map_err(|_| Unspecified)?;
    let Ok(PublicKey::RSA(numbers)) = info.parsed() else { return Err(Unspecified) };
    Ok(json!({ "kty": "RSA", "n": unsigned(numbers.modulus), "e": unsigned(numbers.exponent) }))
}

/// Encodes a DER integer without the zero that keeps it positive (RFC 7518 §2, `Base64urlUInt`).
fn unsigned(integer: &[u8]) -> String {
    base64url(integer.strip_prefix(&[0]).unwrap_or(integer))
}

fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Returns the thumbprint (RFC 7638): the hash of the required members in order of their names, as `Map` keeps them.
fn thumbprint(jwk: &Map<String, Value>) -> String {
    base64url(digest::digest(&digest::SHA256, json!(jwk).to_string().as_bytes()).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thumbprint_of_the_rfc_is_reproduced() {
        let example = json!({
            "kty": "RSA", "e": "AQAB",
            "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
        });

        assert_eq!(
            thumbprint(example.as_object().expect("an object")),
            "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
        );
    }

    #[test]
    fn a_retired_key_stays_published_until_its_time_is_up() {
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let ring = KeyRing::new(&[Algorithm::Es256], Duration::from_secs(60), clock.clone())
            .expect("random numbers");
        let count = || ring.published()["keys"].as_array().map_or(0, Vec::len);
        let old = ring.signing(None).kid.clone();

        ring.rotate().expect("random numbers");

        assert_ne!(ring.signing(None).kid, old);
        assert_eq!(count(), 2);
        clock.advance(Duration::from_secs(60));
        assert_eq!(count(), 1);
    }

    #[test]
    fn a_signed_jwt_names_its_algorithm() {
        let ring = KeyRing::new(&Algorithm::ALL, Duration::ZERO, Clock::system()).expect("keys");

        for algorithm in Algorithm::ALL {
            let token =
                ring.signing(Some(algorithm)).sign(Map::new(), &Map::new()).expect("a signature");
            let header = token.split('.').next().expect("a header");
            let header = URL_SAFE_NO_PAD.decode(header).expect("base64url");
            let header: Value = serde_json::from_slice(&header).expect("JSON");
            assert_eq!(header["alg"], algorithm.name());
        }
    }
}
