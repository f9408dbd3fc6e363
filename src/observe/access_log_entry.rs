//! One entry of the access log: a request, its authentication and its response.
//!
//! Field names are OpenTelemetry's, so that a log pipeline needs no mapping.
//! There is no field for a token, a cookie, a password or a body, and the
//! query is redacted before it is written, so that none of these can leak.

use core::fmt::{self, Write as _};
use core::net::IpAddr;
use core::time::Duration;
use std::cell::RefCell;
use std::io::Write as _;

use crate::base::clock::Timestamp;

use super::metrics::{AuthLabel, AuthResult, LimitResult};
use super::redact_query::Redact;

/// An entry of the access log. Optional fields that are absent are left out of the line.
#[derive(Clone, Copy, Debug)]
pub struct AccessLogEntry<'a> {
    /// When the response ended.
    pub time: Timestamp,
    /// The request id that the client and the upstream saw.
    pub request_id: &'a str,
    /// The client's address, as reported by trusted proxies.
    pub client: IpAddr,
    /// The method as it was sent.
    pub method: &'a str,
    /// The path as it was matched.
    pub path: &'a str,
    /// The query as it was sent; secret values are removed as it is written.
    pub query: Option<&'a str>,
    /// The client's HTTP version.
    pub version: http::Version,
    /// The response status; 499 if the client disconnected before it was complete.
    pub status: u16,
    /// The status code that ended a gRPC call.
    pub grpc_status: Option<u16>,
    /// Bytes of the request body.
    pub request_bytes: u64,
    /// Bytes of the response body.
    pub response_bytes: u64,
    /// From the first byte of the request to the last of the response.
    pub took: Duration,
    /// The part of `took` without waiting for peers.
    pub overhead: Duration,
    /// The route, or `_none`.
    pub route: &'a str,
    /// The upstream.
    pub upstream: Option<&'a str>,
    /// The address that responded, or was tried last.
    pub target: Option<&'a str>,
    /// How many times the request was sent.
    pub attempts: u32,
    /// The authentication method.
    pub auth: Option<AuthLabel>,
    /// The result of authentication and authorization.
    pub auth_result: Option<AuthResult>,
    /// The name of the principal's issuer.
    pub issuer: Option<&'a str>,
    /// The principal's `sub`.
    pub subject: Option<&'a str>,
    /// The principal's client.
    pub client_id: Option<&'a str>,
    /// The limit that decided.
    pub limit: Option<&'a str>,
    /// The decision of that limit.
    pub limit_result: Option<LimitResult>,
    /// The error, as one word.
    pub error: Option<&'a str>,
    /// The kind of the response in place of the upstream's: `upstream`, `stale` or `respond`.
    pub fallback: Option<&'static str>,
    /// The cause of a failure of the upstream.
    pub cause: Option<&'a str>,
    /// The client's `User-Agent`.
    pub user_agent: Option<&'a str>,
    /// The version of TLS, such as `1.3`.
    pub tls: Option<&'a str>,
}

