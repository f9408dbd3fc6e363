//! Northgate: the single north/south entry point in front of microservices.
//!
//! The house, floor by floor. A module may use only floors below its own, and
//! rooms on one floor do not know each other; `tests/architecture.rs` holds it.
//!
//! | Floor | Rooms | What happens there |
//! |---|---|---|
//! | 9 | [`cli`] | arguments become a verb: `run`, `check`, `explain`, `dev` … |
//! | 8 | [`dev`] | the whole system on one machine, for a newcomer and for the tests |
//! | 7 | [`server`] | sockets, threads, reload, the admin listener |
//! | 6 | [`gateway`] | the life of one request: start reading there |
//! | 5 | [`config`], [`revocation_sync`] | parses and validates YAML (lower floors take typed settings only); replicates revocations between gateways |
//! | 4 | [`session`] | grants the gateway performs for its clients |
//! | 3 | [`token`] | who a token speaks for |
//! | 2 | [`issuer`], [`limit`], [`upstream`] | authorization servers, counts, services |
//! | 1 | [`disk`], [`http1`], [`observe`], [`store`], [`tls`] | what survives a restart, a message's syntax, metrics and the log, what gateways share, certificates and trust |
//! | 0 | [`base`] | values without I/O |

pub mod base;
pub mod config;
pub mod dev;
pub mod disk;
pub mod gateway;
pub mod http1;
pub mod issuer;
pub mod limit;
pub mod observe;
pub mod revocation_sync;
pub mod server;
pub mod session;
pub mod store;
pub mod tls;
pub mod token;
pub mod upstream;

pub mod cli;
