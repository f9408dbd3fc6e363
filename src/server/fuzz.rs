//! Entry points of the fuzz targets of this module.

pub use super::http1::fuzz::requests;
