//! The content of an admin request: a form or a JSON object.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value};
use url::form_urlencoded;

use crate::base::media_type::essence;
use crate::base::strict_json;

/// The reason for refusing content.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum ContentError {
    #[error("the content is larger than 64 KiB, or incomplete")]
    Body,
    #[error("send a form (application/x-www-form-urlencoded) or an object (application/json)")]
    Kind,
    #[error("the content is not a JSON object")]
    Json,
    #[error("a field is repeated")]
    Twice,
}

impl ContentError {
    pub(super) const fn status(self) -> StatusCode {
        match self {
            Self::Body => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// Returns the fields of the content, which the admin listener limits to 64 KiB; those of a form are strings.
pub(super) async fn read_fields(request: Request) -> Result<Map<String, Value>, ContentError> {
    let is_json = is_json(request.headers())?;
    let body = Bytes::from_request(request, &()).await.map_err(|_| ContentError::Body)?;
    if is_json {
        return strict_json::parse_object(&body).map_err(|_| ContentError::Json);
    }
    let mut fields = Map::new();
    for (name, value) in form_urlencoded::parse(&body) {
        if fields.insert(name.into_owned(), value.into_owned().into()).is_some() {
            return Err(ContentError::Twice);
        }
    }
    Ok(fields)
}

/// Returns `text` without what a file, a shell or a copied line leaves around a value: blanks, line breaks, a byte order
/// mark, and one pair of quotes.
pub(super) fn bare(text: &str) -> &str {
    let text = text.trim_matches(is_around);
    let quoted = ['"', '\'', '`']
        .into_iter()
        .find_map(|quote| text.strip_prefix(quote)?.strip_suffix(quote));
    quoted.map_or(text, |text| text.trim_matches(is_around))
}

/// Whether the content is JSON; a form otherwise.
fn is_json(headers: &HeaderMap) -> Result<bool, ContentError> {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    match essence(kind) {
        kind if kind.eq_ignore_ascii_case("application/json") => Ok(true),
        kind if kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") => Ok(false),
        _ => Err(ContentError::Kind),
    }
}

fn is_around(c: char) -> bool {
    c.is_whitespace() || c == '\u{feff}'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_without_what_was_copied_with_it() {
        for text in [
            "alice",
            "alice\n",
            "\r\n alice\t",
            "\u{feff}alice",
            "\"alice\"\n",
            "'alice'",
            "\" alice \"",
        ] {
            assert_eq!(bare(text), "alice", "{text:?}");
        }
        for text in ["al ice", "alice\"", "'alice", "o'hara", "\""] {
            assert_eq!(bare(text), text, "{text:?}");
        }
        assert_eq!(bare(" \n"), "");
    }
}
