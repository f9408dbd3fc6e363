//! Claims of a token, read with exact types and checked against the issuer's rules.
//!
//! Shared by signed tokens and introspection responses. A claim of the wrong
//! JSON type is never taken for an absent one (CVE-2026-25537): it makes the
//! token malformed. So does `null`, but for the claims that tokens need not have
//! and no check relies on: `sid`, `jti`, the client and the scopes.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::claim_types::{confirmation, date, is_for_dpop, optional_text, text, texts};
use crate::base::clock::Timestamp;
use crate::base::scopes::Scopes;
use crate::issuer::Settings;
use crate::token::TokenError;
use crate::token::principal::{
    Confirmation, IdentityFields, Principal, TokenFormat, claim_at, names, written_claim_at,
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

    /// Removes the claim `name` if it is `null`: for one that this kind of token need not have, and of which nothing was
    /// read yet.
    pub(super) fn remove_null(&mut self, name: &str) {
        if self.all.get(name).is_some_and(Value::is_null) {
            self.all.remove(name);
        }
    }

    /// Checks whether a signed token of `issuer`, whose header has the type `typ`, may be accepted at `now`.
    ///
    /// # Errors
    ///
    /// The first violated rule: issuer, time, audience, required claims.
    pub(crate) fn check_signed(
        &self,
        issuer: &Settings,
        rules: &ValidationRules,
        typ: &str,
        now: Timestamp,
    ) -> Result<(), TokenError> {
        if !self.issuer.as_deref().is_some_and(|iss| issuer.is_named(iss)) {
            return Err(TokenError::Issuer);
        }
        let may_be_id_token = || typ != ACCESS_TOKEN_TYPE && self.may_be_id_token(rules);
        if rules.access_only && (self.is_for_another_use() || may_be_id_token()) {
            return Err(TokenError::Type);
        }
        if self.expires.is_none() {
            return Err(TokenError::Claim);
        }
        self.check_time(rules, now)?;
        if rules.max_token_age.is_some() && self.issued.is_none() {
            return Err(TokenError::Claim);
        }
        self.check_age(rules, now)?;
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
        if !self.is_access_token()? || self.is_for_another_use() {
            return Err(TokenError::Type);
        }
        self.check_time(rules, now)?;
        self.check_age(rules, now)?;
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
        // An empty identifier names none.
        let named = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(Arc::from);
        let shared = |name| Ok::<_, TokenError>(named(optional_text(&self.all, name)?));
        let confirmation = self.confirmation()?;
        let mut client = None;
        for path in &rules.client_claim {
            client = match written_claim_at(&self.all, path) {
                None => continue,
                Some(Value::String(name)) if !name.is_empty() => Some(Arc::from(&**name)),
                Some(_) => return Err(TokenError::Malformed),
            };
            break;
        }
        let is_answer = form == TokenFormat::Reference;
        let (scope_path, scopes) = scopes(&self.all, rules, is_answer)?;
        let subject: Option<Arc<str>> = named(text(&self.all, "sub")?);
        if is_answer && client.is_none() {
            // The name of RFC 7662 §2.2, whatever the server's signed tokens call it.
            client = shared("client_id")?;
        }
        Ok(Principal {
            form,
            namespace: rules.namespace(&issuer, self.issuer.as_deref()),
            issuer,
            session: shared("sid")?,
            id: shared("jti")?,
            audience: self.audience(rules)?.into_owned().into(),
            expires: self.ends(rules),
            issued: self.issued,
            confirmation,
            digest: names.whole,
            unsigned_digest: names.unsigned,
            signed: None,
            claims: believed(
                self.all,
                subject.as_deref(),
                client.as_deref(),
                (scope_path != Some("scope")).then_some(&scopes),
            ),
            subject,
            client,
            scopes: Arc::new(scopes),
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

    /// Checks `max_token_age`, if there is an `iat`.
    fn check_age(&self, rules: &ValidationRules, now: Timestamp) -> Result<(), TokenError> {
        let (Some(max), Some(since)) = (rules.max_token_age, self.issued) else { return Ok(()) };
        if since > now.plus(rules.leeway) {
            return Err(TokenError::NotYetValid);
        }
        if now.since(since) > max.saturating_add(rules.leeway) {
            return Err(TokenError::Expired);
        }
        Ok(())
    }

    /// Returns the end of the token: `exp`, or the end of its `max_token_age` if that comes first. Caches heed it as well.
    fn ends(&self, rules: &ValidationRules) -> Timestamp {
        let too_old = rules.max_token_age.zip(self.issued).map(|(max, issued)| issued.plus(max));
        self.expires.into_iter().chain(too_old).min().unwrap_or(Timestamp::MAX)
    }

    /// The audience: `aud`, or what takes its place by the issuer's `audience_claim` if that is absent.
    fn audience(&self, rules: &ValidationRules) -> Result<Cow<'_, [Box<str>]>, TokenError> {
        // Some servers always write `aud`: an empty list counts as absent.
        if let Some(named) = self.audience.as_deref().filter(|named| !named.is_empty()) {
            return Ok(Cow::Borrowed(named));
        }
        let mut paths = rules.audience_claim.iter();
        let substitute = paths.find_map(|path| written_claim_at(&self.all, path));
        Ok(Cow::Owned(substitute.map(texts).transpose()?.unwrap_or_default().into_vec()))
    }

    /// Whether the token says itself that it is an ID token, a refresh token or a logout token: in one of
    /// [`USE_CLAIMS`], or by the event of a logout token. Those are signed with the same keys, and for the client alone.
    fn is_for_another_use(&self) -> bool {
        let events = self.all.get("events").and_then(Value::as_object);
        events.is_some_and(|events| events.contains_key(LOGOUT_EVENT)) || self.says_use(&OTHER_USES)
    }

    /// Whether the token has marks of an ID token and does not say that it is for access, where the server's ID tokens
    /// may be meant for an accepted audience without being meant for the gateway: with `audience_claim`, where those
    /// are clients, and where the token is also meant for the client that it was issued to, and that is not accepted.
    fn may_be_id_token(&self, rules: &ValidationRules) -> bool {
        (!rules.audience_claim.is_empty() || self.is_for_another_client(rules))
            && ID_TOKEN_CLAIMS.iter().any(|name| self.all.contains_key(*name))
            && !self.says_use(&ACCESS_USES)
    }

    /// Whether `aud` names the client in `azp`, as that of every ID token does (OpenID Connect Core §2), and that is no
    /// accepted audience. Zitadel's ID tokens name the project beside it.
    fn is_for_another_client(&self, rules: &ValidationRules) -> bool {
        let client = self.all.get("azp").and_then(Value::as_str);
        rules.audience != Audience::Any
            && client.is_some_and(|client| {
                let mut named = self.audience.iter().flatten();
                named.any(|name| **name == *client) && !rules.audience.lists(client)
            })
    }

    /// Whether one of [`USE_CLAIMS`] is one of `uses`, in any case.
    fn says_use(&self, uses: &[&str]) -> bool {
        USE_CLAIMS.iter().any(|name| {
            let named = self.all.get(*name).and_then(Value::as_str);
            named.is_some_and(|named| {
                uses.iter().any(|other| named.trim().eq_ignore_ascii_case(other))
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
    let is_meant = match &rules.audience {
        Audience::Any => true,
        Audience::OneOf(_) if named.is_empty() => or_none,
        accepted @ Audience::OneOf(_) => named.iter().any(|name| accepted.lists(name)),
    };
    if is_meant { Ok(()) } else { Err(TokenError::Audience) }
}

/// The scopes of the first claim that is present: a space-separated string, an array of strings, or an object
/// whose members are named by them, unless it is `scope` itself, which is never one (RFC 8693 §4.2).
///
/// Servers that say `scp` in signed tokens say `scope` in introspection responses (RFC 7662 §2.2). In the place of
/// another claim, such as one with roles, `scope` never counts.
/// Returns the path of that claim, too.
fn scopes<'r>(
    claims: &Map<String, Value>,
    rules: &'r ValidationRules,
    is_answer: bool,
) -> Result<(Option<&'r str>, Scopes), TokenError> {
    let written = |path: &'r str| Some((path, written_claim_at(claims, path)?));
    let found = rules.scope_claim.iter().find_map(|path| {
        written(path).or_else(|| written("scope").filter(|_| is_answer && **path == *"scp"))
    });
    let Some((path, value)) = found else { return Ok((None, Scopes::default())) };
    let scopes = match value {
        Value::String(list) => Scopes::parse(list),
        Value::Array(list) => {
            let texts = list.iter().map(|scope| scope.as_str().ok_or(TokenError::Malformed));
            texts.collect::<Result<_, _>>()?
        }
        Value::Object(members) if path != "scope" => names(members).map(String::as_str).collect(),
        _ => return Err(TokenError::Malformed),
    };
    Ok((Some(path), scopes))
}

/// Returns the claims with `sub`, `client_id` and `scope` as the gateway understands them by the issuer's `client_claim`
/// and `scope_claim`: rules, limits and balancing by claim decide by what identity headers say. `scopes` is `None` if
/// they are those of `scope` as written.
fn believed(
    mut claims: Map<String, Value>,
    subject: Option<&str>,
    client: Option<&str>,
    scopes: Option<&Scopes>,
) -> Map<String, Value> {
    let mut state = |name: &str, text: Option<Cow<'_, str>>| {
        let written = claims.get(name);
        match text {
            Some(text) if written.and_then(Value::as_str) == Some(&*text) => {}
            Some(text) => _ = claims.insert(name.to_owned(), text.into_owned().into()),
            None if written.is_some() => _ = claims.remove(name),
            None => {}
        }
    };
    state("sub", subject.map(Cow::Borrowed));
    state("client_id", client.map(Cow::Borrowed));
    if let Some(scopes) = scopes {
        state("scope", (!scopes.is_empty()).then(|| scopes.to_string().into()));
    }
    claims
}

/// Whether a token with this claim says that it is an ID token, a refresh token or a logout token.
pub(crate) fn is_for_another_use(name: &str, value: &str) -> bool {
    USE_CLAIMS.contains(&name)
        && OTHER_USES.iter().any(|other| value.trim().eq_ignore_ascii_case(other))
}

/// The event of a logout token (Back-Channel Logout §2.4).
pub(super) const LOGOUT_EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";
/// Claims that say what a token is for: Cognito's, Keycloak's, `ForgeRock`'s, those of the JWT libraries of Django and
/// Flask, and Curity's.
const USE_CLAIMS: [&str; 6] = ["token_use", "typ", "tokenName", "token_type", "type", "purpose"];
/// The type of access tokens in a header (RFC 9068 §2.1).
const ACCESS_TOKEN_TYPE: &str = "at+jwt";
/// Values of [`USE_CLAIMS`] for access.
const ACCESS_USES: [&str; 5] = ["bearer", "dpop", "access", "access_token", "at+jwt"];
/// Claims of ID tokens that access tokens rarely have (OpenID Connect Core §3.1.3.6, §3.3.2.11).
const ID_TOKEN_CLAIMS: [&str; 3] = ["nonce", "at_hash", "c_hash"];
/// Values of [`USE_CLAIMS`] that are not for access.
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
mod tests;
