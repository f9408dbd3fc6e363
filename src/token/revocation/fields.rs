//! The encoding of a revocation as fields of name and value: in the journal, and for other instances.
//!
//! Readable, and without secrets: a token is its SHA-256, a session of the gateway the alias that limits and
//! the log use.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::event::{Revocation, RevocationTarget};

impl Revocation {
    /// Returns the fields: the target, and the issuer unless it means every issuer.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, String)> {
        let (kind, name) = match &self.what {
            RevocationTarget::Id(name) => (ID, name.to_string()),
            RevocationTarget::Session(name) => (SESSION, name.to_string()),
            RevocationTarget::LoggedOut(name) => (LOGGED_OUT, name.to_string()),
            RevocationTarget::Subject(name) => (SUBJECT, name.to_string()),
            RevocationTarget::Sessionless(name) => (SESSIONLESS, name.to_string()),
            RevocationTarget::Token(digest) => (TOKEN, URL_SAFE_NO_PAD.encode(digest)),
            RevocationTarget::Withdrawn(digest) => (WITHDRAWN, URL_SAFE_NO_PAD.encode(digest)),
            RevocationTarget::GatewaySession(name) => (GATEWAY_SESSION, name.to_string()),
            RevocationTarget::Replaced(name) => (REPLACED, name.to_string()),
            RevocationTarget::ClockAhead(seconds) => (CLOCK_AHEAD, seconds.to_string()),
        };
        let issuer = self.issuer.as_ref().map(|issuer| (ISSUER, issuer.to_string()));
        [Some((kind, name)), issuer].into_iter().flatten()
    }
}

/// A decoder that takes a revocation field by field.
#[derive(Debug, Default)]
pub struct Reading {
    what: Option<RevocationTarget>,
    issuer: Option<Arc<str>>,
}

/// The fields are not a revocation that this version supports.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("malformed revocation fields")]
pub struct MalformedRevocation;

impl Reading {
    /// Takes a field, in any order.
    ///
    /// # Errors
    ///
    /// [`MalformedRevocation`] if the field is unknown, or the second of its kind. An unknown one may restrict
    /// the revocation: better not half understood.
    pub fn take(&mut self, name: &str, value: &str) -> Result<(), MalformedRevocation> {
        let what = match name {
            ID => RevocationTarget::Id(value.into()),
            SESSION => RevocationTarget::Session(value.into()),
            LOGGED_OUT => RevocationTarget::LoggedOut(value.into()),
            SUBJECT => RevocationTarget::Subject(value.into()),
            SESSIONLESS => RevocationTarget::Sessionless(value.into()),
            TOKEN => RevocationTarget::Token(digest(value)?),
            WITHDRAWN => RevocationTarget::Withdrawn(digest(value)?),
            GATEWAY_SESSION => RevocationTarget::GatewaySession(value.into()),
            REPLACED => RevocationTarget::Replaced(value.into()),
            CLOCK_AHEAD => {
                RevocationTarget::ClockAhead(value.parse().map_err(|_| MalformedRevocation)?)
            }
            ISSUER => return set(&mut self.issuer, value.into()),
            _ => return Err(MalformedRevocation),
        };
        set(&mut self.what, what)
    }

    /// Returns the revocation.
    ///
    /// # Errors
    ///
    /// [`MalformedRevocation`] if no field names a target.
    pub fn revocation(self) -> Result<Revocation, MalformedRevocation> {
        Ok(Revocation { issuer: self.issuer, what: self.what.ok_or(MalformedRevocation)? })
    }
}

/// Sets a field that occurs once; the target is named in one way.
fn set<T>(field: &mut Option<T>, value: T) -> Result<(), MalformedRevocation> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(MalformedRevocation),
    }
}

fn digest(text: &str) -> Result<[u8; 32], MalformedRevocation> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| MalformedRevocation)?;
    bytes.try_into().map_err(|_| MalformedRevocation)
}

const ID: &str = "jti";
const SESSION: &str = "sid";
const LOGGED_OUT: &str = "logged_out_sid";
const SUBJECT: &str = "sub";
const SESSIONLESS: &str = "sub_without_sid";
const TOKEN: &str = "sha256";
const WITHDRAWN: &str = "withdrawn_sha256";
const GATEWAY_SESSION: &str = "visit";
const REPLACED: &str = "replaced";
const CLOCK_AHEAD: &str = "clock_ahead";
const ISSUER: &str = "issuer";
