//! Tests of claims and the rules for them.

use core::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::*;

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);
const ISSUER: &str = "https://auth.example.com";

#[test]
fn a_plain_token_is_accepted() {
    assert_eq!(check(&json!({})), Ok(()));
    assert_eq!(check(&json!({ "aud": ["other", "api"] })), Ok(()));
}

#[test]
fn the_issuer_is_compared_byte_for_byte() {
    for issuer in ["https://auth.example.com/", "https://AUTH.example.com", "", "auth"] {
        assert_eq!(check(&json!({ "iss": issuer })), Err(TokenError::Issuer), "{issuer}");
    }
    assert_eq!(check(&json!({ "iss": [ISSUER] })), Err(TokenError::Malformed));
    assert_eq!(check_without("iss"), Err(TokenError::Issuer));
}

#[test]
fn one_audience_must_match_exactly() {
    for (audience, error) in [
        (json!("API"), TokenError::Audience),
        (json!("api "), TokenError::Audience),
        (json!("ap"), TokenError::Audience),
        (json!([]), TokenError::Audience),
        (json!(["a", "b"]), TokenError::Audience),
        (json!(["api", 7]), TokenError::Malformed),
        (json!({ "api": true }), TokenError::Malformed),
        (json!(null), TokenError::Malformed),
    ] {
        assert_eq!(check(&json!({ "aud": audience })), Err(error), "{audience}");
    }
    assert_eq!(check_without("aud"), Err(TokenError::Audience));
}

#[test]
fn times_are_checked_with_the_leeway() {
    let at = |offset: i64| 1_700_000_000 + offset;

    assert_eq!(check(&json!({ "exp": at(-29) })), Ok(()));
    assert_eq!(check(&json!({ "exp": at(-30) })), Err(TokenError::Expired));
    assert_eq!(check(&json!({ "exp": at(0) as f64 - 29.5 })), Ok(()));
    assert_eq!(check(&json!({ "exp": at(0) as f64 - 30.5 })), Err(TokenError::Expired));
    assert_eq!(check(&json!({ "nbf": at(30) })), Ok(()));
    assert_eq!(check(&json!({ "nbf": at(31) })), Err(TokenError::NotYetValid));
    assert_eq!(check(&json!({ "iat": at(9_999) })), Ok(()), "iat is not asked for");
    assert_eq!(check_without("exp"), Err(TokenError::Claim));
}

#[test]
fn age_counts_from_iat_if_limited() {
    let rules = ValidationRules { max_token_age: Some(Duration::from_secs(60)), ..rules() };
    let check = |claims: Value| check_by(&rules, &with(claims));
    let at = |offset: i64| 1_700_000_000 + offset;

    assert_eq!(check(json!({ "iat": at(-90) })), Ok(()));
    assert_eq!(check(json!({ "iat": at(-91) })), Err(TokenError::Expired));
    assert_eq!(check(json!({ "iat": at(31) })), Err(TokenError::NotYetValid));
    assert_eq!(check(json!({})), Err(TokenError::Claim));
}

#[test]
fn required_claims_must_not_be_empty() {
    assert_eq!(check_without("sub"), Err(TokenError::Claim));
    assert_eq!(check(&json!({ "sub": "" })), Err(TokenError::Claim));
    let rules = ValidationRules { required_claims: ["tenant.id"].map(Box::from).into(), ..rules() };
    assert_eq!(check_by(&rules, &with(json!({}))), Err(TokenError::Claim));
    assert_eq!(check_by(&rules, &with(json!({ "tenant": { "id": 7 } }))), Ok(()));
}

#[test]
fn an_introspection_response_is_checked_by_its_members() {
    let rules = ValidationRules { max_token_age: Some(Duration::from_secs(60)), ..rules() };
    let answer = |claims: Value| {
        let claims = Claims::read(claims.as_object().unwrap().clone())?;
        claims.check_answer(&issuer(), &rules, false, NOW)
    };

    assert_eq!(answer(json!({ "aud": "api" })), Ok(()));
    assert_eq!(answer(json!({})), Err(TokenError::Audience));
    assert_eq!(answer(json!({ "aud": "api", "iss": "other" })), Err(TokenError::Issuer));
    assert_eq!(answer(json!({ "aud": "api", "exp": 1 })), Err(TokenError::Expired));
    assert_eq!(answer(json!({ "aud": "api", "exp": "1" })), Err(TokenError::Malformed));
    assert_eq!(answer(json!({ "aud": "api", "nbf": 1.8e9 })), Err(TokenError::NotYetValid));
    assert_eq!(answer(json!({ "aud": "api", "iat": 1 })), Err(TokenError::Expired));
}

