//! The identity of a login besides its access token: the verified ID token, the claims of the userinfo endpoint, and
//! the scopes that count if the token response names none. Also decides whether the access token can identify the user.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::login_requirements::CLOCK_SKEW;
use super::login_transaction::LoginTransaction;
use crate::base::secret::Secret;
use crate::issuer::UserinfoResponse;
use crate::session::Sessions;
use crate::session::pages::Problem;
use crate::session::settings::Identity;
use crate::session::store::state::{ABOUT_THE_LOGIN, SessionState};
use crate::token::authentication_level::AuthenticationLevel;
use crate::token::jwe::is_encrypted;
use crate::token::jwt::id_token::RelyingParty;
use crate::token::received_tokens::payload;
use crate::token::{Audience, IssuerVerifier, TokenError};

/// The user as a login has verified them, besides the access token.
#[derive(Debug, Default)]
pub(crate) struct Person {
    /// Whether the ID token was verified, or userinfo has identified the user.
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
        state.id_token = state.id_token.take().map(|token| self.relying_party.opened(token));
        if has_id_token {
            self.check_id_token(state, Some(&login.nonce())).await?;
            self.check_age(state)?;
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
        let token = state.id_token.as_ref();
        if token.is_some_and(|token| is_encrypted(token.expose())) {
            tracing::error!(
                session,
                "Rejected the ID token of a login, which is encrypted for none of the issuer's `decryption` keys; the login failed."
            );
            return Err(Problem::Unusable);
        }
        let missing_claim = match (error, token) {
            (TokenError::Claim, None) => Some("id_token".to_owned()),
            // A claim that is `null` has another type.
            (TokenError::Claim | TokenError::Malformed, Some(token)) => {
                RelyingParty::lacking(token)
            }
            _ => None,
        };
        tracing::error!(session, %error, missing_claim, "Rejected the ID token of a login; the login failed.");
        Err(match error {
            // The issuer has just issued it: its key is newer than the cached JWK set, which cannot be fetched again yet.
            TokenError::Unavailable { .. } | TokenError::UnknownKey => Problem::Unavailable,
            _ if missing_claim.is_some() => Problem::LacksClaim,
            _ => Problem::Unusable,
        })
    }

    /// Checks that the user has logged in as recently as the configured `max_age` demands ("OpenID Connect Core"
    /// §3.1.3.7, item 13), whatever a step-up demands besides: that is checked when its session has begun.
    fn check_age(&self, state: &SessionState) -> Result<(), Problem> {
        let Some(max_age) = self.settings.max_age() else { return Ok(()) };
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
        if !claims.contains_key("auth_time") {
            tracing::error!(
                session,
                missing_claim = "auth_time",
                "Rejected the ID token of a login, which does not say when its user has logged in, as `max_age` demands; the login failed. Have the issuer send `auth_time`, or remove `max_age`."
            );
            return Err(Problem::LacksAuthTime);
        }
        tracing::error!(
            session,
            "Rejected the ID token of a login, whose `auth_time` is not within `max_age`; the login failed."
        );
        Err(Problem::Unusable)
    }

