//! The bound on pending logouts of sessions that only Redis has, while Redis does not respond.
//!
//! Nothing proves that such a session exists: a client may make up any number of ids. Each pending logout takes a record
//! on disk and a write to Redis, so there are few in all, and fewer from one address.

use core::net::IpAddr;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::base::lock::IgnorePoison;
use crate::password::network;

/// The pending logouts of one session configuration; outlives a reload.
#[derive(Debug, Default)]
pub(crate) struct UnseenLogouts(Mutex<HashMap<Option<u64>, usize>>);

/// The permit of one pending logout; released on drop.
#[derive(Debug)]
pub(crate) struct UnseenLogout {
    all: Arc<UnseenLogouts>,
    network: Option<u64>,
}

impl UnseenLogouts {
    /// Returns a permit for a logout that came from `address`, or that an earlier process has left; `None` if too many
    /// are pending.
    pub(crate) fn admit(self: &Arc<Self>, address: Option<IpAddr>) -> Option<UnseenLogout> {
        let network = address.map(network);
        let mut counts = self.0.lock().ignore_poison();
        let max = if network.is_some() { MAX_PENDING_OF_NETWORK } else { MAX_PENDING };
        let own = counts.get(&network).copied().unwrap_or_default();
        if own >= max || counts.values().sum::<usize>() >= MAX_PENDING {
            return None;
        }
        counts.insert(network, own + 1);
        Some(UnseenLogout { all: Arc::clone(self), network })
    }
}

impl Drop for UnseenLogout {
    fn drop(&mut self) {
        let mut counts = self.all.0.lock().ignore_poison();
        if let Some(count) = counts.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.network);
            }
        }
    }
}

/// Pending logouts of one session configuration.
const MAX_PENDING: usize = 500;
/// Those from one IPv4 address or IPv6 prefix of 64 bits.
const MAX_PENDING_OF_NETWORK: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_logouts_of_made_up_sessions_are_few() {
        let logouts = Arc::new(UnseenLogouts::default());
        let of = |number: u8| Some(IpAddr::from([192, 0, 2, number]));
        let stranger: Vec<_> = (0..1_000).map_while(|_| logouts.admit(of(1))).collect();
        assert_eq!(stranger.len(), MAX_PENDING_OF_NETWORK);

        let other = logouts.admit(of(2));
        let all: Vec<_> =
            (3..=255).flat_map(|n| [logouts.admit(of(n)), logouts.admit(of(n))]).collect();

        assert!(other.is_some(), "another user");
        assert_eq!(stranger.len() + 1 + all.iter().flatten().count(), MAX_PENDING);
        drop((stranger, other, all));
        assert!(logouts.0.lock().ignore_poison().is_empty());
    }
}
