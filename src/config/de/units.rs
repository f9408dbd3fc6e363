//! Parsers for scalar values of the file: `30s`, `100/s`, `1MiB`, `20%`, names and keywords.
//!
//! Every parser refuses text that it does not fully understand, and names the
//! fix. It never quotes the text: `de` does that, and knows what may be shown.

use core::fmt;
use core::marker::PhantomData;
use core::net::IpAddr;
use core::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use ipnet::{IpNet, Ipv4Net};
use serde::de::{Deserialize, Deserializer, Error, Visitor};
use url::Url;

use crate::config::suggestion;
use crate::issuer::{NotAResource, ResourceIndicator};
use crate::limit::{Rate, Unit};

/// A value that is written as one scalar.
pub(crate) trait FromScalar: Sized {
    /// The expected kind of value, as in "expected a duration".
    const WANTED: &'static str;

    /// Parses the whole text.
    fn parse(text: &str) -> Result<Self, InvalidValue>;
}

/// The reason why a text was refused.
#[derive(Debug, PartialEq)]
pub(crate) struct InvalidValue {
    /// The problem, the words after the text itself: "is not a rate".
    pub(crate) message: String,
    /// The fix.
    pub(crate) help: String,
}

impl InvalidValue {
    pub(crate) fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: help.into() }
    }
}

/// A [`FromScalar`] that serde can read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Scalar<T>(pub(crate) T);

impl<T: fmt::Display> fmt::Display for Scalar<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de, T: FromScalar> Deserialize<'de> for Scalar<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfVisitor<T>(PhantomData<T>);

        impl<T: FromScalar> Visitor<'_> for OfVisitor<T> {
            type Value = Scalar<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::WANTED)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Scalar<T>, E> {
                T::parse(text).map(Scalar).map_err(|InvalidValue { message, help }| {
                    E::custom(format_args!("{message}\n{help}"))
                })
            }
        }

        deserializer.deserialize_str(OfVisitor(PhantomData))
    }
}

/// A value that is one of a few keywords.
pub(crate) trait Keyword: Copy + PartialEq + 'static {
    /// The expected keywords, as in "expected all, errors or off".
    const WANTED: &'static str;

    /// The keywords and their values.
    const WORDS: &'static [(&'static str, Self)];

    /// Returns the keyword of the value; `None` if it has none.
    fn word(self) -> Option<&'static str> {
        Self::WORDS.iter().find(|(_, value)| *value == self).map(|(word, _)| *word)
    }
}

impl<T: Keyword> FromScalar for T {
    const WANTED: &'static str = <T as Keyword>::WANTED;

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        expected_one_of(text, T::WORDS)
    }
}

/// Returns the value that `text` names in a table of keywords.
pub(crate) fn expected_one_of<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, InvalidValue> {
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let help = match suggestion::closest(text, words.iter().map(|(word, _)| *word)) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("write {}", listed(words.iter().map(|(word, _)| *word))),
    };
    Err(InvalidValue::new("is not a value of this key", help))
}

/// Joins words: `a, b or c`.
pub(crate) fn listed<'w>(words: impl Iterator<Item = &'w str>) -> String {
    let words: Vec<_> = words.collect();
    match words.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

impl FromScalar for Duration {
    const WANTED: &'static str = "a duration such as 30s";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        let wrong = || {
            InvalidValue::new(
                "is not a duration",
                "write numbers with units, such as 500ms, 30s, 5m, 1h30m or 7d",
            )
        };
        let mut rest = text;
        let mut total = Self::ZERO;
        let mut last = u64::MAX;
        while !rest.is_empty() {
            let (number, behind) = digits(rest).ok_or_else(wrong)?;
            let unit_end = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
            let millis: u64 = match &behind[..unit_end] {
                "ms" => 1,
                "s" => 1_000,
                "m" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return Err(wrong()),
            };
            // The larger unit first, each once: `30m1h` is likely a mistake.
            if millis >= last {
                return Err(wrong());
            }
            last = millis;
            let part = number.checked_mul(millis).map(Self::from_millis).ok_or_else(wrong)?;
            total = total.checked_add(part).ok_or_else(wrong)?;
            rest = &behind[unit_end..];
        }
        if last == u64::MAX {
            return Err(wrong());
        }
        if total > MAX_DURATION {
            return Err(InvalidValue::new("is longer than ten years", "write a shorter time"));
        }
        Ok(total)
    }
}

