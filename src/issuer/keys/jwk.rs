//! A key that verifies signatures: parsed once, and bound to its algorithms.
//!
//! The algorithm is never the token's choice alone (RFC 8725 §3.1). A key has
//! one parsed form for each algorithm that its type, curve, `alg`, `use` and
//! `key_ops` allow; for any other algorithm of a token there is no form to
//! verify with.

use super::unusable_key::UnusableKey;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::borrow::Cow;

use crate::base::digest::sha256;
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{self, ParsedPublicKey, RsaParameters, RsaPublicKeyComponents};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::algorithm::Algorithm;
use super::key_strength;
use crate::base::strict_json::base64url;
use crate::issuer::tenant_template::{is_expansion, placeholder};

/// A key that verifies signatures.
pub struct Key {
    kid: Option<Box<str>>,
    /// `issuer`, a member of Microsoft's: the only issuer whose tokens it signs, perhaps with a place for the tenant.
    issuer: Option<Box<str>>,
    /// One form per algorithm that the key supports.
    forms: Box<[(Algorithm, Form)]>,
    /// A digest of the key itself, without its `kid` and what it is for.
    material: [u8; 32],
    /// RFC 7638; none for a secret.
    thumbprint: Option<[u8; 32]>,
    retired: AtomicBool,
}

enum Form {
    Public(ParsedPublicKey),
    Secret(Box<hmac::Key>),
}

impl Key {
    /// Reads a public key (RFC 7517, RFC 7518 §6, RFC 8037).
    ///
    /// # Errors
    ///
    /// `UnusableKey` if it cannot verify signatures. A
    /// symmetric key is always refused: every reader of the JWK set could sign.
    /// Members that are `null` or empty count as absent, as some servers write all they know.
    /// Numbers that are padded, as RFC 7515 §2 has them not, count as without.
    pub fn from_jwk(members: &Map<String, Value>) -> Result<Self, UnusableKey> {
        let members = &*unpadded(members);
        let text = |name| match present(members, name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(UnusableKey::Members),
        };
        let kid = text("kid")?.filter(|kid| !kid.is_empty());
        if text("use")?.is_some_and(|purpose| !SIGNING_USES.contains(&purpose))
            || !may_verify(members)?
        {
            return Err(UnusableKey::Use);
        }
        if PRIVATE_MEMBERS.iter().any(|name| present(members, name).is_some()) {
            return Err(UnusableKey::Private);
        }
        let only = match text("alg")? {
            None => None,
            Some(name) => Some(name.parse::<Algorithm>().map_err(|_| UnusableKey::Algorithm)?),
        };
        let required = |name| text(name)?.ok_or(UnusableKey::Members);
        let bytes = |name| base64url(required(name)?).map_err(|_| UnusableKey::Members);
        let mut forms = match required("kty")? {
            "RSA" => rsa_forms(&bytes("n")?, &bytes("e")?)?,
            "EC" => ec_forms(required("crv")?, &bytes("x")?, &bytes("y")?)?,
            "OKP" => okp_forms(required("crv")?, &bytes("x")?)?,
            _ => return Err(UnusableKey::Type),
        };
        forms.retain(|(algorithm, _)| only.is_none_or(|only| only == *algorithm));
        if forms.is_empty() {
            return Err(UnusableKey::Algorithm);
        }
        Ok(Self {
            kid: kid.map(Box::from),
            issuer: members.get("issuer").and_then(Value::as_str).map(Box::from),
            forms: forms.into(),
            material: material(members),
            thumbprint: thumbprint(members),
            retired: AtomicBool::new(false),
        })
    }

    /// The secret that an operator shares with the issuer, for the `HS*`
    /// algorithms it is long enough for (RFC 7518 §3.2). It has no `kid`.
    pub fn from_secret(secret: &[u8]) -> Self {
        let forms = [
            (Algorithm::Hs256, hmac::HMAC_SHA256),
            (Algorithm::Hs384, hmac::HMAC_SHA384),
            (Algorithm::Hs512, hmac::HMAC_SHA512),
        ]
        .into_iter()
        .filter(|(_, mac)| secret.len() >= mac.digest_algorithm().output_len())
        .map(|(algorithm, mac)| (algorithm, Form::Secret(Box::new(hmac::Key::new(mac, secret)))))
        .collect();
        Self {
            kid: None,
            issuer: None,
            forms,
            material: sha256(&[secret]),
            thumbprint: None,
            retired: AtomicBool::new(false),
        }
    }

