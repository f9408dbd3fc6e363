//! Passwords (floor 1): parsing of HTTP Basic credentials, and login throttling.
//!
//! The login page of sessions and HTTP Basic authentication both check passwords, and count guesses together.

pub mod credentials;
mod registry;
mod throttle;
mod user_name;

pub use self::credentials::{Credentials, MalformedCredentials};
pub use self::registry::LoginThrottles;
pub use self::throttle::Failures;
pub(crate) use self::throttle::{LoginAttempt, LoginThrottle, TooMany, network, pad_response_time};
pub(crate) use self::user_name::folded;
