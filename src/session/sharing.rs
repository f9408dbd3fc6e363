//! What the gateways of a fleet share about a session, in Redis.
//!
//! Visits of `tokens: server`, so that any gateway finds them. And for every
//! kind of session whose turn it is to redeem a refresh token, and what came
//! of it: one redeem in the whole fleet, the same new tokens for whoever comes
//! late, wherever they come.
//!
//! What came of it stays until a browser was given the new tokens and half a
//! minute more, ten minutes at the most, as it does in this process. Then a
//! mark of twenty digits says for ten minutes that the old tokens were
//! replaced, so that a slow answer elsewhere does not bring them back.
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
use super::renewals::{self, Renewals};
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
        Some(Self {
            redis: redis?,
            ring,
            clock,
            forward: settings.forward,
            scope: cookie.to_vec(),
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

    /// Where it is kept what came of `refresh_token`.
    fn place(&self, refresh_token: &Secret<String>) -> Place {
        let token = refresh_token.expose().as_bytes();
        let name = self.ring.name(&[&self.scope, &b"\0refresh\0"[..], token].concat());
        Place {
            record: self.redis.key("refreshed", &name),
            turn: self.redis.key("lease", &name),
            given: self.redis.key("given", &name),
        }
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
        let age = age(visit);
        let left = visit.over_at(self.idle, self.absolute).since(self.clock.now()) + SLACK;
        self.redis.run(&KEEP, &[&key], &[age.as_bytes(), text.as_bytes(), &millis(left)]).await
    }

    /// Says that the visit `id` is over. Its name stays until it would have ended by itself, so
    /// that one which is over is told from one that Redis has lost.
    pub(super) async fn end(&self, id: Id) -> Result<(), Away> {
        let key = self.visit_key(id);
        self.redis.run(&END, &[&key], &[OVER, &millis(self.absolute + SLACK)]).await
    }

    /// A turn to be asked for: to redeem the refresh token of `visit`.
    pub(super) fn turn(&self, visit: &Visit, token: &Secret<String>) -> Lease {
        Lease { place: self.place(token), visit: self.visit_key(visit.id), owner: random() }
    }

    /// Asks for the turn that would be `ours`. As long as Redis is there an answer is waited for:
    /// whoever redeems a token that another gateway has redeemed looks like a thief.
    pub(super) async fn take(&self, ours: Lease, before: &Visit) -> Result<Turn, Untaken> {
        let Lease { place, visit, owner } = &ours;
        let keys: [&str; 3] = [&place.record, &place.turn, visit];
        let arguments: [&[u8]; 2] = [owner, &millis(self.lease)];
        let ask = || self.redis.run_patiently(&TURN, &keys, &arguments);
        Ok(match self.insist(ask).await.map_err(|Away| self.untaken())? {
            Value::BulkString(sealed) => match self.open_record(ours.place, &sealed, before) {
                Some(opened) => Turn::Done(Arc::new(opened)),
                // Sealed under a key that this gateway does not have: it must not redeem all the same.
                None => Turn::Busy,
            },
            Value::Int(1) => Turn::Mine(ours),
            Value::Int(-1) => Turn::Over,
            _ => Turn::Busy,
        })
    }

    fn untaken(&self) -> Untaken {
        if self.redis.is_there() { Untaken::Unknown } else { Untaken::Away }
    }

    /// Asks again while Redis is there: an answer that comes late is no absence.
    async fn insist<T, A>(&self, ask: impl Fn() -> A) -> Result<T, Away>
    where
        A: Future<Output = Result<T, Away>>,
    {
        for _ in 1..TRIES {
            match ask().await {
                Err(Away) if self.redis.is_there() => tokio::time::sleep(BETWEEN_TRIES).await,
                answer => return answer,
            }
        }
        ask().await
    }

    /// What has become of `visit` at any gateway, as far as its refresh token tells.
    pub(super) async fn find_later(&self, visit: &Visit, token: &Secret<String>) -> Later {
        let (place, key) = (self.place(token), self.visit_key(visit.id));
        let ask = || self.redis.find_all([&place.record, &place.given, &key]);
        // Who cannot ask does not know.
        let Ok([record, given, kept]) = self.insist(ask).await else { return Later::default() };
        let is_replaced = given.is_some_and(|given| given.as_slice() > age(visit).as_bytes());
        let renewed = record.map(|record| self.open_record(place, &record, visit));
        Later {
            // Sealed under a key that this gateway does not have: newer than what it has all the same.
            is_replaced: is_replaced || matches!(renewed, Some(None)),
            is_over: kept.is_some_and(|kept| kept == OVER),
            renewed: renewed.flatten().map(Arc::new),
        }
    }

    /// Says that `visit` is over: no gateway renews it any more, and whoever is redeeming its
    /// refresh token now finds out.
    pub(super) async fn close(&self, visit: &Visit, token: Option<&Secret<String>>) {
        let key = self.visit_key(visit.id);
        // If that cannot be said now, the visit's end is told when Redis is back.
        let _ = if visit.is_bare() {
            let Some(token) = token else { return };
            // Bare tokens may be made up: they are remembered if anybody has redeemed them, or does,
            // who may take as long as the lease.
            let (place, life) = (self.place(token), millis(REMEMBERED.max(self.lease)));
            let keys: [&str; 3] = [&key, &place.record, &place.turn];
            let arguments: [&[u8]; 2] = [OVER, &life];
            self.insist(|| self.redis.run::<u8>(&END_IF_USED, &keys, &arguments)).await
        } else {
            let life = millis(self.absolute + SLACK);
            let (keys, arguments): ([&str; 1], [&[u8]; 2]) = ([&key], [OVER, &life]);
            self.insist(|| self.redis.run::<u8>(&END, &keys, &arguments)).await
        };
    }

    /// What is to be said at the end of a turn that brought `renewed`, in the place of `before`.
    pub(super) fn finish(
        &self,
        Lease { place, visit, owner }: Lease,
        before: &Visit,
        renewed: Option<&Opened>,
    ) -> Finish {
        let mut arguments = vec![owner.to_vec(), MOST_RENEWALS.to_vec(), OVER.to_vec()];
        if let Some(opened) = renewed {
            let bound = place.record.as_bytes();
            let sealed = match &self.cookie {
                Some(cookie) => {
                    let text = opened.sealed(|visit| self.ring.seal(cookie, &visit.to_bytes()));
                    self.ring.seal(bound, text.as_bytes())
                }
                None => self.ring.seal(bound, &opened.visit.to_bytes()),
            };
            let good_for = opened.visit.stands_until(before).since(self.clock.now());
            arguments.extend([sealed.into_bytes(), millis(good_for.min(REMEMBERED))]);
            arguments.extend(renewals::fields(&opened.name, opened.visit.ends));
            opened.comes_of(Origin { place: place.clone(), mark: mark(&opened.visit, before) });
        }
        Finish { place, visit, arguments }
    }

    /// Ends a turn, and says what came of it: the next may come. `false` if the visit has been
    /// ended meanwhile; what came of it is nobody's then.
    pub(super) async fn say(&self, finish: &Finish) -> Result<bool, Away> {
        let Finish { place, visit, arguments } = finish;
        let renewed = Renewals::key(&self.redis);
        let keys: [&str; 4] = [&place.record, &place.turn, &renewed, visit];
        let arguments: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
        let said: u8 = self.redis.run_patiently(&FINISH, &keys, &arguments).await?;
        Ok(said == 1)
    }

    /// Says that a browser is given the tokens of `opened`, where they came of others.
    pub(super) fn give(self: &Arc<Self>, opened: &Opened) {
        let Some(Origin { place, mark }) = opened.origin().cloned() else { return };
        let this = Arc::clone(self);
        self.redis.control().spawn(async move {
            let keys: [&str; 2] = [&place.record, &place.given];
            let arguments: [&[u8]; 3] = [&millis(GRACE), mark.as_bytes(), &millis(REMEMBERED)];
            // If it cannot be said, what came of them stays a little longer.
            let _ = this.redis.run::<u8>(&GIVE, &keys, &arguments).await;
        });
    }

    fn open_record(&self, place: Place, record: &[u8], before: &Visit) -> Option<Opened> {
        let text = self.ring.open(place.record.as_bytes(), record)?;
        let opened = match &self.cookie {
            None => Opened::new(Visit::from_bytes(&text)?, self.forward),
            Some(cookie) => {
                let plain = self.ring.open(cookie, &text)?;
                let opened = Opened::new(Visit::from_bytes(&plain)?, self.forward);
                // Browsers that mix the parts of two texts would hold neither.
                opened.sealed(|_| String::from_utf8_lossy(&text).into_owned());
                opened
            }
        };
        opened.comes_of(Origin { place, mark: mark(&opened.visit, before) });
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

/// What has become of a visit since.
#[derive(Default)]
pub(super) struct Later {
    /// These tokens.
    pub(super) renewed: Option<Arc<Opened>>,
    /// Others, which the browser has been given.
    pub(super) is_replaced: bool,
    /// Nothing any more: it is over.
    pub(super) is_over: bool,
}

/// Where it is kept what came of one refresh token.
#[derive(Clone)]
pub(super) struct Place {
    /// The new tokens.
    record: String,
    /// Whose turn it is.
    turn: String,
    /// The mark of the tokens that a browser was given.
    given: String,
}

/// Of what tokens came: for those who still have the ones before.
#[derive(Clone)]
pub(super) struct Origin {
    place: Place,
    /// How later ones than before are told from them.
    mark: String,
}

/// The right to redeem one refresh token, for a while, once it is taken. Only its owner can give it back.
#[derive(Clone)]
pub(super) struct Lease {
    place: Place,
    /// Where it is said that the visit is over.
    visit: String,
    owner: [u8; 16],
}

/// Why nobody knows whose turn it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Untaken {
    /// Redis is away: each gateway goes on alone.
    Away,
    /// It is there, and has not answered: another gateway may have the turn.
    Unknown,
}

/// What is to be said when a turn ends.
pub(super) struct Finish {
    place: Place,
    visit: String,
    arguments: Vec<Vec<u8>>,
}

impl fmt::Debug for Sharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sharing").field("redis", &self.redis).finish_non_exhaustive()
    }
}

