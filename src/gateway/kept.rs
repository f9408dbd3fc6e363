//! What outlives every reload. Snapshots borrow from it by key; an entry that no snapshot uses dies with the last that did.

use core::time::Duration;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;

use super::fleet::Fleet;
use super::identity_token::Keys;
use crate::base::clock::Clock;
use crate::base::shelf::Shelf;
use crate::config::serving::Server;
use crate::disk::{Directory, OpenError};
use crate::issuer::Issuer;
use crate::issuer::sign::SigningFailed;
use crate::limit;
use crate::observe::metrics::Metrics;
use crate::session::{self, BasicExchange};
use crate::store::{self, Redis};
use crate::token::{Judge, Revocations, Spent};
use crate::upstream::{Endpoint, EndpointKey};

/// What outlives every reload.
#[derive(Debug)]
pub struct Kept {
    /// The only reader of time.
    pub clock: Clock,
    /// Everything that is counted for the operator.
    pub metrics: Metrics,
    /// Where calls to authorization servers run.
    pub control: Handle,
    /// Addresses of services, with their load and health.
    pub(super) endpoints: Shelf<EndpointKey, Endpoint>,
    /// What the limits have counted.
    pub(super) counts: limit::Kept,
    /// Authorization servers, with their keys and circuits, by their settings' fingerprint.
    pub(super) issuers: Shelf<[u8; 32], Issuer>,
    /// Verdicts on tokens, by the fingerprint of issuer and rules.
    pub(super) judges: Shelf<[u8; 32], Judge>,
    /// Exchanged Basic credentials, by the same.
    pub(super) exchanges: Shelf<[u8; 32], BasicExchange>,
    /// What several gateways share, by where it is.
    pub(super) stores: Shelf<store::Settings, Redis>,
    /// The gateways that share them.
    pub(super) fleets: Shelf<store::Settings, Fleet>,
    /// What sessions remember.
    pub(super) sessions: session::Kept,
    /// Proofs that were used with tokens.
    pub(super) spent: Arc<Spent>,
    /// What identity tokens are signed with, once a route wants them.
    identity_keys: Mutex<Option<Arc<Keys>>>,
    /// What was revoked through the gateway.
    pub revocations: Revocations,
}

impl Kept {
    /// Nothing kept yet.
    pub fn new(clock: Clock, metrics: Metrics, control: Handle) -> Self {
        let revocations = Revocations::new(clock.clone());
        Self {
            sessions: session::Kept::new(revocations.clone()),
            revocations,
            clock,
            metrics,
            control,
            endpoints: Shelf::default(),
            counts: limit::Kept::default(),
            issuers: Shelf::default(),
            judges: Shelf::default(),
            exchanges: Shelf::default(),
            stores: Shelf::default(),
            fleets: Shelf::default(),
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
        self.revocations.keep_in(directory)?;
        self.spent.keep_in(directory, self.clock.clone())
    }

    /// The keys of identity tokens: the operator's, or those that are made here, once.
    pub(super) fn identity_keys(&self, server: &Server) -> Result<Arc<Keys>, SigningFailed> {
        if !server.identity_keys.is_empty() {
            return Ok(Arc::new(Keys::given(&server.identity_keys, self.clock.clone())));
        }
        let mut kept = self.identity_keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = &*kept {
            return Ok(Arc::clone(keys));
        }
        let place = server.state_dir.clone();
        let keys = Arc::new(Keys::made(place, self.clock.clone(), self.control.clone())?);
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
    pub const fn counts(&self) -> &limit::Kept {
        &self.counts
    }
}
