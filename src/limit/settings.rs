//! Settings of a limit: amount, cost, key.
//!
//! Every number here has passed its range check, so that the algorithms
//! need none. Text (`100/s`, `10000/day`) is parsed in `config`; here a
//! rate is a count and a unit.

use core::fmt;
use core::num::{NonZeroU32, NonZeroU64};
use core::time::Duration;
use std::sync::Arc;

use http::{HeaderName, Method, StatusCode};

use super::algorithms::rate::{InvalidLimit, Kind, Unit, Window};
use super::plans::Plans;
use super::request::response_cost::ResponseCost;

/// The settings of one limit.
///
/// # Defaults
///
/// [`Settings::new`] counts by address, also where a part of the key is missing, 100 000 keys at most, one
/// per request of any method, in this process, refuses with 429, and writes header fields.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// Name in metrics, logs and `RateLimit` fields: `[a-z0-9][a-z0-9_-]{0,62}`.
    pub name: Arc<str>,
    /// The kind of limit and its amount.
    pub kind: Kind,
    /// The amounts of callers with a plan; `None` if all have the same.
    pub plans: Option<Plans>,
    /// The parts of the key: requests that agree in all of them are counted together. Empty: all requests.
    pub by: Box<[KeyPart]>,
    /// The substitute for a part that a request lacks.
    pub on_missing: OnMissing,
    /// The maximum number of keys with a counter of their own, at least 1; all others share one.
    pub max_keys: usize,
    /// The cost of one request; if the cost comes from the response, the charge until then, and if the response has
    /// none.
    pub cost: Cost,
    /// The place of the cost in a response.
    pub response_cost: Option<ResponseCost>,
    /// The counted methods; `None` means all.
    pub methods: Option<Box<[Method]>>,
    /// The status of a refusal.
    pub status: Status,
    /// Whether responses carry `RateLimit`, `RateLimit-Policy` and `Retry-After`.
    pub headers: bool,
    /// The longest time that is added to `Retry-After` at random, so that refused clients do not all return at once.
    pub retry_jitter: Duration,
    /// Whether the limit counts and reports, but refuses nothing and says nothing to clients.
    pub dry_run: bool,
    /// The place of the counters.
    pub store: Store,
    /// Whether usage is collected for bills.
    pub metered: bool,
}

impl Settings {
    /// Creates a limit with the defaults above.
    pub fn new(name: &str, kind: Kind) -> Self {
        Self {
            name: name.into(),
            kind,
            plans: None,
            by: Box::new([KeyPart::Ip]),
            on_missing: OnMissing::Ip,
            max_keys: 100_000,
            cost: Cost::ONE,
            response_cost: None,
            methods: None,
            status: Status::TooManyRequests,
            headers: true,
            retry_jitter: Duration::ZERO,
            dry_run: false,
            store: Store::Local,
            metered: false,
        }
    }

    /// Checks combinations of numbers that the types cannot exclude.
    ///
    /// A limit that has not passed this check is safe to use, but may refuse everything.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidLimit::Cost`] if a request costs more than the limit can ever allow, and
    /// [`InvalidLimit::MaxKeys`] if no key may be counted.
    pub fn check(&self) -> Result<(), InvalidLimit> {
        let max = match &self.kind {
            Kind::Rate(spike) => u64::from(spike.burst().get()),
            Kind::Quota(quota) => quota.rate().count(),
            // A request of any size is one request in flight.
            Kind::Concurrency(_) => u64::MAX,
        };
        match self.cost {
            _ if self.max_keys == 0 => Err(InvalidLimit::MaxKeys),
            Cost::Fixed(cost) if u64::from(cost.get()) > max => Err(InvalidLimit::Cost),
            _ => Ok(()),
        }
    }

    /// Returns the cost of the smallest request; of one whose response tells its cost, what is charged until then.
    pub(super) const fn least_cost(&self) -> u64 {
        match self.kind {
            Kind::Concurrency(_) => 1,
            Kind::Rate(_) | Kind::Quota(_) => self.cost.of(0),
        }
    }

    /// Returns the id under which counters outlive a reload: another name, kind, window or key starts at zero. Another
    /// number does not: what was used stays used.
    pub fn id(&self) -> LimitId {
        let counted = match &self.kind {
            Kind::Rate(_) => Counted::Rate,
            Kind::Quota(quota) => Counted::Quota(quota.rate().unit(), quota.window().clone()),
            Kind::Concurrency(_) => Counted::InFlight,
        };
        LimitId {
            name: self.name.clone(),
            counted,
            by: self.by.clone(),
            shared: self.store.is_shared(),
        }
    }

    /// Whether responses have header fields about the limit.
    pub(super) const fn tells_clients(&self) -> bool {
        self.headers && !self.dry_run
    }

    /// Whether it is checked before authentication: a rate by address, route or header field, or a global one.
    pub fn runs_before_authentication(&self) -> bool {
        let known = |part: &KeyPart| matches!(part, KeyPart::Ip | KeyPart::Route | KeyPart::Global);
        matches!(self.kind, Kind::Rate(_)) && self.plans.is_none() && self.by.iter().all(known)
    }

