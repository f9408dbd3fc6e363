//! Single-flight calls: concurrent requests for one key share one call.
//!
//! Fifty requests that need the same response from an authorization server cost
//! it one call. The call runs on the control runtime, not in the task of
//! the first caller, so that no disconnect of one caller cancels it for the others.

use crate::base::lock::IgnorePoison;
use core::fmt;
use core::hash::Hash;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::Shared as Follower;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// The calls in flight, by key.
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
    /// Creates an empty set whose calls run on `control`.
    pub fn new(control: Handle) -> Self {
        Self { control, calls: Arc::default() }
    }

    /// Returns the result of the call in flight for `key`, if there is one.
    ///
    /// # Errors
    ///
    /// [`LeaderFailed`] as in [`SingleFlight::run`].
    pub fn follow(
        &self,
        key: &K,
    ) -> Option<impl Future<Output = Result<V, LeaderFailed>> + use<K, V>> {
        let calls = self.calls.lock().ignore_poison();
        let call_result = calls.get(key)?.clone();
        Some(async move { call_result.await.map_err(|_| LeaderFailed) })
    }

    /// Waits for the call in flight for `key`, or starts `call`.
    ///
    /// The second value is this caller's role. Another call for `key` may have ended since the caller looked into its
    /// cache: a `call` that may run only once looks again.
    ///
    /// # Cancellation
    ///
    /// Dropping this future leaves the call running: its result may be cached.
    ///
    /// # Errors
    ///
    /// [`LeaderFailed`] if the call panicked or the control runtime is gone.
    pub async fn run<F>(&self, key: K, call: impl FnOnce() -> F) -> Result<(V, Role), LeaderFailed>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (call_result, joined) = {
            let mut calls = self.calls.lock().ignore_poison();
            if let Some(call_result) = calls.get(&key) {
                (call_result.clone(), Role::Shared)
            } else {
                let (done, call_result) = oneshot::channel();
                let call_result = call_result.shared();
                calls.insert(key.clone(), call_result.clone());
                let landing = LeaderGuard { calls: Arc::clone(&self.calls), key };
                let call = call();
                self.control.spawn(async move {
                    let value = call.await;
                    drop(landing);
                    // Without receivers the call was still useful if it filled a cache.
                    let _ = done.send(value);
                });
                (call_result, Role::Leader)
            }
        };
        call_result.await.map(|value| (value, joined)).map_err(|_| LeaderFailed)
    }
}

/// The role of a caller in a shared call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// This caller started the call.
    Leader,
    /// The call was already in flight.
    Shared,
}

/// The call ended without a result.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("shared call: ended without a result")]
pub struct LeaderFailed;

/// Removes the entry of a call even if the call panics, so that the next caller starts a new one.
struct LeaderGuard<K: Eq + Hash, V> {
    calls: Arc<Mutex<Calls<K, V>>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for LeaderGuard<K, V> {
    fn drop(&mut self) {
        self.calls.lock().ignore_poison().remove(&self.key);
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
    async fn fifty_callers_share_one_call() {
        let flight = SingleFlight::new(Handle::current());
        let calls = Arc::new(AtomicU32::new(0));

        let results = join_all((0..50).map(|_| {
            let calls = Arc::clone(&calls);
            flight.run("token", move || async move {
                tokio::task::yield_now().await;
                calls.fetch_add(1, SeqCst)
            })
        }))
        .await;

        assert_eq!(calls.load(SeqCst), 1);
        assert_eq!(results.iter().filter(|a| **a == Ok((0, Role::Leader))).count(), 1);
        assert_eq!(results.iter().filter(|a| **a == Ok((0, Role::Shared))).count(), 49);
    }

    #[tokio::test]
    async fn a_follower_starts_no_call() {
        let flight = SingleFlight::new(Handle::current());
        assert!(flight.follow(&"k").is_none());
        let first = flight.run("k", || async { 1 });
        let follower = async { flight.follow(&"k").expect("a call is under way").await };

        let (first, followed) = futures_util::future::join(first, follower).await;

        assert_eq!((first, followed), (Ok((1, Role::Leader)), Ok(1)));
        assert!(flight.follow(&"k").is_none());
    }

    #[tokio::test]
    async fn a_caller_after_the_end_starts_a_new_call() {
        let flight = SingleFlight::new(Handle::current());

        assert_eq!(flight.run("k", || async { 1 }).await, Ok((1, Role::Leader)));
        assert_eq!(flight.run("k", || async { 2 }).await, Ok((2, Role::Leader)));
    }

    #[tokio::test]
    async fn a_call_survives_the_caller_that_started_it() {
        let flight = Arc::new(SingleFlight::new(Handle::current()));
        let (go, gate) = oneshot::channel::<()>();
        let mut caller = Box::pin(flight.run("k", || async move {
            gate.await.ok();
            7
        }));
        assert!(caller.as_mut().now_or_never().is_none());
        drop(caller);

        let waiting =
            flight.run("k", || async { unreachable!("the first call is still in flight") });
        go.send(()).expect("the call waits");

        assert_eq!(waiting.await, Ok((7, Role::Shared)));
    }

    #[tokio::test]
    async fn a_panic_fails_one_call_and_frees_the_key() {
        let flight = SingleFlight::<_, u32>::new(Handle::current());

        assert_eq!(flight.run("k", || async { panic!("on purpose") }).await, Err(LeaderFailed));
        assert_eq!(flight.run("k", || async { 2 }).await, Ok((2, Role::Leader)));
    }
}
