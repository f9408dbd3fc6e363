//! gRPC over HTTP: media types, status codes, timeouts and messages (PROTOCOL-HTTP2.md and PROTOCOL-WEB.md of gRPC).

use core::fmt::Write as _;
use core::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};

/// The `grpc-status` field: the result of a call.
pub static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// The `grpc-message` field: a text for people, percent-encoded.
pub static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// The `grpc-timeout` field: the deadline of a call, relative to its beginning.
pub static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// A variant of gRPC, by the media type of a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Variant {
    /// `application/grpc`, which needs trailers.
    Grpc,
    /// `application/grpc-web`: the trailers are in the content.
    Web,
    /// `application/grpc-web-text`: the same, in Base64.
    WebText,
}

impl Variant {
    /// Returns the variant of a message with these fields; `None` if it is not gRPC.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let kind = headers.get(CONTENT_TYPE)?.as_bytes();
        let (prefix, rest) = kind.split_at_checked(PREFIX.len())?;
        if !prefix.eq_ignore_ascii_case(PREFIX) {
            return None;
        }
        let end = rest.iter().position(|b| matches!(b, b'+' | b';' | b' ')).unwrap_or(rest.len());
        match &rest[..end].to_ascii_lowercase()[..] {
            b"" => Some(Self::Grpc),
            b"-web" => Some(Self::Web),
            b"-web-text" => Some(Self::WebText),
            _ => None,
        }
    }
}

/// Whether a message is gRPC or gRPC-Web.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    Variant::of(headers).is_some()
}

/// The status codes that the gateway itself sends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are those of the specification")]
pub enum Status {
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

impl Status {
    /// Returns the value of `grpc-status`.
    pub fn value(self) -> HeaderValue {
        HeaderValue::from(self as u16)
    }
}

/// Returns the status code that ends a call, of its trailers or of the head of a response without content.
pub fn status_of(fields: &HeaderMap) -> Option<u16> {
    fields.get(&GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

/// Returns the name of a status code; `None` if there is none.
pub fn status_name(code: u16) -> Option<&'static str> {
    STATUS_NAMES.get(usize::from(code)).copied()
}

/// Whether a status code shows that the service is unhealthy, as a 5xx does: `UNKNOWN`, `INTERNAL`, `UNAVAILABLE` and
/// `DATA_LOSS`. A client may cause any other, `DEADLINE_EXCEEDED` by a deadline that is too short.
pub const fn is_service_failure(code: u16) -> bool {
    matches!(code, 2 | 13 | 14 | 15)
}

/// Parses a `grpc-timeout`: at most eight digits and a unit (H, M, S, m, u or n). `None` if it is malformed.
pub fn parse_timeout(value: &HeaderValue) -> Option<Duration> {
    let (unit, digits) = value.as_bytes().split_last()?;
    if digits.is_empty()
        || digits.len() > MAX_TIMEOUT_DIGITS
        || !digits.iter().all(u8::is_ascii_digit)
    {
        return None;
    }
    let count = digits.iter().fold(0, |count, digit| count * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(count * 3600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

/// Returns the `grpc-timeout` for `left`, rounded down to the finest unit that has room for it.
pub fn timeout_value(left: Duration) -> HeaderValue {
    let fits = |count: u128| count < 10_u128.pow(MAX_TIMEOUT_DIGITS as u32);
    let (nanos, seconds) = (left.as_nanos(), u128::from(left.as_secs()));
    let (count, unit) = [
        (nanos, 'n'),
        (left.as_micros(), 'u'),
        (left.as_millis(), 'm'),
        (seconds, 'S'),
        (seconds / 60, 'M'),
    ]
    .into_iter()
    .find(|(count, _)| fits(*count))
    .unwrap_or((seconds / 3600, 'H'));
    HeaderValue::try_from(format!("{count}{unit}")).unwrap_or(HeaderValue::from_static("0n"))
}

/// Encodes a text for `grpc-message`: everything but printable ASCII, and `%`, is percent-encoded.
pub fn encode_message(text: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            // Writing to a string cannot fail.
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
    }
    HeaderValue::try_from(encoded).unwrap_or(HeaderValue::from_static(""))
}

/// Encodes a length-prefixed message; `trailers` marks the trailers of gRPC-Web.
pub fn frame(payload: &[u8], trailers: bool) -> Vec<u8> {
    let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + payload.len());
    frame.push(if trailers { TRAILERS_FLAG } else { 0 });
    frame.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

const PREFIX: &[u8] = b"application/grpc";
const MAX_TIMEOUT_DIGITS: usize = 8;
/// The names of the status codes, in their order.
const STATUS_NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
/// The compression flag and the length of a message.
pub const FRAME_HEADER_BYTES: usize = 5;
const TRAILERS_FLAG: u8 = 0x80;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_variant_is_that_of_the_media_type() {
        for (kind, variant) in [
            ("application/grpc", Some(Variant::Grpc)),
            ("Application/GRPC+proto", Some(Variant::Grpc)),
            ("application/grpc;charset=utf-8", Some(Variant::Grpc)),
            ("application/grpc-web", Some(Variant::Web)),
            ("application/grpc-web+proto", Some(Variant::Web)),
            ("application/grpc-web-text", Some(Variant::WebText)),
            ("application/grpc-web-text+proto", Some(Variant::WebText)),
            ("application/grpcx", None),
            ("application/grpc-webx", None),
            ("application/json", None),
            ("application", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            assert_eq!(Variant::of(&headers), variant, "{kind}");
        }
        assert_eq!(Variant::of(&HeaderMap::new()), None);
    }

    #[test]
    fn a_timeout_has_up_to_eight_digits_and_a_unit() {
        let parsed = |text| parse_timeout(&HeaderValue::from_static(text));
        assert_eq!(parsed("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(parsed("2M"), Some(Duration::from_secs(120)));
        assert_eq!(parsed("0S"), Some(Duration::ZERO));
        assert_eq!(parsed("100m"), Some(Duration::from_millis(100)));
        assert_eq!(parsed("7u"), Some(Duration::from_micros(7)));
        assert_eq!(parsed("7n"), Some(Duration::from_nanos(7)));
        for malformed in ["", "S", "1", "1s", "-1S", "+1S", "1.5S", "123456789S", "1 S", "1SS"] {
            assert_eq!(parsed(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn a_message_is_percent_encoded() {
        assert_eq!(encode_message("100% \u{e9}\n"), "100%25 %C3%A9%0A");
    }

    proptest! {
        #[test]
        fn a_timeout_is_encoded_with_at_most_a_unit_lost(nanos in 0_u64..) {
            let left = Duration::from_nanos(nanos);
            let parsed = parse_timeout(&timeout_value(left)).expect("valid");
            prop_assert!(parsed <= left);
            prop_assert!(left.saturating_sub(parsed) <= left / 100_000 + Duration::from_nanos(1));
        }

        #[test]
        fn any_text_is_a_message(text in ".*") {
            prop_assert!(encode_message(&text).to_str().is_ok());
        }
    }
}
