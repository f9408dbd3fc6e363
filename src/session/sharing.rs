//! What the gateways of a fleet share about a session, in Redis.
//!
//! Visits of `tokens: server`, so that any gateway finds them. And for every
//! kind of session whose turn it is to redeem a refresh token, and what came
//! of it: one redeem in the whole fleet, the same new tokens for whoever comes
//! late, wherever they come.
//!
//! Redis sees no token, no cookie and no visit's id: names are hashes, and
//! values are sealed under the session's key ring, each bound to its name.

use core::fmt;
use core::time::Duration;
use std::sync::{Arc, LazyLock};

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::opened::Opened;
use super::seal::{KeyRing, random};
use super::settings::{Forward, Settings, TokenStorage};
use super::visit::{Id, Visit};
use crate::base::clock::Clock;
use crate::base::secret::Secret;
use crate::store::{Away, Redis, Script, Value};

/// One session's share of Redis.
pub(super) struct Sharing {
    redis: Arc<Redis>,
    ring: Arc<KeyRing>,
    clock: Clock,
    forward: Forward,
    /// Session, issuer and client: with another of these it is another session.
    scope: Vec<u8>,
    /// The place that sealed cookies are bound to, if visits are in these: gateways pass on their very text.
    cookie: Option<Box<[u8]>>,
    idle: Duration,
    absolute: Duration,
    lease: Duration,
}

impl Sharing {
    /// The share of the session that `settings` describe; `cookie` is the place that its sealed cookies
    /// are bound to, and `redeem` how long a redeem may take, from looking for the endpoint to the last byte.
    ///
    /// `None` if no other gateway could read it, because this one's key is random.
    pub(super) fn new(
        redis: Option<Arc<Redis>>,
        settings: &Settings,
        ring: Arc<KeyRing>,
        clock: Clock,
        cookie: &[u8],
        redeem: Duration,
    ) -> Option<Self> {
        if settings.keys.is_empty() {
            return None;
        }
        let scope = [&*settings.name, &*settings.issuer, &*settings.client.id];
        Some(Self {
            redis: redis?,
            ring,
            clock,
            forward: settings.forward,
            scope: scope.join("\0").into_bytes(),
            cookie: (settings.tokens == TokenStorage::SealedCookies).then(|| cookie.into()),
            idle: settings.idle_timeout,
            absolute: settings.absolute_timeout,
            // Longer than anything a redeem waits for.
            lease: redeem + MARGIN,
        })
    }

    /// Where the visit `id` is kept. The id has 128 random bits: nothing leads back to it.
    fn visit_key(&self, id: Id) -> String {
        let mut hashed = digest::Context::new(&digest::SHA256);
        hashed.update(&self.scope);
        hashed.update(b"\0visit\0");
        hashed.update(id.to_text().as_bytes());
        self.redis.key("visit", &URL_SAFE_NO_PAD.encode(hashed.finish()))
    }

    /// Where it is kept what came of `refresh_token`, and whose turn it is to redeem it.
    fn refresh_keys(&self, refresh_token: &Secret<String>) -> (String, String) {
        let token = refresh_token.expose().as_bytes();
        let name = self.ring.name(&[&self.scope, &b"\0refresh\0"[..], token].concat());
        (self.redis.key("refreshed", &name), self.redis.key("lease", &name))
    }

    /// Asks for the visit `id`.
    pub(super) async fn find(&self, id: Id) -> Result<Found, Away> {
        let key = self.visit_key(id);
        let Some(value) = self.redis.find(&key).await? else { return Ok(Found::Nothing) };
        if value == OVER {
            return Ok(Found::Over);
        }
        let text = value.get(AGE_LEN..).and_then(|text| core::str::from_utf8(text).ok());
        Ok(text.map_or(Found::Nothing, |text| Found::Sealed(text.into())))
    }

    /// Opens what [`Sharing::find`] has found of the visit `id`.
    pub(super) fn open(&self, id: Id, text: Box<str>) -> Option<Opened> {
        let plain = self.ring.open(self.visit_key(id).as_bytes(), text.as_bytes())?;
        let opened = Opened::new(Visit::from_bytes(&plain)?, self.forward);
        opened.sealed(|_| text.into());
        Some(opened)
    }

    /// Keeps `opened` for all gateways, unless what they have is later, or over.
    pub(super) async fn keep(&self, opened: &Opened) -> Result<(), Away> {
        let visit = &opened.visit;
        let key = self.visit_key(visit.id);
        let text = opened.sealed(|visit| self.ring.seal(key.as_bytes(), &visit.to_bytes()));
        let age = format!("{:0AGE_LEN$}", visit.received.as_nanos());
        let left = visit.over_at(self.idle, self.absolute).since(self.clock.now()) + SLACK;
        self.redis.run(&KEEP, &[&key], &[age.as_bytes(), text.as_bytes(), &millis(left)]).await
    }

    /// Says that the visit `id` is over. Its name stays until it would have ended by itself, so
    /// that one which is over is told from one that Redis has lost.
    pub(super) async fn end(&self, id: Id) -> Result<(), Away> {
        let key = self.visit_key(id);
        self.redis.run(&END, &[&key], &[OVER, &millis(self.absolute + SLACK)]).await
    }

    /// Asks for the turn to redeem `refresh_token` of the visit `id`.
    pub(super) async fn turn(&self, id: Id, refresh_token: &Secret<String>) -> Result<Turn, Away> {
        let (record, lease) = self.refresh_keys(refresh_token);
        let owner: [u8; 16] = random();
        let keys = [&*record, &lease, &self.visit_key(id)];
        let answer = self.redis.run(&TURN, &keys, &[&owner, &millis(self.lease)]).await?;
        Ok(match answer {
            Value::BulkString(sealed) => match self.open_record(&record, &sealed) {
                Some(opened) => Turn::Done(Arc::new(opened)),
                // Sealed under a key that this gateway does not have: it must not redeem all the same.
                None => Turn::Busy,
            },
            Value::Int(1) => Turn::Mine(Lease { record, turn: lease, owner }),
            Value::Int(-1) => Turn::Over,
            _ => Turn::Busy,
        })
    }

