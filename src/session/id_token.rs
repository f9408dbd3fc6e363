//! ID tokens: who has just logged in, and that it was in answer to us
//! ("OpenID Connect Core" §3.1.3.7).

use std::sync::Arc;

use serde_json::Value;
use subtle::ConstantTimeEq;

use crate::base::clock::Timestamp;
use crate::base::secret::Secret;
use crate::issuer::{Client, Issuer};
use crate::token::jwt::Unverified;
use crate::token::{Audience, Rules, TokenError, Verifier};

/// What ID tokens for `client` must satisfy; `like` is how the issuer's access tokens are judged.
pub(super) fn rules(client: &Client, like: Option<&Verifier>) -> Rules {
    let mut rules = Rules::new(Audience::OneOf([Arc::clone(&client.id)].into()));
    if let Some(judge) = like.and_then(|verifier| verifier.judges().first()) {
        rules.algorithms.clone_from(&judge.rules().algorithms);
        rules.leeway = judge.rules().leeway;
    }
    rules.token_types = ["jwt".into()].into();
    rules.required_claims = ["iss", "sub", "aud", "exp", "iat"].map(Box::from).into();
    rules
}

/// Checks the ID token that answers the login with `nonce`.
///
/// # Errors
///
/// The rule that it breaks; [`TokenError::Claim`] if there is none, or if it answers another login.
pub(super) async fn check(
    issuer: &Issuer,
    rules: &Rules,
    token: Option<&Secret<String>>,
    nonce: &str,
    now: Timestamp,
) -> Result<(), TokenError> {
    let token = token.ok_or(TokenError::Claim)?;
    let (principal, _) = Unverified::read(token.expose())?.verify(issuer, rules, now).await?;
    let text = |claim| principal.claims.get(claim).and_then(Value::as_str);
    let answers =
        text("nonce").is_some_and(|found| found.as_bytes().ct_eq(nonce.as_bytes()).into());
    if !answers {
        return Err(TokenError::Claim);
    }
    // Meant for several: whom it was issued to is then said, and must be us.
    match text("azp") {
        Some(party) if principal.is_meant_for(party) && is_ours(rules, party) => Ok(()),
        None if principal.audience.len() == 1 => Ok(()),
        _ => Err(TokenError::Audience),
    }
}

fn is_ours(rules: &Rules, party: &str) -> bool {
    matches!(&rules.audience, Audience::OneOf(ours) if ours.iter().any(|our| **our == *party))
}
