//! Where a visit is between two requests: sealed at the browser, at the browser
//! with its tokens as they are, or on the server. The rest of the room does not know which.

use std::borrow::Cow;
use std::sync::Arc;

use core::fmt;
use core::hash::{BuildHasher, Hasher};
use std::hash::{DefaultHasher, RandomState};

use core::time::Duration;

use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue};
use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::loaded::LoadedSession;
use super::server_side::Store;
use super::state::{Id, SessionState};
use crate::base::clock::Timestamp;
use crate::base::secret::Secret;
use crate::session::cookies::cookie::{Cookie, CookieParts, Presented, TooLarge};
use crate::session::cookies::seal::{KeyRing, place};
use crate::session::settings::{Forward, Settings, TokenStorage};
use crate::store::Unavailable;

/// Where visits are kept, and the cookies that lead to them.
#[derive(Debug)]
pub(crate) struct SessionStorage {
    place: StorageKind,
    forward: Forward,
}

#[derive(Debug)]
enum StorageKind {
    Sealed {
        cookie: Cookie,
        seal: Box<[u8]>,
        ring: Arc<KeyRing>,
        opened: OpenedCookies,
        latest: LatestCookies,
    },
    /// The tokens as they are, and beside them a sealed cookie with all else, bound to them.
    Plain {
        access: Cookie,
        refresh: Cookie,
        rest: Cookie,
        seal: Box<[u8]>,
        ring: Arc<KeyRing>,
        opened: OpenedCookies,
        latest: LatestCookies,
    },
    Server {
        cookie: Cookie,
        store: Arc<Store>,
    },
}

