//! Checks `upstreams`.

use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Check, MAX_DURATION};
use crate::config::de::field::{Field, OneOrMany, Spanned};
use crate::config::de::units::{InvalidValue, Scalar};
use crate::config::fault::Code;
use crate::config::file::value::KeywordOr;
use crate::config::file::{File, upstreams as file};
use crate::upstream::{
    Balance, CircuitBreakerSettings, HashBy, HealthCheck, Outlier, Retries, Settings, Target, Tls,
};

impl Check<'_> {
    pub(super) fn upstreams(&mut self, file: &File) -> BTreeMap<Arc<str>, Settings> {
        self.names(&file.upstreams);
        let Some(upstreams) = file.upstreams.get() else { return BTreeMap::new() };
        upstreams
            .iter()
            .map(|(name, keys)| (Arc::from(name.value.as_str()), self.upstream(name, keys)))
            .collect()
    }

    fn upstream(&mut self, name: &Spanned<String>, keys: &Spanned<file::Upstream>) -> Settings {
        let mut settings = Settings::new(name.value.as_str(), self.targets(name, keys));
        settings.balance = keys.balance.get().map(|at| at.value.0).unwrap_or_default();
        settings.connect_timeout =
            self.time(&keys.connect_timeout, settings.connect_timeout, MAX_DURATION);
        settings.timeout = self.time(&keys.timeout, settings.timeout, MAX_DURATION);
        settings.stream_timeout =
            Some(self.time_or_zero(&keys.stream_timeout, Duration::ZERO, MAX_DURATION))
                .filter(|time| !time.is_zero());
        settings.idle_timeout = self.time(&keys.idle_timeout, settings.idle_timeout, MAX_DURATION);
        settings.keep_alive =
            self.time_or_zero(&keys.keep_alive, settings.keep_alive, MAX_DURATION);
        settings.max_connections = self.number(&keys.max_connections, 1..=1_000_000, 1024) as u32;
        settings.max_pending = self.number(&keys.max_pending, 0..=1_000_000, 1024) as u32;
        settings.http2 = keys.http2.get().map(|at| at.value.0).unwrap_or_default();
        if let Some(host) = keys.host_header.get() {
            settings.host_header = host.value.0.clone();
        }
        if let Some(tls) = keys.tls.get() {
            settings.tls = self.upstream_tls(tls);
        }
        if let Some(retries) = keys.retries.get() {
            settings.retries = self.retries(retries);
        }
        if let Some(outlier) = keys.outlier.get() {
            let default = Outlier::default();
            let least = u64::from(default.min_requests);
            settings.outlier = Outlier {
                errors: self.number(&outlier.errors, 1..=1_000_000, default.errors.into()) as u32,
                error_rate: outlier.error_rate.get().map_or(default.error_rate, |at| at.value.0.0),
                min_requests: self.number(&outlier.min_requests, 1..=1_000_000, least) as u32,
                eject_for: self.time(&outlier.eject_for, default.eject_for, MAX_DURATION),
                max_ejected: outlier
                    .max_ejected
                    .get()
                    .map_or(default.max_ejected, |at| at.value.0.0),
            };
        }
        settings.slow_start = self.time_or_zero(&keys.slow_start, Duration::ZERO, MAX_DURATION);
        settings.panic_threshold = keys.panic_threshold.get().map_or(0, |at| at.value.0.0);
        settings.dns_refresh = self.time(&keys.dns_refresh, settings.dns_refresh, MAX_DURATION);
        if let Some(servers) = keys.dns_servers.get() {
            settings.dns_servers = servers.items.iter().map(|at| at.value.0.0).collect();
        }
        settings.hash_by = self.hash_by(keys, settings.balance);
        settings.circuit_breaker =
            keys.circuit_breaker.get().map(|breaker| self.circuit_breaker(breaker));
        settings.health_check = keys.health_check.get().and_then(|check| self.health_check(check));
        settings
    }

    fn hash_by(&mut self, keys: &file::Upstream, balance: Balance) -> Option<HashBy> {
        match (keys.hash_by.get(), balance, keys.balance.get()) {
            (None, Balance::Hash, Some(at)) => {
                if !keys.hash_by.is_bad() {
                    let message = "`balance: hash` needs a value to hash";
                    let help = "write hash_by: ip, header:X-Tenant, cookie:name or claim:sub";
                    self.fault(Code::C106, at.at, message, help);
                }
                None
            }
            (Some(by), Balance::Hash, _) => Some(by.value.0.clone()),
            (Some(by), _, _) => {
                let message = "`hash_by` has no effect without `balance: hash`";
                self.fault(Code::C106, by.key_at, message, "write balance: hash, or remove it");
                None
            }
            (None, ..) => None,
        }
    }

    fn health_check(&mut self, keys: &Spanned<file::HealthCheck>) -> Option<HealthCheck> {
        let help =
            "write a path that the upstream serves while it is healthy, such as path: /health";
        if let Some(service) = keys.grpc.get() {
            let path = keys.path.get().map(|at| at.key_at);
            let status = keys.status.get().map(|at| at.key_at);
            for (key, at) in [("path", path), ("status", status)] {
                if let Some(at) = at {
                    let message = format!("`{key}` has no effect beside `grpc`");
                    self.fault(Code::C106, at, message, "keep one of them");
                }
            }
            let grpc = Some(Arc::from(service.value.as_str()));
            return Some(self.check_times(keys, HealthCheck { grpc, ..HealthCheck::new("") }));
        }
        let path = self.required(&keys.path, keys.key_at, "path", help)?;
        let is_target = path.value.starts_with('/')
            && path.value.parse::<http::Uri>().is_ok_and(|uri| uri.host().is_none())
            && !path.value.contains('#');
        if !is_target {
            self.wrong(path, InvalidValue::new("is not a path", "write one such as /health"));
        }
        let check = HealthCheck::new(path.value.as_str());
        Some(self.check_times(keys, check))
    }

    fn check_times(
        &mut self,
        keys: &Spanned<file::HealthCheck>,
        default: HealthCheck,
    ) -> HealthCheck {
        let interval = self.time(&keys.interval, default.interval, MAX_DURATION);
        let timeout = self.time(&keys.timeout, default.timeout.min(interval), MAX_DURATION);
        if let Some(at) = keys.timeout.get()
            && timeout > interval
        {
            let message = "the timeout is longer than the interval between two checks";
            self.fault(Code::C106, at.at, message, "write at most the interval");
        }
        let times = 1..=1_000;
        let healthy = self.number(&keys.healthy_after, times.clone(), default.healthy_after.into());
        let unhealthy = self.number(&keys.unhealthy_after, times, default.unhealthy_after.into());
        let ranges = |all: &Spanned<OneOrMany<Scalar<file::StatusRange>>>| {
            all.items.iter().map(|at| (at.value.0.0, at.value.0.1)).collect()
        };
        HealthCheck {
            interval,
            timeout,
            healthy_after: healthy as u32,
            unhealthy_after: unhealthy as u32,
            status: keys.status.get().map_or(default.status, ranges),
            path: default.path,
            grpc: default.grpc,
        }
    }

    fn targets(&mut self, name: &Spanned<String>, keys: &file::Upstream) -> Vec<Target> {
        let help = "write the addresses of the upstream, such as targets: [http://10.0.0.31:8080]";
        let Some(targets) = self.required(&keys.targets, name.at, "targets", help) else {
            return Vec::new();
        };
        let mut all: Vec<Target> = Vec::new();
        for target in &targets.items {
            let one = match &target.value {
                KeywordOr::Scalar(address) => Target::from(address.0.clone()),
                KeywordOr::Mapping(keys) => {
                    let help = "write { url: http://10.0.0.31:8080 }";
                    let Some(url) = self.required(&keys.url, target.at, "url", help) else {
                        continue;
                    };
                    let weight = self.number(&keys.weight, 1..=1000, 1) as u16;
                    Target { address: url.value.0.clone(), weight, backup: keys.backup.or(false) }
                }
            };
            if all.iter().any(|other| other.address == one.address) {
                let message = "this target is repeated";
                self.fault(Code::C111, target.at, message, "give the first one a weight");
            }
            all.push(one);
        }
        if !all.is_empty() && all.iter().all(|target| target.backup) {
            let message = "every target is a backup: there is no primary target";
            self.fault(Code::C106, targets.at, message, "remove `backup` from one of them");
        }
        all
    }

    fn upstream_tls(&mut self, keys: &Spanned<file::Tls>) -> Tls {
        let identity = match (&keys.cert, &keys.key) {
            (Field::Present(cert), Field::Present(key)) => {
                self.identity(cert, key).map(|(_, cert, key)| (cert.into(), key.into()))
            }
            (Field::Present(at), Field::Absent) | (Field::Absent, Field::Present(at)) => {
                let message = "`cert` and `key` go together";
                self.fault(Code::C106, at.key_at, message, "write both, or neither");
                None
            }
            _ => None,
        };
        let server_name = keys.server_name.get();
        if let Some(name) = server_name
            && rustls::pki_types::ServerName::try_from(name.value.as_str()).is_err()
        {
            self.fault(Code::C103, name.at, "this is not a host name", "write a host name");
        }
        Tls {
            ca: self.authorities(&keys.ca_file),
            server_name: server_name.map(|name| name.value.as_str().into()),
            identity,
        }
    }

    pub(super) fn retries(&mut self, keys: &Spanned<file::Retries>) -> Retries {
        let default = Retries::default();
        Retries {
            attempts: self.number(&keys.attempts, 0..=5, default.attempts.into()) as u32,
            on: keys
                .on
                .get()
                .map_or(default.on, |on| on.items.iter().map(|at| at.value.0).collect()),
            budget: keys.budget.get().map_or(default.budget, |at| at.value.0.0),
        }
    }

    fn circuit_breaker(&mut self, keys: &Spanned<file::CircuitBreaker>) -> CircuitBreakerSettings {
        let default = CircuitBreakerSettings::default();
        CircuitBreakerSettings {
            errors: self.number(&keys.errors, 1..=1_000_000, default.errors.into()) as u32,
            error_rate: keys.error_rate.get().map_or(default.error_rate, |at| at.value.0.0),
            min_requests: self.number(
                &keys.min_requests,
                1..=1_000_000,
                default.min_requests.into(),
            ) as u32,
            open_for: self.time(&keys.open_for, default.open_for, MAX_DURATION),
            close_after: self.number(&keys.close_after, 1..=1_000, default.close_after.into())
                as u32,
        }
    }
}
