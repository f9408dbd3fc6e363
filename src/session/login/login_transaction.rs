//! Login transactions: logins begun in a browser whose callback has not arrived.
//!
//! Each has a seed, from which `state`, `nonce` and the PKCE verifier are
//! derived, and a target to continue to. It is kept in a cookie of its own
//! ([`login_cookies`](super::login_cookies)) for ten minutes.

use core::fmt;
use core::time::Duration;

use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::login_requirements::StepUp;
use crate::base::clock::Timestamp;
use crate::base::random::random;
use crate::base::secret::Secret;
use crate::session::store::state::Id;

/// One pending login.
pub(crate) struct LoginTransaction {
    seed: [u8; 32],
    began: Timestamp,
    /// Whether the user cannot have edited the authorization request: the gateway has pushed or signed it.
    pub(crate) is_protected: bool,
    /// The intent of the login.
    pub(crate) intent: LoginIntent,
}

/// The reason and the target of a login, which every restart keeps.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct LoginIntent {
    /// The number of times it was restarted.
    pub(crate) restarts: u8,
    /// The number of logins that this browser has just completed without getting a session.
    pub(crate) rounds: u8,
    /// The requested target of the login, if any.
    pub(crate) target: Option<Box<str>>,
    /// The demands of a route that it has to meet, if any.
    pub(crate) step_up: Option<StepUp>,
    /// The session that it replaces, if the callback does not show it.
    pub(crate) replaces: Option<Id>,
}

impl LoginIntent {
    /// Returns the intent of a further attempt.
    pub(crate) fn restarted(&self) -> Self {
        Self { restarts: self.restarts.saturating_add(1), ..self.clone() }
    }
}

impl LoginTransaction {
    /// Begins a login.
    pub(crate) fn begin(intent: LoginIntent, now: Timestamp) -> Self {
        Self { seed: random(), began: now, is_protected: false, intent }
    }

    /// Returns the same login without its target, which makes it small.
    pub(crate) fn without_target(&self) -> Self {
        let intent = LoginIntent { target: None, ..self.intent.clone() };
        Self { seed: self.seed, began: self.began, is_protected: self.is_protected, intent }
    }

    /// Binds the authorization response to this browser (RFC 6749 §10.12). Ends with the number of restarts.
    pub(crate) fn state(&self) -> String {
        format!("{}.{}", self.derive("state"), self.intent.restarts)
    }

    /// Whether `state`, as the issuer has returned it, is that of this login. What follows after a second dot is for
    /// callbacks whose login is not known.
    pub(crate) fn has_state(&self, state: &str) -> bool {
        let own = self.state();
        let (bound, rest) = state.split_at_checked(own.len()).unwrap_or((state, ""));
        bool::from(own.as_bytes().ct_eq(bound.as_bytes()))
            && (rest.is_empty() || rest.starts_with('.'))
    }

    /// Binds the ID token to this login ("OpenID Connect Core" §3.1.2.1).
    pub(crate) fn nonce(&self) -> String {
        self.derive("nonce")
    }

    /// Proves to the token endpoint that the client which redeems the code also requested it (RFC 7636 §4.1).
    pub(crate) fn verifier(&self) -> Secret<String> {
        self.derive("verifier").into()
    }

