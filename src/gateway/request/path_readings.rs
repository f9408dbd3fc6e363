//! The readings of one path: the paths that an upstream may derive from it by decoding escapes, treating `\` as `/`,
//! merging empty segments, cutting path parameters or resolving dot segments, in any order.
//!
//! The readings are the closure under these transformations. Their number and bytes are bounded: a path beyond the
//! bounds is refused, since the readings beyond them are unknown.

use std::borrow::Cow;

use super::path;
use super::path_error::PathError;

/// Readings of one path that the gateway compares; a path with more is refused. One with all of `%2F`, `;`, `\` and `//` has
/// fewer.
pub(crate) const MAX_READINGS: usize = 32;
/// Bytes of all readings of one path beyond four times its own; a path with more is refused. They are listed before any limit
/// applies.
const MAX_READING_BYTES: usize = 32 * 1024;

/// The readings of a path; empty for a plain path, which is read as written.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct PathReadings {
    /// The first is the path as forwarded.
    as_path: Vec<String>,
    /// The readings of an upstream that takes the segment after a leading `//` for a host (RFC 3986 §4.2).
    as_reference: Vec<String>,
}

impl PathReadings {
    /// Lists the readings of a path in [canonical](path::canonical) form.
    ///
    /// # Errors
    ///
    /// [`PathError::Malformed`] if a reading climbs above the root, [`PathError::TooManyReadings`] beyond the bounds.
    pub(crate) fn of(as_sent: String) -> Result<Self, PathError> {
        let mut as_path = derived(&as_sent, &STEPS[..AS_REFERENCE])?;
        let mut as_reference = Vec::new();
        if as_path.iter().any(|reading| reading.starts_with("//")) {
            as_reference = derived(&as_sent, &STEPS)?;
            as_reference.retain(|reading| !as_path.contains(reading));
        }
        as_path.iter_mut().chain(&mut as_reference).for_each(as_matched);
        Ok(Self { as_path, as_reference })
    }

    /// Returns the single reading of a target that has no others.
    pub(crate) fn only(reading: String) -> Self {
        Self { as_path: vec![reading], as_reference: Vec::new() }
    }

    /// Returns all readings of the path, which is forwarded as `written`.
    pub(crate) fn all<'a>(&'a self, written: &'a str) -> impl Iterator<Item = &'a str> {
        [self.forwarded(written)].into_iter().chain(self.others()).chain(self.as_reference())
    }

    /// Whether the path is plain.
    pub(crate) fn is_empty(&self) -> bool {
        self.as_path.is_empty()
    }

    /// Returns the path as it is forwarded, which is `written`.
    pub(crate) fn forwarded<'a>(&'a self, written: &'a str) -> &'a str {
        self.as_path.first().map_or(written, String::as_str)
    }

    /// Returns the other readings of the path as a path.
    pub(crate) fn others(&self) -> impl Iterator<Item = &str> {
        self.as_path.iter().skip(1).map(String::as_str)
    }

    /// Returns the readings of an upstream that parses the path as a reference to another host.
    pub(crate) fn as_reference(&self) -> impl Iterator<Item = &str> {
        self.as_reference.iter().map(String::as_str)
    }
}

/// Returns what an upstream that applies `steps` derives from a path, the path as forwarded first.
///
/// An upstream may leave the dot segments that other steps uncover: `/admin%2f..` is `/admin/..`, a path below `/admin`, to a
/// framework that decodes alone. Those that the client wrote are resolved before the path is forwarded; what a reader in
/// front of the gateway derives from them counts with its dot segments resolved.
fn derived(as_sent: &str, steps: &[Transformation]) -> Result<Vec<String>, PathError> {
    let forwarded = path::resolve(as_sent)?;
    let mut readings = closure(forwarded.to_string(), steps)?;
    if matches!(forwarded, Cow::Owned(_)) {
        for reading in closure(as_sent.to_owned(), steps)? {
            if matches!(path::resolve(&reading), Ok(Cow::Borrowed(_)))
                && !readings.contains(&reading)
            {
                readings.push(reading);
            }
        }
    }
    Ok(readings)
}

