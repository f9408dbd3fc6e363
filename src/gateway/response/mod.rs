//! Responses of the gateway: problems, rejections, redirects, and what is set on every response.

pub(crate) mod hardening;
pub(crate) mod https_redirect;
pub(crate) mod problem;
pub(crate) mod rejection;
