//! Floor 1: certificates and trust.
