//! State that outlives every reload. Snapshots take entries by key; an entry is dropped with the last snapshot that
//! uses it.

use core::time::Duration;
use std::sync::{Arc, Mutex};

use tokio::runtime::Handle;

use super::proxy::identity_token::SigningKeySet;
use super::proxy::stale_responses::StaleResponses;
use crate::base::clock::Clock;
use crate::base::lock::IgnorePoison;
use crate::base::weak_map::WeakMap;
use crate::basic::BasicExchange;
use crate::config::server::Server;
use crate::disk::{Directory, OpenError};
use crate::issuer::Issuer;
use crate::issuer::keys::signing_key::SigningFailed;
use crate::limit;
use crate::observe::metrics::Metrics;
use crate::password::LoginThrottles;
use crate::redis::{self, Redis};
use crate::revocation_sync::RevocationSync;
use crate::session;
use crate::token::{IssuerVerifier, ReplayCache, RevocationList};
use crate::upstream::UpstreamRegistry;

/// State that outlives every reload.
#[derive(Debug)]
pub struct RetainedState {
    /// The injected clock.
    pub clock: Clock,
    /// All metrics.
    pub metrics: Metrics,
    /// The runtime of calls to authorization servers.
    pub control: Handle,
    /// Upstream endpoints, with their load and health, and the tasks that check them.
    pub(super) upstreams: Arc<UpstreamRegistry>,
    /// The last good responses of routes, by route, age and size.
    pub(super) stale_responses: WeakMap<(Arc<str>, Duration, u64), StaleResponses>,
    /// The counters of limits.
    pub(super) counts: limit::LimitRegistry,
    /// Authorization servers, with their keys and circuit breakers, by the fingerprint of their settings.
    pub(super) issuers: WeakMap<[u8; 32], Issuer>,
    /// Token verifiers with their caches, by the fingerprint of issuer and rules.
    pub(super) issuer_verifiers: WeakMap<[u8; 32], IssuerVerifier>,
    /// Exchanged Basic credentials, by the same fingerprint.
    pub(super) exchanges: WeakMap<[u8; 32], BasicExchange>,
    /// Redis clients, by their settings.
    pub(super) redis_clients: WeakMap<redis::Settings, Redis>,
    /// The stores of shared limits, by the settings of their Redis.
    pub(super) limit_stores: WeakMap<redis::Settings, limit::LimitStore>,
    /// The exchange of revocations through each Redis.
    pub(super) revocation_syncs: WeakMap<redis::Settings, RevocationSync>,
    /// Failed logins with passwords.
    pub(super) throttles: Arc<LoginThrottles>,
    /// Session state: stores, refreshes under way, ended sessions.
    pub(super) sessions: session::SessionRegistry,
    /// `DPoP` proofs and other one-time values that were used.
    pub(super) replay_cache: Arc<ReplayCache>,
    /// The signing keys of identity tokens, once a route uses them.
    identity_keys: Mutex<Option<Arc<SigningKeySet>>>,
    /// Revoked tokens, subjects and sessions.
    pub revocations: RevocationList,
}

impl RetainedState {
    /// Creates empty state.
    pub fn new(clock: Clock, metrics: Metrics, control: Handle) -> Self {
        let revocations = RevocationList::new(clock.clone());
        let throttles: Arc<LoginThrottles> = Arc::default();
        Self {
            sessions: session::SessionRegistry::new(revocations.clone(), Arc::clone(&throttles)),
            throttles,
            revocations,
            clock,
            metrics,
            control,
            upstreams: Arc::default(),
            stale_responses: WeakMap::default(),
            counts: limit::LimitRegistry::default(),
            issuers: WeakMap::default(),
            issuer_verifiers: WeakMap::default(),
            exchanges: WeakMap::default(),
            redis_clients: WeakMap::default(),
            limit_stores: WeakMap::default(),
            revocation_syncs: WeakMap::default(),
            replay_cache: Arc::default(),
            identity_keys: Mutex::default(),
        }
    }

    /// Persists in `directory` the revocations, made and pending, and the used proofs that must survive a restart, and
    /// loads those of earlier processes. To be called before a snapshot is compiled.
    ///
    /// # Errors
    ///
    /// `OpenError` if the files cannot be read.
    pub fn persist_in(&self, directory: &Directory) -> Result<(), OpenError> {
        directory.sweep();
        self.revocations.persist_in(directory)?;
        self.sessions.persist_in(directory, self.clock.clone())?;
        self.replay_cache.keep_in(directory, self.clock.clone())
    }

    /// Returns the signing keys of identity tokens: the operator's, or generated ones.
    pub(super) fn identity_keys(
        &self,
        server: &Server,
    ) -> Result<Arc<SigningKeySet>, SigningFailed> {
        if !server.identity_keys.is_empty() {
            return Ok(Arc::new(SigningKeySet::configured(
                &server.identity_keys,
                self.clock.clone(),
            )));
        }
        let mut generated = self.identity_keys.lock().ignore_poison();
        if let Some(keys) = &*generated {
            return Ok(Arc::clone(keys));
        }
        let state_dir = server.state_dir.clone();
        let keys = Arc::new(SigningKeySet::generated(
            state_dir,
            self.clock.clone(),
            self.control.clone(),
        )?);
        Ok(Arc::clone(generated.insert(keys)))
    }

    /// Waits up to `timeout` for calls whose loss would end a session.
    pub async fn drain(&self, timeout: Duration) {
        self.counts.drain(timeout.min(LEASE_RETURN_TIMEOUT)).await;
        let aborted = self.sessions.drain(timeout).await;
        if aborted > 0 {
            tracing::warn!(
                aborted,
                "Aborted calls to authorization servers at shutdown; sessions may be lost."
            );
        }
    }

    /// Returns the counters of limits, to be swept, saved and loaded.
    pub const fn counts(&self) -> &limit::LimitRegistry {
        &self.counts
    }
}

/// How long the last instance of a Redis waits for a Redis that may be gone, to return its leases.
const LEASE_RETURN_TIMEOUT: Duration = Duration::from_secs(1);
