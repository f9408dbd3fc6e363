//! Floor 3: who a token speaks for.
//!
//! A *signed* token (JWT) is verified here; a *reference* token means
//! something to its issuer only, who is asked. Both become a [`Principal`],
//! which feeds limits, identity headers, metrics and the log alike.
//!
//! A route holds a [`Verifier`]: the kinds of tokens it takes. Behind it stands
//! one [`Judge`] per issuer and set of rules, with what it has found out so
//! far. [`Revocations`] end what is still good, everywhere at once.

mod cache;
mod claims;
pub mod dpop;
mod ended;
pub mod error;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
pub mod judge;
mod jws;
pub mod jwt;
mod known;
mod marks;
mod names;
mod opaque;
pub mod openid;
pub mod principal;
pub mod proof;
mod response;
pub mod revoked;
pub mod rules;
pub mod spent;
pub mod verifier;
pub mod written;

pub use dpop::{BadProof, Dpop};
pub use error::TokenError;
pub use judge::Judge;
pub use jwt::said_expiry;
pub use names::{TokenNames, token_digest};
pub use principal::{Confirmation, Form, Principal, Told};
pub use proof::{Proof, Unproven};
pub use revoked::{News, Revocation, Revocations, What};
pub use rules::{Audience, Kind, Rules};
pub use spent::Spent;
pub use verifier::Verifier;
pub use written::{Malformed, Reading};

#[cfg(test)]
mod tests;
