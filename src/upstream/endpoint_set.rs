//! The endpoints of an upstream at a moment: immutable, and replaced as a whole when names resolve anew.

use core::time::Duration;
use std::sync::Arc;

use super::endpoint::Endpoint;
use super::load_balancer::{Candidate, round_robin_schedule};
use super::settings::Settings;
use crate::observe::metrics::LabeledGauge;

/// The endpoints of an upstream.
#[derive(Debug)]
pub(super) struct EndpointSet {
    pub(super) members: Box<[Member]>,
    /// Indices of `members` in the order of round robin.
    pub(super) turns: Box<[u16]>,
}

/// An endpoint, with its place among the others.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) endpoint: Arc<Endpoint>,
    /// 1 to 1000.
    pub(super) weight: u16,
    /// See [`Candidate::tier`].
    pub(super) tier: u32,
    /// The index of the target that it is an address of.
    pub(super) target: usize,
    /// A hash of the endpoint's name.
    pub(super) identity: u64,
    /// The series are exported while this value exists.
    pub(super) healthy: Arc<LabeledGauge>,
    /// So is this one.
    pub(super) _http_version: Arc<LabeledGauge>,
}

impl EndpointSet {
    pub(super) fn new(members: Vec<Member>) -> Self {
        let weights: Vec<u16> = members.iter().map(|member| member.weight).collect();
        Self { turns: round_robin_schedule(&weights), members: members.into() }
    }

    /// Returns the view of the endpoints at the uptime `now` for one choice. `excluded` are those that may not be chosen.
    pub(super) fn view<'a>(
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
                weight: member.weight.into(),
                load,
                open: !excluded(endpoint) && rules.admit(endpoint, now),
                full: load >= endpoint.capacity(),
                share: endpoint.health.share(now, settings.slow_start),
                identity: member.identity,
            }
        }
    }

    /// Returns the rules that hold for all endpoints at this moment.
    fn rules(&self, settings: &Settings, now: Duration) -> AdmissionRules {
        let total = self.members.len();
        let (mut up, mut ejected) = (0, 0);
        for member in self.members.iter().filter(|member| !member.endpoint.health.is_down()) {
            up += 1;
            ejected += usize::from(member.endpoint.health.is_ejected(now));
        }
        AdmissionRules {
            // At most `max_ejected` percent of those that are up are left out for failed requests.
            ejects: ejected * 100 <= up * usize::from(settings.outlier.max_ejected),
            panics: (up - ejected) * 100 < total * usize::from(settings.panic_threshold),
        }
    }
}

/// Which states exclude an endpoint at this moment.
#[derive(Clone, Copy, Debug)]
struct AdmissionRules {
    /// Whether ejected endpoints are left out.
    ejects: bool,
    /// Whether so few endpoints are available that health is ignored.
    panics: bool,
}

impl AdmissionRules {
    fn admit(self, endpoint: &Endpoint, now: Duration) -> bool {
        self.panics
            || !endpoint.health.is_down() && (!self.ejects || !endpoint.health.is_ejected(now))
    }
}
