//! Sender-constrained tokens: `DPoP` (RFC 9449) and certificates (RFC 8705).

pub mod confirmation;
pub mod dpop;
pub mod replay_cache;
