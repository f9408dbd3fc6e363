//! `orders`: JSON for programs. Under any other path it describes the request it received.
//!
//! Gateways rewrite paths, so requests are routed by their *last segment*:
//! below any prefix, `slow` waits, `events` streams server-sent events,
//! `upload` counts the content and `echo` returns it. Like many an upstream it
//! takes any method.

use core::convert::Infallible;
use core::time::Duration;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts, OriginalUri, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::any;
use bytes::Bytes;
use futures_util::stream;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceBuilder;

use super::received;
use super::response;
use crate::dev::http_server::with_layers;

/// The name of one instance, so that a client sees which instance responded.
type Instance = Arc<str>;

/// Returns one instance of the service, called `name`.
pub(in crate::dev) fn router(name: &str) -> Router {
    let instance = Instance::from(name);
    let by_last_segment = Router::new()
        .route("/health", any(health))
        .route("/slow", any(slow))
        .route("/events", any(events))
        .route("/upload", any(upload))
        .route("/echo", any(echo))
        .fallback(resource)
        .with_state(Arc::clone(&instance));
    let by_last_segment =
        ServiceBuilder::new().map_request(keep_last_segment).service(by_last_segment);
    // No limit of the content: `upload` and `echo` hold none of it.
    let router = Router::new()
        .fallback_service(by_last_segment)
        .layer(from_fn_with_state(instance, add_served_by));
    with_layers(router, RESPONSE_TIMEOUT)
}

async fn health() -> Response {
    response::json(StatusCode::OK, &json!({ "status": "up" }))
}

/// Waits `ms` milliseconds, by default one second and at most one minute.
async fn slow(State(name): State<Instance>, call: Call) -> Response {
    let wait = call.number("ms").unwrap_or(1_000).min(MAX_WAIT_MS);
    tokio::time::sleep(Duration::from_millis(wait)).await;
    call.describe(&name, StatusCode::OK, &json!({ "waited_ms": wait }))
}

/// Streams `count` server-sent events, by default five, `ms` milliseconds apart.
async fn events(call: Call) -> Response {
    let count = call.number("count").unwrap_or(5);
    let pause = Duration::from_millis(call.number("ms").unwrap_or(1_000));
    let events = stream::unfold(0, move |sent| async move {
        if sent == count {
            return None;
        }
        if sent > 0 {
            tokio::time::sleep(pause).await;
        }
        let event = format!("id: {sent}\ndata: {{\"order\":{sent}}}\n\n");
        Some((Ok::<_, Infallible>(Bytes::from(event)), sent + 1))
    });
    response::content(StatusCode::OK, "text/event-stream", Body::from_stream(events))
}

/// Counts and hashes the content while it arrives.
async fn upload(request: Request) -> Response {
    let mut body = request.into_body();
    let (mut bytes, mut digest) = (0_u64, Context::new(&SHA256));
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return response::json(
                StatusCode::BAD_REQUEST,
                &json!({ "error": "the body ended early" }),
            );
        };
        if let Some(data) = frame.data_ref() {
            bytes += data.len() as u64;
            digest.update(data);
        }
    }
    let digest = digest.finish();
    let sha256 = digest.as_ref().iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    response::json(StatusCode::OK, &json!({ "bytes": bytes, "sha256": sha256 }))
}

/// Returns the content while it still arrives.
async fn echo(request: Request) -> Response {
    let (head, body) = request.into_parts();
    let mut response = response::content(StatusCode::OK, "application/octet-stream", body);
    if let Some(content_type) = head.headers.get(CONTENT_TYPE) {
        response.headers_mut().insert(CONTENT_TYPE, content_type.clone());
    }
    response
}

/// Serves the catalogue, the orders and, under any other path, a description of the request.
async fn resource(State(name): State<Instance>, call: Call) -> Response {
    let (status, content) = match (&call.method, call.uri.path().trim_end_matches('/')) {
        (&Method::GET | &Method::HEAD, "/public/catalog") => (StatusCode::OK, catalog()),
        (&Method::GET | &Method::HEAD, "/api/orders") => (StatusCode::OK, json!(orders())),
        (&Method::POST, "/api/orders") => (StatusCode::CREATED, json!({ "id": 4 })),
        (method, path) => match path.strip_prefix("/api/orders/") {
            Some(id) => order(method, id),
            None => (StatusCode::OK, Value::Null),
        },
    };
    call.describe(&name, status, &content)
}

/// Reduces the request target's path to its last segment; [`OriginalUri`] still has the whole.
fn keep_last_segment(mut request: Request) -> Request {
    let uri = request.uri();
    let segment = uri.path().rsplit('/').next().unwrap_or_default();
    // A part of a valid path is one as well.
    if let Ok(uri) = format!("/{segment}").parse::<Uri>() {
        *request.uri_mut() = uri;
    }
    request
}

/// Adds the instance's name to the response.
async fn add_served_by(State(name): State<Instance>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if let Ok(name) = HeaderValue::from_str(&name) {
        response.headers_mut().insert(SERVED_BY, name);
    }
    response
}

/// The head of a request, with the path that the client asked for.
struct Call {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

impl FromRequestParts<Instance> for Call {
    type Rejection = Infallible;

    async fn from_request_parts(
        head: &mut Parts,
        instance: &Instance,
    ) -> Result<Self, Self::Rejection> {
        let OriginalUri(uri) = OriginalUri::from_request_parts(head, instance).await?;
        Ok(Self { method: head.method.clone(), uri, headers: head.headers.clone() })
    }
}

impl Call {
    /// Returns the query parameter `name`, if it is a number.
    fn number(&self, name: &str) -> Option<u64> {
        let query = self.uri.query()?;
        let mut pairs = url::form_urlencoded::parse(query.as_bytes());
        let (_, value) = pairs.find(|(have, _)| have == name)?;
        value.parse().ok()
    }

    /// Returns `content` beside the instance's name and the request as it was received.
    fn describe(&self, name: &str, status: StatusCode, content: &Value) -> Response {
        let received = received(&self.method, &self.uri, &self.headers);
        let body = json!({ "service": name, "content": content, "received": received });
        response::json(status, &body)
    }
}

fn order(method: &Method, id: &str) -> (StatusCode, Value) {
    let order = orders().into_iter().find(|order| order["id"].as_u64() == id.parse().ok());
    match (method, order) {
        (_, None) => (StatusCode::NOT_FOUND, json!({ "error": "there is no such order" })),
        // Nothing is deleted, so that the command works a second time.
        (&Method::DELETE, Some(order)) => (StatusCode::OK, json!({ "deleted": order["id"] })),
        (_, Some(order)) => (StatusCode::OK, order),
    }
}

fn orders() -> Vec<Value> {
    [(1, "teapot", 2), (2, "looking glass", 1), (3, "pocket watch", 5)]
        .into_iter()
        .map(|(id, item, quantity)| json!({ "id": id, "item": item, "quantity": quantity }))
        .collect()
}

fn catalog() -> Value {
    json!([
        { "item": "teapot", "price": "12.50" },
        { "item": "looking glass", "price": "80.00" },
        { "item": "pocket watch", "price": "35.90" },
    ])
}

const SERVED_BY: HeaderName = HeaderName::from_static("x-served-by");
const MAX_WAIT_MS: u64 = 60_000;
/// The longest until a response begins; an upload of any size fits.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(600);