    /// Reads claims about the user, if they are wanted. They must be those of the ID token's subject ("OpenID Connect Core"
    /// §5.3.2); servers without ID tokens call the subject `id`.
    async fn userinfo(&self, state: &SessionState) -> Result<Option<String>, Problem> {
        if !self.settings.userinfo {
            return Ok(None);
        }
        let response = self.issuer.userinfo(&state.access_token).await;
        let mut claims = match response.map_err(|_| Problem::Unavailable)? {
            UserinfoResponse::Claims(claims) => claims,
            UserinfoResponse::Signed(response) => self.signed_userinfo(response).await?,
        };
        // Userinfo describes a person, not this login: only a token can prove how and when that was.
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

    /// Returns the claims of a signed userinfo response ("OpenID Connect Core" §5.3.2).
    async fn signed_userinfo(
        &self,
        response: Secret<String>,
    ) -> Result<Map<String, Value>, Problem> {
        let now = self.clock.now();
        let claims = self.relying_party.check_userinfo(&self.issuer, response, now).await;
        claims.map_err(|error| {
            let session = &*self.settings.name;
            tracing::error!(session, %error, "Rejected the signed userinfo response of a login; the login failed.");
            match error {
                TokenError::Unavailable { .. } | TokenError::UnknownKey => Problem::Unavailable,
                _ => Problem::Unusable,
            }
        })
    }

    /// Whether the gateway cannot verify this access token by its nature: it is no JWT of the session's issuer for one of
    /// its audiences, and cannot be introspected ("OpenID Connect Core" §3.1.3.7 needs only the ID token).
    pub(super) fn is_opaque(&self, token: &Secret<String>) -> bool {
        match self.settings.identity_source() {
            Identity::IdToken => return true,
            Identity::AccessToken => return false,
            Identity::Auto => {}
        }
        let has_endpoint = self.issuer.metadata().endpoints.introspection.is_some();
        let Some(claims) = self.claims_of_issuer(token) else {
            return !(has_endpoint && self.issuer.may_introspect());
        };
        let named = named_audiences(&claims);
        self.accepted_audiences().all(|accepted| {
            *accepted != Audience::Any
                && named
                    .as_ref()
                    .is_some_and(|named| !named.iter().any(|name| accepted.lists(name)))
        })
    }

    /// Whether an access token that the gateway refuses because of `error` is meant for another service: by the error
    /// itself, or by one that only says that the gateway cannot read it, where nothing says that it is to.
    pub(super) fn is_for_another_service(&self, token: &Secret<String>, error: TokenError) -> bool {
        match error {
            TokenError::Audience | TokenError::Issuer | TokenError::Inactive => true,
            // The server lets this client introspect nothing, also later: the ID token is all there is.
            TokenError::Unavailable { .. } => {
                self.issuer.refuses_introspection() && self.claims_of_issuer(token).is_none()
            }
            TokenError::Algorithm
            | TokenError::UnknownKey
            | TokenError::Signature
            | TokenError::Claim
            | TokenError::Type
            | TokenError::Malformed => !self.is_addressed(token),
            _ => false,
        }
    }

    /// Whether the `aud` of an access token names an accepted audience.
    fn is_addressed(&self, token: &Secret<String>) -> bool {
        let claims = self.claims_of_issuer(token).unwrap_or_default();
        let named = named_audiences(&claims).unwrap_or_default();
        self.accepted_audiences().any(|accepted| named.iter().any(|name| accepted.lists(name)))
    }

    /// Returns the audiences that the verifiers of the access token accept.
    fn accepted_audiences(&self) -> impl Iterator<Item = &Audience> {
        self.issuer_verifiers().iter().map(|verifier| &verifier.rules().audience)
    }

    fn issuer_verifiers(&self) -> &[Arc<IssuerVerifier>] {
        self.verifier.as_ref().map(|verifier| verifier.issuer_verifiers()).unwrap_or_default()
    }

    /// Whether the gateway cannot verify this access token by any means: it is no JWT of the session's issuer, which the
    /// gateway cannot introspect tokens at.
    pub(super) fn is_unverifiable(&self, token: &Secret<String>) -> bool {
        let takes_both = self.verifier.as_ref().is_some_and(|verifier| verifier.takes_both());
        takes_both && !self.issuer.may_introspect() && self.claims_of_issuer(token).is_none()
    }

    /// Returns the claims of an access token, unverified, bare or encrypted for the gateway; `None` if it is no JWT of the
    /// session's issuer.
    fn claims_of_issuer(&self, token: &Secret<String>) -> Option<Map<String, Value>> {
        let mut verifiers = self.issuer_verifiers().iter();
        let inner = verifiers.find_map(|verifier| verifier.open(token.expose()));
        let claims = payload(inner.as_ref().unwrap_or(token))?;
        let iss = claims.get("iss").and_then(Value::as_str);
        iss.is_some_and(|iss| self.issuer.settings().is_named(iss)).then_some(claims)
    }

    pub(super) fn wants_id_token(&self) -> bool {
        self.settings.scopes.contains("openid")
    }
}

/// Returns the audiences that `claims` name; `None` if there is no `aud`, or an empty one.
fn named_audiences(claims: &Map<String, Value>) -> Option<Vec<&str>> {
    match claims.get("aud")? {
        Value::String(name) => Some(vec![&**name]),
        Value::Array(names) if !names.is_empty() => {
            Some(names.iter().filter_map(Value::as_str).collect())
        }
        _ => None,
    }
}
