//! Destinations of events: the log, a file, a server.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use http::header::CONTENT_TYPE;
use serde_json::Value;
use tokio::task::spawn_blocking;

use super::event::Batch;
use super::settings::{HttpDestination, Settings};
use crate::tls::{self, TlsError};

/// The destinations of one configuration.
#[derive(Clone, Debug)]
pub(super) struct Exporter {
    settings: Settings,
    client: Option<reqwest::Client>,
}

/// The reason why a batch was not exported.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExportError {
    #[error("cannot append to the file")]
    File(#[source] io::Error),
    #[error("the server cannot be reached")]
    Send(#[source] reqwest::Error),
    #[error("the server responded with {0}")]
    Status(http::StatusCode),
}

impl Exporter {
    /// Prepares the destinations without connecting.
    ///
    /// # Errors
    ///
    /// [`TlsError`] if the authority's certificates cannot be used.
    pub(super) fn new(settings: Settings) -> Result<Self, TlsError> {
        let client = settings.http.as_ref().map(client).transpose()?;
        Ok(Self { settings, client })
    }

    /// Exports `batch` to each destination that lacks it. Those that have it now are in `batch.done`.
    ///
    /// # Errors
    ///
    /// The last failure; the batch is to be exported again.
    pub(super) async fn export(&self, batch: &mut Batch) -> Result<(), ExportError> {
        let mut outcome = Ok(());
        if self.settings.log && !batch.done.iter().any(|done| done == LOG) {
            for event in batch.events() {
                let (id, data) = (&event["id"], &event["data"]);
                tracing::info!(target: "northgate::usage", %id, usage = %data, "Usage.");
            }
            batch.done.push(LOG.to_owned());
        }
        if let Some(path) = self.settings.file.clone()
            && !batch.done.iter().any(|done| done == FILE)
        {
            let events = batch.events();
            let appended = spawn_blocking(move || append(&path, &events)).await;
            match appended.unwrap_or_else(|failed| Err(io::Error::other(failed))) {
                Ok(()) => batch.done.push(FILE.to_owned()),
                Err(error) => outcome = Err(ExportError::File(error)),
            }
        }
        if let (Some(client), Some(http)) = (&self.client, &self.settings.http)
            && !batch.done.iter().any(|done| done == HTTP)
        {
            match send(client, http, batch).await {
                Ok(()) => batch.done.push(HTTP.to_owned()),
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }
}

/// Sends a batch (CloudEvents HTTP binding §3.3, batched content mode).
async fn send(
    client: &reqwest::Client,
    http: &HttpDestination,
    batch: &Batch,
) -> Result<(), ExportError> {
    let content = Value::Array(batch.events()).to_string();
    let mut request = client
        .post(http.url.clone())
        .header(CONTENT_TYPE, "application/cloudevents-batch+json; charset=utf-8")
        .body(content);
    if let Some(token) = &http.token {
        request = request.bearer_auth(token.expose());
    }
    let response = request.send().await.map_err(ExportError::Send)?;
    if response.status().is_success() {
        Ok(())
    } else {
        Err(ExportError::Status(response.status()))
    }
}

/// Appends events that the file does not have yet, one per line, durably.
fn append(path: &Path, events: &[Value]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.read(true).append(true).create(true).mode(0o600).open(path)?;
    let known = known_ids(&mut file)?;
    let mut lines = Vec::new();
    for event in events {
        if !event["id"].as_str().is_some_and(|id| known.contains(id)) {
            lines.extend(event.to_string().into_bytes());
            lines.push(b'\n');
        }
    }
    file.write_all(&lines)?;
    file.sync_all()
}

/// Returns the ids at the end of the file, where a batch is whose append was interrupted. A last line that is not whole
/// is cut off: its event is appended again.
fn known_ids(file: &mut File) -> io::Result<HashSet<String>> {
    let length = file.metadata()?.len();
    let start = length.saturating_sub(MAX_TAIL_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    if whole < tail.len() {
        file.set_len(start + whole as u64)?;
    }
    let lines = tail[..whole].split(|byte| *byte == b'\n');
    let events = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    Ok(events.filter_map(|event| event["id"].as_str().map(str::to_owned)).collect())
}

fn client(http: &HttpDestination) -> Result<reqwest::Client, TlsError> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls::client::config(http.ca.as_deref(), None)?)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .user_agent(concat!("northgate/", env!("CARGO_PKG_VERSION")))
        .timeout(http.timeout)
        .connect_timeout(http.timeout)
        .build()
        .map_err(|_| TlsError::Setup)
}

const LOG: &str = "log";
const FILE: &str = "file";
const HTTP: &str = "http";
/// The end of the file in which events of an interrupted append are looked for: more than a batch.
const MAX_TAIL_BYTES: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    #[test]
    fn an_interrupted_append_is_finished_without_repeating_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("usage.jsonl");
        let events: Vec<_> = (0..3).map(|n| json!({ "id": format!("a-0-{n}"), "n": n })).collect();
        append(&path, &events[..1]).unwrap();
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(br#"{"id":"a-0-1","#).unwrap();

        append(&path, &events).unwrap();
        append(&path, &events).unwrap();

        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines, events);
    }
}
