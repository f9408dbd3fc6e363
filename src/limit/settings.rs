//! What a limit is told: how much, of what, counted for whom.
//!
//! Every number here has passed its range check, so that the counting files
//! need none. Text (`100/s`, `10000/day`) is the affair of `config`; here a
//! rate is a count and a unit.

use core::fmt;
use core::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;

use http::{HeaderName, Method, StatusCode};

use super::rate::{InvalidLimit, Kind, Quota, Rate};

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
            Kind::Rate(spike) => u64::from(spike.burst().get()),
            Kind::Quota(quota) => quota.rate().count(),
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
            Kind::Rate(spike) => Counted::Rate(spike.rate()),
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
            Counted::Quota(quota) => write!(f, "{} {}", quota.rate(), quota.window())?,
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

#[cfg(test)]
mod tests {
    use super::super::calendar::Zone;
    use super::super::rate::{SpikeArrest, Unit, Window};
    use super::*;

    #[test]
    fn refuses_a_cost_that_never_fits() {
        let mut settings = spike_of(SpikeArrest::new(rate(100, Unit::Second), None).unwrap());
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
        let mut settings = spike_of(SpikeArrest::new(rate(1, Unit::Second), None).unwrap());
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
            spike_of(SpikeArrest::new(rate(count, Unit::Second), Some(burst)).unwrap()).id()
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

    fn rate(count: u64, unit: Unit) -> Rate {
        Rate::new(count, unit).unwrap()
    }

    fn spike_of(spike: SpikeArrest) -> Settings {
        Settings::new("spike", Kind::Rate(spike))
    }
}
