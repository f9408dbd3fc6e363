//! Exchange of revocations between the instances of one Redis.
//!
//! Each instance appends its revocations to a stream in Redis and applies those that others append, ten times a
//! second. Applying is idempotent, so that everything may be published twice. And everything that was lost is
//! published again: with every new connection to Redis, and once an hour, an instance reads the stream from its
//! beginning, applies what is new to it, and appends what the stream lacks. An instance that was disconnected, one
//! that has just started, and a Redis that was emptied all end up with the same revocations.
//!
//! A second stream carries session refreshes, so that a WebSocket on one instance continues after its session was
//! refreshed on another.

pub(crate) mod entry;

use core::fmt;
use core::time::Duration;
use std::collections::HashMap;
use std::sync::Arc;

use crate::base::random::random;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use self::entry::RevocationEntry;
use crate::base::clock::{Clock, Timestamp};
use crate::redis::{Redis, Unavailable};
use crate::session::RefreshEvents;
use crate::token::revocation::publication::PublicationRequests;
use crate::token::{Revocation, RevocationEvent, RevocationList};

/// The exchange of this instance through one Redis, until dropped.
pub(crate) struct RevocationSync {
    flush_requests: mpsc::UnboundedSender<oneshot::Sender<()>>,
    synced: watch::Receiver<bool>,
}

impl RevocationSync {
    /// Starts the exchange through `redis`. Received events go to `revocations` and `renewals`.
    pub(crate) fn start(
        redis: Arc<Redis>,
        revocations: RevocationList,
        renewals: RefreshEvents,
        clock: Clock,
    ) -> Self {
        let (flush_requests, flush_receiver) = mpsc::unbounded_channel();
        let (synced_sender, synced) = watch::channel(false);
        let control = redis.control().clone();
        let task = SyncTask {
            name: instance_name(),
            revoked: StreamCursor::new(redis.key("fleet", "revoked")),
            renewed: StreamCursor::new(RefreshEvents::key(&redis)),
            connections: redis.connections(),
            connection: 0,
            events: revocations.listen(),
            publication_requests: revocations.publication_requests(),
            resync: None,
            next_resync: Instant::now(),
            has_unpublished: false,
            redis,
            revocations,
            renewals,
            clock,
            synced: synced_sender,
        };
        control.spawn(task.run(flush_receiver));
        Self { flush_requests, synced }
    }

    /// Waits up to `timeout` until the revocations of other instances are applied; returns whether they are.
    pub(crate) async fn wait_for_initial_sync(&self, limit: Duration) -> bool {
        let mut synced = self.synced.clone();
        matches!(timeout(limit, synced.wait_for(|done| *done)).await, Ok(Ok(_)))
    }

    /// Publishes pending revocations, waiting up to `limit`.
    pub(crate) async fn flush(&self, limit: Duration) {
        let (done, flushed) = oneshot::channel();
        // If the task has ended there is nothing left to publish; a failure is in the log.
        if self.flush_requests.send(done).is_ok() {
            let _ = timeout(limit, flushed).await;
        }
    }
}

impl fmt::Debug for RevocationSync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let synced = *self.synced.borrow();
        f.debug_struct("RevocationSync").field("synced", &synced).finish_non_exhaustive()
    }
}

/// The task behind a [`RevocationSync`].
struct SyncTask {
    /// The name of this instance in entries, to recognize its own.
    name: Box<str>,
    redis: Arc<Redis>,
    revocations: RevocationList,
    renewals: RefreshEvents,
    clock: Clock,
    events: broadcast::Receiver<RevocationEvent>,
    publication_requests: PublicationRequests,
    revoked: StreamCursor,
    renewed: StreamCursor,
    /// The number of connections made to Redis, and that number at the last poll.
    connections: watch::Receiver<u64>,
    connection: u64,
    /// The resync under way.
    resync: Option<FullResync>,
    next_resync: Instant,
    /// Whether a revocation could not be published yet.
    has_unpublished: bool,
    synced: watch::Sender<bool>,
}

/// A stream in Redis, and the id of the last entry read.
struct StreamCursor {
    key: String,
    read: String,
    /// The last malformed entry that was logged.
    last_logged: Option<EntryId>,
}

/// The id of an entry: time and sequence number, in ascending order.
type EntryId = (u64, u64);