#[test]
fn a_token_declared_for_dpop_is_bound_to_its_key_or_an_unknown_one() {
    let to = |claims: Value| {
        let claims = Claims::read(claims.as_object().unwrap().clone()).unwrap();
        claims.confirmation()
    };
    let digest = crate::issuer::keys::jwk::to_base64url(&[7; 32]);

    for name in ["token_type", "typ"] {
        for value in ["DPoP", "dpop", "DPOP", " DPoP"] {
            assert_eq!(to(json!({ name: value })), Ok(Some(Confirmation::Unknown)), "{name}");
            let elsewhere = json!({ name: value, "cnf": { "x5t#S256": digest } });
            assert_eq!(to(elsewhere), Ok(Some(Confirmation::Unknown)));
            let bound = json!({ name: value, "cnf": { "jkt": digest } });
            assert_eq!(to(bound), Ok(Some(Confirmation::Key([7; 32]))));
        }
        assert_eq!(to(json!({ name: "Bearer" })), Ok(None));
    }
}

#[test]
fn active_tokens_other_than_access_tokens_are_refused() {
    let answer = |name: &str, value: Value| {
        let claims = json!({ "aud": "api", name: value });
        Claims::read(claims.as_object().unwrap().clone()).unwrap().check_answer(
            &issuer(),
            &rules(),
            false,
            NOW,
        )
    };

    for (name, value) in
        [("token_type", "bearer"), ("token_use", "access_token"), ("typ", "Bearer")]
    {
        assert_eq!(answer(name, json!(value)), Ok(()), "{name}");
    }
    for (name, value) in [
        ("token_type", json!("refresh_token")),
        ("token_type", json!("Refresh")),
        ("token_use", json!("refresh_token")),
        ("typ", json!("Refresh")),
        ("typ", json!("Offline")),
        ("typ", json!("ID")),
        ("tokenName", json!("refresh_token")),
        ("purpose", json!("refresh_token")),
        ("type", json!("refresh")),
    ] {
        assert_eq!(answer(name, value.clone()), Err(TokenError::Type), "{name} {value}");
    }
    assert_eq!(answer("token_type", json!(["Bearer"])), Err(TokenError::Malformed));
}

#[test]
fn a_missing_audience_is_accepted_only_if_configured() {
    let claims = Claims::read(Map::new()).unwrap();

    assert_eq!(claims.check_answer(&issuer(), &rules(), true, NOW), Ok(()));
    let other = json!({ "aud": "other" });
    let other = Claims::read(other.as_object().unwrap().clone()).unwrap();
    assert_eq!(other.check_answer(&issuer(), &rules(), true, NOW), Err(TokenError::Audience));
}

#[test]
fn another_claim_takes_the_place_of_an_absent_audience_and_of_no_other() {
    let rules = ValidationRules { audience_claim: ["client_id".into()].into(), ..rules() };
    let check = |aud: Option<Value>, client: Value| {
        let mut claims = with(json!({ "client_id": client }));
        claims.remove("aud");
        claims.extend(aud.map(|aud| ("aud".to_owned(), aud)));
        check_by(&rules, &claims)
    };

    assert_eq!(check(None, json!("api")), Ok(()));
    assert_eq!(check(Some(json!([])), json!("api")), Ok(()));
    assert_eq!(check(None, json!("other")), Err(TokenError::Audience));
    assert_eq!(check(Some(json!("other")), json!("api")), Err(TokenError::Audience));
    assert_eq!(check(Some(json!(null)), json!("api")), Err(TokenError::Malformed));
    assert_eq!(check(None, json!({ "api": true })), Err(TokenError::Malformed));
    assert_eq!(check(None, json!([])), Err(TokenError::Audience));
    let without =
        |name: &str| json!({ "iss": ISSUER, "sub": "a", "exp": 1_700_000_060, name: "api" });
    let other = check_by(&rules, without("azp").as_object().unwrap());
    assert_eq!(other, Err(TokenError::Audience), "not by a claim that is not named");
}

