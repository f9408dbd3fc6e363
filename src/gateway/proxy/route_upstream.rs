//! An upstream of one route (its own, or that of `split`, `fallback` or `mirror`), with the signers of identity tokens
//! for it.

use std::sync::Arc;

use http::HeaderValue;
use http::request::Parts;

use super::identity_token::{IDENTITY_TOKEN, IdentityTokens};
use crate::base::clock::Timestamp;
use crate::gateway::policy::authorize::Permit;
use crate::issuer::keys::signing_key::SigningFailed;
use crate::upstream::{OutgoingRequest, Upstream};

/// An upstream that may receive a route's requests: its own, that of a split, of the fallback or of the mirror.
#[derive(Debug)]
pub(crate) struct RouteUpstream {
    /// The upstream.
    pub upstream: Arc<Upstream>,
    /// The signers of identity tokens for it, by authentication method; `None` where there is none.
    pub identity_tokens: Box<[Option<IdentityTokens>]>,
}

impl RouteUpstream {
    /// Returns the identity token of the caller for this upstream, if the authentication method has one.
    ///
    /// # Errors
    ///
    /// [`SigningFailed`], which is logged; the upstream is not to receive the request.
    pub(crate) fn identity_token(
        &self,
        permit: &Permit,
        now: Timestamp,
    ) -> Result<Option<HeaderValue>, SigningFailed> {
        let tokens = permit
            .auth_method
            .and_then(|auth_method| self.identity_tokens.get(auth_method)?.as_ref());
        let (Some(tokens), Some(principal)) = (tokens, &permit.principal) else { return Ok(None) };
        let token = tokens.field(principal, now);
        token.map(Some).inspect_err(|error| {
            let upstream = &*self.upstream.settings().name;
            tracing::error!(upstream, %error, "Could not sign an identity token; the upstream does not receive the request.");
        })
    }

    /// Returns the head of a request that was made for another upstream, with its further fields, and the identity token
    /// for this one.
    ///
    /// # Errors
    ///
    /// As for [`RouteUpstream::identity_token`].
    pub(crate) fn own_head(
        &self,
        request: &OutgoingRequest<'_>,
        permit: &Permit,
        now: Timestamp,
    ) -> Result<Parts, SigningFailed> {
        let token = self.identity_token(permit, now)?;
        let mut head = request.head.clone();
        // All but the deadline, which counts down.
        request.fields.clone().merge_into(&mut head.headers);
        if let Some(token) = token {
            head.headers.insert(&IDENTITY_TOKEN, token);
        }
        Ok(head)
    }
}
