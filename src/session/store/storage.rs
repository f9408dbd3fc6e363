//! Session storage between two requests: sealed cookies, cookies with the
//! tokens in plain text, or the server. Callers need not know which.

use std::borrow::Cow;
use std::sync::Arc;

use core::fmt;
use core::hash::{BuildHasher, Hasher};
use std::hash::{DefaultHasher, RandomState};

use core::time::Duration;

use futures_util::future::BoxFuture;
use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};
use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::loaded_session::LoadedSession;
use super::server_side::Store;
use super::state::{Id, SessionState};
use crate::base::clock::Timestamp;
use crate::base::secret::Secret;
use crate::redis::Unavailable;
use crate::session::cookies::cookie::{Cookie, CookieParts, CookieValues, TooLarge};
use crate::session::cookies::seal::{SealingKeys, associated_data};
use crate::session::settings::{ForwardedSessionToken, Settings, TokenStorage};

/// The storage of one `sessions.<name>`, and the cookies that lead to it.
#[derive(Debug)]
pub(crate) struct SessionStorage {
    kind: StorageKind,
    forward: ForwardedSessionToken,
    /// The bytes that all cookies of a request may take.
    max_cookie_bytes: usize,
}

#[derive(Debug)]
enum StorageKind {
    Sealed {
        cookie: Cookie,
        seal: Box<[u8]>,
        ring: Arc<SealingKeys>,
        cache: OpenedCookies,
        latest: LatestCookies,
    },
    /// The tokens in plain cookies, and a sealed cookie with all else, bound to them.
    Plain {
        access: Cookie,
        refresh: Cookie,
        rest: Cookie,
        seal: Box<[u8]>,
        ring: Arc<SealingKeys>,
        cache: OpenedCookies,
        latest: LatestCookies,
    },
    Server {
        cookie: Cookie,
        store: Arc<Store>,
    },
}

impl SessionStorage {
    /// Returns the storage; cookies are sealed with the associated data `seal` of [`session_associated_data`].
    pub(crate) fn new(
        settings: &Settings,
        seal: Box<[u8]>,
        ring: Arc<SealingKeys>,
        store: Option<Arc<Store>>,
    ) -> Self {
        let named = |name: &str| Cookie::new(&settings.cookie, name);
        let kind = match (settings.tokens, store) {
            (TokenStorage::PlainCookies, _) => StorageKind::Plain {
                access: named("access_token"),
                refresh: named("refresh_token"),
                rest: named(&settings.name),
                seal,
                ring,
                cache: OpenedCookies::new(),
                latest: LatestCookies::new(),
            },
            (TokenStorage::Server(_), Some(store)) => {
                StorageKind::Server { cookie: named(&settings.name), store }
            }
            (TokenStorage::SealedCookies | TokenStorage::Server(_), _) => {
                let cookie = named(&settings.name);
                StorageKind::Sealed {
                    cookie,
                    seal,
                    ring,
                    cache: OpenedCookies::new(),
                    latest: LatestCookies::new(),
                }
            }
        };
        Self { kind, forward: settings.forward, max_cookie_bytes: settings.max_cookie_bytes }
    }

