//! A decision about limits, which a store may have to make.

use super::limit_exceeded::LimitExceeded;
use crate::limit::counters::limit_counters::Now;
use crate::limit::shared::{self, Ticket};

/// A decision about the limits of one stage.
#[derive(Debug)]
pub enum Decision {
    /// All limits have decided.
    Made(Result<(), LimitExceeded>),
    /// A store is to be asked first, for at most a few milliseconds; nothing has been charged yet.
    Ask(Question),
}

/// The limits of a request, or of a part of its content, that only their store can decide. Dropping it gives the request
/// up.
#[derive(Debug)]
pub struct Question {
    pub(in crate::limit) tickets: Vec<Ticket>,
    pub(in crate::limit) moment: Now,
}

impl Question {
    /// Asks the store, in one round trip. Without a response in time, `settle` decides without the store.
    pub async fn send(&mut self) {
        shared::ask(&mut self.tickets, self.moment).await;
    }
}
