//! The signing keys of identity tokens: generated and rotated every day, or set by the operator.
//!
//! A new key is published an hour before it signs, and an old one for an hour after it last signed, so that an
//! upstream that fetches the keys periodically can verify every token. There is no background task: the next use of
//! the keys rotates them when due.

use super::rotating_key::RotatingKey;
use core::fmt;
use core::time::Duration;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::key_storage;
use crate::base::clock::{Clock, Timestamp};
use crate::base::lock::IgnorePoison;
use crate::base::secret::Secret;
use crate::issuer::keys::signing_key::{SigningFailed, SigningKey};

/// The signing keys of identity tokens.
pub(crate) struct SigningKeySet {
    clock: Clock,
    ring: ArcSwap<IdentityKeys>,
    /// Locked to generate a key; `None` for the operator's keys, which are not rotated.
    generator: Option<Mutex<KeyGenerator>>,
}

struct KeyGenerator {
    state_dir: Option<PathBuf>,
    control: Handle,
}

/// The keys at one time, the oldest first.
struct IdentityKeys {
    keys: Vec<Arc<RotatingKey>>,
    /// The JWK set as published (RFC 7517 §5).
    published: Bytes,
    /// The time of the next rotation: a key is due, or an old one is to be removed.
    rotates_at: Timestamp,
}

impl SigningKeySet {
    /// Creates a set of the operator's keys: the first signs, all are published.
    pub(crate) fn configured(keys: &[Arc<SigningKey>], clock: Clock) -> Self {
        let made = |key: &Arc<SigningKey>| {
            let (document, signs_from) = (Secret::new(Vec::new()), Timestamp::from_secs(0));
            Arc::new(RotatingKey { key: key.with_thumbprint_kid(), document, signs_from })
        };
        let keys = keys.iter().rev().map(made).collect();
        Self {
            clock,
            ring: ArcSwap::from_pointee(IdentityKeys::new(keys, Timestamp::MAX)),
            generator: None,
        }
    }

    /// Creates a set of generated keys, with those of the previous run if `state_dir` has any.
    ///
    /// # Errors
    ///
    /// [`SigningFailed`] if no key can be generated.
    pub(crate) fn generated(
        state_dir: Option<PathBuf>,
        clock: Clock,
        control: Handle,
    ) -> Result<Self, SigningFailed> {
        let now = clock.now();
        let mut keys = state_dir.as_deref().map(key_storage::load).unwrap_or_default();
        // A key from the future was saved under another clock: a new one signs at once.
        if keys.iter().all(|made| now < made.signs_from) {
            keys = vec![Arc::new(RotatingKey::new(now)?)];
        }
        let generator = KeyGenerator { state_dir, control };
        generator.save(&keys);
        let ring = ArcSwap::from_pointee(IdentityKeys::of(keys));
        Ok(Self { clock, ring, generator: Some(Mutex::new(generator)) })
    }

    /// Signs a token at `now`.
    ///
    /// # Errors
    ///
    /// [`SigningFailed`] if the library fails.
    pub(super) fn sign(&self, claims: &Value, now: Timestamp) -> Result<String, SigningFailed> {
        let ring = self.ring(now);
        let key = &ring.signing(now).ok_or(SigningFailed)?.key;
        let header = json!({ "alg": key.algorithm().name(), "typ": "JWT", "kid": key.kid() });
        key.sign_jwt(&header, claims)
    }

    /// Returns the public keys, as a JWK set.
    pub(crate) fn published(&self) -> Bytes {
        self.ring(self.clock.now()).published.clone()
    }

    /// Returns the current keys, rotated if due.
    fn ring(&self, now: Timestamp) -> Arc<IdentityKeys> {
        let ring = self.ring.load_full();
        let Some(generator) = self.generator.as_ref().filter(|_| ring.rotates_at <= now) else {
            return ring;
        };
        let generator = generator.lock().ignore_poison();
        let ring = self.ring.load_full();
        if now < ring.rotates_at {
            return ring;
        }
        let rotated = Arc::new(ring.rotate(now));
        generator.save(&rotated.keys);
        self.ring.store(Arc::clone(&rotated));
        rotated
    }
}

impl IdentityKeys {
    fn new(keys: Vec<Arc<RotatingKey>>, rotates_at: Timestamp) -> Self {
        let public: Vec<_> = keys.iter().rev().map(|made| made.key.public_jwk()).collect();
        let published = json!({ "keys": public }).to_string().into();
        Self { keys, published, rotates_at }
    }

