//! Northgate against real servers, which `cargo test` alone does not need.
//!
//! `NORTHGATE_REAL=1` runs each suite whose programs are installed and says
//! which were left out; with `NORTHGATE_REAL=require`, as `.ci/run` sets it, a
//! missing program is a failure.

mod canaille;
mod chromium;
mod clients;
#[path = "../support/dpop.rs"]
mod dpop;
#[path = "../support/fault_injection.rs"]
mod fault_injection;
mod gateway;
mod grafana;
mod grpc;
mod nginx;
mod npm;
mod oidc_provider;
mod prometheus;
mod redis;
mod support;
