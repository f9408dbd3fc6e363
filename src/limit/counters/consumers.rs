//! The largest consumers of a limit, with the names that its counters do not have.
//!
//! Counters know keys as hashes only. This list remembers who the keys with the highest use are, in fixed memory: a key
//! displaces the one with the lowest use. How much each has used is read from its counter. A key is noted when its use
//! passes a power of two, or a multiple of 64, so that almost no request locks the list.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

use serde_json::{Map, Value};

use crate::base::digest::sha256;
use crate::base::lock::IgnorePoison;
use crate::limit::key::LimitKeySource;
use crate::limit::plans::PlanIndex;
use crate::limit::settings::KeyPart;

/// The largest consumers of one limit.
#[derive(Debug, Default)]
pub(in crate::limit) struct Consumers {
    list: Mutex<Vec<Consumer>>,
    /// The lowest noted use, once the list is full.
    floor: AtomicU64,
}

/// One consumer.
#[derive(Clone, Debug)]
pub(in crate::limit) struct Consumer {
    pub(in crate::limit) key: u64,
    /// The parts of the key.
    pub(in crate::limit) name: Map<String, Value>,
    /// The plan at the last time that it was noted.
    pub(in crate::limit) plan: PlanIndex,
    /// The use when it was noted.
    noted: u64,
}

impl Consumers {
    /// Notes that the use of `key` rose from `before` to `after`, if that is worth it.
    pub(in crate::limit) fn note(
        &self,
        key: u64,
        plan: PlanIndex,
        (before, after): (u64, u64),
        name: impl FnOnce() -> Map<String, Value>,
    ) {
        let passes = before >> 6 != after >> 6 || before.leading_zeros() != after.leading_zeros();
        if passes && self.floor.load(Relaxed) < after {
            self.insert(key, plan, after, name);
        }
    }

    /// Returns the consumers, in no order.
    pub(in crate::limit) fn all(&self) -> Vec<Consumer> {
        self.list().clone()
    }

    /// Forgets consumers for which `is_counted` is false.
    pub(in crate::limit) fn retain(&self, is_counted: impl Fn(u64) -> bool) {
        let mut list = self.list();
        list.retain(|consumer| is_counted(consumer.key));
        self.floor.store(0, Relaxed);
    }

    #[cold]
    fn insert(
        &self,
        key: u64,
        plan: PlanIndex,
        used: u64,
        name: impl FnOnce() -> Map<String, Value>,
    ) {
        // Another thread that holds the list notes a consumer as well; this one passes a power of two again.
        let Ok(mut list) = self.list.try_lock() else { return };
        if let Some(known) = list.iter_mut().find(|consumer| consumer.key == key) {
            (known.noted, known.plan) = (used, plan);
            return;
        }
        let consumer = |name| Consumer { key, name, plan, noted: used };
        if list.len() < MAX_CONSUMERS {
            list.push(consumer(name()));
        } else if let Some(least) = list.iter_mut().min_by_key(|consumer| consumer.noted)
            && least.noted < used
        {
            *least = consumer(name());
        }
        if list.len() == MAX_CONSUMERS {
            let floor = list.iter().map(|consumer| consumer.noted).min();
            self.floor.store(floor.unwrap_or(0), Relaxed);
        }
    }

    fn list(&self) -> MutexGuard<'_, Vec<Consumer>> {
        self.list.lock().ignore_poison()
    }
}

/// Returns the parts of a request's key for operators. Values of header fields and sessions, which may be secrets, are
/// shown as fingerprints.
pub(in crate::limit) fn name_of(
    by: &[KeyPart],
    subject: &LimitKeySource<'_>,
) -> Map<String, Value> {
    let text = |value: Option<&str>| value.map_or(Value::Null, Value::from);
    let mut name = Map::new();
    for part in by {
        let value = match part {
            KeyPart::Ip => subject.ip.to_canonical().to_string().into(),
            KeyPart::Client => text(subject.client),
            KeyPart::Subject => text(subject.subject),
            KeyPart::Session => {
                subject.session.map_or(Value::Null, |id| fingerprint(id.as_bytes()))
            }
            KeyPart::Route => subject.route.into(),
            KeyPart::Global => continue,
            KeyPart::Header(field) => {
                let value = subject.headers.get(field);
                value.map_or(Value::Null, |value| fingerprint(value.as_bytes()))
            }
            KeyPart::Claim(path) => (subject.claim)(path).cloned().unwrap_or(Value::Null),
        };
        // A part that was missing is counted as the file says: by the address, or with all others.
        let is_missing = value.is_null();
        name.insert(part.to_string(), value);
        if is_missing {
            name.insert("ip".to_owned(), subject.ip.to_canonical().to_string().into());
        }
        if matches!(part, KeyPart::Client | KeyPart::Subject | KeyPart::Session)
            && let Some(issuer) = subject.issuer
        {
            name.insert("issuer".to_owned(), issuer.into());
        }
    }
    name
}

/// Returns the first 48 bits of the SHA-256 of a value, in hexadecimal digits.
fn fingerprint(value: &[u8]) -> Value {
    use core::fmt::Write as _;
    let digest = sha256(&[value]);
    let mut text = "sha256:".to_owned();
    for byte in &digest[..6] {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.into()
}

/// The consumers of one limit that are remembered by name.
const MAX_CONSUMERS: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_consumers_stay_in_a_flood_of_small_ones() {
        let consumers = Consumers::default();
        let note = |key: u64, used: u64| {
            for used in 0..used {
                consumers.note(key, PlanIndex::DEFAULT, (used, used + 1), Map::new);
            }
        };
        (1..=20).for_each(|key| note(key, 1_000 + key));
        (1_000..50_000).for_each(|key| note(key, 1 + key % 5));

        let all = consumers.all();
        assert_eq!(all.len(), MAX_CONSUMERS);
        assert!((1..=20).all(|key| all.iter().any(|consumer| consumer.key == key)));
    }
}
