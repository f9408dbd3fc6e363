//! The state of a session: the result of one login, until the session ends.
//!
//! The tokens, their expiry, and the times of login and last use. Stored on the
//! server as it is, or encoded as bytes to be sealed into a cookie. Every login
//! begins a new session with a new id (no fixation); a refresh keeps the id.

use core::fmt;
use core::time::Duration;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use crate::base::clock::Timestamp;
use crate::base::random::random;
use crate::base::secret::Secret;
use crate::issuer::Tokens;
use crate::token::lifetime::{ends_at, is_due, refresh_ends_at};
use crate::token::received_tokens::payload;

/// The state of one session.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct SessionState {
    pub(crate) id: Id,
    /// The time of the login.
    pub(crate) since: Timestamp,
    /// The recorded time of last use.
    pub(crate) seen: Timestamp,
    /// The time at which the access token was requested.
    pub(crate) received: Timestamp,
    /// The expiry of the access token by `expires_in`; its own `exp` may be sooner.
    pub(crate) ends: Timestamp,
    /// The expiry of the refresh token, if the issuer reported one.
    pub(crate) refresh_ends: Timestamp,
    /// The instance that received the tokens, among those that share a Redis; zero if unknown.
    pub(crate) home: u64,
    pub(crate) access_token: Secret<String>,
    pub(crate) refresh_token: Option<Secret<String>>,
    pub(crate) id_token: Option<Secret<String>>,
    /// The granted scopes, if the issuer reported them.
    pub(crate) scope: Option<String>,
    /// Whether the ID token of the login identifies the user, and the access token is opaque to the gateway.
    pub(crate) is_opaque: bool,
    /// Whether the last refresh has brought an ID token whose key could not be fetched: the session has the one before.
    pub(crate) is_id_token_owed: bool,
    /// Claims besides those of the ID token, a JSON object: those that the userinfo endpoint had at the login, and the
    /// claims of earlier ID tokens about the login.
    pub(crate) userinfo: Option<String>,
    /// The subject of the access token, if only the issuer knows it.
    pub(crate) subject: Option<String>,
}

impl SessionState {
    /// Begins a new session with `tokens`.
    pub(crate) fn begin(tokens: Tokens, now: Timestamp) -> Self {
        let received = tokens.received;
        Self {
            id: Id::new(),
            since: now,
            seen: now,
            received,
            ends: ends_at(&tokens),
            refresh_ends: refresh_ends_at(&tokens),
            home: 0,
            access_token: tokens.access_token,
            refresh_token: tokens.refresh_token,
            id_token: tokens.id_token,
            scope: tokens.scope,
            is_opaque: false,
            is_id_token_owed: false,
            userinfo: None,
            subject: None,
        }
    }

    /// Returns the session after a refresh. Parameters absent from the token response keep their values (RFC 6749 §6).
    pub(crate) fn renewed(&self, tokens: Tokens) -> Self {
        let refresh_ends = match (tokens.refresh_expires_in, &tokens.refresh_token) {
            (None, None) => self.refresh_ends,
            _ => refresh_ends_at(&tokens),
        };
        let ends = match ends_at(&tokens) {
            // The lifetime was reported for the first one: a rotated one lives no longer.
            Timestamp::MAX if self.ends < Timestamp::MAX => {
                tokens.received.plus(self.ends.since(self.received))
            }
            ends => ends,
        };
        let userinfo = match &tokens.id_token {
            Some(later) => self.besides(later),
            None => self.userinfo.clone(),
        };
        let subject = self.subject.clone().or_else(|| {
            subject_of(&self.access_token).filter(|_| subject_of(&tokens.access_token).is_none())
        });
        Self {
            id: self.id,
            since: self.since,
            seen: self.seen,
            received: tokens.received,
            ends,
            refresh_ends,
            home: self.home,
            access_token: tokens.access_token,
            refresh_token: tokens.refresh_token.or_else(|| self.refresh_token.clone()),
            id_token: tokens.id_token.or_else(|| self.id_token.clone()),
            scope: tokens.scope.or_else(|| self.scope.clone()),
            is_opaque: self.is_opaque,
            is_id_token_owed: false,
            userinfo,
            subject,
        }
    }

