//! Routing: matches a request to a route or to one of the gateway's own paths, and runs the route's action.

pub(crate) mod action;
mod fields;
pub(crate) mod match_route;
pub(crate) mod own_paths;
pub(crate) mod route;
pub(crate) mod route_properties;
