//! Deferred logout: a session that is stored in Redis alone, which was unavailable at the logout, ends once Redis
//! responds again.

use std::sync::Arc;

use futures_util::FutureExt;
use tokio::runtime::Handle;

use super::ended_sessions::EndedSessions;
use super::pending_revocations::PendingEntry;
use super::token_revocation::TokenRevoker;
use super::unseen_logouts::{UnseenLogout, UnseenLogouts};
use crate::base::abort_on_drop::AbortOnDrop;
use crate::session::store::state::Id;
use crate::session::store::storage::SessionStorage;
use crate::token::{Revocation, RevocationTarget};

/// Starts the task that takes over pending logouts and revocations of earlier processes, and of instances that no
/// longer run.
pub(crate) fn take_over_pending(
    storage: &Arc<SessionStorage>,
    revoker: &Arc<TokenRevoker>,
    ended: &Arc<EndedSessions>,
    unseen: &Arc<UnseenLogouts>,
    control: &Handle,
) -> AbortOnDrop {
    let (storage, published) = (Arc::clone(storage), Arc::clone(ended));
    let (again, unseen) = (Arc::clone(revoker), Arc::clone(unseen));
    let task = Arc::clone(revoker).take_over(move |id, entry| {
        let permit = unseen.admit(None);
        permit
            .is_some_and(|permit| end_unseen(&storage, &again, &published, id, Some(entry), permit))
    });
    AbortOnDrop(control.spawn(task).abort_handle())
}

/// Ends the session `id` when Redis can be read, revokes its tokens, and removes `entry`; returns `false` if too many
/// are pending.
pub(super) fn end_unseen(
    storage: &SessionStorage,
    revoker: &Arc<TokenRevoker>,
    ended: &Arc<EndedSessions>,
    id: Id,
    entry: Option<PendingEntry>,
    permit: UnseenLogout,
) -> bool {
    let (revoker, published) = (Arc::clone(revoker), Arc::clone(ended));
    let what = RevocationTarget::GatewaySession(id.alias().into());
    let revocation = Revocation { issuer: None, what };
    // Published once the tokens are at hand: an instance that learned of the end first would not revoke them.
    storage.end_unseen(id, move |loaded| {
        async move {
            published.revoke(revocation);
            if let Some(loaded) = loaded {
                revoker.revoke(&loaded.state).await;
            }
            revoker.done(entry).await;
            drop(permit);
        }
        .boxed()
    })
}
