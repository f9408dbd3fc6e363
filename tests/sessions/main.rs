//! Sessions as a browser and an authorization server see them: login, cookies,
//! refresh, logout, against the development issuer over real sockets.
#![expect(
    clippy::unwrap_used,
    clippy::single_match_else,
    clippy::ignored_unit_patterns,
    reason = "a test that cannot go on ends there, and a walk through pages reads better as a match"
)]

mod back_channel;
mod basic;
mod clocks;
mod code;
mod cookies;
#[path = "../support/fault_injection.rs"]
mod fault_injection;
mod id_tokens;
mod identity;
mod issuer_pages;
mod late;
mod login;
mod logout;
mod requests;
mod reused_tokens;
mod scripts;
mod step_up;
mod support;
mod targets;
mod unrotated;
