//! Sealing: authenticated encryption of cookies and stored sessions.
//!
//! AES-256-GCM under a ring of keys. The first key seals and every key opens:
//! an operator rotates keys by adding a new one in front and removing the last
//! one when all sessions sealed with it have ended; no user is logged out. In a
//! fleet every instance first gets the new key at the end, and then in front. A
//! sealed text names its key, so that one of an unknown key means "no session".
//!
//! Each text is bound to its purpose by associated data: a cookie sealed for
//! one session or purpose opens as no other.
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

use crate::base::random::random;
use crate::base::secret::Secret;

/// The keys of one `sessions.<name>`; never empty.
pub(crate) struct SealingKeys(Box<[Key]>);

struct Key {
    id: String,
    /// Derives the key of each text.
    seal: hmac::Key,
    mac: hmac::Key,
}

impl SealingKeys {
    /// Returns a ring of `keys`, or of one random key if there are none.
    pub(crate) fn new(keys: &[Secret<[u8; 32]>]) -> Self {
        if keys.is_empty() {
            return Self(Box::new([Key::new(&random())]));
        }
        Self(keys.iter().map(|key| Key::new(key.expose())).collect())
    }

    /// Seals `plain` with the associated data `associated_data` under the first key: `<key id>.<base64url>`.
    pub(crate) fn seal(&self, associated_data: &[u8], plain: &[u8]) -> String {
        let key = &self.0[0];
        let salt = random::<SALT_LEN>();
        let mut sealed = Vec::with_capacity(SALT_LEN + NONCE_LEN + plain.len() + TAG_LEN);
        sealed.extend_from_slice(plain);
        let nonce = key
            .derive(&salt)
            .seal_in_place_append_tag(Aad::from(associated_data), &mut sealed)
            .expect("a plaintext far below AES-GCM's 64 GiB");
        sealed.splice(..0, salt.iter().chain(nonce.as_ref()).copied());

        let mut text = String::with_capacity(sealed_len(plain.len()));
        text.push_str(&key.id);
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(&sealed, &mut text);
        text
    }

    /// Opens the output of [`SealingKeys::seal`] with the same associated data; `None` for anything else.
    pub(crate) fn open(&self, associated_data: &[u8], text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (id, sealed) = text.split_at_checked(KEY_ID_LEN)?;
        let key = self.0.iter().find(|key| key.id.as_bytes() == id)?;
        let mut sealed = Zeroizing::new(URL_SAFE_NO_PAD.decode(sealed.strip_prefix(b".")?).ok()?);
        let (salt, rest) = sealed.split_at_mut_checked(SALT_LEN)?;
        let (nonce, rest) = rest.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let plain =
            key.derive(salt).open_in_place(nonce, Aad::from(associated_data), rest).ok()?.len();
        sealed.truncate(SALT_LEN + NONCE_LEN + plain);
        sealed.drain(..SALT_LEN + NONCE_LEN);
        Some(sealed)
    }

    /// Whether `text` looks sealed, and by a key that is not in the ring.
    pub(crate) fn is_of_unknown_key(&self, text: &[u8]) -> bool {
        let is_sealed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let Some((id, sealed)) = text.split_at_checked(KEY_ID_LEN) else { return false };
        sealed.len() >= sealed_len(0) - KEY_ID_LEN
            && sealed
                .split_first()
                .is_some_and(|(dot, rest)| *dot == b'.' && rest.iter().all(is_sealed))
            && id.iter().all(is_sealed)
            && self.0.iter().all(|key| key.id.as_bytes() != id)
    }

    /// Returns a MAC of `data` by the ring's first key: base64url of an HMAC.
    pub(crate) fn mac(&self, data: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode(hmac::sign(&self.0[0].mac, data))
    }

    /// Whether `mac` is a MAC of `data` by any key of the ring, in constant time.
    pub(crate) fn verify_mac(&self, data: &[u8], mac: &[u8]) -> bool {
        let Ok(mac) = URL_SAFE_NO_PAD.decode(mac) else { return false };
        self.0.iter().any(|key| hmac::verify(&key.mac, data, &mac).is_ok())
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
            mac: hmac::Key::new(hmac::HMAC_SHA256, derive("northgate: mark").as_ref()),
        }
    }

    /// Derives the key of the text with this salt.
    fn derive(&self, salt: &[u8]) -> RandomizedNonceKey {
        RandomizedNonceKey::new(&AES_256_GCM, hmac::sign(&self.seal, salt).as_ref())
            .expect("a key of 32 bytes")
    }
}

