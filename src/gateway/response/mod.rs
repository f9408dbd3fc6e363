//! Responses of the gateway itself: rejections, problem documents, the https redirect, and the header fields of all
//! responses.

pub(crate) mod accept_encoding;
pub(crate) mod compression;
pub(crate) mod encoder;
pub(crate) mod error_page;
pub(crate) mod grpc_refusal;
pub(crate) mod hardening;
pub(crate) mod https_redirect;
pub(crate) mod problem;
pub(crate) mod rejection;
pub(crate) mod static_response;