    /// What came of `refresh_token`, if it was redeemed lately.
    pub(super) async fn redeemed(&self, refresh_token: &Secret<String>) -> Option<Arc<Opened>> {
        let (record, _) = self.refresh_keys(refresh_token);
        // Who cannot ask does not know.
        let sealed = self.redis.find(&record).await.ok()??;
        self.open_record(&record, &sealed).map(Arc::new)
    }

    /// Forgets what came of `refresh_token`. If that cannot be said, it is forgotten by itself in half a minute.
    pub(super) async fn forget_redeemed(&self, refresh_token: &Secret<String>) {
        let (record, _) = self.refresh_keys(refresh_token);
        let _ = self.redis.forget(&record).await;
    }

    /// Ends a turn, and says what came of it, which is good for as long as `good_for`: the next may come.
    ///
    /// Said again and again while the lease lasts: who waits for it must not redeem a second time.
    pub(super) async fn finish(
        self: &Arc<Self>,
        lease: Lease,
        renewed: Option<&Opened>,
        good_for: Duration,
    ) {
        let sealed = renewed.map(|opened| {
            let place = lease.record.as_bytes();
            match &self.cookie {
                Some(cookie) => {
                    let text = opened.sealed(|visit| self.ring.seal(cookie, &visit.to_bytes()));
                    self.ring.seal(place, text.as_bytes())
                }
                None => self.ring.seal(place, &opened.visit.to_bytes()),
            }
        });
        let sealed = sealed.unwrap_or_default();
        if self.say(&lease, &sealed, good_for).await.is_err() {
            let this = Arc::clone(self);
            self.redis.control().spawn(async move {
                for _ in 0..this.lease.as_millis() / AGAIN.as_millis() {
                    tokio::time::sleep(AGAIN).await;
                    if this.say(&lease, &sealed, good_for).await.is_ok() {
                        break;
                    }
                }
            });
        }
    }

    async fn say(&self, lease: &Lease, sealed: &str, good_for: Duration) -> Result<(), Away> {
        let Lease { record, turn, owner } = lease;
        let good_for = millis(good_for);
        self.redis.run(&FINISH, &[record, turn], &[owner, sealed.as_bytes(), &good_for]).await
    }

    fn open_record(&self, key: &str, sealed: &[u8]) -> Option<Opened> {
        let text = self.ring.open(key.as_bytes(), sealed)?;
        let Some(cookie) = &self.cookie else {
            return Some(Opened::new(Visit::from_bytes(&text)?, self.forward));
        };
        let plain = self.ring.open(cookie, &text)?;
        let opened = Opened::new(Visit::from_bytes(&plain)?, self.forward);
        // Browsers that mix the parts of two texts would hold neither.
        opened.sealed(|_| String::from_utf8_lossy(&text).into_owned());
        Some(opened)
    }

    /// How long it may take until whoever has the turn must have given it back.
    pub(super) const fn patience(&self) -> Duration {
        self.lease
    }
}

/// What Redis knows of a visit.
pub(super) enum Found {
    /// The visit, sealed.
    Sealed(Box<str>),
    /// It is over.
    Over,
    /// Nothing, or nothing any more.
    Nothing,
}

/// Whose turn it is to redeem.
pub(super) enum Turn {
    /// Ours: redeem, and say what came of it.
    Mine(Lease),
    /// Another gateway's: ask again in a moment.
    Busy,
    /// Nobody's: another gateway has done it.
    Done(Arc<Opened>),
    /// Nobody's: the visit is over.
    Over,
}

/// The right to redeem one refresh token, for a while. Only its owner can give it back.
pub(super) struct Lease {
    record: String,
    turn: String,
    owner: [u8; 16],
}

impl fmt::Debug for Sharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sharing").field("redis", &self.redis).finish_non_exhaustive()
    }
}

fn millis(duration: Duration) -> Vec<u8> {
    duration.as_millis().max(1).to_string().into_bytes()
}

/// Touching must not bring back tokens that a refresh has replaced, nor a visit that is over.
static KEEP: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local old = redis.call('GET', KEYS[1])
         if old == 'over' or (old and string.sub(old, 1, 20) > ARGV[1]) then return 0 end
         redis.call('SET', KEYS[1], ARGV[1] .. ARGV[2], 'PX', ARGV[3])
         return 1",
    )
});
static END: LazyLock<Script> =
    LazyLock::new(|| Script::new("redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return 1"));
static TURN: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('GET', KEYS[3]) == 'over' then return -1 end
         local record = redis.call('GET', KEYS[1])
         if record then return record end
         if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
         return 0",
    )
});
static FINISH: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if ARGV[2] ~= '' then redis.call('SET', KEYS[1], ARGV[2], 'NX', 'PX', ARGV[3]) end
         if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
         return 1",
    )
});

/// What stands in the place of a visit that is over.
const OVER: &[u8] = b"over";
/// Digits of the moment at which a visit's tokens were received: more of them are later.
const AGE_LEN: usize = 20;
/// Gateways' clocks differ a little.
const SLACK: Duration = Duration::from_secs(60);
/// On top of what a redeem may wait for.
const MARGIN: Duration = Duration::from_secs(5);
/// How long stragglers with an old cookie get what came of it.
pub(super) const GRACE: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(250);