#[test]
fn a_token_for_another_use_is_no_access_token() {
    for (name, value) in [
        ("token_use", "id"),
        ("token_use", "refresh"),
        ("typ", "ID"),
        ("typ", "Refresh"),
        ("tokenName", "id_token"),
        ("tokenName", "refresh_token"),
        ("token_type", "refresh"),
        ("type", "refresh"),
        ("purpose", "refresh_token"),
    ] {
        assert_eq!(check(&json!({ name: value })), Err(TokenError::Type), "{name} {value}");
        let client = ValidationRules { access_only: false, ..rules() };
        assert_eq!(check_by(&client, &with(json!({ name: value }))), Ok(()));
    }
    for (name, value) in [
        ("token_use", "access"),
        ("typ", "Bearer"),
        ("typ", "JWT"),
        ("tokenName", "access_token"),
        ("token_type", "Bearer"),
        ("type", "access"),
        ("purpose", "access_token"),
    ] {
        assert_eq!(check(&json!({ name: value })), Ok(()), "{name} {value}");
    }
}

#[test]
fn an_id_token_is_refused_where_clients_are_the_audience() {
    let clients = ValidationRules { audience_claim: ["client_id".into()].into(), ..rules() };
    for mark in ["nonce", "at_hash", "c_hash"] {
        let id_token = with(json!({ mark: "x" }));
        // Keycloak's access tokens had a nonce until version 23.
        let for_access = with(json!({ mark: "x", "typ": "Bearer" }));

        assert_eq!(check_by(&clients, &id_token), Err(TokenError::Type), "{mark}");
        assert_eq!(check_by(&clients, &for_access), Ok(()), "{mark}");
        assert_eq!(check_by(&rules(), &id_token), Ok(()), "{mark}");
    }
}

#[test]
fn an_id_token_for_its_client_and_for_an_accepted_audience_is_no_access_token() {
    for mark in ["nonce", "at_hash", "c_hash"] {
        let id_token = with(json!({ "azp": "web", "aud": ["web", "api"], mark: "x" }));

        assert_eq!(check_by(&rules(), &id_token), Err(TokenError::Type), "{mark}");
    }
    for accepted in [
        // For the accepted client itself, where an operator takes its ID tokens.
        json!({ "azp": "api", "aud": ["web", "api"], "at_hash": "x" }),
        // Google's for a server: `azp` is the application on the device.
        json!({ "azp": "web", "aud": "api", "at_hash": "x" }),
        json!({ "azp": "web", "aud": ["web", "api"] }),
        json!({ "azp": "web", "aud": ["web", "api"], "nonce": "x", "typ": "Bearer" }),
    ] {
        assert_eq!(check_by(&rules(), &with(accepted.clone())), Ok(()), "{accepted}");
    }
}

#[test]
fn an_introspection_response_has_scopes_and_client_under_their_registered_names() {
    let read = |scope_claim: &str, form| {
        let rules = ValidationRules {
            scope_claim: [scope_claim.into()].into(),
            client_claim: ["cid".into()].into(),
            ..rules()
        };
        let claims = with(json!({ "scope": "read", "client_id": "web" }));
        let names = TokenDigests::of_signed("t");
        let claims = Claims::read(claims).unwrap();
        claims.into_principal(form, "main".into(), names, &rules).unwrap()
    };

    let answer = read("scp", TokenFormat::Reference);
    let of_roles = read("roles", TokenFormat::Reference);
    let signed = read("scp", TokenFormat::Signed);

    assert_eq!(*answer.scopes, Scopes::parse("read"));
    assert_eq!(answer.client.as_deref(), Some("web"));
    assert_eq!(*of_roles.scopes, Scopes::default());
    assert_eq!((signed.scopes.is_empty(), signed.client), (true, None));
}

