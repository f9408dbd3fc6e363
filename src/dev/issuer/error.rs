//! Refusals, as RFC 6749 §5.2 and its neighbours word them.

use http::StatusCode;

/// Why a request was refused: a registered code, and a sentence for the programmer who reads it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct OAuthError {
    pub(super) code: Code,
    pub(super) description: &'static str,
}

/// The codes of the OAuth Extensions Error Registry that this issuer uses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Code {
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
    /// A code that is unknown, spent, too old, or somebody else's: one answer for all.
    pub(super) const CODE: Self = Self::new(
        Code::InvalidGrant,
        "The code is unknown, used, expired, or bound to another client or redirect URI.",
    );
    /// A refresh token that is unknown, spent, too old, or somebody else's: one answer for all.
    pub(super) const REFRESH: Self = Self::new(
        Code::InvalidGrant,
        "The refresh token is unknown, used, revoked, expired, or another client's.",
    );
    /// A token that the client has no business with.
    pub(super) const NOT_YOURS: Self =
        Self::new(Code::InvalidGrant, "The token was issued to another client.");
    /// More was asked for than the client may have.
    pub(super) const SCOPE: Self =
        Self::new(Code::InvalidScope, "The client may not ask for one of these scopes.");
    /// A token was asked for a place that the issuer or the grant does not know.
    pub(super) const TARGET: Self =
        Self::new(Code::InvalidTarget, "The resource is unknown, or was not granted.");
    /// The issuer's own fault.
    pub(super) const SERVER: Self = Self::new(Code::ServerError, "No token could be made.");

    pub(super) const fn new(code: Code, description: &'static str) -> Self {
        Self { code, description }
    }

    /// A malformed request.
    pub(super) const fn request(description: &'static str) -> Self {
        Self::new(Code::InvalidRequest, description)
    }

    /// A client that could not prove who it is.
    pub(super) const fn client(description: &'static str) -> Self {
        Self::new(Code::InvalidClient, description)
    }

    /// The status at endpoints that programs call.
    pub(super) const fn status(self) -> StatusCode {
        match self.code {
            Code::InvalidClient | Code::InvalidToken => StatusCode::UNAUTHORIZED,
            Code::ServerError => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

impl Code {
    /// The code as it is sent.
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
