//! Sessions as a browser and an authorization server see them: login, cookies,
//! refresh, logout, against the development issuer over real sockets.

mod basic;
mod login;
mod logout;
mod requests;
mod support;
