//! The health of one endpoint: written by the control runtime and by requests, read by workers without a lock.
//!
//! Two states are independent of each other. An endpoint is *down* if an active check says so, or if the control
//! runtime could not connect after a request could not: it receives nothing. It is *ejected* for a while by its
//! responses to requests: too many failures in a row, or too large a share of them.

use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};
use core::time::Duration;
use std::sync::Mutex;

use crate::base::lock::IgnorePoison;
use crate::upstream::settings::{HealthCheck, Outlier};

/// The health of an endpoint, shared by all workers and across reloads.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Health {
    /// A [`CheckVerdict`].
    verdict: AtomicU8,
    /// Consecutive checks with a result against the verdict; only the control runtime uses it.
    contrary: AtomicU32,
    /// Consecutive failed requests.
    failures: AtomicU32,
    /// Consecutive responses whose content failed after a successful head.
    broken: AtomicU32,
    /// Uptime in nanoseconds of the last of those that counted.
    broken_at: AtomicU64,
    /// Uptime in nanoseconds of the last lost connection that counted; 0 after a response.
    lost_at: AtomicU64,
    /// Uptime in nanoseconds of the first lost or broken response since a good one, of the last ten seconds; 0 if there is none.
    lost_since: AtomicU64,
    /// Uptime in nanoseconds until which the endpoint is ejected; 0 if it is not.
    ejected_until: AtomicU64,
    /// Requests and failures of the current ten seconds: see [`Window`].
    window: AtomicU64,
    /// Uptime in nanoseconds of the last recovery; 0 if the endpoint was never out.
    recovered_at: AtomicU64,
    /// The cause of the last failure, for the operator.
    last_failure: Mutex<Option<Box<str>>>,
}

/// The outcome of a request, as far as its endpoint is concerned.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::upstream) enum Outcome {
    /// A response head that shows no failure.
    Answered,
    /// A response that shows no failure, and has arrived with its content.
    AnsweredWhole,
    /// No response, or one that shows a failure.
    Failed,
    /// No response, since the connection was lost.
    Lost,
    /// The end of the content after a successful head.
    Completed,
    /// Content that broke off, or a call whose status, in the trailers, is a failure.
    BrokeOff,
}

impl Outcome {
    /// Returns the outcome of the content after a successful head.
    pub(in crate::upstream) const fn of_content(well: bool) -> Self {
        if well { Self::Completed } else { Self::BrokeOff }
    }

    const fn is_failure(self) -> bool {
        matches!(self, Self::Failed | Self::Lost | Self::BrokeOff)
    }

    const fn is_of_content(self) -> bool {
        matches!(self, Self::Completed | Self::BrokeOff)
    }
}

/// The result of the last checks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::upstream) enum CheckVerdict {
    /// Not checked yet: receives requests.
    Unknown = 0,
    /// Available.
    Up = 1,
    /// An active check has failed often enough.
    Down = 2,
    /// No connection could be made, neither by a request nor by the control runtime.
    Unreachable = 3,
}

/// The state of an endpoint at a moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EndpointState {
    /// Receives requests.
    Healthy,
    /// Receives a growing share of requests after a recovery.
    Warming,
    /// Receives no requests for a while, since too many have failed.
    Ejected,
    /// Receives no requests: an active check has failed.
    Down,
    /// Receives no requests: no connection can be made.
    Unreachable,
}

impl EndpointState {
    /// Returns the word for metrics and the admin API.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Warming => "warming",
            Self::Ejected => "ejected",
            Self::Down => "down",
            Self::Unreachable => "unreachable",
        }
    }

    /// Whether the endpoint receives requests.
    pub const fn is_available(self) -> bool {
        matches!(self, Self::Healthy | Self::Warming)
    }
}

impl Health {
    /// Returns the state at the uptime `now`. `ramp` is the duration of the slow start.
    pub(in crate::upstream) fn state(&self, now: Duration, ramp: Duration) -> EndpointState {
        match self.verdict() {
            CheckVerdict::Down => EndpointState::Down,
            CheckVerdict::Unreachable => EndpointState::Unreachable,
            CheckVerdict::Unknown | CheckVerdict::Up if self.is_ejected(now) => {
                EndpointState::Ejected
            }
            CheckVerdict::Unknown | CheckVerdict::Up if self.share(now, ramp) < FULL_SHARE => {
                EndpointState::Warming
            }
            CheckVerdict::Unknown | CheckVerdict::Up => EndpointState::Healthy,
        }
    }

