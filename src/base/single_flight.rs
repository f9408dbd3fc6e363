//! Many askers, one call.
//!
//! Fifty requests that need the same answer from an authorization server cost
//! it one call. The call runs on the control runtime, not in the task of
//! whoever asked first, so no asker's disconnect cancels it for the others.

use core::fmt;
use core::hash::Hash;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::Shared as Follower;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Calls under way, by key.
pub struct SingleFlight<K, V> {
    control: Handle,
    calls: Arc<Mutex<Calls<K, V>>>,
}

type Calls<K, V> = HashMap<K, Follower<oneshot::Receiver<V>>>;

impl<K, V> SingleFlight<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Calls run on `control`.
    pub fn new(control: Handle) -> Self {
        Self { control, calls: Arc::default() }
    }

    /// The answer of the call under way for `key`, if there is one.
    ///
    /// # Errors
    ///
    /// [`LeaderFailed`] as of [`SingleFlight::run`].
    pub fn follow(
        &self,
        key: &K,
    ) -> Option<impl Future<Output = Result<V, LeaderFailed>> + use<K, V>> {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = calls.get(key)?.clone();
        Some(async move { answer.await.map_err(|_| LeaderFailed) })
    }

    /// Awaits the call under way for `key`, or starts `call`.
    ///
    /// The second value says whether the answer was another asker's.
    ///
    /// # Cancellation
    ///
    /// Dropping this future leaves the call running: its answer may be cached.
    ///
    /// # Errors
    ///
    /// [`LeaderFailed`] if the call panicked or the control runtime is gone.
    pub async fn run<F>(&self, key: K, call: impl FnOnce() -> F) -> Result<(V, Role), LeaderFailed>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (answer, joined) = {
            let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(answer) = calls.get(&key) {
                (answer.clone(), Role::Shared)
            } else {
                let (done, answer) = oneshot::channel();
                let answer = answer.shared();
                calls.insert(key.clone(), answer.clone());
                let landing = LeaderGuard { calls: Arc::clone(&self.calls), key };
                let call = call();
                self.control.spawn(async move {
                    let value = call.await;
                    drop(landing);
                    // Nobody waits any more: the call was not in vain if it filled a cache.
                    let _ = done.send(value);
                });
                (answer, Role::Leader)
            }
        };
        answer.await.map(|value| (value, joined)).map_err(|_| LeaderFailed)
    }
}

/// Whose call an answer came from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// This asker started the call.
    Leader,
    /// The call was already under way.
    Shared,
}

/// The call ended without an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the shared call ended without an answer")]
pub struct LeaderFailed;

/// Ends a call's entry also when the call panics, so that the next asker starts anew.
struct LeaderGuard<K: Eq + Hash, V> {
    calls: Arc<Mutex<Calls<K, V>>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for LeaderGuard<K, V> {
    fn drop(&mut self) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

impl<K, V> fmt::Debug for SingleFlight<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flight").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn fifty_askers_make_one_call() {
        let flight = SingleFlight::new(Handle::current());
        let calls = Arc::new(AtomicU32::new(0));

        let answers = join_all((0..50).map(|_| {
            let calls = Arc::clone(&calls);
            flight.run("token", move || async move {
                tokio::task::yield_now().await;
                calls.fetch_add(1, SeqCst)
            })
        }))
        .await;

        assert_eq!(calls.load(SeqCst), 1);
        assert_eq!(answers.iter().filter(|a| **a == Ok((0, Role::Leader))).count(), 1);
        assert_eq!(answers.iter().filter(|a| **a == Ok((0, Role::Shared))).count(), 49);
    }

    #[tokio::test]
    async fn who_follows_starts_no_call() {
        let flight = SingleFlight::new(Handle::current());
        assert!(flight.follow(&"k").is_none());
        let first = flight.run("k", || async { 1 });
        let follower = async { flight.follow(&"k").expect("a call is under way").await };

        let (first, followed) = futures_util::future::join(first, follower).await;

        assert_eq!((first, followed), (Ok((1, Role::Leader)), Ok(1)));
        assert!(flight.follow(&"k").is_none());
    }

    #[tokio::test]
    async fn the_next_asker_starts_a_new_call() {
        let flight = SingleFlight::new(Handle::current());

        assert_eq!(flight.run("k", || async { 1 }).await, Ok((1, Role::Leader)));
        assert_eq!(flight.run("k", || async { 2 }).await, Ok((2, Role::Leader)));
    }

    #[tokio::test]
    async fn a_call_survives_the_asker_that_started_it() {
        let flight = Arc::new(SingleFlight::new(Handle::current()));
        let (go, gate) = oneshot::channel::<()>();
        let mut asker = Box::pin(flight.run("k", || async move {
            gate.await.ok();
            7
        }));
        assert!(asker.as_mut().now_or_never().is_none());
        drop(asker);

        let waiting =
            flight.run("k", || async { unreachable!("the first call is still under way") });
        go.send(()).expect("the call waits");

        assert_eq!(waiting.await, Ok((7, Role::Shared)));
    }

    #[tokio::test]
    async fn a_panic_loses_one_call_and_not_the_key() {
        let flight = SingleFlight::<_, u32>::new(Handle::current());

        assert_eq!(flight.run("k", || async { panic!("on purpose") }).await, Err(LeaderFailed));
        assert_eq!(flight.run("k", || async { 2 }).await, Ok((2, Role::Leader)));
    }
}
