//! The gateway's state directory: small files, read and replaced atomically.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::base::random::random;

/// The directory for state that survives a restart.
#[derive(Clone, Debug)]
pub struct Directory(PathBuf);

/// A file of the state directory that the gateway would refuse to read.
#[derive(Debug)]
pub struct Refused {
    /// The path of the file.
    pub path: PathBuf,
    /// The use of the file.
    pub keeps: Use,
    /// Whether the file belongs to another account than this process.
    pub of_another: bool,
    /// The reason.
    pub source: io::Error,
}

/// The use of a file in the state directory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Use {
    /// A journal: without it ended sessions and tokens would be valid again, so the gateway does not start.
    Journal,
    /// Saved counters of local quotas.
    Counts,
    /// The JWK set of an issuer.
    IssuerKeys,
    /// Keys of identity tokens.
    IdentityKeys,
}

impl Use {
    /// Returns the use of the file `name`; `None` for files that the gateway does not read.
    pub fn of(name: &str) -> Option<Self> {
        match name {
            COUNTS => Some(Self::Counts),
            IDENTITY_KEYS => Some(Self::IdentityKeys),
            _ if name.ends_with(JOURNAL) => Some(Self::Journal),
            _ => {
                let is_issuer_keys =
                    name.starts_with(ISSUER_KEYS) && Path::new(name).extension()? == "json";
                is_issuer_keys.then_some(Self::IssuerKeys)
            }
        }
    }
}

/// The file with saved counters of local quotas.
pub const COUNTS: &str = "quotas";
/// The file with the keys of identity tokens.
pub const IDENTITY_KEYS: &str = "identity-keys.json";
/// The prefix of files with an issuer's JWK set; the issuer's name and `.json` follow.
pub const ISSUER_KEYS: &str = "keys-";
/// The suffix of journals.
pub const JOURNAL: &str = ".journal";

/// The access of other accounts to a directory or a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Permissions {
    /// No other account, except root.
    None,
    /// Other accounts can read.
    Readers,
    /// Other accounts can write or replace files.
    Writers,
    /// Another account owns it.
    Owner,
}

impl Directory {
    /// Returns the directory at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the access of other accounts.
    ///
    /// # Errors
    ///
    /// If the directory does not exist, or cannot be inspected.
    pub fn permissions(&self) -> io::Result<Permissions> {
        fs::metadata(&self.0).map(|found| Permissions::by(&found))
    }

    /// Reads the file `name`; `None` if there is no such file.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or is not a plain file that only the gateway's own account can access.
    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let Some(mut file) = self.open(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// Returns the files of the gateway that it would refuse to read, with the reasons.
    ///
    /// # Errors
    ///
    /// If the directory cannot be listed.
    pub fn refused(&self) -> io::Result<Vec<Refused>> {
        let mut refused = Vec::new();
        for name in self.names("", "")? {
            let Some(keeps) = Use::of(&name) else { continue };
            if let Err(source) = self.open(&name) {
                let path = self.0.join(name);
                // Checked as `open` does; a file that was removed meanwhile belongs to no account.
                let found = fs::symlink_metadata(&path).ok();
                let of_another = found.is_some_and(|found| Some(found.uid()) != own_account());
                refused.push(Refused { path, keeps, of_another, source });
            }
        }
        Ok(refused)
    }

    /// Opens the file `name`, if it exists and no other account can access it.
    pub(super) fn open(&self, name: &str) -> io::Result<Option<File>> {
        let path = self.0.join(name);
        let found = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            found => found?,
        };
        // Checked before opening, because a named pipe would block.
        if !found.file_type().is_file() {
            return Err(refused("it is a link, or no plain file"));
        }
        let file = File::open(&path)?;
        let opened = file.metadata()?;
        if (opened.dev(), opened.ino()) != (found.dev(), found.ino()) {
            return Err(refused("it was replaced while it was opened"));
        }
        match Permissions::by(&opened) {
            Permissions::None => Ok(Some(file)),
            Permissions::Owner => Err(refused("it belongs to another account")),
            Permissions::Readers | Permissions::Writers => {
                Err(refused("other accounts can read or write it: chmod 600"))
            }
        }
    }