#[test]
fn claims_that_the_gateway_does_not_believe_are_replaced_by_those_it_does() {
    let read = |scopes: &str, client: &str, claims: Value| {
        let rules = ValidationRules {
            scope_claim: [scopes.into()].into(),
            client_claim: [client.into(), "azp".into()].into(),
            ..rules()
        };
        let names = TokenDigests::of_signed("t");
        let claims = Claims::read(with(claims)).unwrap();
        claims.into_principal(TokenFormat::Signed, "main".into(), names, &rules).unwrap()
    };
    let raw =
        json!({ "client_id": "raw", "cid": "app", "scope": { "a": 1 }, "roles": ["r2", "r1"] });

    let derived = read("roles", "cid", raw);
    let absent = read("roles", "cid", json!({ "client_id": "raw", "scope": "admin" }));
    let written = read("scope", "client_id", json!({ "client_id": "app", "scope": "write read" }));
    let by_azp = read("scope", "client_id", json!({ "azp": "web" }));

    assert_eq!(derived.claim("client_id"), Some(&json!("app")));
    assert_eq!(derived.claim("scope"), Some(&json!("r1 r2")));
    assert_eq!(derived.claim("scope.a"), None);
    assert_eq!(derived.claim("roles"), Some(&json!(["r2", "r1"])));
    assert_eq!((absent.claim("client_id"), absent.claim("scope")), (None, None));
    assert_eq!(written.claim("scope"), Some(&json!("write read")), "as written");
    assert_eq!(by_azp.claim("client_id"), Some(&json!("web")));
}

#[test]
fn one_subject_of_two_tenants_is_two_users() {
    let user = principal(json!({ "sub": "alice" })).unwrap();
    let of =
        |tenant: &str| Principal { namespace: tenant.into(), ..user.clone() }.qualified_subject();

    assert_eq!(user.qualified_subject().as_deref(), Some("alice"));
    assert_ne!(of("https://login.test/a"), of("https://login.test/b"));
    assert_ne!(of("https://login.test/a"), user.qualified_subject());
}

#[test]
fn an_empty_identifier_names_nothing() {
    let principal = principal(json!({ "sub": "", "sid": "", "jti": "" })).unwrap();

    assert_eq!((principal.subject, principal.session, principal.id), (None, None, None));
}

#[test]
fn the_first_scope_claim_counts_as_a_text_a_list_or_names() {
    let entra = ["scp", "roles"];
    let zitadel = ["urn:zitadel:iam:org:project:roles"];

    assert_eq!(
        scopes_of(json!({ "scp": "b a", "roles": ["c"] }), &entra),
        Ok(Scopes::parse("a b"))
    );
    assert_eq!(scopes_of(json!({ "roles": ["c"] }), &entra), Ok(Scopes::parse("c")));
    let roles = json!({ "admin": { "1": "acme" }, "old": false, "gone": null, "user": {} });
    assert_eq!(
        scopes_of(json!({ "urn:zitadel:iam:org:project:roles": roles }), &zitadel),
        Ok(Scopes::parse("admin user"))
    );
    assert_eq!(scopes_of(json!({ "scope": { "a": 1 } }), &["scope"]), Err(TokenError::Malformed));
}

#[test]
fn claims_become_a_principal() {
    let principal = principal(json!({
        "azp": "web", "sid": "s1", "jti": "t1", "scope": "write read", "iat": 1.5,
        "aud": ["api", "other"], "exp": 1_700_000_100,
    }))
    .unwrap();

    assert_eq!(principal.subject.as_deref(), Some("alice"));
    assert_eq!(principal.client.as_deref(), Some("web"));
    assert_eq!(principal.session.as_deref(), Some("s1"));
    assert_eq!(principal.id.as_deref(), Some("t1"));
    assert_eq!(*principal.scopes, Scopes::parse("read write"));
    assert!(principal.has_audience("other") && !principal.has_audience("oth"));
    assert_eq!(principal.expires, Timestamp::from_secs(1_700_000_100));
    assert_eq!(principal.issued, Some(Timestamp::from_nanos(1_500_000_000)));
}

