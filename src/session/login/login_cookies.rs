//! The cookies of a browser's pending logins: one for each, so that tabs which
//! log in at the same time do not overwrite each other's.
//!
//! Their names come from a fixed set of slots; their number and size are
//! bounded. A login that loses its slot to another tab is restarted, with the
//! target from its `state`.

use core::time::Duration;
use std::sync::Arc;

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};

use super::deferred_forms::FormId;
use super::login_requirements::StepUp;
use super::login_transaction::{LoginTransaction, TRANSACTION_LIFETIME};
use crate::base::clock::Timestamp;
use crate::base::random::random;
use crate::session::cookies::cookie::{self, Cookie, CookieParts};
use crate::session::cookies::seal::{SealingKeys, associated_data};
use crate::session::settings;
use crate::session::settings::{SameSite, Settings};

/// The cookies that hold pending logins, and the one that counts completed ones.
#[derive(Debug)]
pub(crate) struct LoginCookies {
    /// The common beginning of their names.
    base: Box<str>,
    slots: Box<[Cookie]>,
    rounds: Cookie,
    /// The common beginning of the names of those that name a deferred form.
    form_base: Box<str>,
    forms: Box<[Cookie]>,
    associated_data: Box<[u8]>,
    target_data: Box<[u8]>,
    rounds_data: Box<[u8]>,
    step_up_data: Box<[u8]>,
    form_data: Box<[u8]>,
    ring: Arc<SealingKeys>,
    /// The bytes that all cookies of a request may take.
    max_cookie_bytes: usize,
}

/// The pending logins of one browser.
#[derive(Debug, Default)]
pub(crate) struct PendingLogins {
    /// With their slots, oldest first.
    logins: Vec<(usize, LoginTransaction, usize)>,
    /// The parts of each slot that the browser holds.
    held: Vec<(usize, CookieParts)>,
    /// The bytes that all other cookies take.
    others: usize,
}

impl PendingLogins {
    /// Removes and returns the login that made `state`; each finishes once.
    pub(crate) fn finish(&mut self, state: &str, now: Timestamp) -> Option<LoginTransaction> {
        let is_it = |(_, login, _): &(_, LoginTransaction, _)| {
            login.is_fresh(now) && login.has_state(state)
        };
        let at = self.logins.iter().position(is_it)?;
        Some(self.logins.remove(at).1)
    }
}

impl LoginCookies {
    pub(crate) fn new(settings: &Settings, issuer: &str, ring: Arc<SealingKeys>) -> Self {
        // Browsers must send them with the issuer's redirect, even if the session's cookie is `Strict`.
        let lax = match settings.cookie.same_site {
            SameSite::Strict => SameSite::Lax,
            other => other,
        };
        let attributes = settings::Cookie { same_site: lax, ..settings.cookie.clone() };
        let base = format!("{}{}.login", attributes.prefix, settings.name);
        let slot =
            |name: char| Cookie::new(&attributes, &format!("{}.login.{name}", settings.name));
        let form = |name: char| Cookie::new(&attributes, &format!("{}.form.{name}", settings.name));
        // A code of one authorization server must never be redeemed at another, even if the configuration changes.
        let bound = |purpose| {
            let parts = [&*base, purpose, &settings.name, issuer, &settings.client.id];
            associated_data(&parts.map(str::as_bytes))
        };
        Self {
            associated_data: bound("login v5"),
            target_data: bound("target"),
            rounds_data: bound("rounds"),
            step_up_data: bound("step-up"),
            form_data: bound("form"),
            slots: ('a'..='z').map(slot).collect(),
            rounds: Cookie::new(&attributes, &format!("{}.rounds", settings.name)),
            form_base: format!("{}{}.form", attributes.prefix, settings.name).into(),
            forms: ('a'..='h').map(form).collect(),
            base: base.into(),
            ring,
            max_cookie_bytes: settings.max_cookie_bytes,
        }
    }

