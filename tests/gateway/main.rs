//! The gateway as its clients and services meet it: a real one, in this process, on free ports, and bytes
//! that are written and read by hand, so that nothing between the test and the wire mends what is wrong.
//!
//! A module per promise. `support` has what they share: the gateway, a service that does as it is
//! told and remembers every byte, and a client that says whatever it likes.
#![allow(clippy::pedantic, clippy::useless_format, reason = "scripts of bytes read best plainly")]

mod causes;
mod certificates;
mod compression;
mod connections;
#[path = "../support/dpop.rs"]
mod dpop;
mod early_responses;
mod explained;
#[path = "../support/fault_injection.rs"]
mod fault_injection;
mod forwarding;
mod framing;
mod http2;
mod http2_conformance;
mod http2_content;
mod http2_services;
mod http2_websockets;
mod identity;
mod interim;
mod issuer_identity;
mod issuers_by_name;
mod lifecycle;
mod limits;
mod metering;
mod paths;
mod possession;
mod proxy_protocol;
mod reference;
mod reuse;
mod revocation;
mod routing;
mod sessions;
mod slow;
mod streams;
mod support;
mod tls;
mod tokens;
mod tunnels;
mod unstarted_uploads;
mod upgrades;
mod uploads;
mod upstreams;
mod webdav;
