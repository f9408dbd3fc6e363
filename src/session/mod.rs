//! Floor 4: grants the gateway performs for its clients.
//!
//! A browser logs in once and holds a *session*: its tokens stay with the
//! gateway, sealed into cookies or kept on the server, and every request goes
//! on as `Authorization: Bearer`. An API client that only has HTTP Basic
//! credentials gets the same by the password grant. Neither ever sees a token
//! expire.

pub mod settings;

mod answer;
mod cookie;
mod credentials;
mod csrf;
mod failures;
mod origin;
mod pages;
mod return_to;
mod seal;
mod visit;

pub use settings::{
    Cookie, Csrf, Failures, Flow, Forward, OnUnauthenticated, Paths, ReturnTo, SameSite, Settings,
    Store, TokenStorage,
};
