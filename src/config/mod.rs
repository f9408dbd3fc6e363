//! Parses and validates the YAML configuration (floor 5). No lower floor knows YAML.
//!
//! A [`Config`] is the validated configuration: every name resolved, every unit
//! parsed, every default filled in, every conflict refused. Settings of the
//! rooms below are those rooms' own types; what only the floors above need,
//! such as routes and listeners, is defined here.
//!
//! Stages: `yaml` parses a tree with positions, `variable_expansion` expands variables, `de` deserializes the structs
//! of `file`, `check` turns those into a [`Config`]. Each stage continues after a mistake, and [`Faults`] collects them
//! all.

pub mod auth;
mod bounded_file;
mod check;
mod de;
mod effective;
mod effective_issuer;
mod effective_limits;
pub mod fault;
mod file;
pub mod forwarding;
mod named_files;
mod not_implemented;
pub mod own_path_hosts;
mod patterns;
mod redact;
pub mod reserved_headers;
pub mod route;
pub mod server;
mod static_response;
mod suggestion;
mod variable_expansion;
mod variable_syntax;
mod yaml;
mod yaml_writer;

use self::auth::TokenSource;
use self::de::deserializer;
use self::file::issuers::SecretEncoding;
use self::reserved_headers::ReservedHeaders;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest;
use http::HeaderName;

pub(crate) use self::de::units::format_duration;
pub use auth::{Auth, AuthMethod, Credential, TokenBinding};
pub use fault::{Code, Fault, Faults, Format, Position};
pub(crate) use redact::shown;
pub use route::{Action, Route};
pub use server::{Admin, Listener, Metrics, Server};
pub use static_response::StaticResponse;
pub use variable_expansion::{Environment, NotUnicode};

use crate::base::clock::Timestamp;
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
    named_files: Vec<(Vec<String>, serde_json::Value)>,
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

/// Loads the file at `path`, with the files that it names: secrets, certificates, keys.
///
/// The faults returned with the configuration are warnings.
///
/// # Errors
///
/// Every fault at once, warnings among them, if the file cannot be read or any
/// of them is an error.
pub fn load(
    path: &Path,
    environment: &Environment,
    now: Timestamp,
) -> Result<(Config, Faults), Faults> {
    let name = path.display().to_string();
    let text = match bounded_file::read(path, MAX_FILE_MIB).map(String::from_utf8) {
        Ok(Ok(text)) => text,
        Ok(Err(error)) => {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let at = Position::behind(&String::from_utf8_lossy(valid));
            return Err(unreadable(name, at, "the file is not text", "save it as UTF-8"));
        }
        Err(error) => {
            let message = format!("the file cannot be read: {error}");
            let help = "say where it is with --config";
            return Err(unreadable(name, Position::START, &message, help));
        }
    };
    let directory = path.parent().unwrap_or(Path::new(""));
    load_text(&name, &text, directory, environment, now)
}

/// Loads the configuration in `text`, reported as a file called `name`.
/// Relative paths in it are resolved against `directory`.
///
/// # Errors
///
/// Every fault at once, as [`load`] does.
///
/// # Examples
///
/// ```
/// use std::path::Path;
///
/// use northgate::base::clock::Clock;
/// use northgate::config::{self, Environment};
///
/// let load = |text: &str| {
///     let now = Clock::system().now();
///     config::load_text("gateway.yaml", text, Path::new(""), &Environment::default(), now)
/// };
/// let text = "{ version: 1, listen: 127.0.0.1:8080, routes: [] }";
/// let faults = load(text).expect_err("a gateway without a route");
/// assert!(faults.to_string().starts_with("gateway.yaml:1:"));
///
/// let route = "[{ id: hello, path: /hello, auth: none, respond: { body: Hello } }]";
/// let (config, _warnings) = load(&text.replace("[]", route))?;
/// assert_eq!(&*config.routes[0].id, "hello");
/// # Ok::<(), config::fault::Faults>(())
/// ```
pub fn load_text(
    name: &str,
    text: &str,
    directory: &Path,
    environment: &Environment,
    now: Timestamp,
) -> Result<(Config, Faults), Faults> {
    let mut faults = Vec::new();
    let Some(mut root) = parse(text, &mut faults) else {
        let lines = redact::tree::without_guess(text, &faults);
        return Err(Faults::new(name.to_owned(), lines, faults));
    };
    let masked = redact::tree::without_secrets(text, &root);
    variable_expansion::expand(&mut root, environment, &mut faults);
    let file: Option<file::File> = deserializer::deserialize(&root, &mut faults);
    let surroundings = check::CheckContext { directory, environment, now };
    let config = file.map(|file| check::check(&file, hash(text), surroundings, &mut faults));
    let shared = redact::tree::shared(&root);
    for fault in &mut faults {
        redact::tree::take_out(&shared, fault);
    }
    let faults = Faults::new(name.to_owned(), masked, faults);
    match config {
        Some(config) if !faults.any_error() => Ok((config, faults)),
        _ => Err(faults),
    }
}

/// Reads the document in `text`: its tree, in which every secret is marked.
///
/// Faults are added to `faults`; `None` if there is no tree at all, for the reason that is there then.
fn parse(text: &str, faults: &mut Vec<Fault>) -> Option<yaml::Node> {
    let mut root = yaml::parse(text, faults)?;
    redact::tree::mark(&mut root);
    // After the marking of secrets, since the message names keys.
    yaml::twice(&root, faults);
    Some(root)
}

/// Returns the keys of the process-wide sections, as `section.key`.
#[cfg(test)]
pub(crate) fn keys_of_the_process() -> Vec<String> {
    use self::de::field;
    use file::observability::{Logging, Metrics};
    use file::server::{Admin, Listener, Server};
    let sections = [
        ("listen[]", field::keys_of::<Listener>()),
        ("server", field::keys_of::<Server>()),
        ("admin", field::keys_of::<Admin>()),
        ("logging", field::keys_of::<Logging>()),
        ("metrics", field::keys_of::<Metrics>()),
    ];
    let keys = sections
        .iter()
        .flat_map(|(section, keys)| keys.iter().map(move |key| format!("{section}.{key}")));
    keys.collect()
}

/// The maximum size of a configuration file, in MiB.
const MAX_FILE_MIB: u64 = 16;

fn unreadable(name: String, at: Position, message: &str, help: &str) -> Faults {
    Faults::new(name, Vec::new(), vec![Fault::new(Code::C108, at, message).help(help)])
}

fn hash(text: &str) -> String {
    let sum = digest::digest(&digest::SHA256, text.as_bytes());
    let first: [u8; 8] = core::array::from_fn(|index| sum.as_ref()[index]);
    format!("{:016x}", u64::from_be_bytes(first))
}
