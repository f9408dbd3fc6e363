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

use super::claims::Claims;
use super::jwt::Unverified;
use super::known::{Kept, Known, Refused};
use super::names::{TokenNames, token_digest};
use super::principal::{Form, Principal};
use super::revoked::{Forget, Revocations};
use super::rules::Rules;
use super::{TokenError, response};
use crate::base::clock::{Clock, Timestamp};
use crate::base::flight::{Flight, Joined, Lost};
use crate::base::secret::Secret;
use crate::issuer::{Accept, Answer, Issuer, OnUnavailable};
use crate::observe::metrics::{CacheResult, Metrics, TokenCache, TokenCacheMetrics};

/// What an issuer says about its reference tokens.
pub(crate) struct Answers {
    inner: Arc<Inner>,
    flights: Flight<Question, Result<Known, TokenError>>,
}

/// What a question needs while it is under way.
struct Inner {
    issuer: Arc<Issuer>,
    rules: Arc<Rules>,
    clock: Clock,
    revocations: Revocations,
    metrics: Arc<TokenCacheMetrics>,
    kept: Arc<Kept>,
}

/// A token, by the digest of the whole of it, and why it is asked about.
///
/// Names a verdict in the memory and a call under way, both of one issuer and one set of rules: all
/// three grant, so that nothing of the token may be left out.
pub(crate) type Question = ([u8; 32], Purpose);

/// Why an issuer is asked about a token.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Purpose {
    /// To learn whom it speaks for.
    Meaning(Accept),
    /// It is a signed token, verified already: only to learn whether it still is active.
    Revocation,
}

impl Purpose {
    /// Whatever may have been asked about one token.
    pub(crate) const ALL: [Self; 4] = [
        Self::Meaning(Accept::Json),
        Self::Meaning(Accept::Jwt),
        Self::Meaning(Accept::SignedResponse),
        Self::Revocation,
    ];

    const fn accept(self) -> Accept {
        match self {
            Self::Meaning(accept) => accept,
            Self::Revocation => Accept::Json,
        }
    }
}

impl Answers {
    pub(crate) fn new(
        issuer: Arc<Issuer>,
        rules: Arc<Rules>,
        clock: Clock,
        revocations: Revocations,
        metrics: &Metrics,
        control: Handle,
    ) -> Self {
        let metrics = metrics.token_cache(TokenCache::Introspection);
        let most = issuer.settings().introspection.max_entries;
        let kept = Arc::new(Kept::new(most, metrics.entries()));
        let inner = Inner { issuer, rules, clock, revocations, metrics, kept };
        Self { inner: Arc::new(inner), flights: Flight::new(control) }
    }

    /// What forgets on a revocation.
    pub(crate) fn kept(&self) -> Arc<dyn Forget> {
        Arc::clone(&self.inner.kept) as _
    }

