//! The issuer says that somebody has logged out there (OpenID Connect
//! Back-Channel Logout 1.0): the person's browser has no part in it.

use core::fmt;
use core::time::Duration;
use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use serde_json::json;
use url::form_urlencoded;

use super::Session;
use super::answer::{answer, json};
use super::origin::only;
use crate::base::body::Body;
use crate::base::secret::Secret;
use crate::token::openid::{Logout, MOST_AGE};
use crate::token::{TokenError, What};

impl Session {
    /// Heeds the logout token in `request`. When this answers, what it names has ended everywhere.
    pub(super) async fn be_told(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let refused = match self.heed(&head, body).await {
            Ok(()) => return answer(StatusCode::OK, Body::empty()),
            Err(refused) => refused,
        };
        let session = &*self.settings.name;
        match &refused {
            // Whatever strangers send.
            Refused::Form | Refused::Token(TokenError::Malformed) => {}
            reason => tracing::warn!(session, %reason, "A logout token was refused."),
        }
        // One status for whatever was wrong (§2.8 there).
        let told = json!({ "error": refused.code(), "error_description": refused.to_string() });
        json(StatusCode::BAD_REQUEST, &told)
    }

    async fn heed(&self, head: &Parts, body: Body) -> Result<(), Refused> {
        let token = read(head, body).await.ok_or(Refused::Form)?;
        let told = self.told.check_logout(&self.issuer, token.expose(), self.clock.now());
        let Logout { what, id } = told.await?;
        if !self.memory.seen.is_new(id) {
            return Err(Refused::Replayed);
        }
        let by = if matches!(what, What::Session(_)) { "sid" } else { "sub" };
        let ended = self.memory.revoke(what);
        let session = &*self.settings.name;
        tracing::info!(session, by, ended, "The issuer told of a logout.");
        Ok(())
    }
}

/// Why a logout is not heeded.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("send logout_token, once, in a form")]
    Form,
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the token has been heeded before")]
    Replayed,
}

impl Refused {
    const fn code(&self) -> &'static str {
        match self {
            Self::Token(TokenError::Unavailable { .. }) => "temporarily_unavailable",
            Self::Form | Self::Token(_) | Self::Replayed => "invalid_request",
        }
    }
}

/// The one `logout_token` of a form; other fields are none of ours (§2.5 there).
async fn read(head: &Parts, body: Body) -> Option<Secret<String>> {
    let kind = only(&head.headers, &CONTENT_TYPE).ok().flatten()?.split(';').next()?.trim();
    if !kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return None;
    }
    let body = body.read(MAX_BODY).await.ok()?;
    let mut tokens = form_urlencoded::parse(&body)
        .filter_map(|(name, value)| (name == "logout_token").then_some(value));
    let token = tokens.next()?.into_owned();
    tokens.next().is_none().then(|| token.into())
}

/// Logout tokens that have been heeded, as long as they could come again.
pub(super) struct LogoutTokens(Cache<Arc<str>, ()>);

impl LogoutTokens {
    pub(super) fn new() -> Self {
        let cache = Cache::builder()
            .max_capacity(MOST_REMEMBERED)
            // A token that is not remembered could be heeded twice: the newest must be admitted.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(REMEMBERED);
        Self(cache.build())
    }

    /// Whether this is the first token of that name.
    fn is_new(&self, id: Arc<str>) -> bool {
        self.0.entry(id).or_insert(()).is_fresh()
    }
}

impl fmt::Debug for LogoutTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogoutTokens").field(&self.0.entry_count()).finish()
    }
}

const MAX_BODY: usize = 32 * 1024;
const MOST_REMEMBERED: u64 = if cfg!(test) { 1_000 } else { 100_000 };
/// Longer than one may be old, clocks that differ as far as can be configured included.
const REMEMBERED: Duration = MOST_AGE.saturating_add(Duration::from_secs(20 * 60));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_memory_of_logout_tokens_remembers_the_newest() {
        let seen = LogoutTokens::new();
        let name = |number: u64| Arc::from(number.to_string());
        for number in 0..MOST_REMEMBERED {
            assert!(seen.is_new(name(number)));
        }
        // Those that come again and again are no reason to forget others.
        for number in (0..MOST_REMEMBERED).chain(0..MOST_REMEMBERED) {
            seen.is_new(name(number));
        }
        seen.0.run_pending_tasks();

        for number in MOST_REMEMBERED..MOST_REMEMBERED + 500 {
            seen.is_new(name(number));
            seen.0.run_pending_tasks();
            assert!(!seen.is_new(name(number)), "{number}");
        }
    }
}
