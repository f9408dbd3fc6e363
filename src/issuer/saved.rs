//! The last good signing keys on disk, so that a restart while the issuer is
//! away still verifies tokens. At most a day old.

use core::time::Duration;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::json;
use super::settings::Settings;
use crate::base::clock::Timestamp;

/// Keeps `keys`, a JWK set as it was received. A failure is logged: the next start is poorer, not this run.
pub(super) fn save(settings: &Settings, fetched: Timestamp, keys: &[u8]) {
    let Some(path) = path(settings) else { return };
    let document = json!({
        "issuer": &*settings.issuer,
        "fetched": fetched.as_secs(),
        "jwks": String::from_utf8_lossy(keys),
    });
    if let Err(error) = replace(&path, document.to_string().as_bytes()) {
        tracing::warn!(path = %path.display(), %error, "Signing keys could not be kept on disk.");
    }
}

/// What was kept for this issuer, with the time of its fetching, unless it is
/// older than a day or from the future.
pub(super) fn load(settings: &Settings, now: Timestamp) -> Option<(Vec<u8>, Timestamp)> {
    let path = path(settings)?;
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "Kept signing keys could not be read.");
            return None;
        }
    };
    let document = json::object(&text).ok()?;
    let fetched = Timestamp::from_secs(document.get("fetched")?.as_u64()?);
    let of_this_issuer = document.get("issuer")?.as_str()? == &*settings.issuer;
    let fresh = fetched <= now && now.since(fetched) <= OLDEST;
    let keys = document.get("jwks").and_then(Value::as_str)?;
    (of_this_issuer && fresh).then(|| (keys.as_bytes().to_vec(), fetched))
}

fn path(settings: &Settings) -> Option<PathBuf> {
    Some(settings.state_dir.as_ref()?.join(format!("keys-{}.json", settings.name)))
}

/// Writes beside the file and renames: a crash leaves the old one or the new one.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("json.new");
    let mut file = fs::File::create(&beside)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(beside, path)
}

const OLDEST: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: Timestamp = Timestamp::from_secs(1_700_049_600);

    #[test]
    fn keeps_keys_for_a_day() {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(directory.path(), "https://auth.example.com");

        assert_eq!(load(&settings, NOON), None);
        save(&settings, NOON, b"{\"keys\":[]}");
        save(&settings, NOON, b"{\"keys\":[1]}");

        let day = 24 * 60 * 60;
        assert_eq!(load(&settings, NOON), Some((b"{\"keys\":[1]}".to_vec(), NOON)));
        assert!(load(&settings, NOON.plus_secs(day)).is_some());
        assert_eq!(load(&settings, NOON.plus_secs(day + 1)), None);
        assert_eq!(load(&settings, Timestamp::from_secs(NOON.as_secs() - 1)), None);
    }

    #[test]
    fn another_issuers_keys_are_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        save(&settings(directory.path(), "https://old.example.com"), NOON, b"{}");

        assert_eq!(load(&settings(directory.path(), "https://new.example.com"), NOON), None);
    }

    #[test]
    fn a_damaged_file_is_as_good_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(directory.path(), "https://auth.example.com");
        save(&settings, NOON, b"{}");
        fs::write(path(&settings).unwrap(), b"{\"issuer\":").unwrap();

        assert_eq!(load(&settings, NOON), None);
    }

    fn settings(directory: &Path, issuer: &str) -> Settings {
        Settings { state_dir: Some(directory.into()), ..Settings::new("main", issuer) }
    }
}
