//! Parsers for host patterns, path patterns and header templates.
//!
//! A path must be written with the fewest escapes, like the normalized request paths it is compared with,
//! because a pattern in another form would match nothing.

use core::net::Ipv6Addr;

use http::{HeaderName, HeaderValue};

use super::de::units::{FromScalar, InvalidValue};
use super::route::{HostPattern, PathPattern, PathRewrite, Segment, Template, TemplatePart};
use crate::base::raw_target::is_overlong;

impl FromScalar for HostPattern {
    const WANTED: &'static str = "a host such as www.example.com or *.example.com";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        let wrong = |help: String| InvalidValue::new("is not a host", help);
        if let Some((host, port)) = text.rsplit_once(':')
            && !port.contains(']')
            && port.bytes().all(|b| b.is_ascii_digit())
        {
            return Err(wrong(format!("write {host}; a route does not choose the port")));
        }
        if text.contains("://") {
            return Err(wrong("write the host alone, without a scheme".into()));
        }
        let (any_label, host) = match text.strip_prefix("*.") {
            Some(domain) => (true, domain),
            None => (false, text),
        };
        let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if let Some(Ok(address)) = literal.map(str::parse::<Ipv6Addr>)
            && !any_label
        {
            return Ok(Self::Exact(format!("[{address}]").into()));
        }
        if !is_dns_name(host) {
            return Err(wrong("write www.example.com, *.example.com (one label) or [::1]".into()));
        }
        let host = host.to_ascii_lowercase().into_boxed_str();
        Ok(if any_label { Self::Wildcard(host) } else { Self::Exact(host) })
    }
}

fn is_dns_name(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    host.len() <= 253 && host.split('.').all(label)
}

impl FromScalar for PathPattern {
    const WANTED: &'static str = "a path such as /orders/{id} or /orders/**";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        let wrong = |help: String| InvalidValue::new("is not a path", help);
        let Some(inner) = text.strip_prefix('/') else {
            return Err(wrong(format!("write /{text}")));
        };
        let (inner, rest) = match inner.strip_suffix("**") {
            Some("") => return Ok(Self { segments: Vec::new(), rest: true }),
            Some(before) if before.ends_with('/') => (&before[..before.len() - 1], true),
            _ => (inner, false),
        };
        let mut segments = Vec::new();
        let mut names: Vec<&str> = Vec::new();
        let count = inner.split('/').count();
        for (index, segment) in inner.split('/').enumerate() {
            let last = index + 1 == count && !rest;
            segments.push(match segment {
                "" if last => Segment::Literal("".into()),
                "" => return Err(wrong(format!("write {}", text.replace("//", "/")))),
                "*" if last => return Err(wrong(format!("write {text}* instead of {text}"))),
                "*" => return Err(wrong("write {x} for one segment".into())),
                _ if segment.contains('*') => {
                    return Err(wrong(
                        "`**` must be the last segment and alone; write {x} for one segment".into(),
                    ));
                }
                "." | ".." => {
                    return Err(wrong("write the resolved path, without `.` and `..`".into()));
                }
                _ => match segment.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
                    Some(name) if !is_parameter(name) => {
                        return Err(wrong(
                            "write letters, digits and `_` between braces: {id}".into(),
                        ));
                    }
                    Some(name) if names.contains(&name) => {
                        return Err(wrong(format!("give the second {{{name}}} another name")));
                    }
                    Some(name) => {
                        names.push(name);
                        Segment::Parameter(name.into())
                    }
                    None => match escaped_delimiter(segment) {
                        Some(meant) => {
                            return Err(wrong(format!("write `{meant}` for its escape")));
                        }
                        None => Segment::Literal(literal(segment).map_err(wrong)?),
                    },
                },
            });
        }
        Ok(Self { segments, rest })
    }
}

