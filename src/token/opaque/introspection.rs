//! Reference tokens: what their issuer says about them, shared and kept.
//!
//! Fifty requests with one fresh token are one question. What is active is
//! known until its `exp`, or for as long as the operator lets a revocation go
//! unseen; what is not active is remembered for a moment, elsewhere, so that a
//! stream of bad tokens evicts no good one. A failure to ask is never kept; a
//! signed answer that is no good is, for a second and for its token alone.

use core::fmt;
use core::time::Duration;
use std::sync::Arc;

use http::HeaderValue;
use serde_json::{Map, Value};
use tokio::runtime::Handle;

use super::introspection_cache::{CachedResponse, InactiveTokens, IntrospectionCache};
use super::signed_response;
use crate::base::clock::{Clock, Timestamp};
use crate::base::secret::Secret;
use crate::base::single_flight::{LeaderFailed, Role, SingleFlight};
use crate::issuer::{AcceptedFormat, IntrospectionResponse, Issuer, OnUnavailable};
use crate::observe::metrics::{CacheResult, Metrics, TokenCache, TokenCacheMetrics};
use crate::token::TokenError;
use crate::token::jwt::claims::Claims;
use crate::token::jwt::verify::Unverified;
use crate::token::principal::{Principal, TokenFormat};
use crate::token::revocation::list::{RevocationList, RevocationListener};
use crate::token::token_digests::{TokenDigests, token_digest};
use crate::token::validation::ValidationRules;

/// What an issuer says about its reference tokens.
pub(crate) struct IntrospectionVerifier {
    inner: Arc<Inner>,
    flights: SingleFlight<CacheKey, Result<CachedResponse, TokenError>>,
}

/// What a question needs while it is under way.
struct Inner {
    issuer: Arc<Issuer>,
    rules: Arc<ValidationRules>,
    clock: Clock,
    revocations: RevocationList,
    metrics: Arc<TokenCacheMetrics>,
    kept: Arc<IntrospectionCache>,
}

/// A token, by the digest of the whole of it, and why it is asked about.
///
/// Names a verdict in the memory and a call under way, both of one issuer and one set of rules: all
/// three grant, so that nothing of the token may be left out.
pub(crate) type CacheKey = ([u8; 32], Purpose);

/// Why an issuer is asked about a token.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Purpose {
    /// To learn whom it speaks for.
    Meaning(AcceptedFormat),
    /// It is a signed token, verified already: only to learn whether it still is active.
    Revocation,
}

impl Purpose {
    /// Whatever may have been asked about one token.
    pub(crate) const ALL: [Self; 4] = [
        Self::Meaning(AcceptedFormat::Json),
        Self::Meaning(AcceptedFormat::Jwt),
        Self::Meaning(AcceptedFormat::SignedResponse),
        Self::Revocation,
    ];

    const fn accept(self) -> AcceptedFormat {
        match self {
            Self::Meaning(accept) => accept,
            Self::Revocation => AcceptedFormat::Json,
        }
    }
}

impl IntrospectionVerifier {
    pub(crate) fn new(
        issuer: Arc<Issuer>,
        rules: Arc<ValidationRules>,
        clock: Clock,
        revocations: RevocationList,
        metrics: &Metrics,
        control: Handle,
    ) -> Self {
        let metrics = metrics.token_cache(TokenCache::Introspection);
        let most = issuer.settings().introspection.max_entries;
        let kept = Arc::new(IntrospectionCache::new(most, metrics.entries()));
        let inner = Inner { issuer, rules, clock, revocations, metrics, kept };
        Self { inner: Arc::new(inner), flights: SingleFlight::new(control) }
    }

    /// What forgets on a revocation.
    pub(crate) fn kept(&self) -> Arc<dyn RevocationListener> {
        Arc::clone(&self.inner.kept) as _
    }

