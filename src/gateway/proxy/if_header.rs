//! The `If` field of `WebDAV` (RFC 4918 §10.4): conditions on resources, which the upstream knows by other URLs.
//!
//! A tag names a resource, and the response tells whether its condition holds. So a tag is held to the route of the
//! request, and a field that cannot be read is refused. State tokens and entity tags stay as they are.

use http::{HeaderName, HeaderValue};
use memchr::{memchr, memchr2};

use super::reference::Reference;
use super::rewrite::TargetRewriter;
use crate::gateway::Rejection;

/// One `If` field.
#[derive(Clone, Debug)]
pub(super) struct Conditions(Vec<Part>);

#[derive(Clone, Debug)]
enum Part {
    /// Lists of conditions, and what is between them.
    Lists(Vec<u8>),
    /// The resource of the lists that follow.
    Tag(Reference),
}

impl Conditions {
    /// Reads a field of a request to `authority`.
    ///
    /// # Errors
    ///
    /// [`Rejection::BadRequest`] for a malformed field, or one with more than [`MAX_TAGS`] tags, and the errors of
    /// [`Reference::read`].
    pub(super) fn read(field: &[u8], authority: Option<&HeaderValue>) -> Result<Self, Rejection> {
        let mut parts = Vec::new();
        let mut rest = field;
        let mut tags = 0;
        while let Some(at) = memchr2(b'<', b'(', rest) {
            let (before, from) = rest.split_at(at);
            let length = if from[0] == b'<' { tag_length(from) } else { list_length(from) };
            let (part, after) = from.split_at(length.ok_or(Rejection::BadRequest)?);
            parts.push(Part::Lists(blanks(before)?.to_vec()));
            parts.push(match part {
                [b'<', tag @ .., b'>'] => {
                    tags += 1;
                    Part::Tag(Reference::read(tag, authority)?)
                }
                list => Part::Lists(list.to_vec()),
            });
            rest = after;
        }
        if tags > MAX_TAGS {
            return Err(Rejection::BadRequest);
        }
        parts.push(Part::Lists(blanks(rest)?.to_vec()));
        Ok(Self(parts))
    }

    /// Returns the references to resources.
    pub(super) fn references(&mut self) -> impl Iterator<Item = &mut Reference> {
        self.0.iter_mut().filter_map(|part| match part {
            Part::Tag(tag) => Some(tag),
            Part::Lists(_) => None,
        })
    }

    /// Returns the field for the upstream.
    ///
    /// # Errors
    ///
    /// The errors of [`Reference::forward`].
    pub(super) fn forward(
        self,
        rewriter: &TargetRewriter,
        keeps_host: bool,
    ) -> Result<Vec<u8>, Rejection> {
        let mut out = Vec::new();
        for part in self.0 {
            match part {
                Part::Lists(lists) => out.extend_from_slice(&lists),
                Part::Tag(tag) => {
                    out.push(b'<');
                    out.extend_from_slice(&tag.forward(rewriter, keeps_host)?);
                    out.push(b'>');
                }
            }
        }
        Ok(out)
    }
}

/// Returns the length of the tag that `from` begins with.
fn tag_length(from: &[u8]) -> Option<usize> {
    Some(memchr(b'>', from)? + 1)
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

/// Returns `text`, which is between tags and lists.
///
/// # Errors
///
/// [`Rejection::BadRequest`] if it is more than white space.
fn blanks(text: &[u8]) -> Result<&[u8], Rejection> {
    if text.trim_ascii().is_empty() { Ok(text) } else { Err(Rejection::BadRequest) }
}

pub(super) const IF: HeaderName = HeaderName::from_static("if");
/// Resource tags of one field: each is matched to a route.
const MAX_TAGS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_has_references_where_it_has_tags() {
        for (field, expected) in [
            ("(<urn:a>)", &[][..]),
            ("<http://a/x> (<urn:a> [\"e\"])", &["http://a/x"]),
            ("</x> (Not <urn:a>) (<DAV:b>) </y>([W/\"<)>(\"])", &["/x", "/y"]),
            ("", &[]),
        ] {
            let mut conditions = Conditions::read(field.as_bytes(), None).expect("well-formed");

            let references = conditions.references().map(|reference| reference.target.to_string());
            assert_eq!(references.collect::<Vec<_>>(), expected, "{field}");
        }
    }

    #[test]
    fn a_malformed_field_is_refused() {
        for field in [
            "</x",
            "(<urn:a>",
            "([\"a])",
            "(",
            "<<< (",
            "x",
            "(<urn:a>) x",
            "<urn:a> (<urn:b>)",
            "<x> (<urn:b>)",
        ] {
            let refused = Conditions::read(field.as_bytes(), None).err();
            assert_eq!(refused, Some(Rejection::BadRequest), "{field}");
        }
        let tags = |count| "</x> (<urn:a>)".repeat(count);
        assert!(Conditions::read(tags(MAX_TAGS).as_bytes(), None).is_ok());
        assert!(Conditions::read(tags(MAX_TAGS + 1).as_bytes(), None).is_err());
    }
}
