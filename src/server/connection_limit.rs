//! The limits on client connections: in total, and per IP address.

use crate::base::lock::IgnorePoison;
use core::net::{IpAddr, Ipv6Addr};
use core::num::NonZeroUsize;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Open client connections of all workers, counted in total and per IP address.
#[derive(Debug)]
pub(super) struct ConnectionLimiter {
    permits: Arc<Semaphore>,
    max: Mutex<usize>,
    /// Permits above `max` that are still held: each is dropped when it is released.
    excess: AtomicUsize,
    /// The limit per address; 0 is off. Connections accepted while it was off are not counted.
    per_address: AtomicUsize,
    addresses: Mutex<HashMap<IpAddr, usize>>,
}

/// A client connection, counted per address and in total until dropped.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    limiter: Arc<ConnectionLimiter>,
    address: Option<IpAddr>,
    permit: Option<OwnedSemaphorePermit>,
}

impl ConnectionLimiter {
    /// Creates a limiter of `max` connections, and `per_address` from one address.
    pub(super) fn new(max: usize, per_address: Option<usize>) -> Self {
        let max = max.min(Semaphore::MAX_PERMITS);
        Self {
            permits: Arc::new(Semaphore::new(max)),
            max: Mutex::new(max),
            excess: AtomicUsize::new(0),
            per_address: AtomicUsize::new(per_address.unwrap_or(0)),
            addresses: Mutex::default(),
        }
    }

    /// Changes the limits. Open connections are kept.
    pub(super) fn resize(&self, max: usize, per_address: Option<usize>) {
        self.per_address.store(per_address.unwrap_or(0), Relaxed);
        let max = max.min(Semaphore::MAX_PERMITS);
        let mut before = self.max.lock().ignore_poison();
        if max < *before {
            let fewer = *before - max;
            let forgotten = self.permits.forget_permits(fewer);
            self.excess.fetch_add(fewer - forgotten, Relaxed);
        } else {
            let more = max - *before;
            let excess = self
                .excess
                .fetch_update(Relaxed, Relaxed, |excess| Some(excess.saturating_sub(more)));
            let absorbed = excess.unwrap_or(0).min(more);
            self.permits.add_permits(more - absorbed);
        }
        *before = max;
    }

    /// Counts a connection from `address`; `None` if the address has reached its limit.
    pub(super) fn acquire(self: &Arc<Self>, address: IpAddr) -> Option<ConnectionPermit> {
        let mut permit = self.acquire_unnamed();
        permit.count_for(address).then_some(permit)
    }

    /// Counts a connection whose client is not known yet.
    pub(super) fn acquire_unnamed(self: &Arc<Self>) -> ConnectionPermit {
        ConnectionPermit { limiter: Arc::clone(self), address: None, permit: None }
    }
}

impl ConnectionPermit {
    /// Counts the connection for `address`; false if the address has reached its limit.
    pub(super) fn count_for(&mut self, address: IpAddr) -> bool {
        let Some(max) = NonZeroUsize::new(self.limiter.per_address.load(Relaxed)) else {
            return true;
        };
        let address = network(address);
        let mut addresses = self.limiter.addresses.lock().ignore_poison();
        let count = addresses.entry(address).or_default();
        if *count >= max.get() {
            return false;
        }
        *count += 1;
        self.address = Some(address);
        true
    }

    /// Waits for a permit: accepting pauses meanwhile, and the system's queue holds new connections.
    ///
    /// The connection is accepted by then. If a permit were reserved before a connection arrives, idle sockets could
    /// hold all permits, and busy sockets would starve.
    pub(super) async fn ready(&mut self) {
        if self.permit.is_none() {
            // The semaphore is never closed.
            self.permit = Arc::clone(&self.limiter.permits).acquire_owned().await.ok();
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let excess = &self.limiter.excess;
        if let Some(permit) = self.permit.take()
            && excess.fetch_update(Relaxed, Relaxed, |excess| excess.checked_sub(1)).is_ok()
        {
            permit.forget();
        }
        let Some(address) = self.address else { return };
        let mut addresses = self.limiter.addresses.lock().ignore_poison();
        if let Some(count) = addresses.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&address);
            }
        }
    }
}

/// Returns the key of an address: an IPv4 address itself, or the /64 of an IPv6 address, which one subscriber gets
/// (RFC 6177).
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
    fn one_address_cannot_take_every_permit() {
        let limiter = Arc::new(ConnectionLimiter::new(10, Some(2)));
        let (here, there) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));

        let first = limiter.acquire(here).expect("a permit");
        let _second = limiter.acquire(here).expect("a permit");
        assert!(limiter.acquire(here).is_none());
        assert!(limiter.acquire(there).is_some());
        drop(first);
        assert!(limiter.acquire(here).is_some());
    }

    #[test]
    fn one_ipv6_subscriber_has_one_count() {
        let limiter = Arc::new(ConnectionLimiter::new(10, Some(1)));
        let enter = |address: &str| limiter.acquire(address.parse().expect("an address"));

        let _first = enter("2001:db8:1:2::1").expect("a permit");
        for same in ["2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::"] {
            assert!(enter(same).is_none(), "{same}");
        }
        for other in ["2001:db8:1:3::1", "2001:db8:0:2::1", "::1"] {
            assert!(enter(other).is_some(), "{other}");
        }
        let _fourth = enter("192.0.2.1").expect("a permit");
        assert!(enter("::ffff:192.0.2.1").is_none(), "mapped, it is the same client");
        assert!(enter("::ffff:192.0.2.2").is_some(), "IPv4 is counted whole");
    }

    #[tokio::test]
    async fn a_reload_changes_the_limits() {
        let limiter = Arc::new(ConnectionLimiter::new(3, None));
        let here = IpAddr::from([10, 0, 0, 1]);
        let enter = async || {
            let mut permit = limiter.acquire(here).expect("a permit");
            permit.ready().await;
            permit
        };
        let mut permits = vec![enter().await, enter().await];

        limiter.resize(1, None);
        drop(limiter.acquire(here));
        assert_eq!(limiter.permits.available_permits(), 0);
        permits.pop();
        assert_eq!(limiter.permits.available_permits(), 0, "one is connected, and one may be");
        permits.pop();
        assert_eq!(limiter.permits.available_permits(), 1);

        permits.push(enter().await);
        limiter.resize(4, Some(1));
        assert_eq!(limiter.permits.available_permits(), 3);
        permits.push(enter().await);
        assert!(limiter.acquire(here).is_none());
    }

    #[tokio::test]
    async fn a_connection_waits_for_a_permit_until_another_has_ended() {
        let limiter = Arc::new(ConnectionLimiter::new(1, None));
        let address = IpAddr::from([10, 0, 0, 1]);
        let mut first = limiter.acquire(address).expect("a permit");
        first.ready().await;

        let mut second = limiter.acquire(address).expect("a permit");
        let mut room = Box::pin(second.ready());
        assert!(futures_util::FutureExt::now_or_never(room.as_mut()).is_none());
        drop(first);

        room.await;
    }

    #[test]
    fn the_count_of_an_address_is_dropped_with_its_last_connection() {
        let limiter = Arc::new(ConnectionLimiter::new(10, Some(2)));
        drop(limiter.acquire(IpAddr::from([10, 0, 0, 1])));

        assert!(limiter.addresses.lock().expect("no panic").is_empty());
    }
}
