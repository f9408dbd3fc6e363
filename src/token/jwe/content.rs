//! Decryption of a token's content (RFC 7518 §5).

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{
    AES_128, AES_256, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey,
};
use aws_lc_rs::{aead, hmac, iv};
use subtle::ConstantTimeEq as _;

use super::algorithms::ContentEncryption;

/// The parts of an encrypted token that its content key is applied to.
pub(super) struct Content<'t> {
    /// The encoded header: authenticated with the content.
    pub(super) header: &'t str,
    pub(super) iv: Vec<u8>,
    pub(super) ciphertext: Vec<u8>,
    pub(super) tag: Vec<u8>,
}

/// The content does not authenticate, or a part has the wrong length. One error for all, so that none is an oracle.
#[derive(Debug)]
pub(super) struct NotAuthentic;

impl From<aws_lc_rs::error::Unspecified> for NotAuthentic {
    fn from(_: aws_lc_rs::error::Unspecified) -> Self {
        Self
    }
}

impl Content<'_> {
    /// Decrypts the content with its key.
    pub(super) fn open(
        self,
        encryption: ContentEncryption,
        key: &[u8],
    ) -> Result<Vec<u8>, NotAuthentic> {
        if key.len() != encryption.key_len() {
            return Err(NotAuthentic);
        }
        match encryption {
            ContentEncryption::A128Gcm => self.gcm(&AES_128_GCM, key),
            ContentEncryption::A256Gcm => self.gcm(&AES_256_GCM, key),
            ContentEncryption::A128CbcHs256 => self.cbc(&AES_128, hmac::HMAC_SHA256, key),
            ContentEncryption::A256CbcHs512 => self.cbc(&AES_256, hmac::HMAC_SHA512, key),
        }
    }

    fn gcm(
        mut self,
        algorithm: &'static aead::Algorithm,
        key: &[u8],
    ) -> Result<Vec<u8>, NotAuthentic> {
        // A shorter tag would be easier to forge (RFC 7518 §5.3).
        if self.tag.len() != GCM_TAG_LEN {
            return Err(NotAuthentic);
        }
        let nonce = Nonce::try_assume_unique_for_key(&self.iv)?;
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key)?);
        self.ciphertext.append(&mut self.tag);
        let length = key.open_in_place(nonce, Aad::from(self.header), &mut self.ciphertext)?.len();
        self.ciphertext.truncate(length);
        Ok(self.ciphertext)
    }

    /// AES-CBC with HMAC (RFC 7518 §5.2): the tag is verified before anything is decrypted.
    fn cbc(
        mut self,
        cipher: &'static aws_lc_rs::cipher::Algorithm,
        mac: hmac::Algorithm,
        key: &[u8],
    ) -> Result<Vec<u8>, NotAuthentic> {
        let (mac_key, key) = key.split_at(key.len() / 2);
        let iv: [u8; 16] = self.iv.as_slice().try_into().map_err(|_| NotAuthentic)?;
        let header_bits = (self.header.len() as u64) * 8;
        let mut context = hmac::Context::with_key(&hmac::Key::new(mac, mac_key));
        context.update(self.header.as_bytes());
        context.update(&iv);
        context.update(&self.ciphertext);
        context.update(&header_bits.to_be_bytes());
        let tag = context.sign();
        let expected = &tag.as_ref()[..mac_key.len()];
        if !bool::from(expected.ct_eq(&self.tag)) {
            return Err(NotAuthentic);
        }
        let key = PaddedBlockDecryptingKey::cbc_pkcs7(UnboundCipherKey::new(cipher, key)?)?;
        let context = DecryptionContext::Iv128(iv::FixedLength::from(iv));
        let length = key.decrypt(&mut self.ciphertext, context)?.len();
        self.ciphertext.truncate(length);
        Ok(self.ciphertext)
    }
}

const GCM_TAG_LEN: usize = 16;
