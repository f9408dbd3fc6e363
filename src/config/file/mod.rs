//! The file, key for key. The doc comments are the reference: what a key takes,
//! its default, what it means. `docs/config.md` says the same to operators.
//!
//! Nothing is decided here but the shape. Whether values are in range, names
//! exist and keys go together is the affair of `check`; what is promised but
//! not built yet is listed in `later`.

#![expect(clippy::struct_field_names, reason = "keys are called what the file calls them")]

pub(crate) mod issuers;
pub(crate) mod limits;
pub(crate) mod listen;
pub(crate) mod routes;
pub(crate) mod sessions;
pub(crate) mod store;
pub(crate) mod upstreams;
pub(crate) mod watch;

use serde::Deserialize;

use self::issuers::Issuer;
use self::limits::Limit;
use self::listen::{Address, Admin, Listener, Server};
use self::routes::Route;
use self::sessions::Session;
use self::store::Redis;
use self::upstreams::Upstream;
use self::watch::{Logging, Metrics};
use super::set::{List, Many, Map, Set};
use super::units::{Of, Text, Wrong};

/// A key whose value is one word.
pub(crate) type Value<T> = Set<Of<T>>;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct File {
    /// The version of this language: 1. Required.
    pub(crate) version: Set<u64>,
    /// Where clients connect: one or many addresses or listeners. Required.
    pub(crate) listen: Set<Many<WordOr<Address, Listener>>>,
    /// What holds for every connection and request.
    pub(crate) server: Set<Server>,
    /// The operator's listener.
    pub(crate) admin: Set<Admin>,
    /// OAuth 2.0 authorization servers (RFC 8414), by name.
    pub(crate) issuers: Set<Map<Issuer>>,
    /// Logins in the browser, by name.
    pub(crate) sessions: Set<Map<Session>>,
    /// Services, by name.
    pub(crate) upstreams: Set<Map<Upstream>>,
    /// How much of it, by name.
    pub(crate) limits: Set<Map<Limit>>,
    /// What several gateways share.
    pub(crate) redis: Set<Redis>,
    /// What every route has unless a policy or itself says otherwise.
    pub(crate) defaults: Set<Route>,
    /// Named bundles of route keys.
    pub(crate) policies: Set<Map<Route>>,
    /// The routes. Required.
    pub(crate) routes: Set<List<Route>>,
    /// What is written to the log.
    pub(crate) logging: Set<Logging>,
    /// How metrics are kept.
    pub(crate) metrics: Set<Metrics>,
}

/// One word, or a mapping.
#[derive(Debug, Deserialize)]
#[serde(rename = "$shape", rename_all = "lowercase", bound = "W: Text, M: Deserialize<'de>")]
pub(crate) enum WordOr<W, M> {
    Scalar(Of<W>),
    Mapping(M),
}

/// A secret: `{ file: path }`, `{ env: NAME }`, or the secret itself.
pub(crate) type Secret = WordOr<Literal, SecretSource>;

/// A secret written into the file itself, or put there by a variable.
pub(crate) struct Literal(pub(crate) crate::base::secret::Secret<String>);

impl Text for Literal {
    const WANTED: &'static str = "a secret";

    fn parse(text: &str) -> Result<Self, Wrong> {
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
    pub(crate) file: Set<String>,
    /// An environment variable.
    pub(crate) env: Set<String>,
}
