//! The background tasks of one upstream on the control runtime: periodic name resolution and endpoint checks.
//!
//! Without active checks an endpoint is probed only after a request could not connect: the control runtime then
//! connects repeatedly until it succeeds, so that no request has to try a dead endpoint.

use core::time::Duration;
use std::collections::HashMap;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::circuit_breaker::CircuitState;
use super::endpoint_health::CheckVerdict;
use super::health_check::check;
use crate::base::random::random;
use crate::upstream::Upstream;
use crate::upstream::balancing::endpoint::Endpoint;
use crate::upstream::balancing::endpoint_set::EndpointSet;
use crate::upstream::balancing::resolve::NameResolver;
use crate::upstream::connections::connect::connect;
use crate::upstream::connections::tls_connectors::Offer;
use crate::upstream::http2::NO_SETTINGS;
use crate::upstream::http2::health::WITHOUT_HTTP2;
use crate::upstream::http2::probe::shake_hands;
use crate::upstream::registry::UpstreamRegistry;
use crate::upstream::settings::HealthCheck;

/// Resolves the names of `upstreams` and checks their endpoints from now on, in place of those of earlier calls.
pub fn maintain<'a>(
    registry: &UpstreamRegistry,
    upstreams: impl Iterator<Item = &'a Arc<Upstream>>,
    control: &Handle,
) {
    let task = |upstream: &Arc<Upstream>| control.spawn(keep_current(Arc::clone(upstream)));
    registry.replace_tasks(upstreams.map(|upstream| task(upstream).abort_handle()).collect());
}

/// Keeps the endpoints of `upstream` current until the task is aborted.
async fn keep_current(upstream: Arc<Upstream>) {
    let mut watched = WatchedEndpoints::default();
    watched.reconcile(&upstream);
    let of_circuit = Arc::clone(&upstream);
    watched.tasks.spawn(async move { of_circuit.keep_circuit().await });
    if upstream.targets.iter().all(|target| target.resolved.is_none()) {
        // Nothing to resolve: the endpoints never change.
        watched.run().await;
        return;
    }
    let refresh = upstream.settings.dns_refresh;
    let mut retry = FIRST_RESOLVE_RETRY;
    loop {
        if upstream.resolve().await {
            watched.reconcile(&upstream);
        }
        // Without an address there is nothing to send requests to: the first failure must not last for a whole refresh.
        let pause = if upstream.lacks_address() { retry.min(refresh) } else { refresh };
        retry = if pause < refresh { retry * 2 } else { FIRST_RESOLVE_RETRY };
        // Endpoints are watched by tasks of their own; dropping them aborts these.
        sleep(with_jitter(pause)).await;
    }
}

impl Upstream {
    /// Resolves all names, and replaces the endpoints if an address has changed; returns whether it did. A name that
    /// cannot be resolved keeps its addresses.
    async fn resolve(&self) -> bool {
        let resolver = NameResolver { servers: &self.settings.dns_servers };
        let each = self.targets.iter().filter_map(|configured| {
            let name = configured.resolved.as_ref()?;
            let address = &configured.target.address;
            let resolver = &resolver;
            Some(async move {
                let previous = name.addresses();
                match resolver.resolve(address.scheme, &address.location, &previous).await {
                    Ok(found) => {
                        let differs = name.store(found);
                        self.metrics.resolved(true);
                        differs
                    }
                    Err(error) => {
                        self.metrics.resolved(false);
                        let (upstream, target) = (&*self.settings.name, address.to_string());
                        if previous.is_empty() {
                            tracing::warn!(upstream, target, %error, "Could not resolve the name of a target; it has no address yet.");
                        } else {
                            tracing::warn!(upstream, target, %error, "Could not resolve the name of a target; using its last addresses.");
                        }
                        false
                    }
                }
            })
        });
        futures_util::future::join_all(each).await;
        // Another upstream may have resolved a shared name before: the endpoints are compared, not the answers.
        let before = self.endpoints.load_full();
        let after = Arc::new(self.current_set(Some(&before)));
        if before.names() == after.names() {
            return false;
        }
        self.endpoints.store(Arc::clone(&after));
        self.resolved.notify_waiters();
        for gone in before.members.iter().filter(|member| !after.contains(&member.endpoint)) {
            // Requests in flight end there; idle connections are closed.
            gone.endpoint.retire(true);
        }
        let names: Vec<_> = after.names().into_iter().map(|(name, ..)| name).collect();
        tracing::info!(
            upstream = &*self.settings.name,
            targets = names.join(" "),
            "The addresses of an upstream changed; requests go to the new ones."
        );
        true
    }