    /// Returns what is known of the user besides the claims of the ID token `later`: how the user has logged in stays true,
    /// even if the ID token of a refresh does not repeat it, and when, whatever that says ("OpenID Connect Core" §12.2): a
    /// refresh is no login.
    fn besides(&self, later: &Secret<String>) -> Option<String> {
        let known = self.userinfo.clone();
        let (Some(before), Some(after)) =
            (self.id_token.as_ref().and_then(payload), payload(later))
        else {
            return known;
        };
        let claims = known.as_deref().and_then(|text| serde_json::from_str(text).ok());
        let mut claims: Map<String, Value> = claims.unwrap_or_default();
        let is_dated = claims.contains_key(AUTH_TIME);
        let lost: Vec<_> = ABOUT_THE_LOGIN
            .into_iter()
            .filter(|name| match *name {
                AUTH_TIME => !is_dated && before.get(AUTH_TIME) != after.get(AUTH_TIME),
                name => before.contains_key(name) && !after.contains_key(name),
            })
            .map(|name| (name.to_owned(), before.get(name).cloned().unwrap_or_default()))
            .collect();
        if lost.is_empty() {
            return known;
        }
        claims.extend(lost);
        Some(Value::Object(claims).to_string())
    }

    /// Returns this session with the tokens that another one, which had the same refresh token, got for it. Who has logged
    /// in here, when and how, stays as it is.
    pub(crate) fn with_tokens_of(&self, other: &Self) -> Self {
        Self {
            received: other.received,
            ends: other.ends,
            refresh_ends: other.refresh_ends,
            home: other.home,
            access_token: other.access_token.clone(),
            refresh_token: other.refresh_token.clone(),
            scope: other.scope.clone(),
            ..self.clone()
        }
    }

    /// Whether the refresh token differs from that of `before`.
    pub(crate) fn is_rotated(&self, before: &Self) -> bool {
        self.refresh_token != before.refresh_token
    }

    /// Returns the state without access and refresh token.
    pub(crate) fn without_tokens(&self) -> Self {
        Self { access_token: String::new().into(), refresh_token: None, ..self.clone() }
    }

    /// Whether the two have a token in common.
    pub(crate) fn shares_a_token(&self, other: &Self) -> bool {
        let refreshes = self.refresh_token.is_some() && self.refresh_token == other.refresh_token;
        refreshes || self.access_token == other.access_token
    }

    /// Returns until when this session, the result of redeeming the refresh token of `before`, is its only result.
    ///
    /// A rotated refresh token has no other. A refresh token that was not rotated may be redeemed again, and must be as
    /// soon as the tokens it has produced are due.
    pub(crate) fn valid_until(&self, before: &Self) -> Timestamp {
        if self.is_rotated(before) {
            return Timestamp::MAX;
        }
        self.received.plus(GRACE.min(self.ends.since(self.received) / 2))
    }

    /// Whether `tokens` belong to another subject: a refresh must not change it ("OpenID Connect Core" §12.2).
    pub(crate) fn belongs_to_other_subject(&self, tokens: &Tokens) -> bool {
        let differ = |before: Option<String>, after: Option<String>| {
            before.zip(after).is_some_and(|(before, after)| before != after)
        };
        let of_id_token = |token: &Option<Secret<String>>| token.as_ref().and_then(subject_of);
        // The two kinds may name one subject differently, but each does so in the same way every time.
        let before = self.subject.clone().or_else(|| subject_of(&self.access_token));
        differ(of_id_token(&self.id_token), of_id_token(&tokens.id_token))
            || differ(before, subject_of(&tokens.access_token))
    }

