//! What a limit is told: how much, of what, counted for whom.
//!
//! Every number here has passed its range check, so that the counting files
//! need none. Text (`100/s`, `10000/day`) is the affair of `config`; here a
//! rate is a count and a unit.

use core::fmt;
use core::num::{NonZeroU32, NonZeroU64};
use core::time::Duration;
use std::sync::Arc;

use http::{HeaderName, Method, StatusCode};

use super::calendar::Zone;

/// One limit, as the operator wrote it.
///
/// # Defaults
///
/// [`Settings::new`] counts by address, in its place where a part of the key is missing, 100 000 keys at most, one
/// per request of any method, answers 429, and tells clients where they stand.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// What it is called in metrics, logs and `RateLimit` fields: `[a-z0-9][a-z0-9_-]{0,62}`.
    pub name: Arc<str>,
    /// How much is allowed.
    pub kind: Kind,
    /// Whose requests are counted together: those that agree in all of these parts. Empty means everybody's.
    pub by: Box<[KeyPart]>,
    /// What stands in for a part that a request lacks.
    pub on_missing: OnMissing,
    /// How many keys are counted apart, at least 1; all others share one count.
    pub max_keys: usize,
    /// What one request takes.
    pub cost: Cost,
    /// Which methods are counted; `None` means all.
    pub methods: Option<Box<[Method]>>,
    /// What a refused client is answered.
    pub status: Status,
    /// Whether answers carry `RateLimit`, `RateLimit-Policy` and `Retry-After`.
    pub headers: bool,
}

impl Settings {
    /// A limit with the defaults above.
    pub fn new(name: &str, kind: Kind) -> Self {
        Self {
            name: name.into(),
            kind,
            by: Box::new([KeyPart::Ip]),
            on_missing: OnMissing::Ip,
            max_keys: 100_000,
            cost: Cost::ONE,
            methods: None,
            status: Status::TooManyRequests,
            headers: true,
        }
    }

    /// Refuses what the types cannot: numbers that contradict each other.
    ///
    /// A limit that is used without having passed this check is safe, but may refuse everything.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidLimit::Cost`] if a request costs more than can ever be had at once, and
    /// [`InvalidLimit::MaxKeys`] if no key may be counted.
    pub fn check(&self) -> Result<(), InvalidLimit> {
        let most = match &self.kind {
            Kind::Rate(spike) => u64::from(spike.burst.get()),
            Kind::Quota(quota) => quota.rate.count(),
            // However large a request, it is one request in flight.
            Kind::Concurrency(_) => u64::MAX,
        };
        match self.cost {
            _ if self.max_keys == 0 => Err(InvalidLimit::MaxKeys),
            Cost::Fixed(cost) if u64::from(cost.get()) > most => Err(InvalidLimit::Cost),
            _ => Ok(()),
        }
    }

    /// Under what its counts are kept across reloads: a changed name, kind, rate, window or key source counts afresh.
    pub fn id(&self) -> LimitId {
        let counted = match &self.kind {
            Kind::Rate(spike) => Counted::Rate(spike.rate),
            Kind::Quota(quota) => Counted::Quota(quota.clone()),
            Kind::Concurrency(_) => Counted::InFlight,
        };
        LimitId { name: self.name.clone(), counted, by: self.by.clone() }
    }

    /// Whether it is checked before anything is known about the caller: a rate by address, route or everybody.
    pub fn runs_before_authentication(&self) -> bool {
        let known = |part: &KeyPart| matches!(part, KeyPart::Ip | KeyPart::Route | KeyPart::Global);
        matches!(self.kind, Kind::Rate(_)) && self.by.iter().all(known)
    }
}

/// The three kinds of limit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Kind {
    /// What a service can survive: requests come evenly, or are refused.
    Rate(Spike),
    /// What a client has bought: so many in a minute, a day, a month.
    Quota(Quota),
    /// How many requests may be in flight at once.
    Concurrency(NonZeroU32),
}

/// A smoothed rate (GCRA): `100/s` is one every 10 ms, and `burst` at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Spike {
    rate: Rate,
    burst: NonZeroU32,
}

