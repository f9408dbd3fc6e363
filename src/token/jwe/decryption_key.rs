//! A private key or shared secret that decrypts tokens.

use core::fmt;
use core::hash::{Hash, Hasher};

use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey};
use aws_lc_rs::key_wrap::{self, AesKek, KeyWrap as _};
use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Map, Value};

use super::algorithms::{ContentEncryption, KeyManagement};
use super::content::NotAuthentic;
use super::der;
use crate::base::digest::sha256;
use crate::base::secret::Secret;
use crate::base::strict_json::base64url;
use crate::issuer::keys::jwk::present;
use crate::issuer::keys::signing_key::SigningKey;

/// A private key or shared secret that decrypts tokens. `Debug` shows its `kid` only; equal if the key, its `kid`
/// and its `alg` are.
pub struct DecryptionKey {
    kid: Option<Box<str>>,
    /// `alg`: the only algorithm that it is for.
    only: Option<KeyManagement>,
    material: Material,
    identity: [u8; 32],
}

enum Material {
    Rsa(OaepPrivateDecryptingKey),
    Ec(Curve, PrivateKey),
    Secret(Secret<Vec<u8>>),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Curve {
    P256,
    P384,
    P521,
    X25519,
}

/// The reason why a key cannot decrypt tokens.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadDecryptionKey {
    /// A member is missing or malformed, or the numbers make no private key.
    #[error("a member is missing or malformed, or the key is not a private key")]
    Members,
    /// `kty` or `crv` is not supported, or an RSA key has no primes or less than 2048 bits.
    #[error("keys of this type, curve or size cannot decrypt")]
    Type,
    /// `use`, `key_ops` or `alg` say that it is for something else.
    #[error("the key is not meant to decrypt")]
    Use,
}

impl DecryptionKey {
    /// Reads a private or symmetric JWK (RFC 7517, RFC 7518 §6).
    ///
    /// # Errors
    ///
    /// See [`BadDecryptionKey`].
    pub fn from_jwk(members: &Map<String, Value>) -> Result<Self, BadDecryptionKey> {
        let text = |name| match present(members, name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(BadDecryptionKey::Members),
        };
        let bytes = |name| {
            let text = text(name)?.ok_or(BadDecryptionKey::Members)?;
            base64url(text).map_err(|_| BadDecryptionKey::Members)
        };
        if text("use")?.is_some_and(|purpose| purpose != "enc") {
            return Err(BadDecryptionKey::Use);
        }
        let is_secret = text("kty")? == Some("oct");
        let only = match text("alg")? {
            None => None,
            // A content encryption key, which a token uses directly.
            Some(name) if is_secret && ContentEncryption::named(name).is_some() => {
                Some(KeyManagement::Direct)
            }
            Some(name) => Some(KeyManagement::named(name).ok_or(BadDecryptionKey::Use)?),
        };
        let material = match text("kty")?.ok_or(BadDecryptionKey::Members)? {
            "RSA" => {
                let numbers = ["n", "e", "d", "p", "q", "dp", "dq", "qi"].map(bytes);
                let mut read: [Vec<u8>; 8] = Default::default();
                for (component, number) in read.iter_mut().zip(numbers) {
                    *component = number?;
                }
                rsa(&der::pkcs8_of_rsa(&der::pkcs1(&read)))?
            }
            "EC" => ec(text("crv")?.ok_or(BadDecryptionKey::Members)?, &bytes("d")?)?,
            "OKP" if text("crv")? == Some("X25519") => {
                let key = PrivateKey::from_private_key(&agreement::X25519, &bytes("d")?);
                Material::Ec(Curve::X25519, key.map_err(|_| BadDecryptionKey::Members)?)
            }
            "oct" => Material::Secret(Secret::new(bytes("k")?)),
            _ => return Err(BadDecryptionKey::Type),
        };
        let described = Value::Object(members.clone()).to_string();
        let kid = text("kid")?.map(Box::from);
        Ok(Self { kid, only, material, identity: sha256(&[described.as_bytes()]) })
    }

