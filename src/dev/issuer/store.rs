//! What was granted, and the codes and tokens that speak for it.
//!
//! A *grant* is one person's or one client's agreement; codes, access tokens
//! and refresh tokens are its family. Ending the grant ends the whole family,
//! which is what the reuse of a code or of a rotated refresh token does
//! (RFC 6749 §10.5, RFC 9700 §4.14.2). Codes and tokens are kept as their
//! SHA-256. All in memory, all bounded: the oldest make room.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};

use super::bounded::Bounded;
use super::error::OAuthError;
use crate::base::clock::Timestamp;
use crate::base::scopes::Scopes;

/// What somebody agreed to.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    /// The client it was given to.
    pub(super) client: Arc<str>,
    /// Whom its tokens speak for: a person, or the client itself.
    pub(super) subject: Arc<str>,
    /// The person's login, if it is a person's grant.
    pub(super) login: Option<LoginFacts>,
    /// What its tokens may be used for, at most.
    pub(super) scopes: Scopes,
    /// Where its tokens may be used (RFC 8707), at least one.
    pub(super) audience: Vec<String>,
}

/// When and in which browser session a person logged in.
#[derive(Clone, Debug)]
pub(super) struct LoginFacts {
    /// The session's public name: the `sid` claim.
    pub(super) sid: Arc<str>,
    /// The `auth_time` claim.
    pub(super) at: Timestamp,
}

/// Names a grant.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct GrantId(u64);

/// What an authorization code is bound to, besides its grant's client, person and scopes.
#[derive(Clone, Debug)]
pub(super) struct Code {
    /// The redirect URI it was sent to.
    pub(super) redirect_uri: String,
    /// The PKCE challenge, S256 (RFC 7636).
    pub(super) challenge: String,
    /// The ID token's `nonce`.
    pub(super) nonce: Option<String>,
    /// The moment it ends.
    pub(super) expires: Timestamp,
}

/// An access token's facts.
#[derive(Clone, Debug)]
pub(super) struct Access {
    pub(super) jti: String,
    pub(super) scopes: Scopes,
    pub(super) audience: Vec<String>,
    pub(super) issued: Timestamp,
    pub(super) expires: Timestamp,
}

/// A refresh token's facts.
#[derive(Clone, Debug)]
pub(super) struct Refresh {
    pub(super) issued: Timestamp,
    pub(super) expires: Timestamp,
}

/// A token that is good now, with the grant it speaks for.
#[derive(Clone, Debug)]
pub(super) enum Living {
    Access(Grant, Access),
    Refresh(Grant, Refresh),
}

/// All grants and their families.
#[derive(Debug)]
pub(super) struct Store(Mutex<State>);

#[derive(Debug)]
struct State {
    last: u64,
    grants: Bounded<GrantId, Grant>,
    codes: Bounded<Digest, Entry<Code>>,
    access: Bounded<Digest, Entry<Access>>,
    refresh: Bounded<Digest, Entry<Refresh>>,
    /// Names of client assertions that were used.
    assertions: Bounded<Digest, ()>,
}

#[derive(Debug)]
struct Entry<T> {
    grant: GrantId,
    /// Redeemed or revoked; kept, so that a second use is recognized.
    spent: bool,
    facts: T,
}

