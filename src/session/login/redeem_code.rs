//! Redeems the authorization code of a login for its session.

use std::sync::Arc;

use super::code_redemptions::{RedeemedCode, RedemptionKey};
use super::login_transaction::LoginTransaction;
use crate::base::secret::Secret;
use crate::issuer::{Grant, GrantError};
use crate::session::Sessions;
use crate::session::store::loaded_session::LoadedSession;
use crate::session::store::state::{GRACE, SessionState};

impl Sessions {
    /// Redeems the `code` that the issuer has returned for `login`, or returns the session of another request that did.
    ///
    /// A request waits as long as for any call to the issuer; the redemption continues, and a repeated request finds
    /// its session.
    pub(crate) async fn redeem(
        &self,
        code: Secret<String>,
        login: &LoginTransaction,
    ) -> Result<Arc<RedeemedCode>, RedemptionError> {
        let (issuer, client) = (Arc::clone(&self.issuer), self.settings.client.clone());
        let (resource, clock) = (self.settings.resource.clone(), self.clock.clone());
        let (redirect_uri, verifier) = (self.redirect_uri(), login.verifier());
        let key = RedemptionKey::new(&code, &verifier);
        let (control, revoker) = (self.control.clone(), Arc::clone(&self.revoker));
        // A request that has found the session at the last moment still has time to begin it.
        let patience = GRACE + 3 * self.issuer.settings().timeout;
        let redeem = || async move {
            let (redirect_uri, resource) = (&*redirect_uri, resource.as_ref());
            let grant = Grant::Code { code: &code, redirect_uri, verifier: &verifier, resource };
            let tokens = issuer.grant_with_extended_timeout(grant, &client).await?;
            let redeemed = Arc::new(RedeemedCode::new(SessionState::begin(tokens, clock.now())));
            let abandoned = Arc::clone(&redeemed);
            control.spawn(async move {
                tokio::time::sleep(patience).await;
                // No request has begun the session by then: its user agent has hung up.
                if abandoned.give_up() {
                    revoker.revoke_at_issuer(&abandoned.state).await;
                }
            });
            Ok(redeemed)
        };
        let redeemed = self.retained.codes.run(key, redeem);
        let redeemed = match tokio::time::timeout(self.issuer.settings().timeout, redeemed).await {
            Ok(Ok(redeemed)) => redeemed,
            Ok(Err(GrantError::InvalidGrant)) => return Err(RedemptionError::Refused),
            Ok(Err(GrantError::Unavailable | GrantError::NotAsked)) => {
                return Err(RedemptionError::Unavailable);
            }
            Err(_) => return Err(RedemptionError::Late),
        };
        let loaded = LoadedSession::new(redeemed.state.clone(), self.settings.forward);
        if loaded.end_reason(&self.retained.ended).is_some() || redeemed.is_given_up() {
            return Err(RedemptionError::Over);
        }
        Ok(redeemed)
    }
}

/// The reason why a code leads to no session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum RedemptionError {
    /// The issuer refused the code (`invalid_grant`).
    Refused,
    /// The issuer is unavailable.
    Unavailable,
    /// The issuer has not responded yet. The call continues.
    Late,
    /// The session that an earlier request began has ended, or it was given up.
    Over,
}
