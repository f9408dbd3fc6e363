//! Digests of tokens: one that may grant, and one that may only refuse.
//!
//! Everything that grants (a cached result, a shared call, an identity token) is keyed by the *whole*
//! token: a key that left anything out would give the owner's rights to a client that knows the rest. A
//! revocation may cover more. ECDSA signatures have a twin that verifies as well, and a JWT revoked with
//! one signature must not stay valid with the other: only for refusing, a JWT has a second digest that
//! leaves its signature out.

use super::jwt::unverified_claims::UnverifiedClaims;
use crate::base::digest::sha256;

/// The digests of one token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TokenDigests {
    /// [`token_digest`]: exactly this token. The only one that may grant.
    pub whole: [u8; 32],
    /// This JWT under any signature. Only for refusing, and only
    /// if the text before the signature is known to identify one token.
    pub unsigned: Option<[u8; 32]>,
}

impl TokenDigests {
    /// Returns the digests of a token whose signature has been verified.
    pub(crate) fn of_signed(token: &str) -> Self {
        Self { whole: token_digest(token), unsigned: unsigned_digest(token) }
    }

    /// Returns the digests of an opaque token.
    ///
    /// Whatever its form, its last part may be all that differs from other tokens (PASETO, tokens
    /// with a readable head). Only a JWT with a `jti` is identified by its signed part, however its server reads
    /// the signature.
    pub fn of_reference(token: &str) -> Self {
        let names_itself = UnverifiedClaims::read(token).is_some_and(|claims| claims.has_id());
        let unsigned = names_itself.then(|| unsigned_digest(token)).flatten();
        Self { whole: token_digest(token), unsigned }
    }
}

/// Returns the SHA-256 of the whole token.
pub fn token_digest(token: &str) -> [u8; 32] {
    sha256(&[token.as_bytes()])
}

/// Returns the SHA-256 of the signed part of a JWT, distinct from that of any whole token; `None` without three parts.
pub(crate) fn unsigned_digest(token: &str) -> Option<[u8; 32]> {
    let (signed, _) = token.rsplit_once('.')?;
    let (_, payload) = signed.split_once('.')?;
    // No token contains a NUL.
    (!payload.contains('.')).then(|| sha256(&[b"signed\0", signed.as_bytes()]))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn tokens_that_differ_anywhere_have_different_digests() {
        let tokens = [
            "a.b.c",
            "a.b.d",
            "a.b.",
            "a.b",
            "a..b",
            ".a.b",
            "a.b..",
            "a",
            "a.",
            "",
            ".",
            "..",
            "a.b.c.d",
            "a.b.c.e",
            "a.b.c.d.e",
            "a.b.c.d.f",
            "v4.local.x",
            "v4.local.y",
            "v4.public.x.f",
            "v4.public.x.g",
            "A.b.c",
            "a.b.c=",
        ];
        let names: HashSet<_> = tokens.iter().map(|token| token_digest(token)).collect();

        assert_eq!(names.len(), tokens.len());
    }

    #[test]
    fn the_unsigned_digest_equals_no_whole_digest_and_ignores_only_the_signature() {
        assert_eq!(unsigned_digest("a.b.c"), unsigned_digest("a.b.d"));
        assert_ne!(unsigned_digest("a.b.c"), unsigned_digest("a.c.c"));
        assert_ne!(unsigned_digest("a.b.c"), Some(token_digest("a.b")));
        for token in ["a", "a.b", "a.b.c.d", ""] {
            assert_eq!(unsigned_digest(token), None, "{token}");
        }
    }

    #[test]
    fn an_opaque_token_has_an_unsigned_digest_only_with_a_jti() {
        let encode = |json: &str| crate::issuer::keys::jwk::to_base64url(json.as_bytes());
        let jwt =
            |payload: &str| format!("{}.{}.AAAA", encode(r#"{"alg":"ES256"}"#), encode(payload));

        assert!(TokenDigests::of_reference(&jwt(r#"{"jti":"1"}"#)).unsigned.is_some());
        for token in [
            &jwt(r#"{"sub":"alice"}"#),
            &jwt(r#"{"jti":""}"#),
            &jwt("{}"),
            "v4.public.AAAA",
            "header.payload.AAAA",
            "opaque",
        ] {
            assert_eq!(TokenDigests::of_reference(token).unsigned, None, "{token}");
        }
    }
}
