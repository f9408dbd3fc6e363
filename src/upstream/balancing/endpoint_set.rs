//! An immutable snapshot of an upstream's endpoints; name resolution replaces it as a whole.

use core::time::Duration;
use std::sync::Arc;

use super::endpoint::Endpoint;
use super::load_balancer::{Candidate, round_robin_schedule};
use crate::observe::metrics::LabeledGauge;
use crate::upstream::settings::Settings;

/// The endpoints of an upstream.
#[derive(Debug)]
pub(in crate::upstream) struct EndpointSet {
    pub(in crate::upstream) members: Box<[Member]>,
    /// Indices of `members` in the order of round robin.
    pub(in crate::upstream) turns: Box<[u16]>,
}

/// An endpoint, with its index among the others.
#[derive(Debug)]
pub(in crate::upstream) struct Member {
    pub(in crate::upstream) endpoint: Arc<Endpoint>,
    /// The weight of the target, times that of its SRV record; at least 1.
    pub(in crate::upstream) weight: u32,
    /// See [`Candidate::tier`].
    pub(in crate::upstream) tier: u32,
    /// The index of the target that it is an address of.
    pub(in crate::upstream) target: usize,
    /// A hash of the endpoint's name.
    pub(in crate::upstream) identity: u64,
    /// The series are exported while this value exists.
    pub(in crate::upstream) healthy: Arc<LabeledGauge>,
    /// So is this one.
    pub(in crate::upstream) _http_version: Arc<LabeledGauge>,
}

impl EndpointSet {
    pub(in crate::upstream) fn new(members: Vec<Member>) -> Self {
        let weights: Vec<u32> = members.iter().map(|member| member.weight).collect();
        Self { turns: round_robin_schedule(&weights), members: members.into() }
    }

    /// Returns the view of the endpoints at the uptime `now` for one choice. `excluded` are those that may not be chosen.
    pub(in crate::upstream) fn view<'a>(
        &'a self,
        settings: &'a Settings,
        now: Duration,
        excluded: impl Fn(&Endpoint) -> bool + 'a,
    ) -> impl Fn(usize) -> Candidate + 'a {
        let rules = self.rules(settings, now);
        move |index| {
            let member = &self.members[index];
            let endpoint = &*member.endpoint;
            let load = endpoint.load();
            Candidate {
                tier: member.tier,
                weight: member.weight,
                load,
                open: !excluded(endpoint) && rules.admit(index, member),
                full: load >= endpoint.capacity(),
                share: endpoint.health.share(now, settings.slow_start),
                identity: member.identity,
            }
        }
    }

    /// Returns whether each member receives no requests at the uptime `now` because of its health. A failing endpoint
    /// may receive some all the same, if too few would be left without it.
    pub(in crate::upstream) fn are_out(&self, settings: &Settings, now: Duration) -> Vec<bool> {
        let rules = self.rules(settings, now);
        self.members.iter().enumerate().map(|(index, member)| !rules.admit(index, member)).collect()
    }

    /// Whether `endpoint` receives no requests at the uptime `now` because of its health.
    pub(in crate::upstream) fn is_out(
        &self,
        endpoint: &Endpoint,
        settings: &Settings,
        now: Duration,
    ) -> bool {
        let mut members = self.members.iter().enumerate();
        let is_it = |member: &Member| core::ptr::eq(&raw const *member.endpoint, endpoint);
        let member = members.find(|(_, member)| is_it(member));
        member.is_none_or(|(index, member)| !self.rules(settings, now).admit(index, member))
    }

    /// Returns the rules that hold for all endpoints at this moment.
    fn rules(&self, settings: &Settings, now: Duration) -> AdmissionRules {
        // The usual case.
        if self.members.iter().all(|member| member.is_available(now)) {
            return AdmissionRules::default();
        }
        AdmissionRules {
            left_out: self.left_out(settings.outlier.max_ejected, now),
            panic: self.panic(settings.panic_threshold, now),
        }
    }

    /// Returns the indices of the ejected endpoints that are left out: up to `max_percent` of those of their tier that are
    /// up, the first ejected ones first; all of a tier where an endpoint of a further tier takes their place.
    fn left_out(&self, max_percent: u8, now: Duration) -> Vec<usize> {
        let ejected = self.members.iter().enumerate().filter(|(_, member)| {
            let health = &member.endpoint.health;
            !health.is_down() && health.is_ejected(now)
        });
        let key = |(index, member): (usize, &Member)| {
            (member.tier, member.endpoint.health.ejected_until(), index)
        };
        let mut ejected: Vec<_> = ejected.map(key).collect();
        ejected.sort_unstable();
        let mut left_out = Vec::new();
        for of_tier in ejected.chunk_by(|(tier, ..), (other, ..)| tier == other) {
            let tier = of_tier[0].0;
            let up = self
                .members
                .iter()
                .filter(|member| member.tier == tier && !member.endpoint.health.is_down());
            let up = up.count();
            let has_substitute =
                || self.members.iter().any(|other| other.tier > tier && other.is_available(now));
            let max = if of_tier.len() == up && has_substitute() {
                up
            } else {
                up * usize::from(max_percent) / 100
            };
            left_out.extend(of_tier.iter().take(max).map(|&(.., index)| index));
        }
        left_out
    }

    /// Decides where health is ignored: in the first tier with an available endpoint, if less than `threshold` percent of
    /// it are; everywhere without any.
    fn panic(&self, threshold: u8, now: Duration) -> Panic {
        if threshold == 0 {
            return Panic::Never;
        }
        let available = self.members.iter().filter(|member| member.is_available(now));
        let Some(tier) = available.map(|member| member.tier).min() else {
            return Panic::Everywhere;
        };
        let of_tier = self.members.iter().filter(|member| member.tier == tier);
        let (total, available) = of_tier.fold((0, 0), |(total, available), member| {
            (total + 1, available + usize::from(member.is_available(now)))
        });
        if available * 100 < total * usize::from(threshold) {
            Panic::Within(tier)
        } else {
            Panic::Never
        }
    }
}

impl Member {
    fn is_available(&self, now: Duration) -> bool {
        self.endpoint.health.is_available(now)
    }
}

/// Which endpoints receive no requests at this moment.
#[derive(Debug, Default)]
struct AdmissionRules {
    /// The indices of the ejected endpoints that are left out.
    left_out: Vec<usize>,
    panic: Panic,
}

/// The state in which so few endpoints are available that health is ignored.
#[derive(Clone, Copy, Debug, Default)]
enum Panic {
    #[default]
    Never,
    /// Health is ignored among the endpoints of this tier.
    Within(u32),
    Everywhere,
}

impl AdmissionRules {
    fn admit(&self, index: usize, member: &Member) -> bool {
        let ignores_health = match self.panic {
            Panic::Never => false,
            Panic::Within(tier) => tier == member.tier,
            Panic::Everywhere => true,
        };
        ignores_health || !member.endpoint.health.is_down() && !self.left_out.contains(&index)
    }
}
