//! The header fields of `DPoP` (RFC 9449).

use http::HeaderName;

/// `DPoP`: the proof of a request (RFC 9449 §4.1).
pub(crate) const DPOP: HeaderName = HeaderName::from_static("dpop");
/// `DPoP-Nonce`: the nonce that the next proof must carry (RFC 9449 §8).
pub(crate) const DPOP_NONCE: HeaderName = HeaderName::from_static("dpop-nonce");
