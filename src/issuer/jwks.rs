//! An issuer's keys at one moment (RFC 7517 §5), and which of them a token means.

use std::sync::Arc;

use serde_json::Value;

use super::algorithm::Algorithm;
use super::json::{self, Malformed};
use super::jwk::Key;
use super::unusable_key::UnusableKey;

/// An issuer's keys. Immutable; a fetch makes a new one.
#[derive(Debug, Default)]
pub struct Jwks {
    keys: Box<[Arc<Key>]>,
    /// A secret shared with the issuer verifies tokens whatever `kid` they name.
    secret: bool,
}

impl Jwks {
    /// Reads a JWK set. Keys that cannot be used are told to `unusable`, with
    /// their `kid`, and left out; they never spoil the set.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if `text` is not an object with an array `jwks_cache`.
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

    /// The one secret shared with an issuer that signs with `HS*`.
    pub fn from_secret(secret: &[u8]) -> Self {
        Self { keys: [Arc::new(Key::from_secret(secret))].into(), secret: true }
    }

    /// The key that a token with this `kid` and `alg` means.
    ///
    /// With a `kid`, the one of that name that fits; without, the only one that fits.
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

    /// Whether a token with this `kid` finds at least one key; without one, any will do.
    pub fn knows(&self, kid: Option<&str>) -> bool {
        self.secret || self.keys.iter().any(|key| kid.is_none() || key.kid() == kid)
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Takes the place of `old`: keys in both live on with what they verified, the others' verdicts are void.
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

/// Why no key can verify a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeySelectionError {
    /// None of that name: the issuer may have a new one.
    #[error("no key of that name")]
    Unknown,
    /// The key of that name is not for the token's algorithm.
    #[error("the key is not for that algorithm")]
    Unfit,
    /// More than one would do: guessing is not verifying.
    #[error("more than one key would do")]
    Ambiguous,
}

/// A set larger than any issuer's is somebody's attempt to keep us busy.
const MAX_KEYS: usize = 256;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_bad_key_does_not_spoil_the_set() {
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
    fn kid_chooses_and_the_algorithm_must_fit() {
        let set = parse(&[ec("a", "ES256"), ed("b")]);

        assert_eq!(set.select(Some("a"), Algorithm::Es256).unwrap().kid(), Some("a"));
        assert_eq!(set.select(Some("a"), Algorithm::EdDsa).err(), Some(KeySelectionError::Unfit));
        assert_eq!(set.select(Some("c"), Algorithm::Es256).err(), Some(KeySelectionError::Unknown));
    }

    #[test]
    fn without_kid_only_the_one_key_that_fits_will_do() {
        let two = parse(&[ec("a", "ES256"), ed("b")]);
        let three = parse(&[ec("a", "ES256"), ec2("b")]);

        assert_eq!(two.select(None, Algorithm::Es256).unwrap().kid(), Some("a"));
        assert_eq!(three.select(None, Algorithm::Es256).err(), Some(KeySelectionError::Ambiguous));
        assert_eq!(two.select(None, Algorithm::Rs256).err(), Some(KeySelectionError::Unknown));
    }

    #[test]
    fn one_name_for_two_keys_is_refused_unless_the_algorithm_tells_them_apart() {
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
    fn a_key_that_leaves_the_set_is_retired_and_one_that_stays_is_not() {
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
    fn refuses_what_is_no_set() {
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
