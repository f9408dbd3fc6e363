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
use crate::base::header_fields::begins_alike;

use super::metrics::{AuthLabel, AuthResult, LimitResult};

/// An entry of the access log. Optional fields that are absent are left out of the line.
#[derive(Clone, Copy, Debug)]
pub struct AccessLogEntry<'a> {
    /// When the response ended.
    pub time: Timestamp,
    /// The request id that the client and the upstream saw.
    pub request_id: &'a str,
    /// The W3C trace of this request.
    pub trace_id: Option<&'a str>,
    /// The span of this request in the trace.
    pub span_id: Option<&'a str>,
    /// The client's address, as reported by trusted proxies.
    pub client: IpAddr,
    /// The method as it was sent.
    pub method: &'a str,
    /// The path as it was matched.
    pub path: &'a str,
    /// The query as it was sent; [`Redact`] removes secret values.
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
        object.text("trace_id", self.trace_id);
        object.text("span_id", self.span_id);
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
        let why = [
            result.map(AuthResult::word),
            self.error,
            self.target.filter(|_| self.cause.is_some()),
            self.cause,
        ];
        for word in [auth, self.subject].into_iter().chain(why).flatten() {
            let _ = write!(line, " · {}", Sanitized(word));
        }
        if let Some(cause) = self.cause {
            let target = self.target.unwrap_or("no target");
            let _ = write!(line, " · {}: {}", Sanitized(target), Sanitized(cause));
        }
        if let (Some(limit), Some(LimitResult::Limited)) = (self.limit, self.limit_result) {
            let _ = write!(line, " · limited by {limit}");
        }
        line.push(b'\n');
    }
}

/// The query parameters whose values are redacted.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Redact(Vec<String>);

impl Redact {
    /// Redacts parameters called one of `names`, in any case, to `…`.
    pub fn new(names: &[String]) -> Self {
        Self(names.to_vec())
    }

    /// Returns the query without secret values, also of a query within a value: that of a URL which a login is to lead back
    /// to.
    pub(super) fn query(&self, query: &str) -> String {
        let mut redacted = String::with_capacity(query.len());
        // Some upstreams take `;` for a separator too, and so may an attacker who hides a token after one.
        for parameter in query.split_inclusive(['&', ';']) {
            let name = parameter.split(['=', '&', ';']).next().unwrap_or_default();
            match parameter.strip_prefix(name).filter(|value| value.starts_with('=')) {
                Some(value) if self.names(name) || self.names_within(value) => {
                    let _ = write!(redacted, "{name}=…");
                    redacted
                        .extend(value.chars().next_back().filter(|end| ['&', ';'].contains(end)));
                }
                _ => redacted.push_str(parameter),
            }
        }
        redacted
    }

    /// Whether `value`, as written in a query, is a URL with a query that has one of the names, even if it is escaped twice.
    fn names_within(&self, value: &str) -> bool {
        if !INNER_QUERIES.iter().any(|mark| value.contains(mark)) {
            return false;
        }
        let mut text = value.to_owned();
        for _ in 0..MAX_NESTED_QUERIES {
            let parameters = text.split(['?', '&', ';', '#']).skip(1);
            let mut names = parameters.filter_map(|parameter| parameter.split_once('='));
            if names.any(|(name, _)| self.names(name)) {
                return true;
            }
            // No separator may end what is decoded: all of them separate alike here.
            let whole = format!("={}", text.replace('&', "?"));
            let decoded = url::form_urlencoded::parse(whole.as_bytes()).next();
            let decoded = decoded.map(|(_, value)| value.into_owned()).unwrap_or_default();
            if decoded == text {
                return false;
            }
            text = decoded;
        }
        // Nested deeper than any login does: what it holds is not known.
        true
    }

    /// Whether `name`, as written in a query, is to be redacted. `access%5Ftoken` is, and `auth[access_token]`, a member of
    /// a structure to many frameworks, and `access.token`, which PHP takes for `access_token`.
    fn names(&self, name: &str) -> bool {
        let is_ours = |name: &str| {
            let is = |own: &String| {
                own.len() == name.len() && begins_alike(name.as_bytes(), own.as_bytes())
            };
            self.0.iter().any(is)
        };
        let ours = |name: &str| {
            let is_structure = name.contains(MEMBER_MARKS);
            is_ours(name.trim())
                || is_structure && name.split(MEMBER_MARKS).map(str::trim).any(is_ours)
        };
        if name.contains(['%', '+']) {
            let decoded = url::form_urlencoded::parse(name.as_bytes()).next();
            return decoded.is_some_and(|(name, _)| ours(&name));
        }
        ours(name)
    }
}

/// Marks of a query or fragment within a value: as they are, escaped, or escaped more than once.
const INNER_QUERIES: [&str; 6] = ["?", "#", "%3F", "%3f", "%23", "%25"];
/// The marks that divide the name of a structure from those of its members.
const MEMBER_MARKS: [char; 3] = ['[', ']', '.'];
/// Levels of escapes that are read within a value.
const MAX_NESTED_QUERIES: usize = 5;

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

    use serde_json::{Value, json};

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
    fn secrets_in_the_query_are_redacted() {
        let redact = Redact::new(&["token".into(), "access_token".into(), "Code".into()]);
        let same = |query: &str, redacted: &str| assert_eq!(redact.query(query), redacted);

        same("page=2&token=s3cret&sort=asc", "page=2&token=…&sort=asc");
        same("access%5Ftoken=s3cret", "access%5Ftoken=…");
        same("a=1;TOKEN=s3cret;b=2", "a=1;TOKEN=…;b=2");
        same("code=s3cret=&x", "code=…&x");
        // Names of structures: PHP, Rails, Express; and what PHP takes for another name.
        same("access_token[]=s3cret", "access_token[]=…");
        same("access_token%5B0%5D=s3cret", "access_token%5B0%5D=…");
        same("auth[access_token]=s3cret&a[b]=c", "auth[access_token]=…&a[b]=c");
        same("auth.token=s3cret", "auth.token=…");
        same("access.token=s3cret&+access+token=s3cret", "access.token=…&+access+token=…");
        same("token&token=&tokens=3", "token&token=…&tokens=3");
        same("", "");
    }

    #[test]
    fn secrets_in_a_url_within_the_query_are_redacted() {
        let redact = Redact::new(&["token".into(), "access_token".into()]);
        let same = |query: &str, redacted: &str| assert_eq!(redact.query(query), redacted);

        same("return_to=%2Finvite%3Ftoken%3Ds3cret&a=b", "return_to=…&a=b");
        same("return_to=%2Fa%3Fb%3Dc%26access_token%3Ds3cret", "return_to=…");
        same("return_to=/invite?token=s3cret", "return_to=…");
        same("to=https%3A%2F%2Fh%2F%23access_token%3Ds3cret", "to=…");
        same("to=%2Flogin%3Freturn_to%3D%252Finvite%253Ftoken%253Ds3cret", "to=…");
        same("to=%2Fa%3Fb%3Dc&q=100%25&r=%2Ftoken%3Da", "to=%2Fa%3Fb%3Dc&q=100%25&r=%2Ftoken%3Da");
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
            trace_id: None,
            span_id: None,
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
