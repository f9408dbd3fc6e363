//! The claims of a token as it states them itself, for refusals alone: no signature is verified.
//!
//! Decoding is as lenient as that of any server: one that accepts padded base64url, or ignores unused bits of the
//! signature, accepts several spellings of one token.

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

use super::claim_types;
use super::claim_types::{date, is_for_dpop};
use crate::base::clock::Timestamp;
use crate::token::principal::Confirmation;

/// The claims of a token whose first two of three parts are JSON objects; nothing of it is verified.
pub(crate) struct UnverifiedClaims(Map<String, Value>);

impl UnverifiedClaims {
    /// Reads the claims of `token`, whatever its signature; `None` if it is not a readable JWT.
    pub(crate) fn read(token: &str) -> Option<Self> {
        let (signed, _) = token.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        object(header)?;
        object(payload).map(Self)
    }

    /// Returns `iss`.
    pub(crate) fn issuer(&self) -> Option<&str> {
        self.0.get("iss")?.as_str()
    }

    /// Whether there is a `jti` (RFC 7519 §4.1.7).
    pub(crate) fn has_id(&self) -> bool {
        self.0.get("jti").and_then(Value::as_str).is_some_and(|id| !id.is_empty())
    }

    /// Returns the key or certificate to which the token says that it is bound.
    pub(crate) fn confirmation(&self) -> Option<Confirmation> {
        let claim = self.0.get("cnf").filter(|claim| !claim.is_null());
        let bound_to = claim_types::confirmation(claim).unwrap_or(Some(Confirmation::Unknown));
        bound_to.or_else(|| is_for_dpop(&self.0).then_some(Confirmation::Unknown))
    }
}

/// Returns the unverified `exp` of a token: to store its revocation as long.
pub fn unverified_expiry(token: &str) -> Option<Timestamp> {
    date(&UnverifiedClaims::read(token)?.0, "exp").ok()?
}

/// Returns the unverified `iss` of a token, if it is a JWT.
pub fn unverified_issuer(token: &str) -> Option<String> {
    UnverifiedClaims::read(token)?.issuer().map(str::to_owned)
}

fn object(part: &str) -> Option<Map<String, Value>> {
    serde_json::from_slice(&LENIENT.decode(part).ok()?).ok()
}

/// base64url with or without padding, whatever the unused bits.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);
