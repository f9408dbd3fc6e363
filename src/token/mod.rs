//! Floor 3: who a token speaks for.