    /// Whether the file `name` is the open `file`, and no other that was put in its place.
    pub(super) fn holds(&self, name: &str, file: &File) -> bool {
        let named = |found: &Metadata| (found.dev(), found.ino());
        let found = fs::symlink_metadata(self.0.join(name));
        matches!((found, file.metadata()), (Ok(found), Ok(own)) if named(&found) == named(&own))
    }

    /// Replaces the file `name` by `bytes`: a reader finds the old bytes or the new, even after a crash.
    ///
    /// # Errors
    ///
    /// If the bytes cannot be written; the previous file remains.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (mut file, new) = self.create(name)?;
        let written = file
            .write_all(bytes)
            .and_then(|()| file.sync_all())
            .and_then(|()| self.put(&new, name));
        if written.is_err() {
            // The cleanup may fail: the previous file remains in any case.
            let _ = fs::remove_file(new);
        }
        written
    }

    /// Creates a temporary file, readable by this account alone, to [replace](Self::put) `name`.
    pub(super) fn create(&self, name: &str) -> io::Result<(File, PathBuf)> {
        let new = self.0.join(format!("{name}.{}{TEMPORARY_SUFFIX}", random_name()));
        // Exclusive: never opens a file of another account, and follows no link.
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&new)?;
        // The lock shows other processes that the writer is alive.
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Err(ErrorKind::WouldBlock.into()),
            // Some file systems have no locks.
            Err(TryLockError::Error(error)) if error.kind() != ErrorKind::Unsupported => Err(error),
            _ => Ok((file, new)),
        }
    }

    /// Removes temporary files of processes that were killed.
    pub fn sweep(&self) {
        // Failures are retried at the next sweep.
        for name in self.names("", TEMPORARY_SUFFIX).unwrap_or_default() {
            let unfinished = self.open(&name).ok().flatten();
            // A file that another process is writing is locked.
            if unfinished.is_some_and(|file| file.try_lock().is_ok()) {
                let _ = fs::remove_file(self.0.join(name));
            }
        }
    }

    /// Renames the file `new` to `name`, durably.
    pub(super) fn put(&self, new: &Path, name: &str) -> io::Result<()> {
        fs::rename(new, self.0.join(name))?;
        self.sync()
    }

    /// Renames the damaged file `name` to `name.damaged`, or to `name.damaged.2` and so on if that exists, where it is
    /// not read any more. No file is overwritten.
    ///
    /// # Errors
    ///
    /// If the file cannot be renamed, or too many were put aside before.
    pub fn put_aside(&self, name: &str) -> io::Result<PathBuf> {
        for number in 1..=MAX_FILES_ASIDE {
            let suffix = if number == 1 { String::new() } else { format!(".{number}") };
            let aside = self.0.join(format!("{name}.damaged{suffix}"));
            match fs::symlink_metadata(&aside) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    fs::rename(self.0.join(name), &aside)?;
                    self.sync()?;
                    return Ok(aside);
                }
                Err(error) => return Err(error),
            }
        }
        Err(ErrorKind::AlreadyExists.into())
    }

    /// Creates and removes a file, as every save does.
    ///
    /// # Errors
    ///
    /// If this process cannot write to the directory.
    pub fn try_write(&self) -> io::Result<()> {
        let (file, path) = self.create("check")?;
        let written = (&file).write_all(b"northgate").and_then(|()| file.sync_all());
        fs::remove_file(path)?;
        written
    }

    /// Locks the file `name`, which is created if it does not exist, for as long as the returned file is open. `None` if
    /// another process holds the lock.
    ///
    /// # Errors
    ///
    /// If the file cannot be created, or is not a plain file that only the gateway's own account can access.
    pub fn lock(&self, name: &str) -> io::Result<Option<File>> {
        let file = if let Some(file) = self.open(name)? {
            file
        } else {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true).mode(0o600);
            options.open(self.0.join(name))?
        };
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Removes the file `name`.
    ///
    /// # Errors
    ///
    /// If it does not exist, or cannot be removed.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.0.join(name))
    }

    /// Removes the file `name`, if it exists.
    ///
    /// # Errors
    ///
    /// If it cannot be removed.
    pub fn remove_if_exists(&self, name: &str) -> io::Result<()> {
        match self.remove(name) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }

    /// Returns the names of all files with `prefix` and `suffix`, sorted.
    ///
    /// # Errors
    ///
    /// If the directory cannot be listed.
    pub fn names(&self, prefix: &str, suffix: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let name = entry?.file_name();
            let name = name.to_str().filter(|name| name.starts_with(prefix));
            names.extend(name.filter(|name| name.ends_with(suffix)).map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }
}

