//! `DPoP` (RFC 9449): a client proves with each request that it has the key
//! its token is bound to.
//!
//! A proof is checked in two steps. [`Dpop::read`] verifies it for this request
//! and this token, and returns its key. If the token is bound to that key,
//! [`Dpop::record`] makes sure that the proof is used once: in this order, only
//! clients with a valid token can fill the replay cache.

use super::replay_cache::{LEEWAY, LIFETIME, MAX_AGE};
use core::fmt;
use core::time::Duration;
use std::sync::Arc;

use crate::base::digest::sha256;
use aws_lc_rs::{constant_time, hmac};
use serde_json::{Map, Value};
use url::Url;

use super::replay_cache::{ReplayCache, ReplayError, name_of};
use crate::base::abort_on_drop::AbortOnDrop;
use crate::base::clock::{Clock, Timestamp};
use crate::base::secret::Secret;
use crate::base::strict_json;
use crate::issuer::keys::jwk::to_base64url;
use crate::issuer::{Algorithm, Key};
use crate::redis::{Redis, Unavailable};
use crate::token::jwt::claim_types::date;
use crate::token::jwt::jws::Jws;

/// The verifier of proofs, with the replay cache.
pub struct Dpop {
    /// With keys, proofs must carry a nonce of the gateway (RFC 9449 §9). The first makes nonces; all verify
    /// them, so that instances with the same keys accept each other's nonces.
    nonce_keys: Box<[hmac::Key]>,
    used_proofs: Arc<ReplayCache>,
    /// The used proofs that instances share, if they do.
    shared: Option<Shared>,
}

/// Used proofs in Redis.
struct Shared {
    redis: Arc<Redis>,
    /// Writes proofs again that Redis has lost.
    _republish: AbortOnDrop,
}

/// Returns the names of the algorithms that may sign proofs: all but the symmetric ones, whose key would be sent along.
pub fn algorithms() -> Vec<&'static str> {
    let signing = Algorithm::ALL.into_iter().filter(|algorithm| !algorithm.is_symmetric());
    signing.map(Algorithm::name).collect()
}

/// The request that a proof must match.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The method, exactly.
    pub method: &'a str,
    /// The URL as the client knows it, without query and fragment.
    pub url: &'a Url,
    /// The access token of the request.
    pub token: &'a str,
}

/// A proof that matches its request, not recorded yet.
#[derive(Debug)]
#[must_use = "until it is recorded, it can be used again"]
pub struct MatchedProof {
    /// The thumbprint of the key that signed it (RFC 7638).
    pub key: [u8; 32],
    /// A new nonce for the client, if that of the proof expires soon.
    pub next_nonce: Option<String>,
    id: [u8; 32],
}

impl Dpop {
    /// Returns a verifier with the replay cache `used_proofs`. With `nonce_keys`, proofs must carry a nonce.
    pub fn new(nonce_keys: &[Secret<[u8; 32]>], used_proofs: Arc<ReplayCache>) -> Self {
        let key = |secret: &Secret<[u8; 32]>| hmac::Key::new(hmac::HMAC_SHA256, secret.expose());
        Self { nonce_keys: nonce_keys.iter().map(key).collect(), used_proofs, shared: None }
    }

    /// Shares used proofs with every instance that uses `redis`. After Redis has lost them, this instance writes its own
    /// again.
    #[must_use]
    pub fn shared_in(self, redis: Arc<Redis>, clock: Clock) -> Self {
        let mut connections = redis.connections();
        connections.mark_unchanged();
        let (used_proofs, writer) = (Arc::clone(&self.used_proofs), Arc::clone(&redis));
        let task = redis.control().spawn(async move {
            while connections.changed().await.is_ok() {
                // After a further outage all of them are written again.
                let _ = republish_used(&used_proofs, &writer, &clock).await;
            }
        });
        let republish = AbortOnDrop(task.abort_handle());
        Self { shared: Some(Shared { redis, _republish: republish }), ..self }
    }

    /// Verifies the value of the one `DPoP` field of a request, and returns the proof with its key.
    ///
    /// # Errors
    ///
    /// [`BadProof::Invalid`] if it violates a rule of RFC 9449 §4.3;
    /// [`BadProof::Nonce`] if it lacks a nonce of the gateway.
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
        let claims = strict_json::parse_object(&jws.payload).map_err(|_| BadProof::Invalid)?;
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
        if !fits || !is_valid_at(&claims, now) {
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
        // The same `jti` under another key is another proof: clients cannot use up each other's.
        Ok(MatchedProof { key, next_nonce, id: sha256(&[&key, id.as_bytes()]) })
    }

