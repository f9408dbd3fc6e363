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

use super::cookie::{Cookie, Parts, Presented, TooLarge};
use super::opened::Opened;
use super::seal::{KeyRing, place};
use super::settings::{Forward, Settings, TokenStorage};
use super::store::Store;
use super::visit::{Id, Visit};
use crate::base::clock::Timestamp;
use crate::base::secret::Secret;
use crate::store::Away;

/// Where visits are kept, and the cookies that lead to them.
#[derive(Debug)]
pub(super) struct Keeping {
    place: Place,
    forward: Forward,
}

#[derive(Debug)]
enum Place {
    Sealed {
        cookie: Cookie,
        seal: Box<[u8]>,
        ring: Arc<KeyRing>,
        opened: Openings,
        latest: Latest,
    },
    /// The tokens as they are, and beside them a sealed cookie with all else, bound to them.
    Plain {
        access: Cookie,
        refresh: Cookie,
        rest: Cookie,
        seal: Box<[u8]>,
        ring: Arc<KeyRing>,
        opened: Openings,
        latest: Latest,
    },
    Server {
        cookie: Cookie,
        store: Arc<Store>,
    },
}

impl Keeping {
    /// What browsers keep is sealed for `seal`, of [`sealed_for`].
    pub(super) fn new(
        settings: &Settings,
        seal: Box<[u8]>,
        ring: Arc<KeyRing>,
        store: Option<Arc<Store>>,
    ) -> Self {
        let named = |name: &str| Cookie::new(&settings.cookie, name);
        let place = match (settings.tokens, store) {
            (TokenStorage::PlainCookies, _) => Place::Plain {
                access: named("access_token"),
                refresh: named("refresh_token"),
                rest: named(&settings.name),
                seal,
                ring,
                opened: Openings::new(),
                latest: Latest::new(),
            },
            (TokenStorage::Server(_), Some(store)) => {
                Place::Server { cookie: named(&settings.name), store }
            }
            (TokenStorage::SealedCookies | TokenStorage::Server(_), _) => {
                let cookie = named(&settings.name);
                Place::Sealed { cookie, seal, ring, opened: Openings::new(), latest: Latest::new() }
            }
        };
        Self { place, forward: settings.forward }
    }

