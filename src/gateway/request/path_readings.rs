//! The readings of one path: what a service makes of it that undoes escapes, takes `\` for `/`, merges empty
//! segments, cuts parameters off or resolves dots, in whatever order.
//!
//! A reading is one of the steps applied to another reading, until no step finds a new one. Bounded in number and
//! in bytes: a path beyond the bounds is refused, since nothing is known of the readings that were not looked at.

use std::borrow::Cow;

use super::path;
use super::path::BadPath;

/// Readings of one path that are compared; a path with more is refused.
pub(crate) const MAX_READINGS: usize = 64;
/// Bytes of all readings of one path; a path with more is refused.
const MAX_READING_BYTES: usize = 512 * 1024;

/// How services could read a path that is not plain. Empty for one that is: it is read as it is written.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct PathReadings {
    /// The first is the path as it is forwarded.
    as_path: Vec<String>,
    /// Those of a service that takes the segment behind a leading `//` for a host (RFC 3986 §4.2).
    as_reference: Vec<String>,
}

impl PathReadings {
    /// The readings of a path in [canonical](path::canonical) form.
    ///
    /// # Errors
    ///
    /// [`BadPath::Malformed`] if one of them climbs above the root, [`BadPath::TooManyReadings`] beyond the bounds.
    pub(crate) fn of(as_sent: String) -> Result<Self, BadPath> {
        let mut found = Discovered { bytes: as_sent.len(), readings: vec![as_sent] };
        found.collect(&STEPS[..AS_REFERENCE])?;
        let mut forwarded = path::resolve(&found.readings[0])?.into_owned();
        as_matched(&mut forwarded);
        let mut as_path = vec![forwarded];
        found.resolved_into(&mut as_path);
        let mut as_reference = Vec::new();
        if found.readings.iter().any(|reading| reading.starts_with("//")) {
            found.collect(&STEPS)?;
            found.resolved_into(&mut as_reference);
            as_reference.retain(|reading| !as_path.contains(reading));
        }
        Ok(Self { as_path, as_reference })
    }

    /// The one reading of a path that is not looked at further.
    pub(crate) fn only(reading: String) -> Self {
        Self { as_path: vec![reading], as_reference: Vec::new() }
    }

    /// All readings of the path, which is forwarded as `written`.
    pub(crate) fn all<'a>(&'a self, written: &'a str) -> impl Iterator<Item = &'a str> {
        [self.forwarded(written)].into_iter().chain(self.others()).chain(self.as_reference())
    }

    /// Whether the path is plain.
    pub(crate) fn is_empty(&self) -> bool {
        self.as_path.is_empty()
    }

    /// The path as it is forwarded, which is `written`.
    pub(crate) fn forwarded<'a>(&'a self, written: &'a str) -> &'a str {
        self.as_path.first().map_or(written, String::as_str)
    }

    /// The other readings of the path as a path.
    pub(crate) fn others(&self) -> impl Iterator<Item = &str> {
        self.as_path.iter().skip(1).map(String::as_str)
    }

    /// The readings of a service that takes the path for a reference to another host.
    pub(crate) fn as_reference(&self) -> impl Iterator<Item = &str> {
        self.as_reference.iter().map(String::as_str)
    }
}

/// Readings found so far.
struct Discovered {
    readings: Vec<String>,
    bytes: usize,
}

impl Discovered {
    /// Applies `steps` to every reading, those that come of it included.
    fn collect(&mut self, steps: &[Transformation]) -> Result<(), BadPath> {
        let mut next = 0;
        while next < self.readings.len() {
            for step in steps {
                let Cow::Owned(reading) = step(&self.readings[next])? else { continue };
                if self.readings.contains(&reading) {
                    continue;
                }
                self.bytes += reading.len();
                if self.readings.len() == MAX_READINGS || self.bytes > MAX_READING_BYTES {
                    return Err(BadPath::TooManyReadings);
                }
                self.readings.push(reading);
            }
            next += 1;
        }
        Ok(())
    }

    /// Adds those without dot segments to `path_readings`, in the form in which routes are matched.
    fn resolved_into(&self, readings: &mut Vec<String>) {
        for reading in &self.readings {
            if matches!(path::resolve(reading), Ok(Cow::Borrowed(_))) {
                let mut reading = reading.clone();
                as_matched(&mut reading);
                if !readings.contains(&reading) {
                    readings.push(reading);
                }
            }
        }
    }
}

/// A backslash that is no slash is data, and matched as its escape.
fn as_matched(reading: &mut String) {
    if reading.contains('\\') {
        *reading = reading.replace('\\', "%5C");
    }
}

/// One thing that a service may do to a path; borrowed if it changes nothing.
type Transformation = fn(&str) -> Result<Cow<'_, str>, BadPath>;