impl AccessLogEntry<'_> {
    /// Appends the entry as one line of JSON.
    pub(super) fn write_json(&self, redact: &Redact, line: &mut Vec<u8>) {
        let mut object = Object::begin(line);
        rfc3339(self.time, |time| object.literal("time", Some(time)));
        object.literal("level", Some(if self.status >= 500 { "warn" } else { "info" }));
        object.literal("msg", Some("request"));
        object.text("request_id", Some(self.request_id));
        object.address("client.address", self.client);
        object.text("http.request.method", Some(self.method));
        object.text("url.path", Some(self.path));
        object.text("url.query", self.query.map(|query| redact.query(query)).as_deref());
        object.literal("network.protocol.version", Some(version(self.version)));
        object.number("http.response.status_code", u64::from(self.status));
        if let Some(status) = self.grpc_status {
            object.number("rpc.grpc.status_code", u64::from(status));
        }
        object.number("http.request.body.size", self.request_bytes);
        object.number("http.response.body.size", self.response_bytes);
        object.milliseconds("duration_ms", self.took);
        object.milliseconds("overhead_ms", self.overhead);
        object.text("route", Some(self.route));
        object.text("upstream", self.upstream);
        object.text("target", self.target);
        if self.attempts > 0 {
            object.number("attempts", u64::from(self.attempts));
        }
        object.literal("auth.method", self.auth.map(AuthLabel::word));
        object.text("auth.issuer", self.issuer);
        object.text("auth.subject", self.subject);
        object.text("auth.client_id", self.client_id);
        object.literal("auth.result", self.auth_result.map(AuthResult::word));
        object.text("limit", self.limit);
        object.literal("limit.result", self.limit_result.map(LimitResult::word));
        object.text("error.type", self.error);
        object.text("error.cause", self.cause);
        object.literal("fallback", self.fallback);
        object.text("user_agent.original", self.user_agent);
        object.text("tls.version", self.tls);
        object.end();
    }

    /// Appends the entry as one short line for a terminal.
    pub(super) fn write_text(&self, redact: &Redact, line: &mut Vec<u8>) {
        let (status, method, route) = (self.status, Sanitized(self.method).to_string(), self.route);
        let took = Milliseconds(self.took);
        rfc3339(self.time, |time| line.extend_from_slice(time_of_day(time).as_bytes()));
        let _ = write!(line, " {status} {method:<6} {took:>8} ms  {route:<12} ");
        let _ = write!(line, "{}", Sanitized(self.path));
        if let Some(query) = self.query {
            let _ = write!(line, "?{}", Sanitized(&redact.query(query)));
        }
        let auth = self.auth.filter(|auth| *auth != AuthLabel::None).map(AuthLabel::word);
        let result = self.auth_result.filter(|result| *result != AuthResult::Ok);
        let why = [result.map(AuthResult::word), self.error];
        for word in [auth, self.subject].into_iter().chain(why).flatten() {
            let _ = write!(line, " · {}", Sanitized(word));
        }
        if let Some(cause) = self.cause {
            line.extend_from_slice(" · ".as_bytes());
            if let Some(target) = self.target {
                let _ = write!(line, "{}: ", Sanitized(target));
            }
            let _ = write!(line, "{}", Sanitized(cause));
        }
        if let (Some(limit), Some(LimitResult::Limited)) = (self.limit, self.limit_result) {
            let _ = write!(line, " · limited by {limit}");
        }
        line.push(b'\n');
    }
}

/// A JSON object being written. Writing to memory cannot fail.
struct Object<'a> {
    line: &'a mut Vec<u8>,
    next: u8,
}

impl<'a> Object<'a> {
    fn begin(line: &'a mut Vec<u8>) -> Self {
        Self { line, next: b'{' }
    }

    /// Writes a text from outside; nothing if it is absent.
    fn text(&mut self, name: &str, text: Option<&str>) {
        match text {
            // Usually there is nothing to escape, and checking that is fast.
            Some(text)
                if text.bytes().all(|c| matches!(c, b' '..=b'~') && c != b'"' && c != b'\\') =>
            {
                self.literal(name, Some(text));
            }
            Some(text) => {
                self.name(name);
                let _ = write!(self.line, "{}", Json(text));
            }
            None => {}
        }
    }

    /// Writes one of the gateway's own words, which need no escapes; nothing if it is absent.
    fn literal(&mut self, name: &str, word: Option<&str>) {
        if let Some(word) = word {
            self.name(name);
            self.line.push(b'"');
            self.line.extend_from_slice(word.as_bytes());
            self.line.push(b'"');
        }
    }

    fn address(&mut self, name: &str, address: IpAddr) {
        self.name(name);
        let _ = write!(self.line, "\"{address}\"");
    }

    fn number(&mut self, name: &str, number: u64) {
        self.name(name);
        let _ = serde_json::to_writer(&mut *self.line, &number);
    }

    fn milliseconds(&mut self, name: &str, duration: Duration) {
        let micros = duration.as_micros() as u64;
        self.number(name, micros / 1000);
        self.line.push(b'.');
        self.line.extend_from_slice(&digits::<3>(micros % 1000));
    }

    fn end(self) {
        self.line.extend_from_slice(b"}\n");
    }

    fn name(&mut self, name: &str) {
        self.line.extend_from_slice(&[core::mem::replace(&mut self.next, b','), b'"']);
        self.line.extend_from_slice(name.as_bytes());
        self.line.extend_from_slice(b"\":");
    }
}

/// Returns the last `N` decimal digits of `number`.
fn digits<const N: usize>(mut number: u64) -> [u8; N] {
    let mut digits = [b'0'; N];
    for digit in digits.iter_mut().rev() {
        *digit += (number % 10) as u8;
        number /= 10;
    }
    digits
}

