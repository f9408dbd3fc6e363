//! HTTP/2 to services: shared connections, what is sent again and what is not, and services that misbehave
//! (RFC 9113).

mod connections;
mod content;
mod deadlines;
mod goaway;
mod grpc;
mod hostile;
mod interim;
mod large_heads;
mod resent;
mod websockets;

use crate::support::Http2Service;

/// A configuration with one service in HTTP/2, and a public route to it.
fn always(url: &str) -> String {
    with(&[url], "")
}

/// The same with several targets, and further settings of the upstream.
fn with(urls: &[&str], settings: &str) -> String {
    let targets = urls.join("\", \"");
    format!(
        "upstreams:\n  service: {{ targets: [\"{targets}\"], http2: always{settings} }}\n\
         routes:\n  - {{ id: open, path: /**, upstream: service, auth: none }}\n"
    )
}

/// A service that answers each call with its content.
fn echo(max_streams: u32) -> Http2Service {
    Http2Service::start(max_streams, async |mut call| {
        let (content, _) = call.read().await;
        call.answer(&String::from_utf8_lossy(&content));
    })
}
