//! The compiled configuration as the operator sees it: explained decisions, routes and upstreams.

pub(crate) mod admin_view;
pub mod explain;
mod issuers;
#[cfg(test)]
mod tests;
