//! What HTTP/2 needs beside hyper: floods, stalled streams, and targets with a fragment.

pub(crate) mod flood_guard;
pub(crate) mod hpack;
pub(crate) mod stall_timeout;
