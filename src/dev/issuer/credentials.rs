//! Client authentication (RFC 6749 §2.3).

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::DevIssuer;
use super::client_assertion;
use super::clients::{Authentication, Client};
use super::error::OAuthError;
use super::form::Parameters;
use super::jwt::Jwt;
use crate::base::secret::Secret;

/// Authenticates the client of a request by the method it is registered for.
pub(super) fn authenticate(
    issuer: &DevIssuer,
    headers: &HeaderMap,
    form: &Parameters,
) -> Result<Arc<Client>, OAuthError> {
    let presented = ClientCredentials::find(headers, form)?;
    let unknown = OAuthError::client("The client is unknown, or its credentials are wrong.");
    let client = issuer.clients.find(presented.id()).ok_or(unknown)?;
    let proven = match (&client.authentication, &presented) {
        (Authentication::Basic(expected), ClientCredentials::Basic { secret, .. })
        | (Authentication::Post(expected), ClientCredentials::Post { secret, .. }) => {
            expected == secret
        }
        (Authentication::PrivateKeyJwt(keys), ClientCredentials::Assertion(assertion)) => {
            client_assertion::verify(issuer, assertion, keys)
        }
        (Authentication::None, ClientCredentials::IdOnly(_)) => true,
        _ => {
            return Err(OAuthError::client(
                "The client is registered for another way to authenticate.",
            ));
        }
    };
    if proven { Ok(client) } else { Err(unknown) }
}

/// The credentials of a request: of one kind only (RFC 6749 §2.3).
enum ClientCredentials {
    Basic { id: String, secret: Secret<String> },
    Post { id: String, secret: Secret<String> },
    Assertion(Jwt),
    IdOnly(String),
}

impl ClientCredentials {
    fn find(headers: &HeaderMap, form: &Parameters) -> Result<Self, OAuthError> {
        let basic = headers.get(AUTHORIZATION).map(|value| basic(value.as_bytes()));
        let id = form.one("client_id").map(str::to_owned);
        let secret = form.one("client_secret");
        let assertion = form.one("client_assertion");
        let unnamed = OAuthError::client("No client is named.");
        match (basic, secret, assertion) {
            (Some(basic), None, None) => {
                let malformed = OAuthError::client("The Authorization field is not HTTP Basic.");
                let (name, secret) = basic.ok_or(malformed)?;
                if id.is_some_and(|id| id != name) {
                    return Err(OAuthError::request("Two clients are named."));
                }
                Ok(Self::Basic { id: name, secret })
            }
            (None, Some(secret), None) => {
                Ok(Self::Post { id: id.ok_or(unnamed)?, secret: secret.into() })
            }
            (None, None, Some(jwt)) => {
                let malformed = OAuthError::client("The client_assertion is no JWT of a client.");
                if form.one("client_assertion_type") != Some(client_assertion::TYPE) {
                    return Err(OAuthError::client("The client_assertion_type is unknown."));
                }
                let assertion = Jwt::parse(jwt).ok_or(malformed)?;
                match assertion.text("sub") {
                    None => Err(malformed),
                    Some(name) if id.is_some_and(|id| id != name) => {
                        Err(OAuthError::request("Two clients are named."))
                    }
                    Some(_) => Ok(Self::Assertion(assertion)),
                }
            }
            (None, None, None) => Ok(Self::IdOnly(id.ok_or(unnamed)?)),
            _ => Err(OAuthError::request("The client authenticates in two ways at once.")),
        }
    }

    fn id(&self) -> &str {
        match self {
            Self::Basic { id, .. } | Self::Post { id, .. } | Self::IdOnly(id) => id,
            Self::Assertion(assertion) => assertion.text("sub").unwrap_or_default(),
        }
    }
}

/// Decodes HTTP Basic credentials (RFC 7617), whose parts are form-encoded (RFC 6749 §2.3.1).
fn basic(field: &[u8]) -> Option<(String, Secret<String>)> {
    let (scheme, rest) = core::str::from_utf8(field).ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
    let (id, secret) = pair.split_once(':')?;
    Some((form_decoded(id), Secret::from(form_decoded(secret))))
}

fn form_decoded(text: &str) -> String {
    // One name only: curl does not encode credentials, and a secret may end in `=`.
    let name = text.replace('=', "%3D").replace('&', "%26");
    url::form_urlencoded::parse(name.as_bytes())
        .next()
        .map(|(name, _)| name.into_owned())
        .unwrap_or_default()
}
