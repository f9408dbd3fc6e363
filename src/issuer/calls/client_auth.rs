//! Client authentication at an authorization server (RFC 6749 §2.3, RFC 7523, RFC 8705).

use std::borrow::Cow;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use serde_json::{Value, json};
use url::form_urlencoded;

use crate::base::clock::Timestamp;
use crate::base::random::random;
use crate::issuer::keys::jwk::to_base64url;
use crate::issuer::keys::signing_key::SigningFailed;
use crate::issuer::settings::{Client, ClientAuth};

/// A form in its encoding. Values are escaped, so that none can add a field.
#[derive(Clone, Default)]
pub(in crate::issuer) struct Form(String);

impl Form {
    /// Adds a field.
    pub(in crate::issuer) fn add(&mut self, name: &str, value: &str) {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        self.0.extend(form_urlencoded::byte_serialize(name.as_bytes()));
        self.0.push('=');
        self.0.extend(form_urlencoded::byte_serialize(value.as_bytes()));
    }

    /// Returns the form as encoded so far.
    pub(in crate::issuer) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the encoded form.
    pub(in crate::issuer) fn finish(self) -> String {
        self.0
    }
}

/// Adds the client's authentication to `form`, and returns the value of `Authorization` if the method needs one.
///
/// `audience` is the `aud` of an assertion; `announced` is what the server says may sign one.
pub(in crate::issuer) fn authenticate(
    client: &Client,
    form: &mut Form,
    audience: &str,
    announced: &[Box<str>],
    now: Timestamp,
) -> Result<Option<HeaderValue>, SigningFailed> {
    match &client.auth {
        ClientAuth::Basic(secret) => return Ok(Some(basic(&client.id, secret.expose()))),
        ClientAuth::Post(secret) => {
            form.add("client_id", &client.id);
            form.add("client_secret", secret.expose());
        }
        ClientAuth::PrivateKeyJwt(_) | ClientAuth::SecretJwt(_) => {
            let claims = assertion(&client.id, audience, now);
            form.add("client_id", &client.id);
            form.add("client_assertion_type", ASSERTION_TYPE);
            form.add("client_assertion", &sign(&client.auth, announced, "JWT", &claims)?);
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

/// The claims of a client assertion, valid for one minute and once (RFC 7523 §3).
fn assertion(client: &str, audience: &str, now: Timestamp) -> Value {
    json!({
        "iss": client,
        "sub": client,
        "aud": audience,
        "jti": to_base64url(&random::<16>()),
        "iat": now.as_secs(),
        "exp": now.as_secs() + ASSERTION_SECONDS,
    })
}

/// Returns an authorization request as one signed object (RFC 9101), with what must stand beside it as well.
///
/// # Errors
///
/// [`SigningFailed`] if the client has nothing to sign with.
pub(in crate::issuer) fn request_object(
    client: &Client,
    parameters: &[(Cow<'static, str>, String)],
    audience: &str,
    announced: &[Box<str>],
    now: Timestamp,
) -> Result<Vec<(Cow<'static, str>, String)>, SigningFailed> {
    let mut claims = json!({
        "iss": *client.id,
        "client_id": *client.id,
        "aud": audience,
        "jti": to_base64url(&random::<16>()),
        "iat": now.as_secs(),
        "nbf": now.as_secs(),
        "exp": now.as_secs() + REQUEST_SECONDS,
    });
    for (name, value) in parameters {
        claims[&**name] = member(name, value);
    }
    let object = sign(&client.auth, announced, "oauth-authz-req+jwt", &claims)?;
    // OpenID Connect Core §6.1 wants these two beside the object as well, with the same values.
    let beside =
        |(name, _): &&(Cow<'static, str>, String)| matches!(&**name, "response_type" | "scope");
    let mut request: Vec<_> = parameters.iter().filter(beside).cloned().collect();
    request.push(("request".into(), object));
    Ok(request)
}

/// Returns a parameter as a member of a request object: numbers and JSON objects are none there as texts (RFC 9101 §4,
/// "OpenID Connect Core" §6.1).
fn member(name: &str, value: &str) -> Value {
    let is_typed = |typed: &Value| match name {
        "max_age" => typed.is_u64(),
        "claims" => typed.is_object(),
        // RFC 9396 §4.
        "authorization_details" => typed.is_array(),
        _ => false,
    };
    serde_json::from_str(value).ok().filter(is_typed).unwrap_or_else(|| value.into())
}

/// Signs a JWT with the client's key, or with its secret: HS256 unless only a longer one is announced.
fn sign(
    auth: &ClientAuth,
    announced: &[Box<str>],
    typ: &str,
    claims: &Value,
) -> Result<String, SigningFailed> {
    let secret = match auth {
        ClientAuth::PrivateKeyJwt(key) => return key.sign_jwt_for(announced, typ, claims),
        ClientAuth::SecretJwt(secret) | ClientAuth::Basic(secret) | ClientAuth::Post(secret) => {
            secret
        }
        ClientAuth::TlsClientAuth { .. } | ClientAuth::None => return Err(SigningFailed),
    };
    let known =
        [("HS256", hmac::HMAC_SHA256), ("HS384", hmac::HMAC_SHA384), ("HS512", hmac::HMAC_SHA512)];
    let is_announced = |name: &str| announced.iter().any(|other| **other == *name);
    let (name, algorithm) = known.iter().find(|(name, _)| is_announced(name)).unwrap_or(&known[0]);
    let encoded = |part: &Value| to_base64url(part.to_string().as_bytes());
    let header = json!({ "alg": name, "typ": typ });
    let signed = format!("{}.{}", encoded(&header), encoded(claims));
    let key = hmac::Key::new(*algorithm, secret.expose().as_bytes());
    let tag = hmac::sign(&key, signed.as_bytes());
    Ok(format!("{signed}.{}", to_base64url(tag.as_ref())))
}

const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
const ASSERTION_SECONDS: u64 = 60;
/// Seconds in which a signed authorization request must reach the server.
const REQUEST_SECONDS: u64 = 300;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::base::secret::Secret;
    use crate::issuer::keys::signing_key::SigningKey;

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
            crate::base::strict_json::parse_object(
                &crate::base::strict_json::base64url(part).unwrap(),
            )
            .unwrap()
        };
        assert_eq!(read(parts[0])["alg"], "ES256");
        assert_eq!(read(parts[0])["kid"], "k1");
        let claims = read(parts[1]);
        assert_eq!((&claims["iss"], &claims["sub"]), (&"gateway".into(), &"gateway".into()));
        assert_eq!(claims["aud"], "https://auth.example.com");
        assert_eq!(claims["exp"], 1_060);
    }

    #[test]
    fn assertions_are_signed_by_what_the_server_announces() {
        let rsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap().serialize_pem();
        let rsa =
            ClientAuth::PrivateKeyJwt(Arc::new(SigningKey::from_pem(rsa.as_bytes()).unwrap()));
        let ed = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_pem();
        let ed = ClientAuth::PrivateKeyJwt(Arc::new(SigningKey::from_pem(ed.as_bytes()).unwrap()));
        let secret = ClientAuth::SecretJwt("a secret of more than thirty-two bytes".into());
        for (auth, announced, expected) in [
            (&rsa, &[][..], "RS256"),
            (&rsa, &["PS256", "ES256"][..], "PS256"),
            (&rsa, &["ES256", "PS512", "RS256"][..], "RS256"),
            (&rsa, &["ES256"][..], "RS256"),
            (&ed, &["EdDSA"][..], "EdDSA"),
            (&ed, &["ES256", "Ed25519"][..], "Ed25519"),
            (&secret, &["RS256", "HS256"][..], "HS256"),
            (&secret, &["HS512"][..], "HS512"),
        ] {
            let announced: Vec<Box<str>> = announced.iter().copied().map(Box::from).collect();
            let token = sign(auth, &announced, "JWT", &json!({ "a": 1 })).unwrap();
            let header =
                crate::base::strict_json::base64url(token.split('.').next().unwrap()).unwrap();
            let header = crate::base::strict_json::parse_object(&header).unwrap();
            assert_eq!(header["alg"], expected, "{announced:?}");
            if let ClientAuth::PrivateKeyJwt(key) = auth {
                let (signed, signature) = token.rsplit_once('.').unwrap();
                let public = crate::issuer::Key::from_jwk(&without_alg(key.public_jwk())).unwrap();
                let signature = crate::base::strict_json::base64url(signature).unwrap();
                let algorithm = expected.parse().unwrap();
                assert_eq!(public.verify(algorithm, signed.as_bytes(), &signature), Ok(()));
            }
        }
    }

    #[test]
    fn a_request_object_carries_the_whole_request_and_the_client() {
        let client =
            client("web", ClientAuth::Post("a secret of more than thirty-two bytes".into()));
        let parameters: [(Cow<'static, str>, String); 5] = [
            ("scope", "openid"),
            ("state", "7"),
            ("max_age", "60"),
            ("claims", r#"{"id_token":{}}"#),
            ("authorization_details", r#"[{"type":"a"}]"#),
        ]
        .map(|(name, value)| (name.into(), value.to_owned()));
        let now = Timestamp::from_secs(1_000);

        let request =
            request_object(&client, &parameters, "https://auth.example.com", &[], now).unwrap();

        assert_eq!(request[0], parameters[0]);
        let object = &request[1].1;
        let read = |at: usize| {
            let part = object.split('.').nth(at).unwrap();
            crate::base::strict_json::parse_object(
                &crate::base::strict_json::base64url(part).unwrap(),
            )
            .unwrap()
        };
        assert_eq!(
            (&read(0)["typ"], &read(0)["alg"]),
            (&"oauth-authz-req+jwt".into(), &"HS256".into())
        );
        let claims = read(1);
        for (name, value) in [
            ("iss", "web"),
            ("client_id", "web"),
            ("state", "7"),
            ("aud", "https://auth.example.com"),
        ] {
            assert_eq!(claims[name], value, "{name}");
        }
        assert_eq!(
            (&claims["max_age"], &claims["claims"]),
            (&json!(60), &json!({ "id_token": {} }))
        );
        assert_eq!(claims["authorization_details"], json!([{ "type": "a" }]));
        let public = self::client("web", ClientAuth::None);
        assert!(
            request_object(&public, &parameters, "a", &[], now).is_err(),
            "nothing to sign with"
        );
    }

    fn without_alg(jwk: Value) -> serde_json::Map<String, Value> {
        let mut members = jwk.as_object().unwrap().clone();
        members.remove("alg");
        members
    }

    fn client(id: &str, auth: ClientAuth) -> Client {
        Client { id: id.into(), auth }
    }

    fn sent(client: Client) -> (String, Option<HeaderValue>) {
        let mut form = Form::default();
        let now = Timestamp::from_secs(1_000);
        let value = authenticate(&client, &mut form, "https://auth.example.com", &[], now).unwrap();
        (form.finish(), value)
    }
}
