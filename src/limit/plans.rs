//! Plans: how much of a rate or quota a caller has bought, by a claim of its token or by its client.
//!
//! A caller's plan is looked up with every request, so that another plan takes effect with the next token. Its counter
//! is the same under every plan: what was used stays used.

use std::sync::Arc;

use serde_json::Value;

use super::algorithms::rate::Kind;

/// The plans of clients, as positions among a limit's plans.
pub type ClientPlans = Box<[(Box<str>, u16)]>;

/// The plans of one limit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plans {
    /// The claim that names the plan, by its path; `None` if only the file assigns plans.
    pub claim: Option<Arc<str>>,
    /// The plans, at most [`Plans::MAX`]. All have the kind and, for a quota, the window of the limit.
    pub values: Box<[Plan]>,
    /// The plans of clients by their ids, as positions in `values`; sorted. They precede the claim.
    pub clients: ClientPlans,
    /// Whether callers without a plan have the limit's own amount; else they are refused with 403.
    pub has_default: bool,
}

/// One plan.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plan {
    /// Its name: the value of the claim.
    pub name: Arc<str>,
    /// Its amount.
    pub kind: Kind,
}

impl Plans {
    /// The maximum number of plans of a limit.
    pub const MAX: usize = 1_000;

    /// Returns the caller's plan; `None` if it has none and there is no default.
    pub(super) fn of<'a>(
        &self,
        client: Option<&str>,
        claim: &dyn Fn(&str) -> Option<&'a Value>,
    ) -> Option<PlanIndex> {
        let by_client = client.and_then(|client| {
            let found = self.clients.binary_search_by(|(id, _)| (**id).cmp(client));
            found.ok().map(|index| usize::from(self.clients[index].1))
        });
        let found = by_client.or_else(|| self.claimed(claim(self.claim.as_deref()?)?));
        match found {
            Some(index) => Some(PlanIndex(index as u16 + 1)),
            None => self.has_default.then_some(PlanIndex::DEFAULT),
        }
    }

    /// Returns the plan that a claim names: text, a number or a boolean, as the file writes it.
    fn claimed(&self, value: &Value) -> Option<usize> {
        let named = |name: &str| self.values.iter().position(|plan| *plan.name == *name);
        match value {
            Value::String(name) => named(name),
            Value::Number(_) | Value::Bool(_) => named(&value.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }
}

/// The plan of one request: the limit's own amount, or one of its plans.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct PlanIndex(u16);

impl PlanIndex {
    /// The limit's own amount.
    pub(super) const DEFAULT: Self = Self(0);

    /// Returns the position in a list that begins with the limit's own amount.
    pub(super) fn position(self) -> usize {
        self.0.into()
    }
}
