//! Resource indicators (RFC 8707), in the operator's spelling.
//!
//! Authorization servers compare them byte for byte, and write them into `aud`.
//! So this is no `Url`, which would add a slash to `https://api.example.com`.

use core::fmt;
use std::sync::Arc;

use url::Url;

/// The identifier of a resource that tokens are requested for, sent exactly as configured.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct ResourceIndicator(Arc<str>);

impl ResourceIndicator {
    /// Returns `text` if it is an absolute URI without a fragment (RFC 8707 §2).
    ///
    /// # Errors
    ///
    /// [`NotAResource`] otherwise.
    pub fn parse(text: &str) -> Result<Self, NotAResource> {
        let visible = text.bytes().all(|b| matches!(b, 0x21..=0x7e));
        if !visible || Url::parse(text).is_err() {
            return Err(NotAResource::Relative);
        }
        if text.contains('#') {
            return Err(NotAResource::Fragment);
        }
        Ok(Self(text.into()))
    }

    /// Returns the text as configured.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ResourceIndicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The reason why a text is no resource indicator.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NotAResource {
    /// There is no scheme, or a character that URIs do not allow.
    #[error("the resource is not an absolute URI")]
    Relative,
    /// There is a `#`.
    #[error("the resource has a fragment")]
    Fragment,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_indicator_is_preserved_byte_for_byte() {
        for text in [
            "https://api.example.com",
            "https://api.example.com/",
            "HTTPS://API.example.com:443/a/../b?x=%7e",
            "urn:example:api",
        ] {
            assert_eq!(ResourceIndicator::parse(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn a_resource_indicator_is_absolute_and_has_no_fragment() {
        for (text, wrong) in [
            ("api", NotAResource::Relative),
            ("/api", NotAResource::Relative),
            ("", NotAResource::Relative),
            ("https://a b", NotAResource::Relative),
            (" https://a", NotAResource::Relative),
            ("https://é.example", NotAResource::Relative),
            ("https://api.example.com/#x", NotAResource::Fragment),
        ] {
            assert_eq!(ResourceIndicator::parse(text), Err(wrong), "{text}");
        }
    }
}
