//! Northgate: an API gateway, the single entry point in front of microservices.
//!
//! The source tree is layered. A module may use only floors below its own, and
//! rooms (top-level modules) on one floor do not use each other; `tests/architecture.rs` enforces both.
//!
//! | Floor | Rooms | Responsibility |
//! |---|---|---|
//! | 9 | [`cli`] | parses arguments and runs a subcommand: `run`, `check`, `explain`, `dev` … |
//! | 8 | [`dev`] | development issuer and sample services on one machine, for trials and tests |
//! | 7 | [`server`] | sockets, worker threads, reload, the admin listener |
//! | 6 | [`gateway`] | the processing of one request: start reading there |
//! | 5 | [`config`], `revocation_sync` | parses and validates YAML (lower floors take typed settings only); replicates revocations between gateways |
//! | 4 | [`basic`], [`session`] | HTTP Basic credentials exchanged for tokens, browser sessions |
//! | 3 | `metering`, [`token`] | usage for bills, token verification: the principal that a token speaks for |
//! | 2 | [`issuer`], [`limit`], `upstream` | clients of authorization servers, rate limits and quotas, clients of upstreams |
//! | 1 | `disk`, `http1`, `http2`, [`observe`], [`password`], `redis`, `tls` | durable files, HTTP/1.1 syntax, HTTP/2 streams, metrics and logging, user names and guesses, Redis, certificates and trust |
//! | 0 | [`base`] | shared values without I/O |
//!
//! A program that embeds the gateway needs [`config`] and [`server`] (the whole process), or [`gateway`] (a
//! `tower::Service`), with the values of [`base`]. The rooms that it can do without are private.

pub mod base;
pub mod basic;
pub mod config;
pub mod dev;
mod disk;
pub mod gateway;
mod http1;
mod http2;
pub mod issuer;
pub mod limit;
mod metering;
pub mod observe;
pub mod password;
mod redis;
mod revocation_sync;
pub mod server;
pub mod session;
mod tls;
pub mod token;
mod upstream;

pub mod cli;

/// Parsers of private rooms, for the fuzz targets alone.
#[cfg(fuzzing)]
pub mod fuzz {
    pub use crate::disk::record;
    pub use crate::upstream::fuzz::upstream_response;
    pub use crate::upstream::http2_fuzz::frames;
}
