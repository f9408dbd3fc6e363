//! Logins under way at the issuer: begun in this browser, not come back yet.
//!
//! Each has a seed, of which everything that must come back is derived, and
//! knows where it leads. All are in one sealed cookie, five at the most and
//! for ten minutes, so that two tabs can both finish and nothing piles up.

use core::fmt;
use core::time::Duration;
use std::sync::Arc;

use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::base::clock::Timestamp;
use crate::base::secret::Secret;
use crate::session::cookies::cookie::{Cookie, CookieParts};
use crate::session::cookies::seal::{KeyRing, place, random};
use crate::session::settings;
use crate::session::settings::{SameSite, Settings};

/// The logins under way in one browser, oldest first.
#[derive(Debug, Default)]
pub(crate) struct LoginTransactions(Vec<LoginTransaction>);

impl LoginTransactions {
    /// Begins a login that leads to `target`; the oldest one gives way.
    pub(crate) fn begin(
        &mut self,
        target: Option<&str>,
        restarts: u8,
        now: Timestamp,
    ) -> &LoginTransaction {
        self.0.retain(|login| login.is_fresh(now));
        if self.0.len() >= MAX_TRANSACTIONS {
            self.0.remove(0);
        }
        let target = target.filter(|target| target.len() <= MAX_TARGET).map(Into::into);
        self.0.push(LoginTransaction { seed: random(), began: now, restarts, target });
        &self.0[self.0.len() - 1]
    }

    /// Takes out the login that `state` came back from; each comes back once.
    pub(crate) fn finish(&mut self, state: &str, now: Timestamp) -> Option<LoginTransaction> {
        let of = |login: &LoginTransaction| {
            login.is_fresh(now) && bool::from(login.state().as_bytes().ct_eq(state.as_bytes()))
        };
        let at = self.0.iter().position(of)?;
        Some(self.0.remove(at))
    }

    /// Whether none is under way.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As bytes, for sealing.
    pub(crate) fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes =
            Zeroizing::new(Vec::with_capacity(MAX_TRANSACTIONS * (HEAD_LEN + MAX_TARGET)));
        for LoginTransaction { seed, began, restarts, target } in &self.0 {
            bytes.extend_from_slice(seed);
            bytes.extend_from_slice(&began.as_nanos().to_be_bytes());
            bytes.push(*restarts);
            let target = target.as_deref().unwrap_or_default();
            // At most MAX_TARGET: `begin` leaves longer ones out.
            bytes.extend_from_slice(&(target.len() as u16).to_be_bytes());
            bytes.extend_from_slice(target.as_bytes());
        }
        bytes
    }

    /// Reads what [`LoginTransactions::to_bytes`] wrote; `None` for anything else.
    pub(crate) fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        let mut logins = Vec::new();
        while let Some((seed, rest)) = bytes.split_first_chunk() {
            let (began, rest) = rest.split_first_chunk()?;
            let (restarts, rest) = rest.split_first()?;
            let (len, rest) = rest.split_first_chunk()?;
            let (target, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
            let target = core::str::from_utf8(target).ok()?;
            logins.push(LoginTransaction {
                seed: *seed,
                began: Timestamp::from_nanos(u64::from_be_bytes(*began)),
                restarts: *restarts,
                target: (!target.is_empty()).then(|| target.into()),
            });
            bytes = rest;
        }
        (bytes.is_empty() && logins.len() <= MAX_TRANSACTIONS).then_some(Self(logins))
    }
}

/// One login under way.
pub(crate) struct LoginTransaction {
    seed: [u8; 32],
    began: Timestamp,
    /// How often it had to be begun anew.
    pub(crate) restarts: u8,
    /// Where it leads, if that was asked for.
    pub(crate) target: Option<Box<str>>,
}

impl LoginTransaction {
    /// Binds the answer to this browser (RFC 6749 §10.12). Ends with the number of restarts.
    pub(crate) fn state(&self) -> String {
        format!("{}.{}", self.derive("state"), self.restarts)
    }

    /// Binds the ID token to this login ("OpenID Connect Core" §3.1.2.1).
    pub(crate) fn nonce(&self) -> String {
        self.derive("nonce")
    }

    /// Proves to the token endpoint that whoever redeems the code asked for it (RFC 7636 §4.1).
    pub(crate) fn verifier(&self) -> Secret<String> {
        self.derive("verifier").into()
    }

    /// What the authorization endpoint is told of the verifier (RFC 7636 §4.2): S256.
    pub(crate) fn challenge(&self) -> String {
        let verifier = self.verifier();
        URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, verifier.expose().as_bytes()))
    }

    fn derive(&self, label: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.seed);
        URL_SAFE_NO_PAD.encode(hmac::sign(&key, label.as_bytes()))
    }

    fn is_fresh(&self, now: Timestamp) -> bool {
        now.since(self.began) < TRANSACTION_LIFETIME
    }
}

impl fmt::Debug for LoginTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("restarts", &self.restarts).finish_non_exhaustive()
    }
}

/// How often the login that `state` came from had been begun anew; `None` if we never made such a state.
///
/// Not to be trusted: only good against going round in circles.
pub(crate) fn restarts(state: &str) -> Option<u8> {
    let (random, count) = state.split_once('.')?;
    (random.len() == 43).then(|| count.parse().ok()).flatten()
}

