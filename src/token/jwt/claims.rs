//! Claims of a token, read with exact types and checked against the issuer's rules.
//!
//! Shared by signed tokens and introspection responses. A claim of the wrong
//! JSON type is never taken for an absent one (CVE-2026-25537): it makes the
//! token malformed.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::claim_types::{confirmation, date, is_for_dpop, text, texts};
use crate::base::clock::Timestamp;
use crate::base::scopes::Scopes;
use crate::issuer::Settings;
use crate::token::TokenError;
use crate::token::principal::{
    Confirmation, IdentityFields, Principal, TokenFormat, claim_at, names,
};
use crate::token::token_digests::TokenDigests;
use crate::token::validation::{Audience, ValidationRules};

/// The claims that decide about a token, typed (RFC 7519 §4.1, RFC 7662 §2.2).
pub(crate) struct Claims {
    pub(crate) issuer: Option<Box<str>>,
    audience: Option<Box<[Box<str>]>>,
    pub(crate) expires: Option<Timestamp>,
    not_before: Option<Timestamp>,
    issued: Option<Timestamp>,
    all: Map<String, Value>,
}

impl Claims {
    /// Reads the known claims.
    ///
    /// # Errors
    ///
    /// [`TokenError::Malformed`] if one has another type.
    pub(crate) fn read(all: Map<String, Value>) -> Result<Self, TokenError> {
        Ok(Self {
            issuer: text(&all, "iss")?.map(Box::from),
            audience: all.get("aud").map(texts).transpose()?,
            expires: date(&all, "exp")?,
            not_before: date(&all, "nbf")?,
            issued: date(&all, "iat")?,
            all,
        })
    }

    /// Checks whether a signed token of `issuer` may be accepted at `now`.
    ///
    /// # Errors
    ///
    /// The first violated rule: issuer, time, audience, required claims.
    pub(crate) fn check_signed(
        &self,
        issuer: &Settings,
        rules: &ValidationRules,
        now: Timestamp,
    ) -> Result<(), TokenError> {
        if !self.issuer.as_deref().is_some_and(|iss| issuer.is_named(iss)) {
            return Err(TokenError::Issuer);
        }
        if rules.access_only && self.is_for_another_use() {
            return Err(TokenError::Type);
        }
        if self.expires.is_none() {
            return Err(TokenError::Claim);
        }
        self.check_time(rules, now)?;
        if let Some(most) = rules.max_token_age {
            let since = self.issued.ok_or(TokenError::Claim)?;
            if since > now.plus(rules.leeway) {
                return Err(TokenError::NotYetValid);
            }
            if now.since(since) > most.saturating_add(rules.leeway) {
                return Err(TokenError::Expired);
            }
        }
        let audience = self.audience(rules)?;
        check_audience(&audience, rules, false)?;
        let lacking = |name: &str| match claim_at(&self.all, name) {
            // Another claim may take the place of `aud`.
            None | Some(Value::Array(_)) if name == "aud" => audience.is_empty(),
            None | Some(Value::Null) => true,
            Some(Value::String(text)) => text.is_empty(),
            Some(_) => false,
        };
        if rules.required_claims.iter().any(|name| lacking(name)) {
            return Err(TokenError::Claim);
        }
        Ok(())
    }

    /// Checks whether a token may be accepted at `now` by its introspection response from `issuer`.
    ///
    /// # Errors
    ///
    /// The first violated rule.
    pub(crate) fn check_answer(
        &self,
        issuer: &Settings,
        rules: &ValidationRules,
        without_audience: bool,
        now: Timestamp,
    ) -> Result<(), TokenError> {
        if self.issuer.as_deref().is_some_and(|named| !issuer.is_named(named)) {
            return Err(TokenError::Issuer);
        }
        if !self.is_access_token()? {
            return Err(TokenError::Type);
        }
        self.check_time(rules, now)?;
        check_audience(&self.audience(rules)?, rules, without_audience)
    }

