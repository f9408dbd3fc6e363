//! The `Accept` field of a request (RFC 9110 §12.5.1): whether a client wants pages or data.

use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue};
use memchr::memchr2;

/// Whether the client accepts pages: `Accept` names `text/html` with a weight above zero.
pub fn names_html(headers: &HeaderMap) -> bool {
    ranges(headers).any(|range| range.is("text", "html") && range.weight > 0)
}

/// Whether the client prefers a page to JSON: it accepts pages with a higher weight, or with an equal one and by name.
pub fn prefers_html(headers: &HeaderMap) -> bool {
    // Requests by programs name neither `text/html` nor `text/*`: no need to look closer.
    let may_name_text = |field: &HeaderValue| memchr2(b'x', b'X', field.as_bytes()).is_some();
    if !headers.get_all(ACCEPT).iter().any(may_name_text) {
        return false;
    }
    let html = weight(headers, "text", &["html"]);
    let json = weight(headers, "application", &["json", "problem+json"]);
    html.weight > json.weight || (html.weight == json.weight && html.weight > 0 && html.is_named)
}

/// The weight that a field gives to a type.
#[derive(Clone, Copy, Debug, Default)]
struct Weight {
    /// In thousandths; zero is not acceptable.
    weight: u16,
    /// Whether the type itself is named, and not only a range that contains it.
    is_named: bool,
}

/// Returns the weight of the most specific range that contains one of these types.
fn weight(headers: &HeaderMap, kind: &str, subtypes: &[&str]) -> Weight {
    let best = |matches: &dyn Fn(&Range<'_>) -> bool| {
        ranges(headers).filter(matches).map(|range| range.weight).max()
    };
    let named = |range: &Range<'_>| subtypes.iter().any(|subtype| range.is(kind, subtype));
    if let Some(weight) = best(&named) {
        return Weight { weight, is_named: true };
    }
    let weight = best(&|range| range.is(kind, "*")).or_else(|| best(&|range| range.is("*", "*")));
    Weight { weight: weight.unwrap_or(0), is_named: false }
}

/// One media range.
struct Range<'a> {
    kind: &'a str,
    subtype: &'a str,
    /// In thousandths.
    weight: u16,
}

impl Range<'_> {
    fn is(&self, kind: &str, subtype: &str) -> bool {
        self.kind.eq_ignore_ascii_case(kind) && self.subtype.eq_ignore_ascii_case(subtype)
    }
}

/// Returns the media ranges of all `Accept` fields. An element that cannot be parsed is left out.
fn ranges(headers: &HeaderMap) -> impl Iterator<Item = Range<'_>> {
    let fields = headers.get_all(ACCEPT).iter().filter_map(|field| field.to_str().ok());
    fields.flat_map(|field| split(field, ',')).filter_map(|range| {
        let mut parts = split(range, ';').map(str::trim);
        let (kind, subtype) = parts.next()?.split_once('/')?;
        let mut weight = 1000;
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            if name.trim().eq_ignore_ascii_case("q") {
                weight = thousandths(value.trim())?;
                // Parameters after a weight are extensions of the field.
                break;
            }
        }
        Some(Range { kind: kind.trim(), subtype: subtype.trim(), weight })
    })
}

/// Splits a text at each `separator` that is not within a quoted string.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c| {
        let ends = c == separator && !quoted;
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => {}
        }
        ends
    })
}

/// Parses a weight from 0 to 1, with up to three decimals (RFC 9110 §12.4.2).
fn thousandths(text: &str) -> Option<u16> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let is_number = decimals.len() <= 3 && decimals.bytes().all(|byte| byte.is_ascii_digit());
    let decimals: u16 = format!("{decimals:0<3}").parse().ok().filter(|_| is_number)?;
    match whole {
        "0" => Some(decimals),
        "1" if decimals == 0 => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_preferred_by_weight_and_by_name() {
        for accept in [
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            "Text/HTML",
            "TEXT/html ; Q=1.0",
            "text/*",
            "text/html;q=0.2, application/json;q=0.1",
            "text/html, application/json",
            "text/html;level=\"a,b;q=0\"",
            "application/json;q=0, text/html;q=0.001",
            "*/*;q=0.1, text/html;q=0.1",
        ] {
            assert!(prefers_html(&fields(&[accept])), "{accept}");
        }
        assert!(prefers_html(&fields(&["image/png", "text/html"])));
    }

    #[test]
    fn data_is_preferred_otherwise() {
        for accept in [
            "",
            "*/*",
            "application/json",
            "text/html;q=0",
            "text/html;q=0.000, */*",
            "text/html; q=0.0,application/json;q=0.1",
            "application/json, text/html;q=0.9",
            "application/problem+json, text/html;q=0.9",
            "application/json;note=\"text/html\"",
            "text/htmlx",
            "x-text/html",
            "text/html;q=2",
            "text/html;q=x",
            "text/html;q=",
            "text/html;q=0.0001",
            "image/png",
        ] {
            assert!(!prefers_html(&fields(&[accept])), "{accept}");
        }
        assert!(!prefers_html(&HeaderMap::new()));
    }

    #[test]
    fn a_page_is_named_whatever_else_is() {
        for (accept, named) in [
            ("application/json, Text/HTML;q=0.1", true),
            ("text/html;q=0", false),
            ("text/*", false),
            ("*/*", false),
        ] {
            assert_eq!(names_html(&fields(&[accept])), named, "{accept}");
        }
    }

    fn fields(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (ACCEPT, HeaderValue::from_static(value))).collect()
    }
}
