//! Claims about a user from the userinfo endpoint (OpenID Connect Core §5.3).

use http::{HeaderValue, StatusCode};
use serde_json::{Map, Value};

use crate::base::secret::Secret;
use crate::base::strict_json;
use crate::issuer::calls::call_context::CallContext;
use crate::issuer::calls::call_purpose::Purpose;
use crate::issuer::calls::unavailable::Unavailable;
use crate::observe::metrics::Endpoint;

/// A userinfo response.
#[derive(Clone, Debug, PartialEq)]
pub enum UserinfoResponse {
    /// The claims of a JSON object.
    Claims(Map<String, Value>),
    /// A signed response, and maybe an encrypted one; not verified yet.
    Signed(Secret<String>),
}

impl CallContext {
    /// Fetches the claims of the user that `access_token` was issued for. Runs on the control runtime.
    ///
    /// Received over TLS from the configured server, and so signed only where the client is registered for that
    /// (`userinfo_signed_response_alg`).
    pub(in crate::issuer) async fn userinfo(
        &self,
        access_token: &Secret<String>,
    ) -> Result<UserinfoResponse, Unavailable> {
        let issuer = &*self.settings.name;
        let metadata = self.provider_cache.metadata().await;
        let Some(url) = &metadata.endpoints.userinfo else {
            tracing::error!(
                issuer,
                "No userinfo endpoint is known: the metadata names none or could not be fetched, and `endpoints.userinfo` is not set."
            );
            return Err(Unavailable::RETRY_SOON);
        };
        let mut authorization = HeaderValue::try_from(format!("Bearer {}", access_token.expose()))
            .map_err(|_| Unavailable::RETRY_SOON)?;
        authorization.set_sensitive(true);
        let slot = self.http_client.slot(Purpose::Code)?;
        let response = self.http_client.get_as(&slot, Endpoint::Userinfo, url, authorization).await;
        // Its failure was logged.
        let response = response.map_err(|_| Unavailable::RETRY_SOON)?;
        let is_ok = response.status == StatusCode::OK;
        if is_ok && response.media_type().as_deref() == Some(SIGNED) {
            let text = core::str::from_utf8(&response.body).unwrap_or_default();
            return Ok(UserinfoResponse::Signed(text.trim_ascii().into()));
        }
        match strict_json::parse_object(&response.body) {
            Ok(claims) if is_ok => Ok(UserinfoResponse::Claims(claims)),
            _ => {
                if let Some(suppressed) = self.http_client.may_warn() {
                    let error = response.refusal();
                    tracing::warn!(
                        issuer,
                        error,
                        suppressed,
                        "Could not read claims from the userinfo endpoint; the login failed."
                    );
                }
                Err(Unavailable::RETRY_SOON)
            }
        }
    }
}

const SIGNED: &str = "application/jwt";
