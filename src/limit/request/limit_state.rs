//! The state of one request's limits: its balances, its permits, and what is charged while it is under way.

use http::HeaderMap;

use super::charged_limit::ChargedLimit;
use super::content_charge::ContentCharge;
use super::limit_exceeded::Limited;
use super::response_cost::ResponseCost;
use super::response_headers::MAX_POLICIES;
use crate::limit::algorithms::concurrency::{InFlightPermit, SharedPermit};
use crate::limit::counters::limit_counters::Now;
use crate::limit::limiter::Balance;

/// The limit decisions of one request, and its permits.
///
/// To be held until the response's last byte: requests in flight are released on drop.
#[derive(Debug, Default)]
pub struct LimitState {
    pub(in crate::limit) left: [Balance; MAX_POLICIES],
    pub(in crate::limit) in_flight: Vec<InFlightPermit>,
    pub(in crate::limit) shared_in_flight: Vec<SharedPermit>,
    pub(in crate::limit) metered: Vec<ChargedLimit>,
    /// The limits whose cost comes from the response.
    pub(in crate::limit) unsettled: Vec<ChargedLimit>,
    /// The first limit that would have refused the request, were it no dry run; by its index.
    pub(in crate::limit) dry_run: Option<u16>,
}

impl LimitState {
    /// Returns the charge of a request body of unknown size, which limits by bytes have admitted as empty.
    /// Returns it once; `None` if no limit was charged.
    pub fn content_charge(&mut self) -> Option<ContentCharge> {
        let metered = core::mem::take(&mut self.metered);
        (!metered.is_empty()).then(|| ContentCharge::new(metered))
    }

    /// Records that a limit has ended the request body.
    pub fn ended_by(&mut self, limited: &Limited) {
        if let Some(balance) = limited.announced
            && let Some(slot) = self.left.get_mut(usize::from(limited.limit_index))
        {
            *slot = balance;
        }
    }

    /// Charges the costs from the response's head.
    pub fn settle_by_head(&mut self, headers: &HeaderMap, moment: Now) {
        self.adjust_costs(moment, |cost| cost.in_head(headers));
    }

    /// Charges the costs from the response's content.
    pub fn settle_by_content(&mut self, content: &[u8], moment: Now) {
        self.adjust_costs(moment, |cost| cost.in_content(content));
    }

    /// Whether a limit waits for a cost from the response.
    pub fn has_unsettled(&self) -> bool {
        !self.unsettled.is_empty()
    }

    /// Returns the maximum bytes of JSON content that are searched for a cost; `None` if none does.
    pub fn max_content_of_costs(&self) -> Option<usize> {
        let costs =
            self.unsettled.iter().filter_map(|one| one.limiter.settings().response_cost.as_ref());
        let sizes = costs.filter_map(|cost| match cost {
            ResponseCost::Json { max_size, .. } => Some(*max_size),
            ResponseCost::Header(_) => None,
        });
        sizes.max()
    }

    /// Charges each unsettled cost that `told` finds. The others stay at what was charged before.
    fn adjust_costs(&mut self, moment: Now, told: impl Fn(&ResponseCost) -> Option<u64>) {
        let Self { unsettled, left, .. } = self;
        unsettled.retain(|limit| {
            let settings = limit.limiter.settings();
            let Some(cost) = settings.response_cost.as_ref().and_then(&told) else { return true };
            let balance = limit.adjust_cost(cost, moment);
            if settings.tells_clients()
                && let Some(slot) = left.get_mut(limit.limit_index)
            {
                *slot = balance;
            }
            false
        });
    }

    /// Hands over the permits of concurrency limits, for a request that outlives its response.
    pub fn hand_over(&mut self) -> HeldPermits {
        HeldPermits {
            _in_flight: core::mem::take(&mut self.in_flight),
            _shared: core::mem::take(&mut self.shared_in_flight),
        }
    }
}

/// Permits of concurrency limits, released on drop.
#[derive(Debug)]
pub struct HeldPermits {
    _in_flight: Vec<InFlightPermit>,
    _shared: Vec<SharedPermit>,
}
