//! Floor 7: sockets and threads.
