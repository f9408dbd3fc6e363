//! `redis`

use core::time::Duration;

use serde::Deserialize;

use super::{Secret, Value};
use crate::config::de::field::Field;

/// Where gateways share sessions, refreshes, logouts and counts.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Redis {
    /// `redis://` or `rediss://` (TLS) with host, port and database. Required.
    pub(crate) url: Field<String>,
    /// As whom commands are sent. Default: the server's default user.
    pub(crate) username: Field<String>,
    /// The password. Default none.
    pub(crate) password: Field<Secret>,
    /// How long an answer is waited for; a limit waits 5 ms of it at most. Default 50ms.
    pub(crate) timeout: Value<Duration>,
    /// How long a new connection may take. Default 1s.
    pub(crate) connect_timeout: Value<Duration>,
    /// What every key begins with. Default `northgate:`.
    pub(crate) prefix: Field<String>,
    /// PEM certificates of the authorities to trust, with `rediss://`. Default: the system's.
    pub(crate) ca_file: Field<String>,
}