    /// What is known about a token, if it is known and no older than `max_staleness`.
    pub(crate) fn find(
        &self,
        question: &CacheKey,
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Option<Result<Arc<Principal>, TokenError>> {
        let inner = &self.inner;
        let found = match inner.kept.active(question) {
            Some(known) if known.is_fresh(now) && known.is_within(max_staleness, now) => {
                Ok(known.principal)
            }
            _ => Err(inner.kept.inactive(question, now, max_staleness)?),
        };
        inner.metrics.looked_up(CacheResult::Hit);
        Some(found)
    }

    /// Who `token` speaks for, by asking its issuer.
    ///
    /// An answer that somebody else is waiting for already will do, also where
    /// `max_staleness` is zero: it is no older than one call.
    pub(crate) async fn ask(
        &self,
        token: &str,
        question: CacheKey,
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Result<Arc<Principal>, TokenError> {
        let inner = &self.inner;
        let call = || {
            let (inner, token) = (Arc::clone(inner), Secret::from(token));
            async move { inner.ask(&token, question).await }
        };
        let answer = match self.flights.run(question, call).await {
            Ok((answer, joined)) => {
                inner.metrics.looked_up(match joined {
                    Role::Leader => CacheResult::Miss,
                    Role::Shared => CacheResult::Shared,
                });
                answer
            }
            Err(LeaderFailed) => Err(TokenError::Unavailable { retry_after: 1 }),
        };
        match answer {
            Ok(known) => Ok(known.principal),
            Err(error @ TokenError::Unavailable { .. }) => match inner.kept.active(&question) {
                Some(known)
                    if known.may_serve_stale(now) && known.is_within(max_staleness, now) =>
                {
                    inner.metrics.looked_up(CacheResult::Stale);
                    Ok(known.principal)
                }
                _ => Err(error),
            },
            Err(error) => Err(error),
        }
    }
}

impl Inner {
    async fn ask(
        &self,
        token: &Secret<String>,
        question: CacheKey,
    ) -> Result<CachedResponse, TokenError> {
        let asked = self.clock.now();
        let verdict = self.judge(token, question, asked).await;
        let now = self.clock.now();
        match verdict {
            Ok(known) => {
                self.kept.keep(question, known.clone(), now);
                if self.revocations.is_revoked(&known.principal) {
                    self.kept.drop_token(&question.0);
                    return Err(TokenError::Revoked);
                }
                Ok(known)
            }
            Err(error @ TokenError::Unavailable { .. }) => Err(error),
            Err(error) => {
                self.kept.drop_token(&question.0);
                let lives = self.issuer.settings().introspection.negative_cache;
                self.kept.refuse(
                    question,
                    InactiveTokens { error, asked, until: now.plus(lives), lives },
                );
                Err(error)
            }
        }
    }

    async fn judge(
        &self,
        token: &Secret<String>,
        question: CacheKey,
        asked: Timestamp,
    ) -> Result<CachedResponse, TokenError> {
        let purpose = question.1;
        let names = TokenDigests::of_reference(token.expose());
        let accept = purpose.accept();
        let (claims, signed) = match (self.issuer.introspect(token, accept).await?, accept) {
            (IntrospectionResponse::Inactive, _) => return Err(TokenError::Inactive),
            (IntrospectionResponse::Active(claims), AcceptedFormat::Json) => (claims, None),
            (IntrospectionResponse::Signed(text), AcceptedFormat::SignedResponse) => {
                let answer =
                    signed_response::verify(&self.issuer, &self.rules, text.expose(), asked).await;
                let answer = answer.map_err(|error| self.was_unusable(question, asked, error))?;
                (answer, Some(self.authorization(&text)?))
            }
            (IntrospectionResponse::Signed(text), AcceptedFormat::Jwt) => {
                let principal = self.phantom(text, names, asked).await;
                let principal =
                    principal.map_err(|error| self.was_unusable(question, asked, error))?;
                return Ok(self.known(principal, asked));
            }
            (IntrospectionResponse::Active(_), _)
            | (IntrospectionResponse::Signed(_), AcceptedFormat::Json) => {
                tracing::error!(issuer = %self.issuer.name(), "The introspection endpoint does not answer with a signed token.");
                let error = TokenError::Unavailable { retry_after: 1 };
                return Err(self.was_unusable(question, asked, error));
            }
        };
        let principal = self.principal(claims, names, purpose, asked)?;
        Ok(self.known(Principal { signed, ..principal }, asked))
    }

    /// Remembers for the token of `question` that a signed answer about it was no good, unless what is known of it
    /// may serve on: else each request with it would be a question.
    fn was_unusable(&self, question: CacheKey, asked: Timestamp, error: TokenError) -> TokenError {
        let now = self.clock.now();
        let may_serve = self.kept.active(&question).is_some_and(|known| known.may_serve_stale(now));
        if matches!(error, TokenError::Unavailable { .. }) && !may_serve {
            let refused = InactiveTokens {
                error,
                asked,
                until: now.plus(UNUSABLE_RETENTION),
                lives: UNUSABLE_RETENTION,
            };
            self.kept.refuse(question, refused);
        }
        error
    }

    fn principal(
        &self,
        claims: Map<String, Value>,
        names: TokenDigests,
        purpose: Purpose,
        now: Timestamp,
    ) -> Result<Principal, TokenError> {
        let settings = self.issuer.settings();
        let claims = Claims::read(claims)?;
        // A token that was verified by its signature has shown audience and type already.
        if purpose != Purpose::Revocation {
            let lenient = settings.introspection.accept_without_audience;
            claims.check_answer(&settings.issuer, &self.rules, lenient, now)?;
        }
        let name = Arc::clone(self.issuer.name());
        claims.into_principal(TokenFormat::Reference, name, names, &self.rules)
    }

    /// A signed token in place of the reference token: verified like any other,
    /// and kept to be sent to services.
    async fn phantom(
        &self,
        text: Secret<String>,
        names: TokenDigests,
        now: Timestamp,
    ) -> Result<Principal, TokenError> {
        let verified = match Unverified::read(text.expose()) {
            Ok(token) => token.verify(&self.issuer, &self.rules, now).await,
            Err(error) => Err(error),
        };
        let (principal, _) =
            verified.map_err(|error| signed_response::attribute_error(&self.issuer, error))?;
        let signed = Some(self.authorization(&text)?);
        Ok(Principal {
            form: TokenFormat::Reference,
            digest: names.whole,
            unsigned_digest: names.unsigned,
            signed,
            ..principal
        })
    }

    /// The field in which a signed token goes to services.
    fn authorization(&self, token: &Secret<String>) -> Result<HeaderValue, TokenError> {
        let field = HeaderValue::try_from(format!("Bearer {}", token.expose()));
        let mut field = field
            .map_err(|_| signed_response::attribute_error(&self.issuer, TokenError::Malformed))?;
        field.set_sensitive(true);
        Ok(field)
    }

    fn known(&self, principal: Principal, asked: Timestamp) -> CachedResponse {
        let settings = self.issuer.settings();
        let ends = principal.expires;
        let fresh_until = asked.plus(settings.introspection.cache).min(ends);
        let stale_until = match settings.on_unavailable {
            OnUnavailable::Deny => fresh_until,
            OnUnavailable::Stale(longer) => fresh_until.plus(longer).min(ends),
        };
        CachedResponse { principal: Arc::new(principal), asked, fresh_until, stale_until }
    }
}

/// How long a token is not asked about again whose signed answer was no good.
const UNUSABLE_RETENTION: Duration = Duration::from_secs(1);

/// What a token is asked about under.
pub(crate) fn question(token: &str, purpose: Purpose) -> CacheKey {
    (token_digest(token), purpose)
}

impl fmt::Debug for IntrospectionVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").field("issuer", self.inner.issuer.name()).finish_non_exhaustive()
    }
}
