//! Token revocation at the issuer (RFC 7009), and removal of the access token from every cache.

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use core::time::Duration;
use std::sync::Arc;

use futures_util::future::join;
use tokio::runtime::Handle;

use crate::base::in_flight::InFlightCalls;
use crate::issuer::Unavailable;
use crate::issuer::{Client, Issuer, TokenHint};
use crate::session::store::state::SessionState;
use crate::token::Verifier;

/// Revokes the tokens of one client at one issuer.
#[derive(Debug)]
pub(crate) struct TokenRevoker {
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) client: Client,
    pub(crate) verifier: Option<Arc<Verifier>>,
    /// Whether to call the issuer's revocation endpoint.
    pub(crate) enabled: bool,
    pub(crate) control: Handle,
    /// Calls that a shutdown waits for.
    pub(crate) under_way: InFlightCalls,
    /// Revocations to be repeated because the issuer was unavailable.
    pub(crate) pending: AtomicUsize,
}

impl TokenRevoker {
    /// Revokes the access token at all instances, at once.
    pub(crate) fn end(&self, state: &SessionState) {
        if let Some(verifier) = &self.verifier {
            verifier.revoke(state.access_token.expose());
        }
    }

    /// Revokes the access token at all instances, at once, and both tokens at the issuer.
    ///
    /// The user is logged out in any case. While the issuer is unavailable the call is repeated.
    pub(crate) async fn revoke(self: &Arc<Self>, state: &SessionState) {
        self.end(state);
        if !self.enabled {
            return;
        }
        let under_way = self.under_way.begin();
        let Err(error) = self.revoke_tokens(state).await else { return };
        drop(under_way);
        let issuer = &*self.issuer.settings().name;
        tracing::warn!(issuer, %error, "Could not revoke tokens at the issuer; it will be retried.");
        self.retry_later(state.clone());
    }

    async fn revoke_tokens(&self, state: &SessionState) -> Result<(), Unavailable> {
        let refresh = async {
            match &state.refresh_token {
                Some(token) => {
                    self.issuer.revoke(token, TokenHint::RefreshToken, &self.client).await
                }
                None => Ok(()),
            }
        };
        let access = self.issuer.revoke(&state.access_token, TokenHint::AccessToken, &self.client);
        let (refresh, access) = join(refresh, access).await;
        refresh.and(access)
    }

    /// Revokes the tokens of a session in the background as soon as the issuer is available, unless too many are pending.
    fn retry_later(self: &Arc<Self>, state: SessionState) {
        let this = Arc::clone(self);
        if self.pending.fetch_add(1, Relaxed) >= MAX_PENDING {
            self.pending.fetch_sub(1, Relaxed);
            let issuer = &*self.issuer.settings().name;
            tracing::error!(
                issuer,
                most = MAX_PENDING,
                "Too many revocations are pending; tokens are not revoked at the issuer."
            );
            return;
        }
        self.control.spawn(async move {
            let mut pause = FIRST_PAUSE;
            for _ in 0..MAX_ATTEMPTS {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MAX_PAUSE);
                if this.revoke_tokens(&state).await.is_ok() {
                    break;
                }
            }
            this.pending.fetch_sub(1, Relaxed);
        });
    }
}

/// The pause before the first retry; each further one is twice as long …
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// … up to this.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// About twelve hours.
const MAX_ATTEMPTS: u32 = 720;
/// Revocations to be repeated, at once.
const MAX_PENDING: usize = 1_000;