    /// Returns its `kid`.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// Whether it may verify `algorithm`.
    pub fn supports(&self, algorithm: Algorithm) -> bool {
        self.forms.iter().any(|(fits, _)| *fits == algorithm)
    }

    /// Whether it may sign tokens with this `iss`: always, unless its JWK names an issuer of another tenant.
    pub(crate) fn may_sign_for(&self, iss: Option<&str>) -> bool {
        let Some(issuer) = &self.issuer else { return true };
        iss.is_some_and(|iss| is_expansion(issuer, iss) || is_same_tenant(issuer, iss))
    }

    /// Verifies `signature` over `message` with this key and `algorithm`.
    ///
    /// # Errors
    ///
    /// [`WrongSignature`] if it does not verify, or if the key does not support `algorithm`.
    pub fn verify(
        &self,
        algorithm: Algorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), WrongSignature> {
        let (_, form) =
            self.forms.iter().find(|(fits, _)| *fits == algorithm).ok_or(WrongSignature)?;
        match form {
            Form::Public(key) => key.verify_sig(message, signature),
            Form::Secret(key) => hmac::verify(key, message, signature),
        }
        .map_err(|_| WrongSignature)
    }

    /// Returns the key's SHA-256 thumbprint (RFC 7638); none for a secret.
    pub const fn thumbprint(&self) -> Option<&[u8; 32]> {
        self.thumbprint.as_ref()
    }