/// Applies `steps` to a path, and to every reading that they produce.
fn closure(path: String, steps: &[Transformation]) -> Result<Vec<String>, PathError> {
    let max = MAX_READING_BYTES + 4 * path.len();
    let mut bytes = path.len();
    let mut readings = vec![path];
    let mut next = 0;
    while next < readings.len() {
        for step in steps {
            let Cow::Owned(reading) = step(&readings[next])? else { continue };
            if readings.contains(&reading) {
                continue;
            }
            bytes += reading.len();
            if readings.len() == MAX_READINGS || bytes > max {
                return Err(PathError::TooManyReadings);
            }
            readings.push(reading);
        }
        next += 1;
    }
    Ok(readings)
}

/// Escapes backslashes: one that no step turned into a slash is data.
fn as_matched(reading: &mut String) {
    if reading.contains('\\') {
        *reading = reading.replace('\\', "%5C");
    }
}

/// One transformation that an upstream may apply to a path; borrowed if it changes nothing.
type Transformation = fn(&str) -> Result<Cow<'_, str>, PathError>;

const STEPS: [Transformation; 8] = [
    path::resolve,
    |path| Ok(unescaped(path)),
    // Many upstreams split segments first and decode them afterwards.
    |path| Ok(unescape(path, |byte| byte != b'/')),
    |path| Ok(if path.contains('\\') { path.replace('\\', "/").into() } else { path.into() }),
    |path| Ok(if path.contains("//") { merged(path).into() } else { path.into() }),
    |path| Ok(if path.contains(';') { without_parameters(path).into() } else { path.into() }),
    |path| Ok(without_last_parameters(path)),
    without_authority,
];
/// The index of the steps that only an upstream applies which parses a path as a reference.
const AS_REFERENCE: usize = 7;

/// Returns a path or segment in canonical form with the escapes of delimiters decoded.
pub(crate) fn unescaped(path: &str) -> Cow<'_, str> {
    unescape(path, |_| true)
}

/// Decodes the escapes of delimiters that are `wanted`. No other escape changes a reading.
fn unescape(path: &str, wanted: impl Fn(u8) -> bool) -> Cow<'_, str> {
    let delimiter = |at: usize| {
        let byte = u8::from_str_radix(path.get(at + 1..at + 3)?, 16).ok()?;
        (path::is_delimiter(byte) && wanted(byte)).then_some((at, byte))
    };
    let mut found = memchr::memchr_iter(b'%', path.as_bytes()).filter_map(delimiter).peekable();
    if found.peek().is_none() {
        return Cow::Borrowed(path);
    }
    let mut out = String::with_capacity(path.len());
    let mut copied = 0;
    for (at, byte) in found {
        out.push_str(&path[copied..at]);
        out.push(char::from(byte));
        copied = at + "%2F".len();
    }
    out.push_str(&path[copied..]);
    Cow::Owned(out)
}

fn merged(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut after_slash = false;
    for character in path.chars() {
        if character != '/' || !after_slash {
            out.push(character);
        }
        after_slash = character == '/';
    }
    out
}

fn without_parameters(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for (number, segment) in path.split('/').enumerate() {
        if number > 0 {
            out.push('/');
        }
        out.push_str(&segment[..segment.find(';').unwrap_or(segment.len())]);
    }
    out
}

/// Returns the path without the parameters of its last segment: the only ones that RFC 2396 parsers such as Python's `urlparse` know.
fn without_last_parameters(path: &str) -> Cow<'_, str> {
    let last = path.rfind('/').map_or(0, |at| at + 1);
    match path[last..].find(';') {
        Some(at) => Cow::Owned(path[..last + at].to_owned()),
        None => Cow::Borrowed(path),
    }
}

