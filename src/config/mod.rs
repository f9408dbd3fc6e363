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
mod configuration;
mod credential;
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

use std::path::Path;

use aws_lc_rs::digest;

use self::de::deserializer;
pub(crate) use self::de::units::format_duration;
pub use auth::{Auth, AuthMethod, Credential, TokenBinding};
pub use configuration::{Config, Issuer};
pub use fault::{Code, Fault, Faults, Format, Position};
pub use route::{Action, Route};
pub use server::{Admin, Listener, Metrics, Server};
pub use static_response::StaticResponse;
pub use variable_expansion::{Environment, NotUnicode};

use crate::base::clock::Timestamp;

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
