//! A visit: what one login gave, from that login until it ends.
//!
//! The tokens, when they end, and when the person came and was last seen.
//! Kept on the server as it is, or written as bytes to be sealed into a
//! cookie. Every login begins a new visit with a new id (no fixation);
//! refreshing keeps the id.

use core::fmt;
use core::time::Duration;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use super::loaded::payload;
use super::redis::GRACE;
use crate::base::clock::Timestamp;
use crate::base::secret::Secret;
use crate::issuer::Tokens;
use crate::session::cookies::seal::random;

/// What one login gave.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct SessionState {
    pub(crate) id: Id,
    /// When the person logged in.
    pub(crate) since: Timestamp,
    /// When a request of theirs was last noted.
    pub(crate) seen: Timestamp,
    /// When the access token was asked for.
    pub(crate) received: Timestamp,
    /// When the access token ends by its issuer's word at receipt; it may itself say sooner.
    pub(crate) ends: Timestamp,
    /// When the refresh token ends, if the issuer said so.
    pub(crate) refresh_ends: Timestamp,
    /// The gateway that has got the tokens, among those that share a Redis; zero if that is unknown.
    pub(crate) home: u64,
    pub(crate) access_token: Secret<String>,
    pub(crate) refresh_token: Option<Secret<String>>,
    pub(crate) id_token: Option<Secret<String>>,
    /// The scopes granted, if the issuer named them.
    pub(crate) scope: Option<String>,
}

