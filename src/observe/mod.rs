//! Floor 1: what operators see.
