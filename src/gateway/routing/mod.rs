//! Route selection: which route a request takes, or which path of the gateway's own.

pub(crate) mod action;
pub(crate) mod match_route;
pub(crate) mod own_paths;
pub(crate) mod route;
