//! Sessions that a browser had when a login began, and whose cookies it does not send with the callback.
//!
//! A callback comes from the issuer's site, and browsers send no cookie with
//! `SameSite=Strict` along. The login names the session that it replaces, and
//! the session itself waits here, since only its own tokens can be revoked.

use std::sync::Arc;

use http::request::Parts;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::login_transaction::TRANSACTION_LIFETIME;
use crate::session::Sessions;
use crate::session::logout::ended_sessions::EndReason;
use crate::session::settings::SameSite;
use crate::session::store::loaded_session::LoadedSession;
use crate::session::store::state::Id;

impl Sessions {
    /// Returns the session of a browser that begins a login, if its cookie will not be sent with the callback.
    pub(super) async fn unseen_session(&self, request: &Parts) -> Option<Id> {
        if self.settings.cookie.same_site != SameSite::Strict {
            return None;
        }
        let loaded = self.storage.open(&self.presented_cookies(&request.headers)).await.ok()??;
        let id = loaded.state.id;
        self.retained.unseen_sessions.0.insert(id, loaded);
        Some(id)
    }

    /// Ends the session `id` that a browser had before `loaded`, and revokes its tokens, if it has begun the login at this
    /// instance.
    pub(super) async fn replace_unseen(&self, id: Id, loaded: &LoadedSession) {
        match self.retained.unseen_sessions.0.remove(&id) {
            Some(earlier) => self.replace(&earlier, loaded).await,
            None if id == loaded.state.id => {}
            None => {
                self.retained.ended.end(&id.alias().into(), EndReason::Replaced);
                self.forget(id).await;
            }
        }
    }
}

/// The sessions of browsers that are about to log in again. Survive a reload.
#[derive(Debug)]
pub(crate) struct UnseenSessions(Cache<Id, Arc<LoadedSession>>);

impl UnseenSessions {
    pub(crate) fn new() -> Self {
        let sessions = Cache::builder().max_capacity(MAX_UNSEEN).time_to_live(TRANSACTION_LIFETIME);
        // The newest is the one that is needed: none is refused admission.
        Self(sessions.eviction_policy(EvictionPolicy::lru()).build())
    }
}

/// Sessions kept, each about the size of its tokens.
const MAX_UNSEEN: u64 = 10_000;
