//! An issuer's JWK set (RFC 7517 §5), and the selection of a token's key.

use std::sync::Arc;

use serde_json::Value;

use super::algorithm::Algorithm;
use super::jwk::Key;
use super::unusable_key::UnusableKey;
use crate::base::strict_json::{self, MalformedJson};

/// An issuer's JWK set. Immutable; a fetch makes a new one.
#[derive(Debug, Default)]
pub struct Jwks {
    keys: Box<[Arc<Key>]>,
    /// Whether the key is a shared secret, which verifies tokens of any `kid`.
    secret: bool,
}

impl Jwks {
    /// Reads a JWK set. Unusable keys are skipped and reported to `unusable` with
    /// their `kid`; the other keys stay usable.
    ///
    /// # Errors
    ///
    /// [`MalformedJson`] if `text` is not an object with an array `keys`.
    pub fn parse(
        text: &[u8],
        mut unusable: impl FnMut(Option<&str>, UnusableKey),
    ) -> Result<Self, MalformedJson> {
        let document = strict_json::parse_object_lenient(text)?;
        let Some(Value::Array(jwks)) = document.get("keys") else { return Err(MalformedJson) };
        let mut keys: Vec<Arc<Key>> = Vec::new();
        let mut read_keys = 0;
        for jwk in jwks {
            if read_keys == MAX_KEYS {
                unusable(None, UnusableKey::Excess);
                break;
            }
            let read = jwk.as_object().ok_or(UnusableKey::Members).and_then(Key::from_jwk);
            // A key of an unsupported type costs nothing to read.
            let kty = jwk.get("kty").and_then(Value::as_str);
            read_keys += usize::from(matches!(kty, Some("RSA" | "EC" | "OKP")));
            match read {
                // Listed twice, with a certificate or for another use, it is one key.
                Ok(key) if keys.iter().any(|same| key.is_covered_by(same)) => {}
                Ok(key) => {
                    keys.retain(|same| !same.is_covered_by(&key));
                    keys.push(Arc::new(key));
                }
                Err(why) => unusable(jwk.get("kid").and_then(Value::as_str), why),
            }
        }
        Ok(Self { keys: keys.into(), secret: false })
    }

    /// Returns the set with the one secret shared with an issuer that signs with `HS*`.
    pub fn from_secret(secret: &[u8]) -> Self {
        Self { keys: [Arc::new(Key::from_secret(secret))].into(), secret: true }
    }

    /// Returns the key that `verifies` a token with this `kid` and `alg`.
    ///
    /// With a `kid` the keys of that `kid` that support the algorithm are tried, nearly always one; without, all that
    /// support it. Of different keys no more than [`MAX_CANDIDATES`] are tried.
    ///
    /// # Errors
    ///
    /// See [`KeySelectionError`].
    pub fn select(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
        verifies: impl Fn(&Key) -> bool,
    ) -> Result<&Arc<Key>, KeySelectionError> {
        let named = |key: &&Arc<Key>| self.secret || kid.is_none() || key.kid() == kid;
        let fits = |key: &&Arc<Key>| named(key) && key.supports(algorithm);
        let is_new = |at: usize, key: &Arc<Key>| {
            !self.keys[..at].iter().any(|same| fits(&same) && same.has_material_of(key))
        };
        let fitting = self.keys.iter().enumerate().filter(|(_, key)| fits(key));
        let mut candidates =
            fitting.filter(|(at, key)| is_new(*at, key)).take(MAX_CANDIDATES).peekable();
        if candidates.peek().is_none() {
            let is_known = kid.is_some() && self.keys.iter().any(|key| named(&key));
            return Err(if is_known {
                KeySelectionError::Unfit
            } else {
                KeySelectionError::Unknown
            });
        }
        let verified = candidates.find(|(_, key)| verifies(key));
        verified.map(|(_, key)| key).ok_or(KeySelectionError::NoneVerifies)
    }

    /// Whether there is a key for this `kid`; without one, any key counts.
    pub fn knows(&self, kid: Option<&str>) -> bool {
        self.secret || self.keys.iter().any(|key| kid.is_none() || key.kid() == kid)
    }

    /// Returns the algorithms that a key verifies.
    pub fn algorithms(&self) -> impl Iterator<Item = Algorithm> {
        let supports = |algorithm: &Algorithm| self.keys.iter().any(|key| key.supports(*algorithm));
        Algorithm::ALL.into_iter().filter(supports)
    }

    /// Returns the number of keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Replaces `old`: keys in both stay valid with their cached results; the others are retired.
    #[must_use]
    pub(in crate::issuer) fn replace(mut self, old: &Self) -> Self {
        for key in &mut self.keys {
            let same = |old: &&Arc<Key>| old.is_covered_by(key) && key.is_covered_by(old);
            if let Some(same) = old.keys.iter().find(same) {
                *key = Arc::clone(same);
            }
        }
        for key in &old.keys {
            if !self.keys.iter().any(|kept| Arc::ptr_eq(kept, key)) {
                key.retire();
            }
        }
        self
    }
}

