//! What outlives a reload: counts, endings, sessions on the server, and what
//! came of refresh tokens lately.

use std::sync::{Arc, OnceLock};

use tokio::runtime::Handle;

use super::endings::Endings;
use super::failures::Failures;
use super::refresh::Redeemed;
use super::seal::KeyRing;
use super::settings::{self, Settings, TokenStorage};
use super::store::Store;
use crate::base::clock::Clock;
use crate::base::shelf::Shelf;

/// The memory of all sessions; one per process.
#[derive(Debug, Default)]
pub struct Kept {
    memories: Shelf<Key, Memory>,
    failures: Shelf<(Key, settings::Failures), Failures>,
}

impl Kept {
    /// The memory of the session that `settings` describe.
    pub(super) fn memory(&self, settings: &Settings, control: &Handle) -> Arc<Memory> {
        self.memories.keep(key(settings), || Memory {
            ring: OnceLock::new(),
            redeemed: Arc::new(Redeemed::new(control.clone())),
            endings: Arc::new(Endings::new()),
            store: OnceLock::new(),
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
    store: OnceLock<Arc<Store>>,
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

    /// Where sessions are kept, if it is on the server.
    pub(super) fn store(&self, settings: &Settings) -> Option<Arc<Store>> {
        let TokenStorage::Server(settings::Store::Memory) = settings.tokens else { return None };
        let store = self.store.get_or_init(|| Arc::new(Store::memory()));
        store.forget_after(settings.idle_timeout);
        Some(Arc::clone(store))
    }
}

/// Session, issuer and client: with another of these it is another session.
type Key = (Arc<str>, Arc<str>, Arc<str>);

fn key(settings: &Settings) -> Key {
    let Settings { name, issuer, client, .. } = settings;
    (Arc::clone(name), Arc::clone(issuer), Arc::clone(&client.id))
}
