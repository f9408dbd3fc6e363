//! Well-known authorization servers: keys, metadata and tokens in the shapes of their public documentation,
//! against the very configurations of `docs/authorization-servers.md`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::hmac;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::RsaKeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::base::clock::{Clock, Timestamp};
use crate::config::{self, Auth, Config, Environment};
use crate::gateway::RetainedState;
use crate::gateway::view::explain::{Verdict, refusal, verify};
use crate::issuer::Discovery;
use crate::issuer::keys::jwk::to_base64url;
use crate::issuer::keys::signing_key::SigningKey;
use crate::issuer::tests::mock_issuer::{Answer, JWKS, METADATA, Server};
use crate::observe::metrics::Metrics;

const NOW: u64 = 1_790_000_000;

#[tokio::test]
async fn tokens_of_entra_id_are_verified_with_the_documented_settings() {
    let tenant = "11111111-2222-3333-4444-555555555555";
    let twin = Twin::new("Entra ID", |key| {
        let mut listed = key.clone();
        listed["x5t"] = listed["kid"].clone();
        listed["x5c"] = json!(["MIIC"]);
        listed["issuer"] = "https://login.microsoftonline.com/{tenantid}/v2.0".into();
        json!({ "keys": [listed] })
    });
    let header = json!({ "typ": "JWT", "x5t": "k1" });
    let claims = |extra: Value| {
        Twin::claims(
            json!({
                "iss": format!("https://login.microsoftonline.com/{tenant}/v2.0"),
                "aud": "66666666-7777-8888-9999-000000000000", "aio": "E2ZgYPg", "azp": "app", "azpacr": "1",
                "oid": "0000", "rh": "0.AQ", "sub": "alice", "tid": tenant, "uti": "x", "ver": "2.0",
            }),
            extra,
        )
    };

    let of_user = twin.token(&header, &claims(json!({ "scp": "Orders.Read profile" })));
    let of_app = twin.token(&header, &claims(json!({ "roles": ["Orders.Read"] })));
    let other_tenant = claims(json!({
        "scp": "Orders.Read", "iss": "https://login.microsoftonline.com/99999999-2222-3333-4444-555555555555/v2.0",
    }));
    let without_scope = twin.token(&header, &claims(json!({ "scp": "profile" })));
    let for_graph =
        twin.token(&header, &claims(json!({ "aud": "00000003-0000-0000-c000-000000000000" })));

    assert_eq!(twin.judge(&of_user).await, "200");
    assert_eq!(twin.judge(&of_app).await, "200");
    assert_eq!(twin.judge(&twin.token(&header, &other_tenant)).await, "401");
    assert_eq!(twin.judge(&without_scope).await, "403");
    assert_eq!(twin.judge(&for_graph).await, "401");
}

