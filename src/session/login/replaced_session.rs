//! The session that a browser had when its login began, and that the new session replaces.

use http::request::Parts;

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
        self.retained.unseen_sessions.keep(loaded);
        Some(id)
    }

    /// Ends the session `id` that a browser had before `loaded`, and revokes its tokens, if it has begun the login at this
    /// instance.
    pub(super) async fn replace_unseen(&self, id: Id, loaded: &LoadedSession) {
        match self.retained.unseen_sessions.take(id) {
            Some(earlier) => self.replace(&earlier, loaded).await,
            None if id == loaded.state.id => {}
            None => {
                self.retained.ended.end(&id.alias().into(), EndReason::Replaced);
                self.forget(id).await;
            }
        }
    }
}