/// Returns the path after a leading `//host`, as a URL parser derives it that takes `//host/a` for a reference.
#[expect(clippy::unnecessary_wraps, reason = "one of the steps, which may fail")]
fn without_authority(path: &str) -> Result<Cow<'_, str>, PathError> {
    if !path.starts_with("//") {
        return Ok(Cow::Borrowed(path));
    }
    let reference = path.trim_start_matches('/');
    let path = reference.find('/').map_or("/", |at| &reference[at..]);
    Ok(Cow::Owned(path.to_owned()))
}

/// A path that may be matched and forwarded.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Path<'a> {
    /// The path as the client wrote it, without dot segments.
    pub written: Cow<'a, str>,
    /// The readings of the path.
    pub readings: PathReadings,
}

/// Resolves the dot segments of `text`, and lists its readings.
///
/// # Errors
///
/// [`PathError::Malformed`] for a control character, raw or escaped, a raw space, `#` or `?`, a malformed or overlong
/// escape, and a path that climbs above the root in any reading. [`PathError::TooManyReadings`] for one with more than
/// [`MAX_READINGS`].
pub(crate) fn read(text: &str) -> Result<Path<'_>, PathError> {
    if path::is_plain(text) {
        return Ok(Path { written: Cow::Borrowed(text), readings: PathReadings::default() });
    }
    let as_sent = path::canonical(text)?;
    let readings = PathReadings::of(as_sent.into_owned())?;
    Ok(Path { written: path::resolve(text)?, readings })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gateway::request::path::canonical;

    #[test]
    fn all_readings_of_a_path_are_listed() {
        for (path, expected) in [
            ("/a%20b", &["/a%20b"][..]),
            ("/%61", &["/a"]),
            ("/a%3Ab", &["/a%3Ab", "/a:b"]),
            ("/a%2fb", &["/a%2Fb", "/a/b"]),
            ("/a\\b", &["/a%5Cb", "/a/b"]),
            ("/a;x/b", &["/a;x/b", "/a/b"]),
            ("/a//b", &["/a//b", "/a/b"]),
            ("/a/;x", &["/a/;x", "/a/"]),
            ("/a;x/b;y", &["/a;x/b;y", "/a;x/b", "/a/b"]),
            ("/a//../b", &["/a/b", "/b"]),
            ("/a%252fb", &["/a%252fb"]),
            ("/p/..%2fa", &["/p/..%2Fa", "/p/../a", "/a"]),
            ("/p%2f..", &["/p%2F..", "/p/..", "/"]),
            ("/p\\.", &["/p%5C.", "/p/.", "/p/"]),
            ("/a/..;x", &["/a/..;x", "/a/..", "/"]),
            ("/./a%2f.", &["/a%2F.", "/a/.", "/a/"]),
            ("/x%3Ay/a%2Fb", &["/x%3Ay/a%2Fb", "/x:y/a/b", "/x:y/a%2Fb"]),
        ] {
            let mut found = all(path);
            let mut expected: Vec<_> = expected.iter().map(|&path| path.to_owned()).collect();
            assert_eq!(found[0], expected[0], "{path}: what is forwarded comes first");
            found.sort_unstable();
            expected.sort_unstable();
            assert_eq!(found, expected, "{path}");
        }
    }

    #[test]
    fn a_leading_double_slash_may_be_taken_for_a_host() {
        let readings = read("//host/a").expect("a path").readings;

        assert_eq!(readings.forwarded(""), "//host/a");
        assert_eq!(readings.others().collect::<Vec<_>>(), ["/host/a"]);
        assert_eq!(readings.as_reference().collect::<Vec<_>>(), ["/a"]);
        assert!(read("/a//b").expect("a path").readings.as_reference().next().is_none());
    }

    #[test]
    fn a_path_of_too_many_readings_is_refused() {
        let long = format!("/{}", "a%2f".repeat(200));
        assert!(read(&long).is_ok());
        let twisted = "/a//../b;/..%2f%5c..;x//c\\..%2f;%3b/d//..;".repeat(8);
        let twisted = format!("/{}{twisted}", "a/b/c/d/e/f/g/h/".repeat(40));
        assert_eq!(read(&twisted).map(|_| ()), Err(PathError::TooManyReadings));
        let heavy = format!("/{}", "a%2fb%3b{{{{//".repeat(4600));
        assert_eq!(read(&heavy).map(|_| ()), Err(PathError::TooManyReadings));
    }

    fn all(path: &str) -> Vec<String> {
        let readings = read(path).expect("a path").readings;
        let mut all = vec![readings.forwarded(path).to_owned()];
        all.extend(readings.others().map(str::to_owned));
        all
    }

    /// Applies the transformations numbered in `does`, in order, to bytes that the upstream does not interpret.
    fn service(path: &str, does: &[u8]) -> Option<String> {
        let mut path = path.to_owned();
        let mut unescaped = false;
        for &what in does {
            path = match what {
                0 if !unescaped => {
                    unescaped = true;
                    percent_decoded(&path)
                }
                1 => path.replace('\\', "/"),
                2 => {
                    while path.contains("//") {
                        path = path.replace("//", "/");
                    }
                    path
                }
                3 => path
                    .split('/')
                    .map(|s| s.split(';').next().unwrap())
                    .collect::<Vec<_>>()
                    .join("/"),
                4 => with_dots_resolved(&path)?,
                5 => {
                    let (before, last) = path.rsplit_once('/').unwrap();
                    format!("{before}/{}", last.split(';').next().unwrap())
                }
                _ => path,
            };
        }
        Some(path)
    }

    fn percent_decoded(path: &str) -> String {
        let mut out = String::new();
        let mut left = path;
        while let Some((before, escape)) = left.split_once('%') {
            out.push_str(before);
            out.push(char::from(u8::from_str_radix(&escape[..2], 16).unwrap()));
            left = &escape[2..];
        }
        out + left
    }

    /// Resolves dot segments as an upstream that has not decoded the path before: unreserved characters count as
    /// themselves.
    fn with_dots_resolved(path: &str) -> Option<String> {
        let mut kept = Vec::new();
        let segments: Vec<_> = path[1..].split('/').collect();
        for (at, segment) in segments.iter().enumerate() {
            let last = at + 1 == segments.len();
            match segment.replace("%2e", ".").replace("%2E", ".").as_str() {
                "." if last => kept.push(""),
                "." => {}
                ".." => {
                    kept.pop()?;
                    if last {
                        kept.push("");
                    }
                }
                _ => kept.push(segment),
            }
        }
        Some(format!("/{}", kept.join("/")))
    }

    proptest! {
        /// The path an upstream derives, in any order of steps, is among the readings, or the path is refused. A reader in front
        /// of the gateway resolves dot segments in the end; an upstream may leave those of the path that it is sent.
        #[test]
        fn every_path_an_upstream_derives_is_among_the_readings(
            path in "/([a-b./;\\\\]|//|%2e|%2f|%5C|%3b|%41|%3A){0,10}",
            does in prop::collection::vec(0_u8..6, 0..7),
        ) {
            if let Ok(found) = read(&path) {
                let mut known: Vec<String> = vec![found.readings.forwarded(&found.written).to_owned()];
                known.extend(found.readings.others().map(str::to_owned));
                let in_front = service(&path, &does).and_then(|seen| with_dots_resolved(&seen));
                for seen in [in_front, service(&found.written, &does)] {
                    prop_assert!(seen.is_some(), "a climb above the root is not refused");
                    // Compared as a router that compares bytes would.
                    let seen = seen.unwrap();
                    let seen = canonical(&seen).expect("a path").replace('\\', "%5C");
                    prop_assert!(known.contains(&seen), "{seen} is not among {known:?}");
                }
            }
        }
    }
}
