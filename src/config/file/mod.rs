//! The structure of the file, key by key. The doc comments are the reference for values,
//! defaults and meaning; `docs/config.md` is the version for operators.
//!
//! Only the structure is decided here. Ranges, names and combinations of keys
//! are checked in `check`; keys that are documented but
//! not implemented yet are listed in `not_implemented`.

#![expect(clippy::struct_field_names, reason = "fields are named after the keys of the file")]

pub(crate) mod issuers;
pub(crate) mod limits;
pub(crate) mod metering;
pub(crate) mod observability;
pub(crate) mod redis;
pub(crate) mod routes;
pub(crate) mod server;
pub(crate) mod sessions;
pub(crate) mod upstreams;
pub(crate) mod value;

use self::value::KeywordOr;
use serde::Deserialize;

use self::issuers::Issuer;
use self::limits::Limit;
use self::metering::Metering;
use self::observability::{Logging, Metrics};
use self::redis::Redis;
use self::routes::Route;
use self::server::{Address, Admin, Listener, Server};
use self::sessions::Session;
use self::upstreams::Upstream;
use super::de::field::{Field, List, Map, OneOrMany};

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct File {
    /// Version of the configuration format: 1. Required.
    pub(crate) version: Field<u64>,
    /// Addresses or listeners for client connections. Required.
    pub(crate) listen: Field<OneOrMany<KeywordOr<Address, Listener>>>,
    /// Settings of all connections and requests.
    pub(crate) server: Field<Server>,
    /// The admin listener.
    pub(crate) admin: Field<Admin>,
    /// OAuth 2.0 authorization servers (RFC 8414), by name.
    pub(crate) issuers: Field<Map<Issuer>>,
    /// Browser sessions, by name.
    pub(crate) sessions: Field<Map<Session>>,
    /// Upstreams, by name.
    pub(crate) upstreams: Field<Map<Upstream>>,
    /// Rate limits and quotas, by name.
    pub(crate) limits: Field<Map<Limit>>,
    /// Destinations of usage.
    pub(crate) metering: Field<Metering>,
    /// The Redis that several gateways share.
    pub(crate) redis: Field<Redis>,
    /// Settings of every route that neither a policy nor the route overrides.
    pub(crate) defaults: Field<Route>,
    /// Named bundles of route keys.
    pub(crate) policies: Field<Map<Route>>,
    /// The routes. Required.
    pub(crate) routes: Field<List<Route>>,
    /// Logging.
    pub(crate) logging: Field<Logging>,
    /// Metrics.
    pub(crate) metrics: Field<Metrics>,
}