    /// Whether a name has no address yet.
    fn lacks_address(&self) -> bool {
        let mut names = self.targets.iter().filter_map(|target| target.resolved.as_ref());
        names.any(|name| name.addresses().is_empty())
    }

    /// Probes the upstream whenever its circuit is open, and closes it.
    async fn keep_circuit(&self) {
        let Some((settings, circuit)) = &self.circuit else { return };
        loop {
            circuit.wait_until_open().await;
            // A reload restarts this task, so time and successes are counted by the circuit, from its opening.
            sleep(circuit.time_to_probe(settings, self.clock.uptime())).await;
            loop {
                let cause = self.probe().await.err();
                let changed = circuit.probed(cause.is_none(), settings, self.clock.uptime());
                let state = circuit.state();
                self.metrics.circuit.set(state as i64);
                if changed && state != CircuitState::HalfOpen {
                    self.passive.log_circuit(cause.as_deref());
                }
                if state != CircuitState::HalfOpen {
                    break;
                }
                sleep(PROBE_INTERVAL.min(settings.open_for)).await;
            }
        }
    }

    /// Probes the endpoints in turn until one succeeds.
    async fn probe(&self) -> Result<(), Box<str>> {
        let set = self.endpoints.load_full();
        let mut cause: Box<str> = "no target".into();
        for member in &set.members {
            match self.contact(&member.endpoint).await {
                Ok(()) => return Ok(()),
                Err(failed) => cause = failed,
            }
        }
        Err(cause)
    }

    /// Checks `endpoint` once, or opens a connection to it where there is no active check, as far as that goes without a
    /// request: in HTTP/2 up to its settings.
    async fn contact(&self, endpoint: &Endpoint) -> Result<(), Box<str>> {
        if let Some(active) = &self.settings.health_check {
            return check(endpoint, &self.settings, active).await;
        }
        let limit = self.settings.connect_timeout;
        let deadline = Instant::now() + limit;
        let stream = connect(endpoint, limit, Offer::Http2).await.map_err(|error| error.cause)?;
        match stream.selected_http2() {
            Some(false) if endpoint.requires_http2() => return Err(WITHOUT_HTTP2.into()),
            Some(true) => {}
            None if endpoint.requires_http2() => {}
            Some(false) | None => return Ok(()),
        }
        let greeted = timeout_at(deadline, shake_hands(stream)).await;
        greeted
            .unwrap_or_else(|_| Err(NO_SETTINGS.into()))
            .map_err(|cause| cause.into_owned().into())
    }

    /// Checks or probes `endpoint` once; `refused` is whether a request could not connect.
    async fn examine(&self, endpoint: &Endpoint, refused: bool) -> bool {
        let active = self.settings.health_check.as_ref();
        let result = self.contact(endpoint).await;
        let well = result.is_ok();
        if let Err(cause) = &result {
            endpoint.health.failed(cause);
        }
        let now = self.clock.uptime();
        let changed = match active {
            Some(active) => {
                self.metrics.checked(well);
                if refused && !well {
                    endpoint.health.condemn(now)
                } else {
                    endpoint.health.checked(well, active, now)
                }
            }
            None => endpoint.health.probed(well, now),
        };
        if changed {
            self.passive.log_state(endpoint, now);
        }
        self.checked.notify_waiters();
        well
    }

    /// Watches `endpoint` until the task is aborted.
    async fn watch(&self, endpoint: &Endpoint) {
        let active = self.settings.health_check.as_ref();
        if active.is_none() && endpoint.health.verdict() == CheckVerdict::Down {
            endpoint.health.forget_verdict();
        }
        let mut schedule = Schedule::new(active, endpoint.health.is_down());
        loop {
            let reason = tokio::select! {
                biased;
                () = endpoint.refusal() => {
                    sleep_until(schedule.earliest).await;
                    CheckReason::Refused
                }
                () = async {
                    endpoint.suspected().await;
                    sleep_until(schedule.earliest_after_break).await;
                } => CheckReason::BrokenOff,
                () = sleep_until(schedule.next.unwrap_or(Instant::now() + NEVER)) => CheckReason::Due,
            };
            let well = self.examine(endpoint, reason == CheckReason::Refused).await;
            let settled = well && !endpoint.health.is_down();
            let interval = active.map(|active| with_jitter(active.interval));
            schedule.after(reason, settled, interval);
        }
    }
}

