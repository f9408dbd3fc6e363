//! Usage of limits as log lines.
//!
//! Usage that has been billed is not written again: unlike other lines, these do not depend on the level of the log,
//! and the caller learns whether the output has taken them.

use std::io::{self, Write as _};
use std::sync::Arc;

use serde_json::Value;

use super::access_log_entry::{Json, Sanitized, rfc3339, time_of_day};
use super::log_format::{CurrentFilter, Format};
use super::writer::{FLUSH_TIMEOUT, LineQueue};
use crate::base::clock::Clock;

/// The lines of usage in the log. Clones share them.
#[derive(Clone, Debug)]
pub struct UsageLog {
    pub(super) lines: LineQueue,
    pub(super) format: Arc<CurrentFilter>,
    pub(super) clock: Clock,
}

impl UsageLog {
    /// Writes a line for each of `events` (CloudEvents with `id` and `data`), and waits until the output has all of them. Must
    /// not be called on a worker.
    ///
    /// # Errors
    ///
    /// If the output is closed, or takes nothing for two seconds. Some of the lines may be written then.
    pub fn write(&self, events: &[Value]) -> io::Result<()> {
        let began = self.lines.position();
        let mut line = Vec::new();
        for event in events {
            line.clear();
            self.format_line(event, &mut line)?;
            // The queue holds fewer lines than a batch may have.
            if !self.lines.try_push(&line) {
                self.lines.flush_since(began, FLUSH_TIMEOUT)?;
                if !self.lines.try_push(&line) {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
            }
        }
        self.lines.flush_since(began, FLUSH_TIMEOUT)
    }

    fn format_line(&self, event: &Value, line: &mut Vec<u8>) -> io::Result<()> {
        let (id, usage) = (event["id"].as_str().unwrap_or_default(), event["data"].to_string());
        rfc3339(self.clock.now(), |time| match self.format.get() {
            Format::Json => writeln!(
                line,
                r#"{{"time":"{time}","level":"info","msg":"Usage.","logger":"{LOGGER}","id":{},"usage":{}}}"#,
                Json(id),
                Json(&usage)
            ),
            Format::Text => writeln!(
                line,
                "{} INFO  Usage. id={} usage={}",
                time_of_day(time),
                Sanitized(id),
                Sanitized(&usage)
            ),
        })
    }
}

const LOGGER: &str = "northgate::usage";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::observe::log::{Level, Log, Settings};
    use crate::observe::metrics::Metrics;

    #[test]
    fn usage_is_written_whatever_the_level() {
        let (reader, writer) = io::pipe().expect("a pipe");
        let log = log_to(Box::new(writer));

        log.usage().write(&events(2)).expect("written");

        drop(log);
        let text = io::read_to_string(reader).expect("text");
        let ids = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let ids: Vec<_> = ids.map(|line| (line["logger"].clone(), line["id"].clone())).collect();
        assert_eq!(ids, [(json!(LOGGER), json!("a-0")), (json!(LOGGER), json!("a-1"))]);
    }

    #[test]
    fn a_closed_output_takes_no_usage() {
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);

        assert!(log_to(Box::new(writer)).usage().write(&events(1)).is_err());
    }

    #[test]
    fn more_usage_than_the_queue_holds_is_written() {
        let (reader, writer) = io::pipe().expect("a pipe");
        let reading =
            std::thread::spawn(move || io::read_to_string(reader).map(|text| text.lines().count()));
        let log = log_to(Box::new(writer));

        log.usage().write(&events(30_000)).expect("written");

        drop(log);
        assert_eq!(reading.join().expect("it reads").expect("text"), 30_000);
    }

    fn log_to(out: Box<dyn io::Write + Send>) -> Log {
        let settings =
            Settings { level: Level::parse("off").expect("a level"), ..Settings::default() };
        let log = Log::to(out, Format::Json, &settings, None, Clock::system(), &Metrics::default());
        log.expect("a thread").0
    }

    fn events(count: usize) -> Vec<Value> {
        let data = json!({ "limit": "daily", "consumer": "a".repeat(100), "used": 7 });
        (0..count).map(|number| json!({ "id": format!("a-{number}"), "data": data })).collect()
    }
}
