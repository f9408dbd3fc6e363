//! Floor 5: text becomes meaning; nobody below has heard of YAML.
//!
//! A [`Config`] is what the file *means*: every name resolved, every unit
//! parsed, every default filled in, every conflict refused. Settings of the
//! rooms below are those rooms' own types; what only the floors above need,
//! such as routes and listeners, is described here.

pub mod auth;
pub mod route;
pub mod serving;

use http::HeaderName;

pub use auth::{Auth, Credential, Way};
pub use route::{Action, Route};
pub use serving::{Admin, Listener, Logging, Metrics, Server};

/// A whole configuration, checked. Immutable; a reload makes a new one.
#[derive(Debug)]
pub struct Config {
    /// Where clients connect; at least one, no address twice.
    pub listeners: Vec<Listener>,
    /// What holds for every connection and request.
    pub server: Server,
    /// The operator's listener.
    pub admin: Admin,
    /// What is written to the log.
    pub logging: Logging,
    /// How metrics are kept and shown.
    pub metrics: Metrics,
    /// The routes, in the order of the file. Which one matches does not depend on it.
    pub routes: Vec<Route>,
    /// Every identity header of every route: removed from what clients send, on all routes.
    pub identity_headers: Vec<HeaderName>,
    /// SHA-256 of the file as it was written, the first 16 hexadecimal digits.
    pub hash: String,
}
