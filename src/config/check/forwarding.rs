//! Checks `fallback`, `split` and `mirror`.

use std::sync::Arc;

use http::Method;

use super::layers::Layers;
use super::{Check, MAX_DURATION, defined_names};
use crate::config::de::field::Spanned;
use crate::config::fault::Code;
use crate::config::file::{File, routes as file};
use crate::config::forwarding::{Fallback, Mirror, Split};

impl Check<'_> {
    /// Returns the fallback of a route whose requests all go to `only`; `None` where a split sends some to others.
    pub(super) fn fallback(
        &mut self,
        file: &File,
        keys: &Spanned<file::Fallback>,
        only: Option<&Arc<str>>,
    ) -> Fallback {
        let names = defined_names(&file.upstreams);
        let upstream = keys.upstream.get().and_then(|name| {
            let other = self.defined(name, "upstreams", &names)?;
            if only == Some(&other) {
                let message = "the fallback is the upstream itself";
                self.fault(Code::C106, name.at, message, "name another one");
            }
            Some(other)
        });
        let age = keys.stale.get().map(|_| self.time(&keys.stale, MAX_DURATION, MAX_DURATION));
        let bytes = keys.max_stale_size.get().map_or(DEFAULT_STALE_BYTES, |at| at.value.0.0);
        if let (None, Some(at)) = (age, keys.max_stale_size.get()) {
            let message = "`max_stale_size` has no effect without `stale`";
            self.fault(Code::C106, at.key_at, message, "write stale: 5m, or remove it");
        }
        let respond = keys.respond.get().and_then(|respond| self.respond(respond));
        let is_empty =
            keys.upstream.is_absent() && keys.stale.is_absent() && keys.respond.is_absent();
        if is_empty {
            let help = "write one of upstream, stale and respond";
            self.fault(Code::C106, keys.key_at, "this fallback has no response", help);
        }
        Fallback { upstream, stale: age.map(|age| (age, bytes)), respond }
    }

    /// Returns the split of a route that forwards to `own`.
    pub(super) fn split(
        &mut self,
        file: &File,
        layers: &Layers<'_>,
        own: Option<&Arc<str>>,
    ) -> Option<Split> {
        let by = layers.given(|keys: &file::Route| &keys.split_by);
        let Some(split) = layers.given(|keys: &file::Route| &keys.split) else {
            if let Some(by) = by {
                let message = "`split_by` has no effect without `split`";
                self.fault(Code::C106, by.key_at, message, "write split, or remove it");
            }
            return None;
        };
        self.not_empty("split", split);
        let names = defined_names(&file.upstreams);
        let mut shares = Vec::new();
        for (name, percent) in split.value.iter() {
            let Some(upstream) = self.defined(name, "upstreams", &names) else { continue };
            if own == Some(&upstream) {
                let message = "the route's own upstream receives the rest";
                self.fault(Code::C106, name.at, message, "name others only");
            }
            shares.push((upstream, percent.value.0.0));
        }
        if shares.iter().map(|(_, share)| u64::from(*share)).sum::<u64>() > 10_000 {
            let message = "these shares are more than all requests";
            self.fault(Code::C106, split.at, message, "let them be 100% together at most");
        }
        Some(Split { shares, by: by.map(|by| by.value.0.clone()) })
    }

    /// Returns the mirror of a route that forwards to `own`.
    pub(super) fn mirror(
        &mut self,
        file: &File,
        keys: &Spanned<file::Mirror>,
        own: Option<&Arc<str>>,
    ) -> Option<Mirror> {
        let names = defined_names(&file.upstreams);
        let help = "name the upstream that receives the copies";
        let name = self.required(&keys.upstream, keys.key_at, "upstream", help)?;
        let upstream = self.defined(name, "upstreams", &names)?;
        if own == Some(&upstream) {
            let message = "the route's own upstream receives each copied request twice";
            self.fault(Code::C110, name.at, message, "name another one");
        }
        let methods = match keys.methods.get() {
            Some(list) => list.items.iter().map(|at| at.value.0.clone()).collect(),
            None => vec![Method::GET, Method::HEAD],
        };
        let share = keys.percent.get().map_or(10_000, |at| at.value.0.0);
        let max_in_flight = self.number(&keys.max_in_flight, 1..=10_000, 100) as u32;
        Some(Mirror { upstream, share, methods, max_in_flight })
    }
}

const DEFAULT_STALE_BYTES: u64 = 16 << 20;