    /// Whether `name` names one of them.
    pub(crate) fn owns(&self, name: &[u8]) -> bool {
        let is_one = |base: &str| {
            let rest = name.strip_prefix(base.as_bytes());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"."))
        };
        is_one(&self.base) || self.rounds.owns(name) || is_one(&self.form_base)
    }

    /// Reads the pending logins of a request. A cookie that does not open holds none.
    pub(crate) fn read(&self, headers: &HeaderMap, now: Timestamp) -> PendingLogins {
        let mut pending = PendingLogins::default();
        let mut own = 0;
        for (slot, cookie) in self.slots.iter().enumerate() {
            let presented = cookie.find(headers);
            if presented.is_empty() {
                continue;
            }
            pending.held.push((slot, presented.held()));
            own += presented.len();
            let open = |text: &[u8]| {
                LoginTransaction::from_bytes(&self.ring.open(&self.associated_data, text)?)
            };
            let logins = presented.texts().filter_map(|text| open(&text));
            let fresh = logins.filter(|login| login.is_fresh(now));
            pending.logins.extend(fresh.map(|login| (slot, login, presented.len())));
        }
        pending.logins.sort_by_key(|(_, login, _)| login.began());
        let all: usize = headers.get_all(COOKIE).iter().map(|field| field.len() + 2).sum();
        pending.others = all.saturating_sub(own);
        pending
    }

    /// Returns the `Set-Cookie` fields that add `login`, without which it cannot finish, and clear what is outdated:
    /// the oldest logins make room.
    pub(crate) fn add(
        &self,
        pending: &PendingLogins,
        login: &LoginTransaction,
    ) -> Vec<HeaderValue> {
        let seal =
            |login: &LoginTransaction| self.ring.seal(&self.associated_data, &login.to_bytes());
        let mut text = seal(login);
        // Together with all other cookies they must not make a request that the gateway refuses.
        let room = self.max_cookie_bytes.saturating_sub(pending.others).min(MAX_BYTES);
        if text.len() > room {
            text = seal(&login.without_target());
        }
        let mut kept = &pending.logins[..];
        let mut bytes: usize = kept.iter().map(|(_, _, bytes)| bytes).sum::<usize>() + text.len();
        while let Some(((_, _, oldest), rest)) = kept.split_first()
            && (bytes > room || kept.len() >= MAX_LOGINS)
        {
            bytes -= oldest;
            kept = rest;
        }
        let is_kept = |slot: usize| kept.iter().any(|(taken, ..)| *taken == slot);
        let free: Vec<_> = (0..self.slots.len()).filter(|slot| !is_kept(*slot)).collect();
        let slot = any_slot(&free, |slot| pending.held.iter().any(|(held, _)| *held == slot));
        let stale = |slot| {
            let held = pending.held.iter().find(|(held, _)| *held == slot);
            held.map(|(_, parts)| *parts).unwrap_or_default()
        };
        let seconds = TRANSACTION_LIFETIME.as_secs();
        // A target has a bounded length: the cookie takes it.
        let mut fields = self.slots[slot].set_for(&text, stale(slot), seconds).unwrap_or_default();
        for (held, parts) in &pending.held {
            if *held != slot && !is_kept(*held) {
                fields.extend(self.slots[*held].clear(*parts));
            }
        }
        fields
    }

    /// Returns the `Set-Cookie` fields that clear every cookie which holds none of the `pending` logins.
    pub(crate) fn clear_finished(&self, pending: &PendingLogins) -> Vec<HeaderValue> {
        let is_pending = |slot: usize| pending.logins.iter().any(|(taken, ..)| *taken == slot);
        let done = pending.held.iter().filter(|(slot, _)| !is_pending(*slot));
        done.flat_map(|(slot, parts)| self.slots[*slot].clear(*parts)).collect()
    }

    /// Seals a target into a `state`, for a callback whose cookie is lost; `None` if it would make the `state` too long.
    pub(crate) fn seal_into_state(&self, target: &str) -> Option<String> {
        (target.len() <= MAX_TARGET_IN_STATE).then(|| self.seal_target(target))
    }

    /// Seals a target.
    pub(crate) fn seal_target(&self, target: &str) -> String {
        self.ring.seal(&self.target_data, target.as_bytes())
    }

    /// Opens the output of [`LoginCookies::seal_target`].
    pub(crate) fn open_target(&self, text: &str) -> Option<String> {
        let bytes = self.ring.open(&self.target_data, text.as_bytes())?;
        String::from_utf8(bytes.to_vec()).ok()
    }

    /// Seals the demands on a login into its URL.
    pub(crate) fn seal_step_up(&self, step_up: &StepUp) -> String {
        self.ring.seal(&self.step_up_data, &step_up.to_bytes())
    }

    /// Opens the output of [`LoginCookies::seal_step_up`].
    pub(crate) fn open_step_up(&self, text: &str) -> Option<StepUp> {
        StepUp::from_bytes(&self.ring.open(&self.step_up_data, text.as_bytes())?)
    }

    /// Returns the `Set-Cookie` fields that have a deferred form sent by the next request of `session` to its address, beside
    /// the forms that a request with these `headers` names.
    pub(crate) fn release_form(
        &self,
        headers: &HeaderMap,
        id: FormId,
        session: &str,
    ) -> Vec<HeaderValue> {
        let all: Vec<_> = (0..self.forms.len()).collect();
        let slot = any_slot(&all, |slot| !self.forms[slot].find(headers).is_empty());
        self.set_form(slot, id, session)
    }

    /// Returns the `Set-Cookie` fields that have `form` sent by a request of another `session`.
    pub(crate) fn carry_form_over(&self, form: &ReleasedForm, session: &str) -> Vec<HeaderValue> {
        self.set_form(form.slot, form.id, session)
    }

    fn set_form(&self, slot: usize, id: FormId, session: &str) -> Vec<HeaderValue> {
        let text = self.ring.seal(&self.form_data, &[&id, session.as_bytes()].concat());
        let seconds = ROUND_MEMORY.as_secs();
        self.forms[slot].set_for(&text, CookieParts::default(), seconds).unwrap_or_default()
    }

    /// Returns the forms that a request may be to send.
    pub(crate) fn released_forms(&self, headers: &HeaderMap) -> Vec<ReleasedForm> {
        if !cookie::is_any(headers, |name| name.starts_with(self.form_base.as_bytes())) {
            return Vec::new();
        }
        let open = |slot, text: &[u8]| {
            let bytes = self.ring.open(&self.form_data, text)?;
            let (id, session) = bytes.split_first_chunk()?;
            let session = String::from_utf8(session.to_vec()).ok()?;
            Some(ReleasedForm { slot, id: *id, session })
        };
        let slots = self.forms.iter().enumerate();
        let presented = slots.map(|(slot, cookie)| (slot, cookie.find(headers)));
        presented
            .filter_map(|(slot, held)| held.texts().find_map(|text| open(slot, &text)))
            .collect()
    }

    /// Returns the `Set-Cookie` fields that forget a form.
    pub(crate) fn forget_form(&self, headers: &HeaderMap, form: &ReleasedForm) -> Vec<HeaderValue> {
        let cookie = &self.forms[form.slot];
        cookie.clear(cookie.find(headers).held())
    }

    /// Returns the number of logins that the browser has completed in the last minute, as it says.
    pub(crate) fn completed(&self, headers: &HeaderMap, now: Timestamp) -> u8 {
        let count = |text: &[u8]| {
            let bytes = self.ring.open(&self.rounds_data, text)?;
            let (at, rest) = bytes.split_first_chunk()?;
            let [rounds] = rest else { return None };
            let at = Timestamp::from_nanos(u64::from_be_bytes(*at));
            (now.since(at) < ROUND_MEMORY).then_some(*rounds)
        };
        let presented = self.rounds.find(headers);
        presented.texts().filter_map(|text| count(&text)).max().unwrap_or_default()
    }

    /// Returns the `Set-Cookie` fields that record a completed login, the `rounds`th in a row.
    pub(crate) fn note_completed(&self, rounds: u8, now: Timestamp) -> Vec<HeaderValue> {
        let mut bytes = now.as_nanos().to_be_bytes().to_vec();
        bytes.push(rounds);
        let text = self.ring.seal(&self.rounds_data, &bytes);
        let seconds = ROUND_MEMORY.as_secs();
        self.rounds.set_for(&text, CookieParts::default(), seconds).unwrap_or_default()
    }

    /// Returns the `Set-Cookie` fields that forget completed logins.
    pub(crate) fn forget_completed(&self, headers: &HeaderMap) -> Vec<HeaderValue> {
        self.rounds.clear(self.rounds.find(headers).held())
    }
}

