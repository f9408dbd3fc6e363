//! What the fuzz target reaches of the reading of requests.

pub use super::http1::fuzz::requests;
