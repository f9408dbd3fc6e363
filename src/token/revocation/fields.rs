//! How a revocation is written, as fields of a name and a value: in a journal, and for other gateways.
//!
//! People can read it, and it holds nothing that opens anything: a token is its SHA-256, a visit the name that limits and
//! the log know it by.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::list::{Revocation, RevocationTarget};

impl Revocation {
    /// As fields: what is revoked, and whose, if it is not everybody's.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, String)> {
        let (kind, name) = match &self.what {
            RevocationTarget::Id(name) => (ID, name.to_string()),
            RevocationTarget::Session(name) => (SESSION, name.to_string()),
            RevocationTarget::LoggedOut(name) => (LOGGED_OUT, name.to_string()),
            RevocationTarget::Subject(name) => (SUBJECT, name.to_string()),
            RevocationTarget::Sessionless(name) => (SESSIONLESS, name.to_string()),
            RevocationTarget::Token(digest) => (TOKEN, URL_SAFE_NO_PAD.encode(digest)),
            RevocationTarget::Visit(name) => (VISIT, name.to_string()),
            RevocationTarget::Replaced(name) => (REPLACED, name.to_string()),
        };
        let issuer = self.issuer.as_ref().map(|issuer| (ISSUER, issuer.to_string()));
        [Some((kind, name)), issuer].into_iter().flatten()
    }
}

/// A revocation that is read field by field.
#[derive(Debug, Default)]
pub struct Reading {
    what: Option<RevocationTarget>,
    issuer: Option<Arc<str>>,
}

/// These are not the fields of a revocation that this version knows.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("it is no revocation of this version's")]
pub struct Malformed;

impl Reading {
    /// Takes a field, in any order.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if it is none of a revocation's, or names it a second time. What an unknown one means may be that
    /// less is revoked: better not half understood.
    pub fn take(&mut self, name: &str, value: &str) -> Result<(), Malformed> {
        let what = match name {
            ID => RevocationTarget::Id(value.into()),
            SESSION => RevocationTarget::Session(value.into()),
            LOGGED_OUT => RevocationTarget::LoggedOut(value.into()),
            SUBJECT => RevocationTarget::Subject(value.into()),
            SESSIONLESS => RevocationTarget::Sessionless(value.into()),
            TOKEN => RevocationTarget::Token(digest(value)?),
            VISIT => RevocationTarget::Visit(value.into()),
            REPLACED => RevocationTarget::Replaced(value.into()),
            ISSUER => return set(&mut self.issuer, value.into()),
            _ => return Err(Malformed),
        };
        set(&mut self.what, what)
    }

    /// What was read.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if it is not said what is revoked.
    pub fn revocation(self) -> Result<Revocation, Malformed> {
        Ok(Revocation { issuer: self.issuer, what: self.what.ok_or(Malformed)? })
    }
}

/// Each field comes once, and what is revoked is named in one way.
fn set<T>(place: &mut Option<T>, value: T) -> Result<(), Malformed> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Malformed),
    }
}

fn digest(text: &str) -> Result<[u8; 32], Malformed> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| Malformed)?;
    bytes.try_into().map_err(|_| Malformed)
}

const ID: &str = "jti";
const SESSION: &str = "sid";
const LOGGED_OUT: &str = "logged_out_sid";
const SUBJECT: &str = "sub";
const SESSIONLESS: &str = "sub_without_sid";
const TOKEN: &str = "sha256";
const VISIT: &str = "visit";
const REPLACED: &str = "replaced";
const ISSUER: &str = "issuer";
