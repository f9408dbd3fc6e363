//! Checks `decryption`: the ring of keys that opens an issuer's encrypted tokens.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::Check;
use crate::base::strict_json;
use crate::config::de::field::Spanned;
use crate::config::fault::Code;
use crate::config::file::issuers as file;
use crate::token::{ContentEncryption, DecryptionKey, DecryptionKeys};

impl Check<'_> {
    /// Returns the ring of an issuer.
    pub(super) fn key_ring(&mut self, keys: &Spanned<file::Issuer>) -> Option<Arc<DecryptionKeys>> {
        let own = keys.decryption.get()?;
        let help = "write the path of a PEM private key or a JWK set";
        let paths = self.required(&own.keys, own.at, "keys", help);
        let help = "name what the issuer encrypts with, such as [RSA-OAEP-256]";
        let algorithms = self.required(&own.algorithms, own.at, "algorithms", help)?;
        let algorithms: Vec<_> = algorithms.items.iter().map(|at| at.value.0).collect();
        let encryptions = own.content_algorithms.get().map_or_else(
            || ContentEncryption::ALL.map(|(_, encryption)| encryption).into(),
            |list| list.items.iter().map(|at| at.value.0).collect(),
        );
        let mut ring = DecryptionKeys { keys: Vec::new(), algorithms, encryptions };
        for path in &paths?.items {
            ring.keys.extend(self.decryption_keys(path)?);
        }
        let useless = ring
            .algorithms
            .iter()
            .find(|algorithm| !ring.keys.iter().any(|key| key.supports(**algorithm)));
        if let (Some(algorithm), Some(at)) = (useless, own.algorithms.get()) {
            let message = format!("no key of the ring can be used with {}", algorithm.name());
            self.fault(Code::C106, at.at, message, "remove it, or add its key to keys");
        }
        Some(Arc::new(ring))
    }

    /// Reads the private keys in a file: one in PEM, one JWK, or a set of them.
    fn decryption_keys(&mut self, path: &Spanned<String>) -> Option<Vec<DecryptionKey>> {
        let text = self.file(path)?;
        let read = match strict_json::parse_object(&text) {
            Err(_) => DecryptionKey::from_pem(&text).map(|key| vec![key]),
            Ok(document) => jwks(&document).into_iter().map(DecryptionKey::from_jwk).collect(),
        };
        match read {
            Ok(keys) if !keys.is_empty() => {
                self.open_secret(path);
                Some(keys)
            }
            Ok(_) => {
                let message = format!("{} holds no key", path.shown());
                self.fault(
                    Code::C108,
                    path.at,
                    message,
                    "write a PEM private key or a JWK set into it",
                );
                None
            }
            Err(error) => {
                let message = format!("{}: {error}", path.shown());
                self.fault(
                    Code::C108,
                    path.at,
                    message,
                    "write a PEM private key or a JWK set into it",
                );
                None
            }
        }
    }
}

/// Returns the keys of a JWK set, or the only one.
fn jwks(document: &Map<String, Value>) -> Vec<&Map<String, Value>> {
    match document.get("keys") {
        Some(Value::Array(keys)) => keys.iter().filter_map(Value::as_object).collect(),
        _ => vec![document],
    }
}
