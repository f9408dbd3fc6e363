//! The pushed authorization requests that no browser has used yet.

use std::sync::Mutex;

use super::authorization_request::AuthorizationRequest;
use super::bounded_map::BoundedMap;
use crate::base::clock::Timestamp;
use crate::base::lock::IgnorePoison;

/// Pushed requests that no browser has used yet, by their request URI.
#[derive(Debug)]
pub(super) struct PushedRequests(Mutex<BoundedMap<String, (AuthorizationRequest, Timestamp)>>);

impl PushedRequests {
    pub(super) fn new() -> Self {
        Self(Mutex::new(BoundedMap::new(MAX_REQUESTS)))
    }

    /// Removes and returns the request that `client` pushed as `request_uri`, unless it has expired.
    pub(super) fn take(
        &self,
        request_uri: &str,
        client: &str,
        now: Timestamp,
    ) -> Option<AuthorizationRequest> {
        let mut requests = self.0.lock().ignore_poison();
        let (request, _) = requests.get_mut(&request_uri.to_owned())?;
        if *request.client.id != *client {
            return None;
        }
        let (request, expires) = requests.remove(&request_uri.to_owned())?;
        (now < expires).then_some(request)
    }

    /// Keeps `request` as `request_uri` until it `expires`.
    pub(super) fn insert(
        &self,
        request_uri: String,
        request: AuthorizationRequest,
        expires: Timestamp,
    ) {
        let mut requests = self.0.lock().ignore_poison();
        requests.insert(request_uri, (request, expires));
    }
}

const MAX_REQUESTS: usize = 10_000;