fn is_parameter(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Returns a delimiter written as an escape: requests with that escape are refused, so it would match nothing.
fn escaped_delimiter(segment: &str) -> Option<char> {
    let escapes = segment.match_indices('%').filter_map(|(at, _)| segment.get(at + 1..at + 3));
    let mut meant = escapes.filter_map(|digits| u8::from_str_radix(digits, 16).ok());
    meant.find(|byte| b"!$&'()*+,;=:@".contains(byte)).map(char::from)
}

/// Returns a segment in normal form, or the fix.
fn literal(segment: &str) -> Result<Box<str>, String> {
    if segment.contains(['{', '}']) {
        return Err("write {x} as a whole segment".into());
    }
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let escape = bytes.next().zip(bytes.next());
                let hex = |b: u8| (b as char).to_digit(16).map(|digit| digit as u8);
                let Some((high, low)) = escape.and_then(|(a, b)| hex(a).zip(hex(b))) else {
                    return Err("write two hexadecimal digits after `%`".into());
                };
                let meant = high << 4 | low;
                if meant.is_ascii_alphanumeric() || b"-._~".contains(&meant) {
                    return Err(format!("write `{}` for its escape", meant as char));
                }
                if meant < 0x20 || meant == 0x7f {
                    return Err(
                        "requests with this escape are refused: the path can never match".into()
                    );
                }
                if matches!(meant, b'/' | b'\\') {
                    return Err(
                        "requests with an escaped slash are refused: the path can never match"
                            .into(),
                    );
                }
                if escape.is_some_and(|(a, b)| a.is_ascii_lowercase() || b.is_ascii_lowercase()) {
                    return Err("write the digits after `%` in upper case".into());
                }
            }
            b'?' | b'#' => return Err("remove `?` or `#` and what follows".into()),
            b if b.is_ascii_alphanumeric() || b"-._~!$&'()+,;=:@".contains(&b) => {}
            _ => {
                let escaped: String = segment
                    .bytes()
                    .map(|b| {
                        if b.is_ascii_graphic() {
                            (b as char).to_string()
                        } else {
                            format!("%{b:02X}")
                        }
                    })
                    .collect();
                return Err(format!("write {escaped} for this segment"));
            }
        }
    }
    if is_overlong(segment) {
        return Err("requests with overlong UTF-8 are refused: the path can never match".into());
    }
    Ok(segment.into())
}

/// Parses a path to forward, which may use `{x}` and `{**}` of `pattern`s.
pub(crate) fn rewrite_template(
    text: &str,
    patterns: &[&PathPattern],
) -> Result<Vec<PathRewrite>, InvalidValue> {
    if !text.starts_with('/') {
        return Err(InvalidValue::new("is not a path", format!("write /{text}")));
    }
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find('{') {
        let Some(end) = rest[start..].find('}').map(|end| start + end) else {
            return Err(InvalidValue::new("has a `{` without `}`", "write {x} or {**}"));
        };
        push_text(&mut parts, &rest[..start])?;
        let name = &rest[start + 1..end];
        if name == "**" {
            if !patterns.iter().all(|pattern| pattern.rest) {
                return Err(InvalidValue::new(
                    "uses {**}",
                    "every path of the route must then end in /**",
                ));
            }
            parts.push(PathRewrite::Rest);
        } else {
            let known = |pattern: &&PathPattern| {
                pattern.segments.contains(&Segment::Parameter(name.into()))
            };
            if !patterns.iter().all(known) {
                return Err(InvalidValue::new(
                    "uses a parameter that the path does not have",
                    format!("every path of the route must then have a segment {{{name}}}"),
                ));
            }
            parts.push(PathRewrite::Parameter(name.into()));
        }
        rest = &rest[end + 1..];
    }
    push_text(&mut parts, rest)?;
    Ok(parts)
}

fn push_text(parts: &mut Vec<PathRewrite>, text: &str) -> Result<(), InvalidValue> {
    if text.is_empty() {
        return Ok(());
    }
    for segment in text.split('/') {
        if matches!(segment, "." | "..") || text.contains("//") {
            return Err(InvalidValue::new(
                "is not a path in normal form",
                "write it without `.`, `..` and `//`",
            ));
        }
        literal(segment).map_err(|help| InvalidValue::new("is not a path in normal form", help))?;
    }
    parts.push(PathRewrite::Text(text.into()));
    Ok(())
}

/// Checks a plain path of literal segments, such as `/auth/login` or `/api`.
pub(crate) fn check_literal(text: &str) -> Result<(), InvalidValue> {
    let pattern = PathPattern::parse(text)?;
    let literals = pattern.segments.iter().all(|segment| matches!(segment, Segment::Literal(_)));
    if pattern.rest || !literals {
        return Err(InvalidValue::new("is a pattern", "write one path, without {x} and **"));
    }
    Ok(())
}

impl FromScalar for Template {
    const WANTED: &'static str = "a field value";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        HeaderValue::parse(text)?;
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(start) = rest.find('{') {
            let Some(end) = rest[start..].find('}').map(|end| start + end) else {
                return Err(InvalidValue::new(
                    "has a `{` without `}`",
                    "write {claim:sub}, {client_ip} or {request_id}",
                ));
            };
            if start > 0 {
                pieces.push(TemplatePart::Text(rest[..start].into()));
            }
            pieces.push(match &rest[start + 1..end] {
                "client_ip" => TemplatePart::ClientIp,
                "request_id" => TemplatePart::RequestId,
                name => match name.strip_prefix("claim:").filter(|claim| !claim.is_empty()) {
                    Some(claim) => TemplatePart::Claim(claim.into()),
                    None => {
                        return Err(InvalidValue::new(
                            "has an unknown placeholder",
                            "write {claim:sub}, {client_ip} or {request_id}",
                        ));
                    }
                },
            });
            rest = &rest[end + 1..];
        }
        if !rest.is_empty() {
            pieces.push(TemplatePart::Text(rest.into()));
        }
        Ok(Self(pieces))
    }
}

