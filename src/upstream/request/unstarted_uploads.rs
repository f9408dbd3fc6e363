//! Limits requests that are forwarded before their content has begun: each of them occupies a connection for as long as
//! its client delays.

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;

use crate::upstream::Settings;

/// The requests to one upstream whose content has not begun.
#[derive(Debug)]
pub(in crate::upstream) struct UnstartedUploads {
    count: Arc<AtomicUsize>,
    max: usize,
}

/// A request whose content has not begun; released on drop.
#[derive(Debug)]
pub struct UploadPermit(Arc<AtomicUsize>);

impl UnstartedUploads {
    /// Allows them a quarter of the connections of the upstream, and at least one of several: of a single one, a client that sends
    /// nothing would keep all others away.
    pub(in crate::upstream) fn of(settings: &Settings) -> Self {
        let connections = settings.targets.len().saturating_mul(settings.max_connections as usize);
        Self { count: Arc::default(), max: (connections / SHARE).max(usize::from(connections > 1)) }
    }

    /// Returns a permit; `None` if there are too many.
    pub(in crate::upstream) fn admit(&self) -> Option<UploadPermit> {
        let permit = UploadPermit(Arc::clone(&self.count));
        (self.count.fetch_add(1, Relaxed) < self.max).then_some(permit)
    }
}

impl Drop for UploadPermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// One connection in this many.
const SHARE: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_connections_have_one_for_a_request_that_has_not_begun_and_a_single_one_has_none() {
        let target = crate::upstream::Address::tcp(crate::upstream::Scheme::Http, "a.test", 80);
        let mut settings = Settings::new("a", vec![target.into()]);
        let mut admits = |connections| {
            settings.max_connections = connections;
            UnstartedUploads::of(&settings).admit().is_some()
        };

        assert_eq!([1, 2, 3, 4].map(&mut admits), [false, true, true, true]);
    }

    #[test]
    fn permits_are_bounded_and_returned() {
        let requests = UnstartedUploads { count: Arc::default(), max: 2 };
        let first = requests.admit();
        let _second = requests.admit().expect("a permit");
        assert!(requests.admit().is_none());
        drop(first);
        assert!(requests.admit().is_some());
    }
}