    /// Returns the principal of these claims.
    ///
    /// # Errors
    ///
    /// [`TokenError::Malformed`] if an identifying claim has the wrong type.
    pub(crate) fn into_principal(
        self,
        form: TokenFormat,
        issuer: Arc<str>,
        names: TokenDigests,
        rules: &ValidationRules,
    ) -> Result<Principal, TokenError> {
        let shared = |name| Ok::<_, TokenError>(text(&self.all, name)?.map(Arc::from));
        let confirmation = self.confirmation()?;
        let mut client = None;
        for path in &rules.client_claim {
            client = match claim_at(&self.all, path) {
                None => continue,
                Some(Value::String(name)) if !name.is_empty() => Some(Arc::from(&**name)),
                Some(_) => return Err(TokenError::Malformed),
            };
            break;
        }
        Ok(Principal {
            form,
            namespace: rules.namespace(&issuer, self.issuer.as_deref()),
            issuer,
            subject: shared("sub")?,
            client,
            session: shared("sid")?,
            id: shared("jti")?,
            scopes: Arc::new(scopes(&self.all, rules)?),
            audience: self.audience(rules)?.into_owned().into(),
            expires: self.expires.unwrap_or(Timestamp::MAX),
            issued: self.issued,
            confirmation,
            digest: names.whole,
            unsigned_digest: names.unsigned,
            signed: None,
            claims: self.all,
            identity: IdentityFields::default(),
        })
    }

    /// The confirmation method.
    ///
    /// A token declared to be for `DPoP` (`token_type` of RFC 9449 §5 and §6.2, or Keycloak's `typ`) without a key is
    /// bound to an unknown one: it must not pass for a bearer token.
    fn confirmation(&self) -> Result<Option<Confirmation>, TokenError> {
        let bound_to = confirmation(self.all.get("cnf"))?;
        Ok(match bound_to {
            Some(Confirmation::Key(key)) => Some(Confirmation::Key(key)),
            _ if is_for_dpop(&self.all) => Some(Confirmation::Unknown),
            other => other,
        })
    }

    fn check_time(&self, rules: &ValidationRules, now: Timestamp) -> Result<(), TokenError> {
        if self.expires.is_some_and(|expires| now >= expires.plus(rules.leeway)) {
            return Err(TokenError::Expired);
        }
        if self.not_before.is_some_and(|start| now.plus(rules.leeway) < start) {
            return Err(TokenError::NotYetValid);
        }
        Ok(())
    }

    /// The audience: `aud`, or what takes its place by the issuer's `audience_claim` if that is absent.
    fn audience(&self, rules: &ValidationRules) -> Result<Cow<'_, [Box<str>]>, TokenError> {
        // Some servers always write `aud`: an empty list counts as absent.
        if let Some(named) = self.audience.as_deref().filter(|named| !named.is_empty()) {
            return Ok(Cow::Borrowed(named));
        }
        let substitute = rules.audience_claim.iter().find_map(|path| claim_at(&self.all, path));
        Ok(Cow::Owned(substitute.map(texts).transpose()?.unwrap_or_default().into_vec()))
    }

    /// Whether the token says itself that it is an ID token, a refresh token or a logout token: Cognito's `token_use`,
    /// Keycloak's `typ`, the event of a logout token. Those are signed with the same keys, and for the client alone.
    fn is_for_another_use(&self) -> bool {
        let events = self.all.get("events").and_then(Value::as_object);
        if events.is_some_and(|events| events.contains_key(LOGOUT_EVENT)) {
            return true;
        }
        ["token_use", "typ"].iter().any(|name| {
            let named = self.all.get(*name).and_then(Value::as_str);
            named.is_some_and(|named| {
                OTHER_USES.iter().any(|other| named.trim().eq_ignore_ascii_case(other))
            })
        })
    }

    /// Whether an introspection response is about an access token: a server that
    /// introspects refresh tokens as well says so in one of these members.
    fn is_access_token(&self) -> Result<bool, TokenError> {
        let is = |name, accepted: &[&str]| {
            Ok::<_, TokenError>(text(&self.all, name)?.is_none_or(|value| {
                accepted.iter().any(|accepted| accepted.eq_ignore_ascii_case(value))
            }))
        };
        Ok(is("token_type", &["Bearer", "DPoP", "access_token"])?
            && is("token_use", &["access_token", "access"])?
            && is("typ", &["Bearer", "DPoP", "at+jwt", "application/at+jwt", "JWT"])?)
    }
}

fn check_audience(
    named: &[Box<str>],
    rules: &ValidationRules,
    or_none: bool,
) -> Result<(), TokenError> {
    let Audience::OneOf(accepted) = &rules.audience else { return Ok(()) };
    let meant = if named.is_empty() {
        or_none
    } else {
        named.iter().any(|name| accepted.iter().any(|ours| **ours == **name))
    };
    if meant { Ok(()) } else { Err(TokenError::Audience) }
}