    fn of(keys: Vec<Arc<RotatingKey>>) -> Self {
        let newest = keys.last().map_or(Timestamp::MAX, |made| made.signs_from);
        let next_is_due = newest.plus(ROTATION_PERIOD).minus(PUBLISH_LEAD);
        let oldest_goes = keys.get(1).map(|second| second.signs_from.plus(RETENTION));
        let rotates_at = oldest_goes.map_or(next_is_due, |goes| goes.min(next_is_due));
        Self::new(keys, rotates_at)
    }

    /// Returns the keys as they are to be at `now`.
    fn rotate(&self, now: Timestamp) -> Self {
        let superseded =
            self.keys.windows(2).take_while(|pair| pair[1].signs_from.plus(RETENTION) <= now);
        let mut keys = self.keys[superseded.count()..].to_vec();
        let newest = keys.last().map_or(now, |made| made.signs_from);
        if newest.plus(ROTATION_PERIOD).minus(PUBLISH_LEAD) <= now {
            match RotatingKey::new(newest.plus(ROTATION_PERIOD).max(now.plus(PUBLISH_LEAD))) {
                Ok(made) => keys.push(Arc::new(made)),
                Err(error) => {
                    tracing::error!(%error, "Could not generate a signing key for identity tokens; the previous one remains in use.");
                    return Self::new(keys, now.plus(RETRY_DELAY));
                }
            }
        }
        Self::of(keys)
    }

    /// Returns the key that signs at `now`: the newest whose time has come.
    fn signing(&self, now: Timestamp) -> Option<&Arc<RotatingKey>> {
        self.keys.iter().rfind(|made| made.signs_from <= now).or(self.keys.first())
    }
}

impl KeyGenerator {
    /// Saves the keys for the next run, without waiting for the disk.
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

/// The time for which a key signs.
const ROTATION_PERIOD: Duration = Duration::from_secs(24 * 60 * 60);
/// The time for which a key is published before it signs.
const PUBLISH_LEAD: Duration = Duration::from_secs(60 * 60);
/// The time for which a key is published after it last signed: far longer than a token's lifetime.
const RETENTION: Duration = Duration::from_secs(60 * 60);
/// The delay before a failed generation is retried.
const RETRY_DELAY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::{Algorithm, Jwks};

    const NOON: Timestamp = Timestamp::from_secs(1_700_049_600);

    #[tokio::test]
    async fn a_new_key_is_published_before_it_signs_and_an_old_one_after() {
        let clock = Clock::manual(NOON);
        let keys = SigningKeySet::generated(None, clock.clone(), Handle::current()).unwrap();
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

    /// No upstream could have fetched a key that signs from the time it is generated.
    #[tokio::test]
    async fn after_a_long_idle_time_the_old_key_signs_until_the_new_one_was_published() {
        let clock = Clock::manual(NOON);
        let keys = SigningKeySet::generated(None, clock.clone(), Handle::current()).unwrap();
        let first = kid(&keys, clock.now());

        clock.advance(ROTATION_PERIOD * 30);

        assert_eq!(kid(&keys, clock.now()), first);
        assert_eq!(published(&keys), 2);
        clock.advance(PUBLISH_LEAD);
        assert_ne!(kid(&keys, clock.now()), first);
    }

    #[tokio::test]
    async fn keys_survive_a_restart_if_there_is_a_state_directory() {
        let directory = tempfile::tempdir().unwrap();
        let start = || {
            let state_dir = Some(directory.path().to_owned());
            SigningKeySet::generated(state_dir, Clock::manual(NOON), Handle::current()).unwrap()
        };
        let first = start();
        let file = directory.path().join("identity-keys.json");
        crate::issuer::tests::mock_issuer::eventually("the keys to be on disk", || file.exists())
            .await;

        let second = start();

        assert_eq!(kid(&second, NOON), kid(&first, NOON));
        assert_eq!(second.published(), first.published());
    }

    #[tokio::test]
    async fn published_keys_verify_signed_tokens() {
        let keys = SigningKeySet::generated(None, Clock::manual(NOON), Handle::current()).unwrap();
        let set = Jwks::parse(&keys.published(), |_, why| panic!("{why}")).unwrap();

        assert!(set.select(Some(&kid(&keys, NOON)), Algorithm::Es256, |_| true).is_ok());
    }

    #[test]
    fn the_first_configured_key_signs_and_all_are_published() {
        let given =
            ["a", "b"].map(|kid| Arc::new(crate::issuer::tests::mock_issuer::signing_key(kid)));
        let clock = Clock::manual(NOON);
        let keys = SigningKeySet::configured(&given, clock.clone());

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