    /// What is known about a token, if it is known and no older than `max_staleness`.
    pub(crate) fn find(
        &self,
        question: &Question,
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Option<Result<Arc<Principal>, TokenError>> {
        let inner = &self.inner;
        let found = match inner.kept.active(question) {
            Some(known) if known.is_fresh(now) && known.is_within(max_staleness, now) => {
                Ok(known.principal)
            }
            _ => Err(inner.kept.refused(question, now, max_staleness)?),
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
        question: Question,
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Result<Arc<Principal>, TokenError> {
        let inner = &self.inner;
        let call = || {
            let (inner, token) = (Arc::clone(inner), Secret::from(token));
            async move { inner.ask(&token, question).await }
        };
        let answer = match self.flights.join(question, call).await {
            Ok((answer, joined)) => {
                inner.metrics.looked_up(match joined {
                    Joined::Started => CacheResult::Miss,
                    Joined::Shared => CacheResult::Shared,
                });
                answer
            }
            Err(Lost) => Err(TokenError::Unavailable { retry_after: 1 }),
        };
        match answer {
            Ok(known) => Ok(known.principal),
            Err(error @ TokenError::Unavailable { .. }) => match inner.kept.active(&question) {
                Some(known) if known.may_serve(now) && known.is_within(max_staleness, now) => {
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
    async fn ask(&self, token: &Secret<String>, question: Question) -> Result<Known, TokenError> {
        let asked = self.clock.now();
        let verdict = self.judge(token, question, asked).await;
        let now = self.clock.now();
        match verdict {
            Ok(known) => {
                self.kept.keep(question, known.clone(), now);
                if self.revocations.cover(&known.principal) {
                    self.kept.drop_token(&question.0);
                    return Err(TokenError::Revoked);
                }
                Ok(known)
            }
            Err(error @ TokenError::Unavailable { .. }) => Err(error),
            Err(error) => {
                self.kept.drop_token(&question.0);
                let lives = self.issuer.settings().introspection.negative_cache;
                self.kept.refuse(question, Refused { error, asked, until: now.plus(lives), lives });
                Err(error)
            }
        }
    }

    async fn judge(
        &self,
        token: &Secret<String>,
        question: Question,
        asked: Timestamp,
    ) -> Result<Known, TokenError> {
        let purpose = question.1;
        let names = TokenNames::of_reference(token.expose());
        let accept = purpose.accept();
        let (claims, signed) = match (self.issuer.introspect(token, accept).await?, accept) {
            (Answer::Inactive, _) => return Err(TokenError::Inactive),
            (Answer::Active(claims), Accept::Json) => (claims, None),
            (Answer::Signed(text), Accept::SignedResponse) => {
                let answer =
                    response::verify(&self.issuer, &self.rules, text.expose(), asked).await;
                let answer = answer.map_err(|error| self.answered_oddly(question, asked, error))?;
                (answer, Some(self.authorization(&text)?))
            }
            (Answer::Signed(text), Accept::Jwt) => {
                let principal = self.phantom(text, names, asked).await;
                let principal =
                    principal.map_err(|error| self.answered_oddly(question, asked, error))?;
                return Ok(self.known(principal, asked));
            }
            (Answer::Active(_), _) | (Answer::Signed(_), Accept::Json) => {
                tracing::error!(issuer = %self.issuer.name(), "The introspection endpoint does not answer with a signed token.");
                let error = TokenError::Unavailable { retry_after: 1 };
                return Err(self.answered_oddly(question, asked, error));
            }
        };
        let principal = self.principal(claims, names, purpose, asked)?;
        Ok(self.known(Principal { signed, ..principal }, asked))
    }

    /// Remembers for the token of `question` that a signed answer about it was no good, unless what is known of it
    /// may serve on: else each request with it would be a question.
    fn answered_oddly(
        &self,
        question: Question,
        asked: Timestamp,
        error: TokenError,
    ) -> TokenError {
        let now = self.clock.now();
        let may_serve = self.kept.active(&question).is_some_and(|known| known.may_serve(now));
        if matches!(error, TokenError::Unavailable { .. }) && !may_serve {
            let refused = Refused { error, asked, until: now.plus(ODD_FOR), lives: ODD_FOR };
            self.kept.refuse(question, refused);
        }
        error
    }

    fn principal(
        &self,
        claims: Map<String, Value>,
        names: TokenNames,
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
        claims.into_principal(Form::Reference, name, names, &self.rules)
    }

    /// A signed token in place of the reference token: verified like any other,
    /// and kept to be sent to services.
    async fn phantom(
        &self,
        text: Secret<String>,
        names: TokenNames,
        now: Timestamp,
    ) -> Result<Principal, TokenError> {
        let verified = match Unverified::read(text.expose()) {
            Ok(token) => token.verify(&self.issuer, &self.rules, now).await,
            Err(error) => Err(error),
        };
        let (principal, _) = verified.map_err(|error| response::blame(&self.issuer, error))?;
        let signed = Some(self.authorization(&text)?);
        Ok(Principal {
            form: Form::Reference,
            digest: names.whole,
            unsigned_digest: names.unsigned,
            signed,
            ..principal
        })
    }

    /// The field in which a signed token goes to services.
    fn authorization(&self, token: &Secret<String>) -> Result<HeaderValue, TokenError> {
        let field = HeaderValue::try_from(format!("Bearer {}", token.expose()));
        let mut field = field.map_err(|_| response::blame(&self.issuer, TokenError::Malformed))?;
        field.set_sensitive(true);
        Ok(field)
    }

    fn known(&self, principal: Principal, asked: Timestamp) -> Known {
        let settings = self.issuer.settings();
        let ends = principal.expires;
        let fresh_until = asked.plus(settings.introspection.cache).min(ends);
        let stale_until = match settings.on_unavailable {
            OnUnavailable::Deny => fresh_until,
            OnUnavailable::Stale(longer) => fresh_until.plus(longer).min(ends),
        };
        Known { principal: Arc::new(principal), asked, fresh_until, stale_until }
    }
}

/// How long a token is not asked about again whose signed answer was no good.
const ODD_FOR: Duration = Duration::from_secs(1);

/// What a token is asked about under.
pub(crate) fn question(token: &str, purpose: Purpose) -> Question {
    (token_digest(token), purpose)
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").field("issuer", self.inner.issuer.name()).finish_non_exhaustive()
    }
}
