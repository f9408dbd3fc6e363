//! Persistence of the generated signing keys, so that they survive a restart and upstreams need not fetch new ones.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::rotating_key::RotatingKey;
use crate::base::clock::Timestamp;
use crate::base::secret::Secret;
use crate::base::strict_json;
use crate::disk::{Directory, directory};
use crate::issuer::keys::jwk::to_base64url;
use crate::issuer::keys::signing_key::SigningKey;

/// Saves `keys`, readable by this user alone. A failure is logged: new keys are generated after the next start.
pub(super) fn save(directory: &Path, keys: &[Arc<RotatingKey>]) {
    let keys: Vec<_> = keys
        .iter()
        .map(|key| {
            json!({
                "signs_from": key.signs_from.as_secs(),
                "pkcs8": to_base64url(key.document.expose()),
            })
        })
        .collect();
    let text = Secret::new(json!({ "keys": keys }).to_string());
    if let Err(error) = Directory::at(directory).replace(FILE, text.expose().as_bytes()) {
        let path = directory.join(FILE);
        tracing::warn!(path = %path.display(), %error, "Could not save the signing keys of identity tokens; the next start generates new ones.");
    }
}

/// Loads the saved keys, the oldest first; empty if there are none, or none that can be parsed and that no other
/// account could have written.
pub(super) fn load(directory: &Path) -> Vec<Arc<RotatingKey>> {
    let path = directory.join(FILE);
    let text = match Directory::at(directory).read(FILE) {
        Ok(Some(text)) => Secret::new(text),
        Ok(None) => return Vec::new(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "Could not read the saved signing keys of identity tokens; generating new ones.");
            return Vec::new();
        }
    };
    let mut keys = read(text.expose()).unwrap_or_else(|| {
        tracing::warn!(path = %path.display(), "Could not parse the saved signing keys of identity tokens; generating new ones.");
        Vec::new()
    });
    keys.sort_by_key(|key| key.signs_from);
    keys
}

fn read(text: &[u8]) -> Option<Vec<Arc<RotatingKey>>> {
    let document = strict_json::parse_object(text).ok()?;
    let key = |value: &Value| {
        let signs_from = Timestamp::from_secs(value.get("signs_from")?.as_u64()?);
        let document = Secret::new(strict_json::base64url(value.get("pkcs8")?.as_str()?).ok()?);
        let key = SigningKey::from_pkcs8(document.expose()).ok()?.with_thumbprint_kid();
        Some(Arc::new(RotatingKey { key, document, signs_from }))
    };
    document.get("keys")?.as_array()?.iter().map(key).collect()
}

const FILE: &str = directory::IDENTITY_KEYS;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn saved_keys_are_readable_by_their_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let (key, document) = SigningKey::generate().unwrap();
        let kid = key.kid().unwrap().to_owned();
        let signs_from = Timestamp::from_secs(7);
        assert!(load(directory.path()).is_empty());

        for _ in 0..2 {
            let document = document.clone();
            let key = SigningKey::from_pkcs8(document.expose()).unwrap().with_thumbprint_kid();
            save(directory.path(), &[Arc::new(RotatingKey { key, document, signs_from })]);
        }

        let kept = load(directory.path());
        assert_eq!((kept[0].key.kid(), kept[0].signs_from), (Some(&*kid), signs_from));
        let mode = fs::metadata(directory.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn keys_that_another_account_could_have_written_are_ignored() {
        let (theirs, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (key, document) = SigningKey::generate().unwrap();
        save(
            theirs.path(),
            &[Arc::new(RotatingKey { key, document, signs_from: Timestamp::from_secs(7) })],
        );
        let (theirs, own) = (theirs.path().join(FILE), ours.path().join(FILE));

        symlink(&theirs, &own).unwrap();
        assert!(load(ours.path()).is_empty(), "a link");
        fs::remove_file(&own).unwrap();
        fs::copy(&theirs, &own).unwrap();
        assert_eq!(load(ours.path()).len(), 1);
        for mode in [0o602, 0o620, 0o604, 0o640] {
            fs::set_permissions(&own, fs::Permissions::from_mode(mode)).unwrap();
            assert!(load(ours.path()).is_empty(), "{mode:o}");
        }
    }

    #[test]
    fn a_damaged_key_file_is_ignored() {
        let directory = tempfile::tempdir().unwrap();
        for text in ["", "{}", r#"{"keys":[{}]}"#, r#"{"keys":[{"signs_from":1,"pkcs8":"AAAA"}]}"#]
        {
            Directory::at(directory.path()).replace(FILE, text.as_bytes()).unwrap();
            assert!(load(directory.path()).is_empty(), "{text}");
        }
    }
}
