//! Cookies: names, attributes, splitting, and removal from forwarded requests.
//!
//! Writes and reads the header fields (RFC 6265bis); `seal` encrypts the
//! values. A value too long for one cookie is split: the first cookie has the
//! plain name and begins with the number of parts, the others are called
//! `<name>.1`, `<name>.2` … (session names contain no dot). A mixture of the
//! parts of two values does not open.

use std::borrow::Cow;
use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{COOKIE, Entry};
use http::{HeaderMap, HeaderValue};
use memchr::memchr_iter;

use crate::session::settings;
use crate::session::settings::SameSite;

/// One of the gateway's cookies, whole or in parts.
#[derive(Debug)]
pub(crate) struct Cookie {
    name: Box<str>,
    attributes: Box<str>,
}

impl Cookie {
    /// The cookie `<prefix><name>`, `HttpOnly`.
    pub(crate) fn new(settings: &settings::Cookie, name: &str) -> Self {
        Self::with(settings, name, "; HttpOnly")
    }

    /// The cookie `<prefix><name>`, readable by scripts. Only for values that pages may know.
    pub(crate) fn readable(settings: &settings::Cookie, name: &str) -> Self {
        Self::with(settings, name, "")
    }

    fn with(settings: &settings::Cookie, name: &str, http_only: &str) -> Self {
        let mut attributes = format!("; Path={}", settings.path);
        if let Some(domain) = &settings.domain {
            attributes.push_str("; Domain=");
            attributes.push_str(domain);
        }
        attributes.push_str(if settings.secure { "; Secure" } else { "" });
        attributes.push_str(http_only);
        attributes.push_str(match settings.same_site {
            SameSite::Lax => "; SameSite=Lax",
            SameSite::Strict => "; SameSite=Strict",
            SameSite::None => "; SameSite=None",
        });
        Self { name: format!("{}{name}", settings.prefix).into(), attributes: attributes.into() }
    }

    /// The whole name, with its prefix.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Reads this cookie from a request.
    pub(crate) fn find<'a>(&self, headers: &'a HeaderMap) -> CookieValues<'a> {
        let mut presented = CookieValues::default();
        for field in headers.get_all(COOKIE) {
            for (name, value) in segments(field.as_bytes()).map(pair) {
                let Some(part) = self.part(name) else { continue };
                presented.bytes += name.len() + value.len() + SEPARATOR_LEN;
                match &mut presented.parts[part] {
                    first @ None => *first = Some(value),
                    Some(_) if presented.more.len() < MAX_MORE => {
                        presented.more.push((part, value));
                    }
                    Some(_) => {}
                }
            }
        }
        presented
    }

    /// Returns fields that set `text`, in parts if needed, and clear the parts in `stale` that it does not fill.
    ///
    /// # Errors
    ///
    /// [`TooLarge`] if it does not fit into eight cookies.
    pub(crate) fn set(&self, text: &str, stale: CookieParts) -> Result<Vec<HeaderValue>, TooLarge> {
        self.set_until(text, stale, "")
    }

    /// Does the same for a cookie that browsers remove by themselves after `seconds`.
    ///
    /// # Errors
    ///
    /// As [`Cookie::set`].
    pub(crate) fn set_for(
        &self,
        text: &str,
        stale: CookieParts,
        seconds: u64,
    ) -> Result<Vec<HeaderValue>, TooLarge> {
        self.set_until(text, stale, &format!("; Max-Age={seconds}"))
    }

    fn set_until(
        &self,
        text: &str,
        stale: CookieParts,
        lifetime: &str,
    ) -> Result<Vec<HeaderValue>, TooLarge> {
        let count = (text.len() + 1).div_ceil(PART_LEN);
        if count > MAX_PARTS {
            return Err(TooLarge);
        }
        let whole = format!("{count}{text}");
        let mut fields = Vec::with_capacity(count);
        for (part, value) in whole.as_bytes().chunks(PART_LEN).enumerate() {
            // Sealed texts are ASCII, so that no part ends within a character.
            let value = core::str::from_utf8(value).unwrap_or_default();
            fields.push(self.field(part, value, lifetime));
        }
        fields.extend(
            stale.iter().skip_while(|part| *part < count).map(|part| self.clear_part(part)),
        );
        Ok(fields)
    }

    /// Returns a field that sets `value` without a count of parts.
    ///
    /// # Errors
    ///
    /// [`TooLarge`] if browsers would reject it.
    pub(crate) fn set_plain(&self, value: &str) -> Result<HeaderValue, TooLarge> {
        if value.len() > PART_LEN || !value.bytes().all(is_cookie_octet) {
            return Err(TooLarge);
        }
        Ok(self.field(0, value, ""))
    }

    /// Returns fields that clear the parts in `held`, with the attributes they were set with.
    pub(crate) fn clear(&self, held: CookieParts) -> Vec<HeaderValue> {
        held.iter().map(|part| self.clear_part(part)).collect()
    }

    /// Whether `name` names this cookie or one of its parts.
    pub(crate) fn owns(&self, name: &[u8]) -> bool {
        self.part(name).is_some()
    }

    /// The index of the part that `name` names; 0 is the cookie itself.
    fn part(&self, name: &[u8]) -> Option<usize> {
        match name.strip_prefix(self.name.as_bytes())? {
            [] => Some(0),
            [b'.', digit @ b'1'..=b'7'] => Some(usize::from(digit - b'0')),
            _ => None,
        }
    }

    fn clear_part(&self, part: usize) -> HeaderValue {
        self.field(part, "", "; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT")
    }

    fn field(&self, part: usize, value: &str, lifetime: &str) -> HeaderValue {
        let Self { name, attributes } = self;
        let mut field = String::with_capacity(name.len() + value.len() + attributes.len() + 80);
        field.push_str(name);
        if part > 0 {
            let _ = write!(field, ".{part}");
        }
        let _ = write!(field, "={value}{lifetime}{attributes}");
        let mut field = HeaderValue::try_from(field).expect("names and sealed texts are ASCII");
        field.set_sensitive(true);
        field
    }
}

