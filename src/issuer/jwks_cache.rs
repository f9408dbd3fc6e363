//! What an issuer publishes, metadata and signing keys, kept fresh in the background.
//!
//! Nothing here makes a request wait that has a key to be verified with. Keys
//! are renewed before they are old; a renewal that fails keeps the old ones,
//! without end, and is tried again after 1 s, doubling to 30 s. A token signed
//! with a key that we have not seen causes one fetch for everybody who asks,
//! and not another one for a while.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use core::time::Duration;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use http::StatusCode;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use url::Url;

use super::circuit_breaker::backoff;
use super::freshness::{UnknownKidLimiter, lifetime, refresh_after};
use super::http_client::{IssuerClient, Response};
use super::jwks::Jwks;
use super::jwks_storage;
use super::metadata::{Metadata, well_known};
use super::settings::{ClientAuth, Discovery, Settings};
use super::unavailable::Unavailable;
use super::unusable_key::UnusableKey;
use crate::base::clock::Clock;
use crate::base::single_flight::SingleFlight;
use crate::observe::metrics::{Endpoint, IssuerMetrics};

/// An issuer's metadata and keys, as of the last time it could be asked.
pub(super) struct ProviderCache {
    settings: Arc<Settings>,
    calls: Arc<IssuerClient>,
    clock: Clock,
    metrics: Arc<IssuerMetrics>,
    control: Handle,
    metadata: ArcSwap<Metadata>,
    keys: ArcSwapOption<Jwks>,
    answered: AtomicBool,
    progress: Mutex<RefreshProgress>,
    fetches: SingleFlight<(), Result<Fetched, Unavailable>>,
    /// The next attempt was moved forward.
    sooner: Notify,
}

/// Where the fetching stands. Times are uptimes.
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
    /// When an unknown key last caused a fetch.
    asked_at: Option<Duration>,
    unknown: UnknownKidLimiter,
    /// The keys as they were last received: equal ones need no reading.
    text: Vec<u8>,
}

/// Why an attempt is made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum RefreshReason {
    /// It is time.
    Due,
    /// A token names a key that we have not seen.
    UnknownKey,
}

/// What an attempt did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fetched {
    /// Asked the issuer.
    Now,
    /// Nothing: somebody else asked a moment ago.
    Before,
}

/// What looking for metadata has brought.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Lookup {
    /// All that there is.
    All,
    /// One document, while another could not be had: what only that says may be missing, and is asked for soon.
    Part,
    Nothing,
}

impl ProviderCache {
    pub(super) fn new(
        settings: Arc<Settings>,
        calls: Arc<IssuerClient>,
        clock: Clock,
        metrics: Arc<IssuerMetrics>,
        control: Handle,
    ) -> Self {
        let published = Self {
            metadata: ArcSwap::from_pointee(Metadata::configured(&settings)),
            keys: ArcSwapOption::empty(),
            answered: AtomicBool::new(false),
            progress: Mutex::default(),
            fetches: SingleFlight::new(control.clone()),
            sooner: Notify::new(),
            settings,
            calls,
            clock,
            metrics,
            control,
        };
        published.take_given_keys();
        if !published.has_something_to_fetch() {
            published.progress().tried = true;
            published.answered.store(true, Relaxed);
        }
        published
    }

