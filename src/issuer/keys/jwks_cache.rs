//! The cache of an issuer's metadata and JWK set, refreshed in the background.
//!
//! A request waits only if no key for its token is at hand. The JWK set is
//! refreshed before it is stale; if that fails the old set stays valid,
//! without end, and the refresh is retried after 1 s, doubling to 30 s. A token
//! signed with an unknown key causes one fetch, shared by all requests, and no
//! other for a while.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use core::time::Duration;
use std::sync::{Arc, Mutex, MutexGuard};

use arc_swap::{ArcSwap, ArcSwapOption};
use http::StatusCode;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use url::Url;

use super::jwks::Jwks;
use super::jwks_freshness::{lifetime, refresh_after};
use super::jwks_storage;
use super::unknown_key::{UnknownKey, UnknownKeyLimiter};
use super::unusable_key::UnusableKey;
use crate::base::clock::Clock;
use crate::base::lock::IgnorePoison;
use crate::base::single_flight::SingleFlight;
use crate::issuer::calls::circuit_breaker::backoff;
use crate::issuer::calls::http_client::{IssuerClient, Response};
use crate::issuer::calls::unavailable::Unavailable;
use crate::issuer::endpoints::metadata::{Metadata, well_known};
use crate::issuer::settings::{Discovery, Settings};
use crate::observe::metrics::{Endpoint, IssuerMetrics};

/// An issuer's metadata and JWK set, as of the last successful fetch.
pub(in crate::issuer) struct ProviderCache {
    settings: Arc<Settings>,
    http_client: Arc<IssuerClient>,
    clock: Clock,
    metrics: Arc<IssuerMetrics>,
    control: Handle,
    metadata: ArcSwap<Metadata>,
    keys: ArcSwapOption<Jwks>,
    responded: AtomicBool,
    progress: Mutex<RefreshProgress>,
    fetches: SingleFlight<(), Result<Fetched, Unavailable>>,
    /// Notified when the next attempt is moved forward.
    wake: Notify,
}

/// The state of fetching. Times are uptimes.
#[derive(Debug, Default)]
struct RefreshProgress {
    /// An attempt is under way.
    fetching: bool,
    /// At least one attempt has ended.
    tried: bool,
    /// Attempts failed in a row, the last one included.
    failures: u32,
    next_attempt: Duration,
    discovered_at: Option<Duration>,
    /// The time at which an unknown key last caused a fetch.
    unknown_key_fetch_at: Option<Duration>,
    unknown: UnknownKeyLimiter,
    /// The time since which the published set has no usable key, while a good one is still in use.
    unusable_since: Option<Duration>,
    /// The JWK set as last received: an equal one need not be parsed.
    jwks_text: Vec<u8>,
    /// The time of the last successful fetch of the JWK set.
    jwks_fetched_at: Option<Duration>,
}

/// The reason for an attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum RefreshReason {
    /// The refresh is due.
    Due,
    /// A token names an unknown key.
    UnknownKey,
}

/// The result of an attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fetched {
    /// The issuer was called.
    Now,
    /// No call was needed: another caller made one a moment ago.
    Before,
}

/// The result of fetching metadata.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Lookup {
    /// All documents.
    All,
    /// One document; another could not be fetched. Members of that one may be missing, and it is tried again soon.
    Part,
    Nothing,
}

impl ProviderCache {
    /// Returns the cache of an issuer. Until the issuer responds it has what a predecessor has fetched from the same
    /// place, else the JWK set that the previous run has saved.
    pub(in crate::issuer) fn new(
        settings: Arc<Settings>,
        predecessors: &[&Self],
        http_client: Arc<IssuerClient>,
        clock: Clock,
        metrics: Arc<IssuerMetrics>,
        control: Handle,
    ) -> Self {
        let provider_cache = Self {
            metadata: ArcSwap::from_pointee(Metadata::configured(&settings)),
            keys: ArcSwapOption::empty(),
            responded: AtomicBool::new(false),
            progress: Mutex::default(),
            fetches: SingleFlight::new(control.clone()),
            wake: Notify::new(),
            settings,
            http_client,
            clock,
            metrics,
            control,
        };
        let shares_jwks =
            |other: &&&Self| provider_cache.settings.shares_jwks_with(&other.settings);
        let predecessors = predecessors.iter().filter(shares_jwks);
        match predecessors.max_by_key(|other| other.progress().jwks_fetched_at) {
            Some(predecessor) if provider_cache.succeed(predecessor) => {}
            _ => provider_cache.take_given_keys(),
        }
        if !provider_cache.has_something_to_fetch() {
            provider_cache.progress().tried = true;
            provider_cache.responded.store(true, Relaxed);
        }
        provider_cache
    }

