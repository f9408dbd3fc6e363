//! HTTP Basic credentials: user name and password (RFC 7617).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use zeroize::Zeroizing;

use crate::base::secret::Secret;

/// A user name and a password.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The user name; no colon, no control characters, not empty.
    pub user: String,
    /// The password.
    pub password: Secret<String>,
}

impl Credentials {
    /// Reads the `Authorization` field; `None` for another scheme.
    ///
    /// # Errors
    ///
    /// [`MalformedCredentials`] if the scheme is Basic and the rest is not base64 of
    /// UTF-8 with a colon (RFC 7617 §2), or has control characters.
    pub fn from_authorization(field: &HeaderValue) -> Result<Option<Self>, MalformedCredentials> {
        let field = field.as_bytes();
        let Some((scheme, rest)) = field.split_at_checked(SCHEME.len()) else { return Ok(None) };
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return Ok(None);
        }
        let encoded = match rest {
            [] => return Err(MalformedCredentials),
            [b' ', ..] => rest.trim_ascii_start(),
            // `Basics …` is another scheme.
            _ => return Ok(None),
        };
        let decoded = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| MalformedCredentials)?);
        let text = core::str::from_utf8(&decoded).map_err(|_| MalformedCredentials)?;
        // The first colon ends the user name: a password may have more, a name none.
        let (user, password) = text.split_once(':').ok_or(MalformedCredentials)?;
        Self::new(user, password).map(Some)
    }

    /// Returns credentials from a form or a JSON object.
    ///
    /// # Errors
    ///
    /// [`MalformedCredentials`] if the name is empty, either is longer than 1 KiB, or there are control characters.
    pub fn new(user: &str, password: &str) -> Result<Self, MalformedCredentials> {
        let fits = |text: &str| text.len() <= MAX_LEN && !text.contains(char::is_control);
        if user.is_empty() || !fits(user) || !fits(password) {
            return Err(MalformedCredentials);
        }
        Ok(Self { user: user.into(), password: password.into() })
    }
}

/// The credentials are malformed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the credentials are malformed")]
pub struct MalformedCredentials;

const SCHEME: &[u8] = b"basic";
const MAX_LEN: usize = 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(field: &str) -> Result<Option<(String, String)>, MalformedCredentials> {
        let read = Credentials::from_authorization(&HeaderValue::from_str(field).unwrap())?;
        Ok(read.map(|c| (c.user.clone(), c.password.expose().clone())))
    }

    fn basic(text: &str) -> String {
        format!("Basic {}", STANDARD.encode(text))
    }

    #[test]
    fn the_scheme_is_case_insensitive_and_other_schemes_are_ignored() {
        let alice = ("alice".into(), "wonderland".into());

        assert_eq!(read("bAsIc YWxpY2U6d29uZGVybGFuZA=="), Ok(Some(alice)));
        assert_eq!(read("Bearer abc"), Ok(None));
        assert_eq!(read("Basics YTpi"), Ok(None));
        assert_eq!(read("Basic\tYTpi"), Ok(None));
        assert_eq!(read("Bas"), Ok(None));
    }

    #[test]
    fn the_first_colon_ends_the_user_name() {
        assert_eq!(read(&basic("alice:a:b:")), Ok(Some(("alice".into(), "a:b:".into()))));
        assert_eq!(read(&basic("alice:")), Ok(Some(("alice".into(), String::new()))));
    }

    #[test]
    fn names_and_passwords_are_utf_8() {
        assert_eq!(read(&basic("zoë:пароль")), Ok(Some(("zoë".into(), "пароль".into()))));
        assert_eq!(read("Basic 5Dr8"), Err(MalformedCredentials)); // Latin-1
    }

    #[test]
    fn malformed_credentials_are_refused() {
        for field in
            ["Basic", "Basic ", "Basic YTpi=", "Basic YTpi YTpi", "Basic YTpiYg", "Basic !"]
        {
            assert_eq!(read(field), Err(MalformedCredentials), "{field}");
        }
        for text in ["alice", ":secret", "a\n:b", "a:b\0", "a:\u{85}"] {
            assert_eq!(read(&basic(text)), Err(MalformedCredentials), "{text:?}");
        }
        assert_eq!(read(&basic(&format!("a:{}", "x".repeat(1025)))), Err(MalformedCredentials));
    }

    proptest! {
        #[test]
        fn any_field_is_parsed_without_panic(field in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(field) = HeaderValue::from_bytes(&field) {
                let _ = Credentials::from_authorization(&field);
            }
        }

        #[test]
        fn encoded_credentials_are_read(user in "[^:\\p{Cc}]{1,40}", password in "\\P{Cc}{0,40}") {
            prop_assert_eq!(read(&basic(&format!("{user}:{password}"))), Ok(Some((user, password))));
        }
    }
}
