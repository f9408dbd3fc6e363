//! Floor 3: who a token speaks for.
//!
//! A *signed* token (JWT) is verified here; a *reference* token means
//! something to its issuer only, who is asked. Both become a [`Principal`],
//! which feeds limits, identity headers, metrics and the log alike.
//!
//! A route holds a [`Verifier`]: the kinds of tokens it takes. Behind it stands
//! one [`IssuerVerifier`] per issuer and set of rules, with what it has found out so
//! far. [`RevocationList`] end what is still good, everywhere at once.

pub mod binding;
pub mod error;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
pub mod issuer_verifier;
pub mod jwt;
mod opaque;
pub mod principal;
pub mod revocation;
mod token_digests;
pub mod validation;
pub mod verifier;

pub use self::binding::confirmation::{PossessionProof, UnconfirmedPrincipal};
pub use self::binding::dpop::{BadProof, Dpop};
pub use self::binding::replay_cache::ReplayCache;
pub use self::jwt::verify::unverified_expiry;
pub use self::revocation::fields::{Malformed, Reading};
pub use self::revocation::list::{Revocation, RevocationFeed, RevocationList, RevocationTarget};
pub use error::TokenError;
pub use issuer_verifier::IssuerVerifier;
pub use principal::{Confirmation, IdentityFields, Principal, TokenFormat};
pub use token_digests::{TokenDigests, token_digest};
pub use validation::{Audience, TokenUse, ValidationRules};
pub use verifier::Verifier;

#[cfg(test)]
mod tests;
