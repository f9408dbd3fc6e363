//! Where a visit is between two requests: sealed at the browser, plain at the
//! browser, or on the server. The rest of the room does not know which.

use std::borrow::Cow;
use std::sync::Arc;

use core::fmt;
use core::hash::{BuildHasher, Hasher};
use std::hash::{DefaultHasher, RandomState};

use core::time::Duration;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue};
use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::cookie::{Cookie, Parts, Presented, TooLarge};
use super::opened::Opened;
use super::seal::KeyRing;
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
    Sealed { cookie: Cookie, seal: Box<[u8]>, ring: Arc<KeyRing>, opened: Openings, latest: Latest },
    Plain { access: Cookie, refresh: Cookie },
    Server { cookie: Cookie, store: Arc<Store> },
}

impl Keeping {
    pub(super) fn new(settings: &Settings, ring: Arc<KeyRing>, store: Option<Arc<Store>>) -> Self {
        let named = |name: &str| Cookie::new(&settings.cookie, name);
        let place = match (settings.tokens, store) {
            (TokenStorage::PlainCookies, _) => {
                Place::Plain { access: named("access_token"), refresh: named("refresh_token") }
            }
            (TokenStorage::Server(_), Some(store)) => {
                Place::Server { cookie: named(&settings.name), store }
            }
            (TokenStorage::SealedCookies | TokenStorage::Server(_), _) => {
                let cookie = named(&settings.name);
                let seal = sealed_for(settings);
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
            Place::Plain { access, refresh } => {
                let (first, second) = (access.find(headers), refresh.find(headers));
                Brought { first, second, ..Brought::default() }
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
            Place::Plain { .. } => {
                let visit = plain_visit(brought.first.plain(), brought.second.plain());
                Ok(visit.map(|visit| Arc::new(Opened::new(visit, self.forward))))
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
    /// [`TooLarge`] if it does not fit into cookies; nothing is kept then.
    pub(super) async fn begin(
        &self,
        opened: &Arc<Opened>,
        held: Held,
    ) -> Result<Vec<HeaderValue>, TooLarge> {
        if let Place::Server { cookie, store } = &self.place {
            store.keep(Arc::clone(opened)).await;
            return Ok(vec![cookie.set_plain(&opened.visit.id.to_text())?]);
        }
        self.cookies_of(opened, held)
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
            Place::Plain { access, refresh } => {
                let mut cookies = vec![access.set_plain(opened.visit.access_token.expose())?];
                if let Some(token) = &opened.visit.refresh_token {
                    cookies.push(refresh.set_plain(token.expose())?);
                }
                Ok(cookies)
            }
            Place::Server { .. } => Ok(Vec::new()),
        }
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
            Place::Plain { access, refresh } => {
                [access.clear(held.first), refresh.clear(held.second)].concat()
            }
        }
    }

    /// Whether a cookie called `name` leads to a visit, or is a part of one that does.
    pub(super) fn owns(&self, name: &[u8]) -> bool {
        match &self.place {
            Place::Sealed { cookie, .. } | Place::Server { cookie, .. } => cookie.owns(name),
            Place::Plain { access, refresh } => access.owns(name) || refresh.owns(name),
        }
    }

    /// The same visit seen `now`, if it remembers that and was not seen for as long as `every`.
    pub(super) fn seen(&self, opened: Arc<Opened>, now: Timestamp, every: Duration) -> Arc<Opened> {
        if self.remembers() && now.since(opened.visit.seen) >= every {
            opened.touch(now, every, self.forward)
        } else {
            opened
        }
    }

    /// Whether no later state of the visit is known to be anywhere: what is sealed at browsers is in as many states as
    /// there are copies, and only this process's own are known to it.
    pub(super) fn is_latest(&self, opened: &Opened) -> bool {
        match &self.place {
            Place::Sealed { latest, .. } => latest.is(opened),
            Place::Plain { .. } | Place::Server { .. } => true,
        }
    }

    /// Whether other gateways keep the same visits, and can end them.
    pub(super) fn is_shared(&self) -> bool {
        matches!(&self.place, Place::Server { store, .. } if store.is_shared())
    }

    /// Whether a visit remembers when it was last seen. A plain one has no place for that.
    pub(super) fn remembers(&self) -> bool {
        !matches!(self.place, Place::Plain { .. })
    }
}

/// The place that visits are sealed for: bound to the cookie's name, its format, and the session.
pub(super) fn sealed_for(settings: &Settings) -> Box<[u8]> {
    let cookie = Cookie::new(&settings.cookie, &settings.name);
    format!("{}\0v1\0{}", cookie.name(), settings.name).into_bytes().into()
}

/// What a request brings of our cookies.
#[derive(Debug, Default)]
pub(super) struct Brought<'a> {
    first: Presented<'a>,
    second: Presented<'a>,
    csrf: Parts,
}

impl Brought<'_> {
    /// The same, with these parts of the cookie that pages repeat.
    pub(super) fn with_csrf(self, csrf: Parts) -> Self {
        Self { csrf, ..self }
    }

    /// Whether it brings none.
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_empty() && self.second.is_empty()
    }

    /// Which cookies the browser holds.
    pub(super) fn held(&self) -> Held {
        Held { first: self.first.held(), second: self.second.held(), csrf: self.csrf }
    }
}

/// Which of our cookies a browser holds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    first: Parts,
    second: Parts,
    csrf: Parts,
}

impl Held {
    /// What it holds of the cookie that pages repeat.
    pub(super) const fn csrf(self) -> Parts {
        self.csrf
    }
}

/// A visit of two bare tokens: of its times only those are known that the access token tells.
fn plain_visit(access: Option<&str>, refresh: Option<&str>) -> Option<Visit> {
    if access.is_none() && refresh.is_none() {
        return None;
    }
    // The refresh token stays longest: its digest is the visit's name.
    let named = refresh.or(access).unwrap_or_default();
    let digest = digest::digest(&digest::SHA256, named.as_bytes());
    Some(Visit {
        id: Id::from_text(&URL_SAFE_NO_PAD.encode(&digest.as_ref()[..16]))?,
        since: Timestamp::MAX,
        seen: Timestamp::MAX,
        received: Timestamp::default(),
        // Without an access token there is only something to redeem.
        ends: if access.is_some() { Timestamp::MAX } else { Timestamp::default() },
        refresh_ends: Timestamp::MAX,
        access_token: access.unwrap_or_default().into(),
        refresh_token: refresh.map(Secret::from),
        id_token: None,
        scope: None,
    })
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
