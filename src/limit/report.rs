//! Limits as operators see them, and the reset of counters.

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::{Map, Value, json};

use super::algorithms::rate::Kind;
use super::counters::consumers::Consumer;
use super::counters::limit_counters::Now;
use super::counters::registry::LimitRegistry;
use super::key::LimitKeySource;
use super::limiter::{Limiter, seconds};
use super::plans::PlanIndex;
use super::settings::KeyPart;
use super::shared::{LeaseSlot, SharedLimit};

/// The consumers whose counters an operator resets: the named parts of a key, such as `client`, and their values.
#[derive(Clone, Debug, Default)]
pub struct ResetTarget {
    /// The parts by their names in the file, such as `client` or `header:x-tenant`.
    pub parts: Map<String, Value>,
    /// The issuers of the client, subject or session.
    pub issuers: Vec<Box<str>>,
    /// The routes that a key may name.
    pub routes: Vec<Box<str>>,
}

/// The outcome of a reset at one limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reset {
    /// This many counters were reset.
    Done(usize),
    /// The limit has other parts of which no value is known.
    OtherKey,
    /// Requests in flight are counted until they end.
    InFlight,
    /// This many counters were reset: those of the store that this gateway has a lease of. Others may exist.
    Partial(usize),
    /// The store is unavailable.
    StoreFailed,
}

impl Limiter {
    /// Describes the limit: how many keys it counts, how many are near the end of their allowance, and its largest
    /// consumers.
    pub fn report(&self, moment: Now) -> Value {
        let census = match &self.shared {
            Some(shared) => self.census_of_leases(shared, moment),
            None => self.census(moment),
        };
        let mut top = self.consumers(moment);
        top.truncate(MAX_REPORTED_CONSUMERS);
        json!({
            "limit": self.settings().name,
            "kind": match self.settings().kind {
                Kind::Rate(_) => "rate",
                Kind::Quota(_) => "quota",
                Kind::Concurrency(_) => "concurrency",
            },
            "counts": self.settings().id().to_string(),
            "dry_run": self.settings().dry_run,
            "keys": census.keys,
            "max_keys": self.settings().max_keys,
            "near_exhaustion": census.near_exhaustion,
            "used_up": census.used_up,
            "overflow": { "used": census.overflow },
            "top": top,
        })
    }

    fn census(&self, moment: Now) -> Census {
        let now = self.counts.time(moment);
        let kind = self.counts.counters.kind();
        let mut census = Census::default();
        for (_, counter) in self.counts.counters.all(now) {
            census.add(self, kind.used(counter, now));
        }
        let (overflow, _) = self.counts.counters.overflow().save(now);
        Census { keys: self.counts.counters.len(), overflow: kind.used(overflow, now), ..census }
    }

    /// Counts the keys of a limit that several gateways share: those that this gateway has a lease of.
    fn census_of_leases(&self, shared: &SharedLimit, moment: Now) -> Census {
        let now = shared.now(moment);
        let mut census = Census::default();
        shared.each(|slot, lease| match slot {
            LeaseSlot::Own(_) => {
                census.keys += 1;
                census.add(self, lease.used_of_all(now));
            }
            LeaseSlot::Overflow => census.overflow = lease.used_of_all(now),
        });
        census
    }

    /// Returns the use of the named consumers, the largest first.
    pub fn usage(&self, moment: Now) -> Vec<Value> {
        self.consumers(moment)
    }

    /// Resets the counters of `target`; of a limit that several gateways share for all of them, in the store of
    /// `registry`.
    pub async fn reset(
        &self,
        registry: &LimitRegistry,
        target: &ResetTarget,
        moment: Now,
    ) -> Reset {
        let (Some(shared), Some(store), false) =
            (&self.shared, registry.store(), self.is_concurrency())
        else {
            return self.reset_own(target, moment);
        };
        let (counters, is_partial) = self.shared_counters_of(shared, target);
        let Some(counters) = counters else { return Reset::OtherKey };
        let shape = self.shape(PlanIndex::DEFAULT, shared.now(moment));
        let count = counters.iter().filter(|(slot, _)| *slot != LeaseSlot::Overflow).count();
        for (slot, name) in counters {
            if !store.reset(shared, slot, name.as_deref(), shape).await {
                return Reset::StoreFailed;
            }
        }
        if is_partial { Reset::Partial(count) } else { Reset::Done(count) }
    }

