//! The keys that identity tokens are signed with: made here and replaced every day, or given by the operator.
//!
//! A new key is published an hour before it signs, and an old one for an hour after, so that a service which
//! reads the keys now and then never meets a token that it cannot verify. Nothing runs in the background: whoever
//! needs a key, or asks which there are, finds out whether it is time.

use core::fmt;
use core::time::Duration;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::key_storage;
use crate::base::clock::{Clock, Timestamp};
use crate::base::secret::Secret;
use crate::issuer::signing_key::{SigningFailed, SigningKey};

/// What identity tokens are signed with.
pub(crate) struct SigningKeySet {
    clock: Clock,
    ring: ArcSwap<KeyRing>,
    /// Held by whoever makes a new key; `None` if keys are given and never made.
    maker: Option<Mutex<KeyGenerator>>,
}

struct KeyGenerator {
    state_dir: Option<PathBuf>,
    control: Handle,
}

/// The keys at one moment, the oldest first.
struct KeyRing {
    keys: Vec<Arc<RotatingKey>>,
    /// The public halves, as they are published (RFC 7517 §5).
    published: Bytes,
    /// When the next key is due, or an old one is to go.
    turns_at: Timestamp,
}

/// A key, and since when it signs.
pub(super) struct RotatingKey {
    pub(super) key: SigningKey,
    /// What it was read from or is to be saved as; empty for a given key.
    pub(super) document: Secret<Vec<u8>>,
    pub(super) signs_from: Timestamp,
}

impl SigningKeySet {
    /// Keys of the operator's: the first signs, all are published.
    pub(crate) fn given(keys: &[Arc<SigningKey>], clock: Clock) -> Self {
        let made = |key: &Arc<SigningKey>| {
            let (document, signs_from) = (Secret::new(Vec::new()), Timestamp::from_secs(0));
            Arc::new(RotatingKey { key: key.with_thumbprint_kid(), document, signs_from })
        };
        let keys = keys.iter().rev().map(made).collect();
        Self { clock, ring: ArcSwap::from_pointee(KeyRing::new(keys, Timestamp::MAX)), maker: None }
    }

    /// Keys that are made here, those of the last run first if `state_dir` holds any.
    ///
    /// # Errors
    ///
    /// [`SigningFailed`] if no key can be made.
    pub(crate) fn made(
        state_dir: Option<PathBuf>,
        clock: Clock,
        control: Handle,
    ) -> Result<Self, SigningFailed> {
        let now = clock.now();
        let mut keys = state_dir.as_deref().map(key_storage::load).unwrap_or_default();
        // Whoever saved a key from the future had another clock: it signs at once.
        if keys.iter().all(|made| now < made.signs_from) {
            keys = vec![Arc::new(RotatingKey::new(now)?)];
        }
        let maker = KeyGenerator { state_dir, control };
        maker.save(&keys);
        let ring = ArcSwap::from_pointee(KeyRing::of(keys));
        Ok(Self { clock, ring, maker: Some(Mutex::new(maker)) })
    }

    /// Signs a token at `now`.
    ///
    /// # Errors
    ///
    /// [`SigningFailed`] if the library refuses.
    pub(super) fn sign(&self, claims: &Value, now: Timestamp) -> Result<String, SigningFailed> {
        let ring = self.ring(now);
        let key = &ring.signing(now).ok_or(SigningFailed)?.key;
        let header = json!({ "alg": key.algorithm().name(), "typ": "JWT", "kid": key.kid() });
        key.sign_jwt(&header, claims)
    }

    /// The public keys, as a JWK set.
    pub(crate) fn published(&self) -> Bytes {
        self.ring(self.clock.now()).published.clone()
    }

    /// The ring, turned if it is time.
    fn ring(&self, now: Timestamp) -> Arc<KeyRing> {
        let ring = self.ring.load_full();
        let Some(maker) = self.maker.as_ref().filter(|_| ring.turns_at <= now) else { return ring };
        let maker = maker.lock().unwrap_or_else(PoisonError::into_inner);
        let ring = self.ring.load_full();
        if now < ring.turns_at {
            return ring;
        }
        let turned = Arc::new(ring.rotate(now));
        maker.save(&turned.keys);
        self.ring.store(Arc::clone(&turned));
        turned
    }
}

impl KeyRing {
    fn new(keys: Vec<Arc<RotatingKey>>, turns_at: Timestamp) -> Self {
        let public: Vec<_> = keys.iter().rev().map(|made| made.key.public_jwk()).collect();
        let published = json!({ "keys": public }).to_string().into();
        Self { keys, published, turns_at }
    }

    fn of(keys: Vec<Arc<RotatingKey>>) -> Self {
        let newest = keys.last().map_or(Timestamp::MAX, |made| made.signs_from);
        let next_is_due = newest.plus(ROTATION_PERIOD).minus(PUBLISH_LEAD);
        let oldest_goes = keys.get(1).map(|second| second.signs_from.plus(RETENTION));
        let turns_at = oldest_goes.map_or(next_is_due, |goes| goes.min(next_is_due));
        Self::new(keys, turns_at)
    }