    /// Records a proof whose key the token is bound to.
    ///
    /// # Errors
    ///
    /// [`BadProof::Invalid`] if it was used before; [`BadProof::Full`] if the replay cache
    /// is full.
    pub fn record(&self, proof: &MatchedProof, now: Timestamp) -> Result<(), BadProof> {
        self.used_proofs.check_and_record(&proof.id, &proof.key, now).map_err(|error| match error {
            ReplayError::Again => BadProof::Invalid,
            ReplayError::Full => BadProof::Full,
        })
    }

    /// Records a proof in Redis, so that no other instance accepts it; without Redis, on disk for the next process.
    /// Called after [`Dpop::record`].
    ///
    /// # Errors
    ///
    /// [`BadProof::Invalid`] if another instance has recorded it; [`BadProof::Unknown`] if Redis does not respond;
    /// [`BadProof::Unkept`] if this gateway would accept it again after a restart.
    pub async fn record_shared(
        &self,
        proof: &MatchedProof,
        now: Timestamp,
    ) -> Result<(), BadProof> {
        let Some(Shared { redis, .. }) = &self.shared else {
            return self.used_proofs.keep(&proof.id, now).await.map_err(|_| BadProof::Unkept);
        };
        match redis
            .set_if_absent(&redis.key(KEY_SPACE, &name_of(&proof.id)), MAX_AGE_ELSEWHERE)
            .await
        {
            Ok(true) => Ok(()),
            Ok(false) => Err(BadProof::Invalid),
            Err(Unavailable) => Err(BadProof::Unknown),
        }
    }

    /// Returns a nonce for `DPoP-Nonce`, if nonces are required.
    pub fn nonce(&self, now: Timestamp) -> Option<String> {
        let made = now.as_secs().to_be_bytes();
        let tag = tag(self.nonce_keys.first()?, &made);
        Some(to_base64url(&[&made[..], &tag].concat()))
    }

    /// The time at which `nonce` was made, if it is the gateway's and has not expired.
    fn made(&self, nonce: &str, now: Timestamp) -> Option<Timestamp> {
        let bytes = strict_json::base64url(nonce).ok()?;
        let (made, tagged) = bytes.split_first_chunk::<8>()?;
        let ours = |key| constant_time::verify_slices_are_equal(tagged, &tag(key, made)).is_ok();
        let time = Timestamp::from_secs(u64::from_be_bytes(*made));
        let recent = time <= now.plus(LEEWAY) && now.since(time) <= NONCE_LIFETIME;
        (recent && self.nonce_keys.iter().any(ours)).then_some(time)
    }
}

/// Writes the recent proofs of `used_proofs` to `redis` again, which may have lost them.
async fn republish_used(
    used_proofs: &ReplayCache,
    redis: &Redis,
    clock: &Clock,
) -> Result<(), Unavailable> {
    for recent in used_proofs.recent(MAX_AGE_ELSEWHERE, clock.now()) {
        for marks in recent.chunks(REPUBLISH_BATCH) {
            let marks = marks.iter().map(|(name, left)| (redis.key(KEY_SPACE, name), *left));
            redis.mark_all(marks).await?;
        }
    }
    Ok(())
}

/// Whether a proof is valid now: by its `iat` (RFC 9449 §11.1), and by `exp` and `nbf` if it has them (RFC 7519 §4.1.4, §4.1.5).
fn is_valid_at(claims: &Map<String, Value>, now: Timestamp) -> bool {
    let (Ok(Some(made)), Ok(end), Ok(start)) =
        (date(claims, "iat"), date(claims, "exp"), date(claims, "nbf"))
    else {
        return false;
    };
    let has_begun = |from: Timestamp| from <= now.plus(LEEWAY);
    let ends_later = |end: Timestamp| now < end.plus(LEEWAY);
    has_begun(made)
        && ends_later(made.plus(LIFETIME))
        && start.is_none_or(has_begun)
        && end.is_none_or(ends_later)
}

/// The reason why a proof was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadProof {
    /// The proof is not for this request, or was used before: `invalid_dpop_proof`.
    #[error("the DPoP proof is not valid for this request")]
    Invalid,
    /// The proof lacks a nonce of the gateway: `use_dpop_nonce`, with a new one in `DPoP-Nonce`.
    #[error("the DPoP proof lacks a nonce of this server")]
    Nonce,
    /// Redis does not respond, so that another instance may have accepted the proof.
    #[error("cannot find out whether the DPoP proof was used before")]
    Unknown,
    /// The use of the proof cannot be written to disk: it could be used again after a restart.
    #[error("cannot save the use of the DPoP proof")]
    Unkept,
    /// The replay cache is full: another proof could be used twice.
    #[error("too many DPoP proofs at once")]
    Full,
}

