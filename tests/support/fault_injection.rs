//! A development issuer behind a layer that counts its calls and injects faults.
//!
//! The issuer knows nothing of it: [`FaultInjection`] is a middleware around
//! the issuer's router, and several test programs include this file.

#![allow(dead_code, reason = "each test program uses its own part")]

use core::convert::Infallible;
use core::ops::Deref;
use core::time::Duration;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use northgate::base::clock::Clock;
use northgate::dev::issuer::{DevIssuer, DevIssuerConfig, DevIssuerHandle, StartError};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::watch;

/// A development issuer that counts calls and injects faults.
#[derive(Debug)]
pub(crate) struct TestIssuer {
    issuer: DevIssuerHandle,
    faults: Arc<FaultInjection>,
}

impl TestIssuer {
    /// Starts the issuer: see [`DevIssuer::start`].
    pub(crate) fn start(
        address: SocketAddr,
        clock: Clock,
        config: DevIssuerConfig,
        control: &Handle,
    ) -> Result<Self, StartError> {
        let faults = Arc::new(FaultInjection::default());
        let layer = from_fn_with_state(Arc::clone(&faults), intercept);
        let issuer =
            DevIssuer::start_with(address, clock, config, control, |router| router.layer(layer))?;
        Ok(Self { issuer, faults })
    }

    /// Returns the number of calls of `endpoint`, those with an injected fault included.
    pub(crate) fn count(&self, endpoint: Endpoint) -> u64 {
        self.faults.calls.borrow().get(&endpoint).copied().unwrap_or_default()
    }

    /// Waits until `endpoint` has been called `times` in all.
    pub(crate) async fn wait_for_calls(&self, endpoint: Endpoint, times: u64) {
        let mut calls = self.faults.calls.subscribe();
        let enough = |calls: &HashMap<_, _>| calls.get(&endpoint).is_some_and(|n| *n >= times);
        // The sender outlives this wait, so that it ends with the condition only.
        let _ = calls.wait_for(enough).await;
    }

    /// Injects `fault` into the next `times` calls of `endpoint`; `u32::MAX` means until [`TestIssuer::clear`].
    ///
    /// Several faults of one endpoint are injected in order.
    pub(crate) fn inject(&self, endpoint: Endpoint, fault: Fault, times: u32) {
        self.faults.planned().entry(endpoint).or_default().push_back(Planned { fault, times });
    }

    /// Cancels every fault planned for `endpoint`.
    pub(crate) fn clear(&self, endpoint: Endpoint) {
        self.faults.planned().remove(&endpoint);
    }

    /// Pauses every call of `endpoint` until the returned value is dropped.
    pub(crate) fn pause(&self, endpoint: Endpoint) -> Pause {
        let (pause, resumed) = watch::channel(());
        self.inject(endpoint, Fault::Pause(resumed), u32::MAX);
        Pause(pause)
    }
}

impl Deref for TestIssuer {
    type Target = DevIssuerHandle;

    fn deref(&self) -> &DevIssuerHandle {
        &self.issuer
    }
}

/// An endpoint of the issuer whose calls are counted.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Endpoint {
    /// Both metadata documents (RFC 8414, OpenID Connect Discovery).
    Discovery,
    /// The JWK set.
    Jwks,
    /// The authorization endpoint, its login page and its consent page.
    Authorization,
    /// RFC 9126.
    PushedAuthorization,
    /// RFC 6749 §3.2.
    Token,
    /// RFC 7662.
    Introspection,
    /// RFC 7009.
    Revocation,
    /// RFC 7591.
    Registration,
    /// OpenID Connect Core §5.3.
    UserInfo,
    /// OpenID Connect RP-Initiated Logout.
    EndSession,
}

impl Endpoint {
    fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/.well-known/oauth-authorization-server" | "/.well-known/openid-configuration" => {
                Self::Discovery
            }
            "/jwks" => Self::Jwks,
            "/authorize" | "/authorize/login" | "/authorize/consent" => Self::Authorization,
            "/authorize/logout" => Self::EndSession,
            "/par" => Self::PushedAuthorization,
            "/token" => Self::Token,
            "/introspect" => Self::Introspection,
            "/revoke" => Self::Revocation,
            "/register" => Self::Registration,
            "/userinfo" => Self::UserInfo,
            _ => return None,
        })
    }
}

