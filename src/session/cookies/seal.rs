//! Sealing: what only the gateway can read, kept where anybody can see it.
//!
//! AES-256-GCM under a ring of keys. The first key seals and every key opens,
//! so that an operator changes keys by putting a new one in front and taking
//! the last one away when no session is left that it sealed; nobody is logged
//! out. A sealed text names its key, so a key that has left the ring means
//! "no session", not "an attack".
//!
//! Each text is bound to a *place* (associated data): a cookie sealed for one
//! session or purpose opens nothing of another.
//!
//! Each text has a key of its own, derived from the ring's by a random salt of
//! 128 bits, and a random nonce of 96 bits (NIST SP 800-38D §8.2.2 allows 2³²
//! random nonces under one key). Two of 2⁸⁰ texts share both with a probability
//! of 2⁻⁶⁴: a key need not be changed for the number of its seals.

use core::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::base::secret::Secret;

/// The keys of one session; never empty.
pub(crate) struct KeyRing(Box<[Key]>);

struct Key {
    id: String,
    /// Derives the key of each text.
    seal: hmac::Key,
    mark: hmac::Key,
    name: hmac::Key,
}

impl KeyRing {
    /// A ring of `keys`, or of one random key if there are none.
    pub(crate) fn new(keys: &[Secret<[u8; 32]>]) -> Self {
        if keys.is_empty() {
            return Self(Box::new([Key::new(&random())]));
        }
        Self(keys.iter().map(|key| Key::new(key.expose())).collect())
    }

    /// Seals `plain` for `place` under the first key: `<key id>.<base64url>`.
    pub(crate) fn seal(&self, place: &[u8], plain: &[u8]) -> String {
        let key = &self.0[0];
        let salt = random::<SALT_LEN>();
        let mut sealed = Vec::with_capacity(SALT_LEN + NONCE_LEN + plain.len() + TAG_LEN);
        sealed.extend_from_slice(plain);
        let nonce = key
            .derive(&salt)
            .seal_in_place_append_tag(Aad::from(place), &mut sealed)
            .expect("a plaintext far below AES-GCM's 64 GiB");
        sealed.splice(..0, salt.iter().chain(nonce.as_ref()).copied());

        let mut text = String::with_capacity(sealed_len(plain.len()));
        text.push_str(&key.id);
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(&sealed, &mut text);
        text
    }

    /// Opens what [`KeyRing::seal`] made for the same place; `None` for anything else.
    pub(crate) fn open(&self, place: &[u8], text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (id, sealed) = text.split_at_checked(KEY_ID_LEN)?;
        let key = self.0.iter().find(|key| key.id.as_bytes() == id)?;
        let mut sealed = Zeroizing::new(URL_SAFE_NO_PAD.decode(sealed.strip_prefix(b".")?).ok()?);
        let (salt, rest) = sealed.split_at_mut_checked(SALT_LEN)?;
        let (nonce, rest) = rest.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let plain = key.derive(salt).open_in_place(nonce, Aad::from(place), rest).ok()?.len();
        sealed.truncate(SALT_LEN + NONCE_LEN + plain);
        sealed.drain(..SALT_LEN + NONCE_LEN);
        Some(sealed)
    }

    /// A mark that only this ring's first key makes on `data`: base64url of an HMAC.
    pub(crate) fn mac(&self, data: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode(hmac::sign(&self.0[0].mark, data))
    }

    /// A name for `data` that nobody else could make: base64url of an HMAC.
    ///
    /// By the last key, which gateways that are about to get a new first one have in common.
    pub(crate) fn keyed_id(&self, data: &[u8]) -> String {
        let last = &self.0[self.0.len() - 1];
        URL_SAFE_NO_PAD.encode(hmac::sign(&last.name, data))
    }

    /// Whether one of the ring's keys made `mark` on `data`, in constant time.
    pub(crate) fn marked(&self, data: &[u8], mark: &[u8]) -> bool {
        let Ok(mark) = URL_SAFE_NO_PAD.decode(mark) else { return false };
        self.0.iter().any(|key| hmac::verify(&key.mark, data, &mark).is_ok())
    }
}

impl Key {
    /// Derives a key for each use, so that no use weakens another.
    fn new(secret: &[u8; 32]) -> Self {
        let parent = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let derive = |label: &str| hmac::sign(&parent, label.as_bytes());
        Self {
            id: URL_SAFE_NO_PAD.encode(&derive("northgate: key id").as_ref()[..KEY_ID_LEN / 4 * 3]),
            seal: hmac::Key::new(hmac::HMAC_SHA256, derive("northgate: seal").as_ref()),
            mark: hmac::Key::new(hmac::HMAC_SHA256, derive("northgate: mark").as_ref()),
            name: hmac::Key::new(hmac::HMAC_SHA256, derive("northgate: name").as_ref()),
        }
    }

    /// The key of the text with this salt.
    fn derive(&self, salt: &[u8]) -> RandomizedNonceKey {
        RandomizedNonceKey::new(&AES_256_GCM, hmac::sign(&self.seal, salt).as_ref())
            .expect("a key of 32 bytes")
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyRing").field(&self.0.len()).finish()
    }
}

