//! Grants: what the gateway redeems at the token endpoint (RFC 6749), and what
//! it gives back at the revocation endpoint (RFC 7009).

use core::time::Duration;

use url::Url;

use crate::base::clock::Timestamp;
use crate::base::scopes::Scopes;
use crate::base::secret::Secret;

/// What is redeemed for tokens.
#[derive(Clone, Copy, Debug)]
pub enum Grant<'a> {
    /// A person's name and password (RFC 6749 §4.3).
    Password {
        /// As the person typed it.
        username: &'a str,
        /// As the person typed it.
        password: &'a Secret<String>,
        /// What is asked for; empty leaves the server's default.
        scopes: &'a Scopes,
        /// Where the token is to be used (RFC 8707).
        resource: Option<&'a Url>,
    },
    /// A refresh token (RFC 6749 §6).
    Refresh {
        /// As it was received.
        refresh_token: &'a Secret<String>,
        /// Where the new access token is to be used (RFC 8707).
        resource: Option<&'a Url>,
    },
    /// The client itself (RFC 6749 §4.4).
    ClientCredentials {
        /// What is asked for; empty leaves the server's default.
        scopes: &'a Scopes,
        /// Where the token is to be used (RFC 8707).
        resource: Option<&'a Url>,
    },
    /// An authorization code (RFC 6749 §4.1.3) with its PKCE verifier (RFC 7636 §4.5).
    Code {
        /// As it came back from the login.
        code: &'a Secret<String>,
        /// Exactly as it was sent to the authorization endpoint.
        redirect_uri: &'a Url,
        /// What the challenge was made of.
        verifier: &'a Secret<String>,
        /// Where the token is to be used (RFC 8707).
        resource: Option<&'a Url>,
    },
}

/// What the token endpoint answered (RFC 6749 §5.1).
#[derive(Clone, Debug)]
pub struct Tokens {
    /// The access token.
    pub access_token: Secret<String>,
    /// The refresh token, if one came. An answer without it leaves the old one good.
    pub refresh_token: Option<Secret<String>>,
    /// The ID token, if one came (OpenID Connect Core §3.1.3.3).
    pub id_token: Option<Secret<String>>,
    /// How long the access token lives from [`Tokens::received`]; at least 1 s, if the server says so.
    pub expires_in: Option<Duration>,
    /// How long the refresh token lives from [`Tokens::received`], if the server says so.
    pub refresh_expires_in: Option<Duration>,
    /// The scopes granted, if the server names them.
    pub scope: Option<String>,
    /// When the answer was asked for: a lifetime counts from the earliest moment it can have begun.
    pub received: Timestamp,
}

/// Why a grant brought no tokens.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum GrantError {
    /// The server says `invalid_grant` (RFC 6749 §5.2): wrong credentials, or a code or refresh token that is used up.
    #[error("the authorization server refused the credentials, code or refresh token")]
    InvalidGrant,
    /// Everything that is not the user's fault, a wrong client secret of our own included. Answered with 503.
    #[error("the authorization server cannot be asked")]
    Unavailable,
}

/// What kind of token is given back (RFC 7009 §2.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TokenHint {
    /// `access_token`.
    AccessToken,
    /// `refresh_token`.
    RefreshToken,
}
