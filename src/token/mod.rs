//! Floor 3: who a token speaks for.
//!
//! A *signed* token (JWT) is verified here; a *reference* token means
//! something to its issuer only, who is asked. Both become a [`Principal`],
//! which feeds limits, identity headers, metrics and the log alike.
//!
//! A route holds a [`Verifier`]: the kinds of tokens it takes. Behind it stands
//! one [`IssuerVerifier`] per issuer and set of rules, with what it has found out so
//! far. [`RevocationList`] end what is still good, everywhere at once.

mod claims;
pub mod confirmation;
pub mod dpop;
mod ended_journal;
pub mod error;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
pub mod id_token;
mod introspection;
mod introspection_cache;
mod introspection_jwt;
pub mod issuer_verifier;
mod jws;
pub mod jwt;
mod jwt_cache;
pub mod principal;
pub mod replay_cache;
pub mod revocation;
pub mod revocation_fields;
mod token_ages;
mod token_digests;
pub mod validation;
pub mod verifier;

pub use confirmation::{PossessionProof, UnconfirmedPrincipal};
pub use dpop::{BadProof, Dpop};
pub use error::TokenError;
pub use issuer_verifier::IssuerVerifier;
pub use jwt::unverified_expiry;
pub use principal::{Confirmation, IdentityFields, Principal, TokenFormat};
pub use replay_cache::ReplayCache;
pub use revocation::{Revocation, RevocationFeed, RevocationList, RevocationTarget};
pub use revocation_fields::{Malformed, Reading};
pub use token_digests::{TokenDigests, token_digest};
pub use validation::{Audience, TokenUse, ValidationRules};
pub use verifier::Verifier;

#[cfg(test)]
mod tests;
