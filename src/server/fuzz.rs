//! Entry points of the fuzz targets of this module.

pub use super::http1::fuzz::requests;
pub use super::http2::flood_guard::frames as client_frames;
pub use super::proxy_protocol::header as proxy_header;