    /// Reads a PEM private key: RSA or EC. Its `kid` is its thumbprint (RFC 7638).
    ///
    /// # Errors
    ///
    /// See [`BadDecryptionKey`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, BadDecryptionKey> {
        let document = PrivateKeyDer::from_pem_slice(pem).map_err(|_| BadDecryptionKey::Members)?;
        // Only for the `kid`: a thumbprint of the same public key.
        let named = SigningKey::from_pem(pem).map_err(|_| BadDecryptionKey::Type)?;
        let material = match &document {
            PrivateKeyDer::Pkcs1(key) => rsa(&der::pkcs8_of_rsa(key.secret_pkcs1_der())),
            PrivateKeyDer::Pkcs8(key) => {
                rsa(key.secret_pkcs8_der()).or_else(|_| ec_der(key.secret_pkcs8_der()))
            }
            PrivateKeyDer::Sec1(key) => ec_der(key.secret_sec1_der()),
            _ => Err(BadDecryptionKey::Type),
        }?;
        let kid = named.with_thumbprint_kid().kid().map(Box::from);
        Ok(Self { kid, only: None, material, identity: sha256(&[document.secret_der()]) })
    }

    /// Returns its `kid`.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// Whether it can be used with `algorithm`.
    pub fn supports(&self, algorithm: KeyManagement) -> bool {
        use KeyManagement as K;
        let fits = match (&self.material, algorithm) {
            (Material::Rsa(_), K::RsaOaep | K::RsaOaep256)
            | (Material::Ec(..), K::EcdhEs | K::EcdhEsA128Kw | K::EcdhEsA256Kw) => true,
            (Material::Secret(secret), K::Direct) => {
                let length = secret.expose().len();
                ContentEncryption::ALL.iter().any(|(_, content)| content.key_len() == length)
            }
            (Material::Secret(secret), K::A128Kw) => secret.expose().len() == 16,
            (Material::Secret(secret), K::A256Kw) => secret.expose().len() == 32,
            _ => false,
        };
        fits && self.only.is_none_or(|only| only == algorithm)
    }

    /// Returns the key of a token's content; `header` and `encrypted_key` are the token's.
    pub(super) fn content_key(
        &self,
        algorithm: KeyManagement,
        encryption: ContentEncryption,
        header: &Map<String, Value>,
        encrypted_key: &[u8],
    ) -> Result<Secret<Vec<u8>>, NotAuthentic> {
        let key_len = encryption.key_len();
        match (&self.material, algorithm) {
            (Material::Rsa(key), KeyManagement::RsaOaep | KeyManagement::RsaOaep256) => {
                let padding = match algorithm {
                    KeyManagement::RsaOaep => &OAEP_SHA1_MGF1SHA1,
                    _ => &OAEP_SHA256_MGF1SHA256,
                };
                let mut output = vec![0; key.min_output_size()];
                let opened = key.decrypt(padding, encrypted_key, &mut output, None)?.to_vec();
                Ok(Secret::new(opened))
            }
            (Material::Ec(curve, key), KeyManagement::EcdhEs) if encrypted_key.is_empty() => {
                agreed(*curve, key, header, encryption.name(), key_len)
            }
            (Material::Ec(curve, key), KeyManagement::EcdhEsA128Kw) => {
                let kek = agreed(*curve, key, header, algorithm.name(), 16)?;
                unwrap(&key_wrap::AES_128, kek.expose(), encrypted_key)
            }
            (Material::Ec(curve, key), KeyManagement::EcdhEsA256Kw) => {
                let kek = agreed(*curve, key, header, algorithm.name(), 32)?;
                unwrap(&key_wrap::AES_256, kek.expose(), encrypted_key)
            }
            (Material::Secret(secret), KeyManagement::Direct) if encrypted_key.is_empty() => {
                Ok(secret.clone())
            }
            (Material::Secret(secret), KeyManagement::A128Kw) => {
                unwrap(&key_wrap::AES_128, secret.expose(), encrypted_key)
            }
            (Material::Secret(secret), KeyManagement::A256Kw) => {
                unwrap(&key_wrap::AES_256, secret.expose(), encrypted_key)
            }
            _ => Err(NotAuthentic),
        }
    }
}

fn rsa(pkcs8: &[u8]) -> Result<Material, BadDecryptionKey> {
    let key = PrivateDecryptingKey::from_pkcs8(pkcs8).map_err(|_| BadDecryptionKey::Type)?;
    OaepPrivateDecryptingKey::new(key).map(Material::Rsa).map_err(|_| BadDecryptionKey::Type)
}

fn ec(curve: &str, scalar: &[u8]) -> Result<Material, BadDecryptionKey> {
    let (curve, algorithm) = match curve {
        "P-256" => (Curve::P256, &agreement::ECDH_P256),
        "P-384" => (Curve::P384, &agreement::ECDH_P384),
        "P-521" => (Curve::P521, &agreement::ECDH_P521),
        _ => return Err(BadDecryptionKey::Type),
    };
    let key = PrivateKey::from_private_key(algorithm, scalar);
    key.map(|key| Material::Ec(curve, key)).map_err(|_| BadDecryptionKey::Members)
}

