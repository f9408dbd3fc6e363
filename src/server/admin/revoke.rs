//! `POST /-/revoke`: revokes tokens and sessions.

use std::sync::Arc;

use axum::extract::Request;
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::content::{ContentError, bare, read_fields};
use crate::base::clock::Timestamp;
use crate::gateway::{RetainedState, Snapshot};
use crate::token::revocation::publication::NotLasting;
use crate::token::{Revocation, RevocationTarget, is_token, unverified_expiry, unverified_issuer};

/// A revocation request: at least one target.
pub(super) struct RevokeRequest {
    /// As written, but a token without what was copied with it.
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
    #[error("a value has a line break, or another control character, inside: send one value")]
    Control,
    #[error("`token` is no token: it holds a blank, a quote or another character that none has")]
    Token,
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
                let seconds = value.as_u64().or_else(|| bare(value.as_str()?).parse().ok());
                request.until = Some(seconds.ok_or(RevokeError::Until)?);
                continue;
            }
            let text = match value {
                Value::String(text) if !bare(&text).is_empty() => text,
                _ => return Err(RevokeError::Value),
            };
            if bare(&text).contains(char::is_control) {
                return Err(RevokeError::Control);
            }
            match &*name {
                "iss" | "issuer" if request.issuer.is_some() => {
                    return Err(RevokeError::Content(ContentError::Twice));
                }
                "iss" | "issuer" => request.issuer = Some(bare(&text).to_owned()),
                name => {
                    let field = RevocationField::ALL.into_iter().find(|field| field.name() == name);
                    let field = field.ok_or(RevokeError::Unknown)?;
                    let is_token = field == RevocationField::Token;
                    let text = if is_token { token(&text)?.to_owned() } else { text };
                    request.targets.push((field, text));
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
        let (mut forgotten, mut unrecognized) = (0, None);
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
            let before = forgotten;
            for what in targets {
                for issuer in issuers {
                    let revocation = Revocation { issuer: issuer.clone(), what: what.clone() };
                    forgotten += retained.revocations.revoke(revocation, until);
                }
            }
            if *field == RevocationField::Token && forgotten == before {
                unrecognized = doubt(snapshot, value);
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
        if let Some(doubt) = unrecognized {
            done["unrecognized"] = doubt.into();
        }
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
        let target = match self {
            Self::Id => RevocationTarget::Id,
            Self::Session => RevocationTarget::Session,
            Self::Subject => RevocationTarget::Subject,
            Self::Token => return RevocationTarget::token(value).collect(),
        };
        // An issuer's own name may have such ends, so the name as written is revoked too.
        let bare = Some(bare(value)).filter(|bare| *bare != value);
        [value].into_iter().chain(bare).map(|name| target(Arc::from(name))).collect()
    }
}

/// Returns the token in `text`, which may be a copied `Authorization` field.
fn token(text: &str) -> Result<&str, RevokeError> {
    let mut token = bare(text);
    if let Some((name, value)) = token.split_once(':')
        && name.eq_ignore_ascii_case("authorization")
    {
        token = value.trim_start();
    }
    if let Some((scheme, value)) = token.split_once(char::is_whitespace)
        && ["bearer", "dpop"].iter().any(|known| scheme.eq_ignore_ascii_case(known))
    {
        token = bare(value);
    }
    if is_token(token) { Ok(token) } else { Err(RevokeError::Token) }
}

/// Returns what makes it doubtful that a token, of which nothing was cached, is one of a configured issuer.
fn doubt(snapshot: &Snapshot, token: &str) -> Option<&'static str> {
    let inner = snapshot.open_token(token);
    let signed = inner.first().map_or(token, |inner| inner.expose());
    match unverified_issuer(signed) {
        None => Some(
            "the token is no JWT with an `iss`, and this gateway has not seen it lately: make sure that it is whole",
        ),
        Some(iss) if snapshot.issuers_named(&iss).is_empty() => {
            Some("the token is a JWT of an issuer that is not configured")
        }
        Some(_) => None,
    }
}
