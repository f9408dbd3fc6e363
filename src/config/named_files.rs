//! The files that the configuration names in place of content, for the effective configuration.

use serde_json::{Value, json};

use super::de::field::{Field, OneOrMany};
use super::file::File;
use super::file::issuers::Client;
use super::file::value::KeywordOr;

/// Returns the path of each file, as it was written, with the path of its key: `["issuers", "main", "ca_file"]`. Secrets
/// are not among them.
pub(super) fn of(file: &File) -> Vec<(Vec<String>, Value)> {
    let mut files = NamedFiles(Vec::new());
    for (index, item) in file.listen.get().into_iter().flat_map(|list| &list.items).enumerate() {
        if let KeywordOr::Mapping(listener) = &item.value
            && let Some(KeywordOr::Mapping(tls)) = listener.tls.get().map(|at| &at.value)
        {
            let key_path = ["listen", &index.to_string(), "tls"];
            files.all(&key_path, "cert", &tls.cert);
            files.all(&key_path, "key", &tls.key);
            files.one(&key_path, "client_ca", &tls.client_ca);
        }
    }
    if let Some(server) = file.server.get() {
        files.all(&["server"], "identity_keys", &server.identity_keys);
    }
    for (name, issuer) in file.issuers.get().into_iter().flat_map(|map| map.value.iter()) {
        let key_path = ["issuers", &*name.value];
        files.one(&key_path, "ca_file", &issuer.ca_file);
        files.one(&key_path, "jwks_file", &issuer.jwks_file);
        files.client(&key_path, &issuer.client);
        if let Some(decryption) = issuer.decryption.get() {
            files.all(&[&key_path[..], &["decryption"]].concat(), "keys", &decryption.keys);
        }
    }
    for (name, session) in file.sessions.get().into_iter().flat_map(|map| map.value.iter()) {
        let key_path = ["sessions", &*name.value];
        files.one(&key_path, "style", &session.style);
        let issuers = file.issuers.get().into_iter().flat_map(|map| map.value.iter());
        let is_its = |name: &str| session.issuer.get().is_some_and(|issuer| issuer.value == *name);
        let inherited = issuers.into_iter().find(|(name, _)| is_its(&name.value));
        match inherited {
            Some((_, issuer)) if session.client.is_absent() => {
                files.client(&key_path, &issuer.client);
            }
            _ => files.client(&key_path, &session.client),
        }
    }
    for (name, upstream) in file.upstreams.get().into_iter().flat_map(|map| map.value.iter()) {
        if let Some(tls) = upstream.tls.get() {
            let key_path = ["upstreams", &*name.value, "tls"];
            files.one(&key_path, "ca_file", &tls.ca_file);
            files.one(&key_path, "cert", &tls.cert);
            files.one(&key_path, "key", &tls.key);
        }
    }
    if let Some(redis) = file.redis.get() {
        files.one(&["redis"], "ca_file", &redis.ca_file);
    }
    if let Some(http) = file.metering.get().and_then(|metering| metering.http.get()) {
        files.one(&["metering", "http"], "ca_file", &http.ca_file);
    }
    files.0
}

struct NamedFiles(Vec<(Vec<String>, Value)>);

impl NamedFiles {
    fn one(&mut self, key_path: &[&str], key: &str, file: &Field<String>) {
        if let Some(at) = file.get() {
            self.add(key_path, key, json!(at.value));
        }
    }

    fn all(&mut self, key_path: &[&str], key: &str, files: &Field<OneOrMany<String>>) {
        if let Some(list) = files.get() {
            let names: Vec<_> = list.items.iter().map(|at| &at.value).collect();
            self.add(key_path, key, json!(names));
        }
    }

    fn client(&mut self, key_path: &[&str], client: &Field<Client>) {
        if let Some(client) = client.get() {
            let key_path = [key_path, &["client"]].concat();
            self.one(&key_path, "key", &client.key);
            self.one(&key_path, "cert", &client.cert);
        }
    }

    fn add(&mut self, key_path: &[&str], key: &str, value: Value) {
        let key_path = key_path.iter().chain([&key]).map(|&key| key.to_owned()).collect();
        self.0.push((key_path, value));
    }
}
