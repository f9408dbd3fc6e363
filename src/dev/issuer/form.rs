//! Parameters of a query or a form, each at most once (RFC 6749 §3.1, §3.2).

use super::error::OAuthError;

/// Parsed parameters. One with an empty value counts as absent.
#[derive(Clone, Debug)]
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    /// Reads `application/x-www-form-urlencoded`. Only `resource` may be repeated (RFC 8707 §2).
    ///
    /// # Errors
    ///
    /// `invalid_request` if another parameter is.
    pub(super) fn parse(text: &[u8]) -> Result<Self, OAuthError> {
        match Self::parse_leniently(text) {
            (form, None) => Ok(form),
            (_, Some(error)) => Err(error),
        }
    }

    /// The same, with the first of each repeated parameter beside the error: the
    /// authorization endpoint must find out whom to tell before it tells anybody.
    pub(super) fn parse_leniently(text: &[u8]) -> (Self, Option<OAuthError>) {
        let mut form: Vec<(String, String)> = Vec::new();
        let mut repeated = None;
        for (name, value) in url::form_urlencoded::parse(text) {
            if value.is_empty() {
                continue;
            }
            if name != "resource" && form.iter().any(|(have, _)| *have == name) {
                repeated = Some(OAuthError::request("A parameter is given more than once."));
                continue;
            }
            form.push((name.into_owned(), value.into_owned()));
        }
        (Self(form), repeated)
    }

    /// The value of `name`.
    pub(super) fn one(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// The value of `name`, or why the request cannot be served.
    pub(super) fn required(&self, name: &str, missing: &'static str) -> Result<&str, OAuthError> {
        self.one(name).ok_or(OAuthError::request(missing))
    }

    /// Every value of `name`.
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(have, _)| have == name).map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_parameter_given_twice() {
        assert!(Form::parse(b"state=1&state=2").is_err());
        assert!(Form::parse(b"resource=a&resource=b").is_ok());
    }

    #[test]
    fn takes_an_empty_parameter_for_none() {
        let form = Form::parse(b"scope=&state=%20a+b").expect("a good form");

        assert_eq!(form.one("scope"), None);
        assert_eq!(form.one("state"), Some(" a b"));
    }
}
