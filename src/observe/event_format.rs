//! Formats events of the gateway itself (a reload, an unavailable issuer) as log lines.
//!
//! The access log and the events are one stream and share one format:
//! `time`, `level`, `msg`, the module that wrote the event as `logger`, then the fields.
//! No object has two members of one name: RFC 8259 §4 leaves it to each parser which of them counts.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::borrow::Cow;
use std::sync::Arc;

use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::base::clock::Clock;

use super::access_log_entry::{Json, Sanitized, rfc3339, time_of_day};
use super::library_log_limit::LibraryLogLimit;
use super::log_format::{CurrentFilter, Format};

/// The `tracing` formatter that writes one event as one line.
#[derive(Debug)]
pub(super) struct EventFormatter {
    pub(super) clock: Clock,
    pub(super) format: Arc<CurrentFilter>,
    /// Lines of libraries that were suppressed.
    pub(super) suppressed: Arc<AtomicU64>,
}

impl<S, N> FormatEvent<S, N> for EventFormatter
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut line: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if !LibraryLogLimit::is_own(event.metadata()) {
            let suppressed = self.suppressed.swap(0, Relaxed);
            if suppressed > 0 {
                fields.add("suppressed", suppressed.to_string());
            }
        }
        rfc3339(self.clock.now(), |time| match self.format.get() {
            Format::Json => fields.write_json(time, event.metadata(), &mut line),
            Format::Text => fields.write_text(time, event.metadata(), &mut line),
        })
    }
}

/// An event's message, and its other fields as JSON.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(Cow<'static, str>, String)>,
}

impl Fields {
    fn write_json(&self, time: &str, of: &Metadata<'_>, line: &mut Writer<'_>) -> fmt::Result {
        let (level, msg) = (of.level().as_str().to_ascii_lowercase(), Json(&self.message));
        write!(line, r#"{{"time":"{time}","level":"{level}","msg":{msg}"#)?;
        write!(line, r#","logger":{}"#, Json(of.target()))?;
        for (name, value) in &self.others {
            write!(line, ",{}:{value}", Json(name))?;
        }
        writeln!(line, "}}")
    }

    fn write_text(&self, time: &str, of: &Metadata<'_>, line: &mut Writer<'_>) -> fmt::Result {
        write!(line, "{} {:<5} {}", time_of_day(time), of.level(), Sanitized(&self.message))?;
        for (name, value) in &self.others {
            write!(line, " {name}={}", Sanitized(value))?;
        }
        writeln!(line)
    }

    fn keep(&mut self, field: &Field, json: String) {
        self.add(field.name(), json);
    }

    /// Adds a field, under another name if its own is taken: a library names its fields as it likes.
    fn add(&mut self, name: &'static str, json: String) {
        let mut name = Cow::Borrowed(name);
        while MEMBERS.contains(&&*name) || self.others.iter().any(|(other, _)| *other == name) {
            name.to_mut().push('_');
        }
        self.others.push((name, json));
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.keep(field, Json(&text).to_string());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.keep(field, Json(value).to_string());
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.keep(field, value.to_string());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.keep(field, value.to_string());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.keep(field, value.to_string());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON cannot represent infinity.
        let number = value.is_finite().then(|| value.to_string());
        self.keep(field, number.unwrap_or_else(|| format!("\"{value}\"")));
    }
}

/// The members of every event.
const MEMBERS: [&str; 4] = ["time", "level", "msg", "logger"];