impl SessionState {
    /// A new visit with `tokens`.
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
        }
    }

    /// The same visit after a refresh. What the answer leaves out stays as it was (RFC 6749 §6).
    pub(crate) fn renewed(&self, tokens: Tokens) -> Self {
        let refresh_ends = match (tokens.refresh_expires_in, &tokens.refresh_token) {
            (None, None) => self.refresh_ends,
            _ => refresh_ends_at(&tokens),
        };
        let ends = match ends_at(&tokens) {
            // It was said of the first one: others of its kind live no longer.
            Timestamp::MAX if self.ends < Timestamp::MAX => {
                tokens.received.plus(self.ends.since(self.received))
            }
            ends => ends,
        };
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
        }
    }

    /// Whether the refresh token is another one than in `before`.
    pub(crate) fn is_rotated(&self, before: &Self) -> bool {
        self.refresh_token != before.refresh_token
    }

    /// All but the access token and the refresh token.
    pub(crate) fn without_tokens(&self) -> Self {
        Self { access_token: String::new().into(), refresh_token: None, ..self.clone() }
    }

    /// Whether the two have a token in common.
    pub(crate) fn shares_a_token(&self, other: &Self) -> bool {
        let refreshes = self.refresh_token.is_some() && self.refresh_token == other.refresh_token;
        refreshes || self.access_token == other.access_token
    }

    /// Until when this visit, which came of redeeming the refresh token of `before`, is all that token is good for.
    ///
    /// One that was rotated is good for nothing else. One that was not may be redeemed again, and
    /// must be as soon as the tokens it has brought are due.
    pub(crate) fn valid_until(&self, before: &Self) -> Timestamp {
        if self.is_rotated(before) {
            return Timestamp::MAX;
        }
        self.received.plus(GRACE.min(self.ends.since(self.received) / 2))
    }

    /// Whether `tokens` are somebody else's: a refresh changes nobody's name ("OpenID Connect Core" §12.2).
    pub(crate) fn belongs_to_other_subject(&self, tokens: &Tokens) -> bool {
        let person = |token: &Option<Secret<String>>| payload(token.as_ref()?)?.remove("sub");
        match (person(&self.id_token), person(&tokens.id_token)) {
            (Some(before), Some(after)) => before != after,
            _ => false,
        }
    }

    /// `before`, or up to a tenth less, always the same for one visit: so that those who
    /// logged in together do not all refresh together ever after.
    pub(crate) fn jitter(&self, before: Duration) -> Duration {
        before.saturating_sub(before / 10 * u32::from(self.id.0[0]) / u32::from(u8::MAX))
    }

    /// When the visit ends if nobody comes: by being idle, or by being old.
    pub(crate) fn over_at(&self, idle: Duration, absolute: Duration) -> Timestamp {
        self.seen.plus(idle).min(self.since.plus(absolute))
    }

    /// The refresh token, while it is good.
    pub(crate) fn refresh_token_if_valid(&self, now: Timestamp) -> Option<&Secret<String>> {
        self.refresh_token.as_ref().filter(|_| now < self.refresh_ends)
    }

    /// Whether less than `before` is left of the access token by the issuer's word.
    pub(crate) fn is_due(&self, before: Duration, now: Timestamp) -> bool {
        is_due(self.received, self.ends, before, now)
    }

    /// As bytes, for sealing.
    pub(crate) fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let texts = [
            Some(self.access_token.expose()),
            self.refresh_token.as_ref().map(Secret::expose),
            self.id_token.as_ref().map(Secret::expose),
            self.scope.as_ref(),
        ];
        let length: usize = texts.iter().flatten().map(|text| text.len()).sum();
        // Never grows: a reallocation would leave a copy behind unwiped.
        let mut bytes = Zeroizing::new(Vec::with_capacity(HEAD_LEN + TEXT_FIELDS * 4 + length));
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.id.0);
        for time in [self.since, self.seen, self.received, self.ends, self.refresh_ends] {
            bytes.extend_from_slice(&time.as_nanos().to_be_bytes());
        }
        bytes.extend_from_slice(&self.home.to_be_bytes());
        for text in texts {
            // A text that is absent is told from an empty one by an impossible length.
            let len = text.map_or(ABSENT, |text| u32::try_from(text.len()).unwrap_or(ABSENT));
            bytes.extend_from_slice(&len.to_be_bytes());
            bytes.extend_from_slice(text.map(String::as_bytes).unwrap_or_default());
        }
        bytes
    }

    /// Reads what [`SessionState::to_bytes`] wrote; `None` for anything else.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(&[VERSION])?;
        let id = Id(*take(&mut rest)?);
        let [since, seen, received, ends, refresh_ends] = {
            let mut times = [Timestamp::MAX; 5];
            for time in &mut times {
                *time = Timestamp::from_nanos(u64::from_be_bytes(*take(&mut rest)?));
            }
            times
        };
        let home = u64::from_be_bytes(*take(&mut rest)?);
        let mut text = || {
            let len = u32::from_be_bytes(*take(&mut rest)?);
            if len == ABSENT {
                return Some(None);
            }
            let (text, after) = rest.split_at_checked(len as usize)?;
            rest = after;
            Some(Some(core::str::from_utf8(text).ok()?.to_owned()))
        };
        let visit = Self {
            id,
            since,
            seen,
            received,
            ends,
            refresh_ends,
            home,
            access_token: text()??.into(),
            refresh_token: text()?.map(Secret::from),
            id_token: text()?.map(Secret::from),
            scope: text()?,
        };
        rest.is_empty().then_some(visit)
    }
}

/// A visit's name, which nobody outside learns and nobody can guess.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub(crate) struct Id([u8; 16]);

impl Id {
    /// A name that nobody had before.
    pub(crate) fn new() -> Self {
        Self(random())
    }

    /// As a cookie carries it.
    pub(crate) fn to_text(self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// Reads what [`Id::to_text`] wrote.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok().map(Self)
    }

    /// What limits and the log call the visit: does not lead back to the id.
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

/// Whether less than `before` is left of a token's life; of a short one, less than half of it.
///
/// Else a token that lives no longer than `before` would be refreshed at every call.
pub(crate) fn is_due(begin: Timestamp, end: Timestamp, before: Duration, now: Timestamp) -> bool {
    end.since(now) < before.min(end.since(begin) / 2)
}

/// When the access token ends: by its issuer's word, or by its own if it is a JWT.
fn ends_at(tokens: &Tokens) -> Timestamp {
    match tokens.expires_in {
        Some(life) => tokens.received.plus(life),
        None => own_end(&tokens.access_token, tokens.received),
    }
}

/// When the refresh token ends: by its issuer's word, or by its own if it is a JWT; never with the access token.
fn refresh_ends_at(tokens: &Tokens) -> Timestamp {
    if let Some(life) = tokens.refresh_expires_in {
        return tokens.received.plus(life);
    }
    let token = tokens.refresh_token.as_ref();
    token.map_or(Timestamp::MAX, |token| own_end(token, tokens.received))
}

fn own_end(token: &Secret<String>, received: Timestamp) -> Timestamp {
    let end = payload(token).and_then(|claims| claims.get("exp")?.as_u64());
    // Some say 0 and mean never.
    end.map(Timestamp::from_secs).filter(|end| *end > received).unwrap_or(Timestamp::MAX)
}

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(taken)
}