/// The scopes of the first claim that is present: a space-separated string, an array of strings, or an object
/// whose members are named by them, unless it is `scope` itself, which is never one (RFC 8693 §4.2).
fn scopes(claims: &Map<String, Value>, rules: &ValidationRules) -> Result<Scopes, TokenError> {
    let found = rules.scope_claim.iter().find_map(|path| Some((&**path, claim_at(claims, path)?)));
    match found {
        None => Ok(Scopes::default()),
        Some((_, Value::String(list))) => Ok(Scopes::parse(list)),
        Some((_, Value::Array(list))) => {
            list.iter().map(|scope| scope.as_str().ok_or(TokenError::Malformed)).collect()
        }
        Some((path, Value::Object(members))) if path != "scope" => {
            Ok(names(members).map(String::as_str).collect())
        }
        Some(_) => Err(TokenError::Malformed),
    }
}

/// The event of a logout token (Back-Channel Logout §2.4).
pub(super) const LOGOUT_EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";
/// What a token says in `token_use` or `typ` that is not for access.
const OTHER_USES: [&str; 9] = [
    "id",
    "id_token",
    "id_token+jwt",
    "refresh",
    "refresh_token",
    "offline",
    "logout",
    "logout+jwt",
    "dpop+jwt",
];

#[cfg(test)]
mod tests {
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
        let rules =
            ValidationRules { required_claims: ["tenant.id"].map(Box::from).into(), ..rules() };
        assert_eq!(check_by(&rules, &with(json!({}))), Err(TokenError::Claim));
        assert_eq!(check_by(&rules, &with(json!({ "tenant": { "id": 7 } }))), Ok(()));
    }

    #[test]
    fn an_introspection_response_is_checked_by_its_members() {
        let answer = |claims: Value| {
            let claims = Claims::read(claims.as_object().unwrap().clone())?;
            claims.check_answer(&issuer(), &rules(), false, NOW)
        };

        assert_eq!(answer(json!({ "aud": "api" })), Ok(()));
        assert_eq!(answer(json!({})), Err(TokenError::Audience));
        assert_eq!(answer(json!({ "aud": "api", "iss": "other" })), Err(TokenError::Issuer));
        assert_eq!(answer(json!({ "aud": "api", "exp": 1 })), Err(TokenError::Expired));
        assert_eq!(answer(json!({ "aud": "api", "exp": "1" })), Err(TokenError::Malformed));
        assert_eq!(answer(json!({ "aud": "api", "nbf": 1.8e9 })), Err(TokenError::NotYetValid));
    }

    #[test]
    fn a_token_declared_for_dpop_is_bound_to_its_key_or_an_unknown_one() {
        let to = |claims: Value| {
            let claims = Claims::read(claims.as_object().unwrap().clone()).unwrap();
            claims.confirmation()
        };
        let digest = crate::issuer::jwk::to_base64url(&[7; 32]);

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
        for (name, value) in
            [("token_use", "id"), ("token_use", "refresh"), ("typ", "ID"), ("typ", "Refresh")]
        {
            assert_eq!(check(&json!({ name: value })), Err(TokenError::Type), "{name} {value}");
            let client = ValidationRules { access_only: false, ..rules() };
            assert_eq!(check_by(&client, &with(json!({ name: value }))), Ok(()));
        }
        for (name, value) in [("token_use", "access"), ("typ", "Bearer"), ("typ", "JWT")] {
            assert_eq!(check(&json!({ name: value })), Ok(()), "{name} {value}");
        }
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
        assert_eq!(
            scopes_of(json!({ "scope": { "a": 1 } }), &["scope"]),
            Err(TokenError::Malformed)
        );
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
            .into_principal(
                TokenFormat::Signed,
                "main".into(),
                TokenDigests::of_signed("t"),
                &rules,
            )
            .unwrap();

        assert_eq!(principal.client.as_deref(), Some("api-client"));
        assert_eq!(*principal.scopes, Scopes::parse("a b"));
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
            json!({ "scope": null }),
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
        let mut claims =
            json!({ "iss": ISSUER, "sub": "alice", "aud": "api", "exp": 1_700_000_060 });
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
        scopes(&with(claims), &ValidationRules { scope_claim, ..rules() })
    }

    fn check_without(name: &str) -> Result<(), TokenError> {
        let mut claims = with(json!({}));
        claims.remove(name).unwrap();
        check_by(&rules(), &claims)
    }

    fn check_by(rules: &ValidationRules, claims: &Map<String, Value>) -> Result<(), TokenError> {
        Claims::read(claims.clone())?.check_signed(&issuer(), rules, NOW)
    }

    fn principal(extra: Value) -> Result<Principal, TokenError> {
        Claims::read(with(extra))?.into_principal(
            TokenFormat::Signed,
            "main".into(),
            TokenDigests::of_signed("t"),
            &rules(),
        )
    }
}
