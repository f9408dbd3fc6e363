//! Time zones by their IANA names.

use core::hash::{Hash, Hasher};

use jiff::tz::TimeZone;

/// A time zone by its IANA name.
#[derive(Clone, Debug)]
pub struct Zone {
    name: Box<str>,
    pub(in crate::limit) zone: TimeZone,
}

impl Zone {
    /// Returns Coordinated Universal Time.
    pub fn utc() -> Self {
        Self { name: "UTC".into(), zone: TimeZone::UTC }
    }

    /// Returns the zone called `name`, such as `Europe/Berlin`, from the compiled-in database.
    ///
    /// # Errors
    ///
    /// Returns [`UnknownZone`] if the database has no such name.
    pub fn named(name: &str) -> Result<Self, UnknownZone> {
        let zone = TimeZone::get(name).map_err(|_| UnknownZone)?;
        Ok(Self { name: zone.iana_name().unwrap_or(name).into(), zone })
    }

    /// Returns the IANA name.
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

/// The database has no zone of this name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a time zone of the IANA database")]
pub struct UnknownZone;
