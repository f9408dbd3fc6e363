//! Tests of explained decisions against whole configurations.

mod known_issuers;
