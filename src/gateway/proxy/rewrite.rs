//! Path rewriting.
//!
//! A rewrite moves parts of the path, as the client wrote them, into another path. A prefix is removed by whole
//! segments, so that stripping `/api` never shortens `/apiary`. A path that cannot be rewritten is refused, never
//! forwarded as it is.

use std::borrow::Cow;

use http::Uri;
use http::uri::PathAndQuery;

use crate::base::raw_target::MAX_TARGET_BYTES;
use crate::config::route::{PathPattern, PathRewrite, Rewrite, Segment};
use crate::gateway::Rejection;
use crate::gateway::request::path;
use crate::gateway::request::path_readings::{self, PathReadings};

/// A route's rewrite, with the path patterns that define its parameters.
#[derive(Debug)]
pub(crate) struct TargetRewriter {
    rewrite: Rewrite,
    patterns: Vec<PathPattern>,
}

impl TargetRewriter {
    /// Creates the rewriter of a route with `patterns`. The most specific one that a path fits defines the parameters, as it finds
    /// the route.
    pub(crate) fn new(rewrite: Rewrite, mut patterns: Vec<PathPattern>) -> Self {
        patterns.sort_by_cached_key(|pattern| {
            let kind = |segment: &Segment| matches!(segment, Segment::Parameter(_)).into();
            let rest = pattern.rest.then_some(2_u8);
            pattern.segments.iter().map(kind).chain(rest).collect::<Vec<_>>()
        });
        Self { rewrite, patterns }
    }

    /// Rewrites the path of a target; all readings of the path match the route. The query stays.
    ///
    /// # Errors
    ///
    /// [`Rejection::AmbiguousPath`] if upstreams could read the new path differently from the old one,
    /// [`Rejection::TargetTooLong`] if it is too long.
    pub(crate) fn rewrite(&self, uri: &mut Uri) -> Result<(), Rejection> {
        if self.rewrite == Rewrite::Keep {
            return Ok(());
        }
        let old = uri.path();
        let new = self.path(old).ok_or(Rejection::AmbiguousPath)?;
        // A template may put an empty part between two slashes.
        let becomes_reference = new.starts_with("//") && !old.starts_with("//");
        if becomes_reference || (!path::is_plain(old) && !self.reads_alike(old, &new)) {
            return Err(Rejection::AmbiguousPath);
        }
        set_path(uri, &new)
    }

    fn path(&self, path: &str) -> Option<String> {
        match &self.rewrite {
            Rewrite::Keep => Some(path.to_owned()),
            Rewrite::Prefix { strip, add } => {
                let joined = format!("{add}{}", without_prefix(path, strip)?);
                Some(if joined.is_empty() { "/".to_owned() } else { joined })
            }
            Rewrite::Path(parts) => {
                let captured = self.captured(path)?;
                let mut out = String::new();
                for part in parts {
                    match part {
                        PathRewrite::Text(text) => out.push_str(text),
                        PathRewrite::Parameter(name) => out.push_str(captured.parameter(name)),
                        PathRewrite::Rest => out.push_str(captured.rest),
                    }
                }
                Some(out)
            }
        }
    }

    fn captured<'a>(&'a self, path: &'a str) -> Option<Captures<'a>> {
        self.patterns.iter().find_map(|pattern| capture(pattern, path))
    }

    /// Whether the parts taken from the path `old` mean the same in each of its readings, and stay in their place in
    /// `new`.
    fn reads_alike(&self, old: &str, new: &str) -> bool {
        let (Ok(old_path), Ok(new_path)) = (path_readings::read(old), path_readings::read(new))
        else {
            return false;
        };
        let (readings, new_readings) = (old_path.readings, new_path.readings);
        // `/api//host/a` without `/api` would be a reference to another host, and so would `/api/%2fhost/a`.
        let names_host = |readings: &PathReadings| readings.as_reference().next().is_some();
        if names_host(&new_readings) && !names_host(&readings) {
            return false;
        }
        let mut all = readings.others().chain([readings.forwarded(old)]);
        match &self.rewrite {
            Rewrite::Keep => true,
            Rewrite::Prefix { strip, .. } => {
                let stays = without_prefix(old, strip).is_some_and(never_climbs);
                stays && all.all(|reading| without_prefix(reading, strip).is_some())
            }
            Rewrite::Path(parts) => {
                let Some(written) = self.captured(old) else { return false };
                let alike = |reading: &str| {
                    self.captured(reading).is_some_and(|read| {
                        parts.iter().all(|part| match part {
                            PathRewrite::Parameter(name) => {
                                value(read.parameter(name)) == value(written.parameter(name))
                            }
                            PathRewrite::Text(_) | PathRewrite::Rest => true,
                        })
                    })
                };
                let stays = !parts.contains(&PathRewrite::Rest) || never_climbs(written.rest);
                let new = new_readings.others().chain([new_readings.forwarded(new)]);
                stays && all.all(alike) && self.are_expected(new, readings.all(old))
            }
        }
    }