#[test]
fn client_id_precedes_azp_and_scopes_may_be_a_list() {
    let claims = json!({
        "client_id": "api-client", "azp": "web", "realm": { "roles": ["b", "a"] },
    });
    let rules = ValidationRules { scope_claim: ["realm.roles".into()].into(), ..rules() };
    let claims = Claims::read(with(claims)).unwrap();
    let principal = claims
        .into_principal(TokenFormat::Signed, "main".into(), TokenDigests::of_signed("t"), &rules)
        .unwrap();

    assert_eq!(principal.client.as_deref(), Some("api-client"));
    assert_eq!(*principal.scopes, Scopes::parse("a b"));
}

/// Some issuers write `null` for what a token does not have.
#[test]
fn null_is_absent_in_claims_that_a_token_need_not_have() {
    for name in ["sid", "jti", "client_id", "azp", "scope"] {
        let principal = principal(json!({ name: null })).expect(name);
        assert!(
            principal.session.is_none() && principal.id.is_none() && principal.client.is_none()
        );
        assert_eq!(*principal.scopes, Scopes::default(), "{name}");
    }
    let second = principal(json!({ "client_id": null, "azp": "web" })).unwrap();
    assert_eq!(second.client.as_deref(), Some("web"));
    let named = ValidationRules { audience_claim: ["client_id".into()].into(), ..rules() };
    let mut claims = with(json!({ "client_id": null }));
    claims.remove("aud");
    assert_eq!(check_by(&named, &claims), Err(TokenError::Audience));
    for name in ["iss", "sub", "aud", "exp", "nbf", "iat", "cnf"] {
        let refused = principal(json!({ name: null })).err();
        assert_eq!(refused, Some(TokenError::Malformed), "{name}");
    }
}

#[test]
fn identifying_claims_of_the_wrong_type_are_refused() {
    for claims in [
        json!({ "sub": 7 }),
        json!({ "sub": null }),
        json!({ "sid": [] }),
        json!({ "jti": 1 }),
        json!({ "client_id": ["a"] }),
        json!({ "client_id": "" }),
        json!({ "scope": 7 }),
        json!({ "scope": ["a", 7] }),
        json!({ "cnf": "x" }),
    ] {
        assert_eq!(principal(claims.clone()).err(), Some(TokenError::Malformed), "{claims}");
    }
}

proptest! {
    #[test]
    fn a_token_is_valid_only_between_its_dates(exp in 0_u64..3_000_000_000, nbf in 0_u64..3_000_000_000) {
        let good = check(&json!({ "exp": exp, "nbf": nbf })).is_ok();
        prop_assert_eq!(good, exp + 30 > 1_700_000_000 && nbf <= 1_700_000_030);
    }
}

fn issuer() -> Settings {
    Settings::new("main", ISSUER)
}

fn rules() -> ValidationRules {
    ValidationRules::new(Audience::OneOf(["api".into()].into()))
}

fn with(extra: Value) -> Map<String, Value> {
    let mut claims = json!({ "iss": ISSUER, "sub": "alice", "aud": "api", "exp": 1_700_000_060 });
    for (name, value) in extra.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims.as_object().unwrap().clone()
}

fn check(extra: &Value) -> Result<(), TokenError> {
    check_by(&rules(), &with(extra.clone()))
}

/// The scopes by a `scope_claim`.
fn scopes_of(claims: Value, scope_claim: &[&str]) -> Result<Scopes, TokenError> {
    let scope_claim = scope_claim.iter().copied().map(Box::from).collect();
    scopes(&with(claims), &ValidationRules { scope_claim, ..rules() }, false)
        .map(|(_, scopes)| scopes)
}

fn check_without(name: &str) -> Result<(), TokenError> {
    let mut claims = with(json!({}));
    claims.remove(name).unwrap();
    check_by(&rules(), &claims)
}

fn check_by(rules: &ValidationRules, claims: &Map<String, Value>) -> Result<(), TokenError> {
    Claims::read(claims.clone())?.check_signed(&issuer(), rules, "jwt", NOW)
}

fn principal(extra: Value) -> Result<Principal, TokenError> {
    Claims::read(with(extra))?.into_principal(
        TokenFormat::Signed,
        "main".into(),
        TokenDigests::of_signed("t"),
        &rules(),
    )
}
