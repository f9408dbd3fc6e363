//! Checks a `File` and builds the [`Config`]: resolves names, enforces ranges, refuses conflicts.
//!
//! Every section is checked even if others have faults, so that one run reports
//! every mistake. Values that `de` could not read are skipped silently, because
//! their faults are recorded already.

mod action;
mod auth;
mod client;
mod compress;
mod conflicting_headers;
mod cookies;
mod decryption;
mod files;
mod forwarding;
mod headers;
mod ineffective_settings;
mod ineffective_values;
mod introspection_use;
mod issuer_identifier;
mod issuer_requirements;
mod issuers;
mod known_issuers;
mod layers;
mod limits;
mod metering;
mod plans;
mod redis;
mod response_cost;
mod route_conflicts;
mod routes;
mod server;
mod session_issuers;
mod session_login;
mod sessions;
mod token_rules;
mod token_source;
mod unreachable_rules;
mod unsatisfiable_rules;
mod unusable_cors;
mod unused_issuers;
mod upstreams;
mod whole_file;

pub(crate) use self::whole_file::check;
use core::ops::RangeInclusive;
use core::time::Duration;
use std::path::Path;
use std::sync::Arc;

use super::de::field::{Field, LOOK_AT_THE_VARIABLE, Map, Spanned};
use super::de::units;
use super::de::units::InvalidValue;
use super::fault::{Code, Fault, Position};
use super::file::File;
use super::file::value::Value;
use super::redact;
use super::suggestion;
use super::variable_expansion::Environment;
use crate::base::clock::Timestamp;

/// The inputs of checking besides the file itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CheckContext<'a> {
    /// Base of relative paths: the directory of the configuration file.
    pub(crate) directory: &'a Path,
    /// Variables for `{ env: NAME }`.
    pub(crate) environment: &'a Environment,
    /// The current time, for warnings of certificates that expire soon.
    pub(crate) now: Timestamp,
}

/// The faults so far, and the context of checking.
struct Check<'a> {
    surroundings: CheckContext<'a>,
    faults: &'a mut Vec<Fault>,
}

impl Check<'_> {
    fn fault(
        &mut self,
        code: Code,
        at: Position,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.faults.push(Fault::new(code, at, message).help(help));
    }

    /// Records that `value` is invalid.
    fn wrong<T: core::fmt::Display>(&mut self, value: &Spanned<T>, wrong: InvalidValue) {
        let help = match &value.raw {
            Some(_) => LOOK_AT_THE_VARIABLE.into(),
            None => redact::help(wrong.help, &value.value.to_string(), value.hidden),
        };
        self.fault(Code::C103, value.at, format!("{} {}", value.shown(), wrong.message), help);
    }

    fn version(&mut self, file: &File) {
        match &file.version {
            Field::Present(version) if version.value == 1 => {}
            Field::Present(version) => {
                self.fault(
                    Code::C103,
                    version.at,
                    "only version 1 is supported",
                    "write `version: 1`",
                );
            }
            Field::Absent => {
                self.fault(
                    Code::C105,
                    Position::START,
                    "`version` is missing",
                    "begin with `version: 1`",
                );
            }
            Field::Invalid => {}
        }
    }

    /// Returns the value of a required key of the section at `position`; records a fault if the key is absent.
    fn required<'s, T>(
        &mut self,
        set: &'s Field<T>,
        position: Position,
        what: &str,
        help: &str,
    ) -> Option<&'s Spanned<T>> {
        if set.is_absent() {
            self.fault(Code::C105, position, format!("`{what}` is missing"), help);
        }
        set.get()
    }

    /// Returns a number within `range`.
    fn number<N>(&mut self, set: &Field<N>, range: RangeInclusive<u64>, default: u64) -> u64
    where
        N: Copy + Into<u64> + core::fmt::Display,
    {
        let Some(at) = set.get() else { return default };
        let number = at.value.into();
        if range.contains(&number) {
            return number;
        }
        let help = match *range.end() {
            u64::MAX => format!("write at least {}", range.start()),
            end => format!("write {} to {end}", range.start()),
        };
        self.wrong(at, InvalidValue::new("is out of range", help));
        default
    }

    /// Returns a duration that is neither zero nor above `max`.
    fn time(&mut self, set: &Value<Duration>, default: Duration, max: Duration) -> Duration {
        match set.get() {
            Some(at) if at.value.0.is_zero() => {
                self.fault(
                    Code::C103,
                    at.at,
                    "0s is not allowed here",
                    "write a longer time, such as 1s",
                );
                default
            }
            _ => self.time_or_zero(set, default, max),
        }
    }

    /// Refuses a duration with a part of a second, where HTTP or tokens count in whole ones.
    fn whole_seconds(&mut self, set: &Value<Duration>) {
        if let Some(at) = set.get().filter(|at| at.value.0.subsec_nanos() != 0) {
            let message = "this must be a whole number of seconds";
            self.fault(Code::C103, at.at, message, "write whole seconds, such as 1s");
        }
    }

    /// Returns a duration not above `max`.
    fn time_or_zero(
        &mut self,
        set: &Value<Duration>,
        default: Duration,
        max: Duration,
    ) -> Duration {
        match set.get() {
            Some(at) if at.value.0 > max => {
                let help = format!("write at most {}", units::format_duration(max));
                self.fault(Code::C103, at.at, "this is too long", help);
                default
            }
            Some(at) => at.value.0,
            None => default,
        }
    }

    /// Refuses an item that is twice in a list.
    fn no_duplicates<T: PartialEq + core::fmt::Display>(&mut self, items: &[Spanned<T>]) {
        for (index, item) in items.iter().enumerate() {
            if items[..index].iter().any(|earlier| earlier.value == item.value) {
                let message = format!("{} is repeated", item.shown());
                self.fault(Code::C111, item.at, message, "keep one of them");
            }
        }
    }

    /// Returns the names of a section after checking each.
    fn names<'m, T>(&mut self, section: &'m Field<Map<T>>) -> Vec<&'m str> {
        let Some(map) = section.get() else { return Vec::new() };
        for (name, _) in &map.0 {
            if let Err(wrong) = units::name(&name.value) {
                self.wrong(name, wrong);
            }
        }
        map.names().collect()
    }

    /// Whether `name` is defined under `section`; records a fault if not.
    fn defined(
        &mut self,
        name: &Spanned<String>,
        section: &str,
        names: &[&str],
    ) -> Option<Arc<str>> {
        if names.contains(&name.value.as_str()) {
            return Some(name.value.as_str().into());
        }
        let help = match suggestion::closest(&name.value, names.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None if names.is_empty() => format!("there is nothing under `{section}`"),
            None => format!(
                "defined are {}",
                units::listed(names.iter().copied()).replace(" or ", " and ")
            ),
        };
        let message = format!("{} is not defined under `{section}`", name.shown());
        self.fault(Code::C104, name.at, message, help);
        None
    }
}

/// Returns the names that a section defines, including those with invalid values.
fn defined_names<T>(section: &Field<Map<T>>) -> Vec<&str> {
    section.get().map(|map| map.names().collect()).unwrap_or_default()
}

/// The maximum of a duration unless the key has its own.
const MAX_DURATION: Duration = Duration::from_secs(366 * 86_400);
