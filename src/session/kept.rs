//! What outlives a reload: counts, endings, sessions on the server, and what
//! came of refresh tokens lately.

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use tokio::runtime::Handle;

use super::endings::Endings;
use super::failures::Failures;
use super::refresh::Redeemed;
use super::seal::KeyRing;
use super::settings::{self, Settings, TokenStorage};
use super::sharing::Sharing;
use super::store::{Memory as Visits, Store};
use crate::base::clock::Clock;
use crate::base::shelf::Shelf;
use crate::store::Redis;

/// The memory of all sessions; one per process.
#[derive(Debug, Default)]
pub struct Kept {
    memories: Shelf<Key, Memory>,
    failures: Shelf<(Key, settings::Failures), Failures>,
    redis: ArcSwapOption<Redis>,
}

impl Kept {
    /// Shares sessions that are made from now on with other gateways, in `redis`.
    pub fn share(&self, redis: Option<Arc<Redis>>) {
        self.redis.store(redis);
    }

    /// Where sessions are shared, if they are.
    pub(super) fn redis(&self) -> Option<Arc<Redis>> {
        self.redis.load_full()
    }

    /// The memory of the session that `settings` describe.
    pub(super) fn memory(&self, settings: &Settings, control: &Handle) -> Arc<Memory> {
        self.memories.keep(key(settings), || Memory {
            ring: OnceLock::new(),
            redeemed: Arc::new(Redeemed::new(control.clone())),
            endings: Arc::new(Endings::new()),
            visits: OnceLock::new(),
        })
    }

    /// The counts of failed logins there; a changed limit begins new ones.
    pub(super) fn failures(&self, settings: &Settings, clock: &Clock) -> Arc<Failures> {
        let allowed = settings.login_failures;
        self.failures.keep((key(settings), allowed), || Failures::new(allowed, clock.clone()))
    }
}

/// What one session remembers as long as anybody uses it.
#[derive(Debug)]
pub(super) struct Memory {
    ring: OnceLock<Arc<KeyRing>>,
    pub(super) redeemed: Arc<Redeemed>,
    pub(super) endings: Arc<Endings>,
    visits: OnceLock<Arc<Visits>>,
}

impl Memory {
    /// The keys: the operator's, or a random one that lives as long as this memory.
    pub(super) fn ring(&self, settings: &Settings) -> Arc<KeyRing> {
        if settings.keys.is_empty() {
            Arc::clone(self.ring.get_or_init(|| Arc::new(KeyRing::new(&[]))))
        } else {
            Arc::new(KeyRing::new(&settings.keys))
        }
    }

    /// Where sessions are kept, if it is on the server; with `store: redis`, by `sharing`.
    pub(super) fn store(
        &self,
        settings: &Settings,
        sharing: Option<&Arc<Sharing>>,
        control: &Handle,
    ) -> Option<Arc<Store>> {
        let TokenStorage::Server(store) = settings.tokens else { return None };
        let visits = self.visits.get_or_init(|| Arc::new(Visits::new()));
        visits.forget_after(settings.idle_timeout);
        let sharing = sharing.filter(|_| store == settings::Store::Redis);
        Some(Arc::new(Store::new(Arc::clone(visits), sharing.cloned(), control.clone())))
    }
}

/// Session, issuer and client: with another of these it is another session.
type Key = (Arc<str>, Arc<str>, Arc<str>);

fn key(settings: &Settings) -> Key {
    let Settings { name, issuer, client, .. } = settings;
    (Arc::clone(name), Arc::clone(issuer), Arc::clone(&client.id))
}