    /// Reads the cookies of a request.
    pub(crate) fn find<'a>(&self, headers: &'a HeaderMap) -> PresentedCookies<'a> {
        let presented = self.find_own(headers);
        let all: usize = headers.get_all(COOKIE).iter().map(|field| field.len() + 2).sum();
        let own = presented.first.len() + presented.second.len() + presented.third.len();
        PresentedCookies { others: all.saturating_sub(own), ..presented }
    }

    fn find_own<'a>(&self, headers: &'a HeaderMap) -> PresentedCookies<'a> {
        match &self.kind {
            StorageKind::Sealed { cookie, .. } | StorageKind::Server { cookie, .. } => {
                PresentedCookies { first: cookie.find(headers), ..PresentedCookies::default() }
            }
            StorageKind::Plain { access, refresh, rest, .. } => {
                let (first, second) = (access.find(headers), refresh.find(headers));
                PresentedCookies {
                    first,
                    second,
                    third: rest.find(headers),
                    ..PresentedCookies::default()
                }
            }
        }
    }

    /// Loads the session of a request; `None` if it presents none that opens. If there are several, such as one of an
    /// earlier `Domain`, the one of the latest login counts.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if the session may be stored in Redis, which does not respond.
    pub(crate) async fn open(
        &self,
        presented: &PresentedCookies<'_>,
    ) -> Result<Option<Arc<LoadedSession>>, Unavailable> {
        Ok(self.open_all(presented).await?.into_iter().reduce(later_login))
    }

    /// Loads all sessions of a request.
    ///
    /// # Errors
    ///
    /// As [`SessionStorage::open`].
    pub(crate) async fn open_all(
        &self,
        presented: &PresentedCookies<'_>,
    ) -> Result<Vec<Arc<LoadedSession>>, Unavailable> {
        match &self.kind {
            StorageKind::Sealed { seal, ring, cache, .. } => {
                let open = |text: Cow<'_, [u8]>| {
                    cache.find(text, |text| {
                        let state = SessionState::from_bytes(&ring.open(seal, text)?)?;
                        Some(LoadedSession::new(state, self.forward))
                    })
                };
                Ok(presented.first.texts().filter_map(open).collect())
            }
            StorageKind::Plain { seal, ring, cache, .. } => {
                let open = |access: &str, refresh: Option<&str>, text: Cow<'_, [u8]>| {
                    let found = cache.find(text, |text| {
                        let associated_data = beside(seal, access, refresh);
                        let rest = SessionState::from_bytes(&ring.open(&associated_data, text)?)?;
                        let refresh_token = refresh.map(Secret::from);
                        let state =
                            SessionState { access_token: access.into(), refresh_token, ..rest };
                        Some(LoadedSession::new(state, self.forward))
                    });
                    // A cached cookie may have been opened beside other tokens.
                    found.filter(|found| {
                        let state = &found.state;
                        state.access_token.expose() == access
                            && state.refresh_token.as_ref().map(|t| t.expose().as_str()) == refresh
                    })
                };
                // A session without a refresh token may stand beside a cookie of that name from elsewhere.
                let refreshes = presented.second.plain_values().take(MAX_PLAIN_CANDIDATES);
                let refreshes: Vec<_> = refreshes.map(Some).chain([None]).collect();
                let mut found = Vec::new();
                for text in presented.third.texts().take(MAX_PLAIN_CANDIDATES) {
                    for access in presented.first.plain_values().take(MAX_PLAIN_CANDIDATES) {
                        for refresh in &refreshes {
                            found.extend(open(access, *refresh, text.clone()));
                        }
                    }
                }
                Ok(found)
            }
            StorageKind::Server { store, .. } => {
                let mut found = Vec::new();
                for id in ids(presented) {
                    found.extend(store.find(id).await?);
                }
                Ok(found)
            }
        }
    }

    /// Returns the ids of the sessions that a request presents, if its cookies hold nothing else: usually one.
    pub(crate) fn ids(&self, presented: &PresentedCookies<'_>) -> Vec<Id> {
        match &self.kind {
            StorageKind::Server { .. } => ids(presented).collect(),
            StorageKind::Sealed { .. } | StorageKind::Plain { .. } => Vec::new(),
        }
    }

    /// Stores a new session and returns the cookies that lead to it.
    ///
    /// # Errors
    ///
    /// [`StorageError`] if the session does not fit into cookies, or other instances could not find it; nothing is stored then.
    pub(crate) async fn begin(
        &self,
        loaded: &Arc<LoadedSession>,
        held: StoredSession,
    ) -> Result<Vec<HeaderValue>, StorageError> {
        if let StorageKind::Server { cookie, store } = &self.kind {
            store.keep(Arc::clone(loaded)).await?;
            return Ok(vec![cookie.set_plain(&loaded.state.id.to_text())?]);
        }
        Ok(self.cookies_of(loaded, held)?)
    }

    /// Ends, in the background, the session `id`, which cannot be read now, and passes it to `revoke_tokens`.
    /// Returns `false` if too many writes are pending.
    pub(crate) fn end_unseen(
        &self,
        id: Id,
        revoke_tokens: impl FnOnce(Option<LoadedSession>) -> BoxFuture<'static, ()> + Send + 'static,
    ) -> bool {
        let StorageKind::Server { store, .. } = &self.kind else { return false };
        store.end_unseen(id, revoke_tokens)
    }

    /// Stores a later state of a session, if it is stored on the server.
    pub(crate) async fn keep(&self, later: &Arc<LoadedSession>) {
        if let StorageKind::Server { store, .. } = &self.kind {
            store.renew(later).await;
        }
    }

    /// Returns the cookies for a later state of a session; none if the browser's stay as they are.
    ///
    /// # Errors
    ///
    /// [`TooLarge`] if the session does not fit into cookies any more.
    pub(crate) fn cookies_of(
        &self,
        loaded: &LoadedSession,
        held: StoredSession,
    ) -> Result<Vec<HeaderValue>, TooLarge> {
        let cookies = self.all_cookies_of(loaded, held)?;
        // What a browser sends back: name and value, up to the first attribute.
        let len = |field: &HeaderValue| {
            let bytes = field.as_bytes();
            bytes.iter().position(|byte| *byte == b';').unwrap_or(bytes.len()) + 2
        };
        let own: usize = cookies.iter().map(len).sum();
        // The gateway would refuse every request of this browser, the one that deletes the cookies included.
        if own + held.others > self.max_cookie_bytes {
            return Err(TooLarge);
        }
        Ok(cookies)
    }

    fn all_cookies_of(
        &self,
        loaded: &LoadedSession,
        held: StoredSession,
    ) -> Result<Vec<HeaderValue>, TooLarge> {
        match &self.kind {
            StorageKind::Sealed { cookie, seal, ring, latest, .. } => {
                latest.note(loaded);
                let text = loaded.sealed(|state| ring.seal(seal, &state.to_bytes()));
                cookie.set(text, held.first)
            }
            StorageKind::Plain { access, refresh, rest, seal, ring, latest, .. } => {
                latest.note(loaded);
                let SessionState { access_token, refresh_token, .. } = &loaded.state;
                let mut cookies = vec![access.set_plain(access_token.expose())?];
                match refresh_token {
                    Some(token) => cookies.push(refresh.set_plain(token.expose())?),
                    // A cookie of an earlier session would not belong to this one.
                    None => cookies.extend(refresh.clear(held.second)),
                }
                let text = loaded.sealed(|state| {
                    let refresh = state.refresh_token.as_ref().map(|token| token.expose().as_str());
                    let associated_data = beside(seal, state.access_token.expose(), refresh);
                    ring.seal(&associated_data, &state.without_tokens().to_bytes())
                });
                cookies.extend(rest.set(text, held.third)?);
                Ok(cookies)
            }
            StorageKind::Server { .. } => Ok(Vec::new()),
        }
    }

    /// Whether the session fits into its storage, beside the other cookies of a browser that holds `held`.
    pub(crate) fn fits(&self, loaded: &LoadedSession, held: StoredSession) -> bool {
        self.cookies_of(loaded, held).is_ok()
    }

    /// Removes a session from the server.
    pub(crate) async fn forget(&self, id: Id) {
        if let StorageKind::Server { store, .. } = &self.kind {
            store.remove(id).await;
        }
    }

    /// Returns fields that clear the cookies.
    pub(crate) fn clear(&self, held: StoredSession) -> Vec<HeaderValue> {
        match &self.kind {
            StorageKind::Sealed { cookie, .. } | StorageKind::Server { cookie, .. } => {
                cookie.clear(held.first)
            }
            StorageKind::Plain { access, refresh, rest, .. } => {
                [access.clear(held.first), refresh.clear(held.second), rest.clear(held.third)]
                    .concat()
            }
        }
    }

    /// Whether a cookie is sealed by a key that this instance does not have, and another one may.
    pub(crate) fn is_of_unknown_key(&self, presented: &PresentedCookies<'_>) -> bool {
        let (cookie, ring) = match &self.kind {
            StorageKind::Sealed { ring, .. } => (&presented.first, ring),
            StorageKind::Plain { ring, .. } => (&presented.third, ring),
            StorageKind::Server { .. } => return false,
        };
        cookie.texts().any(|text| ring.is_of_unknown_key(&text))
    }

    /// Whether a request presents a session that does not open here, because it is sealed by a key that another instance has.
    pub(crate) async fn is_sealed_elsewhere(&self, presented: &PresentedCookies<'_>) -> bool {
        let StorageKind::Server { store, .. } = &self.kind else {
            return self.is_of_unknown_key(presented);
        };
        for id in ids(presented) {
            if store.is_sealed_elsewhere(id).await {
                return true;
            }
        }
        false
    }

    /// Whether `name` names a cookie of this session or a part of one.
    pub(crate) fn owns(&self, name: &[u8]) -> bool {
        match &self.kind {
            StorageKind::Sealed { cookie, .. } | StorageKind::Server { cookie, .. } => {
                cookie.owns(name)
            }
            StorageKind::Plain { access, refresh, rest, .. } => {
                access.owns(name) || refresh.owns(name) || rest.owns(name)
            }
        }
    }

    /// Returns the session with `now` as its last use, unless one was recorded within `every`.
    pub(crate) fn seen(
        &self,
        loaded: Arc<LoadedSession>,
        now: Timestamp,
        every: Duration,
    ) -> Arc<LoadedSession> {
        if now.since(loaded.state.seen) >= every {
            loaded.touch(now, every, self.forward)
        } else {
            loaded
        }
    }

    /// Whether no later state of the session can exist: browsers may have any number of copies of a sealed cookie, and
    /// only this process's own are known to it. If `are_others`, other instances write them as well, and none is the latest.
    pub(crate) fn is_latest(&self, loaded: &LoadedSession, are_others: bool) -> bool {
        match &self.kind {
            StorageKind::Sealed { latest, .. } | StorageKind::Plain { latest, .. } => {
                !are_others && latest.is(loaded)
            }
            StorageKind::Server { .. } => true,
        }
    }

    /// Whether other instances store the same sessions, and can end them.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(&self.kind, StorageKind::Server { store, .. } if store.is_shared())
    }
}