    /// Whether it has been removed from its issuer's set, which invalidates cached results.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Relaxed)
    }

    pub(in crate::issuer) fn retire(&self) {
        self.retired.store(true, Relaxed);
    }

    /// Whether both are the same numbers, whatever their `kid` and what they are for.
    pub(in crate::issuer) fn has_material_of(&self, other: &Self) -> bool {
        self.material == other.material
    }

    /// Whether this key says nothing that `other` does not: the same `kid` and numbers, for no other algorithm.
    pub(in crate::issuer) fn is_covered_by(&self, other: &Self) -> bool {
        self.kid == other.kid
            && self.issuer == other.issuer
            && self.has_material_of(other)
            && self.forms.iter().all(|(algorithm, _)| other.supports(*algorithm))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// The signature does not verify with the key.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the signature is wrong")]
pub struct WrongSignature;

/// Whether `key_ops`, if present, contains `verify` (RFC 7517 §4.3: an array of distinct strings).
fn may_verify(members: &Map<String, Value>) -> Result<bool, UnusableKey> {
    let operations = match present(members, "key_ops") {
        None => return Ok(true),
        Some(Value::Array(operations)) => operations,
        Some(_) => return Err(UnusableKey::Members),
    };
    let well_formed = operations
        .iter()
        .enumerate()
        .all(|(at, operation)| operation.is_string() && !operations[..at].contains(operation));
    if !well_formed {
        return Err(UnusableKey::Members);
    }
    Ok(operations.iter().any(|operation| operation == "verify"))
}

fn rsa_forms(n: &[u8], e: &[u8]) -> Result<Vec<(Algorithm, Form)>, UnusableKey> {
    // Some libraries put a zero in front of a modulus (RFC 7518 §6.3.1.1); the value is the same.
    let (n, e) = (without_zeros(n), without_zeros(e));
    key_strength::check_rsa(n, e)?;
    let rsa: [(Algorithm, &'static RsaParameters); 6] = [
        (Algorithm::Rs256, &signature::RSA_PKCS1_2048_8192_SHA256),
        (Algorithm::Rs384, &signature::RSA_PKCS1_2048_8192_SHA384),
        (Algorithm::Rs512, &signature::RSA_PKCS1_2048_8192_SHA512),
        (Algorithm::Ps256, &signature::RSA_PSS_2048_8192_SHA256),
        (Algorithm::Ps384, &signature::RSA_PSS_2048_8192_SHA384),
        (Algorithm::Ps512, &signature::RSA_PSS_2048_8192_SHA512),
    ];
    rsa.into_iter()
        .map(|(algorithm, parameters)| {
            let key = RsaPublicKeyComponents { n, e }
                .to_parsed_public_key(parameters)
                .map_err(|_| UnusableKey::Members)?;
            Ok((algorithm, Form::Public(key)))
        })
        .collect()
}

fn ec_forms(curve: &str, x: &[u8], y: &[u8]) -> Result<Vec<(Algorithm, Form)>, UnusableKey> {
    let (algorithm, verify, width) = match curve {
        "P-256" => (Algorithm::Es256, &signature::ECDSA_P256_SHA256_FIXED, 32),
        "P-384" => (Algorithm::Es384, &signature::ECDSA_P384_SHA384_FIXED, 48),
        "P-521" => (Algorithm::Es512, &signature::ECDSA_P521_SHA512_FIXED, 66),
        _ => return Err(UnusableKey::Type),
    };
    if x.len() != width || y.len() != width {
        return Err(UnusableKey::Members);
    }
    let point = [&[UNCOMPRESSED], x, y].concat();
    let key = ParsedPublicKey::new(verify, point).map_err(|_| UnusableKey::Members)?;
    Ok(vec![(algorithm, Form::Public(key))])
}

fn okp_forms(curve: &str, x: &[u8]) -> Result<Vec<(Algorithm, Form)>, UnusableKey> {
    if curve != "Ed25519" {
        return Err(UnusableKey::Type);
    }
    key_strength::check_ed25519(x)?;
    let key = ParsedPublicKey::new(&signature::ED25519, x).map_err(|_| UnusableKey::Members)?;
    Ok(vec![(Algorithm::EdDsa, Form::Public(key))])
}

/// Whether two issuers have the same tenant, their first path segment, or the key's one has a place for any: tokens of
/// Entra's version 1 (`https://sts.windows.net/<tenant>/`) are signed with keys that name the issuer of version 2.
fn is_same_tenant(of_key: &str, iss: &str) -> bool {
    let (Some(of_key), Some(of_token)) = (tenant(of_key), tenant(iss)) else { return false };
    of_key == of_token || placeholder(of_key) == Some(of_key)
}

/// Returns the first path segment of an issuer that is a URL.
fn tenant(issuer: &str) -> Option<&str> {
    let (_, path) = issuer.split_once("://")?.1.split_once('/')?;
    path.split('/').next().filter(|name| !name.is_empty())
}

/// SHA-256 of the key's required members, in order and without white space (RFC 7638 §3).
pub(in crate::issuer) fn thumbprint(members: &Map<String, Value>) -> Option<[u8; 32]> {
    let names: &[&str] = match members.get("kty")?.as_str()? {
        "RSA" => &["e", "kty", "n"],
        "EC" => &["crv", "kty", "x", "y"],
        "OKP" => &["crv", "kty", "x"],
        _ => return None,
    };
    let parts: Option<Vec<_>> =
        names.iter().map(|name| Some(format!("\"{name}\":{}", members.get(*name)?))).collect();
    Some(sha256(&[format!("{{{}}}", parts?.join(",")).as_bytes()]))
}

/// Returns a member unless it is `null` or empty.
pub(crate) fn present<'m>(members: &'m Map<String, Value>, name: &str) -> Option<&'m Value> {
    members.get(name).filter(|value| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(values) => !values.is_empty(),
        Value::Object(inner) => !inner.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    })
}

/// Cuts the padding off base64url members.
fn unpadded(members: &Map<String, Value>) -> Cow<'_, Map<String, Value>> {
    let is_padded = |value: &Value| value.as_str().is_some_and(|text| text.ends_with('='));
    let numbers = ["n", "e", "x", "y"];
    if !numbers.iter().any(|name| members.get(*name).is_some_and(is_padded)) {
        return Cow::Borrowed(members);
    }
    let mut members = members.clone();
    for name in numbers {
        if let Some(Value::String(text)) = members.get_mut(name) {
            text.truncate(text.trim_end_matches('=').len());
        }
    }
    Cow::Owned(members)
}

/// A digest of the key's numbers: those of its thumbprint, an RSA key's without leading zeros.
fn material(members: &Map<String, Value>) -> [u8; 32] {
    let text = |name| members.get(name).and_then(Value::as_str).unwrap_or_default();
    let number = |name| {
        let bytes = base64url(text(name)).unwrap_or_default();
        to_base64url(without_zeros(&bytes))
    };
    let parts = match text("kty") {
        "RSA" => [number("n"), number("e"), String::new()],
        _ => [text("crv").into(), text("x").into(), text("y").into()],
    };
    sha256(&[format!("{}.{}", text("kty"), parts.join(".")).as_bytes()])
}

fn without_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