/// Whether a field belongs to the connection or to the message's framing: only
/// the HTTP library may set it (RFC 9110 §7.6.1, RFC 9112 §6).
pub(crate) fn is_framing(name: &HeaderName) -> bool {
    const FRAMING: [&str; 10] = [
        "host",
        "connection",
        "content-length",
        "transfer-encoding",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
        "expect",
    ];
    FRAMING.contains(&name.as_str())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_is_cut_at_its_slashes() {
        for path in ["/", "/a", "/a/", "/a/{x}/b", "/**", "/a/**", "/a/{x}/**", "/caf%C3%A9"] {
            assert_eq!(PathPattern::parse(path).expect(path).to_string(), path);
        }
        assert_eq!(PathPattern::parse("/").unwrap().segments, [Segment::Literal("".into())]);
    }

    #[test]
    fn a_path_in_another_form_is_refused_with_the_right_one() {
        for (path, help) in [
            ("orders", "write /orders"),
            ("/a/*", "write /a/** instead of /a/*"),
            ("/*/a", "write {x} for one segment"),
            ("/a/**/b", "`**` must be the last segment and alone; write {x} for one segment"),
            ("/a//b", "write /a/b"),
            ("/a/../b", "write the resolved path, without `.` and `..`"),
            ("/a b", "write a%20b for this segment"),
            ("/café", "write caf%C3%A9 for this segment"),
            ("/caf%c3%a9", "write the digits after `%` in upper case"),
            ("/%41", "write `A` for its escape"),
            ("/a%2Fb", "requests with an escaped slash are refused: the path can never match"),
            ("/a%00b", "requests with this escape are refused: the path can never match"),
            ("/orders%3Awipe", "write `:` for its escape"),
            ("/a%zz", "write two hexadecimal digits after `%`"),
            ("/a?b=c", "remove `?` or `#` and what follows"),
            ("/a{x}", "write {x} as a whole segment"),
            ("/{}", "write letters, digits and `_` between braces: {id}"),
            ("/{x}/{x}", "give the second {x} another name"),
        ] {
            assert_eq!(
                PathPattern::parse(path).map_err(|w| w.help),
                Err(help.to_owned()),
                "{path}"
            );
        }
    }

    #[test]
    fn hosts_have_neither_scheme_nor_port() {
        assert_eq!(
            HostPattern::parse("WWW.Example.com"),
            Ok(HostPattern::Exact("www.example.com".into()))
        );
        assert_eq!(
            HostPattern::parse("*.example.com"),
            Ok(HostPattern::Wildcard("example.com".into()))
        );
        let v6 = Ok(HostPattern::Exact("[2001:db8::1]".into()));
        assert_eq!(HostPattern::parse("[2001:DB8:0::1]"), v6);
        assert!(HostPattern::parse("[x]").is_err() && HostPattern::parse("*.[::1]").is_err());
        for wrong in ["example.com:8080", "https://example.com", "*", "*.*.com", "a..b", "", "a/b"]
        {
            assert!(HostPattern::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_rewritten_path_uses_what_the_route_matched() {
        let pattern = PathPattern::parse("/api/{id}/**").unwrap();

        assert_eq!(
            rewrite_template("/v2/{id}/x/{**}", &[&pattern]),
            Ok(vec![
                PathRewrite::Text("/v2/".into()),
                PathRewrite::Parameter("id".into()),
                PathRewrite::Text("/x/".into()),
                PathRewrite::Rest,
            ])
        );
        assert_eq!(
            rewrite_template("/{name}", &[&pattern]).map_err(|w| w.help),
            Err("every path of the route must then have a segment {name}".into())
        );
        assert!(rewrite_template("v2", &[&pattern]).is_err());
        assert!(rewrite_template("/../x", &[&pattern]).is_err());
    }

    #[test]
    fn a_template_names_what_is_filled_in() {
        assert_eq!(
            Template::parse("user {claim:sub} at {client_ip}"),
            Ok(Template(vec![
                TemplatePart::Text("user ".into()),
                TemplatePart::Claim("sub".into()),
                TemplatePart::Text(" at ".into()),
                TemplatePart::ClientIp,
            ]))
        );
        assert!(Template::parse("{unknown}").is_err());
        assert!(Template::parse("{claim:}").is_err());
        assert!(Template::parse("a\nb").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "\\PC{0,24}") {
            let _ = HostPattern::parse(&text);
            let _ = PathPattern::parse(&text);
            let _ = PathPattern::parse(&format!("/{text}"));
            let _ = Template::parse(&text);
            let _ = rewrite_template(&format!("/{text}"), &[]);
        }

        #[test]
        fn a_pattern_prints_as_it_was_written(segments in proptest::collection::vec("[a-z0-9._~-]{3,8}|\\{[a-z]{1,3}[0-9]{4}\\}", 1..6)) {
            let path = format!("/{}", segments.join("/"));
            if let Ok(pattern) = PathPattern::parse(&path) {
                prop_assert_eq!(pattern.to_string(), path);
            }
        }
    }
}