/// The reason why a new session is not stored.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum StorageError {
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Returns the session of the later login, or the later state of one.
fn later_login(one: Arc<LoadedSession>, other: Arc<LoadedSession>) -> Arc<LoadedSession> {
    let order =
        |loaded: &LoadedSession| (loaded.state.since, loaded.state.received, loaded.state.seen);
    if order(&other) > order(&one) { other } else { one }
}

/// The ids of sessions that a request presents: usually one.
fn ids(presented: &PresentedCookies<'_>) -> impl Iterator<Item = Id> {
    presented.first.plain_values().filter_map(Id::from_text).take(MAX_PLAIN_CANDIDATES)
}

/// Returns the associated data of sealed sessions: cookie name, format, session, issuer and client. With another
/// `issuer` or client in the configuration, earlier cookies do not open.
pub(crate) fn session_associated_data(settings: &Settings, issuer: &str) -> Box<[u8]> {
    let cookie = Cookie::new(&settings.cookie, &settings.name);
    let bound = [cookie.name(), "v2", &settings.name, issuer, &settings.client.id];
    associated_data(&bound.map(str::as_bytes))
}

/// Returns the associated data of the cookie sealed beside these tokens: it opens with no others.
fn beside(seal: &[u8], access: &str, refresh: Option<&str>) -> Box<[u8]> {
    let refresh = refresh.map_or([&b"none"[..], b""], |token| [b"some", token.as_bytes()]);
    associated_data(&[seal, b"beside", access.as_bytes(), refresh[0], refresh[1]])
}