/// The result of reading the stream from its beginning, so far.
#[derive(Default)]
struct FullResync {
    /// The revocations in the stream, with their time and expiry.
    published: HashMap<Revocation, (Timestamp, Timestamp)>,
    /// The ids of expired entries.
    expired: Vec<String>,
    received: usize,
}

impl SyncTask {
    async fn run(mut self, mut flush_requests: mpsc::UnboundedReceiver<oneshot::Sender<()>>) {
        let mut ticks = interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                request = flush_requests.recv() => {
                    self.publish_pending().await;
                    // The Redis was replaced by another one, which gets everything from its own task.
                    let Some(done) = request else { return };
                    if self.has_unpublished {
                        tracing::error!("Could not publish revocations to other instances before shutdown: Redis is unavailable.");
                    }
                    // The receiver may have timed out, which is no error.
                    let _ = done.send(());
                }
                Some(done) = self.publication_requests.recv() => {
                    let is_published = self.publish_new().await && !self.has_unpublished;
                    // The receiver may have timed out, which is no error.
                    let _ = done.send(is_published);
                }
                event = self.events.recv() => match event {
                    Ok(event) => self.publish(&event).await,
                    Err(RecvError::Lagged(_)) => self.next_resync = Instant::now(),
                    // The sender lives as long as the process.
                    Err(RecvError::Closed) => return,
                },
                _ = ticks.tick() => self.poll().await,
            }
        }
    }

    /// Publishes a revocation, unless it came from another instance or has expired.
    async fn publish(&mut self, event: &RevocationEvent) {
        if event.learned || event.until <= self.clock.now() {
            return;
        }
        if let Some(resync) = &mut self.resync {
            resync.record(event);
        }
        if self.append(event).await.is_err() {
            self.schedule_resync();
        }
    }

    async fn append(&self, event: &RevocationEvent) -> Result<(), Unavailable> {
        let entry = RevocationEntry { from: self.name.clone(), event: event.clone() };
        self.redis.append(&self.revoked.key, MAX_STREAM_ENTRIES, &entry.fields()).await
    }

    /// Schedules a resync, which finds that the revocation is missing in the stream and publishes it.
    fn schedule_resync(&mut self) {
        self.next_resync = Instant::now() + RETRY_INTERVAL;
        self.resync = None;
        if !self.has_unpublished {
            self.has_unpublished = true;
            tracing::warn!(
                "Could not publish a revocation; it will be retried once Redis is reachable."
            );
        }
    }

    /// Publishes the revocations made since the last one was; returns whether there are not more than can wait.
    async fn publish_new(&mut self) -> bool {
        let mut is_complete = true;
        loop {
            match self.events.try_recv() {
                Ok(event) => self.publish(&event).await,
                Err(TryRecvError::Lagged(_)) => {
                    is_complete = false;
                    self.next_resync = Instant::now();
                }
                Err(TryRecvError::Empty | TryRecvError::Closed) => return is_complete,
            }
        }
    }

    /// Publishes all pending revocations now.
    async fn publish_pending(&mut self) {
        if !self.publish_new().await || self.has_unpublished {
            self.next_resync = Instant::now();
            self.poll().await;
        }
    }

    /// Reads the new entries of both streams.
    async fn poll(&mut self) {
        if !self.redis.is_connected() {
            return;
        }
        let connection = *self.connections.borrow_and_update();
        if connection != self.connection || self.next_resync <= Instant::now() {
            self.connection = connection;
            self.next_resync = Instant::now() + RESYNC_INTERVAL;
            self.resync = Some(FullResync::default());
            STREAM_START.clone_into(&mut self.revoked.read);
        }
        let read = async {
            self.read_revocations().await?;
            self.finish_resync().await?;
            self.read_refreshes().await
        };
        // While Redis is unavailable, this instance continues with its local state. A Redis that is full or denies a
        // command fails every time: the stream is not read over and over for that.
        if read.await.is_err() && self.resync.take().is_some() {
            self.next_resync = Instant::now() + RETRY_INTERVAL;
        }
    }

    async fn read_revocations(&mut self) -> Result<(), Unavailable> {
        loop {
            let StreamCursor { key, read, .. } = &self.revoked;
            let entries = self.redis.entries_after(key, read, BATCH_ENTRIES).await?;
            let is_last_batch = entries.len() < BATCH_ENTRIES;
            for (id, fields) in entries {
                match RevocationEntry::read(&fields) {
                    Ok(entry) => self.apply(&id, entry),
                    Err(error) => self.revoked.warn_malformed(&id, &error),
                }
                self.revoked.read = id;
            }
            if is_last_batch {
                return Ok(());
            }
        }
    }

    fn apply(&mut self, id: &str, RevocationEntry { from, event }: RevocationEntry) {
        let has_expired = event.until <= self.clock.now();
        if let Some(resync) = &mut self.resync {
            if has_expired {
                resync.expired.push(id.to_owned());
            } else {
                resync.record(&event);
            }
        }
        if has_expired || from == self.name || self.revocations.contains(&event) {
            return;
        }
        if let Some(resync) = &mut self.resync {
            resync.received += 1;
        }
        let dropped_cache_entries = self.revocations.apply(event);
        tracing::debug!(
            instance = &*from,
            dropped_cache_entries,
            "Applied a revocation of another instance."
        );
    }

    /// Completes a resync: publishes what the stream lacks, and removes expired entries.
    async fn finish_resync(&mut self) -> Result<(), Unavailable> {
        let Some(resync) = &self.resync else { return Ok(()) };
        let mut missing = self.revocations.active();
        missing.retain(|event| !resync.covers(event));
        for event in &missing {
            self.append(event).await?;
        }
        for expired in resync.expired.chunks(BATCH_ENTRIES) {
            self.redis.remove_entries(&self.revoked.key, expired).await?;
        }
        let (received, published) = (resync.received, missing.len());
        if received + published > 0 {
            tracing::info!(received, published, "Synchronized revocations with Redis.");
        }
        self.resync = None;
        self.has_unpublished = false;
        self.synced.send_replace(true);
        Ok(())
    }

    async fn read_refreshes(&mut self) -> Result<(), Unavailable> {
        let StreamCursor { key, read, .. } = &self.renewed;
        if read == STREAM_START {
            // Streams of this instance are newer than the last entry.
            let last = self.redis.last_entry(key).await?;
            self.renewed.read = last.unwrap_or_else(|| "0-1".to_owned());
            return Ok(());
        }
        for (id, fields) in self.redis.entries_after(key, read, BATCH_ENTRIES).await? {
            if let Err(error) = self.renewals.apply(&fields) {
                self.renewed.warn_malformed(&id, &error);
            }
            self.renewed.read = id;
        }
        Ok(())
    }
}