/// One cookie as a request presents it.
///
/// A name may come several times: with an earlier `Domain` or `Path` of the configuration, or from a sibling host. The
/// request does not distinguish them, so the value that can be opened counts; the callers try all.
#[derive(Clone, Debug, Default)]
pub(crate) struct CookieValues<'a> {
    /// The first value of each part.
    parts: [Option<&'a [u8]>; MAX_PARTS],
    /// Further values of parts that occur more than once, in their order. Bounded.
    more: Vec<(usize, &'a [u8])>,
    /// The bytes that all of them take in the `Cookie` field.
    bytes: usize,
}

impl<'a> CookieValues<'a> {
    /// Whether the request has no part of it.
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.iter().all(Option::is_none)
    }

    /// The texts that may have been set, joined; only one of them opens, or none. Usually one, at most
    /// [`MAX_CANDIDATES`].
    pub(crate) fn texts(&self) -> impl Iterator<Item = Cow<'a, [u8]>> {
        let choices = if self.more.is_empty() { 1 } else { MAX_CANDIDATES };
        let mut seen = Vec::new();
        (0..choices).filter_map(move |choice| {
            let text = self.choose(choice)?;
            if self.more.is_empty() {
                return Some(text);
            }
            let is_new = !seen.contains(&text);
            if is_new {
                seen.push(text.clone());
            }
            is_new.then_some(text)
        })
    }

    /// Joins one choice of values. The first choices take the same occurrence of each part, since browsers send the
    /// parts of one value in the same order as those of another; the others are all combinations.
    fn choose(&self, choice: usize) -> Option<Cow<'a, [u8]>> {
        let mut rest = choice.saturating_sub(MAX_MORE + 1);
        let mut pick = |part: usize| {
            let count = self.values(part).count();
            let last = count.checked_sub(1)?;
            let at = if choice <= MAX_MORE {
                choice.min(last)
            } else {
                let at = rest % count;
                rest /= count;
                at
            };
            self.values(part).nth(at)
        };
        let (digit, first) = pick(0)?.split_first()?;
        let count = usize::from(digit.checked_sub(b'0')?);
        if !(1..=MAX_PARTS).contains(&count) {
            return None;
        }
        if count == 1 {
            return Some(Cow::Borrowed(first));
        }
        let mut whole = Vec::with_capacity(count * PART_LEN);
        whole.extend_from_slice(first);
        for part in 1..count {
            whole.extend_from_slice(pick(part)?);
        }
        Some(Cow::Owned(whole))
    }

    /// All values of a part.
    fn values(&self, part: usize) -> impl Iterator<Item = &'a [u8]> {
        let more = self.more.iter().filter(move |(at, _)| *at == part).map(|(_, value)| *value);
        self.parts[part].into_iter().chain(more)
    }

    /// The values that may have been set by [`Cookie::set_plain`], without empty ones.
    pub(crate) fn plain_values(&self) -> impl Iterator<Item = &'a str> {
        self.values(0)
            .filter(|value| !value.is_empty())
            .filter_map(|value| core::str::from_utf8(value).ok())
    }

    /// The bytes that the parts take in the `Cookie` field.
    pub(crate) const fn len(&self) -> usize {
        self.bytes
    }

    /// The parts that the request has.
    pub(crate) fn held(&self) -> CookieParts {
        let bits = self.parts.iter().enumerate();
        CookieParts(bits.fold(0, |bits, (part, value)| bits | u8::from(value.is_some()) << part))
    }
}

