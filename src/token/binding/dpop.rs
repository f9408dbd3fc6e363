//! `DPoP` (RFC 9449): a client proves, request by request, that it has the key
//! its token is bound to.
//!
//! A proof is checked in two steps. [`Dpop::read`] says whose key signed it,
//! for this request and this token. Once the token has turned out to be bound
//! to that key, [`Dpop::check_and_record`] makes sure that nobody uses the proof again:
//! in this order, only clients with a good token can fill the memory.

use core::fmt;
use core::time::Duration;
use std::sync::Arc;

use aws_lc_rs::{constant_time, digest, hmac};
use serde_json::Value;
use tokio::task::AbortHandle;
use url::Url;

use super::replay_cache::{ReplayCache, ReplayError, name_of};
use crate::base::clock::{Clock, Timestamp};
use crate::base::secret::Secret;
use crate::issuer::jwk::to_base64url;
use crate::issuer::{Algorithm, Key, json};
use crate::store::{Redis, Unavailable};
use crate::token::jwt::jws::Jws;

/// How proofs are checked, and which have been used.
pub struct Dpop {
    /// With keys, proofs must carry a nonce of ours (RFC 9449 §9). The first makes them; all take
    /// them, so that every gateway with the same keys takes the others' nonces.
    nonce_keys: Box<[hmac::Key]>,
    spent: Arc<ReplayCache>,
    /// Where gateways tell each other what is spent, if they do.
    shared: Option<Shared>,
}

/// What gateways tell each other.
struct Shared {
    redis: Arc<Redis>,
    /// Tells again what Redis has lost.
    retelling: AbortHandle,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.retelling.abort();
    }
}

/// The names of the algorithms that may sign proofs: all but the symmetric ones, whose key would travel along.
pub fn algorithms() -> Vec<&'static str> {
    let signing = Algorithm::ALL.into_iter().filter(|algorithm| !algorithm.is_symmetric());
    signing.map(Algorithm::name).collect()
}

/// The request that a proof must be for.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The method, exactly.
    pub method: &'a str,
    /// The address as the client knows it; query and fragment do not count.
    pub url: &'a Url,
    /// The access token that comes with it.
    pub token: &'a str,
}

/// A proof that fits its request, not spent yet.
#[derive(Debug)]
#[must_use = "until it is spent, it can be used again"]
pub struct MatchedProof {
    /// The thumbprint of the key that signed it (RFC 7638).
    pub key: [u8; 32],
    /// A nonce to use from now on, if the proof's own ends soon.
    pub next_nonce: Option<String>,
    id: [u8; 32],
}

impl Dpop {
    /// Checks proofs against what is `replay_cache`. With `nonce_keys`, they must carry a nonce.
    pub fn new(nonce_keys: &[Secret<[u8; 32]>], spent: Arc<ReplayCache>) -> Self {
        let key = |secret: &Secret<[u8; 32]>| hmac::Key::new(hmac::HMAC_SHA256, secret.expose());
        Self { nonce_keys: nonce_keys.iter().map(key).collect(), spent, shared: None }
    }

    /// What is spent here is spent for every gateway that shares `redis`. What that has lost when it is back, or is
    /// found to have lost, is written there again.
    #[must_use]
    pub fn shared_in(self, redis: Arc<Redis>, clock: Clock) -> Self {
        let mut connections = redis.connections();
        connections.mark_unchanged();
        let (spent, telling) = (Arc::clone(&self.spent), Arc::clone(&redis));
        let task = redis.control().spawn(async move {
            while connections.changed().await.is_ok() {
                // If it is away again, all of it is written when it is back again.
                let _ = mark_again(&spent, &telling, &clock).await;
            }
        });
        Self { shared: Some(Shared { redis, retelling: task.abort_handle() }), ..self }
    }