    /// Whether the access token, whose verified claims these are, belongs to another subject than that of the login.
    pub(crate) fn is_of_another(&self, claims: &Map<String, Value>) -> bool {
        let Some(own) = &self.subject else { return false };
        claims.get("sub").and_then(Value::as_str).is_some_and(|sub| sub != own)
    }

    /// Returns `before` less up to a tenth, constant for one session: users who
    /// logged in together must not refresh together.
    pub(crate) fn jitter(&self, before: Duration) -> Duration {
        before.saturating_sub(before / 10 * u32::from(self.id.0[0]) / u32::from(u8::MAX))
    }

    /// Returns when the session ends without further use: by its idle or absolute timeout.
    pub(crate) fn over_at(&self, idle: Duration, absolute: Duration) -> Timestamp {
        self.seen.plus(idle).min(self.since.plus(absolute))
    }

    /// Returns the refresh token unless it has expired.
    pub(crate) fn refresh_token_if_valid(&self, now: Timestamp) -> Option<&Secret<String>> {
        self.refresh_token.as_ref().filter(|_| now < self.refresh_ends)
    }

    /// Whether the access token expires in less than `before` by `expires_in`.
    pub(crate) fn is_due(&self, before: Duration, now: Timestamp) -> bool {
        is_due(self.received, self.ends, before, now)
    }
}

/// The secret id of a session, not guessable.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub(crate) struct Id(pub(crate) [u8; 16]);

impl Id {
    /// Returns a new random id.
    pub(crate) fn new() -> Self {
        Self(random())
    }

    /// Encodes the id for a cookie.
    pub(crate) fn to_text(self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// Decodes the output of [`Id::to_text`].
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok().map(Self)
    }

    /// Returns the alias of the session for limits and the log: does not reveal the id.
    pub(crate) fn alias(self) -> String {
        let digest = digest::digest(&digest::SHA256, &self.0);
        URL_SAFE_NO_PAD.encode(&digest.as_ref()[..15])
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Id")
    }
}

/// Returns the subject that a token names, if it is a JWT; it is not verified here.
pub(crate) fn subject_of(token: &Secret<String>) -> Option<String> {
    Some(payload(token)?.get("sub")?.as_str()?.to_owned())
}

