//! Sessions as a browser and an authorization server see them: login, cookies,
//! refresh, logout, against the development issuer over real sockets.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

mod basic;
mod code;
mod issuer_pages;
mod login;
mod logout;
mod requests;
mod support;