/// The cookie that holds a browser's logins under way.
#[derive(Debug)]
pub(crate) struct PendingCookie {
    cookie: Cookie,
    place: Box<[u8]>,
    ring: Arc<KeyRing>,
}

impl PendingCookie {
    pub(crate) fn new(settings: &Settings, issuer: &str, ring: Arc<KeyRing>) -> Self {
        // It must come along when the issuer sends the browser back, however strict the others are.
        let lax = match settings.cookie.same_site {
            SameSite::Strict => SameSite::Lax,
            other => other,
        };
        let attributes = settings::Cookie { same_site: lax, ..settings.cookie.clone() };
        let cookie = Cookie::new(&attributes, &format!("{}.login", settings.name));
        // A code of one authorization server is never redeemed at another, whatever the file says by then.
        let bound = [cookie.name(), "login v2", &settings.name, issuer, &settings.client.id];
        Self { place: place(&bound.map(str::as_bytes)), cookie, ring }
    }

    /// The logins under way, and which cookies hold them. What does not open holds none.
    pub(crate) fn read(&self, headers: &HeaderMap) -> (LoginTransactions, CookieParts) {
        let presented = self.cookie.find(headers);
        let opened = presented.text().and_then(|text| self.ring.open(&self.place, &text));
        let pending =
            opened.and_then(|bytes| LoginTransactions::from_bytes(&bytes)).unwrap_or_default();
        (pending, presented.held())
    }

    /// The cookies that hold `login_transaction` from now on.
    pub(crate) fn write(&self, pending: &LoginTransactions, held: CookieParts) -> Vec<HeaderValue> {
        if pending.is_empty() {
            return self.cookie.clear(held);
        }
        let text = self.ring.seal(&self.place, &pending.to_bytes());
        // Five at most, each of bounded size: they fit.
        self.cookie.set(&text, held).unwrap_or_default()
    }

    pub(crate) const fn cookie(&self) -> &Cookie {
        &self.cookie
    }
}

const MAX_TRANSACTIONS: usize = 5;
const TRANSACTION_LIFETIME: Duration = Duration::from_secs(600);
/// A longer wish leads to `after_login`.
const MAX_TARGET: usize = 1024;
const HEAD_LEN: usize = 32 + 8 + 1 + 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOON: Timestamp = Timestamp::from_secs(1_700_049_600);

    #[test]
    fn two_tabs_both_finish_and_each_only_once() {
        let mut pending = LoginTransactions::default();
        let one = pending.begin(Some("/one"), 0, NOON).state();
        let two = pending.begin(Some("/two"), 0, NOON).state();
        let mut pending = LoginTransactions::from_bytes(&pending.to_bytes()).unwrap();

        assert_eq!(pending.finish(&two, NOON).unwrap().target.as_deref(), Some("/two"));
        assert_eq!(pending.finish(&one, NOON).unwrap().target.as_deref(), Some("/one"));
        assert!(pending.finish(&one, NOON).is_none() && pending.is_empty());
    }

    #[test]
    fn the_oldest_of_six_gives_way() {
        let mut pending = LoginTransactions::default();
        let states: Vec<_> = (0..6).map(|_| pending.begin(None, 0, NOON).state()).collect();

        assert!(pending.finish(&states[0], NOON).is_none());
        assert!(states[1..].iter().all(|state| pending.finish(state, NOON).is_some()));
    }

    #[test]
    fn a_login_is_forgotten_after_ten_minutes() {
        let mut pending = LoginTransactions::default();
        let state = pending.begin(None, 0, NOON).state();

        assert!(pending.finish(&state, NOON.plus_secs(600)).is_none());
        assert!(pending.finish(&state, NOON.plus_secs(599)).is_some());
    }

    #[test]
    fn what_comes_back_is_of_no_use_for_another_part() {
        let mut pending = LoginTransactions::default();
        let login = pending.begin(None, 2, NOON);

        let parts = [login.derive("state"), login.nonce(), login.verifier().expose().clone()];
        assert!(parts[0] != parts[1] && parts[1] != parts[2] && parts[0] != parts[2]);
        assert!(parts.iter().all(|part| part.len() == 43));
        assert_eq!(restarts(&login.state()), Some(2));
        assert!(["", "a", "a.1", &"a".repeat(45)].iter().all(|other| restarts(other).is_none()));
    }

    #[test]
    fn the_challenge_is_the_verifiers_digest() {
        // RFC 7636, appendix B, checks the arithmetic.
        let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        let challenge =
            URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, verifier.as_bytes()));
        assert_eq!(challenge, "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    #[test]
    fn what_fills_the_cookie_still_fits() {
        let mut pending = LoginTransactions::default();
        for _ in 0..MAX_TRANSACTIONS {
            pending.begin(Some(&"x".repeat(MAX_TARGET)), 0, NOON);
        }
        assert!(pending.begin(Some(&"x".repeat(MAX_TARGET + 1)), 0, NOON).target.is_none());
        assert!(pending.to_bytes().len() < 8 * 2800);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Some(pending) = LoginTransactions::from_bytes(&bytes) {
                prop_assert_eq!(&**pending.to_bytes(), &*bytes);
            }
        }
    }
}
