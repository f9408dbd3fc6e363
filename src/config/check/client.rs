//! Checks `client` of issuers and sessions: how the gateway authenticates at an authorization server.

use std::sync::Arc;

use super::Check;
use crate::base::secret::Secret;
use crate::config::de::field::Spanned;
use crate::config::fault::Code;
use crate::config::file::issuers::{self as file, ClientAuth as Proof};
use crate::issuer::keys::signing_key::SigningKey;
use crate::issuer::{Client, ClientAuth};

impl Check<'_> {
    /// Returns the client credentials of the gateway at an authorization server.
    pub(super) fn client(&mut self, keys: &Spanned<file::Client>) -> Option<Client> {
        let help = "write the `client_id` that the server knows";
        let id = self.required(&keys.id, keys.at, "id", help);
        if let Some(empty) = id.filter(|id| id.value.trim().is_empty()) {
            self.fault(Code::C103, empty.at, "this client has an empty id", help);
        }
        let proof = keys.auth.get().map(|at| at.value.0).unwrap_or_default();
        if keys.auth.is_bad() {
            return None;
        }
        let auth = match proof {
            Proof::Basic | Proof::Post | Proof::SecretJwt => {
                let help = "write secret: { file: path }, or auth: none for a public client";
                let secret = self
                    .required(&keys.secret, keys.at, "secret", help)
                    .and_then(|at| self.secret(at));
                if proof == Proof::SecretJwt
                    && let (Some(secret), Some(at)) = (&secret, keys.secret.get())
                    && secret.expose().len() < 32
                {
                    let message =
                        "this secret is too short to sign with: it has less than 32 bytes";
                    let help = "have the server make a longer one (RFC 7518 §3.2), or use client_secret_basic";
                    self.fault(Code::C103, at.at, message, help);
                }
                secret.map(match proof {
                    Proof::Basic => ClientAuth::Basic,
                    Proof::Post => ClientAuth::Post,
                    _ => ClientAuth::SecretJwt,
                })
            }
            Proof::None => Some(ClientAuth::None),
            Proof::PrivateKeyJwt => self.signing_key(keys),
            Proof::Certificate => self.client_certificate(keys),
        };
        let useless = [
            (&keys.key, matches!(proof, Proof::PrivateKeyJwt | Proof::Certificate), "key"),
            (&keys.cert, matches!(proof, Proof::PrivateKeyJwt | Proof::Certificate), "cert"),
            (&keys.kid, proof == Proof::PrivateKeyJwt, "kid"),
        ];
        for (set, used, name) in useless {
            if let (Some(at), false) = (set.get(), used) {
                self.fault(
                    Code::C106,
                    at.key_at,
                    format!("`{name}` has no effect with this `auth`"),
                    "remove it",
                );
            }
        }
        let takes_secret = matches!(proof, Proof::Basic | Proof::Post | Proof::SecretJwt);
        if let (Some(at), false) = (keys.secret.get(), takes_secret) {
            self.fault(
                Code::C106,
                at.key_at,
                "`secret` has no effect with this `auth`",
                "remove it",
            );
        }
        Some(Client { id: id?.value.as_str().into(), auth: auth? })
    }

    fn signing_key(&mut self, keys: &Spanned<file::Client>) -> Option<ClientAuth> {
        let Some(path) = keys.key.get() else {
            if keys.key.is_absent() {
                self.fault(
                    Code::C106,
                    keys.at,
                    "`private_key_jwt` needs `key`",
                    "write key: path of a PEM private key",
                );
            }
            return None;
        };
        let mut key = SigningKey::clone(&*self.private_key(path)?);
        if let Some(kid) = keys.kid.get() {
            key = key.with_kid(&kid.value);
        }
        if let Some(cert) = keys.cert.get() {
            let (identity, ..) = self.identity(cert, path)?;
            key = key.with_certificate(&identity.chain[0]);
        }
        Some(ClientAuth::PrivateKeyJwt(Arc::new(key)))
    }

    /// Reads a PEM private key from a file.
    pub(super) fn private_key(&mut self, path: &Spanned<String>) -> Option<Arc<SigningKey>> {
        let pem = self.file(path)?;
        match SigningKey::from_pem(&pem) {
            Ok(key) => {
                self.open_secret(path);
                Some(Arc::new(key))
            }
            Err(error) => {
                self.fault(
                    Code::C108,
                    path.at,
                    format!("{}: {error}", path.shown()),
                    "write a PEM private key into it",
                );
                None
            }
        }
    }

    fn client_certificate(&mut self, keys: &Spanned<file::Client>) -> Option<ClientAuth> {
        let (Some(cert), Some(key)) = (keys.cert.get(), keys.key.get()) else {
            if keys.cert.is_absent() || keys.key.is_absent() {
                let message = "`tls_client_auth` needs `cert` and `key`";
                self.fault(
                    Code::C106,
                    keys.at,
                    message,
                    "write the paths of a PEM chain and its PEM key",
                );
            }
            return None;
        };
        let (_, certificate, key) = self.identity(cert, key)?;
        Some(ClientAuth::TlsClientAuth { certificate: certificate.into(), key: Secret::new(key) })
    }
}