    /// The ring as it is to be at `now`.
    fn rotate(&self, now: Timestamp) -> Self {
        let superseded =
            self.keys.windows(2).take_while(|pair| pair[1].signs_from.plus(RETENTION) <= now);
        let mut keys = self.keys[superseded.count()..].to_vec();
        let newest = keys.last().map_or(now, |made| made.signs_from);
        if newest.plus(ROTATION_PERIOD).minus(PUBLISH_LEAD) <= now {
            match RotatingKey::new(newest.plus(ROTATION_PERIOD).max(now.plus(PUBLISH_LEAD))) {
                Ok(made) => keys.push(Arc::new(made)),
                Err(error) => {
                    tracing::error!(%error, "No new key for identity tokens: the old one signs on.");
                    return Self::new(keys, now.plus(RETRY_DELAY));
                }
            }
        }
        Self::of(keys)
    }

    /// The key that signs at `now`: the newest whose time has come.
    fn signing(&self, now: Timestamp) -> Option<&Arc<RotatingKey>> {
        self.keys.iter().rfind(|made| made.signs_from <= now).or(self.keys.first())
    }
}

impl RotatingKey {
    fn new(signs_from: Timestamp) -> Result<Self, SigningFailed> {
        let (key, document) = SigningKey::generate()?;
        Ok(Self { key, document, signs_from })
    }
}

impl KeyGenerator {
    /// Saves the keys for the next run. Nobody waits for the disk.
    fn save(&self, keys: &[Arc<RotatingKey>]) {
        if let Some(directory) = self.state_dir.clone() {
            let keys = keys.to_vec();
            self.control.spawn_blocking(move || key_storage::save(&directory, &keys));
        }
    }
}

impl fmt::Debug for SigningKeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("keys", &self.ring.load().keys.len()).finish_non_exhaustive()
    }
}

/// How long a key signs.
const ROTATION_PERIOD: Duration = Duration::from_secs(24 * 60 * 60);
/// How long before that it is published.
const PUBLISH_LEAD: Duration = Duration::from_secs(60 * 60);
/// How long it stays published afterwards: far longer than a token lives.
const RETENTION: Duration = Duration::from_secs(60 * 60);
/// How soon to try again what failed.
const RETRY_DELAY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::{Algorithm, Jwks};

    const NOON: Timestamp = Timestamp::from_secs(1_700_049_600);

    #[tokio::test]
    async fn a_new_key_is_published_before_it_signs_and_an_old_one_after() {
        let clock = Clock::manual(NOON);
        let keys = SigningKeySet::made(None, clock.clone(), Handle::current()).unwrap();
        let hour = Duration::from_secs(3600);
        let first = kid(&keys, clock.now());
        assert_eq!(published(&keys), 1);

        clock.advance(hour * 23);
        assert_eq!(published(&keys), 2, "an hour ahead");
        assert_eq!(kid(&keys, clock.now()), first);
        clock.advance(hour);
        let second = kid(&keys, clock.now());
        assert_ne!(second, first);
        assert_eq!(published(&keys), 2, "tokens of the old key are still good");
        clock.advance(hour);
        assert_eq!(published(&keys), 1);
        assert_eq!(kid(&keys, clock.now()), second);
    }

    /// Nobody could have read a key that is made in the moment it signs.
    #[tokio::test]
    async fn after_a_long_sleep_the_old_key_signs_until_the_new_one_could_be_known() {
        let clock = Clock::manual(NOON);
        let keys = SigningKeySet::made(None, clock.clone(), Handle::current()).unwrap();
        let first = kid(&keys, clock.now());

        clock.advance(ROTATION_PERIOD * 30);

        assert_eq!(kid(&keys, clock.now()), first);
        assert_eq!(published(&keys), 2);
        clock.advance(PUBLISH_LEAD);
        assert_ne!(kid(&keys, clock.now()), first);
    }

    #[tokio::test]
    async fn keys_survive_a_restart_where_there_is_a_place_for_them() {
        let directory = tempfile::tempdir().unwrap();
        let start = || {
            let place = Some(directory.path().to_owned());
            SigningKeySet::made(place, Clock::manual(NOON), Handle::current()).unwrap()
        };
        let first = start();
        let file = directory.path().join("identity-keys.json");
        crate::issuer::testing::eventually("the keys to be on disk", || file.exists()).await;

        let second = start();

        assert_eq!(kid(&second, NOON), kid(&first, NOON));
        assert_eq!(second.published(), first.published());
    }

    #[tokio::test]
    async fn what_it_signs_its_published_keys_verify() {
        let keys = SigningKeySet::made(None, Clock::manual(NOON), Handle::current()).unwrap();
        let set = Jwks::parse(&keys.published(), |_, why| panic!("{why}")).unwrap();

        assert!(set.select(Some(&kid(&keys, NOON)), Algorithm::Es256).is_ok());
    }

    #[test]
    fn of_given_keys_the_first_signs_and_all_are_published() {
        let given = ["a", "b"].map(|kid| Arc::new(crate::issuer::testing::signing_key(kid)));
        let clock = Clock::manual(NOON);
        let keys = SigningKeySet::given(&given, clock.clone());

        clock.advance(ROTATION_PERIOD * 30);

        assert_eq!(published(&keys), 2);
        assert_eq!(Some(&*kid(&keys, clock.now())), given[0].with_thumbprint_kid().kid());
    }

    fn published(keys: &SigningKeySet) -> usize {
        Jwks::parse(&keys.published(), |_, why| panic!("{why}")).unwrap().len()
    }

    fn kid(keys: &SigningKeySet, now: Timestamp) -> String {
        keys.ring(now).signing(now).unwrap().key.kid().unwrap().to_owned()
    }
}