    /// Returns the counters that `target` names in a shared store, with their names there, and whether others may exist;
    /// `None` as in [`Limiter::keys_of`].
    fn shared_counters_of(
        &self,
        shared: &SharedLimit,
        target: &ResetTarget,
    ) -> (Option<Vec<SharedCounter>>, bool) {
        if target.parts.is_empty() {
            let mut known = Vec::new();
            shared.each(|slot, _| known.push((slot, None)));
            return (Some(known), true);
        }
        if let Some(keys) = self.keys_of(target) {
            let named = keys.into_iter().map(|(key, name)| (LeaseSlot::Own(key), Some(name)));
            return (Some(named.collect()), false);
        }
        let known =
            self.named_consumers(target).filter(|key| shared.existing(*key, |_| ()).is_some());
        let known: Vec<_> = known.map(|key| (LeaseSlot::Own(key), None)).collect();
        ((!known.is_empty()).then_some(known), true)
    }

    /// Returns the keys that `target` names a part of, as far as they are known by name.
    fn named_consumers(&self, target: &ResetTarget) -> impl Iterator<Item = u64> {
        let all = self.counts.consumers.all().into_iter();
        let named = all.filter(|consumer| {
            target.parts.iter().all(|(part, value)| consumer.name.get(part) == Some(value))
        });
        named.map(|consumer| consumer.key)
    }

    /// Resets this process's counters of `target`; all of them if it names no part.
    fn reset_own(&self, target: &ResetTarget, moment: Now) -> Reset {
        if self.is_concurrency() {
            return Reset::InFlight;
        }
        let counters = &self.counts.counters;
        let now = self.counts.time(moment);
        if target.parts.is_empty() {
            let count = counters.clear(now);
            self.counts.consumers.retain(|_| false);
            return Reset::Done(count);
        }
        let mut count = 0;
        let keys = self.keys_of(target);
        for (key, _) in keys.iter().flatten() {
            count += usize::from(counters.remove(*key, now));
        }
        // For a key with further parts: the named consumers only.
        for key in self.named_consumers(target) {
            count += usize::from(counters.remove(key, now));
        }
        match keys {
            None if count == 0 => Reset::OtherKey,
            _ => Reset::Done(count),
        }
    }

    /// Returns the named consumers that are counted now, the largest first.
    fn consumers(&self, moment: Now) -> Vec<Value> {
        let all = self.counts.consumers.all().into_iter();
        let counted =
            all.filter_map(|consumer| Some((self.standing(&consumer, moment)?, consumer)));
        let mut counted: Vec<_> = counted.collect();
        counted.sort_by_key(|(standing, _)| core::cmp::Reverse(standing.used));
        counted.iter().map(|(standing, consumer)| self.described(standing, consumer)).collect()
    }

    /// Returns how much a consumer has used; `None` if it is not counted any more.
    fn standing(&self, consumer: &Consumer, moment: Now) -> Option<Standing> {
        let (key, plan) = (consumer.key, consumer.plan);
        let whole = self.amount(plan).whole();
        if let Some(shared) = &self.shared {
            let now = shared.now(moment);
            let balance = shared.existing(key, |lease| self.shared_balance(plan, lease, now))?;
            let (left, reset) = (balance.remaining, balance.reset.into());
            return Some(Standing { used: whole.saturating_sub(left), left, reset });
        }
        let now = self.counts.time(moment);
        let counter = self.counts.counters.get(key, now)?;
        let (left, reset) = self.rule(plan).left(counter, now);
        let used = self.counts.counters.kind().used(counter, now).max(whole.saturating_sub(left));
        Some(Standing { used, left, reset: seconds(reset) })
    }

