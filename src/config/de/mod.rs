//! Deserialization of a YAML document into typed sections, with the position of every fault.

pub(crate) mod access;
pub(crate) mod deserializer;
pub(crate) mod field;
pub(crate) mod key_path;
pub(crate) mod node;
pub(crate) mod percent;
pub(crate) mod units;