impl Spike {
    /// A rate of which `burst` requests may come at once; by default what comes in 100 ms, at least 1.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidLimit::Rate`] for more than a billion a second, and [`InvalidLimit::Burst`] if `burst` is
    /// zero or takes more than a century to come back.
    pub fn new(rate: Rate, burst: Option<u32>) -> Result<Self, InvalidLimit> {
        let interval = rate.interval();
        if interval.is_zero() {
            return Err(InvalidLimit::Rate);
        }
        let share = DEFAULT_BURST.as_nanos() / interval.as_nanos();
        let burst = burst.unwrap_or_else(|| u32::try_from(share).unwrap_or(u32::MAX).max(1));
        let burst = NonZeroU32::new(burst).ok_or(InvalidLimit::Burst)?;
        match interval.checked_mul(burst.get()) {
            Some(whole) if whole <= CENTURY => Ok(Self { rate, burst }),
            _ => Err(InvalidLimit::Burst),
        }
    }

    /// The rate over time.
    pub const fn rate(&self) -> Rate {
        self.rate
    }

    /// How many may come at once.
    pub const fn burst(&self) -> NonZeroU32 {
        self.burst
    }
}

/// A number of requests per window.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Quota {
    rate: Rate,
    window: Window,
}

impl Quota {
    /// A quota of `rate.count()` requests per `window`.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidLimit::Rolling`] for a rolling window of more than `u32::MAX` requests, or more than a billion
    /// a second.
    pub fn new(rate: Rate, window: Window) -> Result<Self, InvalidLimit> {
        let rolls = u32::try_from(rate.count()).is_ok() && !rate.interval().is_zero();
        match window {
            Window::Rolling if !rolls => Err(InvalidLimit::Rolling),
            window => Ok(Self { rate, window }),
        }
    }

    /// How many per what.
    pub const fn rate(&self) -> Rate {
        self.rate
    }

    /// When a window begins and ends.
    pub const fn window(&self) -> &Window {
        &self.window
    }

    /// The whole quota, as what may come at once in a rolling window, where it is never more than fits.
    pub(super) fn burst(&self) -> NonZeroU32 {
        let count = u32::try_from(self.rate.count).unwrap_or(u32::MAX);
        NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN)
    }
}

/// When a quota's window begins and ends.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Window {
    /// With the clock on the wall in this zone: minutes, hours, days, ISO weeks (from Monday), months.
    Calendar(Zone),
    /// At each key's first request; a month lasts 30 days.
    Flexi,
    /// Never: what was used comes back evenly (GCRA with a burst of the whole quota).
    Rolling,
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Calendar(zone) => write!(f, "calendar {}", zone.name()),
            Self::Flexi => f.write_str("flexi"),
            Self::Rolling => f.write_str("rolling"),
        }
    }
}

/// A count per unit of time.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Rate {
    count: u64,
    unit: Unit,
}

impl Rate {
    /// `count` per `unit`.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidLimit::Count`] if `count` is zero or has more than the 15 digits that a structured field
    /// can say (RFC 9651 §3.3.1).
    pub const fn new(count: u64, unit: Unit) -> Result<Self, InvalidLimit> {
        match count {
            1..=MAX_COUNT => Ok(Self { count, unit }),
            _ => Err(InvalidLimit::Count),
        }
    }

    /// How many.
    pub const fn count(self) -> u64 {
        self.count
    }

    /// Per what.
    pub const fn unit(self) -> Unit {
        self.unit
    }

    /// The time from one to the next, when they come evenly; zero above a billion a second.
    pub(super) const fn interval(self) -> Duration {
        Duration::from_nanos(self.unit.nanos() / self.count)
    }
}

/// As the file says it: `10000/day`.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            Unit::Second => "s",
            Unit::Minute => "min",
            Unit::Hour => "hour",
            Unit::Day => "day",
            Unit::Week => "week",
            Unit::Month => "month",
        };
        write!(f, "{}/{unit}", self.count)
    }
}

/// What a rate counts in.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Unit {
    /// 1 s.
    Second,
    /// 60 s.
    Minute,
    /// 3 600 s.
    Hour,
    /// 24 hours; in a calendar, from midnight to midnight.
    Day,
    /// 7 days; in a calendar, from Monday.
    Week,
    /// 30 days; in a calendar, from the first to the last.
    Month,
}

impl Unit {
    /// How long it lasts outside a calendar, in seconds.
    pub const fn secs(self) -> u64 {
        match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
            Self::Week => 7 * 86_400,
            Self::Month => 30 * 86_400,
        }
    }

    pub(super) const fn nanos(self) -> u64 {
        self.secs() * 1_000_000_000
    }
}