#[tokio::test]
async fn tokens_of_auth0_are_verified_with_the_documented_settings() {
    let twin = Twin::new("Auth0", set_of_one);
    let claims = |extra: Value| {
        Twin::claims(
            json!({
                "iss": "https://acme.eu.auth0.com/", "sub": "auth0|1", "azp": "web", "gty": "password",
                "aud": ["https://api.example.com", "https://acme.eu.auth0.com/userinfo"],
                "scope": "openid read:orders", "permissions": ["read:orders"],
            }),
            extra,
        )
    };

    assert_eq!(twin.judge(&twin.token(&jwt(), &claims(json!({})))).await, "200");
    let powerless = claims(json!({ "permissions": [] }));
    assert_eq!(twin.judge(&twin.token(&jwt(), &powerless)).await, "403");
    // Without an audience the access token is encrypted for Auth0 itself.
    let opaque = format!("{}..AAAA.AAAA.AAAA", to_base64url(br#"{"alg":"dir","enc":"A256GCM"}"#));
    assert_eq!(twin.judge(&opaque).await, "401");
}

#[tokio::test]
async fn tokens_of_okta_are_verified_with_the_documented_settings() {
    let twin = Twin::new("Okta", set_of_one);
    let claims = |extra: Value| {
        Twin::claims(
            json!({
                "ver": 1, "jti": "AT.1", "iss": "https://acme.okta.com/oauth2/default", "aud": "api://default",
                "cid": "0oa1", "uid": "00u1", "scp": ["openid", "orders.read"], "auth_time": NOW, "sub": "a@example.com",
            }),
            extra,
        )
    };

    // Its access tokens have no `typ`.
    assert_eq!(twin.judge(&twin.token(&json!({}), &claims(json!({})))).await, "200");
    assert_eq!(twin.judge(&twin.token(&json!({}), &claims(json!({ "scp": [] })))).await, "403");
}

#[tokio::test]
async fn tokens_of_cognito_are_verified_with_the_documented_settings() {
    let twin = Twin::new("Amazon Cognito", set_of_one);
    let claims = |extra: Value| {
        Twin::claims(
            json!({
                "iss": "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_Ab12Cd34E", "sub": "aaaa",
                "cognito:groups": ["staff"], "client_id": "1example23456789", "token_use": "access", "version": 2,
                "origin_jti": "x", "event_id": "y", "scope": "openid orders/read", "username": "alice",
            }),
            extra,
        )
    };
    let id_token = claims(json!({
        "token_use": "id", "aud": "1example23456789", "client_id": "1example23456789",
    }));

    assert_eq!(twin.judge(&twin.token(&json!({}), &claims(json!({})))).await, "200");
    let other = claims(json!({ "client_id": "another" }));
    assert_eq!(twin.judge(&twin.token(&json!({}), &other)).await, "401");
    assert_eq!(twin.judge(&twin.token(&json!({}), &id_token)).await, "401", "an ID token");
}

#[tokio::test]
async fn tokens_of_google_and_firebase_are_verified_with_the_documented_settings() {
    let twin = Twin::new("Google", set_of_one);
    let claims = |extra: Value| {
        Twin::claims(
            json!({
                "iss": "https://accounts.google.com", "azp": "x.apps.googleusercontent.com", "sub": "1", "hd": "example.com",
                "aud": "1234567890-abc.apps.googleusercontent.com", "email": "a@example.com", "email_verified": true,
                "at_hash": "x",
            }),
            extra,
        )
    };
    assert_eq!(twin.judge(&twin.token(&jwt(), &claims(json!({})))).await, "200");
    let of_stranger = claims(json!({ "hd": "evil.example" }));
    assert_eq!(twin.judge(&twin.token(&jwt(), &of_stranger)).await, "403");
    assert_eq!(twin.judge("ya29.a0Af_opaque").await, "401");

    let twin = Twin::new("Firebase", set_of_one);
    let claims = Twin::claims(
        json!({
            "iss": "https://securetoken.google.com/acme-shop", "aud": "acme-shop", "auth_time": NOW, "user_id": "u",
            "sub": "u", "firebase": { "identities": {}, "sign_in_provider": "password" },
        }),
        json!({}),
    );
    assert_eq!(twin.judge(&twin.token(&jwt(), &claims)).await, "200");
}

#[tokio::test]
async fn tokens_of_keycloak_are_verified_with_the_documented_settings() {
    for twin in Twin::all("Keycloak", |key| {
        // Beside it a key that encrypts.
        let mut encrypts = key.clone();
        encrypts["kid"] = "enc".into();
        encrypts["use"] = "enc".into();
        encrypts["alg"] = "RSA-OAEP".into();
        json!({ "keys": [encrypts, key] })
    }) {
        let iss = twin.iss();
        let claims = |extra: Value| {
            Twin::claims(
                json!({
                    "iss": iss, "aud": ["orders", "account"], "sub": "f1", "typ": "Bearer", "azp": "web", "sid": "s", "acr": "1",
                    "allowed-origins": ["https://web.example.com"], "realm_access": { "roles": ["clerk", "offline_access"] },
                    "resource_access": { "account": { "roles": ["view-profile"] } }, "scope": "openid email",
                }),
                extra,
            )
        };

        assert_eq!(twin.judge(&twin.token(&jwt(), &claims(json!({})))).await, "200");
        for use_of_another in ["ID", "Refresh", "Offline", "Logout"] {
            let claims = claims(json!({ "typ": use_of_another }));
            assert_eq!(twin.judge(&twin.token(&jwt(), &claims)).await, "401", "{use_of_another}");
        }
        let other_realm = claims(json!({ "iss": "https://sso.example.com/realms/other" }));
        assert_eq!(twin.judge(&twin.token(&jwt(), &other_realm)).await, "401");
    }
}

#[tokio::test]
async fn tokens_of_hydra_are_verified_with_the_documented_settings() {
    let twin = Twin::new("Ory Hydra", set_of_one);
    let claims = |extra: Value| {
        Twin::claims(
            json!({
                "iss": "https://hydra.example.com", "aud": [], "client_id": "orders-cli", "ext": {}, "jti": "1",
                "scp": ["orders.read"], "sub": "orders-cli",
            }),
            extra,
        )
    };

    assert_eq!(twin.judge(&twin.token(&jwt(), &claims(json!({})))).await, "200");
    assert_eq!(
        twin.judge(&twin.token(&jwt(), &claims(json!({ "client_id": "other" })))).await,
        "401"
    );
    assert_eq!(twin.judge(&twin.token(&jwt(), &claims(json!({ "aud": ["other"] })))).await, "401");
}

#[tokio::test]
async fn tokens_of_zitadel_are_verified_with_the_documented_settings() {
    let twin = Twin::new("Zitadel", set_of_one);
    let claims = |roles: Value| {
        Twin::claims(
            json!({
                "iss": "https://acme.zitadel.cloud", "aud": ["250000000000000001", "250000000000000000"], "sub": "1",
                "client_id": "250000000000000001", "jti": "V2_1",
            }),
            json!({ "urn:zitadel:iam:org:project:roles": roles }),
        )
    };

    let clerk = claims(json!({ "clerk": { "1": "acme.zitadel.cloud" } }));
    assert_eq!(twin.judge(&twin.token(&json!({ "typ": "at+jwt" }), &clerk)).await, "200");
    for roles in [json!({ "guest": { "1": "acme" } }), json!({ "clerk": false }), json!({})] {
        assert_eq!(twin.judge(&twin.token(&jwt(), &claims(roles.clone()))).await, "403", "{roles}");
    }
}

#[tokio::test]
async fn tokens_of_supabase_are_verified_with_the_documented_settings() {
    let twin = Twin::new("Supabase", set_of_one);
    let claims = |extra: Value| {
        Twin::claims(
            json!({
                "iss": "https://abcdefghijklmnop.supabase.co/auth/v1", "aud": "authenticated", "sub": "u", "role": "authenticated",
                "email": "a@example.com", "phone": "", "app_metadata": { "provider": "email" }, "user_metadata": {},
                "aal": "aal1", "amr": [{ "method": "password", "timestamp": NOW }], "session_id": "s", "is_anonymous": false,
            }),
            extra,
        )
    };
    let legacy = |secret: &[u8], extra: Value| {
        let signed = format!(
            "{}.{}",
            to_base64url(br#"{"alg":"HS256","kid":"old","typ":"JWT"}"#),
            to_base64url(claims(extra).to_string().as_bytes())
        );
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
        format!("{signed}.{}", to_base64url(tag.as_ref()))
    };

    assert_eq!(twin.judge(&twin.token(&jwt(), &claims(json!({})))).await, "200");
    assert_eq!(twin.judge(&legacy(SECRET.as_bytes(), json!({}))).await, "200");
    assert_eq!(twin.judge(&legacy(&[7; 32], json!({}))).await, "401");
    let of_service = json!({ "role": "service_role" });
    assert_eq!(twin.judge(&legacy(SECRET.as_bytes(), of_service)).await, "403");
}

#[tokio::test]
async fn tokens_of_forgerock_are_verified_with_the_documented_settings() {
    let twin = Twin::new("ForgeRock and PingAM", |key| {
        let mut encrypts = key.clone();
        encrypts["use"] = "enc".into();
        let mut again = key.clone();
        again["x5c"] = json!(["MIIC"]);
        again["x5t"] = "x".into();
        json!({ "keys": [encrypts, again, key] })
    });
    let header = json!({ "typ": "JWT", "zip": "NONE", "cty": null });
    let claims = |extra: Value| {
        Twin::claims(
            json!({
                "iss": "https://am.example.com:443/am/oauth2/realms/root/realms/alpha", "sub": "(usr!demo)", "aud": "orders",
                "cts": "OAUTH2_STATELESS_GRANT", "auth_level": 0, "tokenName": "access_token", "token_type": "Bearer",
                "authGrantId": "x", "nbf": NOW, "grant_type": "client_credentials", "scope": ["orders.read"],
                "realm": "/alpha", "expires_in": 3600, "subname": "demo",
            }),
            extra,
        )
    };

    assert_eq!(twin.judge(&twin.token(&header, &claims(json!({})))).await, "200");
    assert_eq!(twin.judge(&twin.token(&header, &claims(json!({ "scope": [] })))).await, "403");
}

#[tokio::test]
async fn tokens_of_kubernetes_are_verified_with_the_documented_settings() {
    let twin = Twin::new("Kubernetes service accounts", set_of_one);
    let claims = |namespace: &str| {
        Twin::claims(
            json!({
                "iss": "https://kubernetes.default.svc.cluster.local", "aud": ["orders"], "jti": "1", "nbf": NOW,
                "sub": format!("system:serviceaccount:{namespace}:default"),
            }),
            json!({ "kubernetes.io": {
                "namespace": namespace, "pod": { "name": "p", "uid": "u" }, "serviceaccount": { "name": "default" },
            } }),
        )
    };

    assert_eq!(twin.judge(&twin.token(&json!({}), &claims("shop"))).await, "200");
    assert_eq!(twin.judge(&twin.token(&json!({}), &claims("kube-system"))).await, "403");
}

#[tokio::test]
async fn tokens_of_github_actions_are_verified_with_the_documented_settings() {
    let twin = Twin::new("GitHub Actions", set_of_one);
    let claims = |repository: &str| {
        Twin::claims(
            json!({
                "iss": "https://token.actions.githubusercontent.com", "aud": "https://api.example.com", "jti": "1",
                "sub": format!("repo:{repository}:ref:refs/heads/main"), "ref": "refs/heads/main", "runner_environment": "github-hosted",
            }),
            json!({ "repository": repository }),
        )
    };

    assert_eq!(twin.judge(&twin.token(&jwt(), &claims("acme/shop"))).await, "200");
    assert_eq!(twin.judge(&twin.token(&jwt(), &claims("evil/shop"))).await, "403");
}

/// A product's configuration on the page, with the keys and files that it names.
struct Twin {
    text: String,
    key: SigningKey,
    jwks: Value,
    files: TempDir,
}

impl Twin {
    fn new(product: &str, jwks: impl Fn(Value) -> Value) -> Self {
        Self::all(product, jwks).remove(0)
    }

    /// Returns one twin for each configuration of `product`; `jwks` lists the key as the product does.
    fn all(product: &str, jwks: impl Fn(Value) -> Value) -> Vec<Self> {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let document: Pkcs8V1Der<'_> = pair.as_der().unwrap();
        let key = SigningKey::from_pkcs8(document.as_ref()).unwrap().with_kid("k1");
        let jwks = jwks(key.public_jwk());
        let made = |text: &&str| {
            let files = tempfile::tempdir().unwrap();
            for (name, content) in
                [("cluster-jwks.json", jwks.to_string()), ("supabase-secret", SECRET.to_owned())]
            {
                fs::write(files.path().join(name), content).unwrap();
                let owner_only = fs::Permissions::from_mode(0o600);
                fs::set_permissions(files.path().join(name), owner_only).unwrap();
            }
            Self { text: format!("{FRAME}{text}"), key: key.clone(), jwks: jwks.clone(), files }
        };
        blocks(product).iter().map(made).collect()
    }

    /// Reads the configuration, in which `check` finds nothing to say.
    fn config(&self) -> Config {
        let (directory, now) = (self.files.path(), Timestamp::from_secs(NOW));
        let read = config::load_text("f", &self.text, directory, &Environment::default(), now);
        let (config, faults) = read.unwrap_or_else(|faults| panic!("{}: {faults:?}", self.text));
        assert!(faults.is_empty(), "{}: {faults:?}", self.text);
        config
    }

    /// The name that the configuration has for the first issuer.
    fn iss(&self) -> String {
        self.config().issuers.values().next().unwrap().settings.issuer.to_string()
    }

    fn claims(claims: Value, extra: Value) -> Value {
        let mut all = json!({ "iat": NOW, "exp": NOW + 3600 });
        for members in [claims, extra] {
            all.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        }
        all
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let mut all = json!({ "alg": "RS256", "kid": "k1" });
        all.as_object_mut().unwrap().extend(header.as_object().unwrap().clone());
        self.key.sign_jwt(&all, claims).unwrap()
    }

    /// Returns the status that a request with this token gets from the page's route.
    async fn judge(&self, token: &str) -> &'static str {
        let server = Server::start().await;
        server.says(JWKS, Answer::json(self.jwks.clone()));
        let mut config = self.config();
        for issuer in config.issuers.values_mut() {
            if issuer.settings.jwks.is_none() && issuer.settings.hmac_secret.is_none() {
                // Only the place differs: the document says the issuer's own name.
                let document = json!({ "issuer": issuer.settings.identifier(), "jwks_uri": server.at(JWKS).as_str() });
                server.says(METADATA, Answer::json(document));
                issuer.settings.discovery = Discovery::At(server.at(METADATA));
                issuer.settings.endpoints.jwks = None;
            }
        }
        let clock = Clock::manual(Timestamp::from_secs(NOW));
        let retained = RetainedState::new(clock.clone(), Metrics::new(&[1.0]), Handle::current());
        let Auth::AnyOf { methods, .. } = &config.routes[0].auth else { panic!("a public route") };
        let verdict = verify(&config, &methods[0].credential, token, clock.now(), &retained).await;
        match verdict.unwrap() {
            Verdict::Good(principal) => match refusal(&methods[0], &principal, clock.now()) {
                None => "200",
                Some((_, rejection)) if rejection.status() == 403 => "403",
                Some(_) => "401",
            },
            Verdict::Refused(_) => "401",
            other => panic!("{other:?}"),
        }
    }
}

/// Returns the configurations below the heading `product` of the page.
fn blocks(product: &str) -> Vec<&'static str> {
    let heading = format!("### {product}\n");
    let (_, section) = PAGE.split_once(&heading).unwrap_or_else(|| panic!("no section {product}"));
    let end = section.find("\n#").unwrap_or(section.len());
    let parts = section[..end].split("```yaml\n").skip(1);
    parts.filter_map(|part| part.split_once("```")).map(|(block, _)| block).collect()
}

#[test]
fn a_login_at_each_product_is_configured_without_a_warning() {
    let files = tempfile::tempdir().unwrap();
    fs::set_permissions(files.path(), fs::Permissions::from_mode(0o700)).unwrap();
    for (name, content) in [("web-secret", SECRET), ("session-key", SESSION_KEY)] {
        fs::write(files.path().join(name), content).unwrap();
        let owner_only = fs::Permissions::from_mode(0o600);
        fs::set_permissions(files.path().join(name), owner_only).unwrap();
    }
    let (_, section) = PAGE.split_once("\n## A login at each product\n").unwrap();
    let section = &section[..section.find("\n## ").unwrap()];
    let logins: Vec<_> = section.split("\n**").skip(1).collect();
    assert_eq!(logins.len(), 8);
    for login in logins {
        let (product, rest) = login.split_once(".**").unwrap();
        let (_, rest) = rest.split_once("```yaml\n").unwrap();
        let (block, _) = rest.split_once("```").unwrap();
        let has_issuer = block.starts_with("issuers:");
        let issuers =
            if has_issuer { "" } else { blocks(product)[0].split_once("routes:").unwrap().0 };
        let routes = "routes: [{ id: shop, path: /**, upstream: api, auth: { session: web } }]";
        let text = format!("{FRAME}server: {{ state_dir: . }}\n{issuers}{block}{routes}\n");

        let now = Timestamp::from_secs(NOW);
        let read = config::load_text("f", &text, files.path(), &Environment::default(), now);

        let (_, faults) = read.unwrap_or_else(|faults| panic!("{text}: {faults:?}"));
        assert!(faults.is_empty(), "{text}: {faults:?}");
    }
}

fn set_of_one(key: Value) -> Value {
    json!({ "keys": [key] })
}

fn jwt() -> Value {
    json!({ "typ": "JWT" })
}

const PAGE: &str = include_str!("../../../../docs/authorization-servers.md");
const FRAME: &str = "version: 1
listen: 127.0.0.1:8080
upstreams: { api: { targets: [http://127.0.0.1:8081] } }
";
const SESSION_KEY: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
const SECRET: &str = "a secret of more than thirty-two bytes";