    /// Reads the value of the one `DPoP` field of a request, and says whose key signed it.
    ///
    /// # Errors
    ///
    /// [`BadProof::Invalid`] if it breaks a rule of RFC 9449 §4.3;
    /// [`BadProof::Nonce`] if it lacks a nonce of ours.
    pub fn read(
        &self,
        proof: &str,
        target: Target<'_>,
        now: Timestamp,
    ) -> Result<MatchedProof, BadProof> {
        let jws = Jws::parse(proof).map_err(|_| BadProof::Invalid)?;
        if jws.typ != "dpop+jwt" || jws.algorithm.is_symmetric() {
            return Err(BadProof::Invalid);
        }
        let key = match jws.header.get("jwk") {
            Some(Value::Object(jwk)) => Key::from_jwk(jwk).map_err(|_| BadProof::Invalid)?,
            _ => return Err(BadProof::Invalid),
        };
        let claims = json::parse_object(&jws.payload).map_err(|_| BadProof::Invalid)?;
        let text = |name| claims.get(name).and_then(Value::as_str);
        let (Some(id), Some(method), Some(url), Some(hash)) =
            (text("jti"), text("htm"), text("htu"), text("ath"))
        else {
            return Err(BadProof::Invalid);
        };
        let fits = !id.is_empty()
            && method == target.method
            && Url::parse(url).is_ok_and(|url| is_same(&url, target.url))
            && hash == to_base64url(&sha256(&[target.token.as_bytes()]));
        if !fits || !is_recent(claims.get("iat"), now) {
            return Err(BadProof::Invalid);
        }
        jws.verify_with(&key).map_err(|_| BadProof::Invalid)?;
        let mut next_nonce = None;
        if !self.nonce_keys.is_empty() {
            let made = self.made(text("nonce").unwrap_or_default(), now).ok_or(BadProof::Nonce)?;
            if now.since(made) > NONCE_LIFETIME / 2 {
                next_nonce = self.nonce(now);
            }
        }
        let key = *key.thumbprint().ok_or(BadProof::Invalid)?;
        // The same `jti` from another key is another proof: nobody can spend it for somebody else.
        Ok(MatchedProof { key, next_nonce, id: sha256(&[&key, id.as_bytes()]) })
    }

    /// Spends a proof whose key the token has turned out to be bound to.
    ///
    /// # Errors
    ///
    /// [`BadProof::Invalid`] if it has been used already; [`BadProof::Full`] if that could not be
    /// remembered.
    pub fn record(&self, proof: &MatchedProof, now: Timestamp) -> Result<(), BadProof> {
        self.spent.check_and_record(&proof.id, &proof.key, now).map_err(|not| match not {
            ReplayError::Again => BadProof::Invalid,
            ReplayError::Full => BadProof::Full,
        })
    }

    /// Makes sure that no other gateway has spent the proof either, or will; alone, that this one's next process knows
    /// it. After [`Dpop::check_and_record`].
    ///
    /// # Errors
    ///
    /// [`BadProof::Invalid`] if one has; [`BadProof::Unknown`] if nobody can tell; [`BadProof::Unkept`] if this
    /// gateway would take it again after a restart.
    pub async fn record_shared(
        &self,
        proof: &MatchedProof,
        now: Timestamp,
    ) -> Result<(), BadProof> {
        let Some(Shared { redis, .. }) = &self.shared else {
            return self.spent.keep(&proof.id, now).await.map_err(|_| BadProof::Unkept);
        };
        match redis.set_if_absent(&redis.key(ROOM, &name_of(&proof.id)), LONGEST_ELSEWHERE).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(BadProof::Invalid),
            Err(Unavailable) => Err(BadProof::Unknown),
        }
    }

    /// A nonce for `DPoP-Nonce`, if nonces are wanted.
    pub fn nonce(&self, now: Timestamp) -> Option<String> {
        let made = now.as_secs().to_be_bytes();
        let tag = tag(self.nonce_keys.first()?, &made);
        Some(to_base64url(&[&made[..], &tag].concat()))
    }

    /// When `nonce` was made, if it is ours and not too old.
    fn made(&self, nonce: &str, now: Timestamp) -> Option<Timestamp> {
        let bytes = json::base64url(nonce).ok()?;
        let (made, tagged) = bytes.split_first_chunk::<8>()?;
        let ours = |key| constant_time::verify_slices_are_equal(tagged, &tag(key, made)).is_ok();
        let time = Timestamp::from_secs(u64::from_be_bytes(*made));
        let recent = time <= now.plus(LEEWAY) && now.since(time) <= NONCE_LIFETIME;
        (recent && self.nonce_keys.iter().any(ours)).then_some(time)
    }
}

