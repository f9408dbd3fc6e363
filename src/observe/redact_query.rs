//! Redacts secret values in the query of a request before it is logged.

use core::fmt::Write as _;

use crate::base::header_fields::begins_alike;

/// The query parameters whose values are redacted.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Redact(Vec<String>);

impl Redact {
    /// Redacts parameters called one of `names`, in any case, to `…`.
    pub(super) fn new(names: &[String]) -> Self {
        Self(names.to_vec())
    }

    /// Returns the query without secret values, also of a query within a value: that of a URL which a login is to lead back
    /// to.
    pub(super) fn query(&self, query: &str) -> String {
        let mut redacted = String::with_capacity(query.len());
        // Some upstreams take `;` for a separator too, and so may an attacker who hides a token after one.
        for parameter in query.split_inclusive(['&', ';']) {
            let name = parameter.split(['=', '&', ';']).next().unwrap_or_default();
            match parameter.strip_prefix(name).filter(|value| value.starts_with('=')) {
                Some(value) if self.names(name) || self.names_within(value) => {
                    let _ = write!(redacted, "{name}=…");
                    redacted
                        .extend(value.chars().next_back().filter(|end| ['&', ';'].contains(end)));
                }
                _ => redacted.push_str(parameter),
            }
        }
        redacted
    }

    /// Whether `value`, as written in a query, is a URL with a query that has one of the names, even if it is escaped twice.
    fn names_within(&self, value: &str) -> bool {
        if !INNER_QUERIES.iter().any(|mark| value.contains(mark)) {
            return false;
        }
        let mut text = value.to_owned();
        for _ in 0..MAX_NESTED_QUERIES {
            let parameters = text.split(['?', '&', ';', '#']).skip(1);
            let mut names = parameters.filter_map(|parameter| parameter.split_once('='));
            if names.any(|(name, _)| self.names(name)) {
                return true;
            }
            // `&` would end the value for `form_urlencoded`; `?` stands in for it, since both separate parameters here.
            let whole = format!("={}", text.replace('&', "?"));
            let decoded = url::form_urlencoded::parse(whole.as_bytes()).next();
            let decoded = decoded.map(|(_, value)| value.into_owned()).unwrap_or_default();
            if decoded == text {
                return false;
            }
            text = decoded;
        }
        // Nested deeper than `MAX_NESTED_QUERIES`: redacted unread.
        true
    }

    /// Whether `name`, as written in a query, is to be redacted. `access%5Ftoken` is, and `auth[access_token]`, a member of
    /// a structure to many frameworks, and `access.token`, which PHP takes for `access_token`.
    fn names(&self, name: &str) -> bool {
        let is_ours = |name: &str| {
            let is = |own: &String| {
                own.len() == name.len() && begins_alike(name.as_bytes(), own.as_bytes())
            };
            self.0.iter().any(is)
        };
        let ours = |name: &str| {
            let is_structure = name.contains(MEMBER_MARKS);
            is_ours(name.trim())
                || is_structure && name.split(MEMBER_MARKS).map(str::trim).any(is_ours)
        };
        if name.contains(['%', '+']) {
            let decoded = url::form_urlencoded::parse(name.as_bytes()).next();
            return decoded.is_some_and(|(name, _)| ours(&name));
        }
        ours(name)
    }
}

/// Marks of a query or fragment within a value: as they are, escaped, or escaped more than once.
const INNER_QUERIES: [&str; 6] = ["?", "#", "%3F", "%3f", "%23", "%25"];
/// The marks that divide the name of a structure from those of its members.
const MEMBER_MARKS: [char; 3] = ['[', ']', '.'];
/// Levels of escapes that are read within a value.
const MAX_NESTED_QUERIES: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_the_query_are_redacted() {
        let redact = Redact::new(&["token".into(), "access_token".into(), "Code".into()]);
        let same = |query: &str, redacted: &str| assert_eq!(redact.query(query), redacted);

        same("page=2&token=s3cret&sort=asc", "page=2&token=…&sort=asc");
        same("access%5Ftoken=s3cret", "access%5Ftoken=…");
        same("a=1;TOKEN=s3cret;b=2", "a=1;TOKEN=…;b=2");
        same("code=s3cret=&x", "code=…&x");
        // Names of structures: PHP, Rails, Express; and what PHP takes for another name.
        same("access_token[]=s3cret", "access_token[]=…");
        same("access_token%5B0%5D=s3cret", "access_token%5B0%5D=…");
        same("auth[access_token]=s3cret&a[b]=c", "auth[access_token]=…&a[b]=c");
        same("auth.token=s3cret", "auth.token=…");
        same("access.token=s3cret&+access+token=s3cret", "access.token=…&+access+token=…");
        same("token&token=&tokens=3", "token&token=…&tokens=3");
        same("", "");
    }

    #[test]
    fn secrets_in_a_url_within_the_query_are_redacted() {
        let redact = Redact::new(&["token".into(), "access_token".into()]);
        let same = |query: &str, redacted: &str| assert_eq!(redact.query(query), redacted);

        same("return_to=%2Finvite%3Ftoken%3Ds3cret&a=b", "return_to=…&a=b");
        same("return_to=%2Fa%3Fb%3Dc%26access_token%3Ds3cret", "return_to=…");
        same("return_to=/invite?token=s3cret", "return_to=…");
        same("to=https%3A%2F%2Fh%2F%23access_token%3Ds3cret", "to=…");
        same("to=%2Flogin%3Freturn_to%3D%252Finvite%253Ftoken%253Ds3cret", "to=…");
        same("to=%2Fa%3Fb%3Dc&q=100%25&r=%2Ftoken%3Da", "to=%2Fa%3Fb%3Dc&q=100%25&r=%2Ftoken%3Da");
    }
}
