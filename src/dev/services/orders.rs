//! `orders`: JSON for programs. Whatever the path, it tells what it got.
//!
//! Below any path, four last segments do something worth trying through a
//! gateway: `slow` waits, `events` streams (SSE), `upload` counts what comes,
//! `echo` sends it back as it comes.

use core::time::Duration;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use futures_util::stream;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::reply::{self, Reply};
use super::{Answer, received};

/// One instance of the service.
#[derive(Clone, Debug)]
pub(in crate::dev) struct Orders {
    /// What it calls itself, so that a caller sees which instance answered.
    name: Arc<str>,
}

impl Orders {
    pub(in crate::dev) fn new(name: &str) -> Self {
        Self { name: name.into() }
    }

    /// Answers one request.
    pub(in crate::dev) async fn answer(self, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let mut reply = match head.uri.path().rsplit('/').next() {
            Some("health") => reply::json(StatusCode::OK, &json!({ "status": "up" })),
            Some("slow") => self.slow(&head).await,
            Some("events") => events(&head),
            Some("upload") => upload(body).await,
            Some("echo") => echo(&head, body),
            _ => self.ordinary(&head),
        };
        if let Ok(name) = HeaderValue::from_str(&self.name) {
            reply.headers_mut().insert(SERVED_BY, name);
        }
        Ok(reply)
    }

    fn ordinary(&self, head: &Parts) -> Reply {
        let (status, content) = match (&head.method, head.uri.path().trim_end_matches('/')) {
            (&Method::GET | &Method::HEAD, "/public/catalog") => (StatusCode::OK, catalog()),
            (&Method::GET | &Method::HEAD, "/api/orders") => (StatusCode::OK, json!(orders())),
            (&Method::POST, "/api/orders") => (StatusCode::CREATED, json!({ "id": 4 })),
            (method, path) => match path.strip_prefix("/api/orders/") {
                Some(id) => one(method, id),
                None => (StatusCode::OK, Value::Null),
            },
        };
        self.told(status, &content, head)
    }

    async fn slow(&self, head: &Parts) -> Reply {
        let wait = parameter(head, "ms").unwrap_or(1_000).min(LONGEST_WAIT_MS);
        tokio::time::sleep(Duration::from_millis(wait)).await;
        self.told(StatusCode::OK, &json!({ "waited_ms": wait }), head)
    }

    /// The content, and beside it who answered and what was received.
    fn told(&self, status: StatusCode, content: &Value, head: &Parts) -> Reply {
        let received = received(head);
        let body = json!({ "service": &*self.name, "content": content, "received": received });
        reply::json(status, &body)
    }
}

/// Server-sent events: `count` of them, `ms` apart.
fn events(head: &Parts) -> Reply {
    let count = parameter(head, "count").unwrap_or(5);
    let pause = Duration::from_millis(parameter(head, "ms").unwrap_or(1_000));
    let events = stream::unfold(0, move |sent| async move {
        if sent == count {
            return None;
        }
        if sent > 0 {
            tokio::time::sleep(pause).await;
        }
        let event = format!("id: {sent}\ndata: {{\"order\":{sent}}}\n\n");
        Some((Ok(Frame::data(Bytes::from(event))), sent + 1))
    });
    let body = UnsyncBoxBody::new(StreamBody::new(events));
    reply::streaming(StatusCode::OK, "text/event-stream", body)
}

/// Counts the body as it comes.
async fn upload(mut body: Incoming) -> Reply {
    let (mut bytes, mut digest) = (0_u64, Context::new(&SHA256));
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return reply::json(
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
    reply::json(StatusCode::OK, &json!({ "bytes": bytes, "sha256": sha256 }))
}

/// Sends the body back while it still comes.
fn echo(head: &Parts, body: Incoming) -> Reply {
    let body = UnsyncBoxBody::new(body);
    let mut reply = reply::streaming(StatusCode::OK, "application/octet-stream", body);
    if let Some(content_type) = head.headers.get(CONTENT_TYPE) {
        reply.headers_mut().insert(CONTENT_TYPE, content_type.clone());
    }
    reply
}

fn one(method: &Method, id: &str) -> (StatusCode, Value) {
    let order = orders().into_iter().find(|order| order["id"].as_u64() == id.parse().ok());
    match (method, order) {
        (_, None) => (StatusCode::NOT_FOUND, json!({ "error": "there is no such order" })),
        // The next caller still finds it: nobody's first try should spoil the second.
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

fn parameter(head: &Parts, name: &str) -> Option<u64> {
    let query = head.uri.query()?;
    let (_, value) =
        url::form_urlencoded::parse(query.as_bytes()).find(|(have, _)| have == name)?;
    value.parse().ok()
}

const SERVED_BY: HeaderName = HeaderName::from_static("x-served-by");
const LONGEST_WAIT_MS: u64 = 60_000;
