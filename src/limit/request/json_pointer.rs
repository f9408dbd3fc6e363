//! Finds one value in JSON by its pointer (RFC 6901), and skips all others unread.
//!
//! Content that a client can influence elsewhere in the document never hides the value: values that a strict reader
//! refuses (lone surrogates, numbers out of range, deep nesting, text that is no UTF-8) are passed over, and what
//! lenient writers make of others (`NaN`, `Infinity`, raw control characters) is mended first.

use core::fmt;

use serde::Deserialize as _;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// Returns the value at `pointer`; `None` if there is none before the content ends, or ceases to be JSON.
pub(in crate::limit) fn find(content: &[u8], pointer: &str) -> Option<Value> {
    let content = content.strip_prefix(BYTE_ORDER_MARK).unwrap_or(content);
    let walk = |content: &[u8]| {
        let mut found = None;
        let walk = Walk { rest: pointer, found: &mut found };
        let is_json = walk.deserialize(&mut serde_json::Deserializer::from_slice(content)).is_ok();
        (found, is_json)
    };
    match walk(content) {
        (found, true) => found,
        // A mistake does not make it less of a cost.
        (found, false) => walk(&mended(content)).0.or(found),
    }
}

/// Returns content of the same structure without what `serde_json` does not read, but writers such as Python's produce: the
/// numbers that JSON has not become `null`, bare control characters and unknown escapes in strings become blanks.
fn mended(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len());
    let (mut rest, mut in_string) = (content, false);
    while let [byte, after @ ..] = rest {
        let here = rest;
        rest = after;
        match (in_string, byte) {
            (true, b'\\') => {
                let known = after.first().is_some_and(|next| b"\"\\/bfnrtu".contains(next));
                let (escape, left) = after.split_at(after.len().min(1));
                rest = left;
                if known {
                    out.push(b'\\');
                    out.extend(escape);
                } else {
                    out.extend(b"  ");
                }
            }
            (true, ..=0x1f) => out.push(b' '),
            (false, b'N' | b'I' | b'-') => {
                let words = [&b"NaN"[..], b"-Infinity", b"Infinity"];
                match words.into_iter().find_map(|word| here.strip_prefix(word)) {
                    Some(left) => {
                        out.extend(b"null");
                        rest = left;
                    }
                    None => out.push(*byte),
                }
            }
            (_, b'"') => {
                in_string = !in_string;
                out.push(b'"');
            }
            _ => out.push(*byte),
        }
    }
    out
}

/// A descent into JSON; `rest` is the unresolved part of the pointer.
struct Walk<'p, 'f> {
    rest: &'p str,
    found: &'f mut Option<Value>,
}

impl<'de> DeserializeSeed<'de> for Walk<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        if self.rest.is_empty() {
            *self.found = Some(Value::deserialize(from)?);
            return Ok(());
        }
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or an array")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let (token, rest) = step(self.rest);
        while let Some(is_next) = members.next_key_seed(Name(&token))? {
            if is_next {
                // If a member name repeats, the last one counts.
                *self.found = None;
                members.next_value_seed(Walk { rest, found: &mut *self.found })?;
            } else {
                members.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let (token, rest) = step(self.rest);
        let is_canonical = token == "0" || !token.starts_with(['0', '+']);
        let wanted = token.parse::<usize>().ok().filter(|_| is_canonical);
        for index in 0.. {
            let next = if Some(index) == wanted {
                elements.next_element_seed(Walk { rest, found: &mut *self.found })?
            } else {
                elements.next_element::<IgnoredAny>()?.map(|_| ())
            };
            if next.is_none() {
                break;
            }
        }
        Ok(())
    }
}

/// Returns the next reference token of a pointer, unescaped, and the pointer after it.
fn step(pointer: &str) -> (String, &str) {
    let pointer = pointer.strip_prefix('/').unwrap_or(pointer);
    let end = pointer.find('/').unwrap_or(pointer.len());
    let (token, rest) = pointer.split_at(end);
    (token.replace("~1", "/").replace("~0", "~"), rest)
}

/// The comparison of a member's name with this one.
struct Name<'t>(&'t str);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
        // As bytes, a name need not be Unicode.
        from.deserialize_bytes(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_bytes<E>(self, name: &[u8]) -> Result<bool, E> {
        Ok(name == self.0.as_bytes())
    }
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_is_found_whatever_stands_beside_it() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let beside = [r#""\ud800""#, "1e400", "[[]]", r#"{"b":9}"#, &deep];
        for beside in beside {
            let text = format!(r#"{{"x":{beside},"\ud800":0,"a":{{"b":7}},"y":{beside}}}"#);
            assert_eq!(find(text.as_bytes(), "/a/b"), Some(json!(7)));
        }
        assert_eq!(find(b"{\"x\":\"\xe9\",\"a\":7}", "/a"), Some(json!(7)), "Latin-1");
        assert_eq!(find(b"\xef\xbb\xbf{\"a\":7}", "/a"), Some(json!(7)), "a byte order mark");
        assert_eq!(find(b"{\"a\":7,\"x\":NaN}", "/a"), Some(json!(7)), "NaN");
        for beside in
            ["NaN", "[-Infinity,Infinity]", "\"a\n\u{1}b\"", r#""\x41\" NaN""#, r#""-Infinity\\""#]
        {
            let text = format!(r#"{{"x":{beside},"a":{{"b":7}}}}"#);
            assert_eq!(find(text.as_bytes(), "/a/b"), Some(json!(7)), "{text}");
        }
        assert_eq!(find(br#"{"x":NaN,"N":"I-NaN"}"#, "/N"), Some(json!("I-NaN")));
    }

    #[test]
    fn a_pointer_selects_as_in_rfc_6901() {
        let text = br#"{"a":[1,{"/":2}],"":3,"~1":4,"twice":{"c":5},"twice":{}}"#;
        let found = |pointer| find(text, pointer);

        assert_eq!(found("/a/0"), Some(json!(1)));
        assert_eq!(found("/a/1/~1"), Some(json!(2)));
        assert_eq!(found("/"), Some(json!(3)));
        assert_eq!(found("/~01"), Some(json!(4)));
        assert_eq!(find(b"6", ""), Some(json!(6)));
        for missing in ["/a/2", "/a/00", "/a/-", "/b", "/a/b/c", "/twice/c"] {
            assert_eq!(found(missing), None, "{missing}");
        }
    }
}
