//! The phases of a gateway's life.

/// The phase of the gateway's life.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Phase {
    /// Accepts and serves.
    Serving,
    /// Finishes accepted connections and requests, and accepts no new ones.
    Draining,
    /// Ends the gRPC calls that go on, each with a status.
    EndingCalls,
    /// Drops the remaining connections.
    Terminated,
}