impl SessionStorage {
    /// What browsers keep is sealed for `seal`, of [`sealed_for`].
    pub(crate) fn new(
        settings: &Settings,
        seal: Box<[u8]>,
        ring: Arc<KeyRing>,
        store: Option<Arc<Store>>,
    ) -> Self {
        let named = |name: &str| Cookie::new(&settings.cookie, name);
        let place = match (settings.tokens, store) {
            (TokenStorage::PlainCookies, _) => StorageKind::Plain {
                access: named("access_token"),
                refresh: named("refresh_token"),
                rest: named(&settings.name),
                seal,
                ring,
                opened: OpenedCookies::new(),
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
                    opened: OpenedCookies::new(),
                    latest: LatestCookies::new(),
                }
            }
        };
        Self { place, forward: settings.forward }
    }

    /// What a request brings.
    pub(crate) fn find<'a>(&self, headers: &'a HeaderMap) -> PresentedCookies<'a> {
        match &self.place {
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

    /// The visit that a request brings; `None` if it brings none that opens.
    ///
    /// # Errors
    ///
    /// [`Away`] if it may be kept elsewhere, and nobody can be asked.
    pub(crate) async fn open(
        &self,
        brought: &PresentedCookies<'_>,
    ) -> Result<Option<Arc<LoadedSession>>, Unavailable> {
        match &self.place {
            StorageKind::Sealed { seal, ring, opened, .. } => {
                Ok(brought.first.text().and_then(|text| {
                    opened.find(text, |text| {
                        let visit = SessionState::from_bytes(&ring.open(seal, text)?)?;
                        Some(LoadedSession::new(visit, self.forward))
                    })
                }))
            }
            StorageKind::Plain { seal, ring, opened, .. } => {
                let (access, refresh) = (brought.first.plain(), brought.second.plain());
                let (Some(access), Some(text)) = (access, brought.third.text()) else {
                    return Ok(None);
                };
                let found = opened.find(text, |text| {
                    let place = beside(seal, access, refresh);
                    let rest = SessionState::from_bytes(&ring.open(&place, text)?)?;
                    let refresh_token = refresh.map(Secret::from);
                    let visit = SessionState { access_token: access.into(), refresh_token, ..rest };
                    Some(LoadedSession::new(visit, self.forward))
                });
                // What was opened lately may have been beside other tokens.
                Ok(found.filter(|found| {
                    found.visit.access_token.expose() == access
                        && found.visit.refresh_token.as_ref().map(|t| t.expose().as_str())
                            == refresh
                }))
            }
            StorageKind::Server { store, .. } => {
                match brought.first.plain().and_then(Id::from_text) {
                    Some(id) => store.find(id).await,
                    None => Ok(None),
                }
            }
        }
    }

    /// What limits and the log call the visit that a request brings, if it brings nothing but its id.
    pub(crate) fn name_of(&self, brought: &PresentedCookies<'_>) -> Option<String> {
        let StorageKind::Server { .. } = &self.place else { return None };
        Some(Id::from_text(brought.first.plain()?)?.alias())
    }

    /// Keeps a new visit, and gives the cookies that lead to it.
    ///
    /// # Errors
    ///
    /// [`StorageError`] if it does not fit into cookies, or other gateways could not find it; nothing is kept then.
    pub(crate) async fn begin(
        &self,
        opened: &Arc<LoadedSession>,
        held: StoredSession,
    ) -> Result<Vec<HeaderValue>, StorageError> {
        if let StorageKind::Server { cookie, store } = &self.place {
            store.keep(Arc::clone(opened)).await?;
            return Ok(vec![cookie.set_plain(&opened.visit.id.to_text())?]);
        }
        Ok(self.cookies_of(opened, held)?)
    }

    /// Ends the visit that a request brings, which cannot be asked for now, as soon as it can; what it holds
    /// goes to `give_back` then. `false` if that cannot be promised.
    pub(crate) fn end_unseen(
        &self,
        brought: &PresentedCookies<'_>,
        give_back: impl FnOnce(Option<LoadedSession>) -> BoxFuture<'static, ()> + Send + 'static,
    ) -> bool {
        let StorageKind::Server { store, .. } = &self.place else { return false };
        let id = brought.first.plain().and_then(Id::from_text);
        id.is_some_and(|id| store.end_unseen(id, give_back))
    }

    /// Keeps a later state of a visit, where that is the gateway's part.
    pub(crate) async fn keep(&self, later: &Arc<LoadedSession>) {
        if let StorageKind::Server { store, .. } = &self.place {
            store.renew(later).await;
        }
    }

    /// The cookies that hold a later state of a visit; none where the browser's stays as it is.
    ///
    /// # Errors
    ///
    /// [`TooLarge`] if it does not fit into cookies any more.
    pub(crate) fn cookies_of(
        &self,
        opened: &LoadedSession,
        held: StoredSession,
    ) -> Result<Vec<HeaderValue>, TooLarge> {
        match &self.place {
            StorageKind::Sealed { cookie, seal, ring, latest, .. } => {
                latest.note(opened);
                let text = opened.sealed(|visit| ring.seal(seal, &visit.to_bytes()));
                cookie.set(text, held.first)
            }
            StorageKind::Plain { access, refresh, rest, seal, ring, latest, .. } => {
                latest.note(opened);
                let SessionState { access_token, refresh_token, .. } = &opened.visit;
                let mut cookies = vec![access.set_plain(access_token.expose())?];
                match refresh_token {
                    Some(token) => cookies.push(refresh.set_plain(token.expose())?),
                    // One of an earlier session would not belong to this.
                    None => cookies.extend(refresh.clear(held.second)),
                }
                let text = opened.sealed(|visit| {
                    let refresh = visit.refresh_token.as_ref().map(|token| token.expose().as_str());
                    let place = beside(seal, visit.access_token.expose(), refresh);
                    ring.seal(&place, &visit.without_tokens().to_bytes())
                });
                cookies.extend(rest.set(text, held.third)?);
                Ok(cookies)
            }
            StorageKind::Server { .. } => Ok(Vec::new()),
        }
    }

    /// Whether `loaded_session` fits where it is kept.
    pub(crate) fn fits(&self, opened: &LoadedSession) -> bool {
        self.cookies_of(opened, StoredSession::default()).is_ok()
    }

    /// Forgets what is kept on the server.
    pub(crate) async fn forget(&self, id: Id) {
        if let StorageKind::Server { store, .. } = &self.place {
            store.remove(id).await;
        }
    }

    /// Clears the cookies.
    pub(crate) fn clear(&self, held: StoredSession) -> Vec<HeaderValue> {
        match &self.place {
            StorageKind::Sealed { cookie, .. } | StorageKind::Server { cookie, .. } => {
                cookie.clear(held.first)
            }
            StorageKind::Plain { access, refresh, rest, .. } => {
                [access.clear(held.first), refresh.clear(held.second), rest.clear(held.third)]
                    .concat()
            }
        }
    }

    /// Whether a cookie called `name` leads to a visit, or is a part of one that does.
    pub(crate) fn owns(&self, name: &[u8]) -> bool {
        match &self.place {
            StorageKind::Sealed { cookie, .. } | StorageKind::Server { cookie, .. } => {
                cookie.owns(name)
            }
            StorageKind::Plain { access, refresh, rest, .. } => {
                access.owns(name) || refresh.owns(name) || rest.owns(name)
            }
        }
    }

    /// The same visit seen `now`, if it was not seen for as long as `every`.
    pub(crate) fn seen(
        &self,
        opened: Arc<LoadedSession>,
        now: Timestamp,
        every: Duration,
    ) -> Arc<LoadedSession> {
        if now.since(opened.visit.seen) >= every {
            opened.touch(now, every, self.forward)
        } else {
            opened
        }
    }

    /// Whether no later state of the visit can be anywhere: what is sealed at browsers is in as many states as there are
    /// copies, and only this process's own are known to it. Where there `are_others` that write them, none is.
    pub(crate) fn is_latest(&self, opened: &LoadedSession, are_others: bool) -> bool {
        match &self.place {
            StorageKind::Sealed { latest, .. } | StorageKind::Plain { latest, .. } => {
                !are_others && latest.is(opened)
            }
            StorageKind::Server { .. } => true,
        }
    }

    /// Whether other gateways keep the same visits, and can end them.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(&self.place, StorageKind::Server { store, .. } if store.is_shared())
    }
}