/// Marks once more in `redis` which proofs are `replay_cache`: it may have lost them.
async fn mark_again(spent: &ReplayCache, redis: &Redis, clock: &Clock) -> Result<(), Unavailable> {
    for standing in spent.standing(LONGEST_ELSEWHERE, clock.now()) {
        for marks in standing.chunks(MARKS_AT_ONCE) {
            let marks = marks.iter().map(|(name, left)| (redis.key(ROOM, name), *left));
            redis.mark_all(marks).await?;
        }
    }
    Ok(())
}

/// Whether a proof of this `iat` is good now (RFC 9449 §11.1).
fn is_recent(issued: Option<&Value>, now: Timestamp) -> bool {
    let seconds = issued.and_then(Value::as_f64).filter(|seconds| *seconds >= 0.0);
    seconds.is_some_and(|seconds| {
        let made = Timestamp::from_secs(seconds as u64);
        made <= now.plus(LEEWAY) && now < made.plus(LIFETIME).plus(LEEWAY)
    })
}

/// Why a proof was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadProof {
    /// Not a proof for this request, or used already: `invalid_dpop_proof`.
    #[error("the DPoP proof is not valid for this request")]
    Invalid,
    /// It lacks a nonce of ours: `use_dpop_nonce`, with a new one in `DPoP-Nonce`.
    #[error("the DPoP proof lacks a nonce of this server")]
    Nonce,
    /// Whether another gateway has spent it cannot be found out.
    #[error("nobody can tell whether the DPoP proof was used before")]
    Unknown,
    /// That it was used cannot be written to disk: it could be used again after a restart.
    #[error("it cannot be kept that the DPoP proof was used")]
    Unkept,
    /// Too many proofs are remembered: one more could be used twice.
    #[error("too many DPoP proofs at once")]
    Full,
}

/// Whether two addresses are the same but for query and fragment (RFC 3986 §6.2.2, §6.2.3).
fn is_same(theirs: &Url, ours: &Url) -> bool {
    theirs.scheme() == ours.scheme()
        && theirs.host() == ours.host()
        && theirs.port_or_known_default() == ours.port_or_known_default()
        && theirs.username().is_empty()
        && theirs.password().is_none()
        && normal(theirs.path()) == normal(ours.path())
}

/// A path as the gateway reads it: upper-case escapes, none for letters that need none, no empty steps.
fn normal(path: &str) -> Vec<u8> {
    let bytes = path.as_bytes();
    let mut normal = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = bytes.get(at + 1..at + 3).and_then(|digits| {
            let digits = core::str::from_utf8(digits).ok()?;
            let plain = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            if byte == b'%' && plain { u8::from_str_radix(digits, 16).ok() } else { None }
        });
        match escaped {
            Some(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                normal.push(byte);
                at += 3;
            }
            Some(byte) => {
                normal.extend(format!("%{byte:02X}").bytes());
                at += 3;
            }
            None => {
                if byte != b'/' || normal.last() != Some(&b'/') {
                    normal.push(byte);
                }
                at += 1;
            }
        }
    }
    normal
}

fn tag(key: &hmac::Key, made: &[u8]) -> [u8; 16] {
    let whole = hmac::sign(key, &[b"dpop nonce ", made].concat());
    core::array::from_fn(|index| whole.as_ref()[index])
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut sum = [0; 32];
    sum.copy_from_slice(context.finish().as_ref());
    sum
}

impl fmt::Debug for Dpop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dpop").finish_non_exhaustive()
    }
}

