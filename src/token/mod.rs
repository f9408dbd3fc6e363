//! Floor 3: who a token speaks for.
//!
//! A *signed* token (JWT) is verified here; a *reference* token means
//! something to its issuer only, who is asked. Both become a [`Principal`],
//! which feeds limits, identity headers, metrics and the log alike.

pub mod error;
pub mod principal;
pub mod rules;

pub use error::TokenError;
pub use principal::{Confirmation, Form, Principal};
pub use rules::{Audience, Kind, Rules};
