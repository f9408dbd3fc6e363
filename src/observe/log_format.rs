//! The format of a line: JSON for machines, text for a person; a reload may change it.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// The format of log lines.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// One JSON object per line, for machines.
    Json,
    /// One short line, for a terminal.
    Text,
}

/// The current format of lines.
#[derive(Debug)]
pub(super) struct CurrentFilter(AtomicBool);

impl CurrentFilter {
    pub(super) fn new(format: Format) -> Self {
        Self(AtomicBool::new(format == Format::Text))
    }

    pub(super) fn set(&self, format: Format) {
        self.0.store(format == Format::Text, Relaxed);
    }

    /// Returns the format of the next line.
    pub(super) fn get(&self) -> Format {
        if self.0.load(Relaxed) { Format::Text } else { Format::Json }
    }
}
