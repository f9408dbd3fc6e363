//! Logging: events of the gateway itself, and the access log.
//!
//! Both go to standard output as one stream of lines, written by one thread
//! (`writer.rs`) so that a worker never waits. The selection of requests and the level
//! of events can change at runtime.

use super::log_format::CurrentFilter;
use super::log_format::Format;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::cell::RefCell;
use std::io::{self, IsTerminal as _, Write};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::base::clock::Clock;

use super::access_log_entry::AccessLogEntry;
use super::event_format::EventFormatter;
use super::library_log_limit::LibraryLogLimit;
use super::metrics::Metrics;
use super::redact_query::Redact;
use super::usage_log::UsageLog;
use super::writer::{FLUSH_TIMEOUT, LineQueue, Writer};

/// Settings of logging.
///
/// # Defaults
///
/// Level `info`, every request; JSON, or text on a terminal; the
/// query parameters `access_token`, `token`, `code`, `state` and `password`
/// redacted.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Level of the gateway's own events.
    pub level: Level,
    /// Format of lines; `None` is JSON, or text on a terminal.
    pub format: Option<Format>,
    /// Requests that are recorded.
    pub access: Access,
    /// Share of requests that is recorded, from 0 to 1; those with a status from 400 always are.
    pub sample: f64,
    /// Query parameters whose values are redacted.
    pub redact_query: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        let redact = [
            "access_token",
            "refresh_token",
            "id_token",
            "id_token_hint",
            "token",
            "code",
            "state",
            "password",
            "client_secret",
        ];
        Self {
            level: Level("info".to_owned()),
            format: None,
            access: Access::All,
            sample: 1.0,
            redact_query: redact.map(str::to_owned).to_vec(),
        }
    }
}

/// A filter such as `info` or `warn,northgate=debug`, known to be valid.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Level(String);

impl Level {
    /// Parses a filter in the syntax of `RUST_LOG`.
    ///
    /// # Errors
    ///
    /// [`InvalidLevel`] if `text` is not a filter.
    pub fn parse(text: &str) -> Result<Self, InvalidLevel> {
        // `EnvFilter` takes any word for a module's name: `verbose` would be accepted without any effect.
        let known = |directive: &str| {
            let level = directive.rsplit('=').next().unwrap_or_default();
            !level.is_empty() && level.parse::<LevelFilter>().is_ok()
        };
        if text.split(',').all(|directive| known(directive.trim()))
            && EnvFilter::try_new(text).is_ok()
        {
            return Ok(Self(text.to_owned()));
        }
        Err(InvalidLevel)
    }

    /// Returns the filter as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn filter(&self) -> EnvFilter {
        EnvFilter::new(&self.0)
    }
}

/// The text is not a valid filter.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "a level is one of error, warn, info, debug, trace, off, or a list such as warn,northgate=debug"
)]
pub struct InvalidLevel;

/// The requests that are recorded.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Access {
    /// All requests, subject to sampling.
    #[default]
    All,
    /// Requests with a status of 400 or above.
    Errors,
    /// None.
    Off,
}

/// The running log. Dropping it writes the remaining lines.
#[derive(Debug)]
pub struct Log {
    writer: Writer,
    access: AccessLog,
    level: reload::Handle<EnvFilter, Registry>,
    /// Whether `RUST_LOG` takes precedence over the settings' level.
    overruled: bool,
    /// The format if the settings name none.
    default_format: Format,
    clock: Clock,
}

impl Log {
    /// Starts logging to standard output. `rust_log` is the environment's
    /// filter, which takes precedence over the settings if it is valid.
    ///
    /// If this process already has a `tracing` subscriber, events go there, and
    /// only the access log is written here.
    ///
    /// # Errors
    ///
    /// If the system refuses the writer's thread.
    pub fn start(
        settings: &Settings,
        rust_log: Option<&str>,
        clock: Clock,
        metrics: &Metrics,
    ) -> io::Result<Self> {
        let terminal = io::stdout().is_terminal();
        let format = if terminal { Format::Text } else { Format::Json };
        let (log, events) =
            Self::to(Box::new(io::stdout()), format, settings, rust_log, clock, metrics)?;
        // An embedder's own subscriber stays in place.
        let _ = events.try_init();
        if rust_log.is_some() && !log.overruled {
            tracing::warn!("Ignored RUST_LOG: not a valid filter: {InvalidLevel}.");
        }
        Ok(log)
    }

