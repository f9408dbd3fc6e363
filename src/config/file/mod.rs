//! The file, key for key. The doc comments are the reference: what a key takes,
//! its default, what it means. `docs/config.md` says the same to operators.
//!
//! Nothing is decided here but the shape. Whether values are in range, names
//! exist and keys go together is the affair of `check`; what is promised but
//! not built yet is listed in `not_implemented`.

#![expect(clippy::struct_field_names, reason = "keys are called what the file calls them")]

pub(crate) mod issuers;
pub(crate) mod limits;
pub(crate) mod observability;
pub(crate) mod redis;
pub(crate) mod routes;
pub(crate) mod server;
pub(crate) mod sessions;
pub(crate) mod upstreams;

use serde::Deserialize;

use self::issuers::Issuer;
use self::limits::Limit;
use self::observability::{Logging, Metrics};
use self::redis::Redis;
use self::routes::Route;
use self::server::{Address, Admin, Listener, Server};
use self::sessions::Session;
use self::upstreams::Upstream;
use super::de::field::{Field, List, Map, OneOrMany};
use super::de::units::{FromScalar, InvalidValue, Scalar};

/// A key whose value is one word.
pub(crate) type Value<T> = Field<Scalar<T>>;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct File {
    /// The version of this language: 1. Required.
    pub(crate) version: Field<u64>,
    /// Where clients connect: one or many addresses or listeners. Required.
    pub(crate) listen: Field<OneOrMany<KeywordOr<Address, Listener>>>,
    /// What holds for every connection and request.
    pub(crate) server: Field<Server>,
    /// The operator's listener.
    pub(crate) admin: Field<Admin>,
    /// OAuth 2.0 authorization servers (RFC 8414), by name.
    pub(crate) issuers: Field<Map<Issuer>>,
    /// Logins in the browser, by name.
    pub(crate) sessions: Field<Map<Session>>,
    /// Services, by name.
    pub(crate) upstreams: Field<Map<Upstream>>,
    /// How much of it, by name.
    pub(crate) limits: Field<Map<Limit>>,
    /// What several gateways share.
    pub(crate) redis: Field<Redis>,
    /// What every route has unless a policy or itself says otherwise.
    pub(crate) defaults: Field<Route>,
    /// Named bundles of route keys.
    pub(crate) policies: Field<Map<Route>>,
    /// The routes. Required.
    pub(crate) routes: Field<List<Route>>,
    /// What is written to the log.
    pub(crate) logging: Field<Logging>,
    /// How metrics are kept.
    pub(crate) metrics: Field<Metrics>,
}

/// One word, or a mapping.
#[derive(Debug, Deserialize)]
#[serde(rename = "$shape", rename_all = "lowercase", bound = "W: FromScalar, M: Deserialize<'de>")]
pub(crate) enum KeywordOr<W, M> {
    Scalar(Scalar<W>),
    Mapping(M),
}

/// A secret: `{ file: path }`, `{ env: NAME }`, or the secret itself.
pub(crate) type Secret = KeywordOr<Literal, SecretSource>;

/// A secret written into the file itself, or put there by a variable.
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

/// Where a secret is.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SecretSource {
    /// A file; a newline at its end is cut off. Relative to the configuration file.
    pub(crate) file: Field<String>,
    /// An environment variable.
    pub(crate) env: Field<String>,
}
