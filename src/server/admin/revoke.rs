//! `POST /-/revoke`: revokes tokens and sessions.

use std::sync::Arc;

use axum::extract::Request;
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::content::{ContentError, read_fields};
use crate::base::clock::Timestamp;
use crate::gateway::{RetainedState, Snapshot};
use crate::token::revocation::publication::NotLasting;
use crate::token::{Revocation, RevocationTarget, unverified_expiry};

/// A revocation request: at least one target.
pub(super) struct RevokeRequest {
    targets: Vec<(RevocationField, String)>,
    /// The issuer's name in the configuration, or its `iss`.
    issuer: Option<String>,
    /// Seconds since 1970 after which the revocation may be dropped.
    until: Option<u64>,
}

/// The ways to name tokens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum RevocationField {
    Id,
    Session,
    Subject,
    Token,
}

/// The reason for refusing a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum RevokeError {
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error("unknown field: allowed are jti, sid, sub, token, iss and until")]
    Unknown,
    #[error("a value is empty, or not text")]
    Value,
    #[error("`until` is not a whole number of seconds since 1970")]
    Until,
    #[error("no target: set one or more of jti, sid, sub and token")]
    Nothing,
    #[error("no configured issuer has this name or `iss`")]
    Issuer,
    #[error("revoked until a restart only: cannot write to `server.state_dir`; try again")]
    NotKept,
}

impl RevokeError {
    pub(super) const fn status(self) -> StatusCode {
        match self {
            Self::Content(error) => error.status(),
            Self::NotKept => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

impl RevokeRequest {
    /// Reads the request, whose content the admin listener limits to 64 KiB.
    pub(super) async fn read(request: Request) -> Result<Self, RevokeError> {
        Self::parse(read_fields(request).await?)
    }

    fn parse(fields: Map<String, Value>) -> Result<Self, RevokeError> {
        let mut request = Self { targets: Vec::new(), issuer: None, until: None };
        for (name, value) in fields {
            if name == "until" {
                let seconds = value.as_u64().or_else(|| value.as_str()?.parse().ok());
                request.until = Some(seconds.ok_or(RevokeError::Until)?);
                continue;
            }
            let text = match value {
                Value::String(text) if !text.is_empty() => text,
                _ => return Err(RevokeError::Value),
            };
            match &*name {
                "iss" | "issuer" if request.issuer.is_some() => {
                    return Err(RevokeError::Content(ContentError::Twice));
                }
                "iss" | "issuer" => request.issuer = Some(text),
                name => {
                    let field = RevocationField::ALL.into_iter().find(|field| field.name() == name);
                    request.targets.push((field.ok_or(RevokeError::Unknown)?, text));
                }
            }
        }
        if request.targets.is_empty() { Err(RevokeError::Nothing) } else { Ok(request) }
    }

    /// Revokes the targets, here and on other instances, persistently; returns what was done.
    pub(super) async fn run(
        self,
        snapshot: &Snapshot,
        retained: &RetainedState,
    ) -> Result<Value, RevokeError> {
        let issuers = match &self.issuer {
            None => vec![None],
            Some(name) => snapshot.issuers_named(name).into_iter().map(Some).collect(),
        };
        if issuers.is_empty() {
            return Err(RevokeError::Issuer);
        }
        let until = self.until.map(Timestamp::from_secs);
        let mut forgotten = 0;
        for (field, value) in &self.targets {
            let mut targets = field.targets(value);
            let (mut until, mut issuers) = (until, &issuers[..]);
            if *field == RevocationField::Token {
                let inner = snapshot.open_token(value);
                let tokens = || [&**value].into_iter().chain(inner.iter().map(|it| &**it.expose()));
                // Encrypted again, or bare, the token inside is the same.
                targets = tokens().flat_map(RevocationTarget::token).collect();
                until = until.or_else(|| tokens().find_map(unverified_expiry));
                // A token is one token, whichever issuer's it is.
                issuers = &[None];
            }
            for what in targets {
                for issuer in issuers {
                    let revocation = Revocation { issuer: issuer.clone(), what: what.clone() };
                    forgotten += retained.revocations.revoke(revocation, until);
                }
            }
        }
        let by: Vec<_> = self.targets.iter().map(|(field, _)| field.name()).collect();
        let issuers: Vec<_> = issuers.iter().flatten().map(|issuer| &**issuer).collect();
        // Only the fields, not their values: a `jti` or `sid` does not belong in a log.
        let of = if issuers.is_empty() { "all".to_owned() } else { issuers.join(" ") };
        tracing::info!(
            by = by.join(" "),
            issuers = of,
            dropped_cache_entries = forgotten,
            "Tokens revoked through the admin API."
        );
        let lasting = retained.revocations.lasting().await;
        if let Err(NotLasting::NotWritten(_)) = lasting {
            return Err(RevokeError::NotKept);
        }
        let mut done = json!({
            "revoked": by,
            "issuers": if issuers.is_empty() { "all".into() } else { json!(issuers) },
            "forgotten": forgotten,
        });
        if let Err(NotLasting::NotPublished) = lasting {
            done["lasts"] =
                "until this process ends, or Redis is back: there is no `server.state_dir`".into();
        } else if !retained.revocations.is_kept() && !snapshot.is_shared() {
            done["lasts"] =
                "until a restart: there is neither `server.state_dir` nor `redis`".into();
        }
        Ok(done)
    }
}

impl RevocationField {
    const ALL: [Self; 4] = [Self::Id, Self::Session, Self::Subject, Self::Token];

    const fn name(self) -> &'static str {
        match self {
            Self::Id => "jti",
            Self::Session => "sid",
            Self::Subject => "sub",
            Self::Token => "token",
        }
    }

    /// Returns the revocation targets that `value` names.
    fn targets(self, value: &str) -> Vec<RevocationTarget> {
        let name = || Arc::from(value);
        match self {
            Self::Id => vec![RevocationTarget::Id(name())],
            Self::Session => vec![RevocationTarget::Session(name())],
            Self::Subject => vec![RevocationTarget::Subject(name())],
            Self::Token => RevocationTarget::token(value).collect(),
        }
    }
}
