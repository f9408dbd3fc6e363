//! Floor 3: verification of tokens.
//!
//! A *signed* token (JWT) is verified by its signature; an *opaque* token only
//! means something to its issuer and is introspected. Both become a
//! [`Principal`], which limits, identity headers, metrics and the log share.
//!
//! A route holds a [`Verifier`] for the kinds of tokens it accepts, with one
//! [`IssuerVerifier`] and its caches per issuer and set of rules. A
//! [`RevocationList`] ends valid tokens in all caches at once.

pub mod authentication_level;
pub mod binding;
pub mod error;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
pub mod issuer_verifier;
pub mod jwe;
pub mod jwt;
pub(crate) mod lifetime;
mod opaque;
pub mod principal;
pub(crate) mod received_tokens;
pub mod revocation;
mod token_digests;
mod token_syntax;
pub mod validation;
pub mod verifier;

pub use self::binding::confirmation::{PossessionProof, UnconfirmedPrincipal};
pub use self::binding::dpop::{BadProof, Dpop};
pub use self::binding::replay_cache::ReplayCache;
pub use self::jwe::{
    BadDecryptionKey, ContentEncryption, DecryptionKey, DecryptionKeys, KeyManagement,
};
pub(crate) use self::jwt::claims::is_for_another_use;
pub use self::jwt::unverified_claims::{unverified_expiry, unverified_issuer};
pub use self::revocation::event::{Revocation, RevocationEvent, RevocationTarget};
pub use self::revocation::fields::{MalformedRevocation, Reading};
pub use self::revocation::list::RevocationList;
pub use error::TokenError;
pub use issuer_verifier::IssuerVerifier;
pub use principal::{Confirmation, IdentityFields, Principal, TokenFormat};
pub use token_digests::{TokenDigests, token_digest};
pub use token_syntax::{is_b64token, is_token};
pub use validation::{Audience, TokenHolder, TokenUse, ValidationRules};
pub use verifier::Verifier;

#[cfg(test)]
mod tests;