    /// Whether the endpoint must receive no requests.
    pub(in crate::upstream) fn is_down(&self) -> bool {
        self.verdict.load(Relaxed) >= CheckVerdict::Down as u8
    }

    /// Whether the endpoint may receive requests at the uptime `now`.
    pub(in crate::upstream) fn is_available(&self, now: Duration) -> bool {
        !self.is_down() && !self.is_ejected(now)
    }

    pub(in crate::upstream) fn verdict(&self) -> CheckVerdict {
        match self.verdict.load(Relaxed) {
            1 => CheckVerdict::Up,
            2 => CheckVerdict::Down,
            3 => CheckVerdict::Unreachable,
            _ => CheckVerdict::Unknown,
        }
    }

    pub(in crate::upstream) fn is_ejected(&self, now: Duration) -> bool {
        let until = self.ejected_until.load(Relaxed);
        until != 0 && nanos(now) < until
    }

    /// Returns the share of its weight that the endpoint receives, in percent: less than 100 for the time `ramp` after
    /// a recovery.
    pub(in crate::upstream) fn share(&self, now: Duration, ramp: Duration) -> u8 {
        if ramp.is_zero() {
            return FULL_SHARE;
        }
        let ejection_end = self.ejected_until.load(Relaxed);
        let since = self.recovered_at.load(Relaxed).max(ejection_end);
        if since == 0 {
            return FULL_SHARE;
        }
        let elapsed = nanos(now).saturating_sub(since);
        let percent = u128::from(elapsed) * 100 / u128::from(nanos(ramp).max(1));
        u8::try_from(percent).unwrap_or(FULL_SHARE).clamp(MIN_SHARE, FULL_SHARE)
    }

    /// Returns the uptime in nanoseconds at which an ejection ends; 0 if there was none.
    pub(in crate::upstream) fn ejected_until(&self) -> u64 {
        self.ejected_until.load(Relaxed)
    }

    /// Whether a request that began at the uptime `began` was sent before the endpoint began to lose responses.
    pub(in crate::upstream) fn was_lost_after(&self, began: Duration) -> bool {
        self.lost_since.load(Relaxed) >= nanos(began)
    }

    /// Whether the connection of a request that was sent at `began`, and lost at `now`, was lost together with another one
    /// that counts: a process that ends takes all requests in flight along. A response in between says that it lives.
    pub(in crate::upstream) fn is_lost_together(&self, began: Duration, now: Duration) -> bool {
        let counts = |lost_at: u64| (nanos(began) >= lost_at).then_some(nanos(now));
        self.lost_at.fetch_update(Relaxed, Relaxed, counts).is_err()
    }

    /// Records the outcome at the uptime `now` of a request that was sent at `began`; true if that ejects or readmits the
    /// endpoint. An ejected endpoint gets no requests until `eject_for` has passed; then one more failure ejects it again.
    pub(in crate::upstream) fn record(
        &self,
        outcome: Outcome,
        outlier: &Outlier,
        began: Duration,
        now: Duration,
    ) -> bool {
        if self.is_outdated(outlier, began, now) {
            return false;
        }
        if outcome == Outcome::BrokeOff {
            // A restart breaks all streaming responses at once: they count as one failure.
            if nanos(began) < self.broken_at.load(Relaxed) {
                return false;
            }
            self.broken_at.store(nanos(now), Relaxed);
        }
        let rate_exceeded = outlier.error_rate > 0
            && outcome != Outcome::Completed
            && self.count(outcome, outlier, now);
        if !outcome.is_failure() {
            return self.end_runs(outcome, now);
        }
        let (run, other) = if outcome.is_of_content() {
            (&self.broken, &self.failures)
        } else {
            (&self.failures, &self.broken)
        };
        if outcome != Outcome::Failed {
            let first = |since: u64| {
                let is_over = since == 0 || nanos(now).saturating_sub(since) > LOSSES_RETENTION;
                is_over.then_some(nanos(now).max(1))
            };
            // Among losses at the same moment, any may count as the first.
            let _ = self.lost_since.fetch_update(Relaxed, Relaxed, first);
        }
        let in_a_row = run.fetch_add(1, Relaxed) + 1 >= outlier.errors;
        let was_ejected = self.is_ejected(now);
        if in_a_row || rate_exceeded {
            self.ejected_until.store(nanos(now + outlier.eject_for), Relaxed);
            run.store(outlier.errors.saturating_sub(1), Relaxed);
            other.store(0, Relaxed);
            self.window.store(0, Relaxed);
        }
        (in_a_row || rate_exceeded) && !was_ejected
    }

