//! Floor 6: the life of one request.