    /// Whether each reading of a `new` path is what the template makes of a reading of the `old` one: text of the
    /// template after a part with a path parameter, as in `/{id}-public` of `/7;a`, would be cut off with it.
    fn are_expected<'p>(
        &self,
        mut new: impl Iterator<Item = &'p str>,
        old: impl Iterator<Item = &'p str>,
    ) -> bool {
        let rewritten = |reading| path::canonical(&self.path(reading)?).ok().map(Cow::into_owned);
        let expected: Vec<_> = old.filter_map(rewritten).collect();
        new.all(|reading| expected.iter().any(|expected| expected == reading))
    }
}

/// Replaces the path of a target.
///
/// # Errors
///
/// [`Rejection::TargetTooLong`] above [`MAX_TARGET_BYTES`]. The target is unusable then.
pub(crate) fn set_path(uri: &mut Uri, path: &str) -> Result<(), Rejection> {
    let target = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    if target.len() > MAX_TARGET_BYTES {
        return Err(Rejection::TargetTooLong);
    }
    // Both parts come from a valid target.
    let target = PathAndQuery::try_from(target).map_err(|_| Rejection::BadRequest)?;
    let mut parts = core::mem::take(uri).into_parts();
    parts.path_and_query = Some(target);
    *uri = Uri::from_parts(parts).map_err(|_| Rejection::BadRequest)?;
    Ok(())
}

/// Whether `path` matches `pattern`.
pub(crate) fn is_valid_target(pattern: &PathPattern, path: &str) -> bool {
    capture(pattern, path).is_some()
}

/// Returns the rest of `path` after the literal segments of `prefix`: empty, or a slash and more.
fn without_prefix<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let mut left = path;
    for wanted in prefix.split('/').skip(1) {
        let segments = left.strip_prefix('/')?;
        let end = segments.find('/').unwrap_or(segments.len());
        if !is_literal(&segments[..end], wanted) {
            return None;
        }
        left = &segments[end..];
    }
    Some(left)
}

/// Whether a segment, in any spelling, is `literal`.
fn is_literal(segment: &str, literal: &str) -> bool {
    segment == literal || path::canonical(segment).is_ok_and(|segment| *segment == *literal)
}

/// Whether no reading of the rest after a prefix climbs above it.
fn never_climbs(rest: &str) -> bool {
    let path = format!("/{}", rest.strip_prefix('/').unwrap_or(rest));
    path_readings::read(&path).is_ok()
}

/// Returns the value of a segment: without escapes and path parameters.
fn value(segment: &str) -> Option<String> {
    let canonical = path::canonical(segment).ok()?;
    Some(path_readings::unescaped(&canonical).split(';').next()?.to_owned())
}

/// The captures of a pattern in one path.
struct Captures<'a> {
    parameters: Vec<(&'a str, &'a str)>,
    rest: &'a str,
}

impl Captures<'_> {
    fn parameter(&self, name: &str) -> &str {
        self.parameters
            .iter()
            .find(|(captured, _)| *captured == name)
            .map_or("", |(_, value)| value)
    }
}