impl Permissions {
    /// Returns the access of other accounts to a file with this metadata.
    pub fn by(found: &Metadata) -> Self {
        let mode = found.permissions().mode();
        match own_account() {
            Some(own) if found.uid() != own && found.uid() != ROOT => Self::Owner,
            _ if mode & 0o022 != 0 => Self::Writers,
            _ if mode & 0o077 != 0 => Self::Readers,
            _ => Self::None,
        }
    }
}

/// Returns the account of this process, if known.
pub fn own_account() -> Option<u32> {
    fs::metadata("/proc/self").ok().map(|own| own.uid())
}

fn refused(why: &'static str) -> io::Error {
    io::Error::new(ErrorKind::PermissionDenied, why)
}

/// Returns a random name, unique among processes.
pub(super) fn random_name() -> String {
    format!("{:016x}", u64::from_ne_bytes(random()))
}

/// The suffix of temporary files.
const TEMPORARY_SUFFIX: &str = ".new";
const ROOT: u32 = 0;
/// The files of one name that are put aside; more are no accident.
const MAX_FILES_ASIDE: u32 = 100;

/// An error of opening a journal.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// An existing journal cannot be read: without it, ended sessions and tokens would be valid again.
    #[error("cannot read the journal {}", path.display())]
    Read {
        /// The file, or the directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The system refuses the thread.
    #[error("cannot start the journal's thread")]
    Thread(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_is_replaced_atomically_with_mode_0600() {
        let (_temporary, directory) = directory();
        assert_eq!(directory.read("a").unwrap(), None);

        directory.replace("a", b"one").unwrap();
        directory.replace("a", b"two").unwrap();

        assert_eq!(directory.read("a").unwrap().unwrap(), b"two");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        let mode = fs::metadata(directory.path().join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_link_is_replaced_and_not_followed() {
        let (_temporary, directory) = directory();
        let (_elsewhere, target) = self::directory();
        target.replace("victim", b"secret").unwrap();
        let victim = target.path().join("victim");
        symlink(&victim, directory.path().join("a")).unwrap();

        assert_eq!(directory.read("a").unwrap_err().kind(), ErrorKind::PermissionDenied);
        directory.replace("a", b"mine").unwrap();

        assert_eq!(fs::read(victim).unwrap(), b"secret");
        assert_eq!(directory.read("a").unwrap().unwrap(), b"mine");
    }

    #[test]
    fn files_open_to_other_accounts_and_non_files_are_refused() {
        let (_temporary, directory) = directory();
        directory.replace("a", b"one").unwrap();
        let path = directory.path().join("a");
        for mode in [0o640, 0o604, 0o620, 0o602, 0o666] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(directory.read("a").is_err(), "{mode:o}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(directory.read("a").is_ok());

        fs::create_dir(directory.path().join("b")).unwrap();
        assert!(directory.read("b").is_err());
    }

    #[test]
    fn a_failed_replacement_leaves_the_old_file_and_no_temporary_file() {
        let (_temporary, directory) = directory();
        fs::create_dir(directory.path().join("a")).unwrap();

        assert!(directory.replace("a", b"one").is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(Directory::at(directory.path().join("gone")).replace("a", b"one").is_err());
    }

    #[test]
    fn temporary_files_of_dead_processes_are_swept_and_locked_ones_are_not() {
        let (_temporary, directory) = directory();
        let (unfinished, _) = directory.create("a").unwrap();
        let (writing, path) = directory.create("b").unwrap();
        drop(unfinished);

        directory.sweep();

        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(path.exists());
        drop(writing);
    }

    #[test]
    fn permissions_report_the_access_of_other_accounts() {
        let (_temporary, directory) = directory();
        for (mode, open) in [
            (0o700, Permissions::None),
            (0o750, Permissions::Readers),
            (0o701, Permissions::Readers),
            (0o770, Permissions::Writers),
            (0o1777, Permissions::Writers),
        ] {
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(directory.permissions().unwrap(), open, "{mode:o}");
        }
    }

    fn directory() -> (tempfile::TempDir, Directory) {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::at(temporary.path());
        (temporary, directory)
    }
}
