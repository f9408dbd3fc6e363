//! Compiles the forwarding of a route: its upstreams, with identity headers and tokens, split, mirror and fallback.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::{CompileError, Compiler, find};
use crate::config;
use crate::gateway::proxy::fallback::Fallback;
use crate::gateway::proxy::forward::Forward;
use crate::gateway::proxy::header_edits::HeaderEditor;
use crate::gateway::proxy::identity_headers::IdentityHeaders;
use crate::gateway::proxy::identity_token;
use crate::gateway::proxy::identity_token::IdentityTokens;
use crate::gateway::proxy::mirror::Mirror;
use crate::gateway::proxy::rewrite::TargetRewriter;
use crate::gateway::proxy::route_upstream::RouteUpstream;
use crate::gateway::proxy::split::Split;
use crate::gateway::proxy::stale_responses::StaleResponses;
use crate::gateway::request::request_body::BodyLimits;
use crate::gateway::response::static_response::StaticResponse;
use crate::gateway::routing::own_paths::wants_identity_tokens;

impl Compiler<'_> {
    /// Returns the upstream called `name` as `route` uses it.
    fn receiver(
        &self,
        route: &config::Route,
        name: &Arc<str>,
    ) -> Result<RouteUpstream, CompileError> {
        let upstream = find(&self.upstreams, "upstream", name)?;
        Ok(RouteUpstream { upstream, identity_tokens: self.identity_tokens(route, name) })
    }

    /// Creates the signer of identity tokens for each authentication method of a route to `upstream`.
    fn identity_tokens(
        &self,
        route: &config::Route,
        upstream: &Arc<str>,
    ) -> Box<[Option<IdentityTokens>]> {
        let Some(keys) = self.identity_keys.as_ref().filter(|_| wants_identity_tokens(route))
        else {
            return Box::default();
        };
        let issuer: Arc<str> = match &self.config.server.public_url {
            Some(url) => url.origin().ascii_serialization().into(),
            None => identity_token::UNNAMED.into(),
        };
        let tokens = |auth_method: &config::AuthMethod| {
            let (keys, issuer) = (Arc::clone(keys), Arc::clone(&issuer));
            auth_method.identity_token.then(|| {
                IdentityTokens::new(
                    keys,
                    issuer,
                    Arc::clone(upstream),
                    self.leeway(auth_method),
                    &auth_method.identity_headers,
                )
            })
        };
        route.auth.methods().iter().map(tokens).collect()
    }

    fn fallback(
        &self,
        route: &config::Route,
        keys: &config::forwarding::Fallback,
    ) -> Result<Fallback, CompileError> {
        let upstream = keys.upstream.as_ref();
        let upstream = upstream.map(|name| self.receiver(route, name)).transpose()?;
        let stale = keys.stale.map(|(age, bytes)| {
            let key = (Arc::clone(&route.id), age, bytes);
            let make = || StaleResponses::new(age, bytes);
            self.retained.stale_responses.get_or_insert_with(key, make)
        });
        let respond = keys.respond.as_ref().map(StaticResponse::from);
        Ok(Fallback { upstream, stale, respond })
    }

    fn split(
        &self,
        route: &config::Route,
        keys: &config::forwarding::Split,
    ) -> Result<Split, CompileError> {
        let share = |(name, share): &(Arc<str>, u32)| Ok((self.receiver(route, name)?, *share));
        let shares = keys.shares.iter().map(share).collect::<Result<_, CompileError>>()?;
        Ok(Split { shares, by: keys.by.clone() })
    }

    fn mirror(
        &self,
        route: &config::Route,
        keys: &config::forwarding::Mirror,
    ) -> Result<Mirror, CompileError> {
        Ok(Mirror {
            receiver: self.receiver(route, &keys.upstream)?,
            share: keys.share,
            methods: keys.methods.clone().into(),
            permits: Arc::new(Semaphore::new(keys.max_in_flight as usize)),
        })
    }

    pub(super) fn forward(
        &self,
        route: &config::Route,
        name: &Arc<str>,
    ) -> Result<Forward, CompileError> {
        let server = &self.config.server;
        let request = HeaderEditor::from(route.request_headers.clone());
        let methods = route.auth.methods();
        let identity = methods
            .iter()
            .map(|auth_method| IdentityHeaders::new(&auth_method.identity_headers))
            .collect();
        Ok(Forward {
            receiver: self.receiver(route, name)?,
            own_timeout: route.timeout,
            buffer_request: route.buffer_request,
            fallback: route.fallback.as_ref().map(|keys| self.fallback(route, keys)).transpose()?,
            split: route.split.as_ref().map(|keys| self.split(route, keys)).transpose()?,
            mirror: route.mirror.as_ref().map(|keys| self.mirror(route, keys)).transpose()?,
            retries: route.retries.clone(),
            bounds: BodyLimits {
                size: route.max_body_size,
                rate: route.min_body_rate,
                ..BodyLimits::of(server)
            },
            target: TargetRewriter::new(route.rewrite.clone(), route.paths.clone()),
            reserved_trailers: self.reserved_trailers.with(request.decided()),
            request,
            response: route.response_headers.clone().into(),
            identity,
            leeways: methods.iter().map(|auth_method| self.leeway(auth_method)).collect(),
            websocket: route.websocket,
            close_on_expiry: route.close_on_expiry,
        })
    }
}