impl fmt::Debug for SealingKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SealingKeys").field(&self.0.len()).finish()
    }
}

/// Encodes `parts` as associated data, without ambiguity.
pub(crate) fn associated_data(parts: &[&[u8]]) -> Box<[u8]> {
    let mut associated_data = Vec::with_capacity(parts.iter().map(|part| 8 + part.len()).sum());
    for part in parts {
        associated_data.extend_from_slice(&(part.len() as u64).to_be_bytes());
        associated_data.extend_from_slice(part);
    }
    associated_data.into()
}

/// Returns the number of characters of a sealed text of `plain` bytes.
pub(crate) const fn sealed_len(plain: usize) -> usize {
    KEY_ID_LEN + 1 + ((SALT_LEN + NONCE_LEN + plain + TAG_LEN) * 4).div_ceil(3)
}

/// Characters of a key's identifier; a multiple of four.
const KEY_ID_LEN: usize = 8;
const SALT_LEN: usize = 16;
const TAG_LEN: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ring(keys: &[u8]) -> SealingKeys {
        SealingKeys::new(&keys.iter().map(|byte| Secret::new([*byte; 32])).collect::<Vec<_>>())
    }

    #[test]
    fn sessions_stay_valid_when_a_new_first_key_is_added() {
        let sealed = ring(&[1]).seal(b"here", b"tokens");

        assert_eq!(**ring(&[2, 1]).open(b"here", sealed.as_bytes()).expect("opens"), *b"tokens");
        assert!(ring(&[2]).open(b"here", sealed.as_bytes()).is_none());
    }

    #[test]
    fn a_sealed_text_opens_only_with_its_associated_data() {
        let ring = ring(&[1]);
        let sealed = ring.seal(b"web", b"tokens");

        assert!(ring.open(b"admin", sealed.as_bytes()).is_none());
    }

    #[test]
    fn associated_data_is_unambiguous() {
        assert_ne!(associated_data(&[b"ab", b"c"]), associated_data(&[b"a", b"bc"]));
        assert_ne!(associated_data(&[b"a\0", b"b"]), associated_data(&[b"a", b"\0b"]));
        assert_eq!(associated_data(&[b"a", b"b"]), associated_data(&[b"a", b"b"]));
    }

    #[test]
    fn every_text_has_its_own_key() {
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
    fn sealing_twice_gives_different_texts() {
        let ring = ring(&[1]);
        assert_ne!(ring.seal(b"", b"tokens"), ring.seal(b"", b"tokens"));
    }

    #[test]
    fn two_rings_of_random_keys_do_not_open_each_other() {
        let sealed = SealingKeys::new(&[]).seal(b"", b"tokens");
        assert!(SealingKeys::new(&[]).open(b"", sealed.as_bytes()).is_none());
    }

    #[test]
    fn every_key_of_the_ring_verifies_a_mac() {
        let mac = ring(&[1]).mac(b"visit");

        assert!(ring(&[2, 1]).verify_mac(b"visit", mac.as_bytes()));
        assert!(!ring(&[2, 1]).verify_mac(b"another", mac.as_bytes()));
        assert!(!ring(&[2]).verify_mac(b"visit", mac.as_bytes()));
        assert!(!ring(&[1]).verify_mac(b"visit", b""));
    }

    #[test]
    fn a_flip_of_any_bit_is_detected() {
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
        fn a_sealed_text_opens(plain in prop::collection::vec(any::<u8>(), 0..5000)) {
            let ring = ring(&[7]);
            let sealed = ring.seal(b"here", &plain);

            prop_assert_eq!(sealed.len(), sealed_len(plain.len()));
            prop_assert_eq!(&**ring.open(b"here", sealed.as_bytes()).expect("opens"), &plain);
        }

        #[test]
        fn a_text_that_was_not_sealed_does_not_open(text in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(ring(&[7]).open(b"here", &text).is_none());
        }
    }
}
