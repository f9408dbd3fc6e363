//! The development issuer over real sockets, as the gateway and people's programs meet it.

mod browser;
mod endpoints;
#[path = "../support/fault_injection.rs"]
mod fault_injection;
mod logins;
mod logouts;
mod registration;
mod support;