/// A fault instead of a response, or before it.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// This status and no content.
    Status(StatusCode),
    /// This response, right or wrong.
    Answer {
        /// The status.
        status: StatusCode,
        /// The `Content-Type`.
        content_type: &'static str,
        /// The content.
        body: Bytes,
    },
    /// The right response, after a delay.
    Delay(Duration),
    /// The right response, without this member of its JSON object.
    Without(&'static str),
    /// The connection closes without a response.
    Close,
    /// No response, ever.
    Silence,
    /// The right response once the sender is dropped: see [`TestIssuer::pause`].
    Pause(watch::Receiver<()>),
}

impl Fault {
    /// This JSON, with status 200.
    pub(crate) fn json(body: &Value) -> Self {
        Self::json_with(StatusCode::OK, body)
    }

    /// The refusal of a grant by which a code or refresh token is worth nothing.
    pub(crate) fn invalid_grant() -> Self {
        Self::json_with(StatusCode::BAD_REQUEST, &json!({ "error": "invalid_grant" }))
    }

    pub(crate) fn json_with(status: StatusCode, body: &Value) -> Self {
        Self::Answer { status, content_type: "application/json", body: body.to_string().into() }
    }

    /// A page where JSON should be, with status 200: the response of a captive portal or of a proxy's login page.
    pub(crate) const fn garbage() -> Self {
        Self::Answer {
            status: StatusCode::OK,
            content_type: "text/html",
            body: Bytes::from_static(b"<!doctype html><title>Welcome</title>"),
        }
    }
}

/// Pauses the calls of an endpoint until it is dropped.
#[derive(Debug)]
pub(crate) struct Pause(watch::Sender<()>);

/// The calls so far and the faults to come.
#[derive(Debug, Default)]
struct FaultInjection {
    calls: watch::Sender<HashMap<Endpoint, u64>>,
    planned: Mutex<Plan>,
}

type Plan = HashMap<Endpoint, VecDeque<Planned>>;

#[derive(Debug)]
struct Planned {
    fault: Fault,
    times: u32,
}

impl FaultInjection {
    fn planned(&self) -> std::sync::MutexGuard<'_, Plan> {
        self.planned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self, endpoint: Endpoint) -> Option<Fault> {
        let mut planned = self.planned();
        let queue = planned.get_mut(&endpoint)?;
        while let Some(Planned { fault: Fault::Pause(resumed), .. }) = queue.front()
            && resumed.has_changed().is_err()
        {
            queue.pop_front();
        }
        let next = queue.front_mut()?;
        let fault = next.fault.clone();
        next.times = next.times.saturating_sub(1);
        if next.times == 0 {
            queue.pop_front();
        }
        Some(fault)
    }
}

/// Counts a call, and lets the planned fault happen to it.
async fn intercept(
    State(faults): State<Arc<FaultInjection>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(endpoint) = Endpoint::of(request.uri().path()) else { return next.run(request).await };
    faults.calls.send_modify(|calls| *calls.entry(endpoint).or_default() += 1);
    match faults.next(endpoint) {
        None => {}
        Some(Fault::Status(status)) => return status.into_response(),
        Some(Fault::Answer { status, content_type, body }) => {
            let content_type = HeaderValue::from_static(content_type);
            return (status, [(CONTENT_TYPE, content_type)], body).into_response();
        }
        Some(Fault::Without(member)) => return without(member, next.run(request).await).await,
        Some(Fault::Close) => return no_response(),
        Some(Fault::Delay(time)) => tokio::time::sleep(time).await,
        Some(Fault::Silence) => match core::future::pending::<Infallible>().await {},
        // An error means that the sender was dropped: the pause is over.
        Some(Fault::Pause(mut resumed)) => while resumed.changed().await.is_ok() {},
    }
    next.run(request).await
}

/// The response, without a member of its JSON object.
async fn without(member: &str, response: Response) -> Response {
    let content = axum::body::to_bytes(response.into_body(), 100_000).await.expect("the content");
    let mut object: serde_json::Map<_, _> = serde_json::from_slice(&content).expect("an object");
    object.remove(member);
    let body = serde_json::to_string(&object).expect("JSON");
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

/// A response whose content fails at once: the server closes the connection before it sends the head.
fn no_response() -> Response {
    let failed = io::Error::other("a fault was injected: no response");
    Body::from_stream(stream::iter([Err::<Bytes, _>(failed)])).into_response()
}