/// The reason why no key can verify a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeySelectionError {
    /// No key of that `kid`: the issuer may have a new one.
    #[error("no key has this `kid`")]
    Unknown,
    /// The key of that `kid` does not support the token's algorithm.
    #[error("the key does not support the algorithm")]
    Unfit,
    /// No key that may have signed the token verifies it.
    #[error("no key verifies the signature")]
    NoneVerifies,
}

/// Keys of supported types that are read: more would be an attack on the gateway. The rest of a set is skipped.
const MAX_KEYS: usize = 256;

/// Keys that are tried for one token: more would let each forged token cost too much.
pub const MAX_CANDIDATES: usize = 8;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::issuer::keys::signing_key::SigningKey;

    #[test]
    fn an_unusable_key_does_not_affect_the_others() {
        let mut reasons = Vec::new();
        let text = format!(
            r#"{{"keys":[
                null, 7, [], {{}}, {{"kty":"AKP","alg":"ML-DSA-44","pub":"AA","kid":"pq"}},
                {{"kty":"oct","k":"AAAA","kid":"secret"}},
                {{"kty":"EC","kid":"twice","kid":"twice"}},
                {}
            ]}}"#,
            ec("good", "ES256")
        );

        let set = Jwks::parse(text.as_bytes(), |_, why| reasons.push(why)).unwrap();

        assert_eq!(set.len(), 1);
        assert_eq!(reasons.len(), 7);
        assert!(first(&set, Some("good"), Algorithm::Es256).is_ok());
    }

    #[test]
    fn keys_of_unsupported_types_do_not_count_and_a_cut_is_reported() {
        let unsupported = r#"{"kty":"AKP","alg":"ML-DSA-44","pub":"AA"}"#.to_owned();
        let mut keys = vec![unsupported; 300];
        keys.extend([ec("good", "ES256")]);
        let read = |keys: &[String]| {
            let (text, mut cut) = (format!(r#"{{"keys":[{}]}}"#, keys.join(",")), false);
            let set = Jwks::parse(text.as_bytes(), |_, why| cut |= why == UnusableKey::Excess);
            (set.unwrap().knows(Some("good")), cut)
        };

        let short = read(&keys);
        keys.splice(0..0, (0..MAX_KEYS).map(|at| ec(&at.to_string(), "ES256")));
        let long = read(&keys);

        assert_eq!(short, (true, false));
        assert_eq!(long, (false, true));
    }

    #[test]
    fn kid_selects_and_the_algorithm_must_match() {
        let set = parse(&[ec("a", "ES256"), ed("b")]);

        assert_eq!(first(&set, Some("a"), Algorithm::Es256).unwrap().kid(), Some("a"));
        assert_eq!(first(&set, Some("a"), Algorithm::EdDsa).err(), Some(KeySelectionError::Unfit));
        assert_eq!(
            first(&set, Some("c"), Algorithm::Es256).err(),
            Some(KeySelectionError::Unknown)
        );
        assert_eq!(first(&set, None, Algorithm::Rs256).err(), Some(KeySelectionError::Unknown));
    }

    #[test]
    fn different_keys_under_one_kid_or_none_are_tried_in_turn() {
        for (set, kid) in [
            (parse(&[ec("a", "ES256"), ed("b"), ec2("b")]), None),
            (parse(&[ec("a", "ES256"), ec2("a")]), Some("a")),
        ] {
            for wanted in [0, set.len() - 1] {
                let wanted = Arc::clone(&set.keys[wanted]);
                let found = set.select(kid, Algorithm::Es256, |key| key.has_material_of(&wanted));
                assert!(Arc::ptr_eq(found.unwrap(), &wanted));
            }
            let none = set.select(kid, Algorithm::Es256, |_| false);
            assert_eq!(none.err(), Some(KeySelectionError::NoneVerifies));
        }
    }

    #[test]
    fn no_more_than_eight_keys_are_tried() {
        let keys: Vec<String> = (0..20).map(|_| generated("a")).collect();
        let set = parse(&keys);
        let tried = core::cell::Cell::new(0);

        let found = set.select(Some("a"), Algorithm::Es256, |_| {
            tried.set(tried.get() + 1);
            false
        });

        assert_eq!((found.err(), tried.get()), (Some(KeySelectionError::NoneVerifies), 8));
    }

    #[test]
    fn a_key_listed_twice_is_one_key() {
        let with = |extra: Value| {
            let mut key: Value = serde_json::from_str(&ec("a", "ES256")).unwrap();
            for (name, value) in extra.as_object().unwrap() {
                key[name] = value.clone();
            }
            key.to_string()
        };
        let set = parse(&[
            with(json!({})),
            with(json!({ "x5c": ["MIIB"], "x5t": "AAAA" })),
            with(json!({ "use": "sig", "key_ops": ["verify"] })),
            with(json!({ "alg": null })),
            with(json!({ "kid": "other" })),
        ]);

        assert_eq!(set.len(), 2, "one for each kid");
        let tried = core::cell::Cell::new(0);
        let none = set.select(None, Algorithm::Es256, |_| {
            tried.set(tried.get() + 1);
            false
        });
        assert_eq!((none.err(), tried.get()), (Some(KeySelectionError::NoneVerifies), 1));
    }

    #[test]
    fn one_key_for_two_algorithms_serves_both() {
        let listed = |alg: &str| {
            let mut jwk: Value = serde_json::from_str(RSA).unwrap();
            jwk["alg"] = alg.into();
            jwk["kid"] = "a".into();
            jwk.to_string()
        };
        let set = parse(&[listed("RS256"), listed("PS256")]);

        assert!(first(&set, Some("a"), Algorithm::Rs256).is_ok());
        assert!(first(&set, Some("a"), Algorithm::Ps256).is_ok());
        assert_eq!(first(&set, Some("a"), Algorithm::Rs512).err(), Some(KeySelectionError::Unfit));
    }

    #[test]
    fn a_key_removed_from_the_set_is_retired() {
        let old = parse(&[ec("a", "ES256"), ed("b")]);
        let (a, b) = (Arc::clone(&old.keys[0]), Arc::clone(&old.keys[1]));

        let new = parse(&[ed("b"), ec2("c")]).replace(&old);

        assert!(a.is_retired() && !b.is_retired());
        assert!(Arc::ptr_eq(first(&new, Some("b"), Algorithm::EdDsa).unwrap(), &b));
    }

    #[test]
    fn a_shared_secret_verifies_under_any_kid() {
        let set = Jwks::from_secret(&[7; 32]);

        assert!(first(&set, Some("x"), Algorithm::Hs256).is_ok());
        assert!(first(&set, None, Algorithm::Hs256).is_ok());
        assert_eq!(first(&set, Some("x"), Algorithm::Rs256).err(), Some(KeySelectionError::Unfit));
        assert_eq!(first(&set, Some("x"), Algorithm::Hs512).err(), Some(KeySelectionError::Unfit));
    }

    #[test]
    fn malformed_sets_are_refused() {
        for text in ["[]", "{}", r#"{"keys":{}}"#, r#"{"keys":null}"#, "<html>", ""] {
            assert!(Jwks::parse(text.as_bytes(), |_, _| ()).is_err(), "{text}");
        }
    }

    fn first<'s>(
        set: &'s Jwks,
        kid: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<&'s Arc<Key>, KeySelectionError> {
        set.select(kid, algorithm, |_| true)
    }

    fn generated(kid: &str) -> String {
        let (key, _) = SigningKey::generate().unwrap();
        key.with_kid(kid).public_jwk().to_string()
    }

    fn parse(keys: &[String]) -> Jwks {
        let text = format!(r#"{{"keys":[{}]}}"#, keys.join(","));
        Jwks::parse(text.as_bytes(), |_, why| panic!("{why}")).unwrap()
    }

    fn ec(kid: &str, alg: &str) -> String {
        json!({
            "kty": "EC", "crv": "P-256", "kid": kid, "alg": alg,
            "x": "04N0xi21hshyvBp7I167sbE_bXqyqkAPfefdklMO7wY",
            "y": "UI8exy-C06a7DUnjIdENkxeFtHM4-l_41LqEw9nVgmw",
        })
        .to_string()
    }

    fn ec2(kid: &str) -> String {
        json!({
            "kty": "EC", "crv": "P-256", "kid": kid,
            "x": "weNJy2HscCSM6AEDTDg04biOvhFhyyWvOHQfeF_PxMQ",
            "y": "e8lnCO-AlStT-NJVX-crhB7QRYhiix03illJOVAOyck",
        })
        .to_string()
    }

    fn ed(kid: &str) -> String {
        json!({
            "kty": "OKP", "crv": "Ed25519", "kid": kid,
            "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        })
        .to_string()
    }

    const RSA: &str = r#"{"kty":"RSA","e":"AQAB","n":"kqGboBfAWttWPCA-0cGRgsY6SaYoIARt0B_PkaEcIq9HPYNdu9n6UuWHuuTHrjF_ZoQW97r5HaAorNvrMEGTGdxCHZdEtkHvNVVmrtxTBLiQCbCozXhFoIrVcr3qUBrdGnNn_M3jJi7Wg7p_-x62nS5gNG875oyheRkutHsQXikFZwsN3q_TsPNOVlCiHy8mxzaFTUQGm-X8UYexFyAivlDSjgDJLAZSWfxd7k9Gxuwa3AUfQqQcVcegmgKGCaErQ3qQbh1x7WB6iopE3_-GZ8HMAVtR9AmrVscqYsnjhaCehfAI0iKKs8zXr8tISc0ORbaalrkk03H1ZrsEnDKEWQ"}"#;
}