/// How old a proof may be by its `iat`: they are made for one request, at once.
const LIFETIME: Duration = Duration::from_secs(60);
/// How far clocks may differ.
const LEEWAY: Duration = Duration::from_secs(30);
/// The longest time for which a proof can be good, from its first use on.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(LIFETIME.as_secs() + 2 * LEEWAY.as_secs());
/// The same at a gateway whose clock is behind ours.
const LONGEST_ELSEWHERE: Duration = Duration::from_secs(MAX_AGE.as_secs() + LEEWAY.as_secs());
/// Where Redis keeps which proofs were used.
const ROOM: &str = "proof";
/// Proofs that one question to Redis marks again.
const MARKS_AT_ONCE: usize = 500;
/// How long a nonce of ours is taken.
const NONCE_LIFETIME: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::issuer::signing_key::SigningKey;
    use crate::issuer::testing::signing_key;

    const NOW: u64 = 1_700_000_000;
    const URL: &str = "https://api.example.com/orders/7?page=1";

    #[test]
    fn a_proof_names_the_key_that_signed_it() {
        let key = signing_key("c");

        let fitting = read(&dpop(), &proof(&key, json!({}), json!({}))).unwrap();

        let jwk = Key::from_jwk(key.public_jwk().as_object().unwrap()).unwrap();
        assert_eq!(Some(&fitting.key), jwk.thumbprint());
    }

    #[test]
    fn it_is_good_once() {
        let dpop = dpop();
        let proof = proof(&signing_key("c"), json!({}), json!({}));

        let first = dpop.record(&read(&dpop, &proof).unwrap(), at(NOW));
        let second = dpop.record(&read(&dpop, &proof).unwrap(), at(NOW));

        assert_eq!((first, second), (Ok(()), Err(BadProof::Invalid)));
    }

    #[test]
    fn nobody_can_spend_anothers_proof() {
        let dpop = dpop();
        let theirs = proof(&signing_key("evil"), json!({}), json!({}));
        let ours = proof(&signing_key("c"), json!({}), json!({}));

        dpop.record(&read(&dpop, &theirs).unwrap(), at(NOW)).unwrap();

        assert_eq!(dpop.record(&read(&dpop, &ours).unwrap(), at(NOW)), Ok(()));
    }

    #[test]
    fn it_is_for_one_method_address_and_token() {
        let key = signing_key("c");
        for claims in [
            json!({ "htm": "GET" }),
            json!({ "htm": "post" }),
            json!({ "htu": "https://api.example.com/orders/8" }),
            json!({ "htu": "https://api.example.com/orders/7/" }),
            json!({ "htu": "http://api.example.com/orders/7" }),
            json!({ "htu": "https://api.example.com:8443/orders/7" }),
            json!({ "htu": "https://evil.example.com/orders/7" }),
            json!({ "htu": "https://user@api.example.com/orders/7" }),
            json!({ "htu": "/orders/7" }),
            json!({ "ath": to_base64url(&[0; 32]) }),
            json!({ "ath": null }),
            json!({ "htm": ["POST"] }),
            json!({ "jti": "" }),
            json!({ "jti": 7 }),
            json!({ "iat": "1700000000" }),
            json!({ "iat": null }),
            json!({ "iat": -1 }),
        ] {
            let proof = proof(&key, json!({}), claims.clone());
            assert_eq!(read(&dpop(), &proof).err(), Some(BadProof::Invalid), "{claims}");
        }
        for htu in [
            "https://api.example.com/orders/7?page=2#x",
            "HTTPS://API.example.com:443/orders/7",
            "https://api.example.com/a/../orders/%37",
            "https://api.example.com//orders//7",
        ] {
            assert!(read(&dpop(), &proof(&key, json!({}), json!({ "htu": htu }))).is_ok(), "{htu}");
        }
    }

    #[test]
    fn it_is_good_for_a_minute() {
        let key = signing_key("c");
        for (age, good) in [(0_i64, true), (89, true), (90, false), (-30, true), (-31, false)] {
            let iat = NOW.checked_add_signed(-age).unwrap();
            let proof = proof(&key, json!({}), json!({ "iat": iat }));
            assert_eq!(read(&dpop(), &proof).is_ok(), good, "{age}");
        }
    }

    #[test]
    fn it_brings_a_public_key_of_its_own_and_is_of_its_own_type() {
        let key = signing_key("c");
        let mut private = key.public_jwk();
        private["d"] = "AQAB".into();
        for header in [
            json!({ "typ": "JWT" }),
            json!({ "typ": "dpop" }),
            json!({ "alg": "none" }),
            json!({ "alg": "HS256", "jwk": { "kty": "oct", "k": "AAAA" } }),
            json!({ "alg": "RS256" }),
            json!({ "jwk": private }),
            json!({ "jwk": signing_key("other").public_jwk() }),
            json!({ "jwk": null }),
            json!({ "crit": ["x"] }),
        ] {
            let proof = proof(&key, header.clone(), json!({}));
            assert_eq!(read(&dpop(), &proof).err(), Some(BadProof::Invalid), "{header}");
        }
    }

    #[test]
    fn a_nonce_is_ours_and_recent() {
        let nonce = |secrets: &[u8]| {
            let keys: Vec<_> = secrets.iter().map(|secret| Secret::new([*secret; 32])).collect();
            Dpop::new(&keys, Arc::default())
        };
        let (ours, same, other) = (nonce(&[1]), nonce(&[3, 1]), nonce(&[2, 1]));
        let key = signing_key("c");
        let with = |nonce: Option<String>| proof(&key, json!({}), json!({ "nonce": nonce }));

        assert_eq!(read(&ours, &proof(&key, json!({}), json!({}))).err(), Some(BadProof::Nonce));
        assert!(read(&ours, &with(ours.nonce(at(NOW)))).is_ok());
        assert!(read(&same, &with(ours.nonce(at(NOW - 300)))).is_ok());
        assert_eq!(read(&ours, &with(ours.nonce(at(NOW - 301)))).err(), Some(BadProof::Nonce));
        assert_eq!(read(&ours, &with(other.nonce(at(NOW)))).err(), Some(BadProof::Nonce));
        assert_eq!(read(&ours, &with(Some("AAAA".into()))).err(), Some(BadProof::Nonce));
        assert_eq!(read(&ours, &with(ours.nonce(at(NOW + 31)))).err(), Some(BadProof::Nonce));
    }

    #[test]
    fn a_nonce_that_ends_soon_is_followed_by_the_next() {
        let dpop = Dpop::new(&[Secret::new([1; 32])], Arc::default());
        let next = |age| {
            let nonce = dpop.nonce(at(NOW - age));
            let proof = proof(&signing_key("c"), json!({}), json!({ "nonce": nonce }));
            read(&dpop, &proof).unwrap().next_nonce
        };

        assert_eq!(next(150), None);
        assert_eq!(next(151), dpop.nonce(at(NOW)));
    }

    proptest! {
        #[test]
        fn a_path_has_one_normal_form(path in "/([a-zA-Z0-9/._~-]|%[0-9a-fA-F]{2}){0,12}") {
            let once = normal(&path);
            let twice = normal(core::str::from_utf8(&once).unwrap());
            // What an escape stood for may itself look like one: only then a second look finds more.
            prop_assert!(once == twice || path.contains("%25"));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,80}") {
            let _ = read(&dpop(), &text);
        }
    }

    fn dpop() -> Dpop {
        Dpop::new(&[], Arc::default())
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_secs(seconds)
    }

    fn read(dpop: &Dpop, proof: &str) -> Result<MatchedProof, BadProof> {
        let url = Url::parse(URL).unwrap();
        let target = Target { method: "POST", url: &url, token: "the-token" };
        dpop.read(proof, target, Timestamp::from_secs(NOW))
    }

    fn proof(key: &SigningKey, header: Value, claims: Value) -> String {
        let merged = |mut into: Value, extra: Value| {
            for (name, value) in extra.as_object().unwrap() {
                into[name] = value.clone();
            }
            into
        };
        let header =
            merged(json!({ "typ": "dpop+jwt", "alg": "ES256", "jwk": key.public_jwk() }), header);
        let claims = merged(
            json!({
                "jti": "p1", "htm": "POST", "htu": "https://api.example.com/orders/7",
                "iat": NOW, "ath": to_base64url(&sha256(&[b"the-token"])),
            }),
            claims,
        );
        key.sign_jwt(&header, &claims).unwrap()
    }
}