    /// Whether it counts authenticated callers: by a part of the key, or by their plan.
    pub fn needs_principal(&self) -> bool {
        self.plans.is_some() || self.by.iter().any(KeyPart::needs_principal)
    }

    /// Whether it refuses every request without a caller: by `on_missing`, or because none has a plan.
    pub fn refuses_anonymous(&self) -> bool {
        let is_rejected =
            self.on_missing == OnMissing::Reject && self.by.iter().any(KeyPart::needs_principal);
        is_rejected || self.plans.as_ref().is_some_and(|plans| !plans.has_default)
    }
}

/// One part of a limit key.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum KeyPart {
    /// The client's address; IPv6 by /64, which is one subscriber.
    Ip,
    /// The OAuth client that the token was issued to.
    Client,
    /// The token's subject.
    Subject,
    /// The login session.
    Session,
    /// The route that was matched.
    Route,
    /// Nothing: all requests share one counter.
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

/// Formats a part as the file does: `header:x-tenant`.
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

/// The place of a limit's counters.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Store {
    /// This process.
    #[default]
    Local,
    /// A Redis that several gateways share.
    Redis {
        /// Whether every request asks, instead of using a lease.
        exact: bool,
        /// The decision while the store is unavailable.
        on_error: OnStoreError,
    },
}

impl Store {
    /// Whether several gateways share the counters.
    pub const fn is_shared(self) -> bool {
        matches!(self, Self::Redis { .. })
    }

    /// Whether every request asks the store.
    pub const fn is_exact(self) -> bool {
        matches!(self, Self::Redis { exact: true, .. })
    }
}

/// The decision of a shared limit while its store is unavailable.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum OnStoreError {
    /// By this gateway's lease, and then by its share of what was left.
    #[default]
    Local,
    /// Every request passes this limit.
    Allow,
    /// Every request that no lease covers is refused.
    Deny,
}

/// The substitute for a part of the key that a request lacks.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OnMissing {
    /// The client's address.
    #[default]
    Ip,
    /// One value shared by all requests that lack the part.
    Shared,
    /// None: the request is refused with 400.
    Reject,
    /// None: this limit does not count the request.
    Skip,
}

/// The cost of one request for a rate or quota. Concurrency always counts one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cost {
    /// The same for all requests.
    Fixed(NonZeroU32),
    /// One per this many bytes of the body, rounded up, at least one.
    RequestSize(NonZeroU64),
}

impl Cost {
    /// A cost of one per request.
    const ONE: Self = Self::Fixed(NonZeroU32::MIN);

    /// Returns the cost of a request with a body of `size` bytes.
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

/// The status of a refusal.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Status {
    /// `429 Too Many Requests` (RFC 6585 §4).
    #[default]
    TooManyRequests,
    /// `503 Service Unavailable` (RFC 9110 §15.6.4), for clients that do not handle 429.
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

/// The id under which a limit's counters are found again after a reload.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct LimitId {
    name: Arc<str>,
    counted: Counted,
    by: Box<[KeyPart]>,
    shared: bool,
}

/// Formats the id for the log and the file of saved quotas: `daily: day calendar Europe/Berlin by client,route`.
impl fmt::Display for LimitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name)?;
        match &self.counted {
            Counted::Rate => f.write_str("rate")?,
            Counted::Quota(unit, window) => write!(f, "{unit} {window}")?,
            Counted::InFlight => f.write_str("in flight")?,
        }
        for (index, part) in self.by.iter().enumerate() {
            write!(f, "{}{part}", if index == 0 { " by " } else { "," })?;
        }
        Ok(())
    }
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Counted {
    Rate,
    Quota(Unit, Window),
    InFlight,
}

#[cfg(test)]
mod tests {
    use super::super::algorithms::rate::{Quota, Rate, SpikeArrest};
    use super::*;
    use crate::limit::algorithms::time_zone::Zone;

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
    fn other_numbers_keep_the_counts_and_another_window_does_not() {
        let of = |count, burst| {
            spike_of(SpikeArrest::new(rate(count, Unit::Second), Some(burst)).unwrap()).id()
        };
        let quota = |count, unit, window| {
            let quota = Quota::new(rate(count, unit), window).unwrap();
            Settings::new("quota", Kind::Quota(quota)).id()
        };

        assert_eq!(of(10, 1), of(11, 2));
        assert_eq!(quota(1, Unit::Day, Window::Flexi), quota(2, Unit::Day, Window::Flexi));
        assert_ne!(quota(1, Unit::Day, Window::Flexi), quota(1, Unit::Hour, Window::Flexi));
        assert_ne!(quota(1, Unit::Day, Window::Flexi), quota(1, Unit::Day, Window::Rolling));
    }

    #[test]
    fn an_id_names_the_window_and_the_key() {
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
            "daily: day calendar Europe/Berlin by client,header:x-tenant,claim:org.id"
        );
    }

    fn rate(count: u64, unit: Unit) -> Rate {
        Rate::new(count, unit).unwrap()
    }

    fn spike_of(spike: SpikeArrest) -> Settings {
        Settings::new("spike", Kind::Rate(spike))
    }
}
