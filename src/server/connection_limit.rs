//! How many are connected: in all, and from one address.

use core::net::{IpAddr, Ipv6Addr};
use core::num::NonZeroUsize;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Everybody who is connected, over all workers.
#[derive(Debug)]
pub(super) struct ConnectionLimiter {
    places: Arc<Semaphore>,
    most: Mutex<usize>,
    /// Places above `most` that are still taken: each vanishes when it is left.
    owed: AtomicUsize,
    /// From one address; 0 is off. Those who came while it was off are not counted.
    per_address: AtomicUsize,
    addresses: Mutex<HashMap<IpAddr, usize>>,
}

/// A connection that is counted, for its client's address and among all, until dropped.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    crowd: Arc<ConnectionLimiter>,
    address: Option<IpAddr>,
    permit: Option<OwnedSemaphorePermit>,
}

impl ConnectionLimiter {
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

    /// Counts a connection from `address`; `None` if its client has as many as it may.
    pub(super) fn acquire(self: &Arc<Self>, address: IpAddr) -> Option<ConnectionPermit> {
        let Some(most) = NonZeroUsize::new(self.per_address.load(Relaxed)) else {
            return Some(ConnectionPermit { crowd: Arc::clone(self), address: None, permit: None });
        };
        let address = network(address);
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let count = addresses.entry(address).or_default();
        if *count >= most.get() {
            return None;
        }
        *count += 1;
        Some(ConnectionPermit { crowd: Arc::clone(self), address: Some(address), permit: None })
    }
}

impl ConnectionPermit {
    /// Waits until there is room for it: accepting pauses, and the system's queue holds the connections that come.
    ///
    /// The connection is accepted by then. If room were reserved before there is a connection, sockets on which
    /// none comes could hold all of it, and those on which many come would starve.
    pub(super) async fn ready(&mut self) {
        if self.permit.is_none() {
            // The semaphore is never closed.
            self.permit = Arc::clone(&self.crowd.places).acquire_owned().await.ok();
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let owed = &self.crowd.owed;
        if let Some(permit) = self.permit.take()
            && owed.fetch_update(Relaxed, Relaxed, |owed| owed.checked_sub(1)).is_ok()
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

/// An IPv4 address whole, however it is written; of an IPv6 address the /64 that one subscriber gets (RFC 6177).
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_every_place() {
        let crowd = Arc::new(ConnectionLimiter::new(10, Some(2)));
        let (here, there) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));

        let first = crowd.acquire(here).expect("a place");
        let _second = crowd.acquire(here).expect("a place");
        assert!(crowd.acquire(here).is_none());
        assert!(crowd.acquire(there).is_some());
        drop(first);
        assert!(crowd.acquire(here).is_some());
    }

    #[test]
    fn one_subscriber_of_ipv6_has_one_count() {
        let crowd = Arc::new(ConnectionLimiter::new(10, Some(1)));
        let enter = |address: &str| crowd.acquire(address.parse().expect("an address"));

        let _first = enter("2001:db8:1:2::1").expect("a place");
        for same in ["2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::"] {
            assert!(enter(same).is_none(), "{same}");
        }
        for other in ["2001:db8:1:3::1", "2001:db8:0:2::1", "::1"] {
            assert!(enter(other).is_some(), "{other}");
        }
        let _fourth = enter("192.0.2.1").expect("a place");
        assert!(enter("::ffff:192.0.2.1").is_none(), "mapped, it is the same client");
        assert!(enter("::ffff:192.0.2.2").is_some(), "IPv4 is counted whole");
    }

    #[tokio::test]
    async fn other_bounds_hold_from_a_reload_on() {
        let crowd = Arc::new(ConnectionLimiter::new(3, None));
        let here = IpAddr::from([10, 0, 0, 1]);
        let enter = async || {
            let mut place = crowd.acquire(here).expect("a place");
            place.ready().await;
            place
        };
        let mut places = vec![enter().await, enter().await];

        crowd.resize(1, None);
        drop(crowd.acquire(here));
        assert_eq!(crowd.places.available_permits(), 0);
        places.pop();
        assert_eq!(crowd.places.available_permits(), 0, "one is connected, and one may be");
        places.pop();
        assert_eq!(crowd.places.available_permits(), 1);

        places.push(enter().await);
        crowd.resize(4, Some(1));
        assert_eq!(crowd.places.available_permits(), 3);
        places.push(enter().await);
        assert!(crowd.acquire(here).is_none());
    }

    #[tokio::test]
    async fn a_connection_waits_for_room_until_another_has_ended() {
        let crowd = Arc::new(ConnectionLimiter::new(1, None));
        let address = IpAddr::from([10, 0, 0, 1]);
        let mut first = crowd.acquire(address).expect("a place");
        first.ready().await;

        let mut second = crowd.acquire(address).expect("a place");
        let mut room = Box::pin(second.ready());
        assert!(futures_util::FutureExt::now_or_never(room.as_mut()).is_none());
        drop(first);

        room.await;
    }

    #[test]
    fn an_address_is_forgotten_with_its_last_connection() {
        let crowd = Arc::new(ConnectionLimiter::new(10, Some(2)));
        drop(crowd.acquire(IpAddr::from([10, 0, 0, 1])));

        assert!(crowd.addresses.lock().expect("no panic").is_empty());
    }
}
