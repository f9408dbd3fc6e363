//! How many calls to an authorization server may be under way at once, and for which purposes.
//!
//! Places are kept apart: whatever strangers can begin (logins) takes none that those need who are
//! logged in (renewals) or bring a token (introspection).

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::purpose::Class;

/// The places for calls.
#[derive(Debug)]
pub(super) struct ConcurrencyLimit {
    most: usize,
    used: Mutex<[usize; Class::COUNT]>,
}

impl ConcurrencyLimit {
    /// At most `most` calls at once, of which an eighth is kept for renewals and an eighth for introspection.
    ///
    /// Each class can make one call in any case, even if that is one more than `most`.
    pub(super) fn new(most: usize) -> Self {
        Self { most, used: Mutex::default() }
    }

    /// Takes a place for a call of this class; `None` if there is none.
    pub(super) fn try_acquire(&self, class: Class) -> Option<ConcurrencyPermit<'_>> {
        let mut used = self.used();
        let own = used[class as usize];
        let kept = self.kept();
        // What is in use, and what is kept for others and free.
        let taken: usize = used.iter().zip(kept).map(|(used, kept)| (*used).max(kept)).sum();
        if own > 0 && own >= kept[class as usize] && taken >= self.most {
            return None;
        }
        used[class as usize] += 1;
        Some(ConcurrencyPermit { limit: self, class })
    }

    /// How many places are kept for each class.
    const fn kept(&self) -> [usize; Class::COUNT] {
        let mut kept = [0; Class::COUNT];
        kept[Class::Renewal as usize] = self.most / 8;
        kept[Class::Introspection as usize] = self.most / 8;
        kept
    }

    fn used(&self) -> MutexGuard<'_, [usize; Class::COUNT]> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among the calls at once, held while it lives.
#[derive(Debug)]
pub(super) struct ConcurrencyPermit<'a> {
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
    fn one_class_leaves_the_others_what_is_kept_for_them() {
        for (most, logins, introspection, renewals) in
            [(1, 1, 1, 1), (2, 2, 2, 2), (8, 6, 7, 7), (64, 48, 56, 56), (100, 76, 88, 88)]
        {
            for (class, expected) in [
                (Class::Login, logins),
                (Class::Revocation, logins),
                (Class::Introspection, introspection),
                (Class::Renewal, renewals),
            ] {
                let limit = ConcurrencyLimit::new(most);
                let held = take_all(&limit, class);
                assert_eq!(held.len(), expected, "{class:?} of {most}");
                for other in ALL {
                    assert_eq!(
                        limit.try_acquire(other).is_some(),
                        other != class,
                        "{other:?} of {most}"
                    );
                }
            }
        }
    }

    #[test]
    fn logins_and_introspection_together_starve_no_renewal() {
        let limit = ConcurrencyLimit::new(64);
        let _logins = take_all(&limit, Class::Login);
        let _introspection = take_all(&limit, Class::Introspection);

        assert_eq!(take_all(&limit, Class::Renewal).len(), 8);
    }

    #[test]
    fn all_places_together_are_no_more_than_the_limit_and_one_for_each_other_class() {
        for most in [1, 3, 8, 64] {
            let limit = ConcurrencyLimit::new(most);
            let held: Vec<_> = ALL.iter().flat_map(|class| take_all(&limit, *class)).collect();
            assert!(held.len() < most + ALL.len(), "{} of {most}", held.len());
        }
    }

    #[test]
    fn a_place_is_free_again_when_its_call_has_ended() {
        let limit = ConcurrencyLimit::new(1);
        drop(limit.try_acquire(Class::Login).expect("a place"));

        assert!(limit.try_acquire(Class::Login).is_some());
    }
}
