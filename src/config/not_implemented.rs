//! Keys that are documented but not implemented yet.
//!
//! A key in this list is refused as "not built yet", never ignored. To implement
//! it, remove its line here and add a field to `file`.

use super::de::key_path::KeyPath;
use super::fault::{Code, Fault};
use super::yaml::Entry;

/// The keys, each as the last steps of its path, `[]` for the elements of a list.
const NOT_IMPLEMENTED: &[&[&str]] =
    &[&["listen", "[]", "http3"], &["tls", "acme"], &["admin", "ui"], &["slo"], &["tracing"]];

/// Returns the fault of an entry of the mapping at `path`, if it is not implemented yet.
pub(super) fn fault_for(path: &KeyPath<'_>, entry: &Entry) -> Option<Fault> {
    let is_listed = NOT_IMPLEMENTED.iter().any(|steps| {
        steps.split_last().is_some_and(|(key, above)| *key == entry.key && ends_with(path, above))
    });
    is_listed.then(|| {
        Fault::new(Code::C106, entry.key_at, format!("`{}` is not built yet", entry.key))
            .help("remove it; the reference in docs/config.md says what works")
    })
}

fn ends_with(path: &KeyPath<'_>, steps: &[&str]) -> bool {
    let mut at = Some(path);
    for step in steps.iter().rev() {
        match at {
            Some(path) if path.step == *step => at = path.parent,
            _ => return false,
        }
    }
    true
}