fn millis(duration: Duration) -> Vec<u8> {
    duration.as_millis().max(1).to_string().into_bytes()
}

/// When the tokens of `visit` were received, so written that later ones are greater.
fn age(visit: &Visit) -> String {
    format!("{:0AGE_LEN$}", visit.received.as_nanos())
}

/// What tells `next` from `before`: greater than its age, also where clocks differ. Of a refresh
/// token that was not rotated come several, of which only their age says which is the later.
fn mark(next: &Visit, before: &Visit) -> String {
    if next.is_rotated(before) { "9".repeat(AGE_LEN) } else { age(next) }
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
static END_IF_USED: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('EXISTS', KEYS[2]) + redis.call('EXISTS', KEYS[3]) > 0 then
           redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
         end
         return 1",
    )
});
static TURN: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('GET', KEYS[3]) == 'over' then return -1 end
         local record = redis.call('GET', KEYS[1])
         if record then return record end
         if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
         if redis.call('GET', KEYS[2]) == ARGV[1] then return 1 end
         return 0",
    )
});
/// A logout that came meanwhile wins.
static FINISH: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
         if not ARGV[4] then return 1 end
         if redis.call('GET', KEYS[4]) == ARGV[3] then return 0 end
         redis.call('SET', KEYS[1], ARGV[4], 'NX', 'PX', ARGV[5])
         redis.pcall('XADD', KEYS[3], 'MAXLEN', '~', ARGV[2], '*', unpack(ARGV, 6))
         return 1",
    )
});
static GIVE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('PTTL', KEYS[1]) > tonumber(ARGV[1]) then
           redis.call('PEXPIRE', KEYS[1], ARGV[1])
         end
         local given = redis.call('GET', KEYS[2])
         if not given or given < ARGV[2] then redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3]) end
         return 1",
    )
});

/// What stands in the place of a visit that is over.
const OVER: &[u8] = b"over";
/// Digits of the moment at which a visit's tokens were received: more of them are later.
const AGE_LEN: usize = 20;
/// Gateways' clocks differ a little.
const SLACK: Duration = Duration::from_secs(60);
/// How often Redis is asked while it is there: so often that it would not count as there any more.
const TRIES: usize = 6;
const BETWEEN_TRIES: Duration = Duration::from_millis(25);
/// On top of what a redeem may wait for.
const MARGIN: Duration = Duration::from_secs(5);
/// How long stragglers with an old cookie get what came of it, once a browser was given that.
pub(super) const GRACE: Duration = Duration::from_secs(30);
/// How long a redeemed token is known: an answer may take that long, and a stolen token is told from
/// one that has ended.
pub(super) const REMEMBERED: Duration = Duration::from_secs(600);
/// Refreshes that are told for streams elsewhere, at once.
const MOST_RENEWALS: &[u8] = b"10000";
