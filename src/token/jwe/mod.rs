//! Encrypted tokens (RFC 7516): a signed token inside an encrypted one, opened with a ring of keys.
//!
//! Encryption proves nothing about who made a token, because the encryption key is public: what is inside must be
//! a signed token, verified like any other (CVE-2026-29000). Only algorithms that the configuration names are used,
//! the sizes of all parts are bounded by that of the token, and there is no compression.

pub(crate) mod algorithms;
mod content;
pub(crate) mod decryption_key;
mod der;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

pub use self::algorithms::{ContentEncryption, KeyManagement};
pub use self::decryption_key::{BadDecryptionKey, DecryptionKey};

use self::content::Content;
use crate::base::random::random;
use crate::base::secret::Secret;
use crate::base::strict_json;
use crate::token::TokenError;

/// The keys and algorithms that open an issuer's encrypted tokens.
#[derive(Debug, Eq, Hash, PartialEq)]
pub struct DecryptionKeys {
    /// The keys, each found by its `kid`.
    pub keys: Vec<DecryptionKey>,
    /// Accepted key management algorithms (`alg`).
    pub algorithms: Vec<KeyManagement>,
    /// Accepted content encryption algorithms (`enc`).
    pub encryptions: Vec<ContentEncryption>,
}

impl DecryptionKeys {
    /// Returns the signed token inside an encrypted one. Its signature is not verified yet.
    ///
    /// # Errors
    ///
    /// [`TokenError::Malformed`] if `token` is no encrypted token, or its content is no signed one;
    /// [`TokenError::Algorithm`] if an algorithm is not accepted, [`TokenError::Critical`] if the header requires an
    /// extension or compression, [`TokenError::UnknownKey`] if the ring lacks the key, [`TokenError::Signature`] if
    /// the token does not authenticate.
    pub fn open(&self, token: &str) -> Result<Secret<String>, TokenError> {
        self.content(token).and_then(signed_token)
    }

    /// Returns the content of an encrypted token, whatever it is.
    fn content(&self, token: &str) -> Result<Vec<u8>, TokenError> {
        let parts: Vec<&str> = token.split('.').collect();
        let [encoded_header, encrypted_key, iv, ciphertext, tag] = parts[..] else {
            return Err(TokenError::Malformed);
        };
        let decode = |part| strict_json::base64url(part).map_err(|_| TokenError::Malformed);
        let header = strict_json::parse_object(&decode(encoded_header)?);
        let header = header.map_err(|_| TokenError::Malformed)?;
        if header.contains_key("crit") || header.contains_key("zip") {
            return Err(TokenError::Critical);
        }
        let (algorithm, encryption) = self.algorithms(&header)?;
        let kid = match header.get("kid") {
            None => None,
            Some(Value::String(kid)) if kid.is_empty() => None,
            Some(Value::String(kid)) => Some(kid.as_str()),
            Some(_) => return Err(TokenError::Malformed),
        };
        let encrypted_key = decode(encrypted_key)?;
        let (iv, ciphertext, tag) = (decode(iv)?, decode(ciphertext)?, decode(tag)?);
        let fits = |key: &&DecryptionKey| {
            key.supports(algorithm) && (kid.is_none() || key.kid().is_none() || key.kid() == kid)
        };
        let mut result = Err(TokenError::UnknownKey);
        for key in self.keys.iter().filter(fits).take(MAX_CANDIDATES) {
            let content_key = key.content_key(algorithm, encryption, &header, &encrypted_key);
            // A wrong key is found out by the content alone, in the same time (RFC 7516 §11.5).
            let content_key = content_key
                .unwrap_or_else(|_| Secret::new(random::<64>()[..encryption.key_len()].to_vec()));
            let content = Content {
                header: encoded_header,
                iv: iv.clone(),
                ciphertext: ciphertext.clone(),
                tag: tag.clone(),
            };
            match content.open(encryption, content_key.expose()) {
                Ok(content) => return Ok(content),
                Err(_) => result = Err(TokenError::Signature),
            }
        }
        result
    }

    fn algorithms(
        &self,
        header: &Map<String, Value>,
    ) -> Result<(KeyManagement, ContentEncryption), TokenError> {
        let text = |name| header.get(name).and_then(Value::as_str);
        let algorithm = text("alg").and_then(KeyManagement::named);
        let algorithm = algorithm.filter(|algorithm| self.algorithms.contains(algorithm));
        let encryption = text("enc").and_then(ContentEncryption::named);
        let encryption = encryption.filter(|encryption| self.encryptions.contains(encryption));
        algorithm.zip(encryption).ok_or(TokenError::Algorithm)
    }
}

/// Whether a token has the five parts of an encrypted one.
pub(crate) fn is_encrypted(token: &str) -> bool {
    memchr::memchr_iter(b'.', token.as_bytes()).count() == 4
}

/// Returns the content if it has the three parts of a signed token: never claims without a signature, nor another
/// encrypted token.
fn signed_token(content: Vec<u8>) -> Result<Secret<String>, TokenError> {
    let token = String::from_utf8(content).map_err(|_| TokenError::Malformed)?;
    let token = Secret::from(token);
    if token.expose().bytes().filter(|byte| *byte == b'.').count() != 2 {
        return Err(TokenError::Malformed);
    }
    Ok(token)
}

/// Keys that are tried for a token without `kid`: each costs a private-key operation.
const MAX_CANDIDATES: usize = 4;
