//! The keys of `DPoP` proofs (RFC 9449).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use northgate::issuer::Key;
use northgate::issuer::keys::signing_key::SigningKey;

/// A new key of a client, for ES256.
pub(crate) fn signing_key() -> SigningKey {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
    SigningKey::from_pem(pair.serialize_pem().as_bytes()).expect("a key")
}

/// The thumbprint of a key, as tokens name it in `cnf` (RFC 7638).
pub(crate) fn thumbprint(key: &SigningKey) -> String {
    let jwk = key.public_jwk();
    let key = Key::from_jwk(jwk.as_object().expect("an object")).expect("a key");
    URL_SAFE_NO_PAD.encode(key.thumbprint().expect("a public key"))
}

/// The `ath` of a proof for `token`.
pub(crate) fn token_hash(token: &str) -> String {
    let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
    URL_SAFE_NO_PAD.encode(sum.as_ref())
}
