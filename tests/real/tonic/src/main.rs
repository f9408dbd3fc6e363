//! A gRPC service and its client on Tonic.
//!
//! ```text
//! tonic-twin serve              prints its port, and listens until standard input ends
//! tonic-twin call URL shapes    the four shapes, metadata, errors, deadlines and cancellation
//! tonic-twin call URL streams   ten thousand streams that are open at the same time
//! ```
//!
//! `CA` names the certificate that the client trusts.

mod client;
mod service;

/// What all calls send and receive.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Message {
    #[prost(bytes = "vec", tag = "1")]
    pub content: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub number: u64,
}

/// The client and the server that `tonic-build` makes.
pub mod generated {
    include!(concat!(env!("OUT_DIR"), "/test.Service.rs"));
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve"] => service::serve().await,
        ["call", url, "shapes"] => client::shapes(url).await,
        ["call", url, "streams"] => client::streams(url).await,
        _ => panic!("usage: tonic-twin serve | call URL shapes|streams"),
    }
}
