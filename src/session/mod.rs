//! Floor 4: grants the gateway performs for its clients.