impl FullResync {
    fn record(&mut self, event: &RevocationEvent) {
        let (at, until) = self.published.entry(event.revocation.clone()).or_default();
        (*at, *until) = (event.at.max(*at), event.until.max(*until));
    }

    /// Whether the stream has the revocation, with at least its time and expiry.
    fn covers(&self, event: &RevocationEvent) -> bool {
        let published = self.published.get(&event.revocation);
        published.is_some_and(|(at, until)| event.at <= *at && event.until <= *until)
    }
}

impl StreamCursor {
    fn new(key: String) -> Self {
        Self { key, read: STREAM_START.to_owned(), last_logged: None }
    }

    /// Logs a malformed entry, once.
    fn warn_malformed(&mut self, id: &str, error: &impl fmt::Display) {
        let id_parts = parse_id(id);
        if id_parts > self.last_logged {
            self.last_logged = id_parts;
            tracing::warn!(
                stream = self.key, entry = id, %error,
                "Ignored a malformed entry of the revocation stream."
            );
        }
    }
}

fn parse_id(id: &str) -> Option<EntryId> {
    let (time, number) = id.split_once('-')?;
    Some((time.parse().ok()?, number.parse().ok()?))
}

/// Returns a random name for this instance.
fn instance_name() -> Box<str> {
    // A name shared with another instance would hide its entries.
    URL_SAFE_NO_PAD.encode(random::<9>()).into()
}

/// The id before the first entry of a stream.
const STREAM_START: &str = "0";
/// The interval of polls: the delay until a revocation is applied by other instances, besides the network.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The delay before a resync is retried after a failure. A new connection to Redis starts one at once.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// The interval of resyncs.
const RESYNC_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// Entries read or removed at once.
const BATCH_ENTRIES: usize = 500;
/// Maximum length of the stream; about 25 MiB, and more than one instance remembers. The oldest entries are evicted.
const MAX_STREAM_ENTRIES: usize = 250_000;