const STEPS: [Transformation; 7] = [
    path::resolve,
    |path| Ok(unescaped(path)),
    // Segments are often told apart first and unescaped then.
    |path| Ok(unescape(path, |byte| byte != b'/')),
    |path| Ok(if path.contains('\\') { path.replace('\\', "/").into() } else { path.into() }),
    |path| Ok(if path.contains("//") { merged(path).into() } else { path.into() }),
    |path| Ok(if path.contains(';') { without_parameters(path).into() } else { path.into() }),
    without_authority,
];
/// Where the steps begin that only a service takes which reads a path as a reference.
const AS_REFERENCE: usize = 6;

/// A path or segment in canonical form without the escapes of delimiters.
pub(crate) fn unescaped(path: &str) -> Cow<'_, str> {
    unescape(path, |_| true)
}

/// Undoes the escapes of those delimiters that are `wanted`. No other escape makes a difference to a reading.
fn unescape(path: &str, wanted: impl Fn(u8) -> bool) -> Cow<'_, str> {
    let delimiter = |escape: &str| {
        let byte = u8::from_str_radix(escape.get(1..3)?, 16).ok()?;
        (path::is_delimiter(byte) && wanted(byte)).then_some(byte)
    };
    let mut out = String::new();
    let mut left = path;
    let mut changed = false;
    while let Some(at) = left.find('%') {
        let (before, escape) = left.split_at(at);
        out.push_str(before);
        let end = escape.len().min(3);
        match delimiter(escape) {
            Some(byte) => {
                out.push(char::from(byte));
                changed = true;
            }
            None => out.push_str(&escape[..end]),
        }
        left = &escape[end..];
    }
    if !changed {
        return Cow::Borrowed(path);
    }
    out.push_str(left);
    Cow::Owned(out)
}

fn merged(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for character in path.chars() {
        if character != '/' || !out.ends_with('/') {
            out.push(character);
        }
    }
    out
}

fn without_parameters(path: &str) -> String {
    let cut = |segment: &str| segment.split(';').next().unwrap_or_default().to_owned();
    path.split('/').map(cut).collect::<Vec<_>>().join("/")
}

/// The path behind a leading `//host`, as a URL parser sees it that takes `//host/a` for a reference.
#[expect(clippy::unnecessary_wraps, reason = "one of the steps, which may fail")]
fn without_authority(path: &str) -> Result<Cow<'_, str>, BadPath> {
    if !path.starts_with("//") {
        return Ok(Cow::Borrowed(path));
    }
    let reference = path.trim_start_matches('/');
    let path = reference.find('/').map_or("/", |at| &reference[at..]);
    Ok(Cow::Owned(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gateway::request::path::{canonical, read};

    #[test]
    fn every_way_to_read_a_path_is_found() {
        for (path, expected) in [
            ("/a%20b", &["/a%20b"][..]),
            ("/%61", &["/a"]),
            ("/a%3Ab", &["/a%3Ab", "/a:b"]),
            ("/a%2fb", &["/a%2Fb", "/a/b"]),
            ("/a\\b", &["/a%5Cb", "/a/b"]),
            ("/a;x/b", &["/a;x/b", "/a/b"]),
            ("/a//b", &["/a//b", "/a/b"]),
            ("/a/;x", &["/a/;x", "/a/"]),
            ("/a//../b", &["/a/b", "/b"]),
            ("/a%252fb", &["/a%252fb"]),
            ("/p/..%2fa", &["/p/..%2Fa", "/a"]),
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
        assert_eq!(read(&twisted).map(|_| ()), Err(BadPath::TooManyReadings));
        let heavy = format!("/{}", "a%2fb%3b{{{{//".repeat(4600));
        assert_eq!(read(&heavy).map(|_| ()), Err(BadPath::TooManyReadings));
    }

    fn all(path: &str) -> Vec<String> {
        let readings = read(path).expect("a path").readings;
        let mut all = vec![readings.forwarded(path).to_owned()];
        all.extend(readings.others().map(str::to_owned));
        all
    }

    /// A service that does what the numbers say, one after the other, to bytes that it does not understand.
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
                _ => path,
            };
        }
        with_dots_resolved(&path)
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

    /// Dots as a service resolves them that has not unescaped them before: unreserved characters count as themselves.
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
        /// Whatever a service does, in whatever order: what it comes to is among the readings, or the path is refused.
        #[test]
        fn no_service_reads_what_the_gateway_has_not_compared(
            path in "/([a-b./;\\\\]|//|%2e|%2f|%5C|%3b|%41|%3A){0,10}",
            does in prop::collection::vec(0_u8..5, 0..7),
        ) {
            if let Ok(found) = read(&path) {
                let seen = service(&path, &does);
                prop_assert!(seen.is_some(), "a climb above the root is not refused");
                // Compared as a router would that knows bytes: by what stands there.
                let seen = seen.unwrap();
                let mut known: Vec<String> = vec![found.readings.forwarded(&found.written).to_owned()];
                known.extend(found.readings.others().map(str::to_owned));
                let seen = canonical(&seen).expect("a path").replace('\\', "%5C");
                prop_assert!(known.contains(&seen), "{seen} is not among {known:?}");
            }
        }
    }
}
