//! The interface of a store of shared counters. An implementation decides messages exactly as `decide.lua` does.

use core::fmt;
use core::pin::Pin;

use tokio::sync::watch;

use super::protocol::{Caller, Message, Response};

/// A store of shared counters.
pub(super) trait Backend: fmt::Debug + Send + Sync {
    /// Decides `messages` of the `caller` in one round trip; with `all_or_nothing`, those that ask are granted together or
    /// not at all.
    fn call(&self, caller: Caller, messages: Vec<Message>, all_or_nothing: bool) -> Call;

    /// Whether the server stores data, as far as is known.
    fn is_usable(&self) -> bool;

    /// Returns the number of gateways that share the store, with this one.
    fn gateways(&self) -> usize;

    /// Returns a number that changes whenever the server may have lost earlier messages.
    fn reconnections(&self) -> watch::Receiver<u64>;
}

/// A call under way.
pub(super) type Call = Pin<Box<dyn Future<Output = Result<Response, StoreFailure>> + Send>>;

/// The store did not respond, or responded with an error: it is unavailable, full, loading, or a replica.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the store of shared limits is unavailable")]
pub(super) struct StoreFailure;