/// Claims about the login itself, which an ID token that a refresh brings may lack ("OpenID Connect Core" §12.2).
pub(crate) const ABOUT_THE_LOGIN: [&str; 3] = ["acr", "amr", AUTH_TIME];
/// The time of the login, which stays the same in every ID token; null in [`SessionState::userinfo`] if it is not known.
pub(crate) const AUTH_TIME: &str = "auth_time";
/// The time for which requests with the old tokens get the new ones after a browser was given these.
pub(crate) const GRACE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::loaded_session::LoadedSession;
    use super::*;
    use crate::issuer::tests::mock_issuer::access_token_alone;
    use crate::session::settings::ForwardedSessionToken;

    const NOON: Timestamp = Timestamp::from_secs(1_700_049_600);

    fn tokens(life: Option<u64>, refresh_token: Option<&str>) -> Tokens {
        Tokens {
            refresh_token: refresh_token.map(Secret::from),
            expires_in: life.map(Duration::from_secs),
            ..access_token_alone(NOON)
        }
    }

    #[test]
    fn every_login_begins_a_new_session() {
        let state = || SessionState::begin(tokens(Some(300), None), NOON);
        assert_ne!(state().id, state().id);
    }

    #[test]
    fn absent_parameters_of_a_token_response_keep_their_values() {
        let mut state = SessionState::begin(tokens(Some(300), Some("refresh")), NOON);
        state.id_token = Some("id".into());
        state.scope = Some("openid".into());

        let renewed = state.renewed(tokens(Some(300), None));

        assert_eq!(renewed.id, state.id);
        assert_eq!(renewed.refresh_token, state.refresh_token);
        assert_eq!(renewed.id_token, state.id_token);
        assert_eq!(renewed.scope, state.scope);
    }

    #[test]
    fn an_access_token_without_expires_in_expires_by_its_exp_or_like_the_one_before() {
        let jwt = format!("e30.{}.e30", URL_SAFE_NO_PAD.encode(r#"{"exp":1700049900}"#));
        let tokens_of_jwt = Tokens { access_token: jwt.into(), ..tokens(None, None) };
        assert_eq!(SessionState::begin(tokens_of_jwt, NOON).ends, NOON.plus_secs(300));

        let state = SessionState::begin(tokens(Some(300), None), NOON);
        let later = Tokens { received: NOON.plus_secs(290), ..tokens(None, None) };
        assert_eq!(state.renewed(later).ends, NOON.plus_secs(590));
        let untold = SessionState::begin(tokens(None, None), NOON);
        assert_eq!(untold.renewed(tokens(None, None)).ends, Timestamp::MAX);
    }

    #[test]
    fn a_refresh_token_never_gets_the_access_tokens_lifetime() {
        let state = SessionState::begin(tokens(Some(300), Some("refresh")), NOON);
        assert!(state.refresh_token_if_valid(NOON.plus_secs(301)).is_some());

        let state = SessionState::begin(
            Tokens {
                refresh_expires_in: Some(Duration::from_secs(600)),
                ..tokens(Some(300), Some("refresh"))
            },
            NOON,
        );
        assert!(state.refresh_token_if_valid(NOON.plus_secs(599)).is_some());
        assert!(state.refresh_token_if_valid(NOON.plus_secs(600)).is_none());
        // A new refresh token of unknown lifetime is used until the issuer refuses it.
        assert_eq!(state.renewed(tokens(None, Some("b"))).refresh_ends, Timestamp::MAX);
        assert_eq!(state.renewed(tokens(None, None)).refresh_ends, state.refresh_ends);
    }

    #[test]
    fn the_exp_of_a_refresh_token_is_respected() {
        let jwt = |claims: &str| format!("e30.{}.e30", URL_SAFE_NO_PAD.encode(claims));
        let ends =
            |token: &str| SessionState::begin(tokens(Some(300), Some(token)), NOON).refresh_ends;

        assert_eq!(ends(&jwt(r#"{"exp":1700053200}"#)), NOON.plus_secs(3_600));
        for other in [r#"{"exp":0}"#, r#"{"exp":"soon"}"#, "{}", "[]"] {
            assert_eq!(ends(&jwt(other)), Timestamp::MAX, "{other}");
        }
        // The lifetime reported by the issuer has precedence.
        let tokens_of_jwt = Tokens {
            refresh_expires_in: Some(Duration::from_secs(60)),
            ..tokens(Some(300), Some(&jwt(r#"{"exp":1700053200}"#)))
        };
        assert_eq!(SessionState::begin(tokens_of_jwt, NOON).refresh_ends, NOON.plus_secs(60));
    }

    #[test]
    fn sessions_begun_together_do_not_refresh_together() {
        let before = Duration::from_secs(100);
        let sessions: Vec<_> =
            (0..200).map(|_| SessionState::begin(tokens(Some(300), None), NOON)).collect();
        let spread: std::collections::BTreeSet<_> =
            sessions.iter().map(|state| state.jitter(before)).collect();

        assert!(spread.len() > 20, "{} moments", spread.len());
        assert!(spread.iter().all(|s| (Duration::from_secs(90)..=before).contains(s)));
        assert_eq!(sessions[0].jitter(before), sessions[0].jitter(before));
    }

    #[test]
    fn a_refresh_must_not_change_the_subject() {
        let id = |sub: &str| Some(Secret::from(format!("e30.{}.e30", URL_SAFE_NO_PAD.encode(sub))));
        let mut state = SessionState::begin(tokens(None, None), NOON);
        state.id_token = id(r#"{"sub":"alice"}"#);
        let brings =
            |id_token| state.belongs_to_other_subject(&Tokens { id_token, ..tokens(None, None) });

        assert!(brings(id(r#"{"sub":"bob"}"#)));
        assert!(!brings(id(r#"{"sub":"alice"}"#)) && !brings(None));
    }

    #[test]
    fn without_id_tokens_the_access_token_shows_a_change_of_the_subject() {
        let access = |sub: &str| Tokens { access_token: jwt(sub), ..tokens(None, None) };
        let state = SessionState::begin(access(r#"{"sub":"alice"}"#), NOON);

        assert!(state.belongs_to_other_subject(&access(r#"{"sub":"bob"}"#)));
        assert!(!state.belongs_to_other_subject(&access(r#"{"sub":"alice"}"#)));
        assert!(!state.belongs_to_other_subject(&access("{}")));
        assert!(!state.belongs_to_other_subject(&tokens(None, None)), "not readable here");
    }

    #[test]
    fn claims_about_the_login_outlive_id_tokens_that_do_not_repeat_them() {
        let mut state = SessionState::begin(tokens(None, None), NOON);
        state.id_token = Some(jwt(r#"{"acr":"gold","auth_time":1,"amr":["otp"],"email":"a@b"}"#));
        state.userinfo = Some(r#"{"name":"Alice"}"#.into());
        let with = |state: &SessionState, claims: &str| {
            let tokens = Tokens { id_token: Some(jwt(claims)), ..tokens(None, None) };
            let known = state.renewed(tokens);
            let about = known.userinfo.as_deref().map(|text| serde_json::from_str(text).unwrap());
            (known, about.unwrap_or(Value::Null))
        };

        let (first, about) = with(&state, r#"{"acr":"silver"}"#);
        let (second, again) = with(&first, r#"{"auth_time":2}"#);

        assert_eq!(about, json!({ "name": "Alice", "auth_time": 1, "amr": ["otp"] }));
        let all = json!({ "name": "Alice", "auth_time": 1, "amr": ["otp"], "acr": "silver" });
        assert_eq!(again, all, "the latest word counts");
        assert_eq!(second.renewed(tokens(None, None)).userinfo, second.userinfo);
    }

    #[test]
    fn a_refresh_is_no_login_whatever_its_id_token_says() {
        let about = |claims: &str| Tokens { id_token: Some(jwt(claims)), ..tokens(None, None) };
        for (before, known) in [(r#"{"auth_time":1}"#, Some(&json!(1))), ("{}", None)] {
            let login = SessionState::begin(about(before), NOON);

            let renewed = login.renewed(about(r#"{"auth_time":2}"#)).renewed(about("{}"));
            let renewed = renewed.renewed(about(r#"{"auth_time":3}"#));

            let loaded = LoadedSession::new(renewed, ForwardedSessionToken::None);
            assert_eq!(loaded.person().get("auth_time"), known, "{before}");
        }
    }

    fn jwt(claims: &str) -> Secret<String> {
        format!("e30.{}.e30", URL_SAFE_NO_PAD.encode(claims)).into()
    }

    #[test]
    fn a_token_is_due_ahead_of_its_expiry_but_not_at_every_request() {
        let before = Duration::from_secs(60);
        let due = |life, at| {
            SessionState::begin(tokens(life, None), NOON).is_due(before, NOON.plus_secs(at))
        };
        assert!(!due(Some(300), 240) && due(Some(300), 241) && due(Some(300), 1000));
        assert!(!due(Some(60), 30) && due(Some(60), 31));
        assert!(!due(None, 1_000_000));
    }

    #[test]
    fn a_session_ends_by_its_idle_or_absolute_timeout() {
        let (idle, absolute) = (Duration::from_secs(30), Duration::from_secs(100));
        let mut state = SessionState::begin(tokens(None, None), NOON);
        assert_eq!(state.over_at(idle, absolute), NOON.plus_secs(30));
        state.seen = NOON.plus_secs(90);
        assert_eq!(state.over_at(idle, absolute), NOON.plus_secs(100));
    }
}
