//! The policies of a route: authentication, authorization, proof of possession, CORS and limits.

pub(crate) mod authenticate;
pub(crate) mod authorize;
pub(crate) mod cors;
pub(crate) mod dpop_fields;
pub(crate) mod limits;
pub(crate) mod proof_of_possession;
pub(crate) mod response_cost;
pub(crate) mod token_source;