    /// Creates a log that writes to `out`, and the subscriber for events, not yet installed; `format` is used if the
    /// settings name none.
    ///
    /// # Errors
    ///
    /// If the system refuses the writer's thread.
    pub fn to(
        out: Box<dyn Write + Send>,
        format: Format,
        settings: &Settings,
        rust_log: Option<&str>,
        clock: Clock,
        metrics: &Metrics,
    ) -> io::Result<(Self, impl Subscriber + Send + Sync + use<>)> {
        let writer = Writer::start(out, metrics)?;
        let overruling = rust_log.and_then(|level| Level::parse(level).ok());
        let level = overruling.as_ref().unwrap_or(&settings.level).filter();
        let (level, handle) = reload::Layer::new(level);
        let in_force = Arc::new(CurrentFilter::new(settings.format.unwrap_or(format)));
        let suppressed = Arc::<AtomicU64>::default();
        let libraries = LibraryLogLimit::new(clock.clone(), Arc::clone(&suppressed));
        let events = tracing_subscriber::fmt::layer()
            .event_format(EventFormatter {
                clock: clock.clone(),
                format: Arc::clone(&in_force),
                suppressed,
            })
            .with_writer(writer.lines().clone());
        let access = AccessLog(Arc::new(Shared {
            lines: writer.lines().clone(),
            format: in_force,
            choice: ArcSwap::from_pointee(RequestedFilter::new(settings)),
            sampled: AtomicU32::new(0),
        }));
        let overruled = overruling.is_some();
        let log = Self { writer, access, level: handle, overruled, default_format: format, clock };
        Ok((log, tracing_subscriber::registry().with(level.and_then(libraries).and_then(events))))
    }

    /// Returns the access log. Cheap to clone.
    pub fn access(&self) -> AccessLog {
        self.access.clone()
    }

    /// Returns the lines of usage. Cheap to clone.
    pub fn usage(&self) -> UsageLog {
        let lines = self.writer.lines().clone();
        UsageLog { lines, format: Arc::clone(&self.access.0.format), clock: self.clock.clone() }
    }

    /// Applies new settings.
    pub fn reload(&self, settings: &Settings) {
        self.access.0.format.set(settings.format.unwrap_or(self.default_format));
        self.access.0.choice.store(Arc::new(RequestedFilter::new(settings)));
        if !self.overruled {
            // It fails only if the subscriber is gone, and then there is no log to report to.
            let _ = self.level.reload(settings.level.filter());
        }
    }

    /// Waits until every line so far is written, two seconds at most, because the reader of standard output may
    /// have stopped. Must not be called on a worker.
    pub fn flush(&self) {
        self.writer.lines().flush(FLUSH_TIMEOUT);
    }
}

/// The access log. Clones share it.
#[derive(Clone, Debug)]
pub struct AccessLog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    lines: LineQueue,
    format: Arc<CurrentFilter>,
    choice: ArcSwap<RequestedFilter>,
    /// Advances by the sample's size per request, wrapping around all `u32`.
    sampled: AtomicU32,
}

impl AccessLog {
    /// Whether any request is recorded; if not, callers need not collect the fields of an entry.
    pub fn is_on(&self) -> bool {
        self.0.choice.load().access != Access::Off
    }

    /// Whether a response with `status` is to be recorded. To be called once per request,
    /// because each call advances the sample; if false, no entry need be built.
    pub fn wants(&self, status: u16) -> bool {
        let choice = self.0.choice.load();
        match choice.access {
            Access::Off => false,
            Access::Errors => status >= ERROR,
            Access::All => status >= ERROR || self.in_sample(choice.sample),
        }
    }

    /// Records a request, without waiting.
    pub fn record(&self, record: &AccessLogEntry<'_>) {
        LINE_BUFFER.with_borrow_mut(|line| {
            line.clear();
            let choice = self.0.choice.load();
            match self.0.format.get() {
                Format::Json => record.write_json(&choice.redact, line),
                Format::Text => record.write_text(&choice.redact, line),
            }
            self.0.lines.push(line);
        });
    }

    /// Selects the exact share of requests, evenly spread: those whose step wraps around.
    fn in_sample(&self, step: u32) -> bool {
        step == u32::MAX || self.0.sampled.fetch_add(step, Relaxed).checked_add(step).is_none()
    }
}

