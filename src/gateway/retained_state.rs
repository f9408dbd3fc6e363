//! What outlives every reload. Snapshots borrow from it by key; an entry that no snapshot uses dies with the last that did.

use core::time::Duration;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;

use super::proxy::identity_token::SigningKeySet;
use crate::base::clock::Clock;
use crate::base::weak_map::WeakMap;
use crate::config::server::Server;
use crate::disk::{Directory, OpenError};
use crate::issuer::Issuer;
use crate::issuer::signing_key::SigningFailed;
use crate::limit;
use crate::observe::metrics::Metrics;
use crate::revocation_sync::RevocationSync;
use crate::session::{self, BasicExchange};
use crate::store::{self, Redis};
use crate::token::{IssuerVerifier, ReplayCache, RevocationList};
use crate::upstream::{Endpoint, EndpointKey};

/// What outlives every reload.
#[derive(Debug)]
pub struct RetainedState {
    /// The only reader of time.
    pub clock: Clock,
    /// Everything that is counted for the operator.
    pub metrics: Metrics,
    /// Where calls to authorization servers run.
    pub control: Handle,
    /// Addresses of services, with their load and health.
    pub(super) endpoints: WeakMap<EndpointKey, Endpoint>,
    /// What the limits have counted.
    pub(super) counts: limit::LimitRegistry,
    /// Authorization servers, with their keys and circuits, by their settings' fingerprint.
    pub(super) issuers: WeakMap<[u8; 32], Issuer>,
    /// Verdicts on tokens, by the fingerprint of issuer and rules.
    pub(super) judges: WeakMap<[u8; 32], IssuerVerifier>,
    /// Exchanged Basic credentials, by the same.
    pub(super) exchanges: WeakMap<[u8; 32], BasicExchange>,
    /// What several gateways share, by where it is.
    pub(super) stores: WeakMap<store::Settings, Redis>,
    /// The gateways that share them.
    pub(super) fleets: WeakMap<store::Settings, RevocationSync>,
    /// What sessions remember.
    pub(super) sessions: session::SessionRegistry,
    /// Proofs that were used with tokens.
    pub(super) spent: Arc<ReplayCache>,
    /// What identity tokens are signed with, once a route wants them.
    identity_keys: Mutex<Option<Arc<SigningKeySet>>>,
    /// What was revoked through the gateway.
    pub revocations: RevocationList,
}

impl RetainedState {
    /// Nothing kept yet.
    pub fn new(clock: Clock, metrics: Metrics, control: Handle) -> Self {
        let revocations = RevocationList::new(clock.clone());
        Self {
            sessions: session::SessionRegistry::new(revocations.clone()),
            revocations,
            clock,
            metrics,
            control,
            endpoints: WeakMap::default(),
            counts: limit::LimitRegistry::default(),
            issuers: WeakMap::default(),
            judges: WeakMap::default(),
            exchanges: WeakMap::default(),
            stores: WeakMap::default(),
            fleets: WeakMap::default(),
            spent: Arc::default(),
            identity_keys: Mutex::default(),
        }
    }

    /// Keeps in `directory` what must not live again after a restart, and remembers what the processes before have
    /// kept there. To be called before a snapshot is compiled.
    ///
    /// # Errors
    ///
    /// If that cannot be read.
    pub fn keep_in(&self, directory: &Directory) -> Result<(), OpenError> {
        directory.sweep();
        self.revocations.persist_in(directory)?;
        self.spent.keep_in(directory, self.clock.clone())
    }

    /// The keys of identity tokens: the operator's, or those that are made here, once.
    pub(super) fn identity_keys(
        &self,
        server: &Server,
    ) -> Result<Arc<SigningKeySet>, SigningFailed> {
        if !server.identity_keys.is_empty() {
            return Ok(Arc::new(SigningKeySet::given(&server.identity_keys, self.clock.clone())));
        }
        let mut kept = self.identity_keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = &*kept {
            return Ok(Arc::clone(keys));
        }
        let place = server.state_dir.clone();
        let keys = Arc::new(SigningKeySet::made(place, self.clock.clone(), self.control.clone())?);
        Ok(Arc::clone(kept.insert(keys)))
    }

    /// Waits until nothing is under way whose loss would end a session, but no longer than `patience`.
    pub async fn settle(&self, patience: Duration) {
        let left = self.sessions.settle(patience).await;
        if left > 0 {
            tracing::warn!(
                left,
                "Calls to authorization servers were cut off: sessions may be lost."
            );
        }
    }

    /// What the limits have counted, to be swept, saved and remembered.
    pub const fn counts(&self) -> &limit::LimitRegistry {
        &self.counts
    }
}
