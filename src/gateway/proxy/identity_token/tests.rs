//! Tests of the claims and the caching of identity tokens.

use std::path::PathBuf;

use serde_json::json;
use tokio::runtime::Handle;

use super::*;
use crate::base::clock::Clock;
use crate::base::scopes::Scopes;
use crate::base::strict_json::{base64url, parse_object};
use crate::issuer::{Algorithm, Jwks};
use crate::token::{IdentityFields, TokenFormat};

#[tokio::test]
async fn a_token_has_caller_audience_lifetime_and_the_gateway_as_issuer() {
    let tokens =
        tokens(&[("x-auth-email", "email"), ("x-auth-issuer", "iss"), ("x-auth-none", "none")]);
    let token_claims =
        json!({ "email": "a@example.com", "iss": "https://evil", "secret": "s", "cnf": {} });

    let claims =
        claims_of(&tokens.field(&principal(token_claims, NOON.plus_secs(600)), NOON).unwrap());

    let id = claims["jti"].as_str().unwrap();
    assert_eq!(id.len(), 22);
    assert_eq!(
        claims,
        json!({
            "iss": "https://api.example.com", "aud": "orders", "idp": "main",
            "sub": "alice", "client_id": "app", "scope": "a b", "email": "a@example.com",
            "iat": NOON.as_secs(), "exp": NOON.as_secs() + 300, "jti": id,
        })
    );
}

#[tokio::test]
async fn a_token_is_cached_for_half_its_lifetime() {
    let tokens = tokens(&[]);
    let principal = principal(json!({}), NOON.plus_secs(3_600));
    let at = |seconds| tokens.field(&principal, NOON.plus_secs(seconds)).unwrap();

    assert_eq!(at(0), at(149));
    assert_ne!(at(149), at(150));
    assert_eq!(at(150), at(299));
}

#[tokio::test]
async fn a_token_never_outlives_the_callers_own() {
    let tokens = tokens(&[]);
    let ends = NOON.plus_secs(60);
    let principal = principal(json!({}), ends);
    let at = |seconds| tokens.field(&principal, NOON.plus_secs(seconds)).unwrap();

    assert_eq!(at(0), at(59));
    assert_eq!(claims_of(&at(59))["exp"], ends.as_secs());
    // A token that is accepted within the leeway after its expiry is accepted no longer than that.
    assert_eq!(claims_of(&at(70))["exp"], ends.plus(LEEWAY).as_secs());
    assert_eq!(at(70), at(70), "cached");
}

#[tokio::test]
async fn a_changed_principal_gets_a_new_token() {
    let tokens = tokens(&[("x-tier", "tier")]);
    let ends = NOON.plus_secs(3_600);
    let first = tokens.field(&principal(json!({ "tier": 1 }), ends), NOON).unwrap();

    let same = tokens.field(&principal(json!({ "tier": 1 }), ends), NOON).unwrap();
    let other = tokens.field(&principal(json!({ "tier": 2 }), ends), NOON).unwrap();
    let mut fewer = principal(json!({ "tier": 2 }), ends);
    Arc::get_mut(&mut fewer).unwrap().scopes = Arc::new(Scopes::parse("a"));
    let fewer = tokens.field(&fewer, NOON).unwrap();

    assert_eq!(first, same);
    assert_eq!((&claims_of(&first)["tier"], &claims_of(&other)["tier"]), (&json!(1), &json!(2)));
    assert_eq!(claims_of(&fewer)["scope"], "a");
}

#[tokio::test]
async fn published_keys_verify_the_token() {
    let keys = Arc::new(
        SigningKeySet::generated(None::<PathBuf>, Clock::manual(NOON), Handle::current()).unwrap(),
    );
    let tokens = IdentityTokens::new(Arc::clone(&keys), "i".into(), "a".into(), LEEWAY, &[]);

    let field = tokens.field(&principal(json!({}), Timestamp::MAX), NOON).unwrap();

    let (signed, signature) = field.to_str().unwrap().rsplit_once('.').unwrap();
    let header = parse_object(&base64url(signed.split('.').next().unwrap()).unwrap()).unwrap();
    let published = Jwks::parse(&keys.published(), |_, why| panic!("{why}")).unwrap();
    let key = published.select(header["kid"].as_str(), Algorithm::Es256, |_| true).unwrap();
    let signature = base64url(signature).unwrap();
    assert_eq!(key.verify(Algorithm::Es256, signed.as_bytes(), &signature), Ok(()));
    assert!(field.is_sensitive());
}

fn tokens(headers: &[(&'static str, &str)]) -> IdentityTokens {
    let keys = SigningKeySet::generated(None, Clock::manual(NOON), Handle::current()).unwrap();
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, claim)| IdentityHeader {
            name: HeaderName::from_static(name),
            claim: (*claim).into(),
        })
        .collect();
    let issuer = "https://api.example.com".into();
    IdentityTokens::new(Arc::new(keys), issuer, "orders".into(), LEEWAY, &headers)
}

fn principal(claims: Value, expires: Timestamp) -> Arc<Principal> {
    Arc::new(Principal {
        form: TokenFormat::Signed,
        issuer: "main".into(),
        namespace: "main".into(),
        subject: Some("alice".into()),
        client: Some("app".into()),
        session: None,
        id: None,
        scopes: Arc::new(Scopes::parse("a b")),
        audience: Box::default(),
        expires,
        issued: None,
        confirmation: None,
        digest: [7; 32],
        unsigned_digest: None,
        signed: None,
        claims: claims.as_object().unwrap().clone(),
        identity: IdentityFields::default(),
    })
}

fn claims_of(field: &HeaderValue) -> Value {
    let claims = field.to_str().unwrap().split('.').nth(1).unwrap();
    parse_object(&base64url(claims).unwrap()).unwrap().into()
}

const LEEWAY: Duration = Duration::from_secs(30);
const NOON: Timestamp = Timestamp::from_secs(1_700_049_600);
