//! Revocations: the tokens or session that one names, and the trait of caches that apply it.

use std::sync::Arc;

use crate::base::clock::Timestamp;
use crate::token::principal::Principal;
use crate::token::token_digests::{token_digest, unsigned_digest};

/// A revocation that was made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RevocationEvent {
    /// The revoked tokens or session.
    pub revocation: Revocation,
    /// The time of revocation: tokens issued to its subject later are valid.
    pub at: Timestamp,
    /// The time until which it is stored.
    pub until: Timestamp,
    /// Whether other instances need no notification: received from one, or of no use to them.
    pub learned: bool,
}

/// The tokens or session that a revocation covers.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Revocation {
    /// The configured name of the issuer whose tokens are meant, or its `iss`, as of one tenant; `None` means every issuer's.
    pub issuer: Option<Arc<str>>,
    /// The tokens or session.
    pub what: RevocationTarget,
}

/// The tokens that are revoked, or the session that has ended.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum RevocationTarget {
    /// The token with this `jti`.
    Id(Arc<str>),
    /// The tokens of this session, `sid`.
    Session(Arc<str>),
    /// The tokens of this session, `sid`, issued so far: its issuer has ended it, and later ones belong to another login.
    LoggedOut(Arc<str>),
    /// The tokens of this subject issued so far; later ones are valid.
    Subject(Arc<str>),
    /// The gateway's sessions of this subject that have begun so far and have no `sid`. Access
    /// tokens are not covered: many have no `sid` although they belong to a session.
    Sessionless(Arc<str>),
    /// One token, by the digest of the whole or, for a JWT, of all but its signature: see
    /// [`RevocationTarget::token`].
    Token([u8; 32]),
    /// One token, named likewise, that a session had which has ended: refused from clients. Other sessions may have the
    /// same token, and a later login may get it again ([`TokenHolder`](crate::token::TokenHolder)).
    Withdrawn([u8; 32]),
    /// One session of the gateway, by its alias in limits and the log. Its
    /// tokens are revoked separately.
    GatewaySession(Arc<str>),
    /// One session of the gateway that another login in the same browser has replaced.
    Replaced(Arc<str>),
    /// The clock skew of the issuer, which is ahead by at least this many seconds: revocations of tokens issued before a moment
    /// extend by it. It is published and stored like a revocation, because every instance and the next process need it.
    ClockAhead(u64),
}

impl RevocationTarget {
    /// Returns the targets for one token: itself, and if it is a JWT, itself under another signature.
    pub fn token(token: &str) -> impl Iterator<Item = Self> {
        let names = [Some(token_digest(token)), unsigned_digest(token)];
        names.into_iter().flatten().map(Self::Token)
    }
}

impl Revocation {
    /// Whether the revocation covers `principal`'s token, whatever its age.
    pub(super) fn names(&self, principal: &Principal) -> bool {
        let is_of = |issuer: &Arc<str>| {
            [&principal.issuer, &principal.namespace].contains(&issuer)
                || principal.iss() == Some(&**issuer)
        };
        if !self.issuer.as_ref().is_none_or(is_of) {
            return false;
        }
        match &self.what {
            RevocationTarget::Id(id) => principal.id.as_ref() == Some(id),
            RevocationTarget::Session(session) | RevocationTarget::LoggedOut(session) => {
                principal.session.as_ref() == Some(session)
            }
            RevocationTarget::Token(digest) | RevocationTarget::Withdrawn(digest) => {
                principal.digest == *digest || principal.unsigned_digest == Some(*digest)
            }
            RevocationTarget::GatewaySession(_)
            | RevocationTarget::Replaced(_)
            | RevocationTarget::Sessionless(_) => false,
            RevocationTarget::Subject(subject) => principal.subject.as_ref() == Some(subject),
            // An earlier revocation may reach any token of this issuer now.
            RevocationTarget::ClockAhead(_) => true,
        }
    }

    /// Whether the revocation covers only tokens issued before.
    pub(super) const fn is_dated(&self) -> bool {
        matches!(self.what, RevocationTarget::Subject(_) | RevocationTarget::LoggedOut(_))
    }

    /// Whether the revocation covers sessions of the gateway and no token.
    pub(crate) const fn is_of_gateway_session(&self) -> bool {
        matches!(
            self.what,
            RevocationTarget::GatewaySession(_)
                | RevocationTarget::Replaced(_)
                | RevocationTarget::Sessionless(_)
        )
    }
}

impl RevocationEvent {
    /// Whether it may cover `principal`'s token: `RevocationList::is_revoked` decides.
    pub fn names(&self, principal: &Principal) -> bool {
        self.revocation.names(principal)
    }
}

/// A cache that removes revoked entries.
pub(crate) trait RevocationListener: Send + Sync {
    /// Removes the entries that `event` ends, by `revoked` for a principal, and returns their number.
    fn forget(&self, event: &RevocationEvent, revoked: &dyn Fn(&Principal) -> bool) -> usize;
}