/// One part of what makes two requests count together.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum KeyPart {
    /// The client's address; IPv6 by /64, which is what one subscriber gets.
    Ip,
    /// The OAuth client that the token was issued to.
    Client,
    /// The person or service that the token speaks for.
    Subject,
    /// The login session.
    Session,
    /// The route that was matched.
    Route,
    /// Nothing: everybody.
    Global,
    /// A request header's values.
    Header(HeaderName),
    /// A claim of the token, by its path (`org.id`).
    Claim(Arc<str>),
}

impl KeyPart {
    /// Whether only an authenticated request has it.
    pub const fn needs_principal(&self) -> bool {
        matches!(self, Self::Client | Self::Subject | Self::Session | Self::Claim(_))
    }
}

/// As the file says it: `header:x-tenant`.
impl fmt::Display for KeyPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip => f.write_str("ip"),
            Self::Client => f.write_str("client"),
            Self::Subject => f.write_str("subject"),
            Self::Session => f.write_str("session"),
            Self::Route => f.write_str("route"),
            Self::Global => f.write_str("global"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Claim(path) => write!(f, "claim:{path}"),
        }
    }
}

/// What stands in for a part of the key that a request lacks.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OnMissing {
    /// The client's address.
    #[default]
    Ip,
    /// One value for all requests that lack it.
    Shared,
    /// Nothing does: the request is refused with 400.
    Reject,
    /// Nothing does: this limit does not count the request.
    Skip,
}

/// What one request takes of a rate or quota. Concurrency always takes one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cost {
    /// The same for all.
    Fixed(NonZeroU32),
    /// One per this many bytes of the body, rounded up, at least one.
    RequestSize(NonZeroU64),
}

impl Cost {
    /// One request is one request.
    pub const ONE: Self = Self::Fixed(NonZeroU32::MIN);

    /// What a request with a body of `size` bytes takes.
    pub(super) const fn of(self, size: u64) -> u64 {
        match self {
            Self::Fixed(cost) => cost.get() as u64,
            Self::RequestSize(per) => match size.div_ceil(per.get()) {
                0 => 1,
                cost => cost,
            },
        }
    }
}

/// What a refused client is answered.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Status {
    /// `429 Too Many Requests` (RFC 6585 §4).
    #[default]
    TooManyRequests,
    /// `503 Service Unavailable` (RFC 9110 §15.6.4), for clients that know no other.
    ServiceUnavailable,
}

impl From<Status> for StatusCode {
    fn from(status: Status) -> Self {
        match status {
            Status::TooManyRequests => Self::TOO_MANY_REQUESTS,
            Status::ServiceUnavailable => Self::SERVICE_UNAVAILABLE,
        }
    }
}

/// Under what a limit's counts are found again after a reload.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct LimitId {
    name: Arc<str>,
    counted: Counted,
    by: Box<[KeyPart]>,
}

/// As the log and the file of saved quotas say it: `daily: 10000/day calendar Europe/Berlin by client,route`.
impl fmt::Display for LimitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name)?;
        match &self.counted {
            Counted::Rate(rate) => write!(f, "{rate} rate")?,
            Counted::Quota(Quota { rate, window }) => write!(f, "{rate} {window}")?,
            Counted::InFlight => f.write_str("in flight")?,
        }
        for (place, part) in self.by.iter().enumerate() {
            write!(f, "{}{part}", if place == 0 { " by " } else { "," })?;
        }
        Ok(())
    }
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Counted {
    Rate(Rate),
    Quota(Quota),
    InFlight,
}

/// Why a limit was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidLimit {
    /// Zero, or beyond what a header can say.
    #[error("a limit counts from 1 to 999_999_999_999_999")]
    Count,
    /// Faster than nanoseconds.
    #[error("a rate is at most 1_000_000_000 a second")]
    Rate,
    /// Zero, or absurdly large for its rate.
    #[error("a burst is at least 1 and comes back within a century")]
    Burst,
    /// Too much for a rolling window.
    #[error("a rolling quota is at most 4_294_967_295, and at most 1_000_000_000 a second")]
    Rolling,
    /// Nothing could ever pass.
    #[error("a request may not cost more than the `burst` or the `quota` allows at once")]
    Cost,
    /// Nothing could be counted.
    #[error("at least one key must be counted")]
    MaxKeys,
}

