//! Checks `limits`.

use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::Check;
use crate::config::de::field::{Field, Spanned};
use crate::config::de::units::InvalidValue;
use crate::config::fault::{Code, Position};
use crate::config::file::File;
use crate::config::file::limits::{self as file, StoreKind, Window as WindowKind};
use crate::config::file::value::{KeywordOr, Value};
use crate::limit::{
    Cost, InvalidLimit, Kind, Plans, Quota, Settings, SpikeArrest, Store, Window, Zone,
};

impl Check<'_> {
    pub(super) fn limits(&mut self, file: &File) -> BTreeMap<Arc<str>, Settings> {
        self.names(&file.limits);
        let Some(limits) = file.limits.get() else { return BTreeMap::new() };
        limits
            .iter()
            .filter_map(|(name, keys)| {
                Some((Arc::from(name.value.as_str()), self.limit(name, keys, file)?))
            })
            .collect()
    }

    fn limit(
        &mut self,
        name: &Spanned<String>,
        keys: &Spanned<file::Limit>,
        file: &File,
    ) -> Option<Settings> {
        let (kind, plans) = self.limit_kind(name, keys)?;
        let mut settings = Settings::new(&name.value, kind);
        settings.plans = plans;
        if let Some(by) = keys.by.get() {
            self.no_duplicates(&by.items);
            settings.by = by.items.iter().map(|part| part.value.0.clone()).collect();
        }
        settings.on_missing = keys.on_missing.get().map(|at| at.value.0).unwrap_or_default();
        settings.max_keys = self.number(&keys.max_keys, 1..=100_000_000, 100_000) as usize;
        if let Some(cost) = keys.cost.get() {
            match &cost.value {
                KeywordOr::Scalar(cost) => settings.cost = cost.0,
                KeywordOr::Mapping(keys) => {
                    let (reserved, response_cost) = self.response_cost(cost.at, keys)?;
                    settings.cost = Cost::Fixed(reserved);
                    settings.response_cost = Some(response_cost);
                }
            }
        }
        if let (Kind::Concurrency(_), Some(cost)) = (&settings.kind, keys.cost.get()) {
            let message = "requests in flight have no cost: each is one";
            self.fault(Code::C106, cost.key_at, message, "remove it");
        }
        if let Some(methods) = keys.methods.get() {
            self.no_duplicates(&methods.items);
        }
        settings.methods =
            keys.methods.get().map(|list| list.items.iter().map(|at| at.value.0.clone()).collect());
        if let Some(status) = keys.response.get().and_then(|response| response.status.get()) {
            settings.status = status.value.0;
        }
        if let Some(response) = keys.response.get() {
            let jitter = &response.retry_jitter;
            settings.retry_jitter = self.time_or_zero(jitter, Duration::ZERO, MAX_JITTER);
            if let Some(at) = jitter.get()
                && !at.value.0.is_zero()
                && at.value.0 < Duration::from_secs(1)
            {
                let help = "write whole seconds, such as 5s";
                let message = "`retry_jitter` must be a whole number of seconds";
                self.fault(Code::C103, at.at, message, help);
            }
        }
        settings.headers = keys.headers.or(true);
        settings.dry_run = keys.dry_run.or(false);
        settings.store = self.limit_store(keys, file);
        settings.metered = keys.metered.or(false);
        if let Err(error) = settings.check() {
            let position = keys.cost.get().map_or(keys.at, |at| at.at);
            self.fault(
                Code::C106,
                position,
                error.to_string(),
                "raise `burst` or the quota, or lower `cost`",
            );
        }
        if let (Some(plans), Cost::Fixed(cost)) = (&settings.plans, settings.cost) {
            let position = keys.cost.get().map_or(keys.at, |at| at.at);
            self.cost_fits_plans(plans, cost, position);
        }
        Some(settings)
    }

    /// Returns the position of a limit's counters.
    fn limit_store(&mut self, keys: &Spanned<file::Limit>, file: &File) -> Store {
        let kind = keys.store.get().map(|at| at.value.0).unwrap_or_default();
        let is_shared = kind == StoreKind::Redis;
        self.only_with(&keys.exact, is_shared, "exact", "store: redis");
        self.only_with(&keys.on_store_error, is_shared, "on_store_error", "store: redis");
        if !is_shared {
            return Store::Local;
        }
        self.shares(&keys.store, file, "`store: redis`");
        Store::Redis {
            exact: keys.exact.or(false),
            on_error: keys.on_store_error.get().map(|at| at.value.0).unwrap_or_default(),
        }
    }

    fn limit_kind(
        &mut self,
        name: &Spanned<String>,
        keys: &Spanned<file::Limit>,
    ) -> Option<(Kind, Option<Plans>)> {
        let given =
            [!keys.rate.is_absent(), !keys.quota.is_absent(), !keys.concurrency.is_absent()];
        if given.iter().filter(|given| **given).count() != 1 {
            let message =
                format!("limit `{}` must have one of rate, quota and concurrency", name.value);
            let help = "write rate: 100/s, or quota: 10000/day, or concurrency: 50";
            self.fault(Code::C106, name.at, message, help);
            return None;
        }
        self.only_with(&keys.burst, !keys.rate.is_absent(), "burst", "rate");
        self.only_with(&keys.window, !keys.quota.is_absent(), "window", "quota");
        self.only_with(&keys.timezone, !keys.quota.is_absent(), "timezone", "quota");
        if let Some(rate) = keys.rate.get() {
            let burst = keys.burst.get();
            let spike = |rate| SpikeArrest::new(rate, burst.map(|at| at.value)).map(Kind::Rate);
            return self.amounts(rate, burst, &spike);
        }
        if let Some(quota) = keys.quota.get() {
            let window = self.window(&keys.window, &keys.timezone)?;
            let bought = |rate| Quota::new(rate, window.clone()).map(Kind::Quota);
            return self.amounts(quota, None, &bought);
        }
        let concurrency = keys.concurrency.get()?;
        let count = core::num::NonZeroU32::new(concurrency.value);
        if count.is_none() {
            self.wrong(concurrency, InvalidValue::new("lets nothing through", "write at least 1"));
        }
        count.map(|count| (Kind::Concurrency(count), None))
    }

    fn window(&mut self, window: &Value<WindowKind>, timezone: &Field<String>) -> Option<Window> {
        let kind = window.get().map(|at| at.value.0).unwrap_or_default();
        self.only_with(timezone, kind == WindowKind::Calendar, "timezone", "window: calendar");
        match (kind, timezone.get()) {
            (WindowKind::Rolling, _) => Some(Window::Rolling),
            (WindowKind::Flexi, _) => Some(Window::Flexi),
            (WindowKind::Calendar, None) => Some(Window::Calendar(Zone::utc())),
            (WindowKind::Calendar, Some(name)) => {
                let zone = Zone::named(&name.value).ok();
                if zone.is_none() {
                    let help = "write an IANA name such as Europe/Berlin";
                    self.wrong(name, InvalidValue::new("is not a time zone", help));
                }
                zone.map(Window::Calendar)
            }
        }
    }

    pub(super) fn invalid(
        &mut self,
        error: InvalidLimit,
        rate: Position,
        burst: Option<&Spanned<u32>>,
    ) {
        let position = match (error, burst) {
            (InvalidLimit::Burst, Some(burst)) => burst.at,
            _ => rate,
        };
        self.fault(Code::C103, position, error.to_string(), "");
    }

    /// Refuses a key that has no effect without another.
    pub(super) fn only_with<T>(&mut self, set: &Field<T>, with: bool, key: &str, other: &str) {
        if let (Some(at), false) = (set.get(), with) {
            let message = format!("`{key}` has no effect without `{other}`");
            self.fault(Code::C106, at.key_at, message, "remove it");
        }
    }
}

/// The longest addition to `Retry-After`.
const MAX_JITTER: Duration = Duration::from_secs(3_600);
