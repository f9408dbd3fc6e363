//! Floor 2: everything said to an authorization server.
//!
//! An *issuer* is an OAuth 2.0 authorization server (RFC 8414). This room
//! finds its endpoints, keeps its signing keys, asks it about reference
//! tokens and performs grants there. What a token *means* is decided one
//! floor up, in `token`.

pub mod algorithm;
pub mod grant;
pub mod json;
pub mod jwk;
pub mod key_set;
pub mod settings;
pub mod sign;
mod weak;

pub use algorithm::Algorithm;
pub use grant::{Grant, GrantError, TokenHint, Tokens};
pub use jwk::Key;
pub use key_set::{KeySet, NoKey};
pub use settings::{
    Client, ClientAuth, Discovery, Endpoints, Introspection, IntrospectionAuthorization,
    OnUnavailable, PasswordGrant, Settings,
};
