//! Metrics of the whole process.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Mutex;

use crate::base::clock::Timestamp;
use crate::base::lock::IgnorePoison;

use super::family::Source;
use super::family::{self, Scrape};
use super::primitives::{Counter, Gauge};

/// The metrics of the process.
#[derive(Debug, Default)]
pub struct ProcessMetrics {
    reloads: Counter,
    failed_reloads: Counter,
    last_reload_ok: Gauge,
    /// Seconds since the Unix epoch; zero before the first success.
    last_reload: AtomicU64,
    config_hash: Mutex<String>,
    state_writes: Counter,
    failed_state_writes: Counter,
    /// 1 while the state can be written; 0 before the first write.
    state_writable: Gauge,
    usage_exported: Counter,
    usage_failed: Counter,
    usage_waiting: Gauge,
    /// 1 while the gateway is ready for traffic.
    pub ready: Gauge,
    /// Log lines dropped because the writer could not keep up.
    pub log_lines_dropped: Counter,
}

impl ProcessMetrics {
    /// Records that a configuration with the hash `hash` is in use since `now`.
    pub fn reloaded(&self, hash: &str, now: Timestamp) {
        self.reloads.inc();
        self.last_reload_ok.set(1);
        self.last_reload.store(now.as_secs(), Relaxed);
        hash.clone_into(&mut self.config_hash.lock().ignore_poison());
    }

    /// Records that a configuration was refused; the previous one stays in use.
    pub fn reload_failed(&self) {
        self.failed_reloads.inc();
        self.last_reload_ok.set(0);
    }

    /// Counts the events of a batch that every destination has, or that one did not take.
    pub fn usage_exported(&self, successful: bool, events: usize) {
        let counter = if successful { &self.usage_exported } else { &self.usage_failed };
        counter.add(events as u64);
    }

    /// Sets the number of batches of usage that wait.
    pub fn usage_waiting(&self, batches: usize) {
        self.usage_waiting.set(i64::try_from(batches).unwrap_or(i64::MAX));
    }

    /// Records whether the quotas could be written to `server.state_dir`.
    pub fn state_written(&self, successful: bool) {
        if successful {
            self.state_writes.inc();
        } else {
            self.failed_state_writes.inc();
        }
        self.state_writable.set(i64::from(successful));
    }
}

impl Source for ProcessMetrics {
    fn report(&self, to: &mut Scrape) {
        to.counter(&family::RELOADS, &["ok"], &self.reloads);
        to.counter(&family::RELOADS, &["failed"], &self.failed_reloads);
        to.gauge(&family::LAST_RELOAD, &[], &self.last_reload_ok);
        to.level(&family::LAST_RELOAD_SUCCESS, &[], self.last_reload.load(Relaxed).cast_signed());
        let hash = self.config_hash.lock().ignore_poison();
        if !hash.is_empty() {
            to.level(&family::CONFIG_INFO, &[&hash], 1);
        }
        to.level(&family::BUILD_INFO, &[VERSION, COMMIT, RUSTC], 1);
        if self.state_writes.value() + self.failed_state_writes.value() > 0 {
            to.counter(&family::STATE_WRITES, &["ok"], &self.state_writes);
            to.counter(&family::STATE_WRITES, &["failed"], &self.failed_state_writes);
            to.gauge(&family::STATE_WRITABLE, &[], &self.state_writable);
        }
        to.counter(&family::USAGE_EVENTS, &["ok"], &self.usage_exported);
        to.counter(&family::USAGE_EVENTS, &["failed"], &self.usage_failed);
        to.gauge(&family::USAGE_WAITING, &[], &self.usage_waiting);
        to.gauge(&family::READY, &[], &self.ready);
        to.counter(&family::LOG_LINES_DROPPED, &[], &self.log_lines_dropped);
    }
}

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit of this build, if known.
pub const COMMIT: &str = match option_env!("NORTHGATE_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// The compiler of this build.
pub const RUSTC: &str = env!("NORTHGATE_RUSTC");
