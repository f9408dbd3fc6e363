//! `metering`

use core::time::Duration;

use serde::Deserialize;
use url::Url;

use super::value::{Secret, Value};
use crate::config::de::field::Field;

/// Destinations of usage.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Metering {
    /// The time between two batches of events. Default 60s.
    pub(crate) interval: Value<Duration>,
    /// Whether events are log lines. Default: if there is no other destination.
    pub(crate) log: Field<bool>,
    /// The file to which events are appended.
    pub(crate) file: Field<String>,
    /// The server that receives CloudEvents.
    pub(crate) http: Field<Http>,
}

/// `http`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Http {
    /// The URL to post to. Required.
    pub(crate) url: Value<Url>,
    /// The bearer token. Default none.
    pub(crate) token: Field<Secret>,
    /// PEM certificates of the authorities to trust besides the public ones.
    pub(crate) ca_file: Field<String>,
    /// The timeout of a request. Default 5s.
    pub(crate) timeout: Value<Duration>,
}
