//! Claims about a user from the userinfo endpoint (OpenID Connect Core §5.3).

use http::{HeaderValue, StatusCode};
use serde_json::{Map, Value};

use super::call_purpose::Purpose;
use super::calls::Inner;
use super::unavailable::Unavailable;
use crate::base::secret::Secret;
use crate::base::strict_json;
use crate::observe::metrics::Endpoint;

impl Inner {
    /// Fetches the claims of the user that `access_token` was issued for. Runs on the control runtime.
    ///
    /// Received over TLS from the configured server, and so not signed; a signed response is one that the operator has
    /// not asked for, and unusable.
    pub(super) async fn userinfo(
        &self,
        access_token: &Secret<String>,
    ) -> Result<Map<String, Value>, Unavailable> {
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
        let claims = strict_json::parse_object(&response.body);
        match claims {
            Ok(claims) if response.status == StatusCode::OK => Ok(claims),
            _ => {
                if let Some(suppressed) = self.http_client.may_warn() {
                    let error = response.refusal();
                    tracing::warn!(
                        issuer,
                        error,
                        suppressed,
                        "The userinfo endpoint returned no claims."
                    );
                }
                Err(Unavailable::RETRY_SOON)
            }
        }
    }
}
