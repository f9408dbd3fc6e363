//! Parameters of a query or a form, each at most once (RFC 6749 §3.1, §3.2), and the extractors for them.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::error::OAuthError;

/// Parsed parameters. A parameter with an empty value counts as absent.
#[derive(Clone, Debug)]
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Parses `application/x-www-form-urlencoded`. Only `resource` may be repeated (RFC 8707 §2).
    ///
    /// # Errors
    ///
    /// `invalid_request` if another parameter is repeated.
    pub(super) fn parse(text: &[u8]) -> Result<Self, OAuthError> {
        match Self::parse_leniently(text) {
            (parameters, None) => Ok(parameters),
            (_, Some(error)) => Err(error),
        }
    }

    /// Parses the same, and returns the first of each repeated parameter beside the error: the
    /// authorization endpoint must know the redirect URI before it can return an error to the client.
    pub(super) fn parse_leniently(text: &[u8]) -> (Self, Option<OAuthError>) {
        let mut parameters: Vec<(String, String)> = Vec::new();
        let mut repeated = None;
        for (name, value) in url::form_urlencoded::parse(text) {
            if value.is_empty() {
                continue;
            }
            if name != "resource" && parameters.iter().any(|(have, _)| *have == name) {
                repeated = Some(OAuthError::request("A parameter is given more than once."));
                continue;
            }
            parameters.push((name.into_owned(), value.into_owned()));
        }
        (Self(parameters), repeated)
    }

    /// Returns the value of `name`.
    pub(super) fn one(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// Returns the value of `name`, or `invalid_request` with the description `missing`.
    pub(super) fn required(&self, name: &str, missing: &'static str) -> Result<&str, OAuthError> {
        self.one(name).ok_or(OAuthError::request(missing))
    }

    /// Returns every value of `name`.
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    /// Returns the name of every parameter.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }
}

/// The parameters of a request's content, which must be a form.
pub(super) struct Form(pub(super) Parameters);

impl<S: Send + Sync> FromRequest<S> for Form {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        if !is_form(request.headers()) {
            let description = "The body must be application/x-www-form-urlencoded.";
            return Err(OAuthError::request(description).into_response());
        }
        let body =
            Bytes::from_request(request, state).await.map_err(IntoResponse::into_response)?;
        Parameters::parse(&body).map(Self).map_err(IntoResponse::into_response)
    }
}

/// The parameters of a request's query.
pub(super) struct Query(pub(super) Parameters);

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = OAuthError;

    async fn from_request_parts(head: &mut Parts, _: &S) -> Result<Self, OAuthError> {
        Parameters::parse(head.uri.query().unwrap_or_default().as_bytes()).map(Self)
    }
}

/// Proof that a request was not sent by a page of another origin (`Sec-Fetch-Site`).
pub(super) struct SameOrigin;

impl<S: Send + Sync> FromRequestParts<S> for SameOrigin {
    type Rejection = StatusCode;

    async fn from_request_parts(head: &mut Parts, _: &S) -> Result<Self, StatusCode> {
        match head.headers.get("sec-fetch-site").map(HeaderValue::as_bytes) {
            None | Some(b"same-origin" | b"none") => Ok(Self),
            Some(_) => Err(StatusCode::FORBIDDEN),
        }
    }
}

/// Whether `Content-Type` says that the content is a form.
pub(super) fn is_form(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let essence = content_type.and_then(|t| t.split(|byte| *byte == b';').next());
    essence.is_some_and(|essence| essence.trim_ascii().eq_ignore_ascii_case(FORM))
}

const FORM: &[u8] = b"application/x-www-form-urlencoded";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_given_twice_is_refused_unless_it_is_a_resource() {
        assert!(Parameters::parse(b"state=1&state=2").is_err());
        assert!(Parameters::parse(b"resource=a&resource=b").is_ok());
    }

    #[test]
    fn a_parameter_with_an_empty_value_is_absent() {
        let parameters = Parameters::parse(b"scope=&state=%20a+b").expect("a good form");

        assert_eq!(parameters.one("scope"), None);
        assert_eq!(parameters.one("state"), Some(" a b"));
    }
}