/// The settings of the access log that a reload may change.
#[derive(Debug)]
struct RequestedFilter {
    access: Access,
    /// The share of requests in units of 1/`u32::MAX`.
    sample: u32,
    redact: Redact,
}

impl RequestedFilter {
    fn new(settings: &Settings) -> Self {
        Self {
            access: settings.access,
            sample: (settings.sample.clamp(0.0, 1.0) * f64::from(u32::MAX)) as u32,
            redact: Redact::new(&settings.redact_query),
        }
    }
}

/// The lowest status that counts as an error.
const ERROR: u16 = 400;

thread_local! {
    /// A reusable line buffer per thread, so that an entry needs no allocation.
    static LINE_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

#[cfg(test)]
mod tests {
    use core::time::Duration;
    use std::sync::Mutex;

    use serde_json::Value;
    use tracing::subscriber::with_default;

    use crate::base::clock::Timestamp;
    use crate::base::strict_json;

    use super::*;

    #[test]
    fn token_parameters_of_a_query_are_redacted_by_default() {
        let redact = Redact::new(&Settings::default().redact_query);

        for name in ["access_token", "refresh_token", "id_token", "ID_token_hint", "client_secret"]
        {
            assert_eq!(redact.query(&format!("a=b&{name}=s3cret")), format!("a=b&{name}=…"));
        }
    }

    /// A client can cause such lines without end.
    #[test]
    fn warnings_of_libraries_are_limited_and_counted() {
        let (log, events, out) = json(&Settings::default(), None);

        with_default(events, || {
            for _ in 0..1000 {
                tracing::warn!(target: "h2::proto::ping_pong", "A PING was acknowledged.");
                tracing::warn!(target: "northgate::server", "The gateway's own line.");
            }
        });
        log.flush();

        let text = out.text();
        assert_eq!(text.matches("A PING").count(), 5);
        assert_eq!(text.matches("own line").count(), 1000);
    }

    #[test]
    fn events_have_the_shape_of_records() {
        let (log, events, out) = json(&Settings::default(), None);

        with_default(events, || {
            tracing::warn!(issuer = "main", attempts = 3, "The keys could not be read.");
        });
        log.flush();

        assert_eq!(
            out.text(),
            "{\"time\":\"2023-11-15T12:00:00.000000Z\",\"level\":\"warn\",\
             \"msg\":\"The keys could not be read.\",\
             \"logger\":\"northgate::observe::log::tests\",\
             \"issuer\":\"main\",\"attempts\":3}\n"
        );
    }

    /// Parsers differ in which of two members they take (RFC 8259 §4), and Elasticsearch's refuses the line.
    #[test]
    fn a_field_with_the_name_of_another_member_is_renamed() {
        let (log, events, out) = json(&Settings::default(), None);

        with_default(events, || {
            tracing::warn!(
                target: "h2",
                time = 1,
                level = "high",
                msg = "a",
                logger = "b",
                logger_ = "c",
                target = "http://127.0.0.1:2",
                suppressed = true,
                "A library named its fields so."
            );
        });
        log.flush();

        let line = strict_json::parse_object(out.text().trim_end().as_bytes()).expect("JSON");
        assert_eq!(line["level"], "warn");
        assert_eq!(line["level_"], "high");
        assert_eq!(line["msg_"], "a");
        assert_eq!((&line["logger"], &line["logger_"]), (&"h2".into(), &"b".into()));
        assert_eq!(line["target"], "http://127.0.0.1:2");
    }

    #[test]
    fn control_characters_of_a_request_are_escaped_on_a_terminal() {
        let out = Out::default();
        let settings = Settings::default();
        let (log, events) = to(&out, Format::Text, &settings, None);

        with_default(events, || tracing::info!(header = "\u{1b}[2J", "Refused\n."));
        log.flush();

        assert_eq!(out.text(), "12:00:00.000 INFO  Refused\\n. header=\"\\u001b[2J\"\n");
    }

    #[test]
    fn a_reload_changes_the_level() {
        let (log, events, out) = json(&Settings::default(), None);

        with_default(events, || {
            tracing::debug!("Before.");
            log.reload(&level("debug"));
            tracing::debug!("After.");
        });
        log.flush();

        assert_eq!(messages(&out), ["After."]);
    }

    #[test]
    fn the_environment_overrules_the_file() {
        let (log, events, out) = json(&level("debug"), Some("warn"));

        with_default(events, || {
            log.reload(&level("trace"));
            tracing::info!("Too much.");
            tracing::warn!("Wanted.");
        });
        log.flush();

        assert_eq!(messages(&out), ["Wanted."]);
    }

    #[test]
    fn an_invalid_filter_is_refused() {
        for wrong in ["verbose", "", "northgate=", "info,northgate=loud"] {
            assert_eq!(Level::parse(wrong), Err(InvalidLevel), "{wrong}");
        }
        for right in ["info", "WARN", "off", "warn,northgate=debug"] {
            assert!(Level::parse(right).is_ok(), "{right}");
        }
    }

    #[test]
    fn a_sample_has_its_exact_share_and_every_error() {
        let settings = Settings { sample: 0.1, ..Settings::default() };
        let (log, _, _) = json(&settings, None);
        let access = log.access();

        let wanted = (0..10_000).filter(|_| access.wants(200)).count();

        assert!((999..=1001).contains(&wanted), "{wanted} of 10000");
        assert!((0..100).all(|_| access.wants(503)));
    }

    #[test]
    fn samples_of_all_and_none_are_exact() {
        let (log, _, _) = json(&Settings::default(), None);
        assert!((0..1000).all(|_| log.access().wants(200)));

        log.reload(&Settings { sample: 0.0, ..Settings::default() });
        assert!(!(0..1000).any(|_| log.access().wants(200)));

        log.reload(&Settings { access: Access::Off, ..Settings::default() });
        assert!(!log.access().wants(500));

        log.reload(&Settings { access: Access::Errors, ..Settings::default() });
        assert!(!log.access().wants(302) && log.access().wants(404));
    }

    #[test]
    fn records_and_events_are_one_stream() {
        let (log, events, out) = json(&Settings::default(), None);

        with_default(events, || tracing::info!("Started."));
        log.access().record(&AccessLogEntry {
            time: NOON,
            request_id: "1",
            client: [192, 0, 2, 7].into(),
            method: "GET",
            path: "/",
            query: Some("a=1&state=s3cret"),
            version: http::Version::HTTP_11,
            status: 200,
            grpc_status: None,
            request_bytes: 0,
            response_bytes: 0,
            took: Duration::ZERO,
            overhead: Duration::ZERO,
            route: "orders",
            upstream: None,
            target: None,
            attempts: 0,
            auth: None,
            auth_result: None,
            issuer: None,
            subject: None,
            client_id: None,
            limit: None,
            limit_result: None,
            error: None,
            cause: None,
            fallback: None,
            user_agent: None,
            tls: None,
        });
        drop(log);

        assert_eq!(messages(&out), ["Started.", "request"]);
        assert!(out.text().contains(r#""url.query":"a=1&state=…""#));
    }

    fn json(
        settings: &Settings,
        rust_log: Option<&str>,
    ) -> (Log, impl Subscriber + Send + Sync + use<>, Out) {
        let out = Out::default();
        let (log, events) = to(&out, Format::Json, settings, rust_log);
        (log, events, out)
    }

    fn to(
        out: &Out,
        format: Format,
        settings: &Settings,
        rust_log: Option<&str>,
    ) -> (Log, impl Subscriber + Send + Sync + use<>) {
        let (clock, metrics) = (Clock::manual(NOON), Metrics::default());
        Log::to(Box::new(out.clone()), format, settings, rust_log, clock, &metrics)
            .expect("a thread")
    }

    fn level(text: &str) -> Settings {
        Settings { level: Level::parse(text).expect("a filter"), ..Settings::default() }
    }

    fn messages(out: &Out) -> Vec<String> {
        let message = |line: &str| {
            let line: Value = serde_json::from_str(line).expect("JSON");
            line["msg"].as_str().expect("a message").to_owned()
        };
        out.text().lines().map(message).collect()
    }

    /// A buffer that collects the output.
    #[derive(Clone, Default)]
    struct Out(Arc<Mutex<Vec<u8>>>);

    impl Out {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("no panic").clone()).expect("text")
        }
    }

    impl Write for Out {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const NOON: Timestamp = Timestamp::from_secs(1_700_049_600);
}