/// Why a new visit is not kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum StorageError {
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    #[error(transparent)]
    Away(#[from] Unavailable),
}

/// The place that visits are sealed for: bound to the cookie's name, its format, the session, and whose tokens are in
/// it: with another `issuer` or client in the file, cookies of before open to nothing.
pub(crate) fn sealed_for(settings: &Settings, issuer: &str) -> Box<[u8]> {
    let cookie = Cookie::new(&settings.cookie, &settings.name);
    let bound = [cookie.name(), "v2", &settings.name, issuer, &settings.client.id];
    place(&bound.map(str::as_bytes))
}

/// The place of what is sealed beside these tokens: it opens with no others.
fn beside(seal: &[u8], access: &str, refresh: Option<&str>) -> Box<[u8]> {
    let refresh = refresh.map_or([&b"none"[..], b""], |token| [b"some", token.as_bytes()]);
    place(&[seal, b"beside", access.as_bytes(), refresh[0], refresh[1]])
}

/// What a request brings of our cookies.
#[derive(Debug, Default)]
pub(crate) struct PresentedCookies<'a> {
    first: Presented<'a>,
    second: Presented<'a>,
    third: Presented<'a>,
    csrf: CookieParts,
}

impl PresentedCookies<'_> {
    /// The same, with these parts of the cookie that pages repeat.
    pub(crate) fn with_csrf(self, csrf: CookieParts) -> Self {
        Self { csrf, ..self }
    }

    /// Whether it brings none.
    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_empty() && self.second.is_empty() && self.third.is_empty()
    }

    /// Which cookies the browser holds.
    pub(crate) fn held(&self) -> StoredSession {
        StoredSession {
            first: self.first.held(),
            second: self.second.held(),
            third: self.third.held(),
            csrf: self.csrf,
        }
    }
}

/// Which of our cookies a browser holds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StoredSession {
    first: CookieParts,
    second: CookieParts,
    third: CookieParts,
    csrf: CookieParts,
}

impl StoredSession {
    /// What it holds of the cookie that pages repeat.
    pub(crate) const fn csrf(self) -> CookieParts {
        self.csrf
    }
}

/// When the visits in the cookies that were written lately were last seen, by their names.
struct LatestCookies(Cache<Arc<str>, Timestamp>);

impl LatestCookies {
    fn new() -> Self {
        let builder = Cache::builder().max_capacity(MAX_LATEST);
        Self(builder.eviction_policy(EvictionPolicy::lru()).build())
    }

    fn note(&self, opened: &LoadedSession) {
        let seen = opened.visit.seen;
        self.0.entry_by_ref(&opened.name).and_compute_with(|known| match known {
            Some(known) if *known.value() >= seen => Op::Nop,
            _ => Op::Put(seen),
        });
    }

    fn is(&self, opened: &LoadedSession) -> bool {
        self.0.get(&opened.name).is_some_and(|seen| seen <= opened.visit.seen)
    }
}

impl fmt::Debug for LatestCookies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Latest").field(&self.0.entry_count()).finish()
    }
}

/// Cookies opened lately, by their text: opening one costs more than all the rest of a request.
struct OpenedCookies(Cache<Arc<[u8]>, Arc<LoadedSession>, CookieEnds>);

impl OpenedCookies {
    fn new() -> Self {
        let weight = |text: &Arc<[u8]>, _: &Arc<LoadedSession>| {
            // The text, about as much again for what was in it, and what that is kept in.
            u32::try_from(text.len() * 2 + 512).unwrap_or(u32::MAX)
        };
        let cache = Cache::builder()
            .weigher(weight)
            .max_capacity(MAX_OPENED_COOKIES_BYTES)
            // What parallel requests of a visit share is in its opening: the newest must be admitted.
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
        if let Some(opened) = self.0.get(&*text) {
            return Some(opened);
        }
        let opened = Arc::new(open(&text)?);
        self.0.insert(text.into(), Arc::clone(&opened));
        Some(opened)
    }
}

impl fmt::Debug for OpenedCookies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Openings").field(&self.0.entry_count()).finish()
    }
}

/// Hashes both ends of a long text and leaves its middle to the comparison.
///
/// A sealed text begins with a random nonce and ends with an authentication
/// tag, and only texts that open are kept: nobody can make two that collide.
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

/// More than a key's name and a nonce at the front, and a tag at the back.
const END_LEN: usize = 32;
/// Visits whose latest state is known, each about a hundred bytes.
const MAX_LATEST: u64 = 100_000;
const MAX_OPENED_COOKIES_BYTES: u64 = 64 << 20;
const OPENED_COOKIES_RETENTION: Duration = Duration::from_secs(300);
