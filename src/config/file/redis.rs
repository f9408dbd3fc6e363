//! `redis`

use core::time::Duration;

use serde::Deserialize;

use super::value::{Secret, Value};
use crate::config::de::field::{Field, OneOrMany};

/// The Redis server for shared sessions, refreshes, logouts and revocations.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Redis {
    /// `redis://` or `rediss://` (TLS) with host, port and database, or `redis-sentinel://`; a list is a Cluster. Required.
    pub(crate) url: Field<OneOrMany<String>>,
    /// ACL user name. Default: the server's default user.
    pub(crate) username: Field<String>,
    /// The password. Default none.
    pub(crate) password: Field<Secret>,
    /// Timeout of a command; a limit waits 5 ms of it at most. Default 50ms.
    pub(crate) timeout: Value<Duration>,
    /// Timeout of a new connection. Default 1s.
    pub(crate) connect_timeout: Value<Duration>,
    /// Prefix of every key. Default `northgate:`.
    pub(crate) prefix: Field<String>,
    /// PEM certificates of the authorities to trust, with `rediss://`. Default: the system's.
    pub(crate) ca_file: Field<String>,
}
