//! Selects the endpoint of the next attempt, and waits for one where none is known to be well.

use core::pin::pin;
use core::time::Duration;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::time::{Instant, timeout, timeout_at};

use crate::upstream::Upstream;
use crate::upstream::balancing::attempted_endpoints::AttemptedEndpoints;
use crate::upstream::balancing::endpoint::{Dial, Endpoint};
use crate::upstream::balancing::load_balancer::Choice;
use crate::upstream::health::endpoint_health::EndpointState;

impl Upstream {
    /// Selects the endpoint of a request's first attempt where none is at hand, or only one whose name is not resolved: waits
    /// for name resolution, or for a check. `key` is the hash of the value that the upstream balances by.
    pub(super) async fn select_waiting(
        &self,
        unresolved: Option<Arc<Endpoint>>,
        key: Option<u64>,
    ) -> Option<Arc<Endpoint>> {
        let resolved = match unresolved {
            Some(_) => self.select_resolved(key).await,
            None => None,
        };
        match resolved {
            None => self.select_after_check(key).await,
            resolved => resolved,
        }
    }

    /// Returns the endpoint for the next attempt; `None` if all were attempted or are out.
    pub(super) fn select(
        &self,
        tried: &AttemptedEndpoints,
        now: Duration,
        key: Option<u64>,
    ) -> Option<Arc<Endpoint>> {
        let set = self.endpoints.load();
        if let [only] = &*set.members
            && tried.count() == 0
            && only.endpoint.state(now, Duration::ZERO) == EndpointState::Healthy
        {
            return Some(Arc::clone(&only.endpoint));
        }
        // Only the first attempt of a request advances the round robin: retries would skew it.
        let turn = match tried.count() {
            0 => self.turn.fetch_add(1, Relaxed),
            _ => self.turn.load(Relaxed),
        };
        let balance = self.settings.balance;
        let choice = Choice { balance, turns: &set.turns, turn, key };
        let view = set.view(&self.settings, now, |endpoint| tried.contains(endpoint));
        let index = choice.among(set.members.len(), view)?;
        Some(Arc::clone(&set.members[index].endpoint))
    }

    /// Selects an endpoint after the control runtime has tried anew to connect to those that are unreachable, if it does
    /// so within [`CHECK_WAIT`]: no request is needed to find out, and none fails after a restart of the upstream.
    pub(super) async fn select_after_check(&self, key: Option<u64>) -> Option<Arc<Endpoint>> {
        if self.settings.health_check.is_some() {
            return None;
        }
        let set = self.endpoints.load_full();
        let unreachable = set.members.iter().filter(|member| {
            let state = member.endpoint.state(self.clock.uptime(), Duration::ZERO);
            state == EndpointState::Unreachable
        });
        let deadline = Instant::now() + CHECK_WAIT;
        // Enabled before the checks begin: none of them is missed.
        let mut checked = pin!(self.checked.notified());
        checked.as_mut().enable();
        let count = unreachable.map(|member| member.endpoint.report_refusal()).count();
        for _ in 0..count {
            timeout_at(deadline, checked.as_mut()).await.ok()?;
            checked.set(self.checked.notified());
            checked.as_mut().enable();
            let now = self.clock.uptime();
            if let Some(endpoint) = self.select(&AttemptedEndpoints::default(), now, key) {
                return Some(endpoint);
            }
        }
        None
    }

    /// Selects an endpoint after the first answer of name resolution, which is waited for up to `connect_timeout`.
    async fn select_resolved(&self, key: Option<u64>) -> Option<Arc<Endpoint>> {
        let mut resolved = pin!(self.resolved.notified());
        resolved.as_mut().enable();
        let select = || self.select(&AttemptedEndpoints::default(), self.clock.uptime(), key);
        let selected = select();
        if selected.as_ref().is_some_and(|endpoint| *endpoint.dial() != Dial::Unresolved) {
            return selected;
        }
        // Without an answer, the attempt at the unresolved endpoint fails with the cause.
        let _ = timeout(self.settings.connect_timeout, resolved).await;
        select()
    }

    /// Describes for the log why no endpoint is available.
    pub(super) fn unavailable(&self) -> Cow<'static, str> {
        let out = self.endpoints();
        let each = out.iter().take(MAX_DESCRIBED_ENDPOINTS).map(|(endpoint, state, _)| {
            let cause = endpoint.last_failure();
            let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("{} is {}{cause}", endpoint.name(), state.word())
        });
        each.collect::<Vec<_>>().join("; ").into()
    }
}

/// How long a request waits for the control runtime to connect to an upstream all of whose endpoints are unreachable.
const CHECK_WAIT: Duration = Duration::from_millis(60);
/// The maximum number of endpoints that the log describes.
const MAX_DESCRIBED_ENDPOINTS: usize = 4;