    /// Keeps everything fresh, for ever.
    pub(super) async fn run(self: Arc<Self>) {
        while self.has_something_to_fetch() {
            // A failure is written down and told where it happens; here it only sets the pace.
            let _ = self.fetch(RefreshReason::Due).await;
            loop {
                let wait = self.progress().next_attempt.saturating_sub(self.clock.uptime());
                if wait.is_zero() {
                    break;
                }
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = self.sooner.notified() => {}
                }
            }
        }
    }

    /// The keys we have, if any have arrived.
    pub(super) fn keys(&self) -> Option<Arc<Jwks>> {
        self.keys.load_full()
    }

    /// The keys, asked for because those we have lack `kid`.
    ///
    /// Returns what we have, unchanged, if the issuer was asked a moment ago.
    pub(super) async fn keys_for(
        self: &Arc<Self>,
        kid: Option<&str>,
    ) -> Result<Arc<Jwks>, Unavailable> {
        let now = self.clock.uptime();
        {
            let progress = self.progress();
            let worth_asking = progress.unknown.may_ask(kid, now) && self.may_ask(&progress, now);
            match self.keys() {
                Some(keys) if self.keys_are_given() => return Ok(keys),
                Some(_) if progress.fetching || worth_asking => {}
                // Whoever cannot see the issuer's keys cannot say that one is unknown.
                Some(_) if progress.failures > 0 => return Err(progress.unavailable(now)),
                Some(keys) => return Ok(keys),
                None if progress.fetching || !progress.tried => {}
                None => return Err(progress.unavailable(now)),
            }
        }
        let fetched = self.wait_for(RefreshReason::UnknownKey).await?;
        let mut progress = self.progress();
        let keys = self.keys().ok_or_else(|| progress.unavailable(now))?;
        let in_vain = kid.is_none() || !keys.knows(kid);
        if fetched == Fetched::Now && in_vain && progress.unknown.may_ask(kid, now) {
            progress.unknown.record_miss(kid, now, self.settings.jwks_min_interval);
        }
        Ok(keys)
    }

    /// The metadata, as soon as the first attempt to get it has ended.
    pub(super) async fn metadata(self: &Arc<Self>) -> Arc<Metadata> {
        let first = {
            let progress = self.progress();
            progress.discovered_at.is_none() && !progress.tried
        };
        if first && self.settings.discovery != Discovery::Off {
            // Without an answer, what is configured has to do.
            let _ = self.wait_for(RefreshReason::Due).await;
        }
        self.metadata.load_full()
    }

    /// The metadata so far.
    pub(super) fn known_metadata(&self) -> Arc<Metadata> {
        self.metadata.load_full()
    }

    /// How long to wait before asking this issuer again.
    pub(super) fn unavailable(&self) -> Unavailable {
        self.progress().unavailable(self.clock.uptime())
    }

    /// Whether it has answered at all, or need not.
    pub(super) fn has_answered(&self) -> bool {
        self.answered.load(Relaxed)
    }

    /// It answered, to whatever question.
    pub(super) fn answered(&self) {
        self.answered.store(true, Relaxed);
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
            let published = Arc::clone(self);
            async move { published.attempt(reason).await }
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
            // Before the first keys arrive, everybody waits for the same attempt: nothing is asked on demand.
            if reason == RefreshReason::UnknownKey && self.keys.load().is_some() {
                if !self.may_ask(&progress, now) {
                    return Ok(Fetched::Before);
                }
                progress.asked_at = Some(now);
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
        self.sooner.notify_one();
        Err(progress.unavailable(now))
    }

    /// Fetches what is due, and says how long it is good.
    async fn renew(&self, rediscover: bool) -> Result<Duration, Unavailable> {
        let found = if rediscover { self.discover().await } else { Lookup::All };
        let endpoints = &self.metadata.load().endpoints;
        let good_for = match &endpoints.jwks {
            Some(url) if !self.keys_are_given() => self.fetch_keys(url).await?,
            _ if found == Lookup::Nothing => return Err(Unavailable::RETRY_SOON),
            _ => METADATA_MAX_AGE,
        };
        // Configured or older endpoints have to do for now.
        Ok(if found == Lookup::All { good_for } else { good_for.min(METADATA_RETRY_INTERVAL) })
    }

    /// Looks for metadata.
    async fn discover(&self) -> Lookup {
        let places = match (&self.settings.discovery, Url::parse(&self.settings.issuer)) {
            (Discovery::Off, _) => return Lookup::All,
            (Discovery::At(url), _) => vec![url.clone()],
            (_, Ok(issuer)) => well_known(&issuer).to_vec(),
            (_, Err(_)) => vec![],
        };
        let mutual_tls = matches!(
            &self.settings.client,
            Some(client) if matches!(client.auth, ClientAuth::TlsClientAuth { .. })
        );
        let mut found = Vec::new();
        let mut known: Option<Metadata> = None;
        let mut is_troubled = false;
        for url in places {
            let why = match self.calls.get(Endpoint::Discovery, &url).await {
                Err(Unavailable { .. }) => {
                    is_troubled = true;
                    "no answer".to_owned()
                }
                // Where it is redirected to is for the operator to judge: nothing else is followed either.
                Ok(reply) if reply.status != StatusCode::OK => {
                    is_troubled |= reply.status.is_server_error();
                    reply.status.to_string()
                }
                Ok(reply) => match Metadata::parse(&reply.body, &self.settings, mutual_tls) {
                    Ok(metadata) => {
                        // The OAuth document of some servers leaves out what OpenID Connect has added.
                        let metadata = match known.take() {
                            Some(first) => first.completed_by(metadata),
                            None => metadata,
                        };
                        let complete = metadata.endpoints.are_all_known();
                        known = Some(metadata);
                        if complete {
                            break;
                        }
                        continue;
                    }
                    Err(error) => error.to_string(),
                },
            };
            tracing::debug!(issuer = %self.settings.name, %url, why, "No metadata here.");
            found.push(format!("{url}: {why}"));
        }
        if let Some(metadata) = known {
            // What a document said that cannot be had for now, it will say again.
            let metadata = if is_troubled {
                metadata.completed_by(Metadata::clone(&self.metadata.load()))
            } else {
                metadata
            };
            self.metadata.store(Arc::new(metadata));
            self.answered();
            if is_troubled {
                return Lookup::Part;
            }
            self.progress().discovered_at = Some(self.clock.uptime());
            return Lookup::All;
        }
        let found = found.join("; ");
        tracing::warn!(issuer = %self.settings.name, found, "No metadata found for this issuer.");
        Lookup::Nothing
    }

    async fn fetch_keys(&self, url: &Url) -> Result<Duration, Unavailable> {
        let Response { status, headers, body } = self.calls.get(Endpoint::Jwks, url).await?;
        if status != StatusCode::OK {
            let issuer = &*self.settings.name;
            tracing::warn!(issuer, %url, status = status.as_u16(), "Signing keys refused.");
            return Err(Unavailable::RETRY_SOON);
        }
        let good_for = lifetime(&headers, self.settings.jwks_refresh);
        let fetched = self.clock.now();
        if self.progress().text != body {
            let keys = self.read(&body).map_err(|error| {
                let issuer = &*self.settings.name;
                tracing::warn!(issuer, %url, %error, "Signing keys cannot be read; the old ones stay.");
                Unavailable::RETRY_SOON
            })?;
            tracing::info!(issuer = %self.settings.name, keys = keys.len(), "New signing keys.");
            self.replace(keys);
            self.progress().text.clone_from(&body);
        }
        self.metrics.keys_refreshed(fetched);
        self.answered();
        if self.settings.state_dir.is_some() {
            let settings = Arc::clone(&self.settings);
            self.control.spawn_blocking(move || jwks_storage::save(&settings, fetched, &body));
        }
        Ok(good_for)
    }

    /// Takes keys that need no fetching: configured ones, or those kept from the last run.
    fn take_given_keys(&self) {
        if let Some(secret) = &self.settings.hmac_secret {
            self.replace(Jwks::from_secret(secret.expose()));
        } else if let Some(text) = &self.settings.jwks {
            match self.read(text.as_bytes()) {
                Ok(keys) => self.replace(keys),
                Err(error) => {
                    tracing::error!(issuer = %self.settings.name, %error, "The key file is no JWK set.");
                }
            }
        } else if let Some((text, fetched)) = jwks_storage::load(&self.settings, self.clock.now())
            && let Ok(keys) = self.read(&text)
        {
            tracing::info!(issuer = %self.settings.name, "Signing keys of the last run until newer ones arrive.");
            self.replace(keys);
            self.metrics.keys_refreshed(fetched);
        }
    }

    fn read(&self, text: &[u8]) -> Result<Jwks, super::json::Malformed> {
        let issuer = &*self.settings.name;
        Jwks::parse(text, |kid, why| match why {
            // Keys for encryption, or of kinds to come, are nothing unusual in a set.
            UnusableKey::Use | UnusableKey::Type | UnusableKey::Algorithm => {
                tracing::debug!(issuer, kid, %why, "A key verifies nothing here.");
            }
            _ => tracing::warn!(issuer, kid, %why, "A key of this issuer is unusable."),
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

    fn may_ask(&self, progress: &RefreshProgress, now: Duration) -> bool {
        let floor = self.settings.jwks_min_interval;
        progress.asked_at.is_none_or(|at| now.saturating_sub(at) >= floor)
    }

    fn keys_are_given(&self) -> bool {
        self.settings.hmac_secret.is_some() || self.settings.jwks.is_some()
    }

    fn has_something_to_fetch(&self) -> bool {
        self.settings.discovery != Discovery::Off
            || (self.settings.endpoints.jwks.is_some() && !self.keys_are_given())
    }

    fn progress(&self) -> MutexGuard<'_, RefreshProgress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl ProviderCache {
    /// The clock that this issuer goes by.
    pub(super) const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Looks at the clock again: a manual one wakes nobody.
    pub(super) fn refresh_now(&self) {
        self.sooner.notify_one();
    }
}

impl RefreshProgress {
    fn unavailable(&self, now: Duration) -> Unavailable {
        // What is missing may be put right at any time, not only when everything is looked up again.
        Unavailable::after(self.next_attempt.saturating_sub(now).min(backoff(u32::MAX)))
    }
}

impl fmt::Debug for ProviderCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Published").field("issuer", &self.settings.name).finish_non_exhaustive()
    }
}

/// How old metadata may be when keys are renewed.
const METADATA_MAX_AGE: Duration = Duration::from_secs(60 * 60);
/// How soon metadata is looked for again while keys can be had without.
const METADATA_RETRY_INTERVAL: Duration = Duration::from_secs(60);
