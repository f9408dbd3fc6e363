//! How many are connected: in all, and from one address.

use core::net::IpAddr;
use core::num::NonZeroUsize;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Everybody who is connected, over all workers.
#[derive(Debug)]
pub(super) struct Crowd {
    places: Arc<Semaphore>,
    per_address: Option<NonZeroUsize>,
    addresses: Mutex<HashMap<IpAddr, usize>>,
}

/// A place in the crowd, free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Arc<Crowd>,
    address: Option<IpAddr>,
    _permit: OwnedSemaphorePermit,
}

impl Crowd {
    /// At most `most` connections, and at most `per_address` from one address.
    pub(super) fn new(most: usize, per_address: Option<usize>) -> Self {
        Self {
            places: Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))),
            per_address: per_address.and_then(NonZeroUsize::new),
            addresses: Mutex::default(),
        }
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
        let Some(most) = self.per_address else {
            return Some(Place { crowd: Arc::clone(self), address: None, _permit: permit });
        };
        let address = address.to_canonical();
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let count = addresses.entry(address).or_default();
        if *count >= most.get() {
            return None;
        }
        *count += 1;
        Some(Place { crowd: Arc::clone(self), address: Some(address), _permit: permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
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
    async fn nobody_is_remembered_who_left() {
        let crowd = Arc::new(Crowd::new(10, Some(2)));
        drop(crowd.enter(IpAddr::from([10, 0, 0, 1]), crowd.room().await.expect("open")));

        assert!(crowd.addresses.lock().expect("no panic").is_empty());
    }
}
