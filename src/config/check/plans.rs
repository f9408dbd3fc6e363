//! Checks the plans of `limits`: amounts by a claim or by the client.

use core::num::NonZeroU32;

use super::Check;
use crate::config::de::field::Spanned;
use crate::config::de::units::Scalar;
use crate::config::fault::{Code, Position};
use crate::config::file::limits::{self as file, Amount};
use crate::config::file::value::KeywordOr;
use crate::limit::{ClientPlans, InvalidLimit, Kind, Plan, Plans, Rate};

/// Makes an amount of a rate.
type Make<'a> = &'a dyn Fn(Rate) -> Result<Kind, InvalidLimit>;

impl Check<'_> {
    /// Returns the amount of a limit, and those of its plans.
    pub(super) fn amounts(
        &mut self,
        amount: &Spanned<Amount>,
        burst: Option<&Spanned<u32>>,
        make: Make<'_>,
    ) -> Option<(Kind, Option<Plans>)> {
        match &amount.value {
            KeywordOr::Scalar(rate) => {
                let made = make(rate.0);
                let kind = made.map_err(|error| self.invalid(error, amount.at, burst)).ok()?;
                Some((kind, None))
            }
            KeywordOr::Mapping(keys) => self.plans(amount, keys, burst, make),
        }
    }

    fn plans(
        &mut self,
        amount: &Spanned<Amount>,
        keys: &file::Plans,
        burst: Option<&Spanned<u32>>,
        make: Make<'_>,
    ) -> Option<(Kind, Option<Plans>)> {
        let one = |check: &mut Self, rate: &Spanned<Scalar<Rate>>| {
            let made = make(rate.value.0);
            made.map_err(|error| check.invalid(error, rate.at, burst)).ok()
        };
        let default = keys.default.get().map(|rate| one(self, rate));
        let mut values = Vec::new();
        let mut positions = Vec::new();
        if let Some(named) = keys.values.get() {
            for (name, rate) in named.value.iter() {
                values.push(Plan { name: name.value.as_str().into(), kind: one(self, rate)? });
                positions.push(rate.at);
            }
        }
        if values.is_empty() || values.len() > Plans::MAX {
            if !keys.values.is_bad() {
                let message = format!("a limit by plan needs 1 to {} plans", Plans::MAX);
                self.fault(Code::C105, amount.at, message, "write values: { free: 1000/day }");
            }
            return None;
        }
        if keys.claim.is_absent() && keys.clients.is_absent() {
            let message = "no caller would have one of these plans";
            self.fault(Code::C105, amount.at, message, "write `claim: plan`, or `clients`");
        }
        if let Some(claim) = keys.claim.get().filter(|claim| claim.value.is_empty()) {
            self.fault(Code::C103, claim.at, "the claim has no name", "write its path: org.plan");
        }
        let clients = self.clients_of_plans(keys, &values);
        let claim = keys.claim.get().map(|claim| claim.value.as_str().into());
        let has_default = default.is_some();
        let kind = match default {
            Some(kind) => kind?,
            // Every caller has a plan: only the window of this amount is used.
            None => values.first()?.kind.clone(),
        };
        self.same_window(&kind, &values, &positions);
        let (values, clients) = (values.into(), clients?);
        Some((kind, Some(Plans { claim, values, clients, has_default })))
    }

    fn clients_of_plans(&mut self, keys: &file::Plans, values: &[Plan]) -> Option<ClientPlans> {
        let mut clients = Vec::new();
        for (client, plan) in keys.clients.get().into_iter().flat_map(|map| map.value.iter()) {
            let Some(index) = values.iter().position(|value| *value.name == *plan.value) else {
                let names: Vec<_> = values.iter().map(|value| &*value.name).collect();
                let help = format!("write one of {}", names.join(", "));
                self.fault(
                    Code::C104,
                    plan.at,
                    format!("no plan is called {}", plan.shown()),
                    help,
                );
                return None;
            };
            clients.push((Box::from(client.value.as_str()), index as u16));
        }
        clients.sort();
        Some(clients.into())
    }

    /// Refuses plans whose windows differ: a caller that changes its plan keeps its counter, and so its window.
    fn same_window(&mut self, kind: &Kind, values: &[Plan], positions: &[Position]) {
        let unit = |kind: &Kind| match kind {
            Kind::Quota(quota) => Some(quota.rate().unit()),
            Kind::Rate(_) | Kind::Concurrency(_) => None,
        };
        for (plan, position) in values.iter().zip(positions) {
            if let (Some(one), Some(other)) = (unit(kind), unit(&plan.kind))
                && one != other
            {
                let message = format!(
                    "plan `{}` counts per {other}, others per {one}: a caller that changes its plan keeps its count",
                    plan.name
                );
                let help = format!("write every amount per {one}, or make two limits");
                self.fault(Code::C106, *position, message, help);
            }
        }
    }

    /// Refuses a fixed cost that a plan never allows at once.
    pub(super) fn cost_fits_plans(&mut self, plans: &Plans, cost: NonZeroU32, position: Position) {
        for plan in &plans.values {
            if plan.kind.whole() < u64::from(cost.get()) {
                let message = format!("plan `{}`: {}", plan.name, InvalidLimit::Cost);
                self.fault(
                    Code::C106,
                    position,
                    message,
                    "raise `burst` or the plan, or lower `cost`",
                );
            }
        }
    }
}
