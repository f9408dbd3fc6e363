//! Days, weeks and months that end when the contract says.
//!
//! A day in Berlin has 23, 24 or 25 hours, and February is short. Whoever
//! counts by the calendar asks here when the window around a moment began and
//! when it ends; `window` counts, and has never heard of time zones.

use core::hash::{Hash, Hasher};

use jiff::tz::TimeZone;

/// A time zone by its IANA name.
#[derive(Clone, Debug)]
pub struct Zone {
    name: Box<str>,
    zone: TimeZone,
}

impl Zone {
    /// Coordinated Universal Time.
    pub fn utc() -> Self {
        Self { name: "UTC".into(), zone: TimeZone::UTC }
    }

    /// The zone called `name`, such as `Europe/Berlin`, from the database that is compiled in.
    ///
    /// # Errors
    ///
    /// Returns [`UnknownZone`] if the database has no such name.
    pub fn named(name: &str) -> Result<Self, UnknownZone> {
        let zone = TimeZone::get(name).map_err(|_| UnknownZone)?;
        Ok(Self { name: zone.iana_name().unwrap_or(name).into(), zone })
    }

    /// Its IANA name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl PartialEq for Zone {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Zone {}

impl Hash for Zone {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

/// There is no zone of this name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("this is no time zone of the IANA database")]
pub struct UnknownZone;
