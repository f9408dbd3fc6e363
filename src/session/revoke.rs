//! Giving tokens back (RFC 7009), and making every cache forget them.

use std::sync::Arc;

use futures_util::future::join;

use super::visit::Visit;
use crate::issuer::{Client, Issuer, TokenHint};
use crate::token::Verifier;

/// Gives back what one client was given at one issuer.
#[derive(Debug)]
pub(super) struct Revoker {
    pub(super) issuer: Arc<Issuer>,
    pub(super) client: Client,
    pub(super) verifier: Option<Arc<Verifier>>,
    /// Whether the issuer is told at all.
    pub(super) enabled: bool,
}

impl Revoker {
    /// Ends the access token here and in the fleet at once.
    pub(super) fn end(&self, visit: &Visit) {
        if let Some(verifier) = &self.verifier {
            verifier.revoke(visit.access_token.expose());
        }
    }

    /// Ends the access token here and in the fleet at once, and revokes both tokens at the issuer.
    /// A bare one is only given back: whether it ever was a token, the issuer knows.
    ///
    /// An issuer that cannot be told is only logged: the person is logged out here in any case.
    pub(super) async fn revoke(&self, visit: &Visit) {
        if !visit.is_bare() {
            self.end(visit);
        }
        if !self.enabled {
            return;
        }
        let refresh = async {
            match &visit.refresh_token {
                Some(token) => {
                    self.issuer.revoke(token, TokenHint::RefreshToken, &self.client).await
                }
                None => Ok(()),
            }
        };
        let access = self.issuer.revoke(&visit.access_token, TokenHint::AccessToken, &self.client);
        if let (Err(error), _) | (_, Err(error)) = join(refresh, access).await {
            let issuer = &*self.issuer.settings().name;
            tracing::warn!(issuer, %error, "A logout could not be told to the issuer.");
        }
    }
}