/// What comes in this time may come at once, unless `burst` says otherwise.
const DEFAULT_BURST: Duration = Duration::from_millis(100);
const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
/// The largest Integer of a structured field (RFC 9651 §3.3.1).
const MAX_COUNT: u64 = 999_999_999_999_999;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lets_a_tenth_of_a_seconds_requests_come_at_once_by_default() {
        assert_eq!(burst(100, Unit::Second), 10);
        assert_eq!(burst(19, Unit::Second), 1);
        assert_eq!(burst(30, Unit::Minute), 1);
        assert_eq!(burst(6_000, Unit::Minute), 10);
    }

    #[test]
    fn refuses_numbers_that_mean_nothing() {
        assert_eq!(Rate::new(0, Unit::Day), Err(InvalidLimit::Count));
        assert_eq!(Rate::new(MAX_COUNT + 1, Unit::Day), Err(InvalidLimit::Count));
        assert_eq!(Spike::new(rate(1_000_000_001, Unit::Second), None), Err(InvalidLimit::Rate));
        assert_eq!(Spike::new(rate(1, Unit::Second), Some(0)), Err(InvalidLimit::Burst));
        assert_eq!(Spike::new(rate(1, Unit::Month), Some(1_300)), Err(InvalidLimit::Burst));
        assert_eq!(
            Quota::new(rate(1 << 32, Unit::Month), Window::Rolling),
            Err(InvalidLimit::Rolling)
        );
    }

    #[test]
    fn refuses_a_cost_that_never_fits() {
        let mut settings = spike_of(Spike::new(rate(100, Unit::Second), None).unwrap());
        settings.cost = Cost::Fixed(NonZeroU32::new(10).unwrap());
        assert_eq!(settings.check(), Ok(()));

        settings.cost = Cost::Fixed(NonZeroU32::new(11).unwrap());
        assert_eq!(settings.check(), Err(InvalidLimit::Cost));

        settings.kind = Kind::Quota(Quota::new(rate(10, Unit::Day), Window::Flexi).unwrap());
        assert_eq!(settings.check(), Err(InvalidLimit::Cost));

        settings.cost = Cost::RequestSize(NonZeroU64::MIN);
        assert_eq!(settings.check(), Ok(()));
    }

    #[test]
    fn charges_bytes_by_the_started_thousand() {
        let cost = Cost::RequestSize(NonZeroU64::new(1_000).unwrap());

        assert_eq!(cost.of(0), 1);
        assert_eq!(cost.of(1_000), 1);
        assert_eq!(cost.of(1_001), 2);
    }

    #[test]
    fn only_a_rate_that_needs_no_caller_runs_before_authentication() {
        let mut settings = spike_of(Spike::new(rate(1, Unit::Second), None).unwrap());
        assert!(settings.runs_before_authentication());

        settings.by = Box::new([KeyPart::Ip, KeyPart::Route]);
        assert!(settings.runs_before_authentication());

        settings.by = Box::new([KeyPart::Ip, KeyPart::Client]);
        assert!(!settings.runs_before_authentication());

        settings.by = Box::new([KeyPart::Ip]);
        settings.kind = Kind::Concurrency(NonZeroU32::MIN);
        assert!(!settings.runs_before_authentication());
    }

    #[test]
    fn a_new_burst_keeps_the_counts_and_a_new_rate_does_not() {
        let of = |count, burst| {
            spike_of(Spike::new(rate(count, Unit::Second), Some(burst)).unwrap()).id()
        };

        assert_eq!(of(10, 1), of(10, 2));
        assert_ne!(of(10, 1), of(11, 1));
    }

    #[test]
    fn an_id_says_what_is_counted_and_by_what() {
        let berlin = Window::Calendar(Zone::named("Europe/Berlin").unwrap());
        let quota = Quota::new(rate(10_000, Unit::Day), berlin).unwrap();
        let mut settings = Settings::new("daily", Kind::Quota(quota));
        settings.by = Box::new([
            KeyPart::Client,
            KeyPart::Header(HeaderName::from_static("x-tenant")),
            KeyPart::Claim("org.id".into()),
        ]);

        assert_eq!(
            settings.id().to_string(),
            "daily: 10000/day calendar Europe/Berlin by client,header:x-tenant,claim:org.id"
        );
    }

    fn burst(count: u64, unit: Unit) -> u32 {
        Spike::new(rate(count, unit), None).unwrap().burst().get()
    }

    fn rate(count: u64, unit: Unit) -> Rate {
        Rate::new(count, unit).unwrap()
    }

    fn spike_of(spike: Spike) -> Settings {
        Settings::new("spike", Kind::Rate(spike))
    }
}
