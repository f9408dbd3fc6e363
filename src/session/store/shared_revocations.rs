//! Pending revocations that instances of the gateway share in Redis: one hash for each session, field by field.
//!
//! A field names the instance that does it, its expiry in nanoseconds, and a random id; its value is sealed. When
//! that instance is gone, another one takes the field over.

use core::fmt;
use core::time::Duration;
use std::collections::HashSet;
use std::sync::{Arc, LazyLock, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::base::clock::{Clock, Timestamp};
use crate::base::digest::sha256;
use crate::base::lock::IgnorePoison;
use crate::base::random::random;
use crate::redis::{Redis, Script, Unavailable};
use crate::session::refresh::decision;

/// The pending revocations of one session in Redis.
pub(crate) struct SharedRevocations {
    redis: Arc<Redis>,
    /// The key of the hash.
    key: String,
    clock: Clock,
    /// The fields that this instance has taken over.
    taken: Mutex<HashSet<String>>,
}

impl SharedRevocations {
    /// Returns those of the session that `scope` stands for.
    pub(crate) fn new(redis: Arc<Redis>, scope: &[u8], clock: Clock) -> Self {
        let key = redis.key("unrevoked", &URL_SAFE_NO_PAD.encode(sha256(&[scope])));
        Self { redis, key, clock, taken: Mutex::default() }
    }

    /// Adds an entry of this instance's own; returns its field.
    pub(crate) async fn add(&self, sealed: &str, until: Timestamp) -> Result<String, Unavailable> {
        let id = URL_SAFE_NO_PAD.encode(random::<9>());
        let field = format!("{}:{}:{id}", self.redis.me(), until.as_nanos());
        let age = MAX_PENDING_AGE.as_millis().to_string();
        let arguments = [field.as_bytes(), sealed.as_bytes(), age.as_bytes(), MAX_FIELDS];
        match self.redis.run_with_grace::<u8>(&ADD, &[&self.key], &arguments).await? {
            1 => Ok(field),
            _ => Err(Unavailable),
        }
    }

    /// Removes an entry.
    pub(crate) async fn remove(&self, field: &str) -> Result<(), Unavailable> {
        self.redis.run::<u8>(&REMOVE, &[&self.key], &[field.as_bytes()]).await?;
        self.taken.lock().ignore_poison().remove(field);
        Ok(())
    }

    /// Takes over up to `max` entries of instances that are gone; returns fields with sealed values.
    pub(crate) async fn take(&self, max: usize) -> Result<Vec<(String, String)>, Unavailable> {
        let members = self.redis.members();
        // Without the list, every instance looks gone.
        if members.is_empty() || max == 0 {
            return Ok(Vec::new());
        }
        let now = self.clock.now();
        let mut left = Vec::new();
        for field in self.redis.run::<Vec<String>>(&FIELDS, &[&self.key], &[]).await? {
            match parse(&field) {
                Some((_, until)) if until <= now => self.remove(&field).await?,
                Some((from, _)) if from != self.redis.me() => {
                    let weight = |member: u64| sha256(&[field.as_bytes(), &member.to_be_bytes()]);
                    let is_mine = decision::is_chosen(self.redis.me(), from, &members, weight);
                    let is_new = !self.taken.lock().ignore_poison().contains(&field);
                    if is_mine && is_new && left.len() < max {
                        left.push(field);
                    }
                }
                _ => {}
            }
        }
        let mut found = Vec::new();
        for field in left {
            let value =
                self.redis.run::<Option<String>>(&VALUE, &[&self.key], &[field.as_bytes()]).await?;
            if let Some(sealed) = value {
                self.taken.lock().ignore_poison().insert(field.clone());
                found.push((field, sealed));
            }
        }
        Ok(found)
    }
}

impl fmt::Debug for SharedRevocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedRevocations").field("key", &self.key).finish_non_exhaustive()
    }
}

/// Returns the instance and the expiry that a field names.
fn parse(field: &str) -> Option<(u64, Timestamp)> {
    let mut parts = field.splitn(3, ':');
    let mut number = || parts.next()?.parse().ok();
    Some((number()?, Timestamp::from_nanos(number()?)))
}

static ADD: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then return 0 end
         redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
         redis.call('PEXPIRE', KEYS[1], ARGV[3])
         return 1",
    )
});
static REMOVE: LazyLock<Script> =
    LazyLock::new(|| Script::new("return redis.call('HDEL', KEYS[1], ARGV[1])"));
static FIELDS: LazyLock<Script> =
    LazyLock::new(|| Script::new("return redis.call('HKEYS', KEYS[1])"));
static VALUE: LazyLock<Script> =
    LazyLock::new(|| Script::new("return redis.call('HGET', KEYS[1], ARGV[1])"));

/// Entries of one session in Redis.
const MAX_FIELDS: &[u8] = b"10000";
/// The longest time for which a revocation is pending: most tokens end before.
pub(crate) const MAX_PENDING_AGE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
