//! A gateway in this process, on free ports, with a clock of its own.

use core::net::SocketAddr;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use northgate::base::clock::{Clock, Timestamp};
use northgate::base::strict_json;
use northgate::config::{self, Environment};
use northgate::observe::log::Log;
use northgate::observe::log_format::Format;
use northgate::observe::metrics::Metrics;
use northgate::server::{RunningGateway, Startup};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use super::{Answer, Client, eventually};

/// A running gateway. Dropping it ends it.
pub(crate) struct Gateway {
    pub(crate) launched: RunningGateway,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Clock,
    runtime: Option<Runtime>,
    log: Arc<Log>,
    written: Written,
    file: PathBuf,
    _directory: TempDir,
}

impl Gateway {
    /// A gateway with one worker and one listener in the clear, whose clock stands still at noon.
    /// `server` is what stands in the braces after `server:`, `rest` is the file from `upstreams:` on.
    pub(crate) fn start(server: &str, rest: &str) -> Self {
        Self::at(noon(), server, rest)
    }

    /// The same by a clock that others follow too.
    pub(crate) fn at(clock: Clock, server: &str, rest: &str) -> Self {
        Self::of(clock, &whole(server, rest))
    }

    /// A gateway of a whole file.
    pub(crate) fn of(clock: Clock, text: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        Self::within(directory, clock, text)
    }

    /// A gateway of a whole file, in a directory that already holds what the file names.
    pub(crate) fn within(directory: TempDir, clock: Clock, text: &str) -> Self {
        let file = directory.path().join("gateway.yaml");
        std::fs::write(&file, text).expect("the file is written");
        let environment = Environment::default();
        let (config, _) = config::load(&file, &environment, clock.now())
            .unwrap_or_else(|faults| panic!("the test's own file is wrong:\n{faults}"));
        let metrics = Metrics::with(config.metrics.settings.clone());
        let written = Written::default();
        let (log, _) = Log::to(
            Box::new(written.clone()),
            Format::Json,
            &config.logging,
            None,
            clock.clone(),
            &metrics,
        )
        .expect("a thread to log with");
        let log = Arc::new(log);
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a control runtime");
        let launch = Startup {
            file: file.clone(),
            environment,
            clock: clock.clone(),
            metrics: metrics.clone(),
            log: Arc::clone(&log),
            control: runtime.handle().clone(),
        };
        let launched = runtime.block_on(launch.start(&config)).expect("the gateway starts");
        let runtime = Some(runtime);
        Self { launched, metrics, clock, runtime, log, written, file, _directory: directory }
    }

    /// Where the first listener is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.launched.server.addresses()[0]
    }

    /// A new connection to the first listener.
    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.address())
    }

    /// The answer to one request, on a connection of its own.
    pub(crate) fn ask(&self, request: &str) -> Answer {
        let mut client = self.connect();
        client.send(request);
        client.answer()
    }

    /// The answer to `GET path` with these fields, each with its line end.
    pub(crate) fn get(&self, path: &str, fields: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: api.test\r\n{fields}\r\n"))
    }

    /// The answer of the operator's listener.
    pub(crate) fn operator(&self, request: &str) -> Answer {
        let mut client = Client::connect(self.launched.admin);
        client.send(request);
        client.answer()
    }

    /// Waits until every issuer has answered.
    pub(crate) fn ready(self) -> Self {
        eventually("every issuer's first answer", || {
            self.launched.server.snapshot().issuers().all(|(_, answered)| answered)
        });
        self
    }

    /// Replaces the file as [`Gateway::start`] was given it, and reloads.
    pub(crate) fn reload(&self, server: &str, rest: &str) -> Result<(), String> {
        self.replace(&whole(server, rest))
    }

    /// Replaces the whole file, and reloads.
    pub(crate) fn replace(&self, text: &str) -> Result<(), String> {
        std::fs::write(&self.file, text).expect("the file is written");
        self.on_control(self.launched.reload.run()).map(drop)
    }

    /// Everything that was recorded so far.
    pub(crate) fn log(&self) -> String {
        self.log.flush();
        let written = self.written.0.lock().unwrap_or_else(PoisonError::into_inner);
        let log = String::from_utf8_lossy(&written).into_owned();
        for line in log.lines() {
            assert!(strict_json::parse_object(line.as_bytes()).is_ok(), "not strict JSON: {line}");
        }
        log
    }

    /// Runs something on the control runtime to its end.
    pub(crate) fn on_control<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.as_ref().expect("it runs").block_on(work)
    }

    /// The value of a series in the metrics, or 0. `series` is the name with labels as they are rendered.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let text = self.metrics.render();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().expect("a number"))
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A clock that stands still.
pub(crate) fn noon() -> Clock {
    Clock::manual(Timestamp::from_secs(1_700_049_600))
}

/// A whole file: `server` and `rest` as for [`Gateway::start`].
pub(crate) fn whole(server: &str, rest: &str) -> String {
    let server = if server.is_empty() { String::new() } else { format!(", {server}") };
    format!(
        "version: 1\nlisten: [{{ address: \"127.0.0.1:0\" }}]\nadmin: {{ listen: \"127.0.0.1:0\" }}\n\
         server: {{ workers: 1{server} }}\n{rest}"
    )
}

/// Where a log goes that a test can read.
#[derive(Clone, Debug, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
