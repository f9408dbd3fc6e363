//! Entry points of the fuzz targets for tokens, with the properties that must hold for any input.

use std::sync::Arc;

use super::Audience;
use super::jwe::{ContentEncryption, DecryptionKey, DecryptionKeys, KeyManagement};
use super::jwt::claims::Claims;
use super::principal::TokenFormat;
use super::token_digests::TokenDigests;
use super::validation::ValidationRules;
use crate::base::clock::Timestamp;
use crate::base::strict_json;
use crate::issuer::Settings;

/// Checks an introspection response: it is accepted only if it satisfies the rules.
pub fn introspection_answer(body: &[u8]) {
    let Ok(mut members) = strict_json::parse_object(body) else { return };
    if members.remove("active") != Some(true.into()) {
        return;
    }
    let now = Timestamp::from_secs(1_700_000_000);
    let rules = ValidationRules::new(Audience::OneOf(["api".into()].into()));
    let issuer = Settings::new("main", "https://auth.example.com");
    let claimed = members.clone();
    let Ok(claims) = Claims::read(members) else { return };
    if claims.check_answer(&issuer, &rules, false, now).is_err() {
        return;
    }
    let names = TokenDigests::of_reference("t");
    let Ok(principal) =
        claims.into_principal(TokenFormat::Reference, Arc::from("main"), names, &rules)
    else {
        return;
    };
    assert!(principal.audience.iter().any(|audience| **audience == *"api"));
    assert!(claimed.get("iss").is_none_or(|issuer| issuer == "https://auth.example.com"));
    assert!(
        claimed.get("exp").is_none_or(|end| end.as_f64().is_some_and(|end| end > 1_699_999_969.0))
    );
    assert!(claimed.get("sub").is_none_or(serde_json::Value::is_string));
}

/// Opens an encrypted token with a ring of known secrets: what comes out has the form of a signed token.
pub fn encrypted(token: &str) {
    let key = |kid: &str, k: &str| {
        let members = serde_json::json!({ "kty": "oct", "kid": kid, "k": k });
        members.as_object().and_then(|members| DecryptionKey::from_jwk(members).ok())
    };
    let keys = [
        key("a", "AAECAwQFBgcICQoLDA0ODw"),
        key("b", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"),
    ];
    let ring = DecryptionKeys {
        keys: keys.into_iter().flatten().collect(),
        algorithms: KeyManagement::ALL.map(|(_, algorithm)| algorithm).into(),
        encryptions: ContentEncryption::ALL.map(|(_, encryption)| encryption).into(),
    };
    if let Ok(inner) = ring.open(token) {
        assert_eq!(inner.expose().matches('.').count(), 2);
    }
}

/// Reads records of ended tokens and sessions; each that can be read encodes to the same record.
pub fn ended(records: &[crate::disk::Record]) {
    for record in records {
        if let Some(ended) = super::revocation::journal::EndedRecord::read(record) {
            assert_eq!(super::revocation::journal::EndedRecord::read(&ended.record()), Some(ended));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_introspection_response_is_accepted_only_by_the_rules(
            claims in prop::collection::vec(
                (
                    prop::sample::select(vec!["aud", "iss", "exp", "sub", "nbf", "scope", "cnf", "aud "]),
                    prop::sample::select(vec![
                        r#""api""#, r#"["api","b"]"#, "[]", r#"[1,"api"]"#, "1e400", "1.8e9", "1", "null",
                        r#""https://auth.example.com""#, r#""https://auth.example.com/""#, "true", r#"{"jkt":1}"#,
                    ]),
                ),
                0..6,
            ),
        ) {
            let members: Vec<String> =
                claims.iter().map(|(name, value)| format!(r#","{name}":{value}"#)).collect();
            let members = members.concat();
            super::introspection_answer(format!(r#"{{"active":true{members}}}"#).as_bytes());
        }
    }
}
