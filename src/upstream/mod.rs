//! Floor 2: services and how they are reached.
