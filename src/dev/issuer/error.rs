//! Error responses (RFC 6749 §5.2 and the extensions that register further codes).

use axum::response::{IntoResponse, Response};
use http::header::WWW_AUTHENTICATE;
use http::{HeaderValue, StatusCode};
use serde_json::json;

use super::response;

/// An OAuth error: a registered code, and a description for the client's developer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct OAuthError {
    pub(super) code: ErrorCode,
    pub(super) description: &'static str,
}

/// The codes of the OAuth Extensions Error Registry that this issuer uses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ErrorCode {
    AccessDenied,
    ConsentRequired,
    InvalidClient,
    InvalidClientMetadata,
    InvalidGrant,
    InvalidRedirectUri,
    InvalidRequest,
    InvalidScope,
    InvalidTarget,
    InvalidToken,
    LoginRequired,
    RequestNotSupported,
    RequestUriNotSupported,
    ServerError,
    UnauthorizedClient,
    UnsupportedGrantType,
    UnsupportedResponseType,
}

impl OAuthError {
    /// An authorization code is unknown, used, expired or bound to another client: one error for all.
    pub(super) const CODE: Self = Self::new(
        ErrorCode::InvalidGrant,
        "The code is unknown, used, expired, or bound to another client or redirect URI.",
    );
    /// A refresh token is unknown, used, revoked, expired or of another client: one error for all.
    pub(super) const REFRESH: Self = Self::new(
        ErrorCode::InvalidGrant,
        "The refresh token is unknown, used, revoked, expired, or another client's.",
    );
    /// The token was issued to another client.
    pub(super) const NOT_YOURS: Self =
        Self::new(ErrorCode::InvalidGrant, "The token was issued to another client.");
    /// The client asked for a scope that it is not registered for.
    pub(super) const SCOPE: Self =
        Self::new(ErrorCode::InvalidScope, "The client may not ask for one of these scopes.");
    /// The client asked for a resource that is unknown or was not granted (RFC 8707 §2).
    pub(super) const TARGET: Self =
        Self::new(ErrorCode::InvalidTarget, "The resource is unknown, or was not granted.");
    /// The issuer could not generate random numbers or sign.
    pub(super) const SERVER: Self = Self::new(ErrorCode::ServerError, "No token could be made.");

    pub(super) const fn new(code: ErrorCode, description: &'static str) -> Self {
        Self { code, description }
    }

    /// Returns `invalid_request`.
    pub(super) const fn request(description: &'static str) -> Self {
        Self::new(ErrorCode::InvalidRequest, description)
    }

    /// Returns `invalid_client`: client authentication failed.
    pub(super) const fn client(description: &'static str) -> Self {
        Self::new(ErrorCode::InvalidClient, description)
    }

    /// Returns the status of the error response.
    pub(super) const fn status(self) -> StatusCode {
        match self.code {
            ErrorCode::InvalidClient | ErrorCode::InvalidToken => StatusCode::UNAUTHORIZED,
            ErrorCode::ServerError => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// The error response of an endpoint that programs call (RFC 6749 §5.2).
impl IntoResponse for OAuthError {
    fn into_response(self) -> Response {
        let body = json!({ "error": self.code.name(), "error_description": self.description });
        let mut response = response::json(self.status(), &body);
        if self.status() == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static(r#"Basic realm="development issuer""#);
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

impl ErrorCode {
    /// Returns the code as it is sent.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::AccessDenied => "access_denied",
            Self::ConsentRequired => "consent_required",
            Self::InvalidClient => "invalid_client",
            Self::InvalidClientMetadata => "invalid_client_metadata",
            Self::InvalidGrant => "invalid_grant",
            Self::InvalidRedirectUri => "invalid_redirect_uri",
            Self::InvalidRequest => "invalid_request",
            Self::InvalidScope => "invalid_scope",
            Self::InvalidTarget => "invalid_target",
            Self::InvalidToken => "invalid_token",
            Self::LoginRequired => "login_required",
            Self::RequestNotSupported => "request_not_supported",
            Self::RequestUriNotSupported => "request_uri_not_supported",
            Self::ServerError => "server_error",
            Self::UnauthorizedClient => "unauthorized_client",
            Self::UnsupportedGrantType => "unsupported_grant_type",
            Self::UnsupportedResponseType => "unsupported_response_type",
        }
    }
}