/// A form that a browser may send after a login.
#[derive(Debug)]
pub(crate) struct ReleasedForm {
    slot: usize,
    pub(crate) id: FormId,
    /// The alias of the session that may send it.
    pub(crate) session: String,
}

/// Returns one of the `free` slots, if possible none that the browser holds: requests at the same time know nothing of each
/// other's.
fn any_slot(free: &[usize], is_held: impl Fn(usize) -> bool) -> usize {
    let unused: Vec<_> = free.iter().copied().filter(|slot| !is_held(*slot)).collect();
    let choice = if unused.is_empty() { free } else { &unused };
    choice[usize::from(random::<1>()[0]) % choice.len()]
}

/// Logins that one browser may have pending.
const MAX_LOGINS: usize = 20;
/// Bytes that pending logins may take in a request.
const MAX_BYTES: usize = 8 << 10;
/// Bytes of a target that a `state` carries; some issuers limit the length of a `state`.
const MAX_TARGET_IN_STATE: usize = 512;
/// The time after a login in which the next one counts as a sign that it led to no session.
const ROUND_MEMORY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use url::Url;

    use super::super::login_transaction::LoginIntent;
    use super::*;
    use crate::issuer::{Client, ClientAuth};
    use crate::session::settings::Flow;

    const NOON: Timestamp = Timestamp::from_secs(1_700_049_600);

    fn cookies() -> LoginCookies {
        let client = Client { id: "web".into(), auth: ClientAuth::None };
        let url = Url::parse("https://www.example.com").unwrap();
        let settings = Settings::new("web", "main", client, Flow::Code, url);
        LoginCookies::new(&settings, "https://auth.example.com", Arc::new(SealingKeys::new(&[])))
    }

    fn login(target: &str, at: u64) -> LoginTransaction {
        let target = Some(target.into());
        LoginTransaction::begin(
            LoginIntent { target, ..LoginIntent::default() },
            NOON.plus_secs(at),
        )
    }

    /// A browser's cookies.
    #[derive(Default)]
    struct Jar(std::collections::BTreeMap<String, String>);

    impl Jar {
        fn take(&mut self, fields: &[HeaderValue]) {
            for field in fields {
                let field = field.to_str().unwrap();
                let (name, value) = field.split(';').next().unwrap().split_once('=').unwrap();
                if field.contains("Max-Age=0") {
                    self.0.remove(name);
                } else {
                    self.0.insert(name.to_owned(), value.to_owned());
                }
            }
        }

        fn headers(&self) -> HeaderMap {
            let pairs: Vec<_> =
                self.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
            HeaderMap::from_iter([(COOKIE, HeaderValue::from_str(&pairs.join("; ")).unwrap())])
        }
    }

    #[test]
    fn two_tabs_both_finish_and_each_only_once() {
        let (cookies, mut jar) = (cookies(), Jar::default());
        let (one, two) = (login("/one", 0), login("/two", 1));
        for login in [&one, &two] {
            let pending = cookies.read(&jar.headers(), NOON);
            jar.take(&cookies.add(&pending, login));
        }

        for (login, target) in [(&two, "/two"), (&one, "/one")] {
            let mut pending = cookies.read(&jar.headers(), NOON);
            let finished = pending.finish(&login.state(), NOON).unwrap();
            assert_eq!(finished.intent.target.as_deref(), Some(target));
            jar.take(&cookies.clear_finished(&pending));
        }

        assert!(jar.0.is_empty(), "{:?}", jar.0.keys());
    }

    #[test]
    fn pending_logins_are_bounded_in_number_and_size() {
        for target in ["/".to_owned(), format!("/{}", "x".repeat(3_000))] {
            let (cookies, mut jar) = (cookies(), Jar::default());
            let mut last = login("/", 0);
            for at in 0..60 {
                last = login(&target, at);
                let pending = cookies.read(&jar.headers(), NOON);
                jar.take(&cookies.add(&pending, &last));
            }

            let bytes: usize = jar.0.iter().map(|(name, value)| name.len() + value.len() + 3).sum();
            assert!(jar.0.len() <= MAX_LOGINS && bytes < MAX_BYTES + 1_000, "{bytes}");
            let mut pending = cookies.read(&jar.headers(), NOON);
            assert!(pending.finish(&last.state(), NOON).is_some(), "the latest was evicted");
        }
    }

    #[test]
    fn expired_and_foreign_cookies_are_cleared() {
        let (cookies, mut jar) = (cookies(), Jar::default());
        jar.take(&cookies.add(&PendingLogins::default(), &login("/", 0)));
        jar.0.insert("__Host-web.login.q".to_owned(), "1foreign".to_owned());

        let pending = cookies.read(&jar.headers(), NOON.plus_secs(601));
        jar.take(&cookies.add(&pending, &login("/", 601)));

        assert_eq!(jar.0.len(), 1);
    }

    #[test]
    fn completed_logins_are_counted_for_a_minute() {
        let (cookies, mut jar) = (cookies(), Jar::default());
        jar.take(&cookies.note_completed(2, NOON));

        assert_eq!(cookies.completed(&jar.headers(), NOON.plus_secs(59)), 2);
        assert_eq!(cookies.completed(&jar.headers(), NOON.plus_secs(60)), 0);
        jar.take(&cookies.forget_completed(&jar.headers()));
        assert!(jar.0.is_empty());
    }
}
