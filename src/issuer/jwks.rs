//! An issuer's JWK set (RFC 7517 §5), and the selection of a token's key.

use std::sync::Arc;

use serde_json::Value;

use super::algorithm::Algorithm;
use super::json::{self, Malformed};
use super::jwk::Key;
use super::unusable_key::UnusableKey;

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
    /// [`Malformed`] if `text` is not an object with an array `keys`.
    pub fn parse(
        text: &[u8],
        mut unusable: impl FnMut(Option<&str>, UnusableKey),
    ) -> Result<Self, Malformed> {
        let document = json::parse_object_lenient(text)?;
        let Some(Value::Array(jwks)) = document.get("keys") else { return Err(Malformed) };
        let mut keys: Vec<Arc<Key>> = Vec::new();
        for jwk in jwks.iter().take(MAX_KEYS) {
            let read = jwk.as_object().ok_or(UnusableKey::Members).and_then(Key::from_jwk);
            match read {
                Ok(key) if keys.iter().any(|same| same.identity() == key.identity()) => {}
                Ok(key) => keys.push(Arc::new(key)),
                Err(why) => unusable(jwk.get("kid").and_then(Value::as_str), why),
            }
        }
        Ok(Self { keys: keys.into(), secret: false })
    }

    /// Returns the set with the one secret shared with an issuer that signs with `HS*`.
    pub fn from_secret(secret: &[u8]) -> Self {
        Self { keys: [Arc::new(Key::from_secret(secret))].into(), secret: true }
    }

    /// Returns the key for a token with this `kid` and `alg`.
    ///
    /// With a `kid`, the key of that `kid` that supports the algorithm; without, the only key that does.
    ///
    /// # Errors
    ///
    /// See [`KeySelectionError`].
    pub fn select(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<&Arc<Key>, KeySelectionError> {
        let named = |key: &&Arc<Key>| self.secret || kid.is_none() || key.kid() == kid;
        let mut fitting = self.keys.iter().filter(named).filter(|key| key.supports(algorithm));
        match (fitting.next(), fitting.next()) {
            (Some(key), None) => Ok(key),
            (Some(_), Some(_)) => Err(KeySelectionError::Ambiguous),
            (None, _) if kid.is_some() && self.keys.iter().any(|key| named(&key)) => {
                Err(KeySelectionError::Unfit)
            }
            (None, _) => Err(KeySelectionError::Unknown),
        }
    }

    /// Whether there is a key for this `kid`; without one, any key counts.
    pub fn knows(&self, kid: Option<&str>) -> bool {
        self.secret || self.keys.iter().any(|key| kid.is_none() || key.kid() == kid)
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
    pub(super) fn replace(mut self, old: &Self) -> Self {
        for key in &mut self.keys {
            if let Some(same) = old.keys.iter().find(|same| same.identity() == key.identity()) {
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
    #[error("no key of that name")]
    Unknown,
    /// The key of that `kid` does not support the token's algorithm.
    #[error("the key does not support the algorithm")]
    Unfit,
    /// Several keys match: trying them all is not verification.
    #[error("ambiguous key: several keys match")]
    Ambiguous,
}

/// Larger sets are refused, because reading them would be an attack on the gateway.
const MAX_KEYS: usize = 256;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
        assert!(set.select(Some("good"), Algorithm::Es256).is_ok());
    }

    #[test]
    fn kid_selects_and_the_algorithm_must_match() {
        let set = parse(&[ec("a", "ES256"), ed("b")]);

        assert_eq!(set.select(Some("a"), Algorithm::Es256).unwrap().kid(), Some("a"));
        assert_eq!(set.select(Some("a"), Algorithm::EdDsa).err(), Some(KeySelectionError::Unfit));
        assert_eq!(set.select(Some("c"), Algorithm::Es256).err(), Some(KeySelectionError::Unknown));
    }

    #[test]
    fn without_kid_the_only_matching_key_is_selected() {
        let two = parse(&[ec("a", "ES256"), ed("b")]);
        let three = parse(&[ec("a", "ES256"), ec2("b")]);

        assert_eq!(two.select(None, Algorithm::Es256).unwrap().kid(), Some("a"));
        assert_eq!(three.select(None, Algorithm::Es256).err(), Some(KeySelectionError::Ambiguous));
        assert_eq!(two.select(None, Algorithm::Rs256).err(), Some(KeySelectionError::Unknown));
    }

    #[test]
    fn duplicate_kids_are_refused_unless_the_algorithm_distinguishes_them() {
        let apart = parse(&[ec("a", "ES256"), ed("a")]);
        let same = parse(&[ec("a", "ES256"), ec2("a")]);
        let twice = parse(&[ec("a", "ES256"), ec("a", "ES256")]);

        assert!(apart.select(Some("a"), Algorithm::EdDsa).is_ok());
        assert_eq!(
            same.select(Some("a"), Algorithm::Es256).err(),
            Some(KeySelectionError::Ambiguous)
        );
        assert!(twice.select(Some("a"), Algorithm::Es256).is_ok());
    }

    #[test]
    fn a_key_removed_from_the_set_is_retired() {
        let old = parse(&[ec("a", "ES256"), ed("b")]);
        let (a, b) = (Arc::clone(&old.keys[0]), Arc::clone(&old.keys[1]));

        let new = parse(&[ed("b"), ec2("c")]).replace(&old);

        assert!(a.is_retired() && !b.is_retired());
        assert!(Arc::ptr_eq(new.select(Some("b"), Algorithm::EdDsa).unwrap(), &b));
    }

    #[test]
    fn a_shared_secret_verifies_under_any_kid() {
        let set = Jwks::from_secret(&[7; 32]);

        assert!(set.select(Some("x"), Algorithm::Hs256).is_ok());
        assert!(set.select(None, Algorithm::Hs256).is_ok());
        assert_eq!(set.select(Some("x"), Algorithm::Rs256).err(), Some(KeySelectionError::Unfit));
        assert_eq!(set.select(Some("x"), Algorithm::Hs512).err(), Some(KeySelectionError::Unfit));
    }

    #[test]
    fn malformed_sets_are_refused() {
        for text in ["[]", "{}", r#"{"keys":{}}"#, r#"{"keys":null}"#, "<html>", ""] {
            assert!(Jwks::parse(text.as_bytes(), |_, _| ()).is_err(), "{text}");
        }
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
}
