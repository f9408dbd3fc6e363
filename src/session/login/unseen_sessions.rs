//! Sessions that a browser had when a login began, and whose cookies it does not send with the callback.
//!
//! A callback comes from the issuer's site, and browsers send no cookie with
//! `SameSite=Strict` along. The login names the session that it replaces, and
//! the session itself waits here, since only its own tokens can be revoked.

use std::sync::Arc;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::login_transaction::TRANSACTION_LIFETIME;
use crate::session::store::loaded_session::LoadedSession;
use crate::session::store::state::Id;

/// The sessions of browsers that are about to log in again. Survive a reload.
#[derive(Debug)]
pub(crate) struct UnseenSessions(Cache<Id, Arc<LoadedSession>>);

impl UnseenSessions {
    pub(crate) fn new() -> Self {
        let sessions = Cache::builder().max_capacity(MAX_UNSEEN).time_to_live(TRANSACTION_LIFETIME);
        // The newest is the one that is needed: none is refused admission.
        Self(sessions.eviction_policy(EvictionPolicy::lru()).build())
    }

    /// Keeps the session until its login ends.
    pub(super) fn keep(&self, loaded: Arc<LoadedSession>) {
        self.0.insert(loaded.state.id, loaded);
    }

    /// Removes and returns the session `id`.
    pub(super) fn take(&self, id: Id) -> Option<Arc<LoadedSession>> {
        self.0.remove(&id)
    }
}

/// Sessions kept, each about the size of its tokens.
const MAX_UNSEEN: u64 = 10_000;
