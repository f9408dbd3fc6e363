//! The grants, and the codes and tokens issued for them.
//!
//! Codes, access tokens and refresh tokens belong to a *grant* of a user or a
//! client. Ending the grant invalidates them all, which is what the reuse of a
//! code or of a rotated refresh token does (RFC 6749 §10.5, RFC 9700 §4.14.2).
//! Codes and tokens are stored as SHA-256 digests, in memory, up to a bound:
//! the oldest entry is evicted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use aws_lc_rs::digest::{SHA256, digest};

use super::bounded_map::BoundedMap;
use super::error::OAuthError;
use crate::base::clock::Timestamp;
use crate::base::lock::IgnorePoison;
use crate::base::scopes::Scopes;

/// The rights that a user granted to a client, or that a client has for itself.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    /// The client that received it.
    pub(super) client: Arc<str>,
    /// The `sub` of its tokens: a user, or the client itself.
    pub(super) subject: Arc<str>,
    /// The login it was granted in; `None` for a client's own grant.
    pub(super) login: Option<LoginFacts>,
    /// The scopes of its tokens, at most.
    pub(super) scopes: Scopes,
    /// The resources of its tokens (RFC 8707), at least one.
    pub(super) audience: Vec<String>,
}

/// The time and the browser session of a login.
#[derive(Clone, Debug)]
pub(super) struct LoginFacts {
    /// The `sid` claim.
    pub(super) sid: Arc<str>,
    /// The `auth_time` claim.
    pub(super) at: Timestamp,
}

/// The number of a grant.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct GrantId(u64);

/// The bindings of an authorization code, besides those of its grant.
#[derive(Clone, Debug)]
pub(super) struct AuthorizationCode {
    /// The redirect URI that received it.
    pub(super) redirect_uri: String,
    /// The PKCE challenge, S256 (RFC 7636).
    pub(super) challenge: String,
    /// The ID token's `nonce`.
    pub(super) nonce: Option<String>,
    /// The time of expiry.
    pub(super) expires: Timestamp,
}

/// An issued access token.
#[derive(Clone, Debug)]
pub(super) struct AccessToken {
    pub(super) jti: String,
    pub(super) scopes: Scopes,
    pub(super) audience: Vec<String>,
    pub(super) issued: Timestamp,
    pub(super) expires: Timestamp,
}

/// An issued refresh token.
#[derive(Clone, Debug)]
pub(super) struct RefreshToken {
    pub(super) issued: Timestamp,
    pub(super) expires: Timestamp,
}

/// A token that is active now, and its grant.
#[derive(Clone, Debug)]
pub(super) enum TokenStatus {
    Access(Grant, AccessToken),
    Refresh(Grant, RefreshToken),
}

/// All grants, codes and tokens.
#[derive(Debug)]
pub(super) struct Store(Mutex<State>);

#[derive(Debug)]
struct State {
    last_grant: u64,
    grants: BoundedMap<GrantId, Grant>,
    codes: BoundedMap<Digest, Entry<AuthorizationCode>>,
    access: BoundedMap<Digest, Entry<AccessToken>>,
    refresh: BoundedMap<Digest, Entry<RefreshToken>>,
    /// The `jti` of used client assertions.
    assertions: BoundedMap<Digest, ()>,
}

#[derive(Debug)]
struct Entry<T> {
    grant: GrantId,
    /// Redeemed or revoked; kept, so that reuse is detected.
    used: bool,
    facts: T,
}