/// Writes `bytes` as base64url without padding (RFC 7515 §2).
pub(crate) fn to_base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// First octet of a point that is not compressed (SEC 1 §2.3.3).
const UNCOMPRESSED: u8 = 4;

/// The values of `use` for keys that sign: that of RFC 7517 §4.2, and that of JWT-SVIDs in SPIFFE bundles.
const SIGNING_USES: [&str; 2] = ["sig", "jwt-svid"];

/// Members of a private or symmetric key (RFC 7518 §6.2.2, §6.3.2, §6.4.1).
const PRIVATE_MEMBERS: [&str; 9] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_key_type_determines_the_algorithms() {
        let rsa = key(&rsa_jwk(json!({}))).unwrap();
        let ec = key(&ec_jwk(json!({}))).unwrap();

        assert!(rsa.supports(Algorithm::Rs256) && rsa.supports(Algorithm::Ps512));
        assert!(!rsa.supports(Algorithm::Es256) && !rsa.supports(Algorithm::Hs256));
        assert!(ec.supports(Algorithm::Es256));
        assert!(!ec.supports(Algorithm::Es384) && !ec.supports(Algorithm::EdDsa));
    }

    #[test]
    fn alg_restricts_a_key_to_one_algorithm() {
        let rsa = key(&rsa_jwk(json!({ "alg": "PS256" }))).unwrap();

        assert!(rsa.supports(Algorithm::Ps256));
        assert!(!rsa.supports(Algorithm::Rs256) && !rsa.supports(Algorithm::Ps384));
    }

    #[test]
    fn a_key_of_another_tenant_signs_no_token_of_this_one() {
        let version_2 = "https://login.example.com/t1/v2.0";
        let version_1 = "https://sts.example.net/t1/";
        for (issuer, may_sign) in [
            (json!(null), true),
            (json!(version_2), true),
            (json!("https://login.example.com/{tenantid}/v2.0"), true),
            (json!("https://login.example.com/t2/v2.0"), false),
            (json!("https://login.example.com/v2.0"), false),
            (json!("https://login.example.com"), false),
        ] {
            let key = key(&ec_jwk(json!({ "issuer": issuer }))).unwrap();

            assert_eq!(key.may_sign_for(Some(version_2)), may_sign, "{issuer}");
            assert_eq!(key.may_sign_for(Some(version_1)), may_sign, "{issuer}");
            assert_eq!(key.may_sign_for(None), issuer.is_null(), "{issuer}");
        }
    }

    #[test]
    fn a_key_with_padded_numbers_is_the_same_key() {
        let padded = |name: &str, number: &str| ec_jwk(json!({ name: format!("{number}=") }));
        let bare = key(&ec_jwk(json!({}))).unwrap();

        let key = key(&padded("x", EC_X)).unwrap();

        assert_eq!((key.thumbprint(), &key.material), (bare.thumbprint(), &bare.material));
    }

    #[test]
    fn keys_not_meant_to_verify_are_refused() {
        for (extra, why) in [
            (json!({ "use": "enc" }), UnusableKey::Use),
            (json!({ "use": 1 }), UnusableKey::Members),
            (json!({ "key_ops": ["encrypt"] }), UnusableKey::Use),
            (json!({ "use": "x509-svid" }), UnusableKey::Use),
            (json!({ "key_ops": ["sign, verify"] }), UnusableKey::Use),
            (json!({ "key_ops": ["verify", "verify"] }), UnusableKey::Members),
            (json!({ "key_ops": "verify" }), UnusableKey::Members),
            (json!({ "use": "sig", "key_ops": ["encrypt"] }), UnusableKey::Use),
            (json!({ "alg": "RS256" }), UnusableKey::Algorithm),
            (json!({ "alg": "ES384" }), UnusableKey::Algorithm),
            (json!({ "alg": "HS256" }), UnusableKey::Algorithm),
            (json!({ "alg": "none" }), UnusableKey::Algorithm),
            (json!({ "alg": "es256" }), UnusableKey::Algorithm),
            (json!({ "x": null }), UnusableKey::Members),
            (json!({ "kty": "" }), UnusableKey::Members),
            (json!({ "d": "", "p": false }), UnusableKey::Private),
            (json!({ "kid": 7 }), UnusableKey::Members),
            (json!({ "d": "AQAB" }), UnusableKey::Private),
            (json!({ "kty": "RSA" }), UnusableKey::Members),
            (json!({ "kty": "oct" }), UnusableKey::Type),
            (json!({ "kty": "ec" }), UnusableKey::Type),
            (json!({ "crv": "P-384" }), UnusableKey::Members),
            (json!({ "crv": "secp256k1" }), UnusableKey::Type),
            (json!({ "x": "AQ" }), UnusableKey::Members),
            (json!({ "y": EC_X }), UnusableKey::Members),
        ] {
            assert_eq!(key(&ec_jwk(extra.clone())).err(), Some(why), "{extra}");
        }
        for good in [
            json!({ "use": "sig", "key_ops": ["verify"], "alg": "ES256" }),
            // A SPIFFE bundle.
            json!({ "use": "jwt-svid" }),
            json!({ "key_ops": ["sign", "verify"], "x5c": ["ignored"], "unknown": [1] }),
            // Every member of a key that the server has no value for.
            json!({
                "d": null, "p": "", "q": null, "dp": "", "dq": null, "qi": "", "oth": [], "k": null,
                "use": "", "alg": null, "key_ops": [], "kid": null, "x5c": null, "x5t": "", "x5u": null,
            }),
            json!({ "key_ops": null, "use": null, "alg": "", "oth": null, "priv": {} }),
        ] {
            assert!(key(&ec_jwk(good)).is_ok());
        }
    }

    #[test]
    fn a_symmetric_key_in_a_set_is_refused() {
        let secret = to_base64url(&[7; 32]);

        for jwk in [json!({ "kty": "oct", "k": secret }), json!({ "kty": "oct" })] {
            assert!(key(&jwk).is_err());
        }
        assert!(key(&ec_jwk(json!({ "k": secret }))).is_err());
    }

    #[test]
    fn a_secret_supports_only_algorithms_it_is_long_enough_for() {
        assert!(!Key::from_secret(&[7; 31]).supports(Algorithm::Hs256));
        assert!(Key::from_secret(&[7; 32]).supports(Algorithm::Hs256));
        assert!(!Key::from_secret(&[7; 47]).supports(Algorithm::Hs384));
        assert!(Key::from_secret(&[7; 64]).supports(Algorithm::Hs512));
        assert!(!Key::from_secret(&[7; 64]).supports(Algorithm::Rs256));
    }

    #[test]
    fn the_thumbprint_matches_rfc_7638() {
        let rsa = json!({
            "kty": "RSA",
            "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
            "e": "AQAB", "alg": "RS256", "kid": "2011-04-29",
        });

        assert_eq!(
            to_base64url(key(&rsa).unwrap().thumbprint().unwrap()),
            "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
        );
    }

    fn key(jwk: &Value) -> Result<Key, UnusableKey> {
        Key::from_jwk(jwk.as_object().unwrap())
    }

    fn ec_jwk(extra: Value) -> Value {
        with(json!({ "kty": "EC", "crv": "P-256", "kid": "a", "x": EC_X, "y": EC_Y }), extra)
    }

    fn rsa_jwk(extra: Value) -> Value {
        let n = "kqGboBfAWttWPCA-0cGRgsY6SaYoIARt0B_PkaEcIq9HPYNdu9n6UuWHuuTHrjF_ZoQW97r5HaAorNvrMEGTGdxCHZdEtkHvNVVmrtxTBLiQCbCozXhFoIrVcr3qUBrdGnNn_M3jJi7Wg7p_-x62nS5gNG875oyheRkutHsQXikFZwsN3q_TsPNOVlCiHy8mxzaFTUQGm-X8UYexFyAivlDSjgDJLAZSWfxd7k9Gxuwa3AUfQqQcVcegmgKGCaErQ3qQbh1x7WB6iopE3_-GZ8HMAVtR9AmrVscqYsnjhaCehfAI0iKKs8zXr8tISc0ORbaalrkk03H1ZrsEnDKEWQ";
        with(json!({ "kty": "RSA", "n": n, "e": "AQAB" }), extra)
    }

    fn with(mut jwk: Value, extra: Value) -> Value {
        for (name, value) in extra.as_object().unwrap() {
            jwk[name] = value.clone();
        }
        jwk
    }

    const EC_X: &str = "04N0xi21hshyvBp7I167sbE_bXqyqkAPfefdklMO7wY";
    const EC_Y: &str = "UI8exy-C06a7DUnjIdENkxeFtHM4-l_41LqEw9nVgmw";
}
