//! What becomes of a path on its way to the service.
//!
//! It starts from the normal form and ends in it: segments are cut at their
//! slashes, so that `/api` never takes away the beginning of `/apiary`.

use std::fmt::Write as _;

use http::Uri;
use http::uri::PathAndQuery;

use crate::config::route::{PathPart, PathPattern, Rewrite, Segment};

/// A route's rewrite, with the patterns that say what `{x}` is.
#[derive(Debug)]
pub(super) struct Target {
    rewrite: Rewrite,
    patterns: Vec<PathPattern>,
}

impl Target {
    /// `patterns` are the route's own.
    pub(super) fn new(rewrite: Rewrite, patterns: Vec<PathPattern>) -> Self {
        Self { rewrite, patterns }
    }

    /// Changes a target whose path is in normal form. The query stays.
    pub(super) fn rewrite(&self, uri: &mut Uri) {
        if let Some(path) = self.path(uri.path()) {
            set_path(uri, &path);
        }
    }

    fn path(&self, path: &str) -> Option<String> {
        match &self.rewrite {
            Rewrite::Keep => None,
            Rewrite::Prefix { strip, add } => {
                let rest = path
                    .strip_prefix(&**strip)
                    .filter(|rest| rest.is_empty() || rest.starts_with('/'));
                let joined = format!("{add}{}", rest.unwrap_or(path));
                Some(if joined.is_empty() { "/".to_owned() } else { joined })
            }
            Rewrite::Path(parts) => {
                let captured = self.patterns.iter().find_map(|pattern| capture(pattern, path))?;
                let mut out = String::new();
                for part in parts {
                    match part {
                        PathPart::Text(text) => out.push_str(text),
                        PathPart::Parameter(name) => out.push_str(captured.parameter(name)),
                        PathPart::Rest => out.push_str(captured.rest),
                    }
                }
                Some(out)
            }
        }
    }
}

/// Puts `path` in place of a target's path.
pub(super) fn set_path(uri: &mut Uri, path: &str) {
    let mut target = path.to_owned();
    if let Some(query) = uri.query() {
        let _ = write!(target, "?{query}");
    }
    // Both halves were parts of a valid target; if they were not one together, the old one stays.
    if let Ok(target) = PathAndQuery::try_from(target) {
        let mut parts = core::mem::take(uri).into_parts();
        parts.path_and_query = Some(target);
        *uri = Uri::from_parts(parts).unwrap_or_default();
    }
}

/// Whether `path`, in normal form, fits `pattern`.
pub(super) fn fits(pattern: &PathPattern, path: &str) -> bool {
    capture(pattern, path).is_some()
}

/// What a pattern's places stand for in one path.
struct Captured<'a> {
    parameters: Vec<(&'a str, &'a str)>,
    rest: &'a str,
}

impl Captured<'_> {
    fn parameter(&self, name: &str) -> &str {
        self.parameters.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }
}

fn capture<'a>(pattern: &'a PathPattern, path: &'a str) -> Option<Captured<'a>> {
    let mut left = Some(path.strip_prefix('/')?);
    let mut parameters = Vec::new();
    for segment in &pattern.segments {
        let (here, next) = match left?.split_once('/') {
            Some((here, next)) => (here, Some(next)),
            None => (left?, None),
        };
        match segment {
            Segment::Literal(text) if **text != *here => return None,
            Segment::Literal(_) => {}
            Segment::Parameter(_) if here.is_empty() => return None,
            Segment::Parameter(name) => parameters.push((&**name, here)),
        }
        left = next;
    }
    match left {
        None => Some(Captured { parameters, rest: "" }),
        Some(rest) if pattern.rest => Some(Captured { parameters, rest }),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_taken_away_whole_or_not_at_all() {
        let target =
            Target::new(Rewrite::Prefix { strip: "/api".into(), add: "/v1".into() }, vec![]);

        assert_eq!(rewritten(&target, "/api/orders?a=b"), "/v1/orders?a=b");
        assert_eq!(rewritten(&target, "/api"), "/v1");
        assert_eq!(rewritten(&target, "/apiary"), "/v1/apiary");
    }

    #[test]
    fn nothing_left_is_the_root() {
        let target = Target::new(Rewrite::Prefix { strip: "/api".into(), add: "".into() }, vec![]);

        assert_eq!(rewritten(&target, "/api?x"), "/?x");
        assert_eq!(rewritten(&target, "/api/"), "/");
    }

    #[test]
    fn a_path_is_written_anew_from_what_matched() {
        let pattern = PathPattern {
            segments: vec![Segment::Literal("shops".into()), Segment::Parameter("shop".into())],
            rest: true,
        };
        let parts = vec![
            PathPart::Text("/s/".into()),
            PathPart::Parameter("shop".into()),
            PathPart::Text("/".into()),
            PathPart::Rest,
        ];
        let target = Target::new(Rewrite::Path(parts), vec![pattern]);

        assert_eq!(rewritten(&target, "/shops/7/a/b?c"), "/s/7/a/b?c");
        assert_eq!(rewritten(&target, "/shops/7"), "/s/7/");
    }

    fn rewritten(target: &Target, uri: &str) -> String {
        let mut uri: Uri = uri.parse().expect("a target");
        target.rewrite(&mut uri);
        uri.to_string()
    }
}
