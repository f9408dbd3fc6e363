//! A limit on the warnings of libraries, which a stranger can cause: a client that acknowledges PINGs that were never
//! sent makes one line each.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::base::clock::Clock;
use crate::base::lock::IgnorePoison;
use crate::base::log_limiter::LogLimiter;

/// Passes a few warnings and errors per callsite of a library and ten seconds, and counts the others. The gateway's own
/// lines, and what an operator asks for by the levels below, are not limited.
#[derive(Debug)]
pub(super) struct LibraryLogLimit {
    clock: Clock,
    /// One limiter per callsite of a library: their number is bounded by the code.
    callsites: Mutex<HashMap<Identifier, LogLimiter>>,
    suppressed: Arc<AtomicU64>,
}

impl LibraryLogLimit {
    /// Creates the layer, which counts in `suppressed`.
    pub(super) fn new(clock: Clock, suppressed: Arc<AtomicU64>) -> Self {
        Self { clock, callsites: Mutex::default(), suppressed }
    }

    /// Whether a line is the gateway's own.
    pub(super) fn is_own(of: &Metadata<'_>) -> bool {
        of.target().split("::").next() == Some(env!("CARGO_CRATE_NAME"))
    }
}

impl<S: Subscriber> Layer<S> for LibraryLogLimit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let of = event.metadata();
        if *of.level() > Level::WARN || Self::is_own(of) {
            return true;
        }
        let mut callsites = self.callsites.lock().ignore_poison();
        let limiter = callsites.entry(of.callsite()).or_insert_with(|| LogLimiter::new(MAX_LINES));
        if limiter.admit(self.clock.uptime()).is_none() {
            self.suppressed.fetch_add(1, Relaxed);
            return false;
        }
        true
    }
}

/// Lines per callsite and ten seconds.
const MAX_LINES: u32 = 5;
