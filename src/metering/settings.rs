//! Settings of metering.

use core::time::Duration;
use std::path::PathBuf;
use std::sync::Arc;

use url::Url;

use crate::base::secret::Secret;

/// The destinations of usage, and the time between two exports.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The time between two batches of events. Default 60 s.
    pub interval: Duration,
    /// Whether events are log lines with the logger `northgate::usage`.
    pub log: bool,
    /// A file to which events are appended, one per line.
    pub file: Option<PathBuf>,
    /// A server that receives CloudEvents.
    pub http: Option<HttpDestination>,
}

/// A server that receives batches of CloudEvents with `POST`.
#[derive(Clone, Debug)]
pub struct HttpDestination {
    /// The URL.
    pub url: Url,
    /// The bearer token, if the server requires one.
    pub token: Option<Secret<String>>,
    /// Certificates of a private authority, in PEM.
    pub ca: Option<Arc<[u8]>>,
    /// The timeout of one request. Default 5 s.
    pub timeout: Duration,
}
