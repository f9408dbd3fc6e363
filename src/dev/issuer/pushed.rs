//! Authorization requests that a client hands over itself, before it sends the browser (RFC 9126).
//!
//! The browser then carries only a name for the request, so that nobody on the
//! way can read or change what is asked for.

use std::sync::{Mutex, PoisonError};

use http::{HeaderMap, StatusCode};
use serde_json::json;

use super::bounded::Bounded;
use super::error::OAuthError;
use super::form::Form;
use super::issue::random;
use super::reply::{self, Reply};
use super::request::{AuthorizationRequest, Refused};
use super::{DevIssuer, credentials};
use crate::base::clock::Timestamp;

/// Requests handed over and not used yet, by their names.
#[derive(Debug)]
pub(super) struct Pushed(Mutex<Bounded<String, (AuthorizationRequest, Timestamp)>>);

impl Pushed {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Bounded::new(MOST)))
    }

    /// The request of this name, once.
    pub(super) fn take(
        &self,
        name: &str,
        client: &str,
        now: Timestamp,
    ) -> Option<AuthorizationRequest> {
        let mut pushed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (request, _) = pushed.find(&name.to_owned())?;
        if *request.client.id != *client {
            return None;
        }
        let (request, expires) = pushed.remove(&name.to_owned())?;
        (now < expires).then_some(request)
    }

    fn keep(&self, name: String, request: AuthorizationRequest, expires: Timestamp) {
        let mut pushed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pushed.insert(name, (request, expires));
    }
}

/// Answers a pushed request with its name (RFC 9126 §2.2).
pub(super) fn answer(
    issuer: &DevIssuer,
    headers: &HeaderMap,
    form: &Form,
) -> Result<Reply, OAuthError> {
    let client = credentials::client(issuer, headers, form)?;
    let request =
        AuthorizationRequest::of(issuer, client, form).map_err(|refused| match refused {
            Refused::Person(why) => OAuthError::request(why),
            Refused::Client(_, error) => error,
        })?;
    let name = format!("{NAMES}{}", random()?);
    issuer.pushed.keep(name.clone(), request, issuer.clock.now().plus_secs(LIFETIME));
    let body = json!({ "request_uri": name, "expires_in": LIFETIME });
    Ok(reply::json(StatusCode::CREATED, &body))
}

/// How the names of pushed requests begin.
const NAMES: &str = "urn:ietf:params:oauth:request_uri:";
/// Seconds until the browser must have come.
const LIFETIME: u64 = 60;
const MOST: usize = 10_000;
