//! The freshness of an access token: how much a session needs its refresh.

use std::sync::Arc;

use super::decision::RefreshNeed;
use crate::token::{Principal, TokenError};

/// The validity of the access token of a session that is to be refreshed.
pub(in crate::session) enum Freshness {
    /// Valid for this principal.
    Serves(Arc<Principal>),
    /// Not expired; not verified.
    Unknown,
    /// Not valid.
    Lost(RefreshNeed),
}

impl Freshness {
    /// Returns the validity of a token that was refused with `error`.
    pub(in crate::session) fn of(error: TokenError) -> Self {
        Self::Lost(if error == TokenError::Expired {
            RefreshNeed::Ended
        } else {
            RefreshNeed::Refused
        })
    }

    /// Returns the urgency of a refresh.
    pub(super) const fn need(&self) -> RefreshNeed {
        match self {
            Self::Serves(_) | Self::Unknown => RefreshNeed::Serves,
            Self::Lost(need) => *need,
        }
    }
}
