//! Floor 9: arguments become a verb.