    /// The code challenge of the verifier, by method S256 (RFC 7636 §4.2).
    pub(crate) fn challenge(&self) -> String {
        let verifier = self.verifier();
        URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, verifier.expose().as_bytes()))
    }

    /// The time at which it began.
    pub(crate) const fn began(&self) -> Timestamp {
        self.began
    }

    /// Whether it may still finish.
    pub(crate) fn is_fresh(&self, now: Timestamp) -> bool {
        now.since(self.began) < TRANSACTION_LIFETIME
    }

    fn derive(&self, label: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.seed);
        URL_SAFE_NO_PAD.encode(hmac::sign(&key, label.as_bytes()))
    }

    /// Encodes it for sealing.
    pub(crate) fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let LoginIntent { restarts, rounds, target, step_up, replaces } = &self.intent;
        let step_up = step_up.as_ref().map(StepUp::to_bytes).unwrap_or_default();
        let target = target.as_deref().unwrap_or_default();
        let mut bytes = Zeroizing::new(Vec::with_capacity(HEAD_LEN + target.len()));
        bytes.extend_from_slice(&self.seed);
        bytes.extend_from_slice(&self.began.as_nanos().to_be_bytes());
        bytes.extend_from_slice(&[*restarts, *rounds, u8::from(self.is_protected)]);
        bytes.push(u8::from(replaces.is_some()));
        bytes.extend(replaces.iter().flat_map(|id| id.0));
        // The configuration bounds the number of values.
        bytes.extend_from_slice(&(step_up.len() as u16).to_be_bytes());
        bytes.extend_from_slice(&step_up);
        bytes.extend_from_slice(target.as_bytes());
        bytes
    }

    /// Decodes the output of [`LoginTransaction::to_bytes`]; `None` for other bytes.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (seed, rest) = bytes.split_first_chunk()?;
        let (began, rest) = rest.split_first_chunk()?;
        let ([restarts, rounds, is_protected], rest) = rest.split_first_chunk()?;
        let (has_replaced, rest) = rest.split_first()?;
        let (replaces, rest) = match has_replaced {
            0 => (None, rest),
            1 => rest.split_first_chunk().map(|(id, rest)| (Some(Id(*id)), rest))?,
            _ => return None,
        };
        let (len, rest) = rest.split_first_chunk()?;
        let (step_up, target) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        let step_up = match step_up {
            [] => None,
            bytes => Some(StepUp::from_bytes(bytes)?),
        };
        let target = core::str::from_utf8(target).ok()?;
        Some(Self {
            seed: *seed,
            began: Timestamp::from_nanos(u64::from_be_bytes(*began)),
            is_protected: match is_protected {
                0 => false,
                1 => true,
                _ => return None,
            },
            intent: LoginIntent {
                restarts: *restarts,
                rounds: *rounds,
                target: (!target.is_empty()).then(|| target.into()),
                step_up,
                replaces,
            },
        })
    }
}

impl fmt::Debug for LoginTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginTransaction").field("intent", &self.intent).finish_non_exhaustive()
    }
}

/// Reads from a `state` how often its login had been restarted, and the rest; `None` if the gateway cannot have made it.
///
/// Unauthenticated input: use only to limit redirect loops.
pub(crate) fn restarts(state: &str) -> Option<(u8, &str)> {
    let (random, rest) = state.split_once('.')?;
    let (count, rest) = rest.split_once('.').unwrap_or((rest, ""));
    (random.len() == 43).then(|| count.parse().ok()).flatten().map(|count| (count, rest))
}

/// The time in which a login must finish.
pub(crate) const TRANSACTION_LIFETIME: Duration = Duration::from_secs(600);
const HEAD_LEN: usize = 32 + 8 + 3 + 17 + 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOON: Timestamp = Timestamp::from_secs(1_700_049_600);

    fn login(restarts: u8) -> LoginTransaction {
        LoginTransaction::begin(LoginIntent { restarts, ..LoginIntent::default() }, NOON)
    }

    #[test]
    fn a_login_expires_after_ten_minutes() {
        assert!(login(0).is_fresh(NOON.plus_secs(599)));
        assert!(!login(0).is_fresh(NOON.plus_secs(600)));
    }

    #[test]
    fn state_nonce_and_verifier_differ() {
        let login = login(2);

        let parts = [login.derive("state"), login.nonce(), login.verifier().expose().clone()];
        assert!(parts[0] != parts[1] && parts[1] != parts[2] && parts[0] != parts[2]);
        assert!(parts.iter().all(|part| part.len() == 43));
        assert_eq!(restarts(&login.state()), Some((2, "")));
        assert_eq!(restarts(&format!("{}.xyz", login.state())), Some((2, "xyz")));
        assert!(["", "a", "a.1", &"a".repeat(45)].iter().all(|other| restarts(other).is_none()));
    }

    #[test]
    fn a_login_recognizes_its_own_state_alone() {
        let (login, other) = (login(1), login(1));

        assert!(login.has_state(&login.state()));
        assert!(login.has_state(&format!("{}.sealed", login.state())));
        assert!(!login.has_state(&format!("{}x", login.state())));
        assert!(!login.has_state(&other.state()) && !login.has_state(""));
    }

    #[test]
    fn the_challenge_is_the_verifiers_digest() {
        // RFC 7636, appendix B, checks the arithmetic.
        let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        let challenge =
            URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, verifier.as_bytes()));
        assert_eq!(challenge, "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_rejected(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Some(login) = LoginTransaction::from_bytes(&bytes) {
                prop_assert_eq!(&**login.to_bytes(), &*bytes);
            }
        }
    }
}
