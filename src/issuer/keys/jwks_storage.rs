//! The last good JWK set on disk, so that a restart while the issuer is
//! unavailable still verifies tokens. At most a day old.

use core::time::Duration;

use serde_json::{Value, json};

use crate::base::clock::Timestamp;
use crate::base::strict_json;
use crate::disk::Directory;
use crate::disk::directory::ISSUER_KEYS;
use crate::issuer::settings::Settings;

/// Saves `keys`, a JWK set as received. A failure is logged: it affects only the next start.
pub(in crate::issuer) fn save(settings: &Settings, fetched: Timestamp, keys: &[u8]) {
    let Some((directory, name)) = location(settings) else { return };
    let document = json!({
        "issuer": &*settings.issuer,
        "fetched": fetched.as_secs(),
        "jwks": String::from_utf8_lossy(keys),
    });
    if let Err(error) = directory.replace(&name, document.to_string().as_bytes()) {
        let path = directory.path().join(name);
        tracing::warn!(path = %path.display(), %error, "Could not save the JWK set on disk; the next start must fetch it.");
    }
}

/// Returns the saved JWK set of this issuer with the time of its fetching, unless it is
/// older than a day or from the future.
pub(in crate::issuer) fn load(settings: &Settings, now: Timestamp) -> Option<(Vec<u8>, Timestamp)> {
    let (directory, name) = location(settings)?;
    let text = match directory.read(&name) {
        Ok(text) => text?,
        Err(error) => {
            let path = directory.path().join(name);
            tracing::warn!(path = %path.display(), %error, "Could not read the saved JWK set; it will be fetched.");
            return None;
        }
    };
    let Some((issuer, fetched, keys)) = read(&text) else {
        let path = directory.path().join(name);
        tracing::warn!(path = %path.display(), "The saved JWK set is damaged; it will be fetched.");
        return None;
    };
    let fresh = fetched <= now && now.since(fetched) <= MAX_AGE;
    (issuer == *settings.issuer && fresh).then_some((keys, fetched))
}

/// Decodes the output of [`save`]: issuer, time, and JWK set.
fn read(text: &[u8]) -> Option<(String, Timestamp, Vec<u8>)> {
    let document = strict_json::parse_object(text).ok()?;
    let text = |name| document.get(name).and_then(Value::as_str);
    let fetched = Timestamp::from_secs(document.get("fetched")?.as_u64()?);
    Some((text("issuer")?.to_owned(), fetched, text("jwks")?.as_bytes().to_vec()))
}

fn location(settings: &Settings) -> Option<(Directory, String)> {
    let directory = Directory::at(settings.state_dir.as_ref()?);
    Some((directory, format!("{ISSUER_KEYS}{}.json", settings.name)))
}

const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::Path;

    use super::*;

    const NOON: Timestamp = Timestamp::from_secs(1_700_049_600);

    #[test]
    fn a_jwk_set_is_saved_for_a_day() {
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
    fn the_jwk_set_of_another_issuer_is_ignored() {
        let directory = tempfile::tempdir().unwrap();
        save(&settings(directory.path(), "https://old.example.com"), NOON, b"{}");

        assert_eq!(load(&settings(directory.path(), "https://new.example.com"), NOON), None);
    }

    #[test]
    fn a_damaged_file_is_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(directory.path(), "https://auth.example.com");
        save(&settings, NOON, b"{}");
        let (directory, name) = location(&settings).unwrap();
        directory.replace(&name, b"{\"issuer\":").unwrap();

        assert_eq!(load(&settings, NOON), None);
    }

    #[test]
    fn a_file_that_another_account_can_write_is_ignored() {
        let (theirs, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let settings = settings(ours.path(), "https://auth.example.com");
        save(&Settings { state_dir: Some(theirs.path().into()), ..settings.clone() }, NOON, b"{}");
        let theirs = theirs.path().join("keys-main.json");
        let own = ours.path().join("keys-main.json");

        symlink(&theirs, &own).unwrap();
        assert_eq!(load(&settings, NOON), None, "a link");
        save(&settings, NOON, b"{\"keys\":[]}");
        assert_eq!(load(&settings, NOON), Some((b"{\"keys\":[]}".to_vec(), NOON)));
        assert!(!fs::read_to_string(theirs).unwrap().contains("keys"), "nothing goes through it");
        fs::set_permissions(&own, fs::Permissions::from_mode(0o622)).unwrap();
        assert_eq!(load(&settings, NOON), None, "open to others");
    }

    fn settings(directory: &Path, issuer: &str) -> Settings {
        Settings { state_dir: Some(directory.into()), ..Settings::new("main", issuer) }
    }
}
