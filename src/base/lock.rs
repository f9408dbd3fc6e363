//! Locks that outlive a panic of the thread that held them.
//!
//! Locked values are consistent after every statement, so a panic of another thread does not invalidate them: poisoning
//! is ignored.

use std::sync::{LockResult, TryLockError, TryLockResult};

/// Takes the guard (or the value) out of a [`LockResult`] or [`TryLockResult`], poisoned or not.
pub trait IgnorePoison {
    /// A `MutexGuard`, an `RwLock` guard, or the value that the lock held.
    type Guard;

    /// Returns the guard of a lock whether or not a thread panicked while it held the lock.
    fn ignore_poison(self) -> Self::Guard;
}

impl<G> IgnorePoison for LockResult<G> {
    type Guard = G;

    fn ignore_poison(self) -> G {
        self.unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl<G> IgnorePoison for TryLockResult<G> {
    /// `None` while another thread holds the lock.
    type Guard = Option<G>;

    fn ignore_poison(self) -> Option<G> {
        match self {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn a_value_stays_usable_after_a_thread_panicked_with_its_lock() {
        let value = Arc::new(Mutex::new(7));
        let held = Arc::clone(&value);
        let _ = std::thread::spawn(move || {
            let _guard = held.lock();
            panic!("with the lock");
        })
        .join();
        assert!(value.is_poisoned());
        assert_eq!(*value.lock().ignore_poison(), 7);
    }
}
