//! Floor 2: how much a client may do.
