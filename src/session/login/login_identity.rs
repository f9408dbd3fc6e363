//! The user of a login, besides the access token: the verified ID token, the claims of the userinfo endpoint, and what
//! a user who has edited the authorization request cannot have obtained.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::login_requirements::CLOCK_SKEW;
use super::login_transaction::LoginTransaction;
use crate::session::Sessions;
use crate::session::pages::Problem;
use crate::session::store::state::{ABOUT_THE_LOGIN, SessionState};
use crate::token::TokenError;
use crate::token::authentication_level::AuthenticationLevel;
use crate::token::jwe::is_encrypted;
use crate::token::received_tokens::payload;

/// The user as a login has verified them, besides the access token.
#[derive(Debug, Default)]
pub(crate) struct Person {
    /// Whether the ID token was verified, or userinfo has told who the user is.
    pub(crate) is_verified: bool,
    /// The claims of the userinfo endpoint, a JSON object.
    pub(crate) userinfo: Option<String>,
    /// The granted scopes if the token response names none; `None` for those that the gateway has requested.
    pub(crate) default_scope: Option<&'static str>,
}

impl Sessions {
    /// Returns who has logged in by `login`, whose code has begun the session `state`. Takes an ID token that the gateway has
    /// not asked for out of it.
    pub(super) async fn identify(
        &self,
        state: &mut SessionState,
        login: &LoginTransaction,
    ) -> Result<Person, Problem> {
        let has_id_token = self.wants_id_token();
        if has_id_token {
            self.check_id_token(state, Some(&login.nonce())).await?;
            self.check_age(state, login)?;
        } else {
            state.id_token = None;
        }
        let userinfo = self.userinfo(state).await?;
        // Without `scope`, the response grants the scopes that the server was asked for (RFC 6749 §5.1): that was the
        // user's browser, unless the request is protected.
        let default_scope =
            (!login.is_protected).then_some(if has_id_token { "openid" } else { "" });
        Ok(Person { is_verified: has_id_token || userinfo.is_some(), userinfo, default_scope })
    }

    /// Verifies the ID token of a login ("OpenID Connect Core" §3.1.3.7); one by a code must have its `nonce`.
    pub(super) async fn check_id_token(
        &self,
        state: &SessionState,
        nonce: Option<&str>,
    ) -> Result<(), Problem> {
        let (issuer, now) = (&self.issuer, self.clock.now());
        let verified = match (&state.id_token, nonce) {
            (token, Some(nonce)) => {
                self.relying_party.check_login(issuer, token.as_ref(), nonce, now).await
            }
            (Some(token), None) => self.relying_party.verify(issuer, token, now).await.map(|_| ()),
            (None, None) => Ok(()),
        };
        let Err(error) = verified else { return Ok(()) };
        let session = &*self.settings.name;
        if state.id_token.as_ref().is_some_and(|token| is_encrypted(token.expose())) {
            tracing::error!(
                session,
                "Rejected the ID token of a login, which is encrypted; the login failed. Have the issuer send signed ones."
            );
        } else {
            tracing::error!(session, %error, "Rejected the ID token of a login; the login failed.");
        }
        Err(match error {
            // The issuer has just issued it: its key is newer than the cached JWK set, which cannot be fetched again yet.
            TokenError::Unavailable { .. } | TokenError::UnknownKey => Problem::Unavailable,
            _ => Problem::Unusable,
        })
    }

    /// Checks that the user has logged in as recently as the configured `max_age` demands ("OpenID Connect Core"
    /// §3.1.3.7, item 13). That of a step-up is checked when its session has begun.
    fn check_age(&self, state: &SessionState, login: &LoginTransaction) -> Result<(), Problem> {
        let Some(max_age) = self.settings.max_age().filter(|_| login.intent.step_up.is_none())
        else {
            return Ok(());
        };
        let level = AuthenticationLevel {
            acr: Box::default(),
            max_age: Some(max_age.saturating_add(CLOCK_SKEW)),
        };
        let claims: Map<String, Value> =
            state.id_token.as_ref().and_then(payload).unwrap_or_default();
        if level.is_met_by_claims(&claims, self.clock.now()) {
            return Ok(());
        }
        let session = &*self.settings.name;
        tracing::error!(
            session,
            "Rejected the ID token of a login, which does not tell of a login within `max_age`; the login failed."
        );
        Err(Problem::Unusable)
    }

    /// Reads claims about the user, if they are wanted. They must be those of the ID token's subject ("OpenID Connect Core"
    /// §5.3.2); servers without ID tokens call the subject `id`.
    async fn userinfo(&self, state: &SessionState) -> Result<Option<String>, Problem> {
        if !self.settings.userinfo {
            return Ok(None);
        }
        let claims = self.issuer.userinfo(&state.access_token).await;
        let mut claims = claims.map_err(|_| Problem::Unavailable)?;
        // Userinfo tells of a person, not of this login: only a token can prove how and when that was.
        for claim in ABOUT_THE_LOGIN {
            claims.remove(claim);
        }
        let own = state.id_token.as_ref().and_then(payload).and_then(|mut own| own.remove("sub"));
        let subject = match (claims.get("sub"), claims.get("id")) {
            (Some(Value::String(sub)), _) => Some(sub.clone()),
            (None, Some(Value::String(id))) if own.is_none() => Some(id.clone()),
            (None, Some(Value::Number(id))) if own.is_none() => Some(id.to_string()),
            _ => None,
        };
        let matches = own.is_none_or(|own| own.as_str() == subject.as_deref());
        let session = &*self.settings.name;
        let Some(subject) = subject.filter(|subject| matches && !subject.is_empty()) else {
            tracing::error!(
                session,
                "Rejected the userinfo of a login: it is about another subject than the ID token, or about none."
            );
            return Err(Problem::Unusable);
        };
        claims.insert("sub".to_owned(), subject.into());
        Ok(Some(Value::Object(claims).to_string()))
    }

    /// Revokes the tokens of a login that has failed.
    pub(super) fn discard(&self, state: SessionState) {
        let revoker = Arc::clone(&self.revoker);
        self.control.spawn(async move { revoker.revoke_at_issuer(&state).await });
    }

    pub(super) fn wants_id_token(&self) -> bool {
        self.settings.scopes.contains("openid")
    }
}
