//! Well-known documents about the gateway itself (RFC 8615).

pub(crate) mod protected_resource;
