//! The development issuer over real sockets, as the gateway and people's programs meet it.

mod browser;
mod endpoints;
mod logins;
mod logouts;
mod registration;
mod support;