    /// Ends the runs of failures that a good `outcome` contradicts; true if that readmits the endpoint.
    fn end_runs(&self, outcome: Outcome, now: Duration) -> bool {
        // The usual case reads without writing, so that the cache line stays shared between workers.
        let ends = |run: &AtomicU32| {
            let has_failures = run.load(Relaxed) != 0;
            if has_failures {
                run.store(0, Relaxed);
            }
            has_failures
        };
        let of_heads = outcome != Outcome::Completed && ends(&self.failures);
        let of_content = outcome != Outcome::Answered && ends(&self.broken);
        if !of_heads && !of_content {
            return false;
        }
        self.lost_at.store(0, Relaxed);
        self.lost_since.store(0, Relaxed);
        // The end of an ejection stays stored: a slow start counts from it.
        self.failures.load(Relaxed) == 0
            && self.broken.load(Relaxed) == 0
            && self.is_ejected(now)
            && {
                self.ejected_until.store(nanos(now).max(1), Relaxed);
                true
            }
    }

    /// Whether a request that was sent at `began` says nothing about the endpoint at `now`, since it was ejected or has
    /// recovered in between.
    fn is_outdated(&self, outlier: &Outlier, began: Duration, now: Duration) -> bool {
        let began = nanos(began);
        let ejected_at = || self.ejected_until().saturating_sub(nanos(outlier.eject_for));
        began < self.recovered_at.load(Relaxed) || self.is_ejected(now) && began <= ejected_at()
    }

    /// Counts an outcome; true if the share of failures is exceeded by this failure.
    fn count(&self, outcome: Outcome, outlier: &Outlier, now: Duration) -> bool {
        let fails = outcome.is_failure();
        let number = (now.as_secs() / WINDOW_SECS) as u32 & Window::MAX_NUMBER;
        let mut current = Window::unpack(self.window.load(Relaxed));
        if current.number != number {
            // Concurrent requests race to begin the window; losing one count is acceptable.
            current = Window { number, ..Window::default() };
        }
        if current.requests >= Window::MAX_COUNT {
            return false;
        }
        // The head of this response was counted already.
        current.requests += u32::from(!outcome.is_of_content());
        current.failures += u32::from(fails);
        self.window.store(current.pack(), Relaxed);
        fails
            && current.requests >= outlier.min_requests
            && u64::from(current.failures) * 100
                >= u64::from(current.requests) * u64::from(outlier.error_rate)
    }

    /// Records the result of an active check; true if the verdict changes. The first check decides at once.
    pub(in crate::upstream) fn checked(
        &self,
        well: bool,
        check: &HealthCheck,
        now: Duration,
    ) -> bool {
        let verdict = self.verdict();
        let agrees = match verdict {
            CheckVerdict::Unknown => false,
            CheckVerdict::Up => well,
            CheckVerdict::Down | CheckVerdict::Unreachable => !well,
        };
        if agrees {
            self.contrary.store(0, Relaxed);
            return false;
        }
        let run = self.contrary.fetch_add(1, Relaxed) + 1;
        let needed = match verdict {
            CheckVerdict::Unknown => 1,
            CheckVerdict::Up => check.unhealthy_after,
            CheckVerdict::Down | CheckVerdict::Unreachable => check.healthy_after,
        };
        run >= needed && {
            self.set(if well { CheckVerdict::Up } else { CheckVerdict::Down }, now);
            verdict != CheckVerdict::Unknown || !well
        }
    }

    /// Records the result of a connection that the control runtime attempted after a request could not connect; true
    /// if the verdict changes.
    pub(in crate::upstream) fn probed(&self, well: bool, now: Duration) -> bool {
        let verdict = if well { CheckVerdict::Up } else { CheckVerdict::Unreachable };
        let before = self.verdict();
        self.set(verdict, now);
        before != verdict && !(well && before == CheckVerdict::Unknown)
    }

    /// Takes an endpoint out at once that neither a request nor a check could reach; true if the verdict changes.
    pub(in crate::upstream) fn condemn(&self, now: Duration) -> bool {
        !self.is_down() && {
            self.set(CheckVerdict::Down, now);
            true
        }
    }

    fn set(&self, verdict: CheckVerdict, now: Duration) {
        self.contrary.store(0, Relaxed);
        if verdict == CheckVerdict::Up && self.is_down() {
            self.recovered_at.store(nanos(now).max(1), Relaxed);
            // Failures before it was out say nothing about it now.
            self.failures.store(0, Relaxed);
            self.broken.store(0, Relaxed);
            self.ejected_until.store(0, Relaxed);
        }
        self.verdict.store(verdict as u8, Relaxed);
    }

