//! The fleet: what one gateway revokes, every gateway of the same Redis knows.
//!
//! Whatever was revoked here is appended to a stream in Redis; whatever others
//! append there is learned here, ten times a second. Two promises keep that
//! simple. Everything may be said twice: who knows it already learns nothing.
//! And whatever was lost is said again: with every new connection to Redis, and
//! once an hour, a gateway reads the stream from its beginning, learns what it
//! does not know, and appends what it knows and the stream does not. So a
//! gateway that was away, one that has just started, and a Redis that comes back
//! empty all end up knowing the same.
//!
//! A second stream tells of refreshes, so that a WebSocket here goes on when
//! its session was renewed there.

pub(crate) mod entry;

use core::fmt;
use core::time::Duration;
use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use self::entry::RevocationEntry;
use crate::base::clock::{Clock, Timestamp};
use crate::session::RefreshEvents;
use crate::store::{Redis, Unavailable};
use crate::token::{Revocation, RevocationFeed, RevocationList};

/// This gateway's part in the fleet, for as long as anybody holds it.
pub(crate) struct RevocationSync {
    orders: mpsc::UnboundedSender<oneshot::Sender<()>>,
    caught_up: watch::Receiver<bool>,
}

impl RevocationSync {
    /// Joins those that share `redis`. What it hears goes to `revocations` and `renewals`.
    pub(crate) fn start(
        redis: Arc<Redis>,
        revocations: RevocationList,
        renewals: RefreshEvents,
        clock: Clock,
    ) -> Self {
        let (orders, ordered) = mpsc::unbounded_channel();
        let (caught_up, is_caught_up) = watch::channel(false);
        let control = redis.control().clone();
        let member = SyncTask {
            name: name(),
            revoked: StreamCursor::new(redis.key("fleet", "revoked")),
            renewed: StreamCursor::new(RefreshEvents::key(&redis)),
            connections: redis.connections(),
            connection: 0,
            news: revocations.listen(),
            review: None,
            next_review: Instant::now(),
            is_silent: false,
            redis,
            revocations,
            renewals,
            clock,
            caught_up,
        };
        control.spawn(member.run(ordered));
        Self { orders, caught_up: is_caught_up }
    }

    /// Waits until all is known that the others know, but no longer than `patience`. Whether it is.
    pub(crate) async fn wait_for_initial_sync(&self, patience: Duration) -> bool {
        let mut caught_up = self.caught_up.clone();
        matches!(timeout(patience, caught_up.wait_for(|done| *done)).await, Ok(Ok(_)))
    }

    /// Says what has not been said yet, if that takes no longer than `patience`.
    pub(crate) async fn flush(&self, patience: Duration) {
        let (done, settled) = oneshot::channel();
        // Who is gone has said all that could be said; and what could not is in the log.
        if self.orders.send(done).is_ok() {
            let _ = timeout(patience, settled).await;
        }
    }
}

impl fmt::Debug for RevocationSync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let caught_up = *self.caught_up.borrow();
        f.debug_struct("Fleet").field("caught_up", &caught_up).finish_non_exhaustive()
    }
}

/// The task behind a [`RevocationSync`].
struct SyncTask {
    /// Who says what is said here: to tell it from what others say.
    name: Box<str>,
    redis: Arc<Redis>,
    revocations: RevocationList,
    renewals: RefreshEvents,
    clock: Clock,
    news: broadcast::Receiver<RevocationFeed>,
    revoked: StreamCursor,
    renewed: StreamCursor,
    /// How often Redis was connected to, and how often it was at the last look.
    connections: watch::Receiver<u64>,
    connection: u64,
    /// The reading of all that is there, while it goes on.
    review: Option<FullResync>,
    next_review: Instant,
    /// Whether something could not be said, and is still owed.
    is_silent: bool,
    caught_up: watch::Sender<bool>,
}

/// A stream in Redis, and how far it has been read.
struct StreamCursor {
    key: String,
    read: String,
    /// How far what was unreadable has been told of.
    complained: Option<EntryId>,
}

