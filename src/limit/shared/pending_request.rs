//! Requests that wait for the store: one message per limit, in one round trip.

use std::sync::Arc;

use super::lease::Lease;
use super::lease::LeaseSlot;
use super::protocol::{Message, Status};
use super::shared_limit::{SharedLimit, TicketRequest};
use super::store_state::Decided;
use crate::limit::counters::limit_counters::Now;

/// A request's place at one shared limit, given back on drop unless it was taken.
#[derive(Debug)]
pub(in crate::limit) struct Ticket {
    shared: Arc<SharedLimit>,
    slot: LeaseSlot,
    nonce: u32,
    cost: u64,
    exact: bool,
    /// The limit's index among its route's.
    pub(in crate::limit) place: usize,
    message: Option<Message>,
    decided: Option<Decided>,
    taken: bool,
}

/// The store's answer to one ticket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::limit) enum StoreAnswer {
    /// The request may pass.
    Granted,
    /// Another limit of the request refused it.
    NotCharged,
    /// The limit is used up: the wait in microseconds.
    Refused(u64),
    /// There was no answer in time.
    Failed,
}

impl Ticket {
    /// Holds a place at `shared` for a request that asks the store.
    pub(in crate::limit) fn asking(
        shared: &Arc<SharedLimit>,
        lease: &mut Lease,
        slot: LeaseSlot,
        place: usize,
        request: TicketRequest<impl FnOnce() -> Arc<str>>,
    ) -> Self {
        let TicketRequest { cost, exact, .. } = request;
        let message = Some(shared.ask(lease, request));
        let (shared, nonce) = (Arc::clone(shared), lease.nonce);
        Self { shared, slot, nonce, cost, exact, place, message, decided: None, taken: false }
    }

    /// Holds a place at `shared` for a request that grants cover, while another limit asks the store.
    pub(in crate::limit) fn holding<K>(
        shared: &Arc<SharedLimit>,
        lease: &mut Lease,
        slot: LeaseSlot,
        place: usize,
        request: TicketRequest<K>,
    ) -> Self {
        let TicketRequest { cost, exact, .. } = request;
        lease.reserve(cost);
        let decided = Some(Decided { status: Status::Granted, wait: 0 });
        let (shared, nonce) = (Arc::clone(shared), lease.nonce);
        Self { shared, slot, nonce, cost, exact, place, message: None, decided, taken: false }
    }

    /// Returns the place of the lease at which the request holds its own: also the later decision is made there.
    pub(in crate::limit) fn slot(&self) -> LeaseSlot {
        self.slot
    }

    /// Returns the store's answer.
    pub(in crate::limit) fn answer(&self) -> StoreAnswer {
        match self.decided {
            None | Some(Decided { status: Status::Undecided, .. }) => StoreAnswer::Failed,
            Some(Decided { status: Status::Granted, .. }) => StoreAnswer::Granted,
            Some(Decided { status: Status::NotCharged, .. }) => StoreAnswer::NotCharged,
            Some(Decided { status: Status::Refused, wait }) => StoreAnswer::Refused(wait),
        }
    }

    /// Takes the place: from now on the request is charged by the caller, who has locked `lease`.
    pub(in crate::limit) fn take(&mut self, lease: &mut Lease) {
        if !self.taken && lease.nonce == self.nonce {
            lease.unreserve(self.cost);
            self.taken = true;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.taken {
            self.shared.unreserve(self.slot, self.nonce, self.cost, self.exact);
        }
    }
}

/// Sends the messages of `tickets` in one round trip, and records the decisions.
pub(in crate::limit) async fn ask(tickets: &mut [Ticket], moment: Now) {
    let Some(first) = tickets.first() else { return };
    let state = Arc::clone(&first.shared.state);
    let mut asking: Vec<&mut Ticket> =
        tickets.iter_mut().filter(|ticket| ticket.message.is_some()).collect();
    let leases = asking.iter().map(|ticket| (ticket.shared.id, ticket.slot)).collect();
    let messages = asking.iter_mut().filter_map(|ticket| ticket.message.take()).collect();
    if let Some(decided) = state.ask(leases, messages, moment).await {
        for (ticket, decided) in asking.into_iter().zip(decided) {
            ticket.decided = Some(decided);
        }
    }
}
