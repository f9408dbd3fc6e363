//! Reads the files that the configuration names: secrets, certificates, keys, directories of state.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Check;
use crate::base::secret::Secret;
use crate::config::bounded_file;
use crate::config::de::field::{Field, Spanned};
use crate::config::fault::Code;
use crate::config::file::value::{self, KeywordOr, SecretSource};
use crate::config::variable_syntax;
use crate::disk::directory::{Refused, Use};
use crate::disk::{Directory, OpenError, Permissions, own_account};
use crate::tls;

impl Check<'_> {
    /// Reads the secret that `source` holds or names; never empty.
    pub(super) fn secret(&mut self, source: &Spanned<value::Secret>) -> Option<Secret<String>> {
        let secret = match &source.value {
            KeywordOr::Scalar(literal) => {
                // The value of a variable is not in the file, unless it is the variable's default.
                if source.raw.as_ref().is_none_or(|raw| !variable_syntax::is_names_only(raw)) {
                    self.fault(
                        Code::C107,
                        source.at,
                        "a secret is written in the configuration file",
                        "write { file: path } or { env: NAME }, except in trials",
                    );
                }
                literal.0.0.clone()
            }
            KeywordOr::Mapping(SecretSource { file: Field::Present(file), env: Field::Absent }) => {
                self.secret_file(file)?
            }
            KeywordOr::Mapping(SecretSource { file: Field::Absent, env: Field::Present(name) }) => {
                match self.surroundings.environment.value(&name.value) {
                    Ok(Some(value)) => value.into(),
                    Ok(None) => {
                        let message = format!("the variable {} is not set", name.shown());
                        self.fault(Code::C103, name.at, message, "set it where the gateway starts");
                        return None;
                    }
                    Err(error) => {
                        self.fault(Code::C103, name.at, error.to_string(), "set it to text");
                        return None;
                    }
                }
            }
            KeywordOr::Mapping(SecretSource { file, env }) => {
                if !file.is_bad() && !env.is_bad() {
                    let message = "a secret is either a file or an environment variable";
                    self.fault(
                        Code::C106,
                        source.at,
                        message,
                        "write { file: path } or { env: NAME }",
                    );
                }
                return None;
            }
        };
        if secret.expose().trim().is_empty() {
            self.fault(
                Code::C103,
                source.at,
                "this secret is empty",
                "an empty secret protects nothing",
            );
            return None;
        }
        // A text that had variables is final: what looks like one was escaped.
        if source.raw.is_none() && variable_syntax::holds_a_variable(secret.expose()) {
            self.fault(
                Code::C103,
                source.at,
                "this secret is a variable's name, not its value: it was not expanded",
                "write \"${NAME}\" or { env: NAME }; $${ stands for a literal `${`",
            );
            return None;
        }
        Some(secret)
    }

    /// Reads a key of 32 bytes in base64, as `northgate keygen` prints it.
    pub(super) fn key(&mut self, at: &Spanned<value::Secret>) -> Option<Secret<[u8; 32]>> {
        let text = self.secret(at)?;
        let help = "make one with `northgate keygen`";
        let Ok(bytes) = STANDARD.decode(text.expose().trim()) else {
            self.fault(Code::C103, at.at, "this key is not base64", help);
            return None;
        };
        let bytes = Secret::new(bytes);
        let Ok(key) = <[u8; 32]>::try_from(bytes.expose().as_slice()) else {
            let message = format!("this key decodes to {} bytes, need 32", bytes.expose().len());
            self.fault(Code::C103, at.at, message, help);
            return None;
        };
        Some(Secret::new(key))
    }

    fn secret_file(&mut self, path: &Spanned<String>) -> Option<Secret<String>> {
        let bytes = self.file(path)?;
        let Ok(mut text) = String::from_utf8(bytes) else {
            self.fault(
                Code::C108,
                path.at,
                format!("{} is not text", path.shown()),
                "write UTF-8 into it",
            );
            return None;
        };
        if text.ends_with('\n') {
            text.truncate(text.trim_end_matches(['\n', '\r']).len());
        }
        self.open_secret(path);
        Some(Secret::from(text))
    }

    /// Warns of a file with a secret that accounts other than its owner can read. Links are followed, because
    /// orchestrators mount secrets as links.
    pub(super) fn open_secret(&mut self, path: &Spanned<String>) {
        let mode = fs::metadata(self.path(path)).map_or(0, |found| found.permissions().mode());
        if mode & 0o077 != 0 {
            let message = format!("{} can be read by others than its owner", path.shown());
            self.fault(Code::C110, path.at, message, "chmod 600");
        }
    }

    /// Reads a file that the configuration names.
    pub(super) fn file(&mut self, path: &Spanned<String>) -> Option<Vec<u8>> {
        match read(&self.path(path)) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                let message = format!("{} cannot be read: {}", path.shown(), plain(&error));
                self.fault(
                    Code::C108,
                    path.at,
                    message,
                    "paths begin where the configuration file is",
                );
                None
            }
        }
    }

    /// Reads the PEM certificates of private authorities.
    pub(super) fn authorities(&mut self, path: &Field<String>) -> Option<Arc<[u8]>> {
        let path = path.get()?;
        let pem = self.file(path)?;
        if let Err(error) = tls::client::config(Some(&pem), None) {
            self.fault(
                Code::C108,
                path.at,
                format!("{}: {error}", path.shown()),
                "write PEM certificates into it",
            );
            return None;
        }
        Some(pem.into())
    }

    /// Reads a PEM chain and its PEM key, which the gateway presents to peers.
    pub(super) fn identity(
        &mut self,
        cert: &Spanned<String>,
        key: &Spanned<String>,
    ) -> Option<(tls::Identity, Vec<u8>, Vec<u8>)> {
        let (chain, private) = (self.file(cert), self.file(key));
        let (chain, private) = (chain?, private?);
        match tls::Identity::from_pem(&chain, &private) {
            Ok(identity) => {
                self.open_secret(key);
                Some((identity, chain, private))
            }
            Err(error) => {
                let (code, at, help) = match error {
                    tls::TlsError::Mismatch => (Code::C106, key, "name the key that belongs to it"),
                    tls::TlsError::Key => (Code::C108, key, "name a PEM file with a private key"),
                    _ => (Code::C108, cert, "name a PEM file with the certificate chain"),
                };
                self.fault(code, at.at, format!("{}: {error}", at.shown()), help);
                None
            }
        }
    }

    /// Returns a directory that must exist.
    pub(super) fn directory(&mut self, path: &Spanned<String>) -> Option<PathBuf> {
        let directory = self.path(path);
        let message = match fs::metadata(&directory) {
            Ok(found) if found.is_dir() => {
                self.open_to(path, &found);
                let state = Directory::at(&directory);
                self.kept_files(path, &state);
                if let Err(error) = state.try_write() {
                    let message = format!("{} cannot be written: {}", path.shown(), plain(&error));
                    let help = "make it writable for the gateway's account: a restart would undo logouts and quotas";
                    self.fault(Code::C108, path.at, message, help);
                }
                return Some(directory);
            }
            Ok(_) => format!("{} is no directory", path.shown()),
            Err(error) => format!("{} cannot be used: {}", path.shown(), plain(&error)),
        };
        self.fault(
            Code::C108,
            path.at,
            message,
            "create it, writable by the gateway's account alone",
        );
        None
    }

    /// Warns if other accounts could use a directory that belongs to the gateway.
    fn open_to(&mut self, path: &Spanned<String>, found: &fs::Metadata) {
        let shown = path.shown();
        let (code, message, help) = match Permissions::by(found) {
            Permissions::None => return,
            Permissions::Readers => {
                let message = format!("other accounts can list the files in {shown}");
                (Code::C110, message, "chmod 700")
            }
            Permissions::Writers => {
                let message = format!("{shown} can be written by other accounts");
                (Code::C109, message, "chmod 700: other accounts could place their own keys there")
            }
            Permissions::Owner => {
                let message = format!("{shown} belongs to another account");
                // Root may check a configuration that another account will use.
                let code = if own_account() == Some(0) { Code::C110 } else { Code::C109 };
                (code, message, "chown it to the account that the gateway runs as")
            }
        };
        self.fault(code, path.at, message, help);
    }

    /// Warns of saved files that the gateway would refuse to read at startup.
    fn kept_files(&mut self, path: &Spanned<String>, directory: &Directory) {
        let unreadable = |path: PathBuf, source| OpenError::Read { path, source };
        let refused = match directory.refused() {
            Ok(refused) => refused,
            Err(error) => {
                // The path may have come from a variable.
                let message = format!("saved state in {} cannot be read: {error}", path.shown());
                self.fault(
                    Code::C109,
                    path.at,
                    message,
                    "give the directory to the gateway's account",
                );
                return;
            }
        };
        for Refused { path: file, keeps, of_another, source } in refused {
            let name = file.file_name().map_or_else(PathBuf::new, PathBuf::from);
            let why = source.to_string();
            let (code, message) = match keeps {
                // Root may check a configuration that another account will use.
                Use::Journal if of_another && own_account() == Some(0) => {
                    (Code::C110, unreadable(name, source).to_string())
                }
                Use::Journal => (Code::C109, unreadable(name, source).to_string()),
                Use::Counts => (Code::C110, "the saved quotas cannot be read".to_owned()),
                Use::IssuerKeys => {
                    let message =
                        format!("the signing keys saved in {} cannot be read", name.display());
                    (Code::C110, message)
                }
                Use::IdentityKeys => {
                    (Code::C110, "the saved keys of identity tokens cannot be read".to_owned())
                }
            };
            let help =
                "make it readable by the gateway's account alone (chown, chmod 600), or delete it";
            self.fault(code, path.at, format!("{message}: {why}"), help);
        }
    }

    pub(super) fn path(&self, path: &Spanned<String>) -> PathBuf {
        self.surroundings.directory.join(&path.value)
    }
}

/// Reads a regular file of at most [`MAX_FILE_MIB`]: a pipe could block for ever.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let found = fs::metadata(path)?;
    if !found.is_file() && !found.is_dir() {
        return Err(io::Error::other("it is no regular file"));
    }
    bounded_file::read(path, MAX_FILE_MIB)
}

/// The maximum size of a file that the configuration names, in MiB.
const MAX_FILE_MIB: u64 = 1;

/// Returns the operating system's error text without its number.
fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::IsADirectory => "it is a directory".to_owned(),
        _ => error.to_string(),
    }
}
