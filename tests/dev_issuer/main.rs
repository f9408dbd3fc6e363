//! The development issuer over real sockets, as the gateway and people's programs meet it.

mod endpoints;
mod logins;
mod registration;
mod support;
