//! Client authentication at an authorization server (RFC 6749 §2.3, RFC 7523, RFC 8705).

use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use serde_json::json;
use url::form_urlencoded;

use super::jwk::to_base64url;
use super::settings::{Client, ClientAuth};
use super::signing_key::{SigningFailed, SigningKey};
use crate::base::clock::Timestamp;

/// A form in its encoding. Values are escaped, so that none can add a field.
#[derive(Clone, Default)]
pub(super) struct Form(String);

impl Form {
    /// Adds a field.
    pub(super) fn add(&mut self, name: &str, value: &str) {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        self.0.extend(form_urlencoded::byte_serialize(name.as_bytes()));
        self.0.push('=');
        self.0.extend(form_urlencoded::byte_serialize(value.as_bytes()));
    }

    /// Returns the form as encoded so far.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the encoded form.
    pub(super) fn finish(self) -> String {
        self.0
    }
}

/// Adds the client's authentication to `form`, and returns the value of `Authorization` if the method needs one.
///
/// `audience` is the issuer's identifier, the `aud` of an assertion.
pub(super) fn authenticate(
    client: &Client,
    form: &mut Form,
    audience: &str,
    now: Timestamp,
) -> Result<Option<HeaderValue>, SigningFailed> {
    match &client.auth {
        ClientAuth::Basic(secret) => return Ok(Some(basic(&client.id, secret.expose()))),
        ClientAuth::Post(secret) => {
            form.add("client_id", &client.id);
            form.add("client_secret", secret.expose());
        }
        ClientAuth::PrivateKeyJwt(key) => {
            form.add("client_id", &client.id);
            form.add("client_assertion_type", ASSERTION_TYPE);
            form.add("client_assertion", &assertion(key, &client.id, audience, now)?);
        }
        ClientAuth::TlsClientAuth { .. } | ClientAuth::None => {
            form.add("client_id", &client.id);
        }
    }
    Ok(None)
}

/// `Basic` credentials, both parts form-encoded first, so that a colon in the identifier
/// or a character outside ASCII is decoded correctly (RFC 6749 §2.3.1).
fn basic(id: &str, secret: &str) -> HeaderValue {
    let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let value =
        format!("Basic {}", STANDARD.encode(format!("{}:{}", encoded(id), encoded(secret))));
    let mut value = HeaderValue::try_from(value).expect("base64 is visible ASCII");
    value.set_sensitive(true);
    value
}

/// A client assertion, valid for one minute and once (RFC 7523 §3).
fn assertion(
    key: &SigningKey,
    client: &str,
    audience: &str,
    now: Timestamp,
) -> Result<String, SigningFailed> {
    let mut header = json!({ "alg": key.algorithm().name(), "typ": "JWT" });
    if let Some(kid) = key.kid() {
        header["kid"] = kid.into();
    }
    let mut id = [0; 16];
    rand::fill(&mut id).map_err(|_| SigningFailed)?;
    let claims = json!({
        "iss": client,
        "sub": client,
        "aud": audience,
        "jti": to_base64url(&id),
        "iat": now.as_secs(),
        "exp": now.as_secs() + ASSERTION_SECONDS,
    });
    key.sign_jwt(&header, &claims)
}

const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
const ASSERTION_SECONDS: u64 = 60;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::base::secret::Secret;

    #[test]
    fn basic_credentials_are_form_encoded_first() {
        let (form, authorization) = sent(client("a:b c", ClientAuth::Basic("pä ss%".into())));

        let encoded = authorization.unwrap();
        let encoded = encoded.to_str().unwrap().strip_prefix("Basic ").unwrap();
        assert_eq!(STANDARD.decode(encoded).unwrap(), b"a%3Ab+c:p%C3%A4+ss%25");
        assert_eq!(form, "");
    }

    #[test]
    fn a_secret_in_the_form_cannot_add_fields() {
        let (form, authorization) = sent(client("id", ClientAuth::Post("x&token=y".into())));

        assert_eq!(form, "client_id=id&client_secret=x%26token%3Dy");
        assert!(authorization.is_none());
    }

    #[test]
    fn a_public_client_and_one_with_a_certificate_send_only_their_id() {
        let certificate =
            ClientAuth::TlsClientAuth { certificate: Arc::from(*b"pem"), key: Secret::new(vec![]) };

        assert_eq!(sent(client("id", ClientAuth::None)), ("client_id=id".to_owned(), None));
        assert_eq!(sent(client("id", certificate)), ("client_id=id".to_owned(), None));
    }

    #[test]
    fn an_assertion_names_client_and_issuer_and_is_unique() {
        let pem = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let key = SigningKey::from_pem(pem.serialize_pem().as_bytes()).unwrap().with_kid("k1");
        let client = client("gateway", ClientAuth::PrivateKeyJwt(Arc::new(key)));

        let (first, _) = sent(client.clone());
        let (second, _) = sent(client);

        assert_ne!(first, second);
        let fields: std::collections::HashMap<_, _> =
            form_urlencoded::parse(first.as_bytes()).into_owned().collect();
        assert_eq!(fields["client_id"], "gateway");
        assert_eq!(fields["client_assertion_type"], ASSERTION_TYPE);
        let parts: Vec<_> = fields["client_assertion"].split('.').collect();
        let read = |part: &str| {
            super::super::json::parse_object(&super::super::json::base64url(part).unwrap()).unwrap()
        };
        assert_eq!(read(parts[0])["alg"], "ES256");
        assert_eq!(read(parts[0])["kid"], "k1");
        let claims = read(parts[1]);
        assert_eq!((&claims["iss"], &claims["sub"]), (&"gateway".into(), &"gateway".into()));
        assert_eq!(claims["aud"], "https://auth.example.com");
        assert_eq!(claims["exp"], 1_060);
    }

    fn client(id: &str, auth: ClientAuth) -> Client {
        Client { id: id.into(), auth }
    }

    fn sent(client: Client) -> (String, Option<HeaderValue>) {
        let mut form = Form::default();
        let now = Timestamp::from_secs(1_000);
        let value = authenticate(&client, &mut form, "https://auth.example.com", now).unwrap();
        (form.finish(), value)
    }
}