/// The cookies of one session as a request presents them.
#[derive(Debug, Default)]
pub(crate) struct PresentedCookies<'a> {
    first: CookieValues<'a>,
    second: CookieValues<'a>,
    third: CookieValues<'a>,
    csrf: CookieParts,
    /// The bytes that all other cookies of the request take.
    others: usize,
}

impl PresentedCookies<'_> {
    /// Adds the presented parts of the CSRF cookie.
    pub(crate) fn with_csrf(self, csrf: CookieParts) -> Self {
        Self { csrf, ..self }
    }

    /// Whether the request presents none.
    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_empty() && self.second.is_empty() && self.third.is_empty()
    }

    /// Returns which cookies the browser holds.
    pub(crate) fn held(&self) -> StoredSession {
        StoredSession {
            first: self.first.held(),
            second: self.second.held(),
            third: self.third.held(),
            csrf: self.csrf,
            others: self.others,
        }
    }
}

/// The cookies of one session that a browser holds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StoredSession {
    first: CookieParts,
    second: CookieParts,
    third: CookieParts,
    csrf: CookieParts,
    /// The bytes that all other cookies of the browser take.
    others: usize,
}

impl StoredSession {
    /// Returns the same beside other cookies of this many bytes.
    pub(crate) const fn beside(self, others: usize) -> Self {
        Self { others, ..self }
    }