/// Where an entry stands in its stream: later ones are greater.
type EntryId = (u64, u64);

/// What a reading from the beginning has found so far.
#[derive(Default)]
struct FullResync {
    /// What the stream says, of when, and until when.
    said: HashMap<Revocation, (Timestamp, Timestamp)>,
    /// Entries that have ended.
    ended: Vec<String>,
    learned: usize,
}

impl SyncTask {
    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<oneshot::Sender<()>>) {
        let mut looks = interval(POLL_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                order = orders.recv() => {
                    self.publish_pending().await;
                    // Another Redis has taken this one's place, and is told all of it.
                    let Some(done) = order else { return };
                    if self.is_silent {
                        tracing::error!("Revocations were not told to other gateways: Redis is away.");
                    }
                    // Nobody waits any more: that is no failure.
                    let _ = done.send(());
                }
                news = self.news.recv() => match news {
                    Ok(news) => self.publish(&news).await,
                    Err(RecvError::Lagged(_)) => self.next_review = Instant::now(),
                    // It lives as long as the process.
                    Err(RecvError::Closed) => return,
                },
                _ = looks.tick() => self.poll().await,
            }
        }
    }

    /// Tells the others, unless they have told us.
    async fn publish(&mut self, news: &RevocationFeed) {
        if news.learned || news.until <= self.clock.now() {
            return;
        }
        if let Some(review) = &mut self.review {
            review.apply_entry(news);
        }
        if self.append(news).await.is_err() {
            self.schedule_resync();
        }
    }

    async fn append(&self, news: &RevocationFeed) -> Result<(), Unavailable> {
        let told = RevocationEntry { from: self.name.clone(), news: news.clone() };
        self.redis.append(&self.revoked.key, MAX_STREAM_ENTRIES, &told.fields()).await
    }

    /// What could not be said is remembered where it was revoked, and found missing by the next review.
    fn schedule_resync(&mut self) {
        self.next_review = Instant::now() + RETRY_INTERVAL;
        self.review = None;
        if !self.is_silent {
            self.is_silent = true;
            tracing::warn!(
                "A revocation could not be told to other gateways: they are told when Redis is back."
            );
        }
    }

    /// Says all that is to be said now.
    async fn publish_pending(&mut self) {
        let mut is_missing = false;
        loop {
            match self.news.try_recv() {
                Ok(news) => self.publish(&news).await,
                Err(TryRecvError::Lagged(_)) => is_missing = true,
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        if is_missing || self.is_silent {
            self.next_review = Instant::now();
            self.poll().await;
        }
    }

    /// Hears what the others say.
    async fn poll(&mut self) {
        if !self.redis.is_connected() {
            return;
        }
        let connection = *self.connections.borrow_and_update();
        if connection != self.connection || self.next_review <= Instant::now() {
            self.connection = connection;
            self.next_review = Instant::now() + RESYNC_INTERVAL;
            self.review = Some(FullResync::default());
            STREAM_START.clone_into(&mut self.revoked.read);
        }
        let heard = async {
            self.apply_revocation().await?;
            self.finish_resync().await?;
            self.apply_refresh().await
        };
        // Until it is back, this gateway goes on with what it knows. One that is there and full or forbids
        // something refuses every time: all that is there is not read over and over for that.
        if heard.await.is_err() && self.review.take().is_some() {
            self.next_review = Instant::now() + RETRY_INTERVAL;
        }
    }

    async fn apply_revocation(&mut self) -> Result<(), Unavailable> {
        loop {
            let StreamCursor { key, read, .. } = &self.revoked;
            let entries = self.redis.entries_after(key, read, BATCH_ENTRIES).await?;
            let is_all = entries.len() < BATCH_ENTRIES;
            for (id, fields) in entries {
                match RevocationEntry::read(&fields) {
                    Ok(told) => self.apply(&id, told),
                    Err(error) => self.revoked.warn_unavailable(&id, &error),
                }
                self.revoked.read = id;
            }
            if is_all {
                return Ok(());
            }
        }
    }

    fn apply(&mut self, id: &str, RevocationEntry { from, news }: RevocationEntry) {
        let has_ended = news.until <= self.clock.now();
        if let Some(review) = &mut self.review {
            if has_ended {
                review.ended.push(id.to_owned());
            } else {
                review.apply_entry(&news);
            }
        }
        if has_ended || from == self.name || self.revocations.contains(&news) {
            return;
        }
        if let Some(review) = &mut self.review {
            review.learned += 1;
        }
        let forgotten = self.revocations.apply(news);
        tracing::debug!(from = &*from, forgotten, "Another gateway has revoked something.");
    }

    /// Says what nobody else says, and takes out what has ended: the reading is complete.
    async fn finish_resync(&mut self) -> Result<(), Unavailable> {
        let Some(review) = &self.review else { return Ok(()) };
        let mut missing = self.revocations.active();
        missing.retain(|news| !review.covers(news));
        for news in &missing {
            self.append(news).await?;
        }
        for ended in review.ended.chunks(BATCH_ENTRIES) {
            self.redis.remove_entries(&self.revoked.key, ended).await?;
        }
        let (learned, told) = (review.learned, missing.len());
        if learned + told > 0 {
            tracing::info!(learned, told, "Revocations were compared with those in Redis.");
        }
        self.review = None;
        self.is_silent = false;
        self.caught_up.send_replace(true);
        Ok(())
    }

    async fn apply_refresh(&mut self) -> Result<(), Unavailable> {
        let StreamCursor { key, read, .. } = &self.renewed;
        if read == STREAM_START {
            // No stream here is older than this gateway.
            let last = self.redis.last_entry(key).await?;
            self.renewed.read = last.unwrap_or_else(|| "0-1".to_owned());
            return Ok(());
        }
        for (id, fields) in self.redis.entries_after(key, read, BATCH_ENTRIES).await? {
            if let Err(error) = self.renewals.apply(&fields) {
                self.renewed.warn_unavailable(&id, &error);
            }
            self.renewed.read = id;
        }
        Ok(())
    }
}

impl FullResync {
    fn apply_entry(&mut self, news: &RevocationFeed) {
        let (at, until) = self.said.entry(news.revocation.clone()).or_default();
        (*at, *until) = (news.at.max(*at), news.until.max(*until));
    }

    /// Whether all of `news` is said already.
    fn covers(&self, news: &RevocationFeed) -> bool {
        let said = self.said.get(&news.revocation);
        said.is_some_and(|(at, until)| news.at <= *at && news.until <= *until)
    }
}

impl StreamCursor {
    fn new(key: String) -> Self {
        Self { key, read: STREAM_START.to_owned(), complained: None }
    }

    /// Says that an entry cannot be read, once.
    fn warn_unavailable(&mut self, id: &str, error: &impl fmt::Display) {
        let place = place(id);
        if place > self.complained {
            self.complained = place;
            tracing::warn!(
                stream = self.key, entry = id, %error,
                "What another gateway says was not understood, and is passed over."
            );
        }
    }
}

fn place(id: &str) -> Option<EntryId> {
    let (time, number) = id.split_once('-')?;
    Some((time.parse().ok()?, number.parse().ok()?))
}

/// A name that no other gateway has.
fn name() -> Box<str> {
    let mut bytes = [0; 9];
    // Without chance there is no TLS either: a name that others have too would hide what they say.
    rand::fill(&mut bytes).expect("the system has random numbers");
    URL_SAFE_NO_PAD.encode(bytes).into()
}

/// Before the first entry of a stream.
const STREAM_START: &str = "0";
/// How long a revocation may take to be known everywhere, but for the way.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Before all that is there is read again because something could not be said. A Redis that was away is read at once.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Between readings of all that is there.
const RESYNC_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// Entries read or taken out at once.
const BATCH_ENTRIES: usize = 500;
/// Revocations in Redis; some 25 MiB, and more than one gateway remembers. The oldest make room for more.
const MAX_STREAM_ENTRIES: usize = 250_000;
