//! `shop`: pages for people. Its first page is where a newcomer tries the gateway.
//!
//! Below `/dev` it serves what that page shows: the routes and the file in use,
//! the gateway's counters, and tokens to try. The development system fills
//! these in; an ordinary service would have nothing of the kind.

use std::sync::Arc;

use http::header::ACCEPT;
use http::request::Parts;
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::reply::{self, Reply};
use super::{Answer, received, text};
use crate::dev::around::{Around, Unknown};
use crate::dev::html::escape;
use crate::dev::listen::is_local;

/// The service, and what it can show of the system around it.
#[derive(Clone, Debug)]
pub(in crate::dev) struct Shop(Arc<Around>);

impl Shop {
    pub(in crate::dev) fn new(around: Around) -> Self {
        Self(Arc::new(around))
    }

    /// Answers one request; its body, if any, is of no interest.
    pub(in crate::dev) async fn answer(self, request: Request<Incoming>) -> Answer {
        let (head, _) = request.into_parts();
        if head.method != Method::GET && head.method != Method::HEAD {
            return Ok(refusal(StatusCode::METHOD_NOT_ALLOWED, "only GET is taken here"));
        }
        Ok(match head.uri.path() {
            "/" => reply::html(include_str!("../page/shop.html")),
            "/dev/style.css" => css(include_str!("../page/style.css")),
            "/dev/shop.css" => css(include_str!("../page/shop.css")),
            "/dev/shop.js" => {
                asset("text/javascript; charset=utf-8", include_str!("../page/shop.js"))
            }
            "/dev/icon.svg" => asset("image/svg+xml", include_str!("../page/icon.svg")),
            "/health" => reply::json(StatusCode::OK, &json!({ "status": "up" })),
            "/dev" => reply::json(StatusCode::OK, &json!({ "received": received(&head) })),
            path if path.starts_with("/dev/") => self.inside(path, &head).await,
            path if path == "/app" || path.starts_with("/app/") => account(&head),
            _ => refusal(StatusCode::NOT_FOUND, "there is no such page"),
        })
    }

    /// What the first page shows of the system, for this machine's user alone.
    async fn inside(&self, path: &str, head: &Parts) -> Reply {
        if !asked_locally(head) {
            return refusal(StatusCode::MISDIRECTED_REQUEST, "only localhost is served here");
        }
        match path {
            "/dev/routes" => shown(self.0.routes()),
            "/dev/tokens" => shown(self.0.tokens()),
            "/dev/config" => plain(self.0.configuration()),
            "/dev/metrics" => plain(self.0.metrics().await),
            _ => refusal(StatusCode::NOT_FOUND, "there is no such page"),
        }
    }
}

/// What a logged-in person sees: who the service thinks they are, and how it knows.
fn account(head: &Parts) -> Reply {
    let received = received(head);
    let wants_html =
        text(head.headers.get(ACCEPT)).is_some_and(|accept| accept.contains("text/html"));
    if !wants_html {
        return reply::json(StatusCode::OK, &json!({ "service": "shop", "received": received }));
    }
    let subject = received["identity"]["x-auth-subject"].as_str().unwrap_or("somebody");
    reply::html(format!(
        include_str!("../page/account.html"),
        subject = escape(subject),
        received = escape(&format!("{received:#}")),
    ))
}

/// Whether the browser asked for a name of this machine: a page elsewhere whose
/// name suddenly resolves to it (DNS rebinding) gets no tokens.
fn asked_locally(head: &Parts) -> bool {
    let asked = head.headers.get("x-forwarded-host").or(head.headers.get("host"));
    asked.is_some_and(is_local)
}

fn shown(value: Result<Value, Unknown>) -> Reply {
    match value {
        Ok(value) => reply::json(StatusCode::OK, &value),
        Err(Unknown) => refusal(StatusCode::SERVICE_UNAVAILABLE, "it cannot be read now"),
    }
}

fn plain(text: Result<String, Unknown>) -> Reply {
    match text {
        Ok(text) => reply::of(StatusCode::OK, "text/plain; charset=utf-8", text),
        Err(Unknown) => refusal(StatusCode::SERVICE_UNAVAILABLE, "it cannot be read now"),
    }
}

fn css(text: &'static str) -> Reply {
    asset("text/css; charset=utf-8", text)
}

fn asset(content_type: &'static str, text: &'static str) -> Reply {
    reply::of(StatusCode::OK, content_type, text)
}

fn refusal(status: StatusCode, why: &str) -> Reply {
    reply::json(status, &json!({ "error": why }))
}
