//! Login transactions: logins begun in a browser whose callback has not arrived.
//!
//! Each has a seed, from which `state`, `nonce` and the PKCE verifier are
//! derived, and a target to continue to. One sealed cookie holds at most five,
//! for ten minutes, so that two tabs can both finish.

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
use crate::base::random::random;
use crate::base::secret::Secret;
use crate::session::cookies::cookie::{Cookie, CookieParts};
use crate::session::cookies::seal::{KeyRing, associated_data};
use crate::session::settings;
use crate::session::settings::{SameSite, Settings};

/// The pending logins of one browser, oldest first.
#[derive(Debug, Default)]
pub(crate) struct LoginTransactions(Vec<LoginTransaction>);

impl LoginTransactions {
    /// Begins a login that leads to `target`; evicts the oldest if there are already five.
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

    /// Removes and returns the login that made `state`; each finishes once.
    pub(crate) fn finish(&mut self, state: &str, now: Timestamp) -> Option<LoginTransaction> {
        let of = |login: &LoginTransaction| {
            login.is_fresh(now) && bool::from(login.state().as_bytes().ct_eq(state.as_bytes()))
        };
        let at = self.0.iter().position(of)?;
        Some(self.0.remove(at))
    }

    /// Whether no login is pending.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Encodes them for sealing.
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

    /// Decodes the output of [`LoginTransactions::to_bytes`]; `None` for other bytes.
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

/// One pending login.
pub(crate) struct LoginTransaction {
    seed: [u8; 32],
    began: Timestamp,
    /// The number of times it was restarted.
    pub(crate) restarts: u8,
    /// The requested target of the login, if any.
    pub(crate) target: Option<Box<str>>,
}

impl LoginTransaction {
    /// Binds the authorization response to this browser (RFC 6749 §10.12). Ends with the number of restarts.
    pub(crate) fn state(&self) -> String {
        format!("{}.{}", self.derive("state"), self.restarts)
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
        f.debug_struct("LoginTransaction").field("restarts", &self.restarts).finish_non_exhaustive()
    }
}

/// Reads from a `state` how often its login had been restarted; `None` if the gateway cannot have made it.
///
/// Unauthenticated input: use only to limit redirect loops.
pub(crate) fn restarts(state: &str) -> Option<u8> {
    let (random, count) = state.split_once('.')?;
    (random.len() == 43).then(|| count.parse().ok()).flatten()
}

/// The cookie that holds a browser's pending logins.
#[derive(Debug)]
pub(crate) struct PendingCookie {
    cookie: Cookie,
    associated_data: Box<[u8]>,
    ring: Arc<KeyRing>,
}

impl PendingCookie {
    pub(crate) fn new(settings: &Settings, issuer: &str, ring: Arc<KeyRing>) -> Self {
        // Browsers must send it with the issuer's redirect, even if the session's cookie is `Strict`.
        let lax = match settings.cookie.same_site {
            SameSite::Strict => SameSite::Lax,
            other => other,
        };
        let attributes = settings::Cookie { same_site: lax, ..settings.cookie.clone() };
        let cookie = Cookie::new(&attributes, &format!("{}.login", settings.name));
        // A code of one authorization server must never be redeemed at another, even if the configuration changes.
        let bound = [cookie.name(), "login v2", &settings.name, issuer, &settings.client.id];
        Self { associated_data: associated_data(&bound.map(str::as_bytes)), cookie, ring }
    }

    /// Reads the pending logins of a request and which parts of the cookie it has. A cookie that does not open holds none.
    pub(crate) fn read(&self, headers: &HeaderMap) -> (LoginTransactions, CookieParts) {
        let presented = self.cookie.find(headers);
        let plain = presented.text().and_then(|text| self.ring.open(&self.associated_data, &text));
        let pending =
            plain.and_then(|bytes| LoginTransactions::from_bytes(&bytes)).unwrap_or_default();
        (pending, presented.held())
    }

    /// Returns the `Set-Cookie` fields that store `pending`.
    pub(crate) fn write(&self, pending: &LoginTransactions, held: CookieParts) -> Vec<HeaderValue> {
        if pending.is_empty() {
            return self.cookie.clear(held);
        }
        let text = self.ring.seal(&self.associated_data, &pending.to_bytes());
        // Five at most, each of bounded size: they fit.
        self.cookie.set(&text, held).unwrap_or_default()
    }

    pub(crate) const fn cookie(&self) -> &Cookie {
        &self.cookie
    }
}

const MAX_TRANSACTIONS: usize = 5;
const TRANSACTION_LIFETIME: Duration = Duration::from_secs(600);
/// Bytes of a target; a longer one is ignored and the login leads to `after_login`.
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
    fn a_sixth_login_evicts_the_oldest() {
        let mut pending = LoginTransactions::default();
        let states: Vec<_> = (0..6).map(|_| pending.begin(None, 0, NOON).state()).collect();

        assert!(pending.finish(&states[0], NOON).is_none());
        assert!(states[1..].iter().all(|state| pending.finish(state, NOON).is_some()));
    }

    #[test]
    fn a_login_expires_after_ten_minutes() {
        let mut pending = LoginTransactions::default();
        let state = pending.begin(None, 0, NOON).state();

        assert!(pending.finish(&state, NOON.plus_secs(600)).is_none());
        assert!(pending.finish(&state, NOON.plus_secs(599)).is_some());
    }

    #[test]
    fn state_nonce_and_verifier_differ() {
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
    fn five_logins_of_maximum_size_fit_the_cookie() {
        let mut pending = LoginTransactions::default();
        for _ in 0..MAX_TRANSACTIONS {
            pending.begin(Some(&"x".repeat(MAX_TARGET)), 0, NOON);
        }
        assert!(pending.begin(Some(&"x".repeat(MAX_TARGET + 1)), 0, NOON).target.is_none());
        assert!(pending.to_bytes().len() < 8 * 2800);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_rejected(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Some(pending) = LoginTransactions::from_bytes(&bytes) {
                prop_assert_eq!(&**pending.to_bytes(), &*bytes);
            }
        }
    }
}
