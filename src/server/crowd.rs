//! How many are connected: in all, and from one address.

use core::net::IpAddr;
use core::num::NonZeroUsize;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Everybody who is connected, over all workers.
#[derive(Debug)]
pub(super) struct Crowd {
    places: Arc<Semaphore>,
    most: Mutex<usize>,
    /// Places above `most` that are still taken: each vanishes when it is left.
    owed: AtomicUsize,
    /// From one address; 0 is off. Those who came while it was off are not counted.
    per_address: AtomicUsize,
    addresses: Mutex<HashMap<IpAddr, usize>>,
}

/// A place in the crowd, free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Arc<Crowd>,
    address: Option<IpAddr>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Crowd {
    /// At most `most` connections, and at most `per_address` from one address.
    pub(super) fn new(most: usize, per_address: Option<usize>) -> Self {
        let most = most.min(Semaphore::MAX_PERMITS);
        Self {
            places: Arc::new(Semaphore::new(most)),
            most: Mutex::new(most),
            owed: AtomicUsize::new(0),
            per_address: AtomicUsize::new(per_address.unwrap_or(0)),
            addresses: Mutex::default(),
        }
    }

    /// Other bounds from now on. Nobody who is connected is sent away.
    pub(super) fn resize(&self, most: usize, per_address: Option<usize>) {
        self.per_address.store(per_address.unwrap_or(0), Relaxed);
        let most = most.min(Semaphore::MAX_PERMITS);
        let mut before = self.most.lock().unwrap_or_else(PoisonError::into_inner);
        if most < *before {
            let fewer = *before - most;
            let forgotten = self.places.forget_permits(fewer);
            self.owed.fetch_add(fewer - forgotten, Relaxed);
        } else {
            let more = most - *before;
            let owed =
                self.owed.fetch_update(Relaxed, Relaxed, |owed| Some(owed.saturating_sub(more)));
            let paid = owed.unwrap_or(0).min(more);
            self.places.add_permits(more - paid);
        }
        *before = most;
    }

    /// Waits until one more may connect: accepting pauses, and the system's queue holds who comes.
    pub(super) async fn room(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    /// Lets somebody from `address` in; `None` if too many of there are.
    pub(super) fn enter(
        self: &Arc<Self>,
        address: IpAddr,
        permit: OwnedSemaphorePermit,
    ) -> Option<Place> {
        let permit = Some(permit);
        let Some(most) = NonZeroUsize::new(self.per_address.load(Relaxed)) else {
            return Some(Place { crowd: Arc::clone(self), address: None, permit });
        };
        let address = address.to_canonical();
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let count = addresses.entry(address).or_default();
        if *count >= most.get() {
            return None;
        }
        *count += 1;
        Some(Place { crowd: Arc::clone(self), address: Some(address), permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let owed = &self.crowd.owed;
        if owed.fetch_update(Relaxed, Relaxed, |owed| owed.checked_sub(1)).is_ok()
            && let Some(permit) = self.permit.take()
        {
            permit.forget();
        }
        let Some(address) = self.address else { return };
        let mut addresses = self.crowd.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = addresses.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_address_cannot_take_every_place() {
        let crowd = Arc::new(Crowd::new(10, Some(2)));
        let (here, there) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let enter = async |address| crowd.enter(address, crowd.room().await.expect("open"));

        let first = enter(here).await.expect("a place");
        let _second = enter(here).await.expect("a place");
        assert!(enter(here).await.is_none());
        assert!(enter(there).await.is_some());
        drop(first);
        assert!(enter(here).await.is_some());
    }

    #[tokio::test]
    async fn other_bounds_hold_from_a_reload_on() {
        let crowd = Arc::new(Crowd::new(3, None));
        let here = IpAddr::from([10, 0, 0, 1]);
        let enter = async || crowd.enter(here, crowd.room().await.expect("open")).expect("a place");
        let mut places = vec![enter().await, enter().await];

        crowd.resize(1, None);
        assert_eq!(crowd.places.available_permits(), 0);
        places.pop();
        assert_eq!(crowd.places.available_permits(), 0, "one is connected, and one may be");
        places.pop();
        assert_eq!(crowd.places.available_permits(), 1);

        places.push(enter().await);
        crowd.resize(4, Some(1));
        assert_eq!(crowd.places.available_permits(), 3);
        places.push(enter().await);
        assert!(crowd.enter(here, crowd.room().await.expect("open")).is_none());
    }

    #[tokio::test]
    async fn nobody_is_remembered_who_left() {
        let crowd = Arc::new(Crowd::new(10, Some(2)));
        drop(crowd.enter(IpAddr::from([10, 0, 0, 1]), crowd.room().await.expect("open")));

        assert!(crowd.addresses.lock().expect("no panic").is_empty());
    }
}
