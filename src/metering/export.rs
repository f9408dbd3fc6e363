//! Destinations of events: the log, a file, a server.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde_json::Value;
use tokio::task::spawn_blocking;

use super::event::Batch;
use super::settings::{HttpDestination, Settings};
use crate::base::lock::IgnorePoison as _;
use crate::observe::usage_log::UsageLog;
use crate::tls::{self, TlsError};

/// A destination of one configuration.
#[derive(Debug)]
pub(super) enum ExportDestination {
    /// Log lines with the logger `northgate::usage`.
    Log(UsageLog),
    /// A file, one event per line.
    File(UsageFile),
    /// A server that receives batches.
    Http(Box<HttpDestination>, reqwest::Client),
}

/// A file to which events are appended.
#[derive(Clone, Debug)]
pub(super) struct UsageFile {
    path: Arc<Path>,
    /// The length of the file after the last append of this process.
    end: Arc<Mutex<Option<u64>>>,
}

/// The reason why a batch was not exported.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExportError {
    #[error("cannot read the batch in `server.state_dir`")]
    Read(#[source] io::Error),
    #[error("the export ended early")]
    Task(#[source] tokio::task::JoinError),
    #[error("the log's output does not take the lines")]
    Log(#[source] io::Error),
    #[error("cannot append to the file")]
    File(#[source] io::Error),
    #[error("the server cannot be reached")]
    Send(#[source] reqwest::Error),
    #[error("the server responded with {0}")]
    Status(StatusCode),
}

impl ExportDestination {
    /// Prepares the destinations without connecting.
    ///
    /// # Errors
    ///
    /// [`TlsError`] if the authority's certificates cannot be used.
    pub(super) fn all(settings: Settings, log: &UsageLog) -> Result<Vec<Self>, TlsError> {
        let http = settings.http.map(|http| {
            let client = client(&http)?;
            Ok(Self::Http(Box::new(http), client))
        });
        let log = settings.log.then(|| Self::Log(log.clone()));
        let file = settings.file.map(|path| Self::File(UsageFile::at(&path)));
        Ok(log.into_iter().chain(file).chain(http.transpose()?).collect())
    }

    /// Returns the destination's name, as in the files of the outbox.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Log(_) => "log",
            Self::File(_) => "file",
            Self::Http(..) => "http",
        }
    }

    /// Exports `batch`, which another process may have begun to export if it `is_adopted`.
    ///
    /// # Errors
    ///
    /// [`ExportError`]; the batch is to be exported again.
    pub(super) async fn export(&self, batch: &Batch, is_adopted: bool) -> Result<(), ExportError> {
        match self {
            Self::Log(log) => {
                let (log, events) = (log.clone(), batch.events());
                blocking(move || log.write(&events)).await.map_err(ExportError::Log)
            }
            Self::File(file) => {
                let (file, events) = (file.clone(), batch.events());
                let append = move || file.append(&events, is_adopted);
                blocking(append).await.map_err(ExportError::File)
            }
            Self::Http(http, client) => send(client, http, &batch.events()).await,
        }
    }
}

async fn blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    spawn_blocking(work).await.unwrap_or_else(|failed| Err(io::Error::other(failed)))
}

/// Sends events in as many requests as the receiver needs (CloudEvents HTTP binding §3.3, batched content mode).
async fn send(
    client: &reqwest::Client,
    http: &HttpDestination,
    events: &[Value],
) -> Result<(), ExportError> {
    let mut left = vec![events];
    while let Some(part) = left.pop() {
        let content =
            serde_json::to_vec(part).map_err(io::Error::from).map_err(ExportError::Read)?;
        let divides = part.len() > 1;
        if divides && content.len() > MAX_CONTENT_BYTES {
            left.extend(halves(part));
            continue;
        }
        match post(client, http, content).await? {
            status if status.is_success() => {}
            StatusCode::PAYLOAD_TOO_LARGE if divides => left.extend(halves(part)),
            status => return Err(ExportError::Status(status)),
        }
    }
    Ok(())
}

/// Returns the halves of a batch, the first one last.
fn halves(events: &[Value]) -> [&[Value]; 2] {
    let (first, second) = events.split_at(events.len() / 2);
    [second, first]
}

async fn post(
    client: &reqwest::Client,
    http: &HttpDestination,
    content: Vec<u8>,
) -> Result<StatusCode, ExportError> {
    let mut request = client
        .post(http.url.clone())
        .header(CONTENT_TYPE, "application/cloudevents-batch+json; charset=utf-8")
        .body(content);
    if let Some(token) = &http.token {
        request = request.bearer_auth(token.expose());
    }
    let response = request.send().await.map_err(ExportError::Send)?;
    Ok(response.status())
}

impl UsageFile {
    fn at(path: &Path) -> Self {
        Self { path: path.into(), end: Arc::default() }
    }

    /// Appends events that the file does not have yet, one per line, durably. The end of the file is read only if some of
    /// them may be there: in a batch that `is_adopted`, and after a failure or the append of another process.
    fn append(&self, events: &[Value], is_adopted: bool) -> io::Result<()> {
        let mut end = self.end.lock().ignore_poison();
        let mut options = OpenOptions::new();
        let mut file = options.read(true).append(true).create(true).mode(0o600).open(&self.path)?;
        let is_same = end.take() == Some(file.metadata()?.len());
        let known = if is_same && !is_adopted { HashSet::new() } else { known_ids(&mut file)? };
        let mut lines = Vec::new();
        for event in events {
            if !event["id"].as_str().is_some_and(|id| known.contains(id)) {
                lines.extend(event.to_string().into_bytes());
                lines.push(b'\n');
            }
        }
        file.write_all(&lines)?;
        file.sync_all()?;
        *end = Some(file.metadata()?.len());
        Ok(())
    }
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

/// The content of one request; servers commonly take 1 MiB.
const MAX_CONTENT_BYTES: usize = 512 << 10;
/// The end of the file in which events of an interrupted append are looked for: more than a batch.
const MAX_TAIL_BYTES: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use core::time::Duration;
    use std::fs;
    use std::io::{BufRead as _, BufReader};
    use std::net::TcpListener;

    use serde_json::json;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_batch_is_divided_for_a_receiver_that_finds_it_too_large() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let receiving = std::thread::spawn(move || receive(&listener, 3, 10));
        let http = HttpDestination { url, token: None, ca: None, timeout: Duration::from_secs(20) };
        let events: Vec<_> = (0..10).map(|n| json!({ "id": n })).collect();

        send(&client(&http).unwrap(), &http, &events).await.unwrap();

        assert_eq!(receiving.join().unwrap(), events);
    }

    /// Receives `all` events, at most `max` in one request; more are answered 413.
    fn receive(listener: &TcpListener, max: usize, all: usize) -> Vec<Value> {
        let mut received = Vec::new();
        while received.len() < all {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut length = 0;
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            let mut content = vec![0; length];
            reader.read_exact(&mut content).unwrap();
            let events: Vec<Value> = serde_json::from_slice(&content).unwrap();
            let status =
                if events.len() > max { "413 Content Too Large" } else { "204 No Content" };
            if events.len() <= max {
                received.extend(events);
            }
            let head =
                format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
        }
        received
    }

    #[test]
    fn an_interrupted_append_is_finished_without_repeating_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("usage.jsonl");
        let events: Vec<_> = (0..3).map(|n| json!({ "id": format!("a-0-{n}"), "n": n })).collect();
        UsageFile::at(&path).append(&events[..1], false).unwrap();
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(br#"{"id":"a-0-1","#).unwrap();

        let next = UsageFile::at(&path);
        next.append(&events, false).unwrap();
        next.append(&events, true).unwrap();

        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines, events);
    }
}