impl EndpointSet {
    fn names(&self) -> Vec<(&str, u32, u32)> {
        let each = self.members.iter();
        each.map(|member| (member.endpoint.name(), member.weight, member.tier)).collect()
    }

    fn contains(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.members.iter().any(|member| Arc::ptr_eq(&member.endpoint, endpoint))
    }
}

/// Why an endpoint is checked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum CheckReason {
    /// A request could not connect.
    Refused,
    /// A connection broke off under a request: the upstream's process may have ended, or the request itself is the
    /// cause.
    BrokenOff,
    /// The interval has passed.
    Due,
}

/// When an endpoint is checked next.
struct Schedule {
    /// `None` waits for a request that fails.
    next: Option<Instant>,
    /// The earliest moment of a check after a request could not connect.
    earliest: Instant,
    /// The earliest moment of a check after a connection broke off, which clients may cause as often as they like.
    earliest_after_break: Instant,
    /// The interval while an endpoint is out after a request has failed.
    quick: Option<Duration>,
}

impl Schedule {
    fn new(active: Option<&HealthCheck>, is_down: bool) -> Self {
        let now = Instant::now();
        let next = (active.is_some() || is_down).then_some(now);
        Self { next, earliest: now, earliest_after_break: now, quick: None }
    }

    /// Decides about the next check after one for `reason`, which has `settled` that the endpoint is well, or not.
    /// `interval` is that of active checks.
    fn after(&mut self, reason: CheckReason, settled: bool, interval: Option<Duration>) {
        let now = Instant::now();
        self.earliest = now + MIN_INTERVAL;
        self.earliest_after_break = now + MIN_INTERVAL_AFTER_BREAK;
        if settled {
            self.quick = None;
        } else if reason != CheckReason::Due || self.quick.is_some() || interval.is_none() {
            let quick = self.quick.map_or(FIRST_INTERVAL, |quick| quick * 2);
            self.quick = Some(quick.min(MAX_INTERVAL));
        }
        self.next = match (self.quick, interval) {
            (None, None) => None,
            (Some(quick), None) => Some(now + quick),
            (None, Some(interval)) => Some(now + interval),
            (Some(quick), Some(interval)) => Some(now + quick.min(interval)),
        };
    }
}

/// The tasks that watch endpoints; aborted on drop.
#[derive(Default)]
struct WatchedEndpoints {
    tasks: JoinSet<()>,
    /// By the generation of the endpoint's slot.
    watched: HashMap<u64, AbortHandle>,
}

impl WatchedEndpoints {
    /// Watches the endpoints of the moment, and no others.
    fn reconcile(&mut self, upstream: &Arc<Upstream>) {
        let set = upstream.endpoints.load_full();
        let mut watched = HashMap::new();
        for member in &set.members {
            let generation = member.endpoint.slot().generation;
            let task = self.watched.remove(&generation).unwrap_or_else(|| {
                let (upstream, endpoint) = (Arc::clone(upstream), Arc::clone(&member.endpoint));
                self.tasks.spawn(async move { upstream.watch(&endpoint).await })
            });
            watched.insert(generation, task);
        }
        self.watched.drain().for_each(|(_, gone)| gone.abort());
        self.watched = watched;
        // Removes the tasks that earlier calls aborted.
        while self.tasks.try_join_next().is_some() {}
    }

    async fn run(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Returns `interval` with a jitter of 10 %, so that gateways that started together do not check together.
fn with_jitter(interval: Duration) -> Duration {
    let share = (u64::from_be_bytes(random()) >> 11) as f64 / (1_u64 << 53) as f64;
    interval.mul_f64(0.9 + 0.2 * share)
}

/// The time until a name without an address is resolved again; each further one is twice as long, up to `dns_refresh`.
const FIRST_RESOLVE_RETRY: Duration = Duration::from_millis(100);
/// The time between two probes of a circuit that is half-open.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// The shortest time between two checks of an endpoint.
const MIN_INTERVAL: Duration = Duration::from_millis(25);
/// The shortest time between a check and another one that a broken connection asks for.
const MIN_INTERVAL_AFTER_BREAK: Duration = Duration::from_secs(1);
/// The time until a check that only a request asks for.
const NEVER: Duration = Duration::from_secs(1 << 30);
/// The first interval after a request has failed; each further one is twice as long.
const FIRST_INTERVAL: Duration = Duration::from_millis(50);
/// The longest interval while an endpoint is unreachable.
const MAX_INTERVAL: Duration = Duration::from_millis(500);
