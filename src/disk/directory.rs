//! A directory of the gateway's own: small files, read and replaced whole.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::rand;

/// Where the gateway keeps what is to survive a restart.
#[derive(Clone, Debug)]
pub struct Directory(PathBuf);

/// A file of the gateway's own that it would refuse to read.
#[derive(Debug)]
pub struct Refused {
    /// Where it is.
    pub path: PathBuf,
    /// What is kept in it.
    pub keeps: Use,
    /// Whether it belongs to another account than the one that looks.
    pub of_another: bool,
    /// Why it would be refused.
    pub source: io::Error,
}

/// What a file of the directory is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Use {
    /// A journal: without it, what was ended would live again, and nothing starts.
    Journal,
    /// What local quotas have counted.
    Counts,
    /// Signing keys of an issuer.
    IssuerKeys,
    /// Keys of identity tokens.
    IdentityKeys,
}

impl Use {
    /// What the file `name` is for; `None` for files that the gateway does not read.
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

/// The file of what local quotas have counted.
pub const COUNTS: &str = "quotas";
/// The file of the keys of identity tokens.
pub const IDENTITY_KEYS: &str = "identity-keys.json";
/// How the names of files begin that hold an issuer's signing keys; its name and `.json` follow.
pub const ISSUER_KEYS: &str = "keys-";
/// How the names of journals end.
pub const JOURNAL: &str = ".journal";

/// Who besides the gateway's own account may use a directory or a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Permissions {
    /// No other account, except root.
    None,
    /// Other accounts can look into it.
    Readers,
    /// Other accounts can put something of their own in its place.
    Writers,
    /// It belongs to another account, which can do as it likes.
    Owner,
}

impl Directory {
    /// The directory at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// To whom it is open.
    ///
    /// # Errors
    ///
    /// If it is not there, or cannot be looked at.
    pub fn permissions(&self) -> io::Result<Permissions> {
        fs::metadata(&self.0).map(|found| Permissions::by(&found))
    }

    /// The content of the file `name`; `None` if there is no such file.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or is not a plain file that only the gateway's own account can write and read.
    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let Some(mut file) = self.open(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// The files that the gateway keeps here and would refuse to read, and why.
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
                // Looked at as `open` does; a file that is gone meanwhile belongs to no account.
                let found = fs::symlink_metadata(&path).ok();
                let of_another = found.is_some_and(|found| Some(found.uid()) != own_account());
                refused.push(Refused { path, keeps, of_another, source });
            }
        }
        Ok(refused)
    }

    /// Opens the file `name`, if it is there and no other account can reach it.
    pub(super) fn open(&self, name: &str) -> io::Result<Option<File>> {
        let path = self.0.join(name);
        let found = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            found => found?,
        };
        // Looked at before it is opened: a pipe would wait for a writer.
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

    /// Puts `bytes` in the place of the file `name`: a reader finds the old bytes or the new, even after a crash.
    ///
    /// # Errors
    ///
    /// If they cannot be written; the file before is still there then.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (mut file, new) = self.create(name)?;
        let written = file
            .write_all(bytes)
            .and_then(|()| file.sync_all())
            .and_then(|()| self.put(&new, name));
        if written.is_err() {
            // What matters is that the old file is still there.
            let _ = fs::remove_file(new);
        }
        written
    }

    /// A new file beside `name`, readable by this account alone, to be [put](Self::put) in its place.
    pub(super) fn create(&self, name: &str) -> io::Result<(File, PathBuf)> {
        let new = self.0.join(format!("{name}.{}{TEMPORARY_SUFFIX}", random_name()));
        // Exclusive: no file that another account has put there is written into, and no link is followed.
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&new)?;
        // No other process takes it for one whose writer has ended.
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Err(ErrorKind::WouldBlock.into()),
            // There are file systems without locks.
            Err(TryLockError::Error(error)) if error.kind() != ErrorKind::Unsupported => Err(error),
            _ => Ok((file, new)),
        }
    }

    /// Takes away files that were never finished, because a process was killed meanwhile.
    pub fn sweep(&self) {
        // What cannot be swept now is swept another time.
        for name in self.names("", TEMPORARY_SUFFIX).unwrap_or_default() {
            let unfinished = self.open(&name).ok().flatten();
            // One that another process is writing is locked.
            if unfinished.is_some_and(|file| file.try_lock().is_ok()) {
                let _ = fs::remove_file(self.0.join(name));
            }
        }
    }

    /// Puts the file `new` in the place of `name`, for good.
    pub(super) fn put(&self, new: &Path, name: &str) -> io::Result<()> {
        fs::rename(new, self.0.join(name))?;
        self.sync()
    }

    /// Puts the file `name` aside, where it is not read any more: `name.damaged`.
    ///
    /// # Errors
    ///
    /// If it cannot be renamed.
    pub fn put_aside(&self, name: &str) -> io::Result<PathBuf> {
        let aside = self.0.join(format!("{name}.damaged"));
        fs::rename(self.0.join(name), &aside)?;
        self.sync()?;
        Ok(aside)
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.0.join(name))
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }

    /// The names of all files that begin with `prefix` and end with `suffix`, in order.
    pub(super) fn names(&self, prefix: &str, suffix: &str) -> io::Result<Vec<String>> {
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
    /// To whom that is open which `found` describes.
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

/// The account that this process acts for, where the system tells.
pub fn own_account() -> Option<u32> {
    fs::metadata("/proc/self").ok().map(|own| own.uid())
}

fn refused(why: &'static str) -> io::Error {
    io::Error::new(ErrorKind::PermissionDenied, why)
}

/// A name that no other process takes.
pub(super) fn random_name() -> String {
    let mut bytes = [0; 8];
    // Without chance there is no TLS either.
    rand::fill(&mut bytes).expect("the system has random numbers");
    format!("{:016x}", u64::from_ne_bytes(bytes))
}

/// How the names of files end that are not whole yet.
const TEMPORARY_SUFFIX: &str = ".new";
const ROOT: u32 = 0;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_is_the_gateways_own() {
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
    fn a_link_is_not_followed_and_replaced_for_itself() {
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
    fn what_is_open_to_others_or_no_file_is_not_read() {
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
    fn what_cannot_be_written_leaves_the_old_file_and_nothing_half_written() {
        let (_temporary, directory) = directory();
        fs::create_dir(directory.path().join("a")).unwrap();

        assert!(directory.replace("a", b"one").is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(Directory::at(directory.path().join("gone")).replace("a", b"one").is_err());
    }

    #[test]
    fn what_a_killed_process_has_not_finished_is_swept_and_what_another_writes_is_not() {
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
    fn says_to_whom_a_directory_is_open() {
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
