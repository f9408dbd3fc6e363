//! The algorithms of encrypted tokens that can be configured (RFC 7518 §4.1, §5.1).
//!
//! Not among them, on purpose: `RSA1_5` (Bleichenbacher's oracle), `PBES2-*` (a token that makes its reader work for
//! minutes), compression, and the 192-bit variants, which no issuer uses.

/// A key management algorithm: how the key of a token's content is conveyed (RFC 7518 §4.1).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum KeyManagement {
    /// `RSA-OAEP`: RSAES OAEP with SHA-1, which is sound there.
    RsaOaep,
    /// `RSA-OAEP-256`: RSAES OAEP with SHA-256.
    RsaOaep256,
    /// `ECDH-ES`: the agreed key is the content's.
    EcdhEs,
    /// `ECDH-ES+A128KW`: the agreed key wraps the content's.
    EcdhEsA128Kw,
    /// `ECDH-ES+A256KW`: the agreed key wraps the content's.
    EcdhEsA256Kw,
    /// `dir`: the shared secret is the content's key.
    Direct,
    /// `A128KW`: a shared secret wraps the content's key.
    A128Kw,
    /// `A256KW`: a shared secret wraps the content's key.
    A256Kw,
}

impl KeyManagement {
    /// All of them, with their registered names.
    pub const ALL: [(&'static str, Self); 8] = [
        ("RSA-OAEP", Self::RsaOaep),
        ("RSA-OAEP-256", Self::RsaOaep256),
        ("ECDH-ES", Self::EcdhEs),
        ("ECDH-ES+A128KW", Self::EcdhEsA128Kw),
        ("ECDH-ES+A256KW", Self::EcdhEsA256Kw),
        ("dir", Self::Direct),
        ("A128KW", Self::A128Kw),
        ("A256KW", Self::A256Kw),
    ];

    /// Returns the algorithm of a registered name, in exactly its spelling.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(known, _)| *known == name).map(|(_, algorithm)| algorithm)
    }

    /// Returns its registered name.
    pub fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(_, known)| *known == self).map_or("", |(name, _)| name)
    }
}

/// A content encryption algorithm (RFC 7518 §5.1).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ContentEncryption {
    /// `A128GCM`
    A128Gcm,
    /// `A256GCM`
    A256Gcm,
    /// `A128CBC-HS256`
    A128CbcHs256,
    /// `A256CBC-HS512`
    A256CbcHs512,
}

impl ContentEncryption {
    /// All of them, with their registered names.
    pub const ALL: [(&'static str, Self); 4] = [
        ("A128GCM", Self::A128Gcm),
        ("A256GCM", Self::A256Gcm),
        ("A128CBC-HS256", Self::A128CbcHs256),
        ("A256CBC-HS512", Self::A256CbcHs512),
    ];

    /// Returns the algorithm of a registered name, in exactly its spelling.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(known, _)| *known == name).map(|(_, algorithm)| algorithm)
    }

    /// Returns its registered name.
    pub fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(_, known)| *known == self).map_or("", |(name, _)| name)
    }

    /// Returns the bytes of its key.
    pub(super) const fn key_len(self) -> usize {
        match self {
            Self::A128Gcm => 16,
            Self::A256Gcm | Self::A128CbcHs256 => 32,
            Self::A256CbcHs512 => 64,
        }
    }
}
