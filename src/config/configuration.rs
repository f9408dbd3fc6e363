//! The validated configuration.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderName;

use super::auth::TokenSource;
use super::file::issuers::SecretEncoding;
use super::reserved_headers::ReservedHeaders;
use super::route::Route;
use super::server::{Admin, Listener, Metrics, Server};
use crate::base::secret::Secret;
use crate::observe::log;
use crate::{issuer, limit, metering, redis, session, token, upstream};

/// A validated configuration. Immutable; a reload creates a new one.
#[derive(Debug)]
pub struct Config {
    /// The listeners for clients; at least one, no address twice.
    pub listeners: Vec<Listener>,
    /// Settings of all connections and requests.
    pub server: Server,
    /// Keys for nonces of `DPoP` proofs (RFC 9449 §9): the first creates them, all accept them. Empty: no nonces.
    pub dpop_nonce_keys: Vec<Secret<[u8; 32]>>,
    /// The admin listener.
    pub admin: Admin,
    /// Settings of logging.
    pub logging: log::Settings,
    /// Settings of metrics.
    pub metrics: Metrics,
    /// The authorization servers, by name.
    pub issuers: BTreeMap<Arc<str>, Issuer>,
    /// Browser sessions, by name.
    pub sessions: BTreeMap<Arc<str>, session::Settings>,
    /// The Redis that several gateways share, if any.
    pub redis: Option<redis::Settings>,
    /// The upstreams, by name.
    pub upstreams: BTreeMap<Arc<str>, upstream::Settings>,
    /// Rate limits and quotas, by name.
    pub limits: BTreeMap<Arc<str>, limit::Settings>,
    /// The destinations of usage, if any.
    pub metering: Option<metering::Settings>,
    /// The routes, in the order of the file, which does not influence matching.
    pub routes: Vec<Route>,
    /// Every identity header of every route, and every field that an edit of a request fills from a claim: removed from
    /// the requests of clients, on all routes.
    pub identity_headers: Vec<HeaderName>,
    /// The files that the configuration names in place of content, with the places of their keys.
    pub(super) named_files: Vec<(Vec<String>, serde_json::Value)>,
    /// SHA-256 of the file as it was written, the first 16 hexadecimal digits.
    pub hash: String,
}

impl Config {
    /// Returns the field names that only the gateway, or only trusted proxies, may send to upstreams.
    pub fn reserved_headers(&self) -> ReservedHeaders {
        let own = self.identity_headers.iter().chain([&self.server.request_id_header]);
        let methods = self.routes.iter().flat_map(|route| route.auth.methods());
        let tokens = methods.filter_map(|auth_method| match &auth_method.token_from {
            TokenSource::Header(name) => Some(name),
            TokenSource::Authorization | TokenSource::Cookie(_) => None,
        });
        ReservedHeaders::except(own, tokens)
    }
}

/// One authorization server, with the validation rules for its tokens.
#[derive(Clone, Debug)]
pub struct Issuer {
    /// Settings of the client that calls it.
    pub settings: issuer::Settings,
    /// Validation rules for its tokens.
    pub rules: token::ValidationRules,
    /// How the file writes the secret of `HS*` tokens.
    pub(crate) hmac_secret_encoding: SecretEncoding,
}