    /// What a request brings.
    pub(super) fn find<'a>(&self, headers: &'a HeaderMap) -> Brought<'a> {
        match &self.place {
            Place::Sealed { cookie, .. } | Place::Server { cookie, .. } => {
                Brought { first: cookie.find(headers), ..Brought::default() }
            }
            Place::Plain { access, refresh, rest, .. } => {
                let (first, second) = (access.find(headers), refresh.find(headers));
                Brought { first, second, third: rest.find(headers), ..Brought::default() }
            }
        }
    }

    /// The visit that a request brings; `None` if it brings none that opens.
    ///
    /// # Errors
    ///
    /// [`Away`] if it may be kept elsewhere, and nobody can be asked.
    pub(super) async fn open(&self, brought: &Brought<'_>) -> Result<Option<Arc<Opened>>, Away> {
        match &self.place {
            Place::Sealed { seal, ring, opened, .. } => Ok(brought.first.text().and_then(|text| {
                opened.find(text, |text| {
                    let visit = Visit::from_bytes(&ring.open(seal, text)?)?;
                    Some(Opened::new(visit, self.forward))
                })
            })),
            Place::Plain { seal, ring, opened, .. } => {
                let (access, refresh) = (brought.first.plain(), brought.second.plain());
                let (Some(access), Some(text)) = (access, brought.third.text()) else {
                    return Ok(None);
                };
                let found = opened.find(text, |text| {
                    let place = beside(seal, access, refresh);
                    let rest = Visit::from_bytes(&ring.open(&place, text)?)?;
                    let refresh_token = refresh.map(Secret::from);
                    let visit = Visit { access_token: access.into(), refresh_token, ..rest };
                    Some(Opened::new(visit, self.forward))
                });
                // What was opened lately may have been beside other tokens.
                Ok(found.filter(|found| {
                    found.visit.access_token.expose() == access
                        && found.visit.refresh_token.as_ref().map(|t| t.expose().as_str())
                            == refresh
                }))
            }
            Place::Server { store, .. } => match brought.first.plain().and_then(Id::from_text) {
                Some(id) => store.find(id).await,
                None => Ok(None),
            },
        }
    }

    /// What limits and the log call the visit that a request brings, if it brings nothing but its id.
    pub(super) fn name_of(&self, brought: &Brought<'_>) -> Option<String> {
        let Place::Server { .. } = &self.place else { return None };
        Some(Id::from_text(brought.first.plain()?)?.alias())
    }

    /// Keeps a new visit, and gives the cookies that lead to it.
    ///
    /// # Errors
    ///
    /// [`NotKept`] if it does not fit into cookies, or other gateways could not find it; nothing is kept then.
    pub(super) async fn begin(
        &self,
        opened: &Arc<Opened>,
        held: Held,
    ) -> Result<Vec<HeaderValue>, NotKept> {
        if let Place::Server { cookie, store } = &self.place {
            store.keep(Arc::clone(opened)).await?;
            return Ok(vec![cookie.set_plain(&opened.visit.id.to_text())?]);
        }
        Ok(self.cookies_of(opened, held)?)
    }

    /// Ends the visit that a request brings, which cannot be asked for now, as soon as it can; what it holds
    /// goes to `give_back` then. `false` if that cannot be promised.
    pub(super) fn end_unseen(
        &self,
        brought: &Brought<'_>,
        give_back: impl FnOnce(Option<Opened>) -> BoxFuture<'static, ()> + Send + 'static,
    ) -> bool {
        let Place::Server { store, .. } = &self.place else { return false };
        let id = brought.first.plain().and_then(Id::from_text);
        id.is_some_and(|id| store.end_unseen(id, give_back))
    }

    /// Keeps a later state of a visit, where that is the gateway's part.
    pub(super) async fn keep(&self, later: &Arc<Opened>) {
        if let Place::Server { store, .. } = &self.place {
            store.renew(later).await;
        }
    }

    /// The cookies that hold a later state of a visit; none where the browser's stays as it is.
    ///
    /// # Errors
    ///
    /// [`TooLarge`] if it does not fit into cookies any more.
    pub(super) fn cookies_of(
        &self,
        opened: &Opened,
        held: Held,
    ) -> Result<Vec<HeaderValue>, TooLarge> {
        match &self.place {
            Place::Sealed { cookie, seal, ring, latest, .. } => {
                latest.note(opened);
                let text = opened.sealed(|visit| ring.seal(seal, &visit.to_bytes()));
                cookie.set(text, held.first)
            }
            Place::Plain { access, refresh, rest, seal, ring, latest, .. } => {
                latest.note(opened);
                let Visit { access_token, refresh_token, .. } = &opened.visit;
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
            Place::Server { .. } => Ok(Vec::new()),
        }
    }

    /// Whether `opened` fits where it is kept.
    pub(super) fn fits(&self, opened: &Opened) -> bool {
        self.cookies_of(opened, Held::default()).is_ok()
    }

    /// Forgets what is kept on the server.
    pub(super) async fn forget(&self, id: Id) {
        if let Place::Server { store, .. } = &self.place {
            store.remove(id).await;
        }
    }

    /// Clears the cookies.
    pub(super) fn clear(&self, held: Held) -> Vec<HeaderValue> {
        match &self.place {
            Place::Sealed { cookie, .. } | Place::Server { cookie, .. } => cookie.clear(held.first),
            Place::Plain { access, refresh, rest, .. } => {
                [access.clear(held.first), refresh.clear(held.second), rest.clear(held.third)]
                    .concat()
            }
        }
    }

    /// Whether a cookie called `name` leads to a visit, or is a part of one that does.
    pub(super) fn owns(&self, name: &[u8]) -> bool {
        match &self.place {
            Place::Sealed { cookie, .. } | Place::Server { cookie, .. } => cookie.owns(name),
            Place::Plain { access, refresh, rest, .. } => {
                access.owns(name) || refresh.owns(name) || rest.owns(name)
            }
        }
    }

    /// The same visit seen `now`, if it was not seen for as long as `every`.
    pub(super) fn seen(&self, opened: Arc<Opened>, now: Timestamp, every: Duration) -> Arc<Opened> {
        if now.since(opened.visit.seen) >= every {
            opened.touch(now, every, self.forward)
        } else {
            opened
        }
    }

    /// Whether no later state of the visit can be anywhere: what is sealed at browsers is in as many states as there are
    /// copies, and only this process's own are known to it. Where there `are_others` that write them, none is.
    pub(super) fn is_latest(&self, opened: &Opened, are_others: bool) -> bool {
        match &self.place {
            Place::Sealed { latest, .. } | Place::Plain { latest, .. } => {
                !are_others && latest.is(opened)
            }
            Place::Server { .. } => true,
        }
    }

    /// Whether other gateways keep the same visits, and can end them.
    pub(super) fn is_shared(&self) -> bool {
        matches!(&self.place, Place::Server { store, .. } if store.is_shared())
    }
}