impl Store {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State {
            last_grant: 0,
            grants: BoundedMap::new(MAX_ENTRIES),
            codes: BoundedMap::new(MAX_ENTRIES),
            access: BoundedMap::new(MAX_ENTRIES),
            refresh: BoundedMap::new(MAX_ENTRIES),
            assertions: BoundedMap::new(MAX_ENTRIES),
        }))
    }

    /// Stores a new grant.
    pub(super) fn add_grant(&self, grant: Grant) -> GrantId {
        let mut state = self.state();
        state.last_grant += 1;
        let id = GrantId(state.last_grant);
        state.grants.insert(id, grant);
        id
    }

    pub(super) fn add_code(&self, code: &str, grant: GrantId, facts: AuthorizationCode) {
        self.state().codes.insert(digest_of(code), Entry { grant, used: false, facts });
    }

    pub(super) fn add_access(&self, token: &str, grant: GrantId, facts: AccessToken) {
        self.state().access.insert(digest_of(token), Entry { grant, used: false, facts });
    }

    pub(super) fn add_refresh(&self, token: &str, grant: GrantId, facts: RefreshToken) {
        self.state().refresh.insert(digest_of(token), Entry { grant, used: false, facts });
    }

    /// Redeems a code if `check` accepts its grant and bindings.
    ///
    /// The reuse of a code ends its grant, and with it the tokens issued for the code.
    pub(super) fn redeem_code(
        &self,
        code: &str,
        now: Timestamp,
        check: impl FnOnce(&Grant, &AuthorizationCode) -> Result<(), OAuthError>,
    ) -> Result<(GrantId, Grant, AuthorizationCode), OAuthError> {
        let mut state = self.state();
        let State { grants, codes, .. } = &mut *state;
        let entry = codes.get_mut(&digest_of(code)).ok_or(OAuthError::CODE)?;
        let grant = grants.get_mut(&entry.grant).ok_or(OAuthError::CODE)?.clone();
        check(&grant, &entry.facts)?;
        if core::mem::replace(&mut entry.used, true) {
            grants.remove(&entry.grant);
            return Err(OAuthError::CODE);
        }
        if entry.facts.expires <= now {
            return Err(OAuthError::CODE);
        }
        Ok((entry.grant, grant, entry.facts.clone()))
    }

    /// Redeems a refresh token if `check` accepts its grant.
    ///
    /// The reuse of a used token ends its grant: either the first or the second
    /// client that presented it has stolen it.
    pub(super) fn redeem_refresh(
        &self,
        token: &str,
        now: Timestamp,
        check: impl FnOnce(&Grant) -> Result<RedeemOutcome, OAuthError>,
    ) -> Result<(GrantId, Grant), OAuthError> {
        let mut state = self.state();
        let State { grants, refresh, .. } = &mut *state;
        let entry = refresh.get_mut(&digest_of(token)).ok_or(OAuthError::REFRESH)?;
        let grant = grants.get_mut(&entry.grant).ok_or(OAuthError::REFRESH)?.clone();
        let outcome = check(&grant)?;
        if entry.used {
            grants.remove(&entry.grant);
            return Err(OAuthError::REFRESH);
        }
        if entry.facts.expires <= now {
            return Err(OAuthError::REFRESH);
        }
        entry.used = matches!(outcome, RedeemOutcome::Used);
        Ok((entry.grant, grant))
    }

    /// Returns the token and its grant, if it is active now.
    pub(super) fn token_status(&self, token: &str, now: Timestamp) -> Option<TokenStatus> {
        let digest = digest_of(token);
        let mut state = self.state();
        let State { grants, access, refresh, .. } = &mut *state;
        if let Some(entry) = access.get_mut(&digest) {
            let grant = grants.get_mut(&entry.grant)?.clone();
            let active = !entry.used && now < entry.facts.expires;
            return active.then(|| TokenStatus::Access(grant, entry.facts.clone()));
        }
        let entry = refresh.get_mut(&digest)?;
        let grant = grants.get_mut(&entry.grant)?.clone();
        let active = !entry.used && now < entry.facts.expires;
        active.then(|| TokenStatus::Refresh(grant, entry.facts.clone()))
    }

    /// Revokes a token of `client`: an access token alone, a refresh token with its whole grant.
    ///
    /// An unknown token counts as revoked (RFC 7009 §2.2).
    pub(super) fn revoke(&self, token: &str, client: &str) -> Result<(), OAuthError> {
        let digest = digest_of(token);
        let mut state = self.state();
        let State { grants, access, refresh, .. } = &mut *state;
        let access = access.get_mut(&digest);
        let Some(id) =
            access.as_ref().map(|e| e.grant).or_else(|| refresh.get_mut(&digest).map(|e| e.grant))
        else {
            return Ok(());
        };
        match grants.get_mut(&id) {
            Some(grant) if *grant.client != *client => return Err(OAuthError::NOT_YOURS),
            _ => {}
        }
        match access {
            Some(entry) => entry.used = true,
            None => drop(grants.remove(&id)),
        }
        Ok(())
    }

    /// Returns the clients with a grant of the login `sid`, and the subject of each.
    pub(super) fn clients_of_login(&self, sid: &str) -> HashMap<Arc<str>, Arc<str>> {
        let state = self.state();
        let of_login =
            |grant: &&Grant| grant.login.as_ref().is_some_and(|login| *login.sid == *sid);
        let grants = state.grants.values().filter(of_login);
        grants.map(|grant| (Arc::clone(&grant.client), Arc::clone(&grant.subject))).collect()
    }

    /// Ends every grant for which `ends` returns true.
    pub(super) fn end_grants(&self, ends: impl Fn(&Grant) -> bool) {
        self.state().grants.retain(|grant| !ends(grant));
    }

    /// Records a client assertion; returns whether it is new (RFC 7523 §3, `jti`).
    pub(super) fn record_assertion(&self, assertion: &str) -> bool {
        self.state().assertions.insert(digest_of(assertion), ()).is_none()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().ignore_poison()
    }
}

/// The state of a refresh token after it was redeemed.
#[derive(Clone, Copy, Debug)]
pub(super) enum RedeemOutcome {
    /// A new refresh token replaces it.
    Used,
    /// The client keeps it.
    Reusable,
}

type Digest = [u8; 32];

fn digest_of(token: &str) -> Digest {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    bytes
}

/// Entries of each kind.
const MAX_ENTRIES: usize = 100_000;