    /// Refreshes everything when it is due; never returns.
    pub(in crate::issuer) async fn run(self: Arc<Self>) {
        while self.has_something_to_fetch() {
            // A failure is recorded and logged where it happens; here it only sets the pace.
            let _ = self.fetch(RefreshReason::Due).await;
            loop {
                let wait = self.progress().next_attempt.saturating_sub(self.clock.uptime());
                if wait.is_zero() {
                    break;
                }
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = self.wake.notified() => {}
                }
            }
        }
    }

    /// Returns the JWK set at hand.
    pub(in crate::issuer) fn keys(&self) -> Option<Arc<Jwks>> {
        self.keys.load_full()
    }

    /// Returns the JWK set, fetched again if the one at hand lacks `kid`, or without `kid` the key of a token that has this
    /// `signature`.
    ///
    /// Returns the one at hand, unchanged, if the issuer was called a moment ago.
    pub(in crate::issuer) async fn keys_for(
        self: &Arc<Self>,
        kid: Option<&str>,
        signature: &[u8],
    ) -> Result<Arc<Jwks>, Unavailable> {
        let (now, key) = (self.clock.uptime(), UnknownKey::new(kid, signature));
        {
            let progress = self.progress();
            let worth_asking =
                progress.unknown.may_fetch(key, now) && self.may_fetch(&progress, now);
            match self.keys() {
                Some(keys) if self.keys_are_given() => return Ok(keys),
                Some(_) if progress.fetching || worth_asking => {}
                // Without a JWK set no key can be called unknown.
                Some(_) if progress.failures > 0 => return Err(progress.unavailable(now)),
                Some(keys) => return Ok(keys),
                None if progress.fetching || !progress.tried => {}
                None => {
                    self.warn_of_missing_address();
                    return Err(progress.unavailable(now));
                }
            }
        }
        let fetched = self.wait_for(RefreshReason::UnknownKey).await?;
        let mut progress = self.progress();
        let keys = self.keys().ok_or_else(|| progress.unavailable(now))?;
        let in_vain = kid.is_none() || !keys.knows(kid);
        if fetched == Fetched::Now && in_vain && progress.unknown.may_fetch(key, now) {
            progress.unknown.record_miss(key, now, self.settings.jwks_min_interval);
        }
        Ok(keys)
    }

    /// Logs that a token cannot be verified because nothing names the address of the JWK set.
    fn warn_of_missing_address(&self) {
        if self.metadata.load().endpoints.jwks.is_none()
            && let Some(suppressed) = self.http_client.may_warn()
        {
            tracing::warn!(
                issuer = %self.settings.name,
                suppressed,
                "The metadata has no `jwks_uri`; JWTs of this issuer are refused with 503. Set `jwks_uri` in the file."
            );
        }
    }

    /// Returns the metadata, as soon as the first attempt to fetch it has ended.
    pub(in crate::issuer) async fn metadata(self: &Arc<Self>) -> Arc<Metadata> {
        let first = {
            let progress = self.progress();
            progress.discovered_at.is_none() && !progress.tried
        };
        if first && self.settings.discovery != Discovery::Off {
            // Without a response, the configured part has to do.
            let _ = self.wait_for(RefreshReason::Due).await;
        }
        self.metadata.load_full()
    }

    /// Returns the metadata known so far.
    pub(in crate::issuer) fn known_metadata(&self) -> Arc<Metadata> {
        self.metadata.load_full()
    }

    /// Whether the metadata is complete: discovered, or configured with nothing to discover.
    pub(in crate::issuer) fn is_discovered(&self) -> bool {
        self.settings.discovery == Discovery::Off || self.progress().discovered_at.is_some()
    }

    /// Returns how long to wait before calling this issuer again.
    pub(in crate::issuer) fn unavailable(&self) -> Unavailable {
        self.progress().unavailable(self.clock.uptime())
    }

    /// Whether it has responded, or no call is needed.
    pub(in crate::issuer) fn has_responded(&self) -> bool {
        self.responded.load(Relaxed)
    }

    /// Records that it responded to a call of any kind.
    pub(in crate::issuer) fn record_response(&self) {
        self.responded.store(true, Relaxed);
    }

    /// Joins the attempt under way or starts one, and waits no longer than for one call.
    async fn wait_for(self: &Arc<Self>, reason: RefreshReason) -> Result<Fetched, Unavailable> {
        let fetch = self.fetch(reason);
        match tokio::time::timeout(self.settings.timeout, fetch).await {
            Ok(fetched) => fetched,
            Err(_) => Err(self.unavailable()),
        }
    }

    async fn fetch(self: &Arc<Self>, reason: RefreshReason) -> Result<Fetched, Unavailable> {
        let attempt = || {
            let provider_cache = Arc::clone(self);
            async move { provider_cache.attempt(reason).await }
        };
        match self.fetches.run((), attempt).await {
            Ok((fetched, _)) => fetched,
            Err(_) => Err(Unavailable::RETRY_SOON),
        }
    }

    async fn attempt(&self, reason: RefreshReason) -> Result<Fetched, Unavailable> {
        let rediscover = {
            let now = self.clock.uptime();
            let mut progress = self.progress();
            // Before the first JWK set arrives all requests wait for the same attempt: none fetches on demand.
            if reason == RefreshReason::UnknownKey && self.keys.load().is_some() {
                if !self.may_fetch(&progress, now) {
                    return Ok(Fetched::Before);
                }
                progress.unknown_key_fetch_at = Some(now);
            }
            progress.fetching = true;
            let old = |at: Duration| now.saturating_sub(at) >= METADATA_MAX_AGE;
            progress.failures > 0 || progress.discovered_at.is_none_or(old)
        };
        let outcome = self.renew(rediscover).await;

        let now = self.clock.uptime();
        let mut progress = self.progress();
        progress.fetching = false;
        progress.tried = true;
        if let Ok(good_for) = outcome {
            progress.failures = 0;
            progress.next_attempt = now + refresh_after(good_for);
            return Ok(Fetched::Now);
        }
        progress.next_attempt = now + backoff(progress.failures);
        progress.failures = progress.failures.saturating_add(1);
        self.wake.notify_one();
        Err(progress.unavailable(now))
    }

    /// Fetches what is due, and returns how long it is fresh.
    async fn renew(&self, rediscover: bool) -> Result<Duration, Unavailable> {
        let found = if rediscover { self.discover().await } else { Lookup::All };
        let endpoints = &self.metadata.load().endpoints;
        let good_for = match &endpoints.jwks {
            Some(url) if !self.keys_are_given() => self.fetch_keys(url).await?,
            _ if found == Lookup::Nothing => return Err(Unavailable::RETRY_SOON),
            _ => METADATA_MAX_AGE,
        };
        // Configured or earlier endpoints have to do for now.
        Ok(if found == Lookup::All { good_for } else { good_for.min(METADATA_RETRY_INTERVAL) })
    }

    /// Fetches the metadata documents.
    async fn discover(&self) -> Lookup {
        let urls = match (&self.settings.discovery, Url::parse(&self.settings.identifier())) {
            (Discovery::Off, _) => return Lookup::All,
            (Discovery::At(url), _) => vec![url.clone()],
            (_, Ok(issuer)) => well_known(&issuer).to_vec(),
            (_, Err(_)) => vec![],
        };
        let mutual_tls = self.settings.uses_mutual_tls();
        let mut found = Vec::new();
        let mut so_far: Option<Metadata> = None;
        let mut is_incomplete = false;
        for url in urls {
            let why = match self.http_client.get(Endpoint::Discovery, &url).await {
                Err(Unavailable { .. }) => {
                    is_incomplete = true;
                    "no response".to_owned()
                }
                // Redirects are not followed: the operator must judge their target.
                Ok(response) if response.status != StatusCode::OK => {
                    is_incomplete |= response.status.is_server_error();
                    response.status.to_string()
                }
                Ok(response) => {
                    match Metadata::parse(&response.body, &url, &self.settings, mutual_tls) {
                        Ok(metadata) => {
                            // Some servers' OAuth documents lack the members of OpenID Connect.
                            let metadata = match so_far.take() {
                                Some(first) => first.completed_by(metadata),
                                None => metadata,
                            };
                            let complete = metadata.endpoints.are_all_known();
                            so_far = Some(metadata);
                            if complete {
                                break;
                            }
                            continue;
                        }
                        Err(error) => error.to_string(),
                    }
                }
            };
            tracing::debug!(issuer = %self.settings.name, %url, error = why, "No metadata document at this URL.");
            found.push(format!("{url}: {why}"));
        }
        if let Some(metadata) = so_far {
            // Members of a document that cannot be fetched now keep their values.
            let metadata = if is_incomplete {
                metadata.completed_by(Metadata::clone(&self.metadata.load()))
            } else {
                metadata
            };
            self.metadata.store(Arc::new(metadata));
            self.record_response();
            if is_incomplete {
                return Lookup::Part;
            }
            self.progress().discovered_at = Some(self.clock.uptime());
            return Lookup::All;
        }
        let error = found.join("; ");
        tracing::warn!(issuer = %self.settings.name, error, "No metadata found for this issuer; using configured endpoints and earlier keys, if there are any.");
        Lookup::Nothing
    }

    async fn fetch_keys(&self, url: &Url) -> Result<Duration, Unavailable> {
        let Response { status, headers, body } = self.http_client.get(Endpoint::Jwks, url).await?;
        if status != StatusCode::OK {
            let issuer = &*self.settings.name;
            tracing::warn!(issuer, %url, status = status.as_u16(), "Could not fetch the JWK set; the old keys stay in use.");
            return Err(Unavailable::RETRY_SOON);
        }
        let good_for = lifetime(&headers, self.settings.jwks_refresh);
        let fetched = self.clock.now();
        if self.progress().jwks_text != body {
            let keys = self.read(&body).map_err(|error| {
                let issuer = &*self.settings.name;
                tracing::warn!(issuer, %url, %error, "Could not parse the JWK set; the old keys stay in use.");
                Unavailable::RETRY_SOON
            })?;
            if keys.is_empty() {
                self.accept_unusable_set(url)?;
            } else {
                tracing::info!(issuer = %self.settings.name, keys = keys.len(), "Fetched a new JWK set.");
            }
            self.replace(keys);
            self.progress().jwks_text.clone_from(&body);
        }
        {
            let mut progress = self.progress();
            progress.unusable_since = None;
            progress.jwks_fetched_at = Some(self.clock.uptime());
        }
        self.metrics.keys_refreshed(fetched);
        self.record_response();
        if self.settings.state_dir.is_some() {
            let settings = Arc::clone(&self.settings);
            self.control.spawn_blocking(move || jwks_storage::save(&settings, fetched, &body));
        }
        Ok(good_for)
    }

    /// Decides about a set without a usable key: it replaces a good one only if the issuer has published nothing
    /// else for as long as a set is fresh, since most such sets are mistakes that are soon corrected.
    fn accept_unusable_set(&self, url: &Url) -> Result<(), Unavailable> {
        let issuer = &*self.settings.name;
        let has_good_keys = self.keys.load().as_ref().is_some_and(|keys| !keys.is_empty());
        if !has_good_keys {
            tracing::warn!(issuer, %url, "The JWK set has no usable key; no token can be verified.");
            return Ok(());
        }
        let now = self.clock.uptime();
        let since = *self.progress().unusable_since.get_or_insert(now);
        if now.saturating_sub(since) < self.settings.jwks_refresh {
            tracing::warn!(issuer, %url, "The JWK set has no usable key; the old keys stay in use for now.");
            return Err(Unavailable::RETRY_SOON);
        }
        tracing::warn!(issuer, %url, "The JWK set still has no usable key; the old keys are no longer used.");
        Ok(())
    }

    /// Takes over what `predecessor` has fetched, before a reload changed other settings; returns whether there are keys
    /// among it.
    fn succeed(&self, predecessor: &Self) -> bool {
        let (jwks_text, jwks_fetched_at, discovered_at) = {
            let theirs = predecessor.progress();
            (theirs.jwks_text.clone(), theirs.jwks_fetched_at, theirs.discovered_at)
        };
        self.responded.store(predecessor.has_responded(), Relaxed);
        if self.settings.shares_metadata_with(&predecessor.settings) {
            self.metadata.store(predecessor.known_metadata());
            self.progress().discovered_at = discovered_at;
        }
        if self.keys_are_given() || jwks_fetched_at.is_none() {
            return false;
        }
        // Parsed again: retiring the predecessor's keys must not retire these.
        let Ok(keys) = self.read(&jwks_text) else { return false };
        self.replace(keys);
        let mut progress = self.progress();
        progress.jwks_text = jwks_text;
        progress.jwks_fetched_at = jwks_fetched_at;
        true
    }

    /// Uses keys that need no fetching: configured ones, or those saved by the previous run.
    fn take_given_keys(&self) {
        if let Some(secret) = &self.settings.hmac_secret {
            self.replace(Jwks::from_secret(secret.expose()));
        } else if let Some(jwks_text) = &self.settings.jwks {
            match self.read(jwks_text.as_bytes()) {
                Ok(keys) => self.replace(keys),
                Err(error) => {
                    tracing::error!(issuer = %self.settings.name, %error, "The configured key file is not a JWK set; tokens cannot be verified.");
                }
            }
        } else if let Some((jwks_text, fetched)) =
            jwks_storage::load(&self.settings, self.clock.now())
            && let Ok(keys) = self.read(&jwks_text)
        {
            tracing::info!(issuer = %self.settings.name, "Using the JWK set saved by the previous run until a fresh one is fetched.");
            self.replace(keys);
            self.metrics.keys_refreshed(fetched);
        }
    }

    fn read(&self, jwks_text: &[u8]) -> Result<Jwks, crate::base::strict_json::MalformedJson> {
        let issuer = &*self.settings.name;
        Jwks::parse(jwks_text, |kid, why| match why {
            // Encryption keys, and keys of future types, are common in a set.
            UnusableKey::Use | UnusableKey::Type | UnusableKey::Algorithm => {
                tracing::debug!(issuer, kid, error = %why, "JWK skipped: not usable for signature verification.");
            }
            _ => tracing::warn!(issuer, kid, error = %why, "JWK skipped: the key is unusable."),
        })
    }

    fn replace(&self, keys: Jwks) {
        let keys = match self.keys.load().as_deref() {
            Some(old) => keys.replace(old),
            None => keys,
        };
        self.metrics.keys.set(i64::try_from(keys.len()).unwrap_or(i64::MAX));
        self.keys.store(Some(Arc::new(keys)));
    }

    fn may_fetch(&self, progress: &RefreshProgress, now: Duration) -> bool {
        let floor = self.settings.jwks_min_interval;
        progress.unknown_key_fetch_at.is_none_or(|at| now.saturating_sub(at) >= floor)
    }

    fn keys_are_given(&self) -> bool {
        self.settings.hmac_secret.is_some() || self.settings.jwks.is_some()
    }

    fn has_something_to_fetch(&self) -> bool {
        self.settings.discovery != Discovery::Off
            || (self.settings.endpoints.jwks.is_some() && !self.keys_are_given())
    }

    fn progress(&self) -> MutexGuard<'_, RefreshProgress> {
        self.progress.lock().ignore_poison()
    }
}

#[cfg(test)]
impl ProviderCache {
    /// Returns the issuer's clock.
    pub(in crate::issuer) const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Wakes the refresh task, for manual clocks.
    pub(in crate::issuer) fn refresh_now(&self) {
        self.wake.notify_one();
    }
}

impl RefreshProgress {
    fn unavailable(&self, now: Duration) -> Unavailable {
        // A missing endpoint may appear before the next regular fetch of the metadata.
        Unavailable::after(self.next_attempt.saturating_sub(now).min(backoff(u32::MAX)))
    }
}

impl fmt::Debug for ProviderCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Published").field("issuer", &self.settings.name).finish_non_exhaustive()
    }
}

/// The age at which metadata are fetched again with the JWK set.
const METADATA_MAX_AGE: Duration = Duration::from_secs(60 * 60);
/// The time before metadata are tried again while the JWK set can be fetched without.
const METADATA_RETRY_INTERVAL: Duration = Duration::from_secs(60);