impl Store {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State {
            last: 0,
            grants: Bounded::new(MOST),
            codes: Bounded::new(MOST),
            access: Bounded::new(MOST),
            refresh: Bounded::new(MOST),
            assertions: Bounded::new(MOST),
        }))
    }

    /// Keeps a new grant.
    pub(super) fn open(&self, grant: Grant) -> GrantId {
        let mut state = self.state();
        state.last += 1;
        let id = GrantId(state.last);
        state.grants.insert(id, grant);
        id
    }

    pub(super) fn add_code(&self, code: &str, grant: GrantId, facts: Code) {
        self.state().codes.insert(digest_of(code), Entry { grant, spent: false, facts });
    }

    pub(super) fn add_access(&self, token: &str, grant: GrantId, facts: Access) {
        self.state().access.insert(digest_of(token), Entry { grant, spent: false, facts });
    }

    pub(super) fn add_refresh(&self, token: &str, grant: GrantId, facts: Refresh) {
        self.state().refresh.insert(digest_of(token), Entry { grant, spent: false, facts });
    }

    /// Spends a code if `check` finds nothing wrong with whoever brings it.
    ///
    /// A code that was spent before ends its grant, and with it everything the code gave.
    pub(super) fn redeem_code(
        &self,
        code: &str,
        now: Timestamp,
        check: impl FnOnce(&Grant, &Code) -> Result<(), OAuthError>,
    ) -> Result<(GrantId, Grant, Code), OAuthError> {
        let mut state = self.state();
        let State { grants, codes, .. } = &mut *state;
        let entry = codes.find(&digest_of(code)).ok_or(OAuthError::CODE)?;
        let grant = grants.find(&entry.grant).ok_or(OAuthError::CODE)?.clone();
        check(&grant, &entry.facts)?;
        if core::mem::replace(&mut entry.spent, true) {
            grants.remove(&entry.grant);
            return Err(OAuthError::CODE);
        }
        if entry.facts.expires <= now {
            return Err(OAuthError::CODE);
        }
        Ok((entry.grant, grant, entry.facts.clone()))
    }

    /// Uses a refresh token if `check` finds nothing wrong; spends it if `check` says so.
    ///
    /// A token that was spent before ends its grant: either the one who used it
    /// first or the one who uses it now is a thief.
    pub(super) fn redeem_refresh(
        &self,
        token: &str,
        now: Timestamp,
        check: impl FnOnce(&Grant) -> Result<Spend, OAuthError>,
    ) -> Result<(GrantId, Grant), OAuthError> {
        let mut state = self.state();
        let State { grants, refresh, .. } = &mut *state;
        let entry = refresh.find(&digest_of(token)).ok_or(OAuthError::REFRESH)?;
        let grant = grants.find(&entry.grant).ok_or(OAuthError::REFRESH)?.clone();
        let spend = check(&grant)?;
        if entry.spent {
            grants.remove(&entry.grant);
            return Err(OAuthError::REFRESH);
        }
        if entry.facts.expires <= now {
            return Err(OAuthError::REFRESH);
        }
        entry.spent = matches!(spend, Spend::Yes);
        Ok((entry.grant, grant))
    }

    /// The token's facts, if it is good now.
    pub(super) fn living(&self, token: &str, now: Timestamp) -> Option<Living> {
        let digest = digest_of(token);
        let mut state = self.state();
        let State { grants, access, refresh, .. } = &mut *state;
        if let Some(entry) = access.find(&digest) {
            let grant = grants.find(&entry.grant)?.clone();
            let good = !entry.spent && now < entry.facts.expires;
            return good.then(|| Living::Access(grant, entry.facts.clone()));
        }
        let entry = refresh.find(&digest)?;
        let grant = grants.find(&entry.grant)?.clone();
        let good = !entry.spent && now < entry.facts.expires;
        good.then(|| Living::Refresh(grant, entry.facts.clone()))
    }

    /// Ends a token of `client`: an access token alone, a refresh token with its whole family.
    ///
    /// A token that nobody knows is as good as revoked (RFC 7009 §2.2).
    pub(super) fn revoke(&self, token: &str, client: &str) -> Result<(), OAuthError> {
        let digest = digest_of(token);
        let mut state = self.state();
        let State { grants, access, refresh, .. } = &mut *state;
        let access = access.find(&digest);
        let Some(id) =
            access.as_ref().map(|e| e.grant).or_else(|| refresh.find(&digest).map(|e| e.grant))
        else {
            return Ok(());
        };
        match grants.find(&id) {
            Some(grant) if *grant.client != *client => return Err(OAuthError::NOT_YOURS),
            _ => {}
        }
        match access {
            Some(entry) => entry.spent = true,
            None => drop(grants.remove(&id)),
        }
        Ok(())
    }

    /// The clients that were granted something in the login of this name, and for whom.
    pub(super) fn used_in(&self, sid: &str) -> HashMap<Arc<str>, Arc<str>> {
        let state = self.state();
        let in_it = |grant: &&Grant| grant.login.as_ref().is_some_and(|login| *login.sid == *sid);
        let grants = state.grants.values().filter(in_it);
        grants.map(|grant| (Arc::clone(&grant.client), Arc::clone(&grant.subject))).collect()
    }

    /// Ends every grant that `ends` picks.
    pub(super) fn end(&self, ends: impl Fn(&Grant) -> bool) {
        self.state().grants.retain(|grant| !ends(grant));
    }

    /// Whether a client assertion of this name is new (RFC 7523 §3, `jti`).
    pub(super) fn first_use(&self, assertion: &str) -> bool {
        self.state().assertions.insert(digest_of(assertion), ()).is_none()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a redeemed refresh token is used up.
#[derive(Clone, Copy, Debug)]
pub(super) enum Spend {
    Yes,
    No,
}

type Digest = [u8; 32];

fn digest_of(token: &str) -> Digest {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    bytes
}

/// Entries of each kind.
const MOST: usize = 100_000;