/// Formats a duration as the file writes it, to the millisecond.
pub(crate) fn format_duration(duration: Duration) -> String {
    let mut rest = duration.as_millis();
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (millis, unit) in
        [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")]
    {
        if rest >= millis {
            text.push_str(&format!("{}{unit}", rest / millis));
            rest %= millis;
        }
    }
    text
}

impl FromScalar for Rate {
    const WANTED: &'static str = "a rate such as 100/s";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        let wrong = || {
            InvalidValue::new(
                "is not a rate",
                "write a number, a slash and a unit, such as 100/s, 300/min or 10000/day",
            )
        };
        let (count, per) = text.split_once('/').ok_or_else(wrong)?;
        let (count, behind) = digits(count).ok_or_else(wrong)?;
        let per = match per {
            "s" | "sec" | "second" => Unit::Second,
            "m" | "min" | "minute" => Unit::Minute,
            "h" | "hour" => Unit::Hour,
            "d" | "day" => Unit::Day,
            "week" => Unit::Week,
            "month" => Unit::Month,
            _ => return Err(wrong()),
        };
        if !behind.is_empty() {
            return Err(wrong());
        }
        Self::new(count, per)
            .map_err(|error| InvalidValue::new("is out of range", error.to_string()))
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Size(pub(crate) u64);

impl FromScalar for Size {
    const WANTED: &'static str = "a size such as 10MiB";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        let wrong = || {
            InvalidValue::new(
                "is not a size",
                "write a number and a unit, such as 512B, 64KiB, 10MiB or 1GB",
            )
        };
        let (number, unit) = digits(text).ok_or_else(wrong)?;
        let bytes: u64 = match unit {
            "B" => 1,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "" if number == 0 => 1,
            _ => return Err(wrong()),
        };
        number.checked_mul(bytes).map(Self).ok_or_else(wrong)
    }
}

/// Checks whether `text` is a valid name, since it becomes a metric label and a part of file names.
pub(crate) fn name(text: &str) -> Result<(), InvalidValue> {
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let others =
        text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b));
    if first && others && text.len() <= 63 {
        return Ok(());
    }
    Err(InvalidValue::new(
        "is not a name",
        "write lower-case letters, digits, `-` and `_`, at most 63 and not first a sign",
    ))
}

impl FromScalar for Url {
    const WANTED: &'static str = "a URL such as https://auth.example.com";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        let wrong = || {
            InvalidValue::new(
                "is not a URL",
                "write it whole, such as https://auth.example.com/path",
            )
        };
        let url = Self::parse(text).map_err(|_| wrong())?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(wrong());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidValue::new(
                "holds a user name or a password",
                "remove it from the URL",
            ));
        }
        if url.fragment().is_some() {
            return Err(InvalidValue::new("has a fragment", "remove `#` and what follows"));
        }
        Ok(url)
    }
}

impl FromScalar for ResourceIndicator {
    const WANTED: &'static str = "a URI such as https://api.example.com";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        Self::parse(text).map_err(|wrong| match wrong {
            NotAResource::Relative => InvalidValue::new(
                "is not a resource",
                "write an absolute URI, such as https://api.example.com or urn:example:api",
            ),
            NotAResource::Fragment => {
                InvalidValue::new("has a fragment", "remove `#` and what follows")
            }
        })
    }
}

impl FromScalar for IpNet {
    const WANTED: &'static str = "a network such as 10.0.0.0/8";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        let wrong = || {
            InvalidValue::new(
                "is not a network",
                "write an address and a prefix length, such as 10.0.0.0/8",
            )
        };
        match text.parse::<IpAddr>() {
            Ok(address) => Ok(Self::from(address.to_canonical())),
            Err(_) => text.parse::<Self>().map(|net| unmapped(net.trunc())).map_err(|_| wrong()),
        }
    }
}

/// Returns the IPv4 network that a network of mapped addresses stands for (RFC 4291 §2.5.5.2): the addresses of peers are
/// compared in that form.
fn unmapped(net: IpNet) -> IpNet {
    match (net.addr().to_canonical(), net.prefix_len().checked_sub(MAPPED_PREFIX_BITS)) {
        (IpAddr::V4(address), Some(bits)) if net.addr().is_ipv6() => {
            Ipv4Net::new(address, bits).map_or(net, IpNet::V4)
        }
        _ => net,
    }
}

/// The length of the prefix `::ffff:0:0/96`, in bits.
const MAPPED_PREFIX_BITS: u8 = 96;

impl FromScalar for Method {
    const WANTED: &'static str = "a method such as GET";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        let upper = text.to_ascii_uppercase();
        if upper != text {
            return Err(InvalidValue::new(
                "is not a method: methods are case-sensitive",
                format!("write {upper}"),
            ));
        }
        match Self::from_bytes(text.as_bytes()) {
            Ok(Self::CONNECT | Self::TRACE) => {
                Err(InvalidValue::new("is never forwarded", "remove it from the list"))
            }
            Ok(method) => Ok(method),
            Err(_) => {
                Err(InvalidValue::new("is not a method", "write words such as GET, POST, DELETE"))
            }
        }
    }
}

impl FromScalar for HeaderName {
    const WANTED: &'static str = "a field name such as X-Request-Id";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        Self::from_bytes(text.as_bytes()).map_err(|_| {
            InvalidValue::new(
                "is not a field name",
                "write letters, digits and `-`, such as X-Request-Id",
            )
        })
    }
}