/// Whether two URLs are equal except for query and fragment (RFC 3986 §6.2.2, §6.2.3).
fn is_same(theirs: &Url, ours: &Url) -> bool {
    theirs.scheme() == ours.scheme()
        && theirs.host() == ours.host()
        && theirs.port_or_known_default() == ours.port_or_known_default()
        && theirs.username().is_empty()
        && theirs.password().is_none()
        && normal(theirs.path()) == normal(ours.path())
}

/// Normalizes a path whose dot segments are resolved (RFC 3986 §6.2.2): upper-case escapes, none for unreserved
/// characters. Empty segments stay: an upstream may take `//a` for another path than `/a`.
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
                normal.push(byte);
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

impl fmt::Debug for Dpop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dpop").finish_non_exhaustive()
    }
}

/// The same at an instance whose clock is behind.
const MAX_AGE_ELSEWHERE: Duration = Duration::from_secs(MAX_AGE.as_secs() + LEEWAY.as_secs());
/// The Redis key space of used proofs.
const KEY_SPACE: &str = "proof";
/// Proofs that one call to Redis records again.
const REPUBLISH_BATCH: usize = 500;
/// The time for which a nonce is accepted.
const NONCE_LIFETIME: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::issuer::keys::signing_key::SigningKey;
    use crate::issuer::tests::mock_issuer::signing_key;

    const NOW: u64 = 1_700_000_000;
    const URL: &str = "https://api.example.com/orders/7?page=1";

    #[test]
    fn a_proof_returns_the_key_that_signed_it() {
        let key = signing_key("c");

        let fitting = read(&dpop(), &proof(&key, json!({}), json!({}))).unwrap();

        let jwk = Key::from_jwk(key.public_jwk().as_object().unwrap()).unwrap();
        assert_eq!(Some(&fitting.key), jwk.thumbprint());
    }

    #[test]
    fn a_proof_is_accepted_once() {
        let dpop = dpop();
        let proof = proof(&signing_key("c"), json!({}), json!({}));

        let first = dpop.record(&read(&dpop, &proof).unwrap(), at(NOW));
        let second = dpop.record(&read(&dpop, &proof).unwrap(), at(NOW));

        assert_eq!((first, second), (Ok(()), Err(BadProof::Invalid)));
    }

    #[test]
    fn a_proof_of_another_key_with_the_same_jti_is_another_proof() {
        let dpop = dpop();
        let theirs = proof(&signing_key("evil"), json!({}), json!({}));
        let ours = proof(&signing_key("c"), json!({}), json!({}));

        dpop.record(&read(&dpop, &theirs).unwrap(), at(NOW)).unwrap();

        assert_eq!(dpop.record(&read(&dpop, &ours).unwrap(), at(NOW)), Ok(()));
    }

    #[test]
    fn a_proof_matches_one_method_url_and_token() {
        let key = signing_key("c");
        for claims in [
            json!({ "htm": "GET" }),
            json!({ "htm": "post" }),
            json!({ "htu": "https://api.example.com/orders/8" }),
            json!({ "htu": "https://api.example.com/orders/7/" }),
            json!({ "htu": "https://api.example.com//orders//7" }),
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
            json!({ "exp": NOW - 30 }),
            json!({ "exp": "1700000300" }),
            json!({ "nbf": NOW + 31 }),
        ] {
            let proof = proof(&key, json!({}), claims.clone());
            assert_eq!(read(&dpop(), &proof).err(), Some(BadProof::Invalid), "{claims}");
        }
        for htu in [
            "https://api.example.com/orders/7?page=2#x",
            "HTTPS://API.example.com:443/orders/7",
            "https://api.example.com/a/../orders/%37",
        ] {
            assert!(read(&dpop(), &proof(&key, json!({}), json!({ "htu": htu }))).is_ok(), "{htu}");
        }
    }

    #[test]
    fn a_proof_expires_after_a_minute() {
        let key = signing_key("c");
        for (age, good) in [(0_i64, true), (89, true), (90, false), (-30, true), (-31, false)] {
            let iat = NOW.checked_add_signed(-age).unwrap();
            let proof = proof(&key, json!({}), json!({ "iat": iat }));
            assert_eq!(read(&dpop(), &proof).is_ok(), good, "{age}");
        }
    }

    #[test]
    fn a_proof_needs_its_own_public_key_and_type() {
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
    fn a_nonce_is_made_by_the_gateway_and_recent() {
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
    fn a_nonce_that_expires_soon_is_followed_by_the_next() {
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
            // A decoded escape may itself look like one: only then a second pass finds more.
            prop_assert!(once == twice || path.contains("%25"));
        }

        #[test]
        fn any_text_is_parsed_without_panic(text in ".{0,80}") {
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
