//! Checks the action of a route: `upstream`, `respond` or `redirect`, and `rewrite`.

use http::{HeaderValue, StatusCode};
use url::Url;

use super::{Check, defined_names};
use crate::config::de::field::Spanned;
use crate::config::de::units::{FromScalar, InvalidValue};
use crate::config::fault::Code;
use crate::config::file::{File, routes as file};
use crate::config::patterns;
use crate::config::route::{Action, PathPattern, Rewrite, Segment};
use crate::config::static_response::StaticResponse;

impl Check<'_> {
    pub(super) fn action(&mut self, file: &File, keys: &Spanned<file::Route>) -> Option<Action> {
        let bad = keys.upstream.is_bad() || keys.respond.is_bad() || keys.redirect.is_bad();
        match (keys.upstream.get(), keys.respond.get(), keys.redirect.get()) {
            (Some(name), None, None) => {
                let names = defined_names(&file.upstreams);
                self.defined(name, "upstreams", &names).map(Action::Upstream)
            }
            (None, Some(respond), None) => self.respond(respond).map(Action::Respond),
            (None, None, Some(redirect)) => self.redirect(redirect),
            (None, None, None) => {
                if !bad {
                    let message = "this route has no action";
                    self.fault(
                        Code::C106,
                        keys.at,
                        message,
                        "write one of upstream, respond and redirect",
                    );
                }
                None
            }
            (upstream, respond, redirect) => {
                let second = respond.filter(|_| upstream.is_some()).map(|at| at.key_at);
                let position = second.or(redirect.map(|at| at.key_at)).unwrap_or(keys.at);
                let message = "a route has one of upstream, respond and redirect";
                self.fault(Code::C106, position, message, "keep one of them");
                None
            }
        }
    }

    pub(super) fn respond(&mut self, keys: &Spanned<file::Respond>) -> Option<StaticResponse> {
        let status = keys.status.or(200);
        let valid = StatusCode::from_u16(status).ok().filter(|_| (200..=599).contains(&status));
        if let (None, Some(at)) = (valid, keys.status.get()) {
            self.wrong(at, InvalidValue::new("is not a response status", "write 200 to 599"));
        }
        let mut headers = Vec::new();
        for (name, value) in keys.headers.get().into_iter().flat_map(|map| map.value.iter()) {
            if let Some(name) = self.field(name) {
                headers.push((name, value.value.0.clone()));
            }
        }
        let body = keys.body.or(String::new());
        if let (204 | 205 | 304, Some(at)) = (status, keys.body.get().filter(|_| !body.is_empty()))
        {
            let message = format!("a response with status {status} has no content (RFC 9110 §15)");
            self.fault(Code::C106, at.at, message, "remove it, or write status: 200");
        }
        let typed = headers.iter().any(|(name, _)| name == http::header::CONTENT_TYPE);
        if !body.is_empty() && !typed {
            let plain = HeaderValue::from_static("text/plain; charset=utf-8");
            headers.push((http::header::CONTENT_TYPE, plain));
        }
        Some(StaticResponse { status: valid?, body, headers })
    }

    fn redirect(&mut self, keys: &Spanned<file::Redirect>) -> Option<Action> {
        let to = self.required(&keys.to, keys.at, "to", "write a path or a URL");
        let location = to.and_then(|to| {
            let path = to.value.starts_with('/') && !to.value.starts_with("//");
            if to.value.contains(['{', '}']) {
                let help = "write a target without braces: no part of the request is inserted";
                self.wrong(to, InvalidValue::new("is not a template", help));
                return None;
            }
            let valid = path
                || Url::parse(&to.value).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
            let location =
                HeaderValue::parse(&to.value).ok().filter(|_| valid && !to.value.contains(' '));
            if location.is_none() {
                self.wrong(
                    to,
                    InvalidValue::new(
                        "is not a redirect target",
                        "write a path such as /new, or a URL",
                    ),
                );
            }
            location
        });
        let status = match keys.status.get() {
            None => Some(StatusCode::PERMANENT_REDIRECT),
            Some(at) => match at.value {
                301 | 302 | 303 | 307 | 308 => StatusCode::from_u16(at.value).ok(),
                _ => {
                    self.wrong(
                        at,
                        InvalidValue::new(
                            "is not a redirect status",
                            "write 301, 302, 303, 307 or 308",
                        ),
                    );
                    None
                }
            },
        };
        Some(Action::Redirect { to: location?, status: status? })
    }

    pub(super) fn rewrite(
        &mut self,
        keys: &Spanned<file::Rewrite>,
        paths: &[PathPattern],
    ) -> Rewrite {
        if let Some(path) = keys.path.get() {
            if !keys.strip_prefix.is_absent() || !keys.add_prefix.is_absent() {
                let message = "`path` replaces the whole path: `strip_prefix` and `add_prefix` have no effect beside it";
                self.fault(Code::C106, path.key_at, message, "keep one of them");
            }
            let patterns: Vec<_> = paths.iter().collect();
            return match patterns::rewrite_template(&path.value, &patterns) {
                Ok(parts) => Rewrite::Path(parts),
                Err(wrong) => {
                    self.wrong(path, wrong);
                    Rewrite::Keep
                }
            };
        }
        let strip = keys.strip_prefix.get().and_then(|at| Some((at, self.prefix(at)?)));
        let add = keys.add_prefix.get().and_then(|at| self.prefix(at));
        if let Some((at, prefix)) = &strip
            && !paths.iter().all(|path| begins_with(path, prefix))
        {
            let message = format!("not every path of the route begins with {}", at.shown());
            self.fault(Code::C106, at.at, message, "write a prefix of every path of the route");
        }
        if strip.is_none() && add.is_none() {
            return Rewrite::Keep;
        }
        let text = |prefix: Option<PathPattern>| {
            prefix.map(|p| p.to_string()).unwrap_or_default().into_boxed_str()
        };
        Rewrite::Prefix { strip: text(strip.map(|(_, prefix)| prefix)), add: text(add) }
    }

    /// `/a/b`: literal segments and no slash at the end.
    fn prefix(&mut self, text: &Spanned<String>) -> Option<PathPattern> {
        let checked =
            patterns::check_literal(&text.value).and_then(|()| PathPattern::parse(&text.value));
        let checked = checked.and_then(|pattern| match pattern.segments.last() {
            Some(Segment::Literal(last)) if last.is_empty() => {
                let help = format!("write {}", text.value.trim_end_matches('/'));
                Err(InvalidValue::new(
                    "ends in a slash",
                    if text.value == "/" { "remove it".to_owned() } else { help },
                ))
            }
            _ => Ok(pattern),
        });
        checked.map_err(|wrong| self.wrong(text, wrong)).ok()
    }
}

fn begins_with(path: &PathPattern, prefix: &PathPattern) -> bool {
    path.segments.len() >= prefix.segments.len()
        && path.segments.iter().zip(&prefix.segments).all(|(a, b)| a == b)
}