    /// Resets the count of failures.
    pub(in crate::upstream) fn reset(&self) {
        self.failures.store(0, Relaxed);
        self.broken.store(0, Relaxed);
        self.window.store(0, Relaxed);
        self.ejected_until.store(0, Relaxed);
    }

    /// Forgets the verdict, for an upstream whose active checks were removed.
    pub(in crate::upstream) fn forget_verdict(&self) {
        self.verdict.store(CheckVerdict::Unknown as u8, Relaxed);
    }

    /// Marks an endpoint that appeared after the start, so that it has a slow start.
    pub(in crate::upstream) fn appeared(&self, now: Duration) {
        self.recovered_at.store(nanos(now).max(1), Relaxed);
    }

    /// Records the cause of a failure.
    pub(in crate::upstream) fn failed(&self, cause: &str) {
        let mut last = self.last_failure.lock().ignore_poison();
        if last.as_deref() != Some(cause) {
            *last = Some(cause.into());
        }
    }

    /// Returns the cause of the last failure.
    pub(in crate::upstream) fn last_failure(&self) -> Option<Box<str>> {
        self.last_failure.lock().ignore_poison().clone()
    }
}

/// The counts of ten seconds, packed into one atomic number.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Window {
    /// The number of the ten seconds since the start, modulo 2^24.
    number: u32,
    requests: u32,
    failures: u32,
}

impl Window {
    const MAX_NUMBER: u32 = (1 << 24) - 1;
    /// Requests beyond this number are not counted: the rate is known by then.
    const MAX_COUNT: u32 = (1 << 20) - 1;

    const fn pack(self) -> u64 {
        (self.number as u64) << 40 | (self.requests as u64) << 20 | self.failures as u64
    }

    const fn unpack(packed: u64) -> Self {
        Self {
            number: (packed >> 40) as u32,
            requests: (packed >> 20) as u32 & Self::MAX_COUNT,
            failures: packed as u32 & Self::MAX_COUNT,
        }
    }
}

const WINDOW_SECS: u64 = 10;
/// How long the first of several lost responses is remembered, in nanoseconds.
const LOSSES_RETENTION: u64 = WINDOW_SECS * 1_000_000_000;
/// The share in percent that an endpoint receives outside of a slow start.
const FULL_SHARE: u8 = 100;
/// The share in percent at the beginning of a slow start.
const MIN_SHARE: u8 = 10;