/// A place made of `parts`, each told from the next whatever is in it.
pub(crate) fn place(parts: &[&[u8]]) -> Box<[u8]> {
    let mut place = Vec::with_capacity(parts.iter().map(|part| 8 + part.len()).sum());
    for part in parts {
        place.extend_from_slice(&(part.len() as u64).to_be_bytes());
        place.extend_from_slice(part);
    }
    place.into()
}

/// How many characters a sealed text of `plain` bytes has.
pub(crate) const fn sealed_len(plain: usize) -> usize {
    KEY_ID_LEN + 1 + ((SALT_LEN + NONCE_LEN + plain + TAG_LEN) * 4).div_ceil(3)
}

/// Bytes that nobody can guess.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system has randomness");
    bytes
}

/// Characters of a key's name; a multiple of four.
const KEY_ID_LEN: usize = 8;
const SALT_LEN: usize = 16;
const TAG_LEN: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ring(keys: &[u8]) -> KeyRing {
        KeyRing::new(&keys.iter().map(|byte| Secret::new([*byte; 32])).collect::<Vec<_>>())
    }

    #[test]
    fn a_new_first_key_logs_nobody_out() {
        let sealed = ring(&[1]).seal(b"here", b"tokens");

        assert_eq!(**ring(&[2, 1]).open(b"here", sealed.as_bytes()).expect("opens"), *b"tokens");
        assert!(ring(&[2]).open(b"here", sealed.as_bytes()).is_none());
    }

    #[test]
    fn what_was_sealed_for_one_place_opens_at_no_other() {
        let ring = ring(&[1]);
        let sealed = ring.seal(b"web", b"tokens");

        assert!(ring.open(b"admin", sealed.as_bytes()).is_none());
    }

    #[test]
    fn the_parts_of_a_place_are_told_apart() {
        assert_ne!(place(&[b"ab", b"c"]), place(&[b"a", b"bc"]));
        assert_ne!(place(&[b"a\0", b"b"]), place(&[b"a", b"\0b"]));
        assert_eq!(place(&[b"a", b"b"]), place(&[b"a", b"b"]));
    }

    #[test]
    fn every_text_has_a_key_of_its_own() {
        let ring = ring(&[1]);
        let salt = |text: String| {
            URL_SAFE_NO_PAD.decode(&text[KEY_ID_LEN + 1..]).unwrap()[..SALT_LEN].to_vec()
        };
        assert_ne!(salt(ring.seal(b"", b"tokens")), salt(ring.seal(b"", b"tokens")));
        let key = &ring.0[0];
        let mut sealed = b"tokens".to_vec();
        let nonce = key.derive(b"one").seal_in_place_append_tag(Aad::empty(), &mut sealed).unwrap();
        assert!(key.derive(b"two").open_in_place(nonce, Aad::empty(), &mut sealed).is_err());
    }

    #[test]
    fn the_same_tokens_are_never_sealed_alike() {
        let ring = ring(&[1]);
        assert_ne!(ring.seal(b"", b"tokens"), ring.seal(b"", b"tokens"));
    }

    #[test]
    fn two_rings_without_keys_do_not_open_each_other() {
        let sealed = KeyRing::new(&[]).seal(b"", b"tokens");
        assert!(KeyRing::new(&[]).open(b"", sealed.as_bytes()).is_none());
    }

    #[test]
    fn a_mark_is_known_by_every_key_of_the_ring() {
        let mark = ring(&[1]).mac(b"visit");

        assert!(ring(&[2, 1]).marked(b"visit", mark.as_bytes()));
        assert!(!ring(&[2, 1]).marked(b"another", mark.as_bytes()));
        assert!(!ring(&[2]).marked(b"visit", mark.as_bytes()));
        assert!(!ring(&[1]).marked(b"visit", b""));
    }

    #[test]
    fn a_name_stays_the_same_when_a_new_key_comes_in_front() {
        assert_eq!(ring(&[2, 1]).keyed_id(b"token"), ring(&[1]).keyed_id(b"token"));
        assert_ne!(ring(&[2]).keyed_id(b"token"), ring(&[1]).keyed_id(b"token"));
        assert_ne!(ring(&[1]).keyed_id(b"token"), ring(&[1]).mac(b"token"));
    }

    #[test]
    fn a_flip_of_any_bit_is_noticed() {
        let ring = ring(&[1]);
        let sealed = ring.seal(b"here", b"tokens").into_bytes();
        for bit in 0..sealed.len() * 8 {
            let mut forged = sealed.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(ring.open(b"here", &forged).is_none(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens(plain in prop::collection::vec(any::<u8>(), 0..5000)) {
            let ring = ring(&[7]);
            let sealed = ring.seal(b"here", &plain);

            prop_assert_eq!(sealed.len(), sealed_len(plain.len()));
            prop_assert_eq!(&**ring.open(b"here", sealed.as_bytes()).expect("opens"), &plain);
        }

        #[test]
        fn nothing_else_opens(text in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(ring(&[7]).open(b"here", &text).is_none());
        }
    }
}
