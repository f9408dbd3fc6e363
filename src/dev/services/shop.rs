//! `shop`: pages for people. A newcomer tries the gateway from its start page.
//!
//! Below `/dev` it serves what that page shows: the routes and the file in
//! use, the gateway's metrics, and sample tokens. An ordinary upstream would
//! have no such endpoints.

use core::time::Duration;
use std::sync::Arc;

use askama::Template;
use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::get;
use http::header::{ACCEPT, HOST};
use http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::{Value, json};

use super::response;
use super::{received, text};
use crate::dev::demo_state::{DemoState, Unavailable};
use crate::dev::http_server::{is_loopback_host, with_layers};

/// Returns the service, which shows `state` on its start page.
pub(in crate::dev) fn router(state: DemoState) -> Router {
    let local_only = Router::new()
        .route("/dev/routes", get(routes))
        .route("/dev/tokens", get(tokens))
        .route("/dev/config", get(configuration))
        .route("/dev/metrics", get(metrics))
        .route_layer(from_fn(require_loopback_host));
    let router = Router::new()
        .route("/", get(async || response::html(include_str!("../page/shop.html"))))
        .route("/dev/style.css", get(async || css(include_str!("../page/style.css"))))
        .route("/dev/shop.css", get(async || css(include_str!("../page/shop.css"))))
        .route("/dev/shop.js", get(async || script(include_str!("../page/shop.js"))))
        .route("/dev/icon.svg", get(async || icon(include_str!("../page/icon.svg"))))
        .route("/health", get(health))
        .route("/dev", get(describe))
        .route("/app", get(account))
        .route("/app/", get(account))
        .route("/app/{*page}", get(account))
        .merge(local_only)
        .fallback(async || refusal(StatusCode::NOT_FOUND, "there is no such page"))
        .method_not_allowed_fallback(async || {
            refusal(StatusCode::METHOD_NOT_ALLOWED, "only GET is taken here")
        })
        .with_state(Arc::new(state));
    with_layers(router, RESPONSE_TIMEOUT)
}

async fn health() -> Response {
    response::json(StatusCode::OK, &json!({ "status": "up" }))
}

/// Describes the request as the gateway forwarded it.
async fn describe(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let received = received(&method, &uri, &headers);
    response::json(StatusCode::OK, &json!({ "received": received }))
}

/// Greets the logged-in user by the identity that the gateway forwarded: a page, or JSON for programs.
async fn account(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let received = received(&method, &uri, &headers);
    let wants_html = text(headers.get(ACCEPT)).is_some_and(|accept| accept.contains("text/html"));
    if !wants_html {
        return response::json(StatusCode::OK, &json!({ "service": "shop", "received": received }));
    }
    let subject = received["identity"]["x-auth-subject"].as_str().unwrap_or("guest");
    match (AccountPage { subject, received: &format!("{received:#}") }).render() {
        Ok(page) => response::html(page),
        Err(_) => refusal(StatusCode::INTERNAL_SERVER_ERROR, "the page cannot be rendered"),
    }
}

#[derive(Template)]
#[template(path = "dev/account.html")]
struct AccountPage<'a> {
    subject: &'a str,
    received: &'a str,
}

async fn routes(State(state): State<Arc<DemoState>>) -> Response {
    json_or_unavailable(state.routes())
}

async fn tokens(State(state): State<Arc<DemoState>>) -> Response {
    json_or_unavailable(state.tokens())
}

async fn configuration(State(state): State<Arc<DemoState>>) -> Response {
    text_or_unavailable(state.configuration())
}

async fn metrics(State(state): State<Arc<DemoState>>) -> Response {
    text_or_unavailable(state.metrics().await)
}

/// Serves only requests whose client asked for a loopback name: a page of another
/// origin whose name suddenly resolves to this machine (DNS rebinding) gets no tokens.
async fn require_loopback_host(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let host = headers.get("x-forwarded-host").or(headers.get(HOST));
    if !host.is_some_and(is_loopback_host) {
        return refusal(StatusCode::MISDIRECTED_REQUEST, "only localhost is served here");
    }
    next.run(request).await
}

fn json_or_unavailable(value: Result<Value, Unavailable>) -> Response {
    match value {
        Ok(value) => response::json(StatusCode::OK, &value),
        Err(Unavailable) => unavailable(),
    }
}

fn text_or_unavailable(text: Result<String, Unavailable>) -> Response {
    match text {
        Ok(text) => response::content(StatusCode::OK, "text/plain; charset=utf-8", text),
        Err(Unavailable) => unavailable(),
    }
}

fn unavailable() -> Response {
    refusal(StatusCode::SERVICE_UNAVAILABLE, "it cannot be read now")
}

fn css(text: &'static str) -> Response {
    response::content(StatusCode::OK, "text/css; charset=utf-8", text)
}

fn script(text: &'static str) -> Response {
    response::content(StatusCode::OK, "text/javascript; charset=utf-8", text)
}

fn icon(text: &'static str) -> Response {
    response::content(StatusCode::OK, "image/svg+xml", text)
}

fn refusal(status: StatusCode, problem: &str) -> Response {
    response::json(status, &json!({ "error": problem }))
}

/// The longest until a response begins.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