pub(in crate::upstream) fn nanos(uptime: Duration) -> u64 {
    u64::try_from(uptime.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::from_secs(100);
    const LATER: Duration = Duration::from_secs(131);

    fn of_head(is_good: bool) -> Outcome {
        if is_good { Outcome::Answered } else { Outcome::Failed }
    }

    #[test]
    fn a_run_of_failures_ejects_an_endpoint_for_a_while() {
        let (health, outlier) = (Health::default(), Outlier::default());

        let ejects: Vec<_> =
            (0..5).map(|_| health.record(Outcome::Failed, &outlier, NOW, NOW)).collect();

        assert_eq!(ejects, [false, false, false, false, true]);
        assert!(health.is_ejected(NOW) && !health.is_ejected(LATER));
        let again = health.record(Outcome::Failed, &outlier, LATER, LATER);
        assert!(again, "one more failure ejects it again");
    }

    #[test]
    fn only_a_request_that_began_after_an_ejection_ends_it() {
        let (health, outlier) = (Health::default(), Outlier::default());
        for _ in 0..5 {
            let _ = health.record(Outcome::Failed, &outlier, NOW, NOW);
        }
        let (next, later) = (NOW + Duration::from_millis(1), NOW + Duration::from_secs(1));

        assert!(!health.record(Outcome::Answered, &outlier, NOW, later), "it was in flight");

        assert!(health.is_ejected(later));
        assert!(health.record(Outcome::Answered, &outlier, next, later));
        assert!(!health.is_ejected(later));
    }

    #[test]
    fn failures_from_before_a_recovery_say_nothing_about_it() {
        let (health, outlier) = (Health::default(), Outlier::default());
        health.probed(false, NOW);
        health.probed(true, LATER);

        for _ in 0..10 {
            let _ = health.record(Outcome::Failed, &outlier, NOW, LATER);
        }

        assert!(!health.is_ejected(LATER));
    }

    #[test]
    fn an_endpoint_that_breaks_off_its_content_is_ejected_whatever_its_heads_say() {
        let (health, outlier) = (Health::default(), Outlier::default());
        let at = |n: u64| NOW + Duration::from_millis(n);

        let ejected = (0..10).position(|n| {
            let _ = health.record(Outcome::Answered, &outlier, at(n), at(n));
            health.record(Outcome::BrokeOff, &outlier, at(n), at(n))
        });

        assert_eq!(ejected, Some(4));
        let (health, together) = (Health::default(), at(5));
        for _ in 0..100 {
            let _ = health.record(Outcome::BrokeOff, &outlier, NOW, together);
        }
        assert!(!health.is_ejected(together), "those of one moment count once");
    }

    #[test]
    fn connections_that_are_lost_together_count_as_one_until_a_response() {
        let (health, outlier) = (Health::default(), Outlier::default());
        let at = |n: u64| NOW + Duration::from_millis(n);
        let counted = |began, now| {
            let counts = !health.is_lost_together(began, now);
            if counts {
                let _ = health.record(Outcome::Lost, &outlier, began, now);
            }
            counts
        };

        let of_one_death: Vec<_> = (0..4).map(|n| counted(at(n), at(10 + n))).collect();
        let of_a_later_request = counted(at(11), at(20));
        let _ = health.record(Outcome::Answered, &outlier, at(12), at(21));
        let after_a_response = counted(at(13), at(22));

        assert_eq!(of_one_death, [true, false, false, false]);
        assert!(of_a_later_request && after_a_response);
    }

    #[test]
    fn a_request_in_flight_is_lost_with_its_endpoint_whatever_that_answered_before() {
        let (health, outlier) = (Health::default(), Outlier::default());
        let at = |n: u64| NOW + Duration::from_millis(n);

        let _ = health.record(Outcome::Failed, &outlier, at(0), at(1));
        let _ = health.record(Outcome::Lost, &outlier, at(2), at(10));

        assert!(health.was_lost_after(at(2)) && health.was_lost_after(at(9)));
        assert!(!health.was_lost_after(at(11)), "one that was sent later is a retry as any other");
    }

    #[test]
    fn a_share_of_failures_ejects_an_endpoint_without_a_run() {
        let (health, outlier) = (Health::default(), Outlier::default());

        let ejected = (0..40).position(|n| health.record(of_head(n % 2 == 0), &outlier, NOW, NOW));

        assert_eq!(ejected, Some(19), "the twentieth request is the first that counts");
    }

    #[test]
    fn a_share_of_failures_below_the_limit_ejects_nothing() {
        let (health, outlier) = (Health::default(), Outlier::default());

        let mut ejects =
            (0..10_000).map(|n| health.record(of_head(n % 3 != 0), &outlier, NOW, NOW));

        assert!(ejects.all(|ejects| !ejects));
    }

    #[test]
    fn the_first_check_decides_and_later_ones_by_their_number() {
        let (health, check) = (Health::default(), HealthCheck::new("/health"));
        let down_after = |results: &[bool]| {
            for &well in results {
                let _ = health.checked(well, &check, NOW);
            }
            health.is_down()
        };

        assert!(down_after(&[false]));
        assert!(down_after(&[true, false, true]), "two in a row are needed");
        assert!(!down_after(&[true]));
        assert!(!down_after(&[false, false, true, false, false]), "three in a row are needed");
        assert!(down_after(&[false]));
    }

    #[test]
    fn an_endpoint_that_recovers_receives_a_growing_share() {
        let (health, ramp) = (Health::default(), Duration::from_secs(10));
        assert_eq!(health.share(NOW, ramp), 100);

        health.probed(false, NOW);
        health.probed(true, NOW);

        assert_eq!(health.share(NOW, ramp), 10);
        assert_eq!(health.share(NOW + Duration::from_secs(5), ramp), 50);
        assert_eq!(health.share(NOW + Duration::from_secs(10), ramp), 100);
        assert_eq!(health.share(NOW, Duration::ZERO), 100);
    }

    proptest! {
        #[test]
        fn a_window_survives_packing(number in 0..=Window::MAX_NUMBER, requests in 0..=Window::MAX_COUNT, failures in 0..=Window::MAX_COUNT) {
            let window = Window { number, requests, failures };
            prop_assert_eq!(Window::unpack(window.pack()), window);
        }

        #[test]
        fn an_endpoint_without_failures_is_never_out(outcomes in prop::collection::vec(0..100_u64, 0..200)) {
            let (health, outlier) = (Health::default(), Outlier::default());
            for secs in outcomes {
                let now = Duration::from_secs(secs);
                prop_assert!(!health.record(Outcome::Answered, &outlier, now, now));
                prop_assert_eq!(health.state(now, Duration::from_secs(10)), EndpointState::Healthy);
            }
        }
    }
}
