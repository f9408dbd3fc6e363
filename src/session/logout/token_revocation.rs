//! Giving tokens back (RFC 7009), and making every cache forget them.

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use core::time::Duration;
use std::sync::Arc;

use futures_util::future::join;
use tokio::runtime::Handle;

use crate::base::in_flight::InFlightCalls;
use crate::issuer::{Client, Issuer, TokenHint, Unavailable};
use crate::session::store::state::SessionState;
use crate::token::Verifier;

/// Gives back what one client was given at one issuer.
#[derive(Debug)]
pub(crate) struct TokenRevoker {
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) client: Client,
    pub(crate) verifier: Option<Arc<Verifier>>,
    /// Whether the issuer is told at all.
    pub(crate) enabled: bool,
    pub(crate) control: Handle,
    /// Calls that a process which ends waits for.
    pub(crate) under_way: InFlightCalls,
    /// Logouts that the issuer could not be told of yet.
    pub(crate) owed: AtomicUsize,
}

impl TokenRevoker {
    /// Ends the access token here and in the fleet at once.
    pub(crate) fn end(&self, visit: &SessionState) {
        if let Some(verifier) = &self.verifier {
            verifier.revoke(visit.access_token.expose());
        }
    }

    /// Ends the access token here and in the fleet at once, and revokes both tokens at the issuer.
    ///
    /// The person is logged out here in any case. An issuer that cannot be told now is told later.
    pub(crate) async fn revoke(self: &Arc<Self>, visit: &SessionState) {
        self.end(visit);
        if !self.enabled {
            return;
        }
        let under_way = self.under_way.begin();
        let Err(error) = self.give_back(visit).await else { return };
        drop(under_way);
        let issuer = &*self.issuer.settings().name;
        tracing::warn!(issuer, %error, "A logout could not be told to the issuer: it is told later.");
        self.owe(visit.clone());
    }

    async fn give_back(&self, visit: &SessionState) -> Result<(), Unavailable> {
        let refresh = async {
            match &visit.refresh_token {
                Some(token) => {
                    self.issuer.revoke(token, TokenHint::RefreshToken, &self.client).await
                }
                None => Ok(()),
            }
        };
        let access = self.issuer.revoke(&visit.access_token, TokenHint::AccessToken, &self.client);
        let (refresh, access) = join(refresh, access).await;
        refresh.and(access)
    }

    /// Gives the tokens of `session_state` back as soon as the issuer takes them, unless there is too much of that already.
    fn owe(self: &Arc<Self>, visit: SessionState) {
        let this = Arc::clone(self);
        if self.owed.fetch_add(1, Relaxed) >= MAX_OWED {
            self.owed.fetch_sub(1, Relaxed);
            let issuer = &*self.issuer.settings().name;
            tracing::error!(issuer, most = MAX_OWED, "A logout is not told to the issuer at all.");
            return;
        }
        self.control.spawn(async move {
            let mut pause = FIRST_PAUSE;
            for _ in 0..MAX_ATTEMPTS {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MAX_PAUSE);
                if this.give_back(&visit).await.is_ok() {
                    break;
                }
            }
            this.owed.fetch_sub(1, Relaxed);
        });
    }
}

/// Before the issuer is told again; each next time it is twice as long…
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// … up to this.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// Some twelve hours.
const MAX_ATTEMPTS: u32 = 720;
/// Logouts that are told later, at once.
const MAX_OWED: usize = 1_000;