impl FromScalar for HeaderValue {
    const WANTED: &'static str = "a field value";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        if !text.bytes().all(|b| matches!(b, b' '..=b'~' | b'\t')) {
            return Err(InvalidValue::new(
                "is not a field value",
                "write visible ASCII on one line",
            ));
        }
        Self::from_str(text).map_err(|_| {
            InvalidValue::new("is not a field value", "write visible ASCII on one line")
        })
    }
}

/// One scope (RFC 6749 §3.3).
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Scope(pub(crate) String);

impl FromScalar for Scope {
    const WANTED: &'static str = "a scope";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        if text.contains(' ') {
            return Err(InvalidValue::new(
                "is more than one scope",
                "write a list, such as [orders:read, orders:write]",
            ));
        }
        let allowed = |b: u8| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
        if text.is_empty() || !text.bytes().all(allowed) {
            return Err(InvalidValue::new(
                "is not a scope",
                "write visible ASCII without quotes and backslashes",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Splits off the leading number of `text`, with `_` allowed between its digits.
fn digits(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    if number.starts_with('_') || number.ends_with('_') {
        return None;
    }
    Some((number.replace('_', "").parse().ok()?, rest))
}

/// The maximum duration of any setting.
const MAX_DURATION: Duration = Duration::from_secs(10 * 366 * 86_400);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_add_up_from_the_larger_unit_to_the_smaller() {
        assert_eq!(parse::<Duration>("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse::<Duration>("1h30m"), Some(Duration::from_secs(5_400)));
        assert_eq!(parse::<Duration>("7d"), Some(Duration::from_secs(7 * 86_400)));
        assert_eq!(parse::<Duration>("0s"), Some(Duration::ZERO));

        for wrong in [
            "",
            "30",
            "s",
            "30 s",
            "-1s",
            "1.5s",
            "30m1h",
            "1s1s",
            "1w",
            "99999999999999999999s",
            "20000d",
        ] {
            assert_eq!(parse::<Duration>(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn rates_are_a_number_and_a_unit() {
        assert_eq!(parse::<Rate>("100/s"), Rate::new(100, Unit::Second).ok());
        assert_eq!(parse::<Rate>("10_000/day"), Rate::new(10_000, Unit::Day).ok());

        for wrong in [
            "100",
            "100 / s",
            "100 per second",
            "/s",
            "0/s",
            "1/fortnight",
            "1.5/s",
            "_1/s",
            "1_/s",
            "-1/s",
        ] {
            assert_eq!(parse::<Rate>(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse::<Size>("512B"), Some(Size(512)));
        assert_eq!(parse::<Size>("64KiB"), Some(Size(65_536)));
        assert_eq!(parse::<Size>("1GB"), Some(Size(1_000_000_000)));
        assert_eq!(parse::<Size>("0"), Some(Size(0)));

        for wrong in ["", "10", "10M", "10 MiB", "1e3B", "99999999999GiB"] {
            assert_eq!(parse::<Size>(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn names_fit_a_metric_label() {
        assert!(name("orders-2_b").is_ok());
        for wrong in ["", "-a", "A", "a.b", "ä", &"a".repeat(64)] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn urls_are_whole_and_hold_no_password() {
        assert!(parse::<Url>("https://auth.example.com/a?b").is_some());
        for wrong in
            ["auth.example.com", "/a", "ftp://a", "https://u:p@a", "https://a#b", "https://"]
        {
            assert!(parse::<Url>(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_refusal_says_what_to_write() {
        assert_eq!(
            Rate::parse("100 per second"),
            Err(InvalidValue::new(
                "is not a rate",
                "write a number, a slash and a unit, such as 100/s, 300/min or 10000/day"
            ))
        );
        assert_eq!(
            expected_one_of("al", &[("all", 1), ("off", 2)]).map_err(|w| w.help),
            Err("did you mean `all`?".into())
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "\\PC{0,24}") {
            let _ = parse::<Duration>(&text);
            let _ = parse::<Rate>(&text);
            let _ = parse::<Size>(&text);
            let _ = parse::<Url>(&text);
            let _ = parse::<IpNet>(&text);
        }

        #[test]
        fn a_formatted_duration_parses_to_the_same_value(n in 1u64..1_000_000, d in 0u64..300, h in 1u64..24, s in 0u64..60) {
            prop_assert_eq!(parse::<Rate>(&format!("{n}/min")), Rate::new(n, Unit::Minute).ok());
            prop_assert_eq!(parse::<Size>(&format!("{n}KiB")), Some(Size(n * 1024)));
            let seconds = d * 86_400 + h * 3_600 + s;
            prop_assert_eq!(parse::<Duration>(&format!("{d}d{h}h{s}s")), Some(Duration::from_secs(seconds)));
            let duration = Duration::from_millis(seconds * 1000 + n % 1000);
            prop_assert_eq!(parse::<Duration>(&format_duration(duration)), Some(duration));
        }
    }

    fn parse<T: FromScalar>(text: &str) -> Option<T> {
        T::parse(text).ok()
    }
}