/// Tries each curve: a key names its curve, and parses as no other.
fn ec_der(document: &[u8]) -> Result<Material, BadDecryptionKey> {
    [
        (Curve::P256, &agreement::ECDH_P256),
        (Curve::P384, &agreement::ECDH_P384),
        (Curve::P521, &agreement::ECDH_P521),
    ]
    .into_iter()
    .find_map(|(curve, algorithm)| {
        let key = PrivateKey::from_private_key_der(algorithm, document).ok()?;
        Some(Material::Ec(curve, key))
    })
    .ok_or(BadDecryptionKey::Type)
}

/// The key that both sides derive (RFC 7518 §4.6): from the token's ephemeral key and ours, for one algorithm.
fn agreed(
    curve: Curve,
    key: &PrivateKey,
    header: &Map<String, Value>,
    algorithm: &str,
    key_len: usize,
) -> Result<Secret<Vec<u8>>, NotAuthentic> {
    let Some(Value::Object(ephemeral)) = header.get("epk") else { return Err(NotAuthentic) };
    let text = |name| ephemeral.get(name).and_then(Value::as_str).ok_or(NotAuthentic);
    let number = |name, width| {
        let bytes = base64url(text(name)?).map_err(|_| NotAuthentic)?;
        if bytes.len() == width { Ok(bytes) } else { Err(NotAuthentic) }
    };
    let (kty, crv, exchange, width) = match curve {
        Curve::P256 => ("EC", "P-256", &agreement::ECDH_P256, 32),
        Curve::P384 => ("EC", "P-384", &agreement::ECDH_P384, 48),
        Curve::P521 => ("EC", "P-521", &agreement::ECDH_P521, 66),
        Curve::X25519 => ("OKP", "X25519", &agreement::X25519, 32),
    };
    if text("kty")? != kty || text("crv")? != crv {
        return Err(NotAuthentic);
    }
    let point = match curve {
        Curve::X25519 => number("x", width)?,
        _ => [&[UNCOMPRESSED][..], &number("x", width)?, &number("y", width)?].concat(),
    };
    let info = |name| match header.get(name) {
        None => Ok(Vec::new()),
        Some(Value::String(text)) => base64url(text).map_err(|_| NotAuthentic),
        Some(_) => Err(NotAuthentic),
    };
    let (producer, consumer) = (info("apu")?, info("apv")?);
    // The library refuses a point that is not on the curve (CVE-2017-7932's kind).
    agreement::agree(key, UnparsedPublicKey::new(exchange, point), NotAuthentic, |shared| {
        Ok(derive(shared, algorithm, &producer, &consumer, key_len))
    })
}

/// The Concat KDF with SHA-256 (NIST SP 800-56A §5.8.1, RFC 7518 §4.6.2).
fn derive(
    shared: &[u8],
    algorithm: &str,
    producer: &[u8],
    consumer: &[u8],
    key_len: usize,
) -> Secret<Vec<u8>> {
    let length = |bytes: &[u8]| (bytes.len() as u32).to_be_bytes();
    let bits = ((key_len * 8) as u32).to_be_bytes();
    let mut derived = Vec::with_capacity(key_len.next_multiple_of(32));
    for round in 1_u32.. {
        if derived.len() >= key_len {
            break;
        }
        derived.extend(sha256(&[
            &round.to_be_bytes(),
            shared,
            &length(algorithm.as_bytes()),
            algorithm.as_bytes(),
            &length(producer),
            producer,
            &length(consumer),
            consumer,
            &bits,
        ]));
    }
    derived.truncate(key_len);
    Secret::new(derived)
}

fn unwrap(
    cipher: &'static key_wrap::AesBlockCipher,
    kek: &[u8],
    wrapped: &[u8],
) -> Result<Secret<Vec<u8>>, NotAuthentic> {
    if wrapped.len() > MAX_WRAPPED_KEY {
        return Err(NotAuthentic);
    }
    let mut output = vec![0; wrapped.len()];
    let key = AesKek::new(cipher, kek)?.unwrap(wrapped, &mut output)?.to_vec();
    Ok(Secret::new(key))
}

impl PartialEq for DecryptionKey {
    fn eq(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

impl Eq for DecryptionKey {}

impl Hash for DecryptionKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity.hash(state);
    }
}

impl fmt::Debug for DecryptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DecryptionKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// First octet of a point that is not compressed (SEC 1 §2.3.3).
const UNCOMPRESSED: u8 = 4;
/// The largest content key has 64 bytes, and 8 more when wrapped (RFC 3394 §2.2.1).
const MAX_WRAPPED_KEY: usize = 72;
