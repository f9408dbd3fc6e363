//! A key that signs identity tokens, and since when.

use crate::base::clock::Timestamp;
use crate::base::secret::Secret;
use crate::issuer::keys::signing_key::{SigningFailed, SigningKey};

/// A key, and the time from which it signs.
pub(super) struct RotatingKey {
    pub(super) key: SigningKey,
    /// The PKCS #8 document of the key; empty for a key of the operator.
    pub(super) document: Secret<Vec<u8>>,
    pub(super) signs_from: Timestamp,
}

impl RotatingKey {
    pub(super) fn new(signs_from: Timestamp) -> Result<Self, SigningFailed> {
        let (key, document) = SigningKey::generate()?;
        Ok(Self { key, document, signs_from })
    }
}
