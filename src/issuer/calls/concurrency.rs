//! The limit of concurrent calls to an authorization server, by class of purpose.
//!
//! Permits are reserved: calls that strangers can begin (logins) must not starve those of
//! users who are logged in (refreshes) or present a token (introspection).

use crate::base::lock::IgnorePoison;
use std::sync::{Mutex, MutexGuard};

use super::call_purpose::Class;

/// The limit of concurrent calls.
#[derive(Debug)]
pub(in crate::issuer) struct ConcurrencyLimit {
    max: usize,
    used: Mutex<[usize; Class::COUNT]>,
}

impl ConcurrencyLimit {
    /// Returns a limit of `max` calls, of which an eighth is reserved for refreshes and an eighth for introspection.
    ///
    /// Each class can make one call in any case, even if that exceeds `max`.
    pub(in crate::issuer) fn new(max: usize) -> Self {
        Self { max, used: Mutex::default() }
    }

    /// Acquires a permit for a call of this class; `None` if there is none.
    pub(in crate::issuer) fn try_acquire(&self, class: Class) -> Option<ConcurrencyPermit<'_>> {
        let mut used = self.used();
        let own = used[class as usize];
        let reserved = self.reserved();
        // Permits in use, plus free permits reserved for other classes.
        let taken: usize =
            used.iter().zip(reserved).map(|(used, reserved)| (*used).max(reserved)).sum();
        if own > 0 && own >= reserved[class as usize] && taken >= self.max {
            return None;
        }
        used[class as usize] += 1;
        Some(ConcurrencyPermit { limit: self, class })
    }

    /// The number of reserved permits of each class.
    const fn reserved(&self) -> [usize; Class::COUNT] {
        let mut reserved = [0; Class::COUNT];
        reserved[Class::Renewal as usize] = self.max / 8;
        reserved[Class::Introspection as usize] = self.max / 8;
        reserved
    }

    fn used(&self) -> MutexGuard<'_, [usize; Class::COUNT]> {
        self.used.lock().ignore_poison()
    }
}

/// A permit for one call, released on drop.
#[derive(Debug)]
pub(in crate::issuer) struct ConcurrencyPermit<'a> {
    limit: &'a ConcurrencyLimit,
    class: Class,
}

impl Drop for ConcurrencyPermit<'_> {
    fn drop(&mut self) {
        self.limit.used()[self.class as usize] -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Class; 4] = [Class::Renewal, Class::Introspection, Class::Revocation, Class::Login];

    fn take_all(limit: &ConcurrencyLimit, class: Class) -> Vec<ConcurrencyPermit<'_>> {
        core::iter::from_fn(|| limit.try_acquire(class)).collect()
    }

    #[test]
    fn one_class_leaves_the_others_their_reserved_permits() {
        for (max, logins, introspection, renewals) in
            [(1, 1, 1, 1), (2, 2, 2, 2), (8, 6, 7, 7), (64, 48, 56, 56), (100, 76, 88, 88)]
        {
            for (class, expected) in [
                (Class::Login, logins),
                (Class::Revocation, logins),
                (Class::Introspection, introspection),
                (Class::Renewal, renewals),
            ] {
                let limit = ConcurrencyLimit::new(max);
                let held = take_all(&limit, class);
                assert_eq!(held.len(), expected, "{class:?} of {max}");
                for other in ALL {
                    assert_eq!(
                        limit.try_acquire(other).is_some(),
                        other != class,
                        "{other:?} of {max}"
                    );
                }
            }
        }
    }

    #[test]
    fn logins_and_introspection_together_starve_no_refresh() {
        let limit = ConcurrencyLimit::new(64);
        let _logins = take_all(&limit, Class::Login);
        let _introspection = take_all(&limit, Class::Introspection);

        assert_eq!(take_all(&limit, Class::Renewal).len(), 8);
    }

    #[test]
    fn all_permits_exceed_the_limit_by_at_most_one_for_each_other_class() {
        for max in [1, 3, 8, 64] {
            let limit = ConcurrencyLimit::new(max);
            let held: Vec<_> = ALL.iter().flat_map(|class| take_all(&limit, *class)).collect();
            assert!(held.len() < max + ALL.len(), "{} of {max}", held.len());
        }
    }

    #[test]
    fn a_permit_is_free_again_when_its_call_has_ended() {
        let limit = ConcurrencyLimit::new(1);
        drop(limit.try_acquire(Class::Login).expect("a permit"));

        assert!(limit.try_acquire(Class::Login).is_some());
    }
}
