//! Codes, tokens and identifiers that no client can predict.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::error::OAuthError;
use crate::base::random::try_random;

/// Returns 256 random bits as 43 characters of base64url.
pub(super) fn random() -> Result<String, OAuthError> {
    let bytes: [u8; 32] = try_random().ok_or(OAuthError::SERVER)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}
