//! Tests of an issuer as a whole, and the authorization server that tests of higher floors use too.

mod failure_isolation;
mod introspection;
mod jwks_cache;
pub(crate) mod mock_issuer;
mod raw_responses;