/// Calls `then` with `moment` in RFC 3339 format, to the microsecond. The part before
/// the fraction is cached, because it is the same for a second's worth of entries.
pub(super) fn rfc3339<T>(moment: Timestamp, then: impl FnOnce(&str) -> T) -> T {
    thread_local! {
        static CACHED_TIME: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
    }
    CACHED_TIME.with_borrow_mut(|(second, text)| {
        if *second != moment.as_secs() {
            *second = moment.as_secs();
            let moment = i64::try_from(*second).map(jiff::Timestamp::from_second);
            let moment = moment.ok().and_then(Result::ok).unwrap_or(jiff::Timestamp::MAX);
            *text = format!("{moment:.6}");
        }
        let micros = digits::<6>(moment.as_nanos() / 1000 % 1_000_000);
        // The cached prefix `2026-01-31T12:00:00.` precedes the digits, `Z` follows.
        text.replace_range(20..26, str::from_utf8(&micros).unwrap_or_default());
        then(text)
    })
}

/// Returns the time of day, to the millisecond, of an RFC 3339 timestamp.
pub(super) fn time_of_day(moment: &str) -> &str {
    moment.get(11..23).unwrap_or_default()
}

/// A duration in milliseconds, to the microsecond.
struct Milliseconds(Duration);

impl fmt::Display for Milliseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros();
        f.pad(&format!("{}.{:03}", micros / 1000, micros % 1000))
    }
}

/// A text from outside for a terminal: characters that move, hide or reorder text are escaped.
pub(super) struct Sanitized<'a>(pub(super) &'a str);

impl fmt::Display for Sanitized<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            c if is_unsafe_to_show(c) => write!(f, "{}", c.escape_default()),
            c => f.write_char(c),
        })
    }
}

/// A text as JSON writes it, with the same characters escaped, since the lines may be viewed on a terminal.
pub(super) struct Json<'a>(pub(super) &'a str);

impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_string(self.0).map_err(|_| fmt::Error)?;
        json.chars().try_for_each(|c| match c {
            c if is_unsafe_to_show(c) => {
                let mut units = [0; 2];
                c.encode_utf16(&mut units).iter().try_for_each(|unit| write!(f, "\\u{unit:04x}"))
            }
            c => f.write_char(c),
        })
    }
}

