//! Floor 2: everything said to an authorization server.