/// A set of parts of a cookie.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct CookieParts(u8);

impl CookieParts {
    fn iter(self) -> impl Iterator<Item = usize> {
        (0..MAX_PARTS).filter(move |part| self.0 >> part & 1 == 1)
    }
}

/// The value does not fit into cookies.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the tokens are too large for cookies")]
pub(crate) struct TooLarge;

/// Removes the cookies whose names are `ours` from the `Cookie` fields, and leaves the rest byte for byte.
pub(crate) fn strip(headers: &mut HeaderMap, ours: impl Fn(&[u8]) -> bool) {
    let is_ours = |segment: &[u8]| ours(pair(segment).0);
    let Entry::Occupied(fields) = headers.entry(COOKIE) else { return };
    if !fields.iter().any(|field| segments(field.as_bytes()).any(is_ours)) {
        return;
    }
    let (name, fields) = fields.remove_entry_mult();
    let mut remaining = Vec::new();
    for field in fields {
        let mut rest = Vec::new();
        for part in segments(field.as_bytes()).filter(|part| !is_ours(part)) {
            if rest.is_empty() {
                rest.reserve_exact(field.len());
                rest.extend_from_slice(part.trim_ascii_start());
            } else {
                rest.push(b';');
                rest.extend_from_slice(part);
            }
        }
        if !rest.is_empty() {
            let rest = HeaderValue::from_maybe_shared(Bytes::from(rest));
            remaining.push(rest.expect("a part of a valid value"));
        }
    }
    for field in remaining {
        headers.append(&name, field);
    }
}

/// Whether the request has a cookie whose name is `ours`.
pub(crate) fn is_any(headers: &HeaderMap, ours: impl Fn(&[u8]) -> bool) -> bool {
    let mut fields = headers.get_all(COOKIE).iter();
    fields.any(|field| segments(field.as_bytes()).any(|segment| ours(pair(segment).0)))
}

/// Splits a `Cookie` field at its semicolons.
fn segments(field: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut begin = 0;
    memchr_iter(b';', field).chain(core::iter::once(field.len())).map(move |end| {
        let segment = &field[begin..end];
        begin = end + 1;
        segment
    })
}

/// Name and value of one cookie in a `Cookie` field; the name is empty if there is no `=`.
fn pair(segment: &[u8]) -> (&[u8], &[u8]) {
    let segment = segment.trim_ascii();
    match segment.iter().position(|b| *b == b'=') {
        // Upstreams may drop the space before `=`: a name that is ours to them is ours here.
        Some(at) => (segment[..at].trim_ascii_end(), &segment[at + 1..]),
        None => (b"", segment),
    }
}

/// Whether a cookie's value may contain the byte (RFC 6265 §4.1.1).
const fn is_cookie_octet(byte: u8) -> bool {
    matches!(byte, 0x21 | 0x23..=0x2b | 0x2d..=0x3a | 0x3c..=0x5b | 0x5d..=0x7e)
}