    /// Returns the parts of the CSRF cookie.
    pub(crate) const fn csrf(self) -> CookieParts {
        self.csrf
    }
}

/// The last use of the sessions in recently written cookies, by alias.
struct LatestCookies(Cache<Arc<str>, Timestamp>);

impl LatestCookies {
    fn new() -> Self {
        let builder = Cache::builder().max_capacity(MAX_LATEST);
        Self(builder.eviction_policy(EvictionPolicy::lru()).build())
    }

    fn note(&self, loaded: &LoadedSession) {
        let seen = loaded.state.seen;
        self.0.entry_by_ref(&loaded.name).and_compute_with(|known| match known {
            Some(known) if *known.value() >= seen => Op::Nop,
            _ => Op::Put(seen),
        });
    }

    fn is(&self, loaded: &LoadedSession) -> bool {
        self.0.get(&loaded.name).is_some_and(|seen| seen <= loaded.state.seen)
    }
}

impl fmt::Debug for LatestCookies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Latest").field(&self.0.entry_count()).finish()
    }
}

/// Recently opened cookies, by their text: opening one costs more than the rest of a request.
struct OpenedCookies(Cache<Arc<[u8]>, Arc<LoadedSession>, CookieEnds>);

impl OpenedCookies {
    fn new() -> Self {
        let weight = |text: &Arc<[u8]>, _: &Arc<LoadedSession>| {
            // The text, about as much again for its content, and the overhead.
            u32::try_from(text.len() * 2 + 512).unwrap_or(u32::MAX)
        };
        let cache = Cache::builder()
            .weigher(weight)
            .max_capacity(MAX_OPENED_COOKIES_BYTES)
            // Parallel requests of a session share its loaded state: the newest must be admitted.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(OPENED_COOKIES_RETENTION)
            .build_with_hasher(CookieEnds(RandomState::new()));
        Self(cache)
    }

    fn find(
        &self,
        text: Cow<'_, [u8]>,
        open: impl FnOnce(&[u8]) -> Option<LoadedSession>,
    ) -> Option<Arc<LoadedSession>> {
        if let Some(loaded) = self.0.get(&*text) {
            return Some(loaded);
        }
        let loaded = Arc::new(open(&text)?);
        self.0.insert(text.into(), Arc::clone(&loaded));
        Some(loaded)
    }
}

impl fmt::Debug for OpenedCookies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OpenedCookies").field(&self.0.entry_count()).finish()
    }
}

/// Hashes both ends of a long text; texts that differ in the middle alone have one hash, and are distinguished by
/// comparison.
///
/// A sealed text begins with a random nonce and ends with an authentication
/// tag, and only texts that open are cached: clients cannot make two that collide.
#[derive(Clone)]
struct CookieEnds(RandomState);

impl BuildHasher for CookieEnds {
    type Hasher = EndsHasher;

    fn build_hasher(&self) -> EndsHasher {
        EndsHasher(self.0.build_hasher())
    }
}

struct EndsHasher(DefaultHasher);

impl Hasher for EndsHasher {
    fn write(&mut self, bytes: &[u8]) {
        match (bytes.first_chunk::<END_LEN>(), bytes.last_chunk::<END_LEN>()) {
            (Some(first), Some(last)) => {
                self.0.write(first);
                self.0.write(last);
            }
            _ => self.0.write(bytes),
        }
    }

    fn finish(&self) -> u64 {
        self.0.finish()
    }
}

/// Values of a repeated cookie that are tried where each is looked up or combined with others.
const MAX_PLAIN_CANDIDATES: usize = 4;
/// More than a key's identifier and a nonce at the front, and a tag at the back.
const END_LEN: usize = 32;
/// Sessions whose latest state is known, each about a hundred bytes.
const MAX_LATEST: u64 = 100_000;
const MAX_OPENED_COOKIES_BYTES: u64 = 64 << 20;
const OPENED_COOKIES_RETENTION: Duration = Duration::from_secs(300);