fn capture<'a>(pattern: &'a PathPattern, path: &'a str) -> Option<Captures<'a>> {
    let mut left = Some(path.strip_prefix('/')?);
    let mut parameters = Vec::new();
    for segment in &pattern.segments {
        let (here, next) = match left?.split_once('/') {
            Some((here, next)) => (here, Some(next)),
            None => (left?, None),
        };
        match segment {
            Segment::Literal(text) if !is_literal(here, text) => return None,
            Segment::Literal(_) => {}
            Segment::Parameter(_) if here.is_empty() => return None,
            Segment::Parameter(name) => parameters.push((&**name, here)),
        }
        left = next;
    }
    match left {
        None => Some(Captures { parameters, rest: "" }),
        Some(rest) if pattern.rest => Some(Captures { parameters, rest }),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_stripped_by_whole_segments() {
        let target = TargetRewriter::new(
            Rewrite::Prefix { strip: "/api".into(), add: "/v1".into() },
            vec![],
        );

        assert_eq!(rewritten(&target, "/api/orders?a=b"), "/v1/orders?a=b");
        assert_eq!(rewritten(&target, "/api"), "/v1");
        assert_eq!(rewritten(&target, "/%61pi/b%20c"), "/v1/b%20c");
        assert_eq!(refused(&target, "/apiary"), Rejection::AmbiguousPath);
    }

    #[test]
    fn an_empty_path_becomes_the_root() {
        let target =
            TargetRewriter::new(Rewrite::Prefix { strip: "/api".into(), add: "".into() }, vec![]);

        assert_eq!(rewritten(&target, "/api?x"), "/?x");
        assert_eq!(rewritten(&target, "/api/"), "/");
    }

    #[test]
    fn a_path_is_built_from_captures() {
        let pattern = PathPattern {
            segments: vec![Segment::Literal("shops".into()), Segment::Parameter("shop".into())],
            rest: true,
        };
        let parts = vec![
            PathRewrite::Text("/s/".into()),
            PathRewrite::Parameter("shop".into()),
            PathRewrite::Text("/".into()),
            PathRewrite::Rest,
        ];
        let target = TargetRewriter::new(Rewrite::Path(parts), vec![pattern]);

        assert_eq!(rewritten(&target, "/shops/7/a/b?c"), "/s/7/a/b?c");
        assert_eq!(rewritten(&target, "/shops/7"), "/s/7/");
    }

    fn rewritten(target: &TargetRewriter, uri: &str) -> String {
        let mut uri: Uri = uri.parse().expect("a target");
        target.rewrite(&mut uri).expect("it can be rewritten");
        uri.to_string()
    }

    #[test]
    fn captures_stay_as_the_client_wrote_them() {
        let strip =
            TargetRewriter::new(Rewrite::Prefix { strip: "/npm".into(), add: "".into() }, vec![]);
        let user = PathPattern {
            segments: vec![Segment::Literal("user".into()), Segment::Parameter("name".into())],
            rest: false,
        };
        let parts =
            vec![PathRewrite::Text("/people/".into()), PathRewrite::Parameter("name".into())];
        let template = TargetRewriter::new(Rewrite::Path(parts), vec![user]);

        assert_eq!(rewritten(&strip, "/npm/@scope%2fname"), "/@scope%2fname");
        assert_eq!(rewritten(&strip, "/npm/a//b;c/\\"), "/a//b;c/\\");
        assert_eq!(rewritten(&template, "/user/%61;v=1"), "/people/%61;v=1");
    }

    #[test]
    fn a_rewritten_path_never_escapes_its_prefix() {
        let strip = TargetRewriter::new(
            Rewrite::Prefix { strip: "/api".into(), add: "/v1".into() },
            vec![],
        );
        let bare =
            TargetRewriter::new(Rewrite::Prefix { strip: "/api".into(), add: "".into() }, vec![]);
        let tenant =
            PathPattern { segments: vec![Segment::Parameter("tenant".into())], rest: true };
        let below = vec![PathRewrite::Text("/base/".into()), PathRewrite::Rest];
        let below = TargetRewriter::new(Rewrite::Path(below), vec![tenant.clone()]);
        let named = vec![PathRewrite::Text("/t/".into()), PathRewrite::Parameter("tenant".into())];
        let named = TargetRewriter::new(Rewrite::Path(named), vec![tenant]);

        for (target, path) in [
            (&strip, "/api/..%2fapi/x"),
            (&strip, "/api/..%5Cadmin"),
            (&strip, "/api/..;/admin"),
            (&bare, "/api//host/admin"),
            (&bare, "/api/\\\\host/admin"),
            (&bare, "/api/%2fhost/admin"),
            (&bare, "/api/%5C/host/admin"),
            (&bare, "/api/;x/host/admin"),
            (&below, "/a/..%2fb/c"),
            (&below, "/a/..;x/c"),
            (&named, "/a%2fb/c"),
        ] {
            assert_eq!(refused(target, path), Rejection::AmbiguousPath, "{path}");
        }
    }

    #[test]
    fn text_of_a_template_is_never_a_part_of_a_path_parameter() {
        let two = PathPattern {
            segments: vec![Segment::Parameter("a".into()), Segment::Parameter("b".into())],
            rest: false,
        };
        let parameter = |name: &str| PathRewrite::Parameter(name.into());
        let text = |text: &str| PathRewrite::Text(text.into());
        let public = vec![text("/t/"), parameter("a"), text("-public/"), parameter("b")];
        let joined = vec![text("/t/"), parameter("a"), parameter("b")];
        let last = vec![text("/t/x-"), parameter("a")];
        let [public, joined, last] = [public, joined, last]
            .map(|parts| TargetRewriter::new(Rewrite::Path(parts), vec![two.clone()]));

        for (target, path) in
            [(&public, "/secret;a/b"), (&public, "/secret%3Ba/b"), (&joined, "/a;/b")]
        {
            assert_eq!(refused(target, path), Rejection::AmbiguousPath, "{path}");
        }
        assert_eq!(rewritten(&public, "/a%20b/c;d"), "/t/a%20b-public/c;d");
        assert_eq!(rewritten(&joined, "/a:/b;c"), "/t/a:b;c");
        assert_eq!(rewritten(&last, "/a;v=1/b"), "/t/x-a;v=1");
    }

    #[test]
    fn the_most_specific_pattern_defines_the_parameters() {
        let literal = |text: &str| Segment::Literal(text.into());
        let x = || Segment::Parameter("x".into());
        let pattern = |segments: Vec<Segment>, rest| PathPattern { segments, rest };
        let patterns = vec![
            pattern(vec![x(), literal("b")], false),
            pattern(vec![literal("a"), x()], false),
            pattern(vec![literal("a")], true),
        ];
        let parts = vec![PathRewrite::Text("/t/".into()), PathRewrite::Parameter("x".into())];
        let target = TargetRewriter::new(Rewrite::Path(parts), patterns);

        assert_eq!(rewritten(&target, "/a/b"), "/t/b");
        assert_eq!(rewritten(&target, "/c/b"), "/t/c");
    }

    #[test]
    fn an_empty_rest_makes_no_reference_to_a_host() {
        let pattern = PathPattern { segments: vec![Segment::Parameter("a".into())], rest: true };
        let parts = vec![
            PathRewrite::Text("/".into()),
            PathRewrite::Rest,
            PathRewrite::Text("/".into()),
            PathRewrite::Parameter("a".into()),
        ];
        let target = TargetRewriter::new(Rewrite::Path(parts), vec![pattern]);

        assert_eq!(rewritten(&target, "/host/a"), "/a/host");
        assert_eq!(refused(&target, "/host"), Rejection::AmbiguousPath);
    }

    #[test]
    fn a_target_that_becomes_too_long_is_refused() {
        let target =
            TargetRewriter::new(Rewrite::Prefix { strip: "".into(), add: "/v1".into() }, vec![]);
        let longest = format!("/{}", "a".repeat(MAX_TARGET_BYTES - 4));

        assert_eq!(rewritten(&target, &longest).len(), MAX_TARGET_BYTES);
        assert_eq!(refused(&target, &format!("{longest}a")), Rejection::TargetTooLong);
        assert_eq!(refused(&target, &format!("{longest}?")), Rejection::TargetTooLong);
    }

    fn refused(target: &TargetRewriter, uri: &str) -> Rejection {
        let mut uri: Uri = uri.parse().expect("a target");
        target.rewrite(&mut uri).expect_err("it cannot be rewritten")
    }
}