/// Bytes of value in one cookie: browsers accept 4096 with name and attributes.
const PART_LEN: usize = 3800;
/// More would not fit into the 32 KiB that servers accept for a request's head.
const MAX_PARTS: usize = 8;
/// Values of repeated names that are considered, besides the first of each.
const MAX_MORE: usize = 7;
/// Combinations of repeated parts that are tried.
const MAX_CANDIDATES: usize = 40;
/// Bytes of `=` and `; ` around a cookie.
pub(crate) const SEPARATOR_LEN: usize = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn web() -> Cookie {
        Cookie::new(&settings::Cookie::default(), "web")
    }

    fn headers(cookie: &str) -> HeaderMap {
        HeaderMap::from_iter([(COOKIE, HeaderValue::from_str(cookie).unwrap())])
    }

    /// The `Cookie` field of a browser that has received `fields`.
    fn sent_back(fields: &[HeaderValue]) -> String {
        let pairs = fields.iter().map(|f| f.to_str().unwrap().split(';').next().unwrap());
        pairs.collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn a_session_cookie_is_host_only_and_http_only() {
        assert_eq!(
            web().set("abc", CookieParts::default()).unwrap(),
            ["__Host-web=1abc; Path=/; Secure; HttpOnly; SameSite=Lax"]
        );
    }

    #[test]
    fn a_cookie_is_cleared_with_the_attributes_it_was_set_with() {
        let held = web().find(&headers("__Host-web=2; __Host-web.1=x; __Host-web.5=y")).held();
        let cleared = "; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Path=/; Secure; HttpOnly; SameSite=Lax";

        assert_eq!(
            web().clear(held),
            ["__Host-web=", "__Host-web.1=", "__Host-web.5="]
                .map(|name| format!("{name}{cleared}"))
        );
    }

    #[test]
    fn attributes_follow_the_settings() {
        let settings = settings::Cookie {
            prefix: "".into(),
            same_site: SameSite::Strict,
            secure: false,
            domain: Some("example.com".into()),
            path: "/app".into(),
        };
        assert_eq!(
            Cookie::new(&settings, "web").set_plain("abc").unwrap(),
            "web=abc; Path=/app; Domain=example.com; HttpOnly; SameSite=Strict"
        );
    }

    #[test]
    fn a_shorter_value_clears_the_parts_it_no_longer_fills() {
        let long = web().set(&"x".repeat(9000), CookieParts::default()).unwrap();
        let held = web().find(&headers(&sent_back(&long))).held();

        let short = web().set("short", held).unwrap();

        assert_eq!(long.len(), 3);
        assert_eq!(sent_back(&short), "__Host-web=1short; __Host-web.1=; __Host-web.2=");
    }

    #[test]
    fn cookies_stay_below_the_limit_of_browsers() {
        let max = MAX_PARTS * PART_LEN - 1;
        let fields = web().set(&"x".repeat(max), CookieParts::default()).unwrap();

        assert_eq!(fields.len(), 8);
        assert!(fields.iter().all(|field| field.len() < 4096));
        assert_eq!(web().set(&"x".repeat(max + 1), CookieParts::default()), Err(TooLarge));
    }

    #[test]
    fn every_value_of_a_cookie_that_occurs_twice_is_tried() {
        let texts = |cookies: &str| -> Vec<String> {
            let headers = headers(cookies);
            let presented = web().find(&headers);
            presented.texts().map(|text| String::from_utf8(text.to_vec()).unwrap()).collect()
        };

        assert_eq!(texts("__Host-web=1a; __Host-web=1a"), ["a"]);
        assert_eq!(texts("__Host-web=1a; x=y; __Host-web=1b"), ["a", "b"]);
        assert_eq!(
            texts("__Host-web=2a; __Host-web.1=b; __Host-web=2c; __Host-web.1=d"),
            ["ab", "cd", "cb", "ad"]
        );
        assert_eq!(texts("__Host-web=2a; __Host-web.1=b; __Host-web=1c"), ["ab", "c"]);
        let mut two_fields = headers("__Host-web=1a");
        two_fields.append(COOKIE, HeaderValue::from_static("__Host-web=1b"));
        assert_eq!(web().find(&two_fields).texts().count(), 2);
        assert_eq!(web().find(&two_fields).plain_values().collect::<Vec<_>>(), ["1a", "1b"]);
    }

    #[test]
    fn the_number_of_values_that_are_tried_is_bounded() {
        let many = (0..1000)
            .fold(String::new(), |all, n| all + &format!("__Host-web=2{n}; __Host-web.1={n}; "));

        assert!(web().find(&headers(&many)).texts().count() <= MAX_CANDIDATES);
    }

    #[test]
    fn a_value_with_a_missing_part_is_ignored() {
        for cookies in [
            "__Host-web=2a",
            "__Host-web=2a; __Host-web=2b",
            "__Host-web=2a; __Host-web=",
            "__Host-web.1=b",
            "__Host-web.1=b; __Host-web.1=c",
            "__Host-web=3a; __Host-web.2=c",
            "__Host-web=3a; __Host-web=3b; __Host-web.1=c; __Host-web.1=d",
        ] {
            assert!(web().find(&headers(cookies)).texts().next().is_none(), "{cookies}");
        }
    }

    #[test]
    fn a_stale_part_beyond_the_last_is_not_read() {
        let presented = headers("__Host-web=2a; __Host-web.1=b; __Host-web.2=stale");
        assert_eq!(&*web().find(&presented).texts().next().unwrap(), b"ab");
    }

    #[test]
    fn odd_counts_and_names_are_not_read() {
        for cookies in
            ["__Host-web=0a", "__Host-web=9a", "__Host-web=", "__Host-web", "__host-web=1a", "x"]
        {
            assert!(web().find(&headers(cookies)).texts().next().is_none(), "{cookies}");
        }
        assert!(web().find(&headers("__Host-web.8=1; __Host-web2=1; __Host-web.=1")).is_empty());
    }

    #[test]
    fn upstreams_receive_the_rest_unchanged() {
        for (sent, seen) in [
            ("__Host-web=1a", None),
            ("a=1; __Host-web=2a; b=\"2\"; __Host-web.1=b;c= 3", Some("a=1; b=\"2\";c= 3")),
            ("__Host-web=1a; a=1", Some("a=1")),
            ("a=1;  __Host-webshop=x;;b", Some("a=1;  __Host-webshop=x;;b")),
            (" a=1 ", Some(" a=1 ")),
            ("a =1; __Host-web =1a;\t__Host-web.1\t=b", Some("a =1")),
        ] {
            let mut headers = headers(sent);
            strip(&mut headers, |name| web().owns(name));
            assert_eq!(headers.get(COOKIE).map(|v| v.to_str().unwrap()), seen, "{sent}");
        }
    }

    #[test]
    fn every_cookie_field_is_stripped() {
        let mut fields = headers("__Host-web=1a");
        fields.append(COOKIE, HeaderValue::from_static("a=1; __Host-web.1=b"));
        fields.append(COOKIE, HeaderValue::from_static("b=2"));

        strip(&mut fields, |name| web().owns(name));

        assert_eq!(fields.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1", "b=2"]);
    }

    proptest! {
        #[test]
        fn a_value_that_was_set_is_found(text in "[-_.A-Za-z0-9]{0,9000}", other in "[a-z]=[a-z\";, ]{0,20}") {
            let fields = web().set(&text, CookieParts::default()).unwrap();
            let headers = headers(&format!("{other}; {}", sent_back(&fields)));

            let presented = web().find(&headers);
            prop_assert_eq!(&*presented.texts().next().expect("complete"), text.as_bytes());
        }

        #[test]
        fn any_cookie_field_is_parsed_without_panic(value in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                let mut headers = HeaderMap::from_iter([(COOKIE, value)]);
                let _ = web().find(&headers).texts().count();
                strip(&mut headers, |name| web().owns(name));
                prop_assert!(web().find(&headers).is_empty());
            }
        }

        #[test]
        fn stripping_removes_all_parts(cookies in "((__Host-web(\\.[0-9])?|a|b)=[a-z]{0,3};? ?){0,8}") {
            let mut headers = headers(&cookies);
            strip(&mut headers, |name| web().owns(name));
            prop_assert!(web().find(&headers).is_empty());
        }
    }
}
