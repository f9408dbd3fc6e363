//! `POST /-/revoke`: an operator ends tokens and sessions before their time.

use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::{Map, Value, json};
use url::form_urlencoded;

use crate::base::clock::Timestamp;
use crate::gateway::{RetainedState, Snapshot};
use crate::issuer::json;
use crate::token::{Revocation, RevocationTarget, unverified_expiry};

/// What the operator named: at least one thing.
pub(super) struct RevokeRequest {
    named: Vec<(RevocationField, String)>,
    /// The issuer's name in the file, or its `iss`.
    issuer: Option<String>,
    /// Seconds since 1970 after which it need not be remembered.
    until: Option<u64>,
}

/// By what tokens are named.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum RevocationField {
    Id,
    Session,
    Subject,
    Token,
}

/// Why nothing was revoked.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum RevokeError {
    #[error("the body is larger than 64 KiB, or did not come whole")]
    Body,
    #[error("send a form (application/x-www-form-urlencoded) or an object (application/json)")]
    Kind,
    #[error("the body is not an object of JSON")]
    Json,
    #[error("a field comes twice")]
    Twice,
    #[error("there is a field besides jti, sid, sub, token, iss and until")]
    Unknown,
    #[error("a value is empty, or not text")]
    Value,
    #[error("`until` is not a whole number of seconds since 1970")]
    Until,
    #[error("name what is to end: one or more of jti, sid, sub and token")]
    Nothing,
    #[error("no issuer of the configuration is called that, or has that `iss`")]
    Issuer,
    #[error("it is revoked until a restart: it cannot be written to `server.state_dir`; ask again")]
    NotKept,
}

impl RevokeError {
    pub(super) const fn status(self) -> StatusCode {
        match self {
            Self::Body => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NotKept => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

impl RevokeRequest {
    /// Reads what a request asks for.
    pub(super) async fn read(request: Request<Incoming>) -> Result<Self, RevokeError> {
        let (head, body) = request.into_parts();
        let is_json = is_json(&head.headers)?;
        let body = Limited::new(body, MAX_BODY).collect().await;
        let body = body.map(http_body_util::Collected::to_bytes).map_err(|_| RevokeError::Body)?;
        let fields = if is_json {
            json::parse_object(&body).map_err(|_| RevokeError::Json)?
        } else {
            let mut fields = Map::new();
            for (name, value) in form_urlencoded::parse(&body) {
                if fields.insert(name.into_owned(), value.into_owned().into()).is_some() {
                    return Err(RevokeError::Twice);
                }
            }
            fields
        };
        Self::parse(fields)
    }

    fn parse(fields: Map<String, Value>) -> Result<Self, RevokeError> {
        let mut asked = Self { named: Vec::new(), issuer: None, until: None };
        for (name, value) in fields {
            if name == "until" {
                let seconds = value.as_u64().or_else(|| value.as_str()?.parse().ok());
                asked.until = Some(seconds.ok_or(RevokeError::Until)?);
                continue;
            }
            let text = match value {
                Value::String(text) if !text.is_empty() => text,
                _ => return Err(RevokeError::Value),
            };
            match &*name {
                "iss" | "issuer" if asked.issuer.is_some() => return Err(RevokeError::Twice),
                "iss" | "issuer" => asked.issuer = Some(text),
                name => {
                    let named = RevocationField::ALL.into_iter().find(|named| named.word() == name);
                    asked.named.push((named.ok_or(RevokeError::Unknown)?, text));
                }
            }
        }
        if asked.named.is_empty() { Err(RevokeError::Nothing) } else { Ok(asked) }
    }

    /// Revokes it, everywhere and at once, and so that a restart does not undo it; says what was done.
    pub(super) async fn run(
        self,
        snapshot: &Snapshot,
        kept: &RetainedState,
    ) -> Result<Value, RevokeError> {
        let issuers = match &self.issuer {
            None => vec![None],
            Some(named) => snapshot.issuers_named(named).map(Some).collect(),
        };
        if issuers.is_empty() {
            return Err(RevokeError::Issuer);
        }
        let until = self.until.map(Timestamp::from_secs);
        let mut forgotten = 0;
        for (named, value) in &self.named {
            let until = until.or_else(|| match named {
                RevocationField::Token => unverified_expiry(value),
                _ => None,
            });
            for what in named.what(value) {
                for issuer in &issuers {
                    let revocation = Revocation { issuer: issuer.clone(), what: what.clone() };
                    forgotten += kept.revocations.revoke(revocation, until);
                }
            }
        }
        let by: Vec<_> = self.named.iter().map(|(named, _)| named.word()).collect();
        let issuers: Vec<_> = issuers.iter().flatten().map(|issuer| &**issuer).collect();
        // Not what they are called: a `jti` or a `sid` is nobody's business who reads the log.
        tracing::info!(?by, ?issuers, forgotten, "The operator revoked what was named.");
        kept.revocations.kept().await.map_err(|_| RevokeError::NotKept)?;
        let mut done = json!({
            "revoked": by,
            "issuers": if issuers.is_empty() { "all".into() } else { json!(issuers) },
            "forgotten": forgotten,
        });
        if !kept.revocations.is_kept() && !snapshot.is_shared() {
            done["lasts"] =
                "until a restart: there is neither `server.state_dir` nor `redis`".into();
        }
        Ok(done)
    }
}

impl RevocationField {
    const ALL: [Self; 4] = [Self::Id, Self::Session, Self::Subject, Self::Token];

    const fn word(self) -> &'static str {
        match self {
            Self::Id => "jti",
            Self::Session => "sid",
            Self::Subject => "sub",
            Self::Token => "token",
        }
    }

    /// All that `value` is known by, if it is named so.
    fn what(self, value: &str) -> Vec<RevocationTarget> {
        let name = || Arc::from(value);
        match self {
            Self::Id => vec![RevocationTarget::Id(name())],
            Self::Session => vec![RevocationTarget::Session(name())],
            Self::Subject => vec![RevocationTarget::Subject(name())],
            Self::Token => RevocationTarget::token(value).collect(),
        }
    }
}

/// Whether the body is JSON; a form otherwise.
fn is_json(headers: &HeaderMap) -> Result<bool, RevokeError> {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    match kind.split(';').next().unwrap_or_default().trim() {
        kind if kind.eq_ignore_ascii_case("application/json") => Ok(true),
        kind if kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") => Ok(false),
        _ => Err(RevokeError::Kind),
    }
}

const MAX_BODY: usize = 64 * 1024;
