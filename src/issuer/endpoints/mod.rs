//! The endpoints of an authorization server, one file each, with the parsing of its response.

pub mod grant;
pub mod introspect;
pub(super) mod introspection_token;
pub mod metadata;
pub(super) mod par;
pub(super) mod revocation;
pub(super) mod token_response;
pub(super) mod userinfo;
