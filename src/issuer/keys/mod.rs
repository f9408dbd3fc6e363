//! JWK sets: parsing, selection, caching, and the keys that the gateway signs with.

pub mod algorithm;
pub mod jwk;
pub mod jwks;
pub(super) mod jwks_cache;
pub(super) mod jwks_freshness;
pub(super) mod jwks_storage;
pub(super) mod key_strength;
pub mod signing_key;
pub(super) mod unknown_key;
pub(super) mod unusable_key;