    fn described(&self, standing: &Standing, consumer: &Consumer) -> Value {
        let mut all = Map::new();
        all.insert("limit".into(), json!(self.settings().name));
        all.insert("key".into(), json!(consumer.name));
        if let Some(plan) = self.plan_name(consumer.plan) {
            all.insert("plan".into(), plan.into());
        }
        all.insert("used".into(), standing.used.into());
        all.insert("left".into(), standing.left.into());
        all.insert("reset".into(), standing.reset.into());
        Value::Object(all)
    }

    /// Returns the keys that `target` names, with their names in a shared store; `None` if this limit has parts that are not named and have many values.
    fn keys_of(&self, target: &ResetTarget) -> Option<Vec<(u64, String)>> {
        let by = &self.settings().by;
        let named = |part: &KeyPart| target.parts.contains_key(&part.to_string());
        let is_known =
            |part: &KeyPart| named(part) || matches!(part, KeyPart::Route | KeyPart::Global);
        let has_part = |name: &String| by.iter().any(|part| part.to_string() == *name);
        if !by.iter().all(is_known) || !target.parts.keys().all(has_part) {
            return None;
        }
        let text = |name: &str| target.parts.get(name).and_then(Value::as_str);
        let mut headers = HeaderMap::new();
        for (name, value) in &target.parts {
            if let Some(name) = name.strip_prefix("header:")
                && let Ok(name) = HeaderName::try_from(name)
                && let Ok(value) = HeaderValue::try_from(value.as_str().unwrap_or_default())
            {
                headers.insert(name, value);
            }
        }
        let routes = match text("route") {
            Some(route) => vec![Box::from(route)],
            None => target.routes.clone(),
        };
        let routes = if by.contains(&KeyPart::Route) { routes } else { vec![Box::default()] };
        let mut keys = Vec::new();
        for route in &routes {
            for issuer in &target.issuers {
                let subject = LimitKeySource {
                    ip: text("ip").and_then(|ip| ip.parse().ok()).unwrap_or([0, 0, 0, 0].into()),
                    route,
                    issuer: Some(issuer),
                    client: text("client"),
                    subject: text("subject"),
                    session: text("session"),
                    headers: &headers,
                    claim: &|path| target.parts.get(&format!("claim:{path}")),
                    method: &Method::GET,
                    request_size: None,
                };
                let key = self.counts.seed.key(by, self.settings().on_missing, &subject);
                keys.extend(key.ok().map(|key| (key, self.shared_name(&subject))));
            }
        }
        keys.sort_unstable();
        keys.dedup();
        Some(keys)
    }
}

/// How many keys a limit counts, and how much they have used.
#[derive(Clone, Copy, Debug, Default)]
struct Census {
    keys: usize,
    /// The keys that have used at least nine tenths of the smallest plan, and all of it.
    near_exhaustion: u64,
    used_up: u64,
    /// The use of the counter that keys beyond `max_keys` share.
    overflow: u64,
}

impl Census {
    /// Adds a key of `limiter` that has used this much.
    fn add(&mut self, limiter: &Limiter, used: u64) {
        self.used_up += u64::from(used >= limiter.used_up());
        self.near_exhaustion +=
            u64::from(used.saturating_mul(10) >= limiter.smallest().saturating_mul(9));
    }
}

/// A consumer's use of its amount, the rest, and the seconds until its reset.
struct Standing {
    used: u64,
    left: u64,
    reset: u64,
}

/// The largest consumers in the report of a limit.
const MAX_REPORTED_CONSUMERS: usize = 20;

/// A counter of a shared limit, with its name in the store if that is known.
type SharedCounter = (LeaseSlot, Option<String>);