const VERSION: u8 = 2;
const HEAD_LEN: usize = 1 + 16 + 6 * 8;
const TEXT_FIELDS: usize = 4;
const ABSENT: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    const NOON: Timestamp = Timestamp::from_secs(1_700_049_600);

    fn tokens(life: Option<u64>, refresh_token: Option<&str>) -> Tokens {
        Tokens {
            access_token: "access".into(),
            refresh_token: refresh_token.map(Secret::from),
            id_token: None,
            expires_in: life.map(Duration::from_secs),
            refresh_expires_in: None,
            scope: None,
            received: NOON,
        }
    }

    #[test]
    fn every_login_is_a_new_visit() {
        let visit = || SessionState::begin(tokens(Some(300), None), NOON);
        assert_ne!(visit().id, visit().id);
    }

    #[test]
    fn what_an_answer_leaves_out_stays() {
        let mut visit = SessionState::begin(tokens(Some(300), Some("refresh")), NOON);
        visit.id_token = Some("id".into());
        visit.scope = Some("openid".into());

        let renewed = visit.renewed(tokens(Some(300), None));

        assert_eq!(renewed.id, visit.id);
        assert_eq!(renewed.refresh_token, visit.refresh_token);
        assert_eq!(renewed.id_token, visit.id_token);
        assert_eq!(renewed.scope, visit.scope);
    }

    #[test]
    fn an_access_token_of_untold_life_ends_by_its_own_word_or_like_the_one_before() {
        let jwt = format!("e30.{}.e30", URL_SAFE_NO_PAD.encode(r#"{"exp":1700049900}"#));
        let told = Tokens { access_token: jwt.into(), ..tokens(None, None) };
        assert_eq!(SessionState::begin(told, NOON).ends, NOON.plus_secs(300));

        let visit = SessionState::begin(tokens(Some(300), None), NOON);
        let later = Tokens { received: NOON.plus_secs(290), ..tokens(None, None) };
        assert_eq!(visit.renewed(later).ends, NOON.plus_secs(590));
        let untold = SessionState::begin(tokens(None, None), NOON);
        assert_eq!(untold.renewed(tokens(None, None)).ends, Timestamp::MAX);
    }

    #[test]
    fn a_refresh_token_never_gets_the_access_tokens_lifetime() {
        let visit = SessionState::begin(tokens(Some(300), Some("refresh")), NOON);
        assert!(visit.refresh_token_if_valid(NOON.plus_secs(301)).is_some());

        let visit = SessionState::begin(
            Tokens {
                refresh_expires_in: Some(Duration::from_secs(600)),
                ..tokens(Some(300), Some("refresh"))
            },
            NOON,
        );
        assert!(visit.refresh_token_if_valid(NOON.plus_secs(599)).is_some());
        assert!(visit.refresh_token_if_valid(NOON.plus_secs(600)).is_none());
        // A new refresh token of unknown life is good until the issuer refuses it.
        assert_eq!(visit.renewed(tokens(None, Some("b"))).refresh_ends, Timestamp::MAX);
        assert_eq!(visit.renewed(tokens(None, None)).refresh_ends, visit.refresh_ends);
    }

    #[test]
    fn a_refresh_token_that_tells_its_own_end_is_believed() {
        let jwt = |claims: &str| format!("e30.{}.e30", URL_SAFE_NO_PAD.encode(claims));
        let ends =
            |token: &str| SessionState::begin(tokens(Some(300), Some(token)), NOON).refresh_ends;

        assert_eq!(ends(&jwt(r#"{"exp":1700053200}"#)), NOON.plus_secs(3_600));
        for other in [r#"{"exp":0}"#, r#"{"exp":"soon"}"#, "{}", "[]"] {
            assert_eq!(ends(&jwt(other)), Timestamp::MAX, "{other}");
        }
        // What the issuer says beside it counts for more.
        let told = Tokens {
            refresh_expires_in: Some(Duration::from_secs(60)),
            ..tokens(Some(300), Some(&jwt(r#"{"exp":1700053200}"#)))
        };
        assert_eq!(SessionState::begin(told, NOON).refresh_ends, NOON.plus_secs(60));
    }

    #[test]
    fn those_who_logged_in_together_do_not_refresh_together() {
        let before = Duration::from_secs(100);
        let visits: Vec<_> =
            (0..200).map(|_| SessionState::begin(tokens(Some(300), None), NOON)).collect();
        let spread: std::collections::BTreeSet<_> =
            visits.iter().map(|visit| visit.jitter(before)).collect();

        assert!(spread.len() > 20, "{} moments", spread.len());
        assert!(spread.iter().all(|s| (Duration::from_secs(90)..=before).contains(s)));
        assert_eq!(visits[0].jitter(before), visits[0].jitter(before));
    }

    #[test]
    fn a_refresh_changes_nobodys_name() {
        let id = |sub: &str| Some(Secret::from(format!("e30.{}.e30", URL_SAFE_NO_PAD.encode(sub))));
        let mut visit = SessionState::begin(tokens(None, None), NOON);
        visit.id_token = id(r#"{"sub":"alice"}"#);
        let brings =
            |id_token| visit.belongs_to_other_subject(&Tokens { id_token, ..tokens(None, None) });

        assert!(brings(id(r#"{"sub":"bob"}"#)));
        assert!(!brings(id(r#"{"sub":"alice"}"#)) && !brings(None));
    }

    #[test]
    fn is_refreshed_ahead_of_its_end_but_not_at_every_call() {
        let before = Duration::from_secs(60);
        let due = |life, at| {
            SessionState::begin(tokens(life, None), NOON).is_due(before, NOON.plus_secs(at))
        };
        assert!(!due(Some(300), 240) && due(Some(300), 241) && due(Some(300), 1000));
        assert!(!due(Some(60), 30) && due(Some(60), 31));
        assert!(!due(None, 1_000_000));
    }

    #[test]
    fn ends_by_being_idle_or_old() {
        let (idle, absolute) = (Duration::from_secs(30), Duration::from_secs(100));
        let mut visit = SessionState::begin(tokens(None, None), NOON);
        assert_eq!(visit.over_at(idle, absolute), NOON.plus_secs(30));
        visit.seen = NOON.plus_secs(90);
        assert_eq!(visit.over_at(idle, absolute), NOON.plus_secs(100));
    }

    #[test]
    fn nothing_is_left_unread() {
        let bytes = SessionState::begin(tokens(Some(1), None), NOON).to_bytes();
        for end in 0..bytes.len() {
            assert!(SessionState::from_bytes(&bytes[..end]).is_none());
        }
        assert!(SessionState::from_bytes(&[&bytes[..], b"x"].concat()).is_none());
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            times: [u64; 5],
            home: u64,
            access in "\\PC*",
            refresh in option::of("\\PC*"),
            id in option::of("\\PC*"),
            scope in option::of("\\PC*"),
        ) {
            let [since, seen, received, ends, refresh_ends] = times.map(Timestamp::from_nanos);
            let visit = SessionState {
                id: Id::new(),
                since, seen, received, ends, refresh_ends, home,
                access_token: access.into(),
                refresh_token: refresh.map(Secret::from),
                id_token: id.map(Secret::from),
                scope,
            };
            prop_assert_eq!(SessionState::from_bytes(&visit.to_bytes()), Some(visit));
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = SessionState::from_bytes(&bytes);
            let _ = SessionState::from_bytes(&[&[VERSION][..], &bytes].concat());
        }
    }
}