/// Whether a character affects a terminal or the text around it: controls (C0, DEL, C1), line
/// separators, direction marks and overrides (UAX #9), and invisible characters that carry text (tags, annotations).
fn is_unsafe_to_show(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'
                | '\u{200e}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

const fn version(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_09 => "0.9",
        http::Version::HTTP_10 => "1.0",
        http::Version::HTTP_2 => "2",
        http::Version::HTTP_3 => "3",
        _ => "1.1",
    }
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use crate::base::strict_json;

    use super::*;

    #[test]
    fn a_refusal_is_one_line_of_json() {
        let record = AccessLogEntry {
            status: 401,
            auth: Some(AuthLabel::Jwt),
            auth_result: Some(AuthResult::Expired),
            error: Some("invalid_token"),
            cause: None,
            ..plain()
        };

        let line = json_line(&record);

        assert_eq!(
            serde_json::from_str::<Value>(&line).expect("JSON"),
            json!({
                "time": "2023-11-15T12:00:00.000250Z",
                "level": "info",
                "msg": "request",
                "request_id": "018bd1b0-0000-7000-8000-000000000000",
                "client.address": "192.0.2.7",
                "http.request.method": "GET",
                "url.path": "/api/orders",
                "network.protocol.version": "2",
                "http.response.status_code": 401,
                "http.request.body.size": 0,
                "http.response.body.size": 181,
                "duration_ms": 1.25,
                "overhead_ms": 0.041,
                "route": "orders",
                "auth.method": "jwt",
                "auth.result": "expired",
                "error.type": "invalid_token",
            })
        );
        assert!(line.ends_with("}\n"));
    }

    #[test]
    fn client_text_cannot_start_a_log_line() {
        let forged = "x\"}\n{\"msg\":\"request\",\"status\":200}\u{1b}[2J";
        let record = AccessLogEntry { user_agent: Some(forged), path: forged, ..plain() };

        let (json, text) = (json_line(&record), text_line(&record));

        let read: Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(read["user_agent.original"], forged);
        assert_eq!(json.matches('\n').count(), 1);
        assert_eq!(text.matches('\n').count(), 1);
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn characters_that_move_or_turn_a_line_are_escaped_in_both_formats() {
        for unsafe_to_show in [
            '\u{7f}',
            '\u{80}',
            '\u{85}',
            '\u{9b}',
            '\u{9f}',
            '\u{61c}',
            '\u{200f}',
            '\u{2028}',
            '\u{202e}',
            '\u{2066}',
            '\u{2069}',
            '\u{feff}',
            '\u{e0041}',
        ] {
            let text = format!("a{unsafe_to_show}31mb");
            let record = AccessLogEntry { user_agent: Some(&text), path: &text, ..plain() };

            let (json, line) = (json_line(&record), text_line(&record));

            let read: Value = serde_json::from_str(&json).expect("JSON");
            assert_eq!(read["user_agent.original"], text, "it can be read back");
            assert!(!json.contains(unsafe_to_show), "{unsafe_to_show:?}: {json}");
            assert!(!line.contains(unsafe_to_show), "{unsafe_to_show:?}: {line}");
        }
        let redacted = "/straße/日本/😀/a\u{301}";
        let record = AccessLogEntry { path: redacted, ..plain() };
        assert!(json_line(&record).contains(redacted) && text_line(&record).contains(redacted));
    }

    #[test]
    fn a_terminal_gets_one_short_line() {
        let record = AccessLogEntry {
            auth: Some(AuthLabel::Jwt),
            auth_result: Some(AuthResult::Ok),
            subject: Some("alice"),
            query: Some("token=s3cret"),
            ..plain()
        };

        assert_eq!(
            text_line(&record),
            "12:00:00.000 200 GET       1.250 ms  orders       /api/orders?token=… · jwt · alice\n"
        );
    }

    #[test]
    fn a_failed_upstream_is_named_once_with_the_cause() {
        let failed = AccessLogEntry {
            status: 502,
            error: Some("upstream-failed"),
            target: Some("http://127.0.0.1:1"),
            cause: Some("connection refused"),
            ..plain()
        };
        let without_target = AccessLogEntry { target: None, ..failed };

        let (line, other) = (text_line(&failed), text_line(&without_target));

        assert!(
            line.ends_with(" · upstream-failed · http://127.0.0.1:1: connection refused\n"),
            "{line}"
        );
        assert!(other.ends_with("/api/orders · upstream-failed · connection refused\n"), "{other}");
    }

    #[test]
    fn a_line_with_every_field_has_the_documented_members_once() {
        let full = AccessLogEntry {
            query: Some("page=2"),
            grpc_status: Some(14),
            upstream: Some("orders"),
            target: Some("http://127.0.0.1:1"),
            attempts: 2,
            auth: Some(AuthLabel::Jwt),
            auth_result: Some(AuthResult::Ok),
            issuer: Some("main"),
            subject: Some("alice"),
            client_id: Some("shop"),
            limit: Some("fair"),
            limit_result: Some(LimitResult::DryRun),
            error: Some("upstream-failed"),
            cause: Some("connection refused"),
            fallback: Some("stale"),
            user_agent: Some("curl/8.5.0"),
            tls: Some("1.3"),
            ..plain()
        };

        let line = json_line(&full);

        let members = strict_json::parse_object(line.trim_end().as_bytes()).expect("JSON");
        let documented = include_str!("../../docs/operating.md");
        let (_, documented) = documented.split_once("The fields, each left out").expect("a list");
        let (documented, _) = documented.split_once("\n\n").expect("its end");
        let documented: BTreeSet<_> = documented.split('`').skip(1).step_by(2).collect();
        assert_eq!(members.keys().map(String::as_str).collect::<BTreeSet<_>>(), documented);
    }

    fn json_line(record: &AccessLogEntry<'_>) -> String {
        let mut line = Vec::new();
        record.write_json(&Redact::new(&["token".into()]), &mut line);
        String::from_utf8(line).expect("text")
    }

    fn text_line(record: &AccessLogEntry<'_>) -> String {
        let mut line = Vec::new();
        record.write_text(&Redact::new(&["token".into()]), &mut line);
        String::from_utf8(line).expect("text")
    }

    fn plain() -> AccessLogEntry<'static> {
        AccessLogEntry {
            time: Timestamp::from_secs(1_700_049_600).plus(Duration::from_micros(250)),
            request_id: "018bd1b0-0000-7000-8000-000000000000",
            client: Ipv4Addr::new(192, 0, 2, 7).into(),
            method: "GET",
            path: "/api/orders",
            query: None,
            version: http::Version::HTTP_2,
            status: 200,
            grpc_status: None,
            request_bytes: 0,
            response_bytes: 181,
            took: Duration::from_micros(1250),
            overhead: Duration::from_micros(41),
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
        }
    }
}