/// Why a new visit is not kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum NotKept {
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    #[error(transparent)]
    Away(#[from] Away),
}

/// The place that visits are sealed for: bound to the cookie's name, its format, the session, and whose tokens are in
/// it: with another `issuer` or client in the file, cookies of before open to nothing.
pub(super) fn sealed_for(settings: &Settings, issuer: &str) -> Box<[u8]> {
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
pub(super) struct Brought<'a> {
    first: Presented<'a>,
    second: Presented<'a>,
    third: Presented<'a>,
    csrf: Parts,
}

impl Brought<'_> {
    /// The same, with these parts of the cookie that pages repeat.
    pub(super) fn with_csrf(self, csrf: Parts) -> Self {
        Self { csrf, ..self }
    }

    /// Whether it brings none.
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_empty() && self.second.is_empty() && self.third.is_empty()
    }

    /// Which cookies the browser holds.
    pub(super) fn held(&self) -> Held {
        Held {
            first: self.first.held(),
            second: self.second.held(),
            third: self.third.held(),
            csrf: self.csrf,
        }
    }
}

/// Which of our cookies a browser holds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    first: Parts,
    second: Parts,
    third: Parts,
    csrf: Parts,
}

impl Held {
    /// What it holds of the cookie that pages repeat.
    pub(super) const fn csrf(self) -> Parts {
        self.csrf
    }
}

/// When the visits in the cookies that were written lately were last seen, by their names.
struct Latest(Cache<Arc<str>, Timestamp>);

impl Latest {
    fn new() -> Self {
        let builder = Cache::builder().max_capacity(MAX_LATEST);
        Self(builder.eviction_policy(EvictionPolicy::lru()).build())
    }

    fn note(&self, opened: &Opened) {
        let seen = opened.visit.seen;
        self.0.entry_by_ref(&opened.name).and_compute_with(|known| match known {
            Some(known) if *known.value() >= seen => Op::Nop,
            _ => Op::Put(seen),
        });
    }

    fn is(&self, opened: &Opened) -> bool {
        self.0.get(&opened.name).is_some_and(|seen| seen <= opened.visit.seen)
    }
}

impl fmt::Debug for Latest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Latest").field(&self.0.entry_count()).finish()
    }
}

/// Cookies opened lately, by their text: opening one costs more than all the rest of a request.
struct Openings(Cache<Arc<[u8]>, Arc<Opened>, Ends>);

impl Openings {
    fn new() -> Self {
        let weight = |text: &Arc<[u8]>, _: &Arc<Opened>| {
            // The text, about as much again for what was in it, and what that is kept in.
            u32::try_from(text.len() * 2 + 512).unwrap_or(u32::MAX)
        };
        let cache = Cache::builder()
            .weigher(weight)
            .max_capacity(OPENINGS_BYTES)
            // What parallel requests of a visit share is in its opening: the newest must be admitted.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(OPENINGS_LIFE)
            .build_with_hasher(Ends(RandomState::new()));
        Self(cache)
    }

    fn find(
        &self,
        text: Cow<'_, [u8]>,
        open: impl FnOnce(&[u8]) -> Option<Opened>,
    ) -> Option<Arc<Opened>> {
        if let Some(opened) = self.0.get(&*text) {
            return Some(opened);
        }
        let opened = Arc::new(open(&text)?);
        self.0.insert(text.into(), Arc::clone(&opened));
        Some(opened)
    }
}

impl fmt::Debug for Openings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Openings").field(&self.0.entry_count()).finish()
    }
}

/// Hashes both ends of a long text and leaves its middle to the comparison.
///
/// A sealed text begins with a random nonce and ends with an authentication
/// tag, and only texts that open are kept: nobody can make two that collide.
#[derive(Clone)]
struct Ends(RandomState);

impl BuildHasher for Ends {
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
const OPENINGS_BYTES: u64 = 64 << 20;
const OPENINGS_LIFE: Duration = Duration::from_secs(300);
