//! The `If` field of `WebDAV` (RFC 4918 §10.4): conditions on resources, which the upstream knows by other URLs.
//!
//! A tag that names a resource of this route is forwarded like a `Destination`. All other bytes stay: a condition on a
//! resource elsewhere is for the upstream to judge.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use memchr::{memchr, memchr2};

use super::destination::{is_same_host, written};
use super::rewrite::TargetRewriter;
use crate::base::raw_target;

/// Whether clients send the field with `method`: to write, or to lock.
pub(crate) fn is_usual_with(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::POST | Method::OPTIONS)
}

/// Rewrites the resource tags of a request to `authority`. `keeps_host` if the upstream sees the host of the client.
pub(crate) fn forward(
    headers: &mut HeaderMap,
    authority: Option<&HeaderValue>,
    rewriter: &TargetRewriter,
    keeps_host: bool,
) {
    let http::header::Entry::Occupied(mut fields) = headers.entry(IF) else { return };
    for field in fields.iter_mut() {
        let rewrite = |tag: &[u8]| {
            let mut target = raw_target::parse(Bytes::copy_from_slice(tag)).ok()?;
            if !target.path().starts_with('/') || !is_same_host(&target, authority) {
                return None;
            }
            rewriter.rewrite(&mut target).ok()?;
            Some(written(&target, keeps_host))
        };
        if let Some(value) = with_tags(field.as_bytes(), rewrite)
            && let Ok(value) = HeaderValue::from_bytes(&value)
        {
            *field = value;
        }
    }
}

/// Returns `field` with each resource tag as `rewrite` returns it; `None` if it is malformed.
fn with_tags(field: &[u8], rewrite: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = memchr2(b'<', b'(', rest) {
        let (before, from) = rest.split_at(at);
        out.extend_from_slice(before);
        let length = if from[0] == b'<' { memchr(b'>', from)? + 1 } else { list_length(from)? };
        let (part, after) = from.split_at(length);
        let tag = part.strip_prefix(b"<").and_then(|tag| rewrite(&tag[..tag.len() - 1]));
        match tag {
            Some(tag) => out.extend([b"<", &*tag, b">"].concat()),
            None => out.extend_from_slice(part),
        }
        rest = after;
    }
    out.extend_from_slice(rest);
    Some(out)
}

/// Returns the length of the list of conditions that `from` begins with. An entity tag may contain any delimiter.
fn list_length(from: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        at += match from.get(at)? {
            b')' => return Some(at + 1),
            b'<' => memchr(b'>', &from[at..])? + 1,
            b'"' => memchr(b'"', &from[at + 1..])? + 2,
            _ => 1,
        };
    }
}

const IF: HeaderName = HeaderName::from_static("if");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_rewritten_and_tokens_and_entity_tags_stay() {
        for (field, expected) in [
            ("(<urn:a>)", Some("(<urn:a>)")),
            ("<http://a/x> (<urn:a> [\"e\"])", Some("<HTTP://A/X> (<urn:a> [\"e\"])")),
            (
                "</x> (Not <urn:a>) (<DAV:b>) </y>([W/\"<)>(\"])",
                Some("</X> (Not <urn:a>) (<DAV:b>) </Y>([W/\"<)>(\"])"),
            ),
            ("", Some("")),
            ("</x", None),
            ("(<urn:a>", None),
            ("([\"a])", None),
            ("(", None),
        ] {
            let rewritten = with_tags(field.as_bytes(), |tag| Some(tag.to_ascii_uppercase()));
            assert_eq!(rewritten.as_deref(), expected.map(str::as_bytes), "{field}");
            let unchanged = with_tags(field.as_bytes(), |_| None);
            assert_eq!(unchanged.as_deref(), expected.map(|_| field.as_bytes()), "{field}");
        }
    }
}
