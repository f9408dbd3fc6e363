//! The shapes that all sections of the file share: words, secrets, shorthands.

use serde::Deserialize;

use crate::config::de::field::Field;
use crate::config::de::units::{FromScalar, InvalidValue, Scalar};

/// A key with a scalar value.
pub(crate) type Value<T> = Field<Scalar<T>>;

/// A keyword, or a mapping.
#[derive(Debug, Deserialize)]
#[serde(rename = "$shape", rename_all = "lowercase", bound = "W: FromScalar, M: Deserialize<'de>")]
pub(crate) enum KeywordOr<W, M> {
    Scalar(Scalar<W>),
    Mapping(M),
}

/// A secret: `{ file: path }`, `{ env: NAME }`, or the secret itself.
pub(crate) type Secret = KeywordOr<Literal, SecretSource>;

/// A secret in the file itself, or from a variable.
pub(crate) struct Literal(pub(crate) crate::base::secret::Secret<String>);

impl FromScalar for Literal {
    const WANTED: &'static str = "a secret";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        Ok(Self(text.into()))
    }
}

impl core::fmt::Debug for Literal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("***")
    }
}

/// The source of a secret.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SecretSource {
    /// A file, relative to the configuration file; a trailing newline is cut off.
    pub(crate) file: Field<String>,
    /// An environment variable.
    pub(crate) env: Field<String>,
}
