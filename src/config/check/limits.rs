//! Checks `limits`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Check;
use crate::config::de::field::{Field, Spanned};
use crate::config::de::units::InvalidValue;
use crate::config::fault::Code;
use crate::config::file::File;
use crate::config::file::limits::{self as file, Window as WindowKind};
use crate::config::file::value::Value;
use crate::limit::{InvalidLimit, Kind, Quota, Rate, Settings, SpikeArrest, Window, Zone};

impl Check<'_> {
    pub(super) fn limits(&mut self, file: &File) -> BTreeMap<Arc<str>, Settings> {
        self.names(&file.limits);
        let Some(limits) = file.limits.get() else { return BTreeMap::new() };
        limits
            .iter()
            .filter_map(|(name, keys)| {
                Some((Arc::from(name.value.as_str()), self.limit(name, keys)?))
            })
            .collect()
    }

    fn limit(&mut self, name: &Spanned<String>, keys: &Spanned<file::Limit>) -> Option<Settings> {
        let kind = self.limit_kind(name, keys)?;
        let mut settings = Settings::new(&name.value, kind);
        if let Some(by) = keys.by.get() {
            settings.by = by.items.iter().map(|part| part.value.0.clone()).collect();
        }
        settings.on_missing = keys.on_missing.get().map(|at| at.value.0).unwrap_or_default();
        settings.max_keys = self.number(&keys.max_keys, 1..=100_000_000, 100_000) as usize;
        if let Some(cost) = keys.cost.get() {
            settings.cost = cost.value.0;
        }
        settings.methods =
            keys.methods.get().map(|list| list.items.iter().map(|at| at.value.0.clone()).collect());
        if let Some(status) = keys.response.get().and_then(|response| response.status.get()) {
            settings.status = status.value.0;
        }
        settings.headers = keys.headers.or(true);
        if let Err(error) = settings.check() {
            let place = keys.cost.get().map_or(keys.at, |at| at.at);
            self.fault(
                Code::C106,
                place,
                error.to_string(),
                "raise `burst` or the quota, or lower `cost`",
            );
        }
        Some(settings)
    }

    fn limit_kind(&mut self, name: &Spanned<String>, keys: &Spanned<file::Limit>) -> Option<Kind> {
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
            let spike = SpikeArrest::new(rate.value.0, burst.map(|at| at.value));
            return spike.map(Kind::Rate).map_err(|error| self.invalid(error, rate, burst)).ok();
        }
        if let Some(quota) = keys.quota.get() {
            let window = self.window(&keys.window, &keys.timezone)?;
            let made = Quota::new(quota.value.0, window);
            return made.map(Kind::Quota).map_err(|error| self.invalid(error, quota, None)).ok();
        }
        let concurrency = keys.concurrency.get()?;
        let count = core::num::NonZeroU32::new(concurrency.value);
        if count.is_none() {
            self.wrong(concurrency, InvalidValue::new("lets nothing through", "write at least 1"));
        }
        count.map(Kind::Concurrency)
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

    fn invalid(
        &mut self,
        error: InvalidLimit,
        rate: &Spanned<crate::config::de::units::Scalar<Rate>>,
        burst: Option<&Spanned<u32>>,
    ) {
        let place = match (error, burst) {
            (InvalidLimit::Burst, Some(burst)) => burst.at,
            _ => rate.at,
        };
        self.fault(Code::C103, place, error.to_string(), "");
    }

    /// Refuses a key that has no effect without another.
    fn only_with<T>(&mut self, set: &Field<T>, with: bool, key: &str, other: &str) {
        if let (Some(at), false) = (set.get(), with) {
            let message = format!("`{key}` means nothing without `{other}`");
            self.fault(Code::C106, at.key_at, message, "take it out");
        }
    }
}
